"""The probability-flow ODE through torchdiffeq: adaptive methods, and fixed-step ones as an oracle.

The same ODE in three variables (Song et al. 2021b, eq. 13; Song et al. 2021a, eq. 14; Salimans & Ho 2022, appendix D):

    t    dx / dt               = alpha'(t) x0 + sigma'(t) eps
    rho  d(x / alpha) / d rho  = eps
    phi  d(x / r) / d phi      = cos(phi) eps - sin(phi) x0        r^2 = alpha^2 + sigma^2, phi = arctan(rho): v
    where r = 1

from t_max down to t_min, then one closed-form step x0 onto sigma = 0. `bench/adaptive.py` says which needs the fewest
evaluations; that one is the default. torchdiffeq's error norm is over the whole batch: a sample depends on its batch
mates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from tqdm import tqdm

from .choices import unknown
from .grids import times
from .model import Model
from .philox import Seed
from .prediction import Clip, Label, Prediction, Row, checked_label, implied_count
from .running import evaluating, finish, start
from .schedule import Array, Schedule

ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
FIXED = {
    "torchdiffeq:euler": 1,
    "torchdiffeq:midpoint": 2,
    "torchdiffeq:heun2": 2,
    "torchdiffeq:heun3": 3,
    "torchdiffeq:rk4": 4,
}
VARIABLES = ("t", "rho", "phi")
MAX_NFE = 1000


class BudgetExceeded(RuntimeError):
    """`max_nfe` evaluations were not enough for the tolerance.

    samples: the best there is, x0 predicted from the last accepted state, (n, *shape) in the model's range.
    x, t: that state and its time.  nfe: evaluations used, `max_nfe` unless torchdiffeq gave up earlier.
    """

    def __init__(self, message: str, *, samples: Tensor, x: Tensor, t: float, nfe: int) -> None:
        super().__init__(message)
        self.samples, self.x, self.t, self.nfe = samples, x, t, nfe


@dataclass(frozen=True, eq=False)
class Solution:
    """x: samples, (n, *shape) in the model's range.  nfe: evaluations of the network.  accepted, rejected: steps."""

    x: Tensor
    nfe: int
    accepted: int
    rejected: int


def is_torchdiffeq(name: str) -> bool:
    """Whether `solve` knows this solver."""
    return name in ADAPTIVE or name in FIXED


def solve(
    model: Model,
    solver: str = "dopri5",
    *,
    rtol: float | None = None,
    atol: float | None = None,
    max_nfe: int | None = None,
    nfe: int | None = None,
    grid: str | ArrayLike | None = None,
    variable: str | None = None,
    n: int | None = None,
    seed: Seed | None = None,
    noise: Tensor | None = None,
    label: Label = None,
    guidance: float | None = None,
    clip: Clip = None,
    threshold: float | None = None,
    progress: bool = False,
) -> Solution:
    """Samples by torchdiffeq, with the evaluations it took.

    solver: one of `ADAPTIVE`, or of `FIXED`, such as "torchdiffeq:rk4" (which is the 3/8 rule).
    rtol, atol: tolerances of an adaptive method, 1e-3 each if not named, on x / r or x / alpha.  max_nfe: its
    budget, 1000. nfe, grid: of a fixed method, as in `odediff.sample`; its stages times the steps, and one.
    variable: "t", "rho" or "phi"; phi if not named.  The rest: see `odediff.Sampler` (eps is always recomputed).
    ValueError: options of the other kind, an impossible nfe, naming the nearest; rho where alpha(t_max) = 0.
    BudgetExceeded: max_nfe ran out.  FloatingPointError: the network returned values that are not finite.
    """
    variable = "phi" if variable is None else variable
    if not is_torchdiffeq(solver):
        raise unknown("solver", solver, (*ADAPTIVE, *FIXED))
    if variable not in VARIABLES:
        raise ValueError(f"unknown variable {variable!r}; choose {', '.join(VARIABLES)}")
    if model.integer_times:
        raise ValueError(
            f"{solver} needs a network that takes any time; this model knows whole times only: use a multistep method"
        )
    if solver in FIXED:
        if (rtol, atol, max_nfe) != (None, None, None):
            raise ValueError(f"{solver} is a fixed-step method: it takes nfe and grid, not rtol, atol or max_nfe")
        t = _fixed_times(model.schedule, solver, 20 if nfe is None else nfe, grid)
        budget, rtol, atol = (len(t) - 1) * FIXED[solver] + 1, 0.0, 0.0
    else:
        if nfe is not None or grid is not None:
            raise ValueError(f"{solver} chooses its own steps: it takes rtol, atol and max_nfe, not nfe or grid")
        rtol, atol = (_positive(k, 1e-3 if v is None else v) for k, v in (("rtol", rtol), ("atol", atol)))
        budget = MAX_NFE if max_nfe is None else max_nfe
        if isinstance(budget, bool) or not isinstance(budget, (int, np.integer)) or budget < 4:
            raise ValueError(
                f"max_nfe = {max_nfe} must be a whole number; an adaptive method needs at least 4 evaluations"
            )
        t = np.array([model.schedule.t_max, model.schedule.t_min])
    predict, label = Prediction(model, guidance=guidance, clip=clip, threshold=threshold), checked_label(model, label)
    problem = _Problem(model, variable, predict, budget, solver, t, progress)
    x, _ = start(model, float(np.hypot(*problem.scales(t[0]))), noise, implied_count(label, n, noise), seed)
    problem.network = predict.network(label, x)
    with evaluating(model), problem.bar:
        return problem.run(x, rtol, atol)


