"""Analysis against mathematics written out here: full covariances, direct iteration, hand-computed rows."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from exact import run
from PIL import Image

import odediff
from odediff import analysis
from odediff import schedule as schedules
from odediff.analysis import Problem, flow_map, gaussian, gaussian_flow, mixture, observed_order, stability
from odediff.methods import PrecisionWarning
from odediff.plans import Plan
from odediff.spaces import space_pair

LINEAR, FLOW = schedules.linear(), schedules.flow()
HASHED = schedules.from_betas(np.linspace(1e-4, 0.02, 1000))
CENTRES = np.array([[1.0, 0.5], [-0.8, 0.3], [0.1, -1.2]])


def noisy_with_history() -> Plan:
    """A stochastic plan that reads two predictions, conserving by construction."""
    base = odediff.plan("euler", LINEAR, 6)
    alpha, sigma = base.alpha, base.sigma
    a, c = 0.5 * sigma[1:] / sigma[:-1], 0.75**0.5 * sigma[1:]
    b1 = np.array([0, -0.2, 0.1, -0.3, 0.2, -0.1])
    return Plan("x0", base.t, alpha, sigma, a, np.stack([alpha[1:] - a * alpha[:-1] - b1, b1], 1), c)


def full_moments(plan: Plan, mean: np.ndarray, cov: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the output with D x D matrices: maps of x_T, of each z and of 1, one after the other."""
    eye, dim = np.eye(len(mean)), len(mean)
    maps = [plan.prior_scale * eye, *(np.zeros((dim, dim)) for _ in range(plan.nfe))]
    shift, history = np.zeros(dim), []
    u, w = space_pair(plan.space, plan.alpha[:-1], plan.sigma[:-1])
    for i in range(plan.nfe):
        al, si = plan.alpha[i], plan.sigma[i]
        gain = al * cov @ np.linalg.inv(al**2 * cov + si**2 * eye)
        of_x = u[i] * gain + w[i] * (eye - al * gain) / si
        constant = (u[i] - w[i] * al / si) * (eye - al * gain) @ mean
        history.insert(0, ([of_x @ m for m in maps], of_x @ shift + constant))
        maps, shift = [plan.a[i] * m for m in maps], plan.a[i] * shift
        for b, (d_maps, d_shift) in zip(plan.b[i], history, strict=False):
            maps, shift = [m + b * d for m, d in zip(maps, d_maps, strict=True)], shift + b * d_shift
        maps[1 + i] = maps[1 + i] + plan.c[i] * eye
    return shift, sum(m @ m.T for m in maps)


