"""The numbers of a plan that are fitted, and the table that they make.

    y = x / A,  A = alpha + sigma,  tau = sigma / A:        dy / dtau = d, the flow velocity eps - x0
    y[i+1] = y[i] + (tau[i+1] - tau[i]) sum_j w[i,j] d[i-j],    sum_j w[i,j] = 1

In this frame, which is singular at neither end of a schedule, every row conserves signal and noise whatever w is. Free
are lam at the states (so the times), w[i,1..], and how far the time that the network is fed is from its state's, in
lam. With lam[0] free, x_T stands for the state at a time below t_max: a first step without an evaluation. Not free, it
is -inf where alpha(t_max) = 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..plans import Plan
from ..schedule import Array, Schedule
from ..spaces import space_pair
from ..trace import lower

BOUND = 32.0  # largest sum of a row's |w|
_CLOSEST = 0.02  # in lam, between two states
_FARTHEST, _HEAVIEST = 0.5, 4.0  # what a time in lam, and a weight, may change by in one step
_BASIS = np.longdouble


@dataclass(frozen=True, eq=False)
class Form:
    """A plan as numbers, and which of them are free.

    schedule: the noise.  lam: (S,), of the states.  feed: (S,), lam at the times that the network is fed, less lam.
    weights: (S, S), w[i, j] of d[i-j].  history: predictions that a row may read, 1 .. S.
    first, times, fed, coefficients: whether lam[0], lam[1..], feed, and weights are free.
    """

    schedule: Schedule
    lam: Array
    feed: Array
    weights: Array
    history: int
    first: bool = True
    times: bool = True
    fed: bool = False
    coefficients: bool = True

    @property
    def nfe(self) -> int:
        """Rows of the plan."""
        return len(self.lam)

    @property
    def bounds(self) -> tuple[float, float]:
        """lam at the noisiest and at the cleanest time that a state may have."""
        s = self.schedule
        return float(s.lam(s.t_finite)), float(s.lam(s.t_min))

    def _free(self) -> tuple[slice, list[tuple[int, int]]]:
        start = 0 if self.first and self.times else 1 if self.times else self.nfe
        rows = range(1, self.nfe) if self.coefficients else ()
        return slice(start, None), [(i, j) for i in rows for j in range(1, min(i + 1, self.history))]

    def numbers(self) -> Array:
        """The free numbers, one vector: lam, feed, weights."""
        lam, pairs = self._free()
        return np.concatenate([self.lam[lam], self.feed if self.fed else [], [self.weights[pair] for pair in pairs]])

    def at(self, numbers: Array) -> Form:
        """The same form with these free numbers; lam is kept on the schedule."""
        free, pairs = self._free()
        lam, weights = self.lam.copy(), self.weights.copy()
        count = len(lam[free])
        lam[free] = np.clip(numbers[:count], *self.bounds)
        feed = numbers[count : count + self.nfe] if self.fed else self.feed
        for pair, value in zip(pairs, numbers[count + self.nfe * self.fed :], strict=True):
            weights[pair] = value
        if pairs:
            weights[:, 0] = 1.0 - weights[:, 1:].sum(1)
        return replace(self, lam=lam, feed=feed, weights=weights)

    def shortened(self, history: int) -> Form:
        """The form with rows that read so many predictions, the newest: an allowed one stays allowed.

        The share V of the older goes to the newest, and |w_0 + V| <= |w_0| + |V|: no row's sum of |w| grows.
        """
        weights = self.weights.copy()
        weights[:, history:] = 0.0
        weights[:, 0] = 1.0 - weights[:, 1:].sum(1)
        return replace(self, history=history, weights=weights if self.coefficients else self.weights)

    def grown(self, rows: int) -> Form:
        """A form of more rows, drawn out: lam, feed and w[., j], read along the rows at k (S - 1) / (rows - 1)."""
        old, new = np.arange(self.nfe), np.linspace(0, self.nfe - 1, rows)
        lam = np.interp(new, old, np.maximum(self.lam, self.bounds[0]))
        lam[0] = self.lam[0]  # -inf stays
        weights = np.zeros((rows, rows))
        for j in range(1, self.nfe):
            weights[j:, j] = np.interp(new, old, self.weights[:, j])[j:]
        weights[:, 0] = 1.0 - weights[:, 1:].sum(1)
        feed = np.interp(new, old, self.feed)
        return replace(self, lam=lam, feed=feed, weights=weights, history=rows).within()

    def within(self) -> Form:
        """The nearest form that is allowed: times `_CLOSEST` apart, rows of more than `BOUND` with less history."""
        _, high = self.bounds
        gaps = _CLOSEST * np.arange(self.nfe)
        lam = np.maximum.accumulate(self.lam - gaps) + gaps if self.times else self.lam
        if self.times:
            lam = np.minimum(lam, high - gaps[::-1])
        total = np.abs(self.weights[:, 1:]).sum(1, keepdims=True)
        share = np.where(
            np.abs(self.weights).sum(1, keepdims=True) > BOUND, (BOUND - 1) / (2 * np.maximum(total, 1)), 1
        )
        weights = self.weights.copy()
        weights[:, 1:] *= share
        weights[:, 0] = 1.0 - weights[:, 1:].sum(1)
        return replace(self, lam=lam, weights=weights if self.coefficients else self.weights)

    def room(self) -> tuple[Array, Array]:
        """How far down and up each free number may go in one step: times along the schedule, and nothing far."""
        numbers, count = self.numbers(), len(self.lam[self._free()[0]])
        down, up = np.empty(len(numbers)), np.empty(len(numbers))
        timed = count + self.nfe * self.fed
        down[:timed], up[:timed] = -_FARTHEST, _FARTHEST
        down[timed:], up[timed:] = -_HEAVIEST, _HEAVIEST
        low, high = self.bounds
        down[:count] = np.maximum(down[:count], low - numbers[:count])
        up[:count] = np.minimum(up[:count], high - numbers[:count])
        return down, up

    def allowed(self) -> bool:
        """Whether times decrease, and every row's weights are bounded."""
        return bool(
            np.isfinite(self.numbers()).all()
            and (np.diff(self.lam) >= _CLOSEST * (1 - 1e-9)).all()
            and np.abs(self.weights).sum(1).max() <= BOUND * (1 + 1e-9)
        )

    def levels(self) -> tuple[Array, Array]:
        """lam at the states, and at the times that the network is fed, both on the schedule."""
        low, high = self.bounds
        lam = np.where(np.isneginf(self.lam), self.lam, np.clip(self.lam, low, high))
        return lam, np.where(self.feed == 0, lam, np.clip(np.maximum(lam, low) + self.feed, low, high))

    def plan(self, **provenance: Any) -> Plan:
        """The table. provenance: what the plan's `args` say."""
        s = self.schedule
        t, fed = (np.clip(s.t_of_lam(lam), s.t_min, s.t_max) for lam in self.levels())
        if s.steps is not None:  # whole times stay whole
            t, fed = (np.where(np.abs(v - np.rint(v)) < 1e-6, np.rint(v), v) for v in (t, fed))
        alpha, sigma = (np.append(np.asarray(f(t)), float(f(s.t_end))) for f in (s.alpha, s.sigma))
        scale = alpha + sigma
        clean = alpha / scale  # 1 - tau by itself, since it may be far below rounding of tau
        step = np.where(alpha[:-1] < sigma[:-1], -np.diff(clean), np.diff(sigma / scale))
        depth = max(1, int(np.flatnonzero(self.weights.any(0)).max(initial=0)) + 1)
        return Plan(
            space="flow",
            t=fed,
            alpha=alpha,
            sigma=sigma,
            a=scale[1:] / scale[:-1],
            b=((scale[1:] * step)[:, None] * self.weights)[:, :depth],
            c=np.zeros(len(t)),
            method="tuned",
            args=provenance,
            schedule=s.fingerprint,
        )


