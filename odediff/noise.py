"""The noise of `philox` as torch's tensors, drawn where they live."""

from __future__ import annotations

import torch
from torch import Tensor

from .philox import Streams, normal_array, unit_normal


def normal(batch: Streams, row: int, shape: tuple[int, ...], *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Unit normal noise of shape (len(batch), *shape) at `row`, 0 .. 2^32 - 1; float32 values in `dtype`."""
    if device.type == "cuda":
        values: Tensor = unit_normal(torch, batch, row, shape, device=device, tile=2**20)
    else:  # others may lack float64; on a CPU numpy is faster, and torch's sqrt, MKL's, can be off by a float64 unit
        values = torch.from_numpy(normal_array(batch, row, shape))
    return values.to(device, dtype).contiguous()
