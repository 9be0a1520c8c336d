"""Solvers of the diffusion SDE: history in x0 space, one noise a row.

Where x0 is held fixed every row's noise is exact: with h = lam' - lam it lowers what is left of the old noise,
sigma'/sigma x e^{-tau^2 h}, below sigma' by just what z adds back, sigma' sqrt(1 - e^{-2 tau^2 h}).
"""

from __future__ import annotations

import numpy as np

from ..schedule import Array
from ..trace import Network, Point
from .frame import Grid, expansion
from .multistep import History, differences, recent, row_orders

FORMS = ("exact", "few_steps")


def euler_ancestral(f: Network, x: Array, grid: Grid, *, eta: float) -> Array:
    """Euler in (x / alpha, rho) to sigma_down, then noise up to sigma' (Crowson, k-diffusion: sample_euler_ancestral).

        sigma_up = rho' min(1, eta sqrt(1 - (rho' / rho)^2)),    sigma_down = sqrt(rho'^2 - sigma_up^2)

    For eta <= 1 it is `ddim` of the same eta, on every schedule; above, noise is held to rho'. ValueError: eta < 0.
    """
    if not 0 <= eta < np.inf:
        raise ValueError(f"eta = {eta} must be finite and not negative: 0 is Euler, 1 the ancestral sampler")
    for p, to in zip(grid.points, grid.points[1:], strict=False):
        x0 = f(x, p)
        up = to.rho * min(1.0, eta * np.sqrt(1 - (to.rho / p.rho) ** 2))
        down = np.sqrt(to.rho**2 - up**2)
        x = to.alpha * (x0 + down * (x - p.alpha * x0) / p.sigma)
        if up > 0:
            x = x + to.alpha * up * f.noise()
    return x


def sde_dpmpp_2m(f: Network, x: Array, grid: Grid) -> Array:
    """SDE-DPM-Solver++(2M), the diffusion SDE with x0 extrapolated as in DPM-Solver++ 2M (Lu et al. 2022b, appendix).

        x' = sigma'/sigma e^-h x + alpha' (1 - e^-2h) (d_i + (d_i - d_{i-1}) / (2 r)) + sigma' sqrt(1 - e^-2h) z
        h = lam' - lam,   r = (lam_i - lam_{i-1}) / h

    Without the difference it is SDE-DPM-Solver++(1), which is `ddim` with eta = 1.
    """
    old, before = 0.0 * x, -np.inf
    for start, end in zip(grid.points, grid.points[1:], strict=False):
        d = f(x, start)
        if end.sigma == 0:
            return d
        h = end.lam - start.lam
        r = (start.lam - before) / h if start.alpha else np.inf
        x0 = d + (d - old) / (2 * r)
        x = end.sigma / start.sigma * np.exp(-h) * x - end.alpha * np.expm1(-2 * h) * x0
        x = x + end.sigma * np.sqrt(-np.expm1(-2 * h)) * f.noise()
        old, before = d, start.lam
    return x


def sde_dpmpp_3m(f: Network, x: Array, grid: Grid, *, eta: float) -> Array:
    """DPM-Solver++(3M) on the SDE whose squared noise is eta times the reverse SDE's (Crowson, k-diffusion:
    sample_dpmpp_3m_sde).

        x' = sigma'/sigma e^(-eta h) x - alpha' expansion(-(1 + eta) h, d, D1, D2) + sigma' sqrt(1 - e^(-2 eta h)) z

    with the published differences of `dpmpp`, the second row with D1 = (d_i - d_{i-1}) / r alone (`frame.expansion`).
    eta = 0 is the ODE, eta = 1 the reverse SDE, where the first row is `ddim` with eta = 1. ValueError: eta < 0.
    """
    if not 0 <= eta < np.inf:
        raise ValueError(f"eta = {eta} must be finite and not negative: 0 is the ODE, 1 the reverse SDE")
    d: list[Array] = []
    lam = [p.lam for p in grid.points]
    for i, (start, end) in enumerate(zip(grid.points, grid.points[1:], strict=False)):
        d.insert(0, f(x, start))
        if end.sigma == 0:
            return d[0]
        h, ratio = lam[i + 1] - lam[i], end.rho / start.rho  # ratio = e^-h, 0 where alpha = 0
        if not np.isfinite(h):
            update = -d[0]
        elif i < 2:
            update = expansion(-(1 + eta) * h, d[0], (d[0] - d[1]) * h / (lam[i] - lam[i - 1]) if i else 0.0)
        else:
            update = expansion(-(1 + eta) * h, d[0], *differences(d, lam[i - 2 : i + 2]))
        x = end.sigma / start.sigma * ratio**eta * x - end.alpha * update
        if eta > 0:
            x = x + end.sigma * np.sqrt(1 - ratio ** (2 * eta)) * f.noise()
    return x


