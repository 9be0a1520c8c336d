"""Ways to run a sampler: what evaluates the network, and what runs the loop.

    torch      eager torch: the truth that the others are held to
    compile    the network under torch.compile, channels last; no number of evaluations, solver or time compiles anew,
               only a batch of 1, of 2 to 15 and of more (torch's CPU convolutions tell these apart)
    onnx       the network exported and run by onnxruntime, on the CPU or the GPU that the model is on
    triton     the network as it is, and between two evaluations one kernel (`odediff.kernels`), noise included
    cudagraph  all rows and evaluations recorded once as a CUDA graph per batch size, and replayed: rows as triton's, or
               in eager torch where triton is missing or its kernel refuses (thresholding, float64); a sampler keeps the
               4 recordings (batch size, dtype, labels or not) that were used last
    auto       cudagraph on a CUDA GPU; on a CPU onnx where it is installed and the network can be exported, else torch

compile, onnx and cudagraph prepare at construction or at the first call, which takes seconds to minutes. On a CPU a row
is one call of a C kernel where odediff was installed with a compiler at hand, else aten: `odediff info` says which.
"""

from __future__ import annotations

import copy
import warnings
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor, nn

from .choices import unknown
from .model import Model

BACKENDS = ("torch", "compile", "onnx", "triton", "cudagraph", "auto")


def choose(backend: str, model: Model) -> tuple[str, str]:
    """The backend that will run, and why. ValueError: an unknown one, or one that this model or machine lacks."""
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    module, device = isinstance(model.net, nn.Module), model.device.type
    if backend == "auto":
        return _best(module, device, missing)
    if backend in ("compile", "onnx") and not module:
        raise ValueError(f'backend = "{backend}" needs a network that is an nn.Module, not a function; use "torch"')
    if backend == "onnx" and missing:
        raise ValueError(f"backend = \"onnx\" needs {', '.join(missing)}: pip install 'odediff[onnx]'")
    if backend in ("triton", "cudagraph") and device != "cuda":
        raise ValueError(f'backend = "{backend}" needs a model on a CUDA GPU, not on {model.device}; use "auto"')
    if backend == "triton" and find_spec("triton") is None:
        raise ValueError("backend = \"triton\" needs triton: pip install 'odediff[triton]'")
    return backend, "asked for"


def _best(module: bool, device: str, missing: list[str]) -> tuple[str, str]:
    """The fastest backend that is available, and why."""
    if device == "cuda":
        return "cudagraph", "the model is on a CUDA GPU: the whole loop is one launch"
    if device != "cpu":
        return "torch", f"nothing else runs on {device}"
    if not module:
        return "torch", "the network is no nn.Module, which is all that can be exported"
    if missing:
        return "torch", f"onnxruntime is faster on a CPU, but {', '.join(missing)} not installed: 'odediff[onnx]'"
    return "onnx", "the model is on a CPU, where onnxruntime is faster than eager torch"


def prepared(asked: str, backend: str, why: str, model: Model) -> tuple[str, str, Model]:
    """The backend that runs, why, and the model that evaluates the network in it; backend, why: what `choose` said.

    UserWarning: what "auto" took cannot run this network, and eager torch does.  Another backend raises as `runner`.
    """
    try:
        return backend, why, runner(backend, model)
    except ValueError as error:
        if asked != "auto":
            raise
        why = f"{backend} cannot run this network: {str(error).splitlines()[0]}"
        warnings.warn(f"the network is run by eager torch; {why}", stacklevel=3)
        return "torch", why, model


def runner(backend: str, model: Model) -> Model:
    """The model that evaluates the network in this backend. ValueError: onnxruntime cannot, or computes another."""
    if backend == "compile":
        return _again(model, _Compiled(model.net))
    if backend == "onnx":
        from .onnx.session import in_onnxruntime

        return cast(Model, in_onnxruntime(model))
    return model


class _Compiled(nn.Module):
    """A copy of a network, channels last and compiled, for batches of any size."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).eval().to(memory_format=torch.channels_last)
        self.run = torch.compile(self.net)

    def forward(self, x: Tensor, *args: Tensor) -> Any:
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        for tensor in (x, *args):
            if len(tensor) > 1:
                torch._dynamo.mark_dynamic(tensor, 0)  # type: ignore[no-untyped-call]
        return self.run(x, *args)  # type: ignore[no-untyped-call]


def _again(model: Model, net: nn.Module) -> Model:
    """The same model around another network."""
    return Model(
        net,
        schedule=model.schedule,
        prediction=model.prediction,
        shape=model.shape,
        range=model.range,
        clip=model.clip,
        integer_times=model.integer_times,
        num_classes=model.num_classes,
        info=model.info,
    )
