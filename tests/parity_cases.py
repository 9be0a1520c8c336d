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
from peers import FLOW_START, Probe, probe_azula, probe_diffusers, probe_kdiffusion, unroll

from odediff import schedule as schedules
from odediff.methods import plan
from odediff.schedule import Array, Schedule

STEPS = (7, 13, 20, 23)  # 20 alone divides 1000; a peer changes its orders at 15
SCHEDULES: dict[str, Schedule] = {
    "linear": schedules.linear(),
    "scaled_linear": schedules.scaled_linear(),
    "cosine": schedules.cosine(),
    "edm": schedules.edm(),
    "flow": schedules.flow(t_max=FLOW_START),
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


def _all(steps: int) -> bool:
    return True


@dataclass(frozen=True)
class Case:
    """A peer's sampler and our method.

    options: of the peer's constructor; call: of its step.  args: of `plan`, or a function of the peer's rows and ours.
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
    fits: Callable[[int], bool] = _all
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
            options = {**_BETAS.get(schedule, {}), **_SPACINGS.get(spacing, {}), **self.options}
            if sampler == "IPNDM":  # has a schedule of its own, unless it is given one
                options = {"trained_betas": [*_sigmas(schedule, steps), 0.0]}
            begin = crashes(self, schedule, spacing)
            return probe_diffusers(sampler, steps, options, wide=wide, call=dict(self.call), begin=begin)
        if library == "k-diffusion":
            more: dict[str, Any] = {"exploding": schedule == "edm", **self.options}
            if sampler == "dpm_fast":  # `steps` evaluations, and it ends at sigma_min
                return probe_kdiffusion(sampler, _levels(SCHEDULES[schedule], spacing, steps // 3 + 2), n=steps, **more)
            rho = np.append(_levels(SCHEDULES[schedule], spacing, steps), 0.0)
            if "s_churn" in more:  # where ours can hold it: below the largest level when raised
                more["s_tmax"] = float(rho[0] / 1.5)
            return probe_kdiffusion(sampler, rho, **more)
        return probe_azula(sampler, steps, _azula(SCHEDULES[schedule]), **self.options)

    def pair(self, schedule: str, probe: Probe) -> tuple[Array, Array]:
        """Our states and the peer's, as far as they are compared.

        A peer that ends above sigma = 0 is compared with a plan of one row more, up to the state before that row; one
        whose last step has no length, up to that step.
        """
        ours, rho, n = SCHEDULES[schedule], probe.rho, probe.nfe
        still = rho[-1] > rho[-2] * (1 - 1e-9)
        starts = np.minimum(rho if rho[-1] > 0 and not still else rho[:-1], ours.rho(ours.t_max))
        rows = n + len(starts) - len(rho) + 1
        args = {key: value(n, rows) if callable(value) else value for key, value in self.args.items()}
        if "s_churn" in args:
            args["s_tmax"] = float(rho[0] / 1.5)
        made = plan(self.method, ours, rows, ours.t_of_rho(starts), **args)
        columns = np.r_[0 : 1 + n, 1 + made.nfe : 2 + made.nfe + n]
        end = n + 1 - self.tail - int(still)
        return unroll(made)[:end, columns], probe.states[:end]


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


_EPS = {"space": "eps"}
_RHO = {"space": "eps", "variable": "rho"}
_LAM = {"space": "eps", "variable": "lam"}
_EXTRAPOLATES = "its last step, from the lowest time to sigma = 0, is of full order too; ours is DDIM's"
_NO_CLIP = {"clip_sample": False}
_WHOLE, _FALLS = {"lower_order_final": False}, {"lower_order_final": True}
_ABOVE = {"final_sigmas_type": "sigma_min"}
# Stable Diffusion's: the last step goes from t = 1 to the noise of t = 0.
_OFFSET = {"set_alpha_to_one": False, "steps_offset": 1}
# Its table is sigma, from which float32 has alpha to 1e-5 at best, and not at all on cosine.
_SIGMA_TABLE = {"on": ("linear", "scaled_linear"), "narrow": 5e-3}


def _divides(steps: int) -> bool:
    return 1000 % steps == 0


def _short(steps: int) -> bool:
    return steps < 15


def _seven(steps: int) -> bool:
    return steps == 7


def _one_over_threes(steps: int) -> bool:
    return steps % 3 == 1


def _halves(steps: int) -> bool:
    return 1000 // steps % 2 == 0


def _ddpm(variance: str, spacings: tuple[str, ...], tail: int = 0) -> Case:
    options, args = {**_NO_CLIP, "variance_type": variance}, {"variance": variance}
    why = "it adds noise to the sample, 1e-10 z or sqrt(beta) z" if tail else ""
    return Case("diffusers:DDPM", "ddpm", options, args=args, spacings=spacings, tail=tail, why=why)


def _dpmpp(method: str, spacings: tuple[str, ...] = (*CONTINUOUS, "logsnr"), **options: Any) -> Case:
    args = {"space": "eps" if options.get("algorithm_type") == "dpmsolver" else "x0", "variable": "lam"}
    if method == "sa_solver":
        args = {"tau": 1.0, "predictor": 2, "corrector": 0}
    return Case("diffusers:DPMSolverMultistep", method, options, args=args, spacings=spacings)


def _deis(order: int) -> Case:
    options = {"solver_order": order, "lower_order_final": False}
    args = {"variable": "lam"} if order > 1 else _EPS
    method = f"deis_{order}" if order > 1 else "euler"
    return Case("diffusers:DEISMultistep", method, options, args=args, spacings=CONTINUOUS)


def _unipc(order: int, spacings: tuple[str, ...], **options: Any) -> Case:
    """Its orders fall to 1 at the end, as they rise at the start, unless lower_order_final is False.

    Where it ends above sigma = 0 it has one row less than ours, and they fall towards that end.
    """

    def orders(theirs: int, rows: int) -> str:
        return "".join(str(min(order, theirs - i)) for i in range(theirs)).ljust(rows, "1")

    args: dict[str, Any] = {"b": options.get("solver_type", "bh2")}
    if options.get("lower_order_final", True):
        args["orders"] = orders if "final_sigmas_type" in options else "falling"
    options = {"solver_order": order, **options}
    return Case("diffusers:UniPCMultistep", f"unipc_{order}", options, args=args, spacings=spacings, narrow=1e-3)


def _pndm(method: str, spacing: str, fits: Callable[[int], bool] = _all, **more: Any) -> Case:
    options = {"skip_prk_steps": method == "plms", **more}
    tail, why = (1, _EXTRAPOLATES) if more.get("set_alpha_to_one") else (0, "")
    return Case("diffusers:PNDM", method, options, spacings=(spacing,), fits=fits, tail=tail, why=why)


class _Constant(float):
    """A function of time that is the same everywhere, for SASolver's `tau_func`."""

    def __call__(self, t: float) -> float:
        return float(self)


def _sa_solver(orders: tuple[int, int], tau: float, spacings: tuple[str, ...], **options: Any) -> Case:
    """Its orders count predictions, the new one among them, and fall to 1 unless lower_order_final is False."""
    args: dict[str, Any] = {"tau": tau, "predictor": orders[0], "corrector": orders[1] - 1, "form": "few_steps"}
    if options.get("lower_order_final", True):
        args["orders"] = lambda theirs, rows: "".join(str(min(4, theirs - i)) for i in range(theirs)).ljust(rows, "1")
    options = {"tau_func": _Constant(tau), "predictor_order": orders[0], "corrector_order": orders[1], **options}
    return Case("diffusers:SASolver", "sa_solver", options, args=args, spacings=spacings, fits=_short, narrow=1e-3)


def _sa_solver_eps(order: int) -> Case:
    """Noise prediction without noise: Adams, corrected by one prediction more. On cosine ours lowers its order."""
    options = {"tau_func": _Constant(0.0), "algorithm_type": "noise_prediction", **_WHOLE}
    options |= {"predictor_order": order, "corrector_order": order + 1}
    return Case("diffusers:SASolver", f"abm{order}", options, args=_LAM, spacings=_TWO[1:], on=TABLES[:2], fits=_short)


def _singlestep(method: str, kind: str, on: tuple[str, ...] = TABLES) -> Case:
    """Two or three steps of its grid are one of ours; on eps it ends at sigma_min, where some steps have no length."""
    options = {"solver_order": int(method[-2 if method.endswith("s") else -1]), "solver_type": kind, **_FALLS}
    fits = _all
    if method in ("dpm_2", "dpm_3"):
        options |= {"algorithm_type": "dpmsolver", **_ABOVE}
        fits = _all if method == "dpm_2" else _one_over_threes
    args, spacings = {"solver_type": "taylor" if kind == "heun" else kind}, ("exponential",)
    return Case("diffusers:DPMSolverSinglestep", method, options, args=args, spacings=spacings, on=on, fits=fits)


_ON_EPS = {"algorithm_type": "dpmsolver", **_WHOLE, **_ABOVE}
_TWO = ("trailing", "linspace")
DIFFUSERS = (
    Case("diffusers:DDIM", "ddim", _NO_CLIP, spacings=("leading",)),
    Case("diffusers:DDIM", "ddim", _NO_CLIP, spacings=("trailing",), fits=_divides),
    Case("diffusers:DDIM", "ddim", {**_NO_CLIP, **_OFFSET}, spacings=("leading",)),
    Case("diffusers:DDIM", "ddim", _NO_CLIP, {"eta": 0.5}, {"eta": 0.5}, spacings=("leading",)),
    Case("diffusers:DDIM", "ddim", _NO_CLIP, {"eta": 1.0}, {"eta": 1.0}, spacings=("leading",)),
    _ddpm("fixed_small", ("leading", "linspace")),
    _ddpm("fixed_large", ("leading", "linspace")),
    _ddpm("fixed_small", ("trailing",), tail=1),
    _ddpm("fixed_large", ("trailing",), tail=1),
    _dpmpp("dpmpp_2m"),
    _dpmpp("dpmpp_2m", DISCRETE, **_WHOLE, **_ABOVE),
    _dpmpp("ab2", solver_type="heun"),
    _dpmpp("dpmpp_3m", solver_order=3, **_WHOLE),
    _dpmpp("dpmpp_3m", DISCRETE, solver_order=3, **_WHOLE, **_ABOVE),
    _dpmpp("dpmpp_2m", _TWO, **_ON_EPS),
    _dpmpp("dpmpp_3m", _TWO, solver_order=3, **_ON_EPS),
    _dpmpp("ab2", _TWO, solver_type="heun", **_ON_EPS),
    _dpmpp("sde_dpmpp_2m", algorithm_type="sde-dpmsolver++"),
    _dpmpp("sa_solver", (*_TWO, "karras"), algorithm_type="sde-dpmsolver++", solver_type="heun"),
    *(_singlestep(name, kind) for name in ("dpmpp_2s", "dpmpp_3s", "dpm_3") for kind in ("midpoint", "heun")),
    _singlestep("dpm_2", "midpoint", TABLES[:2]),  # on cosine it amplifies rounding 1e5 times
    _singlestep("dpm_2", "heun"),
    _sa_solver((2, 2), 1.0, CONTINUOUS),
    _sa_solver((2, 2), 0.0, ("linspace",)),
    _sa_solver((1, 2), 0.5, ("linspace",)),
    _sa_solver((3, 4), 1.0, ("linspace",)),
    _sa_solver((4, 3), 0.5, ("linspace",), **_WHOLE),
    _sa_solver_eps(2),
    _sa_solver_eps(3),
    *(_unipc(order, CONTINUOUS if order < 4 else DISCRETE) for order in (2, 3, 4)),
    *(_unipc(order, ("linspace",), solver_type="bh1", **_ABOVE) for order in (2, 3, 4)),
    *(_unipc(order, DISCRETE, **_WHOLE, **_ABOVE) for order in (2, 3)),
    Case("diffusers:EulerDiscrete", "euler", args=_EPS, spacings=CONTINUOUS),
    Case("diffusers:EulerDiscrete", "euler", _ABOVE, args=_EPS, spacings=("leading", "trailing")),
    Case("diffusers:EulerAncestralDiscrete", "euler_ancestral", spacings=DISCRETE),
    Case("diffusers:HeunDiscrete", "heun", args=_EPS, spacings=CONTINUOUS),
    Case("diffusers:KDPM2Discrete", "dpm_2", spacings=("linspace", "karras"), on=("linear",), fits=_seven),
    Case("diffusers:KDPM2Discrete", "dpm_2", spacings=("leading", "exponential"), on=("scaled_linear",), fits=_seven),
    Case("diffusers:KDPM2Discrete", "dpm_2", spacings=("trailing", "linspace"), on=("cosine",), fits=_seven),
    Case("diffusers:LMSDiscrete", "lms", spacings=CONTINUOUS, tail=1, why=_EXTRAPOLATES, fits=_short),
    _deis(1),
    _deis(2),
    _deis(3),
    Case("diffusers:IPNDM", "ipndm", spacings=("uniform",), tail=1, why=_EXTRAPOLATES, **_SIGMA_TABLE),
    _pndm("plms", "leading", set_alpha_to_one=True),
    _pndm("plms", "trailing", _divides, set_alpha_to_one=True),
    _pndm("plms", "leading", **_OFFSET),
    _pndm("pndm", "leading", _halves, set_alpha_to_one=True),
    Case("diffusers:FlowMatchEulerDiscrete", "euler", args={"space": "flow"}, spacings=("uniform",), on=("flow",)),
    Case("diffusers:FlowMatchHeunDiscrete", "heun", args={"space": "flow"}, spacings=("uniform",), on=("flow",)),
)

_K = {"spacings": ("karras", "exponential", "uniform"), "on": ("linear", "cosine", "edm")}
_CHURN = {"s_churn": 3.0, "s_noise": 1.003}


def _eta(peer: str, method: str, eta: float, **options: Any) -> Case:
    """Its eta is tau squared."""
    args = {"tau": eta**0.5, "predictor": 2, "corrector": 0} if method == "sa_solver" else {"eta": eta}
    return Case(peer, method, {**options, "eta": eta}, args=args, **_K)


KDIFFUSION = (
    Case("k-diffusion:euler", "euler", args=_EPS, **_K),
    Case("k-diffusion:heun", "heun", args=_EPS, **_K),
    Case("k-diffusion:heun", "heun_churn", _CHURN, args={**_CHURN, "s_tmin": 0.0}, **_K),
    Case("k-diffusion:lms", "lms", tail=1, why=_EXTRAPOLATES, **_K),
    Case("k-diffusion:lms", "ab3", {"order": 3}, args=_RHO, tail=1, why=_EXTRAPOLATES, **_K),
    Case("k-diffusion:dpm_2", "dpm_2", **_K),
    Case("k-diffusion:dpm_fast", "dpm_fast", **{**_K, "spacings": ("exponential",)}),
    Case("k-diffusion:dpmpp_2s_ancestral", "dpmpp_2s", {"eta": 0.0}, **_K),
    Case("k-diffusion:dpmpp_2m", "dpmpp_2m", **_K),
    Case("k-diffusion:dpmpp_2m_sde", "dpmpp_2m", {"eta": 0.0}, **_K),
    Case("k-diffusion:dpmpp_2m_sde", "sde_dpmpp_2m", **_K),
    _eta("k-diffusion:dpmpp_2m_sde", "sa_solver", 0.25, solver_type="heun"),
    _eta("k-diffusion:dpmpp_2m_sde", "sa_solver", 1.0, solver_type="heun"),
    *(_eta("k-diffusion:dpmpp_3m_sde", "sde_dpmpp_3m", eta) for eta in (0.0, 0.5, 1.0)),
    Case("k-diffusion:euler_ancestral", "ddim", args={"eta": 1.0}, **_K),
    Case("k-diffusion:euler_ancestral", "euler_ancestral", {"eta": 0.5}, args={"eta": 0.5}, **_K),
    Case("k-diffusion:euler_ancestral", "euler_ancestral", {"eta": 1.5}, args={"eta": 1.5}, **_K),
)

_A = {"spacings": ("uniform",), "on": ("linear", "cosine", "edm", "flow")}


def _azula_adams(sampler: str, space: str, variable: str, on: tuple[str, ...] = _A["on"]) -> tuple[Case, ...]:
    # Its weights come from a Vandermonde matrix of raw monomials, which costs it digits.
    more = {**_A, "args": {"space": space, "variable": variable}, "on": on, "wide": 1e-9}
    return tuple(Case(f"azula:{sampler}", f"ab{order}", {"order": order}, **more) for order in (2, 3))


AZULA = (
    Case("azula:Euler", "euler", args=_EPS, **_A),
    Case("azula:Heun", "heun", args=_EPS, **_A),
    Case("azula:DDPM", "ddpm", **_A),
    Case("azula:DDIM", "ddim", {"eta": 0.25}, args={"eta": 0.5}, **_A),
    *_azula_adams("zAB", "eps", "rho"),
    *_azula_adams("zEAB", "eps", "lam"),
    *_azula_adams("xEAB", "x0", "lam"),
    *_azula_adams("vAB", "flow", "tau", ("cosine", "flow")),
)

CASES = (*DIFFUSERS, *KDIFFUSION, *AZULA)

_SDE_3 = {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, **_WHOLE}
NEAR = (
    *(
        Case("diffusers:DPMSolverSinglestep", "dpmpp_3s", {"solver_order": 3, "solver_type": kind, **_FALLS}, why=why)
        for kind, why in (
            ("midpoint", 'a middle stage of its own, `solver_type="midpoint"`'),
            ("heun", 'the authors\' other third-order step, `solver_type="taylor"`'),
        )
    ),
    Case(
        "diffusers:SASolver",
        "sa_solver",
        {"tau_func": _Constant(1.0)},
        args={"predictor": 2, "corrector": 1},
        why='the authors\' form for few steps, `form="few_steps"`, and orders that fall at the end',
    ),
    Case("diffusers:DPMSolverMultistep", "sde_dpmpp_3m", _SDE_3, why="a wrong sign, see below; 2M's second row"),
    Case("k-diffusion:dpmpp_3m_sde", "dpmpp_3m", {"eta": 0.0}, why="an exact second row; it is `sde_dpmpp_3m`"),
)


def settings(case: Case) -> list[tuple[str, str]]:
    """The (schedule, spacing) pairs of a case."""
    return [(schedule, spacing) for schedule in case.on for spacing in case.spacings]


def crashes(case: Case, schedule: str, spacing: str) -> bool:
    """Where diffusers rounds its first two times to the same one, starts at the second and runs past the end.

    `set_begin_index(0)` tells it where to start.
    """
    return schedule == "cosine" and spacing in ("karras", "exponential") and case.peer.endswith(("step", "SASolver"))
