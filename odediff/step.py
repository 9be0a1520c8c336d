"""The reference update in eager torch: the truth that every other way to run a plan is held to.

    d = p x + q out                                            out: what the network returned
    d = m x0' + p x + q out                                    x0': the predicted x0 kept within limits
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


def conversion(prediction: str, space: str | tuple[Array, Array], alpha: Array, sigma: Array) -> Rows:
    """(p, q) per row of d = p x + q out, which turns a network's `prediction` into `space`.

    With out = u_n x0 + w_n eps, d = u x0 + w eps and D = alpha w_n - sigma u_n:
    p = (u w_n - w u_n) / D, q = (w alpha - u sigma) / D. alpha, sigma: (S,) float64; space: a name, or (u, w).
    ValueError: D = 0 at a row, such as an eps prediction where alpha = 0.
    """
    un, wn = space_pair(prediction, alpha, sigma)
    u, w = space_pair(space, alpha, sigma) if isinstance(space, str) else space
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


def guided(unconditional: Tensor, conditional: Tensor, weight: float) -> Tensor:
    """d_uncond + weight (d_cond - d_uncond): Ho & Salimans 2022, eq. 6, whose w is weight - 1."""
    return unconditional.lerp(conditional, weight)


def thresholded(x0: Tensor, quantile: float, limits: tuple[float, float]) -> Tensor:
    """Dynamic thresholding, on y = (x0 - middle) / half width of the limits, sample by sample.

    s = max(1, quantile of |y|) by linear interpolation of the order statistics,  y' = clip(y, -s, s) / s.
    x0: (N, ...).  quantile: in (0, 1].  Source: Saharia et al. 2022, section 2.3.
    """
    middle, half = (limits[1] + limits[0]) / 2, (limits[1] - limits[0]) / 2
    y = x0.sub(middle).flatten(1)
    size, last = y.abs(), y.shape[1] - 1
    rank, share = divmod(quantile * last, 1.0)
    below, above = (size.kthvalue(min(int(rank) + k, last) + 1, dim=1, keepdim=True).values for k in (0, 1))
    s = below.lerp_(above, share).clamp_(min=half)
    return y.clamp_(-s, s).mul_(half / s).add_(middle).view_as(x0)


def limited(m: float, x0: Tensor, p: float, x: Tensor, q: float, out: Tensor) -> Tensor:
    """m x0 + p x + q out, in the state's dtype; overwrites x0."""
    d = x0.mul_(m).add_(x, alpha=p)
    return d.add_(out.to(x.dtype), alpha=q) if q else d


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
