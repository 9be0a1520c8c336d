"""The loop: any plan, any model, exactly `plan.nfe` evaluations of the network."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from tqdm import tqdm

from . import adaptive
from .backends import choose, prepared
from .choices import nearest, unknown
from .graph import Eager, Loop, Recorder
from .identity import mismatch, other_labels
from .model import Model
from .noise import normal
from .philox import Seed, Streams
from .plans import Plan
from .prediction import Clip, Label, Prediction, checked_label, implied_count, one_each
from .running import evaluating, finish, start
from .staged import Staged, refusal
from .step import Rows
from .stored import SOLVER, stored_plan

Callback = Callable[[int, Tensor, Tensor], None]


class Sampler:
    """A model and a plan, ready to run; it keeps nothing between calls.

        d[i] = P(x[i], net(x[i], t[i])),    x[i+1] = a[i] x[i] + sum_j b[i,j] d[i-j] + c[i] z[i]

    guidance: strength g of classifier-free guidance, d = d_uncond + g (d_cond - d_uncond): 1 or None is conditional, 0
        unconditional, more overstates the label. One guided evaluation is one of the plan's, on a batch of 2 n.
    clip: clamp every predicted x0, and recompute eps from it: True to the model's range, (low, high), False, or None
        for the model's own setting.  threshold: dynamic thresholding in its place, the quantile, such as 0.995.
    clip_eps: "recompute", or "keep" the network's own eps beside the limited x0, as diffusers' DDIM does by default;
        for one-step methods only.  Formulas: `odediff.prediction`.
    backend: "torch", "compile", "onnx", "triton", "cudagraph" or "auto", see `odediff.backends`; `.backend` and `.why`
        say which one runs, and why. A callback is called by all of them; triton and cudagraph then run as torch does.
    ValueError: the plan was compiled for another schedule, has fractional times for a network that knows whole ones
    only, or the network's prediction is singular at a row; clip=True or a threshold for a model without a range, both
    at a time, guidance of an unconditional model, "keep" where a row reads earlier predictions; a backend that the
    model or the machine does not have.
    """

    def __init__(
        self,
        model: Model,
        plan: Plan,
        *,
        guidance: float | None = None,
        clip: Clip = None,
        threshold: float | None = None,
        clip_eps: str = "recompute",
        backend: str = "torch",
    ) -> None:
        if not hasattr(model, "integer_times") or not isinstance(plan, Plan):
            raise ValueError(
                f"Sampler takes an odediff.Model and a Plan, got {type(model).__name__} and {type(plan).__name__}; "
                "odediff.load and odediff.plan make them"
            )
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
        self.backend, self.why = choose(backend, model)
        self.prediction = Prediction(model, guidance=guidance, clip=clip, threshold=threshold, clip_eps=clip_eps)
        if (said := mismatch(model, plan.args, self.prediction.guidance)) is not None:
            warnings.warn(said, stacklevel=2)
        made, limited = self.prediction.of_plan(plan), self.prediction.limits is not None
        self._rows = list(zip(plan.t.tolist(), made, (plan.c != 0).tolist(), strict=True))
        self._update = Rows(plan.a, plan.b, plan.c, [row.to_d for row in made], limited)
        refused = refusal(self.prediction) if self.backend in ("triton", "cudagraph") else None
        if refused is not None and self.backend == "triton":
            raise ValueError("; ".join(refused))
        if self.backend == "cudagraph":
            self.why += "; each row is one kernel" if refused is None else f"; rows in eager torch: {refused[0]}"
        self._fused = refused is None
        ready = prepared(backend, self.backend, self.why, model)  # last: it may take minutes
        self.backend, self.why, self.prediction.model = ready
        self._recorder = Recorder(self._recorded) if self.backend == "cudagraph" else None

    def __call__(
        self,
        noise: Tensor | None = None,
        *,
        n: int | None = None,
        seed: Seed | None = None,
        label: Label = None,
        callback: Callback | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Samples of shape (n, *model.shape), clamped to the model's range, on the model's device.

        noise: unit normal start of shape (n, *model.shape); else drawn from `seed`.  n: how many; 1, or as many as
        `noise`, `seed` or labels hold.  seed: of start and row noise, whole numbers from 0: one, and sample k is
        (seed, k), or a sequence with one per sample, each of which is (its seed, 0); None: a fresh one.
        label: of a class-conditional model, 0 .. num_classes - 1: one for all samples, or a list, array or tensor with
        one for each; None: unconditional.
        callback: `callback(i, x, x0)` after row i, with the new state and the row's predicted x0; called under no_grad.
        progress: show a bar.  ValueError: a noise of the wrong shape, n or seeds that contradict it, a negative seed, a
        label that the model does not have, not as many labels as samples, guidance without label.
        """
        model, plan = self.model, self.plan
        if callback is not None and not callable(callback):
            raise ValueError(f"callback = {callback!r} must be callable as callback(i, x, x0)")
        label = checked_label(model, label)
        if (said := other_labels(plan.args, label)) is not None:
            warnings.warn(said, stacklevel=2)
        x, batch = start(model, plan.prior_scale, noise, implied_count(label, n, noise), seed)

        def z(i: int) -> Tensor:
            return normal(batch, i + 1, model.shape, device=x.device, dtype=x.dtype)

        shown = tqdm(total=plan.nfe, desc=plan.method, unit="eval") if progress else nullcontext()
        with evaluating(model), shown as bar:
            if self._recorder is not None and callback is None:
                x = self._recorder(x, None if label is None else one_each(label, x), batch)
                if bar is not None:
                    bar.update(plan.nfe)
            elif self.backend == "triton" and callback is None:
                x = self._staged(x, label, batch, bar)
            else:
                self._loop(x, label, z, callback, bar)
        return finish(model, x)

    def _loop(
        self,
        x: Tensor,
        label: Tensor | None,
        z: Callable[[int], Tensor],
        callback: Callback | None,
        bar: tqdm[Any] | None,
    ) -> None:
        """All rows, on x in place. z: the noise of a row."""
        predict, limited = self.prediction, self.prediction.limits is not None
        network = predict.network(label, x)
        advance, ring = self._update.on(x)
        for i, (t, row, noisy) in enumerate(self._rows):
            out = network(x, t)  # before x changes, in place
            x0 = None if callback is None else predict.x0(x, out, row)
            if limited:
                predict.d(x, out, row, ring[i % len(ring)])
            advance(i, out, z(i) if noisy else None)
            if callback is not None and x0 is not None:
                callback(i, x.clone(), x0)
            if bar is not None:
                bar.update()

    def _staged(self, x: Tensor, label: Tensor | None, batch: Streams, bar: tqdm[Any] | None) -> Tensor:
        """All rows, each in one kernel; the network is called as it is."""
        run = Staged(self.prediction, self.plan, len(x))
        run.load(x, label, batch)
        run(None if bar is None else bar.update)
        return run.x.contiguous()

    def _recorded(self, x: Tensor, label: Tensor | None) -> Loop:
        """What is recorded for states like x: rows in one kernel each, or the eager loop, no callback in either."""
        if self._fused and x.dtype == torch.float32:
            return Staged(self.prediction, self.plan, len(x))
        return Eager(partial(self._loop, callback=None, bar=None), x, label, np.flatnonzero(self.plan.c).tolist())


