"""bench/tune.py and its page: a fit and a judgement of a small problem, and bars that can be missed."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import odediff

pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")
sys.path.append(str(Path(__file__).parent.parent / "bench"))  # last: bench/onnx.py is not the package onnx

import rivals
import tune
import tune_frechet
import tune_page

tune_problem = tune._problem


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "FOLDER", tmp_path)
    monkeypatch.setattr(tune_page, "FOLDER", tmp_path)
    return tmp_path


def arguments(**more):
    given = {"nfe": [3], "ways": ["both"], "n": [8], "seeds": [0], "backend": "torch", "work": None}
    given |= {"iterations": 2, "starts": 2}
    return argparse.Namespace(**{**given, **more})


def test_a_fit_is_kept_once_and_judged_beside_a_peer(folder, monkeypatch):
    ddim = next(one for one in rivals.diffusers_settings() if one.method == "DDIMScheduler")
    monkeypatch.setattr(tune, "_peers", lambda name, nfe: [ddim])
    monkeypatch.setattr(tune, "TESTS", 8)
    monkeypatch.setattr(tune, "REFERENCE_NFE", 41)
    for _ in range(2):
        tune.fit("modes", arguments())
    (made,) = json.loads((folder / "modes.json").read_text())["plans"]
    assert odediff.Plan.from_json(made["plan"]).nfe == made["nfe"] == 3
    tune.judge("modes", arguments())
    (made,) = json.loads((folder / "modes.json").read_text())["plans"]
    assert 0 < made["train"]["median"] <= made["train"]["rmse"]
    rows = json.loads((folder / "modes.json").read_text())["rows"]
    assert {row["test"] for row in rows} == set(tune.TEST_SEEDS)
    kinds = {row["kind"] for row in rows}
    assert kinds == {"tuned", "built-in", "peer"}
    mine, peer = (next(row for row in rows if row["kind"] == kind) for kind in ("tuned", "peer"))
    assert 0 < mine["median"] < peer["median"]
    data = json.loads((folder / "modes.json").read_text())
    assert len(tune_page.table(data)) == 3
    train = [tune_page.number(made["train"][m]) for m in ("rmse", "median")]
    assert f"| {' | '.join(train)} |" in tune_page.ways(data)[-1]
    assert (tune_page.number(0.0123456), tune_page.number(0.00012345)) == ("0.0123", "1.2e-04")


def measured(peer, mine):
    """What the files hold of one budget, for these errors."""
    both = [
        {"nfe": 8, "test": seed, "kind": "peer", "name": "p", "rmse": peer, "median": peer} for seed in tune.TEST_SEEDS
    ]
    name = "both, 32 samples, seed 0"
    both += [{**row, "kind": "tuned", "name": name, "rmse": mine, "median": mine / 2} for row in both]
    return {"plans": [{"nfe": 8, "way": "both", "n": 32, "seed": 0, "cpu": 1.0, "over_median": [0.5]}], "rows": both}


@pytest.mark.parametrize(("mine", "said"), [(0.32, "pass"), (0.34, "MISS")])
def test_a_bar_is_held_by_the_worse_measure(mine, said):
    lines = tune_page.bars({"mnist": measured(1.0, mine)})
    (line,) = [line for line in lines if "8 evaluations" in line]
    assert line.startswith(f"- {said}")
    assert f"rmse {mine:.2f}, median {mine / 2:.2f}" in line
    assert sum("not measured" in line for line in lines) == len(tune_page.NETWORK_BARS) - 1


def test_what_a_bar_on_rmse_takes_is_measured_on_the_others():
    """RMSE = median^(1/2): half the RMSE takes a quarter of the median, a third a ninth. Tuned plans are left out."""
    peers = [{"nfe": 8, "kind": "peer", "name": f"{m}", "median": m, "rmse": m**0.5} for m in (0.01, 0.04, 0.09)]
    rows = [
        {**row, "test": seed}
        for row in (*peers, {**peers[0], "kind": "tuned", "name": "t", "rmse": 1.0})
        for seed in tune.TEST_SEEDS
    ]
    (line,) = tune_page.tails({"fashion": {"plans": [], "rows": rows}})
    assert line.startswith("- fashion: RMSE goes as median^0.50 over 3 ")
    assert "0.11 for 0.33, 0.25 for 0.50" in line


def test_a_plan_that_only_one_set_of_noise_judged_is_left_out():
    data = measured(1.0, 0.5)
    data["rows"] = data["rows"][:-1]
    assert "both, 32 samples, seed 0" not in tune_page.averaged(data)[8]


def test_frechet_distances_have_a_line_for_each_budget_that_is_whole(folder):
    about = {"problem": "mnist", "n": 10, "commit": "abc"}
    rows = [{**about, "nfe": 64, "name": "flow", "flow": 0.0, "test": 7.5}]
    rows += [
        {**about, "nfe": nfe, "name": name, "flow": 1.25 + k, "test": 9.0 + k}
        for nfe in (5, 8)
        for k, name in enumerate(("tuned", "default", "best peer", "ddim"))
    ]
    (folder / "frechet.json").write_text(json.dumps(rows[:-1]))
    lines = tune_page.distances()
    assert [line for line in lines if line.startswith("| mnist")] == [
        "| mnist | 5 | 1.25, 9.00 | 2.25, 10.00 | 3.25, 11.00 | 4.25, 12.00 |"
    ]
    assert "mnist 7.50" in lines[0] and "10 samples" in lines[0] and "commit abc" in lines[0]
    (folder / "frechet.json").unlink()
    assert tune_page.distances() == []


def test_frechet_distances_are_measured_once_for_a_plan(folder, monkeypatch, tmp_path):
    """Of a small network in place of the bundled one: the flow's to itself is 0, and only a new plan is drawn again."""

    class Seen:
        def __init__(self, path, device):
            assert path.name == "mnist_cnn128.safetensors"

        def __call__(self, images):
            return images.double().flatten(1)[:, :2]

    model, _ = tune.subject("modes")
    ddim = next(one for one in rivals.diffusers_settings() if one.method == "DDIMScheduler")
    plan = odediff.plan("ddim", model.schedule, 3, "quadratic").to_json()
    row = {"nfe": 3, "name": f"{ddim.family} {ddim.name}", "kind": "peer", "rmse": 1.0, "median": 1.0}
    known = {
        "plans": [{"nfe": 3, "way": "both", "n": 32, "seed": 0, "plan": plan, "over_median": [0.5]}],
        "rows": [{**row, "test": seed} for seed in tune.TEST_SEEDS],
    }
    tune.write("mnist", known)
    np.savez(tmp_path / "mnist.npz", x_test=np.random.default_rng(0).integers(0, 255, (40, 28, 28), dtype=np.uint8))
    monkeypatch.setattr(tune_frechet, "Features", Seen)
    monkeypatch.setattr(tune_frechet, "N", 12)
    monkeypatch.setattr(tune_frechet, "prepared", lambda *args: (model,))
    monkeypatch.setattr(tune_frechet, "choose", lambda *args: ())
    monkeypatch.setattr(tune, "subject", lambda name: (model, {}))
    monkeypatch.setattr(tune, "_problem", lambda *args: tune_problem("modes", *args[1:]))
    tune_frechet.measure("mnist", [3], tmp_path)
    rows = tune_page.frechet_rows()
    assert [row["name"] for row in rows] == ["flow", "tuned", "default", "ddim", "best peer"]
    assert rows[0]["flow"] == pytest.approx(0, abs=1e-6) and all(row["flow"] > 1e-4 for row in rows[1:])
    known["plans"][0]["plan"] = odediff.plan("ab2", model.schedule, 3, "quadratic").to_json()
    tune.write("mnist", known)
    tune_frechet.measure("mnist", [3], tmp_path)
    again = {row["name"]: row for row in tune_page.frechet_rows()}
    assert len(again) == 5 and again["tuned"]["flow"] != rows[1]["flow"] and again["ddim"] == rows[3]
    with pytest.raises(ValueError, match="mnist at 4 evaluations was not fitted and judged"):
        tune_frechet.measure("mnist", [4], tmp_path)


