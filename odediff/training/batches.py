"""The order of the data: which images make up step k, a function of the seed and k alone."""

import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .data import Labels, Pixels


class Batches:
    """Batches of scaled images, `x / 127.5 - 1`, drawn from one shuffled pass over the data after another.

    Pass `e` is a permutation from a generator seeded with (seed, e), so batch k is known without the k - 1 before it: a
    resumed run reads on where it stopped. Batches are always full and run across the end of a pass. The bytes move to
    `device` once if they fill less than half of what is free there.
    """

    def __init__(
        self,
        images: Pixels,
        batch_size: int,
        *,
        seed: int,
        flip: bool,
        device: torch.device,
        labels: Labels | None = None,
        num_classes: int | None = None,
        label_dropout: float = 0.0,
    ) -> None:
        self.batch_size, self.seed, self.flip, self.device = batch_size, seed, flip, device
        self._home = device if _fits(images.nbytes, device) else torch.device("cpu")
        self._images = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(self._home)
        self._labels = None if labels is None else torch.from_numpy(labels)
        self._null, self._dropout = num_classes, label_dropout
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    @property
    def epoch_steps(self) -> float:
        """Steps in one pass over the data."""
        return len(self._images) / self.batch_size

    def indices(self, step: int) -> Tensor:
        """The images of batch `step` (0-based): (batch_size,), int64."""
        total, start = len(self._images), step * self.batch_size
        parts, left = [], self.batch_size
        while left:
            epoch, offset = divmod(start, total)
            part = self._permutation(epoch)[offset : offset + left]
            parts.append(part)
            start, left = start + len(part), left - len(part)
        return torch.cat(parts)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            seed = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1, np.uint64)[0])
            generator = torch.Generator().manual_seed(seed)
            self._order = torch.randperm(len(self._images), generator=generator).to(self._home)
            self._epoch = epoch
        return self._order

    def __call__(self, step: int) -> Tensor:
        """Batch `step`, float32 (batch_size, C, H, W) on the device; mirrored with torch's default generator."""
        batch = self._images[self.indices(step)]
        if self._home != self.device:
            batch = batch.pin_memory().to(self.device, non_blocking=True)
        x = batch.to(torch.float32, memory_format=torch.channels_last).div_(127.5).sub_(1.0)
        if self.flip:
            mirrored = torch.rand(len(x), 1, 1, 1, device=self.device) < 0.5
            x = torch.where(mirrored, x.flip(-1), x)
        return x

    def labels(self, step: int) -> Tensor | None:
        """The classes of batch `step`, int64 (batch_size,) on the device, or None where there are none.

        Each is the null label, num_classes, with probability label_dropout: Ho & Salimans 2022, Algorithm 1, line 3;
        which ones is a function of the seed and `step` alone.
        """
        if self._labels is None:
            return None
        label = self._labels[self.indices(step).cpu()]
        seed = int(np.random.SeedSequence([self.seed, step, 1]).generate_state(1, np.uint64)[0])
        dropped = torch.rand(len(label), generator=torch.Generator().manual_seed(seed)) < self._dropout
        return torch.where(dropped, self._null, label).to(self.device)  # type: ignore[arg-type]


def _fits(size: int, device: torch.device) -> bool:
    return device.type != "cuda" or size < torch.cuda.mem_get_info(device)[0] / 2


def data_fingerprint(images: Pixels, labels: Labels | None = None) -> dict[str, Any]:
    """What a checkpoint remembers of its data: shape and CRC-32, and that of the labels if there are any."""
    found: dict[str, Any] = {"shape": list(images.shape), "crc32": zlib.crc32(np.ascontiguousarray(images).data)}
    return found if labels is None else {**found, "labels_crc32": zlib.crc32(np.ascontiguousarray(labels).data)}
