"""Exported networks and samplers: `load` runs them with numpy and onnxruntime alone; `odediff.export` writes them.

`check` lists what TensorRT's parser would not take, `triton_repository` makes a folder for NVIDIA's Triton server.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .engines import ProviderError as ProviderError
from .loading import load as load
from .runtime import OnnxModel as OnnxModel
from .runtime import OnnxSampler as OnnxSampler

if TYPE_CHECKING:
    from .serving import triton_repository as triton_repository
    from .tensorrt import check as check

_HOME = {"check": "tensorrt", "triton_repository": "serving"}  # what needs the onnx package, or is rarely asked for

__all__ = ["OnnxModel", "OnnxSampler", "ProviderError", "check", "load", "triton_repository"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        home = import_module(f"{__name__}.{_HOME[name]}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"odediff.onnx.{name} needs {error.name}: pip install 'odediff[onnx]'", name=error.name
        ) from None
    return getattr(home, name)
