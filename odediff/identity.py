"""Which model a plan was fitted to: a mark of its weights that survives another precision of the same network.

Each of up to 16 tensors v gives sqrt(2) sum_k v_k cos(k + 1/2) / |v|, which is about normal for weights of any kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

_TENSORS, _LEAST, _CLOSE = 16, 16, 0.05


def mark(net: object) -> list[float] | None:
    """The mark of a module, or None of a callable without weights."""
    if not isinstance(net, nn.Module):
        return None
    state = sorted(net.state_dict().items())
    tensors = [value for _, value in state if value.is_floating_point() and value.numel() >= _LEAST]
    if not tensors:
        return None
    step = max(1, len(tensors) // _TENSORS)
    return [_along(value) for value in tensors[::step][:_TENSORS]]


def mark_of(model: Any) -> list[float] | None:
    """The mark of a model's network; that of an exported file is in its metadata, unless it was written before."""
    about = getattr(model, "about", None)
    return mark(model.net) if about is None else about.mark


def mismatch(model: Any, plan_args: Mapping[str, Any], guidance: float | None) -> str | None:
    """What to say where a plan that was fitted to a model runs on another, or at another guidance; else None."""
    fitted = plan_args.get("fitted")
    if not isinstance(fitted, Mapping):
        return None
    about = getattr(model, "about", None)  # an exported file says which weights it holds
    if about is not None:
        same = not fitted.get("weights") or about.weights == fitted["weights"]
    else:
        here, there = mark(model.net), fitted.get("mark")
        same = here is None or there is None or (len(here) == len(there) and _near(here, there))
    if not same:
        return "the plan was fitted to another model, and such plans do not transfer: tune one for this (odediff.tune)"
    if (1.0 if guidance is None else guidance) != (1.0 if (there := fitted.get("guidance")) is None else there):
        return f"the plan was fitted at guidance {there} and runs at {guidance}: tune one for this"
    return None


def other_labels(plan_args: Mapping[str, Any], label: torch.Tensor | None) -> str | None:
    """What to say where a plan that was fitted to some labels runs on others; else None."""
    fitted = plan_args.get("fitted")
    known = fitted.get("labels") if isinstance(fitted, Mapping) else None
    if label is None or not isinstance(known, (list, tuple)):
        return None
    others = sorted(set(label.reshape(-1).tolist()) - set(known))
    shown = ", ".join(map(str, others[:3])) + (", .." if len(others) > 3 else "")
    return (
        f"the plan was fitted to the labels {list(known)} and runs on {shown}: tune one for these" if others else None
    )


def _near(here: list[float], there: list[float]) -> bool:
    return max(abs(one - other) for one, other in zip(here, there, strict=True)) <= _CLOSE


def _along(value: torch.Tensor) -> float:
    flat = value.detach().flatten().double().cpu()
    pattern = torch.cos(torch.arange(len(flat), dtype=torch.float64) + 0.5)
    return round(float(2**0.5 * (flat @ pattern) / flat.norm().clamp_min(1e-300)), 4)
