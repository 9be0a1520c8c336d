"""`odediff tune`, and what the other commands do with the plans that it stores."""

import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import odediff
from odediff.cli import main
from odediff.cli import tune as command
from odediff.images import image_grid
from odediff.nn import UNet
from odediff.plans import Plan
from odediff.tuning import tune

QUICK = ["--n", "2", "--validation", "2", "--held-out", "16", "--iterations", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small untrained model's folder, 1x4x4, with plans for 3 evaluations, tuned, and for 4, built in."""
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1, "attention_head_dim": 8}
    torch.manual_seed(0)
    net = UNet(sample_size=4, in_channels=1, out_channels=1, **blocks, **sizes).eval()
    model = odediff.Model(net, schedule=odediff.schedule.cosine(), prediction="v", shape=(1, 4, 4))
    path = tmp_path_factory.mktemp("model")
    model.save(path)
    (path / "tuned").mkdir()
    (path / "tuned/3.json").write_text(fitted(model.schedule, 3).to_json())
    (path / "tuned/4.json").write_text(odediff.plan("ab2", model.schedule, nfe=4, grid="quadratic").to_json())
    (path / "tuned/3-guidance-2.5.json").write_text(fitted(model.schedule, 3).to_json())
    return path


def fitted(schedule, nfe):
    """A plan that says that it was fitted."""
    about = {"over_best_rmse": [0.5, 0.4, 0.625], "over_best_median": [0.25, 0.125, 0.3], "guidance": None}
    plan = odediff.plan("abm2", schedule, nfe=nfe, space="flow", variable="t", grid="quadratic")
    data = json.loads(plan.to_json())
    data |= {"method": "tuned", "args": {"fitted": {**about, "best": "abm3 quadratic", "held_out": 64}}}
    return Plan.from_json(json.dumps(data))


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
    """What one run of `odediff tune` printed and wrote into --out, and its folder."""
    out = tmp_path_factory.mktemp("made")
    files = ["--out", str(out / "plans"), "--work", str(out / "work"), "--report", str(out / "r.json")]
    with pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr("builtins.print", lambda *what, **_: said.append(" ".join(map(str, what))))
        assert main(["tune", str(folder), "--nfe", "2,3", *QUICK, "--engine", "ridge", "--seed", "5", *files]) == 0
    return out, "\n".join(said)


def facts(text):
    """`name  value` lines as a dictionary."""
    return dict(re.split(r"\s{2,}", line, maxsplit=1) for line in text.splitlines() if "  " in line)


def test_tune_writes_what_the_library_returns(folder, made):
    out, said = made
    assert sorted(path.name for path in (out / "plans").iterdir()) == ["2.json", "3.json"]
    assert list((out / "work").glob("*/probe-*.pt"))
    assert "2 evaluations; held-out noise" in said and "3 evaluations; held-out noise" in said
    assert str(out / "plans/3.json") in said
    assert f"odediff sample {folder} --plan {out / 'plans/2.json'}" in said
    options = {"n": 2, "validation": 2, "held_out": 16, "iterations": 1, "engine": "ridge", "seed": 5}
    plans, report = tune(odediff.load(folder), [2, 3], **options)
    told = json.loads((out / "r.json").read_text())
    for nfe, plan in plans.items():
        stored = Plan.from_json((out / f"plans/{nfe}.json").read_text())
        assert stored.to_json() == plan.to_json() == json.dumps(told[str(nfe)]["plan"])
        assert told[str(nfe)]["returned"] == report[nfe].returned
        assert told[str(nfe)]["holds"] == report[nfe].certificate.holds
        assert told[str(nfe)]["certificate"]["tuned"]["n"] == 16
        assert len(told[str(nfe)]["records"]) == len(report[nfe].records) > 0


def test_a_plan_in_a_file_is_drawn_with(folder, made, tmp_path, capsys):
    plan = made[0] / "plans/3.json"
    assert main(["sample", str(folder), "--plan", str(plan), "--n", "4", "--out", str(tmp_path / "x.png")]) == 0
    assert facts(capsys.readouterr().out)["evaluations"] == "3"
    want = odediff.sample(odediff.load(folder), Plan.from_json(plan.read_text()), n=4, seed=0)
    assert (np.asarray(Image.open(tmp_path / "x.png")) == np.asarray(image_grid(want))).all()


