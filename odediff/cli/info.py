"""`odediff info`: what there is to sample with."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..grids import GRIDS
from ..methods import METHODS
from .options import Commands, add_command, count_parameters, print_facts

_DESCRIPTION = """\
Without MODEL: the solvers, the time grids and the bundled models.
With MODEL: its shape, size, noise schedule, prediction and provenance."""

_EPILOG = """\
examples:
  odediff info
  odediff info mnist
  odediff info runs/mine/model"""

_BUNDLED = Path(__file__).parents[1] / "models"


def add(commands: Commands) -> None:
    parser = add_command(
        commands, "info", run, help="list solvers and models", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help="a bundled model's name, or a folder")


def run(args: argparse.Namespace) -> None:
    if args.model is None:
        _print_all()
    else:
        _print_model(args.model)


def _print_all() -> None:
    width = max(map(len, METHODS)) + 1
    print(f"{'solver':<{width}}{'order':>6}{'per step':>10}{'smallest nfe':>14}  {'noise':<6}{'grid':<11}source")
    for name, method in METHODS.items():
        numbers = f"{method.order:>6}{method.stages:>10}{method.min_nfe:>14}"
        noise = "yes" if method.stochastic else ""
        print(f"{name:<{width}}{numbers}  {noise:<6}{method.grid:<11}{method.source}, {method.where}")
    names = sorted(path.parent.name for path in _BUNDLED.glob("*/model.json"))
    print()
    print_facts([("grids", ", ".join(GRIDS)), ("bundled models", ", ".join(names) or "none")])


def _print_model(source: str) -> None:
    from ..model import load

    model = load(source)
    limits = "unbounded" if model.range is None else f"{model.range[0]:g} .. {model.range[1]:g}"
    facts: list[tuple[str, Any]] = [
        ("shape", " x ".join(map(str, model.shape)) + " (channels x height x width)"),
        ("parameters", f"{count_parameters(model):,}"),
        ("prediction", model.prediction),
        ("schedule", _brief(model.schedule.fingerprint)),
        ("range", limits),
        *([] if model.num_classes is None else [("classes", f"{model.num_classes}, class-conditional")]),
        *((key, _brief(value)) for key, value in model.info.items()),
    ]
    print_facts(facts)


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_brief(inner)}" for key, inner in value.items())
    return value if isinstance(value, str) else json.dumps(value)
