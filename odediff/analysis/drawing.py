"""A plan as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..plans import Plan
from .checks import LIMIT, amplification
from .plotting import PALETTE, check_path, figure, legend, over_rows, save, style
from .solvers import need_plan


def draw(plan: Plan, path: str | Path) -> None:
    """Draw a plan's times, row weights and amplification of rounding over its rows.

    path: a file whose suffix names the format.  ValueError: no such folder or format.
    ModuleNotFoundError: no matplotlib.
    """
    check_path(path)
    need_plan(plan)
    canvas, (times, weights, rounding) = figure(3)
    times.plot(plan.t, **style(0))
    over_rows(times, "time t that the network is fed", log=False)
    columns = {"a": plan.a, **{f"b{j}": plan.b[:, j] for j in range(plan.depth)}}
    if plan.stochastic:
        columns["c"] = plan.c
    for k, (name, values) in enumerate(columns.items()):
        weights.plot(np.where(values == 0, np.nan, values), label=name, **style(k))
    if max(np.abs(values).max() for values in columns.values()) > LIMIT:
        weights.set_yscale("symlog", linthresh=1.0)
    over_rows(weights, "weights of the row", log=False)
    legend(weights)
    factors = amplification(plan)
    rounding.plot(factors, **style(0))
    if factors.max() > LIMIT / 10:
        rounding.axhline(LIMIT, color=PALETTE[1], linewidth=1.0, linestyle="--", label=f"{LIMIT:g}, the limit")
        legend(rounding)
    over_rows(rounding, "amplification of rounding", log=True)
    canvas.suptitle(f"{plan.method or 'plan'}: {plan.nfe} evaluations, {plan.space} space")
    save(canvas, path)
