"""Exported networks and samplers: `load` runs them with numpy and onnxruntime alone; `odediff.export` writes them."""

from .runtime import OnnxModel as OnnxModel
from .runtime import OnnxSampler as OnnxSampler
from .runtime import load as load

__all__ = ["OnnxModel", "OnnxSampler", "load"]
