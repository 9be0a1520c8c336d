"""The methods: name -> function in its paper's notation, and `plan`, which compiles one into a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..grids import times
from ..plans import Plan
from ..schedule import Array, Schedule
from ..spaces import SPACES
from ..trace import Point, lower, probe
from . import multistep, stochastic
from . import tableaus as rk
from .bibliography import BIBTEX
from .frame import FRAMES, VARIABLES, Grid, point


@dataclass(frozen=True)
class Method:
    """A fixed-step sampler and what is known of it.

    run: `run(f, x, grid, **args)`, the method in its paper's notation, on arrays or on basis vectors.
    order: of convergence on smooth problems, once the warm-up rows are as accurate as the rest.
    stages: evaluations of a full step.  min_nfe: the smallest budget with one full-order step.
    frames: the (space, variable) pairs it may run in, the default first; where alpha(t_max) = 0 makes that singular,
    the next. grid: default time grid.  args: options of `run`.  source: key in `BIBTEX`; where: equation or section.
    """

    run: Callable[..., Array]
    order: int
    source: str
    where: str
    frames: tuple[tuple[str, str], ...]
    grid: str
    stages: int = 1
    min_nfe: int = 1
    args: Mapping[str, Any] = field(default_factory=dict)
    stochastic: bool = False

    def layout(self, nfe: int) -> list[int]:
        """Evaluations of each step; they sum to nfe."""
        return [1] * nfe if self.stages == 1 else rk.layout(self.stages, nfe)


_ANY = tuple((space, variable) for space in FRAMES for variable in VARIABLES)
_NATURAL = {"eps": "rho", "x0": "lam", "flow": "tau", "v": "phi"}


def _runge_kutta(tableau: rk.Tableau, order: int, source: str, where: str, grid: str) -> Method:
    run = partial(rk.runge_kutta, tableau=tableau)
    frames = tuple((space, _NATURAL[space]) for space in ("flow", "eps", "x0"))
    return Method(run, order, source, where, frames, grid, stages=len(tableau.b), min_nfe=len(tableau.b) + 1)


def _adams(order: int, space: str, variable: str, grid: str) -> Method:
    run = partial(multistep.adams_bashforth, order=order)
    frames = ((space, variable), *(pair for pair in _ANY if pair != (space, variable)))
    return Method(run, order, "hairer1993", "III.5, variable steps", frames, grid, min_nfe=order + 1)


_EULER = tuple((space, _NATURAL[space]) for space in ("x0", "eps", "v", "flow"))
_X0 = (("x0", "lam"),)

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "euler": Method(multistep.euler, 1, "song2021a", "eq. 12, 14", _EULER, "quadratic"),
        "ddim": Method(
            stochastic.ddim, 1, "song2021a", "eq. 12, 16", _X0, "quadratic", args={"eta": 0.0}, stochastic=True
        ),
        "ddpm": Method(
            stochastic.ddpm,
            1,
            "ho2020",
            "eq. 7, Algorithm 2",
            _X0,
            "uniform",
            args={"variance": "fixed_small"},
            stochastic=True,
        ),
        "heun": _runge_kutta(rk.HEUN, 2, "karras2022", "Algorithm 1 in (eps, rho)", "quadratic"),
        "midpoint": _runge_kutta(rk.MIDPOINT, 2, "hairer1993", "II.1, eq. 1.3", "quadratic"),
        "rk3": _runge_kutta(rk.RK3, 3, "kutta1901", "Hairer et al. 1993, II.1", "quadratic"),
        "rk4": _runge_kutta(rk.RK4, 4, "kutta1901", "Hairer et al. 1993, Table II.1.2", "quadratic"),
        "rk4_38": _runge_kutta(rk.RK4_38, 4, "kutta1901", "Hairer et al. 1993, Table II.1.2", "quadratic"),
        "ab2": _adams(2, "flow", "tau", "quadratic"),
        "ab3": _adams(3, "flow", "t", "quadratic"),
        "ab4": _adams(4, "flow", "t", "quadratic"),
        "ipndm": Method(multistep.ipndm, 2, "zhang2023", "iPNDM", (("eps", "rho"),), "quadratic", min_nfe=5),
        "dpmpp_2m": Method(partial(multistep.dpmpp, order=2), 2, "lu2022b", "Algorithm 2", _X0, "quadratic", min_nfe=3),
        "dpmpp_3m": Method(
            partial(multistep.dpmpp, order=3), 2, "lu2022b", "authors' code", _X0, "quadratic", min_nfe=4
        ),
        "unipc_2": Method(
            partial(multistep.unipc, order=2), 3, "zhao2023", "B_2(h), data", _X0, "quadratic", min_nfe=3
        ),
        "unipc_3": Method(
            partial(multistep.unipc, order=3), 4, "zhao2023", "B_2(h), data", _X0, "quadratic", min_nfe=4
        ),
    }
)


def plan(
    name: str,
    schedule: Schedule,
    nfe: int = 20,
    grid: str | ArrayLike | None = None,
    *,
    space: str | None = None,
    variable: str | None = None,
    snap: bool = False,
    **args: Any,
) -> Plan:
    """Compile a method on a schedule and a grid into a table of exactly `nfe` rows.

    name: a key of `METHODS`.  nfe: evaluations of the network, at least the method's `min_nfe`.
    grid: "uniform", "quadratic", "logsnr", "karras", or the times where steps start; None: the schedule's own ("karras"
        on EDM's), or else the method's default.
    space, variable: run in another frame than the default one (see `Method.frames`).
    snap: round the grid to integer times first, for networks that know no others.
    args: the method's own options: `eta` (ddim), `variance` (ddpm).
    ValueError: an unknown name, option, frame or grid; a budget that the method cannot meet, naming the nearest that
    it can; a space that is singular at the start (alpha = 0); a grid that does not fit.
    """
    method = _known(name)
    if not isinstance(schedule, Schedule):
        raise ValueError(f"schedule must be an odediff.schedule.Schedule such as schedule.linear(), got {schedule!r}")
    full, nfe = _options(name, method, args), _budget(name, method, nfe)
    layout = method.layout(nfe)
    grid = schedule.grid or method.grid if grid is None else grid
    t = times(schedule, grid, layout, snap=snap)
    points = (*(point(schedule, float(value)) for value in t), Point(schedule.t_end, *_end(schedule)))
    frame = _frame(name, method, space, variable, points[0])
    states, visited = probe(
        lambda f, x: method.run(f, x, Grid(schedule, *frame, points, tuple(layout)), **full),
        nfe,
    )
    fed = np.array([p.t for p in visited])
    if snap and np.any(fed != np.rint(fed)):
        raise ValueError(
            f"{name} evaluates between the grid's times, at t = {fed[fed != np.rint(fed)][0]:.3f}; "
            "snap needs heun or a multistep method"
        )
    a, b, c = lower(states)
    ends = [*visited, points[-1]]
    return Plan(
        space=frame[0],
        t=fed,
        alpha=np.array([p.alpha for p in ends]),
        sigma=np.array([p.sigma for p in ends]),
        a=a,
        b=b,
        c=c,
        overdispersed=full.get("variance") == "fixed_large",
        method=name,
        args={"grid": grid if isinstance(grid, str) else "explicit", "variable": frame[1], "snap": snap, **full},
        schedule=schedule.fingerprint,
    )


def cite(of: Plan | str) -> str:
    """BibTeX of the paper that a plan's or a named method comes from. ValueError: a plan without a known method."""
    return BIBTEX[_known(of.method if isinstance(of, Plan) else of).source]


