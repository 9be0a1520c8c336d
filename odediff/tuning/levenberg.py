"""Levenberg-Marquardt on the residuals at a plan's end, sample by sample.

    minimise  mean_n rho(|r_n|^2),  r_n = f(x_n) - f(x0_n),  by steps  (H + mu diag H) s = -g
    H = sum_k H_k,   g = sum_k [g_k + H_k (p - p_k)],   H_k = sum J' W J,   g_k = sum J' W r  over block k at p_k

rho(e) = 2 s2 (sqrt(1 + e / s2) - 1), s2 the median of |r_n|^2: quadratic for most samples, linear for the few that end
in another mode than their reference. A Jacobian costs as much as many runs of the plan (docs/tuning.md counts them), so
a step takes it on one block of the samples, in turn. The blocks that had theirs keep the model of then, moved to the
numbers p of now (incremental Gauss-Newton, after Bertsekas 1996): after one round, and where steps become small, they
are those of all samples at once. mu is searched on all samples (More 1978), from the largest down: the loss has narrow
bends, in which a mu carried over from the step before stays large.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..schedule import Array
from .form import Form
from .probe import Probe
from .student import Student

Features = Callable[[Tensor], Tensor]
DAMPINGS = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)
BLOCKS, LEAST = 4, 8  # blocks of the samples at most, and samples of a block at least, where there are so many
GAIN = 2e-3  # steps along all blocks that lower the loss by less than this share are the last
_MEMORY = 2**26  # numbers in the tangents of one batch


class Quadratic(NamedTuple):
    """A block's loss near these free numbers: H_k and g_k."""

    numbers: Array
    hessian: Array
    gradient: Array

    @property
    def finite(self) -> bool:
        """Whether the network was, all around."""
        return bool(np.isfinite(self.hessian).all() and np.isfinite(self.gradient).all())


def steps(
    student: Student,
    form: Form,
    probe: Probe,
    features: Features | None,
    before: Sequence[tuple[Form, float]] = (),
) -> Iterator[tuple[Form, float]]:
    """Steps that lower the loss on a probe, until none does: the form, and its loss over the one before. A step that
    finds nothing better leaves the form, with 1.  before: the steps that were made already, from the same form.
    """
    if not len(form.numbers()):  # of a network that knows whole times only the coefficients are free, if they are
        return
    blocks = _blocks(len(probe.noise))
    made = [(form, 1.0), *before]

    def model(k: int, residuals: Tensor | None = None) -> Quadratic:
        at = made[k][0]
        r = residual(student, at, probe, features) if residuals is None else residuals
        return _quadratic(student, at, probe, r, blocks[k % len(blocks)], features)

    last = len(made) - 1
    models = deque((model(k) for k in range(max(0, last + 1 - len(blocks)), last)), maxlen=len(blocks))
    at = made[-1][0]
    residuals = residual(student, at, probe, features)
    while len(made) <= len(blocks) or np.prod([loss for _, loss in made[-len(blocks) :]]) <= 1 - GAIN:
        models.append(model(len(made) - 1, residuals))
        hessian, gradient = _joined(models, at.numbers())
        scale = _scale(residuals)
        now = loss = _robust(residuals, scale)
        new, there = at, residuals
        for mu in DAMPINGS:
            trial = at.at(at.numbers() + _solved(hessian, gradient, mu, at)).within()
            if not trial.allowed():
                continue
            r = residual(student, trial, probe, features)
            if (less := _robust(r, scale)) < loss:  # not so if it diverged to NaN
                loss, new, there = less, trial, r
            elif loss < now:
                break
        made.append((new, loss / now if now else 1.0))
        yield made[-1]
        at, residuals = new, there


