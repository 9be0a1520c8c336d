"""Convolutions in a cheaper form: the same output, and only where the form is that of those they were written for."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import odediff
from odediff.onnx.convolutions import cheaper
from odediff.onnx.live import peak_bytes
from odediff.onnx.network import traced
from odediff.onnx.quantize import between
from odediff.onnx.rewriting import simplify


class Twice(nn.Module):
    """Half the size, twice the size and a convolution, and one to two channels, or what is given for these."""

    def __init__(self, *, up: nn.Module | None = None, last: nn.Module | None = None, again: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(2, 20, 3, stride=2, padding=1)
        self.up = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(20, 24, 3, padding=1)) if up is None else up
        self.last = nn.Conv2d(24, 2, 3, padding=1) if last is None else last
        self.again = again

    def forward(self, x, t):
        h = self.up[0](self.first(x))
        y = self.last(self.up[1](h).tanh())
        return (y + h[:, :2] if self.again else y) + t[:, None, None, None] / 1000


def graphs(
    net: nn.Module, batch: int | None = None, precision: str = "fp32"
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The network's graph as it was traced, and rewritten."""
    model = odediff.Model(net.eval(), schedule=odediff.schedule.linear(), shape=(2, 6, 10))
    before = traced(model, opset=20, batch=batch, precision=precision)
    after = onnx.ModelProto()
    after.CopyFrom(before)
    cheaper(after.graph)
    simplify(after)
    onnx.checker.check_model(after, full_check=True)
    return before, after


def kinds(made: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in made.graph.node)


def ran(made: onnx.ModelProto) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((3, 2, 6, 10), dtype=np.float32)
    return session.run(None, {"sample": x, "timestep": np.full(len(x), 300, np.float32)})[0]


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("again", [False, True])
def test_both_forms_compute_the_same(batch, again):
    before, after = graphs(Twice(again=again), batch)
    assert (kinds(before)["Conv"], kinds(before)["ConvTranspose"]) == (3, 0)
    assert (kinds(after)["Conv"], kinds(after)["ConvTranspose"]) == (1 + 4, 1)
    assert kinds(after)["Resize"] == again  # what another node reads stays
    np.testing.assert_allclose(ran(after), ran(before), atol=2e-6)
    held = {tuple(one.dims) for one in after.graph.initializer if len(one.dims) == 4}
    assert held == {(20, 2, 3, 3), (24, 20, 2, 2), (24, 2, 3, 3)}  # the other weights went
    assert peak_bytes(after) > 0  # all shapes are known


@pytest.mark.parametrize(
    "net",
    [
        Twice(up=nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(20, 24, 5, padding=2))),
        Twice(up=nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(20, 24, 3, padding=2, dilation=2))),
        Twice(up=nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(20, 24, 3, padding=1, groups=2))),
        Twice(up=nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(20, 24, 3, padding=1))),
        Twice(
            up=nn.Sequential(nn.Upsample(scale_factor=(4, 2)), nn.Conv2d(20, 24, 3, padding=1)),
            last=nn.Conv2d(24, 2, 3, stride=(2, 1), padding=1),
        ),
        Twice(
            up=nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(20, 24, 3, stride=2, padding=1)),
            last=nn.ConvTranspose2d(24, 2, 4, stride=2, padding=1),
        ),
        Twice(up=nn.Sequential(nn.Upsample(size=(6, 10)), nn.Conv2d(20, 24, 3, padding=1, padding_mode="circular"))),
    ],
    ids=["5x5", "dilation", "groups", "bilinear", "other scales", "stride", "circular"],
)
def test_other_upsamplings_stay(net):
    before, after = graphs(net)
    assert kinds(after)["Resize"] == 1
    assert kinds(after)["Conv"] + kinds(after)["ConvTranspose"] == 3
    np.testing.assert_allclose(ran(after), ran(before), atol=2e-6)


@pytest.mark.parametrize(
    ("last", "turned"),
    [
        (nn.Conv2d(24, 2, 3, padding=1, bias=False), True),
        (nn.Conv2d(24, 2, 1), False),
        (nn.Conv2d(24, 2, 3, padding=1, groups=2), False),
        (nn.Sequential(nn.Conv2d(24, 15, 3, padding=1), nn.Conv2d(15, 2, 3, padding=1)), False),
    ],
    ids=["no bias", "1x1", "groups", "too many, too few"],
)
def test_only_many_channels_to_a_few_are_turned(last, turned):
    before, after = graphs(Twice(last=last))
    assert kinds(after)["ConvTranspose"] == turned
    np.testing.assert_allclose(ran(after), ran(before), atol=2e-6)


def test_half_precision_stays():
    before, after = graphs(Twice(), precision="fp16")
    assert kinds(after)["Resize"] == 1 and kinds(after)["ConvTranspose"] == 0
    np.testing.assert_allclose(ran(after), ran(before), atol=5e-3)


def test_exports_have_them_but_for_tensorrt(tmp_path):
    model = odediff.Model(Twice().eval(), schedule=odediff.schedule.linear(), prediction="v", shape=(2, 6, 10))
    for target, held in (("onnxruntime", 1), ("tensorrt-10.0", 0)):
        for form in ("loop", "unrolled"):
            odediff.export(model, tmp_path / "s.onnx", "ddim", 2, form=form, target=target)
            operators = odediff.onnx.load(tmp_path / "s.onnx").summary.operators
            assert (("", "ConvTranspose") in operators) == held
            assert (("", "Resize") in operators) != held


def test_int8_takes_the_phases_and_leaves_the_ends():
    _, after = graphs(Twice())
    convolutions = [node.name for node in after.graph.node if node.op_type == "Conv"]
    assert between(after.graph) == convolutions[1:]


class Narrow(nn.Module):
    """Three convolutions, the middle one from many channels to a few; or behind an upsampling to more channels."""

    def __init__(self, wider: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(2, 4 if wider else 20, 3, stride=1 + wider, padding=1)
        self.middle = nn.Conv2d(4, 32, 3, padding=1) if wider else nn.Conv2d(20, 4, 3, padding=1)
        self.last = nn.Conv2d(32 if wider else 4, 2, 3, padding=1)
        self.up = nn.Upsample(scale_factor=2) if wider else nn.Identity()

    def forward(self, x, t):
        return self.last(self.middle(self.up(self.first(x).tanh()))) + t[:, None, None, None] / 1000


def narrow(wider: bool = False) -> odediff.Model:
    net = Narrow(wider).eval()
    return odediff.Model(net, schedule=odediff.schedule.linear(), prediction="v", shape=(2, 6, 10))


def test_int8_quantises_what_would_be_turned_between_the_ends(tmp_path):
    odediff.export(narrow(), tmp_path / "n.onnx", precision="int8", calibration=2)
    made = onnx.load(tmp_path / "n.onnx")
    assert (kinds(made)["Conv"], kinds(made)["ConvTranspose"]) == (3, 0)
    int8 = [tuple(one.dims) for one in made.graph.initializer if one.data_type == onnx.TensorProto.INT8]
    assert (4, 20, 3, 3) in int8
    odediff.export(narrow(), tmp_path / "n.onnx")
    assert kinds(onnx.load(tmp_path / "n.onnx"))["ConvTranspose"] == 1


def test_a_file_says_what_a_sample_takes_in_the_graph_that_it_holds(tmp_path):
    """The phases of 32 channels and the same side by side; before, the input of 4 at twice the size was beside them."""
    odediff.export(narrow(wider=True), tmp_path / "n.onnx")
    assert odediff.onnx.load(tmp_path / "n.onnx").about.memory >= 4 * 2 * 32 * 6 * 10
