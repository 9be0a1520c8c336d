"""The C kernel of a row against eager torch: the same bits, whatever the table, the size and the network's output."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import odediff
from odediff import step
from odediff.step import BLOCK, Rows

LINEAR = odediff.schedule.linear()
PLANS = [("ddim", {}), ("ddim", {"eta": 1.0}), ("heun", {}), ("rk4", {}), ("abm4", {}), ("dpmpp_3m", {}), ("lms", {})]
FUSES = torch.backends.cpu.get_cpu_capability() != "DEFAULT"  # whether aten's products and sums are fused
pytestmark = pytest.mark.skipif(step._row is None, reason="odediff was installed without a C compiler")


def same(got, want):
    """Bit for bit where both fuse; else to a few roundings of the largest term."""
    if FUSES == (step.INSTRUCTIONS == "AVX2 and FMA"):
        torch.testing.assert_close(got, want, rtol=0, atol=0)
    else:
        few = 16 * torch.finfo(want.dtype).eps
        torch.testing.assert_close(got, want, rtol=few, atol=few * float(want.abs().max()))


@pytest.fixture
def counted(monkeypatch):
    """The rows that the kernel ran."""
    kernel, seen = step._row, []
    monkeypatch.setattr(step, "_row", lambda *args: seen.append(args[7]) or kernel(*args))
    return seen


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def random_rows(depth, rng, limited=False):
    """Rows of every kind: with and without history, noise, p, a state that is scaled, a prediction of its own."""
    rows = 2 * depth + 4
    a, c = rng.normal(size=rows), rng.normal(size=rows) * (rng.random(rows) < 0.5)
    b = rng.normal(size=(rows, depth)) * (rng.random((rows, depth)) < 0.6)
    a[rng.random(rows) < 0.3] = 1.0
    b[np.arange(depth) > np.arange(rows)[:, None]] = 0
    b[-2:, 1:] = 0  # rows 0 .. at the end are kept by nobody
    pairs = [(float(p), float(q)) for p, q in rng.normal(size=(rows, 2)) * (rng.random((rows, 2)) < [0.7, 1.0])]
    return Rows(a, b, c, pairs, limited)


def run(rows, x, outs, noises):
    """The states after every row, and the ring; slots are NaN until a row writes them."""
    x, states = x.clone(), []
    advance, ring = rows.on(x)
    for slot in ring:
        slot.fill_(torch.nan)
    for i, (out, z) in enumerate(zip(outs, noises, strict=True)):
        if rows.limited:
            ring[i % len(ring)].copy_(out * 0.5)
        advance(i, out, z if rows.steps[i].c else None)
        states.append(x.clone())
    return states, ring


def both(monkeypatch, rows, x, outs, noises):
    got = run(rows, x, outs, noises)
    with monkeypatch.context() as patched:
        patched.setattr(step, "_row", None)
        return got, run(rows, x, outs, noises)


def drawn(rows, size, dtype, seed):
    rng = torch.Generator().manual_seed(seed)
    one = lambda: torch.randn(1, size, generator=rng).to(dtype)  # noqa: E731
    return one(), [one() for _ in rows.steps], [one() for _ in rows.steps]


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_the_kernel_is_the_eager_row(monkeypatch, counted, depth, dtype, limited):
    for seed, size in enumerate([1, 3, 17, 1000, 1023, 1024, 1025, 3001]):
        rows = random_rows(depth, np.random.default_rng(100 * depth + seed), limited)
        (got, ring), (want, wanted) = both(monkeypatch, rows, *drawn(rows, size, dtype, seed))
        for one, other in zip([*got, *ring], [*want, *wanted], strict=True):
            assert one.isnan().all() if other.isnan().any() else True
            if not other.isnan().any():
                same(one, other)
        assert got[-1].isfinite().all() and counted == list(range(len(rows.steps)))
        counted.clear()


def test_each_coefficient_counts(monkeypatch):
    """A table that differs in one number draws something else, or that number is one that its row does not read."""
    rows = random_rows(3, np.random.default_rng(0))
    drawing = drawn(rows, 33, torch.float32, 0)
    (got, _), (want, _) = both(monkeypatch, rows, *drawing)
    kept, read = [one.keep for one in rows.steps], 0
    for i, j in np.ndindex(*rows._table.shape):
        if j == 0 or (j in (1, 2) and not kept[i]) or not rows._table[i, j]:
            continue
        rows._table[i, j] *= 1.01
        (changed, _), (still, _) = both(monkeypatch, rows, *drawing)
        rows._table[i, j] /= 1.01
        same(still[-1], want[-1])
        assert not torch.equal(changed[-1], got[-1]), (i, j)
        read += 1
    assert read > 30


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize(("name", "options"), PLANS)
def test_a_sampler_draws_the_same_bits_with_and_without_it(monkeypatch, counted, name, options, prediction, clip):
    model = odediff.Model(
        lambda x, t: torch.sin(3 * x + t[:, None, None, None] / 200),
        schedule=LINEAR,
        prediction=prediction,
        shape=(3, 5, 7),
    )
    sampler = odediff.Sampler(model, odediff.plan(name, LINEAR, 13, **options), clip=clip)
    seen = []
    got = sampler(n=3, seed=1, callback=lambda i, x, x0: seen.append((x, x0)))
    assert torch.equal(got, sampler(n=3, seed=1)) and counted == 2 * list(range(13))
    monkeypatch.setattr(step, "_row", None)
    eager = []
    same(got, sampler(n=3, seed=1, callback=lambda i, x, x0: eager.append((x, x0))))
    for pair, other in zip(seen, eager, strict=True):
        same(pair[0], other[0])
        same(pair[1], other[1])


OUTPUTS = {
    "itself": lambda x: x,
    "a view": lambda x: x.view(-1).view(x.shape),
    "its storage in another order": lambda x: x.view(4, 3, 6, 4).transpose(2, 3),
    "turned": lambda x: torch.sin(x).transpose(2, 3).contiguous().transpose(2, 3),
    "channels last": lambda x: torch.sin(x).contiguous(memory_format=torch.channels_last),
    "expanded": lambda x: torch.sin(x[:1]).expand_as(x),
    "with the negative bit": lambda x: torch._neg_view(torch.sin(x)),
}


@pytest.mark.parametrize("name", ["ddim", "abm4"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_what_a_network_may_return(monkeypatch, output, name):
    model = odediff.Model(lambda x, t: OUTPUTS[output](x), schedule=LINEAR, prediction="v", shape=(3, 4, 6), range=None)
    sampler = odediff.Sampler(model, odediff.plan(name, LINEAR, 6))
    got = sampler(n=4, seed=0)
    plain = odediff.Model(
        lambda x, t: OUTPUTS[output](x).resolve_neg().clone(memory_format=torch.contiguous_format) + 0.0,
        schedule=LINEAR,
        prediction="v",
        shape=(3, 4, 6),
        range=None,
    )
    monkeypatch.setattr(step, "_row", None)
    same(got, odediff.Sampler(plain, sampler.plan)(n=4, seed=0))


def test_zeros_that_have_no_memory_are_no_crash():
    model = odediff.Model(lambda x, t: torch._efficientzerotensor(x.shape), schedule=LINEAR, shape=(3,))
    with pytest.raises(RuntimeError, match="storage"):
        odediff.Sampler(model, odediff.plan("ddim", LINEAR, 2))(n=1, seed=0)


def test_memory_that_overlaps_the_state_in_part_is_copied_first():
    """out[k] is x[k + 1]: a kernel that wrote x where it still has to read would see the new one."""
    rows = Rows(np.array([0.5]), np.array([[1.0]]), np.zeros(1), [(0.0, 2.0)], False)
    memory = torch.arange(9.0)
    x, out = memory[:8].view(1, 8), memory[1:].view(1, 8)
    want = 0.5 * x + 2.0 * out
    rows.on(x)[0](0, out, None)
    torch.testing.assert_close(x, want, rtol=0, atol=0)


STRAY = {
    "of float16": (lambda y: y.half(), lambda z: z),
    "of float64": (lambda y: y.double(), lambda z: z),
    "one number": (lambda y: y[:, :1].clone(), lambda z: z),
    "strided": (lambda y: y.repeat_interleave(2, 1)[:, ::2], lambda z: z),
    "strided noise": (lambda y: y, lambda z: z.repeat_interleave(2, 1)[:, ::2]),
}


@pytest.mark.parametrize("stray", STRAY)
def test_tensors_that_the_kernel_does_not_read_go_to_aten(monkeypatch, counted, stray):
    rows = random_rows(1 if stray == "one number" else 2, np.random.default_rng(5))  # aten keeps no d of another shape
    x, outs, noises = drawn(rows, 33, torch.float32, 0)
    outs, noises = [STRAY[stray][0](y) for y in outs], [STRAY[stray][1](z) for z in noises]
    (got, _), (want, _) = both(monkeypatch, rows, x, outs, noises)
    assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True))
    noisy = {i for i, one in enumerate(rows.steps) if one.c}
    assert set(counted) == (set(range(len(rows.steps))) - noisy if stray == "strided noise" else set())


def test_the_table_lies_on_the_host_whatever_torchs_default_device(monkeypatch):
    with torch.device("meta"):
        rows = random_rows(2, np.random.default_rng(6))
    (got, _), (want, _) = both(monkeypatch, rows, *drawn(rows, 9, torch.float32, 0))
    same(got[-1], want[-1])


def test_what_has_weight_0_is_not_read():
    """An infinite state, whose share in d is 0, leaves d finite."""
    rows = Rows(np.ones(2), np.array([[1.0, 0.0], [0.5, 0.25]]), np.zeros(2), [(0.0, 2.0)] * 2, False)
    x, out = torch.full((1, 5), torch.inf), torch.ones(1, 5)
    advance, ring = rows.on(x)
    advance(0, out, None)
    assert torch.equal(ring[0], 2 * out) and torch.isinf(x).all()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_noise_of_any_layout_starts_the_same_samples(counted, memory_format):
    model = odediff.Model(lambda x, t: torch.sin(x).contiguous(), schedule=LINEAR, shape=(3, 4, 6))
    sampler = odediff.Sampler(model, odediff.plan("ab3", LINEAR, 6))
    noise = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    got = sampler(noise.contiguous(memory_format=memory_format))
    torch.testing.assert_close(got, sampler(noise), rtol=0, atol=1e-6)
    assert len(counted) == (12 if memory_format == torch.contiguous_format else 6)


def test_large_states_go_to_atens_threads_if_there_are_any_with_the_same_bits(counted, threads):
    rows, used = Rows(np.array([0.9]), np.array([[0.3]]), np.zeros(1), [(0.2, 2.0)], False), {}
    for size in (2 * BLOCK, 2 * BLOCK + 1, 3 * BLOCK + 5):
        x, (out,), _ = drawn(rows, size, torch.float32, 0)
        states = []
        for count in (1, 2):
            threads(count)
            states.append(run(rows, x, [out], [None])[0][0])
            used[size, count] = len(counted)
            counted.clear()
        same(*states)
    assert used == {(size, n): int(n == 1 or size == 2 * BLOCK) for size, n in used}


def test_wrong_arguments_of_the_kernel_are_errors():
    with pytest.raises(TypeError, match="10 arguments, got 2"):
        step._row(1, 2)
    with pytest.raises(ValueError, match="4 or 8 bytes a number, not 2"):
        step._row(0, 0, 0, 0, 0, 0, 1, 0, 1, 2)
    with pytest.raises(OverflowError):
        step._row(0, 0, 0, 0, 0, -1, 1, 0, 1, 4)
    with pytest.raises(TypeError):
        step._row(0, 0, 0, 0, 0, 1.5, 1, 0, 1, 4)


def test_a_row_that_the_table_does_not_have_is_an_error():
    rows = Rows(np.array([0.5, 0.5]), np.ones((2, 1)), np.zeros(2), [(0.0, 2.0)] * 2, False)
    x, out = torch.ones(1, 4), torch.ones(1, 4)
    advance, _ = rows.on(x)
    for i in (2, 3, 2**40):
        with pytest.raises(IndexError, match=f"i = {i}, but the table has 2 rows"):
            advance(i, out, None)
    with pytest.raises(OverflowError):
        advance(-1, out, None)
    assert torch.equal(x, torch.ones(1, 4))  # and nothing was written


@pytest.mark.parametrize("layout", ["", "LAYOUT = 0", "LAYOUT = 99"])
def test_a_kernel_built_for_another_table_is_refused(layout):
    """Of a checkout that was updated and not built anew: it would read another table, and beyond its end."""
    stale = f"import sys, types; m = types.ModuleType('odediff._row'); m.__file__ = 'old.so'; exec({layout!r}, vars(m))"
    code = f"{stale}; m.INSTRUCTIONS, m.row = '', None; sys.modules[m.__name__] = m; import odediff.step"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "ImportError: old.so was built from another version" in done.stderr
