"""`tune` from outside: repeatable, resumable, sparing, honest, and refusing what it cannot do before it works."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exact import SCHEDULES
from torch import Tensor
from tuned import MIXTURE, exact

import odediff
from odediff import Plan, tune
from odediff.tuning import fitting, front, levenberg, ridge
from odediff.tuning.certificate import Certificate, Entry
from odediff.tuning.probe import REFERENCE_NFE
from odediff.tuning.report import _cells as report_cells

COSINE = SCHEDULES["cosine"]
FEW: dict[str, Any] = {"n": 8, "validation": 8, "held_out": 24, "iterations": 4}


@pytest.fixture(scope="module", autouse=True)
def fewer() -> Iterator[None]:
    """A dozen of the pairs, enough to choose from."""
    whole = front.pairs

    def some(*args: Any) -> dict[str, Plan]:
        return {k: v for k, v in whole(*args).items() if k == "default" or k.startswith(("ddim", "ab2", "rk4"))}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(front, "pairs", some)
        yield


def gap(model: odediff.Model, plan: Plan, seed: int, **options: Any) -> Any:
    """Errors of samples of a plan against 200 evaluations, on noise that no fit has seen."""
    ends = [odediff.sample(model, p, n=48, seed=seed, **options) for p in (plan, odediff.plan("abm4", COSINE, 200))]
    return (ends[0] - ends[1]).double().flatten(1).square().mean(1).sqrt().numpy()


@pytest.fixture(scope="module")
def tuned(fewer: None) -> tuple[odediff.Model, Plan, Any]:
    model = exact(schedule=COSINE)
    return model, *tune(model, 4, **FEW)


def test_a_tuned_plan_is_better_also_on_other_noise_and_in_other_batches(tuned: Any) -> None:
    model, plan, report = tuned
    found = report[4].certificate
    assert plan.method == "tuned" and found.holds and report[4].returned == "tuned"
    assert found.median[0] < 0.6 and found.rmse[0] < 0.8
    for seed in (11, 12):
        ratio = np.median(gap(model, plan, seed)) / np.median(gap(model, odediff.plan(None, COSINE, 4), seed))
        assert ratio < 0.6
    whole = odediff.sample(model, plan, n=6, seed=3)
    parts = [odediff.sample(model, plan, n=1, seed=[k], noise=None) for k in (3,)]
    torch.testing.assert_close(whole[:1], parts[0], rtol=0, atol=1e-12)


def test_the_same_seed_gives_the_same_plan_and_another_nearly_as_good_a_one(tuned: Any) -> None:
    model, plan, report = tuned
    again, same = tune(model, 4, **FEW)
    assert again == plan and same[4].certificate == report[4].certificate
    other, _ = tune(model, 4, seed=1, **FEW)
    assert other != plan and np.median(gap(model, other, 11)) < 2 * np.median(gap(model, plan, 11))


def test_batches_change_a_plan_by_rounding_only(tuned: Any) -> None:
    model, plan, _ = tuned
    other, _ = tune(model, 4, batch=5, **FEW)
    np.testing.assert_allclose(other.b, plan.b, rtol=0, atol=1e-4)
    np.testing.assert_allclose(other.t, plan.t, rtol=0, atol=1e-2)


def test_provenance_says_what_the_report_says(tuned: Any) -> None:
    model, plan, report = tuned
    said, found = plan.args["fitted"], report[4].certificate
    assert (said["held_out"], said["samples"], said["seed"], said["guidance"]) == (24, 8, 0, None)
    assert said["rmse"] == list(found.tuned.rmse) and said["over_best_median"] == list(found.median)
    assert said["best"] == found.best and said["start"] == report[4].start and len(said["weights"]) == 64
    assert Plan.from_json(plan.to_json()) == plan and json.loads(plan.to_json())["args"]["fitted"] == said


def test_a_report_prints_and_plots(tuned: Any, tmp_path: Path) -> None:
    _, _, report = tuned
    text = str(report)
    assert "4 evaluations; held-out noise" in text and "tuned over the best pair" in text and "sliced W2" in text
    assert all(len(line) <= 160 for line in text.splitlines()) and "Frechet" not in text
    for measure in ("median", "rmse"):
        report.plot(tmp_path / f"{measure}.png", measure)
        assert (tmp_path / f"{measure}.png").stat().st_size > 4000
    with pytest.raises(ValueError, match="unknown measure 'mean'; choose median, rmse"):
        report.plot(tmp_path / "x.png", "mean")


@pytest.mark.parametrize("engine", ["levenberg", "ridge"])
def test_an_interrupted_run_goes_on_where_it_was(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan of an uninterrupted run, no step twice, and references read back."""
    module, name = (levenberg, "steps") if engine == "levenberg" else (ridge, "search")
    whole, made, limit = getattr(module, name), [], [3]

    def counted(*args: Any) -> Any:
        for step in whole(*args):
            if len(made) == limit[0]:
                limit[0] = 10**6
                raise KeyboardInterrupt
            made.append(step[0].numbers().tobytes())
            yield step

    model = exact(schedule=COSINE)
    want, report = tune(model, 4, engine=engine, **FEW)
    monkeypatch.setattr(module, name, counted)
    with pytest.raises(KeyboardInterrupt):
        tune(model, 4, engine=engine, folder=tmp_path, **FEW)
    (journal,) = tmp_path.glob("*/fit-4-*.jsonl")
    journal.write_text(journal.read_text() + '{"stage": "leven')  # cut off within a line
    monkeypatch.setattr(front, "make_probe", reading(front.make_probe, model))
    got, again = tune(model, 4, engine=engine, folder=tmp_path, **FEW)
    assert got == want and [r.numbers for r in again[4].records] == [r.numbers for r in report[4].records]
    assert len(made) == len(report[4].records)
    third, _ = tune(model, 4, engine=engine, folder=tmp_path, **FEW)
    assert third == want and len(made) == len(report[4].records)