def random_gaussian(dim: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    root = rng.standard_normal((dim, dim))
    return rng.standard_normal(dim), root @ root.T / dim


PLANS = {
    "rk4": odediff.plan("rk4", LINEAR, 6),
    "unipc_3": odediff.plan("unipc_3", LINEAR, 6),
    "euler in v": odediff.plan("euler", LINEAR, 4, space="v"),
    "ab3 on flow": odediff.plan("ab3", FLOW, 5),
    "ddpm": odediff.plan("ddpm", LINEAR, 6, variance="fixed_large"),
    "noise and history": noisy_with_history(),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_wasserstein_is_gelbrichs_formula_on_full_covariances(plan: Plan) -> None:
    mean, cov = random_gaussian()
    m, c = full_moments(plan, mean, cov)
    root = scipy.linalg.sqrtm(cov)
    square = ((m - mean) ** 2).sum() + np.trace(c + cov - 2 * np.real(scipy.linalg.sqrtm(root @ c @ root)))
    assert square > 1e-3
    assert analysis.wasserstein_gaussian(plan, mean, cov) == pytest.approx(square**0.5, rel=1e-8)


def test_wasserstein_of_one_euler_row() -> None:
    """From (alpha, sigma) = (0.2, 0.8): x0_hat = m + g (x - 0.2 m), x of variance 0.68."""
    plan, m, v = odediff.plan("euler", schedules.flow(t_max=0.8), 1), 0.7, 0.3
    g = 0.2 * v / (0.04 * v + 0.64)
    want = np.hypot(0.2 * g * m, v**0.5 - g * 0.68**0.5)
    assert analysis.wasserstein_gaussian(plan, m, v) == pytest.approx(want, rel=1e-12)
    assert analysis.wasserstein_gaussian(plan, [m, m], v) == pytest.approx(2**0.5 * want, rel=1e-12)
    assert analysis.wasserstein_gaussian(plan, m, [v, v, v]) == pytest.approx(3**0.5 * want, rel=1e-12)
    assert analysis.wasserstein_gaussian(plan, m, v * np.eye(2)) == pytest.approx(2**0.5 * want, rel=1e-12)


def test_wasserstein_vanishes_as_a_plan_converges() -> None:
    mean, cov = random_gaussian(3)
    near = schedules.flow(t_min=1e-6)
    far, close = (analysis.wasserstein_gaussian(odediff.plan("rk4", near, n), mean, cov) for n in (9, 401))
    assert close < 1e-8 < 1e-3 < far
    point = analysis.wasserstein_gaussian(odediff.plan("rk4", LINEAR, 9), mean, np.zeros((3, 3)))
    assert point == pytest.approx(0.0, abs=1e-12)


def test_wasserstein_of_a_plan_that_stops_on_the_way_is_to_the_diffused_data() -> None:
    whole = odediff.plan("ab4", FLOW, 200)
    k = 120
    part = Plan("flow", whole.t[:k], whole.alpha[: k + 1], whole.sigma[: k + 1], whole.a[:k], whole.b[:k], whole.c[:k])
    assert analysis.wasserstein_gaussian(part, 0.4, 0.3) < 1e-4


def test_moments_of_directions_are_those_of_each_alone() -> None:
    plan, mean, variance = PLANS["noise and history"], np.array([0.3, -1.0]), np.array([0.2, 2.0])
    together = analysis.gaussian_moments(plan, mean, variance)
    for k in range(2):
        alone = analysis.gaussian_moments(plan, mean[k], variance[k])
        for got, want in zip(together, alone, strict=True):
            assert got.shape == (7, 2)
            assert want.shape == (7,)
            np.testing.assert_allclose(got[:, k], want, rtol=1e-14)


@pytest.mark.parametrize(
    ("mean", "cov", "message"),
    [
        (0.0, [[1.0, 0.5], [0.4, 1.0]], "not symmetric"),
        (0.0, [[1.0, 2.0], [2.0, 1.0]], "negative eigenvalue -1"),
        (0.0, -1.0, "negative eigenvalue -1"),
        ([0.0, 0.0, 0.0], np.eye(2), r"mean has shape \(3,\), cov \(2, 2\)"),
        (0.0, np.ones((2, 3)), r"cov \(2, 3\)"),
        (np.nan, 1.0, "must be finite"),
        (0.0, [np.inf, 1.0], "must be finite"),
    ],
)
def test_bad_gaussians_are_refused(mean: object, cov: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        analysis.wasserstein_gaussian(PLANS["rk4"], mean, cov)
    with pytest.raises(ValueError, match=r"mean has shape \(2,\), variance \(3,\)"):
        analysis.gaussian_moments(PLANS["rk4"], [0.0, 1.0], [1.0, 1.0, 1.0])


def test_amplification_of_rows_computed_by_hand() -> None:
    """r = (5, 13, 10, 1); in v space q = r, in eps space q = 1."""
    alpha, sigma = np.array([3.0, 5.0, 8.0, 1.0]), np.array([4.0, 12.0, 6.0, 0.0])
    # v = alpha eps - sigma x0: row 2 is DDIM's, a = cos, b = -sin over squares
    a = np.array([63 / 25, (8 * 5 + 6 * 12) / 169, 8 / 100])
    b0 = np.array([-(5 * 4 - 12 * 3) / 25, -(8 * 12 - 6 * 5) / 169, -6 / 100])
    plan = Plan("v", np.array([3.0, 2.0, 1.0]), alpha, sigma, a, b0[:, None], np.zeros(3))
    want = [(63 / 25 * 5 + 16 / 25 * 5) / 13, (112 / 169 * 13 + 66 / 169 * 13) / 10, 0.8 + 0.6]
    np.testing.assert_allclose(analysis.amplification(plan), want, rtol=1e-14)
    # row 1 reading row 0's v, of size 5, with weight 1
    b = np.stack([np.array([b0[0], -129 / 169, b0[2]]), [0.0, 1.0, 0.0]], 1)
    plan = Plan("v", plan.t, alpha, sigma, np.array([a[0], 96 / 169, a[2]]), b, np.zeros(3))
    assert analysis.amplification(plan)[1] == pytest.approx((96 / 13 + 129 / 13 + 5) / 10, rel=1e-14)
    # x0 space with history and noise: alpha' = 0.5 alpha + b0 + b1, sigma'^2 = (0.5 sigma)^2 + c^2
    a, c = np.array([0.5, 0.5, 0.0]), np.array([140**0.5, 0.0, 0.0])
    b = np.array([[3.5, 0.0], [9.5, -4.0], [3.0, -2.0]])
    plan = Plan("x0", np.array([3.0, 2.0, 1.0]), alpha, sigma, a, b, c)
    want = [(2.5 + 3.5 + 140**0.5) / 13, (6.5 + 13.5) / 10, 5.0]
    np.testing.assert_allclose(analysis.amplification(plan), want, rtol=1e-14)


SCALES = (0.05, 0.5, 4.0)


def output(plan: Plan, s: float, at: int, kick: float) -> float:
    """The last state when the network is exact for N(0, s^2) and state `at` gets `kick` more."""
    u, w = space_pair(plan.space, plan.alpha[:-1], plan.sigma[:-1])
    x, d = plan.prior_scale, []
    for i in range(plan.nfe):
        x += kick if i == at else 0.0
        x0 = plan.alpha[i] * s**2 * x / (plan.alpha[i] ** 2 * s**2 + plan.sigma[i] ** 2)
        d.insert(0, u[i] * x0 + w[i] * (x - plan.alpha[i] * x0) / plan.sigma[i])
        x = plan.a[i] * x + sum(b * past for b, past in zip(plan.b[i], d, strict=False))
    return x


@pytest.mark.parametrize("name", ["euler", "rk4", "unipc_3", "ipndm", "ab4"])
def test_stability_is_direct_iteration(name: str) -> None:
    plan = odediff.plan(name, LINEAR, 7, "karras")
    found = stability(plan, SCALES)
    for m, s in enumerate(SCALES):
        size = np.hypot(plan.alpha * s, plan.sigma)
        states = np.array(run(plan, gaussian(0.0, s), np.array([plan.prior_scale])))[:, 0]
        np.testing.assert_allclose(found.state[m], states / size * size[0] / plan.prior_scale, rtol=1e-9)
        for k in range(7):
            slope = (output(plan, s, k, 1.0) - output(plan, s, k, 0.0)) * size[k] / size[-1]
            assert found.growth[m, k] == pytest.approx(abs(slope), rel=1e-7)


def test_stability_of_one_step_rows_is_the_ratio_of_states() -> None:
    found = stability(odediff.plan("euler", LINEAR, 9), SCALES)
    np.testing.assert_allclose(found.factor, found.state[:, 1:] / found.state[:, :-1], rtol=1e-12)
    np.testing.assert_allclose(found.radius, np.abs(found.factor), rtol=1e-12)


def test_the_spectral_radius_is_that_of_the_recurrence() -> None:
    """Two-step rows y'' = g0 y' + g1 y in units of the flow: the largest root of z^2 - g0 z - g1."""
    plan, s = odediff.plan("dpmpp_2m", LINEAR, 8), 0.3
    size = np.hypot(plan.alpha * s, plan.sigma)
    x0 = plan.alpha[:-1] * s**2 / size[:-1] ** 2
    found = stability(plan, [s])
    for i in range(1, 8):
        g0 = (plan.a[i] + plan.b[i, 0] * x0[i]) * size[i] / size[i + 1]
        g1 = plan.b[i, 1] * x0[i - 1] * size[i - 1] / size[i + 1]
        assert found.radius[0, i] == pytest.approx(np.abs(np.roots([1, -g0, -g1])).max(), rel=1e-9)
        assert found.factor[0, i] == pytest.approx(g0 + g1, rel=1e-9)


def test_a_converged_plan_is_the_flow_at_every_scale() -> None:
    """At the ends of rk4's steps; its stages are of lower order."""
    found = stability(odediff.plan("rk4", schedules.flow(t_min=1e-5, t_max=0.99), 801), (0.1, 1.0, 10.0))
    np.testing.assert_allclose(found.state[:, ::4], 1.0, atol=1e-6)
    np.testing.assert_allclose(found.growth[:, ::4], 1.0, atol=1e-6)


def test_data_without_spread_are_the_mean_whatever_came_before() -> None:
    found = stability(odediff.plan("heun", LINEAR, 9), [0.0])
    assert found.growth.max() == 0
    assert found.state[0, -1] == 0
    assert np.isfinite(found.state).all()


def test_stability_prints_a_row_for_each_row_and_names_the_worst_scale() -> None:
    plan = odediff.plan("ipndm", LINEAR, 8, "karras")
    found = stability(plan)
    lines = str(found).splitlines()
    assert len(lines) == 2 + 8
    cells = [float(cell) for cell in lines[3].split()]
    m = found.growth[:, 1].argmax()
    want = (1, plan.t[1], found.factor[:, 1].min(), found.factor[:, 1].max(), found.radius[:, 1].max())
    np.testing.assert_allclose(cells, [*want, found.growth[m, 1], found.scales[m]], rtol=1e-5)


@pytest.mark.parametrize("scales", [(), -1.0, [0.1, -0.1], [np.nan], [np.inf]])
def test_bad_scales_are_refused(scales: object) -> None:
    with pytest.raises(ValueError, match="must be standard deviations"):
        stability(PLANS["rk4"], scales)


def test_a_plan_that_blows_up_is_warned_of_and_the_usual_ones_are_not() -> None:
    for name, method in odediff.METHODS.items():
        warned = analysis.warnings(odediff.plan(name, LINEAR, max(method.min_nfe, 15)))
        assert bool(warned) == (name == "pndm"), name  # of 15 evaluations 12 are three long Runge-Kutta steps
    whole, unstable = analysis.warnings(odediff.plan("ipndm", LINEAR, 8, "karras"))
    assert whole.startswith("rounding grows")
    assert unstable.startswith("unstable: on Gaussian data of std 0.01 an error in row 1 grows 2.62e+03 times")
    with pytest.warns(PrecisionWarning, match=r"ipndm, row 0 at t = 999 .* keeps 10 of its 24 bits"):
        rounding, whole = analysis.warnings(odediff.plan("ipndm", schedules.cosine(), 6))
    assert whole.startswith("rounding grows")
    assert rounding.startswith("1 of 6 rows amplify rounding more than 100 times, row 0 1.86e+04 times")
    assert "keeps 2.7 digits" in rounding


def test_mixtures_denoiser_is_tweedies_formula() -> None:
    """E[x0 | x] = (x + sigma^2 grad log p(x)) / alpha, the density differentiated numerically."""
    alpha, sigma, std, h = 0.8, 0.5, 0.3, 1e-5
    x = np.array([[0.4, 0.2], [-0.7, 0.9]])

    def log_density(x: np.ndarray) -> np.ndarray:
        v = alpha**2 * std**2 + sigma**2
        return np.log(sum(np.exp(-((x - alpha * c) ** 2).sum(1) / (2 * v)) for c in CENTRES))

    score = np.stack([(log_density(x + h * e) - log_density(x - h * e)) / (2 * h) for e in np.eye(2)], 1)
    want = (x + sigma**2 * score) / alpha
    np.testing.assert_allclose(mixture(CENTRES, std)(x, alpha, sigma), want, rtol=1e-8)
    one = gaussian(CENTRES[1], std)(x, alpha, sigma)
    np.testing.assert_allclose(mixture(CENTRES[1:2], std)(x, alpha, sigma), one, rtol=1e-12)


def test_the_flow_map_is_the_closed_form_and_tells_its_error() -> None:
    x, start, end = np.array([[-1.5, 0.3, 2.0]]), (0.1, 0.99), (0.9, 0.05)
    want = gaussian_flow(x, start, end, 0.4, 0.6)
    got, gap = flow_map(gaussian(0.4, 0.6), x, start, end)
    np.testing.assert_allclose(got, want, rtol=1e-11)
    coarse, wide = flow_map(gaussian(0.4, 0.6), x, start, end, 10)
    assert gap < 1e-9 < np.abs(coarse - want).max() < wide
    errors = [np.abs(flow_map(gaussian(0.4, 0.6), x, start, end, n)[0] - want).max() for n in (40, 80)]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(5, abs=0.15)  # order 4, extrapolated
    with pytest.raises(ValueError, match="steps = 7"):
        flow_map(gaussian(0.4, 0.6), x, start, end, 7)


@pytest.mark.parametrize("name", ["rk4", "unipc_3", "ab3 on flow", "euler in v"])
def test_trajectories_are_those_of_the_definition(name: str) -> None:
    plan, denoise = PLANS[name], mixture(CENTRES, 0.3)
    x = np.random.default_rng(0).standard_normal((4, 2))
    got = list(analysis.trajectory(plan, denoise, x))
    np.testing.assert_allclose(got, run(plan, denoise, x), rtol=1e-12, atol=1e-13)
    with pytest.raises(ValueError, match="ddpm is stochastic"):
        next(analysis.trajectory(PLANS["ddpm"], denoise, x))
    with pytest.raises(ValueError, match=r"denoise returned shape \(4,\)"):
        list(analysis.trajectory(plan, lambda x, *_: x[:, 0], x))


@pytest.mark.parametrize("name", ["euler", "ddim", "heun", "rk4", "rk4_38", "ab2"])
def test_the_observed_order_is_the_declared_one(name: str) -> None:
    found = observed_order(name).order
    assert set(found) == {"gaussian", "mixture"}
    assert found["gaussian"] == pytest.approx(odediff.METHODS[name].order, abs=0.25)
    assert found["mixture"] == pytest.approx(odediff.METHODS[name].order, abs=0.25)


@pytest.mark.parametrize("name", ["ab3", "ab4", "dpmpp_2m", "dpmpp_3m", "unipc_2", "unipc_3", "ipndm", "rk3"])
def test_once_warmed_up_the_observed_order_is_the_declared_one(name: str) -> None:
    found = observed_order(name, warm_up=True).order
    assert found["gaussian"] == pytest.approx(odediff.METHODS[name].order, abs=0.25)
    assert found["mixture"] == pytest.approx(odediff.METHODS[name].order, abs=0.25)


def test_the_start_up_rows_of_a_multistep_method_limit_its_order_to_2() -> None:
    assert observed_order("ab4").order["mixture"] == pytest.approx(2, abs=0.25)


def test_stochastic_methods_have_a_weak_order() -> None:
    assert observed_order("ddpm").order["gaussian"] == pytest.approx(1, abs=0.25)
    eta = observed_order("ddim", eta=0.5)
    assert set(eta.errors) == {"gaussian"}
    assert eta.order["gaussian"] == pytest.approx(1, abs=0.25)
    plan = odediff.plan("ddpm", LINEAR, 21)
    means, variances = analysis.gaussian_moments(plan, 0.4, np.array([0.09, 0.81]))
    al, si = plan.alpha[-2], plan.sigma[-2]
    gap = (means[-2] - al * 0.4) ** 2 + (np.sqrt(variances[-2]) - np.sqrt(al**2 * np.array([0.09, 0.81]) + si**2)) ** 2
    assert observed_order("ddpm", LINEAR, (9, 21)).errors["gaussian"][1] == pytest.approx(gap.sum() ** 0.5, rel=1e-9)


def test_errors_and_slopes_are_what_they_say() -> None:
    found = observed_order("heun", LINEAR, (11, 21))
    plan = odediff.plan("heun", LINEAR, 21)
    x = plan.prior_scale * np.array([[-1.5, 0.4], [0.9, 1.3], [0.2, -0.6]])
    got = run(plan, gaussian(0.4, np.array([0.3, 0.9])), x)[-2]
    ends = [(plan.alpha[i], plan.sigma[i]) for i in (0, -2)]
    gap = got - gaussian_flow(x, *ends, 0.4, np.array([0.3, 0.9]))
    assert found.errors["gaussian"][1] == pytest.approx((gap**2).mean() ** 0.5, rel=1e-9)
    assert (found.nfes, found.counted) == ((11, 21), (10, 20))
    e = found.errors["mixture"]
    assert found.slopes["mixture"] == pytest.approx([np.log2(e[0] / e[1])])
    head, titles, first, second = str(found).splitlines()
    assert (
        head == f"heun: observed order {found.order['gaussian']:.2f} (gaussian), {found.order['mixture']:.2f} (mixture)"
    )
    assert titles.split() == ["nfe", "gaussian", "slope", "mixture", "slope"]
    assert first.split() == ["11", f"{found.errors['gaussian'][0]:.3e}", f"{e[0]:.3e}"]
    assert second.split()[-1] == f"{found.slopes['mixture'][0]:.2f}"


def test_the_order_of_a_users_own_family_of_plans() -> None:
    def mine(nfe: int) -> Plan:
        return odediff.plan("midpoint", LINEAR, nfe, "logsnr")

    found = observed_order(mine, nfes=(31, 61, 121))
    assert found.method == "mine"
    assert found.order["mixture"] == pytest.approx(2, abs=0.25)


def test_an_error_that_is_rounding_has_no_slope() -> None:
    errors = {"gaussian": np.array([1e-4, 1e-8, 1e-15])}
    found = analysis.ObservedOrder("x", (11, 21, 41), (10, 20, 40), errors)
    assert np.isnan(found.slopes["gaussian"][1])
    assert found.order["gaussian"] == pytest.approx(4 * np.log2(10))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ab3", {"space": "eps", "variable": "lam", "grid": "logsnr"}),
        ("ddim", {"eta": 0.5, "snap": True}),
        ("unipc_2", {"b": "bh1", "orders": "falling"}),
    ],
)
def test_a_plan_has_the_order_of_its_method_with_its_options(name: str, options: dict[str, Any]) -> None:
    want = observed_order(name, LINEAR, (9, 17), **options)
    found = observed_order(odediff.plan(name, LINEAR, 6, **options), nfes=(9, 17))
    plain = observed_order(name, LINEAR, (9, 17))
    elsewhere = observed_order(odediff.plan(name, LINEAR, 6, **options), FLOW, (9, 17)) if name == "unipc_2" else None
    for key, errors in want.errors.items():
        np.testing.assert_array_equal(found.errors[key], errors)
        if key in plain.errors:
            assert (plain.errors[key] != errors).any()
        assert elsewhere is None or (elsewhere.errors[key] != errors).any()


@pytest.mark.parametrize(
    "call",
    [
        analysis.amplification,
        analysis.rounding,
        analysis.stability,
        analysis.warnings,
        lambda plan: analysis.draw(plan, "x.png"),
        lambda plan: analysis.gaussian_moments(plan, 0.0, 1.0),
        lambda plan: analysis.wasserstein_gaussian(plan, 0.0, 1.0),
    ],
)
def test_what_is_no_plan_is_refused_by_name(call: Callable[[Any], object]) -> None:
    with pytest.raises(ValueError, match="expected a Plan, got 'rk4'; odediff.plan.name, schedule, nfe. makes one"):
        call("rk4")


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("rk5",), {}, "unknown solver 'rk5'; did you mean rk4 or rk3. choose euler.*or pass a callable"),
        ((3,), {}, "a solver is a name of METHODS or a callable"),
        (("rk4",), {"nfes": (9,)}, "at least 2 increasing whole numbers"),
        (("rk4",), {"nfes": (20, 10)}, "at least 2 increasing whole numbers"),
        (("rk4",), {"nfes": (10.5, 20)}, "at least 2 increasing whole numbers"),
        (("rk4",), {"nfes": 9}, "at least 2 increasing whole numbers"),
        (("rk4",), {"nfes": (4, 8)}, "rk4 cannot meet nfe=4: the smallest budget here is 5"),
        (("euler",), {"nfes": (2, 8)}, "the smallest budget here is 3"),
        (("rk4",), {"warm_up": True, "grid": "karras"}, "takes a method's name and no grid"),
        (("ddpm",), {"warm_up": True}, "ddpm is stochastic"),
        ((lambda nfe: odediff.plan("rk4", LINEAR, 9),), {}, r"<lambda>\(25\) returned 9 rows; expected a Plan of 25"),
        ((lambda nfe: None,), {"grid": "karras"}, "takes no 'grid'"),
        ((odediff.plan("ab2", LINEAR, 3, [900, 500, 90]),), {}, "cannot be compiled for other budgets: .*its own"),
        ((replace(odediff.plan("ab2", LINEAR, 3), method="mine"),), {}, "cannot be compiled for other budgets"),
        ((odediff.plan("ab2", LINEAR, 3),), {"space": "eps"}, "a Plan brings its options: leave 'space' out"),
        ((odediff.plan("ab2", HASHED, 3),), {}, "by a hash alone: pass schedule="),
        ((odediff.plan("ab2", LINEAR, 3),), {"warm_up": True}, "takes a method's name and no grid"),
    ],
)
def test_what_has_no_order_is_refused(arguments: tuple, options: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=message):
        observed_order(*arguments, **options)


