"""Where a peer is wrong: shown on its own code, so that a release that mends it turns a test red.

docs/parity.md says so with the numbers; `peer_faults` measures them.
"""

import importlib.util

import numpy as np
import peer_faults as faults
import pytest
from parity_cases import SCHEDULES

from odediff.methods import plan

needs_diffusers = pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="diffusers is not installed")
needs_azula = pytest.mark.skipif(importlib.util.find_spec("azula") is None, reason="azula is not installed")


def test_what_ddim_holds_of_constant_predictions_is_everything() -> None:
    """The measure itself: our DDIM on any times holds signal 1 and noise 0."""
    times = np.array([999.0, 800.0, 333.0, 20.0])
    made = plan("ddim", SCHEDULES["cosine"], 4, times)
    probe = faults.Probe(faults.unroll(made), times, np.append(SCHEDULES["cosine"].rho(times), 0.0))
    signal, noise = faults.held(probe, SCHEDULES["cosine"], times)
    assert signal == pytest.approx(1.0, abs=1e-12)
    assert noise == pytest.approx(0.0, abs=1e-11)


def test_the_error_of_a_fine_plan_is_small() -> None:
    """The other measure: it converges to 0 with our ab3, at order 3."""
    errors = []
    for nfe in (100, 200):
        times = np.linspace(999.0, 0.0, nfe)
        made = plan("ab3", SCHEDULES["linear"], nfe, times)
        rho = np.append(SCHEDULES["linear"].rho(times), 0.0)
        errors.append(faults.error(faults.Probe(faults.unroll(made), times, rho), SCHEDULES["linear"], times))
    assert errors[1] < errors[0] < 2e-3


