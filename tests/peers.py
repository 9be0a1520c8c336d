"""Foreign samplers, unmodified, read on one-hot outputs of the network.

A sampler is linear in x_T, in the network's outputs and in its noises, and acts on each element alone. So the batch
axis can carry the basis, and one run of the peer's own code writes down its coefficients:

    X[i] = A[i] x_T + sum_k B[i,k] eps[k] + sum_k C[i,k] z[k]

X[i] is what the network is fed at evaluation i, x = alpha x0 + sigma eps, and the last is the sample. Peers that step
x / alpha (the variance-exploding form) are read in x: their input is theirs to scale, their end is scaled here.

Most peers compute in float32, whatever they are given. `wide` runs the same code with float64 wherever it says
float32, which tells rounding from a wrong formula.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odediff.plans import Plan
from odediff.schedule import Array
from odediff.spaces import space_pair

FLOW_START = 0.98  # at sigma = 1 there is no signal, and eps says nothing
_SCHEDULERS: dict[str, Any] = {}  # some take half a second to construct; set_timesteps starts them anew
EXPLODING = ("Euler", "EulerAncestral", "LMS", "Heun", "KDPM2", "KDPM2Ancestral")


@dataclass(frozen=True)
class Probe:
    """What a peer does. states: (nfe + 1, 2 + 2 nfe), columns x_T, eps_0.., the noise drawn after 0, 1, .. evaluations.

    t: (nfe,), the times it feeds the network, as it rounds them.  rho: (steps + 1,), sigma / alpha where its steps
    start, and where the last one ends.
    """

    states: Array
    t: Array
    rho: Array

    @property
    def nfe(self) -> int:
        return len(self.t)


class Tape:
    """A network that records its argument and answers with the next basis vector, and a source of basis noises."""

    def __init__(self, nfe: int, dtype: torch.dtype) -> None:
        self.nfe, self.dtype = nfe, dtype
        self.states: list[Tensor] = []
        self.fed: list[float] = []
        self.noises: list[int] = []
        self.start = self._basis(0)

    def _basis(self, k: int) -> Tensor:
        return torch.zeros(2 + 2 * self.nfe, 1, 1, 1, dtype=self.dtype).index_fill_(0, torch.tensor([k]), 1.0)

    def __call__(self, x: Tensor, t: Tensor | float) -> Tensor:
        self.states.append(x.clone())
        self.fed.append(float(t))
        return self._basis(len(self.states))

    def noise(self, *_: object, **__: object) -> Tensor:
        """A noise of its own for every number of evaluations made before it."""
        place = len(self.states)
        assert place not in self.noises, f"the peer draws two noises after {place} evaluations"
        self.noises.append(place)
        return self._basis(1 + self.nfe + place)

    def probe(self, end: Tensor, rho: Array) -> Probe:
        assert len(self.states) == self.nfe
        states = torch.stack([*self.states, end]).flatten(1).double().numpy()
        return Probe(states, np.array(self.fed), np.asarray(rho, dtype=np.float64))


class _Wide:
    """A module that says float64 where it is asked for float32."""

    def __init__(self, module: types.ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, "float64" if name == "float32" else name)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of the peers' own code: numpy functions on tensors, options that are to go away."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array|.*deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", ".*deprecated", FutureWarning)
        yield


@contextlib.contextmanager
def _replaced(module: types.ModuleType, **names: Any) -> Iterator[None]:
    """These names of a module stand for others, as far as it has them."""
    old = {name: vars(module)[name] for name in names if name in vars(module)}
    default = torch.get_default_dtype()
    vars(module).update({name: names[name] for name in old})
    try:
        with quiet():
            yield
    finally:
        vars(module).update(old)
        torch.set_default_dtype(default)


def probe_diffusers(
    name: str,
    steps: int,
    options: dict[str, Any],
    *,
    wide: bool = True,
    call: dict[str, Any] | None = None,
    begin: bool = False,
) -> Probe:
    """Read `diffusers.{name}Scheduler(**options)` at `set_timesteps(steps)`.

    call: arguments of its `step`.  begin: `set_begin_index(0)`, where it cannot tell its first time from its second.
    """
    cls = getattr(importlib.import_module("diffusers"), f"{name}Scheduler")
    module = sys.modules[cls.__module__]
    dtype = torch.float64 if wide else torch.float32
    names = {"torch": _Wide(torch), "np": _Wide(np)} if wide else {}
    tape: list[Tape] = []
    with _replaced(module, randn_tensor=lambda *_, **__: tape[0].noise(), **names):
        torch.set_default_dtype(dtype)
        key = repr((name, wide, sorted(options.items())))
        scheduler = _SCHEDULERS.get(key) or _SCHEDULERS.setdefault(key, cls(**options))
        if name.startswith("FlowMatch"):
            scheduler.sigma_max = FLOW_START
        scheduler.set_timesteps(steps)
        if begin:
            scheduler.set_begin_index(0)
        tape.append(Tape(len(scheduler.timesteps), dtype))
        f = tape[0]
        scale = (1.0, 1.0)
        if name.removesuffix("Discrete") in EXPLODING:
            scale = tuple(float((1 + scheduler.sigmas[k].double() ** 2) ** 0.5) for k in (0, -1))
        x = f.start * scale[0]
        for t in scheduler.timesteps:
            eps = f(scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x, t)
            x = scheduler.step(_output(name, scheduler, x, eps), t, x, **(call or {})).prev_sample
        return f.probe(x / scale[1], _levels(scheduler))


def _output(name: str, scheduler: Any, x: Tensor, eps: Tensor) -> Tensor:
    """What the scheduler takes for the output of its network, where its network says eps."""
    index = getattr(scheduler, "step_index", None) or 0
    if name == "IPNDM":  # v = alpha eps - sigma x0, of which it recovers eps = alpha v + sigma x
        return (eps - scheduler.betas[index] * x) / scheduler.alphas[index]
    if name.startswith("FlowMatch"):  # eps - x0
        sigma = scheduler.sigmas[index]
        return (eps - x) / (1 - sigma)
    return eps


def _levels(scheduler: Any) -> Array:
    """rho where the steps start, and where the last one ends."""
    times = scheduler.timesteps.tolist()
    if hasattr(scheduler, "order_list"):  # a step of order k starts k - 1 evaluations earlier
        starts = [i for i, order in enumerate(scheduler.order_list) if order == 1]
        return scheduler.sigmas.double().numpy()[[*starts, len(times)]]
    if hasattr(scheduler, "sigmas"):
        sigmas = scheduler.sigmas.double().numpy()
        if scheduler.order == 2:  # every place but the first and the last is listed twice
            sigmas = np.array([sigmas[0], *sigmas[1 : len(times) : 2], sigmas[len(times)]])
        return sigmas / (1 - sigmas) if "FlowMatch" in type(scheduler).__name__ else sigmas
    if hasattr(scheduler, "ets") and not hasattr(scheduler, "alphas_cumprod"):
        return (scheduler.betas / scheduler.alphas).double().numpy()
    if len(getattr(scheduler, "prk_timesteps", ())):  # three Runge-Kutta steps of four evaluations
        times = [*times[:12:4], *times[12:]]
    abar = scheduler.alphas_cumprod.double().numpy()[list(dict.fromkeys(times))]
    end = float(getattr(scheduler, "final_alpha_cumprod", getattr(scheduler, "one", None)))
    return np.sqrt((1 - np.append(abar, end)) / np.append(abar, end))


def probe_kdiffusion(name: str, rho: Array, *, exploding: bool = True, n: int = 0, **options: Any) -> Probe:
    """Read `k_diffusion.sampling.sample_{name}` on these sigmas, in float64.

    exploding: states as they are, alpha = 1; else x = state / sqrt(1 + rho^2), the variance-preserving one.
    n: evaluations, for `dpm_fast`, which takes them and the two ends of its sigmas.
    """
    sampling = kdiffusion()
    sample = getattr(sampling, f"sample_{name}")
    if "noise_sampler" in inspect.signature(sample).parameters:
        options["noise_sampler"] = lambda *_: tape[0].noise()
    sigmas = torch.tensor(rho, dtype=torch.float64)
    tape: list[Tape] = []

    def scale(sigma: float | Array | Tensor) -> Any:
        return 1.0 if exploding else (1 + sigma**2) ** 0.5

    def network(x: Tensor, sigma: Tensor) -> Tensor:
        return x - sigma[0] * tape[-1](x / scale(sigma[0]), sigma[0])

    def run(nfe: int) -> Tensor:
        tape[:] = [Tape(nfe, torch.float64)]
        noises = types.SimpleNamespace(**{**vars(torch), "randn_like": lambda x: tape[0].noise()})
        given = (float(sigmas[-1]), float(sigmas[0]), n) if n else (sigmas,)
        with _replaced(sampling, torch=noises):
            torch.set_default_dtype(torch.float64)
            return sample(network, tape[0].start * scale(sigmas[0]), *given, disable=True, **options)

    run(n or 2 * len(rho))
    end = run(len(tape[0].states))
    return tape[0].probe(end / scale(sigmas[-1]), rho)


def kdiffusion() -> types.ModuleType:
    """k_diffusion.sampling, loaded without its package, which imports everything that training needs.

    ImportError: k-diffusion is not installed.
    """
    if "_kdiffusion.sampling" in sys.modules:
        return sys.modules["_kdiffusion.sampling"]
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("k-diffusion is not installed: pip install --no-deps k-diffusion==0.1.1.post1")
    package = types.ModuleType("_kdiffusion")
    package.__path__ = list(spec.submodule_search_locations)
    # What sampling.py and its utils import and no sampler uses; only what is absent, and only while it is loaded.
    absent = ("torchsde", "torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    stubs = {key: types.ModuleType(key) for key in absent if not _found(key.split(".")[0])}
    if "torchvision.transforms" in stubs:
        stubs["torchvision.transforms"].functional = stubs["torchvision.transforms.functional"]
    sys.modules.update({**stubs, "_kdiffusion": package})
    try:
        return importlib.import_module("_kdiffusion.sampling")
    finally:
        for key in stubs:
            del sys.modules[key]


def _found(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def probe_azula(name: str, steps: int, schedule: Callable[[Tensor], tuple[Tensor, Tensor]], **options: Any) -> Probe:
    """Read `azula.sample.{name}Sampler` on a schedule t -> (alpha, sigma), in float64."""
    sample = importlib.import_module("azula.sample")
    tape: list[Tape] = []

    def denoiser(x: Tensor, t: Tensor) -> types.SimpleNamespace:
        alpha, sigma = schedule(t)
        return types.SimpleNamespace(mean=(x - sigma * tape[0](x, t)) / alpha)

    denoiser.schedule = schedule  # type: ignore[attr-defined]
    sampler = getattr(sample, f"{name}Sampler")(denoiser, steps=steps, silent=True, dtype=torch.float64, **options)
    noises = types.SimpleNamespace(**{**vars(torch), "randn_like": lambda x: tape[0].noise()})
    nfe = steps * (2 if name == "Heun" else 1)
    tape.append(Tape(nfe, torch.float64))
    with _replaced(sample, torch=noises):
        end = sampler(tape[0].start)
    alpha, sigma = schedule(sampler.timesteps)
    return tape[0].probe(end, (sigma / alpha).numpy())


def unroll(plan: Plan) -> Array:
    """A plan's states in the columns of a `Probe`, by d = u x0 + w eps with x0 = (x - sigma eps) / alpha."""
    n = plan.nfe
    basis = np.eye(2 + 2 * n, dtype=np.longdouble)
    alpha, sigma = plan.alpha[:-1].astype(np.longdouble), plan.sigma[:-1].astype(np.longdouble)
    u, w = space_pair(plan.space, alpha, sigma)
    states, d = [basis[0]], []
    for i in range(n):
        d.append(u[i] / alpha[i] * states[i] + (w[i] - u[i] * sigma[i] / alpha[i]) * basis[1 + i])
        history = sum(plan.b[i, j] * d[i - j] for j in range(min(plan.depth, i + 1)))
        states.append(plan.a[i] * states[i] + history + plan.c[i] * basis[2 + n + i])
    return np.array(states, dtype=np.float64)


def difference(ours: Array, theirs: Array) -> float:
    """The largest difference of two coefficients, relative to the largest that their column has held so far.

    Columns are runs of their own, so that is what rounding is relative to. A column that the peer leaves empty has
    scale 1.
    """
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    scale = np.maximum.accumulate(np.abs(theirs), axis=0)
    return float(np.max(np.abs(ours - theirs) / np.where(scale > 0, scale, 1.0)))
