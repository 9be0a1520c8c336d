"""k-diffusion, azula and torchdiffeq, unmodified; float32 states.

k-diffusion's package imports training dependencies: `sampling.py` and `external.py` are loaded alone, on the one helper
of its `utils` that they use. azula's times are float64, which it offers; its grid and where it ends are those of the
schedule it is given: `stop` is the state at t_min over alpha, `denoise` spends the last evaluation on x0 there.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from problems import Problem
from rivals import Setting
from torch import Tensor

from odediff.adaptive import FIXED, VARIABLES, solve

AZULA_GRIDS = ("time", "log", "quadratic")
ENDS = ("stop", "denoise")


@cache
def k_diffusion() -> tuple[Any, Any]:
    """(sampling, external) of k-diffusion."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("k_diffusion is not installed: pip install --no-deps k-diffusion==0.1.1.post1")
    package = types.ModuleType("k_diffusion")
    package.__path__ = [str(Path(spec.origin).parent)]
    utils = types.ModuleType("k_diffusion.utils")
    utils.append_dims = lambda x, ndim: x[(...,) + (None,) * (ndim - x.ndim)]  # type: ignore[attr-defined]
    package.utils = utils  # type: ignore[attr-defined]
    sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils}
    return importlib.import_module("k_diffusion.sampling"), importlib.import_module("k_diffusion.external")


def _k_run(sampler: str, grid: str, options: dict[str, Any], stages: int) -> Callable[[Problem, int], Tensor]:
    def run(problem: Problem, nfe: int) -> Tensor:
        sampling, external = k_diffusion()
        kind = {"eps": external.DiscreteEpsDDPMDenoiser, "v": external.DiscreteVDDPMDenoiser}[problem.prediction]
        abar = torch.from_numpy(problem.schedule.alpha(problem.schedule.knots) ** 2).float()
        denoiser = kind(problem, abar, quantize=False)
        denoiser.get_v = problem
        low, high = float(denoiser.sigma_min), float(denoiser.sigma_max)
        x = problem.noise * (1.0 + high**2) ** 0.5
        call = getattr(sampling, f"sample_{sampler}")
        if sampler == "dpm_fast":
            return call(denoiser, x, low, high, nfe, disable=True, **options)
        steps = nfe if stages == 1 else (nfe + 1) // 2
        if grid == "get_sigmas":
            sigmas = denoiser.get_sigmas(steps)
        else:
            sigmas = getattr(sampling, f"get_sigmas_{grid}")(steps, low, high)
        return call(denoiser, x, sigmas, disable=True, **options)

    return run


def k_settings() -> list[Setting]:
    """Euler, Heun, DPM-2, LMS, DPM++ 2M on three grids of sigmas, and DPM fast."""
    samplers: list[tuple[str, dict[str, Any], int]] = [
        ("euler", {}, 1),
        ("heun", {}, 2),
        ("dpm_2", {}, 2),
        *(("lms", {"order": order}, 1) for order in (2, 3, 4)),
        ("dpmpp_2m", {}, 1),
    ]
    made = [
        Setting("k-diffusion", name, {**more, "sigmas": grid}, _k_run(name, grid, more, stages), 2 * stages - 1)
        for name, more, stages in samplers
        for grid in ("get_sigmas", "karras", "exponential")
    ]
    return [*made, Setting("k-diffusion", "dpm_fast", {}, _k_run("dpm_fast", "", {}, 1), 3)]


def _azula_run(sampler: str, grid: str, end: str, options: dict[str, Any]) -> Callable[[Problem, int], Tensor]:
    def run(problem: Problem, nfe: int) -> Tensor:
        from azula import denoise, noise, sample

        schedule = problem.schedule
        lam = schedule.lam([schedule.t_min, schedule.t_max])

        def time(u: Tensor) -> np.ndarray:
            f = u.double().numpy()
            if grid == "log":
                return schedule.t_of_lam(lam[0] + f * (lam[1] - lam[0]))
            return schedule.t_min + (schedule.t_max - schedule.t_min) * (f if grid == "time" else f**2)

        class Schedule(noise.Schedule):
            def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
                at = time(t)
                return torch.as_tensor(schedule.alpha(at)), torch.as_tensor(schedule.sigma(at))

        class Denoiser(denoise.Denoiser):
            schedule = Schedule()

            def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
                return denoise.DiracPosterior(mean=problem.predict(x_t, float(time(t)))[0])

        stages = 2 if sampler == "Heun" else 1
        steps = (nfe - (end == "denoise")) // stages
        make = getattr(sample, f"{sampler}Sampler")
        x = make(Denoiser(), steps=steps, silent=True, dtype=torch.float64, **options)(problem.noise).float()
        low = schedule.t_min
        return problem.predict(x, low)[0] if end == "denoise" else x / problem.scales(low)[0]

    return run


def azula_settings() -> list[Setting]:
    """DDIM, Heun, and the Adams-Bashforth samplers of orders 2 to 4, on three grids, with both ends."""
    samplers = [("DDIM", {}), ("Heun", {})] + [
        (name, {"order": order}) for name in ("zAB", "vAB", "zEAB", "xEAB", "REAB") for order in (2, 3, 4)
    ]
    return [
        Setting("azula", name, {**more, "grid": grid, "end": end}, _azula_run(name, grid, end, more), 3)
        for name, more in samplers
        for grid in AZULA_GRIDS
        for end in ENDS
    ]


def _torchdiffeq_run(solver: str, variable: str, grid: str) -> Callable[[Problem, int], Tensor]:
    def run(problem: Problem, nfe: int) -> Tensor:
        fits = (nfe - 1) // FIXED[solver] * FIXED[solver] + 1
        return solve(problem.model, solver, nfe=fits, grid=grid, variable=variable, noise=problem.noise).x

    return run


def torchdiffeq_settings() -> list[Setting]:
    """Its fixed-step methods in each variable of `odediff.solve`, on three grids."""
    return [
        Setting(
            "torchdiffeq",
            solver.removeprefix("torchdiffeq:"),
            {"variable": variable, "grid": grid},
            _torchdiffeq_run(solver, variable, grid),
            stages + 1,
        )
        for solver, stages in FIXED.items()
        for variable in VARIABLES
        for grid in ("uniform", "quadratic", "logsnr")
    ]
