"""The work-precision measurement: exact scores, a converged reference, counted evaluations, a peer that is ours."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import odediff

pytest.importorskip("diffusers")
sys.path.append(str(Path(__file__).parent.parent / "bench"))  # last: bench/onnx.py is not the package onnx

import problems
import rivals


@pytest.fixture(scope="module", params=["gaussian", "modes"])
def problem(request, tmp_path_factory):
    problems.CACHE = tmp_path_factory.mktemp("references")
    return problems.exact(request.param, n=8)


@pytest.mark.parametrize("t", [0.0, 100.5, 999.0])
def test_the_score_is_the_gradient_of_the_log_density(problem, t):
    x = problem.noise.double().flatten(1)
    alpha, sigma = problem.scales(t)
    x0, eps = problem.predict(problem.noise.double(), t)
    step = 1e-5 * sigma
    for k in range(0, x.shape[1], 13):
        shift = step * torch.eye(x.shape[1], dtype=torch.float64)[k]
        slope = (problem.net.log_density(x + shift, t) - problem.net.log_density(x - shift, t)) / (2 * step)
        torch.testing.assert_close(-sigma * slope, eps.flatten(1)[:, k], rtol=1e-5, atol=1e-5 * float(eps.abs().max()))
    torch.testing.assert_close(alpha * x0 + sigma * eps, problem.noise.double(), rtol=1e-9, atol=1e-9)


def test_the_reference_is_converged(problem):
    x0, doubt = problem.reference(401)
    assert doubt < 1e-6
    assert x0.dtype == torch.float64
    again, saved = problem.reference(401)
    assert torch.equal(x0, again) and saved == doubt


def test_ddim_of_diffusers_is_ours_on_its_times(problem):
    options = {"clip_sample": False, "timestep_spacing": "trailing"}
    setting = next(s for s in rivals.diffusers_settings() if s.method == "DDIMScheduler" and s.options == options)
    theirs, used, _ = rivals.measure(problem, setting, 10)
    ours = problem.solve(odediff.plan("ddim", problem.schedule, 10, np.arange(999.0, 0.0, -100.0)))
    assert used == 10
    assert float((theirs - ours).abs().max()) < 2e-5


def test_evaluations_are_counted(problem):
    by_name = {
        (s.method, s.options.get("timestep_spacing"), s.options.get("skip_prk_steps")): s
        for s in rivals.diffusers_settings()
    }
    assert rivals.measure(problem, by_name["HeunDiscreteScheduler", "trailing", None], 10)[1] == 9
    assert rivals.measure(problem, by_name["PNDMScheduler", "leading", True], 10)[1] == 10
    with pytest.raises(ValueError, match="one evaluation is of the whole batch"):
        problem(problem.noise[:1], torch.tensor(5.0))


def test_the_budgets_that_runge_kutta_warns_below_are_the_measured_ones():
    import solver_page
    import work_precision

    from odediff.methods.rule import AHEAD_OF_DDIM

    made = solver_page.against_ddim(work_precision.load()["rows"], "median")
    assert {len(ratios) for ratios in made["rk4"].values()} == {2}
    assert {name: solver_page.ahead_from(made[name]) for name in AHEAD_OF_DDIM} == AHEAD_OF_DDIM


def test_a_problem_is_saved_and_loaded_without_loss(tmp_path):
    import work_precision

    rows = [
        {
            "problem": "p",
            "family": "azula",
            "setting": "A k=1",
            "nfe": 3,
            "used": 3,
            "rmse": 0.1,
            "median": 0.25,
            "p95": 1e-3,
        }
        | {"cpu": 0.5},
        {"problem": "p", "family": "azula", "setting": "A k=1", "nfe": 4, "used": 4, "error": "ValueError: no"},
        {"problem": "q", "family": "odediff", "setting": "default", "nfe": 4, "used": 2, "rmse": 0.2, "median": 0.2}
        | {"p95": 0.2, "cpu": 0.1, "notes": ["said"]},
    ]
    data = {"problems": {"p": {"n": 2}, "q": {"n": 3}}, "parts": [{"problem": "p", "rows": 2}], "rows": rows}
    for name in data["problems"]:
        work_precision.save(data, name, tmp_path)
    assert work_precision.load(tmp_path) == data


def test_settings_far_from_their_familys_best_stop_after_the_gate():
    import work_precision

    def measured(setting, nfe, median, rmse):
        return {"setting": setting, "nfe": nfe, "median": median, "rmse": rmse}

    rows = [measured(name, 8, 1.0, 1.0) for name in "ab"]
    assert work_precision.promising(rows, 10, 4.0) is None  # up to the gate all
    rows += [measured("a", 10, 1.0, 9.0), measured("b", 10, 5.0, 8.0), measured("c", 10, 4.0, 40.0)]
    rows += [measured("d", 10, 4.1, 32.1), {"setting": "e", "nfe": 10, "error": "x"}]
    assert work_precision.promising(rows, 12, 4.0) == {"a", "b", "c", "default"}
