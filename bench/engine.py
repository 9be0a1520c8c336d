"""The same network on OpenVINO, for long CPU measurements (`pip install openvino`)."""

from __future__ import annotations

from collections.abc import Callable

import openvino
import torch
from torch import Tensor, nn

BOUNDS = {"f32": 1e-4, "bf16": 0.1}  # largest difference from the network's own output that is accepted


def openvino_network(
    net: nn.Module, shape: tuple[int, ...], batch: int, precision: str = "f32"
) -> Callable[[Tensor, Tensor], Tensor]:
    """A callable f(x, t) for inputs of `batch` samples, one thread, computed in "f32" or "bf16".

    RuntimeError: its output differs from the network's own by more than `BOUNDS` allows.
    """
    x, t = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0)), torch.full((batch,), 500.0)
    made = openvino.convert_model(net, example_input=(x, t))
    made.reshape({0: list(x.shape), 1: [batch]})
    options = {"INFERENCE_NUM_THREADS": 1, "ENABLE_CPU_PINNING": False, "INFERENCE_PRECISION_HINT": precision}
    request = openvino.Core().compile_model(made, "CPU", options).create_infer_request()

    def run(x: Tensor, t: Tensor) -> Tensor:
        return torch.from_numpy(request.infer({0: x.numpy(), 1: t.numpy()})[0].copy())

    for level in (3.0, 500.0, 999.0):
        t = torch.full((batch,), level)
        with torch.no_grad():
            gap = float((run(x, t) - net(x, t)).abs().max())
        if not gap <= BOUNDS[precision]:
            raise RuntimeError(f"OpenVINO's network differs by {gap:.1e} at t = {level:g}")
    return run
