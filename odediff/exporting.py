"""`export`: a model's network, or the whole sampler, as one ONNX file that is only kept if it agrees with the model."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike
from torch import nn

from . import __version__, parity
from .adaptive import is_torchdiffeq
from .choices import unknown
from .identity import mark_of
from .model import Model
from .onnx.metadata import KEY
from .onnx.runtime import OnnxModel, OnnxSampler
from .onnx.targets import RANGE, opset_of
from .plans import Plan
from .prediction import Clip, Prediction
from .sampling import Sampler, compiled

try:
    import onnx
    import onnxruntime  # noqa: F401
    import onnxscript  # noqa: F401
    from onnx import helper
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"odediff.export needs {error.name}: pip install 'odediff[onnx]'", name=error.name
    ) from None

from .onnx.convolutions import cheaper
from .onnx.describing import described
from .onnx.graph import LARGEST, body_of, opset_in
from .onnx.inlined import Network, network_graph
from .onnx.live import peak_bytes
from .onnx.network import bare, traced
from .onnx.quantize import between, quantized, recorded
from .onnx.rewriting import simplify
from .onnx.sampler import FORMS, sampler_graph

UNROLLED = 12  # rows up to which a sampler is unrolled if no form is named
CALIBRATION = 16  # samples that int8 is calibrated on if not told


@dataclass(frozen=True)
class Exported:
    """What was written, and how far it was from the model.

    form, why: of a sampler, and the reason.  nodes: of the graph that holds the network.  bytes: with external data.
    gap, bound: the error and what was allowed, see `odediff.parity`.
    """

    path: Path
    form: str | None
    why: str
    precision: str
    opset: int
    nodes: int
    bytes: int
    gap: float
    bound: float
    seconds: float

    def __str__(self) -> str:
        what = f"sampler, {self.form} ({self.why})" if self.form else "network"
        return (
            f"{self.path}: {what}, {self.precision}, opset {self.opset}, {self.nodes} nodes, "
            f"{self.bytes / 1e6:.1f} MB, within {self.gap:.1e} of eager torch (bound {self.bound:g}), "
            f"{self.seconds:.0f} s"
        )


def export(
    model: Model | OnnxModel,
    path: str | os.PathLike[str],
    solver: str | Plan | None = None,
    nfe: int | None = None,
    *,
    form: str | None = None,
    grid: str | ArrayLike | None = None,
    eta: float | None = None,
    guidance: float | None = None,
    clip: Clip = None,
    threshold: float | None = None,
    clip_eps: str = "recompute",
    batch: int | None = None,
    precision: str | None = None,
    target: str = "onnxruntime",
    calibration: int | None = None,
    opset: int | None = None,
    external_data: bool | None = None,
    license: str | None = None,
    **options: Any,
) -> Exported:
    """Write the network, or with a solver or nfe the whole sampler, as ONNX; run it, and keep it only if it agrees.

    network: `sample` (batch, *shape) float32, `timestep` (batch,) float32, or int32 for a network of whole times, and
        `label` (batch,) int32 of a conditional one, to `out_sample`.
    sampler: `noise` (batch, *shape) float32, unit normal, `row_noise` (rows that draw noise, batch, *shape) of
        stochastic solvers, and `label`, to `images` in the data's range.
    model: an `odediff.Model` around a module, or a network's file from `odediff.onnx.load`.
    solver, nfe, grid, eta, options: as `odediff.sample`; nfe alone takes the default solver.  guidance, clip,
        threshold, clip_eps: as `odediff.Sampler`, in the graph.
    form: "unrolled", the network once a row and no control flow, or "loop", the network once; None: unrolled up to
        12 rows and for TensorRT, else loop.
    batch: a fixed number, or None for a dynamic axis.  precision: "fp32" (None), "fp16" (the network in half; state and
        coefficients stay float32), or "int8" (convolutions and linear layers, see `odediff.onnx.quantize`).
    calibration: samples whose trajectories int8 is calibrated on, all rows of the plan, or for a network alone of the
        default solver's; of a fixed seed and every class; None: 16.
    target: "onnxruntime", or "tensorrt" or "tensorrt-10.9", a version, picks the opset; opset overrides it;
        int8 has unsigned activations with a zero point for the former, signed ones around zero for the latter.
    external_data: weights in `path` + ".data"; None: where the file would pass 2 GB.
    license: a name for the metadata; None: that of the model's info.
    The file is written beside `path` and moved there once it agreed with eager torch on three batches of fresh noise;
    what was there stays until then.
    ValueError: bad options, a network that cannot be traced.  ParityError: the file is off; nothing is left of it.
    """
    begin, path = time.perf_counter(), Path(path)
    _check_model(model, opset)
    plan = _plan(model, solver, nfe, grid, eta, options, guidance)
    predict: dict[str, Any] = {"guidance": guidance, "clip": clip, "threshold": threshold, "clip_eps": clip_eps}
    form, why = _form(form, plan, target)
    own = model.about.precision if isinstance(model, OnnxModel) else "fp32"
    precision = own if precision is None else precision
    opset = opset_of(target) if opset is None else opset
    _check(model, path, batch, precision, opset, calibration)
    prediction = _prediction(model, plan, predict)
    net, calls = _network(model, opset, batch, precision, prediction)
    if target == "onnxruntime" and not isinstance(model, OnnxModel):
        cheaper(net.proto.graph, between(net.proto.graph) if precision == "int8" else ())
        simplify(net.proto)
    memory = calls * peak_bytes(net.proto, net.names["sample"])
    bare(net.proto)
    if precision == "int8" and isinstance(model, Model):
        run = partial(_calibrate, model, plan, predict, CALIBRATION if calibration is None else calibration, batch)
        feeds = recorded(cast(nn.Module, model.net), net.proto, run)
        net = net._replace(proto=quantized(net.proto, feeds, zero_point=target == "onnxruntime"))
    made = net.proto
    if plan is None and isinstance(model, OnnxModel):
        made = network_graph(net, model, batch)
    elif plan is not None and prediction is not None and form is not None:
        made = sampler_graph(net, plan, prediction, form=form, batch=batch)
        memory = memory and memory + 4 * (plan.depth + 3) * prod(model.shape)
    sampled = {} if plan is None else {"plan": plan.to_json(), "form": form, "prediction_options": predict}
    known = {"batch": batch, "memory": memory, "mark": mark_of(model)}
    about = described(model, precision, license=license, **known, **sampled)
    helper.set_model_props(made, {KEY: about.to_json()})
    made.producer_name, made.producer_version = "odediff", __version__
    draw = None if plan is None else Sampler(cast(Model, model), plan, **predict)
    gap, size = _write(made, path, external_data, lambda file: parity.gap(file, model, draw, precision))
    nodes, opset = len(body_of(made).node), opset_in(made)
    seconds = time.perf_counter() - begin
    bound = parity.BOUNDS["out_sample" if plan is None else "images"][precision]
    return Exported(path, form, why, precision, opset, nodes, size, gap, bound, seconds)


def _check_model(model: object, opset: int | None) -> None:
    if not isinstance(model, (Model, OnnxModel)):
        has = "a sampler's file, which has its solver" if isinstance(model, OnnxSampler) else f"{model!r:.60}"
        raise ValueError(f"export takes an odediff.Model or a network's file, got {has}; odediff.load reads a model")
    if isinstance(model, OnnxModel) and opset not in (None, own := model.summary.opsets.get("")):
        raise ValueError(
            f"opset = {opset}, but {model.path} is in {own}, in which its sampler is written; leave it out"
        )


def _plan(
    model: Model | OnnxModel,
    solver: str | Plan | None,
    nfe: int | None,
    grid: Any,
    eta: float | None,
    options: Any,
    guidance: float | None,
) -> Plan | None:
    """The plan of a sampler, None of a network alone."""
    if solver is None and nfe is None:
        given = [*options, *(name for name, value in (("grid", grid), ("eta", eta)) if value is not None)]
        if given:
            raise ValueError(f"{given[0]} belongs to a sampler: name a solver or nfe, or leave it out")
        return None
    if isinstance(solver, str) and is_torchdiffeq(solver):
        raise ValueError(f"{solver} chooses its steps as it goes; a graph needs a fixed-step solver of odediff.METHODS")
    return compiled(cast(Model, model), solver, nfe, grid, eta, options, guidance)


def _form(form: str | None, plan: Plan | None, target: str) -> tuple[str | None, str]:
    """The form of a sampler and why. ValueError: another name, or a form of a network."""
    if plan is None:
        if form is not None:
            raise ValueError(f"form = {form!r} belongs to a sampler: name a solver or nfe, or leave it out")
        return None, ""
    if form is not None:
        if form not in FORMS:
            raise unknown("form", form, FORMS)
        return form, "asked for"
    if target != "onnxruntime":
        return "unrolled", "for TensorRT"
    few = plan.nfe <= UNROLLED
    return ("unrolled", f"up to {UNROLLED} rows") if few else ("loop", f"more than {UNROLLED} rows")


def _check(
    model: Model | OnnxModel, path: Path, batch: int | None, precision: str, opset: int, calibration: int | None
) -> None:
    if path.suffix != ".onnx":
        raise ValueError(f"path = {str(path)!r} must end in .onnx")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the file to write")
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise ValueError(f"batch = {batch!r} must be a whole number from 1 up, or None for any")
    if precision not in parity.PRECISIONS:
        raise unknown("precision", precision, parity.PRECISIONS)
    if isinstance(model, OnnxModel) and precision != model.about.precision:
        raise ValueError(
            f"precision = {precision!r}, but the file is {model.about.precision}; export that from the model"
        )
    if calibration is not None:
        if precision != "int8" or isinstance(model, OnnxModel):
            raise ValueError(f"calibration = {calibration!r} belongs to a model's export in int8; leave it out")
        if isinstance(calibration, bool) or not isinstance(calibration, int) or calibration < 1:
            raise ValueError(f"calibration = {calibration!r} must be a whole number of samples from 1 up")
    if not isinstance(opset, int) or not RANGE[0] <= opset <= RANGE[1]:
        raise ValueError(f"opset = {opset!r} must be from {RANGE[0]} to {RANGE[1]}")


def _prediction(model: Model | OnnxModel, plan: Plan | None, predict: dict[str, Any]) -> Prediction | None:
    """P of a sampler. ValueError: options of a sampler for a network alone; see `Sampler`, which checks the plan."""
    if plan is not None:
        return Sampler(cast(Model, model), plan, **predict).prediction
    given = [name for name, value in predict.items() if value not in (None, "recompute")]
    if given:
        raise ValueError(f"{given[0]} belongs to a sampler: name a solver or nfe, or leave it out")
    return None


def _network(
    model: Model | OnnxModel, opset: int, batch: int | None, precision: str, prediction: Prediction | None
) -> tuple[Network, int]:
    """The network's graph, and its calls a sample: a guided one is called with twice the batch."""
    guided = prediction is not None and prediction.guidance not in (None, 0.0, 1.0)
    rows = None if batch is None else 2 * batch if guided else batch
    if isinstance(model, OnnxModel):
        if model.about.batch not in (None, rows):
            half = " / 2, since guidance calls it with both halves" if guided else ""
            raise ValueError(f"{model.path} takes batches of {model.about.batch}, got batch = {batch}; give that{half}")
        made, names = onnx.load(model.path), model.names
    else:
        made = traced(model, opset=opset, batch=rows, precision="fp32" if precision == "int8" else precision)
        names = {one.name: one.name for one in (*made.graph.input, *made.graph.output)}
    return Network(made, names), 2 if guided else 1


