"""Problems whose flow is known, and a numpy executor written from the definition of a plan, not the library's."""

from __future__ import annotations

import numpy as np

from odediff import schedule as schedules
from odediff.analysis.problems import Denoiser
from odediff.analysis.problems import gaussian as gaussian
from odediff.analysis.problems import gaussian_flow as gaussian_flow
from odediff.analysis.problems import mixture as mixture
from odediff.plans import Plan
from odediff.schedule import Array, Schedule
from odediff.spaces import space_pair

SCHEDULES: dict[str, Schedule] = {
    "linear": schedules.linear(),
    "scaled_linear": schedules.scaled_linear(),
    "cosine": schedules.cosine(),
    "sigmoid": schedules.sigmoid(),
    "edm": schedules.edm(),
    "flow": schedules.flow(),
    "zero_snr": schedules.linear().zero_terminal_snr(),
}


_WEIGHTS = np.random.default_rng(5).normal(size=(4, 4)) / 2


def random_network(x: Array, alpha: float, sigma: float) -> Array:
    """The x0 of a smooth random eps of states (N, 4), one function of x / hypot(alpha, sigma) on every schedule."""
    unit = x / np.hypot(alpha, sigma)
    eps = np.tanh(unit @ _WEIGHTS + 0.3 * np.log(alpha / sigma)) + 0.5 * unit
    return (x - sigma * eps) / alpha


def run(plan: Plan, denoise: Denoiser, x: Array, noise: Array | None = None) -> list[Array]:
    """Every state of a plan with an exact denoiser; noise: (S, *x.shape)."""
    u, w = space_pair(plan.space, plan.alpha[:-1], plan.sigma[:-1])
    states, d = [x], []
    for i in range(plan.nfe):
        x0 = denoise(states[i], plan.alpha[i], plan.sigma[i])
        eps = (states[i] - plan.alpha[i] * x0) / plan.sigma[i]
        d.append(u[i] * x0 + w[i] * eps)
        new = plan.a[i] * states[i]
        for j in range(min(plan.depth, i + 1)):
            new = new + plan.b[i, j] * d[i - j]
        states.append(new if noise is None else new + plan.c[i] * noise[i])
    return states
