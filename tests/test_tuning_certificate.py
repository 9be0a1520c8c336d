"""What a certificate measures, against closed forms: intervals, distances, all pairs, the best of them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from exact import SCHEDULES
from tuned import exact

import odediff
from odediff import METHODS, Plan, plan
from odediff.grids import GRIDS
from odediff.tuning import certificate
from odediff.tuning.certificate import (
    Certificate,
    Entry,
    bootstrap,
    certify,
    errors,
    frechet,
    pairs,
    sliced_wasserstein,
)
from odediff.tuning.probe import Probe, make_probe
from odediff.tuning.student import Student

COSINE = SCHEDULES["cosine"]
RMSE, MEDIAN = certificate._rmse, certificate._median


def test_an_interval_covers_what_it_says() -> None:
    """Of 200 draws of 100 errors, the truth lies within in 95 % of them, give or take chance."""
    draws = np.abs(np.random.default_rng(1).normal(size=(200, 100)))
    for measure, truth in ((RMSE, 1.0), (MEDIAN, 0.67449)):
        found = [bootstrap(measure, draw) for draw in draws]
        assert all(low <= value <= high for value, low, high in found)
        assert 0.9 <= np.mean([low <= truth <= high for _, low, high in found]) <= 0.99
        assert found[0][0] == float(measure(draws[0]))


def test_the_ratio_of_two_plans_is_on_the_same_noise() -> None:
    """Errors that are always half of the other's: the ratio has no spread, though both have."""
    e = np.random.default_rng(0).lognormal(size=50)
    assert bootstrap(RMSE, e / 2, e) == pytest.approx((0.5, 0.5, 0.5))
    assert bootstrap(MEDIAN, 3 * e, e) == pytest.approx((3, 3, 3))
    value, low, high = bootstrap(MEDIAN, e, e[::-1].copy())
    assert low < value == 1 < high


def test_what_diverges_has_an_infinite_upper_end() -> None:
    e = np.array([1.0, 2.0, np.inf, 1.0])
    assert bootstrap(RMSE, e) == (np.inf, np.inf, np.inf)
    value, _, high = bootstrap(MEDIAN, e)
    assert value == 1.5 and high == np.inf


def test_sliced_wasserstein_of_a_shift_and_of_a_scale() -> None:
    """|shift| / sqrt(D) and |s - 1| by the root mean square, per element; zero for a permutation."""
    x = torch.randn(400, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert sliced_wasserstein(x, x.flip(0)) == 0
    assert sliced_wasserstein(x, x + 0.3) == pytest.approx(0.3, rel=0.15)
    assert sliced_wasserstein(x, x + 0.3) == sliced_wasserstein(x + 0.3, x)
    assert sliced_wasserstein(x, 1.5 * x) == pytest.approx(0.5 * float(x.square().mean().sqrt()), rel=0.05)


def test_frechet_is_that_of_the_normals() -> None:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^1/2), by the eigenvalues of C C'."""
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(60, 5)), draw.normal(size=(60, 5)) @ draw.normal(size=(5, 5)) + 1
    C, D = np.cov(x.T), np.cov(y.T)
    gap = x.mean(0) - y.mean(0)
    root = np.sqrt(np.linalg.eigvals(C @ D).real).sum()
    assert frechet(x, y) == pytest.approx(gap @ gap + np.trace(C) + np.trace(D) - 2 * root, rel=1e-9)
    assert frechet(x, x) == pytest.approx(0, abs=1e-9)
    few = draw.normal(size=(4, 30))  # fewer samples than features
    assert frechet(few, few + 2) == pytest.approx(120, rel=1e-9)


def test_all_pairs_are_tried() -> None:
    """Every deterministic method on every named grid, as far as it takes the budget, and the default's."""
    found = pairs(Student(exact(schedule=COSINE)), 6)
    assert found["default"] == plan(None, COSINE, 6)
    for method, known in METHODS.items():
        for grid in GRIDS:
            name = f"{method} {grid}"
            if not known.deterministic:
                assert name not in found
            elif name in found:
                assert found[name].method == method and found[name].nfe == 6 and not found[name].stochastic
            else:
                with pytest.raises(ValueError):
                    plan(method, COSINE, 6, grid)
    assert "rk4 uniform" in found and "ddpm uniform" not in found
    whole = pairs(Student(exact(integer_times=True)), 6)
    assert len(whole) > 40 and all(np.array_equal(one.t, np.rint(one.t)) for one in whole.values())


