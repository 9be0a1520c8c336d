"""PNDM, PLMS and LMS against the printed formulae, over full trajectories of a random network."""

import numpy as np
import pytest
from exact import SCHEDULES, random_network, run

from odediff.methods import METHODS, plan
from odediff.schedule import Array, Schedule

X = np.random.default_rng(6).normal(size=(3, 4))
LINEAR = SCHEDULES["linear"]


def phi(schedule: Schedule, x: Array, e: Array, t: float, to: float) -> Array:
    """The transfer part of Liu et al. 2022, in abar = alpha^2 of a variance-preserving schedule."""
    now, then = float(schedule.alpha(t)) ** 2, float(schedule.alpha(to)) ** 2
    below = np.sqrt(now) * (np.sqrt((1 - then) * now) + np.sqrt((1 - now) * then))
    return np.sqrt(then / now) * x - (then - now) / below * e


def linear_multistep(ets: list[Array]) -> Array:
    """Eq. 12 and its starts, ets oldest first."""
    if len(ets) == 1:
        return ets[-1]
    if len(ets) == 2:
        return (3 * ets[-1] - ets[-2]) / 2
    if len(ets) == 3:
        return (23 * ets[-1] - 16 * ets[-2] + 5 * ets[-3]) / 12
    return (55 * ets[-1] - 59 * ets[-2] + 37 * ets[-3] - 9 * ets[-4]) / 24


def pndm(schedule: Schedule, times: Array, x: Array, *, skip_prk_steps: bool) -> tuple[Array, int]:
    """F-PNDM (Algorithm 2 with eq. 13 for three steps), or PLMS with its first step twice, and the evaluations."""
    calls, ets = 0, []

    def eps(x: Array, t: float) -> Array:
        nonlocal calls
        calls += 1
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        return (x - alpha * random_network(x, alpha, sigma)) / sigma

    for i, (t, to) in enumerate(zip(times[:-1], times[1:], strict=True)):
        e1 = eps(x, t)
        ets.append(e1)
        if skip_prk_steps and i == 0:
            again = eps(phi(schedule, x, e1, t, to), to)
            x = phi(schedule, x, (again + e1) / 2, t, to)
        elif not skip_prk_steps and i < 3:
            middle = (t + to) / 2
            e2 = eps(phi(schedule, x, e1, t, middle), middle)
            e3 = eps(phi(schedule, x, e2, t, middle), middle)
            e4 = eps(phi(schedule, x, e3, t, to), to)
            x = phi(schedule, x, (e1 + 2 * e2 + 2 * e3 + e4) / 6, t, to)
        else:
            x = phi(schedule, x, linear_multistep(ets), t, to)
    last = float(schedule.alpha(times[-1])), float(schedule.sigma(times[-1]))
    return random_network(x, *last), calls + 1


@pytest.mark.parametrize(("name", "skip"), [("pndm", False), ("plms", True)])
@pytest.mark.parametrize("kind", ["linear", "scaled_linear"])
@pytest.mark.parametrize("steps", [9, 14])
def test_published_pndm(name: str, skip: bool, kind: str, steps: int) -> None:
    schedule = SCHEDULES[kind]
    times = np.linspace(999, 20, steps) + 7 * np.sin(np.arange(steps)) * (np.arange(steps) > 0)
    want, nfe = pndm(schedule, times, X, skip_prk_steps=skip)
    got = run(plan(name, schedule, nfe, times), random_network, X)
    assert len(got) == nfe + 1 == steps + (1 if skip else 9) + 1
    np.testing.assert_allclose(got[-1], want, rtol=0, atol=1e-12 * np.abs(want).max())


def test_smallest_budgets_are_the_start_and_the_last_row() -> None:
    assert METHODS["pndm"].layout(13) == [4, 4, 4, 1]
    assert METHODS["plms"].layout(6) == [2, 1, 1, 1, 1]  # four predictions for the first full row


@pytest.mark.parametrize(("kind", "same"), [("edm", True), ("linear", False)])
def test_a_pseudo_runge_kutta_step_is_kuttas_only_where_half_in_t_is_half_in_rho(kind: str, same: bool) -> None:
    times = np.array([40.0, 25.0, 12.0, 5.0])
    p = plan("pndm", SCHEDULES[kind], 13, times)
    q = plan("rk4", SCHEDULES[kind], 13, times, space="eps")
    assert np.allclose(p.b[:12, :4], q.b[:12, :4], rtol=1e-10, atol=1e-13) == same
    half = (p.sigma[1] / p.alpha[1] - p.sigma[0] / p.alpha[0]) / (p.sigma[4] / p.alpha[4] - p.sigma[0] / p.alpha[0])
    assert (abs(half - 0.5) < 1e-12) == same


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms_integrates_lagranges_polynomials_over_sigma(order: int) -> None:
    """k-diffusion's linear_multistep_coeff, int prod_k (tau - t[i-k]) / (t[i-j] - t[i-k]) dtau, by numpy.poly1d."""
    schedule = SCHEDULES["edm"]
    rho = np.array([60.0, 31.0, 17.0, 8.0, 4.5, 1.2, 0.4])
    x, ds = X * 60, []
    for i in range(len(rho) - 1):
        ds.append((x - random_network(x, 1.0, rho[i])) / rho[i])
        count = min(i + 1, order)
        for j in range(count):
            poly = np.poly1d([1.0])
            for k in range(count):
                if k != j:
                    poly *= np.poly1d([1.0, -rho[i - k]]) / (rho[i - j] - rho[i - k])
            whole = poly.integ()
            x = x + (whole(rho[i + 1]) - whole(rho[i])) * ds[i - j]
    want = random_network(x, 1.0, rho[-1])
    p = plan("lms", schedule, 7, rho, order=order)
    got = run(p, random_network, X * 60)[-1]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * np.abs(want).max())
    adams = plan(f"ab{order}" if order > 1 else "euler", schedule, 7, rho, space="eps", variable="rho")
    np.testing.assert_allclose(p.b[:, : adams.depth], adams.b, rtol=1e-12)


@pytest.mark.parametrize("order", [0, 5, 2.5, True, "4"])
def test_lms_refuses_other_orders(order: object) -> None:
    with pytest.raises(ValueError, match=r"order = .* (must be 1, 2, 3 or 4|is no option of lms, which takes int)"):
        plan("lms", LINEAR, 9, order=order)
