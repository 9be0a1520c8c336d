"""int8: which layers are quantised and how, on which inputs the ranges are measured, and that nothing else changes."""

import logging
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import odediff
from odediff import exporting, parity
from odediff.onnx.graph import body_of, value
from odediff.onnx.network import traced
from odediff.onnx.quantize import LAYERS, between, quantized, recorded
from odediff.onnx.tensorrt import check

CLASSES = 3


class Net(nn.Module):
    """Convolutions, a time embedding, linear layers and attention, all with a say in the output."""

    def __init__(self, classes: int = 0) -> None:
        super().__init__()
        self.first, self.middle, self.wide = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 12, 3), nn.Conv2d(12, 8, 1)
        self.time, self.norm, self.last = nn.Linear(2, 12), nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 3, padding=2)
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)
        self.classes = nn.Embedding(classes + 1, 12) if classes else None

    def forward(self, x, t, label=None):
        emb = self.time(torch.stack([t / 1000, (t / 100).cos()], 1))
        emb = emb if self.classes is None else emb + self.classes(label)
        h = self.wide(F.silu(self.middle(F.silu(self.first(x))) + emb[:, :, None, None]))
        rows = self.norm(h).reshape(x.shape[0], 8, -1).transpose(1, 2)
        shares = (self.q(rows) @ self.k(rows).transpose(1, 2) / 8).softmax(2)
        h = h + (shares @ rows).transpose(1, 2).reshape(h.shape)
        return 1.5 * self.last(F.silu(h))


def model(classes: int = 0) -> odediff.Model:
    torch.manual_seed(3)
    return odediff.Model(
        Net(classes), schedule=odediff.schedule.linear(), prediction="v", shape=(2, 6, 6), num_classes=classes or None
    )


def sampling(made: odediff.Model, n: int, **options):
    plan = odediff.plan("ddim", made.schedule, 6)
    return partial(exporting._calibrate, made, plan, options, n, None)


@pytest.fixture(scope="module")
def plain() -> tuple[odediff.Model, onnx.ModelProto]:
    made = model()
    return made, traced(made, opset=20, batch=None, precision="fp32")


