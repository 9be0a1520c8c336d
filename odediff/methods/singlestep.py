"""DPM-Solver and DPM-Solver++, single-step: exponential Runge-Kutta whose stages lie at fractions of a step in lam.

With h = lam' - lam and D_k = d_k - d the published updates are one formula. (A, B, H) is (alpha, sigma, h) on eps,
which is DPM-Solver (Lu et al. 2022a), and (sigma, alpha, -h) on x0, which is DPM-Solver++ (Lu et al. 2022b):

    x' = A'/A x - B' (e^H - 1) d                                                                        one evaluation
    x' = A'/A x - B' (e^H - 1) (d + D_1 / (2 r1))                       r1 = 1/2                        two
    x' = A'/A x - B' ((e^H - 1) d + ((e^H - 1)/H - 1) D_2 / r2)         r1 = 1/3, r2 = 2/3              three

The first line leads to d_1 at lam + r1 h, the third, with (r2 / r1) D_1 for D_2 / r2, to d_2 at lam + r2 h.
"""

from __future__ import annotations

import numpy as np

from ..schedule import Array
from ..trace import Network, Point
from .frame import Grid, first_order, point


def dpm_solver(f: Network, x: Array, grid: Grid) -> Array:
    """One step of as many evaluations as the grid gives it, 1 to 3, in the space of the grid.

    On eps: Lu et al. 2022a, eq. 4.1 (DDIM), Algorithms 1 and 2. On x0: Lu et al. 2022b, Algorithm 1 for two, the
    authors' code for three. Where lam is infinite at an end, steps are of first order in closed form.
    """
    for start, end, evaluations in zip(grid.points, grid.points[1:], grid.evaluations, strict=False):
        if end.sigma == 0 or start.alpha == 0:
            x = _closed_form(f, x, grid, start, end, evaluations)
        else:
            x = _step(f, x, grid, start, end, evaluations)
    return x


def fast(nfe: int) -> list[int]:
    """Orders of DPM-Solver-fast on nfe - 1 evaluations, and the last row (Lu et al. 2022a, section 3.4; D.2.3).

    Steps of three; what is left of the budget, 1 or 2, is a step of that order, and 0 makes the last three 2 + 1.
    """
    full, rest = divmod(nfe - 1, 3)
    return [*[3] * full, rest, 1] if rest else [*[3] * (full - 1), 2, 1, 1]


def _step(f: Network, x: Array, grid: Grid, start: Point, end: Point, evaluations: int) -> Array:
    d = f(x, start)

    def towards(to: Point, curvature: Array | float = 0.0) -> Array:
        b, H = (to.sigma, to.lam - start.lam) if grid.space == "eps" else (to.alpha, start.lam - to.lam)
        update = np.expm1(H) * d + (np.expm1(H) / H - 1) * curvature
        return grid.scale(to) / grid.scale(start) * x - b * update

    if evaluations == 1:
        return towards(end)
    if evaluations == 2:
        middle = _fraction(grid, start, end, 1 / 2)
        d = f(towards(middle), middle)  # d + D_1 / (2 r1)
        return towards(end)
    first, second = (_fraction(grid, start, end, r) for r in (1 / 3, 2 / 3))
    d1 = f(towards(first), first)
    d2 = f(towards(second, (2 / 3) / (1 / 3) * (d1 - d)), second)
    return towards(end, (d2 - d) / (2 / 3))


def _fraction(grid: Grid, start: Point, end: Point, r: float) -> Point:
    lam = start.lam + r * (end.lam - start.lam)
    return point(grid.schedule, float(grid.schedule.t_of_lam(lam)))


def _closed_form(f: Network, x: Array, grid: Grid, start: Point, end: Point, evaluations: int) -> Array:
    """DDIM in as many parts as there are evaluations, equal in q = alpha / sigma, which is finite at alpha = 0."""
    inner = [grid.between(start, end, k / evaluations) for k in range(1, evaluations)]
    for p, to in zip([start, *inner], [*inner, end], strict=True):
        a, b = first_order(grid.space, p, to)
        x = a * x + b * f(x, p)
    return x
