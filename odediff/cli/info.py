"""`odediff info`: what there is to sample with."""

from __future__ import annotations

import argparse
import inspect
import json
from functools import partial
from pathlib import Path
from typing import Any

from ..choices import nearest
from ..grids import GRIDS
from ..methods import METHODS, Method, cite
from ..plans import Plan
from .options import Commands, add_command, certificate, count_parameters, open_network, print_facts

_DESCRIPTION = """\
Without NAME: the solvers, the time grids, the bundled models, and what runs a plan's rows on a CPU.
With a solver's: its order, evaluations, frames, options and source.
With a model's: its shape, size, noise schedule, prediction, provenance, and the
plans that `odediff tune` fitted to it, with what they are worth."""

_EPILOG = """\
examples:
  odediff info
  odediff info unipc_3
  odediff info mnist
  odediff info runs/mine/model"""

_BUNDLED = Path(__file__).parents[1] / "models"


def add(commands: Commands) -> None:
    parser = add_command(
        commands, "info", run, help="list solvers and models", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.add_argument(
        "name",
        metavar="NAME",
        nargs="?",
        help="a solver's or a bundled model's name, a folder, or a network's .onnx file",
    )


def run(args: argparse.Namespace) -> None:
    if args.name is None:
        _print_all()
    elif args.name in METHODS:
        _print_solver(args.name, METHODS[args.name])
    elif args.name in _bundled() or (Path(args.name) / "model.json").is_file() or args.name.endswith(".onnx"):
        _print_model(args.name)
    else:
        _print_torchdiffeq(args.name)


def _bundled() -> list[str]:
    return sorted(path.parent.name for path in _BUNDLED.glob("*/model.json"))


def _print_all() -> None:
    width = max(map(len, METHODS)) + 1
    where = f"{'space':<6}{'variable':<9}{'grid':<11}{'noise':<8}source"
    print(f"{'solver':<{width}}{'order':>5}{'per step':>9}{'min nfe':>8}  {where}")
    for name, method in METHODS.items():
        numbers = f"{method.order:>5}{method.stages:>9}{method.min_nfe:>8}"
        noise = "" if not method.stochastic else "option" if method.deterministic else "yes"
        where = f"{method.space:<6}{method.variable:<9}{method.grid:<11}{noise:<8}{method.source}, {method.where}"
        print(f"{name:<{width}}{numbers}  {where}")
    print()
    models = ", ".join(_bundled()) or "none"
    print_facts([("grids", ", ".join(GRIDS)), ("bundled models", models), ("rows on a CPU", _rows())])


def _rows() -> str:
    """What runs a row of a plan on a CPU in this installation."""
    try:
        from .._row import INSTRUCTIONS
    except ModuleNotFoundError:
        return "aten; an installation with a C compiler at hand builds the kernel, which is quicker"
    return f"one C kernel, {INSTRUCTIONS}"


def _print_solver(name: str, method: Method) -> None:
    run = method.run.func if isinstance(method.run, partial) else method.run
    spaces = list(dict.fromkeys(space for space, _ in method.frames))
    frames = [f"{at}, over {', '.join(v for space, v in method.frames if space == at)}" for at in spaces]
    kinds = method.kinds
    options = [f"{key} = {value!r} ({' or '.join(kinds[key])})" for key, value in method.args.items()]
    smallest = "+".join(map(str, method.layout(method.min_nfe)))
    facts: list[tuple[str, object]] = [
        ("solver", name),
        ("source", f"{method.source}, {method.where}"),
        ("order", f"{method.order}, the weak one where it adds noise" if method.stochastic else method.order),
        ("evaluations", f"{method.stages} a step, from {method.min_nfe} in all: {smallest}"),
        ("space", f"{method.space} by default"),
        ("variable", f"{method.variable} by default"),
        *((label, frame) for label, frame in zip(["frames", *[""] * len(frames)], frames, strict=False)),
        ("grid", f"{method.grid} by default, where the schedule asks for no other"),
        ("noise", _noise(method)),
        *((label, option) for label, option in zip(["options", *[""] * len(options)], options, strict=False)),
    ]
    print_facts(facts)
    print(f"\n{inspect.getdoc(run)}\n\n{cite(name)}")


def _noise(method: Method) -> str:
    if not method.stochastic:
        return "none"
    if not method.noise:
        return "in every step but the last"
    return f"scaled by {method.noise}; 0 for none" + (", the default" if method.deterministic else "")


def _print_torchdiffeq(name: str) -> None:
    """A solver of torchdiffeq. ValueError: nothing of this name."""
    from ..adaptive import ADAPTIVE, FIXED, MAX_NFE

    if name in ADAPTIVE:
        facts = [("kind", "adaptive"), ("options", f"rtol and atol (0.001), max_nfe ({MAX_NFE}), variable (phi)")]
    elif name in FIXED:
        facts = [("kind", f"{FIXED[name]} evaluations a step and one at the end"), ("options", "grid, variable (phi)")]
    else:
        hint = nearest(name, [*METHODS, *_bundled(), *ADAPTIVE, *FIXED])
        raise ValueError(
            f"no solver and no model {name!r}; {hint}`odediff info` lists both, and a model's folder holds model.json"
        )
    print_facts([("solver", f"{name}, of torchdiffeq"), *facts])


def _print_model(source: str) -> None:
    model = open_network(source, "cpu")
    limits = "unbounded" if model.range is None else f"{model.range[0]:g} .. {model.range[1]:g}"
    facts: list[tuple[str, Any]] = [
        ("shape", " x ".join(map(str, model.shape)) + " (channels x height x width)"),
        *([] if source.endswith(".onnx") else [("parameters", f"{count_parameters(model):,}")]),
        ("prediction", model.prediction),
        ("schedule", _brief(model.schedule.fingerprint)),
        ("range", limits),
        *([] if model.num_classes is None else [("classes", f"{model.num_classes}, class-conditional")]),
        *((key, _brief(value)) for key, value in model.info.items()),
        *_tuned(model),
    ]
    print_facts(facts)


def _tuned(model: Any) -> list[tuple[str, str]]:
    """The plans that were fitted to a model, each with its certificate."""
    from ..stored import folder_of

    folder, plans = folder_of(model), []
    for path in [] if folder is None else folder.glob("*.json"):
        try:
            plans.append((Plan.from_json(path.read_text()), path.stem))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    plans.sort(key=lambda one: (one[0].nfe, one[1]))
    return [(f"tuned, {name.replace('-guidance-', ', guidance ')}", certificate(plan)) for plan, name in plans]


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_brief(inner)}" for key, inner in value.items())
    return value if isinstance(value, str) else json.dumps(value)