MIXTURE = Problem(mixture(CENTRES, 0.3), LINEAR, (2,))


def torch_mixture(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The mixture's exact x0 prediction as a network on samples of shape (2, 1, 1)."""
    alpha, sigma = float(LINEAR.alpha(float(t[0]))), float(LINEAR.sigma(float(t[0])))
    return torch.from_numpy(MIXTURE.denoise(x.flatten(1).double().numpy(), alpha, sigma)).to(x).reshape(x.shape)


def test_work_precision_on_gaussian_data_is_the_closed_form() -> None:
    """The reference is the flow to t_min and the denoiser there; errors per sample from the plan's own definition."""
    mean, std = 0.4, 0.5
    found = analysis.work_precision(Problem(gaussian(mean, std), LINEAR, (3,)), ["heun"], (9, 20), n=7, seed=5)
    start, end = ((float(LINEAR.alpha(t)), float(LINEAR.sigma(t))) for t in (999.0, 0.0))
    noise = np.random.default_rng(5).standard_normal((7, 3))
    truth = gaussian(mean, std)(gaussian_flow(np.hypot(*start) * noise, start, end, mean, std), *end)
    plan = odediff.plan("heun", LINEAR, 20)
    error = np.sqrt(((run(plan, gaussian(mean, std), plan.prior_scale * noise)[-1] - truth) ** 2).mean(1))
    assert found.median[0, 1] == pytest.approx(np.median(error), rel=1e-7)
    assert found.rmse[0, 1] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-7)
    assert found.p95[0, 1] == pytest.approx(np.percentile(error, 95), rel=1e-7)
    assert found.reference_error < 1e-10


