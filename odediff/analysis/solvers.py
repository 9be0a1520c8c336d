"""A solver as a family of plans, one for each budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import schedule as schedules
from ..choices import unknown
from ..methods import METHODS, plan
from ..plans import Plan
from ..schedule import Schedule

Family = Callable[[int], Plan]


def family(solver: str | Family, schedule: Schedule, **options: Any) -> tuple[str, int, Family]:
    """A solver's name, its smallest budget, and its plan for a budget on a schedule.

    solver: a name of `METHODS`, whose `plan` takes the options, or a callable nfe -> Plan, which brings all of its own.
    ValueError: an unknown name, no solver, options for a callable; later a plan that has not the rows asked for.
    """
    if isinstance(solver, str):
        if solver not in METHODS:
            raise unknown("solver", solver, METHODS, ", or pass a callable nfe -> Plan")
        return solver, METHODS[solver].min_nfe, lambda nfe: plan(solver, schedule, nfe, **options)
    if not callable(solver):
        raise ValueError(f"a solver is a name of METHODS or a callable nfe -> Plan, got {solver!r}")
    if options:
        raise ValueError(f"a callable nfe -> Plan takes no {sorted(options)[0]!r}; let it compile its plans with that")
    name = getattr(solver, "__name__", type(solver).__name__)

    def make(nfe: int) -> Plan:
        made = solver(nfe)
        if not isinstance(made, Plan) or made.nfe != nfe:
            got = f"{made.nfe} rows" if isinstance(made, Plan) else repr(made)
            raise ValueError(f"{name}({nfe}) returned {got}; expected a Plan of {nfe} rows")
        return made

    return name, 1, make


def recipe(made: Plan) -> tuple[str, Schedule | None, dict[str, Any]]:
    """How a plan was compiled, apart from its budget: method, schedule (None: known by hash), options.

    ValueError: a plan whose times are its own, or without a known method.
    """
    args = dict(made.args)
    if made.method not in METHODS or args.get("grid", "explicit") == "explicit":
        raise ValueError(
            "the plan cannot be compiled for other budgets: its method is not one of METHODS, or its times are its "
            "own; pass a callable nfe -> Plan"
        )
    args.pop("lowered", None)
    try:
        schedule = schedules.from_identity(made.schedule)
    except ValueError:
        schedule = None
    return made.method, schedule, {"space": made.space, **args}


def need_plan(plan: object) -> None:
    """ValueError: no `Plan`."""
    if not isinstance(plan, Plan):
        raise ValueError(f"expected a Plan, got {plan!r}; odediff.plan(name, schedule, nfe) makes one")


def budgets(nfes: object, least: int, name: str, fewest: int) -> tuple[int, ...]:
    """nfes as ints. ValueError: fewer than `fewest`, not strictly increasing, or below `least`."""
    try:
        given = tuple(int(n) for n in nfes)  # type: ignore[attr-defined]
        whole = given == tuple(nfes)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        given, whole = (), False
    if not whole or len(given) < fewest or any(b <= a for a, b in zip(given, given[1:], strict=False)):
        raise ValueError(f"nfes = {nfes!r} must be at least {fewest} increasing whole numbers, such as (25, 49, 97)")
    if given[0] < least:
        raise ValueError(f"{name} cannot meet nfe={given[0]}: the smallest budget here is {least}")
    return given
