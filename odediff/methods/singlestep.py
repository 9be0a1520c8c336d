"""DPM-Solver and DPM-Solver++, single-step: exponential Runge-Kutta whose stages lie at fractions of a step in lam.

With h = lam' - lam and D_k = d_k - d the published updates are one formula. (A, B, H) is (alpha, sigma, h) on eps,
which is DPM-Solver (Lu et al. 2022a), and (sigma, alpha, -h) on x0, which is DPM-Solver++ (Lu et al. 2022b):

    x' = A'/A x - B' (e^H - 1) d                                                                        one evaluation
    x' = A'/A x - B' (e^H - 1) (d + D_1 / (2 r1))                       r1 = 1/2                        two
    x' = A'/A x - B' ((e^H - 1) d + ((e^H - 1)/H - 1) D_2 / r2)         r1 = 1/3, r2 = 2/3              three

The first line leads to d_1 at lam + r1 h, the third, with (r2 / r1) D_1 for D_2 / r2, to d_2 at lam + r2 h.
"""

from __future__ import annotations

from ..schedule import Array
from ..trace import Network, Point
from .frame import Grid, expansion, first_order, point

SOLVER_TYPES = ("dpmsolver", "taylor", "midpoint")


def dpm_solver(f: Network, x: Array, grid: Grid, *, solver_type: str = "dpmsolver") -> Array:
    """One step of as many evaluations as the grid gives it, 1 to 3, in the space of the grid.

    On eps: Lu et al. 2022a, eq. 4.1 (DDIM), Algorithms 1 and 2. On x0: Lu et al. 2022b, Algorithm 1 for two, the
    authors' code for three. Where lam is infinite at an end, steps are of first order in closed form.

    solver_type: "dpmsolver", the formulas above; "taylor", the authors' other one, with phi_2 = (e^H - 1)/H - 1,

        x' = A'/A x - B' ((e^H - 1) d + phi_2 D_1 / r1)                                                 two evaluations
        x' = A'/A x - B' ((e^H - 1) d + phi_2 D1 + (phi_2/H - 1/2) D2)                                  three
        D1 = (r2 D_1/r1 - r1 D_2/r2) / (r2 - r1),    D2 = 2 (D_2/r2 - D_1/r1) / (r2 - r1)

    or "midpoint", diffusers', whose d_2 of a step of three is made at (e^(r2 H) - 1) d_1, the weight 1/2 for phi_2.
    ValueError: another solver_type.
    """
    if solver_type not in SOLVER_TYPES:
        raise ValueError(f"unknown solver_type = {solver_type!r}; choose {', '.join(SOLVER_TYPES)}")
    for start, end, evaluations in zip(grid.points, grid.points[1:], grid.evaluations, strict=False):
        if end.sigma == 0 or start.alpha == 0:
            x = _closed_form(f, x, grid, start, end, evaluations)
        else:
            x = _step(f, x, grid, start, end, evaluations, solver_type)
    return x


def fast(nfe: int) -> list[int]:
    """Orders of DPM-Solver-fast on nfe - 1 evaluations, and the last row (Lu et al. 2022a).

    Steps of three; what is left of the budget, 1 or 2, is a step of that order, and 0 makes the last three 2 + 1.
    """
    full, rest = divmod(nfe - 1, 3)
    return [*[3] * full, rest, 1] if rest else [*[3] * (full - 1), 2, 1, 1]


def _step(f: Network, x: Array, grid: Grid, start: Point, end: Point, evaluations: int, solver_type: str) -> Array:
    d = f(x, start)

    def towards(to: Point, d: Array, d1: Array | float = 0.0, d2: Array | float = 0.0) -> Array:
        b, H = (to.sigma, to.lam - start.lam) if grid.space == "eps" else (to.alpha, start.lam - to.lam)
        return grid.scale(to) / grid.scale(start) * x - b * expansion(H, d, d1, d2)

    if evaluations == 1:
        return towards(end, d)
    if evaluations == 2:
        middle = _fraction(grid, start, end, 1 / 2)
        d1 = f(towards(middle, d), middle)
        return towards(end, d, (d1 - d) * 2) if solver_type == "taylor" else towards(end, d1)  # d + D_1 / (2 r1)
    first, second = (_fraction(grid, start, end, r) for r in (1 / 3, 2 / 3))
    d1 = f(towards(first, d), first)
    d2 = f(towards(second, d1) if solver_type == "midpoint" else towards(second, d, (d1 - d) * 2), second)
    slope1, slope2 = (d1 - d) * 3, (d2 - d) * 3 / 2  # D_k / r_k
    if solver_type == "taylor":
        return towards(end, d, 2 * slope1 - slope2, 6 * (slope2 - slope1))
    return towards(end, d, slope2)


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
