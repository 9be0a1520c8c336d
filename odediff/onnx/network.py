"""The network alone as an ONNX graph: `sample`, `timestep` and, if conditional, `label` in, `out_sample` out."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from ..model import Model
from ..running import evaluating

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}


class _Network(nn.Module):
    """A model's network with float32 in and out, whatever it computes in."""

    def __init__(self, net: nn.Module, dtype: torch.dtype, integer_times: bool) -> None:
        super().__init__()
        self.net, self.dtype, self.integer_times = net, dtype, integer_times

    def forward(self, sample: Tensor, timestep: Tensor, label: Tensor | None = None) -> Tensor:
        out = self.net(sample.to(self.dtype), timestep, *(() if label is None else (label,)))
        out = getattr(out, "sample", out)
        return out.to(torch.float32)


def traced(model: Model, *, opset: int, batch: int | None, precision: str) -> onnx.ModelProto:
    """The network of a model, traced by torch.onnx in evaluation mode.

    sample, out_sample: (batch, *shape) float32.  timestep: (batch,) float32, or int32 for a network of whole times.
    label: (batch,) int32.  batch: None, a dynamic axis "batch", or a number.
    precision: "fp32", or "fp16", the network in half precision, converted here, between casts.
    ValueError: the model holds no nn.Module, or torch.onnx cannot trace it.
    """
    net, dtype = model.net, PRECISIONS[precision]
    if not isinstance(net, nn.Module):
        raise ValueError(
            f"only a model around an nn.Module can be exported, this one holds a {type(net).__name__}; "
            "wrap the function in a module, or export the network elsewhere and load the file with odediff.onnx.load"
        )
    if any(t.is_floating_point() and t.dtype != dtype for t in (*net.parameters(), *net.buffers())):
        net = copy.deepcopy(net).to(dtype)
    wrapped = _Network(net, dtype, model.integer_times).eval()
    n, device = batch or 2, model.device
    kind = torch.int32 if model.integer_times else torch.float32
    args: tuple[Tensor, ...] = (torch.zeros(n, *model.shape, device=device), torch.ones(n, dtype=kind, device=device))
    names = ["sample", "timestep"]
    if model.num_classes is not None:
        args, names = (*args, torch.zeros(n, dtype=torch.int32, device=device)), [*names, "label"]
    dims = None if batch else {name: {0: torch.export.Dim("batch", min=1)} for name in names}
    with evaluating(model), _quiet():
        try:
            program = torch.onnx.export(
                wrapped,
                args,
                dynamo=True,
                opset_version=opset,
                input_names=names,
                output_names=["out_sample"],
                dynamic_shapes=dims,
                verbose=False,
            )
        except Exception as error:
            raise ValueError(f"torch.onnx could not trace the network: {error}") from error
    assert program is not None
    return program.model_proto


def bare(made: onnx.ModelProto) -> None:
    """Drop what an exporter leaves about how it came to its nodes: half of a file, and paths of the machine."""
    for holder in (made.graph, *made.graph.node, *made.graph.input, *made.graph.output, *made.graph.initializer):
        fields: Any = holder
        del fields.metadata_props[:]
        fields.ClearField("doc_string")
    del made.graph.value_info[:]


@contextmanager
def _quiet() -> Iterator[None]:
    """No word of torch.onnx on the packages that it looked for, nor its warnings about its own use of torch."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
