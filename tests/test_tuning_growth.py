"""Plans drawn out from those for fewer evaluations: what they are, and how a budget helps the next."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exact import SCHEDULES
from tuned import exact

import odediff
from odediff import tune
from odediff.tuning import front, growth
from odediff.tuning.fitting import Fit, Journal, Settings
from odediff.tuning.form import Form, form_of
from odediff.tuning.growth import Growth, way
from odediff.tuning.student import Student

COSINE = SCHEDULES["cosine"]
FEW: dict[str, Any] = {"n": 8, "validation": 8, "held_out": 16, "iterations": 3, "starts": 1}


@pytest.fixture(autouse=True)
def fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the pairs."""
    whole = front.pairs
    kept = ("default", "ab2 quadratic")
    monkeypatch.setattr(front, "pairs", lambda *args: {k: v for k, v in whole(*args).items() if k in kept})


def form(rows: int, schedule: odediff.schedule.Schedule = COSINE) -> Form:
    """A form whose numbers go linearly along its rows."""
    weights = np.zeros((rows, rows))
    for j in range(1, rows):
        weights[j:, j] = (-0.5) ** j + 0.01 * np.arange(j, rows)
    weights[:, 0] = 1 - weights[:, 1:].sum(1)
    return Form(schedule, np.linspace(-3, 3, rows), np.linspace(-0.2, 0.1, rows), weights, rows, fed=True)


@pytest.mark.parametrize("rows", [5, 6, 7, 11])
def test_numbers_are_read_along_the_rows(rows: int) -> None:
    """What goes linearly goes so still, where a row and both that it is read from have the prediction."""
    made, at = form(5).grown(rows), np.linspace(0, 4, rows)
    assert (made.nfe, made.history, made.allowed()) == (rows, rows, True)
    assert made.lam == pytest.approx(np.linspace(-3, 3, rows), abs=1e-12)
    assert made.feed == pytest.approx(np.linspace(-0.2, 0.1, rows), abs=1e-12)
    assert made.weights.sum(1) == pytest.approx(1, abs=1e-12)
    assert (np.triu(made.weights, 1) == 0).all() and (made.weights[:, 5:] == 0).all()
    for j in range(1, 5):
        whole = np.flatnonzero((at >= j) & (np.arange(rows) >= j))
        assert len(whole) and made.weights[whole, j] == pytest.approx((-0.5) ** j + 0.01 * at[whole], abs=1e-12)


def test_as_many_rows_are_the_same_form_and_times_between_two_are_between_them() -> None:
    whole = form(5)
    whole = replace(whole, lam=np.array([-4.0, -1.0, 0.0, 0.5, 3.0]))
    same = whole.grown(5)
    assert same.numbers() == pytest.approx(whole.numbers(), abs=1e-12)
    assert whole.grown(6).lam == pytest.approx([-4, -1.6, -0.4, 0.2, 1.0, 3.0], abs=1e-12)


def test_a_first_state_without_signal_stays() -> None:
    schedule = odediff.schedule.linear().zero_terminal_snr()
    start = form_of(schedule, odediff.plan("ab2", schedule, 5, "quadratic"), first=False)
    assert np.isneginf(start.lam[0])
    made = start.grown(7)
    assert np.isneginf(made.lam[0]) and np.isfinite(made.lam[1:]).all() and made.plan().alpha[0] == 0
    assert made.lam[1] == pytest.approx(start.bounds[0] + (start.lam[1] - start.bounds[0]) * 4 / 6, abs=1e-12)


