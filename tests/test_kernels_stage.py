"""One row of the stage kernel against `odediff.step` in float64, for every form that the kernel takes.

Everything lies in poisoned memory: what is not to be read is NaN, and what is not to be written must stay as it was.
"""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kernel_modules import PLACES, load
from torch import Tensor

from odediff import philox
from odediff.noise import normal
from odediff.philox import Streams
from odediff.step import advance_, guided, limited, mix

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
MARGIN = 600  # more than the elements of one program
ROWS, ROW = 7, 5
STREAMS = Streams(np.array([3, 2**40 + 7, 2**64 - 1], np.uint64), np.array([0, 5, 2**33 + 1], np.uint64))


def stream_words(place: SimpleNamespace) -> Tensor:
    """Low and high word of seed and index, (n, 4)."""
    words = [part >> np.uint64(s) & np.uint64(2**32 - 1) for part in (STREAMS.seed, STREAMS.index) for s in (0, 32)]
    return torch.from_numpy(np.stack(words, 1).astype(np.uint32).view(np.int32)).to(place.device)


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> SimpleNamespace:
    return load(request.param)


class Poisoned:
    """Flat tensors in NaN, which know where they end."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.whole: dict[str, Tensor] = {}

    def __call__(self, name: str, size: int, dtype: torch.dtype = torch.float32, value: Tensor | None = None) -> Tensor:
        self.whole[name] = torch.full((size + MARGIN,), torch.nan, dtype=dtype, device=self.device)
        if value is not None:
            self.whole[name][:size] = value
        return self.whole[name][:size]

    def check_margins(self) -> None:
        for name, whole in self.whole.items():
            assert bool(whole[-MARGIN:].isnan().all()), name


def launch(
    place: SimpleNamespace,
    x: Tensor,
    out: Tensor,
    table: Tensor,
    *,
    row: int = 0,
    ring: Tensor | None = None,
    fed: Tensor | None = None,
    streams: Tensor | None = None,
    samples: int = 1,
    channels: int = 1,
    limits: bool = False,
    guide: bool = False,
    block: int = 64,
) -> None:
    """One launch of the kernel, in place; ring: (K, count)."""
    at = torch.tensor([row], dtype=torch.int32, device=place.device)
    tensors = (x, out, ring, fed, table.to(place.device), at, streams)
    form = {"K": 1 if ring is None else len(ring), "LIMITED": limits, "GUIDED": guide, "BLOCK": block}
    sizes = (x.numel(), x.numel() // samples, channels)
    place.stage.advance_row[(-(-x.numel() // block),)](*tensors, *sizes, **form, **place.stage.OPTIONS)
    assert int(at) == row


def coefficients(K: int, generator: torch.Generator, columns: tuple[str, ...]) -> tuple[Tensor, dict[str, float]]:
    """A table of NaN but for row `ROW`, and that row by column."""
    row = torch.rand(len(columns) + K, generator=generator) * 2 - 1
    values = dict(zip([*columns, *(f"b{j}" for j in range(K))], row, strict=True))
    values |= {"low": torch.tensor(-0.4), "high": torch.tensor(0.3), "kept": torch.tensor(1.0)}
    table = torch.full((ROWS, len(values)), torch.nan)
    table[ROW] = torch.stack(list(values.values()))
    return table, {name: float(value) for name, value in values.items()}


def expected(
    v: dict[str, float], x: Tensor, out: Tensor, history: list[Tensor], z: Tensor | None, clip: bool, guide: bool
) -> tuple[Tensor, Tensor]:
    """(d, x') in float64, by the reference."""
    x, out, history = x.double(), out.double(), [d.double() for d in history]
    if guide:
        out = guided(*out.chunk(2), v["guidance"])
    if clip:
        x0 = mix(v["p0"], x, v["q0"], out).clamp_(v["low"], v["high"])
        d = limited(v["m"], x0, v["p"], x, v["q"], out)
    else:
        d = mix(v["p"], x, v["q"], out)
    b = [v[f"b{j}"] for j in range(len(history) + 1)]
    terms = [(weight, y) for weight, y in zip(b, [d, *history], strict=False) if weight]
    terms += [] if z is None else [(v["c"], z.double())]
    return d, advance_(x.clone(), v["a"], terms)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("K", [1, 2, 3, 4, 5])
def test_a_row_is_the_reference_in_every_form(place: SimpleNamespace, K: int, dtype: torch.dtype) -> None:
    """399 elements, no whole number of programs: with and without limits, guidance, noise and an input of the network.

    The interpreter cuts float32 to bfloat16 where the compiled kernel rounds to nearest (test_kernels_cubin.py).
    """
    generator = torch.Generator().manual_seed(K)
    shape, count = (3, 7, 19), 399
    cut = 2**-7 if dtype == torch.bfloat16 and place.device.type == "cpu" else 0.0
    for clip, guide, noisy, feed in itertools.product([False, True], repeat=4):
        buffer = Poisoned(place.device)
        table, v = coefficients(K, generator, place.stage.COLUMNS)
        skipped = 1 if K > 2 else 0  # a prediction of weight 0, which may be what no row has written yet
        if skipped:
            table[ROW, len(place.stage.COLUMNS) + skipped] = v[f"b{skipped}"] = 0.0
        x = torch.randn(count, generator=generator)
        out = torch.randn(count * (1 + guide), generator=generator).to(dtype)
        ring = torch.randn(K, count, generator=generator)
        past = [ring[(ROW - j) % K].clone() for j in range(1, K)]
        ring[ROW % K] = torch.nan
        if skipped:
            ring[(ROW - skipped) % K] = torch.nan
            past[skipped - 1] = torch.full((count,), torch.nan)
        z = normal(STREAMS, ROW + 1, shape[1:], device=torch.device("cpu"), dtype=torch.float32).flatten()
        at_x, at_out = buffer("x", count, value=x), buffer("out", len(out), dtype, out)
        at_ring = buffer("ring", K * count, value=ring.flatten()).view(K, count) if K > 1 else None
        at_fed = buffer("fed", len(out), dtype) if feed else None
        form = {"limits": clip, "guide": guide, "streams": stream_words(place) if noisy else None, "fed": at_fed}
        block = 512 if noisy else 256
        launch(place, at_x, at_out, table, row=ROW, ring=at_ring, samples=3, block=block, **form)

        d, new = expected(v, x, out, past, z if noisy else None, clip, guide)
        said = f"clip {clip}, guide {guide}, noise {noisy}, feed {feed}"
        near = {"rtol": 1e-6, "atol": 1e-6, "msg": lambda text, said=said: f"{said}: {text}"}
        torch.testing.assert_close(at_x.cpu().double(), new, **near)
        if at_ring is not None:
            after = at_ring.cpu()
            torch.testing.assert_close(after[ROW % K].double(), d, **near)
            ring[ROW % K] = after[ROW % K]
            torch.testing.assert_close(after, ring, rtol=0, atol=0, equal_nan=True)
        if at_fed is not None:
            fed = (at_x.cpu() * np.float32(v["c_in"])).to(dtype)  # rounded to nearest, from the state that is kept
            torch.testing.assert_close(at_fed.cpu(), fed.repeat(1 + guide), rtol=cut, atol=0)
        buffer.check_margins()


def rows(place: SimpleNamespace, *values: dict[str, float], K: int = 1) -> Tensor:
    """A table of these rows, 0 where they do not say."""
    names = [*place.stage.COLUMNS, *(f"b{j}" for j in range(K))]
    return torch.tensor([[row.get(name, 0.0) for name in names] for row in values])


@pytest.mark.parametrize("shape", [(2,), (1, 5, 7), (3, 8, 8), (3, 9, 11), (5, 3, 2, 7)], ids=str)
def test_noise_has_the_bits_of_the_reference_in_every_layout(place: SimpleNamespace, shape: tuple[int, ...]) -> None:
    """x' = z: in a channels_last tensor an element draws what it draws in a contiguous one."""
    formats = {3: torch.channels_last, 4: torch.channels_last_3d}
    want = normal(STREAMS, 1, shape, device=torch.device("cpu"), dtype=torch.float32)
    for form in (torch.contiguous_format, *filter(None, [formats.get(len(shape))])):
        x, out = (torch.ones(3, *shape, device=place.device).contiguous(memory_format=form) for _ in range(2))
        channels = 1 if form == torch.contiguous_format else shape[0]
        launch(place, x, out, rows(place, {"c": 1.0}), streams=stream_words(place), samples=3, channels=channels)
        assert x.is_contiguous(memory_format=form)
        np.testing.assert_array_equal(x.cpu().contiguous().numpy().view(np.int32), want.numpy().view(np.int32))


@pytest.mark.filterwarnings("ignore:invalid value encountered in multiply:RuntimeWarning")  # 0 inf, which is dropped
def test_limits_hold_an_infinite_output_and_pass_nan_on(place: SimpleNamespace) -> None:
    """As the reference: a float16 network that overflows is clamped, one that returned NaN is found out at the end."""
    x, out = torch.ones(4), torch.tensor([torch.inf, -torch.inf, torch.nan, 0.25])
    row = {"p0": 0.5, "q0": 2.0, "low": -1.0, "high": 3.0, "m": 1.0, "p": 0.25, "b0": 1.0}
    want = limited(1.0, mix(0.5, x, 2.0, out).clamp_(-1.0, 3.0), 0.25, x, 0.0, out)
    assert want.tolist()[:2] == [3.25, -0.75]
    new = x.clone().to(place.device)
    launch(place, new, out.to(place.device), rows(place, row), limits=True)
    torch.testing.assert_close(new.cpu(), want, rtol=0, atol=0, equal_nan=True)


def test_a_prediction_that_no_row_reads_is_not_written(place: SimpleNamespace) -> None:
    x, ring = torch.ones(70, device=place.device), torch.full((2, 70), torch.nan, device=place.device)
    table = rows(place, {"q": 3.0, "kept": 0.0}, {"q": 3.0, "kept": 1.0}, K=2)
    for row in (0, 1):
        launch(place, x, torch.ones_like(x), table, row=row, ring=ring)
    assert bool(ring[0].isnan().all()) and bool((ring[1] == 3.0).all())


@pytest.mark.parametrize("program", [0, 1, 2**22, 2**23 + 1, 2**31 - 1])
def test_elements_beyond_two_to_the_31_are_found(place: SimpleNamespace, program: int) -> None:
    out = torch.zeros(512, dtype=torch.int64, device=place.device)
    place.probes.store_elements[(1,)](torch.tensor([program], dtype=torch.int32, device=place.device), out, BLOCK=512)
    assert out.tolist() == list(range(512 * program, 512 * program + 512))


@pytest.mark.parametrize("channels", [1, 3], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("element", [0, 2**31 - 512, 2**31 + 1024, 5 * 10**9], ids=str)
def test_noise_beyond_two_to_the_31_is_the_samples_own(place: SimpleNamespace, element: int, channels: int) -> None:
    """Samples of almost 2^31 elements each: which one it is, and where in it, comes of int64."""
    size, program = 3 * (2**31 // 3 - 1000), element // 512
    flat = np.arange(512, dtype=np.int64) + 512 * program
    sample, r = flat // size, flat % size
    index = r % channels * (size // channels) + r // channels
    seeds, at = STREAMS.seed[sample].astype(object), STREAMS.index[sample].astype(object)
    words = (np.array([int(w) >> shift & 2**32 - 1 for w in of]) for of in (at, seeds) for shift in (0, 32))
    low, high, k0, k1 = words
    w = philox.philox4x32((index >> 2, np.full(512, ROW + 1), low, high), (k0, k1))
    polar = [(philox.radius(np, w[j]), philox.direction(np, w[j + 1])) for j in (0, 2)]
    lanes = np.stack([radius * side for radius, sides in polar for side in sides]).astype(np.float32)
    want = np.take_along_axis(lanes, (index & 3)[None], axis=0)[0]

    out = torch.zeros(512, device=place.device)
    one, row = (torch.tensor([k], dtype=torch.int32, device=place.device) for k in (program, ROW))
    options = {"BLOCK": 512, **place.stage.OPTIONS}
    place.probes.store_drawn[(1,)](one, stream_words(place), row, out, size, channels, **options)
    np.testing.assert_array_equal(out.cpu().numpy().view(np.int32), want.view(np.int32))


@pytest.mark.gpu
def test_a_tensor_beyond_two_to_the_31_elements_is_advanced_to_its_end(place: SimpleNamespace) -> None:
    """2.2e9 elements of state, guided halves and ring: the ends, where 32 bits would have wrapped, and the rest."""
    if place.device.type == "cpu" or torch.cuda.mem_get_info()[0] < 60e9:
        pytest.skip("needs 60 GB of a GPU")
    count = 2**31 + 3 * 512 + 5
    table = rows(place, {}, {"a": 0.5, "p": 0.25, "q": 2.0, "kept": 1.0, "guidance": 1.0, "c_in": 1.0, "b1": 1.0}, K=2)
    x, ring = torch.ones(count, device=place.device), torch.ones(2, count, device=place.device)
    out = torch.ones(2 * count, device=place.device, dtype=torch.bfloat16)
    out[count:] = 3.0
    x[-1], ring[0, -1], out[-1] = 8.0, 4.0, 16.0
    fed = torch.full_like(out, torch.nan)
    launch(place, x, out, table, row=1, ring=ring, fed=fed, guide=True, block=512)
    assert x[-1] == 8.0 and ring[1, -1] == 34.0 and fed[-1] == fed[count - 1] == 8.0
    assert bool((x[:-1] == 1.5).all()) and bool((ring[1, :-1] == 6.25).all())
    assert bool((fed[: count - 1] == 1.5).all()) and bool((fed[count:-1] == 1.5).all())


@pytest.mark.parametrize("n", [1, 128, 300])
@pytest.mark.parametrize("kind", [torch.float32, torch.int64], ids=str)
def test_the_next_row_has_its_time_and_the_last_leads_back_to_the_first(
    place: SimpleNamespace, n: int, kind: torch.dtype
) -> None:
    t = torch.tensor([999, 500, 3]).to(place.device, kind)
    row = torch.zeros(1, dtype=torch.int32, device=place.device)
    for after in (1, 2, 0, 1):
        times = torch.full((n + 5,), -7, dtype=kind, device=place.device)
        place.stage.next_row[(1,)](row, t, times, 3, n, BLOCK=128, num_warps=1)
        assert int(row) == after
        assert bool((times[:n] == t[after]).all()) and bool((times[n:] == -7).all())
