"""Where fits begin, and how many steps they have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from exact import SCHEDULES
from tuned import exact

import odediff
from odediff import tune
from odediff.tuning import fitting, levenberg
from odediff.tuning.fitting import MOST_STARTS, Fit, Fitted, Journal, Record, Settings, _ended, starts
from odediff.tuning.form import Form
from odediff.tuning.probe import Probe, make_probe
from odediff.tuning.student import Student

COSINE = SCHEDULES["cosine"]
SETTINGS = Settings("levenberg", (4, 3), True, True, True, True, 2, 12, 4)
NAMES = ("ddim", "ab2", "dpmpp_2m")


def begun(settings: Settings, schedule: odediff.schedule.Schedule = COSINE, **options: object) -> dict[str, Form]:
    student = Student(exact(schedule=schedule, **options))
    plans = {name: odediff.plan(name, schedule, 4, "quadratic", snap=student.model.integer_times) for name in NAMES}
    return starts(student, schedule, plans, make_probe(student, 4, 1, None, None, None), settings)


def test_late_starts_are_the_best_pair_with_its_times_drawn_together() -> None:
    made = begun(replace(SETTINGS, starts=MOST_STARTS))
    (best, pair), *late = made.items()
    assert best in NAMES and np.isclose(pair.lam[0], pair.bounds[0])
    assert [name for name, _ in late] == [f"{best} from lam {lam}" for lam in (-3.5, -4.0, -3.0, -2.5)]
    for (_, form), first in zip(late, (-3.5, -4.0, -3.0, -2.5), strict=True):
        assert (form.lam[0], form.lam[-1]) == pytest.approx((first, pair.lam[-1]), abs=1e-12)
        shares = (form.lam - form.lam[0]) / (form.lam[-1] - form.lam[0])
        assert shares == pytest.approx((pair.lam - pair.lam[0]) / (pair.lam[-1] - pair.lam[0]), abs=1e-12)
        assert (form.weights == pair.weights).all() and form.allowed() and form.fed


def test_the_pair_is_the_one_of_least_error() -> None:
    student = Student(exact(schedule=COSINE))
    plans = {name: odediff.plan(name, COSINE, 4, "quadratic") for name in NAMES}
    probe = make_probe(student, 16, 1, None, None, None)

    def error(name: str) -> float:
        e = (student.run(plans[name], probe.noise) - probe.x0).square().mean(1).sqrt().numpy()
        return float(np.median(e) * np.sqrt(np.mean(e**2)))

    assert next(iter(starts(student, COSINE, plans, probe, SETTINGS))) == min(NAMES, key=error)


def test_pairs_are_ranked_by_median_times_rmse_on_four_samples_and_the_best_four_on_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = {"a": [1, 1, 1, 20], "b": [2, 2, 2, 2], "c": [2.1] * 4, "d": [2.2] * 4, "e": [2.3] * 4}  # a: the least median
    all_of_them = {"a": 0.1, "b": 5, "c": 4, "d": 3, "e": 1}
    plans = {name: odediff.plan("ddim", COSINE, 4, "quadratic") for name in few}

    def errors(student: Student, plan: odediff.Plan, probe: Probe) -> np.ndarray:
        (name,) = [name for name, one in plans.items() if one is plan]
        return np.array(few[name], float) if len(probe.noise) == 4 else np.full(16, float(all_of_them[name]))

    monkeypatch.setattr(fitting, "errors", errors)
    student = Student(exact(schedule=COSINE))
    probe = make_probe(student, 16, 1, None, None, None)
    assert list(starts(student, COSINE, plans, probe, replace(SETTINGS, starts=1))) == ["e"]  # a was the fifth


@pytest.mark.parametrize(
    "settings",
    [
        replace(SETTINGS, starts=1),
        replace(SETTINGS, first=False),
        replace(SETTINGS, times=False),
        replace(SETTINGS, engine="ridge"),
    ],
    ids=["one start", "first time kept", "times kept", "ridge"],
)
def test_without_a_first_time_to_move_the_pair_is_the_only_start(settings: Settings) -> None:
    assert len(begun(SETTINGS)) == 2
    assert len(begun(settings)) == 1


def test_a_network_of_whole_times_has_no_late_start_and_a_schedule_those_that_are_on_it() -> None:
    assert len(begun(SETTINGS, SCHEDULES["linear"], integer_times=True)) == 1
    late = odediff.schedule.edm(sigma_max=15.0)  # lam = -2.7
    for count in (2, MOST_STARTS):  # the one that is on the schedule
        assert [name.split()[-1] for name in list(begun(replace(SETTINGS, starts=count), late))[1:]] == ["-2.5"]


@pytest.mark.parametrize(("iterations", "first", "grown"), [(1, 1, 2), (12, 4, 8), (40, 14, 28), (42, 14, 28)])
def test_a_third_of_the_steps_chooses_the_start(iterations: int, first: int, grown: int) -> None:
    """And two thirds lead on from a plan that was drawn out."""

    def stages(settings: Settings, integer_times: bool, grown: bool) -> list[tuple[str, int]]:
        student = Student(exact(schedule=SCHEDULES["linear"], integer_times=integer_times))
        probe = make_probe(student, 2, 1, None, None, None)
        return Fit(student, probe, probe, settings, Journal(None), None, lambda said: None, grown)._stages()

    settings = replace(SETTINGS, iterations=iterations)
    assert stages(settings, False, False) == [("levenberg", first), ("levenberg", iterations)]
    assert stages(settings, False, True) == [("levenberg", grown), ("levenberg", iterations)]
    assert stages(settings, True, False) == [("ridge", iterations), ("levenberg", iterations)]
    assert stages(replace(settings, engine="ridge"), False, False) == [("ridge", iterations)]


def test_fed_times_are_fitted_with_all_the_rest_by_levenberg_alone() -> None:
    def off(**options: object) -> bool:
        plan = tune(exact(schedule=COSINE), 3, n=4, validation=4, held_out=16, iterations=2, **options)[1][3].plan
        lam = np.log(plan.alpha[1:-1] / plan.sigma[1:-1])
        return bool(np.abs(COSINE.lam(plan.t[1:]) - lam).max() > 1e-6)

    assert off()
    for options in ({"fed": False}, {"times": False}, {"coefficients": False}, {"engine": "ridge"}):
        assert not off(**options), options


def test_more_starts_than_there_are_cost_no_evaluation() -> None:
    model = exact(schedule=COSINE)
    with pytest.raises(ValueError, match="starts = 6: at most 5, the best built-in pair and late ones"):
        tune(model, 4, starts=MOST_STARTS + 1)
    assert model.net.calls == 0


LONG, SHORT = ("levenberg", 4, 4), ("levenberg", 4, 3)


@pytest.mark.parametrize(
    ("whole_times", "want", "errors", "froms", "best"),
    [
        (False, [LONG, SHORT, ("levenberg", 16, 4)], [1.0, 2.0, 0.5], [None, None, None], 2),
        (
            False,
            [LONG, SHORT, ("levenberg", 8, 3), ("levenberg", 16, 4)],
            [2.0, 1.0, 0.7, 0.8],
            [None, None, None, None],
            2,
        ),
        (
            False,
            [LONG, SHORT, ("levenberg", 8, 3), ("levenberg", 16, 4)],
            [2.0, 1.0, 1.1, 1.2],
            [None, None, None, None],
            1,
        ),
        (True, [("ridge", 12, 4), ("ridge", 12, 3), ("levenberg", 12, 4)], [2.0, 1.0, 0.9], [None, None, 1], 2),
    ],
    ids=["long", "short", "no gain later", "whole times"],
)
def test_all_steps_are_for_the_longest_history(
    whole_times: bool,
    want: list[tuple[str, int, int]],
    errors: list[float],
    froms: list[int | None],
    best: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And go on from its own; a shorter history that is ahead goes on for as long as it had."""
    student = Student(exact(schedule=SCHEDULES["linear"], integer_times=whole_times))
    ((name, start),) = begun(replace(SETTINGS, starts=1), SCHEDULES["linear"]).items()
    made: list[tuple[str, int, int]] = []
    begins, ends, bests = [], [], []

    def stage(self: Fit, engine: str, steps: int, history: int, at: Form, said: str) -> tuple[Form, Form, float]:
        made.append((engine, steps, history))
        begins.append(at)
        ends.append(replace(at))
        bests.append(replace(at, history=history))
        return ends[-1], bests[-1], errors[len(made) - 1]

    monkeypatch.setattr(Fit, "_stage", stage)
    probe = make_probe(student, 4, 1, None, None, None)
    found = Fit(student, probe, probe, SETTINGS, Journal(None), None, lambda said: None)({name: start})
    assert made == want and found.start == name
    assert all(begin is (start if k is None else ends[k]) for begin, k in zip(begins, froms, strict=True))
    assert found.form.history == bests[best].history == want[best][2]


