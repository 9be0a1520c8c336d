"""Where a peer is wrong, and by how much. Tests hold it, `bench/parity.py` writes the numbers into docs/parity.md.

Two measures of a matrix of coefficients:

    held     signal and noise of the sample when the network says the same x0 and eps all the way: (1, 0) at sigma = 0
    error    RMS error of the sample of N(0.3, 0.5^2) data with the exact network, against the closed-form flow
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from exact import gaussian, gaussian_flow
from parity_cases import _BETAS, _SPACINGS, SCHEDULES, _azula
from peers import Probe, difference, probe_azula, probe_diffusers, quiet, unroll

from odediff.methods import plan
from odediff.schedule import Array, Schedule

MEAN, STD = 0.3, 0.5
_QUANTILES = np.sqrt(2.0) * torch.erfinv(torch.arange(-399.0, 400.0, 2.0, dtype=torch.float64) / 400).numpy()
Row = dict[str, Any]


def read(name: str, schedule: str, spacing: str, steps: int, *, wide: bool = True, **options: Any) -> Probe:
    """A diffusers scheduler on a named schedule and spacing."""
    begin = options.pop("begin", False)
    options = {**_BETAS[schedule], **_SPACINGS[spacing], **options}
    return probe_diffusers(name, steps, options, wide=wide, begin=begin)


def held(probe: Probe, schedule: Schedule, t: Array) -> tuple[float, float]:
    """(signal, noise) of the last state for constant x0 and eps."""
    gain, eps = probe.states[-1, 0], probe.states[-1, 1 : 1 + probe.nfe].sum()
    return float(gain * schedule.alpha(t[0])), float(gain * schedule.sigma(t[0]) + eps)


def error(probe: Probe, schedule: Schedule, t: Array) -> float:
    """RMS error in x0 on Gaussian data with the exact network at the times t that the peer feeds it."""
    denoise, eps = gaussian(MEAN, STD), np.zeros((probe.nfe, len(_QUANTILES)))
    inputs = np.vstack([_QUANTILES[None], eps])
    for i, (alpha, sigma) in enumerate(zip(schedule.alpha(t), schedule.sigma(t), strict=True)):
        x = probe.states[i, : 1 + probe.nfe] @ inputs
        inputs[1 + i] = (x - alpha * denoise(x, alpha, sigma)) / sigma
    ends = schedule.t_of_rho([min(probe.rho[0], schedule.rho(schedule.t_max)), probe.rho[-1]])
    start, end = zip(schedule.alpha(ends), schedule.sigma(ends), strict=True)
    exact = gaussian_flow(_QUANTILES, start, end, MEAN, STD)
    return float(np.sqrt(np.mean((probe.states[-1, : 1 + probe.nfe] @ inputs - exact) ** 2)))


def ddim(spacing: str, schedule: str, steps: int) -> Row:
    """diffusers' DDIM steps to t - T // steps, its next time is elsewhere."""
    theirs, ours = read("DDIM", schedule, spacing, steps, clip_sample=False), SCHEDULES[schedule]
    made = plan("ddim", ours, steps, theirs.t)
    states = unroll(made)
    signal, noise = held(theirs, ours, theirs.t)
    return {
        "schedule": schedule,
        "spacing": spacing,
        "steps": steps,
        "difference": difference(states, theirs.states),
        "signal": signal,
        "noise": noise,
        "error": error(theirs, ours, theirs.t),
        "error_ours": error(Probe(states, theirs.t, theirs.rho), ours, theirs.t),
    }


def pndm(spacing: str, schedule: str, steps: int) -> Row:
    """diffusers' PNDM has the same arithmetic."""
    ours = SCHEDULES[schedule]
    theirs = read("PNDM", schedule, spacing, steps, skip_prk_steps=True, set_alpha_to_one=True)
    signal, noise = held(theirs, ours, theirs.t)
    row = {"schedule": schedule, "spacing": spacing, "steps": steps, "signal": signal, "noise": noise}
    return {**row, "error": error(theirs, ours, theirs.t)}


def last_step(schedule: str, order: int, steps: int) -> Row:
    """DPM-Solver++ with final_sigmas_type="sigma_min": from 15 steps on the last, long one is of full order."""
    options = {"solver_order": order, "final_sigmas_type": "sigma_min"}
    theirs = read("DPMSolverMultistep", schedule, "linspace", steps, **options)
    value = error(theirs, SCHEDULES[schedule], theirs.t)
    return {"schedule": schedule, "order": order, "steps": steps, "error": value}


