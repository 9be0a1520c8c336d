"""`odediff train`: from images on disk to a model that `odediff sample` draws from."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .options import Commands, add_command, count_parameters, given, pick_device, print_facts
from .plan import SCHEDULES

if TYPE_CHECKING:
    from ..model import Model


class Option(NamedTuple):
    """A field of `TrainConfig` as an option. `default` is only told: what is not given is left to `TrainConfig`."""

    field: str
    default: Any
    help: str
    choices: tuple[str, ...] | None = None


# Told here, and checked against TrainConfig by a test, so that --help need not load torch.
OPTIONS = (
    Option("size", "s", "the network", ("xs", "s", "m", "l", "xl")),
    Option("steps", 10_000, "updates of the weights"),
    Option("batch_size", 128, "images per update"),
    Option("lr", 1e-3, "learning rate, after warm-up"),
    Option("warmup_steps", 500, "updates until the full learning rate"),
    Option("lr_decay", "cosine", "how the rate falls towards the end", ("constant", "cosine")),
    Option("weight_decay", 0.0, "of AdamW"),
    Option("grad_clip", 1.0, "largest gradient norm, 0 for none"),
    Option("ema_decay", 0.9999, "ceiling of the weight average's decay"),
    Option("prediction", "eps", "what the network predicts", ("eps", "x0", "v", "flow")),
    Option("weighting", "simple", "of the loss over time", ("simple", "min_snr_5", "variational")),
    Option("seed", 0, "of weights, batches and noise"),
    Option("amp", "off", "mixed precision; fp16 on CUDA only", ("off", "bf16", "fp16")),
    Option("key", None, "name of the array in an .npz file (default: found by itself)"),
    Option("tile", None, "side of the images in a folder of mosaics"),
    Option("labels", None, "name of the classes' array in an .npz file, such as y_train: a class-conditional model"),
    Option("label_dropout", 0.1, "share of the labels left out, which guidance needs"),
    Option("pad", 1, "pad both sides of the images to a multiple of this"),
    Option("log_every", 50, "updates between lines of log.jsonl"),
    Option("checkpoint_every", 1000, "updates between checkpoints; 0 for the last only"),
    Option("preview_every", 0, "updates between preview pictures; 0 for the last only"),
)
FLAGS = (Option("flip", False, "mirror half of the images"), Option("compile", False, "torch.compile the network"))

_DESCRIPTION = """\
Train a U-Net on images by DDPM's Algorithm 1. The folder --out gets model/,
which `odediff sample FOLDER/model` draws from, pictures previews/STEP.png,
log.jsonl and checkpoint.safetensors."""

_EPILOG = """\
examples:
  odediff train --data mnist.npz --out runs/mnist --steps 5000 --preview-every 500
  odediff train --data mnist.npz --labels y_train --out runs/digits   class-conditional
  odediff train --data photos/ --out runs/photos --size m --flip
  odediff train --out runs/mnist --resume                go on after an interruption
  odediff train --out runs/mnist --resume --steps 20000  ... and for longer
  odediff train --recipe docs/mnist/recipe.json --data mnist.npz --out runs/mnist
  odediff sample runs/mnist/model"""


def add(commands: Commands) -> None:
    parser = add_command(
        commands, "train", run, help="train a model on images", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.add_argument(
        "--data", metavar="PATH", help="an .npz or IDX (.gz) file, or a folder of images; needed but to resume"
    )
    parser.add_argument("--out", metavar="FOLDER", required=True, help="where everything is written")
    parser.add_argument(
        "--recipe", metavar="FILE", help="take options from the config.json of a run; the ones given here win"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out, with its options")
    parser.add_argument("--device", metavar="NAME", help="such as cpu or cuda (default: a GPU if there is one)")
    parser.add_argument("--schedule", choices=SCHEDULES, help="noise schedule (default: linear)")
    for option in OPTIONS:
        default = "" if option.default is None else f" (default: {option.default})"
        kind = type(option.default) if option.default is not None else int if option.field == "tile" else str
        metavar = None if option.choices else {int: "N", float: "X", str: "NAME"}[kind]
        parser.add_argument(
            _flag(option), type=kind, choices=option.choices, metavar=metavar, help=option.help + default
        )
    for option in FLAGS:
        parser.add_argument(_flag(option), action="store_true", default=None, help=option.help)


def _flag(option: Option) -> str:
    return "--" + option.field.replace("_", "-")


def run(args: argparse.Namespace) -> None:
    chosen = given(args, "data", *(option.field for option in OPTIONS + FLAGS))
    if args.resume and args.recipe:
        raise ValueError("--resume goes on with the options in --out: leave --recipe away")
    saved = _saved(Path(args.out)) if args.resume else _recipe(Path(args.recipe)) if args.recipe else {}
    if "data" not in {**saved, **chosen}:
        raise ValueError("--data is missing: name an .npz file, an IDX file or a folder of images")
    from .. import schedule as schedules
    from ..training import TrainConfig, train

    if args.schedule is not None:
        chosen["schedule"] = dict(getattr(schedules, args.schedule)().identity)
    config = TrainConfig.from_dict({**saved, **chosen, "out": args.out})
    model = train(config, resume=args.resume, preview=preview(), device=pick_device(args.device))
    folder = Path(args.out)
    print_facts(
        [
            ("steps", config.steps),
            ("parameters", f"{count_parameters(model):,}"),
            ("model", folder / "model"),
            ("picture", preview_path(folder / "previews", config.steps)),
            ("next", f"odediff sample {folder / 'model'}"),
        ]
    )


def _saved(out: Path) -> dict[str, Any]:
    """The options of the run in this folder."""
    path = out / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"nothing to resume in {out}: it holds no config.json; leave --resume away to begin a run"
        )
    return _recipe(path)


def _recipe(path: Path) -> dict[str, Any]:
    """The options in a config.json."""
    try:
        options = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(options, dict):
        raise ValueError(f"{path} holds no options of a run: it must be a config.json that `odediff train` wrote")
    return options


def preview_path(folder: Path, step: int) -> Path:
    return folder / f"{step:06d}.png"


def preview(n: int = 64, nfe: int = 20) -> Callable[[Model, int, Path], None]:
    """The callback that draws a grid from the averaged weights: the same noise each time, so that pictures compare.

    Of a class-conditional model it shows every class, up to n of them in columns of their own.
    """
    from ..images import save_images
    from ..sampling import sample

    def draw(model: Model, step: int, folder: Path) -> None:
        classes = model.num_classes
        labels = None if classes is None else [*range(classes)] * max(1, n // classes)
        x = sample(model, nfe=nfe, n=n if labels is None else len(labels), seed=0, label=labels)
        columns = classes if classes is not None and classes <= n else None
        save_images(x, preview_path(folder, step), range=model.range, columns=columns)

    return draw
