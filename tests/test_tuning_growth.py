"""Plans drawn out from those for fewer evaluations: what they are, and which budgets lead to which."""

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
from odediff.tuning.growth import BASE, Growth, way
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


@pytest.mark.parametrize("nfe", [2, 5, 6, 9, 16, 17, 32])
def test_the_way_is_in_small_steps_and_part_of_the_way_further(nfe: int) -> None:
    steps = [*way(nfe), nfe]
    assert (steps == [nfe]) if nfe <= BASE else steps[0] == BASE
    assert all(a < b <= a + max(1, a // 8) for a, b in pairwise(steps))
    assert way(40)[: len(steps) - 1] == steps[:-1]


@pytest.mark.parametrize("budgets", [[7], [7, 6, 5], [8, 7]])
def test_a_plan_is_the_same_whichever_budgets_are_fitted_beside_it(budgets: list[int], tmp_path: Path) -> None:
    """In memory, on disk, and from what another run left there."""
    model = exact(schedule=COSINE)
    want, _ = tune(model, [6, 7], **FEW)
    assert tune(model, budgets, **FEW)[0][7] == want[7]
    assert tune(model, budgets, folder=tmp_path, **FEW)[0][7] == want[7]
    assert tune(model, 6, folder=tmp_path, **FEW)[0] == want[6]


def test_the_way_costs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And two of three steps at each of its budgets; a run that finds all of it on disk makes no step."""
    model, made = exact(schedule=COSINE), []
    add = Journal.add
    monkeypatch.setattr(Journal, "add", lambda self, record: (made.append(len(record.numbers)), add(self, record))[1])
    _, report = tune(model, [7, 8], folder=tmp_path, **FEW)
    count = {nfe: made.count(2 * nfe + nfe * (nfe - 1) // 2) for nfe in (5, 6, 7, 8)}
    assert 1 <= count[6] <= 2 and sum(count.values()) + made.count(17) == len(made)  # 17: of history 3 at 5
    assert [count[nfe] for nfe in (7, 8)] == [len(report[nfe].records) for nfe in (7, 8)]
    assert report[8].start == report[7].start and report[8].start.endswith(" at 5 evaluations")
    made.clear()
    tune(model, [5, 8, 7], folder=tmp_path, **FEW)
    assert not made


@pytest.mark.parametrize(
    "options",
    [{"times": False}, {"coefficients": False}, {"engine": "ridge"}, {"history": 1}],
    ids=str,
)
def test_what_cannot_be_drawn_out_begins_from_pairs(options: dict[str, Any]) -> None:
    _, report = tune(exact(schedule=COSINE), 6, **{**FEW, "iterations": 1}, **options)
    assert report[6].start.endswith("at 5 evaluations") == (options == {"history": 1})


@pytest.mark.parametrize("ahead", [5, 3])
def test_shorter_histories_are_tried_where_one_was_best_at_the_base(
    ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: list[tuple[int, int, int]] = []

    def stage(self: Fit, engine: str, steps: int, history: int, at: Form, said: str) -> tuple[Form, Form, float]:
        stages.append((at.nfe, history, steps))
        made = replace(at, history=history)
        return made, made, float(history != ahead and at.nfe == BASE)

    monkeypatch.setattr(Fit, "_stage", stage)
    monkeypatch.setattr(growth, "starts", lambda *args: {"pair": form(5)})
    settings = {nfe: Settings("levenberg", (nfe, 3), True, True, True, True, 1, 12, 4) for nfe in (5, 6, 7)}
    student = Student(exact(schedule=COSINE))
    none: Any = None
    made = Growth(student, none, none, settings.__getitem__, lambda nfe: Journal(None), lambda nfe: {}, None, print)
    found = made(7)
    assert found.start == "pair at 5 evaluations" and found.widest.history == 7
    base = [(5, 5, 4), (5, 3, 4), *([(5, 3, 8)] if ahead == 3 else []), (5, 5, 16)]
    last = [(7, 7, 8), *([(7, 3, 8)] if ahead == 3 else []), (7, 7, 20)]
    assert stages == [*base, (6, 6, 8), *last]
    assert made(5).form.history == ahead
