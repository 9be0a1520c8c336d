"""The same DDIM samples drawn by diffusers, by torchdiffeq, and by every backend of `odediff.Sampler`, to the end.

All evaluate the same weights the same number of times on the same times; what they draw must agree before it is timed.
"""

from __future__ import annotations

import ctypes
import gc
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx_ways
import torch
from networks import SEED, model_of
from speed_samplers import installed
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import odediff
from odediff.backends import BACKENDS, choose
from odediff.plans import Plan

# RMS of the images, of which the range is 2: coefficients of diffusers' are float32
BOUNDS = {torch.float32: 5e-5, torch.bfloat16: 0.1}
COMPILED = ("diffusers, compiled", "odediff, compile")
Run = Callable[[Tensor], Tensor]


class RedGateError(RuntimeError):
    """Two ways that should agree do not."""


@dataclass(frozen=True)
class Problem:
    """A network in a dtype, with its plan: DDIM on diffusers' times."""

    name: str
    dtype: torch.dtype = torch.float32
    nfe: int = 20
    compiled: bool = True  # also the ways that compile

    @cached_property
    def model(self) -> odediff.Model:
        model = model_of(self.name)
        model.net.eval().requires_grad_(False).to(self.dtype)
        return model

    @cached_property
    def plan(self) -> Plan:
        schedule = self.model.schedule
        times = torch.linspace(schedule.steps, 0, self.nfe + 1)[:-1].round().double() - 1
        return odediff.plan("ddim", schedule, self.nfe, times.numpy())

    @cached_property
    def flops(self) -> int:
        """Of one evaluation of one sample, a multiplication and an addition counted as two."""
        model = self.model
        x = torch.zeros(1, *model.shape, device=model.device)
        with torch.no_grad(), FlopCounterMode(display=False) as counted:
            model(x, 500.0)
        return counted.get_total_flops()

    def noise(self, batch: int) -> Tensor:
        generator = torch.Generator().manual_seed(SEED)
        return torch.randn(batch, *self.model.shape, generator=generator).to(self.model.device)

    def ways(self) -> dict[str, Callable[[], Run]]:
        """What makes each way ready."""
        made: dict[str, Callable[[], Run]] = {}
        if installed("diffusers"):
            made["diffusers, eager"] = lambda: self._diffusers(False)
            made["diffusers, compiled"] = lambda: self._diffusers(True)
        made["torchdiffeq, euler"] = lambda: self._torchdiffeq
        for backend in BACKENDS:
            if backend != "auto" and self._has(backend):
                made[f"odediff, {backend}"] = lambda backend=backend: self._ours(backend)
        return {way: make for way, make in made.items() if self.compiled or way not in COMPILED}

    def _has(self, backend: str) -> bool:
        try:
            choose(backend, self.model)
        except ValueError:
            return False
        return True

    def _ours(self, backend: str) -> Run:
        return odediff.Sampler(self.model, self.plan, backend=backend)

    def _torchdiffeq(self, noise: Tensor) -> Tensor:
        grid = self.plan.t
        how = {"nfe": self.nfe, "grid": grid, "variable": "rho", "noise": noise}
        return odediff.solve(self.model, "torchdiffeq:euler", **how).x

    def _diffusers(self, compiled: bool) -> Run:
        """The loop of its `DDIMPipeline` without the bar."""
        import diffusers

        diffusers.logging.set_verbosity_error()
        model = self.model
        net = diffusers.UNet2DModel(**model.net.config).to(model.device, self.dtype).eval().requires_grad_(False)
        net.load_state_dict(model.net.state_dict())
        scheduler = onnx_ways.scheduler_of(model)
        call = net
        if compiled:
            call = torch.compile(net, mode="reduce-overhead" if model.device.type == "cuda" else None)

        @torch.no_grad()
        def run(noise: Tensor) -> Tensor:
            image = noise.to(self.dtype)
            scheduler.set_timesteps(self.nfe)
            # its pipeline hands the network times on the CPU, for which torch.compile would leave CUDA graphs out
            for t, there in zip(scheduler.timesteps, scheduler.timesteps.to(model.device), strict=True):
                image = scheduler.step(call(image, there).sample, t, image, eta=0.0).prev_sample
            return image.float().clamp(*model.range)

        return run


def gate(problem: Problem, batch: int, made: dict[str, Run]) -> dict[str, dict[str, float]]:
    """Each way's first run: its RMS from eager torch's images, and the memory it took. RedGateError: they differ."""
    noise, found = problem.noise(batch), {}
    want = made["odediff, torch"](noise)
    for way, run in made.items():
        got, peak = with_peak(lambda run=run: run(noise))
        rms = float((got.double() - want.double()).square().mean().sqrt())
        if not rms <= BOUNDS[problem.dtype]:
            raise RedGateError(f"{way}: images of {problem.name} differ from eager torch's by an RMS of {rms:.1e}")
        found[way] = {"rms": rms, "peak": peak}
    return found


def with_peak(run: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """The images, and the bytes that drawing them took at most beyond what was held before."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = run()
        return out, torch.cuda.max_memory_allocated() - before
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, or a run would find it and take nothing
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _resident("VmRSS")
    out = run()
    return out, _resident("VmHWM") - before


def _resident(key: str) -> float:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024.0 * int(found[1])


def timed(run: Run, noise: Tensor, clock: Callable[[], float]) -> float:
    """Seconds until the images are on the host."""
    begin = clock()
    run(noise).cpu()
    return clock() - begin


def product_peak(dtype: torch.dtype, device: torch.device, clock: Callable[[], float]) -> float:
    """FLOP/s of the best of matrix products (n, n)."""
    best = 0.0
    for n in (512, 1024) if device.type == "cpu" else (4096, 8192):
        one = torch.randn(n, n, device=device, dtype=dtype)
        for _ in range(6):
            begin = clock()
            for _ in range(3):
                one @ one
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = max(best, 3 * 2 * n**3 / (clock() - begin))
    return best


def clock_of(device: torch.device) -> Callable[[], float]:
    """CPU time of this process, or wall time where a GPU works."""
    return time.process_time if device.type == "cpu" else time.perf_counter
