"""Multistep methods: one evaluation a row, the rest from history.

Every step reads x' = a x + sum_j b_j d_j, see `frame.Grid.adams_row`. The last row, onto sigma = 0, is of first order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..schedule import Array
from ..trace import Network, Point
from .frame import Grid, expansion, first_order

History = list[tuple[Array, Point]]


def euler(f: Network, x: Array, grid: Grid) -> Array:
    """DDIM: x0 and eps stay what they are predicted to be (Song et al. 2021a, eq. 12 with sigma_t = 0)."""
    for start, end in zip(grid.points, grid.points[1:], strict=False):
        a, b = first_order(grid.space, start, end)
        x = a * x + b * f(x, start)
    return x


def adams(grid: Grid, x: Array, history: Sequence[tuple[Array, Point]], start: Point, end: Point) -> Array:
    """One exactly integrated step over the polynomial through `history`, newest first, of lower order where its weights
    would lose float32 (`Grid.safe_row`).

    Where lam is infinite at either end the row is of first order in closed form.
    """
    if end.sigma == 0 or start.alpha == 0:
        a, b = first_order(grid.space, start, end)
        return a * x + b * history[0][0]
    a, weights = grid.safe_row([p for _, p in history], start, end)
    return a * x + sum(w * d for w, (d, _) in zip(weights, history, strict=False))


def recent(grid: Grid, history: History, order: int) -> History:
    """The last `order` predictions, newest first, without those where the variable is infinite (alpha = 0)."""
    return [(d, p) for d, p in history[: -order - 1 : -1] if np.isfinite(grid.coordinate(p))]


def adams_bashforth(f: Network, x: Array, grid: Grid, *, order: int, corrector: int = 0) -> Array:
    """Exponential Adams-Bashforth on variable steps; the order ramps up from 1.

    Hairer et al. 1993, III.5, on dy/dq = d. In (eps, t) it is the tAB-DEIS of Zhang & Chen 2023, eq. 14, in (eps, rho)
    its rhoAB, in (x0, lam) an exactly integrated DPM-Solver++ kM.

    corrector: predictions in an Adams-Moulton step that redoes the last step with the evaluation made at its end,
    before the next is predicted; 0 for none. It costs no evaluation: P(EC) of Hairer et al. 1993, III.1, of which UniC
    (Zhao et al. 2023) is the case in (x0, lam).
    """
    history: History = []
    previous = x  # the corrected state that the newest prediction was made from
    for start, end in zip(grid.points, grid.points[1:], strict=False):
        new = (f(x, start), start)
        if corrector and history:
            x = adams(grid, previous, corrected_by(grid, new, history, corrector), history[-1][1], start)
        history.append(new)
        previous = x
        x = adams(grid, x, recent(grid, history, order) or [new], start, end)
    return x


def corrected_by(grid: Grid, new: tuple[Array, Point], history: History, count: int) -> History:
    """The newest `count` predictions with `new`, made at the end of the step; without it where the step is singular."""
    if history[-1][1].alpha == 0:
        return history[-1:]
    return [new, *recent(grid, history, count - 1)]


ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def ipndm(f: Network, x: Array, grid: Grid) -> Array:
    """Constant Adams-Bashforth weights on the last four eps, then DDIM's step (Zhang & Chen 2023, iPNDM)."""
    history: list[Array] = []
    for start, end in zip(grid.points, grid.points[1:], strict=False):
        history.insert(0, f(x, start))
        weights = ADAMS_BASHFORTH[min(len(history), 4)] if end.sigma else ADAMS_BASHFORTH[1]
        a, b = first_order(grid.space, start, end)
        x = a * x + b * sum(w * d for w, d in zip(weights, history, strict=False))
    return x


def dpmpp(f: Network, x: Array, grid: Grid, *, order: int) -> Array:
    """DPM-Solver++ 2M and 3M as published (Lu et al. 2022b, Algorithm 2; 3M in the authors' code).

    h = lam' - lam, r_k = (lam_{i-k} - lam_{i-k-1}) / h, D0 = d_i, D1, D2 the published differences:
    x' = sigma'/sigma x - alpha' ((e^-h - 1) (D0 + D1/2))                                                     2M
    x' = sigma'/sigma x - alpha' ((e^-h - 1) D0 - ((e^-h - 1)/h + 1) D1 + ((e^-h - 1 + h)/h^2 - 1/2) D2)      3M

    On eps, with alpha and sigma exchanged and -h for h, it is the authors' multistep DPM-Solver.
    """
    d: list[Array] = []
    lam = [p.lam for p in grid.points]
    for i, (start, end) in enumerate(zip(grid.points, grid.points[1:], strict=False)):
        d.insert(0, f(x, start))
        if end.sigma == 0:
            a, b = first_order(grid.space, start, end)
            return a * x + b * d[0]
        h = lam[i + 1] - lam[i]
        b, H = (end.sigma, h) if grid.space == "eps" else (end.alpha, -h)
        if order == 2 or i < 2:
            r0 = (lam[i] - lam[i - 1]) / h if i > 0 else np.inf
            update = np.expm1(H) * (d[0] + (d[0] - d[1]) / (2 * r0) if i > 0 else d[0])
        else:
            update = expansion(H, d[0], *differences(d, lam[i - 2 : i + 2]))
        x = grid.scale(end) / grid.scale(start) * x - b * update
    return x


