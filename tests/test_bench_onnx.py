"""The measurement of exported files: it runs, it refuses to time what does not agree, and its sums are right."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("diffusers")
sys.path.append(str(Path(__file__).parent.parent / "bench"))

import onnx_page
from onnx_ways import Ready, Way

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture(scope="module")
def bench():
    """bench/onnx.py, under a name that no package has."""
    spec = importlib.util.spec_from_file_location("bench_of_onnx", BENCH / "onnx.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_short_run_measures_every_way_and_prints_the_table(tmp_path):
    command = [sys.executable, str(BENCH / "onnx.py"), "--short", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=BENCH.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    (case,) = json.loads((tmp_path / "onnx_short.json").read_text())["cases"]
    assert case["nfe"] == 4 and case["batch"] == 2 and {"onnx", "onnxruntime"} <= set(case["versions"])
    rows = {row["runs"]: row for row in case["rows"]}
    assert list(rows) == ["diffusers", "eager", "network", "loop"]
    for row in rows.values():
        assert row["rms"] < 1e-5 and row["seconds"] > 0 and row["low"] <= row["ratio"] <= row["high"]
        assert row["peak"] > 2e7 and row["start"] > 0
        assert f"| {row['way']} | {1e3 * row['seconds'] / 2:.2f} | {row['ratio']:.2f} (" in done.stdout
    assert rows["diffusers"]["ratio"] == 1 and 0 < rows["loop"]["max_abs"] < 1e-4
    assert rows["loop"]["bytes"] > 4 * case["parameters"]
    assert rows["network"]["torch"] and not rows["loop"]["torch"]
    assert [row["runs"] for row in case["forward"]] == ["diffusers", "eager", "network"]


def test_the_script_does_not_hide_the_package_onnx():
    code = f"import sys; sys.path.insert(0, {str(BENCH)!r}); import onnx"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: bench/ is ahead of site-packages" in done.stderr
    import onnx

    assert Path(onnx.__file__).parent != BENCH


@pytest.mark.parametrize("wrong", ["loop", "network"])
@pytest.mark.parametrize("by", [2e-5, np.nan])
def test_nothing_is_timed_on_a_red_gate(bench, monkeypatch, tmp_path, wrong, by):
    def load(way, folder, batch):
        shift = np.float32(by if way.runs == wrong else 0)
        network = way.runs == "network"
        return Ready(lambda x: x + (0 if network else shift), (lambda x: x + shift) if way.runs != "loop" else None)

    def rounds(*args):
        raise AssertionError("timed")

    (tmp_path / "model.json").write_text('{"shape": [1, 2, 2]}')
    monkeypatch.setattr(bench.onnx_ways, "load", load)
    monkeypatch.setattr(bench, "rounds", rounds)
    with pytest.raises(bench.RedGateError, match=f"{wrong}.* differ from eager torch's"):
        bench.case("tiny", tmp_path, {}, bench.SHORT, 3, 1)
    with pytest.raises(AssertionError, match="timed"):  # the same with what agrees
        bench.case("tiny", tmp_path, {}, [way for way in bench.SHORT if way.runs != wrong], 3, 1)


def test_a_red_gate_writes_and_prints_no_speed(bench, monkeypatch, tmp_path, capsys):
    def measure(*args):
        raise bench.RedGateError("off")

    monkeypatch.setattr(bench, "measure", measure)
    monkeypatch.setattr(bench, "pin", lambda: None)
    monkeypatch.setattr(sys, "argv", ["onnx.py", "--short", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="red gate, nothing measured: off"):
        bench.main()
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().out


def test_the_bound_is_that_of_the_precision(bench):
    want = np.full((2, 1, 2, 2), 0.5, np.float32)
    got = want.copy()
    got[1] += 0.05
    assert bench.agreement(got, want) == pytest.approx({"max_abs": 0.05, "rms": 0.05, "relative": 0.1}, rel=1e-6)
    bench.gate(Way("loop", "int8"), "images", got, want)
    pixel = want + np.float32(1.5e-5) * (np.arange(8) == 3).reshape(want.shape)
    assert bench.gate(Way("loop"), "images", pixel, want)["max_abs"] > 1e-5  # one pixel: RMS counts
    for way in (Way("loop"), Way("loop", "fp16"), Way("diffusers")):
        with pytest.raises(bench.RedGateError):
            bench.gate(way, "images", got, want)
    with pytest.raises(bench.RedGateError):
        bench.gate(Way("loop", "int8"), "images", 1.4 * want, want)


def test_ratios_are_within_a_round_and_rounds_go_there_and_back(bench):
    base, other = Way("diffusers"), Way("loop")
    spent = {base: iter([2.0, 4.0, 30.0]), other: iter([1.0, 4.0, 10.0])}
    now, calls = [0.0], []

    def run(way):
        calls.append(way)
        now[0] += next(spent[way])

    made = bench.rounds({way: lambda way=way: run(way) for way in spent}, 3, lambda: now[0], base)
    assert calls == [base, other, other, base, base, other]
    assert made[other] == {"seconds": 4.0, "ratio": 2.0, "low": 1.5, "high": 2.5}
    assert made[base] == {"seconds": 4.0, "ratio": 1.0, "low": 1.0, "high": 1.0}


def measured(ratios, rms=1e-6):
    """Cases as bench/onnx.py writes them; ratios: of network, loop, int8, and the forward at batch 1."""
    network, loop, int8, alone = ratios

    def row(way, ratio):
        return {**vars(way), "seconds": 1 / ratio, "ratio": ratio, "rms": rms, "max_abs": 2 * rms}

    others = [row(Way("network", fixed=True), 9.0), row(Way("network", "int8", True, "openvino"), 9.0)]
    rows = [row(Way("network"), network), row(Way("loop"), loop), row(Way("network", "int8"), int8)]
    rows = [*others, *rows]
    case = {"model": "mnist", "clock": "CPU time", "rows": rows, "forward": [row(Way("network"), alone)]}
    return [{**case, "batch": batch} for batch in (1, 16)]


@pytest.mark.parametrize("missed", range(5))
def test_bars_pass_at_the_bar_and_miss_below(missed):
    ratios = np.array([1.4, 1.4 * 0.951, 1.9, 3.0])
    passing = onnx_page.bars(measured(ratios), "mnist")
    assert [line.split(":")[0] for line in passing] == ["- pass"] * 5
    short = ratios * np.where(np.arange(4) == missed, 0.99, 1) * np.where((np.arange(4) == 1) & (missed == 0), 0.99, 1)
    lines = onnx_page.bars(measured(short, 2e-5 if missed == 4 else 1e-6), "mnist")
    assert [line.startswith("- MISS") for line in lines] == [k == missed for k in range(5)]


def test_results_replace_those_of_the_same_model_and_batch(bench, tmp_path):
    bench.add([{"model": "cifar", "batch": 1, "x": 1}, {"model": "mnist", "batch": 16, "x": 1}], "o", tmp_path)
    bench.add([{"model": "mnist", "batch": 16, "x": 2}, {"model": "mnist", "batch": 1, "x": 2}], "o", tmp_path)
    data = bench.add([], "o", tmp_path, quality={"rows": []})
    assert [(one["model"], one["batch"], one["x"]) for one in data["cases"]] == [
        ("mnist", 1, 2),
        ("mnist", 16, 2),
        ("cifar", 1, 1),
    ]
    assert json.loads((tmp_path / "o.json").read_text())["quality"] == {"rows": []}
