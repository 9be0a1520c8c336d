"""The script for a GPU, as far as a CPU can tell: its gates, its limits of time, its counts, its page."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kernel_modules import load

sys.path.append(str(Path(__file__).parent.parent / "bench"))

import gpu
import gpu_page
import gpu_stages
import gpu_ways
from speed_images import Problem, RedGateError

import odediff
from odediff.prediction import Prediction

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers on numpy 2
LINEAR = odediff.schedule.linear()
TINY = Problem("tiny", nfe=4)


def test_a_dry_run_writes_every_stage_and_prints_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--dry", "--out", str(tmp_path)])
    monkeypatch.setattr(gpu_stages.speed_images, "product_peak", lambda *_: 1e11)
    gpu.main()
    data = json.loads((tmp_path / "gpu_dry.json").read_text())
    assert list(data["stages"]) == list(gpu.BUDGETS) == list(gpu_stages.STAGES) == list(gpu_page.EXPECTED)
    ended = {name: stage["status"] for name, stage in data["stages"].items()}
    ran = {"batch 1", "batch 256"}
    if not torch.cuda.is_available():
        assert ended == {name: "ok" if name in ran else "left out" for name in ended}
        assert all(stage["why"] for name, stage in data["stages"].items() if name not in ran)
    (one,), (many,) = (data["stages"][name]["result"]["groups"] for name in ("batch 1", "batch 256"))
    assert [row["name"].split(", ")[1] for row in one["rows"]] == ["torch", "eager"] and not one["errors"]
    assert all(row["held"] == 0 for row in one["rows"]) or torch.cuda.is_available()
    assert all(row["rms"] < 5e-5 and len(row["rounds"]) == 2 for row in one["rows"] + many["rows"])
    result = data["stages"]["batch 256"]["result"]
    assert sum(result["profile"]["kinds"].values()) == pytest.approx(1) and result["flops"] > 1e5
    said = capsys.readouterr().out
    for line in ("of which no number says anything", "- kernel: left out: no GPU", "| matrix products and conv"):
        assert line in said


def test_without_a_gpu_only_a_dry_run_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit):
        gpu.main()


def test_an_outcome_says_how_a_stage_ended_and_keeps_what_it_had() -> None:
    saved: list[Any] = []
    for error, status in (
        (gpu_stages.LeftOutError("no triton"), "left out"),
        (RedGateError("off"), "red gate"),
        (ZeroDivisionError("0"), "failed"),
    ):

        def stage(dry: bool, save: Any, error: Exception = error) -> None:
            save({"first": 1})
            raise error

        found = gpu.outcome(stage, True, saved.append)
        assert found["status"] == status and str(error) in found["why"] and found["result"] == {"first": 1}
    assert gpu.outcome(lambda dry, save: save(2), True, saved.append) == {"status": "ok", "result": 2}
    assert saved == [{"first": 1}] * 3 + [2]


WRITES = "import json, sys, time; f = open({path!r}, 'w'); json.dump({data!r}, f); f.close(); {then}"


def test_a_stage_is_stopped_in_time_with_all_that_it_started_and_what_it_had_saved_is_kept(tmp_path: Path) -> None:
    def command(data: dict[str, Any], then: str) -> gpu.Command:
        return lambda name, dry, path: [sys.executable, "-c", WRITES.format(path=str(path), data=data, then=then)]

    whole, part = {"status": "ok", "result": 3}, {"result": 3}
    assert gpu.isolated("x", True, 20, command(whole, "pass")) == whole
    late = tmp_path / "late"
    child = f"import time; time.sleep(3); open({str(late)!r}, 'w')"
    starts = f"import subprocess; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    begin = time.perf_counter()
    assert gpu.isolated("x", True, 2, command(part, starts)) == {
        **part,
        "status": "timeout",
        "why": "stopped after 2 s",
    }
    assert time.perf_counter() - begin < 10
    crash = gpu.isolated("x", True, 20, command(part, "sys.exit('broken')"))
    assert crash["status"] == "failed" and "exit status 1: broken" in crash["why"] and crash["result"] == 3
    assert gpu.isolated("x", True, 20, command(part, "pass"))["status"] == "failed"  # ended, but not said how
    time.sleep(max(0.0, 4 - (time.perf_counter() - begin)))
    assert not late.exists()


def test_a_stage_process_writes_what_it_has_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "stage.json", []

    def stage(dry: bool, save: Any) -> None:
        save([1])
        seen.append(json.loads(path.read_text()))

    monkeypatch.setitem(gpu_stages.STAGES, "kernel", stage)
    gpu.single("kernel", True, path)
    assert seen == [{"result": [1]}] and json.loads(path.read_text()) == {"status": "ok", "result": [1]}
    assert gpu.command("batch 1", True, path)[2:] == ["--stage", "batch 1", "--out", str(path), "--dry"]


def test_no_stage_begins_when_the_time_is_over(tmp_path: Path) -> None:
    path = gpu.measure(["kernel", "onnx"], True, 5.0, tmp_path)
    stages = json.loads(path.read_text())["stages"]
    assert {stage["why"] for stage in stages.values()} == {"no time was left of 5 s"}
    assert sum(gpu.BUDGETS.values()) > gpu.LIMIT >= 500  # what one does not use, the next ones have


@pytest.mark.parametrize(("name", "options", "dtype"), gpu_stages.FORMS, ids=str)
def test_the_gate_of_rows_passes_the_kernel_and_stops_another(
    name: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    plan = odediff.plan(name, LINEAR, gpu_stages.NFE, **options)
    model = odediff.Model(lambda x, t: x, schedule=LINEAR, prediction="v", shape=(4, 8, 8))
    generator = torch.Generator().manual_seed(0)
    x, out = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    stage = load("interpreter").stage.Stage(Prediction(model), plan, 2, dtype=dtype)
    gpu_stages.gate_of_rows(stage, plan, Prediction(model), x, out.to(dtype))
    column = {False: "a", True: "c"}[plan.stochastic]
    stage._table[3, load("interpreter").stage.COLUMNS.index(column)] *= 1.5
    with pytest.raises(RedGateError, match="row 3: "):
        gpu_stages.gate_of_rows(stage, plan, Prediction(model), x, out.to(dtype))


@pytest.mark.parametrize(
    ("name", "width", "feeds", "want"),
    [("ddim", 4, False, 12), ("ddim", 2, True, 12), ("dpmpp_2m", 2, True, 20), ("abm4", 2, True, 32)],
)
def test_bytes_are_those_of_the_kernels_page(name: str, width: int, feeds: bool, want: int) -> None:
    rows = gpu_stages.bytes_of(odediff.plan(name, LINEAR, 20), width, feeds)
    assert rows[10] == want == max(rows) and len(rows) == 20
    assert rows[0] == want - 4 * (odediff.plan(name, LINEAR, 20).depth - 1)  # there is nothing to read yet


def test_without_diffusers_its_loop_is_written_out_and_draws_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_ways.speed_samplers, "installed", lambda name: False)
    (base, *first), *others = gpu_ways.ways(TINY, compiled=True)
    assert [[way.name for way in group] for group in (first, *others)] == [
        ["plain loop of diffusers' arithmetic, eager"],
        ["plain loop of diffusers' arithmetic, compiled"],
        ["odediff, compile"],
    ]
    case = gpu_stages.compared(TINY, 2, base, first, 1, {"peak": 1.0})
    assert case["peak"] == 1.0 and 0 < case["groups"][0]["rows"][1]["rms"] < 5e-5


def test_nothing_is_timed_on_a_red_gate_and_what_does_not_start_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    (base, *_), *_ = gpu_ways.ways(TINY, compiled=False)
    broken = gpu_ways.Timed("odediff, broken", lambda: torch.zeros(2).view(3))
    case = gpu_stages.compared(TINY, 2, base, [broken], 1, {})
    assert list(case["groups"][0]["errors"]) == ["odediff, broken"] and len(case["groups"][0]["rows"]) == 1
    monkeypatch.setattr(gpu_stages.speed_images, "timed", lambda *_: pytest.fail("timed"))
    shifted = gpu_ways.Timed("odediff, shifted", lambda: lambda noise: base.make()(noise) + 1e-4)
    with pytest.raises(RedGateError, match="odediff, shifted: images of tiny differ"):
        gpu_stages.compared(TINY, 2, base, [shifted], 1, {})


def test_a_candidate_is_kept_only_if_it_wins_and_loses_nowhere() -> None:
    def verdict(*pairs: tuple[float, float]) -> str:
        cases = [{"name": "k", "kernel": [k] * 3, "compile": [c] * 3} for k, c in pairs]
        return gpu_stages.verdicts(cases)["k"].split(":")[0]

    assert verdict((0.95, 1.0), (1.9, 2.0)) == "keep"
    assert verdict((0.96, 1.0)) == "drop"
    assert verdict((1.06, 1.0), (5.0, 10.0)) == "drop"


def test_tests_that_did_not_run_are_no_success() -> None:
    saved: list[Any] = []

    def ended(code: int, said: str, seconds: float = 60, then: str = "") -> None:
        script = f"import sys, time; print({said!r}, file=sys.stderr, flush=True); {then or 'pass'}; sys.exit({code})"
        gpu_stages.tested([sys.executable, "-c", script], seconds, saved.append)

    ended(1, "FAILED a.py::b\n1 failed, 1 passed in 2s")
    assert saved[-1]["counts"] == {"failed": 1, "passed": 1} and saved[-1]["bad"] == ["FAILED a.py::b"]
    with pytest.raises(RuntimeError, match="pytest ended with status 4: error: unrecognized arguments"):
        ended(4, "error: unrecognized arguments: -n")
    with pytest.raises(RuntimeError, match="stopped after 5 s: ... F"):
        ended(0, "... F", 5, "time.sleep(60)")
    assert [one["counts"] for one in saved[1:]] == [{}] * 2


def test_what_pytest_says_is_counted() -> None:
    said = (
        "..F\nFAILED tests/a.py::b - x\nERROR tests/c.py\n2 failed, 30 passed, 1 skipped, 9 deselected, 1 error in 3s"
    )
    found = gpu_stages.counted(said)
    assert found["counts"] == {"failed": 2, "passed": 30, "skipped": 1, "deselected": 9, "error": 1}
    assert found["bad"] == ["FAILED tests/a.py::b - x", "ERROR tests/c.py"] and said.endswith(found["tail"][-20:])
    assert gpu_stages.counted("")["counts"] == {}


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16, __nv_bfloat16, float>", "copies and layouts"),
        ("void at::native::elementwise_kernel<128, 4, at::native::direct_copy_kernel_cuda>", "copies and layouts"),
        ("Memcpy DtoD (Device -> Device)", "copies and layouts"),
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy<at::native::OpaqueType>", "copies and layouts"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128", "matrix products"),
        ("nvjet_sm90_tst_128x128_64x6_2x1_v_bz_TNT", "matrix products"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float>", "matrix products"),
        ("pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<256, 64>>", "matrix products"),
        ("void at::native::(anonymous namespace)::RowwiseMomentsCUDAKernel<c10::BFloat16>", "normalisation"),
        ("void at::native::vectorized_elementwise_kernel<4, silu_kernel>", "all else"),
        ("void at::native::upsample_nearest2d_nhwc_out_frame<c10::BFloat16>", "all else"),
    ],
)
def test_a_kernel_has_the_kind_that_its_name_says(kernel: str, kind: str) -> None:
    """Names as PyTorch's profiler gives them for cuDNN, cuBLAS and ATen."""
    assert gpu_ways.kind_of(kernel).startswith(kind)


