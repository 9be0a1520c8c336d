"""`odediff sample`: draw images with a model and show them as one picture."""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..methods import METHODS
from ..methods import plan as compile_plan
from ..methods.rule import advice
from ..onnx import OnnxModel, OnnxSampler
from ..stored import SOLVER
from .options import (
    Commands,
    add_command,
    add_limits,
    add_plan_options,
    given,
    number_list,
    open_model,
    plan_options,
    print_facts,
)

if TYPE_CHECKING:
    from ..model import Model
    from ..plans import Plan

_DESCRIPTION = """\
Draw images with a model and write them as one picture. Solvers are the names
that `odediff info` lists, and torchdiffeq's adaptive ones: dopri5, dopri8,
bosh3, fehlberg2, adaptive_heun; or tuned: the plan that `odediff tune` fitted
to the model at this --nfe and --guidance."""

_EPILOG = """\
examples:
  odediff sample                                     64 digits, 20 evaluations
  odediff sample mnist --solver unipc_3 --nfe 8 --n 16
  odediff sample --solver ddim --nfe 50 --eta 1      stochastic
  odediff sample --solver heun_churn --nfe 31 --option s_churn=10 --option s_tmax=None
  odediff sample --seed 3,5,8 --out three.png        the images of these seeds
  odediff sample --solver dopri5 --rtol 1e-3 --atol 1e-3 --max-nfe 200
  odediff sample runs/mine/model --out mine.png
  odediff sample runs/mine/model --solver tuned --nfe 8
  odediff sample runs/digits/model --label 0-9 --guidance 2 --n 60"""


def add(commands: Commands) -> None:
    parser = add_command(
        commands, "sample", run, help="draw images with a model", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        default="mnist",
        help="a bundled model's name, a folder, or what `odediff export` wrote, .onnx (default: mnist)",
    )
    parser.add_argument(
        "--solver", metavar="NAME", help="how to integrate (default: what docs/solvers.md measured best for this --nfe)"
    )
    parser.add_argument("--plan", metavar="FILE", help="this plan, JSON, in place of a --solver")
    parser.add_argument(
        "--nfe",
        type=int,
        metavar="N",
        help="evaluations of the network, exactly (default: 20); not for adaptive solvers",
    )
    parser.add_argument("--n", type=int, metavar="N", help="how many images (default: 64, or one for each seed)")
    parser.add_argument(
        "--seed",
        type=_seeds,
        default=0,
        metavar="N",
        help="one for all images (default: 0), or one for each, as 0-63 or 3,5,8: the same seeds draw the same images",
    )
    parser.add_argument("--out", default="samples.png", metavar="FILE", help="the picture (default: samples.png)")
    add_plan_options(parser)
    add_limits(parser)
    parser.add_argument(
        "--label",
        type=number_list,
        metavar="K",
        help="class-conditional models: 3, 0,1,2 or 0-9, in turn, a column each",
    )
    parser.add_argument(
        "--guidance", type=float, metavar="W", help="towards the label: 1 conditional (default), more overstates it"
    )
    parser.add_argument("--rtol", type=float, metavar="X", help="adaptive solvers: relative tolerance")
    parser.add_argument("--atol", type=float, metavar="X", help="adaptive solvers: absolute tolerance")
    parser.add_argument("--max-nfe", type=int, metavar="N", help="adaptive solvers: give up after so many evaluations")
    parser.add_argument("--device", metavar="NAME", help="such as cpu or cuda (default: a GPU if there is one)")


def run(args: argparse.Namespace) -> None:
    if args.n is not None and args.n < 1:
        raise ValueError(f"--n must be 1 or more, got {args.n}")
    from ..adaptive import BudgetExceeded
    from ..images import check_path, save_images
    from ..sampling import sample

    check_path(args.out)
    asked = plan_options(args, args.solver)
    model = open_model(args.model, args.device)
    if isinstance(model, OnnxSampler):
        return _run_file(args, model, asked)
    solver = _solver(args, asked, model)
    options = given(args, "clip", "threshold", "guidance", "rtol", "atol", "max_nfe")
    n = _count(args)
    columns = None
    if args.label:
        options["label"] = [args.label[k % len(args.label)] for k in range(n)]
        columns = len(args.label) if len(args.label) > 1 else None
    if isinstance(solver, str):
        options |= given(args, "nfe", "grid", "eta", "space", "variable", "snap", "end")
    counted: Any = _Counted(model)
    began = time.perf_counter()
    try:
        x = sample(counted, solver, n=n, seed=args.seed, progress=sys.stderr.isatty(), **options).cpu()
    except BudgetExceeded as error:
        path = save_images(error.samples.cpu(), args.out, range=model.range, columns=columns)
        raise ValueError(f"{error}; they are in {path.resolve()}") from None
    seconds = time.perf_counter() - began
    path = save_images(x, args.out, range=model.range, columns=columns)
    print_facts(
        [
            ("solver", solver if isinstance(solver, str) else _describe(solver, asked)),
            ("evaluations", counted.calls),
            ("seconds", f"{seconds:.2f}"),
            ("picture", path.resolve()),
        ]
    )


