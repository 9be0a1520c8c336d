"""A network's graph within another: fed and read in its own names, element types and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper

from .graph import Builder, value

if TYPE_CHECKING:
    from .runtime import OnnxModel


class Network(NamedTuple):
    """A network's graph and what its values are called and hold: how it is fed and read."""

    proto: onnx.ModelProto
    names: Mapping[str, str]  # sample, timestep, label, out_sample -> the graph's own

    def type_of(self, what: str) -> tuple[int, list[int | str]]:
        """(element type, dimensions) of an input or the output. ValueError: the graph has no such value."""
        name = self.names[what]
        for one in (*self.proto.graph.input, *self.proto.graph.output):
            if one.name == name:
                tensor = one.type.tensor_type
                return tensor.elem_type, [dim.dim_value or dim.dim_param for dim in tensor.shape.dim]
        known = ", ".join(one.name for one in (*self.proto.graph.input, *self.proto.graph.output))
        raise ValueError(f"the graph has no {name!r} for {what}; it has {known}")

    def call(
        self, g: Builder, x: str, times: str, label: str | None, prefix: str, times_type: int = TensorProto.FLOAT
    ) -> str:
        """Write the nodes in; the output as float32. x: float32.  times: (batch,) of times_type.  label: int32."""
        feeds = {}
        given = ("sample", x, TensorProto.FLOAT), ("timestep", times, times_type), ("label", label, TensorProto.INT32)
        for what, name, own in given:
            if name is None:
                continue
            kind, dims = self.type_of(what)
            if what == "timestep" and (not dims or dims == [1]):
                name = g.op("Slice", name, *(g.constant([k], np.int64) for k in (0, 1)))
                name = name if dims else g.op("Squeeze", name)
            feeds[self.names[what]] = name if kind == own else g.op("Cast", name, to=kind)
        index = [one.name for one in self.proto.graph.output].index(self.names["out_sample"])
        out = g.inline(self.proto.graph, feeds, prefix, "net/")[index]
        kind, _ = self.type_of("out_sample")
        return out if kind == TensorProto.FLOAT else g.op("Cast", out, to=TensorProto.FLOAT)


def network_graph(network: Network, model: OnnxModel, batch: int | None) -> onnx.ModelProto:
    """A network from elsewhere in the names, types and shapes that `odediff.export` writes."""
    g, n, kind = Builder(), batch or "batch", TensorProto.INT32 if model.integer_times else TensorProto.FLOAT
    inputs = [value("sample", [n, *model.shape]), value("timestep", [n], kind)]
    label = None if model.num_classes is None else "label"
    if label:
        inputs.append(value(label, [n], TensorProto.INT32))
    out = network.call(g, "sample", "timestep", label, "node/", kind)
    g.op("Identity", out, name="out_sample")
    outputs = [value("out_sample", [n, *model.shape])]
    graph = helper.make_graph(g.nodes, "network", inputs, outputs, list(g.tensors.values()))
    made = helper.make_model(graph, opset_imports=network.proto.opset_import, functions=network.proto.functions)
    made.ir_version = max(network.proto.ir_version, 4)  # before 4, weights had to be inputs
    return made
