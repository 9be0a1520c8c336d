"""Stochastic solvers against the printed algorithms: trajectories with given noises, and moments on Gaussian data."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import repeat

import numpy as np
import pytest
from exact import SCHEDULES, Denoiser, gaussian, random_network, run

from odediff.analysis import gaussian_moments
from odediff.methods import METHODS, plan
from odediff.plans import Plan
from odediff.schedule import Array, Schedule

# What plans do that float32 cannot carry is in test_adams; here coefficients are compared in float64.
pytestmark = pytest.mark.filterwarnings("ignore::odediff.methods.PrecisionWarning")

X = np.random.default_rng(6).normal(size=(3, 4))
LINEAR, EDM = SCHEDULES["linear"], SCHEDULES["edm"]
Noises = Iterator[Array]


def euler_ancestral(s: Array, denoised: Denoiser, x: Array, z: Noises, eta: float) -> Array:
    """k-diffusion's loop on x / alpha, with its get_ancestral_step; s ends on 0."""
    for now, to in zip(s[:-1], s[1:], strict=True):
        up = min(to, eta * (to**2 * (now**2 - to**2) / now**2) ** 0.5)
        down = (to**2 - up**2) ** 0.5
        d = (x - denoised(x, 1.0, now)) / now
        x = x + d * (down - now)
        if to > 0:
            x = x + next(z) * up
    return x


def sde_dpmpp(s: Array, denoised: Denoiser, x: Array, z: Noises, order: int) -> Array:
    """SDE-DPM-Solver++(1) and (2M) of Lu et al. 2022b on x / alpha, where alpha = 1 and sigma = e^-lam."""
    lam, d = -np.log(s[:-1]), []
    for i in range(len(s) - 2):
        d.append(denoised(x, 1.0, s[i]))
        h = lam[i + 1] - lam[i]
        big = d[i]
        if i > 0 and order == 2:
            r = (lam[i] - lam[i - 1]) / h
            big = (1 + 1 / (2 * r)) * d[i] - 1 / (2 * r) * d[i - 1]
        x = s[i + 1] / s[i] * np.exp(-h) * x + (1 - np.exp(-2 * h)) * big
        x = x + s[i + 1] * np.sqrt(1 - np.exp(-2 * h)) * next(z)
    return denoised(x, 1.0, s[-2])


def sa_solver(s: Array, denoised: Denoiser, x: Array, z: Noises, tau: float, steps: tuple[int, int]) -> Array:
    """Xue et al. 2023, eq. 15 (predictor) and 18 (corrector) on x / alpha, integrals of l^n e^(k l) by parts."""
    lam, d, k = -np.log(s[:-1]), [], 1 + tau**2
    old, noise = x, 0.0 * x

    def update(x: Array, nodes: list[int], i: int, noise: Array) -> Array:
        lo, hi = lam[i] - lam[i + 1], 0.0
        moments = [(np.exp(k * hi) - np.exp(k * lo)) / k]
        for n in range(1, 5):
            moments.append((hi**n * np.exp(k * hi) - lo**n * np.exp(k * lo) - n * moments[-1]) / k)
        out = s[i + 1] / s[i] * np.exp(tau**2 * lo) * x + noise
        for j in nodes:
            basis = np.poly1d([1.0])
            for m in nodes:
                if m != j:
                    basis *= np.poly1d([1.0, lam[i + 1] - lam[m]]) / (lam[j] - lam[m])
            out = out + k * sum(c * q for c, q in zip(basis.coeffs[::-1], moments, strict=False)) * d[j]
        return out

    for i in range(len(s) - 1):
        d.append(denoised(x, 1.0, s[i]))
        if i > 0 and steps[1]:
            x = update(old, [j for j in range(i, i - steps[1] - 1, -1) if j >= 0], i - 1, noise)
        if i == len(s) - 2:
            return d[-1]
        old, noise = x, s[i + 1] * np.sqrt(1 - np.exp(2 * tau**2 * (lam[i] - lam[i + 1]))) * next(z)
        x = update(x, [j for j in range(i, i - steps[0], -1) if j >= 0], i, noise)
    raise AssertionError