def _blocks(n: int) -> list[slice]:
    """The samples of each block, as many in one as in another or one more."""
    edges = np.linspace(0, n, max(1, min(BLOCKS, n // LEAST)) + 1).round().astype(int).tolist()
    return [slice(a, b) for a, b in pairwise(edges)]


def _quadratic(
    student: Student, form: Form, probe: Probe, residuals: Tensor, block: slice, features: Features | None
) -> Quadratic:
    """H_k and g_k of a block, from the residuals of all samples."""
    weights = 1 / (1 + residuals[block].square().mean(1) / _scale(residuals)).sqrt()
    part = _normal(student, form, probe.part(block), residuals[block], weights, features)
    return Quadratic(form.numbers(), *part)


def _joined(models: Iterable[Quadratic], numbers: Array) -> tuple[Array, Array]:
    """H and g at these numbers, of the blocks that had their Jacobian, and had it finite."""
    known = [model for model in models if model.finite] or list(models)
    slopes = [model.gradient + model.hessian @ (numbers - model.numbers) for model in known]
    return np.sum([model.hessian for model in known], 0), np.sum(slopes, 0)


def _solved(hessian: Array, gradient: Array, mu: float, form: Form) -> Array:
    """The damped step within `Form.room`: numbers that would leave it go as far as they may, the others are solved for.

    A time that the end hardly depends on, as the first, would else be sent off the schedule by its own small curvature.
    """
    if not hessian.any():  # a loss that is flat here: 1e-14 of nothing would leave it singular
        return np.zeros_like(gradient)
    damped = hessian + mu * np.diag(np.diag(hessian)) + 1e-14 * np.trace(hessian) * np.eye(len(hessian))
    down, up = form.room()
    step, free = np.zeros_like(gradient), np.ones(len(gradient), dtype=bool)
    while free.any():
        rest = gradient[free] + damped[np.ix_(free, ~free)] @ step[~free]
        step[free] = -np.linalg.solve(damped[np.ix_(free, free)], rest)
        out = free & ((step < down) | (step > up))
        if not out.any():
            break
        step[out] = np.clip(step[out], down[out], up[out])
        free &= ~out
    return step


def residual(student: Student, form: Form, probe: Probe, features: Features | None) -> Tensor:
    """r, (n, D) float64: the end of the plan less the reference, both through `features`."""
    return _seen(student.run(form.plan(), probe.noise, probe.label), features) - _seen(probe.x0, features)


def _seen(x: Tensor, features: Features | None) -> Tensor:
    with torch.no_grad():
        return (x if features is None else features(x)).flatten(1).double()


def _scale(residuals: Tensor) -> Tensor:
    return residuals.square().mean(1).median().clamp_min(1e-20)


def _robust(residuals: Tensor, scale: Tensor) -> float:
    return float((2 * scale * ((1 + residuals.square().mean(1) / scale).sqrt() - 1)).mean())


def _normal(
    student: Student, form: Form, probe: Probe, residuals: Tensor, weights: Tensor, features: Features | None
) -> tuple[Array, Array]:
    """J' W J and J' W r, batch by batch of samples, in float64."""
    count, n = len(form.numbers()), len(probe.noise)
    hessian, gradient = np.zeros((count, count)), np.zeros(count)
    size = max(1, min(student.batch, _MEMORY // (count * form.nfe * probe.noise[0].numel())))
    for k in range(0, n, size):
        part = probe.part(slice(k, k + size))
        x, tangents = student.tangents(form, part.noise, part.label)
        if features is not None:
            tangents = _through(features, x, tangents, student.width)
        j = tangents.flatten(2).double()
        weighted = j * weights[k : k + size, None]
        hessian += (weighted.flatten(1) @ j.flatten(1).T).cpu().numpy()
        gradient += (weighted.flatten(1) @ residuals[k : k + size].flatten()).cpu().numpy()
    return hessian, gradient


def _through(features: Features, x: Tensor, tangents: Tensor, width: float) -> Tensor:
    """The derivatives of features(x) along tangents (P, n, ..), by differences."""
    size = tangents.flatten(2).square().mean(2).sqrt().clamp_min(1e-30)
    h = (width / size).view(*size.shape, *[1] * (x.ndim - 1))
    with torch.no_grad():
        here = features(x)
        moved = torch.stack([features(x + step * v) for step, v in zip(h, tangents, strict=True)])
    return ((moved - here).flatten(2) / h.flatten(1)[..., None]).view_as(moved)
