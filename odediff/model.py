"""A model: a network, the schedule it was trained on, and what its output means."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .schedule import Schedule, from_identity
from .spaces import SPACES

BUNDLED = Path(__file__).parent / "models"
_KINDS: dict[str, tuple[type, ...]] = {
    "prediction": (str,),
    "schedule": (dict,),
    "shape": (list,),
    "range": (list, type(None)),
    "clip": (bool,),
    "integer_times": (bool,),
    "num_classes": (int, type(None)),
    "network": (dict, type(None)),
    "info": (dict,),
}
# What a format lacks has this value; all of them are read, the newest is written.
_FORMATS: dict[str, dict[str, Any]] = {"odediff-model-1": {"num_classes": None}, "odediff-model-2": {}}
_FORMAT = "odediff-model-2"
_FILES = ("model.safetensors", "model.json")


class Model:
    """A network `f(x, t)`, or `f(x, t, label)`, with its schedule and parameterisation.

    net: an `nn.Module` or callable, x (N, C, H, W) in the network's dtype and t (N,) -> the prediction, of that shape,
        or an object that holds it as `.sample`. It must not write into x. A module is put in evaluation mode when it
        samples, and left as it was.
    num_classes: None for `f(x, t)`; else the network is class-conditional, label (N,) int64 in 0 .. num_classes, where
        num_classes itself is the null label, which asks for an unconditional prediction (Ho & Salimans 2022,
        Algorithm 1): a table of embeddings has num_classes + 1 rows.
    schedule: an `odediff.schedule.Schedule`.  prediction: what the output is, d = u x0 + w eps: "eps" (Ho et al.
    2020), "x0",
        "v" (Salimans & Ho 2022) or "flow" (eps - x0, Lipman et al. 2023).
    shape: of one sample, such as (3, 32, 32).  range: (low, high) of the data, to which samples are clamped; None:
    unbounded.
    clip: clamp every predicted x0 to `range` by default.  integer_times: the network has an embedding table and knows
        whole times only; they are passed as int64.  info: JSON-able provenance.
    ValueError: an unknown prediction, a bad shape or range, clip without a range, num_classes that the U-Net denies.
    """

    def __init__(
        self,
        net: Callable[..., Any],
        *,
        schedule: Schedule,
        prediction: str = "eps",
        shape: tuple[int, ...],
        range: tuple[float, float] | None = (-1.0, 1.0),
        clip: bool = False,
        integer_times: bool = False,
        num_classes: int | None = None,
        info: dict[str, Any] | None = None,
    ) -> None:
        if not callable(net):
            raise ValueError(f"net must be a module or callable f(x, t), got {type(net).__name__}")
        if not isinstance(schedule, Schedule):
            raise ValueError(
                f"schedule must be an odediff.schedule.Schedule such as schedule.linear(), got {schedule!r}"
            )
        if prediction not in SPACES:
            raise ValueError(f"unknown prediction {prediction!r}; choose {', '.join(SPACES)}")
        if (
            not isinstance(shape, (tuple, list))
            or not shape
            or not all(isinstance(size, int) and size > 0 for size in shape)
        ):
            raise ValueError(f"shape must hold positive whole numbers such as (3, 32, 32), got {shape!r}")
        if range is not None and not (
            isinstance(range, (tuple, list)) and len(range) == 2 and -math.inf < range[0] < range[1] < math.inf
        ):
            raise ValueError(f"range must be (low, high) with low < high, or None, got {range!r}")
        if clip and range is None:
            raise ValueError("clip=True needs a range to clamp x0 to")
        if integer_times and schedule.steps is None:
            raise ValueError(
                f'integer_times needs a table of steps; schedule "{schedule.identity["name"]}" is continuous'
            )
        _check_classes(net, num_classes)
        self.net, self.schedule, self.prediction, self.num_classes = net, schedule, prediction, num_classes
        self.shape, self.range = tuple(shape), None if range is None else (float(range[0]), float(range[1]))
        self.clip, self.integer_times, self.info = clip, integer_times, dict(info or {})
        self.folder: Path | None = None  # where it was loaded from or first saved to: where its tuned plans are

    def _tensor(self) -> Tensor | None:
        if not isinstance(self.net, nn.Module):
            return None
        return next((t for t in chain(self.net.parameters(), self.net.buffers()) if t.is_floating_point()), None)

    @property
    def device(self) -> torch.device:
        """Where the network lives; the CPU for a plain callable, which follows explicit noise elsewhere."""
        tensor = self._tensor()
        return torch.device("cpu") if tensor is None else tensor.device

    @property
    def dtype(self) -> torch.dtype | None:
        """The network's dtype, to which x is cast; None for a plain callable, which gets the state's."""
        tensor = self._tensor()
        return None if tensor is None else tensor.dtype

    def to(self, device: torch.device | str) -> Model:
        """Move the network, in place, and return this model. ValueError: a plain callable has nothing to move."""
        if not isinstance(self.net, nn.Module):
            raise ValueError("a plain callable cannot be moved to a device")
        self.net.to(device)
        return self

    def __call__(self, x: Tensor, t: float, label: Tensor | None = None) -> Tensor:
        """The network's raw output at time t for the whole batch, in x's dtype and shape.

        label: (N,) int64, of a class-conditional model; None: the null label, for an unconditional prediction.
        ValueError: the output is no tensor of x's shape (a network with learned variance has twice the channels), or a
        label for an unconditional model.
        """
        dtype = self.dtype or x.dtype
        # a float16 or bfloat16 time would lose steps
        kind = torch.int64 if self.integer_times else torch.promote_types(dtype, torch.float32)
        times = torch.full((len(x),), t, dtype=kind, device=x.device)
        x_in = x if x.dtype is dtype else x.to(dtype)
        if self.num_classes is not None:
            label = torch.full((len(x),), self.num_classes, device=x.device) if label is None else label
            out = self.net(x_in, times, label)
        elif label is None:
            out = self.net(x_in, times)
        else:
            raise ValueError("label given to an unconditional model; leave it out, or make Model(num_classes=...)")
        out = getattr(out, "sample", out)
        if not isinstance(out, Tensor) or out.shape != x.shape:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(
                f"the network returned {got} for an input of shape {tuple(x.shape)}; expected the same shape"
            )
        return out if out.dtype is x.dtype else out.to(x.dtype)

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write `model.safetensors` and `model.json` into `folder`; an interrupted save leaves the old pair as it was.

        dtype: of the stored weights, such as torch.float16; None keeps them.
        ValueError: the network is no `nn.Module`, dtype no floating-point type, or info nothing that JSON can hold.
        """
        from .nn import UNet

        if not isinstance(self.net, nn.Module):
            raise ValueError("only a model around an nn.Module can be saved; this one holds a plain callable")
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype = {dtype} would cut the weights to whole numbers; use torch.float16 or float32")
        # exactly ours: a subclass may compute something else
        network = {"class": "UNet", "config": dict(self.net.config)} if type(self.net) is UNet else None
        data = {
            "format": _FORMAT,
            "prediction": self.prediction,
            "schedule": self.schedule.identity,
            "shape": list(self.shape),
            "range": None if self.range is None else list(self.range),
            "clip": self.clip,
            "integer_times": self.integer_times,
            "num_classes": self.num_classes,
            "network": network,
            "info": self.info,
        }
        try:
            text = json.dumps(data, indent=1)
        except TypeError as error:
            raise ValueError(f"the model's info cannot be written as JSON: {error}") from None
        weights = {
            key: value.detach()
            .cpu()
            .to(dtype if dtype and value.is_floating_point() else value.dtype)
            .contiguous()
            .clone()
            for key, value in self.net.state_dict().items()
        }
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        new = [folder / f".{name}.{os.getpid()}.tmp" for name in _FILES]
        try:
            save_file(weights, new[0])
            new[0].chmod(0o644)
            new[1].write_text(text + "\n")
            for temporary, name in zip(new, _FILES, strict=True):
                os.replace(temporary, folder / name)
        finally:
            for temporary in new:
                temporary.unlink(missing_ok=True)
        self.folder = self.folder or folder


