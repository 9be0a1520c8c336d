"""The rewrites of a traced network change its operators and nothing of what it computes."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import odediff
from odediff.onnx.network import traced
from odediff.onnx.rewriting import simplify


class Norms(nn.Module):
    """GroupNorm with weights that are not 1 and 0, a product that is no channel's, and a sum without a product."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.scale = nn.Parameter(torch.randn(1, 1, 6))
        self.shift = nn.Parameter(torch.randn(4, 1, 1))
        self.out = nn.Conv2d(4, 2, 1)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x, t):
        h = self.norm(self.conv(x)) * self.scale + self.shift
        return self.out(h) + t[:, None, None, None] / 1000


def ran(made: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"sample": x, "timestep": np.full(len(x), 300, np.float32)})[0]


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_network_has_fewer_operators_and_the_same_output(batch, precision):
    model = odediff.Model(Norms().eval(), schedule=odediff.schedule.linear(), shape=(2, 5, 6))
    before = traced(model, opset=20, batch=batch, precision=precision)
    after = onnx.ModelProto()
    after.CopyFrom(before)
    simplify(after)
    onnx.checker.check_model(after, full_check=True)
    was, now = (Counter(node.op_type for node in made.graph.node) for made in (before, after))
    assert now["Shape"] == 0 and now["BatchNormalization"] == 1
    assert (was["Mul"] - now["Mul"], was["Add"] - now["Add"]) == (1, 1)  # not the product along a row, nor its sum
    x = np.random.default_rng(0).standard_normal((3, 2, 5, 6), dtype=np.float32)
    np.testing.assert_allclose(ran(after, x), ran(before, x), atol=5e-3 if precision == "fp16" else 2e-6)
    read = {name for node in after.graph.node for name in node.input}
    assert {tensor.name for tensor in after.graph.initializer} <= read


def affine(w: tuple[int, ...], b: tuple[int, ...], y: tuple[int, ...]) -> onnx.ModelProto:
    """x w + b with constants of these shapes."""
    rng = np.random.default_rng(1)
    tensors = [
        numpy_helper.from_array(rng.standard_normal(shape, dtype=np.float32), name)
        for name, shape in (("w", w), ("b", b))
    ]
    nodes = [helper.make_node("Mul", ["sample", "w"], ["p"]), helper.make_node("Add", ["p", "b"], ["out"])]
    values = [
        helper.make_tensor_value_info("sample", TensorProto.FLOAT, list(y)),
        helper.make_tensor_value_info("timestep", TensorProto.FLOAT, [y[0]]),
    ]
    graph = helper.make_graph(
        nodes, "g", values, [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)], tensors
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@pytest.mark.parametrize(
    ("w", "b", "y", "merged"),
    [
        ((4, 1, 1), (4, 1, 1), (2, 4, 3, 3), True),
        ((4, 1, 1), (4, 1, 1), (2, 1, 3, 3), False),  # y is spread over the channels, which BatchNormalization does not
        ((4, 1, 1), (1,), (2, 4, 3, 3), False),
        ((4, 3, 1), (4, 3, 1), (2, 4, 3, 3), False),
        ((4, 1), (4, 1), (2, 4, 4), False),
    ],
)
def test_only_a_channels_factor_and_summand_are_merged(w, b, y, merged):
    made = affine(w, b, y)
    x = np.random.default_rng(2).standard_normal(y, dtype=np.float32)
    want = ran(made, x)
    simplify(made)
    assert ("BatchNormalization" in {node.op_type for node in made.graph.node}) == merged
    np.testing.assert_allclose(ran(made, x), want, atol=1e-6)


def test_exports_for_tensorrt_are_left_as_they_are(tmp_path):
    model = odediff.Model(Norms().eval(), schedule=odediff.schedule.linear(), shape=(2, 5, 6))
    for target, merged in (("onnxruntime", True), ("tensorrt-10.0", False)):
        odediff.export(model, tmp_path / "n.onnx", target=target)
        kinds = {node.op_type for node in onnx.load(tmp_path / "n.onnx").graph.node}
        assert ("BatchNormalization" in kinds) == merged


class Branches(nn.Module):
    """Weights, and a product, that only the branches of a condition read."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 1)
        self.scale, self.shift = nn.Parameter(torch.randn(2, 1, 1)), nn.Parameter(torch.randn(2, 1, 1))

    def forward(self, x, t):
        y = x.tanh() * self.scale
        z = y + self.shift
        late = t.mean() > 500.0
        return z + torch.cond(late, lambda x, y: self.one(x) * y, lambda x, y: self.other(x) + y, (x, y))


def test_what_a_branch_reads_stays(tmp_path):
    model = odediff.Model(Branches().eval(), schedule=odediff.schedule.linear(), prediction="v", shape=(2, 5, 6))
    odediff.export(model, tmp_path / "n.onnx")
    network = odediff.onnx.load(tmp_path / "n.onnx")
    assert ("", "If") in network.summary.operators
    x = np.random.default_rng(0).standard_normal((3, 2, 5, 6), dtype=np.float32)
    with torch.no_grad():
        for t in (10.0, 990.0):
            np.testing.assert_allclose(network(x, t), model(torch.from_numpy(x), t).numpy(), atol=2e-6)
    for form in ("loop", "unrolled"):
        odediff.export(network, tmp_path / "s.onnx", "ddim", 4, form=form)
