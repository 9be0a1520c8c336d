"""The DDPM..DDIM family against the papers, and its moments on Gaussian data."""

import numpy as np
import pytest
import torch

import odediff
from odediff import schedule as schedules
from odediff.analysis import gaussian_moments
from odediff.methods import plan

LINEAR = schedules.linear()
BETAS = np.linspace(1e-4, 0.02, 1000)
ABAR = np.cumprod(1 - BETAS)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm_with_all_steps_is_algorithm_2(variance: str) -> None:
    """mu = (x - beta / sqrt(1 - abar) eps) / sqrt(alpha), sigma^2 = beta or its posterior (Ho et al. 2020, eq. 11)."""
    p = plan("ddpm", LINEAR, 1000, variance=variance)
    assert (p.t == np.arange(999, -1, -1)).all()
    for i in (0, 1, 500, 998, 999):
        t = 999 - i
        abar, before = ABAR[t], ABAR[t - 1] if t else 1.0
        c2 = BETAS[t] if variance == "fixed_large" else (1 - before) / (1 - abar) * BETAS[t]
        # d = x0 = (x - sqrt(1 - abar) eps) / sqrt(abar): coefficients of x and eps
        of_x = p.a[i] + p.b[i, 0] / abar**0.5
        of_eps = -p.b[i, 0] * ((1 - abar) / abar) ** 0.5
        assert of_x == pytest.approx(1 / (1 - BETAS[t]) ** 0.5, rel=1e-9)
        assert of_eps == pytest.approx(-BETAS[t] / (1 - abar) ** 0.5 / (1 - BETAS[t]) ** 0.5, rel=1e-8)
        assert p.c[i] ** 2 == pytest.approx(c2 if t else 0.0, rel=1e-9)
    assert p.overdispersed == (variance == "fixed_large")


def test_ddim_with_eta_is_eq_12_and_16() -> None:
    eta, tau = 0.6, np.array([5, 150, 420, 777])
    p = plan("ddim", LINEAR, 4, tau[::-1].astype(float), eta=eta)
    for i, k in enumerate((3, 2, 1, 0)):
        abar, before = ABAR[tau[k]], ABAR[tau[k - 1]] if k else 1.0
        s = eta * np.sqrt((1 - before) / (1 - abar)) * np.sqrt(1 - abar / before)
        direction = np.sqrt(1 - before - s**2)
        assert p.c[i] == pytest.approx(s, rel=1e-10, abs=1e-15)
        assert p.a[i] == pytest.approx(direction / np.sqrt(1 - abar), rel=1e-10, abs=1e-15)
        assert p.b[i, 0] == pytest.approx(np.sqrt(before) - direction * np.sqrt(abar / (1 - abar)), rel=1e-9)


def test_ddim_with_eta_1_is_ddpm_and_with_eta_0_euler() -> None:
    one, ddpm = plan("ddim", LINEAR, 13, eta=1.0), plan("ddpm", LINEAR, 13, "quadratic")
    zero, euler = plan("ddim", LINEAR, 13, eta=0.0), plan("euler", LINEAR, 13, "quadratic", space="x0")
    for a, b in ((one, ddpm), (zero, euler)):
        for name in ("t", "a", "b", "c"):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-12, atol=1e-14)


PLANS = [
    ("ddim", {"eta": 0.0}),
    ("ddim", {"eta": 0.5}),
    ("ddim", {"eta": 1.0}),
    ("ddpm", {"variance": "fixed_small"}),
    ("ddpm", {"variance": "fixed_large"}),
]


@pytest.mark.parametrize(("name", "args"), PLANS)
@pytest.mark.parametrize("schedule", [LINEAR, schedules.edm(), schedules.flow()], ids=["linear", "edm", "flow"])
def test_moments_on_gaussian_data(name: str, args: dict[str, object], schedule: schedules.Schedule) -> None:
    """Mean and variance from the table equal the recursion of the paper's step, written for scalars."""
    mean, v = 0.7, 0.3
    p = plan(name, schedule, 9, **args)
    means, variances = gaussian_moments(p, mean, v)
    m, s2 = 0.0, p.alpha[0] ** 2 + p.sigma[0] ** 2
    assert variances[0] == pytest.approx(s2)
    for i in range(9):
        al, si, a2, s_2 = p.alpha[i], p.sigma[i], p.alpha[i + 1], p.sigma[i + 1]
        beta = si**2 - (al / a2 * s_2) ** 2
        eta = float(args.get("eta", 1.0))  # type: ignore[arg-type]
        c2 = eta**2 * s_2**2 / si**2 * beta
        gain = al * v / (al**2 * v + si**2)  # x0_hat = gain x + (1 - gain al) mean
        of_x0 = a2 - np.sqrt(s_2**2 - c2) * al / si
        of_x = np.sqrt(s_2**2 - c2) / si
        slope = of_x + of_x0 * gain
        m = slope * m + of_x0 * (1 - gain * al) * mean
        added = (beta if s_2 else 0.0) if args.get("variance") == "fixed_large" else c2
        s2 = slope**2 * s2 + added
        assert means[i + 1] == pytest.approx(m, rel=1e-9, abs=1e-12)
        assert variances[i + 1] == pytest.approx(s2, rel=1e-9, abs=1e-12)


def test_moments_with_history_are_those_of_samples() -> None:
    """A multistep plan: mean and variance from the table against its linear map, probed at two points."""
    p = plan("dpmpp_2m", LINEAR, 8)
    mean, v = -0.4, 0.5

    def end(x: float) -> float:
        d: list[float] = []
        for i in range(8):
            al, si = p.alpha[i], p.sigma[i]
            d.insert(0, mean + al * v * (x - al * mean) / (al**2 * v + si**2))
            x = p.a[i] * x + sum(b * q for b, q in zip(p.b[i], d, strict=False))
        return x

    means, variances = gaussian_moments(p, mean, v)
    assert means[-1] == pytest.approx(end(0.0), rel=1e-12)
    assert variances[-1] == pytest.approx((end(1.0) - end(0.0)) ** 2, rel=1e-10)
    with pytest.raises(ValueError, match="variance = -1"):
        gaussian_moments(p, 0.0, -1)


LOOP = [
    *PLANS[1:],
    ("euler_ancestral", {"eta": 0.5}),
    ("sde_dpmpp_2m", {}),
    ("sa_solver", {}),
    ("heun_churn", {"s_tmin": 0.0, "s_tmax": None}),
]


@pytest.mark.parametrize(("name", "args"), LOOP)
def test_the_sampler_draws_those_moments(name: str, args: dict[str, object]) -> None:
    """20,000 samples through the real loop: mean and variance within 4.5 standard errors of the table's."""
    mean, v = 0.7, 0.3

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = float(LINEAR.alpha(float(t[0]))), float(LINEAR.sigma(float(t[0])))
        return sigma * (x - alpha * mean) / (alpha**2 * v + sigma**2)

    model = odediff.Model(net, schedule=LINEAR, shape=(1, 50, 50), range=None)
    p = plan(name, LINEAR, 7, **args)
    x = odediff.Sampler(model, p)(n=8, seed=3).double()
    means, variances = gaussian_moments(p, mean, v)
    n = x.numel()
    assert float(x.mean()) == pytest.approx(means[-1], abs=4.5 * (variances[-1] / n) ** 0.5)
    assert float(x.var()) == pytest.approx(variances[-1], abs=4.5 * variances[-1] * (2 / n) ** 0.5)
