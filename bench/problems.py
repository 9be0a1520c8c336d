"""The problems of the work-precision measurement: a network f(x, t), counted, with a converged float64 reference.

    gaussian  64-D normal data, standard deviations 0.01 .. 1, the flow in closed form        eps
    modes     eight normals on a circle, 2-D                                                  v
    digits    a mixture of 20 normals fitted to scikit-learn's digits in [-1, 1], 64-D        eps
    mnist     the bundled network;  or any model folder

The first three are float64 networks with the exact score on DDPM's linear schedule, or another: `digits@cosine`. All
solvers call the same `Problem` with the same float32 noise. The flow is integrated from t_max to t_min, where x0 is
what the network predicts.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import odediff
from odediff.schedule import Schedule

EXACT = ("gaussian", "modes", "digits")
CACHE = Path(tempfile.gettempdir()) / "odediff-references"
Network = Callable[[Tensor, Tensor], Tensor]


class Mixture:
    """The exact network of sum_k w_k N(m_k, C_k) data: x (N, *shape) of any dtype, t (N,) equal times; float64 inside.

    weights: (K,).  means: (K, D).  covariances: (K, D, D).  prediction: "eps" or "v".
    """

    def __init__(
        self, weights: Tensor, means: Tensor, covariances: Tensor, schedule: Schedule, prediction: str
    ) -> None:
        self.log_weights, self.means, self.schedule, self.prediction = weights.log(), means, schedule, prediction
        values, self.vectors = torch.linalg.eigh(covariances)
        self.values = values.clamp_min(0.0)

    def scales(self, t: float) -> tuple[float, float]:
        """(alpha, sigma) at t, which float32 may have rounded past t_max."""
        t = min(max(t, self.schedule.t_end), self.schedule.t_max)
        return float(self.schedule.alpha(t)), float(self.schedule.sigma(t))

    def _parts(self, x: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        """log w_k N(x; alpha m_k, V_k), V_k = alpha^2 C_k + sigma^2 I; V_k's eigenvalues; x - alpha m_k in its axes."""
        gap = torch.einsum("kde,nkd->nke", self.vectors, x[:, None] - alpha * self.means)
        v = alpha**2 * self.values + sigma**2
        return self.log_weights - 0.5 * ((gap**2 / v).sum(-1) + (2 * torch.pi * v).log().sum(-1)), v, gap

    def log_density(self, x: Tensor, t: float) -> Tensor:
        """log p_t(x) for x (N, D) float64."""
        return torch.logsumexp(self._parts(x, *self.scales(t))[0], 1)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.scales(float(t.flatten()[0]))
        log, v, gap = self._parts(x.double().flatten(1), alpha, sigma)
        share = torch.softmax(log, 1)[..., None]
        eps = (share * torch.einsum("kde,nke->nkd", self.vectors, sigma * gap / v)).sum(1)
        if self.prediction == "v":
            pull = torch.einsum("kde,nke->nkd", self.vectors, alpha * self.values / v * gap)
            eps = alpha * eps - sigma * (share * (self.means + pull)).sum(1)
        return eps.view_as(x).to(x.dtype)


