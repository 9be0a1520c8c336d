"""The objective against the formulae: targets, weights, times, and the minimum that Gaussian data allow."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from odediff import schedule as schedules
from odediff.spaces import SPACES, space_pair
from odediff.training import DenoisingLoss
from odediff.training.ema import EMA
from odediff.training.losses import WEIGHTINGS

TABLE = schedules.linear(20, 0.02, 0.4)


class Recorder:
    """A network that answers zero and keeps what it was asked."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.x, self.t = x, t
        return torch.zeros_like(x)


@pytest.mark.parametrize("prediction", SPACES)
@pytest.mark.parametrize(
    "schedule", [TABLE, schedules.flow(t_max=0.999), schedules.edm(0.01, 5.0)], ids=["table", "flow", "edm"]
)
def test_loss_of_answering_zero_is_the_mean_square_of_the_target(prediction: str, schedule: Any) -> None:
    torch.manual_seed(0)
    loss, net = DenoisingLoss(schedule, prediction=prediction), Recorder()
    x0 = torch.rand(64, 2, 5, 4) * 2 - 1
    value = float(loss(net, x0))
    alpha, sigma = (
        torch.tensor(f(net.t.double().numpy()))[:, None, None, None] for f in (schedule.alpha, schedule.sigma)
    )
    # The noise is what is left of x; the target then follows from its definition.
    eps = (net.x.double() - alpha * x0) / sigma
    target = {"eps": eps, "x0": x0.double(), "v": alpha * eps - sigma * x0, "flow": eps - x0}[prediction]
    assert value == pytest.approx(float(target.square().mean()), rel=1e-4)
    assert abs(float(eps.mean())) < 0.1 and abs(float(eps.std()) - 1) < 0.1


def test_times_are_uniform_over_the_table_and_over_the_range() -> None:
    torch.manual_seed(0)
    t, _ = DenoisingLoss(TABLE).draw(20_000)
    counts = torch.bincount(t.long(), minlength=20)
    assert len(counts) == 20 and torch.equal(t, t.round())
    # Binomial(20000, 1/20): mean 1000, standard deviation 31.
    assert (counts - 1000).abs().max() < 5 * 31
    flow = schedules.flow(0.1, 0.9)
    t, _ = DenoisingLoss(flow, prediction="flow").draw(20_000)
    assert 0.1 <= float(t.min()) < 0.101 and 0.899 < float(t.max()) <= 0.9
    assert float(t.mean()) == pytest.approx(0.5, abs=0.01) and float(t.std()) == pytest.approx(0.8 / 12**0.5, rel=0.02)


def _optimal(prediction: str, mean: float, std: float) -> Any:
    """The best predictor for pixels N(mean, std^2): the Gaussian posterior means of x0 and eps given x."""

    def net(x: Tensor, t: Tensor) -> Tensor:
        time = t.double().numpy()
        alpha, sigma = TABLE.alpha(time), TABLE.sigma(time)
        u, w = space_pair(prediction, alpha, sigma)
        a, s, on_x0, on_eps = (torch.tensor(c)[:, None, None, None] for c in (alpha, sigma, u, w))
        residual = (x.double() - a * mean) / (a**2 * std**2 + s**2)
        return on_x0 * (mean + a * std**2 * residual) + on_eps * s * residual

    return net


def least_loss(prediction: str, std: float) -> np.ndarray[Any, Any]:
    """The loss of the optimal predictor at each time: var(d | x) for Gaussian pixels."""
    t = np.arange(20.0)
    alpha, sigma = TABLE.alpha(t), TABLE.sigma(t)
    u, w = space_pair(prediction, alpha, sigma)
    # Given x, the errors in x0 and eps are tied by alpha x0 + sigma eps = x.
    return (u * sigma - w * alpha) ** 2 * std**2 / (alpha**2 * std**2 + sigma**2)


@pytest.mark.parametrize("prediction", SPACES)
@pytest.mark.parametrize("weighting", ["simple", "min_snr_5", "variational", "array"])
def test_optimal_predictor_has_the_least_loss(prediction: str, weighting: str) -> None:
    torch.manual_seed(0)
    mean, std = -0.2, 0.3
    gamma: Any = np.linspace(0.0, 3.0, 20) if weighting == "array" else weighting
    loss = DenoisingLoss(TABLE, prediction=prediction, weighting=gamma)
    x0 = mean + std * torch.randn(4000, 1, 8, 8)
    weights = loss.coefficients(np.arange(20.0))[:, 4]
    least = float((weights * least_loss(prediction, std)).mean())
    torch.manual_seed(1)
    got = np.mean([float(loss(_optimal(prediction, mean, std), x0)) for _ in range(5)])
    assert got == pytest.approx(least, rel=0.03)
    # Anything else does worse: a predictor that is off by a tenth of the spread.
    torch.manual_seed(1)
    worse = np.mean([float(loss(_optimal(prediction, mean + 0.1 * std, std), x0)) for _ in range(5)])
    assert worse > got


