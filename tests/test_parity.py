"""Our coefficients are the peers': live where they are installed, and from a file everywhere.

`parity_cases` says what is compared with what, `peers` how a peer is read.
"""

import importlib.util
from dataclasses import replace
from importlib import metadata

import frozen
import numpy as np
import pytest
from parity_cases import CASES, NEAR, SCHEDULES, STEPS, Case, settings
from peers import Probe, difference, kdiffusion, probe_diffusers, probe_kdiffusion, unroll

from odediff.methods import plan

# What plans do that float32 cannot carry is in test_adams; here coefficients are compared in float64.
pytestmark = pytest.mark.filterwarnings("ignore::odediff.methods.PrecisionWarning")

SETTINGS = [(case, schedule) for case in CASES for schedule in case.on]
each_setting = pytest.mark.parametrize(
    ("case", "schedule"), SETTINGS, ids=[f"{c.name}={c.method}-{'+'.join(c.spacings)}-{s}" for c, s in SETTINGS]
)


@pytest.fixture(scope="module")
def kept() -> dict[str, Probe]:
    return frozen.load()[0]


def spacings(case: Case, schedule: str) -> list[str]:
    return [spacing for on, spacing in settings(case) if on == schedule]


def require(*modules: str) -> None:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed; its frozen coefficients are compared")


@each_setting
def test_equals_the_peer(case: Case, schedule: str) -> None:
    """In float64, to rounding."""
    require(*case.needs)
    for spacing in spacings(case, schedule):
        for steps in filter(case.fits, STEPS):
            ours, theirs = case.pair(schedule, case.read(schedule, spacing, steps))
            assert difference(ours, theirs) < case.wide, f"{spacing}, {steps} steps"


@each_setting
def test_equals_the_frozen_peer(case: Case, schedule: str, kept: dict[str, Probe]) -> None:
    """The same, and the peer's own float32 where it is installed."""
    for spacing in spacings(case, schedule):
        ours, theirs = case.pair(schedule, kept[frozen.key(case, schedule, spacing)])
        assert difference(ours, theirs) < case.wide, spacing
        if case.library == "diffusers" and all(map(importlib.util.find_spec, case.needs)):
            narrow = case.read(schedule, spacing, frozen.steps_of(case, schedule, spacing), wide=False)
            assert difference(ours, narrow.states[: len(ours)]) < case.narrow, spacing


@each_setting
def test_the_peer_is_as_it_was_frozen(case: Case, schedule: str, kept: dict[str, Probe]) -> None:
    require(*case.needs)
    for spacing in spacings(case, schedule):
        live = case.read(schedule, spacing, frozen.steps_of(case, schedule, spacing))
        old = kept[frozen.key(case, schedule, spacing)]
        assert difference(live.states, old.states) < case.wide
        np.testing.assert_allclose(live.t, old.t, rtol=1e-12)
        np.testing.assert_allclose(live.rho, old.rho, rtol=1e-12)


def test_the_file_holds_every_setting_and_the_versions_installed(kept: dict[str, Probe]) -> None:
    assert set(kept) == {frozen.key(case, *setting) for case in CASES for setting in settings(case)}
    assert frozen.PATH.stat().st_size < 300_000
    for peer, version in frozen.load()[1].items():
        if importlib.util.find_spec(peer.replace("-", "_")) is not None:
            assert metadata.version(peer) == version, "read the peers again: python bench/parity.py --freeze"


@pytest.mark.parametrize("case", [c for c in CASES if c.tail], ids=lambda case: f"{case.name}={case.method}")
def test_what_is_left_out_differs(case: Case, kept: dict[str, Probe]) -> None:
    """A `tail` is no excuse: the states it leaves out are others than ours, on every schedule."""
    for schedule, spacing in settings(case):
        ours, theirs = replace(case, tail=0).pair(schedule, kept[frozen.key(case, schedule, spacing)])
        assert difference(ours[-case.tail :], theirs[-case.tail :]) > 1e-7, (schedule, spacing)


@pytest.mark.parametrize("case", NEAR, ids=lambda case: case.name)
def test_what_goes_by_the_same_name_and_differs(case: Case) -> None:
    """docs/parity.md lists these as other methods; the first rows are DDIM's in all."""
    require(*case.needs)
    ours, theirs = case.pair("linear", case.read("linear", "exponential", 13))
    assert difference(ours[:2], theirs[:2]) < case.wide
    assert difference(ours, theirs) > 0.05


@pytest.mark.parametrize(
    ("name", "method", "spacing"),
    [
        ("diffusers-DEISMultistep(solver_order=3,lower_order_final=False)", "deis_3", "leading"),
        ("diffusers-EulerDiscrete(final_sigmas_type=sigma_min)", "euler", "trailing"),
        ("azula-Heun", "heun", "uniform"),
        ("azula-zAB(order=3)", "ab3", "uniform"),
    ],
)
def test_a_plan_that_ends_above_zero_is_the_peer_that_does(
    name: str, method: str, spacing: str, kept: dict[str, Probe]
) -> None:
    """`plan(end=..)` to the last state, where the cases add a row."""
    (case,) = (c for c in CASES if (c.name, c.method) == (name, method))
    schedule = case.on[0]
    probe, ours = kept[frozen.key(case, schedule, spacing)], SCHEDULES[schedule]
    *starts, end = ours.t_of_rho(np.minimum(probe.rho, ours.rho(ours.t_max)))
    made = plan(method, ours, probe.nfe, np.array(starts), end=float(end), **case.args)
    assert difference(unroll(made), probe.states) < case.wide


@pytest.mark.parametrize(
    ("name", "options", "evaluations"),
    [
        ("DDIM", {}, 20),
        ("DPMSolverMultistep", {}, 20),
        ("UniPCMultistep", {}, 20),
        ("PNDM", {"skip_prk_steps": True}, 21),
        ("PNDM", {}, 29),
        ("HeunDiscrete", {}, 39),
        ("KDPM2Discrete", {"use_karras_sigmas": True, "beta_start": 1e-4, "beta_end": 0.02}, 39),
    ],
)
def test_evaluations_of_twenty_steps(name: str, options: dict[str, object], evaluations: int) -> None:
    require("diffusers")
    assert probe_diffusers(name, 20, options).nfe == evaluations


def test_a_probe_reads_the_sampler_and_not_the_probe() -> None:
    """A foreign sampler whose matrix is known: three Euler steps of k-diffusion, by hand."""
    require("k_diffusion", "scipy")
    sampling = kdiffusion()
    assert sampling.sample_euler.__module__ == "_kdiffusion.sampling"
    states = probe_kdiffusion("euler", np.array([3.0, 2.0, 0.5, 0.0])).states
    want = np.zeros((4, 8))
    want[:, 0] = 1.0
    want[1:, 1], want[2:, 2], want[3, 3] = -1.0, -1.5, -0.5
    np.testing.assert_allclose(states, want, atol=1e-15)


def test_a_wrong_coefficient_does_not_pass() -> None:
    """The bound tells 2M as published from 2M integrated exactly, and a step to the wrong time, by far."""
    times = np.linspace(999.0, 0.0, STEPS[0])
    published, exact = (
        unroll(plan(name, SCHEDULES["linear"], STEPS[0], times, **frame))
        for name, frame in (("dpmpp_2m", {}), ("ab2", {"space": "x0", "variable": "lam"}))
    )
    assert difference(exact, published) > 1e-2
    shifted = unroll(plan("dpmpp_2m", SCHEDULES["linear"], STEPS[0], times + np.eye(1, STEPS[0], 3)[0]))
    assert difference(shifted, published) > 1e-4