def _positive(name: str, value: float) -> float:
    if not 0 < value < np.inf:
        raise ValueError(f"{name} = {value} must be positive and finite")
    return float(value)


def _fixed_times(schedule: Schedule, solver: str, nfe: int, grid: str | ArrayLike | None) -> Array:
    stages = FIXED[solver]
    whole = isinstance(nfe, (int, np.integer)) and not isinstance(nfe, bool)
    steps, rest = divmod(int(nfe) - 1, stages)
    if not whole or steps < 1 or rest:
        near = sorted({max(1, steps) * stages + 1, (max(0, steps) + 1) * stages + 1})
        raise ValueError(
            f"{solver} takes {stages} evaluations a step and one at the end: nfe={nfe} does not fit; nearest: {near}"
        )
    return times(schedule, (schedule.grid or "quadratic") if grid is None else grid, [stages] * steps + [1])


class _OutOfBudget(Exception):
    """Raised inside torchdiffeq to leave it."""


class _Problem:
    """The right-hand side for torchdiffeq, over u = -s, which ascends and is precise in float32 where s is small."""

    def __init__(
        self,
        model: Model,
        variable: str,
        predict: Prediction,
        budget: int,
        solver: str,
        t: Array,
        progress: bool,
    ) -> None:
        self.model, self.variable, self.predict, self.budget, self.solver = model, variable, predict, budget, solver
        self.network: Callable[[Tensor, float], Tensor] = model
        self.times, self.first, self.final = t, float(t[0]), float(t[-1])
        self.nfe = self.accepted = self.rejected = 0
        self.row(self.first, 1.0, 0.0)  # singular: say so before any work
        if variable == "rho" and self.scales(self.first)[0] == 0:
            raise ValueError(
                f'alpha = 0 at t = {self.first:g}: x / alpha is singular at zero terminal SNR; use variable="phi"'
            )
        if solver in ADAPTIVE:  # torchdiffeq warns when a fixed-step method is given these
            self.callback_accept_step, self.callback_reject_step = self._accept, self._reject
        self.bar = tqdm(total=budget if solver in FIXED else None, disable=not progress, desc=solver, unit="eval")

    def s(self, t: float) -> float:
        """The variable at time t."""
        schedule = self.model.schedule
        if self.variable == "t":
            return float(t)
        rho = float(schedule.rho(t))
        return rho if self.variable == "rho" else float(np.arctan(rho))

    def t(self, u: float) -> float:
        """The time at u, kept within the integrated range against rounding."""
        s = min(max(-u, self.s(self.final)), self.s(self.first))
        if self.variable != "t":
            s = float(self.model.schedule.t_of_rho(s if self.variable == "rho" else np.tan(s)))
        return min(max(s, self.final), self.first)

    def scale(self, t: float) -> float:
        """x over the state that torchdiffeq sees."""
        alpha, sigma = self.scales(t)
        return {"t": 1.0, "rho": alpha, "phi": float(np.hypot(alpha, sigma))}[self.variable]

    def scales(self, t: float) -> tuple[float, float]:
        """(alpha, sigma)."""
        return float(self.model.schedule.alpha(t)), float(self.model.schedule.sigma(t))

    def weights(self, t: float) -> tuple[float, float]:
        """(u, w) of the right-hand side u x0 + w eps = dy/ds."""
        alpha, sigma = self.scales(t)
        if self.variable == "rho":
            return 0.0, 1.0
        if self.variable == "phi":
            r = float(np.hypot(alpha, sigma))
            return -sigma / r, alpha / r
        return self.model.schedule.derivatives(t)

    def row(self, t: float, u: float, w: float) -> Row:
        """P to u x0 + w eps at time t."""
        (row,) = self.predict.rows(*(np.array([value]) for value in (*self.scales(t), u, w)))
        return row

    def mixed(self, x: Tensor, t: float, u: float, w: float) -> Tensor:
        """u x0 + w eps at a state, by one evaluation of the network."""
        out = self.network(x, t)
        self.nfe += 1
        self.bar.update()
        if not bool(torch.isfinite(out).all()):
            raise FloatingPointError(f"the network returned NaN or inf at t = {t:.3f}, evaluation {self.nfe}")
        return self.predict.d(x, out, self.row(t, u, w))

    def __call__(self, u: Tensor, y: Tensor) -> Tensor:
        if self.nfe >= self.budget - 1:
            raise _OutOfBudget
        if not np.isfinite(float(u)):
            raise ValueError(
                f"{self.solver}: rtol = {self.rtol:g}, atol = {self.atol:g} is below rounding, and the step became "
                f"{float(u)}; loosen them"
            )
        t = self.t(float(u))
        return self.mixed(y * self.scale(t), t, *self.weights(t)).neg_()

    def callback_step(self, u: Tensor, y: Tensor, _: Tensor) -> None:
        """Remember the last state that torchdiffeq stands on."""
        self.best = (self.t(float(u)), y)

    def _accept(self, *_: Tensor) -> None:
        self.accepted += 1

    def _reject(self, *_: Tensor) -> None:
        self.rejected += 1

    def run(self, x: Tensor, rtol: float, atol: float) -> Solution:
        """Integrate along the times, then step onto sigma = 0."""
        self.rtol, self.atol = rtol, atol
        from torchdiffeq import odeint  # here, because it loads scipy.integrate: half a second that few need

        y = x / self.scale(self.first)
        self.best = (self.first, y)
        kind = torch.float32 if x.device.type == "mps" else torch.float64  # MPS has no float64
        u = torch.tensor([-self.s(value) for value in self.times], dtype=kind, device=x.device)
        # without step_t torchdiffeq steps past the end, where there is no schedule, and interpolates back
        options = {"step_t": u[-1:], "dtype": kind} if self.solver in ADAPTIVE else None
        try:
            y = odeint(self, y, u, rtol=rtol, atol=atol, method=self.solver.split(":")[-1], options=options)[-1]
        except _OutOfBudget:
            self._give_up(f"max_nfe = {self.budget} evaluations did not reach rtol = {rtol:g}, atol = {atol:g}")
        except AssertionError as error:
            if "underflow in dt" not in str(error):
                raise
            self._give_up(
                f"torchdiffeq gave up after {self.nfe} evaluations at rtol = {rtol:g}, atol = {atol:g} ({error})"
            )
        samples = finish(self.model, self.mixed(y * self.scale(self.final), self.final, 1.0, 0.0))
        return Solution(samples, self.nfe, self.accepted, self.rejected)

    def _give_up(self, reason: str) -> None:
        t, y = self.best
        x = y * self.scale(t)
        samples = finish(self.model, self.mixed(x, t, 1.0, 0.0))
        raise BudgetExceeded(
            f"{self.solver}: {reason}; it stands at t = {t:.3f} of {self.first:g} .. {self.final:g}. "
            "The error carries the best samples; raise max_nfe or loosen the tolerance",
            samples=samples,
            x=x,
            t=t,
            nfe=self.nfe,
        ) from None
