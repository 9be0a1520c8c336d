"""What the stages of bench/gpu.py run and time: ways to draw the same samples, graphs, profiles, the candidates."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import speed_samplers
import torch
import torch.nn.functional as F
from speed_images import Problem, Run
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

import odediff
from odediff.graph import capture

BASE = "odediff, torch"
PLAIN = "plain loop of diffusers' arithmetic"
KINDS = {  # the first whose pattern a kernel's name has; cuDNN's own changes of layout are none of its convolutions
    "copies and layouts": r"copy|tonhwc|tonchw|nchw2nhwc|nhwc2nchw|transpose|catarray|memcpy|memset",
    "matrix products and convolutions": r"gemm|conv|xmma|cutlass|nvjet|sm\d\d_|cudnn|flash|splitk|mm\b|:linear",
    "normalisation": r"norm|moments|welford",
    "all else, elementwise": r"",
}
AHEAD = 1_000_000  # cycles that the GPU waits, about half a millisecond, in which the host queues what is timed


class Timed(NamedTuple):
    """A way to draw: what makes it ready."""

    name: str
    make: Callable[[], Run]


class LastProblem(Problem):
    """The same with a network that is channels last."""

    @cached_property
    def model(self) -> odediff.Model:
        model = Problem.model.func(self)
        model.net.to(memory_format=torch.channels_last)
        return model


def ways(problem: Problem, *, compiled: bool, peers: bool = True) -> list[list[Timed]]:
    """Groups of ways, what compiles in groups of its own, after the others; the first of all is `BASE`."""
    there = [b for b in ("torch", "triton", "cudagraph") if problem._has(b)]
    ours = [Timed(f"odediff, {b}", lambda b=b: problem._ours(b)) for b in there]
    theirs = speed_samplers.installed("diffusers")
    name = "diffusers" if theirs else PLAIN
    make = problem._diffusers if theirs else lambda compiled: plain(problem, compiled)
    groups = [[*ours, *([Timed(f"{name}, eager", lambda: make(False))] if peers else [])]]
    if compiled:
        groups += [[Timed(f"{name}, compiled", lambda: make(True))]] if peers else []
        groups += [[Timed("odediff, compile", lambda: problem._ours("compile"))]]
    return groups


def plain(problem: Problem, compiled: bool) -> Run:
    """diffusers' DDIM written out: 0-d tensors of float32, x0 and eps at every step, Song et al. 2021, eq. 12."""
    model, plan = problem.model, problem.plan
    abar = torch.from_numpy(plan.alpha.copy()).square().float()
    times = torch.from_numpy(plan.t.copy()).to(model.device).long()
    call = torch.compile(model.net, mode="reduce-overhead") if compiled else model.net

    @torch.no_grad()
    def run(noise: Tensor) -> Tensor:
        x = noise.to(problem.dtype)
        for i, t in enumerate(times):
            v = call(x, t.expand(len(x)))
            root, other = abar[i] ** 0.5, (1 - abar[i]) ** 0.5
            x0, eps = root * x - other * v, root * v + other * x
            x = abar[i + 1] ** 0.5 * x0 + (1 - abar[i + 1]) ** 0.5 * eps
        return x.float().clamp(*model.range)

    return run


def graphed(run: Callable[[], Any]) -> Callable[[], None]:
    """The work of a GPU as one graph."""
    return capture(run, torch.device("cuda"))[0]


def times(run: Callable[[], Any], before: Callable[[], Any] = lambda: None, repeats: int = 11) -> list[float]:
    """Seconds of the GPU for each of some runs, after three that are not counted; `before` is not timed.

    The host is ahead of the GPU, whose time between the two events has no launch of the host in it.
    """
    found = []
    for _ in range(3 + repeats):
        before()
        torch.cuda._sleep(AHEAD)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end) / 1e3)
    return found[3:]


def held() -> int:
    """Bytes of the GPU that torch keeps, after what nobody needs is given back; 0 without one."""
    if not torch.cuda.is_available():
        return 0
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()


