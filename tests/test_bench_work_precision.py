"""The work-precision measurement: exact scores, a converged reference, counted evaluations, a peer that is ours."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import odediff

pytest.importorskip("diffusers")
sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

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
