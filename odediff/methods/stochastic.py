"""The DDPM..DDIM family: one evaluation and one noise a row, in x0 space."""

from __future__ import annotations

import numpy as np

from ..schedule import Array
from ..trace import Network
from .frame import Grid

VARIANCES = ("fixed_small", "fixed_large")


def ddim(f: Network, x: Array, grid: Grid, *, eta: float = 0.0) -> Array:
    """x' = alpha' x0 + sqrt(sigma'^2 - c^2) eps + c z,  c = eta sigma'/sigma sqrt(sigma^2 - (alpha/alpha')^2 sigma'^2).

    eta = 0 is DDIM, eta = 1 DDPM's posterior (Song et al. 2021a, eq. 12 and 16). ValueError: eta outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta = {eta} is outside [0, 1]: 0 is DDIM, 1 is DDPM")
    return _ancestral(f, x, grid, eta=float(eta), large=False)


def ddpm(f: Network, x: Array, grid: Grid, *, variance: str = "fixed_small") -> Array:
    """DDPM's ancestral step: mean and variance of q(x'|x, x0), no noise in the last row.

    Ho et al. 2020, eq. 7 and Algorithm 2. The variance of the noise is
    fixed_small: sigma'^2/sigma^2 beta, the posterior's;  fixed_large: beta = sigma^2 - (alpha/alpha')^2 sigma'^2,
    section 3.2. ValueError: another variance.
    """
    if variance not in VARIANCES:
        raise ValueError(f"unknown variance {variance!r}; choose {' or '.join(VARIANCES)}")
    return _ancestral(f, x, grid, eta=1.0, large=variance == "fixed_large")


def _ancestral(f: Network, x: Array, grid: Grid, *, eta: float, large: bool) -> Array:
    for p, to in zip(grid.points, grid.points[1:], strict=False):
        x0 = f(x, p)
        beta = np.sqrt(max(p.sigma**2 - (p.alpha / to.alpha * to.sigma) ** 2, 0.0))
        c = eta * to.sigma / p.sigma * beta
        x = to.alpha * x0 + np.sqrt(to.sigma**2 - c**2) * (x - p.alpha * x0) / p.sigma
        if c > 0:
            x = x + (beta if large else c) * f.noise()
    return x