@pytest.mark.parametrize("cut", [None, 1, 2, 5, 8])
def test_a_stage_that_goes_on_makes_the_steps_of_one(cut: int | None, tmp_path: Path) -> None:
    """A third first, then all the rest, of three blocks, interrupted or not: as if it had never stopped."""
    student = Student(exact(schedule=COSINE))
    train, validation = (make_probe(student, n, seed, None, None, None) for n, seed in ((24, 1), (8, 2)))
    begin = begun(replace(SETTINGS, starts=1))
    (start,) = begin.values()
    settings = replace(SETTINGS, histories=(4,), iterations=6, patience=20)

    def fit(tick: Callable[[str], None]) -> Fitted:
        return Fit(student, train, validation, settings, Journal(tmp_path / "fit.jsonl"), None, tick)(begin)

    ticks: list[str] = []

    def stopped(said: str) -> None:
        ticks.append(said)
        if len(ticks) == cut:
            raise KeyboardInterrupt

    if cut is not None:
        with pytest.raises(KeyboardInterrupt):
            fit(stopped)
    found = fit(ticks.append)
    want = [form.numbers().tolist() for form, _ in islice(levenberg.steps(student, start, train, None), 8)]
    assert [list(record.numbers) for record in found.records] == want and len(ticks) == len(want) == 8
    assert len({record.stage for record in found.records}) == 1