def test_sample_draws_with_the_stored_plan(folder, tmp_path, capsys):
    out = tmp_path / "x.png"
    assert main(["sample", str(folder), "--solver", "tuned", "--nfe", "3", "--n", "4", "--out", str(out)]) == 0
    said = facts(capsys.readouterr().out)
    assert (said["solver"], said["evaluations"]) == ("tuned", "3")
    want = odediff.sample(odediff.load(folder), Plan.from_json((folder / "tuned/3.json").read_text()), n=4, seed=0)
    assert (np.asarray(Image.open(out)) == np.asarray(image_grid(want))).all()
    assert main(["sample", str(folder), "--solver", "tuned", "--nfe", "4", "--n", "1", "--out", str(out)]) == 0
    assert facts(capsys.readouterr().out)["solver"] == "ab2, grid quadratic"


def test_plan_shows_the_stored_plan_and_its_certificate(folder, capsys):
    assert main(["plan", "tuned", "--nfe", "3", "--model", str(folder)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("tuned: 3 evaluations")
    assert (
        "certificate    RMSE 0.50 (0.40 to 0.62), median 0.25 (0.12 to 0.30) of the best built-in pair's, "
        "abm3 quadratic, on 64 held-out noises" in text
    )
    assert main(["plan", "tuned", "--nfe", "3", "--model", str(folder), "--json", "-"]) == 0
    assert capsys.readouterr().out.strip() == (folder / "tuned/3.json").read_text()
    assert main(["plan", "tuned", "--nfe", "4", "--model", str(folder)]) == 0
    assert "order          2; observed" in capsys.readouterr().out


def test_info_lists_the_stored_plans(folder, capsys):
    assert main(["info", str(folder)]) == 0
    said = facts(capsys.readouterr().out)
    tuned = [name for name in said if name.startswith("tuned")]
    assert tuned == ["tuned, 3", "tuned, 3, guidance 2.5", "tuned, 4"]
    assert said["tuned, 3"].startswith("RMSE 0.50 (0.40 to 0.62), median 0.25")
    assert said["tuned, 4"] == "ab2, built in, grid quadratic; no better was found"


def test_a_network_file_has_plans_beside_it(folder, tmp_path, capsys):
    net = tmp_path / "net.onnx"
    assert main(["export", str(folder), "--out", str(net)]) == 0
    (tmp_path / "net.tuned").mkdir()
    (tmp_path / "net.tuned/3.json").write_text((folder / "tuned/3.json").read_text())
    assert main(["info", str(net)]) == 0
    assert re.search(r"tuned, 3 +RMSE 0.50", capsys.readouterr().out)
    out = str(tmp_path / "x.png")
    assert main(["sample", str(net), "--solver", "tuned", "--nfe", "3", "--n", "2", "--out", out]) == 0
    assert "evaluations  3" in capsys.readouterr().out
    sampler = str(tmp_path / "sampler.onnx")
    assert main(["export", str(net), "--solver", "tuned", "--nfe", "3", "--out", sampler]) == 0
    assert odediff.onnx.load(sampler).plan.method == "tuned"
    for line in (["tune", sampler], ["info", sampler]):
        capsys.readouterr()
        assert main(line) == 2
        assert "is a sampler, tuned; give its model, or its network's file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("work", "said"), [(["--work", "w"], "is in w: the same command goes on"), ([], "--work keeps")]
)
def test_an_interruption_says_how_to_go_on(folder, monkeypatch, capsys, work, said):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("odediff.tuning.tune", stop)
    assert main(["tune", str(folder), *work]) == 130
    assert said in capsys.readouterr().err


def test_options_reach_the_library(folder, monkeypatch):
    seen = {}

    def stop(model, nfe, **options):
        seen.update(options, nfe=nfe)
        raise KeyboardInterrupt

    monkeypatch.setattr("odediff.tuning.tune", stop)
    main(["tune", str(folder), "--nfe", "4-6"])
    assert seen == {"nfe": [4, 5, 6], "save": folder / "tuned", "folder": None, "progress": False}
    seen.clear()
    switches = ["--no-times", "--no-coefficients", "--no-first", "--fed", "--no-clip"]
    named = {"n": 3, "validation": 4, "held_out": 5, "seed": 6, "iterations": 7, "patience": 8, "batch": 9, "starts": 2}
    named |= {"guidance": 1.5, "threshold": 0.9, "engine": "ridge", "derivatives": "exact", "backend": "auto"}
    given = [part for key, value in named.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    main(["tune", str(folder), *given, *switches, "--label", "0-2", "--history", "2,4", "--work", "w", "--out", "o"])
    off = {"times": False, "coefficients": False, "first": False, "fed": True, "clip": False}
    lists = {"label": [0, 1, 2], "history": [2, 4], "nfe": [8]}
    assert seen == {**named, **off, **lists, "folder": "w", "save": Path("o"), "progress": False}
    assert set(seen) == set(inspect.signature(tune).parameters) - {"model", "loss", "features"}


def test_help_tells_the_defaults_of_the_library(capsys):
    with pytest.raises(SystemExit):
        main(["tune", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, parameter in inspect.signature(tune).parameters.items():
        if type(parameter.default) is int and name != "nfe":
            shown = re.search(rf"--{name.replace('_', '-')} N [^-]*?\(default: (\d+)\)", text)
            assert shown is not None and int(shown[1]) == parameter.default, name


REFUSED = [
    ("tune nowhere", "no model 'nowhere'"),
    ("tune TINY --nfe 1", "nfe = [1]: a whole number of evaluations from 2 up"),
    ("tune TINY --nfe many", "'many' in 'many' is no whole number"),
    ("tune TINY --n 1", "n = 1 must be a whole number from 2 up"),
    ("tune TINY --engine newton", "unknown engine 'newton'"),
    ("tune TINY --derivatives none", "derivatives = 'none'"),
    ("tune TINY --guidance 2", "guidance = 2"),
    ("tune TINY --no-times --no-coefficients", "nothing is left to tune"),
    ("tune TINY --plot no/x.png", "no folder no"),
    ("tune TINY --report no/x.json", "no folder no"),
    ("tune TINY --report .", "it is a folder"),
    ("tune TINY --out TINY/model.json", "the plans cannot be written to"),
    ("sample TINY --solver tuned --nfe 9", "no tuned plan for 9 evaluations; there are 3, 3-guidance-2.5, 4"),
    ("sample TINY --solver tuned --nfe 3 --grid karras", "a tuned plan takes no 'grid'"),
    ("sample TINY --solver tuned --nfe 3 --space eps", "a tuned plan takes no 'space'"),
    ("sample TINY --solver tuned --nfe 3 --option tau=1", "a tuned plan takes no 'tau'"),
    ("sample TINY --solver tuned --nfe 3 --rtol 1", "rtol"),
    ("sample TINY --plan TINY/tuned/3.json --solver rk4", "leave one of them away"),
    ("sample TINY --plan TINY/tuned/3.json --nfe 4", "a compiled plan takes no 'nfe'"),
    ("sample TINY --plan TINY/model.json", "not a plan"),
    ("sample TINY --plan none.json", "none.json"),
    ("export TINY --solver tuned --nfe 9 --out x.onnx", "no tuned plan for 9 evaluations"),
    ("export TINY --solver tuned --nfe 3 --grid karras --out x.onnx", "a tuned plan takes no 'grid'"),
    ("plan tuned --nfe 3", "name it with --model"),
    ("plan tuned --nfe 3 --model TINY --eta 1", "a tuned plan takes no 'eta'"),
    ("plan tuned --nfe 3 --model TINY --guidance 2", "no tuned plan for 3 evaluations and guidance 2"),
    ("plan rk4 --guidance 2", "is of a tuned plan"),
]


@pytest.mark.parametrize(("line", "message"), REFUSED)
def test_errors_are_one_line(folder, tmp_path, capsys, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    assert set(command._OPTIONS) <= set(inspect.signature(tune).parameters)
    try:
        code = main(line.replace("TINY", str(folder)).split())
    except SystemExit as stopped:
        code = stopped.code
    said = capsys.readouterr().err
    assert code == 2 and message in said and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_refused_before_any_work(folder, capsys, monkeypatch):
    monkeypatch.setattr("odediff.stored.os.access", lambda *_: False)
    assert main(["tune", str(folder)]) == 2
    assert f"the plans cannot be written to {folder / 'tuned'}; name another" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["command", "save"])
def test_the_plans_of_the_package_are_not_overwritten(how, capsys):
    before = {path.name: path.read_bytes() for path in (odediff.model.BUNDLED / "mnist" / "tuned").iterdir()}
    assert before
    if how == "command":
        assert main(["tune", "mnist", "--nfe", "8", *QUICK]) == 2
        assert re.search(r"mnist.tuned holds the plans of the package; .* --out FOLDER", capsys.readouterr().err)
    else:
        with pytest.raises(ValueError, match="a bundled model's folder holds the plans of the package"):
            tune(odediff.load("mnist"), 8, save=True)
    assert {path.name: path.read_bytes() for path in (odediff.model.BUNDLED / "mnist" / "tuned").iterdir()} == before


def test_info_says_to_which_labels_a_plan_was_fitted(folder):
    from odediff.cli.options import certificate

    plan = fitted(odediff.schedule.cosine(), 3)
    assert certificate(plan).endswith("on 64 held-out noises")
    for labels, said in (("all", "noises"), ([1, 4], "noises, of labels 1, 4")):
        data = json.loads(plan.to_json())
        data["args"]["fitted"]["labels"] = labels
        assert certificate(Plan.from_json(json.dumps(data))).endswith(said)