def sa_solver_few_steps(s: Array, denoised: Denoiser, x: Array, z: Noises, tau: float) -> Array:
    """The authors' two predictions in predictor and corrector for few steps, in their words: what they add to the exact
    coefficients (adams_bashforth_update_few_steps, adams_moulton_update_few_steps) on x / alpha."""
    lam, d, k = -np.log(s[:-1]), [], 1 + tau**2

    def update(x: Array, i: int, nodes: list[int], added: float, noise: Array) -> Array:
        a, b = lam[i], lam[i + 1]
        zeroth = np.exp(k * b) * (1 - np.exp(-k * (b - a))) / k
        first = np.exp(k * b) * ((k * b - 1) - (k * a - 1) * np.exp(-k * (b - a))) / k**2
        if len(nodes) == 1:
            weights = [zeroth]
        else:
            gap = lam[nodes[0]] - lam[nodes[1]]
            weights = [(first - lam[nodes[1]] * zeroth) / gap, (lam[nodes[0]] * zeroth - first) / gap]
            weights = [weights[0] + np.exp(k * b) * added, weights[1] - np.exp(k * b) * added]
        total = sum(w * d[j] for w, j in zip(weights, nodes, strict=True))
        return np.exp(-(tau**2) * (b - a)) * s[i + 1] / s[i] * x + k * s[i + 1] * np.exp(-(tau**2) * b) * total + noise

    old, noise = x, 0.0 * x
    for i in range(len(s) - 1):
        d.append(denoised(x, 1.0, s[i]))
        if i > 0:
            h = lam[i] - lam[i - 1]
            x = update(old, i - 1, [i, i - 1], h / 2 - (h * k - 1 + np.exp(-k * h)) / (k**2 * h), noise)
        if i == len(s) - 2:
            return d[-1]
        h = lam[i + 1] - lam[i]
        old, noise = x, s[i + 1] * np.sqrt(1 - np.exp(-2 * tau**2 * h)) * next(z)
        added = (h**2 / 2 - (h * k - 1 + np.exp(-k * h)) / k**2) / (lam[i] - lam[i - 1]) if i else 0.0
        x = update(x, i, [i, i - 1] if i else [0], added, noise)
    raise AssertionError


def sde_dpmpp_3m(s: Array, denoised: Denoiser, x: Array, z: Noises, eta: float) -> Array:
    """k-diffusion's sample_dpmpp_3m_sde on x / alpha, in its phi_2 and phi_3."""
    lam, d = -np.log(s[:-1]), []
    for i in range(len(s) - 2):
        d.append(denoised(x, 1.0, s[i]))
        h = lam[i + 1] - lam[i]
        big = h * (1 + eta)
        phi_2 = np.expm1(-big) / big + 1
        phi_3 = phi_2 / big - 0.5
        x = np.exp(-big) * x - np.expm1(-big) * d[i]
        if i == 1:
            x = x + phi_2 * (d[1] - d[0]) * h / (lam[1] - lam[0])
        if i > 1:
            h1, h2 = lam[i] - lam[i - 1], lam[i - 1] - lam[i - 2]
            new, old = (d[i] - d[i - 1]) * h / h1, (d[i - 1] - d[i - 2]) * h / h2
            x = x + phi_2 * (new + (new - old) * h1 / (h1 + h2)) - phi_3 * (new - old) * h / (h1 + h2)
        if eta:
            x = x + s[i + 1] * np.sqrt(1 - np.exp(-2 * h * eta)) * next(z)
    return denoised(x, 1.0, s[-2])


