"""The moving average of the weights that sampling uses."""

import copy

import torch
from torch import Tensor, nn


class EMA:
    """`theta_ema <- d theta_ema + (1 - d) theta` after every step, with `d = min(decay, (1 + step) / (10 + step))`.

    The warm-up lets the first, poor weights be forgotten. `net` is a float32 copy in evaluation mode that holds the
    average, ready to sample from. Source: Ho et al. 2020, appendix B (decay 0.9999, without warm-up); the warm-up is
    that of TensorFlow's `ExponentialMovingAverage(num_updates=...)`.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay = decay
        self.net = copy.deepcopy(net).float().eval().requires_grad_(False)
        self._average: list[Tensor] = list(self.net.parameters())

    def rate(self, step: int) -> float:
        """The decay of the update after step `step` (0-based)."""
        return min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Move the average towards the weights of `net`: a few kernels for the whole network, no synchronisation."""
        torch._foreach_lerp_(self._average, [p.detach() for p in net.parameters()], 1.0 - self.rate(step))
