"""The default solver: a rule of the budget, finite on every schedule, and better there than DDIM."""

import warnings

import numpy as np
import pytest
import torch
from exact import SCHEDULES, gaussian, run

import odediff
from odediff.methods import METHODS, plan
from odediff.methods.rule import AHEAD_OF_DDIM, RULE, advice, default

BUDGETS = (*range(1, 13), 15, 20, 30, 60)


def test_the_rule_covers_every_budget_in_order():
    assert [choice.least for choice in RULE] == sorted({choice.least for choice in RULE}) and RULE[0].least == 1
    for nfe in BUDGETS:
        choice = default(nfe)
        assert METHODS[choice.name].min_nfe <= nfe
        assert choice is [other for other in RULE if other.least <= nfe][-1]


@pytest.mark.parametrize("name", SCHEDULES)
def test_it_is_the_named_plan(name):
    schedule = SCHEDULES[name]
    for nfe in BUDGETS:
        choice = default(nfe)
        grid = schedule.grid or choice.grid
        named = plan(choice.name, schedule, nfe, grid, space=choice.space, variable=choice.variable)
        assert plan(None, schedule, nfe).to_json() == named.to_json()
        assert named.nfe == nfe


@pytest.mark.parametrize("name", SCHEDULES)
def test_it_warns_of_nothing_and_is_finite_on_every_schedule(name):
    """On data of a narrow and a wide axis, whose exact x0 lies within 6."""
    schedule, denoise = SCHEDULES[name], gaussian(np.array([0.5, -0.5]), np.array([0.01, 1.0]))
    noise = np.random.default_rng(0).standard_normal((16, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for nfe in BUDGETS:
            made = plan(None, schedule, nfe)
            x = run(made, denoise, made.prior_scale * noise)[-1]
            assert np.isfinite(x).all() and np.abs(x).max() < 6, nfe


def test_a_grid_of_ones_own_and_no_options():
    schedule = SCHEDULES["linear"]
    own = plan(None, schedule, 12, "logsnr")
    assert own.args["grid"] == "logsnr" and own.method == default(12).name
    times = np.linspace(900.0, 100.0, 12)
    np.testing.assert_array_equal(plan(None, schedule, 12, times).t, times)
    for options in ({"space": "eps"}, {"variable": "lam"}, {"eta": 0.5}):
        with pytest.raises(ValueError, match="name one of METHODS"):
            plan(None, schedule, 12, **options)
    with pytest.raises(ValueError, match="nfe=0"):
        plan(None, schedule, 0)
    with pytest.raises(ValueError, match="schedule must be an odediff.schedule.Schedule"):
        plan(None, "linear", 8)


def test_sample_takes_it():
    model = odediff.Model(lambda x, t: 0.9 * x, schedule=SCHEDULES["linear"], shape=(3,), range=None)
    for nfe in (None, 5, 12):
        x = odediff.sample(model, nfe=nfe, n=4, seed=0)
        made = plan(None, model.schedule, 20 if nfe is None else nfe)
        torch.testing.assert_close(x, odediff.Sampler(model, made)(n=4, seed=0), rtol=0, atol=0)


def test_a_runge_kutta_method_below_its_budget_is_warned_of_once(recwarn):
    warnings.simplefilter("default")
    model = odediff.Model(lambda x, t: 0.9 * x, schedule=SCHEDULES["linear"], shape=(3,), range=None)
    for nfe in (5, 5, AHEAD_OF_DDIM["rk4"] - 1):
        odediff.sample(model, "rk4", nfe, n=1, seed=0)
    texts = [str(one.message) for one in recwarn]
    assert len(texts) == 2  # one a budget and place
    assert texts[0].startswith(
        f"rk4 at 5 evaluations has a larger error than ddim, which it beats from {AHEAD_OF_DDIM['rk4']}"
    )
    assert f"take {default(5).name}" in texts[0]
    odediff.sample(model, "rk4", AHEAD_OF_DDIM["rk4"], n=1, seed=0)
    odediff.sample(model, "ddim", 2, n=1, seed=0)
    assert len(recwarn) == 2
    low, enough = (plan("rk4", SCHEDULES["linear"], nfe) for nfe in (6, AHEAD_OF_DDIM["rk4"]))
    assert advice("rk4", 6) in odediff.analysis.warnings(low)
    assert odediff.analysis.warnings(enough) == []