def test_of_as_many_seeds_the_samples_that_a_certificate_favours_are_shown(folder):
    data = measured(1.0, 0.5)
    data["plans"].append({**data["plans"][0], "n": 64, "over_median": [0.4]})
    rows = [row for row in data["rows"] if row["kind"] == "tuned"]
    data["rows"] += [{**row, "name": "both, 64 samples, seed 0", "rmse": 0.25, "median": 0.2} for row in rows]
    found = tune_page.averaged(data)[8]
    assert tune_page.tuned(data, found, 8) == {"n": 64, "seeds": 1, "rmse": 0.25, "median": 0.2}
    data["plans"].append({**data["plans"][0], "seed": 1})  # two seeds at 32
    assert tune_page.tuned(data, found, 8)["n"] == 32


def test_what_a_smaller_budget_gave_is_over_the_same_seeds():
    data = measured(1.0, 0.5)
    (plan,), name = data["plans"], "both, 32 samples, seed 0"
    data["plans"] += [{**plan, "beside": [4, 8]}, {**plan, "beside": [4, 8], "seed": 1}]
    alone = [row for row in data["rows"] if row["kind"] == "tuned"]
    for seed, error in ((0, 0.25), (1, 9.0)):  # nothing alone has seed 1
        called = f"both, 32 samples, seed {seed}, beside 4"
        data["rows"] += [{**row, "name": called, "rmse": error, "median": 0.05} for row in alone]
    assert name in {row["name"] for row in alone}
    assert tune_page.gains({"mnist": data, "fashion": measured(1.0, 0.5)}) == ["- mnist 8: 0.50, 0.20"]


def test_plans_that_grew_are_told_from_those_that_did_not(folder):
    """A budget alone, and beside a smaller one, are two plans; ways that do not grow are one."""
    tune.fit("modes", arguments())
    tune.fit("modes", arguments(nfe=[2, 3]))
    tune.fit("modes", arguments(nfe=[2, 3], ways=["times", "ddim dp"]))
    plans = tune.read("modes")["plans"]
    titles = [(p["nfe"], tune.title(p)) for p in plans]
    assert titles == [
        (3, "both, 8 samples, seed 0"),
        (2, "both, 8 samples, seed 0"),
        (3, "both, 8 samples, seed 0, beside 2"),
        *((nfe, f"{way}, 8 samples, seed 0") for way in ("times", "ddim dp") for nfe in (2, 3)),
    ]
    tune.fit("modes", arguments(nfe=[3]))
    assert len(tune.read("modes")["plans"]) == len(plans)
