"""All rows of a plan with one kernel, `kernels.stage`, between two evaluations of the network."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from .philox import Streams
from .plans import Plan
from .prediction import Prediction

FORMATS = {3: torch.channels_last, 4: torch.channels_last_3d}  # by the rank of one sample


class Staged:
    """A run on n samples, in buffers that keep their place: a CUDA graph of a run serves every later `load`.

        run.load(x, label, batch)      what a run starts from
        run()                          all rows, on `run.x`: noise and coefficients come from the device

    Rows are channels last where the network's weights are.  ValueError: what `kernels.stage.Stage` refuses.
    """

    def __init__(self, prediction: Prediction, plan: Plan, n: int) -> None:
        from .kernels.stage import Stage

        model = prediction.model
        self._prediction, self._nfe, self._null = prediction, plan.nfe, model.num_classes
        self._format = layout(model.net, len(model.shape))
        self._stage = Stage(prediction, plan, n, memory_format=self._format)
        self.x, calls = self._stage.x, len(self._stage.times)
        self._labels = None if self._null is None else torch.empty(calls, dtype=torch.int64, device=self.x.device)

    def load(self, x: Tensor, label: Tensor | None, batch: Streams) -> None:
        """Take x (n, *shape) float32, labels from `checked_label`, and the streams of the rows' noise.

        ValueError: not as many labels or streams as samples, guidance without label, x of another shape or dtype.
        """
        labels = self._prediction.labels(label, x)
        if self._labels is not None and self._null is not None:
            self._labels.copy_(labels) if labels is not None else self._labels.fill_(self._null)
        self._stage.load(x, batch)

    def __call__(self, after: Callable[[], Any] | None = None) -> None:
        """All rows.  after: called after each."""
        stage, net = self._stage, self._prediction.model.net
        labels = () if self._labels is None else (self._labels,)
        stage.rewind()
        for _ in range(self._nfe):
            out = net(stage.input, stage.times, *labels)
            out = getattr(out, "sample", out)
            if not isinstance(out, Tensor):
                raise ValueError(f"the network returned {type(out).__name__}; expected a tensor")
            stage(out.contiguous(memory_format=self._format) if out.shape == stage.input.shape else out)
            if after is not None:
                after()


def layout(net: Any, rank: int) -> torch.memory_format:
    """Channels last if the convolutions' weights are, for samples of this rank; a kernel of one point can be either."""
    if not isinstance(net, nn.Module) or rank not in FORMATS:
        return torch.contiguous_format
    weights = [w for w in net.parameters() if w.ndim == rank + 1 and not w.is_contiguous()]
    last = any(w.is_contiguous(memory_format=FORMATS[rank]) for w in weights)
    return FORMATS[rank] if last else torch.contiguous_format


def refusal(prediction: Prediction) -> tuple[str, str] | None:
    """Why rows are not run by the kernel, and the remedy; None: they can be."""
    if find_spec("triton") is None:
        return "triton is not installed", "pip install 'odediff[triton]'"
    from .kernels.stage import refusal as of_stage

    return of_stage(prediction, prediction.model.dtype or torch.float32)
