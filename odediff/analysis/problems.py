"""Data whose denoiser is known in closed form, the flow through them, and a plan run on them.

x0_hat = E[x0 | x],    eps_hat = (x - alpha x0_hat) / sigma,    d = u x0_hat + w eps_hat
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ..plans import Plan
from ..schedule import Array, Schedule
from ..spaces import space_pair

Denoiser = Callable[[Array, float, float], Array]  # (x, alpha, sigma) -> E[x0 | x]
Scales = tuple[float, float]  # alpha and sigma of a state


@dataclass(frozen=True)
class Problem:
    """Data with an exact denoiser, as a `Model` is data with a learned one.

    denoise: `denoise(x, alpha, sigma)` -> E[x0 | x], x (n, *shape) float64, of the same shape, for any alpha and sigma.
    schedule: the noise.  shape: of one sample, such as (2,).
    ValueError: denoise cannot be called, schedule is none, shape is not of positive whole numbers.
    """

    denoise: Denoiser
    schedule: Schedule
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not callable(self.denoise):
            raise ValueError(f"denoise must be a callable f(x, alpha, sigma), got {self.denoise!r}")
        if not isinstance(self.schedule, Schedule):
            raise ValueError(
                f"schedule must be an odediff.schedule.Schedule such as schedule.linear(), got {self.schedule!r}"
            )
        if not self.shape or not all(isinstance(size, int) and size > 0 for size in self.shape):
            raise ValueError(f"shape must hold positive whole numbers such as (2,), got {self.shape!r}")


def gaussian(mean: float | Array, std: float | Array) -> Denoiser:
    """The exact denoiser of N(mean, std^2) data: mean + alpha std^2 (x - alpha mean) / (alpha^2 std^2 + sigma^2).

    mean, std: scalars, or arrays that broadcast with one sample.
    """
    return lambda x, alpha, sigma: mean + alpha * std**2 * (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)


def gaussian_flow(x: Array, start: Scales, end: Scales, mean: float | Array, std: float | Array) -> Array:
    """The probability-flow ODE of N(mean, std^2) data from (alpha, sigma) to (alpha', sigma'), in closed form.

    x' = alpha' mean + r'/r (x - alpha mean),    r = hypot(alpha std, sigma)
    """
    (a, s), (a2, s2) = start, end
    return a2 * mean + np.hypot(a2 * std, s2) / np.hypot(a * std, s) * (x - a * mean)


def mixture(centres: Array, std: float) -> Denoiser:
    """The exact denoiser of an equal mixture of N(c, std^2 I); centres (M, D), states (n, D)."""

    def denoise(x: Array, alpha: float, sigma: float) -> Array:
        v = alpha**2 * std**2 + sigma**2
        gap = x[:, None, :] - alpha * centres
        log = -0.5 * (gap**2).sum(-1) / v
        weight = np.exp(log - log.max(1, keepdims=True))
        weight /= weight.sum(1, keepdims=True)
        means = centres + alpha * std**2 / v * gap
        return (weight[..., None] * means).sum(1)

    return denoise


def trajectory(plan: Plan, denoise: Denoiser, x: Array) -> Iterator[Array]:
    """The S + 1 states of a plan with an exact denoiser, from x_T = x, one after the other.

    ValueError: the plan is stochastic, or the denoiser changes the shape of x.
    """
    if plan.stochastic:
        raise ValueError(
            f"{plan.method or 'the plan'} is stochastic, and this run draws no noise; use gaussian_moments"
        )
    u, w = space_pair(plan.space, plan.alpha[:-1], plan.sigma[:-1])
    history: list[Array] = []
    yield x
    for i in range(plan.nfe):
        alpha, sigma = float(plan.alpha[i]), float(plan.sigma[i])
        x0 = _denoised(denoise, x, alpha, sigma)
        history = [u[i] * x0 + w[i] * (x - alpha * x0) / sigma, *history[: plan.depth - 1]]
        x = plan.a[i] * x + sum(b * d for b, d in zip(plan.b[i], history, strict=False))
        yield x


def flow_map(denoise: Denoiser, x: Array, start: Scales, end: Scales, steps: int = 300) -> tuple[Array, float]:
    """The probability-flow ODE from (alpha, sigma) to (alpha', sigma'), sigma' > 0, and how far it is converged.

    In y = x / (alpha + sigma) and tau = sigma / (alpha + sigma) = p^2 it reads dy/dp = 2 (y - x0_hat(y, 1 - tau, tau))
    / p, whatever the schedule. Kutta's rk4 takes `steps` and half as many equal steps in p, and Richardson's
    extrapolation adds a 15th of their difference, whose largest absolute entry is returned too. Written without a plan,
    so that it can be the truth for plans.  ValueError: fewer than 2 or an odd number of steps.
    """
    if steps < 2 or steps % 2:
        raise ValueError(f"steps = {steps} must be an even number from 2 up")
    (a, s), (a2, s2) = start, end
    p, p2 = ((sigma / (alpha + sigma)) ** 0.5 for alpha, sigma in (start, end))
    fine, coarse = (_rk4(denoise, x / (a + s), p, p2, n) for n in (steps, steps // 2))
    correction = (fine - coarse) / 15
    return (a2 + s2) * (fine + correction), float((a2 + s2) * np.abs(correction).max())


def _rk4(denoise: Denoiser, y: Array, start: float, end: float, steps: int) -> Array:
    def slope(y: Array, p: float) -> Array:
        return 2 / p * (y - _denoised(denoise, y, 1 - p**2, p**2))

    grid = np.linspace(start, end, steps + 1).tolist()
    for p, to in zip(grid, grid[1:], strict=False):
        h, middle = to - p, (p + to) / 2
        k1 = slope(y, p)
        k2 = slope(y + h / 2 * k1, middle)
        k3 = slope(y + h / 2 * k2, middle)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(y + h * k3, to))
    return y


def _denoised(denoise: Denoiser, x: Array, alpha: float, sigma: float) -> Array:
    x0 = np.asarray(denoise(x, alpha, sigma), dtype=np.float64)
    if x0.shape != x.shape:
        raise ValueError(f"denoise returned shape {x0.shape} for an input of shape {x.shape}; expected the same")
    return x0