def _calibrate(model: Model, plan: Plan | None, predict: dict[str, Any], n: int, batch: int | None) -> None:
    """Sample at least n, a multiple of a fixed batch, of every class; for a network alone also without label."""
    n = -(-n // (batch or 1)) * (batch or 1)
    labels: list[Any] = [None] if model.num_classes is None else [np.arange(n) % model.num_classes]
    if plan is None:
        plan = compiled(model, None, None, None, None, {})
        labels += [None] * (model.num_classes is not None)
    run = Sampler(model, plan, **predict)
    for label in labels:
        run(n=n, seed=0, label=label)


def _write(
    made: onnx.ModelProto, path: Path, external: bool | None, measure: Callable[[Path], float]
) -> tuple[float, int]:
    """Write, measure, and move to `path`; the error and the bytes. Whatever goes wrong, nothing new is left there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    external = made.ByteSize() > LARGEST if external is None else external
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        data = f"{path.name}.data"
        onnx.save(made, folder / path.name, save_as_external_data=external, location=data, size_threshold=1024)
        gap = measure(folder / path.name)
        size = 0
        for file in sorted(
            folder.iterdir(), reverse=True
        ):  # the weights first: a graph never points to what is not there
            size += file.stat().st_size
            os.replace(file, path.parent / file.name)
    finally:
        shutil.rmtree(folder)
    return gap, size