class Problem:
    """A network that counts: `problem(x, t)` for x (n, *shape) is one evaluation. Plain-callable `model` runs ours."""

    def __init__(self, name: str, net: Network, model: odediff.Model, n: int, dtype: torch.dtype | None = None) -> None:
        self.name, self.net, self.dtype, self.used = name, net, dtype, 0
        self.schedule, self.prediction, self.shape = model.schedule, model.prediction, model.shape
        self.model = odediff.Model(
            self, schedule=model.schedule, prediction=model.prediction, shape=model.shape, range=None
        )
        self.noise = torch.randn(n, *model.shape, generator=torch.Generator().manual_seed(1))

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        if x.shape != self.noise.shape:
            raise ValueError(f"one evaluation is of the whole batch {tuple(self.noise.shape)}, got {tuple(x.shape)}")
        self.used += 1
        t = torch.as_tensor(t, dtype=torch.float32).expand(len(x))
        out = self.net(x if self.dtype is None else x.to(self.dtype), t)
        return out.to(x.dtype)

    def scales(self, t: float) -> tuple[float, float]:
        """(alpha, sigma) at a time within the table."""
        t = min(max(t, self.schedule.t_min), self.schedule.t_max)
        return float(self.schedule.alpha(t)), float(self.schedule.sigma(t))

    def predict(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """(x0, eps) at time t from one evaluation, for a variance-preserving x."""
        alpha, sigma = self.scales(t)
        out = self(x, torch.tensor(t))
        if self.prediction == "v":
            return alpha * x - sigma * out, sigma * x + alpha * out
        return (x - sigma * out) / alpha, out

    def reference(self, nfe: int) -> tuple[Tensor, float]:
        """The converged x0 in float64, and the median RMS distance of a second solver's; remembered in `CACHE`."""
        probe = self.net(self.noise, torch.full((len(self.noise),), 500.0)).numpy()
        key = hashlib.sha256(probe.tobytes() + repr((nfe, self.schedule.fingerprint)).encode()).hexdigest()[:16]
        path = CACHE / f"{self.name}-{key}.npz"
        if path.is_file():
            saved = np.load(path)
            return torch.from_numpy(saved["x0"]), float(saved["doubt"])
        x0, other = (
            self.solve(odediff.plan(name, self.schedule, nfe, grid, space=space, variable=variable))
            for name, grid, space, variable in (("rk4", "asinh", "flow", "tau"), ("abm4", "logsnr", "eps", "lam"))
        )
        if self.name.partition("@")[0] == "gaussian":
            x0 = gaussian_flow(self)
        doubt = errors(other, x0)["median"]
        CACHE.mkdir(exist_ok=True)
        np.savez(path, x0=x0.numpy(), doubt=doubt)
        return x0, doubt

    def solve(self, plan: odediff.Plan) -> Tensor:
        """A plan's samples, in float64."""
        return odediff.Sampler(self.model, plan)(self.noise.double())


def gaussian_flow(problem: Problem) -> Tensor:
    """The flow of normal data in closed form from t_max to t_min, and the mean x0 there: per axis of the covariance

    x' = alpha' m + sqrt((alpha'^2 c + sigma'^2) / (alpha^2 c + sigma^2)) (x - alpha m).
    """
    net = problem.net
    assert isinstance(net, Mixture)
    mean, c, axes = net.means[0], net.values[0], net.vectors[0]
    (a, s), (a2, s2) = net.scales(problem.schedule.t_max), net.scales(problem.schedule.t_min)
    gap = (problem.noise.double().flatten(1) - a * mean) @ axes
    gap = gap * ((a2**2 * c + s2**2) / (a**2 * c + s**2)).sqrt()
    return (mean + (a2 * c / (a2**2 * c + s2**2) * gap) @ axes.T).view(problem.noise.shape)


def errors(x: Tensor, reference: Tensor) -> dict[str, float]:
    """RMSE over all, median and 95th percentile over samples of the RMS over a sample's values."""
    square = (x.double() - reference).square().flatten(1).mean(1)
    each = square.sqrt()
    return {
        "rmse": float(square.mean().sqrt()),
        "median": float(each.median()),
        "p95": float(torch.quantile(each, 0.95)),
    }


def _digits() -> tuple[Tensor, Tensor, Tensor]:
    from sklearn.datasets import load_digits
    from sklearn.mixture import GaussianMixture

    data = load_digits().data / 8.0 - 1.0
    fit = GaussianMixture(20, reg_covar=1e-3, random_state=0).fit(data)
    return tuple(torch.from_numpy(part) for part in (fit.weights_, fit.means_, fit.covariances_))  # type: ignore[return-value]


def exact(name: str, n: int = 256) -> Problem:
    """One of `EXACT`, on the schedule named behind an "@", else linear."""
    data, _, named = name.partition("@")
    schedule = getattr(odediff.schedule, named or "linear")()
    shape: tuple[int, ...] = (1, 8, 8)
    prediction = "eps"
    if data == "gaussian":
        generator = torch.Generator().manual_seed(0)
        means = 0.3 * torch.randn(1, 64, generator=generator, dtype=torch.float64)
        parts = torch.ones(1, dtype=torch.float64), means, torch.logspace(-4, 0, 64, dtype=torch.float64).diag()[None]
    elif data == "modes":
        angle = 2 * torch.pi * torch.arange(8, dtype=torch.float64) / 8
        identity = torch.eye(2, dtype=torch.float64)
        parts = torch.full((8,), 0.125).double(), torch.stack([angle.cos(), angle.sin()], 1), 0.01 * identity[None]
        parts = (*parts[:2], parts[2].expand(8, 2, 2))
        shape, prediction = (2, 1, 1), "v"
    else:
        parts = _digits()
    net = Mixture(*parts, schedule, prediction)
    return Problem(name, net, odediff.Model(net, schedule=schedule, prediction=prediction, shape=shape, range=None), n)


def network(source: str, n: int = 16, engine: str = "torch") -> Problem:
    """A trained network, bundled or a folder. engine: "openvino" runs it faster on a CPU.

    ValueError: a network of whole times only (peers ask for fractional ones), not of a table, or not in eps or v.
    """
    model = odediff.load(source)
    if model.integer_times or model.schedule.steps is None or model.prediction not in ("eps", "v"):
        raise ValueError(f"{source!r}: the peers need an eps or v network of fractional times on a table of steps")
    net = model.net
    if engine == "openvino":
        from engine import openvino_network

        net = openvino_network(model.net, model.shape, n)
    return Problem(Path(source).resolve().name, net, model, n, torch.float32)
