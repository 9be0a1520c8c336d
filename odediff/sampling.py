"""The loop: any plan, any model, exactly `plan.nfe` evaluations of the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor
from tqdm import tqdm

from . import adaptive
from .model import Model
from .noise import Seed, normal
from .plans import Plan
from .running import Clip, clip_limits, evaluating, finish, start
from .spaces import space_pair
from .step import advance, clipped, conversion, mix

Callback = Callable[[int, Tensor, Tensor], None]


class Sampler:
    """A model and a plan, ready to run; it keeps nothing between calls.

        d[i] = P(x[i], net(x[i], t[i])),    x[i+1] = a[i] x[i] + sum_j b[i,j] d[i-j] + c[i] z[i]

    clip: clamp every predicted x0, and recompute eps from it: True to the model's range, (low, high), False, or None
    for
        the model's own setting.
    ValueError: the plan was compiled for another schedule, has fractional times for a network that knows whole ones
    only, or the network's prediction is singular at a row; clip=True for a model without a range.
    """

    def __init__(self, model: Model, plan: Plan, *, clip: Clip = None) -> None:
        self.model, self.plan = model, plan
        if plan.schedule and plan.schedule != model.schedule.fingerprint:
            raise ValueError(
                f"the plan is for schedule {dict(plan.schedule)}, the model for {model.schedule.fingerprint}; "
                "compile it with odediff.plan(name, model.schedule, ...)"
            )
        fractional = plan.t[plan.t != np.rint(plan.t)]
        if model.integer_times and len(fractional):
            raise ValueError(
                f"the network knows whole times only, the plan has t = {fractional[0]:.3f}; use plan(..., snap=True)"
            )
        alpha, sigma = plan.alpha[:-1], plan.sigma[:-1]
        u, w = space_pair(plan.space, alpha, sigma)
        self._to_d = conversion(model.prediction, plan.space, alpha, sigma)
        self._clip = clip_limits(model, clip)
        self._to_x0 = conversion(model.prediction, "x0", alpha, sigma)
        self._scales = list(zip(u.tolist(), w.tolist(), alpha.tolist(), sigma.tolist(), strict=True))

    def __call__(
        self,
        noise: Tensor | None = None,
        *,
        n: int | None = None,
        seed: Seed | None = None,
        callback: Callback | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Samples of shape (n, *model.shape), clamped to the model's range, on the model's device.

        noise: unit normal start of shape (n, *model.shape); else drawn from `seed`.  n: how many; 1, or as many as
        `noise` or `seed` hold.  seed: of start and row noise, whole numbers from 0: one, and sample k is (seed, k), or
        a sequence with one per sample, each of which is (its seed, 0); None: a fresh one.
        callback: `callback(i, x, x0)` after row i, with the new state and the row's predicted x0; called under no_grad.
        progress: show a bar.  ValueError: a noise of the wrong shape, n or seeds that contradict it, a negative seed.
        """
        model, plan = self.model, self.plan
        x, batch = start(model, plan.prior_scale, noise, n, seed)
        coefficients = zip(plan.t.tolist(), plan.a.tolist(), plan.b.tolist(), plan.c.tolist(), strict=True)
        history: list[Tensor] = []
        with evaluating(model), tqdm(total=plan.nfe, disable=not progress, desc=plan.method, unit="eval") as bar:
            for i, (t, a, b, c) in enumerate(coefficients):
                out = model(x, t)
                history = [self._predict(i, x, out), *history[: plan.depth - 1]]
                z = normal(batch, i + 1, model.shape, device=x.device, dtype=x.dtype) if c else None
                old, x = x, advance(x, a, b, history, c, z)
                if callback is not None:
                    callback(i, x.clone(), self._x0(i, old, out))
                bar.update()
        return finish(model, x)

    def _predict(self, i: int, x: Tensor, out: Tensor) -> Tensor:
        if self._clip is None:
            return mix(self._to_d[i][0], x, self._to_d[i][1], out)
        return clipped(x, out, self._to_x0[i], self._scales[i], self._clip)

    def _x0(self, i: int, x: Tensor, out: Tensor) -> Tensor:
        x0 = mix(self._to_x0[i][0], x, self._to_x0[i][1], out)
        return x0 if self._clip is None else x0.clamp_(*self._clip)


def sample(
    model: Model,
    solver: str | Plan = "rk4",
    nfe: int | None = None,
    *,
    n: int | None = None,
    seed: Seed | None = None,
    noise: Tensor | None = None,
    grid: str | ArrayLike | None = None,
    eta: float | None = None,
    clip: Clip = None,
    callback: Callback | None = None,
    progress: bool = False,
    rtol: float | None = None,
    atol: float | None = None,
    max_nfe: int | None = None,
) -> Tensor:
    """Draw samples: a tensor (n, *model.shape) in the model's data range, on the model's device.

    solver: a name of `odediff.METHODS`, a `Plan`, an adaptive method of torchdiffeq ("dopri5", "dopri8", "bosh3",
    "fehlberg2",
        "adaptive_heun"), or one of its fixed-step methods as an oracle ("torchdiffeq:rk4").
    nfe: evaluations of the network, exactly (20 if not named); not for adaptive methods, which take rtol, atol,
    max_nfe. grid, eta: see `odediff.plan`.  n, seed, noise, callback, progress, clip: see `Sampler`.
    ValueError: see there; and options that the solver does not have.  BudgetExceeded: `max_nfe` ran out.
    """
    if isinstance(solver, str) and adaptive.is_torchdiffeq(solver):
        _refuse(solver, eta=eta, callback=callback)
        return adaptive.solve(
            model,
            solver,
            nfe=nfe,
            n=n,
            seed=seed,
            noise=noise,
            grid=grid,
            clip=clip,
            progress=progress,
            rtol=rtol,
            atol=atol,
            max_nfe=max_nfe,
        ).x
    _refuse("a fixed-step solver", rtol=rtol, atol=atol, max_nfe=max_nfe)
    if isinstance(solver, Plan):
        _refuse("a compiled plan", nfe=nfe, grid=grid, eta=eta)
        plan = solver
    else:
        from .methods import METHODS
        from .methods import plan as compile_plan

        if solver not in METHODS:
            known = ", ".join((*METHODS, *adaptive.ADAPTIVE, *adaptive.FIXED))
            raise ValueError(f"unknown solver {solver!r}; choose {known}")
        args: dict[str, Any] = {} if eta is None else {"eta": eta}
        plan = compile_plan(solver, model.schedule, 20 if nfe is None else nfe, grid, snap=model.integer_times, **args)
    return Sampler(model, plan, clip=clip)(noise, n=n, seed=seed, callback=callback, progress=progress)


def _refuse(solver: str, **options: object) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{solver} takes no {given[0]!r}; remove it, or choose a solver that has it")