def test_a_profiler_that_fails_or_sees_nothing_takes_nothing_along(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(run: Any) -> list[Any]:
        raise RuntimeError("CUPTI_ERROR_INSUFFICIENT_PRIVILEGES")

    for broken, why in (
        (refused, "CUPTI_ERROR_INSUFFICIENT_PRIVILEGES"),
        (lambda run: [], "the profiler saw no kernel"),
    ):
        monkeypatch.setattr(gpu_ways, "_profiled", broken)
        assert gpu_ways.profile(TINY, 2) == {"why": why} and gpu_ways.launched(lambda: None) == {}
    monkeypatch.setattr(gpu_ways, "profile", lambda *_: 1 / 0)
    monkeypatch.setattr(gpu_stages.speed_images, "product_peak", lambda *_: 1e11)
    saved: list[Any] = []
    with pytest.raises(ZeroDivisionError):
        gpu_stages.batch_256(True, saved.append)
    assert len(saved) == 1 and saved[0]["groups"] and "profile" not in saved[0]


def test_any_failure_of_a_way_is_a_result() -> None:
    class CompilationError(Exception):  # as triton's, which is no RuntimeError
        pass

    def make() -> Any:
        raise CompilationError("at 3:14:\nx")

    (base, *_), *_ = gpu_ways.ways(TINY, compiled=False)
    case = gpu_stages.compared(TINY, 2, base, [gpu_ways.Timed("odediff, triton", make)], 1, {})
    assert case["groups"][0]["errors"] == {"odediff, triton": "CompilationError: at 3:14:"}


def test_a_candidates_rival_is_compiled_for_each_size_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes of one function: torch.compile by itself would make a size that changes a variable, which is slower."""
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append([tuple(x.shape) for x in inputs if isinstance(x, torch.Tensor)])
        return graph.forward

    def case(n: int) -> Any:
        x = torch.full((n, 4), 0.5)
        run = lambda x=x: (torch.tanh(x) * 2,)  # noqa: E731
        return gpu_ways.Case("k", f"{n}x4", lambda: (torch.tanh(x.double()) * 2,), run, run, 1e-6)

    def graphed(run: Any) -> Any:
        run()
        return run

    compiler, sizes = torch.compile, [2, 3, 4]
    monkeypatch.setattr(torch, "compile", lambda run, **how: compiler(run, backend=backend, **how))
    monkeypatch.setattr(gpu_stages, "needs_gpu", lambda: None)
    monkeypatch.setattr(gpu_ways, "candidate_cases", lambda: [case(n) for n in sizes])
    monkeypatch.setattr(gpu_ways, "graphed", graphed)
    monkeypatch.setattr(gpu_ways, "times", lambda run: [1.0])
    gpu_stages.candidates(True, lambda _: None)
    assert graphs == [[(n, 4)] for n in sizes]


def test_diffusers_network_gets_its_times_on_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU they would keep torch.compile from recording a graph, and the peer would be slower than it is."""
    diffusers = pytest.importorskip("diffusers")
    seen: list[torch.device] = []

    def forward(self: Any, x: torch.Tensor, t: torch.Tensor) -> Any:
        seen.append(t.device)
        return SimpleNamespace(sample=x)

    monkeypatch.setattr(diffusers.UNet2DModel, "forward", forward)
    monkeypatch.setattr(diffusers.UNet2DModel, "load_state_dict", lambda *_: None)
    monkeypatch.setattr(odediff.Model, "device", torch.device("meta"))
    run = Problem("tiny", nfe=4)._diffusers(False)
    assert run(torch.empty(2, 1, 8, 8, device="meta")).shape == (2, 1, 8, 8)
    assert seen == [torch.device("meta")] * 4


def test_results_are_written_where_there_is_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ODEDIFF_COMMIT", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.common.environment()["commit"] == "unknown"


def test_gpu_tests_compare_full_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32, which convolutions have by default, would tell two ways to the same bits apart by 1e-3."""
    from conftest import pytest_runtest_setup

    item = SimpleNamespace(get_closest_marker=lambda name: name == "gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    places = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = True
        pytest_runtest_setup(item)
        assert [place.allow_tf32 for place in places] == [False, False]
    finally:
        for place, value in zip(places, before, strict=True):
            place.allow_tf32 = value


def results(share: float = 0.85, eager: float = 5.0, compiled: float = 1.5, peak: float = 0.45) -> dict[str, Any]:
    """Results in which our graph takes 1 s, and everything is at its bar."""
    rows = [
        {"plan": "ddim", "depth": 1, "dtype": "float32", "noise": noise, "rates": [1e12]} for noise in (False, True)
    ]
    for row, part in zip(rows, (share, 0.1), strict=True):
        row |= {"shares": [part], "launches": {"advance_row": 1, "next_row": 1}}

    def group(**ways: float) -> dict[str, Any]:
        named = {"odediff, torch": 4.0, **{name.replace("_", ", "): spent for name, spent in ways.items()}}
        return {
            "errors": {},
            "rows": [{"name": k, "rms": 0.0, "peak": 0.0, "held": 2e6, "rounds": [s] * 3} for k, s in named.items()],
        }

    case = {"model": "cifar", "batch": 1, "dtype": "float32", "nfe": 20, "flops": peak}
    groups = [group(odediff_cudagraph=1.0, diffusers_eager=eager), group(diffusers_compiled=compiled)]
    found = {
        "tests": {"counts": {"passed": 3}, "bad": [], "tail": ""},
        "kernel": {"copy": [3e12], "rows": rows, "small": [1e-6]},
        "batch 1": {**case, "groups": groups},
        "batch 256": {**case, "groups": groups[:1], "peak": 1.0, "profile": {"kinds": {"a": 1.0}, "kernels": []}},
        "candidates": {"verdicts": {"k": "drop: 1.00"}, "cases": []},
        "onnx": {"table": "| a |"},
    }
    return {name: {"status": "ok", "result": result} for name, result in found.items()}


@pytest.mark.parametrize(
    ("change", "missed"),
    [({}, []), ({"share": 0.849}, [0]), ({"eager": 4.9}, [1]), ({"compiled": 1.49}, [2]), ({"peak": 0.44}, [3])],
)
def test_bars_pass_at_the_bar_and_miss_below(change: dict[str, float], missed: list[int]) -> None:
    lines = gpu_page.bars(results(**change))
    assert [line.split(":")[0] for line in lines] == ["- MISS" if k in missed else "- pass" for k in range(5)]


def test_a_failed_test_misses_and_what_is_not_there_is_no_pass() -> None:
    failed = results()
    failed["tests"]["result"]["counts"]["failed"] = 1
    assert gpu_page.bars(failed)[4].startswith("- MISS")
    failed["tests"] |= {"status": "timeout"}  # and what failed until then has failed
    assert gpu_page.bars(failed)[4].startswith("- MISS")
    failed["tests"]["result"]["counts"] = {}
    assert gpu_page.bars(failed)[4].startswith("- not measured")
    assert all(line.startswith("- not measured: ") for line in gpu_page.bars({}))
    for stage in failed.values():
        stage |= {"status": "timeout", "why": "stopped after 9 s", "result": None}
    assert all(line.startswith("- not measured: ") for line in gpu_page.bars(failed))


def test_the_page_holds_every_table_and_what_was_left_out() -> None:
    data = {"dry": False, "stages": results(), "environment": {"device": "H", "torch": "2", "commit": "c"}}
    data["versions"] = {"triton": "3.6"}
    said = gpu_page.text(data)
    for line in (
        "On H, torch 2, triton 3.6, commit c.",
        "- pass: batch 1: odediff, cudagraph against diffusers, compiled: 1.50 (bar 1.5)",
        "| ddim | 1 | float32 | yes | 1000 | 10% | 2 |",
        "| diffusers, compiled | 1500.0 | 0.0e+00 | 0 | 2 |",
        "- k: drop: 1.00",
    ):
        assert line in said.splitlines()
    data["stages"]["kernel"] |= {"status": "timeout", "why": "stopped after 9 s"}  # with the rows that it had
    del data["stages"]["kernel"]["result"]["small"], data["stages"]["onnx"]
    data["stages"]["kernel"]["result"]["rows"][1]["launches"] = {}
    del data["stages"]["batch 256"]["result"]["profile"]
    said = gpu_page.text(data)
    assert "| ddim | 1 | float32 | yes | 1000 | 10% | not seen |" in said and "no profile: not measured" in said
    assert "- kernel: timeout: stopped after 9 s" in said and "| ddim |" in said and "- onnx: not run" in said
    assert gpu_page.text(None).startswith("Not measured yet")


def test_the_kernels_page_says_what_the_results_say() -> None:
    path = gpu.RESULTS / "gpu.json"
    text = gpu_page.text(json.loads(path.read_text()) if path.is_file() else None)
    assert f"<!-- gpu -->\n{text}\n<!-- /gpu -->" in gpu.PAGE.read_text()
