"""Linear multistep methods on eps: k-diffusion's, with exact weights, and PNDM's, with constant ones."""

from __future__ import annotations

from ..schedule import Array
from ..trace import Network, Point
from .frame import Grid, first_order, point
from .multistep import ADAMS_BASHFORTH, adams_bashforth


def lms(f: Network, x: Array, grid: Grid, *, order: int) -> Array:
    """The polynomial in rho through the last `order` eps, integrated exactly (Crowson, k-diffusion: sample_lms).

    It is `adams_bashforth` in (eps, rho). ValueError: an order outside 1 .. 4.
    """
    if isinstance(order, bool) or order not in (1, 2, 3, 4):
        raise ValueError(f"order = {order!r} must be 1, 2, 3 or 4")
    return adams_bashforth(f, x, grid, order=order)


def pndm(f: Network, x: Array, grid: Grid) -> Array:
    """Pseudo Runge-Kutta and linear multistep: a classic mean of eps, then DDIM's step with it (Liu et al. 2022).

    The evaluations of a step say which mean:
    4   (e1 + 2 e2 + 2 e3 + e4) / 6, DDIM's steps to t_mid, t_mid and t' with e1, e2, e3 between        eq. 13
    2   (e1 + e2) / 2, DDIM's step to t' between                      diffusers: the first step of skip_prk_steps
    1   constant Adams-Bashforth weights on the last e1 of up to four steps, (55, -59, 37, -9) / 24     eq. 12

    t_mid = (t + t') / 2 is half way in t, where the weights are made for half way in rho, as Adams' are for equal steps
    in rho: off such grids both are of order 2.
    """
    history: list[Array] = []
    for start, end, evaluations in zip(grid.points, grid.points[1:], grid.evaluations, strict=False):
        e = f(x, start)
        history.insert(0, e)
        if evaluations == 4:
            e = _runge_kutta(f, x, grid, e, start, end)
        elif evaluations == 2:
            e = (e + f(_transfer(x, e, start, end), end)) / 2
        else:
            weights = ADAMS_BASHFORTH[min(len(history), 4)] if end.sigma else ADAMS_BASHFORTH[1]
            e = sum((w * old for w, old in zip(weights, history, strict=False)), 0.0 * x)
        x = _transfer(x, e, start, end)
    return x


def with_start(first: list[int], nfe: int) -> list[int]:
    """Evaluations of each step: those of the `first` steps, then one each."""
    return [*first, *[1] * (nfe - sum(first))]


def _runge_kutta(f: Network, x: Array, grid: Grid, e1: Array, start: Point, end: Point) -> Array:
    middle = point(grid.schedule, (start.t + end.t) / 2)
    e2 = f(_transfer(x, e1, start, middle), middle)
    e3 = f(_transfer(x, e2, start, middle), middle)
    e4 = f(_transfer(x, e3, start, end), end)
    return (e1 + 2 * e2 + 2 * e3 + e4) / 6


def _transfer(x: Array, e: Array, start: Point, end: Point) -> Array:
    """DDIM's step with eps = e: the transfer part of Liu et al. 2022."""
    a, b = first_order("eps", start, end)
    return a * x + b * e
