"""EDM's stochastic sampler: Heun in (x / alpha, rho), with noise stirred in before every step."""

from __future__ import annotations

import numpy as np

from ..schedule import Array
from ..trace import Network, Point
from .frame import Grid, first_order, point
from .sde import noise_levels


def heun_churn(
    f: Network, x: Array, grid: Grid, *, s_churn: float, s_tmin: float, s_tmax: float | None, s_noise: float
) -> Array:
    """Raise the noise from rho to rho^, then take Heun's step from there (Karras et al. 2022, Algorithm 2).

        rho^ = (1 + gamma) rho,  gamma = min(s_churn / steps, sqrt(2) - 1) where s_tmin <= rho <= s_tmax, else 0
        y^ = y + s_noise sqrt(rho^2^ - rho^2) z,   y = x / alpha,   dy/d rho = eps

    The noise belongs to the row before, and that of the first step to the start: x_T is Gaussian, so a plan whose first
    time is below t_max starts at rho^. No noise is raised above the schedule's largest, where no network was trained:
    there rho^ is that of t_max, and a plan that starts at t_max takes its first step without noise.
    A step of one evaluation is Euler's, as the last one is. s_churn = 0 is `heun` in (eps, rho); s_tmax = None is no
    bound. ValueError: s_churn < 0, s_noise < 1 (a plan adds no less noise than it conserves), or one not finite.
    """
    low, high = noise_levels(s_tmin, s_tmax)
    if not 0 <= s_churn < np.inf:
        raise ValueError(f"s_churn = {s_churn} must be finite and not negative; 0 is heun")
    if not 1 <= s_noise < np.inf:
        raise ValueError(
            f"s_noise = {s_noise} must be finite and at least 1: a plan adds no less noise than it conserves"
        )
    steps = len(grid.points) - 1
    gamma = min(s_churn / steps, np.sqrt(2.0) - 1)

    def raised(p: Point) -> Point:
        return _raised(grid, p, gamma) if low <= p.rho <= high else p

    start = raised(grid.points[0])
    for end, evaluations in zip(grid.points[1:-1], grid.evaluations, strict=False):
        y, h = x / grid.scale(start), grid.span(start, end)
        d = f(grid.scale(start) * y, start)
        if evaluations == 2:
            d = 0.5 * d + 0.5 * f(grid.scale(end) * (y + h * d), end)
        y, start = y + h * d, raised(end)
        if start is not end:
            y = y + s_noise * np.sqrt(start.rho**2 - end.rho**2) * f.noise()
        x = grid.scale(start) * y
    a, b = first_order(grid.space, start, grid.points[-1])
    return a * x + b * f(x, start)


def _raised(grid: Grid, p: Point, gamma: float) -> Point:
    """The point at (1 + gamma) rho, or at the schedule's largest rho; p itself where that is no higher."""
    schedule = grid.schedule
    lowest = float(schedule.lam(schedule.t_max))
    t = float(schedule.t_of_lam(max(p.lam - np.log1p(gamma), lowest))) if gamma > 0 else p.t
    return point(schedule, t) if t > p.t else p
