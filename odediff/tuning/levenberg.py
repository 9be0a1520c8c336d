"""Levenberg-Marquardt on the residuals at a plan's end, sample by sample.

    minimise  mean_n rho(|r_n|^2),  r_n = f(x_n) - f(x0_n),  by steps  (H + mu diag H) s = -J' W r,  H = J' W J

rho(e) = 2 s2 (sqrt(1 + e / s2) - 1), s2 the median of |r_n|^2: quadratic for most samples, linear for the few that end
in another mode than their reference. A Jacobian costs as much as many runs of the plan (docs/tuning.md counts them), so
every step tries mu over six decades and takes the best: the loss has narrow bends, in which a mu carried over from the
step before stays large (More 1978 gives the method; the search is ours).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from ..schedule import Array
from .form import Form
from .probe import Probe
from .student import Student

Features = Callable[[Tensor], Tensor]
DAMPINGS = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
GAIN = 2e-3  # a step that lowers the loss by less than this share is the last
_MEMORY = 2**26  # numbers in the tangents of one batch


def steps(student: Student, form: Form, probe: Probe, features: Features | None) -> Iterator[tuple[Form, float]]:
    """Steps that lower the loss on a probe, until none does: the form, and its loss over the one before."""
    while len(form.numbers()):  # of a network that knows whole times only the coefficients alone are free, if they are
        residuals = residual(student, form, probe, features)
        square = residuals.square().mean(1)
        scale = square.median().clamp_min(1e-20)
        hessian, gradient = _normal(student, form, probe, residuals, 1 / (1 + square / scale).sqrt(), features)
        now = _robust(square, scale)

        loss, new = now, form
        for mu in DAMPINGS:
            trial = form.at(form.numbers() + _solved(hessian, gradient, mu, form)).within()
            if trial.allowed():
                there = _robust(residual(student, trial, probe, features).square().mean(1), scale)
                if there < loss:  # not so if it diverged to NaN
                    loss, new = there, trial
        if loss >= now:
            return
        yield new, loss / now
        if loss > (1 - GAIN) * now:
            return
        form = new


def _solved(hessian: Array, gradient: Array, mu: float, form: Form) -> Array:
    """The damped step within `Form.room`: numbers that would leave it go as far as they may, the others are solved for.

    A time that the end hardly depends on, as the first, would else be sent off the schedule by its own small curvature.
    """
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


def _robust(square: Tensor, scale: Tensor) -> float:
    return float((2 * scale * ((1 + square / scale).sqrt() - 1)).mean())


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