def reading(probe: Any, model: odediff.Model) -> Any:
    def read(*args: Any) -> Any:
        before = model.net.calls
        made = probe(*args)
        assert model.net.calls == before
        return made

    return read


def test_budgets_share_their_references(monkeypatch: pytest.MonkeyPatch) -> None:
    model, made = exact(schedule=COSINE), []
    whole = front.make_probe

    def counted(*args: Any) -> Any:
        before = model.net.calls
        made.append(whole(*args))
        assert model.net.calls - before == (REFERENCE_NFE + REFERENCE_NFE // 2) * len(made[-1].noise)
        return made[-1]

    monkeypatch.setattr(front, "make_probe", counted)
    plans, report = tune(model, (n for n in [3, 2, 3]), **FEW)
    assert [len(one.noise) for one in made] == [8, 8, 24]
    assert list(plans) == [3, 2] == list(report.budgets) and (plans[3].nfe, plans[2].nfe) == (3, 2)
    noises = torch.cat([one.noise for one in made])
    assert len(torch.unique(noises[:, 0])) == 40
    assert model.net.calls == sum(b.evaluations for b in report.budgets.values()) + 96 * 40


def test_where_the_fit_is_not_better_the_best_pair_is_returned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The fit is made to end far off."""
    whole = fitting.Fit.__call__

    def bad(*args: Any) -> Any:
        made = whole(*args)
        form = made.form.at(made.form.numbers() * 0.7)
        return replace(made, form=form)

    monkeypatch.setattr(fitting.Fit, "__call__", bad)
    plan, report = tune(exact(schedule=COSINE), 4, save=tmp_path, **FEW)
    found = report[4].certificate
    assert not found.holds and report[4].returned == found.best == found.pairs[0].name
    assert plan.method != "tuned" and "fitted" not in plan.args
    assert "not better beyond its interval, so the best built-in pair is returned" in str(report)
    assert Plan.from_json((tmp_path / "4.json").read_text()) == plan and report[4].plan.method == "tuned"


@pytest.mark.parametrize(
    ("rmse", "median", "holds"),
    [
        ((0.5, 0.4, 0.6), (0.5, 0.4, 0.6), True),
        ((0.9, 0.7, 1.2), (0.5, 0.4, 0.6), True),
        ((1.3, 1.1, 1.5), (0.5, 0.4, 0.6), False),
        ((0.9, 0.7, 1.1), (0.9, 0.8, 1.01), False),
        ((0.5, 0.4, 0.6), (2.0, 1.5, 3.0), False),
    ],
)
def test_a_certificate_holds_if_one_measure_gains_and_none_loses(rmse: Any, median: Any, holds: bool) -> None:
    entry = Entry("x", 2, (1, 1, 1), (1, 1, 1))
    assert Certificate(entry, (), rmse, median, "x").holds == holds


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    """A network in half gets a plan that works, and runs the one of its float32 self without a warning or a loss."""

    class Half(torch.nn.Module):
        def __init__(self, dtype: torch.dtype) -> None:
            super().__init__()
            self.inner, generator = exact(schedule=COSINE).net, torch.Generator().manual_seed(0)
            self.weight = torch.nn.Parameter(torch.randn(6, 8, generator=generator).to(dtype))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.inner(x.double(), t).to(x.dtype)

    single, half = (
        odediff.Model(Half(d), schedule=COSINE, prediction="v", shape=(3,), range=None) for d in (torch.float32, dtype)
    )
    default = odediff.plan(None, COSINE, 4)
    for of in (single, half):
        plan, _ = tune(of, 4, **FEW)
        ratio = np.median(gap(half, plan, 11)) / np.median(gap(half, default, 11))
        assert plan.method == "tuned" and ratio < 0.6


def test_options_reach_the_fit() -> None:
    model = exact(schedule=COSINE)
    start_times, _ = tune(model, 4, times=False, **FEW)
    assert start_times.method == "tuned"
    short, report = tune(model, 4, history=2, derivatives="differences", first=False, **FEW)
    assert report[4].plan.depth <= 2 and report[4].plan.t[0] == COSINE.t_max
    fed = tune(model, 4, fed=True, **FEW)[1][4].plan
    lam = np.log(fed.alpha[:-1] / fed.sigma[:-1])
    assert np.abs(COSINE.lam(fed.t) - lam).max() > 1e-3
    _, report = tune(model, 3, features=lambda x: x[:, :2], **FEW)
    assert report[3].certificate.tuned.frechet is not None and "Frechet" in str(report)


def test_conditional_models_are_fitted_to_all_classes_or_those_given(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = exact(labelled=True, schedule=COSINE), []
    whole = front.make_probe
    monkeypatch.setattr(front, "make_probe", lambda *args: seen.append(args[3].tolist()) or whole(*args))
    plan, _ = tune(model, 3, guidance=2, **FEW)
    assert seen[0] == [0, 1, 2, 0, 1, 2, 0, 1] and plan.args["fitted"]["guidance"] == 2.0
    _, report = tune(model, 3, label=1, **FEW)
    assert seen[3] == [1] * 8
    assert (plan.args["fitted"]["labels"], report[3].plan.args["fitted"]["labels"]) == ("all", [1])


def test_more_labels_than_noises_are_evenly_spread() -> None:
    """And the plan says how many it saw; labels that were given are all said."""
    means = np.random.default_rng(0).normal(size=(20, 3))
    model = exact(means, labelled=True, schedule=COSINE)
    assert front._labels(model, None, 8).tolist() == [0, 2, 5, 7, 10, 12, 15, 17]
    assert front._labels(model, [3, 4, 9], 2).tolist() == [3, 4]
    _, report = tune(model, 2, **FEW)
    assert report[2].plan.args["fitted"]["labels"] == "8 of 20"
    _, report = tune(model, 2, label=[4, 3, 3], **FEW)
    assert report[2].plan.args["fitted"]["labels"] == [3, 4]


def test_an_int8_file_takes_no_loss_by_default_either() -> None:
    assert front._engine(None, "ridge", None) == "ridge"
    with pytest.raises(ValueError, match='"ridge", the default of an int8 network, fits rows to states'):
        front._engine(None, "ridge", torch.tanh)


def test_a_loss_that_is_flat_leaves_the_start() -> None:
    _, report = tune(exact(schedule=COSINE), 3, loss=lambda x: torch.sign(x).flatten(1), **FEW)
    assert (
        len({record.numbers for record in report[3].records if record.stage.startswith("levenberg of history 3")}) <= 3
    )


def test_one_history_is_enough_where_weights_are_not_free() -> None:
    _, report = tune(exact(schedule=COSINE), 4, coefficients=False, **{**FEW, "starts": 1})
    assert {record.stage.split(",")[0] for record in report[4].records} == {"levenberg of history 4"}


def test_budgets_and_counts_may_be_numpys() -> None:
    model = exact(schedule=COSINE)
    want, _ = tune(model, 2, **FEW)
    assert tune(model, np.array(2), **{**FEW, "n": np.int64(8)})[0] == want
    assert tune(model, np.array([2]), **FEW)[0] == {2: want}


def test_small_errors_keep_two_digits() -> None:
    entry = Entry("ab2", 8, (2.5e-5, 1e-6, 1.0), (0.0, 0.0, 2e-4), 1.234e-4, None)
    assert report_cells(entry, False)[2:] == ["2.5e-05", "1.0e-06 to 1.0000", "0.0000", "0.0000 to 2.0e-04", "1.2e-04"]


def test_provenance_says_what_limited_x0() -> None:
    model = exact(schedule=COSINE, range=(-1.5, 1.5), clip=True)
    for options, limits in (
        ({}, ((-1.5, 1.5), None)),
        ({"clip": (-1, 2)}, ((-1.0, 2.0), None)),
        ({"clip": False}, (None, None)),
        ({"threshold": 0.9, "clip": False}, (None, 0.9)),
    ):
        plan = tune(model, 2, **FEW, **options)[1][2].plan
        said = Plan.from_json(plan.to_json()).args["fitted"]
        assert (said["clip"] and tuple(said["clip"]), said["threshold"]) == limits and said["labels"] is None


def test_networks_of_the_same_weights_and_other_code_do_not_share_a_folder(tmp_path: Path) -> None:
    model = exact(schedule=COSINE)
    tune(model, 2, folder=tmp_path, **FEW)
    tune(model, 3, folder=tmp_path, **FEW)
    assert len(list(tmp_path.iterdir())) == 1
    whole = model.net.forward
    model.net.forward = lambda *args: 0.9 * whole(*args)
    tune(model, 2, folder=tmp_path, **FEW)
    assert len(list(tmp_path.iterdir())) == 2


def test_closed_models_do_not_share_a_folder(tmp_path: Path) -> None:
    """Functions have no weights to tell them by."""
    for scale in (1.0, 0.5):
        net = exact([[scale * v for v in row] for row in MIXTURE], schedule=COSINE).net
        closed = odediff.Model(lambda x, t, net=net: net(x, t), schedule=COSINE, prediction="v", shape=(3,), range=None)
        tune(closed, 2, folder=tmp_path, **FEW)
    assert len(list(tmp_path.iterdir())) == 2
    for power in (1, 3):
        tune(closed, 2, folder=tmp_path, loss=lambda x, power=power: x**power, **FEW)
    assert len(list(tmp_path.glob("*/fit-2-*.jsonl"))) == 4


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"nfe": 1}, "nfe = 1: a whole number of evaluations from 2 up"),
    ({"nfe": [4, 0]}, "from 2 up, or a list of them"),
    ({"nfe": []}, "from 2 up, or a list of them"),
    ({"nfe": "8"}, "from 2 up, or a list of them"),
    ({"nfe": 8.0}, "from 2 up, or a list of them"),
    ({"nfe": 33}, "references take 64 evaluations, a budget at most half of that"),
    ({"n": 1}, "n = 1 must be a whole number from 2 up"),
    ({"validation": 2.5}, "validation = 2.5 must be a whole number from 2 up"),
    ({"held_out": True}, "held_out = True must be a whole number from 16 up"),
    ({"held_out": 15}, "held_out = 15 must be a whole number from 16 up: intervals of fewer errors mean nothing"),
    ({"iterations": 0}, "iterations = 0 must be a whole number from 1 up"),
    ({"patience": 0}, "patience = 0 must be a whole number from 1 up"),
    ({"batch": 0}, "batch = 0 must be a whole number from 1 up"),
    ({"seed": -1}, "seed = -1 must be a whole number from 0"),
    ({"engine": "adam"}, "unknown engine 'adam'"),
    ({"engine": "ridge", "loss": torch.tanh}, 'use "levenberg" with a loss'),
    ({"loss": "lpips"}, "loss = 'lpips' must be callable"),
    ({"features": 3}, "features = 3 must be callable"),
    ({"times": False, "coefficients": False}, "nothing is left to tune"),
    ({"times": False, "history": 1}, "nothing is left to tune: times are not free"),
    ({"fed": True, "engine": "ridge"}, "does not fit the times that are fed; use .levenberg."),
    ({"save": None}, "save = None must be True, False or a folder"),
    ({"save": __file__}, "the plans cannot be written to"),
    ({"folder": __file__}, "references and steps cannot be written to"),
    ({"features": torch.mean}, "features of samples .2, 3. must be features"),
    ({"loss": lambda x: 3.0}, "got float"),
    ({"loss": lambda x: x[:2]}, r"loss of samples \(3, 3\) must be features, a tensor \(3, ..\)"),
    ({"loss": lambda x: x > 0}, r"of floating-point numbers, got \(2, 3\) torch.bool"),
    ({"history": 3.5}, "history = 3.5: predictions that a row may read"),
    ({"history": 0}, "history = 0: predictions that a row may read"),
    ({"derivatives": "adjoint"}, "derivatives = 'adjoint'"),
    ({"save": True}, "the model is in no folder"),
    ({"label": 1}, "for an unconditional model"),
    ({"guidance": 2.0}, "needs a class-conditional model"),
    ({"clip": True}, "needs a model with a range"),
    ({"threshold": 2.0}, "must be a quantile"),
    ({"backend": "tpu"}, "unknown backend 'tpu'"),
]


@pytest.mark.parametrize(
    ("options", "said"), REFUSED, ids=lambda value: ", ".join(value) if isinstance(value, dict) else ""
)
def test_what_is_refused_costs_no_evaluation(options: dict[str, Any], said: str) -> None:
    model = exact(schedule=COSINE)
    with pytest.raises(ValueError, match=said):
        tune(model, **{"nfe": 4, **FEW, **options})
    assert model.net.calls == 0


def test_models_that_are_none_and_fed_times_of_whole_ones_are_refused() -> None:
    with pytest.raises(ValueError, match="model must be an odediff.Model, got 'mnist'"):
        tune("mnist")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="fed = True needs a network of fractional times"):
        tune(exact(integer_times=True), 4, fed=True)


def test_whole_times_alone_are_fitted() -> None:
    """Levenberg-Marquardt then has no number, and makes no step."""
    _, report = tune(exact(integer_times=True), 3, coefficients=False, **FEW)
    assert {record.stage.split()[0] for record in report[3].records} == {"ridge"}


def test_a_network_that_gives_nan_is_refused() -> None:
    model = exact(schedule=COSINE)
    model.net.means.fill_(torch.nan)
    with pytest.raises(ValueError, match="the references are not finite"):
        tune(model, 3, **FEW)
