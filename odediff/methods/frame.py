"""The ODE that a method solves, and the points at which it solves it.

In the frame (A, q) of a space the probability-flow ODE has the prediction alone on its right side:

    x = A y,    dy / dq = d        x0: A = sigma, q = alpha / sigma     eps: A = alpha, q = rho
                                   flow: A = alpha + sigma, q = tau = sigma / (alpha + sigma)
                                   v: A = r = hypot(alpha, sigma), q = phi = arctan(rho), dy / dq = d / r

(DDIM, Song et al. 2021a, eq. 14, is the eps row; v is Salimans & Ho 2022, appendix D.) The frame of x0 is singular at
sigma = 0, that of eps at alpha = 0, those of flow and v nowhere. A polynomial in one of the `VARIABLES` lam, rho, tau,
phi or t stands for d (v: d / r) between its known values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..schedule import Array, Schedule
from ..spaces import space_pair
from ..trace import Point

VARIABLES = ("lam", "rho", "tau", "phi", "t")
FRAMES = ("x0", "eps", "flow", "v")
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
LIMIT = 2.0**10  # amplification of a row from which history is given up: float32 keeps 14 of its 24 bits there
_PANEL = 0.5  # widest panel in lam: 16 Gauss-Legendre nodes are exact to rounding on it


@dataclass(frozen=True)
class Grid:
    """What a method gets: the points where steps start, the end, and the evaluations each step may spend."""

    schedule: Schedule
    space: str
    variable: str
    points: tuple[Point, ...]
    evaluations: tuple[int, ...]
    lowered: list[float] = field(default_factory=list, compare=False)  # times of steps whose order was lowered

    def scale(self, p: Point) -> float:
        """A at a point."""
        return {"x0": p.sigma, "eps": p.alpha, "flow": p.alpha + p.sigma, "v": _r(p)}[self.space]

    def q(self, p: Point) -> float:
        """q at a point; inf where the frame is singular."""
        if self.space == "v":
            return float(np.arctan2(p.sigma, p.alpha))
        with np.errstate(divide="ignore"):
            return float(np.divide(p.alpha if self.space == "x0" else p.sigma, self.scale(p)))

    def span(self, start: Point, end: Point) -> float:
        """q(end) - q(start), without cancellation where tau is close to 1."""
        if self.space == "flow" and end.alpha < end.sigma:
            return start.alpha / self.scale(start) - end.alpha / self.scale(end)
        if self.space == "v":
            return float(
                np.arctan2(
                    end.sigma * start.alpha - end.alpha * start.sigma, start.alpha * end.alpha + start.sigma * end.sigma
                )
            )
        return self.q(end) - self.q(start)

    def between(self, start: Point, end: Point, c: float) -> Point:
        """The point at q(start) + c (q(end) - q(start)), 0 < c < 1."""
        q = (1 - c) * self.q(start) + c * self.q(end)
        if self.space == "flow":  # 1 - tau by itself, since it may be far below rounding of tau
            rest = (1 - c) * start.alpha / self.scale(start) + c * end.alpha / self.scale(end)
            lam = np.log(rest) - np.log(q)
        else:
            lam = np.log(q) if self.space == "x0" else -np.log(q)
        return point(self.schedule, float(self.schedule.t_of_lam(lam)))

    def coordinate(self, p: Point) -> float:
        """The grid's variable at a point."""
        return p.t if self.variable == "t" else float(_COORDINATE[self.variable](np.float64(p.lam)))

    def safe_row(self, nodes: Sequence[Point], start: Point, end: Point) -> tuple[float, Array]:
        """`adams_row` over as many of the nodes, newest first, as keep `Plan.amplification` within `LIMIT`."""
        for count in range(len(nodes), 0, -1):
            a, b = self.adams_row(nodes[:count], start, end)
            size = [np.hypot(*space_pair(self.space, np.array(p.alpha), np.array(p.sigma))) for p in nodes[:count]]
            if (abs(a) * _r(start) + np.abs(b) @ size) / _r(end) <= LIMIT:
                break
            if count > 1:
                self.lowered.append(start.t)
        return a, b

    def adams_row(self, nodes: Sequence[Point], start: Point, end: Point) -> tuple[float, Array]:
        """(a, b) of x(end) = a x(start) + sum_j b_j d_j, integrated exactly over the polynomial through `nodes`.

            a = A'/A,    b_j = A' int_start^end L_j(s(q)) dq,    L_j: the nodes' Lagrange polynomials in the variable s

        by Gauss-Legendre panels in lam that do not cross a kink of the schedule. The b_j sum to A' (q' - q), which is
        imposed on the newest, so that a row conserves signal and noise to rounding. In v the pair (u, w) turns along
        the way, which no polynomial follows: there a and the newest b are what conserves both, changes of the order of
        the step's own error; with one node that is DDIM.
        """
        weights = self.integrals(nodes, start, end, _DERIVATIVE[self.space], self.span(start, end))
        if self.space != "v":
            return self.scale(end) / self.scale(start), self.scale(end) * weights
        b = self.scale(end) * weights / np.array([_r(p) for p in nodes])
        u, w = -np.array([p.sigma for p in nodes]), np.array([p.alpha for p in nodes])
        signal, noise = end.alpha - b[1:] @ u[1:], end.sigma - b[1:] @ w[1:]
        det = start.alpha * w[0] - start.sigma * u[0]
        b[0] = (start.alpha * noise - start.sigma * signal) / det
        return float((signal * w[0] - noise * u[0]) / det), b

    def integrals(
        self, nodes: Sequence[Point], start: Point, end: Point, weight: Callable[[Array], Array], total: float
    ) -> Array:
        """int_start^end L_j(s) weight(lam) dlam for every node, shape (nodes,); they sum to `total`.

        The newest takes what is missing from it, the exact integral of the weight alone.
        """
        weights = np.zeros(len(nodes))
        if len(nodes) > 1:
            lam, dlam = self._panels(start, end)
            s = np.asarray(self.schedule.t_of_lam(lam)) if self.variable == "t" else _COORDINATE[self.variable](lam)
            at = np.array([self.coordinate(p) for p in nodes])
            for j in range(1, len(nodes)):
                others = np.delete(at, j)
                basis = np.prod((s[:, None] - others) / (at[j] - others), axis=1)
                weights[j] = np.sum(basis * weight(lam) * dlam)
        weights[0] = total - weights[1:].sum()
        return weights

    def _panels(self, start: Point, end: Point) -> tuple[Array, Array]:
        """Quadrature nodes and weights in lam from start to end."""
        edges = np.linspace(start.lam, end.lam, 2 + int(abs(end.lam - start.lam) / _PANEL))
        if self.variable == "t":
            kinks = self.schedule.knots
            kinks = self.schedule.lam(kinks[(kinks > end.t) & (kinks < start.t)])
            edges = np.unique(np.concatenate([edges, kinks]))
        half = np.diff(edges)[:, None] / 2
        return (edges[:-1, None] + half + half * _NODES).ravel(), (half * _WEIGHTS).ravel()


