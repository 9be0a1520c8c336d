"""Networks whose flow is known, for the tests of tuning: modules, with weights, a dtype and derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import odediff
from odediff.schedule import Schedule

LINEAR = odediff.schedule.linear()
PAIRS = {"x0": lambda a, s: (1.0, 0.0), "eps": lambda a, s: (0.0, 1.0), "v": lambda a, s: (-s, a)}
PAIRS["flow"] = lambda a, s: (-1.0, 1.0)


class Exact(nn.Module):
    """The exact denoiser of K normals of means (K, D) and one diagonal of standard deviations (D,).

    labelled: label k < K asks for normal k alone, the null label K for all of them.
    """

    def __init__(self, means: Any, std: Any, prediction: str, schedule: Schedule, labelled: bool) -> None:
        super().__init__()
        self.register_buffer("means", torch.as_tensor(means, dtype=torch.float64))
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float64).expand(self.means.shape[1]).clone())
        self.prediction, self.schedule, self.labelled, self.calls = prediction, schedule, labelled, 0

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        self.calls += len(x)
        alpha, sigma = float(self.schedule.alpha(float(t[0]))), float(self.schedule.sigma(float(t[0])))
        variance = alpha**2 * self.std**2 + sigma**2
        gap = x[:, None] - alpha * self.means
        score = -(gap**2 / variance).sum(2) / 2
        if label is not None:
            own = torch.nn.functional.one_hot(label, len(self.means) + 1)
            score = score.where((own[:, :-1] + own[:, -1:]) > 0, torch.full_like(score, -torch.inf))
        each = self.means + alpha * self.std**2 / variance * gap
        x0 = (score.softmax(1)[..., None] * each).sum(1)
        u, w = PAIRS[self.prediction](alpha, sigma)
        return u * x0 + w * (x - alpha * x0) / sigma


MIXTURE = [[1.0, 0.5, 0.0], [-0.8, 0.3, 0.4], [0.1, -1.0, -0.6]]


def exact(
    means: Any = MIXTURE,
    std: Any = 0.3,
    prediction: str = "v",
    schedule: Schedule = LINEAR,
    labelled: bool = False,
    **options: Any,
) -> odediff.Model:
    """A model around `Exact`, without a range unless one is given."""
    net = Exact(means, std, prediction, schedule, labelled)
    classes = len(net.means) if labelled else None
    shape = (net.means.shape[1],)
    options = {"range": None, **options}
    return odediff.Model(net, schedule=schedule, prediction=prediction, shape=shape, num_classes=classes, **options)


def normal_flow(model: odediff.Model, noise: Tensor) -> Tensor:
    """Where the flow of one normal ends, in closed form: x0 = m + s (x_T - alpha m) / sqrt(alpha^2 s^2 + sigma^2)."""
    net, s = model.net, model.schedule
    assert isinstance(net, Exact) and len(net.means) == 1
    alpha, sigma = float(s.alpha(s.t_max)), float(s.sigma(s.t_max))
    x = (alpha**2 + sigma**2) ** 0.5 * noise.double()
    return net.means[0] + net.std * (x - alpha * net.means[0]) / (alpha**2 * net.std**2 + sigma**2).sqrt()


def unit(n: int = 6, size: int = 3, seed: int = 4) -> Tensor:
    return torch.randn(n, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
