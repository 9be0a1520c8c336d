"""One file that holds a run: tensors and JSON in safetensors, replaced in one motion, so never half written."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

NAME = "checkpoint.safetensors"
FORMAT = 1
_KEY = "odediff.checkpoint"


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write `tensors` and JSON-able `meta` to `path`.

    The new file is written beside the old one, forced to disk, then renamed over it: a process killed at any moment
    leaves either the old checkpoint or the new one, whole.
    """
    new = path.with_name(path.name + ".new")
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(flat, new, metadata={_KEY: json.dumps({"format": FORMAT, **meta})})
    _force_to_disk(new)
    os.replace(new, path)
    _force_to_disk(path.parent)


def _force_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_meta(path: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint. Raises `FileNotFoundError` if there is none, `ValueError` if it cannot be read."""
    return _read(path, tensors=False)[1]


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_checkpoint` wrote, on the CPU. Raises as `read_meta` does."""
    return _read(path, tensors=True)


def _read(path: Path, *, tensors: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; start the run without resume")
    try:
        with safe_open(path, framework="pt") as file:
            raw = (file.metadata() or {}).get(_KEY)
            found = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}
    except SafetensorError as error:
        raise ValueError(f"checkpoint {path} is damaged ({error}); delete it and train anew") from None
    if raw is None:
        raise ValueError(f"{path} is no checkpoint of a training run: its metadata lacks {_KEY!r}")
    meta: dict[str, Any] = json.loads(raw)
    if meta["format"] != FORMAT:
        raise ValueError(f"checkpoint {path} has format {meta['format']}; this version reads format {FORMAT}")
    return found, meta


def rng_states(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's default generators, of the CPU and of a CUDA `device`."""
    states = {"rng.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["rng.cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_rng(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Put back what `rng_states` took. A run that moved between CPU and CUDA draws other numbers from here on."""
    torch.set_rng_state(states["rng.cpu"])
    if device.type == "cuda" and "rng.cuda" in states:
        torch.cuda.set_rng_state(states["rng.cuda"], device)