def zero_length(order: int, kind: str, spacing: str, steps: int) -> bool:
    """Whether DPM-Solver++ with sigma_min on a spacing that already ends there gives NaN, in its own float32."""
    options = {"solver_order": order, "solver_type": kind, "final_sigmas_type": "sigma_min"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        theirs = read("DPMSolverMultistep", "linear", spacing, steps, wide=False, **options)
    return not bool(np.isfinite(theirs.states[-1]).all())


def bh1(steps: int) -> bool:
    """Whether UniPC with B(h) = h, which is infinite at sigma = 0, ends in NaN with its default last step."""
    theirs = read("UniPCMultistep", "linear", "linspace", steps, wide=False, solver_type="bh1")
    return not bool(np.isfinite(theirs.states[-1]).all())


def same_first_times(name: str, spacing: str, steps: int) -> str:
    """The exception on the cosine schedule, where rounding merges the first two times; "" if there is none."""
    try:
        read(name, "cosine", spacing, steps, wide=False)
    except (IndexError, AssertionError) as caught:
        return type(caught).__name__
    return ""


def not_finite(name: str, schedule: str, spacing: str, steps: int, *, begin: bool, wide: bool = False) -> bool:
    """Whether a scheduler's sample is not finite; begin: with `set_begin_index(0)`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        theirs = read(name, schedule, spacing, steps, wide=wide, begin=begin)
    return not bool(np.isfinite(theirs.states[-1]).all())


def noise_in_the_sample(schedule: str, steps: int) -> float:
    """Standard deviation of the noise that DDPM, fixed_large, trailing, adds to the finished sample."""
    theirs = read("DDPM", schedule, "trailing", steps, clip_sample=False, variance_type="fixed_large")
    return float(theirs.states[-1, -1])


def start_scale(name: str, schedule: str) -> float:
    """Scale of the first input of the network for x_T of unit variance, as `init_noise_sigma` makes it; 1 is right."""
    import diffusers

    with quiet():
        scheduler = getattr(diffusers, f"{name}Scheduler")(**_BETAS[schedule], **_SPACINGS["linspace"])
        scheduler.set_timesteps(20)
        x = torch.ones(1, 1, 1, 1) * scheduler.init_noise_sigma
        return float(scheduler.scale_model_input(x, scheduler.timesteps[0]))


def sde_third(schedule: Schedule, rho: Array, *, right: bool) -> Array:
    """States of SDE-DPM-Solver++(3M) as diffusers has it, rho ending on 0; right = False takes its sign.

    x' = sigma'/sigma e^-h x + alpha' ((1 - e^-H) D0 + ((1 - e^-H)/(-H) + 1) D1 + c D2) + sigma' sqrt(1 - e^-H) z with
    H = 2 h, where Taylor's theorem has c = 1/2 - (e^-H - 1 + H)/H^2 and diffusers has -1/2 for 1/2; row 1 is 2M's.
    """
    steps, t = len(rho) - 1, schedule.t_of_rho(rho[:-1])
    alpha, sigma, lam = schedule.alpha(t), schedule.sigma(t), -np.log(rho[:-1])
    basis = np.eye(2 + 2 * steps)
    states, d = [basis[0]], []
    for i in range(steps):
        d.append((states[i] - sigma[i] * basis[1 + i]) / alpha[i])
        if i == steps - 1:
            return np.array([*states, d[i]])
        h, done = lam[i + 1] - lam[i], -np.expm1(-2 * (lam[i + 1] - lam[i]))
        x = sigma[i + 1] / sigma[i] * np.exp(-h) * states[i] + alpha[i + 1] * done * d[i]
        x += sigma[i + 1] * np.sqrt(done) * basis[2 + steps + i]
        if i == 1:
            x += alpha[2] * done / 2 * h / (lam[1] - lam[0]) * (d[1] - d[0])
        if i > 1:
            r0, r1 = (lam[i] - lam[i - 1]) / h, (lam[i - 1] - lam[i - 2]) / h
            new, old = (d[i] - d[i - 1]) / r0, (d[i - 1] - d[i - 2]) / r1
            c = (0.5 if right else -0.5) - (2 * h - done) / (2 * h) ** 2
            x += alpha[i + 1] * (1 - done / (2 * h)) * (new + r0 / (r0 + r1) * (new - old))
            x += alpha[i + 1] * c * (new - old) / (r0 + r1)
        states.append(x)
    raise AssertionError


def spread(probe: Probe, schedule: Schedule) -> float:
    """Standard deviation of the sample of N(0.3, 0.5^2) data with the exact network, noises and x_T standard normal."""
    n, t = probe.nfe, schedule.t_of_rho(probe.rho[:-1])
    random = np.eye(2 + 2 * n)  # of x_T, every eps and every noise, in terms of x_T and the noises
    for i, (alpha, sigma) in enumerate(zip(schedule.alpha(t), schedule.sigma(t), strict=True)):
        random[1 + i] = probe.states[i] @ random * sigma / (alpha**2 * STD**2 + sigma**2)
    return float(np.linalg.norm(probe.states[-1] @ random))


def sde_order_3(schedule: str, steps: int) -> Row:
    """diffusers' SDE-DPM-Solver++ of order 3 has a wrong sign at D2."""
    options = {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "lower_order_final": False}
    theirs, ours = read("DPMSolverMultistep", schedule, "linspace", steps, **options), SCHEDULES[schedule]
    rho = np.minimum(theirs.rho, ours.rho(ours.t_max))
    wrong, right = (Probe(sde_third(ours, rho, right=flag), theirs.t, rho) for flag in (False, True))
    return {
        "schedule": schedule,
        "steps": steps,
        "difference": difference(right.states, theirs.states),
        "difference_wrong": difference(wrong.states, theirs.states),
        "std": spread(theirs, ours),
        "std_right": spread(right, ours),
        "std_ours": spread(
            Probe(unroll(plan("sde_dpmpp_3m", ours, steps, ours.t_of_rho(rho[:-1]))), theirs.t, rho), ours
        ),
    }


def reab(schedule: Schedule, steps: int, order: int, *, right: bool) -> Probe:
    """REAB by its own docstring, weights by Gauss-Legendre; right = False puts sigma_t for sigma_s as azula does.

    f = ((1 - a) x / alpha - x0) / b,  a = sigma^2 / (alpha^2 + sigma^2),  b^2 = a, which is (alpha eps - sigma x0) /
    sqrt(alpha^2 + sigma^2);  x' = sqrt((alpha'^2 + sigma'^2) / (alpha^2 + sigma^2)) x + sqrt(alpha'^2 + sigma'^2)
    sum_i f_i int l_i(u) e^u / (1 + e^2u) du in u = log(sigma / alpha).
    """
    t = np.linspace(schedule.t_max, schedule.t_min, steps + 1)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    u, nodes_weights = np.log(sigma / alpha), np.polynomial.legendre.leggauss(40)
    basis = np.eye(2 + 2 * steps)
    states, f = [basis[0]], []
    for i in range(steps):
        x0 = (states[i] - sigma[i] * basis[1 + i]) / alpha[i]
        f.append((alpha[i] * basis[1 + i] - sigma[i] * x0) / np.hypot(alpha[i], sigma[i]))
        back = range(i, max(i - order, -1), -1)
        s = u[i] + (u[i + 1] - u[i]) * (1 + nodes_weights[0]) / 2
        measure = nodes_weights[1] * (u[i + 1] - u[i]) / 2 / (2 * np.cosh(s))
        total = sum(
            f[k] * np.sum(measure * np.prod([(s - u[j]) / (u[k] - u[j]) for j in back if j != k], axis=0)) for k in back
        )
        end = np.hypot(alpha[i + 1], sigma[i + 1])
        factor = end if right else np.hypot(alpha[i + 1], sigma[i])
        states.append(end / np.hypot(alpha[i], sigma[i]) * states[i] + factor * total)
    return Probe(np.array(states), t[:-1], sigma / alpha)


def vandermonde(steps: int) -> float:
    """What azula's weights lose in float64: vAB of order 3 against ab3 on edm, where the nodes lie close together."""
    ours = SCHEDULES["edm"]
    theirs = probe_azula("vAB", steps, _azula(ours), order=3)
    made = plan("ab3", ours, steps, ours.t_of_rho(theirs.rho[:-1]), space="flow", variable="tau")
    return difference(unroll(made)[:-1], theirs.states[:-1])


def azula_reab(schedule: str, steps: int, order: int = 2) -> Row:
    """azula's REAB against its docstring, and against its docstring with the wrong subscript."""
    ours = SCHEDULES[schedule]
    theirs = probe_azula("REAB", steps, _azula(ours), order=order)
    right, wrong = (reab(ours, steps, order, right=flag) for flag in (True, False))
    t = right.t
    return {
        "schedule": schedule,
        "steps": steps,
        "order": order,
        "difference": difference(right.states, theirs.states),
        "difference_wrong": difference(wrong.states, theirs.states),
        "error": error(theirs, ours, t),
        "error_right": error(right, ours, t),
    }