@pytest.fixture(scope="module")
def files(plain, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("int8")
    for target in ("onnxruntime", "tensorrt"):
        odediff.export(plain[0], folder / f"{target}.onnx", precision="int8", target=target, calibration=3)
    return {path.stem: path for path in folder.iterdir()}


class Graph:
    """A graph read by names: who makes a value, and what constants hold."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes = list(graph.node)
        self.maker = {out: node for node in self.nodes for out in node.output}
        self.constant = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}

    def dequantized(self, name: str):
        """(array, scale, zero point) of a constant behind a DequantizeLinear; None of another value."""
        node = self.maker.get(name)
        if node is None or node.op_type != "DequantizeLinear" or node.input[0] not in self.constant:
            return None
        return tuple(self.constant[one] for one in node.input)

    def layers(self, kind: str):
        return [node for node in self.nodes if node.op_type == kind]

    def activations(self, kind: str = "QuantizeLinear"):
        """(scale, zero point) of each value that is quantised."""
        return [tuple(self.constant[one] for one in node.input[1:]) for node in self.layers(kind)]


def test_the_layers_between_the_ends_hold_int8_weights_and_the_products_of_attention_stay(files):
    graph = Graph(onnx.load(files["onnxruntime"]).graph)
    held = {kind: [graph.dequantized(node.input[1]) for node in graph.layers(kind)] for kind in ("Conv", "Gemm")}
    shapes = [None if one is None else one[0].shape for one in held["Conv"]]
    assert shapes == [None, (12, 8, 3, 3), (8, 12, 1, 1), None]
    assert all(one[0].dtype == np.int8 for one in held["Conv"][1:3])
    assert [one[0].shape for one in held["Gemm"]] == [(12, 2)]
    products = [graph.dequantized(node.input[1]) for node in graph.layers("MatMul")]
    assert sorted(one[0].shape for one in products if one is not None) == [(8, 8), (8, 8)]
    assert sum(one is None for one in products) == 2


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])  # the latter of opset 23, with GroupNormalization
def test_what_a_layer_in_int8_reads_is_quantised_and_what_a_convolution_writes(files, target):
    graph = Graph(onnx.load(files[target]).graph)
    assert bool(graph.layers("GroupNormalization")) == (target == "tensorrt")
    layers = [node for kind in LAYERS for node in graph.layers(kind) if graph.dequantized(node.input[1])]
    assert len(layers) == 5
    for node in layers:
        read = graph.maker[node.input[0]]
        assert read.op_type == "DequantizeLinear"
        assert graph.maker[read.input[0]].op_type == "QuantizeLinear"
        users = [one.op_type for one in graph.nodes if node.output[0] in one.input]
        assert (users == ["QuantizeLinear"]) == (node.op_type == "Conv")


def test_tensorrts_documentation_takes_the_file_made_for_it_and_not_the_processors(files):
    assert check(files["tensorrt"]).ok
    assert not check(files["onnxruntime"]).ok


def test_int8_is_measured_over_all_batches_together_and_dropped_if_it_is_off(plain, tmp_path, monkeypatch):
    monkeypatch.setitem(parity.BOUNDS["images"], "int8", 1e-6)
    with pytest.raises(
        parity.ParityError, match=r"images is off by .* in 8 samples, more than 1e-06, the bound of int8"
    ):
        odediff.export(plain[0], tmp_path / "s.onnx", "ddim", 3, precision="int8", calibration=1)
    assert list(tmp_path.iterdir()) == []


def test_the_ends_are_found_by_the_way_of_the_data_and_not_of_its_shape():
    weights = [numpy_helper.from_array(np.ones((2, 2, 1, 1), np.float32), name) for name in ("w0", "w1", "w2")]
    nodes = [
        helper.make_node("Mul", ["sample", "sample"], ["x"]),
        helper.make_node("Conv", ["x", "w0"], ["a"], name="first"),
        helper.make_node("Shape", ["x"], ["size"]),
        helper.make_node("Reshape", ["a", "size"], ["b"]),
        helper.make_node("Conv", ["b", "w1"], ["c"], name="middle"),
        helper.make_node("Conv", ["c", "w2"], ["d"], name="last"),
        helper.make_node("Shape", ["c"], ["size_out"]),
        helper.make_node("Reshape", ["d", "size_out"], ["out_sample"]),
    ]
    ends = [value(name, ["batch", 2, 3, 3]) for name in ("sample", "out_sample")]
    assert between(helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)) == ["middle"]


def test_weights_have_one_step_per_output_channel_and_are_rounded_to_it(files, plain):
    graph = Graph(onnx.load(files["onnxruntime"]).graph)
    whole, scale, zero = graph.dequantized(graph.layers("Conv")[1].input[1])
    weight = plain[0].net.middle.weight.detach().numpy()
    assert np.all(zero == 0)
    np.testing.assert_allclose(scale, np.abs(weight).reshape(12, -1).max(1) / 127, rtol=2e-2)
    gap = np.abs(whole * scale[:, None, None, None] - weight) / scale[:, None, None, None]
    assert 0.3 < gap.max() <= 0.5001


def test_activations_have_a_zero_point_for_the_processor_and_none_for_tensorrt(files):
    graphs = {target: Graph(onnx.load(path).graph) for target, path in files.items()}
    zeros = {target: [zero for _, zero in graph.activations()] for target, graph in graphs.items()}
    assert len(zeros["onnxruntime"]) == len(zeros["tensorrt"]) >= 6
    assert {zero.dtype for zero in zeros["onnxruntime"]} == {np.dtype(np.uint8)}
    assert len({int(zero) for zero in zeros["onnxruntime"]}) > 2
    assert {(zero.dtype, int(zero)) for zero in zeros["tensorrt"]} == {(np.dtype(np.int8), 0)}
    biases = {
        target: [graph.constant.get(node.input[2], graph.dequantized(node.input[2])) for node in graph.layers("Conv")]
        for target, graph in graphs.items()
    }
    assert all(isinstance(one, np.ndarray) and one.dtype == np.float32 for one in biases["tensorrt"])
    assert [isinstance(one, tuple) for one in biases["onnxruntime"]] == [False, True, True, False]


def test_ranges_are_the_extremes_over_every_row_of_the_plan(plain):
    made, graph = plain
    seen = []
    handle = made.net.middle.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    run = sampling(made, 4)
    feeds = recorded(made.net, graph, run)
    handle.remove()
    times = np.float32(odediff.plan("ddim", made.schedule, 6).t)
    assert [one["timestep"].tolist() for one in feeds] == [[t] * 4 for t in times]
    low, high = min(float(x.min()) for x in seen), max(float(x.max()) for x in seen)
    assert (float(seen[0].min()), float(seen[0].max())) != (low, high) != (float(seen[-1].min()), float(seen[-1].max()))
    done = Graph(quantized(graph, feeds, zero_point=True).graph)
    quantize = done.maker[done.maker[done.layers("Conv")[1].input[0]].input[0]]
    scale, zero = (done.constant[one] for one in quantize.input[1:])
    assert float(scale) == pytest.approx((high - low) / 255, rel=1e-5)
    assert int(zero) == round(-low / float(scale))


def test_guided_sampling_calibrates_both_halves_and_a_network_alone_every_label():
    made = model(CLASSES)
    graph = traced(made, opset=20, batch=None, precision="fp32")
    feeds = recorded(made.net, graph, sampling(made, 4, guidance=2.0))
    assert len(feeds) == 6
    assert all(one["label"].tolist() == [CLASSES] * 4 + [0, 1, 2, 0] for one in feeds)
    assert {one["label"].dtype for one in feeds} == {np.dtype(np.int32)}
    alone = recorded(made.net, graph, partial(exporting._calibrate, made, None, {}, 4, None))
    assert [one["label"].tolist() for one in alone] == [[0, 1, 2, 0]] * 20 + [[CLASSES] * 4] * 20
    assert len({float(one["timestep"][0]) for one in alone}) == 20


def test_a_fixed_batch_is_calibrated_on_whole_batches():
    made = model()
    graph = traced(made, opset=20, batch=2, precision="fp32")
    plan = odediff.plan("ddim", made.schedule, 6)
    feeds = recorded(made.net, graph, partial(exporting._calibrate, made, plan, {}, 3, 2))
    assert [one["sample"].shape for one in feeds] == [(2, 2, 6, 6)] * 12
    assert not np.array_equal(feeds[0]["sample"], feeds[1]["sample"])
    assert [one["timestep"].shape for one in feeds] == [(2,)] * 12


def test_the_noise_of_calibration_is_the_same_each_time(plain):
    made, graph = plain
    one, two = (recorded(made.net, graph, sampling(made, 2)) for _ in range(2))
    assert all(np.array_equal(a["sample"], b["sample"]) for a, b in zip(one, two, strict=True))
    assert float(np.std(one[0]["sample"])) == pytest.approx(1, abs=0.2)
    files = [quantized(graph, feeds, zero_point=True).SerializeToString(deterministic=True) for feeds in (one, two)]
    assert files[0] == files[1]


def test_the_network_listens_no_longer_once_recorded_even_if_sampling_failed(plain):
    made, graph = plain

    def fail():
        made(torch.zeros(1, *made.shape), 5.0)
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        recorded(made.net, graph, fail)
    assert not made.net._forward_pre_hooks


def test_quantising_leaves_no_file_no_log_no_handler_and_its_input_as_it_was(plain, tmp_path, monkeypatch, capfd):
    made, graph = plain
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    root, before = logging.getLogger(), graph.SerializeToString()
    handlers, filters = list(root.handlers), list(root.filters)
    heard = []
    listener = logging.Handler()
    listener.emit = heard.append
    root.addHandler(listener)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            done = quantized(graph, recorded(made.net, graph, sampling(made, 2)), zero_point=True)
        logging.warning("still heard")
    finally:
        root.removeHandler(listener)
    assert [record.getMessage() for record in heard] == ["still heard"]
    assert (root.handlers, root.filters) == (handlers, filters)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
    assert graph.SerializeToString() == before
    assert not done.graph.value_info
    assert {one.domain for one in done.opset_import} == {""}


@pytest.mark.parametrize(("form", "batch"), [("loop", None), ("unrolled", 2)])
def test_a_sampler_holds_the_weights_once_in_int8_and_draws_nearly_the_same_images(plain, tmp_path, form, batch):
    made, _ = plain
    done = odediff.export(made, tmp_path / "s.onnx", "ddim", 6, form=form, batch=batch, precision="int8", calibration=3)
    graph = body_of(onnx.load(done.path))
    kept = [
        tensor.dims for tensor in graph.initializer if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 4
    ]
    assert sorted(map(tuple, kept)) == [(8, 12, 1, 1), (12, 8, 3, 3)]
    file = odediff.onnx.load(done.path)
    assert file.about.precision == "int8"
    want = odediff.sample(made, "ddim", 6, n=4, seed=8).numpy()
    off = float(np.sqrt(np.mean((file.run(4, 8) - want) ** 2) / np.mean(want**2)))
    assert 1e-4 < off < 0.05
    assert 1e-4 < done.gap <= done.bound == parity.BOUNDS["images"]["int8"]


def test_a_guided_conditional_sampler_in_int8(tmp_path):
    made = model(CLASSES)
    path = odediff.export(made, tmp_path / "s.onnx", "ddim", 5, guidance=2.0, precision="int8", calibration=3).path
    want = odediff.sample(made, "ddim", 5, n=3, seed=1, label=[2, 0, 1], guidance=2.0).numpy()
    off = odediff.onnx.load(path).run(3, 1, label=[2, 0, 1]) - want
    assert 1e-4 < float(np.sqrt(np.mean(off**2) / np.mean(want**2))) < 0.05


def test_a_file_in_int8_gives_samplers_but_a_file_in_float_none_in_int8(plain, files, tmp_path):
    network_file = odediff.onnx.load(files["onnxruntime"])
    done = odediff.export(network_file, tmp_path / "s.onnx", "ddim", 3, precision="int8")
    assert done.gap < 1e-3
    wide = odediff.onnx.load(odediff.export(plain[0], tmp_path / "n.onnx").path)
    with pytest.raises(ValueError, match="precision = 'int8', but the file is fp32; export that from the model"):
        odediff.export(wide, tmp_path / "no.onnx", precision="int8")
    with pytest.raises(ValueError, match="calibration = 4 belongs to a model's export in int8"):
        odediff.export(network_file, tmp_path / "no.onnx", precision="int8", calibration=4)


@pytest.mark.parametrize("calibration", [0, 1.5, True])
def test_a_wrong_number_of_samples_is_refused(calibration, tmp_path):
    with pytest.raises(ValueError, match=f"calibration = {calibration} must be a whole number of samples from 1 up"):
        odediff.export(model(), tmp_path / "no.onnx", precision="int8", calibration=calibration)


def test_calibration_of_another_precision_is_refused(tmp_path):
    with pytest.raises(ValueError, match="calibration = 8 belongs to a model's export in int8; leave it out"):
        odediff.export(model(), tmp_path / "no.onnx", calibration=8)


class Shallow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x, t):
        return self.last(F.silu(self.first(x) + t[:, None, None, None]))


def test_a_network_of_two_layers_has_nothing_to_quantise(tmp_path):
    made = odediff.Model(Shallow(), schedule=odediff.schedule.linear(), shape=(2, 4, 4))
    with pytest.raises(ValueError, match="has no convolution or linear layer between them"):
        odediff.export(made, tmp_path / "no.onnx", precision="int8")
    assert list(tmp_path.iterdir()) == []