@pytest.mark.parametrize("weighting", ["min_snr_5", "variational"])
def test_named_weights_mean_the_same_in_every_space(weighting: str) -> None:
    # Weights that are defined on the error in x0 give the optimal predictor the same loss whatever it predicts.
    t = np.arange(20.0)
    weighted = [
        DenoisingLoss(TABLE, prediction=p, weighting=weighting).coefficients(t)[:, 4] * least_loss(p, 0.3)
        for p in SPACES
    ]
    for other in weighted[1:]:
        np.testing.assert_allclose(other, weighted[0], rtol=1e-10)


def test_weights_are_those_of_the_papers() -> None:
    t = np.arange(20.0)
    beta = np.linspace(0.02, 0.4, 20)
    abar = np.cumprod(1 - beta)
    snr = abar / (1 - abar)

    def gamma(prediction: str, weighting: str) -> Any:
        return DenoisingLoss(TABLE, prediction=prediction, weighting=weighting).coefficients(t)[:, 4]

    assert (gamma("v", "simple") == 1).all()
    # Hang et al. 2023, section 3.4.
    np.testing.assert_allclose(gamma("eps", "min_snr_5"), np.minimum(snr, 5) / snr, rtol=1e-10)
    np.testing.assert_allclose(gamma("x0", "min_snr_5"), np.minimum(snr, 5), rtol=1e-10)
    np.testing.assert_allclose(gamma("v", "min_snr_5"), np.minimum(snr, 5) / (snr + 1), rtol=1e-10)
    # Ho et al. 2020, eq. 12 with sigma_t^2 = beta_t.
    np.testing.assert_allclose(gamma("eps", "variational"), beta**2 / (2 * beta * (1 - beta) * (1 - abar)), rtol=1e-9)


def test_gamma_weighs_each_time_by_itself() -> None:
    torch.manual_seed(0)
    gamma = np.zeros(20)
    gamma[7] = 3.0
    loss, net = DenoisingLoss(TABLE, prediction="x0", weighting=gamma), Recorder()
    x0 = torch.randn(500, 1, 2, 2)
    value = float(loss(net, x0))
    assert value == pytest.approx(3.0 * float(x0[net.t == 7].square().sum()) / x0.numel(), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"prediction": "score"}, "unknown space .score.; choose x0, eps, v, flow"),
        ({"weighting": "snr"}, f"weighting = 'snr'; choose one of {', '.join(WEIGHTINGS)}"),
        ({"weighting": np.ones(19)}, r"shape \(19,\); the schedule has T = 20"),
        ({"weighting": np.full(20, np.nan)}, "gamma = nan at t = 0"),
        ({"weighting": -np.ones(20)}, "gamma = -1.0 at t = 0"),
        ({"schedule": schedules.flow(), "prediction": "eps"}, "alpha = 0 at t = 1.*train prediction=.v."),
        ({"schedule": schedules.flow(), "prediction": "v", "weighting": "variational"}, "needs a table of steps"),
        ({"schedule": schedules.flow(), "prediction": "v", "weighting": np.ones(20)}, "needs a table of steps"),
        ({"schedule": TABLE.zero_terminal_snr(), "prediction": "v", "weighting": "variational"}, "infinite at alpha"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DenoisingLoss(**{"schedule": TABLE, **arguments})


def test_zero_terminal_snr_trains_in_v() -> None:
    loss = DenoisingLoss(TABLE.zero_terminal_snr(), prediction="v", weighting="min_snr_5")
    last = loss.coefficients(np.array([19.0]))[0]
    np.testing.assert_allclose(last, [0, 1, -1, 0, 0], atol=1e-12)


def test_average_follows_its_closed_form() -> None:
    net = nn.Linear(3, 2)
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(1.0)
    ema = EMA(net, decay=0.5)
    values = [2.0, -1.0, 4.0, 0.5, 3.0, 3.0, -2.0, 1.0, 0.0, 5.0, 2.0, 2.5]
    want = 1.0
    for step, value in enumerate(values):
        with torch.no_grad():
            for p in net.parameters():
                p.fill_(value)
        ema.update(net, step)
        # The warm-up reaches the ceiling of 0.5 at step 8: (1 + 8) / (10 + 8).
        decay = (1 + step) / (10 + step) if step < 8 else 0.5
        want = decay * want + (1 - decay) * value
        for p in ema.net.parameters():
            torch.testing.assert_close(p, torch.full_like(p, want))
    assert not ema.net.training and not any(p.requires_grad for p in ema.net.parameters())
    assert all(p.requires_grad for p in net.parameters())


def test_average_is_kept_in_float32() -> None:
    net = nn.Linear(4, 4).to(torch.bfloat16)
    ema = EMA(net, decay=0.999)
    assert {p.dtype for p in ema.net.parameters()} == {torch.float32}
