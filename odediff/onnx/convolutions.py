"""Two kinds of convolution of a traced network in a form that costs onnxruntime's CPU provider less.

3x3 over twice the size      four 2x2 over the size itself, one per phase (a, b) of the pixels y[2 i + a, 2 j + b]:
                             a row's taps (w0, w1, w2) fall on two rows, as (w0, w1 + w2) or (w0 + w1, w2);
                             4 / 9 of the products
many channels to a few       ConvTranspose with the kernel turned: a matrix product of the channels and a sum of shifts;
                             the direct form computes 16 channels at least

Both are in standard operators and equal in exact arithmetic; only float32 is rewritten, since sums of weights in half
precision would be rounded. The phases are those of Aitken et al. 2017, arXiv:1707.02937.
"""

from __future__ import annotations

from collections.abc import Container
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

from .graph import dims_of

MANY, FEW = 16, 4  # channels in and out from and up to which the second form is taken
PHASES = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float64)  # (phase, row, tap)
AROUND: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
PLAIN = {"auto_pad": b"NOTSET", "dilations": [1, 1], "group": 1, "pads": [0, 0, 0, 0], "strides": [1, 1]}
TWICE = {"mode": b"nearest", "coordinate_transformation_mode": b"asymmetric", "nearest_mode": b"floor"}


def cheaper(graph: GraphProto, kept: Container[str] = ()) -> None:
    """Rewrite a graph's convolutions in place; shapes are read from its value_info. What is no longer read stays.

    kept: names of convolutions that are not to become a ConvTranspose, which has no int8 in onnxruntime.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    nodes: list[NodeProto] = []
    for node in graph.node:
        weight = _kernel(node, constants)
        if weight is None:
            nodes.append(node)
            continue
        small = _doubled(makers.get(node.input[0]), constants)
        dims = dims_of(graph, small) if small else []
        if len(dims) == 4 and all(isinstance(dim, int) for dim in dims[1:]):
            nodes += _phases(graph, node, small, dims, weight)
        elif weight.shape[1] >= MANY and len(weight) <= FEW and node.name not in kept:
            nodes.append(_turned(graph, node, weight))
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _kernel(node: NodeProto, constants: dict[str, TensorProto]) -> NDArray[np.float32] | None:
    """The float32 weights of a 3x3 convolution that keeps the size, (out, in, 3, 3); else None."""
    if node.op_type != "Conv" or node.domain or node.input[1] not in constants:
        return None
    weight = constants[node.input[1]]
    given = {**PLAIN, "kernel_shape": list(weight.dims[2:]), **_attributes(node)}
    fits = {**PLAIN, **AROUND} == given and weight.data_type == TensorProto.FLOAT
    return numpy_helper.to_array(weight) if fits else None


def _doubled(node: NodeProto | None, constants: dict[str, TensorProto]) -> str:
    """What a node repeats 2x2, "" if it does something else."""
    if node is None or node.op_type != "Resize" or node.domain or len(node.input) != 3:
        return ""
    scales = constants.get(node.input[2])
    if scales is None or numpy_helper.to_array(scales).tolist() != [1, 1, 2, 2]:
        return ""
    given = _attributes(node)
    return node.input[0] if all(given.get(key) == value for key, value in TWICE.items()) else ""


def _phases(
    graph: GraphProto, node: NodeProto, x: str, dims: list[Any], weight: NDArray[np.float32]
) -> list[NodeProto]:
    """The convolution of x, (N, C, H, W), repeated 2x2: a convolution a phase, and the pixels put where they belong.

    Side by side in channels, the phases are (N, H, W, a, b, C) to a Transpose; rows of b and C are moved whole.
    """
    y, out = node.output[0], len(weight)
    n, _, h, w = dims
    nodes, phases = [], []
    for a, b in product((0, 1), repeat=2):
        name = f"{y}_phase{a}{b}"
        taps = np.einsum("pi,qj,ocij->ocpq", PHASES[a], PHASES[b], weight.astype(np.float64))
        kernel = _add(graph, f"{name}_weight", taps.astype(np.float32))
        pads: dict[str, Any] = {"kernel_shape": [2, 2], "pads": [1 - a, 1 - b, a, b]}
        nodes.append(helper.make_node("Conv", [x, kernel, *node.input[2:]], [name], name=f"{node.name}_{a}{b}", **pads))
        _know(graph, name, [n, out, h, w])
        phases.append(name)
    shapes = [
        _add(graph, f"{y}_shape{k}", shape) for k, shape in enumerate(([0, h, w, 2, 2 * out], [0, 2 * h, 2 * w, out]))
    ]
    steps: list[tuple[str, list[str], list[Any], dict[str, Any]]] = [
        ("Concat", [], [n, 4 * out, h, w], {"axis": 1}),
        ("Transpose", [], [n, h, w, 4 * out], {"perm": [0, 2, 3, 1]}),
        ("Reshape", [shapes[0]], [n, h, w, 2, 2 * out], {}),
        ("Transpose", [], [n, h, 2, w, 2 * out], {"perm": [0, 1, 3, 2, 4]}),
        ("Reshape", [shapes[1]], [n, 2 * h, 2 * w, out], {}),
    ]
    last = phases
    for k, (kind, more, shape, attributes) in enumerate(steps):
        name = f"{y}_step{k}"
        nodes.append(helper.make_node(kind, [*last, *more], [name], name=f"{node.name}_{kind}{k}", **attributes))
        _know(graph, name, shape)
        last = [name]
    nodes.append(helper.make_node("Transpose", last, [y], name=f"{node.name}_last", perm=[0, 3, 1, 2]))
    return nodes


def _turned(graph: GraphProto, node: NodeProto, weight: NDArray[np.float32]) -> NodeProto:
    """The same as a transposed convolution."""
    kernel = _add(graph, f"{node.output[0]}_turned", weight[:, :, ::-1, ::-1].swapaxes(0, 1))
    inputs = [node.input[0], kernel, *node.input[2:]]
    return helper.make_node("ConvTranspose", inputs, list(node.output), name=node.name, **AROUND)


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {one.name: helper.get_attribute_value(one) for one in node.attribute if one.type != AttributeProto.GRAPH}


def _add(graph: GraphProto, name: str, array: ArrayLike) -> str:
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    return name


def _know(graph: GraphProto, name: str, shape: list[Any]) -> None:
    graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
