"""Noise that belongs to the sample: every draw is a function of (seed, sample index, row, element) alone.

Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") turns a counter of four 32-bit words
and a key of two into four random words w[0..3]. There is no state: a draw is

    key      (seed mod 2^32, seed div 2^32)
    counter  (block, row, index mod 2^32, index div 2^32)         element e of a sample, in C order, is in block e div 4
    u[j]     (w[j] + 1/2) / 2^32                                  33 bits, the last one set: 0 < u < 1, never 0 or 1
    z[0], z[1] = r cos(2 pi u[1]), r sin(2 pi u[1])               r = sqrt(-2 log u[0])             (Box & Muller 1958)
    z[2], z[3] = r cos(2 pi u[3]), r sin(2 pi u[3])               r = sqrt(-2 log u[2])
    element e = z[e mod 4], rounded once to float32               what a last block has too much is dropped

Row 0 is x_T, row i + 1 the noise of a plan's row i. |z| <= sqrt(66 log 2) = 6.764, which a normal exceeds once in 7e10.
Values are float32 in every dtype: a float64 run starts from the same noise as a float32 one.

A draw has the same bits on every device, in every batch and with any number of threads, by construction: log, cos and
sin are polynomials here, and integers, +, -, *, / and sqrt of float64, one operation at a time, are exact or rounded
correctly (IEEE 754) whatever code carries them out. Library functions promise that neither for the tail of a vector nor
between machines.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from math import factorial, pi
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Seed = int | Sequence[int] | NDArray[np.integer[Any]] | Tensor
Words = NDArray[np.uint64]

MASK = 2**32 - 1
LOG_2 = 0.6931471805599453
SQRT_HALF = 0x3FE6A09E667F3BCD  # the bits of sqrt(1/2) in float64
# Taylor's series in the square of the argument, highest power first; what is left out is below 1e-16 of the sum.
ATANH = [2 / (2 * k + 1) for k in reversed(range(11))]  # 2 atanh(s) / s, |s| <= 0.172
COS = [(-1) ** k / factorial(2 * k) for k in reversed(range(9))]  # cos(phi), |phi| <= pi / 4
SIN = [(-1) ** k / factorial(2 * k + 1) for k in reversed(range(9))]  # sin(phi) / phi


@dataclass(frozen=True, eq=False)
class Streams:
    """Whose noise a batch draws: sample k has the seed seed[k] and the index index[k]; (n,) uint64 each."""

    seed: Words
    index: Words

    def __len__(self) -> int:
        return len(self.seed)


def fresh_seed() -> int:
    """A seed from the operating system, for when the user names none."""
    return secrets.randbits(63)


def streams(seed: Seed, n: int | None = None) -> Streams:
    """The streams of a batch: (seed, k) for sample k if `seed` is one number, (seed[k], 0) if it is a sequence.

    seed: 0 .. 2^64 - 1; one, or a sequence or 1-D array or tensor.  n: how many; 1, or as many as there are seeds.
    ValueError: a seed that is no whole number or outside that range, no seeds, n < 1, n that contradicts `seed`.
    """
    if n is not None and (isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1):
        raise ValueError(f"n = {n!r}: how many samples to draw, a whole number from 1 up")
    if isinstance(seed, (np.ndarray, Tensor)):
        seed = seed.tolist()
    if isinstance(seed, (str, bytes)) or not isinstance(seed, Sequence):
        n = 1 if n is None else n
        return Streams(np.full(n, _checked("seed", seed), np.uint64), np.arange(n, dtype=np.uint64))
    if not len(seed):
        raise ValueError("seed holds no seeds; give one per sample")
    if n is not None and n != len(seed):
        raise ValueError(f"seed holds {len(seed)} seeds for n = {n} samples; give one per sample, or leave n out")
    seeds = np.array([_checked(f"seed[{k}]", one) for k, one in enumerate(seed)], np.uint64)
    return Streams(seeds, np.zeros_like(seeds))


def _checked(name: str, seed: object) -> int:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**64:
        raise ValueError(f"{name} = {seed!r} must be a whole number in 0 .. 2^64 - 1")
    return int(seed)


def normal(batch: Streams, row: int, shape: tuple[int, ...], *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Unit normal noise of shape (len(batch), *shape) at `row`, 0 .. 2^32 - 1; float32 values in `dtype`."""
    where = device if device.type == "cuda" else torch.device("cpu")  # other devices may lack float64
    words = [_half(of, shift, where) for of in (batch.seed, batch.index) for shift in (0, 32)]
    size = int(np.prod(shape, dtype=np.int64))
    blocks = torch.arange(-(-size // 4), device=where)
    out = torch.empty((len(batch), len(blocks), 4), dtype=torch.float32, device=where)
    tile = max(1, (2**20 if where.type == "cuda" else 2**14) // max(1, len(blocks)))  # on a CPU: stay in its cache
    for k in range(0, len(batch), tile):
        part = slice(k, k + tile)
        k0, k1, low, high = (word[part] for word in words)
        w = philox((blocks, torch.full_like(blocks, row), low, high), (k0, k1))
        for j in (0, 2):
            radius, (cos, sin) = _radius(w[j]), _direction(w[j + 1])
            out[part, :, j], out[part, :, j + 1] = radius * cos, radius * sin
    return out.flatten(1)[:, :size].reshape(len(batch), *shape).to(device, dtype).contiguous()


def _half(words: Words, shift: int, device: torch.device) -> Tensor:
    """The low (shift 0) or high (32) 32 bits of each word, (n, 1) int64."""
    half = (words >> np.uint64(shift)) & np.uint64(MASK)
    return torch.from_numpy(half.astype(np.int64)[:, None]).to(device)


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four random words from four of counter and two of key, all 32 bits in int64 and of shapes that broadcast.

    Ten rounds (Salmon et al. 2011, section 3.3; the constants are of their Random123), in each of which
        c = (high(M1 c2) ^ c1 ^ k0, low(M1 c2), high(M0 c0) ^ c3 ^ k1, low(M0 c0)),    k = k + (W0, W1) mod 2^32
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # modulo 2^64 in two's complement: the bits of the unsigned product
        c0, c1, c2, c3 = ((p1 >> 32) ^ c1 ^ k0) & MASK, p1 & MASK, ((p0 >> 32) ^ c3 ^ k1) & MASK, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def _radius(w: Tensor) -> Tensor:
    """sqrt(-2 log u), float64: u = 2^k f with f in [sqrt(1/2), sqrt(2)), log f = 2 atanh((f - 1) / (f + 1))."""
    bits = ((w * 2 + 1).double() * 2.0**-33).view(torch.int64)
    k = (bits - SQRT_HALF) >> 52
    f = (bits - (k << 52)).view(torch.float64)
    s = (f - 1.0) / (f + 1.0)
    return ((k.double() * LOG_2 + s * _series(ATANH, s * s)) * -2.0).sqrt()


def _direction(w: Tensor) -> tuple[Tensor, Tensor]:
    """(cos, sin) of 2 pi u, float64: u = q / 4 + phi / 2 pi with |phi| <= pi / 4."""
    turn = w * 2 + 1  # in units of 2^-33
    q = (turn + 2**30) >> 31
    phi = (turn - (q << 31)).double() * (pi * 2.0**-32)
    square = phi * phi
    cos, sin = _series(COS, square), _series(SIN, square) * phi
    odd = (q & 1).bool()
    return torch.where(odd, sin, cos) * (1 - ((q + 1) & 2)), torch.where(odd, cos, sin) * (1 - (q & 2))


def _series(coefficients: list[float], x: Tensor) -> Tensor:
    out = torch.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        out.mul_(x).add_(c)
    return out
