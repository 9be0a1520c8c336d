"""A plan fitted without any derivative: rows in closed form, times by dynamic programming and coordinate search.

Row by row, on the states that the plan itself reaches, ridge least squares for the weights of

    y*(tau[i+1]) - y[i] = (tau[i+1] - tau[i]) (d[i] + sum_{j>0} w_j (d[i-j] - d[i])),    y*: the reference

so that a row also mends what earlier ones left. The times start where one-step errors along the stored reference sum to
the least (dynamic programming, as Watson et al. 2021 choose times by a bound that is a sum over steps), and every trial
of a time solves all rows again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch

from ..running import evaluating
from ..schedule import Array
from .form import Form
from .probe import Probe
from .student import Student

STRENGTH = 1e-3  # of the ridge, in shares of the mean diagonal
_SMALLEST = 0.02  # of the search's steps in lam, where it ends
_LITTLE = 0.98  # a pass that leaves more of the loss is followed by one of smaller steps
_WHOLE = (32, 8, 2, 1)  # its steps in whole times


def solved(student: Student, form: Form, probe: Probe) -> tuple[Form, float]:
    """The form with its rows fitted, and the mean over samples of the RMS error at the end; inf if not allowed."""
    with evaluating(student.model):
        return _solved(student, form, probe)


def _solved(student: Student, form: Form, probe: Probe) -> tuple[Form, float]:
    plan = form.plan()
    rows = student.prediction.of_plan(plan)
    scale = plan.alpha + plan.sigma
    tau = plan.sigma / scale
    weights = np.zeros_like(form.weights)
    weights[:, 0] = 1.0
    y, past = plan.prior_scale * probe.noise / float(scale[0]), []
    for i, row in enumerate(rows):
        x = float(scale[i]) * y
        past.append(student.mixed(x, student.output(x, float(plan.t[i]), probe.label), row))
        step = float(tau[i + 1] - tau[i])
        target = probe.x0 / float(scale[-1]) if i == form.nfe - 1 else probe.at(float(tau[i + 1])).to(y.dtype)
        depth = min(i, form.history - 1)
        slope = past[i]
        if depth and form.coefficients:
            basis = torch.stack([past[i - j] - past[i] for j in range(1, depth + 1)])
            flat = basis.flatten(1).double()
            gram = (flat @ flat.T).cpu().numpy()
            right = (flat @ ((target - y) / step - past[i]).flatten().double()).cpu().numpy()
            strength = STRENGTH * np.trace(gram) / depth + np.finfo(float).tiny  # where predictions do not differ
            weights[i, 1 : depth + 1] = np.linalg.solve(gram + strength * np.eye(depth), right)
            weights[i, 0] = 1.0 - weights[i, 1:].sum()
            slope = slope + torch.tensordot(torch.as_tensor(weights[i, 1 : depth + 1], dtype=y.dtype).to(y), basis, 1)
        elif not form.coefficients:
            slope = torch.stack([float(form.weights[i, j]) * past[i - j] for j in range(i + 1)]).sum(0)
            weights[i] = form.weights[i]
        y = y + step * slope
    each = (float(scale[-1]) * y - probe.x0).flatten(1).double().square().mean(1).sqrt()
    made, loss = replace(form, weights=weights), float(each.mean())
    return made, loss if made.allowed() and np.isfinite(loss) else np.inf


def search(student: Student, form: Form, probe: Probe, losses: Sequence[float] = ()) -> Iterator[tuple[Form, float]]:
    """Ever better forms, one a pass over the times; whole times where the network knows no others.

    losses: of the passes that were made already, the last of which gave the form.
    """
    whole = student.model.integer_times
    if losses:
        best, loss = form, losses[-1]
    else:
        trials = [solved(student, form, probe)]
        if form.times:
            planned = _whole(form, dynamic(form, probe)) if whole else dynamic(form, probe)
            if planned.allowed():
                trials.append(solved(student, planned, probe))
        best, loss = min(trials, key=lambda trial: trial[1])
        yield best, loss
    halvings = sum(after > _LITTLE * before for before, after in pairwise(losses))
    width = 0.4 / 2**halvings
    sizes: list[float] = list(_WHOLE[halvings:]) if whole else []
    while form.times and (sizes if whole else width >= _SMALLEST):
        before = loss
        for i in range(0 if form.first else 1, form.nfe):
            for sign in (1.0, -1.0):
                moved = _moved(best, i, sign * sizes[0]) if whole else _shifted(best, i, sign * width)
                if moved is None or not moved.allowed():
                    continue
                made, there = solved(student, moved, probe)
                if there < loss:
                    best, loss = made, there
                    break
        yield best, loss
        if loss > _LITTLE * before:
            width /= 2
            sizes = sizes[1:]


def dynamic(form: Form, probe: Probe) -> Form:
    """The form at those times of the reference between which Euler's one-step errors sum to the least.

    A start at a later time than the reference's counts with the distance of its scaled noise from the trajectory.
    """
    tau = np.append(probe.tau, 0.0)
    end = float(form.schedule.alpha(form.schedule.t_end))
    y = torch.cat([probe.y, (probe.x0 / end)[None].to(probe.y.dtype)])
    count, rows = len(probe.tau), form.nfe
    cost = np.full((count + 1, count + 1), np.inf)
    for i in range(count):
        h = torch.as_tensor(tau[i + 1 :] - tau[i], dtype=y.dtype, device=y.device).view(-1, *[1] * (y.ndim - 1))
        gap = y[i + 1 :] - y[i] - h * probe.d[i]
        cost[i, i + 1 :] = gap.flatten(1).double().square().mean(1).sqrt().cpu().numpy()
    skipped = []
    for there, at_tau in zip(probe.y, probe.tau, strict=True):
        gap = float(np.hypot(1 - at_tau, at_tau)) * probe.noise - there
        skipped.append(float(gap.double().square().mean().sqrt()))
    least, chosen = cost[:-1, count], []
    for _ in range(rows - 1):
        total = cost[:-1, :-1] + least
        chosen.append(total.argmin(1))
        least = total.min(1)
    at = [int((least + skipped).argmin()) if form.first else 0]
    for best in reversed(chosen):
        at.append(int(best[at[-1]]))
    with np.errstate(divide="ignore"):
        lam = np.log1p(-probe.tau[at]) - np.log(probe.tau[at])
    lam = np.where(np.isneginf(lam) & (not form.first), lam, np.clip(lam, *form.bounds))
    return replace(form, lam=lam, feed=np.zeros(rows))


def _shifted(form: Form, i: int, by: float) -> Form:
    lam: Array = form.lam.copy()
    lam[i] = np.clip(lam[i] + by, *form.bounds)
    return replace(form, lam=lam)


def _moved(form: Form, i: int, by: float) -> Form | None:
    """The form with whole time i moved; None outside the table."""
    s = form.schedule
    t = np.rint(np.asarray(s.t_of_lam(form.lam))) + by * (np.arange(form.nfe) == i)
    if not s.t_min <= t[i] <= s.t_finite or not (np.diff(t) < 0).all():
        return None
    return replace(form, lam=np.asarray(s.lam(t)))


def _whole(form: Form, at: Form) -> Form:
    s = form.schedule
    t = np.clip(np.rint(np.asarray(s.t_of_lam(at.lam))), s.t_min, s.t_max)
    return replace(at, lam=np.asarray(s.lam(t)))
