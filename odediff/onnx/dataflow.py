"""An ONNX graph with its subgraphs as nodes and values that know where they come from and where they go.

    origin(output) = max over the inputs of origin(input),    CONSTANT < SHAPE < COUNTER < INDEX < DATA

CONSTANT: initialisers, known sizes, and what is computed from them.  SHAPE: from sizes that are not known too.
COUNTER: from the number of a loop's iteration too.  INDEX: 64-bit integers cast from narrower ones, such as labels.
DATA: everything else.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

INTEGERS = (TensorProto.INT64, TensorProto.INT32, TensorProto.UINT8, TensorProto.BOOL)
_BODIES = {"If": ("then_branch", "else_branch"), "Loop": ("body",), "Scan": ("body",)}
_RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")


class Origin(IntEnum):
    """What a value depends on, at most."""

    CONSTANT, SHAPE, COUNTER, INDEX, DATA = range(5)


@dataclass(eq=False)
class Value:
    """A tensor.  type: a `TensorProto.DataType`, 0 where unknown.  shape: sizes, names of dimensions, None unknown."""

    name: str
    type: int = 0
    shape: tuple[int | str | None, ...] | None = None
    origin: Origin = Origin.DATA
    tensor: TensorProto | None = None
    producer: Node | None = None
    sizes: tuple[int | str | None, ...] | None = None  # what it holds, where that is sizes of a tensor
    uses: list[tuple[Node, int]] = field(default_factory=list)

    @property
    def static(self) -> bool:
        """Whether every size is a known number."""
        return self.shape is not None and all(isinstance(size, int) for size in self.shape)

    def number(self) -> NDArray[Any] | None:
        """The value, if it lies in the file itself, or None: computed values and external data are not read."""
        if self.producer is not None and self.producer.op == "Identity" and self.producer.inputs[0] is not None:
            return self.producer.inputs[0].number()
        if self.tensor is None or self.tensor.data_location == TensorProto.EXTERNAL:
            return None
        return numpy_helper.to_array(self.tensor)


@dataclass(eq=False)
class Node:
    """An operator.  inputs, outputs: None where left out.  bodies: subgraphs by the name of their attribute."""

    proto: onnx.NodeProto
    name: str
    inputs: list[Value | None]
    outputs: list[Value | None] = field(default_factory=list)
    bodies: dict[str, Graph] = field(default_factory=dict)

    @property
    def op(self) -> str:
        return self.proto.op_type

    @property
    def domain(self) -> str:
        return self.proto.domain

    def attribute(self, name: str) -> Any:
        """The value of an attribute, None if it is left out."""
        return next((helper.get_attribute_value(a) for a in self.proto.attribute if a.name == name), None)

    def input(self, index: int) -> Value | None:
        """An input, None if it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None


@dataclass(eq=False)
class Graph:
    """A graph in order.  inputs: without the initialisers that older files list among them."""

    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    initializers: list[Value] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)

    def walk(self) -> Iterator[tuple[Graph, Node]]:
        """Every node with its graph, subgraphs' after the node that holds them."""
        for node in self.nodes:
            yield self, node
            for body in node.bodies.values():
                yield from body.walk()

    def values(self) -> Iterator[Value]:
        """Every tensor once."""
        yield from (*self.inputs, *self.initializers)
        for node in self.nodes:
            yield from (v for v in node.outputs if v is not None)
            for body in node.bodies.values():
                yield from body.values()


def read(model: onnx.ModelProto) -> Graph:
    """The graph of a model whose shapes were inferred. ValueError: a node reads a tensor that nothing gives."""
    return _graph(model.graph, {})


def _described(info: onnx.ValueInfoProto) -> Value:
    """A value as the file describes it; sequences, maps and optionals have type 0 and no shape."""
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        return Value(info.name, tensor.elem_type)
    sizes = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim]
    return Value(info.name, tensor.elem_type, tuple(sizes))


def _graph(proto: onnx.GraphProto, outer: MutableMapping[str, Value], node: Node | None = None) -> Graph:
    """A graph that sees the tensors of those around it; node: whose body it is."""
    known = {info.name: info for info in (*proto.value_info, *proto.output)}
    seen: MutableMapping[str, Value] = ChainMap({}, outer)
    graph = Graph()
    for tensor in proto.initializer:
        value = Value(tensor.name, tensor.data_type, tuple(tensor.dims), Origin.CONSTANT, tensor)
        graph.initializers.append(value)
        seen[value.name] = value
    for sparse in proto.sparse_initializer:
        value = Value(sparse.values.name, sparse.values.data_type, tuple(sparse.dims), Origin.CONSTANT)
        graph.initializers.append(value)
        seen[value.name] = value
    own = {value.name for value in graph.initializers}
    for position, info in enumerate(info for info in proto.input if info.name not in own):
        value = _described(info)
        if node is not None:
            value.producer, value.origin = node, _given(node, position)
        graph.inputs.append(value)
        seen[value.name] = value
    for child in proto.node:
        graph.nodes.append(_node(child, seen, known))
    for info in proto.output:
        if info.name not in seen:
            raise ValueError(f'no node gives the output "{info.name}": the file is no valid ONNX; export it again')
        graph.outputs.append(seen[info.name])
    return graph


