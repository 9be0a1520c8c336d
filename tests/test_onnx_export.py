"""Exported files compute what the model does: networks and samplers, in both forms; what does not is not kept."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import odediff
from odediff import exporting, parity
from odediff.nn import UNet
from odediff.onnx import OnnxModel, OnnxSampler, load
from odediff.onnx.graph import body_of
from odediff.onnx.metadata import KEY, About

LINEAR = odediff.schedule.linear()


class Tiny(nn.Module):
    """A network of a few operators whose output depends on every input in a way that no other input can stand for."""

    def __init__(self, classes: int | None = None, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.time = nn.Linear(2, 4)
        self.out = nn.Conv2d(4, 2, 3, padding=1)
        self.label = None if classes is None else nn.Embedding(classes + 1, 4)

    def forward(self, x, t, label=None):
        t = t.to(self.conv.weight.dtype)[:, None] / 1000
        h = self.conv(x) + self.time(torch.cat([t, t.square()], 1))[:, :, None, None]
        if self.label is not None:
            h = h + self.label(label)[:, :, None, None]
        return self.out(torch.tanh(h))


def tiny(classes: int | None = None, **options) -> odediff.Model:
    options = {"prediction": "v", "shape": (2, 4, 6), "num_classes": classes, "range": (-1.0, 1.0), **options}
    return odediff.Model(Tiny(classes).eval(), schedule=LINEAR, **options)


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """classes -> the file of `tiny(classes)`, traced once: a sampler is written from it in a moment."""
    folder = tmp_path_factory.mktemp("networks")
    for classes in (None, 4):
        odediff.export(tiny(classes), folder / f"{classes}.onnx")
    return {classes: load(folder / f"{classes}.onnx") for classes in (None, 4)}


def images(model, solver, nfe, n=3, seed=5, label=None, **options):
    return odediff.sample(model, solver, nfe, n=n, seed=seed, label=label, **options).numpy()


PLANS = [
    ("ddim", 3, {}),
    ("abm4", 6, {"space": "flow", "variable": "t"}),
    ("unipc_3", 5, {}),
    ("rk4", 10, {}),
    ("ddim", 4, {"eta": 1.0}),
    ("sde_dpmpp_2m", 5, {}),
    ("ddim", 4, {"clip": True}),
    ("ddim", 4, {"clip": (-0.5, 0.25), "eta": 0.5, "clip_eps": "keep"}),
    ("dpmpp_3m", 6, {"threshold": 0.9}),
    (None, 8, {}),
]


@pytest.mark.parametrize("form", ["unrolled", "loop"])
@pytest.mark.parametrize(("solver", "nfe", "options"), PLANS, ids=lambda value: str(value))
def test_a_sampler_file_draws_what_the_model_draws(tmp_path, traced, form, solver, nfe, options):
    model = tiny()
    made = odediff.export(traced[None], tmp_path / "s.onnx", solver, nfe, form=form, **options)
    file = load(tmp_path / "s.onnx")
    assert isinstance(file, OnnxSampler)
    assert (file.nfe, made.form) == (nfe, form)
    want = images(model, solver, nfe, **options)
    assert np.abs(want).max() > 0.2
    np.testing.assert_allclose(file.run(3, 5), want, atol=2e-6)


@pytest.mark.parametrize("form", ["unrolled", "loop"])
@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("guidance", [None, 0.0, 1.0, 3.5])
def test_labels_and_guidance_are_in_the_graph(tmp_path, traced, form, batch, guidance):
    model, label = tiny(4), None if guidance == 0 else [3, 0, 1]
    odediff.export(traced[4], tmp_path / "s.onnx", "abm3", 5, form=form, guidance=guidance, batch=batch, clip=True)
    file = load(tmp_path / "s.onnx")
    want = images(model, "abm3", 5, label=[3, 0, 1], guidance=guidance, clip=True)
    np.testing.assert_allclose(file.run(3, 5, label=label), want, atol=2e-6)
    if guidance is None:
        np.testing.assert_allclose(file.run(3, 5), images(model, "abm3", 5, clip=True), atol=2e-6)
        assert np.abs(file.run(3, 5) - want).max() > 1e-2


@pytest.mark.parametrize("form", ["unrolled", "loop"])
def test_a_fixed_batch_serves_any_number_and_a_memory_budget_splits(tmp_path, traced, form):
    model = tiny()
    want = images(model, "ddim", 4, n=7, eta=1.0)
    odediff.export(model, tmp_path / "fixed.onnx", "ddim", 4, form=form, eta=1.0, batch=3)
    np.testing.assert_allclose(load(tmp_path / "fixed.onnx").run(7, 5), want, atol=2e-6)
    odediff.export(traced[None], tmp_path / "any.onnx", "ddim", 4, form=form, eta=1.0)
    each = load(tmp_path / "any.onnx").about.memory
    file = load(tmp_path / "any.onnx", memory=2 * each + 1)
    seen = []
    run = file.engine.run
    file.engine.run = lambda feeds, output: seen.append(len(feeds["noise"])) or run(feeds, output)
    try:
        np.testing.assert_allclose(file.run(7, 5), want, atol=2e-6)
    finally:
        file.engine.run = run
    assert seen == [2, 2, 2, 1]
    with pytest.raises(ValueError, match=f"memory = 10 bytes is less than one sample takes, {each}"):
        load(tmp_path / "any.onnx", memory=10).run(1)


@pytest.mark.parametrize("label", [None, 2, [0, 1, 2, 3, 0, 1, 2]])
def test_a_network_file_splits_a_batch_to_a_memory_budget(traced, monkeypatch, label):
    whole = traced[4]
    x = np.random.default_rng(0).standard_normal((7, *whole.shape), dtype=np.float32)
    want = whole(x, 300.0, label)
    each = whole.about.memory
    file = load(whole.path, memory=5 * each)
    seen, run = [], file.engine.run
    monkeypatch.setattr(
        file.engine,
        "run",
        lambda feeds, output: seen.append([len(one) for one in feeds.values()]) or run(feeds, output),
    )
    np.testing.assert_allclose(file(x, 300.0, label), want, atol=2e-6)
    np.testing.assert_allclose(file(torch.from_numpy(x), 300.0, label).numpy(), want, atol=2e-6)
    assert seen == [[4] * 3, [3] * 3] * 2  # of samples, times and labels; parts of nearly equal size
    with pytest.raises(ValueError, match=f"memory = 10 bytes is less than one sample takes, {each}"):
        load(whole.path, memory=10)(x, 300.0, label)


def test_a_network_file_is_a_model(traced):
    model, file = tiny(4), traced[4]
    assert isinstance(file, OnnxModel)
    for solver, nfe, options in [*PLANS, ("abm3", 6, {"guidance": 2.0, "label": [1, 2, 3]}), ("dopri5", None, {})]:
        np.testing.assert_allclose(
            images(file, solver, nfe, **options), images(model, solver, nfe, **options), atol=5e-6
        )
    x = np.random.default_rng(0).standard_normal((2, 2, 4, 6), dtype=np.float32)
    want = model(torch.from_numpy(x), 300.0, torch.tensor([1, 4])).detach().numpy()
    np.testing.assert_allclose(file(x, 300.0, [1, 4]), want, atol=2e-6)
    assert file(x.astype(np.float64), 300.0).dtype == np.float64


@pytest.mark.parametrize("solver", [None, "ddim"])
def test_names_types_and_metadata_are_as_documented(tmp_path, solver):
    model = tiny(4, integer_times=True, info={"license": "CC0-1.0"})
    nfe = 4 if solver else None
    odediff.export(model, tmp_path / "f.onnx", solver, nfe, **({"eta": 1.0} if solver else {}))
    made = onnx.load(tmp_path / "f.onnx")
    onnx.checker.check_model(made, full_check=True)
    values = {
        one.name: (one.type.tensor_type.elem_type, [d.dim_param or d.dim_value for d in one.type.tensor_type.shape.dim])
        for one in (*made.graph.input, *made.graph.output)
    }
    sample = ["batch", 2, 4, 6]
    float32, int32 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT32
    if solver:
        noise = {"noise": (float32, sample), "row_noise": (float32, [3, *sample]), "label": (int32, ["batch"])}
        assert values == {**noise, "images": (float32, sample)}
    else:
        network = {"sample": (float32, sample), "timestep": (int32, ["batch"]), "label": (int32, ["batch"])}
        assert values == {**network, "out_sample": (float32, sample)}
    about = About.from_json({one.key: one.value for one in made.metadata_props}[KEY])
    assert (about.prediction, about.shape, about.range) == ("v", (2, 4, 6), (-1.0, 1.0))
    assert (about.num_classes, about.integer_times, about.license) == (4, True, "CC0-1.0")
    assert about.noise_schedule().fingerprint == LINEAR.fingerprint
    assert about.version == odediff.__version__
    assert (about.table() is None) == (solver is None)
    if solver:
        assert about.table() == odediff.plan("ddim", LINEAR, 4, eta=1.0, snap=True)


def test_the_hash_is_of_the_weights(tmp_path):
    hashes = []
    for seed in (0, 0, 1):
        model = odediff.Model(Tiny(seed=seed).eval(), schedule=LINEAR, prediction="v", shape=(2, 4, 6))
        odediff.export(model, tmp_path / "n.onnx")
        hashes.append(load(tmp_path / "n.onnx").about.weights)
    assert hashes[0] == hashes[1] != hashes[2]
    assert len(hashes[0]) == 64


def test_the_network_is_stored_once(tmp_path, traced):
    nets, sizes = {}, {}
    for form in ("unrolled", "loop"):
        odediff.export(traced[None], tmp_path / f"{form}.onnx", "ddim", 9, form=form)
        made = onnx.load(tmp_path / f"{form}.onnx")
        nets[form] = [node.op_type for node in body_of(made).node].count("Conv")
        inits = [
            one
            for graph in {id(made.graph): made.graph, id(body_of(made)): body_of(made)}.values()
            for one in graph.initializer
        ]
        sizes[form] = sum(int(np.prod(one.dims)) for one in inits if len(one.dims) == 4)
    assert nets == {"unrolled": 18, "loop": 2}
    assert sizes["unrolled"] == sizes["loop"] == 2 * 2 * 4 * 9


def test_the_form_follows_the_rows_and_the_target(tmp_path, traced):
    for nfe, target, form in (
        (12, "onnxruntime", "unrolled"),
        (13, "onnxruntime", "loop"),
        (13, "tensorrt", "unrolled"),
    ):
        made = odediff.export(traced[None], tmp_path / "s.onnx", "ddim", nfe, target=target)
        assert made.form == form
        assert made.why in str(made)


@pytest.mark.parametrize(
    ("target", "opset"), [("onnxruntime", 20), ("tensorrt-10.0", 20), ("tensorrt-10.9", 21), ("tensorrt", 23)]
)
def test_the_target_picks_the_opset(tmp_path, target, opset):
    assert odediff.export(tiny(), tmp_path / "n.onnx", target=target).opset == opset
    assert max(one.version for one in onnx.load(tmp_path / "n.onnx").opset_import) == opset


@pytest.mark.parametrize("precision", ["fp16"])
def test_half_precision_is_of_the_network_only(tmp_path, precision):
    model = tiny()
    made = odediff.export(model, tmp_path / "h.onnx", "ddim", 4, precision=precision)
    assert 0 < made.gap < 2e-3
    graph = onnx.load(tmp_path / "h.onnx").graph
    kinds = {one.name: one.data_type for one in graph.initializer}
    half = {name for name, kind in kinds.items() if kind == onnx.TensorProto.FLOAT16}
    assert {name for name in kinds if "conv.weight" in name or "out.weight" in name} <= half
    assert not any(name.startswith("constant") and name in half for name in kinds)
    assert model.net.conv.weight.dtype == torch.float32
    np.testing.assert_allclose(load(tmp_path / "h.onnx").run(3, 5), images(model, "ddim", 4), atol=5e-3)


def test_external_data_stays_in_the_folder_and_moves_with_it(tmp_path):
    model = odediff.Model(
        UNet(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            attention_head_dim=8,
        ).eval(),
        schedule=LINEAR,
        shape=(1, 8, 8),
    )
    whole = odediff.export(model, tmp_path / "a.onnx", "ddim", 3, form="loop")
    odediff.export(model, tmp_path / "b" / "s.onnx", "ddim", 3, form="loop", external_data=True)
    files = {one.name: one.stat().st_size for one in (tmp_path / "b").iterdir()}
    assert set(files) == {"s.onnx", "s.onnx.data"}
    assert files["s.onnx.data"] > 0.3 * whole.bytes
    (tmp_path / "b").rename(tmp_path / "c")
    np.testing.assert_array_equal(load(tmp_path / "c" / "s.onnx").run(2, 1), load(tmp_path / "a.onnx").run(2, 1))


def test_a_file_that_is_off_is_deleted_and_the_old_one_stays(tmp_path, monkeypatch):
    odediff.export(tiny(), tmp_path / "s.onnx", "ddim", 3)
    before = (tmp_path / "s.onnx").read_bytes()
    network = exporting.traced

    def wrong(*args, **kw):
        made = network(*args, **kw)
        bias = next(one for one in made.graph.initializer if one.name.endswith("out.bias"))
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(1e-3), bias.name))
        return made

    monkeypatch.setattr(exporting, "traced", wrong)
    with pytest.raises(parity.ParityError, match=r"images is off by .* in 8 samples, .*images\[\d, .*nothing was kept"):
        odediff.export(tiny(), tmp_path / "s.onnx", "ddim", 3)
    with pytest.raises(parity.ParityError, match="out_sample is off"):
        odediff.export(tiny(), tmp_path / "n.onnx")
    assert [one.name for one in tmp_path.iterdir()] == ["s.onnx"]
    assert (tmp_path / "s.onnx").read_bytes() == before


def test_parity_is_measured_against_the_model_on_three_batches(tmp_path, monkeypatch):
    seen = []
    run = OnnxSampler.run
    monkeypatch.setattr(
        OnnxSampler, "run", lambda self, n, seed, **kw: seen.append((n, seed)) or run(self, n, seed, **kw)
    )
    odediff.export(tiny(), tmp_path / "s.onnx", "ddim", 3)
    assert [n for n, _ in seen] == [1, 2, 5]
    assert len({seed for _, seed in seen}) == 3


def test_large_values_are_no_disagreement(tmp_path):
    """An untrained network along a schedule that starts at sigma = 80."""
    for form in ("loop", "unrolled"):
        model = odediff.Model(
            Tiny().eval(), schedule=odediff.schedule.edm(), prediction="eps", shape=(2, 4, 6), range=None
        )
        odediff.export(model, tmp_path / "s.onnx", "dpmpp_2m", 6, form=form)
    assert np.abs(load(tmp_path / "s.onnx").run(2, 0)).max() > 30


def test_a_network_is_held_to_its_null_label_too(tmp_path, monkeypatch):
    seen = set()
    call = OnnxModel.__call__
    monkeypatch.setattr(
        OnnxModel, "__call__", lambda self, x, t, label=None: seen.update(label.tolist()) or call(self, x, t, label)
    )
    monkeypatch.setattr(np.random, "default_rng", lambda make=np.random.default_rng: make(0))
    odediff.export(tiny(1), tmp_path / "n.onnx")
    assert seen == {0, 1}


def test_export_leaves_the_model_as_it_was(tmp_path):
    model = tiny()
    model.net.train()
    weights = {name: value.clone() for name, value in model.net.state_dict().items()}
    odediff.export(model, tmp_path / "n.onnx", precision="fp16")
    assert model.net.training
    assert all(torch.equal(value, model.net.state_dict()[name]) for name, value in weights.items())


REFUSED = [
    ({"path": "s.bin"}, "must end in .onnx"),
    ({"solver": "dopri5"}, "dopri5 chooses its steps as it goes"),
    ({"solver": "ddmi", "nfe": 4}, "did you mean .*ddim"),
    ({"form": "loop"}, "form = 'loop' belongs to a sampler"),
    ({"nfe": 4, "form": "rolled"}, "unknown form 'rolled'"),
    ({"clip": True}, "clip belongs to a sampler"),
    ({"eta": 1.0}, "eta belongs to a sampler"),
    ({"s_churn": 1.0}, "s_churn belongs to a sampler"),
    ({"nfe": 4, "batch": 0}, "batch = 0 must be a whole number"),
    ({"precision": "fp8"}, "unknown precision 'fp8'"),
    ({"target": "tensorflow"}, "target = 'tensorflow'"),
    ({"opset": 12}, "opset = 12 must be from 18 to 23"),
    ({"nfe": 4, "guidance": 2.0}, "needs a class-conditional model"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=lambda value: str(value)[:30])
def test_bad_input_is_refused_before_anything_is_written(tmp_path, options, message):
    options = dict(options)
    path = tmp_path / options.pop("path", "s.onnx")
    with pytest.raises(ValueError, match=message):
        odediff.export(tiny(), path, **options)
    assert not list(tmp_path.iterdir())


def test_a_plain_function_is_refused_with_the_ways_out(tmp_path):
    model = odediff.Model(lambda x, t: x, schedule=LINEAR, shape=(1, 2, 2))
    with pytest.raises(ValueError, match="wrap the function in a module"):
        odediff.export(model, tmp_path / "n.onnx")


def test_the_metadata_refuses_what_odediff_does_not_write(tmp_path):
    odediff.export(tiny(), tmp_path / "n.onnx")
    text = load(tmp_path / "n.onnx").about.to_json()
    assert About.from_json(text).to_json() == text
    old = {key: value for key, value in json.loads(text).items() if key != "mark"}
    assert About.from_json(json.dumps(old)).mark is None
    for key, value in [
        ("shape", [0, 2]),
        ("shape", "x"),
        ("range", [1, -1]),
        ("schedule", {"name": "nope"}),
        ("batch", -1),
        ("prediction", "noise"),
        ("memory", True),
        ("memory", -1),
        ("plan", "{}"),
        ("num_classes", 0),
        ("mark", ["0.1"]),
        ("mark", "0.1"),
        ("format", "odediff-onnx-9"),
    ]:
        data = json.loads(text) | {key: value}
        with pytest.raises(ValueError, match="."):
            About.from_json(json.dumps(data))
    for bad in ("", "[]", "{}", text[:-5], "[" * 100_000):
        with pytest.raises(ValueError, match="."):
            About.from_json(bad)


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named_with_its_remedy_before_any_work(missing):
    script = f"""
