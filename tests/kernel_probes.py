"""Kernels that store what the library's kernels compute on the way; loaded anew by `kernel_modules.load`."""

import triton
import triton.language as tl

from odediff.kernels.noise import direction, normal, radius, words
from odediff.kernels.stage import drawn, element


@triton.jit
def six(ptr, BLOCK: tl.constexpr):
    c0 = tl.load(ptr).to(tl.uint32, bitcast=True)
    c1 = tl.load(ptr + BLOCK).to(tl.uint32, bitcast=True)
    c2 = tl.load(ptr + 2 * BLOCK).to(tl.uint32, bitcast=True)
    c3 = tl.load(ptr + 3 * BLOCK).to(tl.uint32, bitcast=True)
    k0 = tl.load(ptr + 4 * BLOCK).to(tl.uint32, bitcast=True)
    k1 = tl.load(ptr + 5 * BLOCK).to(tl.uint32, bitcast=True)
    return c0, c1, c2, c3, k0, k1


@triton.jit
def store_words(counter_ptr, out_ptr, BLOCK: tl.constexpr):
    """The four words of counters and keys (6, BLOCK) int32, as (4, BLOCK)."""
    e = tl.arange(0, BLOCK)
    c0, c1, c2, c3, k0, k1 = six(counter_ptr + e, BLOCK)
    w0, w1, w2, w3 = words(c0, c1, c2, c3, k0, k1)
    tl.store(out_ptr + e, w0.to(tl.int32, bitcast=True))
    tl.store(out_ptr + BLOCK + e, w1.to(tl.int32, bitcast=True))
    tl.store(out_ptr + 2 * BLOCK + e, w2.to(tl.int32, bitcast=True))
    tl.store(out_ptr + 3 * BLOCK + e, w3.to(tl.int32, bitcast=True))


@triton.jit
def store_polar(word_ptr, out_ptr, BLOCK: tl.constexpr):
    """Radius, cosine and sine of words (BLOCK,) int32, as (3, BLOCK) float64."""
    e = tl.arange(0, BLOCK)
    w = tl.load(word_ptr + e).to(tl.uint32, bitcast=True)
    tl.store(out_ptr + e, radius(w))
    tl.store(out_ptr + BLOCK + e, direction(w, e * 0))
    tl.store(out_ptr + 2 * BLOCK + e, direction(w, e * 0 + 1))


@triton.jit
def store_normal(counter_ptr, out_ptr, BLOCK: tl.constexpr):
    """Lane e mod 4 of the draw of counters and keys (6, BLOCK) int32, as (BLOCK,) float32."""
    e = tl.arange(0, BLOCK)
    c0, c1, c2, c3, k0, k1 = six(counter_ptr + e, BLOCK)
    tl.store(out_ptr + e, normal(c0, c1, c2, c3, k0, k1, e & 3))


@triton.jit
def store_elements(program_ptr, out_ptr, BLOCK: tl.constexpr):
    """Where the elements of a program are, (BLOCK,) int64."""
    tl.store(out_ptr + tl.arange(0, BLOCK), element(tl.load(program_ptr), BLOCK))


@triton.jit
def store_drawn(program_ptr, streams_ptr, row_ptr, out_ptr, size, channels, BLOCK: tl.constexpr):
    """The noise of a program, (BLOCK,) float32."""
    e = tl.arange(0, BLOCK)
    z = drawn(tl.load(program_ptr), streams_ptr, tl.load(row_ptr), size, channels, e >= 0, BLOCK)
    tl.store(out_ptr + e, z)