def _profiled(run: Callable[[], Any]) -> list[Any]:
    """What the profiler saw, by name: kernels of the GPU, or on a CPU torch's operations."""
    cuda = torch.cuda.is_available()
    with torch.profiler.profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as seen:
        run()
        if cuda:
            torch.cuda.synchronize()
    kind = DeviceType.CUDA if cuda else DeviceType.CPU
    return [event for event in seen.key_averages() if event.device_type == kind]


def launched(run: Callable[[], Any]) -> dict[str, int]:
    """How often each kernel is launched; {} where the profiler fails."""
    try:
        return {event.key[:80]: event.count for event in _profiled(run)}
    except RuntimeError:
        return {}


def profile(problem: Problem, batch: int) -> dict[str, Any]:
    """Seconds of one evaluation of the network in eager torch, by kind of kernel, and by kernel for the longest 25.

    {"why": ..} where the profiler fails, or sees nothing.
    """
    x = problem.noise(batch)

    def run() -> None:
        with torch.no_grad():
            problem.model(x, 500.0)

    run()
    try:
        events = [(e.key, e.count, (e.self_device_time_total or e.self_cpu_time_total) / 1e6) for e in _profiled(run)]
    except RuntimeError as error:
        return {"why": str(error)[:300]}
    total, kinds = sum(seconds for *_, seconds in events), dict.fromkeys(KINDS, 0.0)
    if not total:
        return {"why": "the profiler saw no kernel"}
    for name, _, seconds in events:
        kinds[kind_of(name)] += seconds
    longest = sorted(events, key=lambda event: -event[2])[:25]
    rows = [{"name": name[:120], "calls": calls, "share": seconds / total} for name, calls, seconds in longest]
    return {"seconds": total, "kinds": {kind: seconds / total for kind, seconds in kinds.items()}, "kernels": rows}


def kind_of(kernel: str) -> str:
    """The kind of a kernel, by its name."""
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, kernel.lower()))


class Case(NamedTuple):
    """A candidate at a size: what is right, the kernel, what torch.compile is given, and the gap that is admitted."""

    name: str
    size: str
    reference: Callable[[], tuple[Tensor, ...]]
    kernel: Callable[[], tuple[Tensor, ...]]
    eager: Callable[[], tuple[Tensor, ...]]
    bound: float


def candidate_cases() -> list[Case]:
    """The U-Net's tensors at batch 1 and 256 in bfloat16, and training's batches."""
    from candidates import group_norm_silu, q_sample

    made = []
    for n in (1, 256):
        for channels, side in ((128, 32), (256, 32), (256, 16), (512, 16), (256, 8), (256, 4)):
            x = torch.randn(n, channels, side, side, device="cuda", dtype=torch.bfloat16)
            x = x.contiguous(memory_format=torch.channels_last)
            wb = tuple(torch.randn(channels, device="cuda", dtype=torch.bfloat16) for _ in range(2))
            made.append(
                Case(
                    "group_norm_silu",
                    f"{n}x{channels}x{side}x{side}",
                    lambda x=x, wb=wb: (group_norm_silu.reference(x.double(), 32, *(w.double() for w in wb)),),
                    lambda x=x, wb=wb: (group_norm_silu.group_norm_silu(x, 32, *wb),),
                    lambda x=x, wb=wb: (F.silu(F.group_norm(x, 32, *wb)),),
                    4e-3,
                )
            )
    for shape in ((128, 3, 32, 32), (32, 3, 256, 256)):
        x0, eps = (torch.randn(shape, device="cuda") for _ in range(2))
        table = torch.randn(shape[0], 5, device="cuda")
        given = (x0, eps, table, torch.bfloat16)
        exact = (x0.double(), eps.double(), table.double(), torch.float64)
        made.append(
            Case(
                "q_sample",
                "x".join(map(str, shape)),
                lambda exact=exact: q_sample.reference(*exact),
                lambda given=given: q_sample.q_sample(*given),
                lambda given=given: q_sample.reference(*given),
                4e-3,
            )
        )
    return made