def test_work_precision_of_a_model_is_that_of_its_problem() -> None:
    exact = analysis.work_precision(MIXTURE, ["ab3", "rk4"], (6, 12), n=5, seed=2)
    model = odediff.Model(torch_mixture, schedule=LINEAR, prediction="x0", shape=(2, 1, 1), range=(-0.1, 0.1))
    network = analysis.work_precision(model, ["ab3", "rk4"], (6, 12), n=5, seed=2, batch=2, reference_nfe=201)
    assert network.reference_error < 1e-2 * exact.median.min()
    np.testing.assert_allclose(network.median, exact.median, rtol=1e-2)
    np.testing.assert_allclose(network.p95, exact.p95, rtol=1e-2)
    clipping = odediff.Model(
        torch_mixture, schedule=LINEAR, prediction="x0", shape=(2, 1, 1), range=(-0.1, 0.1), clip=True
    )
    clipped = analysis.work_precision(clipping, ["ab3", "rk4"], (6, 12), n=5, seed=2, reference_nfe=101)
    assert not np.allclose(clipped.median, exact.median, rtol=0.1)


def test_work_precision_of_a_network_that_knows_whole_times_only() -> None:
    times: set[float] = set()

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert t.dtype == torch.int64
        times.add(float(t[0]))
        return torch_mixture(x, t)

    model = odediff.Model(net, schedule=LINEAR, prediction="x0", shape=(2, 1, 1), integer_times=True)
    found = analysis.work_precision(model, ["heun", "ab2"], (5, 9), n=2, reference_nfe=1000)
    exact = analysis.work_precision(MIXTURE, ["heun", "ab2"], (5, 9), n=2)
    assert times == set(range(1000))
    assert found.median == pytest.approx(exact.median, rel=0.2)


