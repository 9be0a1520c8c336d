"""How fast sampling is, beside what users run today: the sampler alone, and images from end to end.

    python bench/speed.py                          some minutes; on a GPU if there is one, else on one core
    python bench/speed.py --big                    the large network at batches of 8 and 64 too, and compiled: an hour
    python bench/speed.py --no-compile             nothing that compiles
    python bench/speed.py --compare old.json       what became slower
    python bench/speed.py --short --out /tmp       seconds: the gate and the format, on a tiny network
    python bench/speed.py --report                 tables and plots of what was measured, into README.md

The gate: every way draws the images that eager torch draws, and our plans the states of diffusers' schedulers; or
nothing is timed. On the CPU a time is the process's CPU seconds on one pinned thread; on a GPU it is wall time up to a
synchronisation. In a round everything runs once, forwards and backwards in turn; ratios are taken within a round.

On an H100, unattended, in less than 10 minutes (written without one at hand: not run so far):

    ODEDIFF_COMMIT=$(git rev-parse HEAD) PYTHONPATH=. python bench/speed.py --out "$OUT"

with diffusers installed as bench/onnx_gpu.sh does; libraries that are not there are left out of the tables.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.append(sys.path.pop(0))  # bench/onnx.py is here, which would hide the package onnx

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import speed_images
import speed_page
import speed_samplers
import torch
from common import RESULTS, exact_float32, write, write_block
from speed_images import Problem, RedGateError, clock_of
from speed_samplers import Loop, loops
from tqdm import tqdm

import odediff
from odediff.step import INSTRUCTIONS

SHAPES = ((1, 3, 32, 32), (16, 3, 32, 32), (4, 4, 64, 64), (64, 3, 64, 64))
PLANS = {"DDIM": "ddim", "DPMSolverMultistep": "dpmpp_2m"}
Work = list[tuple[Problem, dict[int, int]]]  # rounds by batch


def interleaved(runs: dict[Any, Callable[[], float]], rounds: int) -> dict[Any, list[float]]:
    """Seconds that every run reports, round by round."""
    spent: dict[Any, list[float]] = {key: [] for key in runs}
    for k in tqdm(range(rounds), "rounds"):
        for key in list(runs)[:: 1 if k % 2 == 0 else -1]:
            spent[key].append(runs[key]())
    return spent


def timer(loop: Loop, x: torch.Tensor, repeats: int, clock: Callable[[], float]) -> Callable[[], float]:
    """Seconds per evaluation."""

    def run() -> float:
        spent = 0.0
        for _ in range(repeats):
            loop.prepare()
            _wait(x)
            begin = clock()
            loop.run(x)
            _wait(x)
            spent += clock() - begin
        return spent / repeats / loop.evaluations

    return run


def _wait(x: torch.Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize()


def samplers(shape: tuple[int, ...], rounds: int, device: torch.device) -> dict[str, Any]:
    """Table (a) at a shape."""
    generator = torch.Generator().manual_seed(0)
    x, out = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
    target, clock = torch.empty_like(x), clock_of(device)
    repeats = 1 if x.numel() > 2**18 else 4

    def copies(start: torch.Tensor) -> torch.Tensor:
        for _ in range(speed_samplers.NFE):
            target.copy_(start)
        return target

    ready = [Loop("torch", "copy", lambda: None, copies, speed_samplers.NFE), *loops(out)]
    longer = {one[:2]: one for one in loops(out, 2 * speed_samplers.NFE)}
    counts = {one[:2]: speed_samplers.traffic(one, longer[one[:2]], x) for one in ready[1:]}
    counts[ready[0][:2]] = {"streams": 2.0, "made": 0.0}
    spent = interleaved({one[:2]: timer(one, x, repeats, clock) for one in ready}, rounds)
    rows = [
        {
            "library": one.library,
            "name": one.name,
            "evaluations": one.evaluations,
            "rounds": spent[one[:2]],
            **counts[one[:2]],
        }
        for one in ready
    ]
    return {"shape": list(shape), "rows": rows}


def images(problem: Problem, batch: int, rounds: int) -> dict[str, Any]:
    """Table (b) at a batch. RedGateError: nothing was timed."""
    model = problem.model
    device, clock = model.device, clock_of(model.device)
    made, rows = {}, {}
    for way, make in problem.ways().items():
        rows[way] = {"name": way}
        try:
            made[way] = make()
        except (RuntimeError, ImportError) as error:  # a backend that does not start is a result
            rows[way]["error"] = f"{type(error).__name__}: {error}".split("\n")[0][:200]
    begin = time.perf_counter()
    for way, found in speed_images.gate(problem, batch, made).items():
        rows[way] |= found
    print(f"gate, {problem.name}, batch {batch}: {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    noise = problem.noise(batch)
    runs = {way: (lambda run=run: speed_images.timed(run, noise, clock)) for way, run in made.items()}
    for way, spent in interleaved(runs, rounds).items():
        rows[way]["rounds"] = spent
    return {
        "model": problem.name,
        "parameters": sum(weight.numel() for weight in model.net.parameters()),
        "dtype": str(problem.dtype).removeprefix("torch."),
        "batch": batch,
        "nfe": problem.nfe,
        "rounds": rounds,
        "flops": problem.flops * batch * problem.nfe,
        "peak": speed_images.product_peak(problem.dtype, device, clock),
        "rows": list(rows.values()),
    }


def gate_of_plans(device: torch.device) -> None:
    """Our plans on diffusers' times draw what its schedulers draw. RedGateError: they do not."""
    if not speed_samplers.installed("diffusers"):
        return
    import diffusers

    schedule, x = odediff.schedule.linear(), torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    x = x.to(device)
    model = odediff.Model(lambda x, t: torch.tanh(x) * 0.9, schedule=schedule, shape=(3, 8, 8), range=None)
    for name, method in PLANS.items():
        options = {"timestep_spacing": "trailing", **speed_samplers.DIFFUSERS[name]}
        scheduler = getattr(diffusers, f"{name}Scheduler")(**options)
        scheduler.set_timesteps(20, device=device)
        plan = odediff.plan(method, schedule, 20, scheduler.timesteps.cpu().double().numpy())
        theirs = x
        for t in scheduler.timesteps:
            theirs = scheduler.step(model.net(theirs, t), t, theirs).prev_sample
        gap = float((odediff.Sampler(model, plan)(x) - theirs).square().mean().sqrt() / theirs.square().mean().sqrt())
        if not gap <= 5e-5:
            raise RedGateError(f"{method} differs from diffusers' {name} by {gap:.1e} of the RMS")


