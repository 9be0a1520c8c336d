"""A model's entry for the metadata of its file."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from .. import __version__
from ..model import Model
from .metadata import About
from .runtime import OnnxModel


def described(model: Model | OnnxModel, precision: str, *, license: str | None = None, **more: Any) -> About:
    """What the file says of the model; more: batch, memory, mark, and of a sampler plan, form, prediction_options."""
    return About(
        prediction=model.prediction,
        schedule=dict(model.schedule.identity),
        shape=model.shape,
        range=model.range,
        clip=model.clip,
        integer_times=model.integer_times,
        num_classes=model.num_classes,
        precision=precision,
        weights=weights_hash(model),
        license=str(model.info.get("license", "")) if license is None else license,
        version=__version__,
        **more,
    )


def weights_hash(model: Model | OnnxModel) -> str:
    """SHA-256 of a network's weights, their names, types and shapes."""
    if isinstance(model, OnnxModel):
        return model.about.weights
    made = hashlib.sha256()
    for name, tensor in model.net.state_dict().items() if isinstance(model.net, nn.Module) else ():
        made.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        made.update(
            tensor.detach().cpu().reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8).numpy()
        )
    return made.hexdigest()