def _run_file(args: argparse.Namespace, file: OnnxSampler, asked: dict[str, Any]) -> None:
    """Draw with an exported sampler, whose solver is in the file."""
    fixed = [*asked, *given(args, "solver", "plan", "nfe", "clip", "threshold", "guidance", "rtol", "atol", "max_nfe")]
    if fixed:
        raise ValueError(
            f"--{fixed[0].replace('_', '-')} cannot be chosen: {args.model} is a sampler, {file.plan.method}"
        )
    from ..images import save_images

    n = _count(args)
    label = [args.label[k % len(args.label)] for k in range(n)] if args.label else None
    began = time.perf_counter()
    x = file.run(n, args.seed, label=label)
    seconds = time.perf_counter() - began
    columns = len(args.label) if args.label and len(args.label) > 1 else None
    path = save_images(x, args.out, range=file.range, columns=columns)
    facts = [("solver", file.plan.method), ("evaluations", file.nfe), ("seconds", f"{seconds:.2f}")]
    print_facts([*facts, ("picture", path.resolve())])


def _count(args: argparse.Namespace) -> int:
    """How many images: --n, or one for each seed."""
    if args.n is not None:
        return int(args.n)
    return 64 if isinstance(args.seed, int) else len(args.seed)


def _seeds(text: str) -> int | list[int]:
    """One seed for all, or one for each: "7" is 7, "7-7" is [7], "0-63" is [0, .., 63]."""
    return int(text) if re.fullmatch(r"-?\d+", text) else number_list(text)


def _solver(args: argparse.Namespace, asked: dict[str, Any], model: Model | OnnxModel) -> str | Plan:
    """The compiled plan of a fixed-step method, a stored one or a file's; any other name is left to `sample`."""
    from ..adaptive import is_torchdiffeq

    if args.plan is not None or args.solver == SOLVER:
        return _stored(args, asked, model)
    if args.solver is None or args.solver in METHODS:
        nfe = 20 if args.nfe is None else args.nfe
        plan = compile_plan(args.solver, model.schedule, nfe, **{"snap": model.integer_times, **asked})
        if (said := advice(plan.method, plan.nfe)) is not None:
            print(f"warning: {said}", file=sys.stderr)
        return plan
    if is_torchdiffeq(args.solver) and args.option:
        raise ValueError(f"--option {args.option[0]}: {args.solver} is torchdiffeq's and takes none")
    if is_torchdiffeq(args.solver) and args.variance is not None:
        raise ValueError(f"--variance is an option of ddpm, not of {args.solver}")
    return str(args.solver)


def _stored(args: argparse.Namespace, asked: dict[str, Any], model: Model | OnnxModel) -> Plan:
    """The plan that was fitted to the model, or a file's. ValueError: options that shape a plan beside it."""
    from ..plans import Plan
    from ..sampling import compiled

    solver: Any = args.solver
    if args.plan is not None:
        if args.solver is not None:
            raise ValueError(f"--plan {args.plan} and --solver {args.solver}: leave one of them away")
        try:
            solver = Plan.from_json(Path(args.plan).read_text())
        except ValueError as error:
            raise ValueError(f"{args.plan}: {error}") from None
    rest = {key: value for key, value in asked.items() if key not in ("grid", "eta")}
    named: dict[str, Any] = {"grid": asked.get("grid"), "eta": asked.get("eta"), "guidance": args.guidance}
    return compiled(cast(Any, model), solver, args.nfe, options=rest, **named)


def _describe(plan: Plan, asked: dict[str, Any]) -> str:
    """The plan's method, its grid, and what else was asked for."""
    grid = {"grid": plan.args["grid"]} if "grid" in plan.args else {}
    return ", ".join([plan.method, *(f"{key} {value}" for key, value in {**grid, **asked}.items())])


class _Counted:
    """A model that counts its evaluations: what happened, not what was planned."""

    def __init__(self, model: Model | OnnxModel) -> None:
        self.model, self.calls = model, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return self.model(*args)
