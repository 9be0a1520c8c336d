"""The objective of training: draw a time, add noise, predict it (Ho et al. 2020, Algorithm 1).

    L = E_{t, x0, eps} gamma_t || d - net(alpha_t x0 + sigma_t eps, t) ||^2,    d = u_t x0 + w_t eps

with `t` uniform. For d = eps and gamma = 1 this is L_simple, eq. 14. The norm is a mean over pixels.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..schedule import Array, Schedule
from ..spaces import space_pair

Network = Callable[[Tensor, Tensor], Tensor]


def _x0_error(alpha: Array, sigma: Array, u: Array, w: Array) -> Array:
    """Squared error in x0 per squared error in d, at fixed x: `(sigma / (u sigma - w alpha))^2`."""
    return (sigma / (u * sigma - w * alpha)) ** 2


def _simple(schedule: Schedule, t: Array, u: Array, w: Array) -> Array:
    """gamma = 1 in the network's own space: L_simple, Ho et al. 2020, eq. 14."""
    return np.ones_like(t)


def _min_snr_5(schedule: Schedule, t: Array, u: Array, w: Array) -> Array:
    """min(SNR, 5) on the error in x0, carried to the space of d: Hang et al. 2023, section 3.4 (gamma = 5)."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    # SNR * error is finite at alpha = 0 even where each factor is not.
    snr_error = (alpha / (u * sigma - w * alpha)) ** 2
    least: Array = np.minimum(snr_error, 5.0 * _x0_error(alpha, sigma, u, w))
    return least


def _variational(schedule: Schedule, t: Array, u: Array, w: Array) -> Array:
    """The weights of the variational bound with sigma_t^2 = beta_t: Ho et al. 2020, eq. 12.

    On the error in eps, `beta_t / (2 (1 - beta_t) (1 - abar_t))`; SNR times that on the error in x0.
    """
    if schedule.steps is None:
        raise ValueError(f'weighting "variational" needs a table of steps, which {schedule.identity} is not')
    abar = schedule.alpha(t) ** 2
    if abar[-1] == 0:
        raise ValueError('weighting "variational" is infinite at alpha = 0: use "simple" or "min_snr_5"')
    before = np.append(1.0, abar[:-1])
    beta = 1.0 - abar / before
    snr = abar / (1.0 - abar)
    on_x0 = snr * beta / (2.0 * (1.0 - beta) * (1.0 - abar))
    return on_x0 * _x0_error(schedule.alpha(t), schedule.sigma(t), u, w)


WEIGHTINGS: dict[str, Callable[[Schedule, Array, Array, Array], Array]] = {
    "simple": _simple,
    "min_snr_5": _min_snr_5,
    "variational": _variational,
}


class DenoisingLoss:
    """Algorithm 1 of Ho et al. 2020, for any schedule and prediction: `loss(net, x0)` is the mean of one batch.

    Times are uniform on {0, .., T - 1} for a table, on [t_min, t_max] for a continuous schedule. `weighting` is a name
    of `WEIGHTINGS` or an array (T,) of gamma_t >= 0, for tables only. Random numbers come from torch's default
    generators (of `device`; of the CPU for continuous times).

    Raises `ValueError` for an unknown prediction or weighting, a gamma of the wrong length or not finite.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        prediction: str = "eps",
        weighting: Any = "simple",
        device: torch.device | str = "cpu",
    ) -> None:
        if prediction == "eps" and schedule.alpha(schedule.t_max) == 0:
            raise ValueError(
                f'schedule "{schedule.identity["name"]}" has alpha = 0 at t = {schedule.t_max:g}, where "eps" '
                'says nothing of the data: train prediction="v", "flow" or "x0"'
            )
        self.schedule, self.prediction, self.weighting = schedule, prediction, weighting
        self.device = torch.device(device)
        self._table: Tensor | None = None
        if schedule.steps is not None:
            self._table = self._on_device(self.coefficients(np.arange(schedule.steps, dtype=np.float64)))
        elif not isinstance(weighting, str):
            raise ValueError(f"an array of weights needs a table of steps, which {schedule.identity} is not")
        else:
            self.coefficients(np.array([schedule.t_min]))

    def coefficients(self, t: Array) -> Array:
        """`alpha, sigma, u, w, gamma` at times `t`: (len(t), 5)."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        u, w = space_pair(self.prediction, alpha, sigma)
        return np.stack([alpha, sigma, u, w, self._gamma(t, u, w)], axis=1)

    def _gamma(self, t: Array, u: Array, w: Array) -> Array:
        if isinstance(self.weighting, str):
            if self.weighting not in WEIGHTINGS:
                raise ValueError(
                    f"weighting = {self.weighting!r}; choose one of {', '.join(WEIGHTINGS)}, or an array (T,)"
                )
            with np.errstate(divide="ignore", invalid="ignore"):
                gamma = WEIGHTINGS[self.weighting](self.schedule, t, u, w)
        else:
            gamma = np.asarray(self.weighting, dtype=np.float64)
            if gamma.shape != t.shape:
                raise ValueError(f"weighting has shape {gamma.shape}; the schedule has T = {len(t)} steps")
        bad = np.flatnonzero(~(np.isfinite(gamma) & (gamma >= 0)))
        if len(bad):
            raise ValueError(
                f"gamma = {gamma[bad[0]]} at t = {t[bad[0]]:g}: weights must be finite and not negative "
                f'(weighting {self.weighting!r:.40}, prediction "{self.prediction}")'
            )
        return gamma

    def _on_device(self, values: Array) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(self.device, non_blocking=True)

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        """`n` times (n,) and their coefficients (n, 5), both float32 on the device."""
        if self._table is not None:
            index = torch.randint(len(self._table), (n,), device=self.device)
            return index.float(), self._table[index]
        low, high = self.schedule.t_min, self.schedule.t_max
        t = low + (high - low) * torch.rand(n, dtype=torch.float64).numpy()
        return self._on_device(t), self._on_device(self.coefficients(t))

    def __call__(self, net: Network, x0: Tensor) -> Tensor:
        """The loss of `net` on images `x0` (N, C, H, W), float32 in [-1, 1]: a scalar."""
        t, table = self.draw(len(x0))
        alpha, sigma, u, w, gamma = (c.view(-1, 1, 1, 1) for c in table.unbind(1))
        eps = torch.randn_like(x0)
        error = net(alpha * x0 + sigma * eps, t).float() - (u * x0 + w * eps)
        return (gamma * error.square()).mean()
