"""A plan run on a model, and how its end changes with every free number: tangents carried forward, row by row.

    d[i] = P(x[i]),    x[i+1] = a[i] x[i] + sum_j b[i,j] d[i-j],    x[0] = s z,    dx[0] = ds z

    dx[i+1] = da[i] x[i] + a[i] dx[i] + sum_j (db[i,j] d[i-j] + b[i,j] dd[i-j]),    dd[i] = P'(x[i]) dx[i] + ..

The network's part of P'(x) v is (P(x + h v) - P(x)) / h, which any model allows, or exact, by torch's forward mode.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..model import Model
from ..plans import Plan
from ..prediction import Prediction, Row
from ..running import evaluating
from ..schedule import Array
from ..spaces import space_pair
from ..step import state_dtype, thresholded
from .form import Form

Seen = Callable[[Tensor, Tensor], None]
DERIVATIVES = ("differences", "exact")
_COEFFICIENT = 1e-5  # of a free number, to differentiate the table in float64
_TIME = 1e-2  # of lam, to differentiate P in time and in the noise level


class Changes(NamedTuple):
    """The derivatives of a table by P free numbers: (P, S), scale (P,), b (P, S, S)."""

    scale: Array  # of unit noise at the start
    a: Array
    b: Array
    level: Array  # of the states' lam
    time: Array  # of lam at the times that the network is fed

    def reach(self, i: int) -> NDArray[np.bool_]:
        """The numbers that row i depends on, (P,)."""
        own = (self.a[:, i] != 0) | (self.level[:, i] != 0) | (self.time[:, i] != 0)
        return own | self.b[:, i].any(1)


class Nearby(NamedTuple):
    """Rows of P at noise levels `spans` further in lam, and times `time_spans` further."""

    rows: list[Row]
    spans: Array
    times: Array
    time_spans: Array


class Student:
    """A model as plans are fitted to it: its prediction in flow space, for labels that belong to the samples.

    options: guidance, clip, threshold, as `odediff.Sampler` takes them.  batch: samples in a call of the network.
    derivatives: "differences", or "exact": forward-mode derivatives of an nn.Module.
    ValueError: see `Prediction`; exact derivatives of a network that is no module, or of a threshold.
    """

    def __init__(self, model: Model, *, batch: int = 64, derivatives: str = "differences", **options: Any) -> None:
        self.model, self.batch, self.derivatives = model, batch, derivatives
        self.prediction = Prediction(model, **options)
        self.dtype = state_dtype(model.dtype or torch.float32)
        self.width = 3e-2 if model.dtype in (torch.float16, torch.bfloat16) else 3e-3  # h |v|, per element of x
        self.evaluations = 0
        if derivatives not in DERIVATIVES:
            raise ValueError(f"derivatives = {derivatives!r}; choose {' or '.join(DERIVATIVES)}")
        if derivatives == "exact" and (self.prediction.threshold or not isinstance(model.net, torch.nn.Module)):
            raise ValueError('derivatives = "exact" needs an nn.Module without a threshold; use "differences"')

    def output(self, x: Tensor, t: float, label: Tensor | None) -> Tensor:
        """What the network returns, guidance included, in batches."""
        self.evaluations += len(x)
        parts = []
        for k in range(0, len(x), self.batch):
            part = x[k : k + self.batch]
            labels = None if label is None else label[k : k + self.batch]
            parts.append(self.prediction.network(labels, part)(part, t))
        return torch.cat(parts)

    def mixed(self, x: Tensor, out: Tensor, row: Row) -> Tensor:
        """P from the network's output, without writing into a tensor, as derivatives need it."""
        limits, threshold = self.prediction.limits, self.prediction.threshold
        if limits is None:
            return row.to_d[0] * x + row.to_d[1] * out
        x0 = row.to_x0[0] * x + row.to_x0[1] * out
        x0 = x0.clamp(*limits) if threshold is None else thresholded(x0, threshold, limits)
        m, p, q = row.back
        return m * x0 + p * x + q * out

    def run(
        self,
        plan: Plan,
        noise: Tensor,
        label: Tensor | None = None,
        seen: Callable[[Tensor, Tensor], Any] | None = None,
    ) -> Tensor:
        """The end of a plan from unit noise.  seen: called as seen(x[i], d[i]), row by row."""
        with evaluating(self.model):
            x, past = plan.prior_scale * noise, []
            for i, row in enumerate(self.prediction.of_plan(plan)):
                past.append(self.mixed(x, self.output(x, float(plan.t[i]), label), row))
                if seen is not None:
                    seen(x, past[-1])
                x = float(plan.a[i]) * x + _sum(plan.b[i], past)
        return x

    def tangents(self, form: Form, noise: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The end of a form's plan, (n, ..), and its derivatives by the free numbers, (P, n, ..)."""
        plan, changes = form.plan(), _changes(form)
        rows, nearby = self.prediction.of_plan(plan), self._nearby(form)
        with evaluating(self.model):
            x = plan.prior_scale * noise
            dx, past, dpast = _outer(changes.scale, noise), [], []
            moving = changes.scale != 0
            for i, row in enumerate(rows):
                t = float(plan.t[i])
                out = self.output(x, t, label)
                d, dd = self.mixed(x, out, row), torch.zeros_like(dx)
                if moving.any():
                    dd[moving] = self._along(x, d, t, row, label, dx[moving])
                by_level, by_time = (change[:, i] for change in (changes.level, changes.time))
                if by_level.any():
                    other, span = nearby.rows[i], nearby.spans[i]
                    dd += _outer(by_level / span, self.mixed(x, out, other) - d)
                if by_time.any():
                    later = self.output(x, float(nearby.times[i]), label)
                    dd += _outer(by_time / nearby.time_spans[i], self.mixed(x, later, row) - d)
                past.append(d)
                dpast.append(dd)
                dx = float(plan.a[i]) * dx + _sum(plan.b[i], dpast) + _outer(changes.a[:, i], x)
                for j in range(min(i + 1, changes.b.shape[2])):
                    dx += _outer(changes.b[:, i, j], past[i - j])
                x = float(plan.a[i]) * x + _sum(plan.b[i], past)
                moving |= changes.reach(i)
        return x, dx

    def _along(self, x: Tensor, d: Tensor, t: float, row: Row, label: Tensor | None, v: Tensor) -> Tensor:
        """P'(x) v for directions v (P, n, ..)."""
        if self.derivatives == "exact":
            return self._exact(x, t, row, label, v)
        size = v.flatten(2).square().mean(2).sqrt().clamp_min(1e-30)
        h = (self.width / size).view(*size.shape, *[1] * (x.ndim - 1))
        moved = (x + h * v).flatten(0, 1)
        labels = None if label is None else label.repeat(len(v))
        return (self.mixed(moved, self.output(moved, t, labels), row).view_as(v) - d) / h

    def _exact(self, x: Tensor, t: float, row: Row, label: Tensor | None, v: Tensor) -> Tensor:
        self.evaluations += len(x) * len(v)
        network = self.prediction.network(label, x)

        def along(one: Tensor) -> Any:
            return torch.func.jvp(lambda x: self.mixed(x, network(x, t), row), (x,), (one,))[1]

        size = max(1, self.batch // len(x))
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():  # attention's fused forms have no forward mode
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of what it loads for this
            parts = [torch.func.vmap(along)(v[k : k + size]) for k in range(0, len(v), size)]
        return torch.cat(parts)

    def _nearby(self, form: Form) -> Nearby:
        """P at noise levels, and times, a little further along the schedule, or back where it ends."""
        s = form.schedule
        here, fed = _finite(form)
        there, later = (lam + np.where(lam + _TIME > form.bounds[1], -_TIME, _TIME) for lam in (here, fed))
        at = np.asarray(s.t_of_lam(there))
        alpha, sigma = np.asarray(s.alpha(at)), np.asarray(s.sigma(at))
        rows = self.prediction.rows(alpha, sigma, *space_pair("flow", alpha, sigma))
        return Nearby(rows, there - here, np.asarray(s.t_of_lam(later)), later - fed)


def _changes(form: Form) -> Changes:
    """The derivatives of the table by the free numbers, central differences in float64, just inside the schedule."""
    low, high = form.bounds
    inside = np.clip(form.lam, low + _COEFFICIENT, high - _COEFFICIENT)
    form = replace(form, lam=np.where(np.isneginf(form.lam), form.lam, inside))
    numbers, rows = form.numbers(), form.nfe
    count = len(numbers)
    made = Changes(*(np.zeros((count, *shape)) for shape in ((), (rows,), (rows, rows), (rows,), (rows,))))
    for k in range(count):
        h = np.zeros(count)
        h[k] = _COEFFICIENT
        up, down = form.at(numbers + h), form.at(numbers - h)
        for change, after, before in zip((made.level, made.time), _finite(up), _finite(down), strict=True):
            change[k] = (after - before) / (2 * _COEFFICIENT)
        one, other = up.plan(), down.plan()
        made.scale[k] = (one.prior_scale - other.prior_scale) / (2 * _COEFFICIENT)
        made.a[k] = (one.a - other.a) / (2 * _COEFFICIENT)
        for sign, plan in ((1, one), (-1, other)):
            made.b[k, :, : plan.depth] += sign * plan.b / (2 * _COEFFICIENT)
    for table in (made.scale, made.a, made.b):
        table[np.abs(table) < 1e-9] = 0.0  # rounding of what does not depend on the number
    return made


def _finite(form: Form) -> tuple[Array, Array]:
    """lam at a form's states and at the times that the network is fed; t_finite's where alpha = 0."""
    lam, fed = (np.maximum(level, form.bounds[0]) for level in form.levels())
    return lam, fed


def _sum(weights: Array, past: list[Tensor]) -> Tensor:
    """sum_j b_j d[i-j] of the newest, past[-1], and those before it."""
    total = float(weights[0]) * past[-1]
    for j in range(1, min(len(past), len(weights))):
        if weights[j]:
            total = total + float(weights[j]) * past[-1 - j]
    return total


def _outer(numbers: Array, x: Tensor) -> Tensor:
    return torch.as_tensor(numbers, dtype=x.dtype, device=x.device).view(-1, *[1] * x.ndim) * x