def sa_solver(
    f: Network,
    x: Array,
    grid: Grid,
    *,
    tau: float,
    predictor: int,
    corrector: int,
    s_tmin: float,
    s_tmax: float | None,
    form: str = "exact",
    orders: str = "",
) -> Array:
    """SA-Solver: Adams on the SDE whose noise is tau times the reverse SDE's (Xue et al. 2023, eq. 15 and 18).

        x' = sigma'/sigma e^(-tau^2 h) x + alpha' sum_j w_j d_j + sigma' sqrt(1 - e^(-2 tau^2 h)) z,    h = lam' - lam
        w_j = (1 + tau^2) int_lam^lam' e^((1 + tau^2) (l - lam')) L_j(l) dl

    over the last `predictor` predictions, 1 to 4, then again from the same x and z over the one made at x' and
    `corrector` earlier ones, 0 (no correction) to 3. tau >= 0 where s_tmin <= rho <= s_tmax at a step's start (None: no
    bound), else 0; tau = 0 is the ODE, tau = 1 with predictor = 1 and corrector = 0 `ddim` with eta = 1.
    form: "exact", or "few_steps", which puts (1 + tau^2) h^2 / 2 for the integral that the slope of two predictions is
    multiplied with (the authors' adams_.._update_few_steps, ib. appendix D).
    orders: the most predictions of the predictor, and of earlier ones in the corrector, in every row, one digit each,
    as the authors' lower_order_final falls to 1 at the end ("3333321"); empty: no bound.
    ValueError: an option outside these ranges.
    """
    if form not in FORMS:
        raise ValueError(f"unknown form = {form!r}; choose {' or '.join(FORMS)}")
    most = row_orders(4, orders, len(grid.points) - 1)
    low, high = noise_levels(s_tmin, s_tmax)
    if not 0 <= tau < np.inf:
        raise ValueError(f"tau = {tau} must be finite and not negative: 0 is the ODE, 1 the reverse SDE")
    for name, count, least in (("predictor", predictor, 1), ("corrector", corrector, 0)):
        if isinstance(count, bool) or count not in range(least, least + 4):
            raise ValueError(f"{name} = {count!r} must be a whole number in {least} .. {least + 3}")
    history: History = []
    previous, noise, squared = x, 0.0 * x, 0.0  # of the row before: its start, its noise term and tau^2
    for i, (start, end) in enumerate(zip(grid.points, grid.points[1:], strict=False)):
        new = (f(x, start), start)
        if history and corrector and history[-1][1].alpha:
            nodes = [new, *recent(grid, history, min(corrector, most[i - 1]))]
            x = _row(grid, previous, nodes, squared, history[-1][1], start, form) + noise
        history.append(new)
        if end.sigma == 0:
            return new[0]
        squared = tau**2 if low <= start.rho <= high else 0.0
        scale = end.sigma * np.sqrt(1 - (end.rho / start.rho) ** (2 * squared))
        previous, noise = x, scale * f.noise() if scale > 0 else 0.0 * x
        nodes = recent(grid, history, min(predictor, most[i])) or [new]
        x = _row(grid, x, nodes, squared, start, end, form) + noise
    return x


def _row(grid: Grid, x: Array, nodes: History, squared: float, start: Point, end: Point, form: str) -> Array:
    """The row without its noise, in the authors' form for few steps where two predictions make a slope."""
    if form == "exact" or len(nodes) != 2:
        return _adams(grid, x, nodes, squared, start, end)
    (d0, p0), (d1, p1) = nodes
    ratio, power, h = end.rho / start.rho, 1 + squared, end.lam - start.lam
    d = d0 if p0 is start else d1
    update = (1 - ratio**power) * d + power * h**2 / 2 * (d0 - d1) / (p0.lam - p1.lam)
    return end.sigma / start.sigma * ratio**squared * x + end.alpha * update


def _adams(grid: Grid, x: Array, nodes: History, squared: float, start: Point, end: Point) -> Array:
    """The row without its noise; the newest weight takes what is missing from the exact sum, 1 - e^(-(1 + tau^2) h)."""
    ratio, power = end.rho / start.rho, 1 + squared  # ratio = e^-h, 0 where alpha = 0
    density = lambda lam: power * np.exp(power * (lam - end.lam))  # noqa: E731
    weights = grid.integrals([p for _, p in nodes], start, end, density, 1 - ratio**power)
    total = sum((w * d for w, (d, _) in zip(weights, nodes, strict=True)), 0.0 * x)
    return end.sigma / start.sigma * ratio**squared * x + end.alpha * total


def noise_levels(s_tmin: float, s_tmax: float | None) -> tuple[float, float]:
    """The range of rho that these options name; None is no upper bound. ValueError: no range, or not finite."""
    high = np.inf if s_tmax is None else s_tmax
    if not 0 <= s_tmin <= high or np.inf in (s_tmin, s_tmax):
        raise ValueError(
            f"s_tmin = {s_tmin}, s_tmax = {s_tmax} must be finite with 0 <= s_tmin <= s_tmax; None is no upper bound"
        )
    return s_tmin, high
