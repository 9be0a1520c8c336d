"""The whole loop, all rows and all evaluations of the network, as one CUDA graph: recorded once, then replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Loop = Callable[[Tensor, Tensor | None, list[Tensor]], None]  # (x, label, row noise), which changes x in place


class Recording(NamedTuple):
    """A graph and the tensors it reads and writes."""

    graph: torch.cuda.CUDAGraph
    x: Tensor
    label: Tensor | None
    noise: list[Tensor]
    bytes: int


class Recorder:
    """Recordings of one loop by batch size; the memory that they hold is in `pool`, bytes by batch size."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self._kept: dict[tuple[int, bool], Recording] = {}

    @property
    def pool(self) -> dict[int, int]:
        """Bytes that each batch size's recording holds on the device."""
        return {n: one.bytes for (n, _), one in self._kept.items()}

    def __call__(self, x: Tensor, label: Tensor | None, noise: list[Tensor]) -> Tensor:
        """The final state for x (n, ..), labels (n,) and a noise for each row that draws one, without waiting.

        The first call of a batch size records, which runs the loop twice.
        """
        key = len(x), label is not None
        if key not in self._kept:
            self._kept[key] = self._record(x, label, noise)
        kept = self._kept[key]
        kept.x.copy_(x)
        for there, here in zip(kept.noise, noise, strict=True):
            there.copy_(here)
        if kept.label is not None and label is not None:
            kept.label.copy_(label)
        kept.graph.replay()
        return kept.x.clone()

    def _record(self, x: Tensor, label: Tensor | None, noise: list[Tensor]) -> Recording:
        before = torch.cuda.memory_reserved(x.device)
        static = x.clone(), None if label is None else label.clone(), [z.clone() for z in noise]
        side = torch.cuda.Stream(x.device)
        side.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(side):  # libraries choose their kernels here, outside the recording
            self.loop(*static)
        torch.cuda.current_stream(x.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.loop(*static)
        return Recording(graph, *static, torch.cuda.memory_reserved(x.device) - before)