def sample(
    model: Model,
    solver: str | Plan | None = None,
    nfe: int | None = None,
    *,
    n: int | None = None,
    seed: Seed | None = None,
    noise: Tensor | None = None,
    grid: str | ArrayLike | None = None,
    eta: float | None = None,
    label: Label = None,
    guidance: float | None = None,
    clip: Clip = None,
    threshold: float | None = None,
    clip_eps: str = "recompute",
    callback: Callback | None = None,
    progress: bool = False,
    rtol: float | None = None,
    atol: float | None = None,
    max_nfe: int | None = None,
    **options: Any,
) -> Tensor:
    """Draw samples: a tensor (n, *model.shape) in the model's data range, on the model's device.

    solver: a name of `odediff.METHODS`; None, the one that docs/solvers.md measured to be the best for this nfe;
        "tuned", the plan that `odediff.tune` fitted to this model at this nfe and guidance; a `Plan`; an adaptive
        method of torchdiffeq ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"), or one of its fixed-step
        methods as an oracle ("torchdiffeq:rk4").
    nfe: evaluations of the network, exactly (20 if not named); not for adaptive methods, which take rtol, atol,
    max_nfe. grid, eta, options: of `odediff.plan`, such as space, variable, snap, end, or the solver's own, such as
        s_churn; snap is on for networks that know whole times only. torchdiffeq's methods take only variable of these,
        as `odediff.solve` does, its fixed-step ones grid too, and a compiled plan none.
    n, seed, noise, label, callback, progress, guidance, clip, threshold, clip_eps: see `Sampler`.
    ValueError: see there; and options that the solver does not have.  BudgetExceeded: `max_nfe` ran out.
    UserWarning: a Runge-Kutta method at a budget where ddim beats it; a plan that was fitted to another model.
    """
    if not hasattr(model, "integer_times"):  # a `Model`, or what stands in for one, such as an exported file
        raise ValueError(f"model must be an odediff.Model, got {model!r}; odediff.load(name or folder) reads one")
    draw: dict[str, Any] = {"n": n, "seed": seed, "noise": noise, "label": label, "progress": progress}
    predict: dict[str, Any] = {"guidance": guidance, "clip": clip, "threshold": threshold}
    if isinstance(solver, str) and adaptive.is_torchdiffeq(solver):
        variable, raw = options.pop("variable", None), None if clip_eps == "recompute" else clip_eps
        _refuse(solver, *options, eta=eta, callback=callback, clip_eps=raw)
        tolerance: dict[str, Any] = {"rtol": rtol, "atol": atol, "max_nfe": max_nfe}
        return adaptive.solve(model, solver, nfe=nfe, grid=grid, variable=variable, **tolerance, **predict, **draw).x
    _refuse("a fixed-step solver", rtol=rtol, atol=atol, max_nfe=max_nfe)
    plan = compiled(model, solver, nfe, grid, eta, options, guidance)
    return Sampler(model, plan, clip_eps=clip_eps, **predict)(callback=callback, **draw)


