"""One budget's fit: from the best built-in plan, a short history and then all of it, judged by validation noise."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..plans import Plan
from ..schedule import Schedule
from . import levenberg, ridge
from .certificate import errors
from .form import Form, form
from .probe import Probe
from .student import Student

SHORT = 3  # predictions of the first stage's rows
_FEWEST = 8  # samples of a stage
_START = 4  # samples on which every pair is tried as a start


@dataclass(frozen=True)
class Record:
    """A step of a fit: its stage; the mean error of ridge, or the loss over that of the step before, on training noise;
    RMSE, median and mean of the error on validation noise, of which the mean decides; and the free numbers."""

    stage: str
    train: float
    rmse: float
    median: float
    mean: float
    numbers: tuple[float, ...]


@dataclass(frozen=True)
class Settings:
    """What is fitted, and how far."""

    engine: str
    histories: tuple[int, ...]
    first: bool
    times: bool
    fed: bool
    coefficients: bool
    iterations: int
    patience: int


@dataclass(frozen=True)
class Fitted:
    """The form that is best on validation noise, the pair it started from, and all steps."""

    form: Form
    start: str
    records: tuple[Record, ...]


class Journal:
    """The steps of a fit, kept in a file so that an interrupted one goes on; without a file, in memory."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        text = path.read_text() if path is not None and path.is_file() else ""
        whole = text[: text.rfind("\n") + 1]
        if path is not None and whole != text:  # a line was being written when the run was cut off
            path.write_text(whole)
        lines = [json.loads(line) for line in whole.splitlines()]
        self.ended = {line["ended"] for line in lines if "ended" in line}
        self.records = [Record(**{**line, "numbers": tuple(line["numbers"])}) for line in lines if "ended" not in line]

    def of(self, stage: str) -> list[Record]:
        """The steps of a stage."""
        return [record for record in self.records if record.stage == stage]

    def add(self, record: Record) -> None:
        """Keep a step."""
        self.records.append(record)
        self._write(asdict(record))

    def end(self, stage: str) -> None:
        """Keep that a stage has no more steps."""
        self.ended.add(stage)
        self._write({"ended": stage})

    def _write(self, line: dict[str, Any]) -> None:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")


def start(
    student: Student, schedule: Schedule, builtin: dict[str, Plan], probe: Probe, settings: Settings
) -> tuple[str, Form]:
    """The built-in pair of the least median error on validation noise, of those that a form can hold, as a form."""
    free = {"first": settings.first, "times": settings.times, "fed": settings.fed}
    forms = {}
    for name, plan in builtin.items():
        try:
            made = form(schedule, plan, coefficients=settings.coefficients, **free)
        except ValueError:  # a step that stays where it is, as a Runge-Kutta stage may
            continue
        if made.allowed():
            forms[name] = made

    def error(name: str, on: Probe) -> float:
        e = errors(student, builtin[name], on)
        return float(np.median(e) * np.sqrt(np.mean(e**2)))

    few = probe.part(slice(0, _START))
    shortlist = sorted(forms, key=lambda name: error(name, few))[:_START]
    best = min(shortlist, key=lambda name: error(name, probe))
    return best, forms[best]


def fit(
    student: Student,
    begin: tuple[str, Form],
    train: Probe,
    validation: Probe,
    settings: Settings,
    journal: Journal,
    features: levenberg.Features | None,
    tick: Callable[[str], None],
) -> Fitted:
    """Stages of growing history, each from where the one before was best; the best of all on validation noise."""
    name, base = begin

    def judged(stage: str, made: Form, loss: float) -> Record:
        e = levenberg.residual(student, made, validation, features).square().mean(1).sqrt().cpu().numpy()
        numbers = tuple(made.numbers().tolist())
        return Record(stage, loss, float(np.sqrt(np.mean(e**2))), float(np.median(e)), float(np.mean(e)), numbers)

    best, least, at = base, judged("start", base, 1.0).mean, base
    stages = _stages(settings, len(train.noise), student.model.integer_times)
    for k, (engine, samples, history) in enumerate(stages):
        stage = f"{engine} {samples} samples, history {history}"
        free = replace(at, history=history, times=settings.times)
        if engine == "levenberg" and student.model.integer_times:
            free = replace(free, times=False)
        some, last = train.part(slice(0, samples)), k == len(stages) - 1
        if stage not in journal.ended and not _ended(journal.of(stage), settings, last):
            for made, loss in _steps(engine, student, free, some, journal.of(stage), features):
                journal.add(judged(stage, made, loss))
                tick(f"{stage}: validation {journal.records[-1].mean:.3g}")
                if _ended(journal.of(stage), settings, last):
                    break
            journal.end(stage)
        for record in journal.of(stage):
            at = free.at(np.array(record.numbers))
            if record.mean < least:
                best, least = at, record.mean
    return Fitted(replace(best, times=settings.times), name, tuple(journal.records))


def _stages(settings: Settings, n: int, whole_times: bool) -> list[tuple[str, int, int]]:
    """(engine, samples, history): few samples with the first history, twice as many with the others, all of them with
    the last, each from where the one before ended: the way to the valley needs few samples, its floor needs many."""
    first, *others = settings.histories
    last = others[-1] if others else first
    engines = ("ridge", "levenberg") if whole_times and settings.engine == "levenberg" else (settings.engine,)
    few, half = max(min(n, _FEWEST), n // 4), max(min(n, _FEWEST), n // 2)
    made = [(engines[0], few, first), *((engines[-1], half, history) for history in others or [first])]
    made = [(engines[0], n, last)] if settings.engine == "ridge" and not others else made
    return list(dict.fromkeys([*made, (engines[-1], n, last)]))


def _steps(
    engine: str,
    student: Student,
    free: Form,
    train: Probe,
    kept: list[Record],
    features: levenberg.Features | None,
) -> Iterator[tuple[Form, float]]:
    """Steps of an engine, from where a journal left it: the form, and its loss (ridge) or the loss's ratio."""
    at = free.at(np.array(kept[-1].numbers)) if kept else free
    if engine == "ridge":
        return ridge.search(student, at, train, [record.train for record in kept])
    if kept and kept[-1].train > 1 - levenberg.GAIN:  # it was the last
        return iter(())
    return levenberg.steps(student, at, train, features)


def _ended(records: list[Record], settings: Settings, last: bool) -> bool:
    """Whether a stage has had its steps, half as many before the last, or validation has not gained for a while."""
    if not records:
        return False
    errors, most = [record.mean for record in records], max(1, settings.iterations // (1 if last else 2))
    return len(errors) >= most or len(errors) - 1 - int(np.argmin(errors)) >= settings.patience
