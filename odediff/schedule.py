"""Noise schedules: how much signal and how much noise a state holds at time t.

    x = alpha(t) x0 + sigma(t) eps,    lam = log(alpha / sigma),    rho = sigma / alpha

Time is what the network is fed: 0..T-1 for DDPM tables, sigma for EDM, [0, 1] for flow matching. It runs down from
`t_max` (noise) over `t_min` (the last time the network was trained for) to `t_end`, where sigma = 0.
All functions take and return float64 numpy arrays (or floats) of any shape.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import index
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Identity = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Schedule(ABC):
    """What every schedule offers. Two schedules are equal when their `identity` is.

    `identity` is a JSON-able dict from which `from_identity` rebuilds the schedule; `fingerprint` is the short form
    that a plan carries, with arrays replaced by their SHA-256.
    """

    identity: Identity
    t_max: float
    t_min: float
    t_end: float

    @abstractmethod
    def _lam(self, t: Array) -> Array: ...

    @abstractmethod
    def _t_of_lam(self, lam: Array) -> Array: ...

    @abstractmethod
    def _scales(self, lam: Array) -> tuple[Array, Array]: ...

    @property
    def steps(self) -> int | None:
        """T for a table of discrete steps, None for a continuous schedule."""
        return None

    @property
    def knots(self) -> Array:
        """Times at which lam(t) has a kink, ascending; empty for a smooth schedule."""
        return np.empty(0)

    @property
    def grid(self) -> str | None:
        """The grid that this kind of schedule asks for, or None where the method's own default serves."""
        return None

    @property
    def t_finite(self) -> float:
        """Where logarithmic grids start: `t_max`, or the next time below where alpha(t_max) = 0."""
        return self.t_max

    def lam(self, t: ArrayLike) -> Array:
        """Half log-SNR, lam = log(alpha / sigma), decreasing in t; +inf where sigma = 0, -inf where alpha = 0.

        ValueError: t outside [t_end, t_max].
        """
        t = np.asarray(t, dtype=np.float64)
        bad = ~((t >= self.t_end) & (t <= self.t_max))
        if bad.any():
            raise ValueError(
                f"time {np.atleast_1d(t)[np.atleast_1d(bad)][0]} is outside [{self.t_end:g}, {self.t_max:g}] "
                f'of schedule "{self.identity["name"]}"'
            )
        return self._lam(t)

    def rho(self, t: ArrayLike) -> Array:
        """DDIM's variable, rho = sigma / alpha (Song et al. 2021a, eq. 14); inf where alpha = 0."""
        return np.exp(-self.lam(t))

    def alpha(self, t: ArrayLike) -> Array:
        """Signal scale alpha(t)."""
        return self._scales(self.lam(t))[0]

    def sigma(self, t: ArrayLike) -> Array:
        """Noise scale sigma(t)."""
        return self._scales(self.lam(t))[1]

    @abstractmethod
    def derivatives(self, t: float) -> tuple[float, float]:
        """(d alpha / dt, d sigma / dt); at a kink of lam, from the side of larger t where there is one."""

    def t_of_lam(self, lam: ArrayLike) -> Array:
        """The time with this half log-SNR: the inverse of `lam`. ValueError: no such time."""
        lam = np.asarray(lam, dtype=np.float64)
        low = self._lam(np.asarray(self.t_max, dtype=np.float64))
        slack = 1e-12 * max(1.0, abs(float(low))) if np.isfinite(low) else 0.0
        if not (lam >= low - slack).all():
            raise ValueError(
                f"half log-SNR {float(np.min(lam))} is below {float(low)}, the noisiest state of "
                f'schedule "{self.identity["name"]}"'
            )
        return self._t_of_lam(np.maximum(lam, low))

    def t_of_rho(self, rho: ArrayLike) -> Array:
        """The time with this rho = sigma / alpha: the inverse of `rho`. ValueError: no such time."""
        with np.errstate(divide="ignore"):
            return self.t_of_lam(-np.log(np.asarray(rho, dtype=np.float64)))

    @property
    def fingerprint(self) -> Identity:
        """`identity` with arrays replaced by their SHA-256: what a plan remembers of its schedule."""

        def short(value: Any) -> Any:
            return hashlib.sha256(np.asarray(value).tobytes()).hexdigest() if isinstance(value, list) else value

        return {key: short(value) for key, value in self.identity.items()}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(str(self.fingerprint))