def _known(name: str) -> Method:
    if name not in METHODS:
        raise ValueError(f"unknown solver {name!r}; choose {', '.join(METHODS)}")
    return METHODS[name]


def _options(name: str, method: Method, args: dict[str, Any]) -> dict[str, Any]:
    """The method's options with those given, numpy scalars as plain numbers so that a plan can be written as JSON."""
    unknown = sorted(set(args) - set(method.args))
    if unknown:
        raise ValueError(f"{name} has no option {unknown[0]!r}; it takes {sorted(method.args) or 'none'}")
    given = {key: value.item() if isinstance(value, np.generic) else value for key, value in args.items()}
    return {**method.args, **given}


def _budget(name: str, method: Method, nfe: int) -> int:
    if isinstance(nfe, bool) or not isinstance(nfe, (int, np.integer)) or nfe < method.min_nfe:
        raise ValueError(
            f"{name} cannot meet nfe={nfe!r}: it takes any whole number from {method.min_nfe} up "
            f"(nearest: {method.min_nfe}); ddim takes any from 1"
        )
    return int(nfe)


def _end(schedule: Schedule) -> tuple[float, float]:
    return float(schedule.alpha(schedule.t_end)), 0.0


def _frame(name: str, method: Method, space: str | None, variable: str | None, start: Point) -> tuple[str, str]:
    if space is not None and space not in SPACES:
        raise ValueError(f"unknown space {space!r}; choose {', '.join(SPACES)}")
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