import sys
sys.modules[{missing!r}] = None
from odediff.cli import main
sys.exit(main(["export", "mnist", "--nfe", "3", "--out", "never.onnx"]))"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == f"odediff: error: odediff.export needs {missing}: pip install 'odediff[onnx]'\n"


def test_the_check_names_its_package_and_the_remedy():
    script = "import sys; sys.modules['onnx'] = None; import odediff; odediff.onnx.check('x.onnx')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stderr.splitlines()[-1].endswith("odediff.onnx.check needs onnx: pip install 'odediff[onnx]'")


def test_what_is_no_network_is_refused(tmp_path, traced):
    with pytest.raises(ValueError, match=r"export takes an odediff\.Model or a network's file, got 'mnist'"):
        odediff.export("mnist", tmp_path / "n.onnx")
    odediff.export(traced[None], tmp_path / "s.onnx", "ddim", 3)
    with pytest.raises(ValueError, match="got a sampler's file, which has its solver"):
        odediff.export(load(tmp_path / "s.onnx"), tmp_path / "n.onnx", "ddim", 3)


@pytest.mark.parametrize(
    ("errors", "gap"),
    [((1e-6, 2e-6, 3e-6), 2e-6), ((1e-6, 1e-6, 5e-4), 5e-6), ((0.0, 0.0, 0.5), 5e-3), ((3e-4,), 3e-4)],
)
def test_images_are_held_by_their_median_and_the_largest_to_a_hundred_times_that(errors, gap):
    want = np.full((len(errors), 1, 2, 2), 0.5, np.float32)
    got = want + np.array(errors, np.float64).reshape(-1, 1, 1, 1)
    pair = parity.Pair("images", got, want)
    assert parity._error(pair, "fp32") == pytest.approx(gap, rel=1e-6)
    wide = parity.Pair("images", 400 * got, 400 * want)  # in units of their own size where that is above 1
    assert parity._error(wide, "fp32") == pytest.approx(2 * gap, rel=1e-6)