def _given(node: Node, position: int) -> Origin:
    """What an input of a body depends on: a loop's counter, or a condition that is a constant."""
    if node.op != "Loop" or position > 1:
        return Origin.DATA
    condition = node.input(1)
    return Origin.COUNTER if position == 0 else Origin.CONSTANT if condition is None else condition.origin


def _node(proto: onnx.NodeProto, seen: MutableMapping[str, Value], known: dict[str, onnx.ValueInfoProto]) -> Node:
    missing = next((name for name in proto.input if name and name not in seen), None)
    label = proto.name or next(iter(proto.output), proto.op_type)
    if missing is not None:
        raise ValueError(f'node "{label}" reads "{missing}", which nothing before it gives: the file is no valid ONNX')
    node = Node(proto, label, [seen[name] if name else None for name in proto.input])
    for index, value in enumerate(node.inputs):
        if value is not None:
            value.uses.append((node, index))
    for attribute in proto.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            node.bodies[attribute.name] = _graph(attribute.g, seen, node)
    lacking = [name for name in _BODIES.get(node.op, ()) if not node.domain and name not in node.bodies]
    if lacking or any(not body.outputs for body in node.bodies.values()):
        raise ValueError(f'{node.op} "{label}" lacks {", ".join(lacking) or "outputs"}: the file is no valid ONNX')
    for index, name in enumerate(proto.output):
        value = _described(known[name]) if name in known else Value(name)
        if node.op == "Loop" and value.shape is None and index < len(node.inputs) - 2:  # carried, so it keeps its shape
            value.shape = node.bodies["body"].outputs[index + 1].shape
        value.producer, value.tensor, value.sizes = node, _literal(node), _sizes(node)
        value.origin = _origin(node, index, value)
        node.outputs.append(value if name else None)
        if name:
            seen[name] = value
    return node


def _literal(node: Node) -> TensorProto | None:
    """The tensor of a Constant, whichever of its attributes holds it."""
    if node.op != "Constant":
        return None
    found = {a.name: helper.get_attribute_value(a) for a in node.proto.attribute}
    if isinstance(found.get("value"), TensorProto):
        tensor: TensorProto = found["value"]
        return tensor
    name = next((n for n in ("value_int", "value_ints", "value_float", "value_floats") if n in found), None)
    if name is None:
        return None
    return numpy_helper.from_array(np.array(found[name], dtype=np.int64 if "int" in name else np.float32))


def _origin(node: Node, index: int, value: Value) -> Origin:
    """What output `index` of a node depends on."""
    given = [v for v in node.inputs if v is not None]
    if node.domain or node.op in _RANDOM:
        return Origin.DATA
    if value.sizes is not None:
        return Origin.CONSTANT if all(isinstance(size, int) for size in value.sizes) else Origin.SHAPE
    if node.op in ("Shape", "Size"):
        return Origin.CONSTANT if given and given[0].static else Origin.SHAPE
    if node.op == "If" and all(index < len(body.outputs) for body in node.bodies.values()):
        given += [body.outputs[index] for body in node.bodies.values()]
    elif node.bodies or (not given and node.op != "Constant"):
        return Origin.DATA
    highest = max((v.origin for v in given), default=Origin.CONSTANT)
    if node.op == "Cast" and value.type == TensorProto.INT64 and highest == Origin.DATA:
        return Origin.INDEX if given[0].type in INTEGERS and given[0].type != TensorProto.INT64 else highest
    return Origin.DATA if highest == Origin.INDEX and value.type != TensorProto.INT64 else highest


def _sizes(node: Node) -> tuple[int | str | None, ...] | None:
    """The sizes of a tensor that a node hands on, None if it does anything else."""
    first = node.input(0)
    if node.domain or first is None:
        return None
    if node.op == "Shape":
        return None if first.shape is None else first.shape[node.attribute("start") or 0 : node.attribute("end")]
    if first.sizes is None:
        return None
    if node.op in ("Identity", "Cast", "Squeeze", "Unsqueeze"):
        return first.sizes
    numbers = [None if v is None else v.number() for v in node.inputs[1:]]
    if node.op == "Gather" and numbers and numbers[0] is not None:
        return tuple(first.sizes[i] for i in numbers[0].ravel())
    if node.op == "Slice" and len(numbers) >= 2 and all(n is not None and n.size == 1 for n in numbers):
        start, end, step = (int(n.item()) for n in (*numbers[:2], *(numbers[3:4] or [np.array(1)])) if n is not None)
        return first.sizes[start:end:step]
    return None