@dataclass(frozen=True, eq=False)
class TableSchedule(Schedule):
    """A DDPM chain of T steps, continued between them by interpolating lam linearly in t.

    Why lam: the state stays variance-preserving by construction, the inverse is closed form, and a noise level maps to
    the same fractional time as in diffusers and k-diffusion, which interpolate log rho. At the two ends, where lam
    is infinite,
    rho is linear instead: rho(t) = rho(0) (t + 1) on [-1, 0], and 1/rho = (T - 1 - t) / rho(T - 2) on [T - 2, T - 1]
    for zero terminal SNR.
    """

    table: Array = field(repr=False)

    @property
    def steps(self) -> int:
        return len(self.table)

    @property
    def knots(self) -> Array:
        return np.arange(self.steps, dtype=np.float64)

    @property
    def t_finite(self) -> float:
        return self.t_max if np.isfinite(self.table[-1]) else self.t_max - 1

    def _lam(self, t: Array) -> Array:
        last = int(self.t_finite)
        lam = np.interp(t, np.arange(last + 1), self.table[: last + 1])
        with np.errstate(divide="ignore"):
            lam = np.where(t < 0, lam - np.log1p(np.minimum(t, 0.0)), lam)
            return np.where(t > last, lam + np.log(np.clip(last + 1 - t, 0.0, 1.0)), lam)

    def _t_of_lam(self, lam: Array) -> Array:
        last = int(self.t_finite)
        t = np.interp(-lam, -self.table[: last + 1], np.arange(last + 1))
        t = np.where(lam > self.table[0], np.expm1(np.minimum(self.table[0] - lam, 0.0)), t)
        return np.where(lam < self.table[last], last + 1 - np.exp(np.minimum(lam - self.table[last], 0.0)), t)

    def _scales(self, lam: Array) -> tuple[Array, Array]:
        return np.exp(-0.5 * np.logaddexp(0.0, -2.0 * lam)), np.exp(-0.5 * np.logaddexp(0.0, 2.0 * lam))

    def derivatives(self, t: float) -> tuple[float, float]:
        alpha, sigma = float(self.alpha(t)), float(self.sigma(t))
        if t > self.t_finite:  # 1/rho is linear: alpha = sigma (T - 1 - t) / rho(T - 2)
            slope = float(np.exp(self.table[-2]))
            return -(sigma**3) * slope, alpha * sigma**2 * slope
        k = int(np.clip(np.floor(t), 0, self.t_finite - 1))
        slope = float(self.table[k + 1] - self.table[k]) if t >= 0 else -1.0 / (1.0 + t)
        return alpha * sigma**2 * slope, -sigma * alpha**2 * slope

    def zero_terminal_snr(self) -> TableSchedule:
        """Shift and scale sqrt(abar) so that the last state holds no signal (Lin et al. 2024, Algorithm 1).

        ValueError: a table of fewer than three steps.
        """
        if self.steps < 3:
            raise ValueError(f"zero terminal SNR needs a table of at least 3 steps, this one has {self.steps}")
        root = self._scales(self.table)[0]
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        with np.errstate(divide="ignore"):
            log_abar = 2.0 * np.log(root)
        return _table(log_abar, {**self.identity, "zero_terminal_snr": True})


