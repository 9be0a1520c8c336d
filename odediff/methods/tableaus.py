"""Explicit Runge-Kutta in the frame's own variable q, where dy/dq = d.

k_i = d(A_i (y + h sum_j a_ij k_j), q + c_i h),    y' = y + h sum_i b_i k_i        Kutta 1901; Hairer et al. 1993, II.1
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..schedule import Array
from ..trace import Network
from .frame import Grid, first_order


@dataclass(frozen=True)
class Tableau:
    """A Butcher tableau: stages a (lower triangular rows) and weights b; c are the row sums."""

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]


HEUN = Tableau(((), (1.0,)), (0.5, 0.5))
MIDPOINT = Tableau(((), (0.5,)), (0.0, 1.0))
RK3 = Tableau(((), (0.5,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6))
RK4 = Tableau(((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))
RK4_38 = Tableau(((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8))


def layout(stages: int, nfe: int, closing: bool = True) -> list[int]:
    """Evaluations of each step: full ones, one of lower order with the rest, the closed-form row onto sigma = 0."""
    full, rest = divmod(nfe - closing, stages)
    return [*[stages] * full, *([rest] if rest else []), *([1] if closing else [])]


def runge_kutta(f: Network, x: Array, grid: Grid, *, tableau: Tableau) -> Array:
    """Steps of `tableau`; a step with fewer evaluations is DDIM's, Heun's or Kutta's third-order one."""
    by_stages = {2: HEUN, 3: RK3, len(tableau.b): tableau}
    for start, end, stages in zip(grid.points, grid.points[1:], grid.evaluations, strict=False):
        if stages == 1:
            a, b = first_order(grid.space, start, end)
            x = a * x + b * f(x, start)
            continue
        step = by_stages[stages]
        y, h = x / grid.scale(start), grid.span(start, end)
        k: list[Array] = []
        for row in step.a:
            c = sum(row)
            place = start if c == 0 else end if c == 1 else grid.between(start, end, c)
            state = y + h * np.tensordot(row, k, 1) if row else y
            k.append(f(grid.scale(place) * state, place))
        x = grid.scale(end) * (y + h * np.tensordot(step.b, k, 1))
    return x
