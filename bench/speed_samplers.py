"""Samplers without a network: what one evaluation costs beside it, in time and in passes over memory.

Every sampler runs its own loop on a model output that was made beforehand. A pass is one read or one write of a tensor
as large as the state, counted in bytes at the operations that torch dispatches: their inputs, and what they write; and
at our C kernel by its table.
Costs per evaluation are differences of two budgets, so start and end count in time only.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable
from importlib import metadata
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import odediff
from odediff import step
from odediff.step import BLOCK

NFE = 20
PACKAGES = ("diffusers", "k-diffusion", "azula", "torchdiffeq", "onnxruntime")
OURS = ("ddim", "dpmpp_2m", "unipc_3", "abm4", "lms")
DIFFUSERS: dict[str, dict[str, Any]] = {
    "DDIM": {"clip_sample": False},
    "DPMSolverMultistep": {},
    "UniPCMultistep": {},
    "HeunDiscrete": {},
    "EulerDiscrete": {},
    "PNDM": {"skip_prk_steps": True},
    "LMSDiscrete": {},
    "DEISMultistep": {},
}
K_DIFFUSION = {"euler": 1, "heun": 2, "dpmpp_2m": 1, "lms": 1}
AZULA: dict[str, dict[str, Any]] = {"DDIM": {}, "zEAB": {"order": 2}}
TORCHDIFFEQ = {"euler": 1, "rk4": 4}
WRITTEN_ONLY = ("copy_", "fill_", "zero_", "full", "zeros", "ones", "normal_", "uniform_")


class Loop(NamedTuple):
    """A sampler at one budget: `prepare()`, which is not timed, then `run(x)`, which takes `evaluations`."""

    library: str
    name: str
    prepare: Callable[[], Any]
    run: Callable[[Tensor], Tensor]
    evaluations: int


class Traffic(TorchDispatchMode):
    """Bytes that operations read and wrote, and those of new tensors, of tensors of at least `least` numbers."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least, self.moved, self.made, self._kernel = least, 0, 0, step._row

    def __enter__(self) -> Any:
        if self._kernel is not None:
            step._row = self._row
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        step._row = self._kernel
        super().__exit__(*error)

    def _row(self, *args: int) -> None:
        """odediff/kernels/row.c: the state both ways, d that it keeps, and what has a weight; its own d is at hand."""
        *_, table, size, depth, i, _, width = args
        coefficients = (ctypes.c_double * (6 + depth)).from_address(table + 8 * i * (6 + depth))
        kept, _, _, _, output, noise, *b = coefficients
        read = [kept or output, noise, *b[1:], not kept and depth and b[0]]
        self.moved += (2 + (kept != 0) + sum(map(bool, read))) * size * width * (size >= self.least)
        self._kernel(*args)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        returns = func._schema.returns
        name = func._schema.name.removeprefix("aten::")
        if any(one.alias_info is not None and not one.alias_info.is_write for one in returns):
            return out  # a view
        given = dict(zip((one.name for one in func._schema.arguments), args, strict=False)) | kwargs
        for one in func._schema.arguments:
            written = one.alias_info is not None and one.alias_info.is_write
            read = not (written and (one.kwarg_only or name in WRITTEN_ONLY))
            self.moved += (written + read) * self._size(given.get(one.name)) * (not name.endswith("_like"))
        if not any(one.alias_info is not None for one in returns):
            fresh = self._size(out)
            self.made += fresh
            self.moved += fresh * (not name.startswith(("empty", "new_empty")))
        return out

    def _size(self, value: Any) -> int:
        tensors = (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.numel() >= self.least)
        return sum(one.numel() * one.element_size() for one in tensors)


class Constant(nn.Module):
    """A network that is a module, as networks are, and does nothing."""

    def __init__(self, out: Tensor) -> None:
        super().__init__()
        self.weight, self.out = nn.Parameter(torch.zeros(1, device=out.device)), out

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.out


