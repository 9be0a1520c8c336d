"""A model's network in onnxruntime, without a file that anybody has to keep."""

from __future__ import annotations

import tempfile
import weakref
from pathlib import Path

import onnx
import torch
from onnx import helper

from .. import parity
from ..model import Model
from .convolutions import cheaper
from .describing import described
from .graph import LARGEST
from .live import peak_bytes
from .loading import load
from .metadata import KEY, About
from .network import bare, traced
from .rewriting import simplify
from .runtime import OnnxModel
from .targets import ONNXRUNTIME

CACHE = 6 * 2**20  # bytes of a batch's values that a core keeps close; larger batches are faster in parts


def in_onnxruntime(model: Model) -> OnnxModel:
    """The network exported to a temporary folder, held to the model, and loaded on the device that the model is on.

    On a CPU a batch runs in parts of about the size of its caches, and of the weights at least.
    The folder goes with the last reference to what is returned.
    ValueError: the network cannot be traced.  ParityError: onnxruntime computes something else.
    """
    precision = "fp16" if model.dtype == torch.float16 else "fp32"
    made = traced(model, opset=ONNXRUNTIME, batch=None, precision=precision)
    if model.device.type == "cpu":
        cheaper(made.graph)
    simplify(made)
    about = described(model, precision, memory=peak_bytes(made))
    bare(made)
    helper.set_model_props(made, {KEY: about.to_json()})
    folder = tempfile.TemporaryDirectory(prefix="odediff-")
    try:
        file = _opened(made, Path(folder.name) / "network.onnx", model, about)
    except BaseException:
        folder.cleanup()
        raise
    weakref.finalize(file, folder.cleanup)
    return file


def _opened(made: onnx.ModelProto, path: Path, model: Model, about: About) -> OnnxModel:
    size = made.ByteSize()
    onnx.save(made, path, save_as_external_data=size > LARGEST, location="network.onnx.data")
    parity.gap(path, model, None, about.precision)
    if model.device.type == "cuda":
        file = load(path, provider="cuda")
    else:
        threads = torch.get_num_threads()
        memory = max(about.memory, threads * CACHE, size)  # with less, weights would be most of what is read
        file = load(path, threads=threads, memory=memory)
    assert isinstance(file, OnnxModel)
    assert file.engine  # the session is made while the file is there
    return file
