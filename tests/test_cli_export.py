"""`odediff export`, and `odediff sample` with what it wrote."""

import numpy as np
import pytest
from PIL import Image
from test_onnx_export import tiny

import odediff
from odediff.cli import main
from odediff.nn import UNet
from odediff.onnx import OnnxModel, OnnxSampler, load


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model's folder."""
    blocks = {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}
    sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1, "attention_head_dim": 8}
    net = UNet(sample_size=8, in_channels=1, out_channels=1, **blocks, **sizes, num_class_embeds=4).eval()
    model = odediff.Model(net, schedule=odediff.schedule.linear(), prediction="v", shape=(1, 8, 8), num_classes=3)
    path = tmp_path_factory.mktemp("model")
    model.save(path)
    return path


@pytest.fixture(scope="module")
def network(folder):
    """Its network's file, from which samplers are written quickly."""
    assert main(["export", str(folder), "--out", str(folder / "net.onnx")]) == 0
    return str(folder / "net.onnx")


def test_a_network_is_written_and_said(folder, network, capsys):
    assert isinstance(load(network), OnnxModel)
    assert main(["export", network, "--out", str(folder / "copy.onnx")]) == 0
    said = capsys.readouterr().out
    assert "network" in said and "fp32, opset 20" in said and "of 1e-05 allowed" in said


def test_a_samplers_options_reach_the_file(folder, network, capsys):
    out = str(folder / "s.onnx")
    options = ["--solver", "ddim", "--nfe", "5", "--eta", "0.5", "--form", "loop", "--batch", "2", "--guidance", "2"]
    more = ["--clip", "--grid", "quadratic", "--license", "MIT", "--external-data"]
    assert main(["export", network, "--out", out, *options, *more]) == 0
    assert "sampler, loop: asked for" in capsys.readouterr().out
    about = load(out).about
    assert (about.form, about.batch, about.license) == ("loop", 2, "MIT")
    assert about.prediction_options == {"guidance": 2.0, "clip": True, "threshold": None, "clip_eps": "recompute"}
    plan = about.table()
    assert (plan.method, plan.nfe, plan.args["eta"], plan.args["grid"]) == ("ddim", 5, 0.5, "quadratic")
    assert (folder / "s.onnx.data").is_file()


def test_sample_draws_with_a_sampler_as_with_the_model(folder, network, capsys):
    out = str(folder / "abm.onnx")
    assert main(["export", network, "--out", out, "--solver", "abm3", "--nfe", "6"]) == 0
    pictures = []
    for source, options in (
        (out, []),
        (network, ["--solver", "abm3", "--nfe", "6"]),
        (str(folder), ["--solver", "abm3", "--nfe", "6"]),
    ):
        path = folder / f"{len(pictures)}.png"
        assert main(["sample", source, *options, "--n", "4", "--label", "0-2", "--seed", "3", "--out", str(path)]) == 0
        said = capsys.readouterr().out
        assert "evaluations  6" in said
        pictures.append(np.asarray(Image.open(path)).astype(int))
    assert pictures[0].std() > 5
    for other in pictures[1:]:
        assert np.abs(other - pictures[0]).max() <= 1


REFUSED = [
    (["export", "nothing", "--out", "x.onnx"], "no model 'nothing'"),
    (["export", "nothing.onnx", "--out", "x.onnx"], "no file nothing.onnx"),
    (["export", "mnist", "--out", "x.bin"], "must end in .onnx"),
    (["export", "mnist", "--out", "x.onnx", "--clip"], "clip belongs to a sampler"),
    (["export", "mnist", "--out", "x.onnx", "--calibration", "4"], "calibration = 4 belongs to a model's export in"),
    (["export", "mnist", "--out", "x.onnx", "--nfe", "4", "--form", "rolled"], "unknown form 'rolled'"),
    (["export", "mnist", "--out", "x.onnx", "--target", "tflite"], "target = 'tflite'"),
]


@pytest.mark.parametrize(
    ("args", "message"), REFUSED, ids=lambda value: " ".join(value[1:4]) if isinstance(value, list) else ""
)
def test_what_cannot_be_exported_is_one_line(args, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_samplers_solver_cannot_be_chosen_again(tmp_path, capsys):
    odediff.export(tiny(), tmp_path / "s.onnx", "ddim", 4)
    assert isinstance(load(tmp_path / "s.onnx"), OnnxSampler)
    assert main(["sample", str(tmp_path / "s.onnx"), "--nfe", "8", "--out", str(tmp_path / "x.png")]) == 2
    assert "--nfe cannot be chosen" in capsys.readouterr().err
