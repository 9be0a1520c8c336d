"""Problems whose flow is known, and a numpy executor written from the definition of a plan."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from odediff import schedule as schedules
from odediff.plans import Plan
from odediff.schedule import Array, Schedule
from odediff.spaces import space_pair

Denoiser = Callable[[Array, float, float], Array]  # (x, alpha, sigma) -> E[x0 | x]

SCHEDULES: dict[str, Schedule] = {
    "linear": schedules.linear(),
    "scaled_linear": schedules.scaled_linear(),
    "cosine": schedules.cosine(),
    "sigmoid": schedules.sigmoid(),
    "edm": schedules.edm(),
    "flow": schedules.flow(),
    "zero_snr": schedules.linear().zero_terminal_snr(),
}


def gaussian(mean: float, std: float) -> Denoiser:
    """The exact denoiser of N(mean, std^2) data."""
    return lambda x, alpha, sigma: mean + alpha * std**2 * (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)


def gaussian_flow(x: Array, start: tuple[float, float], end: tuple[float, float], mean: float, std: float) -> Array:
    """The probability-flow ODE of N(mean, std^2) data from (alpha, sigma) to (alpha', sigma'), in closed form."""
    (a, s), (a2, s2) = start, end
    return a2 * mean + np.hypot(a2 * std, s2) / np.hypot(a * std, s) * (x - a * mean)


def mixture(centres: Array, std: float) -> Denoiser:
    """The exact denoiser of an equal mixture of N(c, std^2 I), centres (M, D), states (N, D)."""

    def denoise(x: Array, alpha: float, sigma: float) -> Array:
        v = alpha**2 * std**2 + sigma**2
        gap = x[:, None, :] - alpha * centres
        log = -0.5 * (gap**2).sum(-1) / v
        weight = np.exp(log - log.max(1, keepdims=True))
        weight /= weight.sum(1, keepdims=True)
        means = centres + alpha * std**2 / v * gap
        return (weight[..., None] * means).sum(1)

    return denoise


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
