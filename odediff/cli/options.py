"""What several commands share: the options that shape a plan, and aligned output."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..grids import GRIDS
from ..methods import METHODS
from ..methods.frame import VARIABLES
from ..methods.options import parsed
from ..spaces import SPACES

if TYPE_CHECKING:
    import torch

    from ..model import Model
    from ..onnx import OnnxModel, OnnxSampler
    from ..plans import Plan

Commands = Any  # argparse's name for what add_subparsers() returns is private

_FLAGS = ("nfe", "n", "seed", "grid", "space", "variable", "snap", "end", "clip", "threshold", "label", "guidance")


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], None],
    *,
    help: str,
    description: str,
    epilog: str,
) -> argparse.ArgumentParser:
    """A new sub-command whose help keeps the line breaks of its description and examples."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help, description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(run=run)
    return parser


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """Options that change a solver's table."""
    parser.add_argument(
        "--grid",
        type=_grid,
        metavar="NAME",
        help=f"where along the schedule the network is run: {', '.join(GRIDS)}, power:P (default: the solver's own), "
        "or the times where steps start, as 999,600,200",
    )
    parser.add_argument(
        "--end", type=float, metavar="T", help="end at this time, not at sigma = 0; with a --grid of times"
    )
    parser.add_argument(
        "--snap",
        action=argparse.BooleanOptionalAction,
        help="round a grid to whole times (default: where the model's network knows no others)",
    )
    parser.add_argument("--space", choices=SPACES, help="space of the predictions it works with (default: its own)")
    parser.add_argument("--variable", choices=VARIABLES, help="variable it integrates over (default: its own)")
    parser.add_argument("--eta", type=float, metavar="ETA", help="ddim, euler_ancestral: 0 is deterministic, 1 is DDPM")
    parser.add_argument(
        "--variance", metavar="NAME", help="ddpm only: fixed_small (default) or fixed_large, its two choices of noise"
    )
    parser.add_argument(
        "--option",
        action="append",
        metavar="KEY=VALUE",
        help="any option of the solver, such as s_churn=10, as often as needed; `odediff info SOLVER` lists them",
    )


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Options that keep predicted images in range."""
    parser.add_argument(
        "--clip",
        action=argparse.BooleanOptionalAction,
        help="keep predicted images in range (default: the model's setting)",
    )
    parser.add_argument(
        "--threshold", type=float, metavar="P", help="dynamic thresholding at this quantile, such as 0.995, not --clip"
    )


def plan_options(args: argparse.Namespace, solver: str | None) -> dict[str, Any]:
    """What the user asked of `odediff.plan`; --option is read as the solver declares it, or left if there is no such.

    ValueError: an --option that is no KEY=VALUE, that the solver does not have, of another type, or given twice.
    """
    found = given(args, "grid", "space", "variable", "snap", "end", "eta", "variance")
    texts: dict[str, str] = {}
    for text in args.option or ():
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ValueError(f"--option {text}: write KEY=VALUE, such as s_churn=10")
        if key in texts or key in found:
            raise ValueError(f"--option {text}: {key} is given twice")
        if key in _FLAGS and hasattr(args, key):
            raise ValueError(f"--option {text}: {key} is no option of a solver; write it as --{key}")
        texts[key] = value
    return found | (parsed(solver, METHODS[solver], texts) if solver is not None and solver in METHODS else texts)


def _grid(text: str) -> str | list[float]:
    """A name, or times: "999,600,200" is [999.0, 600.0, 200.0]."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return text


def number_list(text: str) -> list[int]:
    """Whole numbers and ranges of them: "7" is [7], "0-2,9" is [0, 1, 2, 9]."""
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None:
            raise argparse.ArgumentTypeError(f"{part!r} in {text!r} is no whole number or range; write 7, 0-9 or 3,5,8")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < first + 10**6:
            raise argparse.ArgumentTypeError(f"{part!r} must count up, and over no more than a million numbers")
        numbers.extend(range(first, last + 1))
    return numbers


def given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the named options that the user gave: the rest are left to the library's own defaults."""
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def pick_device(name: str | None) -> torch.device:
    """The device of this name; by default a GPU if there is one. ValueError: none of this name on this machine."""
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here ({reason}); cpu always can") from None
    return device


def open_model(source: str, device: str | None) -> Model | OnnxModel | OnnxSampler:
    """A model, or an exported file. ValueError: a device that it cannot run on."""
    from ..model import load
    from ..onnx import load as load_file

    if not source.endswith(".onnx"):
        return load(source, device=pick_device(device))
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"--device {device}: an ONNX file runs on cpu or cuda")
    return load_file(source, provider=device or "cpu")


def open_network(source: str, device: str | None = None) -> Any:
    """A model that has no solver of its own: a `Model` or an `OnnxModel`. ValueError: a sampler's file."""
    from ..onnx import OnnxSampler

    model = open_model(source, device)
    if isinstance(model, OnnxSampler):
        raise ValueError(f"{source} is a sampler, {model.plan.method}; give its model, or its network's file")
    return model


def count_parameters(model: Model) -> int:
    """Numbers in the network's parameters; the commands only meet networks that were loaded or trained."""
    return sum(p.numel() for p in model.net.parameters())  # type: ignore[attr-defined]


def certificate(plan: Plan) -> str:
    """What a stored plan was worth when it was made, in a line."""
    fitted = plan.args.get("fitted")
    if not fitted:
        grid = plan.args.get("grid")
        return (
            f"{plan.method}, built in" + (f", grid {grid}" if isinstance(grid, str) else "") + "; no better was found"
        )
    ratios = [
        f"{name} {value:.2f} ({low:.2f} to {high:.2f})"
        for name, (value, low, high) in (("RMSE", fitted["over_best_rmse"]), ("median", fitted["over_best_median"]))
    ]
    labels = fitted.get("labels")
    of = f", of labels {', '.join(map(str, labels))}" if isinstance(labels, (list, tuple)) else ""
    noises = f"on {fitted['held_out']} held-out noises{of}"
    return f"{', '.join(ratios)} of the best built-in pair's, {fitted['best']}, {noises}"


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """`name  value` a line, the values in one column."""
    facts = list(facts)
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(f"{name:<{width}}  {value}")
