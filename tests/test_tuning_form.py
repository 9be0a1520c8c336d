"""Plans as free numbers: what comes in comes out, rows conserve whatever the numbers are, and bounds hold."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from exact import SCHEDULES, mixture, run

import odediff
from odediff import METHODS, Plan, plan
from odediff.schedule import Schedule
from odediff.tuning.form import BOUND, Form, form_of

MIXTURE = mixture(np.array([[1.0, 0.5], [-0.8, 0.3], [0.1, -1.0]]), 0.3)
NOISE = np.random.default_rng(0).normal(size=(5, 2))
ALL = {
    **{name: SCHEDULES[name] for name in ("linear", "cosine", "edm", "flow", "zero_snr")},
    "cosine_zero_snr": SCHEDULES["cosine"].zero_terminal_snr(),
}
STANDING = {"heun", "rk3", "rk4", "rk4_38", "pndm", "plms"}  # a stage, or a second look, at a time that was there
FRAMES = [
    (name, space)
    for name, method in METHODS.items()
    if method.deterministic
    for space in dict.fromkeys(space for space, _ in method.frames)
]


def singular(schedule: Schedule, space: str) -> bool:
    return space == "eps" and schedule.alpha(schedule.t_max) == 0


def end(of: Plan) -> Any:
    return run(of, MIXTURE, of.prior_scale * NOISE)[-1]


def compiled(name: str, schedule: Schedule, nfe: int = 6, **options: Any) -> Plan:
    return plan(name, schedule, max(nfe, METHODS[name].min_nfe), **options)


@pytest.mark.parametrize("schedule", ALL)
@pytest.mark.parametrize(("name", "space"), FRAMES)
@pytest.mark.filterwarnings("ignore::odediff.methods.PrecisionWarning")
def test_a_plan_of_any_method_and_space_is_the_same_plan_as_a_form(name: str, space: str, schedule: str) -> None:
    """To 1e-10 on an exact problem in float64, times what the old plan amplifies rounding where it warns of that.

    A row that stays where it is cannot be a form, and says so.
    """
    s = ALL[schedule]
    if singular(s, space):
        return
    old = compiled(name, s, space=space)
    if name in STANDING:
        with pytest.raises(ValueError, match=rf"row \d of {name} does not move towards the data"):
            form_of(s, old)
        return
    new = form_of(s, old, first=False).plan()
    assert (new.space, new.method, new.nfe, new.schedule) == ("flow", "tuned", old.nfe, old.schedule)
    np.testing.assert_allclose(new.t, old.t, rtol=1e-9, atol=1e-9)
    loss = old.amplification.max()
    bound = 1e-10 * (loss if loss > 2**10 else 1.0)
    np.testing.assert_allclose(end(new), end(old), rtol=bound, atol=bound)


def test_the_first_free_time_of_a_schedule_without_signal_is_the_first_that_has_some() -> None:
    for s in (ALL["flow"], ALL["zero_snr"]):
        old = plan("ab2", s, 5, space="flow", variable="t")
        made = form_of(s, old)
        assert made.allowed() and np.isfinite(made.numbers()).all()
        assert made.plan().t[0] == pytest.approx(s.t_finite) and s.t_finite < s.t_max
        assert np.abs(end(made.plan()) - end(old)).max() < 1e-3
        held = form_of(s, old, first=False)
        assert held.allowed() and held.plan().t[0] == s.t_max and held.plan().alpha[0] == 0


def test_a_stochastic_plan_is_refused() -> None:
    with pytest.raises(ValueError, match="ddpm is stochastic; a plan that is fitted has no noise"):
        form_of(ALL["linear"], plan("ddpm", ALL["linear"], 5))


def random(schedule: Schedule, seed: int, nfe: int = 6, **free: Any) -> Form:
    """Free numbers far from any method's, within the bounds."""
    draw = np.random.default_rng(seed)
    made = form_of(schedule, plan("ab2", schedule, nfe, "quadratic", space="flow", variable="tau"), **free)
    made = made.at(made.numbers() + draw.normal(size=len(made.numbers())))
    low, high = made.bounds
    return replace(made, lam=np.sort(draw.uniform(low, high, nfe)))


