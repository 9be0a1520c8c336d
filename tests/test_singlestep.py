"""DPM-Solver and DPM-Solver++, single-step, against the printed algorithms, over full trajectories of a random network."""

import numpy as np
import pytest
from exact import SCHEDULES, run

from odediff.methods import METHODS, plan
from odediff.schedule import Array, Schedule

WEIGHTS = np.random.default_rng(5).normal(size=(4, 4)) / 2
X = np.random.default_rng(6).normal(size=(3, 4))


def eps_net(x: Array, lam: float) -> Array:
    return np.tanh(x @ WEIGHTS + 0.3 * lam) + 0.5 * x


def denoise(x: Array, alpha: float, sigma: float) -> Array:
    return (x - sigma * eps_net(x, np.log(alpha / sigma))) / alpha


def dpm_solver(schedule: Schedule, times: Array, orders: list[int], x: Array) -> Array:
    """Lu et al. 2022a: eq. 4.1, Algorithm 1 with r1 = 1/2 and Algorithm 2 with r1 = 1/3, r2 = 2/3, as printed."""
    al, si, la = schedule.alpha, schedule.sigma, schedule.lam

    def eps(x: Array, t: float) -> Array:
        return eps_net(x, float(la(t)))

    for t0, t1, order in zip(times[:-1], times[1:], orders, strict=True):
        h = la(t1) - la(t0)
        if order == 1:
            x = al(t1) / al(t0) * x - si(t1) * (np.exp(h) - 1) * eps(x, t0)
        elif order == 2:
            s1 = schedule.t_of_lam(la(t0) + h / 2)
            u1 = al(s1) / al(t0) * x - si(s1) * (np.exp(h / 2) - 1) * eps(x, t0)
            x = al(t1) / al(t0) * x - si(t1) * (np.exp(h) - 1) * eps(u1, s1)
        else:
            r1, r2 = 1 / 3, 2 / 3
            s1, s2 = schedule.t_of_lam(la(t0) + r1 * h), schedule.t_of_lam(la(t0) + r2 * h)
            u1 = al(s1) / al(t0) * x - si(s1) * (np.exp(r1 * h) - 1) * eps(x, t0)
            d1 = eps(u1, s1) - eps(x, t0)
            u2 = al(s2) / al(t0) * x - si(s2) * (np.exp(r2 * h) - 1) * eps(x, t0)
            u2 = u2 - si(s2) * r2 / r1 * ((np.exp(r2 * h) - 1) / (r2 * h) - 1) * d1
            d2 = eps(u2, s2) - eps(x, t0)
            x_next = al(t1) / al(t0) * x - si(t1) * (np.exp(h) - 1) * eps(x, t0)
            x = x_next - si(t1) / r2 * ((np.exp(h) - 1) / h - 1) * d2
    return denoise(x, float(al(times[-1])), float(si(times[-1])))


def dpm_solver_pp(schedule: Schedule, times: Array, orders: list[int], x: Array) -> Array:
    """Lu et al. 2022b, Algorithm 1 with r = 1/2, and the authors' third-order update, in their phi_1, phi_2, .."""
    al, si, la = schedule.alpha, schedule.sigma, schedule.lam

    def x0(x: Array, t: float) -> Array:
        return denoise(x, float(al(t)), float(si(t)))

    for t0, t1, order in zip(times[:-1], times[1:], orders, strict=True):
        h = la(t1) - la(t0)
        m0 = x0(x, t0)
        if order == 1:
            x = si(t1) / si(t0) * x - al(t1) * (np.exp(-h) - 1) * m0
        elif order == 2:
            r = 1 / 2
            s = schedule.t_of_lam(la(t0) + r * h)
            u = si(s) / si(t0) * x - al(s) * (np.exp(-r * h) - 1) * m0
            big = (1 - 1 / (2 * r)) * m0 + 1 / (2 * r) * x0(u, s)
            x = si(t1) / si(t0) * x - al(t1) * (np.exp(-h) - 1) * big
        else:
            r1, r2 = 1 / 3, 2 / 3
            s1, s2 = schedule.t_of_lam(la(t0) + r1 * h), schedule.t_of_lam(la(t0) + r2 * h)
            phi_11, phi_12, phi_1 = np.expm1(-r1 * h), np.expm1(-r2 * h), np.expm1(-h)
            phi_22, phi_2 = phi_12 / (r2 * h) + 1, phi_1 / h + 1
            x1 = si(s1) / si(t0) * x - al(s1) * phi_11 * m0
            m1 = x0(x1, s1)
            x2 = si(s2) / si(t0) * x - al(s2) * phi_12 * m0 + r2 / r1 * al(s2) * phi_22 * (m1 - m0)
            m2 = x0(x2, s2)
            x = si(t1) / si(t0) * x - al(t1) * phi_1 * m0 + al(t1) * phi_2 / r2 * (m2 - m0)
    return x0(x, times[-1])


