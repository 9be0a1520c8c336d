"""The stages of bench/gpu.py: each compares, then measures, and saves what it has as soon as it has it."""

from __future__ import annotations

import importlib.util
import math
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_ways
import speed_images
import torch
from gpu_ways import Timed
from speed import interleaved
from speed_images import Problem, RedGateError
from torch import Tensor

import odediff
from odediff.prediction import Prediction
from odediff.step import advance_, mix

ROOT = Path(__file__).parent.parent
NFE = 20
TEST_SECONDS = 100
WORKERS = 8  # of pytest, whose time goes into compiling kernels
ELEMENTS = 2**24  # of float32: 64 MiB
# plan, its options, the network's dtype: from the fewest bytes an element to many, and two with noise
FORMS: list[tuple[str, dict[str, Any], torch.dtype]] = [
    ("ddim", {}, torch.float32),
    ("ddim", {}, torch.bfloat16),
    ("dpmpp_2m", {}, torch.float16),
    ("unipc_3", {}, torch.bfloat16),
    ("abm4", {}, torch.bfloat16),
    ("ddim", {"eta": 1.0}, torch.bfloat16),
    ("sde_dpmpp_2m", {}, torch.bfloat16),
]
Stage = Callable[[bool, Callable[[Any], None]], None]


class LeftOutError(RuntimeError):
    """A stage cannot run here."""


def needs_gpu() -> None:
    if not torch.cuda.is_available():
        raise LeftOutError("no GPU that torch sees")
    if importlib.util.find_spec("triton") is None:
        raise LeftOutError("triton is not installed")


def tests(dry: bool, save: Callable[[Any], None]) -> None:
    """The tests that are marked gpu, from the files that have some."""
    needs_gpu()
    if missing := [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]:
        raise LeftOutError(f"{' and '.join(missing)} not installed")
    files = [
        str(p) for p in sorted((ROOT / "tests").glob("test_*.py")) if re.search(r"mark\.gpu|PLACES", p.read_text())
    ]
    how = ["-q", "-m", "gpu", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    how += ["-W", "default::DeprecationWarning"]  # versions there are not those that the suite is kept for
    how += ["-n", str(WORKERS)] if importlib.util.find_spec("xdist") else []
    tested([sys.executable, "-m", "pytest", *how, *files], TEST_SECONDS, save)


def tested(run: list[str], seconds: float, save: Callable[[Any], None]) -> None:
    """Run pytest, and save what it says. RuntimeError: it was stopped, or came to no end of its own."""
    with tempfile.TemporaryFile() as file:
        try:
            how: dict[str, Any] = {"stdout": file, "stderr": subprocess.STDOUT, "cwd": ROOT, "check": False}
            code = subprocess.run(run, timeout=seconds, **how).returncode
        except subprocess.TimeoutExpired:
            code = None
        file.seek(0)
        said = file.read().decode(errors="replace")
    save(counted(said))
    if code is None:
        raise RuntimeError(f"stopped after {seconds:g} s: {said[-1000:]}")
    if code not in (0, 1):  # all passed, some failed
        raise RuntimeError(f"pytest ended with status {code}: {said[-1000:]}")


def counted(said: str) -> dict[str, Any]:
    """How many tests passed, failed and so on, from what pytest printed, and which failed."""
    lines = said.strip().splitlines() or [""]
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|skipped|error|deselected)", lines[-1])}
    bad = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"counts": counts, "bad": bad[:40], "tail": "\n".join(lines[-60:])[-6000:] if bad else ""}


def bytes_of(plan: odediff.Plan, width: int, feeds: bool) -> list[int]:
    """Bytes an element that each row of a plan reads and writes, for a network of `width` bytes that is not guided."""
    rows = range(plan.nfe)
    kept = [any(plan.b[i + j, j] for j in range(1, min(plan.depth, plan.nfe - i))) for i in rows]
    read = [4 + width + 4 * sum(bool(plan.b[i, j]) for j in range(1, plan.depth)) for i in rows]
    return [read[i] + 4 + 4 * kept[i] + width * feeds for i in rows]


