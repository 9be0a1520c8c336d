"""Noise: a function of (seed, sample, row) alone, unit normal, and independent between any two of them."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from odediff.noise import fresh_seed, normal

CPU = torch.device("cpu")
SHAPE = (4, 32, 32)


def draw(seed: int, row: int, n: int, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float64) -> Tensor:
    return normal(seed, row, n, shape, device=CPU, dtype=dtype)


@pytest.mark.parametrize("shape", [(3,), (1, 4, 4), (3, 5, 7)], ids=str)  # below, at and off multiples of 16 values
def test_a_sample_does_not_change_with_its_batch(shape: tuple[int, ...]) -> None:
    full = draw(7, 2, 9, shape)
    for n in range(1, 9):
        assert torch.equal(draw(7, 2, n, shape), full[:n])


def test_neither_the_global_generator_nor_earlier_draws_matter() -> None:
    torch.manual_seed(0)
    first = draw(5, 0, 2)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    draw(6, 3, 4)
    assert torch.equal(draw(5, 0, 2), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_moments_are_those_of_a_unit_normal() -> None:
    """Over 2^20 values E x, E x^2, E x^3 and E x^4 lie within 4.5 standard errors: Var x^k = 1, 2, 15, 96."""
    x = draw(3, 1, 256)
    size = x.numel()
    for power, want, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        assert float((x**power).mean()) == pytest.approx(want, abs=4.5 * (variance / size) ** 0.5), power


def test_samples_rows_and_seeds_are_independent() -> None:
    """Every pair among 8 seeds x 8 samples x 8 rows: the correlation over 4096 values stays under 6 / sqrt(4096).

    130,816 pairs of independent normals exceed 6 standard errors with probability 3e-4; a shared stream gives 1.
    """
    x = torch.cat([draw(seed, row, 8).reshape(8, -1) for seed in range(8) for row in range(8)])
    x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)
    correlation = (x @ x.T / x.shape[1]).fill_diagonal_(0.0)
    assert float(correlation.abs().max()) < 6 / x.shape[1] ** 0.5
    assert float(correlation.abs().max()) > 3 / x.shape[1] ** 0.5  # the bound is not idle


def test_no_two_keys_share_a_stream() -> None:
    """Also where a seed is wider than a machine word, as those of `fresh_seed` are: (2^32, 0, 0) is not (0, 1, 0)."""
    seeds = (0, 1, 2, 2**32, 2**32 + 1, 2**33, 3 * 2**32 + 2, 2**63 - 1, 2**64 - 1)
    seen: dict[tuple[float, ...], tuple[int, int, int]] = {}
    for seed, row in product(seeds, range(4)):
        for sample, values in enumerate(draw(seed, row, 4, (8,)).tolist()):
            other = seen.setdefault(tuple(values), (seed, sample, row))
            assert other == (seed, sample, row), f"(seed, sample, row) = {(seed, sample, row)} and {other} are the same"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_dtypes_hold_the_same_noise(dtype: torch.dtype) -> None:
    """A float64 proof and a float32 run start from the same numbers."""
    got = draw(11, 4, 3, dtype=dtype)
    assert got.dtype == dtype
    assert torch.equal(got, draw(11, 4, 3, dtype=torch.float32).to(dtype))


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5, "7"])
def test_a_seed_is_a_whole_number_of_64_bits(seed: Any) -> None:
    with pytest.raises(ValueError, match=f"seed = {seed!r} "):
        draw(seed, 0, 1)


def test_fresh_seeds_differ_and_are_seeds() -> None:
    seeds = [fresh_seed() for _ in range(100)]
    assert len(set(seeds)) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert np.mean([seed >= 2**62 for seed in seeds]) > 0.1  # all 63 bits are drawn: this fails once in 1e17 runs
    assert torch.isfinite(draw(max(seeds), 0, 1)).all()
