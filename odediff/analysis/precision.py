"""Work and precision: the error of solvers against a converged reference, over the evaluations they spend.

error of a sample = RMS over its elements of x0 - x0_reference
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..plans import Plan
from ..schedule import Array, Schedule
from .plotting import check_path, figure, legend, save, style
from .problems import Problem, flow_map, trajectory
from .solvers import Family, budgets, family

if TYPE_CHECKING:
    from ..model import Model

MEASURES = ("median", "rmse", "p95")
_STEPS = 1000


@dataclass(frozen=True, eq=False)
class WorkPrecision:
    """Errors in x0 of M solvers at N budgets.

    solvers: M names.  nfes: (N,).  median, rmse, p95: (M, N), over samples the median of the error, its root mean
    square and its 95th percentile; nan where a method cannot meet the budget, inf where a plan diverged.
    reference_error: median over samples by which two references differ; smaller errors mean nothing.
    """

    solvers: tuple[str, ...]
    nfes: tuple[int, ...]
    median: Array
    rmse: Array
    p95: Array
    reference_error: float

    def __str__(self) -> str:
        width = max(8, *map(len, self.solvers)) + 2
        lines = [f"error in x0, median (95th percentile) over samples; reference good to {self.reference_error:.1e}"]
        lines.append(f"{'nfe':<{width}}" + "".join(f"{n:>20}" for n in self.nfes))
        for k, name in enumerate(self.solvers):
            cells = (f"{m:.2e} ({p:.2e})" for m, p in zip(self.median[k], self.p95[k], strict=True))
            lines.append(f"{name:<{width}}" + "".join(f"{'-' if 'nan' in cell else cell:>20}" for cell in cells))
        return "\n".join(lines)

    def plot(self, path: str | Path, measure: str = "median") -> None:
        """Draw the errors over the evaluations, log-log.

        measure: "median", "rmse" or "p95".  ValueError: another.
        """
        check_path(path)
        if measure not in MEASURES:
            raise ValueError(f"unknown measure {measure!r}; choose {', '.join(MEASURES)}")
        canvas, (axes,) = figure(1)
        for k, (name, errors) in enumerate(zip(self.solvers, getattr(self, measure), strict=True)):
            axes.loglog(self.nfes, np.where(np.isfinite(errors), errors, np.nan), label=name, **style(k))
        label = {"median": "median error", "rmse": "RMS error", "p95": "95th percentile of the error"}[measure]
        axes.set(xlabel="evaluations of the network", ylabel=f"{label} in x0")
        axes.set_xticks(self.nfes, [str(n) for n in self.nfes])
        axes.minorticks_off()
        legend(axes)
        save(canvas, path)


class Runs(Protocol):
    """A problem with fixed starts."""

    schedule: Schedule
    snap: bool

    def final(self, plan: Plan) -> Array: ...

    def reference(self, nfe: int | None) -> tuple[Array, Array]: ...


class _ExactRuns:
    """A `Problem` with fixed starts; what the torch side does for a `Model`."""

    snap = False

    def __init__(self, problem: Problem, seed: int, n: int) -> None:
        self.schedule, self._denoise = problem.schedule, problem.denoise
        self._noise = np.random.default_rng(seed).standard_normal((n, *problem.shape))

    def final(self, plan: Plan) -> Array:
        *_, x = trajectory(plan, self._denoise, plan.prior_scale * self._noise)
        return x.reshape(len(x), -1)

    def reference(self, nfe: int | None) -> tuple[Array, Array]:
        """The flow from t_max to t_min, then the denoiser, which is every method's last row; and a coarser one."""
        s = self.schedule
        steps = _STEPS if nfe is None else max(2, nfe // 8 * 2)
        start, end = ((float(s.alpha(t)), float(s.sigma(t))) for t in (s.t_max, s.t_min))
        scale = float(s.alpha(s.t_end))
        ends = (
            flow_map(self._denoise, np.hypot(*start) * self._noise, start, end, k)[0] for k in (steps, steps // 4 * 2)
        )
        fine, coarse = (scale * self._denoise(x, *end).reshape(len(x), -1) for x in ends)
        return fine, coarse


def work_precision(
    problem: Problem | Model,
    solvers: Sequence[str] | Mapping[str, str | Family | Plan],
    nfes: Sequence[int] = (5, 6, 8, 10, 12, 15, 20, 30, 50),
    *,
    n: int = 64,
    seed: int = 0,
    batch: int = 64,
    reference_nfe: int | None = None,
    plot: str | Path | None = None,
) -> WorkPrecision:
    """Measure the error in x0 of solvers against a converged reference, from the same starts, in float64 states.

    The reference follows the probability-flow ODE from t_max to t_min, where a network's training ends, and then takes
    the closed-form row onto sigma = 0 that every plan takes: on a `Problem` by Kutta's rk4 written without a plan, on a
    `Model` by rk4 (ab4 where the network knows whole times only).
    problem: a `Problem` (numpy) or a `Model` (torch).
    solvers: names of `METHODS`; or label -> name, callable nfe -> Plan, or Plan (which has a point at its own nfe).
    nfes: increasing budgets. A named method has no point below its `min_nfe`.
    n: samples.  seed: of their starts.  batch: samples run at once through a network.
    reference_nfe: evaluations of the reference; None: 4000 for a Problem, 401 for a Model.
    plot: a file to draw the medians to.
    ValueError: an unknown or stochastic solver (it has no error per sample; see `wasserstein_gaussian`), a budget that
    is none, n, batch or reference_nfe too small, a Plan for another schedule.
    """
    check_path(plot)
    for key, value, least in (("n", n, 1), ("batch", batch, 1), ("reference_nfe", reference_nfe, 16)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ValueError(f"{key} = {value!r} must be a whole number from {least} up")
    nfes = budgets(nfes, 1, "work_precision", 1)
    runs = _runs(problem, seed, n, batch)
    plans = _compile(solvers, nfes, runs)
    reference, other = runs.reference(reference_nfe)
    shape = (len(plans), len(nfes))
    table = {name: np.full(shape, np.nan) for name in MEASURES}
    for k, row in enumerate(plans.values()):
        for nfe, plan in row.items():
            for name, error in _errors(runs, plan, reference).items():
                table[name][k, nfes.index(nfe)] = error
    gap = float(np.median(np.sqrt(np.mean((reference - other) ** 2, axis=1))))
    made = WorkPrecision(tuple(plans), nfes, reference_error=gap, **table)
    if plot is not None:
        made.plot(plot)
    return made


def _runs(problem: object, seed: int, n: int, batch: int) -> Runs:
    if isinstance(problem, Problem):
        return _ExactRuns(problem, seed, n)
    from .networks import NetworkRuns

    return NetworkRuns(problem, seed, n, batch)


def _compile(solvers: object, nfes: tuple[int, ...], runs: Runs) -> dict[str, dict[int, Plan]]:
    """label -> nfe -> Plan, all of them before the first evaluation."""
    if isinstance(solvers, str) or not isinstance(solvers, (Mapping, Sequence)) or not solvers:
        raise ValueError(f"solvers = {solvers!r} must be a list of names, or a dict of label -> name, callable or Plan")
    named: Mapping[str, Any] = solvers if isinstance(solvers, Mapping) else {name: name for name in solvers}
    made: dict[str, dict[int, Plan]] = {}
    for label, solver in named.items():
        if isinstance(solver, Plan):
            made[label] = {n: solver for n in nfes if n == solver.nfe}
        else:
            options = {"snap": True} if runs.snap and isinstance(solver, str) else {}
            _, least, make = family(solver, runs.schedule, **options)
            made[label] = {n: make(n) for n in nfes if n >= least}
        for plan in made[label].values():
            if plan.stochastic:
                raise ValueError(f"{label} is stochastic and has no error per sample; see wasserstein_gaussian")
            if plan.schedule and plan.schedule != runs.schedule.fingerprint:
                raise ValueError(f"{label} is a plan for schedule {dict(plan.schedule)}, not for the problem's")
    return made


def _errors(runs: Runs, plan: Plan, reference: Array) -> dict[str, float]:
    with np.errstate(over="ignore", invalid="ignore"):
        try:
            error = np.sqrt(np.mean((runs.final(plan) - reference) ** 2, axis=1))
        except FloatingPointError:  # the sampler's word for a plan that diverged
            error = np.array([np.inf])
        error = np.where(np.isfinite(error), error, np.inf)
        p95 = np.inf if np.isinf(error).any() else np.percentile(error, 95)
        return {"median": float(np.median(error)), "rmse": float(np.sqrt(np.mean(error**2))), "p95": float(p95)}