@dataclass(frozen=True, eq=False)
class EDMSchedule(Schedule):
    """Variance exploding, alpha = 1 and sigma = t (Karras et al. 2022)."""

    @property
    def grid(self) -> str:
        return "karras"  # sigma spans five decades: a grid that is even in t or sqrt(t) hardly visits the last four

    def _lam(self, t: Array) -> Array:
        with np.errstate(divide="ignore"):
            return -np.log(t)

    def _t_of_lam(self, lam: Array) -> Array:
        return np.exp(-lam)

    def _scales(self, lam: Array) -> tuple[Array, Array]:
        return np.ones_like(lam), np.exp(-lam)

    def derivatives(self, t: float) -> tuple[float, float]:
        return 0.0, 1.0


@dataclass(frozen=True, eq=False)
class FlowSchedule(Schedule):
    """Flow matching on the straight path, alpha = 1 - t and sigma = t (Lipman et al. 2023; Liu et al. 2023)."""

    @property
    def t_finite(self) -> float:
        return self.t_max if self.t_max < 1 else 1.0 - self.t_min

    def _lam(self, t: Array) -> Array:
        with np.errstate(divide="ignore"):
            return np.log1p(-t) - np.log(t)

    def _t_of_lam(self, lam: Array) -> Array:
        return np.exp(-np.logaddexp(0.0, lam))

    def _scales(self, lam: Array) -> tuple[Array, Array]:
        return np.exp(-np.logaddexp(0.0, -lam)), np.exp(-np.logaddexp(0.0, lam))

    def derivatives(self, t: float) -> tuple[float, float]:
        return -1.0, 1.0


def _table(log_abar: Array, identity: Identity) -> TableSchedule:
    """A table from log(abar), shape (T,). ValueError: not strictly decreasing below 0; the last may be -inf."""
    if log_abar.ndim != 1 or len(log_abar) < 2:
        raise ValueError(f"a schedule table needs shape (T,) with T >= 2, got {log_abar.shape}")
    bad = np.flatnonzero(~(np.diff(log_abar, prepend=0.0) < 0))
    if len(bad):
        raise ValueError(
            f"alphas_cumprod must fall strictly from below 1: it does not at index {bad[0]} "
            f"(log value {log_abar[bad[0]]}); check the order of the array and that every beta lies in (0, 1)"
        )
    with np.errstate(divide="ignore"):
        lam = 0.5 * (log_abar - np.log(-np.expm1(log_abar)))
    return TableSchedule(identity, float(len(lam) - 1), 0.0, -1.0, lam)


def _betas(betas: Array, identity: Identity) -> TableSchedule:
    bad = np.flatnonzero(~((betas > 0) & (betas < 1)))
    if betas.ndim == 1 and len(bad):
        raise ValueError(f"betas must lie in (0, 1): betas[{bad[0]}] = {betas[bad[0]]}")
    return _table(np.cumsum(np.log1p(-betas)), identity)


