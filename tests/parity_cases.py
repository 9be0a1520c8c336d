"""What is compared with what: a peer's sampler and options, and the plan of ours that must have its coefficients.

A case reads its peer on a schedule, a spacing of its times and a number of steps, and compiles our method on the times
where the peer's steps start. Karras' and the exponential spacing choose noise levels, and ours are the fractional times
of those levels (`Schedule.t_of_rho`); diffusers feeds the network those times rounded, which changes no coefficient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from peers import Probe, probe_azula, probe_diffusers, probe_kdiffusion, unroll

from odediff import schedule as schedules
from odediff.methods import plan
from odediff.plans import Plan
from odediff.schedule import Array, Schedule

STEPS = (7, 13, 20, 23)  # 20 alone divides 1000; a peer changes its orders at 15
SCHEDULES: dict[str, Schedule] = {
    "linear": schedules.linear(),
    "scaled_linear": schedules.scaled_linear(),
    "cosine": schedules.cosine(),
    "edm": schedules.edm(),
    "flow": schedules.flow(t_max=0.98),  # eps is singular at t = 1
}
TABLES = ("linear", "scaled_linear", "cosine")
_BETAS = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
_SPACINGS = {
    "leading": {"timestep_spacing": "leading"},
    "trailing": {"timestep_spacing": "trailing"},
    "linspace": {"timestep_spacing": "linspace"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "logsnr": {"use_lu_lambdas": True},
}
DISCRETE = ("leading", "trailing", "linspace")
CONTINUOUS = (*DISCRETE, "karras", "exponential")


@dataclass(frozen=True)
class Case:
    """A peer's sampler and our method.

    options: of the peer's constructor; call: of its step.  args: of `plan`.
    tail: how many states at the end are left out, and why: what the peer does there is no row of ours.
    fits: the numbers of steps compared; where it is not all, those at which the peer's rows lead from one of its times
        to the next, or those that it is fast enough for.
    wide, narrow: how far rounding may take the peer from us in float64 and in float32.
    """

    peer: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)
    args: Mapping[str, Any] = field(default_factory=dict)
    spacings: tuple[str, ...] = ()
    on: tuple[str, ...] = TABLES
    tail: int = 0
    why: str = ""
    fits: Callable[[int], bool] = lambda steps: True
    wide: float = 1e-11
    narrow: float = 5e-4

    @property
    def name(self) -> str:
        library, sampler = self.peer.split(":")
        given = ",".join(f"{key}={value}" for key, value in {**self.options, **self.call}.items() if key not in _DULL)
        return f"{library}-{sampler}" + (f"({given})" if given else "")

    @property
    def library(self) -> str:
        return self.peer.split(":")[0]

    @property
    def needs(self) -> tuple[str, ...]:
        """Modules without which the peer cannot be read."""
        module = self.library.replace("-", "_")
        return (module, "scipy") if "lms" in self.peer.lower() or module == "k_diffusion" else (module,)

    def read(self, schedule: str, spacing: str, steps: int, *, wide: bool = True) -> Probe:
        """The peer's coefficients. wide: float64 for peers that compute in float32."""
        library, sampler = self.peer.split(":")
        if library == "diffusers":
            options = {**_BETAS[schedule], **_SPACINGS.get(spacing, {}), **self.options}
            if sampler == "IPNDM":  # has a schedule of its own, unless it is given one
                options = {"trained_betas": [*_sigmas(schedule, steps), 0.0]}
            begin = crashes(self, schedule, spacing)
            return probe_diffusers(sampler, steps, options, wide=wide, call=dict(self.call), begin=begin)
        if library == "k-diffusion":
            rho = np.append(_levels(SCHEDULES[schedule], spacing, steps), 0.0)
            return probe_kdiffusion(sampler, rho, exploding=schedule == "edm", **self.options)
        return probe_azula(sampler, steps, _azula(SCHEDULES[schedule]), **self.options)

    def plan(self, schedule: str, probe: Probe) -> Plan:
        """Our method on the peer's grid."""
        ours = SCHEDULES[schedule]
        rho = np.minimum(probe.rho[:-1], ours.rho(ours.t_max))
        return plan(self.method, ours, probe.nfe, ours.t_of_rho(rho), **self.args)

    def compared(self, states: Array) -> Array:
        """The states that are compared."""
        return states[: len(states) - self.tail]