@pytest.fixture(scope="module")
def measured() -> tuple[Student, Probe, dict[str, Plan]]:
    student = Student(exact(schedule=COSINE))
    names = {name: plan(name, COSINE, 5) for name in ("ddim", "ab2", "dpmpp_2m")}
    return student, make_probe(student, 24, 5, None, None, None), {"default": plan(None, COSINE, 5), **names}


def test_errors_are_by_sample(measured: Any) -> None:
    student, at, builtin = measured
    found = errors(student, builtin["ddim"], at)
    want = [float((x - y).square().mean().sqrt()) for x, y in zip(student.run(builtin["ddim"], at.noise), at.x0)]  # noqa: B905
    np.testing.assert_allclose(found, want, rtol=1e-12)
    far = replace(at, x0=torch.full_like(at.x0, torch.nan))
    assert np.isinf(errors(student, builtin["ddim"], far)).all()


def test_a_certificate_compares_with_the_best_pair(measured: Any) -> None:
    student, at, builtin = measured
    fine, ticks = plan("ab3", COSINE, 20), []
    found = certify(student, fine, builtin, at, lambda x: x[:, :2], lambda: ticks.append(1))
    e = {name: errors(student, one, at) for name, one in builtin.items()}
    mine = errors(student, fine, at)
    by_median = min(e, key=lambda name: np.median(e[name]))
    assert found.best == by_median == found.pairs[0].name
    assert found.rmse[0] == pytest.approx(RMSE(mine) / min(map(RMSE, e.values())))
    assert found.median[0] == pytest.approx(np.median(mine) / np.median(e[by_median]))
    assert found.holds and found.median[2] < 1
    assert {one.name for one in found.pairs} == set(builtin) and all(one.n == 24 for one in found.pairs)
    assert [one.median[0] for one in found.pairs] == sorted(one.median[0] for one in found.pairs)
    for one in (found.tuned, *found.pairs):
        x = student.run(fine if one is found.tuned else builtin[one.name], at.noise)
        assert one.wasserstein == pytest.approx(sliced_wasserstein(x, at.x0))
        assert one.frechet == pytest.approx(frechet(x[:, :2].numpy(), at.x0[:, :2].numpy()), abs=1e-12)
    assert len(ticks) == 2 * len(builtin)
    reverse = certify(student, builtin["ddim"], {"default": fine}, at, None, lambda: None)
    assert not reverse.holds and reverse.median[1] > 1 and reverse.tuned.frechet is None


def test_of_many_pairs_the_best_of_the_first_samples_run_on_all(measured: Any, monkeypatch: Any) -> None:
    student, at, builtin = measured
    monkeypatch.setattr(certificate, "FINALISTS", 1)
    monkeypatch.setattr(certificate, "SCREEN", 6)
    found = certify(student, plan("ab3", COSINE, 20), builtin, at, None, lambda: None)
    counts = {one.name: one.n for one in found.pairs}
    assert counts["default"] == 24 and sorted(counts.values())[0] == 6 and counts[found.best] == 24
    assert all((one.wasserstein is None) == (one.n == 6) for one in found.pairs)
    some = errors(student, builtin["ddim"], at.part(slice(0, 6)))
    (ddim,) = (one for one in found.pairs if one.name == "ddim")
    assert ddim.n == 24 or ddim.median[0] == pytest.approx(float(np.median(some)))


def test_pairs_of_a_schedule_without_signal_run_too() -> None:
    model = exact(schedule=SCHEDULES["flow"])
    plan_, report = odediff.tune(model, 4, n=8, validation=8, held_out=16, iterations=3)
    assert plan_.method == "tuned" and report[4].certificate.median[0] < 0.8


@pytest.mark.parametrize(
    ("rmse", "median", "holds"),
    [
        ((0.9, 0.8, 1.1), (0.9, 0.8, 1.05), False),  # better, but by neither beyond the interval
        ((0.9, 0.8, 1.1), (0.9, 0.8, 0.95), True),
        ((0.5, 0.4, 0.9), (1.2, 0.99, 1.5), True),
        ((0.5, 0.4, 0.9), (1.2, 1.01, 1.5), False),  # worse beyond the interval by the other
        ((1.3, 1.1, 1.5), (0.5, 0.4, 0.6), False),
    ],
)
def test_it_holds_by_one_measure_if_the_other_is_not_lost(rmse, median, holds):
    tuned = Entry("tuned", 16, (0.1, 0.1, 0.1), (0.1, 0.1, 0.1))
    assert Certificate(tuned, (), rmse, median, "default").holds == holds
