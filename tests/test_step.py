"""The loop's rows: fewer terms than the table, the same numbers, and nothing allocated that a row does not need."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import odediff
from odediff import step
from odediff.prediction import Prediction
from odediff.step import BLOCK, advance_, mix, steps

NO_KERNEL = "odediff was installed without a C compiler"
LINEAR = odediff.schedule.linear()
PLANS = ["ddim", "heun", "rk4", "abm4", "ab2", "dpmpp_3m", "unipc_4", "ipndm", "plms", "dpmpp_2s"]


def model(net, shape=(2, 3), prediction="v"):
    return odediff.Model(net, schedule=LINEAR, prediction=prediction, shape=shape, range=None)


def wave(x, t):
    return torch.sin(3 * x + t[:, None, None] / 200)


def by_the_table(plan, net, prediction, x):
    """d = P(x, net(x, t)), x' = a x + sum b d, as the Plan says it, with every prediction kept."""
    past = []
    for i, (p, q) in enumerate(row.to_d for row in Prediction(model(net, prediction=prediction)).of_plan(plan)):
        past.insert(0, p * x + q * net(x, torch.full((len(x),), plan.t[i], dtype=torch.float64)))
        x = plan.a[i] * x + sum(b * d for b, d in zip(plan.b[i].tolist(), past, strict=False))
    return x


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "flow"])
@pytest.mark.parametrize("name", PLANS)
def test_the_loop_is_the_table(name, prediction):
    plan = odediff.plan(name, LINEAR, 16, "quadratic")
    x = torch.randn(2, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    want = by_the_table(plan, wave, prediction, x)
    got = odediff.Sampler(model(wave, prediction=prediction), plan)(x)
    np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11 * float(want.abs().max()))


def test_a_prediction_is_kept_where_a_later_row_reads_it():
    a, c = np.ones(4), np.zeros(4)
    b = np.array([[0.5, 0, 0], [0.5, 0.25, 0], [0.5, 0, 0.125], [0.5, 0, 0]])
    made = steps(a, b, c, [(2.0, 3.0)] * 4, limited=False)
    assert [one.keep for one in made] == [True, False, False, False]  # rows 1 and 2 read d[0]
    assert made[1].terms == ((1.5, None), (0.25, 1)) and made[1].a == 2.0
    assert made[2].terms == ((1.5, None), (0.125, 2))
    assert made[0].terms == ((0.5, 0),) and made[0].a == 1.0
    assert all(one.keep and one.a == 1.0 for one in steps(a, b, c, [(2.0, 3.0)] * 4, limited=True))


class Calls(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("name", ["ddim", "abm4", "unipc_3"])
def test_a_row_allocates_nothing(monkeypatch, name, kernel):
    """Twice the rows make more operators, but none that returns a new tensor, save the network's times."""
    if not kernel:
        monkeypatch.setattr(step, "_row", None)
    elif step._row is None:
        pytest.skip(NO_KERNEL)
    out, counts = torch.randn(1, 2, 3), []
    for nfe in (10, 20):
        plan = odediff.plan(name, LINEAR, nfe)
        sampler, noise = odediff.Sampler(model(lambda x, t: out), plan), torch.randn(1, 2, 3)
        with Calls() as calls:
            sampler(noise)
        counts.append(calls.seen)
    more = counts[1] - counts[0]
    times = {"full": 10, "fill_": 10, "empty": 10}
    in_place = {"mul_", "add_", "mul", "promote_types"}  # mul with out=, and no tensor at all
    assert (more["add_"] >= 10) != kernel
    assert {key: n for key, n in more.items() if key not in in_place and n > times.get(key, 0)} == {}
    assert not kernel or set(more) <= {*times, "promote_types"}
    if name == "ddim":  # the last row, onto x0, may do with less
        assert more["mul_"] + more["add_"] + more["mul"] <= 20


def test_a_network_may_give_back_its_input_or_keep_its_output():
    plan = odediff.plan("ddim", LINEAR, 6)
    noise = torch.randn(3, 2, 3)
    kept = noise.clone()
    same = odediff.Sampler(model(lambda x, t: x), plan)(noise)
    np.testing.assert_allclose(same, odediff.Sampler(model(lambda x, t: x.clone()), plan)(noise), rtol=1e-6)
    torch.testing.assert_close(noise, kept, rtol=0, atol=0)
    outs = []
    odediff.Sampler(model(lambda x, t: outs.append(wave(x, t)) or outs[-1]), odediff.plan("abm4", LINEAR, 6))(noise)
    fresh = []
    odediff.Sampler(model(lambda x, t: fresh.append(wave(x, t)) or fresh[-1].clone()), odediff.plan("abm4", LINEAR, 6))(
        noise
    )
    for one, other in zip(outs, fresh, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("size", [1, BLOCK, 2 * BLOCK + 1, 5 * BLOCK + 77])
@pytest.mark.parametrize("terms", [1, 3])
def test_blocks_change_nothing(size, terms):
    rng = torch.Generator().manual_seed(1)
    x, *ys = (torch.randn(size, generator=rng) for _ in range(terms + 1))
    want = 0.5 * x
    for k, y in enumerate(ys):
        want.add_(y, alpha=0.25 * (k + 1))
    kept = x.clone()
    torch.testing.assert_close(advance_(x, 0.5, [(0.25 * (k + 1), y) for k, y in enumerate(ys)]), want, rtol=0, atol=0)
    into = torch.full_like(kept, torch.nan)
    torch.testing.assert_close(
        mix(2.0, kept, 3.0, ys[0], into), torch.mul(ys[0], 3.0).add_(kept, alpha=2.0), rtol=0, atol=0
    )
    turned = torch.randn(4, 6, 5, BLOCK // 30).transpose(1, 3)
    torch.testing.assert_close(advance_(turned.clone(), 0.5, [(2.0, turned)]), 2.5 * turned)
