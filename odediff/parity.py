"""No file without parity: what was written runs in onnxruntime beside the model in eager torch, on fresh noise.

    network    max |file - model| / max(1, max |model|)                               fp32 and fp16
    sampler    max(median of e, largest e / 100),  e = a sample's RMS(file - model) / max(1, RMS(model's))
    int8       both as RMS over the RMS of the model's

The model is run as it is, in float32, whatever the file's precision. Samples, and int8's outputs, are taken from all
batches together. A few samples lie where the flow parts, and there the last bit grows, in eager torch from one machine
to another as much as here. So the median is held to the bound, and the largest to a hundred times that.

int8 is no rounding of fp32: its bounds tell a calibrated file from a broken one, and single images may change. Where
almost no noise is left, a network that predicts it is off by more than on the unit normal noise that is tried here, but
the plan weighs that row with as little noise.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .model import Model
from .onnx import OnnxModel, OnnxSampler, load
from .running import evaluating

BOUNDS = {
    "out_sample": {"fp32": 1e-5, "fp16": 2e-3, "int8": 0.2},
    "images": {"fp32": 1e-5, "fp16": 2e-3, "int8": 0.3},
}
PRECISIONS = tuple(BOUNDS["images"])
BATCHES = (1, 2, 5)
OUTLIER = 100  # how much more than the median the largest error of a sample may be
Array = NDArray[np.float32]
Draw = Callable[..., torch.Tensor]  # (n, seed, label) -> images


class ParityError(ValueError):
    """The exported file does not compute what the model does."""


class Pair(NamedTuple):
    """An output of the file, and of the model on the same input."""

    name: str
    got: Array
    want: Array


def gap(path: Path, model: Model | OnnxModel, draw: Draw | None, precision: str) -> float:
    """The largest error of the file on three batches of noise. draw: the `Sampler` of a sampler's file.

    ParityError: it is above the precision's bound; the message names the output, the batch and the value.
    """
    file = load(path)
    rng, pairs = np.random.default_rng(), []
    for n in (file.about.batch,) * 3 if file.about.batch else BATCHES:
        if isinstance(file, OnnxSampler):
            assert draw is not None
            label = None if model.num_classes is None else rng.integers(0, model.num_classes, n)
            pairs.append(_images(file, draw, n, label, int(rng.integers(2**32))))
        else:
            label = None if model.num_classes is None else rng.integers(0, model.num_classes + 1, n)  # and null
            pairs.append(_outputs(file, model, n, label, rng))
    if precision == "int8" or draw is not None:
        got, want = (np.concatenate(arrays) for arrays in ([p.got for p in pairs], [p.want for p in pairs]))
        pairs = [Pair(pairs[0].name, got, want)]
    worst = 0.0
    for pair in pairs:
        one, bound = _error(pair, precision), BOUNDS[pair.name][precision]
        if not one <= bound:
            apart = np.abs(pair.got - pair.want)
            at = tuple(int(k) for k in np.unravel_index(int(np.argmax(apart)), apart.shape))  # NaN counts as largest
            raise ParityError(
                f"{path.name}: {pair.name} is off by {one:.1e} in {len(pair.got)} samples, more than {bound:g}, the "
                f"bound of {precision}; {pair.name}{list(at)} is {pair.got[at]:g} in onnxruntime and {pair.want[at]:g} "
                "in eager torch; nothing was kept"
            )
        worst = max(worst, one)
    return worst


def _outputs(file: OnnxModel, model: Model | OnnxModel, n: int, label: Any, rng: np.random.Generator) -> Pair:
    """The networks' outputs at a random time."""
    x = rng.standard_normal((n, *model.shape), dtype=np.float32)
    t = float(rng.uniform(model.schedule.t_min, model.schedule.t_max))
    t = float(round(t)) if model.integer_times else t
    there = torch.from_numpy(x).to(model.device)
    where = None if label is None else torch.from_numpy(label).to(model.device)
    with evaluating(model):  # type: ignore[arg-type]
        want = model(there, t, where)
    return Pair("out_sample", file(x, t, label), want.cpu().numpy())


def _images(file: OnnxSampler, draw: Draw, n: int, label: Any, seed: int) -> Pair:
    """The samplers' images of a random seed."""
    want = draw(n=n, seed=seed, label=label)
    label = label if "label" in file.names else None
    return Pair("images", file.run(n, seed, label=label), want.cpu().numpy())


def _error(pair: Pair, precision: str) -> float:
    apart, size = (
        np.square(array) for array in (pair.got.astype(np.float64) - pair.want, pair.want.astype(np.float64))
    )
    if precision == "int8":
        return float(np.sqrt(apart.mean() / size.mean()))
    if pair.name == "images":
        each = np.sqrt(apart.reshape(len(apart), -1).mean(1) / max(1.0, size.mean()))
        return float(max(np.median(each), each.max() / OUTLIER))
    return float(np.sqrt(apart.max()) / max(1.0, np.abs(pair.want).max()))