@pytest.mark.parametrize("schedule", ALL)
def test_any_numbers_make_a_plan_that_conserves_and_survives_json(schedule: str) -> None:
    """`Plan` refuses rows that do not conserve signal or noise to 1e-10; its text gives it back bit for bit."""
    for seed in range(20):
        made = random(ALL[schedule], seed, fed=True)
        table = made.plan(fitted={"rmse": [0.1, 1 / 3], "seed": seed})
        again = Plan.from_json(table.to_json())
        assert again == table and again.to_json() == table.to_json()
        for name in ("t", "alpha", "sigma", "a", "b"):
            assert np.array_equal(getattr(again, name), getattr(table, name))
        assert json.loads(table.to_json())["args"]["fitted"]["rmse"][1] == 1 / 3
        assert table.sigma[-1] == 0 and not table.stochastic


@pytest.mark.parametrize("fed", [False, True])
@pytest.mark.parametrize("times", [False, True])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("coefficients", [False, True])
@pytest.mark.parametrize("history", [1, 3, 6])
def test_numbers_go_in_and_come_out(fed: bool, times: bool, first: bool, coefficients: bool, history: int) -> None:
    s = ALL["cosine"]
    free = {"fed": fed, "times": times, "first": first, "coefficients": coefficients, "history": history}
    made = form_of(s, plan("ab3", s, 6), **free)
    weights = sum(min(i, history - 1) for i in range(6)) if coefficients else 0
    numbers = made.numbers()
    assert len(numbers) == times * (5 + first) + 6 * fed + weights
    new = numbers + 0.01 * np.arange(1, len(numbers) + 1)
    assert np.array_equal(made.at(new).numbers(), new)
    assert np.array_equal(made.numbers(), numbers)  # the old form is as it was
    assert made.at(numbers).plan() == made.plan()
    changed = made.at(new)
    np.testing.assert_allclose(changed.weights.sum(1), 1.0, rtol=0, atol=1e-14)
    assert not np.triu(changed.weights, 1).any() and not changed.weights[:, history:].any()
    assert (changed.lam[0] != made.lam[0]) == (first and times)
    assert (changed.feed != made.feed).any() == fed
    assert (changed.lam[1:] != made.lam[1:]).all() == times


def test_a_number_is_what_it_is_called() -> None:
    """lam[i] is the state's, feed[i] that of the network's time beyond it, w[i, j] the share of d[i-j]."""
    s = ALL["cosine"]
    made = random(s, 3, fed=True)
    made = replace(made, feed=np.where(np.arange(6) == 2, 0.25, made.feed))
    table, (low, high) = made.plan(), made.bounds
    np.testing.assert_allclose(np.log(table.alpha[:-1] / table.sigma[:-1]), made.lam, rtol=0, atol=1e-9)
    np.testing.assert_allclose(s.lam(table.t), np.clip(made.lam + made.feed, low, high), rtol=0, atol=1e-9)
    scale = table.alpha + table.sigma
    tau = table.sigma / scale
    np.testing.assert_allclose(table.a, scale[1:] / scale[:-1], rtol=1e-14)
    for i in range(6):
        for j in range(i + 1):
            step = scale[i + 1] * (tau[i + 1] - tau[i])
            assert table.b[i, j] == pytest.approx(step * made.weights[i, j], rel=1e-9, abs=1e-14)


def test_a_step_far_below_rounding_of_tau_keeps_its_length() -> None:
    """EDM from sigma = 80: 1 - tau is 0.012; a table of sigma up to 1e9 has steps of 1e-9 in it."""
    s = odediff.schedule.edm(sigma_max=1e9)
    made = form_of(s, plan("ddim", s, 4, [1e9, 9e8, 1.0, 0.1]))
    table = made.plan()
    tau_step = 1 / (1 + 1e9) - 1 / (1 + 9e8)
    assert table.b[0, 0] / (1 + 9e8) == pytest.approx(tau_step, rel=1e-9)


def test_a_shorter_history_keeps_the_newest_predictions_and_the_sum() -> None:
    s = ALL["linear"]
    whole, short = (form_of(s, plan("ab4", s, 7, space="flow", variable="t"), history=h) for h in (7, 2))
    assert whole.plan().depth == 4 and short.plan().depth == 2
    np.testing.assert_array_equal(short.weights[:, 1], whole.weights[:, 1])
    np.testing.assert_allclose(short.weights.sum(1), 1.0, rtol=0, atol=1e-15)
    assert form_of(s, plan("ab4", s, 7), history=1).plan().depth == 1


def test_a_shorter_history_of_an_allowed_form_is_allowed() -> None:
    """Rows near the bound, with large weights of either sign among those that are left out."""
    draw, shrunk = np.random.default_rng(5), 0
    base = form_of(ALL["linear"], plan("ab2", ALL["linear"], 7))
    for _ in range(50):
        made = base.at(np.concatenate([base.lam, 20 * draw.normal(size=21)])).within()
        assert made.allowed() and np.abs(made.weights).sum(1).max() > BOUND / 2
        for history in range(1, 7):
            short = made.shortened(history)
            assert short.allowed() and (np.abs(short.weights).sum(1) <= np.abs(made.weights).sum(1) + 1e-12).all()
            shrunk += int((np.abs(short.weights).sum(1) < np.abs(made.weights).sum(1) - 1).sum())
    assert shrunk > 100


