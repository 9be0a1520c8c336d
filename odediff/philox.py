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
between machines. So one code serves numpy's arrays and torch's tensors: `xp` is the one module or the other.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from math import factorial, pi
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Listable(Protocol):
    """What holds numbers and lists them: an array of numpy, a tensor of torch."""

    def tolist(self) -> Any: ...


Seed = int | Sequence[int] | Listable
Words = NDArray[np.uint64]
Values = Any  # an array of numpy or a tensor of torch

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
    if hasattr(seed, "tolist"):
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


def normal_array(batch: Streams, row: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Unit normal noise of shape (len(batch), *shape) at `row`, 0 .. 2^32 - 1."""
    return np.ascontiguousarray(unit_normal(np, batch, row, shape))


def unit_normal(
    xp: Any, batch: Streams, row: int, shape: tuple[int, ...], *, device: Any = "cpu", tile: int = 2**14
) -> Values:
    """The same as float32 of `xp` on `device`, whole samples of some `tile` blocks at a time: in a CPU's cache."""
    words = [_half(xp, of, shift, device) for of in (batch.seed, batch.index) for shift in (0, 32)]
    size = int(np.prod(shape, dtype=np.int64))
    blocks = xp.arange(-(-size // 4), dtype=xp.int64, device=device)
    out = xp.empty((len(batch), len(blocks), 4), dtype=xp.float32, device=device)
    step = max(1, tile // max(1, len(blocks)))
    for k in range(0, len(batch), step):
        part = slice(k, k + step)
        k0, k1, low, high = (word[part] for word in words)
        w = philox4x32((blocks, xp.full_like(blocks, row), low, high), (k0, k1))
        for j in (0, 2):
            r, (cos, sin) = radius(xp, w[j]), direction(xp, w[j + 1])
            out[part, :, j], out[part, :, j + 1] = r * cos, r * sin
    return out.reshape(len(batch), 4 * len(blocks))[:, :size].reshape(len(batch), *shape)


def _half(xp: Any, words: Words, shift: int, device: Any) -> Values:
    """The low (shift 0) or high (32) 32 bits of each word, (n, 1) int64."""
    half = (words >> np.uint64(shift)) & np.uint64(MASK)
    return xp.asarray(half.astype(np.int64)[:, None], device=device)


def philox4x32(counter: tuple[Values, ...], key: tuple[Values, ...]) -> tuple[Values, Values, Values, Values]:
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


def radius(xp: Any, w: Values) -> Values:
    """sqrt(-2 log u), float64: u = 2^k f with f in [sqrt(1/2), sqrt(2)), log f = 2 atanh((f - 1) / (f + 1))."""
    bits = (_double(xp, w * 2 + 1) * 2.0**-33).view(xp.int64)
    k = (bits - SQRT_HALF) >> 52
    f = (bits - (k << 52)).view(xp.float64)
    s = (f - 1.0) / (f + 1.0)
    return xp.sqrt((_double(xp, k) * LOG_2 + s * _series(xp, ATANH, s * s)) * -2.0)


def direction(xp: Any, w: Values) -> tuple[Values, Values]:
    """(cos, sin) of 2 pi u, float64: u = q / 4 + phi / 2 pi with |phi| <= pi / 4."""
    turn = w * 2 + 1  # in units of 2^-33
    q = (turn + 2**30) >> 31
    phi = _double(xp, turn - (q << 31)) * (pi * 2.0**-32)
    square = phi * phi
    cos, sin = _series(xp, COS, square), _series(xp, SIN, square) * phi
    odd = (q & 1) == 1
    return xp.where(odd, sin, cos) * (1 - ((q + 1) & 2)), xp.where(odd, cos, sin) * (1 - (q & 2))


def _double(xp: Any, whole: Values) -> Values:
    return xp.asarray(whole, dtype=xp.float64, device=whole.device)  # named: torch has a default that may differ


def _series(xp: Any, coefficients: list[float], x: Values) -> Values:
    out = xp.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        out *= x
        out += c
    return out
