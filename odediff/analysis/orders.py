"""Order of convergence, measured in float64 on two problems whose flow is known.

error(n) = RMS of x - x_exact over fixed starts, in the last state that still holds noise;    order: its slope
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import schedule as schedules
from ..methods import METHODS
from ..plans import Plan
from ..schedule import Array, Schedule
from .moments import gaussian_moments
from .plotting import check_path, figure, legend, save, style
from .problems import Denoiser, Scales, flow_map, gaussian, gaussian_flow, mixture, trajectory
from .solvers import Family, budgets, family, recipe

NFES = (25, 49, 97, 193)  # less the closed-form last row whole steps of 1, 2, 3 and 4 evaluations
_MEAN, _STD = 0.4, np.array([0.3, 0.9])  # two directions: the error of one alone may pass through 0
_CENTRES = np.array([[1.0, 0.5], [-0.8, 0.3], [0.1, -1.2]])
_STARTS = np.array([[-1.5, 0.4], [0.9, 1.3], [0.2, -0.6]])  # in units of the first state
_ENDS = (1.5, -0.9)  # log rho between which `warm_up` measures
_ROUNDING = 1e-12  # an error below is not the method's


@dataclass(frozen=True, eq=False)
class ObservedOrder:
    """Errors of a solver per budget, and the slopes between them.

    method: its name.  nfes: (N,), rows of the plans.  counted: (N,), evaluations whose number the error is a power of.
    errors: problem -> (N,), "gaussian" and, for deterministic solvers, "mixture".
    """

    method: str
    nfes: tuple[int, ...]
    counted: tuple[int, ...]
    errors: Mapping[str, Array]

    @property
    def slopes(self) -> dict[str, Array]:
        """problem -> (N-1,), log(e_k / e_{k+1}) / log(n_{k+1} / n_k); nan where an error is rounding."""
        steps = np.diff(np.log(self.counted))
        logs = {key: np.log(np.where(e > _ROUNDING, e, np.nan)) for key, e in self.errors.items()}
        return {key: -np.diff(log) / steps for key, log in logs.items()}

    @property
    def order(self) -> dict[str, float]:
        """problem -> the slope between the two largest budgets that have one; nan if none has."""
        found = {key: slopes[np.isfinite(slopes)] for key, slopes in self.slopes.items()}
        return {key: float(slopes[-1]) if len(slopes) else float("nan") for key, slopes in found.items()}

    def __str__(self) -> str:
        slopes = self.slopes
        lines = [f"{self.method}: observed order " + ", ".join(f"{o:.2f} ({key})" for key, o in self.order.items())]
        lines.append(f"{'nfe':>5}" + "".join(f"{key:>14}{'slope':>8}" for key in self.errors))
        for k, nfe in enumerate(self.nfes):
            cells = (
                f"{e[k]:>14.3e}" + (f"{slopes[key][k - 1]:>8.2f}" if k else " " * 8) for key, e in self.errors.items()
            )
            lines.append((f"{nfe:>5}" + "".join(cells)).rstrip())
        return "\n".join(lines)

    def plot(self, path: str | Path) -> None:
        """Draw the errors over the evaluations, log-log, each with the line of its observed order."""
        check_path(path)
        canvas, (axes,) = figure(1)
        n = np.array(self.counted)
        for k, (key, e) in enumerate(self.errors.items()):
            axes.loglog(n, e, label=f"{key}, order {self.order[key]:.2f}", **style(k))
        axes.set(xlabel="evaluations", ylabel="RMS error of the state", title=self.method)
        axes.set_xticks(n, [str(value) for value in n])
        axes.minorticks_off()
        legend(axes)
        save(canvas, path)


def observed_order(
    method: str | Family | Plan,
    schedule: Schedule | None = None,
    nfes: Sequence[int] = NFES,
    *,
    warm_up: bool = False,
    plot: str | Path | None = None,
    **options: Any,
) -> ObservedOrder:
    """Measure a solver's order of convergence on Gaussian data and on a mixture of three, with their exact scores.

    The error is that of the last state before the closed-form row onto sigma = 0, against the flow's state at the same
    noise: that row's own error depends on where a grid ends, not on the method. What is measured is what a user runs:
    the method's own grid, with the lower order of a multistep method's first rows, which limits it to order 2.
    Stochastic solvers are measured on Gaussian data only, by their weak error, the 2-Wasserstein distance.
    method: a name of `METHODS`, a callable nfe -> Plan, or a Plan, which stands for its method with its options at
        other budgets.  schedule: None is a plan's own, or else flow(t_max=0.99), without kinks and with alpha > 0 for
        every space.
    nfes: increasing budgets, from 3; the observed order is the last slope. Where nfe - 1 is no whole number of steps a
        Runge-Kutta method has one of lower order.
    warm_up: measure the rows of full order alone: steps even in lam between two fixed noise levels, the first of which
        a multistep method spends on steps that double from tiny to full size, beyond nfe and not counted.
    plot: a file to draw it to.  options: of `odediff.plan`, such as grid, space, variable, eta.
    ValueError: nfes that do not increase or are too small, warm_up with a callable, a grid or a stochastic solver; a
    plan with times of its own, or with options beside it; and see `odediff.plan`.
    """
    check_path(plot)
    if isinstance(method, Plan):
        if options:
            raise ValueError(f"a Plan brings its options: leave {sorted(options)[0]!r} out, or name its method")
        method, own, options = recipe(method)
        if schedule is None and own is None:
            raise ValueError("the plan knows its schedule by a hash alone: pass schedule=")
        schedule = own if schedule is None else schedule
    schedule = schedules.flow(t_max=0.99) if schedule is None else schedule
    name, least, make = family(method, schedule, **options)
    if warm_up and (not isinstance(method, str) or "grid" in options):
        raise ValueError("warm_up=True lays out the grid itself; it takes a method's name and no grid")
    nfes = budgets(nfes, max(least, 3), name, 2)
    if warm_up:
        plans, counted = zip(*(_warmed(name, schedule, n, options) for n in nfes), strict=True)
    else:
        plans = tuple(make(n) for n in nfes)
        counted = tuple(n - (p.sigma[-1] == 0) for n, p in zip(nfes, plans, strict=True))
    stochastic = any(p.stochastic for p in plans)
    if stochastic and warm_up:
        raise ValueError(f"{name} is stochastic and starts in the prior, not at a fixed noise level; leave warm_up out")
    errors = {"gaussian": np.array([_gaussian_error(p) for p in plans])}
    if not stochastic:
        errors["mixture"] = _mixture_errors(plans)
    made = ObservedOrder(name, tuple(p.nfe for p in plans), tuple(int(n) for n in counted), errors)
    if plot is not None:
        made.plot(plot)
    return made


def _warmed(name: str, schedule: Schedule, nfe: int, options: dict[str, Any]) -> tuple[Plan, int]:
    """A plan whose warm-up is as accurate as the rest, and the evaluations of its full steps."""
    method = METHODS[name]
    steps = max(1, (nfe - 1) // method.stages)
    spent = np.linspace(0, 1, steps + 1)
    if method.stages == 1 and method.order > 1:
        doublings = int(np.ceil((method.order - 1) / 2 * np.log2(steps))) + 6
        spent = np.concatenate([[0], spent[1] * 2.0 ** np.arange(-doublings, 0), spent[1:]])
    t = schedule.t_of_lam(-(_ENDS[0] + spent * (_ENDS[1] - _ENDS[0])))
    _, _, make = family(name, schedule, grid=t, **options)
    return make((len(t) - 1) * method.stages + 1), steps * method.stages


def _last(plan: Plan) -> int:
    """Index of the last state that holds noise."""
    return plan.nfe - int(plan.sigma[-1] == 0)


def _ends(plan: Plan) -> tuple[Scales, Scales]:
    k = _last(plan)
    return (float(plan.alpha[0]), float(plan.sigma[0])), (float(plan.alpha[k]), float(plan.sigma[k]))


def _rms(gap: Array) -> float:
    return float(np.sqrt(np.mean(gap**2)))


def _run(plan: Plan, denoise: Denoiser, x: Array) -> Array:
    return list(trajectory(plan, denoise, x))[_last(plan)]


def _gaussian_error(plan: Plan) -> float:
    start, end = _ends(plan)
    if plan.stochastic:
        means, variances = gaussian_moments(plan, _MEAN, _STD**2)
        k = _last(plan)
        gap = [means[k] - end[0] * _MEAN, np.sqrt(variances[k]) - np.hypot(end[0] * _STD, end[1])]
        return float(np.linalg.norm(gap))
    x = plan.prior_scale * _STARTS
    return _rms(_run(plan, gaussian(_MEAN, _STD), x) - gaussian_flow(x, start, end, _MEAN, _STD))


def _mixture_errors(plans: Sequence[Plan]) -> Array:
    denoise, known, errors = mixture(_CENTRES, 0.5), dict[tuple[Scales, Scales], Array](), []
    for plan in plans:
        x, ends = plan.prior_scale * _STARTS, _ends(plan)
        if ends not in known:
            known[ends] = flow_map(denoise, x, *ends)[0]
        errors.append(_rms(_run(plan, denoise, x) - known[ends]))
    return np.array(errors)
