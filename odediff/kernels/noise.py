"""The draws of `odediff.philox` inside a kernel, with the same bits: see there for the formulas.

What makes the bits the same is that every operation is exact or correctly rounded, one at a time: a kernel that calls
`normal` is compiled with enable_fp_fusion=False, so that no product and sum become one; division and square root of
float64 are the correctly rounded ones of PTX, div.rn.f64 and sqrt.rn.f64.
"""

from math import pi

import triton
import triton.language as tl

from .. import philox as reference

LOG_2 = tl.constexpr(reference.LOG_2)
SQRT_HALF = tl.constexpr(reference.SQRT_HALF)
ATANH = tl.constexpr(tuple(reference.ATANH))
COS = tl.constexpr(tuple(reference.COS))
SIN = tl.constexpr(tuple(reference.SIN))
LOG_TERMS, TERMS = tl.constexpr(len(reference.ATANH)), tl.constexpr(len(reference.COS))  # as many of sin as of cos
HALF_TURN = tl.constexpr(pi * 2.0**-32)


@triton.jit
def normal(
    block: tl.tensor, row: tl.tensor, low: tl.tensor, high: tl.tensor, k0: tl.tensor, k1: tl.tensor, lane: tl.tensor
) -> tl.tensor:
    """z[lane] of a block, float32: lane in 0 .. 3, all other arguments uint32."""
    w0, w1, w2, w3 = words(block, row, low, high, k0, k1)
    first = lane < 2
    return (radius(tl.where(first, w0, w2)) * direction(tl.where(first, w1, w3), lane & 1)).to(tl.float32)


@triton.jit
def words(c0: tl.tensor, c1: tl.tensor, c2: tl.tensor, c3: tl.tensor, k0: tl.tensor, k1: tl.tensor) -> tl.tensor:
    """Philox 4x32-10: four random words, uint32, from four of counter and two of key."""
    M0, M1 = tl.full((), 0xD2511F53, tl.uint32), tl.full((), 0xCD9E8D57, tl.uint32)
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, M0), tl.mul(c0, M0, sanitize_overflow=False)
        high1, low1 = tl.umulhi(c2, M1), tl.mul(c2, M1, sanitize_overflow=False)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def radius(w: tl.tensor) -> tl.tensor:
    """sqrt(-2 log u), float64."""
    bits = ((w.to(tl.int64) * 2 + 1).to(tl.float64) * 2.0**-33).to(tl.int64, bitcast=True)
    k = (bits - SQRT_HALF) >> 52
    f = (bits - (k << 52)).to(tl.float64, bitcast=True)
    s = (f - 1.0) / (f + 1.0)
    square = s * s
    series = tl.full((), ATANH[0], tl.float64)
    for n in tl.static_range(1, LOG_TERMS):
        series = series * square + ATANH[n]
    return tl.sqrt((k.to(tl.float64) * LOG_2 + s * series) * -2.0)


@triton.jit
def direction(w: tl.tensor, sine: tl.tensor) -> tl.tensor:
    """cos(2 pi u) where sine is 0, sin(2 pi u) where it is 1, float64: each by the one series that its eighth needs."""
    turn = w.to(tl.int64) * 2 + 1
    q = (turn + 1073741824) >> 31
    phi = (turn - (q << 31)).to(tl.float64) * HALF_TURN
    square = phi * phi
    odd = (q & 1) != sine
    series = tl.where(odd, tl.full((), SIN[0], tl.float64), tl.full((), COS[0], tl.float64))
    for n in tl.static_range(1, TERMS):
        series = series * square + tl.where(odd, tl.full((), SIN[n], tl.float64), tl.full((), COS[n], tl.float64))
    return tl.where(odd, series * phi, series) * (1 - ((q + 1 - sine) & 2)).to(tl.float64)
