"""Prediction spaces: every one is a mix of data and noise, d = u x0 + w eps."""

from __future__ import annotations

import numpy as np

from .schedule import Array

SPACES = ("x0", "eps", "v", "flow")


def space_pair(space: str, alpha: Array, sigma: Array) -> tuple[Array, Array]:
    """(u, w) of d = u x0 + w eps: x0 (1, 0), eps (0, 1), v (-sigma, alpha), flow velocity (-1, 1).

    alpha, sigma: float64 arrays of one shape, which u and w get.
    Sources: v, Salimans & Ho 2022, appendix D; flow, Lipman et al. 2023, eq. 23, with the noise at t = 1.
    ValueError: an unknown space.
    """
    one, zero = np.ones_like(alpha), np.zeros_like(alpha)
    pairs = {"x0": (one, zero), "eps": (zero, one), "v": (-sigma, alpha), "flow": (-one, one)}
    if space not in pairs:
        raise ValueError(f"unknown space {space!r}; choose {', '.join(SPACES)}")
    return pairs[space]