def heun_churn(s: Array, denoised: Denoiser, x: Array, z: Noises, gammas: list[float], s_noise: float) -> Array:
    """Karras et al. 2022, Algorithm 2 on x / alpha, but that x arrives at the first t^ already; s ends on 0."""
    for i, (now, to) in enumerate(zip(s[:-1], s[1:], strict=True)):
        hat = now + gammas[i] * now
        if i > 0 and gammas[i] > 0:
            x = x + np.sqrt(hat**2 - now**2) * s_noise * next(z)
        d = (x - denoised(x, 1.0, hat)) / hat
        x_next = x + (to - hat) * d
        if to != 0:
            d_next = (x_next - denoised(x_next, 1.0, to)) / to
            x_next = x + (to - hat) * (d / 2 + d_next / 2)
        x = x_next
    return x


def scaled(p: Plan, denoise: Denoiser) -> Denoiser:
    """The plan's denoiser on y = x / alpha at rho = sigma / alpha, where the references live."""
    alphas = dict(zip(np.round(np.log(p.sigma[:-1] / p.alpha[:-1]), 9), p.alpha[:-1], strict=True))

    def of(y: Array, one: float, rho: float) -> Array:
        alpha = alphas[np.round(np.log(rho), 9)]
        return denoise(alpha * y, alpha, alpha * rho)

    return of


def levels(schedule: Schedule, times: Array) -> Array:
    return np.array([*schedule.rho(times), 0.0])


TIMES = np.array([970.0, 800.0, 610.0, 430.0, 300.0, 170.0, 80.0, 25.0])
EDM_TIMES = np.array([60.0, 31.0, 17.0, 8.0, 4.5, 1.2, 0.4, 0.1])
Reference = Callable[[Array, Denoiser, Array, Noises], Array]
GAMMAS = [0.125, 0.125, 0.125, 0.125, 0.125, 0.125, 0.0, 0.0]  # s_churn / 8, and s_tmin above the last two
GAMMAS_LINEAR = [0.0, 0.125, 0.125, 0.125, 0.125, 0.125, 0.0, 0.0]

CASES: dict[str, tuple[str, dict[str, object], Reference]] = {
    "euler_ancestral": ("euler_ancestral", {}, lambda *a: euler_ancestral(*a, 1.0)),
    "euler_ancestral 0.4": ("euler_ancestral", {"eta": 0.4}, lambda *a: euler_ancestral(*a, 0.4)),
    "euler_ancestral 1.7": ("euler_ancestral", {"eta": 1.7}, lambda *a: euler_ancestral(*a, 1.7)),
    "sde_dpmpp_1": ("ddim", {"eta": 1.0}, lambda *a: sde_dpmpp(*a, 1)),
    "sde_dpmpp_2m": ("sde_dpmpp_2m", {}, lambda *a: sde_dpmpp(*a, 2)),
    "sa_solver": ("sa_solver", {}, lambda *a: sa_solver(*a, 1.0, (3, 3))),
    "sa_solver 0.6, 4, 2": (
        "sa_solver",
        {"tau": 0.6, "predictor": 4, "corrector": 2},
        lambda *a: sa_solver(*a, 0.6, (4, 2)),
    ),
    "sa_solver few steps": (
        "sa_solver",
        {"tau": 0.6, "predictor": 2, "corrector": 1, "form": "few_steps"},
        lambda *a: sa_solver_few_steps(*a, 0.6),
    ),
    "sde_dpmpp_3m": ("sde_dpmpp_3m", {}, lambda *a: sde_dpmpp_3m(*a, 1.0)),
    "sde_dpmpp_3m 0": ("sde_dpmpp_3m", {"eta": 0.0}, lambda *a: sde_dpmpp_3m(*a, 0.0)),
    "sde_dpmpp_3m 0.3": ("sde_dpmpp_3m", {"eta": 0.3}, lambda *a: sde_dpmpp_3m(*a, 0.3)),
    "sa_solver 2, 0": ("sa_solver", {"predictor": 2, "corrector": 0}, lambda *a: sa_solver(*a, 1.0, (2, 0))),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("kind", "times"), [("linear", TIMES), ("edm", EDM_TIMES)])