def work(device: str, big: bool, compiled: bool, short: bool) -> Work:
    """What table (b) measures."""
    if short:
        return [(Problem("tiny", nfe=4, compiled=False), {2: 2})]
    if device == "cuda":
        half = torch.bfloat16
        return [
            (Problem("mnist", compiled=False), {1: 9, 8: 9, 64: 5, 256: 3, 1024: 3}),
            (Problem("cifar", compiled=compiled), {1: 7}),
            (Problem("cifar", compiled=False), {8: 5, 64: 3, 256: 3, 1024: 1}),
            (Problem("cifar", half, compiled=compiled), {256: 3}),
            (Problem("cifar", half, compiled=False), {1: 7, 1024: 3}),
        ]
    return [
        (Problem("mnist", compiled=compiled), {1: 11, 8: 5}),
        (Problem("mnist", compiled=compiled and big), {64: 3}),
        (Problem("cifar", compiled=compiled and big), {1: 5, 8: 2, 64: 1} if big else {1: 3}),
    ]


def measure(todo: Work, shapes: tuple[tuple[int, ...], ...], rounds: int) -> dict[str, Any]:
    """Everything. RedGateError: nothing is to be believed."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gate_of_plans(device)
    found = [images(problem, batch, count) for problem, batches in todo for batch, count in batches.items()]
    return {
        "device": device.type,
        "clock": "wall time" if device.type == "cuda" else "CPU time on one pinned thread",
        "versions": speed_samplers.versions(),
        "rows": INSTRUCTIONS,
        "samplers": [samplers(shape, rounds, device) for shape in shapes],
        "images": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--big", action="store_true", help="on a CPU, the large network in full: an hour")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--compare", type=Path, metavar="OLD", help="results of an earlier run")
    parser.add_argument("--short", action="store_true", help="a tiny network, one shape")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    cuda = torch.cuda.is_available()
    name = "speed_short" if args.short else "speed_cuda" if cuda else "speed"
    old = json.loads(args.compare.read_text()) if args.compare else None
    path = args.out / f"{name}.json"
    if not args.report:
        if not cuda:
            common.pin()
        exact_float32()
        warnings.simplefilter("ignore")  # those of the peers
        todo = work("cuda" if cuda else "cpu", args.big, args.compile, args.short)
        try:
            data = measure(todo, SHAPES[:1] if args.short else SHAPES, 3 if args.short else 11)
        except RedGateError as error:
            sys.exit(f"red gate, nothing measured: {error}")
        path = write(name, data, args.out)
    data = json.loads(path.read_text())
    text = speed_page.text(data)
    print(text)
    if args.out == RESULTS and not args.short:
        speed_page.plot(data)
        write_block(name, text)
    if old is not None:
        print("\n".join(speed_page.compare(data, old)))


if __name__ == "__main__":
    main()
