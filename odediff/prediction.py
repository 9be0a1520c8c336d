"""P, the prediction: everything of a sampler that is not linear in the network's output.

    out = net(x, t, null) + g (net(x, t, label) - net(x, t, null))    guidance, in one batch
    x0  = p0 x + q0 out,    x0' = clamp(x0) or threshold(x0)          limits
    d   = u x0' + w eps,    eps = (x - alpha x0') / sigma             recomputed, or (x - alpha x0) / sigma, kept

Guidance commutes with the change of space, which is linear. Without limits d = p x + q out; with them eps follows the
limited x0, so that x = alpha x0' + sigma eps stays true, or does not.

**Kept eps** is what diffusers' DDIM does by default (`use_clipped_model_output=False`), and is a statement about one
step: x' = alpha' x0' + k eps + c z with the network's own eps. A row that reads its own prediction only,
x' = a x + b d + c z, has k = a sigma + b w and becomes that step with one term more in d,

    d = u x0' + w eps + (a alpha / b) (x0' - x0),    eps = (x - alpha x0) / sigma.

Where a row reads earlier predictions, whose x0' - x0 belong to other states, no such d exists, and "keep" is refused;
so it is along an ODE. DDPM's posterior, `ddpm`, is written in x and x0', which is "recompute".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .model import Model
from .plans import Plan
from .schedule import Array
from .spaces import space_pair
from .step import conversion, guided, limited, mix, thresholded

Clip = bool | tuple[float, float] | None
Label = int | Sequence[int] | NDArray[np.integer[Any]] | Tensor | None
CLIP_EPS = ("recompute", "keep")


class Row(NamedTuple):
    """P at one noise level: x0 = to_x0 (x, out), d = to_d (x, out) without limits, d = back (x0', x, out) with them."""

    to_x0: tuple[float, float]
    to_d: tuple[float, float]
    back: tuple[float, float, float]


class Prediction:
    """P of a model: guidance, and limits on x0.

    guidance: g of d_uncond + g (d_cond - d_uncond): 1 or None conditional, 0 unconditional, more overstates the label
    (Ho & Salimans 2022, eq. 6, has w = g - 1). One guided evaluation is one call of the network, on 2 n samples; at 0
    and 1 on n.
    clip: clamp every predicted x0: True to the model's range, (low, high), False, or None for the model's own setting.
    threshold: dynamic thresholding to the model's range at this quantile of |x0| in (0, 1], such as 0.995, in place of
    clip (Saharia et al. 2022, section 2.3).
    clip_eps: "recompute" eps from the limited x0, or "keep" the network's own (one-step methods only).
    ValueError: guidance of an unconditional model, both limits, limits without a range, values out of range.
    """

    def __init__(
        self,
        model: Model,
        *,
        guidance: float | None = None,
        clip: Clip = None,
        threshold: float | None = None,
        clip_eps: str = "recompute",
    ) -> None:
        self.model, self.guidance = model, _checked_guidance(model, guidance)
        if threshold is not None and clip not in (None, False):
            raise ValueError(f"threshold = {threshold!r} and clip = {clip!r} both limit x0; give one of them")
        self.threshold = None if threshold is None else _checked_threshold(model, threshold)
        self.limits = model.range if threshold is not None else _clip_limits(model, clip)
        if clip_eps not in CLIP_EPS:
            raise ValueError(f"clip_eps = {clip_eps!r}; choose {' or '.join(CLIP_EPS)}")
        if clip_eps == "keep" and self.limits is None:
            raise ValueError('clip_eps = "keep" needs a limit on x0: give clip or threshold')
        self._keep = clip_eps == "keep"

    def rows(self, alpha: Array, sigma: Array, u: Array, w: Array) -> list[Row]:
        """P to d = u x0 + w eps at noise levels (S,), eps recomputed. ValueError: the prediction is singular at one."""
        to_x0 = conversion(self.model.prediction, "x0", alpha, sigma)
        to_d = conversion(self.model.prediction, (u, w), alpha, sigma)
        back = zip((u - w * alpha / sigma).tolist(), (w / sigma).tolist(), [0.0] * len(alpha), strict=True)
        return [Row(*row) for row in zip(to_x0, to_d, back, strict=True)]

    def of_plan(self, plan: Plan) -> list[Row]:
        """P to the plan's space, row by row. ValueError: singular at a row, or "keep" with a history."""
        alpha, sigma = plan.alpha[:-1], plan.sigma[:-1]
        u, w = space_pair(plan.space, alpha, sigma)
        rows = self.rows(alpha, sigma, u, w)
        if not self._keep:
            return rows
        past, still = np.flatnonzero(plan.b[:, 1:].any(1)), np.flatnonzero(plan.b[:, 0] == 0)
        if len(past):
            raise ValueError(
                f'clip_eps = "keep" is defined for one-step methods; row {past[0]} of {plan.method or "the plan"} '
                'reads earlier predictions: use clip_eps="recompute", or another method'
            )
        if len(still):
            raise ValueError(
                f'clip_eps = "keep": row {still[0]} does not read its prediction; use clip_eps="recompute"'
            )
        more = plan.a * alpha / plan.b[:, 0]
        rest = conversion(self.model.prediction, (-more, w), alpha, sigma)
        return [row._replace(back=(m, *pq)) for row, m, pq in zip(rows, (u + more).tolist(), rest, strict=True)]

    def network(self, label: Tensor | None, x: Tensor) -> Callable[[Tensor, float], Tensor]:
        """(x, t) -> out, one evaluation each, for states like x (n, ...).

        label: from `checked_label`. ValueError: more or fewer labels than samples, or guidance without label.
        """
        model, labels = self.model, self.labels(label, x)
        if labels is None:
            return model
        if len(labels) == len(x):
            return lambda x, t: model(x, t, labels)
        weight = self.guidance or 0.0

        def evaluate(x: Tensor, t: float) -> Tensor:
            unconditional, conditional = model(torch.cat([x, x]), t, labels).chunk(2)
            return guided(unconditional, conditional, weight)

        return evaluate

    def labels(self, label: Tensor | None, x: Tensor) -> Tensor | None:
        """The labels of one evaluation of x (n, ...): (n,), or (2 n,) if guided, the null half first; None: no labels.

        label: from `checked_label`. ValueError: as `network`.
        """
        g = self.guidance
        if label is None:
            if g is not None:
                raise ValueError(f"guidance = {g:g} needs label=..., the class to guide to; or leave guidance out")
            return None
        label = one_each(label, x)
        if g is None or g == 1:
            return label
        null = torch.full_like(label, self.model.num_classes or 0)
        return null if g == 0 else torch.cat([null, label])

    def d(self, x: Tensor, out: Tensor, row: Row, into: Tensor | None = None) -> Tensor:
        """The prediction in the row's space, a new tensor, or `into`."""
        if self.limits is None:
            return mix(row.to_d[0], x, row.to_d[1], out, into)
        m, p, q = row.back
        return limited(m, self.x0(x, out, row), p, x, q, out, into)

    def x0(self, x: Tensor, out: Tensor, row: Row) -> Tensor:
        """The predicted x0 within its limits, a new tensor."""
        x0 = mix(row.to_x0[0], x, row.to_x0[1], out)
        if self.limits is None:
            return x0
        return x0.clamp_(*self.limits) if self.threshold is None else thresholded(x0, self.threshold, self.limits)


def one_each(label: Tensor, x: Tensor) -> Tensor:
    """Labels (n,) beside the samples x (n, ...), on their device. ValueError: more or fewer labels than samples."""
    if label.ndim and len(label) != len(x):
        raise ValueError(f"{len(label)} labels for {len(x)} samples; give one for each, or one for all")
    return label.expand(len(x)).to(x.device)


def implied_count(label: Tensor | None, n: int | None, noise: Tensor | None) -> int | None:
    """How many samples to draw: n, or, where neither it nor noise says, one for each label."""
    return len(label) if n is None and noise is None and label is not None and label.ndim else n


def checked_label(model: Model, label: Label) -> Tensor | None:
    """Labels as int64, 0-d for one and all samples, (n,) for one each; None: unconditional.

    ValueError: an unconditional model, anything but whole numbers in 0 .. num_classes - 1.
    """
    if label is None:
        return None
    if model.num_classes is None:
        raise ValueError(f"label = {label!r:.60} for an unconditional model; leave it out")
    try:
        values = label if isinstance(label, Tensor) else torch.from_numpy(np.array(label))
    except (TypeError, ValueError):
        raise ValueError(f"label = {label!r:.60} must be a whole number, or one for each sample") from None
    kind = values.dtype
    if kind == torch.bool or kind.is_floating_point or kind.is_complex or values.ndim > 1 or not values.numel():
        raise ValueError(f"label = {label!r:.60} must be a whole number, or one for each sample")
    values = values.to(torch.int64)
    bad = values[(values < 0) | (values >= model.num_classes)]
    if len(bad):
        raise ValueError(
            f"label = {int(bad[0])} is outside 0 .. {model.num_classes - 1}, the model's classes; "
            "leave label out for an unconditional sample"
        )
    return values


def _checked_guidance(model: Model, guidance: float | None) -> float | None:
    if guidance is None:
        return None
    if not _is_real(guidance):
        raise ValueError(f"guidance = {guidance!r} must be a finite number: 1 is conditional, 0 unconditional")
    if model.num_classes is None:
        raise ValueError(f"guidance = {guidance:g} needs a class-conditional model; leave it out")
    return float(guidance)


def _checked_threshold(model: Model, threshold: float) -> float:
    if not _is_real(threshold) or not 0 < threshold <= 1:
        raise ValueError(f"threshold = {threshold!r} must be a quantile in (0, 1], such as 0.995")
    if model.range is None:
        raise ValueError(f"threshold = {threshold:g} needs a model with a range; give Model(range=(low, high))")
    return float(threshold)


def _is_real(value: Any) -> bool:
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return bool(number and math.isfinite(value))


def _clip_limits(model: Model, clip: Clip) -> tuple[float, float] | None:
    clip = model.clip if clip is None else clip
    if clip is False:
        return None
    limits = model.range if clip is True else clip
    if limits is None:
        raise ValueError("clip=True needs a model with a range; pass clip=(low, high)")
    pair = (
        isinstance(limits, (tuple, list))
        and len(limits) == 2
        and all(isinstance(v, (int, float, np.number)) for v in limits)
    )
    if not pair or not limits[0] < limits[1]:
        raise ValueError(f"clip must be True, False or (low, high) with low < high, got {clip!r}")
    return float(limits[0]), float(limits[1])
