"""ONNX files made by the `onnx` package or byte by byte, and what that package sees in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import Message
from onnx import GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper

from odediff.onnx import wire

PINNED = {"ir_version": 10, "opset_imports": [helper.make_opsetid("", 20), helper.make_opsetid("custom", 1)]}


def array(size: int = 3, name: str = "w") -> TensorProto:
    return numpy_helper.from_array(np.arange(size, dtype=np.float32), name)


def external(location: str = "data.bin", size: int = 3, name: str = "w", **keys: object) -> TensorProto:
    """A tensor of float32 whose data lies elsewhere."""
    tensor = TensorProto(name=name, data_type=1, dims=[size], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": 0, "length": 4 * size, **keys}.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def network(*tensors: TensorProto, nodes: list[NodeProto] | None = None, **more: Any) -> ModelProto:
    """y = relu(x), with tensors in it."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])
    nodes = [helper.make_node("Relu", ["x"], ["y"])] if nodes is None else nodes
    graph = helper.make_graph(nodes, "g", [x], [y], list(tensors), **more)
    return helper.make_model(graph, **PINNED)


def sparse(values: TensorProto, indices: TensorProto | None = None) -> SparseTensorProto:
    indices = numpy_helper.from_array(np.arange(values.dims[0])) if indices is None else indices
    return helper.make_sparse_tensor(values, indices, [9])


def inner_graph(tensor: TensorProto) -> GraphProto:
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT, [3])
    return helper.make_graph([helper.make_node("Identity", ["w"], ["z"])], "inner", [], [out], [tensor])


def with_attribute(value: object) -> ModelProto:
    return network(nodes=[helper.make_node("Op", ["x"], ["y"], domain="custom", value=value)])


def with_function(tensor: TensorProto) -> ModelProto:
    model = network()
    node = helper.make_node("Constant", [], ["f"], value=tensor)
    model.functions.append(helper.make_function("custom", "F", [], ["f"], [node], PINNED["opset_imports"]))
    return model


def with_default(tensor: TensorProto) -> ModelProto:
    model = with_function(array())
    model.functions[0].attribute_proto.append(helper.make_attribute("default", tensor))
    return model


def with_training(tensor: TensorProto, part: str) -> ModelProto:
    model = network()
    getattr(model.training_info.add(), part).CopyFrom(inner_graph(tensor))
    return model


def sparse_indices(tensor: TensorProto) -> SparseTensorProto:
    tensor.data_type, tensor.dims[:] = TensorProto.INT64, [1]
    tensor.external_data[2].value = "8"
    return sparse(array(1), tensor)


HIDING_PLACES: dict[str, Callable[[TensorProto], ModelProto]] = {
    "initializer": network,
    "sparse initializer": lambda t: network(sparse_initializer=[sparse(t)]),
    "indices": lambda t: network(sparse_initializer=[sparse_indices(t)]),
    "attribute t": with_attribute,
    "attribute tensors": lambda t: with_attribute([array(), t]),
    "attribute sparse_tensor": lambda t: with_attribute(sparse(t)),
    "attribute sparse_tensors": lambda t: with_attribute([sparse(array()), sparse(t)]),
    "attribute g": lambda t: with_attribute(inner_graph(t)),
    "attribute graphs": lambda t: with_attribute([inner_graph(array()), inner_graph(t)]),
    "function": with_function,
    "default of a function": with_default,
    "training initialization": lambda t: with_training(t, "initialization"),
    "training algorithm": lambda t: with_training(t, "algorithm"),
}


def save(folder: Path, model: ModelProto | bytes, data: int | None = 12) -> Path:
    """The model in a folder, with a file of `data` bytes beside it."""
    path = folder / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    if data is not None:
        (folder / "data.bin").write_bytes(bytes(data))
    return path


