"""Time spent training, without the pauses for checkpoints and previews."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Counts seconds from its creation on, added to those of earlier runs; `lap` gives the rate since the last lap."""

    def __init__(self, device: torch.device, seconds: float, step: int) -> None:
        self._device = device
        self._total, self._since = seconds, time.perf_counter()
        self._lap = (seconds, step)

    @property
    def seconds(self) -> float:
        """Seconds so far, after waiting for the device."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self._total, self._since = self._total + now - self._since, now
        return self._total

    def lap(self, step: int) -> float:
        """Steps a second since the last lap."""
        seconds = self.seconds
        rate = (step - self._lap[1]) / max(seconds - self._lap[0], 1e-9)
        self._lap = (seconds, step)
        return rate

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count what happens inside."""
        _ = self.seconds
        try:
            yield
        finally:
            self._since = time.perf_counter()
