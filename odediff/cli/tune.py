"""`odediff tune`: a plan fitted to one's own model, stored where `--solver tuned` finds it."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import Commands, add_command, add_limits, given, number_list, open_network, print_facts

if TYPE_CHECKING:
    from ..plans import Plan
    from ..tuning import Report

_DESCRIPTION = """\
Fit a plan's times and coefficients to a model, for a number of evaluations,
and measure it on noise that it has not seen beside every built-in method and
grid. It is stored next to the model, where `--solver tuned` finds it, if it is
better than the best of those by more than chance; else that one is. Formulas:
docs/tuning.md."""

_EPILOG = """\
examples:
  odediff tune runs/mine/model --nfe 8
  odediff tune runs/mine/model --nfe 4,6,8,10 --work runs/tuning    each helps the next; go on with the same line
  odediff tune runs/digits/model --nfe 8 --guidance 2
  odediff tune net.onnx --nfe 8 --engine ridge                      beside the file
  odediff tune mnist --nfe 8 --out plans --plot tuned.png --report tuned.json
  odediff sample runs/mine/model --solver tuned --nfe 8"""

_OPTIONS = (
    *("n", "validation", "held_out", "seed", "label", "guidance", "clip", "threshold", "engine", "derivatives"),
    *("history", "starts", "iterations", "patience", "times", "coefficients", "first", "fed", "backend", "batch"),
)


def add(commands: Commands) -> None:
    parser = add_command(commands, "tune", run, help="fit a plan to a model", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("model", metavar="MODEL", help="a bundled model's name, a folder, or a network's file, .onnx")
    parser.add_argument(
        "--nfe", type=number_list, default=[8], metavar="N", help="evaluations: 8 (default), 4,6,8,10 or 4-12"
    )
    parser.add_argument("--n", type=int, metavar="N", help="noises to fit to (default: 32)")
    parser.add_argument("--validation", type=int, metavar="N", help="noises to stop by (default: 64)")
    parser.add_argument("--held-out", type=int, metavar="N", help="noises to judge on (default: 64)")
    parser.add_argument("--seed", type=int, metavar="N", help="of all of them (default: 0)")
    parser.add_argument(
        "--label", type=number_list, metavar="K", help="class-conditional models: in turn (default: every class)"
    )
    parser.add_argument("--guidance", type=float, metavar="W", help="the plan is for this guidance only")
    add_limits(parser)
    parser.add_argument(
        "--engine", metavar="NAME", help="levenberg or ridge (default: levenberg, but ridge for an int8 file)"
    )
    parser.add_argument(
        "--derivatives", metavar="NAME", help="of the network: differences (default), or exact, which needs a module"
    )
    parser.add_argument(
        "--history",
        type=number_list,
        metavar="N",
        help="predictions a row may read, of which validation noise chooses (default: all, 3)",
    )
    parser.add_argument("--starts", type=int, metavar="N", help="plans to begin from, 1 to 5 (default: 3)")
    parser.add_argument("--iterations", type=int, metavar="N", help="steps of the last stage (default: 12)")
    parser.add_argument("--patience", type=int, metavar="N", help="steps without gain that end a stage (default: 12)")
    for name, what in (("times", "the times"), ("coefficients", "the coefficients"), ("first", "the first time")):
        parser.add_argument(f"--no-{name}", dest=name, action="store_false", default=None, help=f"keep {what}")
    parser.add_argument(
        "--fed",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether the times that the network is fed are fitted by themselves (default: with all the others)",
    )
    parser.add_argument("--backend", metavar="NAME", help="what evaluates the network (default: torch)")
    parser.add_argument("--batch", type=int, metavar="N", help="samples in a call of the network (default: 64)")
    parser.add_argument("--device", metavar="NAME", help="such as cpu or cuda (default: a GPU if there is one)")
    parser.add_argument(
        "--work", metavar="FOLDER", help="keep references and steps here, so that the same command goes on from them"
    )
    parser.add_argument(
        "--out", metavar="FOLDER", help="write the plans here (default: where --solver tuned finds them)"
    )
    parser.add_argument("--plot", metavar="FILE", help="draw the errors there (.png, .svg or .pdf)")
    parser.add_argument("--report", metavar="FILE", help="write the report there: .json, or any other name for text")


def run(args: argparse.Namespace) -> None:
    from ..analysis.plotting import check_path

    check_path(args.plot)
    _check_report(args.report)
    model = open_network(args.model, args.device)
    target = _target(args.out, model)
    from ..tuning import tune

    try:
        made, report = tune(
            model, args.nfe, save=target, folder=args.work, progress=sys.stderr.isatty(), **given(args, *_OPTIONS)
        )
    except KeyboardInterrupt:
        kept = f"what is done is in {args.work}: the same command goes on" if args.work else "--work keeps what is done"
        raise KeyboardInterrupt(f"interrupted; {kept}") from None
    print(report)
    print()
    if args.plot:
        report.plot(args.plot)
    if args.report:
        text = _json(made, report) if args.report.endswith(".json") else str(report)
        Path(args.report).write_text(text + "\n")
    print_facts(_facts(args, made, report, target))


def _facts(args: argparse.Namespace, made: Mapping[int, Plan], report: Report, target: Path) -> list[tuple[str, Any]]:
    from ..stored import plan_path

    facts: list[tuple[str, Any]] = []
    for nfe in made:
        returned = report[nfe].returned
        what = "" if returned == "tuned" else f" (the built-in {returned})"
        facts.append(("plan", f"{plan_path(target, nfe, args.guidance).resolve()}{what}"))
    nfe = next(iter(made))
    draw = f"--plan {plan_path(target, nfe, args.guidance)}" if args.out else f"--solver tuned --nfe {nfe}"
    guided = "" if args.guidance is None else f" --guidance {args.guidance:g} --label {(args.label or [0])[0]}"
    facts += [(key, path) for key, path in (("picture", args.plot), ("report", args.report)) if path]
    return [*facts, ("next", f"odediff sample {args.model} {draw}{guided}")]


def _check_report(path: str | None) -> None:
    """Raise what writing would, before there is anything to write."""
    if path is not None and not Path(path).parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {Path(path).parent}; create it first")
    if path is not None and Path(path).is_dir():
        raise ValueError(f"cannot write {path}: it is a folder; name a file in it")


def _target(out: str | None, model: Any) -> Path:
    """Where the plans go."""
    from ..model import BUNDLED
    from ..stored import folder_of

    target = folder_of(model) if out is None else Path(out)
    if out is None and target is not None and BUNDLED in target.parents:
        raise ValueError(f"{target} holds the plans of the package; name a folder for yours: --out FOLDER")
    assert target is not None  # a model that a command has opened is in a folder
    return target


def _json(made: Mapping[int, Plan], report: Report) -> str:
    """Everything in the report, and the plans that were returned, by budget; null for an error that is not finite."""
    budgets = {}
    for nfe, budget in report.budgets.items():
        told = {f.name: getattr(budget, f.name) for f in fields(budget)}
        told |= {"certificate": asdict(budget.certificate), "records": [asdict(record) for record in budget.records]}
        budgets[nfe] = {**told, "holds": budget.certificate.holds, "plan": json.loads(made[nfe].to_json())}
    return json.dumps(_finite(budgets), indent=1, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
