"""The kernel's random words and draws, bit for bit those of `philox`: in the interpreter, and on a GPU where one is."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kernel_modules import PLACES, load
from numpy.typing import NDArray

from odediff import philox

EDGES = np.array([0, 1, 2, 2**29 - 1, 2**29, 2**30, 2**31 - 1, 2**31, 2**31 + 2**29, 2**32 - 2, 2**32 - 1], np.uint32)


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> SimpleNamespace:
    return load(request.param)


def some_words(*shape: int) -> NDArray[np.uint32]:
    """Uniform words, among them the ones at which a sign, a quadrant or an exponent changes."""
    w = np.random.default_rng(7).integers(0, 2**32, shape, dtype=np.uint32)
    w[..., : len(EDGES)] = EDGES
    return w


def on(place: SimpleNamespace, w: NDArray[np.uint32]) -> torch.Tensor:
    return torch.from_numpy(w.view(np.int32)).to(place.device)


def test_words_are_those_of_philox(place: SimpleNamespace) -> None:
    w = some_words(6, 256)
    out = torch.zeros(4, 256, dtype=torch.int32, device=place.device)
    place.probes.store_words[(1,)](on(place, w), out, BLOCK=256)
    wide = w.astype(np.int64)
    want = np.stack(philox.philox4x32(tuple(wide[:4]), tuple(wide[4:])))
    np.testing.assert_array_equal(out.cpu().numpy().view(np.uint32), want)


def test_radius_cosine_and_sine_have_the_bits_of_the_reference(place: SimpleNamespace) -> None:
    w = some_words(8192)
    out = torch.zeros(3, 8192, dtype=torch.float64, device=place.device)
    place.probes.store_polar[(1,)](on(place, w), out, BLOCK=8192, **place.stage.OPTIONS)
    wide = w.astype(np.int64)
    want = np.stack([philox.radius(np, wide), *philox.direction(np, wide)])
    np.testing.assert_array_equal(out.cpu().numpy().view(np.int64), want.view(np.int64))


def test_draws_have_the_bits_of_the_reference(place: SimpleNamespace) -> None:
    """Every seed, index, row and block at its own place in the counter; all four lanes."""
    w = np.repeat(some_words(6, 512), 4, axis=1)
    out = torch.zeros(2048, device=place.device)
    place.probes.store_normal[(1,)](on(place, w), out, BLOCK=2048, **place.stage.OPTIONS)
    wide = w.astype(np.int64)
    v = philox.philox4x32(tuple(wide[:4]), tuple(wide[4:]))
    polar = [(philox.radius(np, v[j]), philox.direction(np, v[j + 1])) for j in (0, 2)]
    lanes = np.stack([r * side for r, sides in polar for side in sides]).astype(np.float32)
    want = np.take_along_axis(lanes, np.arange(2048)[None] % 4, axis=0)[0]
    np.testing.assert_array_equal(out.cpu().numpy().view(np.int32), want.view(np.int32))
