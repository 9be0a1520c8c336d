"""`odediff plan`: a solver's table, without a network and without torch."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import analysis, methods
from .. import schedule as schedules
from ..plans import Plan
from ..stored import SOLVER
from .options import Commands, add_command, add_plan_options, certificate, open_network, plan_options, print_facts

_DATA = {"gaussian": "Gaussian data", "mixture": "a mixture"}
SCHEDULES = ("linear", "scaled_linear", "cosine", "sigmoid", "edm", "flow")

_DESCRIPTION = """\
Compile a solver on a noise schedule and print its table. One row is one
evaluation of the network:
  x[i+1] = a[i] x[i] + sum_j b[i,j] d[i-j] + c[i] z[i]
Below it: the order of convergence, the row that amplifies rounding the most,
and what is to be said against the plan."""

_EPILOG = """\
examples:
  odediff plan --nfe 8                       the default at 8 evaluations
  odediff plan rk4 --nfe 20
  odediff plan unipc_3 --nfe 8 --schedule cosine --grid logsnr
  odediff plan ab3 --nfe 10 --space eps --variable lam
  odediff plan ab2 --nfe 4 --grid 999,600,300,100 --end 20
  odediff plan unipc_3 --nfe 8 --option b=bh1 --option orders=falling
  odediff plan ddim --nfe 50 --eta 1 --model mnist
  odediff plan tuned --nfe 8 --model runs/mine/model     what `odediff tune` fitted to it
  odediff plan dpmpp_2m --nfe 10 --json plan.json --plot plan.png"""


def add(commands: Commands) -> None:
    parser = add_command(
        commands, "plan", run, help="print a solver as a table", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.add_argument(
        "solver",
        metavar="SOLVER",
        nargs="?",
        help="a solver's name, which `odediff info` lists, or tuned (default: what docs/solvers.md measured "
        "best for this --nfe)",
    )
    parser.add_argument("--nfe", type=int, default=20, metavar="N", help="evaluations of the network (default: 20)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--schedule", choices=SCHEDULES, default="linear", help="noise schedule (default: linear, DDPM's)"
    )
    where.add_argument(
        "--model",
        metavar="MODEL",
        help="the schedule of this model: a bundled name, a folder or a network's .onnx file",
    )
    parser.add_argument("--guidance", type=float, metavar="W", help="of a tuned plan, which is for one guidance")
    add_plan_options(parser)
    parser.add_argument(
        "--json", metavar="FILE", help="write the plan there too, without losing a bit; - prints only that"
    )
    parser.add_argument("--plot", metavar="FILE", help="draw the plan there (.png, .svg or .pdf)")


def run(args: argparse.Namespace) -> None:
    options = plan_options(args, args.solver)
    if args.solver == SOLVER:
        plan, schedule = _tuned(args, options)
    elif args.guidance is not None:
        raise ValueError(f"--guidance {args.guidance:g} is of a tuned plan; no other depends on it")
    else:
        schedule, snap = _schedule(args)
        plan = methods.plan(args.solver, schedule, args.nfe, **{"snap": snap, **options})
    if args.plot:
        analysis.draw(plan, args.plot)
    if args.json == "-":
        print(plan.to_json())
        return
    if args.json:
        Path(args.json).write_text(plan.to_json() + "\n")
    print(plan)
    print()
    if args.solver in (None, SOLVER) and plan.method != SOLVER:
        options = {"grid": plan.args["grid"], **options, "space": plan.space, "variable": plan.args["variable"]}
    print_facts(_verdict(plan, schedule, options))
    for file in filter(None, (args.json, args.plot)):
        print(f"written to {file}", file=sys.stderr)


def _verdict(plan: Plan, schedule: schedules.Schedule, options: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What the table is worth: its order or its certificate, its rounding, and the warnings."""
    if plan.method == SOLVER:
        yield "certificate", certificate(plan)
    else:
        yield "order", _order(plan, schedule, options)
    factors = analysis.amplification(plan)
    yield "amplification", f"{factors.max():.3g} in row {factors.argmax()}, the largest"
    yield from (("warning", said) for said in analysis.warnings(plan))


def _order(plan: Plan, schedule: schedules.Schedule, options: dict[str, Any]) -> str:
    """The order of the method, and of the plan."""
    method = methods.METHODS[plan.method]
    order = f"{method.order}"
    if any(plan.args[key] != value for key, value in method.args.items()):
        order += " with its default options"
    if not isinstance(options.get("grid", ""), str):
        return f"{order}; not observed: the times of --grid are for one budget"
    return f"{order}; {_observed(plan, schedule, options)}"


def _observed(plan: Plan, schedule: schedules.Schedule, options: dict[str, Any]) -> str:
    """The order of convergence at other budgets, in words."""
    try:
        with warnings.catch_warnings():  # the asked plan's own are shown; not those of four more budgets
            warnings.simplefilter("ignore", methods.PrecisionWarning)
            observed = analysis.observed_order(plan.method, schedule, **options).order
    except ValueError as error:  # what is made for one budget, such as orders row by row, or float32 at another
        return f"not observed at other budgets: {' '.join(str(error).split())}"
    seen = ", ".join(f"{slope:.2f} on {_DATA[key]}" for key, slope in observed.items())
    return f"observed, start-up rows included: {seen}"


def _schedule(args: argparse.Namespace) -> tuple[schedules.Schedule, bool]:
    """The schedule, and whether its network knows whole times only."""
    if args.model is None:
        return getattr(schedules, args.schedule)(), False
    model = open_network(args.model, "cpu")
    return model.schedule, model.integer_times


def _tuned(args: argparse.Namespace, options: dict[str, Any]) -> tuple[Plan, schedules.Schedule]:
    """The plan that was fitted to a model, and its schedule. ValueError: no model, or options that shape a plan."""
    if args.model is None:
        raise ValueError("a tuned plan is a model's own: name it with --model")
    if options:
        raise ValueError(f"a tuned plan takes no {next(iter(options))!r}; leave it away")
    from ..stored import stored_plan

    model = open_network(args.model, "cpu")
    return stored_plan(model, args.nfe, args.guidance), model.schedule