@pytest.mark.parametrize(
    ("before", "nfe", "steps"),
    [(4, 5, []), (5, 8, [6, 7]), (8, 8, []), (12, 17, [13, 14, 15, 16]), (16, 24, [18, 20, 22]), (3, 32, None)],
)
def test_the_way_is_in_small_steps(before: int, nfe: int, steps: list[int] | None) -> None:
    made = way(before, nfe)
    assert steps is None or made == steps
    whole = [before, *made, nfe] if nfe > before else []
    assert all(a < b <= a + max(1, a // 8) for a, b in pairwise(whole))


def test_a_budget_begins_from_the_smaller_one_too_and_the_better_end_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two thirds of the steps at each budget between, with the longest history, and from there all."""
    stages: list[tuple[int, int, int, str]] = []
    means = {"pair": 1.0, "pair at 5": 0.5}

    def stage(self: Fit, engine: str, steps: int, history: int, at: Form, said: str) -> tuple[Form, Form, float]:
        stages.append((at.nfe, history, steps, said))
        made = replace(at, history=history)
        last = replace(made, lam=made.lam - 0.01)  # where a stage ends is not its best
        return last, made, means[said.removeprefix(", from ")]

    monkeypatch.setattr(Fit, "_stage", stage)
    monkeypatch.setattr(
        growth, "starts", lambda student, schedule, pairs, probe, settings: {"pair": form(pairs["rows"])}
    )
    settings = {nfe: Settings("levenberg", (nfe, 3), True, True, True, True, 1, 12, 4) for nfe in (5, 6, 7, 8)}
    student, none = Student(exact(schedule=COSINE)), None
    made = Growth(
        *(student, none, none, settings.__getitem__, lambda nfe: Journal(None), lambda nfe: {"rows": nfe}, None, print)
    )
    (first,) = made(5, [])
    assert (first.start, first.mean, first.form.nfe) == ("pair", 1.0, 5)
    stages.clear()
    found, other = made(8, [first])
    alone = [(8, 8, 4, ", from pair"), (8, 3, 4, ", from pair"), (8, 8, 16, ", from pair")]
    grown = [(nfe, nfe, 8, ", from pair at 5") for nfe in (6, 7, 8)] + [(8, 8, 20, ", from pair at 5")]
    assert stages == alone + grown
    assert (found.start, found.mean, found.form.nfe, other.start) == ("pair at 5", 0.5, 8, "pair")
    assert found.form.lam == pytest.approx(first.form.grown(8).lam, abs=1e-12)  # three times is once, if linear
    means["pair at 5"] = 1.5
    assert [one.start for one in made(8, [first])] == ["pair", "pair at 5"]
    stages.clear()
    means |= {"pair at 6": 0.3, "pair at 5 at 6": 0.2}
    ends = made(8, made(6, [first]))
    both = [(7, 7, 8, ", from pair at 6"), (7, 7, 8, ", from pair at 5 at 6")]
    assert stages[-4:] == [*both, (8, 8, 8, ", from pair at 5 at 6"), (8, 8, 20, ", from pair at 5 at 6")]
    assert [one.start for one in ends] == ["pair at 5 at 6", "pair"]


def test_the_report_and_a_folder_hold_what_a_smaller_budget_gave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any order, in memory and on disk the same plans; a run that finds all of it on disk makes no step."""
    model = exact(schedule=COSINE)
    want, report = tune(model, [5, 7], **FEW)
    assert list(tune(model, [7, 5], **FEW)[0].items()) == [(7, want[7]), (5, want[5])]
    assert tune(model, 5, folder=tmp_path, **FEW)[0] == want[5]
    assert tune(model, [5, 7], folder=tmp_path, **FEW)[0] == want
    stages = {record.stage for record in report[7].records}
    assert {stage.endswith(f"from {report[5].start} at 5") for stage in stages} == {True, False}
    assert len(list(tmp_path.glob("*/fit-6-*.jsonl"))) == 1
    monkeypatch.setattr(Journal, "add", None)
    assert tune(model, [5, 7], folder=tmp_path, **FEW)[0] == want


@pytest.mark.parametrize("cut", [5, 9, 12])
def test_what_was_interrupted_on_the_way_goes_on(cut: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, made, add = exact(schedule=COSINE), [], Journal.add

    def counted(self: Journal, record: Any) -> None:
        if len(made) == cut:
            made.append(None)
            raise KeyboardInterrupt
        made.append(record)
        add(self, record)

    want, _ = tune(model, [3, 5], **FEW)
    monkeypatch.setattr(Journal, "add", counted)
    with pytest.raises(KeyboardInterrupt):
        tune(model, [3, 5], folder=tmp_path, **FEW)
    assert tune(model, [3, 5], folder=tmp_path, **FEW)[0] == want


@pytest.mark.parametrize("options", [{"times": False}, {"coefficients": False}, {"engine": "ridge"}], ids=str)
def test_what_cannot_be_drawn_out_begins_from_pairs_alone(options: dict[str, Any]) -> None:
    plans, report = tune(exact(schedule=COSINE), [3, 4], **FEW, **options)
    assert not any(" at 3" in record.stage for record in report[4].records)
    assert plans[4] == tune(exact(schedule=COSINE), 4, **FEW, **options)[0]


def test_networks_of_whole_times_begin_from_pairs_alone() -> None:
    model = exact(schedule=SCHEDULES["linear"], integer_times=True)
    assert tune(model, [3, 4], **FEW)[0][4] == tune(model, 4, **FEW)[0]