def gate_of_rows(stage: Any, plan: odediff.Plan, prediction: Prediction, x: Tensor, out: Tensor) -> None:
    """The state after each row is the reference's, but for the noise. RedGateError: it is not."""
    stage.begin(x, odediff.philox.streams(0, len(x)))
    want, past = x.double(), []
    for i, row in enumerate(prediction.of_plan(plan)):
        past.insert(0, mix(row.to_d[0], want, row.to_d[1], out.double()))
        want = advance_(want.clone(), float(plan.a[i]), [(float(w), d) for w, d in zip(plan.b[i], past, strict=False)])
        stage(out)
        if plan.c[i]:  # what was added is unit normal noise
            z = (stage.x.double() - want) / float(plan.c[i])
            wide = 6 / math.sqrt(z.numel())
            if not (abs(float(z.mean())) < wide and abs(float(z.std()) - 1) < wide and float(z.abs().max()) < 6.8):
                raise RedGateError(f"{plan.method}, row {i}: the noise has mean {z.mean():.3g}, spread {z.std():.3g}")
            want = stage.x.double()
        gap = float((stage.x.double() - want).abs().max() / want.abs().max())
        if not gap <= 1e-5:
            raise RedGateError(f"{plan.method}, row {i}: differs from the reference by {gap:.1e}")


def kernel(dry: bool, save: Callable[[Any], None]) -> None:
    """Bytes a second of the stage kernel, whole plans as one graph, beside a copy's; and what a row launches."""
    needs_gpu()
    from odediff.kernels.stage import Stage

    shape, n = (4, 64, 64), ELEMENTS // (4 * 64 * 64)
    x, target = torch.randn(n, *shape, device="cuda"), torch.empty(n, *shape, device="cuda")
    copy = gpu_ways.graphed(lambda: [target.copy_(x) for _ in range(NFE)])
    result: dict[str, Any] = {"copy": [8 * ELEMENTS * NFE / s for s in gpu_ways.times(copy)], "rows": []}
    for name, options, dtype in FORMS:
        plan = odediff.plan(name, odediff.schedule.linear(), NFE, **options)
        model = odediff.Model(lambda x, t: x, schedule=odediff.schedule.linear(), prediction="v", shape=shape)
        prediction, out = Prediction(model), torch.randn(n, *shape, device="cuda").to(dtype)
        stage = Stage(prediction, plan, n, dtype=dtype, device="cuda")
        gate_of_rows(stage, plan, prediction, x, out)
        run = gpu_ways.graphed(lambda stage=stage, out=out: [stage(out) for _ in range(NFE)])
        moved = sum(bytes_of(plan, out.element_size(), dtype != torch.float32)) * ELEMENTS
        anew = odediff.philox.streams(0, n)  # else the state would grow from run to run
        rates = [moved / s for s in gpu_ways.times(run, lambda stage=stage, anew=anew: stage.begin(x, anew))]
        copies = [8 * ELEMENTS * NFE / seconds for seconds in gpu_ways.times(copy)]
        row = {"plan": name, **options, "depth": plan.depth, "dtype": str(dtype)[6:], "noise": plan.stochastic}
        shares = [a / b for a, b in zip(rates, copies, strict=True)]
        launches = gpu_ways.launched(lambda stage=stage, out=out: stage(out))
        result["rows"].append({**row, "rates": rates, "shares": shares, "launches": launches})
        save(result)
    plan, one = odediff.plan("ddim", odediff.schedule.linear(), NFE), torch.randn(1, *shape, device="cuda")
    stage = Stage(prediction, plan, 1, dtype=torch.float32, device="cuda")
    stage.begin(one)
    run = gpu_ways.graphed(lambda: [stage(one) for _ in range(NFE)])
    result["small"] = [s / NFE for s in gpu_ways.times(run, lambda: stage.begin(one))]
    save(result)


def compared(
    problem: Problem, batch: int, base: Timed, group: list[Timed], rounds: int, case: dict[str, Any]
) -> dict[str, Any]:
    """The case with a group more: each way made ready, gated and then timed in turn, beside `base`."""
    made, errors, kept = {}, {}, {}
    for way in (base, *group):
        before = gpu_ways.held()
        try:
            made[way.name] = way.make()
            made[way.name](problem.noise(batch))
        except Exception as error:  # a compiler's, or of any library: what does not start is a result
            made.pop(way.name, None)
            errors[way.name] = f"{type(error).__name__}: {error}".split("\n")[0][:300]
        kept[way.name] = gpu_ways.held() - before
    if base.name not in made:
        raise RuntimeError(f"{base.name}: {errors[base.name]}")
    found = speed_images.gate(problem, batch, made)
    noise, clock = problem.noise(batch), speed_images.clock_of(problem.model.device)
    runs = {name: (lambda run=run: speed_images.timed(run, noise, clock)) for name, run in made.items()}
    spent = interleaved(runs, rounds)
    rows = [{"name": name, **found[name], "held": kept[name], "rounds": spent[name]} for name in made]
    known = {"model": problem.name, "batch": batch, "nfe": problem.nfe, "dtype": str(problem.dtype)[6:]}
    known["flops"] = problem.flops * batch * problem.nfe
    return {**case, **known, "groups": [*case.get("groups", []), {"rows": rows, "errors": errors}]}


