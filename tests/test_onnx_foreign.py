"""Networks that were exported elsewhere: whatever their opset, names and shapes, a sampler is made of them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import odediff
from odediff.onnx import load

KNOWN = {
    "schedule": odediff.schedule.linear(),
    "prediction": "v",
    "shape": (2, 4, 6),
    "range": (-1.0, 1.0),
    "num_classes": 4,
}
NAMES = {"sample": "noise", "timestep": "i", "label": "class", "out_sample": "sample"}


def network(opset=20, ir=9, batch="n", times=("n",), first="noise") -> onnx.ModelProto:
    """tanh(W * x + k t + E[label]), with names that a sampler has too, one more output, and a function of its own."""
    rng = np.random.default_rng(0)
    weights = {
        "W": rng.standard_normal((2, 2, 3, 3)).astype(np.float32) / 4,
        "k": np.float32(1e-3),
        "E": rng.standard_normal((5, 1, 1, 1)).astype(np.float32),
        "column": np.array([-1, 1, 1, 1]),
    }
    nodes = [
        helper.make_node("Conv", ["noise", "W"], ["x"], pads=[1, 1, 1, 1]),
        helper.make_node("Mul", ["i", "k"], ["past0"]),
        helper.make_node("Reshape", ["past0", "column"], ["more"]),
        helper.make_node("Gather", ["E", "class"], ["unconditional"], axis=0),
        helper.make_node("Add", ["x", "more"], ["images"]),
        helper.make_node("Add", ["images", "unconditional"], ["conditional"]),
    ]
    functions = []
    if ir >= 8:
        inner = [helper.make_node("Tanh", ["noise"], ["x"])]
        functions = [helper.make_function("mine", "Squash", ["noise"], ["x"], inner, [helper.make_opsetid("", opset)])]
    nodes.append(helper.make_node(*(("Squash",) if functions else ("Tanh",)), ["conditional"], ["sample"]))
    nodes[-1].domain = "mine" if functions else ""
    value, float32 = helper.make_tensor_value_info, TensorProto.FLOAT
    sample = [batch, 2, 4, 6]
    inputs = [value("noise", float32, sample), value("i", float32, times), value("class", TensorProto.INT64, [batch])]
    inputs.sort(key=lambda one: one.name != first)
    outputs = [value("x", float32, sample), value("sample", float32, sample)]
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "network", inputs, outputs, initializers)
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid("mine", 1)] if functions else [])]
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=ir)


def foreign(path, **options):
    made = network(**options)
    onnx.checker.check_model(made, full_check=True)
    onnx.save(made, path)
    return load(path, names=NAMES, **KNOWN)


@pytest.mark.parametrize("form", ["loop", "unrolled"])
@pytest.mark.parametrize(
    "options",
    [
        {"opset": 11, "ir": 6},
        {"opset": 13, "ir": 7},
        {"opset": 17},
        {},
        {"opset": 23, "ir": 10},
        {"times": (), "first": "i"},
    ],
    ids=str,
)
def test_a_sampler_is_made_of_any_network(tmp_path, form, options):
    file = foreign(tmp_path / "n.onnx", **options)
    plain = {"label": [0, 3, 1], "guidance": 2.0}
    want = odediff.sample(file, "abm3", 5, n=3, seed=1, **plain).numpy()
    odediff.export(file, tmp_path / "s.onnx", "abm3", 5, form=form, guidance=2.0)
    np.testing.assert_allclose(load(tmp_path / "s.onnx").run(3, 1, label=[0, 3, 1]), want, atol=2e-6)


@pytest.mark.parametrize("options", [{}, {"times": (), "first": "i"}], ids=str)
@pytest.mark.parametrize("batch", [None, 3])
def test_a_network_is_written_anew_in_our_names(tmp_path, options, batch):
    file = foreign(tmp_path / "n.onnx", **options)
    odediff.export(file, tmp_path / "ours.onnx", batch=batch)
    made = onnx.load(tmp_path / "ours.onnx")
    onnx.checker.check_model(made, full_check=True)
    kinds = {one.name: one.type.tensor_type.elem_type for one in (*made.graph.input, *made.graph.output)}
    float32, int32 = TensorProto.FLOAT, TensorProto.INT32
    assert kinds == {"sample": float32, "timestep": float32, "label": int32, "out_sample": float32}
    x = np.random.default_rng(0).standard_normal((3, 2, 4, 6), dtype=np.float32)
    ours = load(tmp_path / "ours.onnx")
    np.testing.assert_allclose(ours(x, 300.0, [4, 0, 1]), file(x, 300.0, [4, 0, 1]), atol=1e-6)
    assert ours.summary.inputs["sample"][1][0] == (batch or "batch")


def test_a_fixed_batch_is_said_before_it_is_run(tmp_path):
    file = foreign(tmp_path / "n.onnx", batch=4, times=(4,))
    with pytest.raises(ValueError, match="fixed batch of 4, got 3 samples"):
        odediff.sample(file, "ddim", 3, n=3)
    with pytest.raises(ValueError, match="takes batches of 4, got batch = None; give that"):
        odediff.export(file, tmp_path / "s.onnx", "ddim", 3)
    odediff.export(file, tmp_path / "s.onnx", "ddim", 3, guidance=2.0, batch=2)
    want = odediff.sample(load(tmp_path / "n.onnx", names=NAMES, **KNOWN), "ddim", 3, n=4, seed=1, label=2).numpy()
    odediff.export(file, tmp_path / "s.onnx", "ddim", 3, batch=4)
    np.testing.assert_allclose(load(tmp_path / "s.onnx").run(4, 1, label=2), want, atol=2e-6)


def test_what_cannot_be_fed_or_written_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"i has the shape \('n', 1\); odediff feeds \(batch,\)"):
        foreign(tmp_path / "n.onnx", times=("n", 1))
    file = foreign(tmp_path / "n.onnx", opset=10, ir=5)
    with pytest.raises(ValueError, match="the network is in opset 10, a sampler needs 11 or later"):
        odediff.export(file, tmp_path / "s.onnx", "ddim", 3)
    with pytest.raises(ValueError, match=r"opset = 20, but .*n\.onnx is in 10"):
        odediff.export(file, tmp_path / "s.onnx", "ddim", 3, opset=20)


def test_metadata_with_another_batch_than_the_graph_is_refused(tmp_path):
    file = foreign(tmp_path / "n.onnx")
    odediff.export(file, tmp_path / "s.onnx", "ddim", 3, batch=4)
    made = onnx.load(tmp_path / "s.onnx")
    entry = made.metadata_props[0]
    for now in ("null", "3"):
        entry.value = load(tmp_path / "s.onnx").about.to_json().replace('"batch": 4', f'"batch": {now}')
        onnx.save(made, tmp_path / "bad.onnx")
        with pytest.raises(ValueError, match="noise has a batch of 4, and not of"):
            load(tmp_path / "bad.onnx")