@needs_diffusers
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
@pytest.mark.parametrize("steps", [7, 13, 23])
def test_ddim_steps_elsewhere_when_steps_do_not_divide(spacing: str, steps: int) -> None:
    """Its steps end at t - T // steps, where the next does not start: until the first such step all is well."""
    row = faults.ddim(spacing, "linear", steps)
    assert row["difference"] > 0.02
    assert row["signal"] < 0.98
    assert row["noise"] > 0.01
    probe, linear = faults.read("DDIM", "linear", spacing, steps, clip_sample=False), SCHEDULES["linear"]
    i = int(np.flatnonzero(probe.t[1:] != probe.t[:-1] - 1000 // steps)[0])
    signal = probe.states[: i + 2, 0] * linear.alpha(999.0)
    np.testing.assert_allclose(signal[: i + 1], linear.alpha(probe.t[: i + 1]), rtol=1e-9)
    assert signal[i + 1] == pytest.approx(float(linear.alpha(probe.t[i] - 1000 // steps)), rel=1e-9)
    assert abs(signal[i + 1] / linear.alpha(probe.t[i + 1]) - 1) > 1e-3


@needs_diffusers
def test_sde_dpmpp_of_order_3_has_a_wrong_sign() -> None:
    """Its rows are those of the wrong sign, to rounding; with the right one the spread is the data's, and ours."""
    row = faults.sde_order_3("linear", 100)
    assert row["difference_wrong"] < 1e-11 < 0.1 < row["difference"]
    assert abs(row["std"] - faults.STD) > 0.05
    assert abs(row["std_right"] - faults.STD) < 0.002 > abs(row["std_ours"] - faults.STD)


@needs_diffusers
def test_ddim_at_a_divisor_is_ours() -> None:
    row = faults.ddim("trailing", "linear", 20)
    assert row["difference"] < 1e-11
    assert row["error"] == pytest.approx(row["error_ours"], abs=1e-11)


@needs_diffusers
def test_ddim_with_many_steps_does_not_converge() -> None:
    row = faults.ddim("trailing", "linear", 600)
    assert row["error"] > 50 * row["error_ours"]
    assert row["signal"] < 0.2


@needs_diffusers
def test_pndm_has_the_same_arithmetic() -> None:
    right, wrong = (faults.pndm(spacing, "cosine", 20) for spacing in ("leading", "linspace"))
    assert right["signal"] == pytest.approx(1.0, abs=1e-9)
    assert wrong["signal"] < 0.05
    assert wrong["error"] > 20 * right["error"]


@needs_diffusers
@pytest.mark.parametrize("order", [2, 3])
def test_dpm_solver_changes_its_last_step_at_15(order: int) -> None:
    before, after = (faults.last_step("cosine", order, steps)["error"] for steps in (14, 15))
    assert after > 5 * before


@needs_diffusers
@pytest.mark.parametrize(("order", "kind"), [(2, "heun"), (3, "midpoint")])
@pytest.mark.parametrize("spacing", ["karras", "exponential", "logsnr"])
def test_dpm_solver_divides_by_a_step_of_no_length(order: int, kind: str, spacing: str) -> None:
    assert faults.zero_length(order, kind, spacing, 20)


@needs_diffusers
def test_unipc_multiplies_infinity_by_zero() -> None:
    assert faults.bh1(20)


@needs_diffusers
@pytest.mark.parametrize("name", ["DPMSolverMultistep", "DEISMultistep", "UniPCMultistep", "DPMSolverSinglestep"])
@pytest.mark.parametrize("spacing", ["karras", "exponential"])
def test_schedulers_stop_where_their_first_two_times_round_to_one(name: str, spacing: str) -> None:
    assert faults.same_first_times(name, spacing, 20) in ("IndexError", "AssertionError")


@needs_diffusers
@pytest.mark.parametrize("name", ["KDPM2Discrete", "KDPM2AncestralDiscrete"])
def test_kdpm2_is_nan_where_its_first_two_times_round_to_one(name: str) -> None:
    """A step ahead, it divides by the level 0, in float64 too. Told where to begin, or on other grids, it is finite."""
    for steps, wide in ((7, False), (7, True), (20, False)):
        assert faults.not_finite(name, "cosine", "karras", steps, begin=False, wide=wide)
    assert not faults.not_finite(name, "cosine", "karras", 7, begin=True)
    assert not faults.not_finite(name, "cosine", "exponential", 7, begin=False)
    assert not faults.not_finite(name, "linear", "karras", 7, begin=False)


@needs_diffusers
def test_ddpm_adds_noise_to_the_finished_sample() -> None:
    """fixed_large, trailing: sqrt(beta) of a step from t > 0 to the data."""
    assert faults.noise_in_the_sample("linear", 20) == pytest.approx(float(SCHEDULES["linear"].sigma(49.0)), rel=1e-9)


@needs_diffusers
@pytest.mark.parametrize("name", ["EulerDiscrete", "HeunDiscrete", "LMSDiscrete"])
def test_the_first_input_is_too_small(name: str) -> None:
    """x_T is made sigma_max instead of sqrt(1 + sigma_max^2) times unit noise, so the network sees sigma / hypot."""
    got = faults.start_scale(name, "scaled_linear")
    assert got == pytest.approx(float(SCHEDULES["scaled_linear"].sigma(999.0)), rel=1e-5)
    assert got < 0.998


@needs_azula
@pytest.mark.parametrize("schedule", ["linear", "edm"])
def test_azula_reab_has_a_wrong_subscript(schedule: str) -> None:
    """With sigma_t for sigma_s its docstring's formula is its code, up to its trapezoids; with sigma_s it is not."""
    row = faults.azula_reab(schedule, 16)
    assert row["difference_wrong"] < 2e-3 * row["difference"]
    assert row["difference"] > 0.05


@needs_azula
def test_azula_reab_is_of_first_order() -> None:
    coarse, fine = (faults.azula_reab("cosine", steps) for steps in (128, 256))
    assert coarse["error_right"] / fine["error_right"] > 3
    assert coarse["error"] / fine["error"] < 2.2


@needs_azula
def test_azula_weights_lose_digits() -> None:
    assert faults.vandermonde(23) > 1e-9
