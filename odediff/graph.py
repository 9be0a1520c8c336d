"""The whole loop, all rows and all evaluations of the network, as one CUDA graph: recorded once, then replayed."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .noise import normal
from .philox import Streams

KEPT = 4  # recordings that a sampler has at a time
Run = Callable[[Tensor, Tensor | None, Callable[[int], Tensor]], None]  # (x, label, noise of a row), x in place


class Loop(Protocol):
    """All rows on buffers that keep their place: what is recorded."""

    x: Tensor

    def load(self, x: Tensor, label: Tensor | None, batch: Streams) -> None:
        """Write what a run starts from into the buffers."""

    def __call__(self) -> None:
        """All rows, on `x`: work of the device alone."""


class Eager:
    """The eager loop in buffers, for what no kernel runs; the noise of `rows`, which add some, is drawn beforehand."""

    def __init__(self, run: Run, x: Tensor, label: Tensor | None, rows: Sequence[int]) -> None:
        self._run, self.x = run, torch.empty_like(x)
        self._label = None if label is None else torch.empty_like(label)
        self._noise = {i: torch.empty_like(x) for i in rows}

    def load(self, x: Tensor, label: Tensor | None, batch: Streams) -> None:
        """Take x (n, ...), labels (n,) if it was made with some, and draw the rows' noise."""
        self.x.copy_(x)
        if self._label is not None and label is not None:
            self._label.copy_(label)
        for i, z in self._noise.items():
            z.copy_(normal(batch, i + 1, tuple(x.shape[1:]), device=x.device, dtype=x.dtype))

    def __call__(self) -> None:
        self._run(self.x, self._label, self._noise.__getitem__)


class Recording(NamedTuple):
    """A loop, what runs its graph, and the bytes that the graph holds beside the loop's buffers."""

    loop: Loop
    replay: Callable[[], None]
    bytes: int


class Recorder:
    """Recordings of a loop by batch size, dtype and whether there are labels: the `KEPT` that were used last.

    Each holds device memory; a kind of call that is not among them is recorded anew.  make: (x, label) -> the loop for
    states and labels like these.
    """

    def __init__(self, make: Callable[[Tensor, Tensor | None], Loop]) -> None:
        self._make = make
        self._kept: dict[tuple[int, torch.dtype, bool], Recording] = {}

    @property
    def pool(self) -> dict[int, int]:
        """Bytes that the graphs of each batch size hold on the device, beside the states that they begin with."""
        sizes = {n for n, *_ in self._kept}
        return {n: sum(one.bytes for key, one in self._kept.items() if key[0] == n) for n in sizes}

    def __call__(self, x: Tensor, label: Tensor | None, batch: Streams) -> Tensor:
        """The final state for x (n, ..), labels (n,) and the streams of the rows' noise, without waiting.

        The first call of its kind records, which runs the loop once more.
        """
        key = len(x), x.dtype, label is not None
        kept = self._kept.pop(key, None)
        if kept is None:
            while len(self._kept) >= KEPT:  # before the new one takes memory
                del self._kept[next(iter(self._kept))]
            loop = self._make(x, label)
            loop.load(x, label, batch)
            kept = Recording(loop, *capture(loop, x.device))
        self._kept[key] = kept  # the last is the newest
        loop, replay, _ = kept
        loop.load(x, label, batch)
        replay()
        return loop.x.clone(memory_format=torch.contiguous_format)


def capture(loop: Callable[[], None], device: torch.device) -> tuple[Callable[[], None], int]:
    """What runs the loop again as one CUDA graph, and the bytes of the graph's memory pool."""
    with torch.cuda.device(device):
        side, main = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(main)
        with torch.cuda.stream(side):  # kernels are compiled and chosen here, outside the recording
            loop()
        main.wait_stream(side)
        torch.cuda.synchronize()
        gc.collect()  # else memory freed while it records would be taken off the graph's
        torch.cuda.empty_cache()
        before, graph = torch.cuda.memory_reserved(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loop()
        return graph.replay, torch.cuda.memory_reserved() - before