_DULL = ("clip_sample",)


def _sigmas(schedule: str, steps: int) -> list[float]:
    return SCHEDULES[schedule].sigma(np.linspace(999.0, 0.0, steps)).tolist()


def _levels(schedule: Schedule, spacing: str, steps: int) -> Array:
    high, low = schedule.rho([schedule.t_max, schedule.t_min])
    if spacing == "karras":
        return np.linspace(high ** (1 / 7), low ** (1 / 7), steps) ** 7
    if spacing == "exponential":
        return np.geomspace(high, low, steps)
    return schedule.rho(np.linspace(schedule.t_max, schedule.t_min, steps))


def _azula(schedule: Schedule) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Our schedule in azula's time, 1 to 0 for t_max to t_min."""

    def scales(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        time = schedule.t_min + t.numpy() * (schedule.t_max - schedule.t_min)
        return torch.as_tensor(schedule.alpha(time)), torch.as_tensor(schedule.sigma(time))

    return scales


def _divides(steps: int) -> bool:
    return 1000 % steps == 0


def _short(steps: int) -> bool:
    return steps < 15


_RHO = {"space": "eps", "variable": "rho"}
_EPS = {"space": "eps"}
_EXTRAPOLATES = "its last step, from the lowest time to sigma = 0, is of full order too; ours is DDIM's"
_ENDS_ABOVE = "it ends at sigma_min, ours at sigma = 0"
# Its table is sigma, from which float32 has alpha to 1e-5 at best, and not at all on cosine.
_SIGMA_TABLE = {"on": ("linear", "scaled_linear"), "narrow": 5e-3}
_NO_CLIP = {"clip_sample": False}


def _dpmpp(method: str, spacings: tuple[str, ...] = (*CONTINUOUS, "logsnr"), **options: Any) -> Case:
    args = {"space": "x0", "variable": "lam"} if method.startswith("ab") else {}
    return Case("diffusers:DPMSolverMultistep", method, options, args=args, spacings=spacings)


def _deis(order: int, **more: Any) -> Case:
    options = {"solver_order": order, "lower_order_final": False}
    args = {"space": "eps", "variable": "lam"} if order > 1 else {"space": "eps"}
    method = f"ab{order}" if order > 1 else "euler"
    return Case("diffusers:DEISMultistep", method, options, args=args, spacings=CONTINUOUS, tail=1, why=_ENDS_ABOVE)


DIFFUSERS = (
    Case("diffusers:DDIM", "ddim", _NO_CLIP, spacings=("leading",)),
    Case("diffusers:DDIM", "ddim", _NO_CLIP, spacings=("trailing",), fits=_divides),
    Case("diffusers:DDIM", "ddim", _NO_CLIP, {"eta": 0.5}, {"eta": 0.5}, spacings=("leading",)),
    Case("diffusers:DDIM", "ddim", _NO_CLIP, {"eta": 1.0}, {"eta": 1.0}, spacings=("leading",)),
    Case("diffusers:DDPM", "ddpm", _NO_CLIP, spacings=("leading", "linspace")),
    *(
        Case(
            "diffusers:DDPM",
            "ddpm",
            {**_NO_CLIP, "variance_type": variance},
            args={"variance": variance},
            spacings=spacings,
            tail=tail,
            why="it adds noise to the sample, 1e-10 z or sqrt(beta) z" if tail else "",
        )
        for variance, spacings, tail in (
            ("fixed_large", ("leading", "linspace"), 0),
            ("fixed_small", ("trailing",), 1),
            ("fixed_large", ("trailing",), 1),
        )
    ),
    _dpmpp("dpmpp_2m"),
    _dpmpp("ab2", solver_type="heun"),
    _dpmpp("dpmpp_3m", solver_order=3, lower_order_final=False),
    Case("diffusers:UniPCMultistep", "unipc_2", spacings=CONTINUOUS),
    Case(
        "diffusers:UniPCMultistep",
        "unipc_3",
        {"solver_order": 3},
        spacings=CONTINUOUS,
        tail=2,
        why="its last two steps are of orders 2 and 1, ours of orders 3 and 1",
    ),
    Case("diffusers:EulerDiscrete", "euler", args=_EPS, spacings=CONTINUOUS),
    Case("diffusers:EulerAncestralDiscrete", "ddim", args={"eta": 1.0}, spacings=DISCRETE),
    Case("diffusers:HeunDiscrete", "heun", args=_EPS, spacings=CONTINUOUS),
    Case("diffusers:LMSDiscrete", "ab4", args=_RHO, spacings=CONTINUOUS, tail=1, why=_EXTRAPOLATES, fits=_short),
    _deis(1),
    _deis(2),
    _deis(3),
    Case("diffusers:IPNDM", "ipndm", spacings=("uniform",), tail=1, why=_EXTRAPOLATES, **_SIGMA_TABLE),
)

_K = {"spacings": ("karras", "exponential", "uniform"), "on": ("linear", "cosine", "edm")}
KDIFFUSION = (
    Case("k-diffusion:euler", "euler", args=_EPS, **_K),
    Case("k-diffusion:heun", "heun", args=_EPS, **_K),
    Case("k-diffusion:lms", "ab4", args=_RHO, tail=1, why=_EXTRAPOLATES, **_K),
    Case("k-diffusion:lms", "ab3", {"order": 3}, args=_RHO, tail=1, why=_EXTRAPOLATES, **_K),
    Case("k-diffusion:dpmpp_2m", "dpmpp_2m", **_K),
    Case("k-diffusion:dpmpp_2m_sde", "dpmpp_2m", {"eta": 0.0}, **_K),
    Case("k-diffusion:euler_ancestral", "ddim", args={"eta": 1.0}, **_K),
    Case("k-diffusion:euler_ancestral", "ddim", {"eta": 0.5}, args={"eta": 0.5}, **_K),
)

_A = {"spacings": ("uniform",), "on": ("linear", "cosine", "edm", "flow"), "tail": 1, "why": _ENDS_ABOVE}


def _azula_adams(sampler: str, space: str, variable: str, on: tuple[str, ...] = _A["on"]) -> tuple[Case, ...]:
    # Its weights come from a Vandermonde matrix of raw monomials, which costs it digits.
    more = {**_A, "args": {"space": space, "variable": variable}, "on": on, "wide": 1e-9}
    return tuple(Case(f"azula:{sampler}", f"ab{order}", {"order": order}, **more) for order in (2, 3))


AZULA = (
    Case("azula:Euler", "euler", args=_EPS, **_A),
    Case("azula:DDPM", "ddpm", **_A),
    Case("azula:DDIM", "ddim", {"eta": 0.25}, args={"eta": 0.5}, **_A),
    *_azula_adams("zAB", "eps", "rho"),
    *_azula_adams("zEAB", "eps", "lam"),
    *_azula_adams("xEAB", "x0", "lam"),
    *_azula_adams("vAB", "flow", "tau", ("cosine", "flow")),
)

CASES = (*DIFFUSERS, *KDIFFUSION, *AZULA)


def settings(case: Case) -> list[tuple[str, str]]:
    """The (schedule, spacing) pairs of a case."""
    return [(schedule, spacing) for schedule in case.on for spacing in case.spacings]


def cells(case: Case, schedule: str, spacing: str) -> list[tuple[int, Probe, Array]]:
    """Per number of steps: the peer in float64, and our states on its grid."""
    read = [(steps, case.read(schedule, spacing, steps)) for steps in STEPS if case.fits(steps)]
    return [(steps, probe, unroll(case.plan(schedule, probe))) for steps, probe in read]


def crashes(case: Case, schedule: str, spacing: str) -> bool:
    """Where diffusers rounds its first two times to the same one, starts at the second and runs past the end.

    `set_begin_index(0)` tells it where to start.
    """
    return schedule == "cosine" and spacing in ("karras", "exponential") and "Multistep" in case.peer
