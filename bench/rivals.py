"""diffusers' deterministic schedulers, unmodified, with their built-in options; float32 state, as they are.

The loop is that of diffusers' pipelines: every entry of `timesteps` is one evaluation.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import diffusers
import numpy as np
import torch
from problems import Problem
from torch import Tensor

diffusers.logging.set_verbosity_error()
SPACINGS = ("leading", "trailing", "linspace")
SIGMAS = ("karras", "exponential", "beta")


@dataclass(frozen=True)
class Setting:
    """A solver with its options: `run(problem, nfe)` gives x0 in at most nfe evaluations if it can.

    least: the smallest budget.
    """

    family: str
    method: str
    options: dict[str, Any]
    run: Callable[[Problem, int], Tensor] = field(repr=False)
    least: int = 1

    @property
    def name(self) -> str:
        """Method and options on a line."""
        words = [f"{key}={value}" if not isinstance(value, bool) else key for key, value in self.options.items()]
        return " ".join([self.method, *words])


def betas(problem: Problem) -> dict[str, Any]:
    """The keyword arguments that give a diffusers scheduler the problem's table."""
    identity = problem.schedule.identity
    if identity["name"] in ("linear", "scaled_linear") and "zero_terminal_snr" not in identity:
        return {
            "num_train_timesteps": identity["T"],
            "beta_schedule": identity["name"],
            "beta_start": identity["beta_start"],
            "beta_end": identity["beta_end"],
        }
    abar = problem.schedule.alpha(problem.schedule.knots) ** 2
    return {"num_train_timesteps": len(abar), "trained_betas": 1.0 - abar / np.concatenate([[1.0], abar[:-1]])}


def _loop(scheduler: Any, problem: Problem, steps: int, net: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    scheduler.set_timesteps(steps)
    x = problem.noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        out = net(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(out, t, x).prev_sample
    return x


def _diffusers(name: str, options: dict[str, Any], steps: Callable[[int], int]) -> Callable[[Problem, int], Tensor]:
    def run(problem: Problem, nfe: int) -> Tensor:
        kind = {"eps": "epsilon", "v": "v_prediction"}[problem.prediction]
        make = getattr(diffusers, name)
        return _loop(make(**betas(problem), prediction_type=kind, **options), problem, steps(nfe), problem)

    return run


def _edm(name: str, options: dict[str, Any]) -> Callable[[Problem, int], Tensor]:
    """EDM's preconditioning with sigma_data = 1 is v prediction; time is log(rho) / 4."""

    def run(problem: Problem, nfe: int) -> Tensor:
        def net(x: Tensor, t: Tensor) -> Tensor:
            high, low = problem.schedule.rho([problem.schedule.t_max, problem.schedule.t_min])
            at = float(problem.schedule.t_of_rho(min(max(float(torch.exp(4 * t)), low), high)))
            x0, eps = problem.predict(x, at)
            alpha, sigma = problem.scales(at)
            return alpha * eps - sigma * x0

        ends = problem.schedule.rho([problem.schedule.t_min, problem.schedule.t_max]).tolist()
        keys = {"sigma_min": ends[0], "sigma_max": ends[1], "sigma_data": 1.0, "prediction_type": "v_prediction"}
        return _loop(getattr(diffusers, name)(**keys, **options), problem, nfe, net)

    return run


def _grids(spacings: tuple[str, ...] = SPACINGS, sigmas: tuple[str, ...] = SIGMAS) -> list[dict[str, Any]]:
    return [{"timestep_spacing": spacing} for spacing in spacings] + [{f"use_{s}_sigmas": True} for s in sigmas]


FINAL = ({"final_sigmas_type": "zero"}, {"final_sigmas_type": "sigma_min"})


def _multistep() -> Iterator[dict[str, Any]]:
    for grid in [*_grids(), {"use_lu_lambdas": True}]:
        for kind in (
            {"solver_order": 2, "solver_type": "midpoint"},
            {"solver_order": 2, "solver_type": "heun"},
            {"solver_order": 3},
        ):
            yield {"algorithm_type": "dpmsolver", **kind, **grid, **FINAL[1]}
            for final in FINAL:
                yield {"algorithm_type": "dpmsolver++", **kind, **grid, **final}
            if kind.get("solver_type") != "heun":
                yield {"algorithm_type": "dpmsolver++", **kind, **grid, **FINAL[0], "euler_at_final": True}


def _singlestep() -> Iterator[dict[str, Any]]:
    for grid in [{}, *_grids((), SIGMAS)]:
        for order in (2, 3):
            for algorithm, final in (("dpmsolver++", FINAL[0]), ("dpmsolver++", FINAL[1]), ("dpmsolver", FINAL[1])):
                yield {"algorithm_type": algorithm, "solver_order": order, **grid, **final}


def _unipc() -> Iterator[dict[str, Any]]:
    for grid in _grids():
        for order in (2, 3):
            for final in FINAL:
                for b in ("bh1", "bh2"):
                    yield {"solver_type": b, "solver_order": order, **grid, **final}


def diffusers_settings() -> list[Setting]:
    """Every deterministic scheduler for DDPM tables. Two evaluations a step: Heun, KDPM2; one more: PNDM's PLMS."""
    same, half, less = (lambda n: n), (lambda n: (n + 1) // 2), (lambda n: n - 1)
    table: list[tuple[str, list[dict[str, Any]], Callable[[int], int], int]] = [
        ("DDIMScheduler", [{"clip_sample": False, **grid} for grid in _grids(SPACINGS, ())], same, 1),
        ("DPMSolverMultistepScheduler", list(_multistep()), same, 1),
        ("DPMSolverSinglestepScheduler", list(_singlestep()), same, 1),
        ("UniPCMultistepScheduler", list(_unipc()), same, 1),
        ("DEISMultistepScheduler", [{"solver_order": k, **grid} for grid in _grids() for k in (2, 3)], same, 1),
        ("EulerDiscreteScheduler", [{**grid, **final} for grid in _grids() for final in FINAL], same, 1),
        ("HeunDiscreteScheduler", _grids(), half, 3),
        ("LMSDiscreteScheduler", _grids(), same, 1),
        ("KDPM2DiscreteScheduler", _grids(), half, 3),
        ("PNDMScheduler", [{"skip_prk_steps": True, **grid} for grid in _grids(SPACINGS, ())], less, 3),
        ("PNDMScheduler", _grids(SPACINGS, ()), lambda n: max(4, n - 9), 13),
    ]
    made = [
        Setting("diffusers", name, options, _diffusers(name, options, steps), least)
        for name, rows, steps, least in table
        for options in rows
    ]
    edm = [
        ("EDMEulerScheduler", {"sigma_schedule": schedule, **final}) for schedule in SIGMAS[:2] for final in FINAL
    ] + [
        ("EDMDPMSolverMultistepScheduler", {"solver_order": order, "sigma_schedule": schedule, **final})
        for order in (2, 3)
        for schedule in SIGMAS[:2]
        for final in FINAL
    ]
    return made + [Setting("diffusers", name, options, _edm(name, options)) for name, options in edm]


def measure(problem: Problem, setting: Setting, nfe: int) -> tuple[Tensor, int, list[str]]:
    """(x0, evaluations used, warnings) of one run. FloatingPointError: values that are not finite."""
    problem.used = 0
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        x = setting.run(problem, nfe)
    if not bool(torch.isfinite(x).all()):
        raise FloatingPointError(f"{int((~torch.isfinite(x)).sum())} of {x.numel()} values are not finite")
    return x, problem.used, sorted({str(one.message).split("\n")[0][:120] for one in caught})
