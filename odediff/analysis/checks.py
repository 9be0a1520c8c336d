"""What can be said against a plan from its table alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ..methods.rule import advice
from ..plans import Plan
from ..schedule import Array
from .growth import stability
from .plotting import check_path, figure, over_rows, save, style
from .solvers import need_plan

LIMIT = 100.0  # a row that amplifies more leaves float32 with 5 of its 7 digits
WHOLE = 2.0**14  # of a whole plan: a relative error of 1e-3 in float32


def amplification(plan: Plan, *, plot: str | Path | None = None) -> Array:
    """`Plan.amplification`, (S,): how much a row amplifies rounding. A value of A loses log10 A digits.

    plot: a file to draw it to.
    """
    check_path(plot)
    need_plan(plan)
    factors = plan.amplification
    if plot is not None:
        canvas, (axes,) = figure(1)
        axes.plot(factors, **style(0))
        over_rows(axes, "amplification of rounding", log=True)
        axes.set_title(f"{plan.method or 'plan'}, {plan.nfe} evaluations")
        save(canvas, plot)
    return factors


def rounding(plan: Plan) -> float:
    """How much a whole plan may amplify rounding: each row's amplification, times what becomes of an error made there.

        max_s sum_i amplification_i |dy_S / dy_{i+1}|    s over the scales of the data in `stability`

    A value of A leaves a float32 sample log10(2^24 / A) of its 7 digits. The growth is that of the exact network's
    Jacobian on Gaussian data; docs/analysis.md has the measured losses beside it.
    """
    growth = stability(plan).growth
    after = np.concatenate([growth[:, 1:], np.ones((len(growth), 1))], axis=1)
    return float((after @ plan.amplification).max())


def warnings(plan: Plan) -> list[str]:
    """What a user of this plan should know before running it, a sentence each; most plans get none.

    A check is a function of a plan that yields sentences; `CHECKS` holds them all.
    """
    return [said for check in CHECKS for said in check(plan)]


def _rounding(plan: Plan) -> Iterator[str]:
    factors = amplification(plan)
    rows = np.flatnonzero(factors > LIMIT)
    if len(rows):
        worst = int(factors.argmax())
        digits = max(0.0, np.log10(2.0**23 / factors[worst]))
        yield (
            f"{len(rows)} of {plan.nfe} rows amplify rounding more than {LIMIT:g} times, row {worst} "
            f"{factors[worst]:.3g} times: a float32 state keeps {digits:.1f} digits there; "
            "use more evaluations, a lower order or another grid"
        )


def _whole(plan: Plan) -> Iterator[str]:
    factor = rounding(plan)
    if factor > WHOLE:
        digits = max(0.0, np.log10(2.0**24 / factor))
        yield (
            f"rounding grows {factor:.3g} times by the end of the plan: a float32 sample may keep {digits:.1f} digits; "
            "use a method in x0, v or flow space, a lower order or another grid"
        )


def _growth(plan: Plan) -> Iterator[str]:
    found = stability(plan)
    m, i = np.unravel_index(found.growth.argmax(), found.growth.shape)
    if found.growth[m, i] > LIMIT:
        yield (
            f"unstable: on Gaussian data of std {found.scales[m]:g} an error in row {i} grows {found.growth[m, i]:.3g} "
            "times by the end; use more evaluations, a lower order or another grid"
        )


def _budget(plan: Plan) -> Iterator[str]:
    if (said := advice(plan.method, plan.nfe)) is not None:
        yield said


CHECKS: tuple[Callable[[Plan], Iterator[str]], ...] = (_rounding, _whole, _growth, _budget)
