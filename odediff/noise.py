"""Noise that depends on (seed, sample index, row) alone, so a sample does not change with its batch.

Row 0 is x_T, row i + 1 the noise of a plan's row i.
"""

from __future__ import annotations

import secrets

import numpy as np
import torch
from torch import Tensor


def fresh_seed() -> int:
    """A seed from the operating system, for when the user names none."""
    return secrets.randbits(63)


def checked_seed(seed: int) -> int:
    """The seed as a Python int. ValueError: no whole number, or outside 0 .. 2^64 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**64:
        raise ValueError(f"seed = {seed!r} must be a whole number in 0 .. 2^64 - 1")
    return int(seed)


def normal(seed: int, row: int, n: int, shape: tuple[int, ...], *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Unit normal noise of shape (n, *shape); sample k is drawn by its own CPU generator seeded with (seed, k, row).

    seed: an int in 0 .. 2^64 - 1. ValueError: another.
    """
    seed = checked_seed(seed)
    out = torch.empty((n, *shape), dtype=torch.float32)
    generator = torch.Generator()
    for k in range(n):
        generator.manual_seed(
            int(
                np.random.SeedSequence((seed % 2**32, seed >> 32, k, row)).generate_state(1, np.uint64)[0]
                >> np.uint64(1)
            )
        )
        out[k].normal_(generator=generator)
    return out.to(device=device, dtype=dtype)