def form_of(schedule: Schedule, plan: Plan, **free: Any) -> Form:
    """A deterministic plan of any space as a `Form`: its rows on basis vectors, lowered again in flow space.

    free: fields of `Form`; history is all predictions unless named.
    ValueError: a stochastic plan, or a row that does not move towards the data.
    """
    if plan.stochastic:
        raise ValueError(f"{plan.method or 'the plan'} is stochastic; a plan that is fitted has no noise")
    rows = plan.nfe
    u, w = space_pair(plan.space, plan.alpha[:-1], plan.sigma[:-1])
    x, states, known = _basis(rows, 0), [], []
    for i in range(rows):
        states.append(x)
        alpha, sigma, d = _BASIS(plan.alpha[i]), _BASIS(plan.sigma[i]), _basis(rows, 1 + i)
        x0, eps = (x - sigma * d) / (alpha + sigma), (x + alpha * d) / (alpha + sigma)
        known.append(u[i] * x0 + w[i] * eps)
        x = plan.a[i] * x + sum(plan.b[i, j] * known[i - j] for j in range(min(i + 1, plan.depth)))
    _, b, _ = lower(np.array([*states, x]))
    totals = b.sum(1, keepdims=True)
    still = np.flatnonzero(np.abs(totals[:, 0]) <= 1e-9 * np.abs(b).sum(1))
    if len(still):
        raise ValueError(f"row {still[0]} of {plan.method or 'the plan'} does not move towards the data")
    weights = np.zeros((rows, rows))
    weights[:, : b.shape[1]] = b / totals
    history = free.pop("history", rows)
    weights[:, history:] = 0.0
    weights[:, 0] = 1.0 - weights[:, 1:].sum(1)
    with np.errstate(divide="ignore"):
        lam = np.log(plan.alpha[:-1]) - np.log(plan.sigma[:-1])
    made = Form(schedule, lam, np.zeros(rows), weights, history, **free)
    if made.times and made.first and not np.isfinite(lam[0]):
        lam[0] = made.bounds[0]
    return made


def _basis(rows: int, k: int) -> Any:
    return np.eye(1, 1 + 2 * rows, k, dtype=_BASIS)[0]
