"""The reference update in eager torch: the truth that every other way to run a plan is held to.

    d = p x + q out                                            out: what the network returned
    d = m x0' + p x + q out                                    x0': the predicted x0 kept within limits
    x' = a x + sum_j b_j d_j + c z                             in place

Coefficients are Python floats (float64); the state is float32, or float64 for proofs. Casts of the state happen here
only. On a CPU a row is one call of kernels/row.c, which does the same to the bit, where that is built and the tensors
are contiguous.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .schedule import Array
from .spaces import space_pair

LAYOUT = 2  # of the table that kernels/row.c reads, and of its arguments: what was built for another is refused

try:
    from . import _row as _kernel
except ModuleNotFoundError:  # no compiler was there
    INSTRUCTIONS, _row = None, None
else:
    if getattr(_kernel, "LAYOUT", 0) != LAYOUT:
        raise ImportError(
            f"{_kernel.__file__} was built from another version of odediff/kernels/row.c: install odediff anew "
            "(in a checkout `make test`, or pip install -e .), or delete the file"
        )
    INSTRUCTIONS, _row = _kernel.INSTRUCTIONS, _kernel.row

Advance = Callable[[int, Tensor, Tensor | None], None]
Pairs = list[tuple[float, float]]
BLOCK = 2**16  # numbers at a time, which stay in a core's cache between two operations


def conversion(prediction: str, space: str | tuple[Array, Array], alpha: Array, sigma: Array) -> Pairs:
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


def mix(p: float, x: Tensor, q: float, out: Tensor, into: Tensor | None = None) -> Tensor:
    """p x + q out, in the state's dtype; a new tensor, or `into`, which is neither of the two."""
    into, out = torch.empty_like(x) if into is None else into, out.to(x.dtype)
    if into.numel() <= 2 * BLOCK or x.device.type != "cpu" or not (x.is_contiguous() and out.is_contiguous()):
        torch.mul(out, q, out=into)
        return into.add_(x, alpha=p) if p else into
    for d, y, z in zip(*(part.view(-1).split(BLOCK) for part in (into, out, x)), strict=True):
        torch.mul(y, q, out=d)
        if p:
            d.add_(z, alpha=p)
    return into


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


def limited(m: float, x0: Tensor, p: float, x: Tensor, q: float, out: Tensor, into: Tensor | None = None) -> Tensor:
    """m x0 + p x + q out, in the state's dtype; in x0, or in `into`."""
    d = torch.mul(x0, m, out=x0 if into is None else into).add_(x, alpha=p)
    return d.add_(out.to(x.dtype), alpha=q) if q else d


class Step(NamedTuple):
    """A row as the loop runs it: x' = a x + sum w_k y_k, where y_k is d[i-k] for k in `back`, the output for None.

    p, q: of d = p x + q out, which is only made if a later row reads it or limits ask for it (`keep`). Where it is not,
    its weight b has moved to x and the output: x' = (a + b p) x + (b q) out + ..
    """

    keep: bool
    p: float
    q: float
    a: float
    terms: tuple[tuple[float, int | None], ...]
    c: float


def steps(a: Array, b: Array, c: Array, to_d: Pairs, limited: bool) -> list[Step]:
    """The rows of a table (S,), (S, K), (S,) with as few terms as they can have."""
    made = []
    for i, (p, q) in enumerate(to_d):
        later = any(b[i + k, k] for k in range(1, min(b.shape[1], len(b) - i)))
        weight = float(b[i, 0])
        past = tuple((float(b[i, k]), k) for k in range(1, b.shape[1]) if b[i, k])
        if later or limited:
            own: tuple[tuple[float, int | None], ...] = ((weight, 0),) if weight else ()
            made.append(Step(True, p, q, float(a[i]), own + past, float(c[i])))
        else:
            own = ((weight * q, None),) if weight else ()
            made.append(Step(False, p, q, float(a[i]) + weight * p, own + past, float(c[i])))
    return made