def loops(out: Tensor, nfe: int = NFE) -> list[Loop]:
    """Every sampler that is installed, at about nfe evaluations, on a model's output `out` (N, C, H, W)."""
    made = [_ours(name, None, out, nfe) for name in OURS]
    made.append(_ours("ddim", lambda x, t: out, out, nfe)._replace(name="ddim with Model, a function"))
    made.append(_ours("ddim", Constant(out), out, nfe)._replace(name="ddim with Model, a module"))
    if installed("diffusers"):
        made += [_diffusers(name, options, out, nfe) for name, options in DIFFUSERS.items()]
    if installed("k-diffusion"):
        made += [_k_diffusion(name, stages, out, nfe) for name, stages in K_DIFFUSION.items()]
    if installed("azula"):
        made += [_azula(name, options, out, nfe) for name, options in AZULA.items()]
    return [*made, *(_torchdiffeq(name, stages, out, nfe) for name, stages in TORCHDIFFEQ.items())]


def _ours(name: str, net: Any, out: Tensor, nfe: int) -> Loop:
    """Sampler as it is; net None: `Model.__call__`, which makes the times and checks the output, is left out too."""
    schedule = odediff.schedule.linear()
    model = odediff.Model(net or (lambda x, t: out), schedule=schedule, shape=tuple(out.shape[1:]))
    sampler = odediff.Sampler(model, odediff.plan(name, schedule, nfe))
    if net is None:
        sampler.prediction.network = lambda label, x: lambda x, t: out  # type: ignore[method-assign]
    return Loop("odediff", name, lambda: None, sampler, nfe)


def _diffusers(name: str, options: dict[str, Any], out: Tensor, nfe: int) -> Loop:
    import diffusers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = getattr(diffusers, f"{name}Scheduler")(**options)
    heun = name == "HeunDiscrete"
    steps = (nfe + 1) // 2 if heun else nfe

    def prepare() -> None:
        scheduler.set_timesteps(steps, device=out.device)

    @torch.no_grad()
    def run(x: Tensor) -> Tensor:
        for t in scheduler.timesteps:
            scheduler.scale_model_input(x, t)
            x = scheduler.step(out, t, x).prev_sample
        return x

    prepare()
    return Loop("diffusers", name, prepare, run, len(scheduler.timesteps))


def _k_diffusion(name: str, stages: int, out: Tensor, nfe: int) -> Loop:
    from rivals_other import k_diffusion

    sampling, _ = k_diffusion()
    steps = nfe if stages == 1 else (nfe + 1) // 2
    sigmas = sampling.get_sigmas_karras(steps, 0.03, 80.0).to(out.device)
    call = getattr(sampling, f"sample_{name}")
    evaluations = stages * (steps - 1) + 1
    return Loop(
        "k-diffusion", name, lambda: None, lambda x: call(lambda x, s: out, x, sigmas, disable=True), evaluations
    )


def _azula(name: str, options: dict[str, Any], out: Tensor, nfe: int) -> Loop:
    from azula import denoise, noise, sample

    class Denoiser(denoise.Denoiser):  # type: ignore[misc]
        schedule = noise.VPSchedule()

        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
            return denoise.DiracPosterior(mean=out)

    run = getattr(sample, f"{name}Sampler")(Denoiser(), steps=nfe, silent=True, **options)
    return Loop("azula", name, lambda: None, run, nfe)


def _torchdiffeq(name: str, stages: int, out: Tensor, nfe: int) -> Loop:
    import torchdiffeq

    ends = torch.tensor([1.0, 0.0], device=out.device)
    options = {"step_size": stages / nfe}

    @torch.no_grad()
    def run(x: Tensor) -> Tensor:
        return torchdiffeq.odeint(lambda t, y: out, x, ends, method=name, options=options)[-1]

    return Loop("torchdiffeq", name, lambda: None, run, nfe)


def traffic(short: Loop, long: Loop, x: Tensor) -> dict[str, float]:
    """Passes and new tensors per evaluation, in units of the state's size: of a longer budget less a shorter one."""
    seen = []
    for loop in (short, long):
        loop.prepare()
        with Traffic(min(x.numel(), BLOCK)) as one:
            loop.run(x)
        seen.append(one)
    size = (long.evaluations - short.evaluations) * x.numel() * x.element_size()
    return {"streams": (seen[1].moved - seen[0].moved) / size, "made": (seen[1].made - seen[0].made) / size}


def versions() -> dict[str, str]:
    """Of the libraries that are measured, as far as they are installed."""
    return {package: metadata.version(package) for package in PACKAGES if installed(package)}


def installed(package: str) -> bool:
    """Whether pip knows the package."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
