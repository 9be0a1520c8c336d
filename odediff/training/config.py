"""What a training run is: every choice that shapes its result, as one JSON-able value."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .. import schedule as schedules
from ..nn import SIZES
from ..spaces import SPACES
from .losses import WEIGHTINGS

AMP = ("off", "bf16", "fp16")
LR_DECAYS = ("constant", "cosine")

# What a resumed run may change: how long and how chattily it runs, and where its files have moved to.
FREE = frozenset({"steps", "log_every", "preview_every", "checkpoint_every", "data", "out"})


def _linear() -> dict[str, Any]:
    return dict(schedules.linear().identity)


@dataclass(frozen=True)
class TrainConfig:
    """The recipe of a run.

    `data`: what `load_images` reads, with `key`, `tile` and `pad` passed to it; `flip`: mirror half of the images.
    `labels`: name of the classes' array in an .npz file; the model becomes class-conditional, and a label is replaced
    by the null label with probability `label_dropout` (Ho & Salimans 2022, Algorithm 1), which guidance needs.
    `out`: the folder for checkpoint, log, previews and model.
    `size`: a named U-Net; `network`: U-Net keys laid over it. `schedule`: an identity for `schedule.from_identity`.
    `prediction`: what the network answers, "eps", "x0", "v" or "flow". `weighting`: one of `WEIGHTINGS`, or T numbers.
    `lr` rises linearly over `warmup_steps`, then stays ("constant") or falls to zero at `steps` ("cosine").
    `grad_clip`: largest gradient norm, 0 for none. `ema_decay`: ceiling of the average's decay.
    `amp`: "off", "bf16" (on a CPU it pays only with AMX or AVX512-BF16) or "fp16" (CUDA only).
    `compile`: `torch.compile` the network.
    `log_every`, `checkpoint_every`, `preview_every`: in steps; 0 turns the last two off but for the end of the run.

    Raises `ValueError` naming the field, its value and what would do.
    """

    data: str
    out: str
    size: str = "s"
    network: dict[str, Any] = field(default_factory=dict)
    key: str | None = None
    tile: int | None = None
    pad: int = 1
    labels: str | None = None
    label_dropout: float = 0.1
    flip: bool = False
    schedule: dict[str, Any] = field(default_factory=_linear)
    prediction: str = "eps"
    weighting: str | Sequence[float] = "simple"
    steps: int = 10_000
    batch_size: int = 128
    lr: float = 1e-3
    warmup_steps: int = 500
    lr_decay: str = "cosine"
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    ema_decay: float = 0.9999
    seed: int = 0
    amp: str = "off"
    compile: bool = False
    log_every: int = 50
    checkpoint_every: int = 1000
    preview_every: int = 0

    def __post_init__(self) -> None:
        for name, choices in (
            ("size", tuple(SIZES)),
            ("prediction", SPACES),
            ("lr_decay", LR_DECAYS),
            ("amp", AMP),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} = {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        if not isinstance(self.weighting, str):
            object.__setattr__(self, "weighting", [float(gamma) for gamma in self.weighting])
        elif self.weighting not in WEIGHTINGS:
            raise ValueError(
                f"weighting = {self.weighting!r}; choose one of {', '.join(WEIGHTINGS)}, or give one number a step"
            )
        for name, low in (("steps", 1), ("batch_size", 1), ("log_every", 1), ("pad", 1)):
            self._at_least(name, low, int)
        for name in ("warmup_steps", "checkpoint_every", "preview_every", "seed"):
            self._at_least(name, 0, int)
        for name in ("lr", "weight_decay", "grad_clip", "ema_decay", "label_dropout"):
            self._at_least(name, 0, int | float)
        if self.label_dropout >= 1:
            raise ValueError(f"label_dropout = {self.label_dropout}: it must be below 1, or no label is ever seen")
        if self.lr == 0 or self.ema_decay >= 1:
            raise ValueError(f"lr = {self.lr}, ema_decay = {self.ema_decay}: lr must be above 0 and ema_decay below 1")
        schedules.from_identity(self.schedule)

    def _at_least(self, name: str, low: int, kind: Any) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, kind) or not math.isfinite(value) or value < low:
            what = "an integer" if kind is int else "a finite number"
            raise ValueError(f"{name} = {value!r}: it must be {what} of at least {low}")

    def learning_rate(self, step: int) -> float:
        """The rate of update `step` (0-based): `lr min(1, (step + 1) / warmup_steps)`, and for "cosine" that times
        `(1 + cos(pi step / steps)) / 2`.

        It depends on nothing but `step` and `steps`: a cosine run resumed with more `steps` follows the longer cosine
        from there on, so its rate jumps back up.
        """
        rate = self.lr * min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.lr_decay == "cosine":
            rate *= 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / self.steps)))
        return rate

    def to_dict(self) -> dict[str, Any]:
        """Every field as plain JSON types."""
        made: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return made

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainConfig":
        """The inverse of `to_dict`. Raises `ValueError` naming unknown or missing fields."""
        if unknown := sorted(set(values) - {f.name for f in fields(cls)}):
            raise ValueError(f"unknown training options {unknown}; known: {[f.name for f in fields(cls)]}")
        if missing := sorted({"data", "out"} - set(values)):
            raise ValueError(f"missing training options {missing}")
        return cls(**values)

    def check_resumes(self, saved: dict[str, Any], where: Path) -> None:
        """Raise `ValueError` naming every field, the free ones apart, in which this run differs from a saved one.

        A field that the saved run did not know yet has its default there.
        """
        now, saved = self.to_dict(), TrainConfig.from_dict(saved).to_dict()
        changed = [f"{k}: {saved[k]!r} -> {now[k]!r}" for k in now if k not in FREE and saved[k] != now[k]]
        if changed:
            raise ValueError(
                f"cannot resume {where} with another recipe ({'; '.join(changed)}); only {', '.join(sorted(FREE))} may "
                "change: take the saved values, or train into another folder"
            )