def linear(T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> TableSchedule:
    """DDPM's schedule: beta linear from `beta_start` to `beta_end` over T steps (Ho et al. 2020, section 4)."""
    T, beta_start, beta_end = index(T), float(beta_start), float(beta_end)
    identity = {"name": "linear", "T": T, "beta_start": beta_start, "beta_end": beta_end}
    return _betas(np.linspace(beta_start, beta_end, T), identity)


def scaled_linear(T: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> TableSchedule:
    """Latent diffusion's schedule: sqrt(beta) linear (Rombach et al. 2022)."""
    T, beta_start, beta_end = index(T), float(beta_start), float(beta_end)
    identity = {"name": "scaled_linear", "T": T, "beta_start": beta_start, "beta_end": beta_end}
    return _betas(np.linspace(beta_start**0.5, beta_end**0.5, T) ** 2, identity)


def cosine(T: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> TableSchedule:
    """abar = f(t) / f(0), f = cos^2((t/T + s) / (1 + s) pi/2), beta <= max_beta (Nichol & Dhariwal 2021, eq. 17)."""
    T, s, max_beta = index(T), float(s), float(max_beta)
    f = 2.0 * np.log(np.cos((np.arange(T + 1) / T + s) / (1 + s) * np.pi / 2))
    log_abar = np.cumsum(np.maximum(np.diff(f), np.log1p(-max_beta)))
    return _table(log_abar, {"name": "cosine", "T": T, "s": s, "max_beta": max_beta})


def sigmoid(
    T: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0, max_beta: float = 0.999
) -> TableSchedule:
    """abar a falling sigmoid scaled to 1 .. 0, beta <= max_beta (Jabri et al. 2023; Chen 2023, Algorithm 1)."""
    T, start, end, tau, max_beta = index(T), float(start), float(end), float(tau), float(max_beta)
    v = 1.0 / (1.0 + np.exp(-np.linspace(start, end, T + 1) / tau))
    abar = (v[-1] - v) / (v[-1] - v[0])
    log_abar = np.cumsum(np.maximum(np.log(np.maximum(abar[1:], 1e-300) / abar[:-1]), np.log1p(-max_beta)))
    return _table(log_abar, {"name": "sigmoid", "T": T, "start": start, "end": end, "tau": tau, "max_beta": max_beta})


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0) -> EDMSchedule:
    """EDM / variance exploding: alpha = 1, sigma = t, from sigma_max down (Karras et al. 2022, Table 1)."""
    if not 0 < sigma_min < sigma_max < np.inf:
        raise ValueError(f"edm needs 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
    sigma_min, sigma_max = float(sigma_min), float(sigma_max)
    return EDMSchedule({"name": "edm", "sigma_min": sigma_min, "sigma_max": sigma_max}, sigma_max, sigma_min, 0.0)


def flow(t_min: float = 1e-3, t_max: float = 1.0) -> FlowSchedule:
    """Flow matching: alpha = 1 - t, sigma = t, from t_max down (Lipman et al. 2023, eq. 22 with sigma_min = 0)."""
    if not 0 < t_min < t_max <= 1:
        raise ValueError(f"flow needs 0 < t_min < t_max <= 1, got {t_min} and {t_max}")
    t_min, t_max = float(t_min), float(t_max)
    return FlowSchedule({"name": "flow", "t_min": t_min, "t_max": t_max}, t_max, t_min, 0.0)


def from_alphas_cumprod(values: ArrayLike) -> TableSchedule:
    """Any DDPM chain from its abar_t, shape (T,), falling strictly within (0, 1); the last may be 0."""
    abar = np.asarray(values, dtype=np.float64)
    if not ((abar >= 0) & (abar < 1)).all():
        raise ValueError(f"alphas_cumprod must lie in [0, 1): found {abar[~((abar >= 0) & (abar < 1))][0]}")
    with np.errstate(divide="ignore"):
        return _table(np.log(abar), {"name": "alphas_cumprod", "values": abar.tolist()})


def from_betas(values: ArrayLike) -> TableSchedule:
    """Any DDPM chain from its beta_t, shape (T,), each in (0, 1)."""
    betas = np.asarray(values, dtype=np.float64)
    return _betas(betas, {"name": "betas", "values": betas.tolist()})


_NAMED = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "edm": edm,
    "flow": flow,
    "alphas_cumprod": from_alphas_cumprod,
    "betas": from_betas,
}


def from_identity(identity: Mapping[str, Any]) -> Schedule:
    """The schedule with this `Schedule.identity`. ValueError: an unknown name or key."""
    args = dict(identity)
    name, zero = args.pop("name", None), args.pop("zero_terminal_snr", False)
    if name not in _NAMED:
        raise ValueError(f"unknown schedule {name!r}; known: {', '.join(_NAMED)}")
    try:
        made: Schedule = _NAMED[name](**args)  # type: ignore[operator]
    except TypeError as error:
        raise ValueError(f"schedule {name!r} does not take {sorted(args)}: {error}") from None
    if not zero:
        return made
    if not isinstance(made, TableSchedule):
        raise ValueError(f"zero_terminal_snr applies to tables, not to schedule {name!r}")
    return made.zero_terminal_snr()
