"""What a plan does, read from its table."""

from __future__ import annotations

import numpy as np

from .plans import Plan
from .schedule import Array
from .spaces import space_pair


def gaussian_moments(plan: Plan, mean: float, variance: float) -> tuple[Array, Array]:
    """Mean and variance of every state, each (S+1,), when the data are N(mean, variance) and the network is exact.

    Then x0_hat = mean + alpha v (x - alpha mean) / (alpha^2 v + sigma^2) and eps_hat = (x - alpha x0_hat) / sigma,
    so a state is affine in the start and the noises, and its moments follow from the table without sampling.
    variance: at least 0. ValueError: a negative or non-finite variance.
    """
    if not 0 <= variance < np.inf:
        raise ValueError(f"variance = {variance} must be finite and not negative")
    u, w = space_pair(plan.space, plan.alpha[:-1], plan.sigma[:-1])
    state = np.zeros(2 + plan.nfe)  # coefficients of (1, x_T, z_0, z_1, ..)
    state[1] = plan.prior_scale
    states: list[Array] = [state]
    history: list[Array] = []
    for i in range(plan.nfe):
        alpha, sigma = plan.alpha[i], plan.sigma[i]
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        x0 = gain * state
        x0[0] += mean * (1 - gain * alpha)
        history.insert(0, u[i] * x0 + w[i] * (state - alpha * x0) / sigma)
        state = plan.a[i] * state + sum(b * d for b, d in zip(plan.b[i], history, strict=False))
        state[2 + i] += plan.c[i]
        states.append(state)
    table = np.array(states)
    return table[:, 0], (table[:, 1:] ** 2).sum(1)
