"""The reference update in eager torch: the truth that every other way to run a plan is held to.

    d = p x + q out                                            out: what the network returned
    x' = a x + sum_j b_j d_j + c z

Coefficients are Python floats (float64); the state is float32, or float64 for proofs. Casts of the state happen here
only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .schedule import Array
from .spaces import space_pair

Rows = list[tuple[float, float]]


def conversion(prediction: str, space: str, alpha: Array, sigma: Array) -> Rows:
    """(p, q) per row of d = p x + q out, which turns a network's `prediction` into the plan's `space`.

    With out = u_n x0 + w_n eps, d = u x0 + w eps and D = alpha w_n - sigma u_n:
    p = (u w_n - w u_n) / D, q = (w alpha - u sigma) / D. alpha, sigma: (S,) float64.
    ValueError: D = 0 at a row, such as an eps prediction where alpha = 0.
    """
    un, wn = space_pair(prediction, alpha, sigma)
    u, w = space_pair(space, alpha, sigma)
    det = alpha * wn - sigma * un
    bad = np.flatnonzero(det == 0)
    if len(bad):
        what = "alpha = 0" if alpha[bad[0]] == 0 else f"alpha = {alpha[bad[0]]:g}, sigma = {sigma[bad[0]]:g}"
        raise ValueError(
            f'{what} at row {bad[0]}: prediction "{prediction}" is singular at zero terminal SNR; use "v" or "x0"'
        )
    return list(zip(((u * wn - w * un) / det).tolist(), ((w * alpha - u * sigma) / det).tolist(), strict=True))


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays, all else becomes float32: a float16 state destroys a solver's order."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def mix(p: float, x: Tensor, q: float, out: Tensor) -> Tensor:
    """p x + q out, in the state's dtype."""
    return torch.mul(out.to(x.dtype), q).add_(x, alpha=p)


def clipped(
    x: Tensor, out: Tensor, to_x0: tuple[float, float], scales: tuple[float, ...], limits: tuple[float, float]
) -> Tensor:
    """The prediction after x0 is clamped to `limits` and eps recomputed from it, d = u x0 + w (x - alpha x0) / sigma.

    scales: (u, w, alpha, sigma) of the row.
    """
    u, w, alpha, sigma = scales
    x0 = mix(to_x0[0], x, to_x0[1], out).clamp_(*limits)
    return x0.mul_(u - w * alpha / sigma).add_(x, alpha=w / sigma)


def advance(
    x: Tensor, a: float, b: Sequence[float], history: Sequence[Tensor], c: float = 0.0, z: Tensor | None = None
) -> Tensor:
    """a x + sum_j b_j d_j + c z as a new tensor; history: newest first, only those with b_j != 0 are read."""
    out = x.mul(a)
    for weight, d in zip(b, history, strict=False):
        if weight:
            out.add_(d, alpha=weight)
    if z is not None:
        out.add_(z, alpha=c)
    return out