def test_work_precision_of_labels_callables_and_plans() -> None:
    plan = odediff.plan("rk4", LINEAR, 8)
    solvers = {"name": "rk4", "family": lambda n: odediff.plan("euler", LINEAR, n, "uniform"), "plan": plan}
    found = analysis.work_precision(MIXTURE, solvers, (3, 8, 12), n=4)
    assert found.solvers == ("name", "family", "plan")
    assert np.isnan(found.median).tolist() == [[True, False, False], [False] * 3, [True, False, True]]
    assert found.median[2, 1] == found.median[0, 1]
    assert (found.p95 >= found.median).sum() == 6
    lines = str(found).splitlines()
    assert lines[1].split() == ["nfe", "3", "8", "12"]
    assert lines[2].split() == [
        "name",
        "-",
        *(
            f"{v:.2e}" if k == 0 else f"({v:.2e})"
            for i in (1, 2)
            for k, v in enumerate((found.median[0, i], found.p95[0, i]))
        ),
    ]


def test_a_plan_that_diverges_has_an_infinite_error() -> None:
    """Rows that add 1e200 times the difference of two predictions conserve signal all the same."""
    base = odediff.plan("euler", LINEAR, 4, space="x0")
    huge = np.array([0, 1e200, 1e200, 0])
    hot = Plan("x0", base.t, base.alpha, base.sigma, base.a, np.stack([base.b[:, 0] + huge, -huge], 1), base.c)
    found = analysis.work_precision(MIXTURE, {"hot": hot}, (4,), n=2)
    assert np.isinf([found.median, found.rmse, found.p95]).all()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((MIXTURE, ["rk9"], (8,)), {}, "unknown solver 'rk9'"),
        ((MIXTURE, "rk4", (8,)), {}, "must be a list of names, or a dict"),
        ((MIXTURE, [], (8,)), {}, "must be a list of names, or a dict"),
        ((MIXTURE, ["ddpm"], (8,)), {}, "ddpm is stochastic"),
        ((MIXTURE, ["rk4"], (8, 8)), {}, "increasing whole numbers"),
        ((MIXTURE, ["rk4"], (0, 8)), {}, "cannot meet nfe=0"),
        ((MIXTURE, ["rk4"], (8,)), {"n": 0}, "n = 0"),
        ((MIXTURE, ["rk4"], (8,)), {"reference_nfe": 10}, "reference_nfe = 10"),
        ((MIXTURE, {"other": odediff.plan("rk4", FLOW, 8)}, (8,)), {}, "other is a plan for schedule"),
        ((mixture(CENTRES, 0.3), ["rk4"], (8,)), {}, "expected an odediff.Model or an odediff.analysis.Problem"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments: tuple, options: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=message):
        analysis.work_precision(*arguments, **options)