def test_published_trajectories(case: str, kind: str, times: Array) -> None:
    name, args, reference = CASES[case]
    schedule, noises = SCHEDULES[kind], np.random.default_rng(7).normal(size=(8, *X.shape))
    p = plan(name, schedule, 8, times, **args)
    x = X * p.prior_scale
    want = reference(levels(schedule, times), scaled(p, random_network), x / p.alpha[0], iter(noises))
    got = run(p, random_network, x, noises)[-1]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * np.abs(want).max())


@pytest.mark.parametrize(("kind", "times"), [("linear", TIMES), ("edm", EDM_TIMES)])
@pytest.mark.parametrize("s_noise", [1.0, 1.05])
def test_heun_churn_is_algorithm_2(kind: str, times: Array, s_noise: float) -> None:
    schedule = SCHEDULES[kind]
    rho = schedule.rho(times)
    bounds = {"s_tmin": 0.99 * float(rho[5]), "s_tmax": 1.01 * float(rho[0] if kind == "edm" else rho[1])}
    gammas = GAMMAS if kind == "edm" else GAMMAS_LINEAR
    p = plan("heun_churn", schedule, 15, times, s_churn=1.0, s_noise=s_noise, **bounds)
    assert p.overdispersed == (s_noise > 1)
    draws = np.random.default_rng(7).normal(size=(5, *X.shape))
    noises = np.zeros((15, *X.shape))
    noises[[1, 3, 5, 7, 9]] = draws  # the last row of a step holds the noise of the next one
    assert np.flatnonzero(p.c).tolist() == [1, 3, 5, 7, 9]
    x = X * p.prior_scale
    want = heun_churn(levels(schedule, times), scaled(p, random_network), x / p.alpha[0], iter(draws), gammas, s_noise)
    got = run(p, random_network, x, noises)[-1]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * np.abs(want).max())
    start = rho[0] * (1 + gammas[0])
    assert p.sigma[0] / p.alpha[0] == pytest.approx(start, rel=1e-12)  # x_T is drawn at the raised level
    assert p.prior_scale == pytest.approx(np.hypot(1, start) if kind == "edm" else 1.0)


def test_gamma_is_at_most_sqrt_2_minus_1() -> None:
    p = plan("heun_churn", EDM, 9, [20.0, 9.0, 4.0, 1.0, 0.5], s_churn=1e9, s_tmin=0.0, s_tmax=None)
    np.testing.assert_allclose(p.sigma[[0, 2, 4, 6, 8]], np.sqrt(2) * np.array([20, 9, 4, 1, 0.5]), rtol=1e-12)


def test_no_noise_is_raised_above_the_schedules_largest() -> None:
    p = plan("heun_churn", EDM, 7, [80.0, 70.0, 20.0, 5.0], s_churn=0.8, s_tmin=0.0, s_tmax=None, s_noise=1.0)
    np.testing.assert_allclose(p.sigma[[0, 2, 4, 6]], [80.0, 80.0, 24.0, 6.0], rtol=1e-12)
    assert p.c[1] == pytest.approx(np.sqrt(80**2 - 70**2))
    for schedule in SCHEDULES.values():
        if schedule.alpha(schedule.t_max) > 0:
            assert plan("heun_churn", schedule, 21, s_churn=20.0, s_tmax=None).t.max() <= schedule.t_max


def test_heun_without_churn_is_heun_bit_for_bit() -> None:
    for kind in ("linear", "cosine", "edm"):
        for nfe in range(3, 30):
            p, q = plan("heun_churn", SCHEDULES[kind], nfe, s_churn=0), plan("heun", SCHEDULES[kind], nfe, space="eps")
            for name in ("t", "alpha", "sigma", "a", "b", "c"):
                np.testing.assert_array_equal(getattr(p, name), getattr(q, name))
            assert not p.stochastic