def differences(d: list[Array], lam: list[float]) -> tuple[Array, Array]:
    """The published D1 and D2 of the last three predictions, newest first, made at lam[2], lam[1], lam[0].

    D2 is the divided difference h^2 d''/2, where an expansion would have h^2 d''.
    """
    h = lam[3] - lam[2]
    r0, r1 = (lam[2] - lam[1]) / h, (lam[1] - lam[0]) / h
    d10, d11 = (d[0] - d[1]) / r0, (d[1] - d[2]) / r1
    w = r0 / (r0 + r1) if np.isfinite(r1) else 0.0
    return d10 + w * (d10 - d11), (d10 - d11) / (r0 + r1)


def unipc(f: Network, x: Array, grid: Grid, *, order: int, b: str = "bh2", orders: str = "") -> Array:
    """UniPC-p, data prediction: UniP-p predicts, UniC-p corrects with the evaluation made there.

    Zhao et al. 2023, UniP-p and UniC-p in the form for data prediction. b: "bh1", B(h) = h, or "bh2", B(h) = e^h - 1
    in the sign of data prediction. orders: p of every row, one digit each ("123321"); "falling": min(p, rows left), as
    diffusers' `lower_order_final`; empty: p everywhere.

    For p >= 3 (predictor) and p >= 2 (corrector) the published linear system is the exact integration of the
    interpolating polynomial in lam, whatever B(h); for p = 2 and p = 1 the authors put 1/2 for its solution.
    ValueError: another b; orders of another length, or with other digits than 1 .. 4.
    """
    by_row = row_orders(order, orders, len(grid.points) - 1)
    if b not in ("bh1", "bh2"):
        raise ValueError(f"unknown b = {b!r}; choose bh1 or bh2")
    history: History = []
    previous = x  # the corrected state that the newest prediction was made from
    for i, (start, end) in enumerate(zip(grid.points, grid.points[1:], strict=False)):
        new = (f(x, start), start)
        if i > 0:
            x = _corrector(grid, previous, recent(grid, history, by_row[i - 1]), new, history[-1], b)
        history.append(new)
        previous = x
        x = _predictor(grid, x, recent(grid, history, by_row[i]), new, end, b)
    return x


def row_orders(order: int, orders: str, rows: int) -> list[int]:
    if not orders:
        return [order] * rows
    if orders == "falling":
        return [min(order, rows - i) for i in range(rows)]
    if len(orders) != rows or not set(orders) <= set("1234"):
        raise ValueError(
            f"orders = {orders!r}: give one digit of 1 to 4 for each of the {rows} rows, such as '123321', or 'falling'"
        )
    return [int(digit) for digit in orders]


def _predictor(grid: Grid, x: Array, nodes: History, new: tuple[Array, Point], end: Point, b: str) -> Array:
    start = new[1]
    if len(nodes) != 2 or end.sigma == 0 or start.alpha == 0:
        return adams(grid, x, nodes or [new], start, end)
    (d0, p0), (d1, p1) = nodes
    h = end.lam - start.lam
    slope = (d1 - d0) / ((p1.lam - p0.lam) / h)
    return end.sigma / start.sigma * x - end.alpha * (np.expm1(-h) * d0 + _b(b, h) * slope / 2)


def _corrector(
    grid: Grid, x: Array, nodes: History, new: tuple[Array, Point], old: tuple[Array, Point], b: str
) -> Array:
    (d0, start), (d, end) = old, new
    if len(nodes) > 1 or start.alpha == 0:
        return adams(grid, x, [new, *nodes] if start.alpha else [old], start, end)
    h = end.lam - start.lam
    return end.sigma / start.sigma * x - end.alpha * (np.expm1(-h) * d0 + _b(b, h) * (d - d0) / 2)


def _b(name: str, h: float) -> float:
    """B(-h): the papers' B at the step of data prediction."""
    return -h if name == "bh1" else float(np.expm1(-h))