def test_what_is_allowed() -> None:
    s = ALL["linear"]
    made = form_of(s, plan("ab2", s, 5))
    low, high = made.bounds
    assert made.allowed() and (low, high) == (float(s.lam(s.t_max)), float(s.lam(s.t_min)))

    def moved(k: int, to: float) -> Form:
        return replace(made, lam=np.where(np.arange(5) == k, to, made.lam))

    assert moved(0, low).allowed() and moved(4, high).allowed()
    assert not moved(2, made.lam[1] + 0.01).allowed() and moved(2, made.lam[1] + 0.03).allowed()
    assert not moved(2, np.nan).allowed()

    def weighed(w: float) -> Form:
        weights = made.weights.copy()
        weights[3, :2] = 1 - w, w
        return replace(made, weights=weights)

    assert weighed(0.5 - BOUND / 2 + 0.01).allowed() and not weighed(0.5 - BOUND / 2 - 0.01).allowed()
    assert not weighed(np.inf).allowed()


def test_times_that_leave_the_schedule_are_put_on_its_ends() -> None:
    made = form_of(ALL["cosine"], plan("ab2", ALL["cosine"], 5))
    numbers, (low, high) = made.numbers(), made.bounds
    numbers[[0, 4]] = low - 0.5, high + 0.5
    kept = made.at(numbers)
    assert (kept.lam[0], kept.lam[4]) == (low, high) and np.array_equal(kept.lam[1:4], made.lam[1:4])
    assert kept.allowed() and kept.plan().t[4] == ALL["cosine"].t_min


@pytest.mark.parametrize("times", [False, True])
def test_whole_times_stay_whole(times: bool) -> None:
    for s in (ALL["linear"], ALL["cosine"], ALL["zero_snr"]):
        old = plan("ab3", s, 8, snap=True, space="x0")
        assert np.array_equal(form_of(s, old, times=times, first=False).plan().t, old.t)


@pytest.mark.parametrize("seed", range(5))
def test_ends_that_round_past_the_schedule_stay_on_it(seed: int) -> None:
    value = np.random.default_rng(seed).uniform(10, 100)
    for s in (odediff.schedule.edm(sigma_max=value), odediff.schedule.flow(t_max=value / 101)):
        assert form_of(s, plan("ddim", s, 4)).plan().t[0] <= s.t_max


def test_a_method_whose_rows_weigh_too_much_is_no_start() -> None:
    s = ALL["cosine"]
    with pytest.warns(odediff.methods.PrecisionWarning):
        made = form_of(s, plan("abm3", s, 6, space="eps"))
    assert np.abs(made.weights).sum(1).max() > BOUND and not made.allowed()


@pytest.mark.parametrize("seed", range(20))
def test_what_is_put_within_is_allowed(seed: int) -> None:
    """Times that collide, leave the schedule or go back, and rows that weigh too much."""
    s, rng = ALL["cosine"], np.random.default_rng(seed)
    for _ in range(50):
        weights = np.tril(rng.normal(size=(6, 6)) * rng.choice([1, 40]))
        weights[:, 0] = 1 - weights[:, 1:].sum(1)
        lam = np.round(rng.normal(size=6) * rng.choice([0.01, 1, 6]), 2)
        made = Form(s, np.clip(lam, -9, 9), np.zeros(6), weights, 6)
        low, high = made.bounds
        made = made.at(made.numbers()).within()
        assert made.allowed() and made.lam[0] >= low and made.lam[-1] <= high + 1e-12
        assert np.diff(made.lam).min() >= 0.02 * (1 - 1e-9)


def test_a_step_stays_in_its_room() -> None:
    """Times by half at most and along the schedule, weights by four."""
    s = ALL["cosine"]
    low, high = Form(s, np.zeros(2), np.zeros(2), np.eye(2), 2).bounds
    made = Form(s, np.array([low + 0.1, high - 0.2]), np.zeros(2), np.array([[1.0, 0], [0.5, 0.5]]), 2, fed=True)
    down, up = made.room()
    assert down == pytest.approx([-0.1, -0.5, -0.5, -0.5, -4])
    assert up == pytest.approx([0.5, 0.2, 0.5, 0.5, 4])