def test_more_noise_than_is_conserved_is_declared_or_refused() -> None:
    p = plan("heun_churn", EDM, 21, s_noise=1.007)
    q = plan("heun_churn", EDM, 21, s_noise=1.0)
    assert p.overdispersed and not q.overdispersed
    np.testing.assert_allclose(p.c, 1.007 * q.c, rtol=1e-13)
    with pytest.raises(ValueError, match="does not conserve noise"):
        replace(p, overdispersed=False)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_euler_ancestral_is_ddim_of_the_same_eta(kind: str, eta: float) -> None:
    p, q = (plan(name, SCHEDULES[kind], 17, eta=eta) for name in ("euler_ancestral", "ddim"))
    for name in ("t", "a", "b", "c"):
        np.testing.assert_allclose(getattr(p, name), getattr(q, name), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_sde_dpmpp_1_and_sa_solver_of_one_step_are_ddim_with_eta_1(kind: str) -> None:
    """Rows a = sigma'/sigma e^-h, b = alpha' (1 - e^-2h), c = sigma' sqrt(1 - e^-2h): no second name for it."""
    p = plan("ddim", SCHEDULES[kind], 17, eta=1.0)
    with np.errstate(divide="ignore"):
        h = np.diff(np.log(p.alpha[:-1]) - np.log(p.sigma[:-1]))
    ratio = p.sigma[1:-1] / p.sigma[:-2]
    np.testing.assert_allclose(p.a[:-1], ratio * np.exp(-h), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(p.b[:-1, 0], -p.alpha[1:-1] * np.expm1(-2 * h), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(p.c[:-1], p.sigma[1:-1] * np.sqrt(-np.expm1(-2 * h)), rtol=1e-10, atol=1e-12)
    q = plan("sa_solver", SCHEDULES[kind], 17, predictor=1, corrector=0)
    for name in ("a", "b", "c"):
        np.testing.assert_allclose(getattr(q, name), getattr(p, name), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_sa_solver_without_noise_is_exact_adams(kind: str) -> None:
    """tau = 0: the predictor is Adams-Bashforth in (x0, lam), and full rows with the corrector are unipc_3's."""
    schedule = SCHEDULES[kind]
    for count in (2, 3, 4):
        p = plan("sa_solver", schedule, 12, tau=0.0, predictor=count, corrector=0)
        q = plan(f"ab{count}", schedule, 12, space="x0", variable="lam")
        np.testing.assert_allclose(p.b, q.b, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(p.a, q.a, rtol=1e-12)
    p, q = plan("sa_solver", schedule, 12, tau=0.0), plan("unipc_3", schedule, 12)
    assert p.depth == q.depth and not p.stochastic
    np.testing.assert_allclose(p.b[4:], q.b[4:], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", ["flow", "zero_snr"])
def test_a_row_from_alpha_0_is_not_corrected(kind: str) -> None:
    """lam is infinite at its start, so no integral over it exists: the next row reads its own prediction alone."""
    for p in (plan("sa_solver", SCHEDULES[kind], 9), plan("sde_dpmpp_2m", SCHEDULES[kind], 9)):
        assert p.alpha[0] == 0 and not p.b[1, 1:].any() and p.b[2, 1:].any()


def test_tau_acts_within_its_range_of_noise() -> None:
    p = plan("sa_solver", EDM, 8, EDM_TIMES, s_tmin=1.0, s_tmax=17.0)
    assert np.flatnonzero(p.c).tolist() == [2, 3, 4, 5]
    lower = plan("sa_solver", EDM, 8, EDM_TIMES, tau=0.0)
    np.testing.assert_allclose(p.b[:2], lower.b[:2, : p.depth], rtol=1e-12)


MOMENTS: list[tuple[str, dict[str, object], int]] = [
    ("euler_ancestral", {}, 8),
    ("sde_dpmpp_2m", {}, 8),
    ("sa_solver", {"tau": 0.8}, 8),
    ("heun_churn", {"s_churn": 1.0, "s_tmin": 0.0, "s_tmax": 40.0, "s_noise": 1.05}, 15),
]


@pytest.mark.parametrize(("name", "args", "nfe"), MOMENTS)
def test_moments_on_gaussian_data_are_those_of_the_published_loop(name: str, args: dict[str, object], nfe: int) -> None:
    """The loop is affine on Gaussian data: run it on unit vectors of start and noises, and add up the squares."""
    mean, v = 0.7, 0.3
    p = plan(name, EDM, nfe, EDM_TIMES, **args)
    denoise = gaussian(mean, v**0.5)
    loops: dict[str, Reference] = {
        "euler_ancestral": lambda *a: euler_ancestral(*a, 1.0),
        "sde_dpmpp_2m": lambda *a: sde_dpmpp(*a, 2),
        "sa_solver": lambda *a: sa_solver(*a, 0.8, (3, 3)),
        "heun_churn": lambda *a: heun_churn(*a, [0.0, *[0.125] * 7], 1.05),
    }

    def loop(start: float, noises: Noises) -> float:
        return float(loops[name](levels(EDM, EDM_TIMES), denoise, np.array(start), noises))

    centre = loop(0.0, repeat(np.array(0.0)))
    spread = [(loop(p.prior_scale, repeat(np.array(0.0))) - centre) ** 2]
    for k in range(7):
        spread.append((loop(0.0, iter(np.eye(7)[k])) - centre) ** 2)
    means, variances = gaussian_moments(p, mean, v)
    assert means[-1] == pytest.approx(centre, rel=1e-12)
    assert variances[-1] == pytest.approx(sum(spread), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("heun_churn", {"s_churn": -1}, "s_churn = -1 must be finite and not negative"),
        ("heun_churn", {"s_noise": 0.9}, "s_noise = 0.9 must be finite and at least 1"),
        ("heun_churn", {"s_tmin": 2.0, "s_tmax": 1.0}, "s_tmin = 2.0, s_tmax = 1.0 must be finite"),
        ("heun_churn", {"s_tmax": np.inf}, "None is no upper bound"),
        ("sa_solver", {"s_tmin": np.inf}, "None is no upper bound"),
        ("sa_solver", {"tau": np.nan}, "tau = nan must be finite"),
        ("sde_dpmpp_3m", {"eta": -1.0}, "eta = -1.0 must be finite and not negative"),
        ("sa_solver", {"form": "short"}, "unknown form = 'short'; choose exact or few_steps"),
        ("sa_solver", {"orders": "12"}, "orders = '12': give one digit of 1 to 4 for each of the 20 rows"),
        ("sa_solver", {"predictor": 0}, r"predictor = 0 must be a whole number in 1 \.\. 4"),
        ("sa_solver", {"corrector": 4}, r"corrector = 4 must be a whole number in 0 \.\. 3"),
        ("sa_solver", {"corrector": True}, "corrector = True is no option of sa_solver"),
        ("euler_ancestral", {"eta": -0.1}, r"eta = -0.1 must be finite and not negative"),
        ("sde_dpmpp_2m", {"eta": 0.5}, "sde_dpmpp_2m has no option 'eta'"),
    ],
)
def test_options_out_of_range(name: str, args: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(name, LINEAR, 20, **args)


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].stochastic])
def test_stochastic_plans_survive_json(name: str) -> None:
    p = plan(name, LINEAR, 20)
    assert Plan.from_json(p.to_json()) == p


def test_sa_solver_ends_above_sigma_0_by_its_own_step() -> None:
    """The rows up to the end are those of the plan that goes on from there, but for the correction at the end."""
    p = plan("sa_solver", LINEAR, 7, TIMES[:-1], end=TIMES[-1], corrector=0)
    whole = plan("sa_solver", LINEAR, 8, TIMES, corrector=0)
    for name in ("a", "c", "b"):
        np.testing.assert_allclose(getattr(p, name), getattr(whole, name)[:7], rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal((p.alpha, p.sigma), (whole.alpha[:-1], whole.sigma[:-1]))
    corrected = plan("sa_solver", LINEAR, 7, TIMES[:-1], end=TIMES[-1])
    assert corrected.sigma[-1] == whole.sigma[-2] and corrected.c[-1] > 0
