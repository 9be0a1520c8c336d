"""Building blocks of ONNX graphs: named constants, nodes, and another graph written in with other names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

LARGEST = 2**31 - 2**20  # bytes that protobuf can hold


class Builder:
    """Nodes and initialisers in the order they were asked for; equal constants are stored once.

    prefix: of the names that are made up, which must differ between a graph and its subgraphs.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.nodes: list[NodeProto] = []
        self.tensors: dict[str, TensorProto] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def constant(self, value: ArrayLike, dtype: Any = np.float32, name: str | None = None) -> str:
        """The name of an initialiser with this value."""
        array = np.asarray(value, dtype)
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            name = self.prefix + (name or f"constant_{len(self._constants)}")
            self.tensors[name] = numpy_helper.from_array(array, name)
            self._constants[key] = name
        return self._constants[key]

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """The output of a new node of one output, which is called `name`."""
        return self.ops(kind, *inputs, names=[name or f"{self.prefix}{kind.lower()}_{len(self.nodes)}"], **attributes)[
            0
        ]

    def ops(self, kind: str, *inputs: str, names: list[str], **attributes: Any) -> list[str]:
        """The outputs of a new node."""
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=f"{kind}:{names[0]}", **attributes))
        return names

    def inline(self, graph: GraphProto, feeds: Mapping[str, str], prefix: str, shared: str) -> list[str]:
        """Write a graph in: inputs become `feeds`, weights `shared` + name, other values `prefix` + name."""
        names = {**feeds, **{tensor.name: shared + tensor.name for tensor in graph.initializer}}
        for tensor in graph.initializer:
            if names[tensor.name] not in self.tensors:
                copy = TensorProto()
                copy.CopyFrom(tensor)
                copy.name = names[tensor.name]
                self.tensors[copy.name] = copy
        for node in graph.node:
            self.nodes.append(_renamed(node, names, prefix))
        return [names.get(value.name, prefix + value.name) for value in graph.output]


def _renamed(node: NodeProto, names: Mapping[str, str], prefix: str) -> NodeProto:
    """The node with its values, and those that its subgraphs read or make, renamed."""
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.name = node.name and prefix + node.name
    for values in (copy.input, copy.output):
        values[:] = [names.get(value, prefix + value) if value else "" for value in values]
    for attribute in copy.attribute:
        graphs = {AttributeProto.GRAPH: [attribute.g], AttributeProto.GRAPHS: attribute.graphs}
        for graph in graphs.get(attribute.type, ()):
            for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
                value.name = names.get(value.name, prefix + value.name)
            inner = [_renamed(one, names, prefix) for one in graph.node]
            del graph.node[:]
            graph.node.extend(inner)
    return copy


def value(name: str, shape: list[int | str], dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    """A graph's input or output."""
    return helper.make_tensor_value_info(name, dtype, shape)


def dims_of(graph: GraphProto, name: str) -> list[int | str]:
    """A value's dimensions, [] where they are not known."""
    for entry in (*graph.value_info, *graph.input):
        if entry.name == name:
            return [dim.dim_value or dim.dim_param for dim in entry.type.tensor_type.shape.dim]
    return []


def body_of(made: onnx.ModelProto) -> GraphProto:
    """The graph in which a network's nodes are: the body of a loop over rows, or the whole."""
    for node in made.graph.node:
        if node.op_type == "Loop" and node.output[0] == "x_last":
            return next(attribute.g for attribute in node.attribute if attribute.name == "body")
    return made.graph


def opset_in(made: onnx.ModelProto) -> int:
    """The version of the default operators."""
    return next(one.version for one in made.opset_import if one.domain in ("", "ai.onnx"))
