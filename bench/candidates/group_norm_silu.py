"""GroupNorm and SiLU in one kernel, channels last: two readings of x, of which the second finds it in a cache.

    y = silu((x - mean) / sqrt(var + eps) weight + bias),    silu(z) = z / (1 + exp(-z))

mean and var of the C / G channels of a group and all pixels of a sample (Wu & He 2018), in float32, tile by tile with
Chan's update (Chan, Golub & LeVeque 1983, eq. 2.1), which does not cancel where the mean is large.

A program has one sample and neighbouring groups of some `WIDTH` channels, so that its rows are of 64 bytes of float16.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

WIDTH, TILE = 32, 4096
OPTIONS = {"num_warps": 8}


@triton.jit
def norm_silu(
    x_ptr: tl.tensor,
    y_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    pixels: tl.tensor,
    eps: tl.tensor,
    GROUPS: tl.constexpr,
    EACH: tl.constexpr,
    AT_ONCE: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """EACH channels a group, PADDED to a power of 2; AT_ONCE groups a program; ROWS pixels a tile."""
    blocks: tl.constexpr = (GROUPS + AT_ONCE - 1) // AT_ONCE
    program = tl.program_id(0)
    group = (program % blocks) * AT_ONCE + tl.arange(0, AT_ONCE)[None, :, None]
    within = tl.arange(0, PADDED)[None, None, :]
    row = tl.arange(0, ROWS)[:, None, None]
    channel = group * EACH + within
    there = (group < GROUPS) & (within < EACH)
    base = (program // blocks).to(tl.int64) * pixels * (GROUPS * EACH)

    count, mean, spread = 0.0, tl.full((AT_ONCE,), 0.0, tl.float32), tl.full((AT_ONCE,), 0.0, tl.float32)
    start = 0
    while start < pixels:
        inside = there & (start + row < pixels)
        at = base + (start + row).to(tl.int64) * (GROUPS * EACH) + channel
        x = tl.load(x_ptr + at, inside, other=0.0).to(tl.float32)
        more = (tl.minimum(pixels - start, ROWS) * EACH).to(tl.float32)
        of_tile = tl.sum(tl.sum(x, 2), 0) / more
        off = tl.where(inside, x - of_tile[None, :, None], 0.0)
        step = of_tile - mean
        spread += tl.sum(tl.sum(off * off, 2), 0) + step * step * (count * more / (count + more))
        mean += step * (more / (count + more))
        count += more
        start += ROWS

    scale = 1.0 / tl.sqrt(spread / count + eps)
    weight = tl.load(weight_ptr + channel, there, other=0.0).to(tl.float32) * scale[None, :, None]
    bias = tl.load(bias_ptr + channel, there, other=0.0).to(tl.float32)
    start = 0
    while start < pixels:
        inside = there & (start + row < pixels)
        at = base + (start + row).to(tl.int64) * (GROUPS * EACH) + channel
        z = (tl.load(x_ptr + at, inside, other=0.0).to(tl.float32) - mean[None, :, None]) * weight + bias
        small = tl.exp(-tl.abs(z))  # which does not overflow
        y = z * tl.where(z < 0.0, small, 1.0) / (1.0 + small)
        tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), inside)
        start += ROWS


def sizes(channels: int, groups: int) -> dict[str, int]:
    """The kernel's constants."""
    each = channels // groups
    padded = triton.next_power_of_2(each)
    at_once = min(triton.next_power_of_2(groups), max(1, WIDTH // padded))
    rows = max(1, TILE // (at_once * padded))
    return {"GROUPS": groups, "EACH": each, "AT_ONCE": at_once, "PADDED": padded, "ROWS": rows}


def group_norm_silu(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """x (N, C, H, W) channels last, float32, float16 or bfloat16; weight, bias (C,); the same kind of tensor.

    ValueError: not channels last, or `groups` does not divide C.
    """
    n, channels, height, width = x.shape
    if not x.is_contiguous(memory_format=torch.channels_last):
        raise ValueError(f"x has strides {x.stride()}, expected channels last")
    if channels % groups:
        raise ValueError(f"groups = {groups} does not divide {channels} channels")
    y, form = torch.empty_like(x), sizes(channels, groups)
    grid = (n * triton.cdiv(groups, form["AT_ONCE"]),)
    norm_silu[grid](x, y, weight, bias, height * width, eps, **form, **OPTIONS)
    return y


def reference(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """The same in torch, in float32 or float64, rounded once."""
    kind = torch.promote_types(x.dtype, torch.float32)
    y = F.silu(F.group_norm(x.to(kind), groups, weight.to(kind), bias.to(kind), eps))
    return y.to(x.dtype).contiguous(memory_format=torch.channels_last)