def refused(folder: Path, model: ModelProto | bytes, *told: str, data: int | None = 12) -> None:
    """Refused with an error that names the file and all that is `told`, and ends in a remedy."""
    path = save(folder, model, data)
    with pytest.raises(ValueError) as error:
        wire.read(path)
    message = str(error.value)
    assert all(part in message for part in (str(path), *told)), message
    assert ";" in message


def messages(message: Message) -> Iterator[Message]:
    """A message and all within it."""
    yield message
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for part in [value] if isinstance(value, Message) else value:
                yield from messages(part)


def type_of(info: onnx.ValueInfoProto) -> wire.Value:
    kind = info.type.WhichOneof("value")
    if kind != "tensor_type":
        return (kind.removesuffix("_type") if kind else "undefined"), ()
    dtype = info.type.tensor_type.elem_type
    dims = [d.dim_param or (d.dim_value if d.HasField("dim_value") else -1) for d in info.type.tensor_type.shape.dim]
    name = "string" if dtype == TensorProto.STRING else helper.tensor_dtype_to_np_dtype(dtype).name if dtype else None
    return name or "undefined", tuple("?" if isinstance(d, int) and d < 0 else d for d in dims)


def seen_by_onnx(model: ModelProto) -> dict[str, object]:
    """The part of a `Summary` that can be told without the data, by the onnx package."""
    graph = model.graph
    given = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    domain = {"ai.onnx": ""}
    nodes = [m for m in messages(model) if isinstance(m, NodeProto)]
    return {
        "metadata": {p.key: p.value for p in model.metadata_props},
        "inputs": {i.name: type_of(i) for i in graph.input if i.name not in given},
        "outputs": {o.name: type_of(o) for o in graph.output},
        "opsets": {domain.get(o.domain, o.domain): o.version for o in model.opset_import},
        "operators": frozenset((domain.get(n.domain, n.domain), n.op_type) for n in nodes),
    }


def agrees(summary: wire.Summary, model: ModelProto) -> None:
    want = seen_by_onnx(model)
    assert {key: getattr(summary, key) for key in want} == want


def everything() -> ModelProto:
    """A small model with a tensor in every place that there is, some of them external."""
    model = network(array(), external(name="e"), sparse_initializer=[sparse(array(2, "s"))])
    for make in HIDING_PLACES.values():
        other = make(external("data.bin", size=1, name="h"))
        model.graph.node.extend(other.graph.node)
        model.functions.extend(other.functions)
        model.training_info.extend(other.training_info)
    model.graph.initializer.append(helper.make_tensor("i", TensorProto.INT32, [3], [1, -1, 300]))
    model.graph.initializer.append(helper.make_tensor("t", TensorProto.STRING, [2], ["one", "three"]))
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3]))
    model.graph.input.append(helper.make_tensor_value_info("n", TensorProto.INT32, []))
    model.graph.input.append(helper.make_tensor_value_info("u", TensorProto.BFLOAT16, [None, 4, -1, 0, ""]))
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, [3])
    for name, kind in {
        "sequence": helper.make_sequence_type_proto(tensor),
        "optional": helper.make_optional_type_proto(tensor),
        "map": helper.make_map_type_proto(TensorProto.INT64, tensor),
        "sparse": helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [3]),
    }.items():
        model.graph.output.append(helper.make_value_info(name, kind))
    model.graph.output.append(onnx.ValueInfoProto(name="nothing"))
    model.graph.node.append(helper.make_node("Loop", [], [], body=inner_graph(array())))
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    helper.set_model_props(model, {"odediff": '{"é": 1}', "empty": ""})
    return model


def varint(value: int) -> bytes:
    low, value = value & 127, value >> 7
    return bytes([low | 128]) + varint(value) if value else bytes([low])


def message(number: int, content: bytes) -> bytes:
    """A field of bytes in protobuf's format."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def minimal(graph: bytes) -> bytes:
    """A model around the bytes of a graph."""
    return message(8, b"\x10\x14") + message(7, graph)
