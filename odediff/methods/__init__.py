"""The methods: name -> function in its paper's notation, and `plan`, which compiles one into a table."""

from __future__ import annotations

import warnings
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import ArrayLike

from ..choices import unknown
from ..grids import times
from ..plans import Plan
from ..schedule import Array, Schedule
from ..spaces import SPACES
from ..trace import Point, lower, probe
from .bibliography import BIBTEX
from .frame import LIMIT, VARIABLES, Grid, point
from .options import check_names, checked
from .registry import METHODS, Method
from .rule import default

__all__ = ["METHODS", "Method", "PrecisionWarning", "cite", "plan"]

REFUSED = 2.0**17  # amplification of a row: of float32's 24 bits 7 are left, an error of one percent


class PrecisionWarning(UserWarning):
    """Rows of a plan lose float32, or would have and are of lower order: see `Plan.amplification`."""


def plan(
    name: str | None,
    schedule: Schedule,
    nfe: int = 20,
    grid: str | ArrayLike | None = None,
    *,
    space: str | None = None,
    variable: str | None = None,
    snap: bool = False,
    end: float | None = None,
    **args: Any,
) -> Plan:
    """Compile a method on a schedule and a grid into a table of exactly `nfe` rows.

    name: a key of `METHODS`; None: the default for this budget, measured in docs/solvers.md.
    nfe: evaluations of the network, at least the method's `min_nfe`.
    grid: "uniform", "quadratic", "power:P", "power:P:S", "logsnr", "karras", "asinh" (formulae: `odediff.grids`), or
        the times where steps start; None: the schedule's own ("karras" on EDM's), or else the method's default.
    space, variable: run in another frame than the default one (see `Method.frames`).
    snap: round the grid to integer times first, for networks that know no others.
    end: the time of the final state where that is not sigma = 0, below the last of an explicit grid; no closed-form row
        then, every step is the method's own.
    args: the method's own options, such as `eta` of ddim; `METHODS[name].args` has them with their defaults.
    ValueError: an unknown name, option, frame or grid; a budget that the method cannot meet, naming the nearest that
    it can; a space that is singular at the start (alpha = 0); a grid that does not fit; rows that float32 cannot carry.
    PrecisionWarning: rows lose float32 (`Plan.amplification` above 2^10), or an Adams method lowered its order where
    its weights would have; the times are in the plan's `args["lowered"]`.
    """
    if not isinstance(schedule, Schedule):
        raise ValueError(f"schedule must be an odediff.schedule.Schedule such as schedule.linear(), got {schedule!r}")
    if not isinstance(nfe, (int, np.integer)):
        raise ValueError(f"nfe={nfe!r} must be a whole number of evaluations, such as 20")
    if name is None:
        framed = {"space": space, "variable": variable}
        check_names(None, (), [*args, *(key for key, value in framed.items() if value is not None)])
        _, name, space, variable, best = default(nfe)
        grid = best if grid is None and schedule.grid is None else grid
    method = _known(name, "; torchdiffeq's, such as dopri5, have no table: see odediff.solve")
    closing = end is None or (_is_number(end) and bool(end == schedule.t_end))
    full = checked(name, method, args)
    nfe = _budget(name, method.min_nfe if closing else max(1, method.min_nfe - 1), nfe)
    layout = method.layout(nfe, closing)
    grid = schedule.grid or method.grid if grid is None else grid
    t = times(schedule, grid, layout, snap=snap)
    points = (*(point(schedule, float(value)) for value in t), _end(schedule, grid, t, None if closing else end))
    frame = _frame(name, method, space, variable, points[0])
    compiled = Grid(schedule, *frame, points, tuple(layout))
    said = {
        "grid": grid if isinstance(grid, str) else "explicit",
        "variable": frame[1],
        "snap": bool(snap),
        **({} if closing else {"end": float(points[-1].t)}),
    }
    made = _compile(name, method, compiled, full, said)
    _check_amplification(name, made)
    return made