def test_bad_problems_are_refused() -> None:
    for arguments, message in [
        ((3, LINEAR, (2,)), "denoise must be a callable"),
        ((gaussian(0, 1), "linear", (2,)), "schedule must be"),
        ((gaussian(0, 1), LINEAR, ()), "shape must hold positive whole numbers"),
        ((gaussian(0, 1), LINEAR, (0,)), "shape must hold positive whole numbers"),
    ]:
        with pytest.raises(ValueError, match=message):
            Problem(*arguments)


PLOTS = {
    "amplification": lambda path: analysis.amplification(PLANS["rk4"], plot=path),
    "stability": lambda path: stability(PLANS["unipc_3"], plot=path),
    "wasserstein": lambda path: analysis.wasserstein_gaussian(PLANS["ddpm"], 0.0, [0.0, 1.0], plot=path),
    "order": lambda path: observed_order("heun", nfes=(9, 17), plot=path),
    "work": lambda path: analysis.work_precision(
        MIXTURE, [n for n, m in odediff.METHODS.items() if n == "ddim" or not m.stochastic], (3, 8), n=2, plot=path
    ),
    "plan": lambda path: analysis.draw(noisy_with_history(), path),
    "huge weights": lambda path: analysis.draw(odediff.plan("ipndm", schedules.cosine(), 6), path),
}


