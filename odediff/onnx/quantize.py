"""int8: a network's convolutions and linear layers in 8 bits, between QuantizeLinear and DequantizeLinear.

    x_q = clamp(round(x / s) + z),    x ~ s (x_q - z)        weights: z = 0, one s per output channel

The ranges behind s are the extremes of each value over the network's inputs on the model's own trajectories, all rows
of the plan, so that every noise level is covered; means of the rows' extremes and percentiles gave worse images, even
where the network's own error was smaller. onnxruntime's quantiser writes the nodes; its CPU provider, and TensorRT by
its documentation, compute such a group in integers.

What stays in float32: the products of attention, norms, activations and sums; and the layers at both ends of the
network, since the last rows of a plan ask for noise that is smaller than one step of an int8 image.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor, nn

from .graph import LARGEST

Feeds = dict[str, NDArray[Any]]
FLOAT = onnx.TensorProto.FLOAT
LAYERS = ("Conv", "Gemm", "MatMul")


def recorded(net: nn.Module, made: onnx.ModelProto, run: Callable[[], object]) -> list[Feeds]:
    """What the network is fed while `run` runs, call by call, under the names and in the types of its graph's inputs.

    A graph of a fixed batch gets as many feeds of that batch as a call fills.
    """
    kinds = {one.name: helper.tensor_dtype_to_np_dtype(one.type.tensor_type.elem_type) for one in made.graph.input}
    rows = made.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    found: list[Feeds] = []

    def keep(_: nn.Module, args: Sequence[Tensor]) -> None:
        given = zip(kinds.items(), args, strict=True)
        feeds = {name: t.double().cpu().numpy().astype(kind) for (name, kind), t in given}
        size = rows or len(args[0])
        for k in range(0, len(args[0]), size):
            found.append({name: array[k : k + size] for name, array in feeds.items()})

    handle = net.register_forward_pre_hook(keep)
    try:
        run()
    finally:
        handle.remove()
    return found


def quantized(made: onnx.ModelProto, feeds: Iterable[Feeds], *, zero_point: bool) -> onnx.ModelProto:
    """The network's graph with its layers in int8, calibrated on `feeds`.

    zero_point: activations in uint8 with a zero point, which is what onnxruntime's CPU provider computes in; else in
    int8 around zero and biases in float32, which is what TensorRT takes.
    ValueError: no layer lies between the network's first and last.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    names = between(made.graph)
    if not names:
        raise ValueError(
            'precision = "int8" leaves the first and the last layer as they are, and this network has no convolution '
            'or linear layer between them; use "fp32" or "fp16"'
        )
    given = copy.deepcopy(made)  # the quantiser moves its weights to a file
    del given.graph.value_info[:]
    for node in given.graph.node:
        if node.name in names:  # the types that onnx's inference loses behind GroupNormalization
            known = (helper.make_tensor_value_info(value, FLOAT, None) for value in (node.input[0], node.output[0]))
            given.graph.value_info.extend(known)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "int8.onnx"
        quantize_static(
            given,
            path,
            _Reader(feeds),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(LAYERS),
            nodes_to_quantize=names,
            per_channel=True,
            activation_type=QuantType.QUInt8 if zero_point else QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            use_external_data_format=given.ByteSize() > LARGEST,
            extra_options={
                "ActivationSymmetric": not zero_point,
                "QuantizeBias": zero_point,
                "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
            },
        )
        done = onnx.load(path)
    del done.graph.value_info[:]
    return done


def between(graph: onnx.GraphProto) -> list[str]:
    """Names of the layers with constant weights, without those that no other separates from an end of the network."""
    weights = {tensor.name for tensor in graph.initializer if tensor.data_type == FLOAT}
    kinds = (*LAYERS, "ConvTranspose")
    layers = {node.name: node.op_type for node in graph.node if node.op_type in kinds and node.input[1] in weights}
    ends: set[str] = set()
    for start, nodes, there, on in (
        (graph.input[0], graph.node, "input", "output"),
        (graph.output[0], reversed(graph.node), "output", "input"),
    ):
        near = {start.name}
        for node in nodes:
            if near.isdisjoint(getattr(node, there)) or node.op_type == "Shape":
                continue
            if node.name in layers:
                ends.add(node.name)
            else:
                near.update(getattr(node, on))
    return [node.name for node in graph.node if layers.get(node.name) in LAYERS and node.name not in ends]


class _Reader:
    """Feeds, one at a time, as onnxruntime's calibration asks for them."""

    def __init__(self, feeds: Iterable[Feeds]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feeds | None:
        return next(self._feeds, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """No word of the quantiser, which logs to the root logger, nor of its sessions, which write to stderr."""
    import onnxruntime

    root, handler = logging.getLogger(), logging.NullHandler()

    def others(record: logging.LogRecord) -> bool:
        return Path(record.pathname).parent.name != "quantization"

    root.addFilter(others)
    root.addHandler(handler)  # or its first word would leave one there
    onnxruntime.set_default_logger_severity(3)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)
        root.removeHandler(handler)
        root.removeFilter(others)