def _compile(name: str, method: Method, grid: Grid, options: dict[str, Any], said: dict[str, Any]) -> Plan:
    """Run the method on basis vectors and lower its states to rows. said: what the plan's `args` hold besides options.

    ValueError: a snapped grid, and evaluations between its times.
    """
    states, visited = probe(lambda f, x: method.run(f, x, grid, **options), sum(grid.evaluations))
    fed = np.array([p.t for p in visited])
    between = fed[fed != np.rint(fed)]
    if said["snap"] and len(between):
        raise ValueError(
            f"{name} evaluates between the grid's times, at t = {between[0]:.3f}; snap needs heun or a multistep method"
        )
    a, b, c = lower(states)
    ends = [*visited, grid.points[-1]]
    lowered = sorted(set(grid.lowered), reverse=True)
    return Plan(
        space=grid.space,
        t=fed,
        alpha=np.array([p.alpha for p in ends]),
        sigma=np.array([p.sigma for p in ends]),
        a=a,
        b=b,
        c=c,
        overdispersed=method.overdispersed(options),
        method=name,
        args={**said, **({"lowered": lowered} if lowered else {}), **options},
        schedule=grid.schedule.fingerprint,
    )


def cite(of: Plan | str) -> str:
    """BibTeX of the paper that a plan's or a named method comes from. ValueError: a plan without a known method."""
    if isinstance(of, Plan) and of.method not in METHODS:
        raise ValueError(f"the plan names no method of METHODS but {of.method!r}, so its paper is not known")
    return BIBTEX[_known(of.method if isinstance(of, Plan) else of).source]


def _known(name: str, more: str = "") -> Method:
    if not isinstance(name, str) or name not in METHODS:
        raise unknown("solver", name, METHODS, more)
    return METHODS[name]


def _budget(name: str, least: int, nfe: int) -> int:
    if isinstance(nfe, bool) or not isinstance(nfe, (int, np.integer)) or nfe < least:
        raise ValueError(
            f"{name} cannot meet nfe={nfe!r}: it takes any whole number from {least} up (nearest: {least}); "
            "ddim takes any from 1"
        )
    return int(nfe)


def _end(schedule: Schedule, grid: Any, t: Array, end: float | None) -> Point:
    """The point of the final state."""
    if end is None:
        return Point(schedule.t_end, float(schedule.alpha(schedule.t_end)), 0.0)
    if isinstance(grid, str):
        raise ValueError(f"end = {end!r} needs an explicit grid: the grid {grid!r} runs to sigma = 0; give its times")
    if not _is_number(end) or not schedule.t_end <= end < t[-1]:
        raise ValueError(f"end = {end!r} must lie in [{schedule.t_end:g}, {t[-1]:g}), below the last time of the grid")
    return point(schedule, float(end))


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _check_amplification(name: str, made: Plan) -> None:
    """Warn of rows that lose float32 and of steps whose order was lowered; refuse rows that float32 cannot carry."""
    worst = int(np.argmax(made.amplification))
    factor = made.amplification[worst]
    said = f"{name}, row {worst} at t = {made.t[worst]:g} amplifies rounding {factor:.1e} times"
    if factor > REFUSED:
        raise ValueError(
            f"{said}, more than float32 can carry: use more evaluations, a grid with shorter steps there, another space"
        )
    if factor > LIMIT:
        warnings.warn(
            f"{said}: a float32 state keeps {24 - np.log2(factor):.0f} of its 24 bits there, and later rows may "
            "amplify that; use a method in another space, or a grid that starts where alpha is larger",
            PrecisionWarning,
            stacklevel=3,
        )
    if lowered := made.args.get("lowered"):
        where = ", ".join(f"{t:g}" for t in lowered)
        warnings.warn(
            f"{name}: lower order in the steps from t = {where}, where its weights would lose float32; "
            "more evaluations or another grid, space or variable keep the order",
            PrecisionWarning,
            stacklevel=3,
        )


def _frame(name: str, method: Method, space: str | None, variable: str | None, start: Point) -> tuple[str, str]:
    if space is not None and space not in SPACES:
        raise unknown("space", space, SPACES)
    if variable is not None and variable not in VARIABLES:
        raise unknown("variable", variable, VARIABLES)
    fits = [pair for pair in method.frames if space in (None, pair[0]) and variable in (None, pair[1])]
    if not fits:
        raise ValueError(
            f"{name} does not run in space={space!r}, variable={variable!r}; it runs in "
            + ", ".join(f"({s}, {v})" for s, v in method.frames)
        )
    regular = [pair for pair in fits if start.alpha > 0 or pair[0] != "eps"]
    if not regular:
        raise ValueError(
            f'alpha = 0 at t[0] = {start.t:g}: {name} runs in space "eps", which is singular at zero terminal SNR; '
            "use another space if it has one, a method such as dpmpp_2m, or a grid that starts where alpha > 0"
        )
    return regular[0]
