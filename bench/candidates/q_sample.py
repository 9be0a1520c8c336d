"""What training does before it calls the network, in one kernel: the noised image and the target.

    x_t = alpha x0 + sigma eps,    d = u x0 + w eps              alpha, sigma, u, w of each sample's time

x_t is in the network's dtype, d in float32; x0 and eps are read once.  Source: Ho et al. 2020, Algorithm 1, line 5.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
OPTIONS = {"num_warps": 4}


@triton.jit(do_not_specialize=["size"])
def noised(
    x0_ptr: tl.tensor,
    eps_ptr: tl.tensor,
    table_ptr: tl.tensor,
    x_ptr: tl.tensor,
    target_ptr: tl.tensor,
    numel: tl.tensor,
    size: tl.tensor,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """table_ptr: (n, COLUMNS), of which the first four are alpha, sigma, u, w."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    e = start + tl.arange(0, BLOCK)
    inside = e < numel
    at = table_ptr + (start // size + ((start % size).to(tl.int32) + tl.arange(0, BLOCK)) // size) * COLUMNS
    x0, eps = tl.load(x0_ptr + e, inside), tl.load(eps_ptr + e, inside)
    x = tl.load(at, inside) * x0 + tl.load(at + 1, inside) * eps
    target = tl.load(at + 2, inside) * x0 + tl.load(at + 3, inside) * eps
    tl.store(x_ptr + e, x.to(x_ptr.dtype.element_ty), inside)
    tl.store(target_ptr + e, target, inside)


def q_sample(x0: Tensor, eps: Tensor, table: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """(x_t, d) of x0 and eps (N, ...) float32, laid out alike, and table (N, 4 or more) float32; x_t in `dtype`.

    ValueError: layouts or lengths that differ, or a table without the four columns.
    """
    if x0.stride() != eps.stride() or x0.shape != eps.shape or len(table) != len(x0) or table.shape[1] < 4:
        raise ValueError(
            f"x0 {tuple(x0.shape)}, eps {tuple(eps.shape)} and table {tuple(table.shape)} must be (N, ...), (N, ...) "
            "of the same strides, and (N, 4 or more)"
        )
    x, target, numel = torch.empty_like(x0, dtype=dtype), torch.empty_like(x0), x0.numel()
    columns = {"COLUMNS": table.shape[1], "BLOCK": BLOCK}
    noised[(triton.cdiv(numel, BLOCK),)](x0, eps, table, x, target, numel, numel // len(x0), **columns, **OPTIONS)
    return x, target


def reference(x0: Tensor, eps: Tensor, table: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """The same in torch, as `odediff.training.losses` has it."""
    alpha, sigma, u, w = (column.view(-1, *[1] * (x0.ndim - 1)) for column in table[:, :4].unbind(1))
    return (alpha * x0 + sigma * eps).to(dtype), u * x0 + w * eps