def batch_1(dry: bool, save: Callable[[Any], None]) -> None:
    """Latency of DDIM with 20 evaluations, float32, in every way that runs here; first what needs no compiling."""
    problem, case = Problem("tiny" if dry else "cifar", nfe=4 if dry else NFE), {}
    (base, *first), *others = gpu_ways.ways(problem, compiled=not dry)
    for group in (first, *others):
        case = compared(problem, 1, base, group, 2 if dry else 9, case)
        save(case)


def batch_256(dry: bool, save: Callable[[Any], None]) -> None:
    """Share of the matrix products' peak in bfloat16, and where an evaluation's time goes; channels last."""
    kind, batch = (torch.float32, 4) if dry else (torch.bfloat16, 256)
    problem = gpu_ways.LastProblem("tiny" if dry else "cifar", kind, 4 if dry else NFE)
    device = problem.model.device
    (base, *first), *others = gpu_ways.ways(problem, compiled=not dry, peers=False)
    case = {"peak": speed_images.product_peak(kind, device, speed_images.clock_of(device))}
    for group in (first, *others):
        case = compared(problem, batch, base, group, 2 if dry else 3, case)
        save(case)
        if "profile" not in case:
            case["profile"] = gpu_ways.profile(problem, batch)
            save(case)


def candidates(dry: bool, save: Callable[[Any], None]) -> None:
    """The kernels of bench/candidates beside torch.compile: to keep or to drop."""
    needs_gpu()
    found: list[Any] = []
    for case in gpu_ways.candidate_cases():
        expected, got = case.reference(), case.kernel()
        for one, other in zip(expected, got, strict=True):
            gap = float((one.double() - other.double()).norm() / one.double().norm())
            if not gap <= case.bound:
                raise RedGateError(f"{case.name} {case.size}: differs by {gap:.1e} of the norm")
        torch.compiler.reset()  # each size for itself: or sizes become variables, and after eight of them it gives up
        runs = {"eager": case.eager, "compile": torch.compile(case.eager, dynamic=False), "kernel": case.kernel}
        ready = {way: gpu_ways.graphed(lambda run=run: [run() for _ in range(20)]) for way, run in runs.items()}
        spent = {way: [s / 20 for s in gpu_ways.times(run)] for way, run in ready.items()}
        found.append({"name": case.name, "size": case.size, **spent})
        save({"cases": found, "verdicts": verdicts(found)})


def verdicts(cases: list[dict[str, Any]]) -> dict[str, str]:
    """Keep what takes at most 95 % of torch.compile's time over all sizes, and on none more than 105 %."""
    made = {}
    for name in dict.fromkeys(case["name"] for case in cases):
        pairs = [(statistics.median(c["kernel"]), statistics.median(c["compile"])) for c in cases if c["name"] == name]
        total, worst = sum(k for k, _ in pairs) / sum(c for _, c in pairs), max(k / c for k, c in pairs)
        made[name] = f"{'keep' if total <= 0.95 and worst <= 1.05 else 'drop'}: {total:.2f} of torch.compile's time"
    return made


def onnx(dry: bool, save: Callable[[Any], None]) -> None:
    """bench/onnx.py on the GPU, if there is an onnxruntime that can use it."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise LeftOutError("onnxruntime is not installed")
    import onnxruntime

    if not torch.cuda.is_available() or "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise LeftOutError("onnxruntime has no CUDA provider: `sh bench/onnx_gpu.sh` says how to bring one")
    with tempfile.TemporaryDirectory() as folder:
        how = ["--provider", "cuda", "--models", "mnist", "--batches", "1", "--no-compile", "--out", folder]
        run = [sys.executable, str(ROOT / "bench" / "onnx.py"), *how]
        done = subprocess.run(run, capture_output=True, text=True, cwd=ROOT, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        save({"table": done.stdout})


STAGES: dict[str, Stage] = {
    "tests": tests,
    "kernel": kernel,
    "batch 1": batch_1,
    "batch 256": batch_256,
    "candidates": candidates,
    "onnx": onnx,
}
