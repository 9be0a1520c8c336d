"""`odediff plan`: a solver's table, without a network and without torch."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .. import methods
from .. import schedule as schedules
from .options import Commands, add_command, add_plan_options, given

SCHEDULES = ("linear", "scaled_linear", "cosine", "sigmoid", "edm", "flow")

_DESCRIPTION = """\
Compile a solver on a noise schedule and print its table. One row is one
evaluation of the network:
  x[i+1] = a[i] x[i] + sum_j b[i,j] d[i-j] + c[i] z[i]"""

_EPILOG = """\
examples:
  odediff plan rk4 --nfe 20
  odediff plan unipc_3 --nfe 8 --schedule cosine --grid logsnr
  odediff plan ddim --nfe 50 --eta 1 --model mnist
  odediff plan dpmpp_2m --nfe 10 --json plan.json"""


def add(commands: Commands) -> None:
    parser = add_command(
        commands, "plan", run, help="print a solver as a table", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.add_argument("solver", metavar="SOLVER", help="a solver's name; `odediff info` lists them")
    parser.add_argument("--nfe", type=int, default=20, metavar="N", help="evaluations of the network (default: 20)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--schedule", choices=SCHEDULES, default="linear", help="noise schedule (default: linear, DDPM's)"
    )
    where.add_argument("--model", metavar="MODEL", help="the schedule of this model: a bundled name or a folder")
    add_plan_options(parser)
    parser.add_argument(
        "--json", metavar="FILE", help="write the plan there too, without losing a bit; - prints only that"
    )


def run(args: argparse.Namespace) -> None:
    schedule, snap = _schedule(args)
    plan = methods.plan(args.solver, schedule, args.nfe, snap=snap, **given(args, "grid", "eta", "variance"))
    if args.json == "-":
        print(plan.to_json())
        return
    if args.json:
        Path(args.json).write_text(plan.to_json() + "\n")
    print(plan)
    if args.json:
        print(f"written to {args.json}", file=sys.stderr)


def _schedule(args: argparse.Namespace) -> tuple[schedules.Schedule, bool]:
    """The schedule, and whether its network knows whole times only."""
    if args.model is None:
        return getattr(schedules, args.schedule)(), False
    from ..model import load

    model = load(args.model)
    return model.schedule, model.integer_times
