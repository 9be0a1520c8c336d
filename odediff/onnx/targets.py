"""Which opset a file gets: measured for onnxruntime, documented for TensorRT."""

from __future__ import annotations

import re

# From 21 on torch.onnx emits GroupNormalization, which onnxruntime's CPU provider expands, and from 23 Attention; both
# ran slower there than what 20 says in smaller operators. TensorRT parses them from these versions on.
ONNXRUNTIME = 20
TENSORRT = {(10, 14): 23, (10, 9): 21, (0, 0): 20}
RANGE = (18, 23)


def opset_of(target: str) -> int:
    """The opset for "onnxruntime", "tensorrt" (the newest) or "tensorrt-10.9" (a version). ValueError: another name."""
    if target == "onnxruntime":
        return ONNXRUNTIME
    found = re.fullmatch(r"tensorrt(?:-(\d+)\.(\d+)[.\d]*)?", target) if isinstance(target, str) else None
    if not found:
        raise ValueError(f'target = {target!r}; choose "onnxruntime", "tensorrt", or a version such as "tensorrt-10.9"')
    version = (int(found[1]), int(found[2])) if found[1] else max(TENSORRT)
    return next(opset for least, opset in TENSORRT.items() if version >= least)
