"""How much memory one sample takes in a network: the most bytes of values that are alive at a time."""

from __future__ import annotations

import re
from math import prod

import onnx
from onnx import TensorProto, helper


def peak_bytes(made: onnx.ModelProto, sample: str = "sample") -> int:
    """Bytes for a batch of one, node by node in the graph's order; 0 if a shape is not known. sample: that input.

    A value lives from the node that makes it to the last one that reads it. Weights are not counted; executors reuse
    and pad memory in ways of their own.
    """
    graph = made.graph
    if not graph.value_info:
        graph = onnx.shape_inference.infer_shapes(made, data_prop=True).graph
    dims = next(entry for entry in graph.input if entry.name == sample).type.tensor_type.shape.dim
    fixed = dims[0].dim_value or 1 if dims else 1
    sizes = {entry.name: _bytes(entry.type.tensor_type) for entry in (*graph.value_info, *graph.input, *graph.output)}
    last = {name: i for i, node in enumerate(graph.node) for name in node.input}
    alive: dict[str, int] = {}
    most = 0
    for i, node in enumerate(graph.node):
        for name in filter(None, node.output):
            if name not in sizes:
                return 0
            alive[name] = sizes[name]
        most = max(most, sum(alive.values()))
        alive = {name: size for name, size in alive.items() if last.get(name, -1) > i}
    return -(-most // fixed)


def _bytes(tensor: onnx.TypeProto.Tensor) -> int:
    """Of a value, with 1 for the symbol "batch" in dimensions such as "8*batch"."""
    dims = [dim.dim_value if dim.HasField("dim_value") else _number(dim.dim_param) for dim in tensor.shape.dim]
    if tensor.elem_type == TensorProto.UNDEFINED:
        return 0
    return prod(dims) * helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize


def _number(symbol: str) -> int:
    return prod(int(digits) for digits in re.findall(r"\d+", re.sub(r"[A-Za-z_]\w*", "", symbol)))
