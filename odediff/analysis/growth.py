"""Stability on the linear test problem: Gaussian data of standard deviation s, where every plan is a linear recurrence.

With x0_hat = alpha s^2 x / r(s)^2 and r_i(s) = hypot(alpha_i s, sigma_i) a prediction is d_k = m_k x_k,

    m_k = (u_k alpha_k s^2 + w_k sigma_k) / r_k(s)^2,

and the exact flow takes a state of size r_i(s) to one of size r_{i+1}(s). In units of the flow, y_i = x_i / r_i(s),
a row is

    y[i+1] = sum_{j<K} g[i,j] y[i-j],    g[i,0] = (a_i + b_i0 m_i) r_i / r_{i+1}
                                         g[i,j] = b_ij m_{i-j} r_{i-j} / r_{i+1}    (j > 0)

and an exact method keeps y = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from ..plans import Plan
from ..schedule import Array
from ..spaces import space_pair
from .plotting import check_path, figure, legend, over_rows, save, shades
from .solvers import need_plan

SCALES = (0.0, 0.01, 0.1, 0.3, 1.0, 10.0)


@dataclass(frozen=True, eq=False)
class Stability:
    """What a plan does to Gaussian data of M standard deviations; all in units of the exact flow, where 1 is exact.

    method: the plan's.  scales: (M,), the data's s.  t: (S,).
    factor: (M, S), sum_j g[i,j]: what a row multiplies the state by when its history is exact.
    state: (M, S+1), y_i along the plan's own run from y_0 = 1.
    radius: (M, S), largest |z| with z^K = sum_j g[i,j] z^(K-1-j), the companion matrix's spectral radius: above 1, rows
    like this one, again and again, grow without bound.
    growth: (M, S), |dy_S / dy_i|: what becomes, at the end of the plan, of a relative error made in state i.
    Where the exact state has no size (s = 0 at sigma = 0) a row's g are put to 0: it gives the mean, whatever was
    before.
    """

    method: str
    scales: Array
    t: Array
    factor: Array
    state: Array
    radius: Array
    growth: Array

    def __str__(self) -> str:
        worst = self.growth.argmax(0)
        head = f"{self.method or 'plan'} on Gaussian data of std {', '.join(f'{s:g}' for s in self.scales)}; exact is 1"
        titles = ("t", "factor from", "to", "radius up to", "growth up to", "for std")
        lines = [head, " row" + "".join(f"{title:>14}" for title in titles)]
        for i, t in enumerate(self.t):
            factor = self.factor[:, i]
            cells = (t, factor.min(), factor.max(), self.radius[:, i].max(), self.growth[worst[i], i])
            lines.append(f"{i:>4}" + "".join(f"{cell:>14.6g}" for cell in (*cells, self.scales[worst[i]])))
        return "\n".join(lines)

    def plot(self, path: str | Path) -> None:
        """Draw state, radius and growth over the rows, a line for each scale of the data."""
        check_path(path)
        canvas, axes = figure(3)
        labels = ("state / exact state", "spectral radius", "growth of an error")
        for each, values, label in zip(axes, (self.state, self.radius, self.growth), labels, strict=True):
            for s, row, color in zip(self.scales, values, shades(len(self.scales)), strict=True):
                shown = np.where(row == 0, np.nan, np.abs(row))
                each.plot(shown, color=color, label=f"{s:g}", linewidth=1.5, marker=".")
            each.axhline(1.0, color="0.6", linewidth=0.8, linestyle=":")
            over_rows(each, label, log=True)
        legend(axes[0], "std of the data")
        save(canvas, path)


def stability(plan: Plan, scales: ArrayLike = SCALES, *, plot: str | Path | None = None) -> Stability:
    """Amplification of a plan on data N(0, s^2) for each s of `scales`, compared with the exact flow.

    See `Stability` for the quantities and the module for the recurrence; a blow-up is a `growth` far above 1 (what an
    error becomes), or a `state` that runs away from 1 (what the plan does by itself). Noise of stochastic plans is left
    out: it adds to a state and multiplies nothing.
    scales: (M,), finite, at least 0; the data's mean does not matter.  plot: a file to draw it to.
    ValueError: scales that are none.
    """
    check_path(plot)
    need_plan(plan)
    s = np.array(scales, dtype=np.float64)
    if s.ndim != 1 or not len(s) or not ((s >= 0) & (s < np.inf)).all():
        raise ValueError(f"scales = {scales!r} must be standard deviations, finite and at least 0, such as [0.1, 1]")
    g = _recurrence(plan, s[:, None])
    rows, depth = plan.b.shape
    state, growth = np.ones((len(s), rows + 1)), np.ones((len(s), rows + 1))
    for i in range(rows):
        state[:, i + 1] = sum(g[:, i, j] * state[:, i - j] for j in range(min(depth, i + 1)))
    for k in reversed(range(rows)):  # the recurrence backwards: y_k is read by rows k .. k + K - 1
        growth[:, k] = sum(g[:, k + j, j] * growth[:, k + j + 1] for j in range(min(depth, rows - k)))
    companion = np.broadcast_to(np.eye(depth, k=-1), (*g.shape, depth)).copy()
    companion[..., 0, :] = g
    radius = np.abs(np.linalg.eigvals(companion)).max(-1)
    made = Stability(plan.method, s, plan.t, g.sum(-1), state, radius, np.abs(growth[:, :-1]))
    if plot is not None:
        made.plot(plot)
    return made


def _recurrence(plan: Plan, s: Array) -> Array:
    """g, shape (M, S, K), for standard deviations s (M, 1)."""
    alpha, sigma = plan.alpha[:-1], plan.sigma[:-1]
    size = np.hypot(plan.alpha * s, plan.sigma)
    u, w = space_pair(plan.space, alpha, sigma)
    prediction = (u * alpha * s**2 + w * sigma) / size[:, :-1]  # m r, the size of d
    source = np.maximum(np.arange(plan.nfe)[:, None] - np.arange(plan.depth), 0)
    g = plan.b * prediction[:, source]
    g[..., 0] += plan.a * size[:, :-1]
    end = size[:, 1:, None]
    return np.divide(g, end, out=np.zeros_like(g), where=end > 0)
