"""Gaussian data, on which a plan is an affine map of its start and its noises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from ..plans import Plan
from ..schedule import Array
from ..spaces import space_pair
from .plotting import check_path, figure, over_rows, save, style
from .solvers import need_plan


def gaussian_moments(plan: Plan, mean: ArrayLike, variance: ArrayLike) -> tuple[Array, Array]:
    """Mean and variance of every state when the data are N(mean, variance) and the network is exact.

    Then x0_hat = mean + alpha v (x - alpha mean) / (alpha^2 v + sigma^2) and eps_hat = (x - alpha x0_hat) / sigma,
    so a state is affine in the start and the noises, and its moments follow from the table without sampling.
    mean, variance: scalars or (D,) for D independent directions, variance at least 0.  Returns two float64 arrays,
    (S+1,) for scalars, else (S+1, D).
    ValueError: a negative or non-finite variance, a non-finite mean, shapes that are neither.
    """
    need_plan(plan)
    m, v = np.asarray(mean, dtype=np.float64), np.asarray(variance, dtype=np.float64)
    if not ((v >= 0) & (v < np.inf)).all():
        raise ValueError(f"variance = {v[~((v >= 0) & (v < np.inf))][0]} must be finite and not negative")
    if not np.isfinite(m).all():
        raise ValueError(f"mean = {m[~np.isfinite(m)][0]} must be finite")
    if max(m.ndim, v.ndim) > 1 or (m.ndim == v.ndim == 1 and m.shape != v.shape):
        raise ValueError(f"mean has shape {m.shape}, variance {v.shape}; expected scalars or (D,) of one length")
    m, v = np.broadcast_arrays(m, v)
    u, w = space_pair(plan.space, plan.alpha[:-1], plan.sigma[:-1])
    noise = {int(i): 2 + k for k, i in enumerate(np.flatnonzero(plan.c))}
    state = np.zeros((2 + len(noise), *m.shape))  # coefficients of 1, x_T and the noises
    state[1] = plan.prior_scale
    moments, history = [_moments(state)], list[Array]()
    for i in range(plan.nfe):
        alpha, sigma = plan.alpha[i], plan.sigma[i]
        gain = alpha * v / (alpha**2 * v + sigma**2)
        x0 = gain * state
        x0[0] += m * (1 - gain * alpha)
        history = [u[i] * x0 + w[i] * (state - alpha * x0) / sigma, *history[: plan.depth - 1]]
        state = plan.a[i] * state + sum(b * d for b, d in zip(plan.b[i], history, strict=False))
        if i in noise:
            state[noise[i]] += plan.c[i]
        moments.append(_moments(state))
    means, variances = zip(*moments, strict=True)
    return np.array(means), np.array(variances)


def _moments(state: Array) -> tuple[Array, Array]:
    return state[0].copy(), (state[1:] ** 2).sum(0)


def wasserstein_gaussian(plan: Plan, mean: ArrayLike, cov: ArrayLike, *, plot: str | Path | None = None) -> float:
    """2-Wasserstein distance between a plan's output on N(mean, cov) data, the network exact, and those data.

        W2^2 = |m - mean|^2 + tr(C + cov - 2 (cov^1/2 C cov^1/2)^1/2)         Gelbrich 1990, Theorem 2.1

    for an output N(m, C). C commutes with cov, so in cov's eigenvectors the trace is sum_k (sqrt C_k - sqrt cov_k)^2.
    Exact for stochastic plans too. Where a plan does not end at alpha = 1, sigma = 0, its output is compared with
    N(alpha mean, alpha^2 cov + sigma^2 I), the diffused data.
    mean: scalar or (D,).  cov: (D, D) symmetric and positive semidefinite, (D,) variances, or one variance.
    plot: a file for the distance of every state to the diffused data, over the rows.
    ValueError: shapes that do not fit, non-finite entries, a cov that is not symmetric or has a negative eigenvalue.
    """
    check_path(plot)
    m, v = _eigen(mean, cov)
    means, variances = gaussian_moments(plan, m, v)
    alpha, sigma = plan.alpha[:, None], plan.sigma[:, None]
    gap = (means - alpha * m) ** 2 + (np.sqrt(variances) - np.hypot(alpha * np.sqrt(v), sigma)) ** 2
    distances = np.sqrt(gap.sum(1))
    if plot is not None:
        _draw(distances, plan, plot)
    return float(distances[-1])


def _eigen(mean: ArrayLike, cov: ArrayLike) -> tuple[Array, Array]:
    """Mean and variance along the eigenvectors of cov, each (D,)."""
    m, c = np.asarray(mean, dtype=np.float64), np.asarray(cov, dtype=np.float64)
    square = c.ndim == 2 and c.shape[0] == c.shape[1]
    if m.ndim > 1 or not (c.ndim < 2 or square) or (m.ndim and c.ndim and len(m) != len(c)):
        raise ValueError(
            f"mean has shape {m.shape}, cov {c.shape}; expected a scalar or (D,), and a scalar, (D,) or (D, D)"
        )
    if not np.isfinite(m).all() or not np.isfinite(c).all():
        raise ValueError("mean and cov must be finite")
    if square:
        gap = np.abs(c - c.T).max()
        if gap > 1e-10 * np.abs(c).max():
            raise ValueError(f"cov is not symmetric: cov - cov^T has an entry of {gap:g}; pass (cov + cov.T) / 2")
        c, vectors = np.linalg.eigh(c)
        m = vectors.T @ np.broadcast_to(m, c.shape)
    m, c = np.broadcast_arrays(np.atleast_1d(m), np.atleast_1d(c))
    if c.min() < -1e-10 * np.abs(c).max():
        raise ValueError(f"cov has the negative eigenvalue {c.min():g}; a covariance has none")
    return m, np.maximum(c, 0.0)  # rounding of zero


def _draw(distances: Array, plan: Plan, path: str | Path) -> None:
    canvas, (axes,) = figure(1)
    axes.plot(np.where(distances > 0, distances, np.nan), **style(0))
    over_rows(axes, "2-Wasserstein distance to the diffused data", log=True)
    axes.set_xlabel("evaluations spent")
    axes.set_title(f"{plan.method or 'plan'}, {plan.nfe} evaluations")
    save(canvas, path)