class Rows:
    """The rows of a table (S,), (S, K), (S,), ready to run on any state.

    to_d: (p, q) of d = p x + q out.  limited: d is made by somebody else, and lies in `ring` when a row begins.
    """

    def __init__(self, a: Array, b: Array, c: Array, to_d: Pairs, limited: bool) -> None:
        self.steps, self.limited = steps(a, b, c, to_d, limited), limited
        self.depth = b.shape[1] if any(step.keep for step in self.steps) else 0
        rows = [self._coefficients(step) for step in self.steps]
        self._table = torch.tensor(rows, dtype=torch.float64, device="cpu")

    def _coefficients(self, step: Step) -> list[float]:
        """What kernels/row.c reads: kept, p, q, a, w, c, b_0 .. b_{K-1}."""
        weights = {k: w for w, k in step.terms}
        mine = [float(step.keep and not self.limited), step.p, step.q, step.a, weights.get(None, 0.0), step.c]
        return mine + [weights.get(k, 0.0) for k in range(self.depth)]

    def on(self, x: Tensor) -> tuple[Advance, list[Tensor]]:
        """`advance(i, out, z)`, row i on x in place, and the ring, whose slot i mod K holds d[i].

        out: the network's output, of x's shape, only read.  z: the row's noise, None where c = 0.  Above 2^17 numbers
        aten runs the row if it has several threads: the kernel has one.
        """
        row, size, depth, dtype = _row, x.numel(), self.depth, x.dtype
        if row is None or not (x.is_cpu and x.is_contiguous()) or (size > 2 * BLOCK and torch.get_num_threads() > 1):
            ring = [torch.empty_like(x) for _ in range(depth)]
            return self._in_aten(x, ring), ring
        ring = list(x.new_empty((depth, *x.shape))) if depth else []
        eager, first = self._in_aten(x, ring), ring[0].data_ptr() if ring else 0
        table, rows, start, width = self._table.data_ptr(), len(self.steps), x.data_ptr(), x.itemsize

        def plain(y: Tensor) -> bool:
            return y.dtype is dtype and y.is_cpu and y.is_contiguous() and y.numel() == size and not y.is_neg()

        def advance(i: int, out: Tensor, z: Tensor | None) -> None:
            at = out.data_ptr() if plain(out) and (z is None or plain(z)) else 0  # 0, too, of zeros without memory
            if not at or abs(at - start) < size * width:
                return eager(i, out, z)
            row(start, at, first, 0 if z is None else z.data_ptr(), table, size, depth, i, rows, width)

        return advance, ring

    def _in_aten(self, x: Tensor, ring: list[Tensor]) -> Advance:
        """The truth that the kernel is held to."""

        def advance(i: int, out: Tensor, z: Tensor | None) -> None:
            step = self.steps[i]
            if shares_memory(out, x):  # a network that gives back its input
                out = out.clone()
            if step.keep and not self.limited:
                mix(step.p, x, step.q, out, ring[i % self.depth])
            terms = [(w, out if k is None else ring[(i - k) % self.depth]) for w, k in step.terms]
            advance_(x, step.a, terms if z is None else [*terms, (step.c, z)])

        return advance


def shares_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors lie in the same storage."""
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def advance_(x: Tensor, a: float, terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    """x <- a x + sum w y in place, block by block on a CPU, so that x is read from memory and written once.

    Tensors of x's shape that do not share its memory, of x's dtype or a narrower one.
    """
    if x.numel() <= 2 * BLOCK or x.device.type != "cpu":
        _advance_block(x, a, terms)
        return x
    tensors = [x, *(y for _, y in terms)]
    if not all(y.is_contiguous() for y in tensors):
        _advance_block(x, a, terms)
        return x
    parts = [y.view(-1).split(BLOCK) for y in tensors]
    weights = [w for w, _ in terms]
    for block, *others in zip(*parts, strict=True):
        _advance_block(block, a, list(zip(weights, others, strict=True)))
    return x


def _advance_block(x: Tensor, a: float, terms: Sequence[tuple[float, Tensor]]) -> None:
    if a != 1.0:
        x.mul_(a)
    for weight, y in terms:
        x.add_(y, alpha=weight)