CASES = [
    ("dpm_2", 9, [2, 2, 2, 2]),
    ("dpm_2", 8, [2, 2, 2, 1]),
    ("dpm_3", 10, [3, 3, 3]),
    ("dpm_3", 9, [3, 3, 2]),
    ("dpm_3", 8, [3, 3, 1]),
    ("dpm_fast", 10, [3, 3, 2, 1]),
    ("dpm_fast", 9, [3, 3, 2]),
    ("dpm_fast", 8, [3, 3, 1]),
    ("dpmpp_2s", 9, [2, 2, 2, 2]),
    ("dpmpp_2s", 8, [2, 2, 2, 1]),
    ("dpmpp_3s", 10, [3, 3, 3]),
    ("dpmpp_3s", 9, [3, 3, 2]),
    ("dpmpp_3s", 8, [3, 3, 1]),
]


@pytest.mark.parametrize(("name", "nfe", "orders"), CASES)
@pytest.mark.parametrize("kind", ["linear", "edm", "sigmoid"])
def test_published_algorithms(name: str, nfe: int, orders: list[int], kind: str) -> None:
    schedule = SCHEDULES[kind]
    lowest = max(float(schedule.lam(schedule.t_max)), -3.0)
    times = schedule.t_of_lam(np.linspace(lowest, 2.5, len(orders) + 1) + 0.1 * np.sin(np.arange(len(orders) + 1)))
    p = plan(name, schedule, nfe, times)
    reference = dpm_solver if METHODS[name].frames[0][0] == "eps" else dpm_solver_pp
    x = X * p.prior_scale
    want = reference(schedule, times, orders, x)
    np.testing.assert_allclose(run(p, denoise, x)[-1], want, rtol=0, atol=1e-12 * np.abs(want).max())


def test_stages_lie_at_fractions_of_the_step_in_lam() -> None:
    schedule = SCHEDULES["linear"]
    for name, fractions in (("dpm_2", [0, 1 / 2, 1]), ("dpm_3", [0, 1 / 3, 2 / 3, 1])):
        p = plan(name, schedule, len(fractions), [900.0, 100.0])
        lam = schedule.lam(p.t)
        np.testing.assert_allclose((lam - lam[0]) / (lam[-1] - lam[0]), fractions, atol=1e-12)


def test_fast_is_the_published_mix() -> None:
    """K = N // 3 + 1 steps: 3 .. 3, 2, 1 where N % 3 = 0, 3 .. 3, N % 3 elsewhere; here N = nfe - 1, and the last row."""
    for nfe in range(METHODS["dpm_fast"].min_nfe, 61):
        budget = nfe - 1
        count = budget // 3 + 1
        tail = [3] * (count - 2) + [2, 1] if budget % 3 == 0 else [3] * (count - 1) + [budget % 3]
        assert METHODS["dpm_fast"].layout(nfe) == [*tail, 1]
        assert sum(METHODS["dpm_fast"].layout(nfe)) == nfe


@pytest.mark.parametrize("name", ["dpmpp_2s", "dpmpp_3s"])
@pytest.mark.parametrize("kind", ["flow", "zero_snr"])
def test_from_alpha_0_the_first_step_is_ddim_in_equal_parts_of_alpha_over_sigma(name: str, kind: str) -> None:
    schedule, stages = SCHEDULES[kind], METHODS[name].stages
    p = plan(name, schedule, 3 * stages + 1)
    q = p.alpha / p.sigma.clip(1e-300)
    np.testing.assert_allclose(q[: stages + 1] / q[stages], np.arange(stages + 1) / stages, atol=1e-12)
    np.testing.assert_allclose(p.a[:stages], p.sigma[1 : stages + 1] / p.sigma[:stages], rtol=1e-12)
    np.testing.assert_allclose(p.b[:stages, 0], p.sigma[1 : stages + 1] / stages * q[stages], rtol=1e-12)
    assert not p.b[:stages, 1:].any()


def test_observed_order_of_the_mix_depends_on_its_tail() -> None:
    """DPM-Solver-fast: a step of first order at the end costs an order, so only every third budget is of order 3."""
    schedule = SCHEDULES["flow"]

    def error(nfe: int) -> float:
        steps = len(METHODS["dpm_fast"].layout(nfe)) - 1
        p = plan("dpm_fast", schedule, nfe, schedule.t_of_lam(np.linspace(-1.5, 1.0, steps + 1)))
        fine = plan("rk4", schedule, 801, schedule.t_of_lam(np.linspace(-1.5, 1.0, 201)))
        return float(np.abs(run(p, denoise, X)[-2] - run(fine, denoise, X)[-2]).max())

    orders = {rest: np.log2(error(96 + 1 + rest) / error(192 + 1 + rest)) for rest in (0, 1, 2)}
    assert orders == {0: pytest.approx(2, abs=0.25), 1: pytest.approx(2, abs=0.25), 2: pytest.approx(3, abs=0.25)}
