"""What every way to sample shares: the start, the finish, and a network in evaluation mode."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .model import Model
from .noise import normal
from .philox import Seed, Streams, fresh_seed, streams
from .step import state_dtype


def start(model: Model, scale: float, noise: Tensor | None, n: int | None, seed: Seed | None) -> tuple[Tensor, Streams]:
    """x_T = scale * noise, (n, *model.shape), on the model's device, and the streams of the rows' noise.

    x_T is float64 if noise or network is, else float32.  noise: unit normal, or None to draw it from `seed`; None is a
    fresh one.
    ValueError: noise of the wrong kind, shape or dtype or not finite, n that contradicts it; see `philox.streams`.
    """
    seed = fresh_seed() if seed is None else seed
    if noise is None:
        batch = streams(seed, n)
        dtype = state_dtype(model.dtype or torch.float32)
        return normal(batch, 0, model.shape, device=model.device, dtype=dtype).mul_(scale), batch
    if not isinstance(noise, Tensor):
        raise ValueError(f"noise is a {type(noise).__name__}, expected a torch tensor; torch.from_numpy makes one")
    if noise.ndim == 0 or tuple(noise.shape[1:]) != model.shape or not len(noise):
        raise ValueError(f"noise has shape {tuple(noise.shape)}, expected (n, {', '.join(map(str, model.shape))})")
    if n is not None and n != len(noise):
        raise ValueError(f"n = {n}, but noise holds {len(noise)} samples; leave n out")
    if not noise.is_floating_point():
        raise ValueError(f"noise has dtype {noise.dtype}, expected a floating-point tensor")
    if _not_finite(noise):
        raise ValueError("noise holds values that are not finite; draw it anew")
    batch = streams(seed, len(noise))
    double = torch.float64 in (noise.dtype, model.dtype)
    device = noise.device if model.dtype is None else model.device  # a plain callable runs where its input is
    return noise.to(device, torch.float64 if double else torch.float32) * scale, batch


def finish(model: Model, x: Tensor) -> Tensor:
    """x clamped in place to the model's range, if it has one. FloatingPointError: entries that are not finite."""
    bad = _not_finite(x)
    if bad:
        raise FloatingPointError(
            f"{bad} of {x.numel()} values are not finite: the network returned NaN or inf, or the plan diverged; "
            "try more evaluations or a lower-order solver"
        )
    return x if model.range is None else x.clamp_(*model.range)


def _not_finite(x: Tensor) -> int:
    """How many entries are not finite. All are if their sum is, which reads x once; else it may have overflowed."""
    return 0 if math.isfinite(x.detach().sum().item()) else int((~torch.isfinite(x)).sum())


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Run the network without gradients and in evaluation mode, and put it back as it was."""
    net = model.net
    training = [m for m in net.modules() if m.training] if isinstance(net, nn.Module) else []
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
