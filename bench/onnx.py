"""Exported files against torch: the same samples drawn in many ways, alternately in one run, after a gate.

    python bench/onnx.py                                    two trained networks and a U-Net of CIFAR-10's size: an hour
    python bench/onnx.py --models mnist --repeats 5
    python bench/onnx.py --quality ../shared/data           Frechet distance of int8 beside fp32, into the same results
    python bench/onnx.py --short --out /tmp                 seconds: the gate and the format, on a tiny network
    python bench/onnx.py --provider cuda                    see bench/onnx_gpu.sh
    python bench/onnx.py --report                           the table of what was measured, into docs/deploy.md

DDIM on diffusers' times. The gate: every way agrees with eager torch to its precision's bound, or nothing is timed.
On the CPU a time is the process's CPU seconds on one pinned thread; on a GPU it is wall time up to the images on the
host. A ratio is taken within a round, in which every way runs once, forwards and backwards in turn.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.append(sys.path.pop(0))  # this folder goes last: ahead of site-packages, this file would be `import onnx`
elif __name__ == "onnx":
    raise ImportError("bench/ is ahead of site-packages on sys.path and hides the package onnx; append it instead")

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_page
import onnx_ways
import torch
from common import RESULTS, environment, exact_float32, write
from onnx_ways import Array, Ready, Way
from tqdm import tqdm

import odediff
from odediff.nn import UNet, unet_config
from odediff.parity import BOUNDS, ParityError
from odediff.plans import Plan

NFE = 20
SEED = 20
BASES = ("diffusers", "eager")  # of the ratios, and of the gate
REPEATS = {"fashion": {1: 21, 16: 11}, "mnist": {1: 21, 16: 11}, "cifar": {1: 5, 16: 2}, "tiny": {}}
DIFFUSERS = 5e-5  # its table is float32: coefficients, and with them images, differ from float64's by more than 1e-5
FIXED = {"fixed": True}
CPU = [
    *(Way(name) for name in ("diffusers", "eager", "compile")),
    *(Way(name, **fixed) for name in ("network", "unrolled", "loop") for fixed in ({}, FIXED)),
    *(Way(name, "int8") for name in ("network", "loop")),
    *(Way("network", precision, True, "openvino") for precision in ("fp32", "int8")),
]
CUDA = [
    *(Way(name) for name in ("diffusers", "eager", "compile")),
    *(Way(name, precision, provider="cuda") for precision in ("fp32", "fp16") for name in ("network", "loop")),
    *(Way(name, precision, True, "cuda", True) for precision in ("fp32", "fp16") for name in ("network", "unrolled")),
]
SHORT = [Way(name) for name in ("diffusers", "eager", "network", "loop")]
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnx", "openvino", "diffusers")
Rows = list[dict[str, Any]]


class RedGateError(RuntimeError):
    """A way does not draw what eager torch draws."""


def model_of(name: str) -> odediff.Model:
    """ "mnist" is bundled, "fashion" in bench/networks; random weights: "cifar", Ho et al. 2020 (35.7M), and "tiny"."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "mnist":
        return odediff.load(name, device=device)
    if name == "fashion":
        return odediff.load(Path(__file__).parent / "networks" / name, device=device)
    torch.manual_seed(SEED)
    small = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 8}
    small |= {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    more, shape = ({}, (3, 32, 32)) if name == "cifar" else (small, (1, 8, 8))
    net = UNet(**unet_config("l", in_channels=shape[0], sample_size=shape[1], **more)).to(device)
    return odediff.Model(net, schedule=odediff.schedule.linear(), prediction="v", shape=shape)


def files(
    model: odediff.Model, plan: Plan, ways: list[Way], batches: list[int], folder: Path
) -> dict[str, dict[str, Any]]:
    """Write every file that the ways need, and what became of it by its name; a file that could not be written is a
    result, one that did not agree is a RedGateError."""
    made: dict[str, dict[str, Any]] = {}
    wanted = dict.fromkeys((way.file(batch), way, batch if way.fixed else None) for way in ways for batch in batches)
    for name, way, batch in tqdm([one for one in wanted if one[0]], "export"):
        sampler = {} if way.runs == "network" else {"solver": plan, "form": way.runs}
        if name in made:
            continue
        try:
            done = odediff.export(model, folder / name, batch=batch, precision=way.precision, **sampler)
        except ParityError as error:
            raise RedGateError(f"export of {name}: {error}") from error
        except Exception as error:  # a precision that is not there is a result
            made[name] = {"error": f"{type(error).__name__}: {error}".split("\n")[0][:200]}
            continue
        made[name] = {key: getattr(done, key) for key in ("bytes", "nodes", "gap", "seconds", "opset")}
    return made


def agreement(got: Array, want: Array) -> dict[str, float]:
    """The largest difference, and the largest RMS over samples, of images or outputs (N, ...)."""
    apart = (got.astype(np.float64) - want).reshape(len(want), -1)
    rms = np.sqrt(np.square(apart).mean(1))
    scale = np.sqrt(np.square(want.astype(np.float64)).mean())
    return {"max_abs": float(abs(apart).max()), "rms": float(rms.max()), "relative": float(rms.max() / scale)}


def gate(way: Way, what: str, got: Array, want: Array) -> dict[str, float]:
    """Agreement. RedGateError: RMS is above the bound, relative to the image's for int8, as `odediff.export` has it."""
    made = agreement(got, want)
    bound = DIFFUSERS if way.runs == "diffusers" else BOUNDS["images"][way.precision]
    if not made["relative" if way.precision == "int8" else "rms"] <= bound:
        raise RedGateError(f"{way}: {what} differ from eager torch's by {made}; the bound is {bound:g}")
    return made


def rounds(runs: dict[Way, Callable[[], Any]], repeats: int, clock: Callable[[], float], base: Way) -> dict[Way, Any]:
    """Seconds of every way, and base's over them within a round: median and quartiles."""
    seconds: dict[Way, list[float]] = {way: [] for way in runs}
    for k in tqdm(range(repeats), "rounds"):
        for way in list(runs)[:: 1 if k % 2 == 0 else -1]:
            begin = clock()
            runs[way]()
            seconds[way].append(clock() - begin)
    made = {}
    for way, spent in seconds.items():
        low, ratio, high = np.quantile(np.divide(seconds[base], spent), [0.25, 0.5, 0.75]).tolist()
        made[way] = {"seconds": float(np.median(spent)), "ratio": ratio, "low": low, "high": high}
    return made


def case(name: str, folder: Path, made: dict[str, Any], ways: list[Way], batch: int, repeats: int) -> dict[str, Any]:
    """One model at one batch: gate, times, and each way alone in a process."""
    ready, rows = {}, {way: {"way": str(way), **vars(way)} for way in ways}
    for way in ways:
        file = way.file(batch)
        rows[way] |= made.get(file, {}) if file else {}
        if "error" in rows[way]:
            continue
        begin = time.process_time()
        try:
            ready[way] = onnx_ways.load(way, folder, batch)
        except (RuntimeError, ImportError) as error:  # a provider that is not there is a result
            rows[way]["error"] = f"{type(error).__name__}: {error}".split("\n")[0][:200]
        else:
            rows[way]["load"] = time.process_time() - begin
    shape = json.loads((folder / "model.json").read_text())["shape"]
    noise = np.random.default_rng(SEED).standard_normal((batch, *shape), dtype=np.float32)
    eager = next(way for way in ready if way.runs == "eager")
    want, out = ready[eager].sample(noise), ready[eager].forward(noise)
    for way, one in tqdm(ready.items(), f"gate, {name}, batch {batch}"):
        begin = _with_children()
        rows[way] |= gate(way, "images", one.sample(noise), want)
        rows[way]["first"] = _with_children() - begin  # compiled where it compiles
        if one.forward is not None:
            gate(way, "outputs", one.forward(noise), out)
    forward = timed(rows, ready, noise, repeats)
    alone(rows, ready, folder, batch)
    return {"rows": list(rows.values()), "forward": forward}


def _with_children() -> float:
    """CPU seconds, those of compilers that were called included."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def timed(rows: dict[Way, Any], ready: dict[Way, Ready], noise: Array, repeats: int) -> Rows:
    """Times of the samples, into rows, and of the network alone."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    diffusers, eager = (next(way for way in ready if way.runs == name) for name in BASES)
    sample = {way: partial(one.sample, noise) for way, one in ready.items()}
    for way, row in rounds(sample, repeats, clock, diffusers).items():
        rows[way] |= row
    forward = {way: partial(one.forward, noise) for way, one in ready.items() if one.forward is not None}
    made = rounds(forward, 3 * repeats, clock, eager)
    return [{"way": str(way), **vars(way), **row} for way, row in made.items()]


def alone(rows: dict[Way, Any], ready: dict[Way, Ready], folder: Path, batch: int) -> None:
    """Each way in a fresh process, into rows: seconds from the first import to ready, and the most memory it held."""
    for way in tqdm(ready, "alone"):
        script = [sys.executable, "-P", str(Path(onnx_ways.__file__)), str(folder), str(batch), json.dumps(vars(way))]
        done = subprocess.run(script, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{way} in a process of its own: {done.stderr[-600:]}")
        rows[way] |= json.loads(done.stdout.splitlines()[-1])


def measure(name: str, ways: list[Way], batches: list[int], repeats: int | None) -> list[dict[str, Any]]:
    """All cases of a model. RedGateError: nothing of it was timed, or nothing is to be believed."""
    model = model_of(name)
    scheduler = onnx_ways.scheduler_of(model)
    nfe = 4 if name == "tiny" else NFE  # divides 1000, or diffusers' steps do not end where its next ones begin
    scheduler.set_timesteps(nfe)
    plan = odediff.plan("ddim", model.schedule, nfe, scheduler.timesteps.numpy().astype(float))
    about = {
        "model": name,
        "parameters": sum(weight.numel() for weight in model.net.parameters()),
        "nfe": nfe,
        "clock": "wall time" if torch.cuda.is_available() else "CPU time on one pinned thread",
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "environment": environment(),
    }
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model.save(folder)
        (folder / "plan.json").write_text(plan.to_json())
        made = files(model, plan, ways, batches, folder)
        cases = []
        for batch in batches:
            count = repeats or REPEATS[name][batch]
            cases.append({**about, "batch": batch, "repeats": count, **case(name, folder, made, ways, batch, count)})
    return cases


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def add(cases: list[dict[str, Any]], name: str, folder: Path, **more: Any) -> dict[str, Any]:
    """Write results, in place of older ones of the same model and batch; all there are now."""
    path = folder / f"{name}.json"
    old = json.loads(path.read_text()) if path.exists() else {"cases": []}
    new = {(one["model"], one["batch"]) for one in cases}
    kept = [one for one in old["cases"] if (one["model"], one["batch"]) not in new]
    order = list(REPEATS)
    data = {**old, **more, "cases": sorted(kept + cases, key=lambda one: (order.index(one["model"]), one["batch"]))}
    data.pop("environment", None)  # each case has its own
    write(name, data, folder)
    return data


def pin() -> None:
    """One thread of this process and its children on one core."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.environ |= {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    torch.set_num_threads(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", default=["fashion", "mnist", "cifar"], choices=("fashion", "mnist", "cifar")
    )
    parser.add_argument("--ways", nargs="+", metavar="RUNS", help="only these, of those that `onnx_ways.Way` names")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, help="rounds; else by model and batch")
    parser.add_argument("--provider", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="torch.compile, minutes on a CPU; on for mnist only"
    )
    parser.add_argument("--quality", type=Path, metavar="DATA", help="only int8's Frechet distance, with this data")
    parser.add_argument("--n", type=int, default=4000, help="samples for --quality")
    parser.add_argument("--short", action="store_true", help="a tiny network, few ways and rounds")
    parser.add_argument("--report", action="store_true", help="only the tables, into docs/deploy.md if it is there")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.provider == "cpu":
        pin()
    elif not torch.cuda.is_available():
        parser.error("--provider cuda needs a GPU that torch sees")
    exact_float32()
    name = "onnx" if args.provider == "cpu" else "onnx_cuda"
    try:
        if args.short:
            data = add(measure("tiny", SHORT, [2], 3), f"{name}_short", args.out)
            print(onnx_page.text(data))
            return
        if args.quality:
            import onnx_quality

            add([], name, args.out, quality=onnx_quality.quality(args.quality, args.n))
        elif not args.report:
            for model in args.models:
                wanted = args.compile if args.compile is not None else model == "mnist"
                ways = [way for way in (CPU if args.provider == "cpu" else CUDA) if wanted or way.runs != "compile"]
                ways = [way for way in ways if way.runs in (args.ways or {way.runs}) or way.runs in BASES]
                add(measure(model, ways, args.batches, args.repeats), name, args.out)
    except RedGateError as error:
        sys.exit(f"red gate, nothing measured: {error}")
    text = onnx_page.text(add([], name, args.out))
    print(text)
    onnx_page.publish(name, text)


if __name__ == "__main__":
    main()
