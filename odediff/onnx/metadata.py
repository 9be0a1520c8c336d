"""What an exported file says of itself: one JSON entry, `odediff`, among the graph's metadata."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from math import inf
from typing import Any

from ..plans import Plan
from ..schedule import Schedule, from_identity
from ..spaces import SPACES

KEY, FORMAT = "odediff", "odediff-onnx-1"
_KINDS: dict[str, tuple[type, ...]] = {
    "prediction": (str,),
    "schedule": (dict,),
    "shape": (list, tuple),
    "range": (list, tuple, type(None)),
    "clip": (bool,),
    "integer_times": (bool,),
    "num_classes": (int, type(None)),
    "precision": (str,),
    "weights": (str,),
    "mark": (list, type(None)),
    "license": (str,),
    "version": (str,),
    "batch": (int, type(None)),
    "memory": (int,),
    "plan": (str, type(None)),
    "form": (str, type(None)),
    "prediction_options": (dict,),
}


@dataclass(frozen=True)
class About:
    """Of a network: as `odediff.Model`. Of a sampler also its plan.

    schedule: identity.  precision: "fp32", "fp16" or "int8".  weights: SHA-256 of the network's.  version: of odediff.
    mark: of the weights, see `odediff.identity`; None: there are none, or the file is of before it.
    batch: None if the axis is dynamic.  memory: bytes of values that live at a time for one sample, 0: unknown.
    plan: JSON of a sampler's, None: a network.  form: "loop" or "unrolled".  prediction_options: guidance, clip,
    threshold, clip_eps that are in the graph.  ValueError: entries of another kind, a bad plan, schedule or shape.
    """

    prediction: str
    schedule: dict[str, Any]
    shape: tuple[int, ...]
    range: tuple[float, float] | None
    clip: bool = False
    integer_times: bool = False
    num_classes: int | None = None
    precision: str = "fp32"
    weights: str = ""
    license: str = ""
    version: str = ""
    batch: int | None = None
    memory: int = 0
    plan: str | None = None
    form: str | None = None
    prediction_options: dict[str, Any] | None = None
    mark: list[float] | None = None

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            given = getattr(self, name)
            if name == "prediction_options" and given is None:
                object.__setattr__(self, name, {})
            elif not isinstance(given, kind) or (isinstance(given, bool) and bool not in kind):
                raise ValueError(f"{name} = {given!r:.80} is not of the kind that odediff writes")
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "range", None if self.range is None else tuple(self.range))
        if self.prediction not in SPACES:
            raise ValueError(f"prediction = {self.prediction!r}; it is one of {', '.join(SPACES)}")
        if not self.shape or not all(isinstance(size, int) and 0 < size < 2**31 for size in self.shape):
            raise ValueError(f"shape = {self.shape!r} must hold positive whole numbers such as (3, 32, 32)")
        if self.range is not None and not _ordered(self.range):
            raise ValueError(f"range = {self.range!r} must be (low, high) with low < high")
        for name in ("batch", "num_classes"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 1")
        if self.mark is not None and not all(isinstance(one, float) and abs(one) < inf for one in self.mark):
            raise ValueError(f"mark = {self.mark!r:.80} must be a list of finite numbers")
        if self.memory < 0:
            raise ValueError(f"memory = {self.memory} must be a number of bytes, or 0 for unknown")
        self.noise_schedule()
        self.table()

    def noise_schedule(self) -> Schedule:
        """The schedule that the network was trained on."""
        return from_identity(self.schedule)

    def table(self) -> Plan | None:
        """A sampler's plan."""
        return None if self.plan is None else Plan.from_json(self.plan)

    def to_json(self) -> str:
        """The entry's text."""
        return json.dumps({"format": FORMAT, **asdict(self)}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> About:
        """What `to_json` wrote. ValueError: anything else."""
        try:
            data = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"the metadata is not JSON: {error}") from None
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise ValueError(f"the metadata is not of the format {FORMAT}")
        names = {one.name for one in fields(cls)}
        data.setdefault("mark", None)
        if set(data) != names:
            raise ValueError(f"missing keys {sorted(names - set(data))}, unknown keys {sorted(set(data) - names)}")
        try:
            return cls(**data)
        except (TypeError, KeyError, OverflowError) as error:
            raise ValueError(f"the metadata holds what odediff does not write: {error!r}") from None


def _ordered(pair: tuple[Any, ...]) -> bool:
    number = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in pair)
    return len(pair) == 2 and number and pair[0] < pair[1]