def test_a_first_stage_is_the_same_whether_or_not_its_fit_went_on() -> None:
    student = Student(exact(schedule=COSINE))
    train, validation = (make_probe(student, n, seed, None, None, None) for n, seed in ((24, 1), (8, 2)))
    begin = begun(replace(SETTINGS, starts=1))
    settings = replace(SETTINGS, histories=(4,), iterations=6, patience=20)
    fit = Fit(student, train, validation, settings, Journal(None), None, lambda said: None)
    ((name, first),) = fit.begun(begin).items()
    assert name in begin
    assert len(fit.journal.records) == 2
    fit(begin)
    better = [record.mean for record in fit.journal.records]
    assert len(better) == 8 and min(better[2:]) < min(better[:2])
    assert (fit.begun(begin)[name].numbers() == first.numbers()).all()


@pytest.mark.parametrize(
    ("means", "steps", "ended"),
    [
        ([], 3, False),
        ([3, 2, 1], 3, True),
        ([3, 2, 1], 4, False),
        ([1, 2], 9, False),
        ([1, 2, 3], 9, True),
        ([2, 1, 1], 9, False),
        ([2, 1, 1, 1], 9, True),
    ],
)
def test_a_stage_ends_after_its_steps_or_two_without_gain(means: list[float], steps: int, ended: bool) -> None:
    records = [Record("a", 1.0, mean, mean, mean, ()) for mean in means]
    assert _ended(records, steps, 2) == ended
