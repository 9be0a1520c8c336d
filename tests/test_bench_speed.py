"""The measurement of speed: it runs, it times nothing that does not agree, and its counts and sums are right."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
sys.path.append(str(Path(__file__).parent.parent / "bench"))

import speed
import speed_images
import speed_page
import speed_samplers
from speed_images import Problem, RedGateError
from speed_samplers import Loop, Traffic

from odediff import step

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers on numpy 2
BENCH = Path(__file__).parent.parent / "bench"
TINY = Problem("tiny", nfe=4, compiled=False)


@pytest.mark.slow
def test_the_short_run_measures_everything_and_prints_the_tables(tmp_path):
    command = [sys.executable, str(BENCH / "speed.py"), "--short", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=BENCH.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    data = json.loads((tmp_path / "speed_short.json").read_text())
    (alone,), (images,) = data["samplers"], data["images"]
    assert data["versions"]["diffusers"] == importlib.metadata.version("diffusers") and data["environment"]["commit"]
    assert {"copy", "DDIM", "UniPCMultistep", "euler", *speed_samplers.OURS} <= {row["name"] for row in alone["rows"]}
    assert all(len(row["rounds"]) == 3 and min(row["rounds"]) > 0 for row in alone["rows"])
    ways = {row["name"]: row for row in images["rows"]}
    assert {"diffusers, eager", "torchdiffeq, euler", "odediff, torch"} <= set(ways)
    assert not {"diffusers, compiled", "odediff, compile"} & set(ways)
    assert all(row["rms"] < 5e-5 and len(row["rounds"]) == 2 for row in ways.values())
    assert images["flops"] > images["parameters"] * images["batch"] * images["nfe"] and images["peak"] > 1e8
    for name in [*ways, "| odediff | ddim |", "MISS: a row", "no tensor of the state's size is made per row (0)"]:
        assert name in done.stdout.replace("pass: a row", "MISS: a row")


def passes(run, *, least=8):
    with Traffic(least) as seen:
        run()
    return seen.moved / 32, seen.made / 32  # of 8 float32


def test_passes_are_the_tensors_read_and_written():
    x, y, z = (torch.ones(2, 4) for _ in range(3))
    assert passes(lambda: x.mul_(0.5)) == (2, 0)
    assert passes(lambda: x.add_(y, alpha=2.0)) == (3, 0)
    assert passes(lambda: torch.mul(x, 2.0, out=z)) == (2, 0)
    assert passes(lambda: torch.add(x, y, out=z)) == (3, 0)
    assert passes(lambda: x + y) == (3, 1)
    assert passes(lambda: x.copy_(y)) == (2, 0)
    assert passes(lambda: x.zero_()) == (1, 0)
    assert passes(lambda: torch.empty_like(x)) == (0, 1)
    assert passes(lambda: torch.zeros_like(x)) == (1, 1)
    assert passes(lambda: x.view(-1)[::1].t()) == (0, 0)
    assert passes(lambda: x.double()) == (3, 2)
    assert passes(lambda: torch.cat([x, y])) == (4, 2)
    assert passes(lambda: x.sum()) == (1, 0)
    assert passes(lambda: torch.ones(7) + 1) == (0, 0)  # small ones are not counted
    assert passes(lambda: x + torch.ones(())) == (2, 1)


def test_our_rows_make_no_tensor_and_peers_do():
    x, out = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    loops, longer = ({one[:2]: one for one in speed_samplers.loops(out, nfe)} for nfe in (20, 40))
    found = {key: speed_samplers.traffic(loops[key], longer[key], x) for key in loops}
    assert {key[1]: one["made"] for key, one in found.items() if key[0] == "odediff" and one["made"]} == {}
    for name in ("ddim", "ddim with Model, a function", "ddim with Model, a module"):
        assert found["odediff", name]["streams"] == (5 if step._row is None else 3)  # x a, and w out added to it
    eager = 2 + 3 + 2 + 3 + 3
    assert found["odediff", "dpmpp_2m"]["streams"] == (eager if step._row is None else 2 + 1 + 1 + 1)
    if step._row is not None:  # x and d written, x, out and K - 1 earlier d read, K = 4, 5, 4
        assert [found["odediff", name]["streams"] for name in ("unipc_3", "abm4", "lms")] == [7, 8, 7]
    assert found["diffusers", "DDIM"]["made"] >= 3 and found["diffusers", "DDIM"]["streams"] > 10
    assert found["torchdiffeq", "euler"]["made"] >= 2


def test_a_loop_takes_the_evaluations_that_it_says(monkeypatch):
    calls = [0]
    ours = speed_samplers._ours(
        "unipc_3", lambda x, t: calls.__setitem__(0, calls[0] + 1) or x, torch.zeros(1, 1, 2, 2), 7
    )
    ours.run(torch.randn(1, 1, 2, 2))
    assert calls[0] == ours.evaluations == 7
    heun = speed_samplers._diffusers("HeunDiscrete", {}, torch.zeros(1, 1, 2, 2), 20)
    assert heun.evaluations == 19


def test_rounds_go_there_and_back_and_keep_what_each_run_says():
    calls, spent = [], {"a": iter([1.0, 2.0, 3.0]), "b": iter([4.0, 5.0, 6.0])}

    def run(key):
        calls.append(key)
        return next(spent[key])

    made = speed.interleaved({key: lambda key=key: run(key) for key in spent}, 3)
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert made == {"a": [1.0, 2.0, 3.0], "b": [4.0, 5.0, 6.0]}


def test_a_time_is_per_evaluation_and_leaves_out_what_prepares():
    now = [0.0]

    def tick(by):
        now[0] += by
        return torch.zeros(1)

    loop = Loop("l", "n", lambda: tick(100.0), lambda x: tick(6.0), 3)
    assert speed.timer(loop, torch.zeros(1), 5, lambda: now[0])() == 2.0


@pytest.mark.parametrize("by", [1e-4, float("nan")])
def test_nothing_is_timed_on_a_red_gate(monkeypatch, by):
    def make(shift):
        return lambda: lambda noise: noise + shift

    def timed(*args):
        raise AssertionError("timed")

    ways = {"odediff, torch": make(0.0), "diffusers, eager": make(by)}
    monkeypatch.setattr(Problem, "ways", lambda self: ways)
    monkeypatch.setattr(speed_images, "timed", timed)
    with pytest.raises(RedGateError, match="diffusers, eager: images of tiny differ"):
        speed.images(TINY, 2, 1)
    ways["diffusers, eager"] = make(1e-6)
    with pytest.raises(AssertionError, match="timed"):
        speed.images(TINY, 2, 1)


def test_the_memory_of_a_run_is_what_it_took_at_most_the_second_time_too():
    kept = []

    def run():
        parts = [torch.ones(2**12) for _ in range(2**11)]  # too small to go back to the system of themselves
        kept.append(torch.ones(2**12))
        return parts[-1]

    for _ in range(2):
        out, peak = speed_images.with_peak(run)
        assert len(out) == 2**12 and 0.9 * 2**25 < peak < 1.5 * 2**25


def test_the_gate_of_plans_compares_with_diffusers(monkeypatch):
    speed.gate_of_plans(torch.device("cpu"))
    monkeypatch.setattr(speed, "PLANS", {"DDIM": "dpmpp_2m"})
    with pytest.raises(RedGateError, match="dpmpp_2m differs from diffusers' DDIM"):
        speed.gate_of_plans(torch.device("cpu"))


def test_a_red_gate_writes_and_prints_no_speed(monkeypatch, tmp_path, capsys):
    def measure(*args):
        raise RedGateError("off")

    monkeypatch.setattr(speed, "measure", measure)
    monkeypatch.setattr(speed.common, "pin", lambda: None)
    monkeypatch.setattr(sys, "argv", ["speed.py", "--short", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="red gate, nothing measured: off"):
        speed.main()
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().out


def test_a_backend_that_does_not_start_is_a_result(monkeypatch):
    def broken():
        raise ImportError("no such library")

    ways = {"odediff, torch": lambda: TINY._ours("torch"), "odediff, onnx": broken}
    monkeypatch.setattr(Problem, "ways", lambda self: ways)
    case = speed.images(TINY, 2, 1)
    assert case["rows"][1] == {"name": "odediff, onnx", "error": "ImportError: no such library"}
    assert "Not available: odediff, onnx: ImportError: no such library" in speed_page._images([case])


def measured(ddim=15.0, unipc=100.0, bound=1.5, made=0.0, end=1.4):
    """Results as bench/speed.py has them; our small row takes 1 s, and the large one `bound` of the copy bound."""

    def row(library, name, seconds, made=0.0):
        return {"library": library, "name": name, "rounds": [seconds] * 3, "streams": 5.0, "made": made}

    small = [row("diffusers", "DDIM", ddim), row("diffusers", "UniPCMultistep", unipc), row("odediff", "ddim", 1, made)]
    small += [row("k-diffusion", "ddim", 99.0, 9.0), row("odediff", "ddim with Model, a module", 1e-3)]
    large = [row("torch", "copy", 2.0), row("odediff", "ddim", 3.0 * bound)]
    ways = {"diffusers, eager": end, "odediff, onnx": 1.0, "odediff, torch": 2.0}
    case = {"model": "mnist", "dtype": "float32", "nfe": 20}
    return {
        "device": "cpu",
        "environment": {"device": "a"},
        "samplers": [{"shape": speed_page.SMALL, "rows": small}, {"shape": speed_page.LARGE, "rows": large}],
        "images": [
            {**case, "batch": n, "rows": [{"name": way, "rounds": [t] * 3} for way, t in ways.items()]} for n in (1, 8)
        ],
    }


@pytest.mark.parametrize(
    ("change", "missed"),
    [({}, []), ({"ddim": 14.9}, [0]), ({"unipc": 99}, [1]), ({"bound": 1.51}, [2]), ({"made": 0.1}, [3])]
    + [({"end": 1.39}, [4, 5])],
)
def test_bars_pass_at_the_bar_and_miss_below(change, missed):
    lines = speed_page.bars(measured(**change))
    assert [line.startswith("- MISS: ") for line in lines] == [k in missed for k in range(6)]
    assert [line.startswith("- pass: ") for line in lines] == [k not in missed for k in range(6)]


def test_what_was_not_measured_is_no_pass():
    data = measured()
    data["samplers"] = data["samplers"][:1]
    assert speed_page.bars(data)[2].startswith("- not measured: ")


def test_the_share_of_the_solver_is_of_one_evaluation():
    data = measured()
    data["images"][0] |= {"model": "cifar"}
    (line,) = speed_page._share(data)
    assert "own time is 1.00% of" in line  # 1e-3 s of 2 s / 20


def test_what_we_lose_is_said():
    data = measured()
    assert speed_page._losses(data) == [
        f"- mnist, float32, batch {n}: diffusers, eager is faster than odediff, torch, the default backend (1.43 times)"
        for n in (1, 8)
    ]
    data["images"][0]["rows"][1]["rounds"] = [2.1] * 3
    data["samplers"][0]["rows"][2]["rounds"] = [30.0] * 3
    lines = speed_page._losses(data)
    assert "- 1x3x32x32: diffusers DDIM is faster than odediff ddim (2.00 times)" in lines
    assert (
        "- mnist, float32, batch 1: diffusers, eager is faster than odediff, torch, our fastest (1.43 times)" in lines
    )


def test_what_was_left_out_is_said():
    cases = measured()["images"]
    assert speed_page._left_out(cases, "cpu") == ["Left out: batches of 64; what compiles at batches of 1, 8."]
    cases[1]["rows"].append({"name": "odediff, compile", "rounds": [1.0]})
    assert speed_page._left_out(cases, "cuda") == ["Left out: batches of 64, 256, 1024; what compiles at batches of 1."]
    cases[0]["rows"].append({"name": "diffusers, compiled", "rounds": [1.0]})
    assert speed_page._left_out([*cases, {**cases[0], "batch": 64}], "cpu") == []


def test_ratios_are_within_a_round():
    assert speed_page.ratio([2.0, 4.0, 30.0], [1.0, 4.0, 10.0]) == (1.5, 2.0, 2.5)


def test_compare_names_what_became_slower_and_what_moves_more():
    old, new = measured(), measured()
    assert speed_page.compare(new, old) == ["no regressions"]
    new["samplers"][0]["rows"][2]["rounds"] = [1.2] * 3
    new["samplers"][1]["rows"][1]["streams"] = 6.0
    new["images"][1]["rows"][1]["rounds"] = [1.5] * 3
    assert speed_page.compare(new, old) == [
        "- 1x3x32x32, odediff, ddim: 1.20 times as long",
        "- 64x3x64x64, odediff, ddim: streams 5 -> 6",
        "- mnist, float32, batch 8, odediff, onnx: 1.50 times as long",
    ]
    assert speed_page.compare(old, new) == ["no regressions"]
    old["environment"] = {"device": "b"}
    assert speed_page.compare(new, old) == ["not compared: measured on b and a"]


def test_the_images_of_all_ways_are_on_the_same_times():
    from onnx_ways import scheduler_of

    scheduler = scheduler_of(TINY.model)
    scheduler.set_timesteps(TINY.nfe)
    assert scheduler.timesteps.tolist() == TINY.plan.t.tolist()
    assert Problem("mnist").plan.t.tolist()[:2] == [999.0, 949.0]
