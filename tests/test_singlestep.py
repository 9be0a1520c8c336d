"""DPM-Solver and DPM-Solver++, single-step, against the printed algorithms, over trajectories of a random network."""

import numpy as np
import pytest
from exact import SCHEDULES, random_network, run

from odediff.methods import METHODS, plan
from odediff.schedule import Array, Schedule

X = np.random.default_rng(6).normal(size=(3, 4))


def dpm_solver(schedule: Schedule, times: Array, orders: list[int], x: Array) -> Array:
    """Lu et al. 2022a: eq. 4.1, Algorithm 1 with r1 = 1/2 and Algorithm 2 with r1 = 1/3, r2 = 2/3, as printed."""
    al, si, la = schedule.alpha, schedule.sigma, schedule.lam

    def eps(x: Array, t: float) -> Array:
        return (x - al(t) * random_network(x, float(al(t)), float(si(t)))) / si(t)

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
    return random_network(x, float(al(times[-1])), float(si(times[-1])))


def dpm_solver_pp(schedule: Schedule, times: Array, orders: list[int], x: Array) -> Array:
    """Lu et al. 2022b, Algorithm 1 with r = 1/2, and the authors' third-order update, in their phi_1, phi_2, .."""
    al, si, la = schedule.alpha, schedule.sigma, schedule.lam

    def x0(x: Array, t: float) -> Array:
        return random_network(x, float(al(t)), float(si(t)))

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
    np.testing.assert_allclose(run(p, random_network, x)[-1], want, rtol=0, atol=1e-12 * np.abs(want).max())


@pytest.mark.parametrize("name", ["dpm_2", "dpmpp_2s", "dpm_3", "dpmpp_3s"])
@pytest.mark.parametrize("kind", ["taylor", "midpoint"])
def test_other_solver_types_in_the_authors_phis(name: str, kind: str) -> None:
    """The authors' singlestep_dpm_solver_second_update and _third_update, solver_type "taylor"; "midpoint" has
    (e^H - 1) / 2 in its middle stage where they have phi_22."""
    schedule, stages = SCHEDULES["linear"], METHODS[name].stages
    t0, t1 = 800.0, 300.0
    p = plan(name, schedule, stages + 1, [t0, t1], solver_type=kind)
    al, si, la = schedule.alpha, schedule.sigma, schedule.lam
    data = METHODS[name].frames[0][0] == "x0"
    sign, A, B = (-1, si, al) if data else (1, al, si)
    h = la(t1) - la(t0)

    def f(x: Array, t: float) -> Array:
        x0 = random_network(x, float(al(t)), float(si(t)))
        return x0 if data else (x - al(t) * x0) / si(t)

    def phi(k: int, r: float) -> float:
        H = sign * r * h
        first = np.expm1(H)
        return {1: first, 2: first / H - 1, 3: (first / H - 1) / H - 0.5}[k]

    def at(r: float) -> float:
        return float(schedule.t_of_lam(la(t0) + r * h))

    m0 = f(X, t0)
    if stages == 2:
        m1 = f(A(at(0.5)) / A(t0) * X - B(at(0.5)) * phi(1, 0.5) * m0, at(0.5))
        weight = phi(2, 1) if kind == "taylor" else phi(1, 1) / 2
        update = phi(1, 1) * m0 + weight * (m1 - m0) / 0.5
    else:
        r1, r2 = 1 / 3, 2 / 3
        m1 = f(A(at(r1)) / A(t0) * X - B(at(r1)) * phi(1, r1) * m0, at(r1))
        weight = phi(2, r2) if kind == "taylor" else phi(1, r2) / 2
        m2 = f(A(at(r2)) / A(t0) * X - B(at(r2)) * (phi(1, r2) * m0 + r2 / r1 * weight * (m1 - m0)), at(r2))
        d10, d11 = (m1 - m0) / r1, (m2 - m0) / r2
        d1, d2 = (r2 * d10 - r1 * d11) / (r2 - r1), 2 * (d11 - d10) / (r2 - r1)
        taylor = phi(1, 1) * m0 + phi(2, 1) * d1 + phi(3, 1) * d2
        update = taylor if kind == "taylor" else phi(1, 1) * m0 + phi(2, 1) * d11
    want = A(t1) / A(t0) * X - B(t1) * update
    np.testing.assert_allclose(run(p, random_network, X)[stages], want, rtol=0, atol=1e-12)


def test_unknown_solver_type() -> None:
    with pytest.raises(ValueError, match="unknown solver_type = 'heun'; choose dpmsolver, taylor, midpoint"):
        plan("dpm_2", SCHEDULES["linear"], 9, solver_type="heun")


def test_stages_lie_at_fractions_of_the_step_in_lam() -> None:
    schedule = SCHEDULES["linear"]
    for name, fractions in (("dpm_2", [0, 1 / 2, 1]), ("dpm_3", [0, 1 / 3, 2 / 3, 1])):
        p = plan(name, schedule, len(fractions), [900.0, 100.0])
        lam = schedule.lam(p.t)
        np.testing.assert_allclose((lam - lam[0]) / (lam[-1] - lam[0]), fractions, atol=1e-12)


def test_fast_is_the_published_mix() -> None:
    """K = N // 3 + 1 steps: 3 .. 3, 2, 1 where N % 3 = 0, else 3 .. 3, N % 3; here N = nfe - 1, and the last row."""
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
        return float(np.abs(run(p, random_network, X)[-2] - run(fine, random_network, X)[-2]).max())

    orders = {rest: np.log2(error(96 + 1 + rest) / error(192 + 1 + rest)) for rest in (0, 1, 2)}
    assert orders == {0: pytest.approx(2, abs=0.25), 1: pytest.approx(2, abs=0.25), 2: pytest.approx(3, abs=0.25)}
