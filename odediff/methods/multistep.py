"""Multistep methods: one evaluation a row, the rest from history.

Every step in the frame (A, q) reads x' = A'/A x + A' sum_j w_j d_j. The last row, onto sigma = 0, is of first order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..schedule import Array
from ..trace import Network, Point
from .frame import Grid, first_order

History = list[tuple[Array, Point]]


def euler(f: Network, x: Array, grid: Grid) -> Array:
    """DDIM: x0 and eps stay what they are predicted to be (Song et al. 2021a, eq. 12 with sigma_t = 0)."""
    for start, end in zip(grid.points, grid.points[1:], strict=False):
        a, b = first_order(grid.space, start, end)
        x = a * x + b * f(x, start)
    return x


def adams(grid: Grid, x: Array, history: Sequence[tuple[Array, Point]], start: Point, end: Point) -> Array:
    """One exactly integrated step over the polynomial through `history`, newest first.

    Where lam is infinite at either end the row is of first order in closed form.
    """
    if end.sigma == 0 or start.alpha == 0:
        a, b = first_order(grid.space, start, end)
        return a * x + b * history[0][0]
    weights = grid.adams_weights([p for _, p in history], start, end)
    total = sum(w * d for w, (d, _) in zip(weights, history, strict=True))
    return grid.scale(end) * (x / grid.scale(start) + total)


def recent(grid: Grid, history: History, order: int) -> History:
    """The last `order` predictions, newest first, without those where the variable is infinite (alpha = 0)."""
    return [(d, p) for d, p in history[: -order - 1 : -1] if np.isfinite(grid.coordinate(p))]


def adams_bashforth(f: Network, x: Array, grid: Grid, *, order: int) -> Array:
    """Exponential Adams-Bashforth on variable steps; the order ramps up from 1.

    Hairer et al. 1993, III.5, on dy/dq = d. In (eps, t) it is the tAB-DEIS of Zhang & Chen 2023, eq. 14, in (eps, rho)
    its rhoAB, in (x0, lam) an exactly integrated DPM-Solver++ kM.
    """
    history: History = []
    for start, end in zip(grid.points, grid.points[1:], strict=False):
        history.append((f(x, start), start))
        x = adams(grid, x, recent(grid, history, order) or history[-1:], start, end)
    return x


_AB = {1: (1.0,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}


def ipndm(f: Network, x: Array, grid: Grid) -> Array:
    """Constant Adams-Bashforth weights on the last four eps, then DDIM's step (Zhang & Chen 2023, iPNDM)."""
    history: list[Array] = []
    for start, end in zip(grid.points, grid.points[1:], strict=False):
        history.insert(0, f(x, start))
        weights = _AB[min(len(history), 4)] if end.sigma else _AB[1]
        a, b = first_order(grid.space, start, end)
        x = a * x + b * sum(w * d for w, d in zip(weights, history, strict=False))
    return x


def dpmpp(f: Network, x: Array, grid: Grid, *, order: int) -> Array:
    """DPM-Solver++ 2M and 3M as published (Lu et al. 2022b, Algorithm 2; 3M in the authors' code).

    h = lam' - lam, r_k = (lam_{i-k} - lam_{i-k-1}) / h, D0 = d_i, D1, D2 the published differences:
    x' = sigma'/sigma x - alpha' ((e^-h - 1) (D0 + D1/2))                                                     2M
    x' = sigma'/sigma x - alpha' ((e^-h - 1) D0 - ((e^-h - 1)/h + 1) D1 + ((e^-h - 1 + h)/h^2 - 1/2) D2)      3M
    """
    d: list[Array] = []
    lam = [p.lam for p in grid.points]
    for i, (start, end) in enumerate(zip(grid.points, grid.points[1:], strict=False)):
        d.insert(0, f(x, start))
        if end.sigma == 0:
            return d[0]
        h = lam[i + 1] - lam[i]
        phi1 = np.expm1(-h)
        r0, r1 = ((lam[i - k] - lam[i - k - 1]) / h if i > k else np.inf for k in (0, 1))
        d10 = (d[0] - d[1]) / r0 if i > 0 else 0.0 * x
        if order == 2 or i < 2:
            update = phi1 * (d[0] + d10 / 2)
        else:
            d11 = (d[1] - d[2]) / r1
            w = r0 / (r0 + r1) if np.isfinite(r1) else 0.0
            d1, d2 = d10 + w * (d10 - d11), (d10 - d11) / (r0 + r1)
            update = phi1 * d[0] - (phi1 / h + 1) * d1 + ((phi1 + h) / h**2 - 0.5) * d2
        x = end.sigma / start.sigma * x - end.alpha * update
    return x


def unipc(f: Network, x: Array, grid: Grid, *, order: int) -> Array:
    """UniPC-p, B_2(h), data prediction: UniP-p predicts, UniC-p corrects with the evaluation made there.

    Zhao et al. 2023, UniP-p and UniC-p in the form for data prediction.

    For p >= 3 (predictor) and p >= 2 (corrector) the published linear system is the exact integration of the
    interpolating polynomial in lam, whatever B(h); for p = 2 and p = 1 the authors put 1/2 for its solution.
    """
    history: History = []
    previous = x  # the corrected state that the newest prediction was made from
    for i, (start, end) in enumerate(zip(grid.points, grid.points[1:], strict=False)):
        new = (f(x, start), start)
        if i > 0:
            x = _corrector(grid, previous, recent(grid, history, order), new, history[-1])
        history.append(new)
        previous = x
        x = _predictor(grid, x, recent(grid, history, order), new, end)
    return x


def _predictor(grid: Grid, x: Array, nodes: History, new: tuple[Array, Point], end: Point) -> Array:
    start = new[1]
    if len(nodes) != 2 or end.sigma == 0 or start.alpha == 0:
        return adams(grid, x, nodes or [new], start, end)
    (d0, p0), (d1, p1) = nodes
    h = end.lam - start.lam
    slope = (d1 - d0) / ((p1.lam - p0.lam) / h)
    return end.sigma / start.sigma * x - end.alpha * np.expm1(-h) * (d0 + slope / 2)


def _corrector(grid: Grid, x: Array, nodes: History, new: tuple[Array, Point], old: tuple[Array, Point]) -> Array:
    (d0, start), (d, end) = old, new
    if len(nodes) > 1 or start.alpha == 0:
        return adams(grid, x, [new, *nodes] if start.alpha else [old], start, end)
    h = end.lam - start.lam
    return end.sigma / start.sigma * x - end.alpha * np.expm1(-h) * (d0 + (d - d0) / 2)