def _check_classes(net: Callable[..., Any], num_classes: int | None) -> None:
    """ValueError: num_classes is no positive whole number, or odediff's own U-Net embeds other labels than these."""
    from .nn import UNet

    if num_classes is not None and (
        isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1
    ):
        raise ValueError(f"num_classes = {num_classes!r} must be a whole number from 1 up, or None")
    if type(net) is not UNet:
        return
    kind, rows = net.config["class_embed_type"], net.config["num_class_embeds"]
    if kind == "identity":
        raise ValueError(
            'class_embed_type = "identity" takes embeddings, not labels; wrap the network in a callable f(x, t, label)'
        )
    if kind is None and rows != (None if num_classes is None else num_classes + 1):
        raise ValueError(
            f"num_classes = {num_classes} does not fit the network's num_class_embeds = {rows}: a table has one row "
            "more than there are classes, the last for the null label"
        )
    if kind is not None and num_classes is None:
        raise ValueError(f'the network has class_embed_type = "{kind}"; say how many classes with num_classes=...')


def bundled() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/model.json"))


def load(
    source: str | Path,
    *,
    net: nn.Module | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """A bundled model by name, or one from a folder that `Model.save` wrote. Nothing is unpickled.

    net: the network to load the weights into, needed where it is not odediff's own U-Net.  device: where to put it.
    dtype: of the weights in memory, whatever they were stored in.
    FileNotFoundError: no such model.  ValueError: a truncated or foreign file, unknown or missing keys, wrong shapes.
    """
    folder = BUNDLED / str(source) if str(source) in bundled() else Path(source)
    if not (folder / "model.json").is_file():
        raise FileNotFoundError(
            f"no model {str(source)!r}: bundled are {', '.join(bundled()) or 'none'}; a folder must hold model.json"
        )
    data = _read_json(folder / "model.json")
    try:
        net = _network(data["network"]) if net is None else net
        model = Model(
            net,
            schedule=from_identity(data["schedule"]),
            prediction=data["prediction"],
            shape=tuple(data["shape"]),
            range=None if data["range"] is None else tuple(data["range"]),
            clip=data["clip"],
            integer_times=data["integer_times"],
            num_classes=data["num_classes"],
            info=data["info"],
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / 'model.json'}: {error}") from None
    model.folder = folder
    _load_weights(net, folder / "model.safetensors")
    net.to(device=device, dtype=dtype).eval().requires_grad_(False)
    return model


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}; save the model again") from None
    if not isinstance(data, dict) or data.get("format") not in tuple(_FORMATS):
        raise ValueError(f"{path} is not of a format that this version reads: {', '.join(_FORMATS)}")
    lacking = _FORMATS[data["format"]]
    keys = {"format", *_KINDS} - set(lacking)
    if set(data) != keys:
        raise ValueError(f"{path}: missing keys {sorted(keys - set(data))}, unknown keys {sorted(set(data) - keys)}")
    data |= lacking
    for key, kind in _KINDS.items():
        if not isinstance(data[key], kind):
            raise ValueError(f"{path}: {key} has the value {data[key]!r}, which is not of the kind that odediff writes")
    return data


def _network(network: dict[str, Any] | None) -> nn.Module:
    from .nn import UNet

    if network is None:
        raise ValueError("the weights are of a network that odediff does not build; pass it as load(..., net=...)")
    if set(network) != {"class", "config"} or network["class"] != "UNet":
        raise ValueError(f"network must be {{'class': 'UNet', 'config': ...}}, got {network!r}")
    return UNet(**network["config"])


def _load_weights(net: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; save the model again")
    want = net.state_dict()
    try:
        with safe_open(path, framework="pt") as file:
            have = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or not safetensors: {error}") from None
    missing, unknown = sorted(set(want) - set(have)), sorted(set(have) - set(want))
    if missing or unknown:
        raise ValueError(
            f"{path} does not fit the network: missing {missing[:3] or 'none'}, unknown {unknown[:3] or 'none'}"
        )
    wrong = [key for key in want if want[key].shape != have[key].shape]
    if wrong:
        key = wrong[0]
        raise ValueError(
            f"{path}: {key} has shape {tuple(have[key].shape)}, the network needs {tuple(want[key].shape)}"
        )
    net.load_state_dict(have)