@pytest.mark.filterwarnings("ignore::odediff.methods.PrecisionWarning")
@pytest.mark.parametrize("draw", PLOTS.values(), ids=PLOTS)
def test_plots_are_drawn(draw, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    draw(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert min(pixels.shape[:2]) > 400
    colour = np.ptp(pixels, axis=2) > 60
    assert 0.0005 < colour.mean() < 0.5
    draw(str(tmp_path / "x.svg"))
    assert (tmp_path / "x.svg").read_text().startswith("<?xml")
    for bad, message in ((tmp_path / "no" / "x.png", "no folder"), (tmp_path / "x.txt", "names no kind of picture")):
        with pytest.raises(ValueError, match=message):
            draw(bad)


def test_the_measure_of_a_plot_can_be_chosen(tmp_path: Path) -> None:
    found = analysis.work_precision(MIXTURE, ["euler"], (3, 8), n=4)
    for measure in ("median", "rmse", "p95"):
        found.plot(tmp_path / f"{measure}.svg", measure)
    texts = {(tmp_path / f"{m}.svg").read_text() for m in ("median", "rmse", "p95")}
    assert len(texts) == 3
    with pytest.raises(ValueError, match="unknown measure 'mean'"):
        found.plot(tmp_path / "x.png", "mean")


@pytest.mark.filterwarnings("ignore::odediff.methods.PrecisionWarning")
@pytest.mark.parametrize("draw", PLOTS.values(), ids=PLOTS)
def test_without_matplotlib_the_remedy_is_named(draw, monkeypatch, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for name in ("matplotlib", "matplotlib.backend_bases"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'odediff\[plot\]'"):
        draw(tmp_path / "x.png")


def test_the_command_names_the_remedy_too(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from odediff.cli import main\n"
        f"sys.exit(main(['plan', 'rk4', '--plot', {str(tmp_path / 'x.png')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "odediff: error: plots need matplotlib: pip install 'odediff[plot]'\n"


@pytest.mark.filterwarnings("ignore::odediff.methods.PrecisionWarning")
def test_rounding_is_the_sum_of_what_becomes_of_an_error_in_every_row() -> None:
    """By perturbation: an error of the size of each row's amplification, made in its result and run to the end."""
    plan, s = odediff.plan("ab3", LINEAR, 9), 0.3
    found = analysis.stability(plan, [s])
    denoise, size = analysis.gaussian(0.0, s), np.hypot(plan.alpha * s, plan.sigma)
    total = 0.0
    for row in range(plan.nfe):
        state, history, u_w = np.zeros(1), [], space_pair(plan.space, plan.alpha[:-1], plan.sigma[:-1])
        for i in range(plan.nfe):
            x0 = denoise(state, plan.alpha[i], plan.sigma[i])
            eps = (state - plan.alpha[i] * x0) / plan.sigma[i]
            history = [u_w[0][i] * x0 + u_w[1][i] * eps, *history][: plan.depth]
            state = plan.a[i] * state + sum(b * d for b, d in zip(plan.b[i], history, strict=False))
            if i == row:
                state = state + plan.amplification[i] * size[i + 1]
        total += abs(float(state[0])) / size[-1]
    growth = np.append(found.growth[0, 1:], 1.0)
    assert float(growth @ plan.amplification) == pytest.approx(total, rel=1e-10)
    worst = max(float(np.append(g[1:], 1.0) @ plan.amplification) for g in analysis.stability(plan).growth)
    assert analysis.rounding(plan) == pytest.approx(worst, rel=1e-12)


def test_a_plan_whose_rows_are_sound_and_whose_float32_is_lost_is_warned_of() -> None:
    """deis_4 on cosine, log-SNR: no row above 210, and float32 keeps nothing (docs/analysis.md)."""
    plan = odediff.plan("deis_4", odediff.schedule.cosine(), 20, "logsnr")
    assert plan.amplification.max() < 2**10 < 2**24 < analysis.rounding(plan)
    assert any("rounding grows" in said for said in analysis.warnings(plan))
    assert not any("rounding grows" in said for said in analysis.warnings(odediff.plan("ab3", LINEAR, 20)))