def compiled(
    model: Model,
    solver: str | Plan | None,
    nfe: int | None,
    grid: Any,
    eta: float | None,
    options: dict[str, Any],
    guidance: float | None = None,
) -> Plan:
    """The plan that `sample` runs: a name's, on the model's schedule, or the one given. Raises as `sample` does."""
    if isinstance(solver, str) and solver == SOLVER:
        _refuse("a tuned plan", *options, grid=grid, eta=eta)
        return stored_plan(model, 20 if nfe is None else nfe, guidance)
    if isinstance(solver, Plan):
        _refuse("a compiled plan", *options, nfe=nfe, grid=grid, eta=eta)
        return solver
    from .methods import METHODS
    from .methods import plan as compile_plan
    from .methods.options import KEYWORDS, check_names
    from .methods.rule import advice

    if solver is not None and (not isinstance(solver, str) or solver not in METHODS):
        raise unknown("solver", solver, (*METHODS, SOLVER, *adaptive.ADAPTIVE, *adaptive.FIXED))
    has = () if solver is None else METHODS[solver].args
    check_names(solver, has, set(options) - set(KEYWORDS), (*KEYWORDS, *_keywords()))
    args: dict[str, Any] = {"snap": model.integer_times, **({} if eta is None else {"eta": eta}), **options}
    plan = compile_plan(solver, model.schedule, 20 if nfe is None else nfe, grid, **args)
    if (said := advice(plan.method, plan.nfe)) is not None:
        warnings.warn(said, stacklevel=3)
    return plan


def _refuse(solver: str, *names: str, **options: object) -> None:
    """Refuse these names, and those options that are not None."""
    given = [*names, *(name for name, value in options.items() if value is not None)]
    if given:
        hint = "" if given[0] in _keywords() else nearest(given[0], _keywords()).rstrip()
        raise ValueError(f"{solver} takes no {given[0]!r}; {hint or 'remove it, or choose a solver that has it'}")


def _keywords() -> list[str]:
    """What `sample` takes by name, whatever the solver."""
    return [name for name, p in inspect.signature(sample).parameters.items() if p.kind is not p.VAR_KEYWORD]