_COORDINATE = {
    "rho": lambda lam: np.exp(-lam),
    "lam": lambda lam: lam,
    "tau": lambda lam: np.exp(-np.logaddexp(0.0, lam)),
    "phi": lambda lam: np.arctan(np.exp(-lam)),
}
_DERIVATIVE = {
    "x0": lambda lam: np.exp(lam),
    "eps": lambda lam: -np.exp(-lam),
    "flow": lambda lam: -np.exp(-np.logaddexp(0.0, lam) - np.logaddexp(0.0, -lam)),
    "v": lambda lam: -np.exp(-np.logaddexp(lam, -lam)),
}


def _r(p: Point) -> float:
    return float(np.hypot(p.alpha, p.sigma))


def point(schedule: Schedule, t: float) -> Point:
    """The point of a schedule at time t."""
    return Point(t, float(schedule.alpha(t)), float(schedule.sigma(t)))


def expansion(H: float, d: Array, d1: Array | float = 0.0, d2: Array | float = 0.0) -> Array:
    """phi_1 d + phi_2 D1 + phi_3 D2, phi_1 = e^H - 1, phi_2 = phi_1/H - 1, phi_3 = phi_2/H - 1/2: what the integral of
    d + s D1 + s^2 D2/2, s from 0 to 1 along a step in lam, is made of (Lu et al. 2022a).

    x' = A'/A x - B' expansion(H, ..) with (A, B, H) = (alpha, sigma, h) on eps and (sigma, alpha, -h) on x0.
    """
    phi = np.expm1(H)
    return phi * d + (phi / H - 1) * d1 + ((phi - H) / H**2 - 0.5) * d2


def first_order(space: str, p: Point, to: Point) -> tuple[float, float]:
    """(a, b) of x' = a x + b d that keeps x0 and eps, in any space and up to the ends of the schedule: DDIM's step.

    Solves a alpha + b u = alpha', a sigma + b w = sigma' (Song et al. 2021a, eq. 12 with sigma_t = 0).
    """
    u, w = (float(value) for value in space_pair(space, np.asarray(p.alpha), np.asarray(p.sigma)))
    det = p.alpha * w - p.sigma * u
    return (to.alpha * w - to.sigma * u) / det, (p.alpha * to.sigma - p.sigma * to.alpha) / det
