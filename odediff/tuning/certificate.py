"""What a plan is worth on noise that it was not fitted to, beside every built-in method on every named grid.

error of a sample = RMS over its elements of x0 - x0_reference;    intervals: 95 %, by bootstrap over the samples
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..grids import GRIDS
from ..methods import METHODS
from ..methods import plan as compile_plan
from ..methods.rule import RULE
from ..plans import Plan
from ..schedule import Array
from .probe import Probe
from .student import Student

SCREEN, FINALISTS = 16, 8  # every pair runs on so many of the held-out samples, so many of the best on all
_RESAMPLES = 2000
_PROJECTIONS = 128
Interval = tuple[float, float, float]  # value, lower and upper end


@dataclass(frozen=True)
class Entry:
    """A plan on held-out noise: RMSE and median error with intervals, and how far its samples are as a distribution.

    n: samples.  wasserstein: sliced, to the references.  frechet: of features; None: not asked for.
    """

    name: str
    n: int
    rmse: Interval
    median: Interval
    wasserstein: float | None = None
    frechet: float | None = None


@dataclass(frozen=True)
class Certificate:
    """The tuned plan, the pairs by their median error, and the tuned plan's error over the best pair's with intervals.

    rmse, median: of the ratio to the pair that is best by that measure.  best: the name of the one best by median.
    """

    tuned: Entry
    pairs: tuple[Entry, ...]
    rmse: Interval
    median: Interval
    best: str

    @property
    def holds(self) -> bool:
        """Whether the tuned plan is better beyond the interval by one measure, and not worse beyond it by the other."""
        return min(self.rmse[2], self.median[2]) < 1 and max(self.rmse[1], self.median[1]) <= 1


def pairs(student: Student, nfe: int) -> dict[str, Plan]:
    """Every deterministic method on every named grid and the default's, in its own frame, as far as it takes nfe."""
    model = student.model
    grids = dict.fromkeys((*GRIDS, *(choice.grid for choice in RULE)))
    made: dict[str, Plan] = {}

    def add(name: str, method: str | None, **options: Any) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made[name] = compile_plan(method, model.schedule, nfe, snap=model.integer_times, **options)
        except ValueError:  # a budget, frame or grid that the method does not take
            pass

    add("default", None)
    for method, known in METHODS.items():
        if known.deterministic:
            for grid in grids:
                add(f"{method} {grid}", method, grid=grid)
    return made


def errors(student: Student, plan: Plan, probe: Probe) -> Array:
    """The error of every sample, (n,); inf where the plan diverges."""
    return distances(student.run(plan, probe.noise, probe.label), probe)


def distances(x: Tensor, probe: Probe) -> Array:
    """RMS over each sample's elements of x - x0, (n,)."""
    each = (x - probe.x0).flatten(1).double().square().mean(1).sqrt().cpu().numpy()
    return np.where(np.isfinite(each), each, np.inf)


def certify(
    student: Student,
    tuned: Plan,
    builtin: dict[str, Plan],
    probe: Probe,
    features: Callable[[Tensor], Tensor] | None,
    tick: Callable[[], None],
) -> Certificate:
    """Measure the tuned plan and all pairs on held-out noise."""
    screen = probe.part(slice(0, SCREEN))
    found = {}
    for name, plan in builtin.items():
        found[name] = errors(student, plan, screen)
        tick()
    with np.errstate(over="ignore", invalid="ignore"):
        ranks = {name: (np.median(e), np.sqrt(np.mean(e**2))) for name, e in found.items()}
    kept = {name for k in (0, 1) for name in sorted(ranks, key=lambda name: ranks[name][k])[:FINALISTS]} | {"default"}
    ends: dict[str, Tensor] = {}
    for name in sorted(kept & set(builtin)):
        ends[name] = student.run(builtin[name], probe.noise, probe.label)
        found[name] = distances(ends[name], probe)
        tick()
    x = student.run(tuned, probe.noise, probe.label)
    mine = distances(x, probe)
    full = [name for name in ends if np.isfinite(found[name]).all()]
    by_rmse = min(full, key=lambda name: float(np.mean(found[name] ** 2)))
    by_median = min(full, key=lambda name: float(np.median(found[name])))
    entries = [_entry(name, e, ends.get(name), probe, features) for name, e in found.items()]
    return Certificate(
        _entry("tuned", mine, x, probe, features),
        tuple(sorted(entries, key=lambda entry: (entry.median[0], entry.rmse[0]))),
        bootstrap(_rmse, mine, found[by_rmse]),
        bootstrap(_median, mine, found[by_median]),
        by_median,
    )


def _rmse(e: Array) -> Array:
    return np.asarray(np.sqrt(np.mean(e**2, -1)))


def _median(e: Array) -> Array:
    return np.asarray(np.median(e, -1))


def bootstrap(measure: Callable[[Array], Array], errors: Array, over: Array | None = None) -> Interval:
    """A measure of errors (n,), or its ratio to that of `over` on the same noise, with a 95 % interval."""
    which = np.random.default_rng(0).integers(0, len(errors), (_RESAMPLES, len(errors)))
    with np.errstate(invalid="ignore", over="ignore"):
        value, values = measure(errors), measure(errors[which])
        if over is not None:
            value, values = value / measure(over), values / measure(over[which])
        low, high = np.quantile(values, (0.025, 0.975)) if np.isfinite(values).all() else (value, np.inf)
    return float(value), float(low), float(high)


def _entry(name: str, e: Array, x: Tensor | None, probe: Probe, features: Any) -> Entry:
    spread: tuple[float | None, float | None] = (None, None)
    if x is not None and np.isfinite(e).all():
        seen = None if features is None else tuple(_features(features, v) for v in (x, probe.x0))
        spread = sliced_wasserstein(x, probe.x0), None if seen is None else frechet(*seen)
    return Entry(name, len(e), bootstrap(_rmse, e), bootstrap(_median, e), *spread)


def sliced_wasserstein(x: Tensor, y: Tensor, seed: int = 0) -> float:
    """Root of the mean over directions of the squared Wasserstein-2 distance of projections, per element.

    x, y: (n, ...), as many.  128 directions (Bonneel et al. 2015).
    """
    one, other = x.flatten(1).double().cpu(), y.flatten(1).double().cpu()
    ways = torch.randn(one.shape[1], _PROJECTIONS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ways /= ways.norm(dim=0)
    gap = (one @ ways).sort(0).values - (other @ ways).sort(0).values
    return float(gap.square().mean().sqrt())


def frechet(x: Array, y: Array) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^1/2) of normals fitted to features (n, F) (Heusel et al. 2017, eq. 6)."""
    gap = x.mean(0) - y.mean(0)
    left, right = (z - z.mean(0) for z in (x, y))
    cross = np.linalg.svd(left @ right.T, compute_uv=False).sum() / (len(x) - 1)
    return float(gap @ gap + ((left**2).sum() + (right**2).sum()) / (len(x) - 1) - 2 * cross)


def _features(features: Callable[[Tensor], Tensor], x: Tensor) -> Array:
    with torch.no_grad():
        return np.asarray(features(x).flatten(1).double().cpu().numpy())
