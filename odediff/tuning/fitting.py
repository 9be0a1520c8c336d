"""One budget's fit: from built-in plans, with each history, few steps and then all, judged by validation noise."""

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
from .form import Form, form_of
from .probe import Probe
from .student import Student

SHORT = 3  # predictions that rows read who do not read all
_SHARE = 3  # a stage from a start has one in so many of the steps, one from a plan drawn out all but one
_START = 4  # samples on which every pair is tried as a start
_LATE = (-3.5, -4.0, -3.0, -2.5)  # lam at the first time of late starts
MOST_STARTS = 1 + len(_LATE)


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
    starts: int
    iterations: int
    patience: int


@dataclass(frozen=True)
class Fitted:
    """The form that is best on validation noise, its mean error there, the pair it started from, and all steps."""

    form: Form
    mean: float
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


def starts(
    student: Student, schedule: Schedule, builtin: dict[str, Plan], probe: Probe, settings: Settings
) -> dict[str, Form]:
    """Where fits begin: the built-in pair with the least error on validation noise of those that a form can hold, and
    its rows with times drawn together, so that the first is late: an evaluation of noise alone is worth little, and
    without it the valley is another."""
    free = {"first": settings.first, "times": settings.times, "fed": settings.fed}
    forms = {}
    for name, plan in builtin.items():
        try:
            made = form_of(schedule, plan, coefficients=settings.coefficients, **free)
        except ValueError:  # a step that stays where it is, as a Runge-Kutta stage may
            continue
        if made.allowed():
            forms[name] = made

    def error(name: str, on: Probe) -> float:
        e = errors(student, builtin[name], on)
        return float(np.median(e) * np.sqrt(np.mean(e**2)))

    few = probe.part(slice(0, _START))
    ranked = sorted(forms, key=lambda name: error(name, few))
    best = min(ranked[:_START], key=lambda name: error(name, probe))
    begin, lam = {best: forms[best]}, forms[best].lam
    movable = settings.engine == "levenberg" and settings.first and settings.times and not student.model.integer_times
    inside = [late for late in _LATE if movable and lam[0] < late < lam[-1]]
    for late in inside[: settings.starts - 1]:
        drawn = lam[-1] + (lam - lam[-1]) * (lam[-1] - late) / (lam[-1] - lam[0])
        begin[f"{best} from lam {late}"] = replace(forms[best], lam=drawn).within()
    return begin


@dataclass(frozen=True, eq=False)
class Fit:
    """A fit of one budget: what is fitted, on which noise, how far, and where its steps are kept.

    grown: whether it begins from a plan for fewer evaluations, drawn out.
    """

    student: Student
    train: Probe
    validation: Probe
    settings: Settings
    journal: Journal
    features: levenberg.Features | None
    tick: Callable[[str], None]
    grown: bool = False

    def begun(self, begin: dict[str, Form]) -> dict[str, Form]:
        """The best form on validation noise of the first stages, with the first history, and its start's name."""
        ends = self._first(begin)
        name = min(ends, key=lambda one: ends[one][2])
        return {name: ends[name][1]}

    def _first(self, begin: dict[str, Form]) -> dict[str, tuple[Form, Form, float]]:
        """A first stage from every start, with the first history."""
        (engine, steps), *_ = self._stages()
        history = self.settings.histories[0]
        return {name: self._stage(engine, steps, history, at, f", from {name}") for name, at in begin.items()}

    def __call__(self, begin: dict[str, Form]) -> Fitted:
        """A first stage from every start, with the first history, and from the best of them with the others too. There
        the longest history goes on, by the steps of the last stage, and before it a shorter one that is ahead, by as
        many as it had: few steps favour short ones. After ridge, for a network of whole times, the last stage begins
        where the best ended. The best of all on validation noise."""
        first, *others = self.settings.histories
        (engine, steps), *later = self._stages()
        found = {(name, first): end for name, end in self._first(begin).items()}

        def least() -> tuple[str, int]:
            return min(found, key=lambda one: found[one][2])

        leads, _ = least()
        for history in others:
            found[leads, history] = self._stage(engine, steps, history, begin[leads], f", from {leads}")
        name, history = least()
        ends = [found[name, history]]
        widest = max(self.settings.histories)
        for last, most in later:
            if last != engine:
                ends.append(self._stage(last, most, widest, ends[-1][0], ""))
                continue
            if history != widest:
                ends.append(self._stage(engine, 2 * steps, history, begin[name], f", from {name}"))
            ends.append(self._stage(engine, steps + most, widest, begin[name], f", from {name}"))
        _, best, mean = min(ends, key=lambda one: one[2])
        return Fitted(replace(best, times=self.settings.times), mean, name, tuple(self.journal.records))

    def _stage(self, engine: str, steps: int, history: int, at: Form, said: str) -> tuple[Form, Form, float]:
        """So many steps from a form, those that the journal has of this stage among them: where they end, the best form
        on validation noise, and its mean error."""
        settings, journal = self.settings, self.journal
        stage = f"{engine} of history {history}{said}"
        free = replace(at, times=settings.times).shortened(history)
        if engine == "levenberg" and self.student.model.integer_times:
            free = replace(free, times=False)
        at, best, least = free, free, self._judged(stage, free, 1.0).mean
        if stage not in journal.ended and not _ended(journal.of(stage), steps, settings.patience):
            for made, loss in _steps(engine, self.student, free, self.train, journal.of(stage), self.features):
                journal.add(self._judged(stage, made, loss))
                self.tick(f"{stage}: validation {journal.records[-1].mean:.3g}")
                if _ended(journal.of(stage), steps, settings.patience):
                    break
            else:
                journal.end(stage)
        for record in journal.of(stage)[:steps]:  # there may be more, of a stage that goes on from this one
            at = free.at(np.array(record.numbers))
            if record.mean < least:
                best, least = at, record.mean
        return at, best, least

    def _judged(self, stage: str, made: Form, loss: float) -> Record:
        r = levenberg.residual(self.student, made, self.validation, self.features)
        e = r.square().mean(1).sqrt().cpu().numpy()
        numbers = tuple(made.numbers().tolist())
        return Record(stage, loss, float(np.sqrt(np.mean(e**2))), float(np.median(e)), float(np.mean(e)), numbers)

    def _stages(self) -> list[tuple[str, int]]:
        """(engine, most steps) of each stage."""
        most = self.settings.iterations
        if self.settings.engine == "ridge":
            return [("ridge", most)]
        share = -(-most // _SHARE)
        steps = (_SHARE - 1) * share if self.grown else share
        first = ("ridge", most) if self.student.model.integer_times else ("levenberg", steps)
        return [first, ("levenberg", most)]


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
    made = [(free.at(np.array(record.numbers)), record.train) for record in kept]
    return levenberg.steps(student, free, train, features, made)


def _ended(records: list[Record], steps: int, patience: int) -> bool:
    """Whether a stage has had its steps, or validation has not gained for a while."""
    errors = [record.mean for record in records]
    return len(errors) >= steps or (len(errors) > 0 and len(errors) - 1 - int(np.argmin(errors)) >= patience)
