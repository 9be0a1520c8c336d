"""Levenberg-Marquardt, ridge and dynamic programming on flows that are known."""

from dataclasses import replace
from itertools import combinations, islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from exact import SCHEDULES
from torch import Tensor, nn
from tuned import exact, normal_flow

import odediff
from odediff import plan
from odediff.tuning import levenberg, ridge
from odediff.tuning.form import BOUND, Form, form_of
from odediff.tuning.probe import Probe, make_probe
from odediff.tuning.student import Student

COSINE, FLOW, LINEAR = (SCHEDULES[name] for name in ("cosine", "flow", "linear"))
STD = np.logspace(-2, 0, 6)  # of a normal whose axes ask for different coefficients


def normal(schedule: odediff.schedule.Schedule = COSINE, **options: object) -> odediff.Model:
    return exact([[0.4, -0.2, 0.1, 0.0, 0.3, -0.5]], STD, schedule=schedule, **options)


def start(schedule: odediff.schedule.Schedule, nfe: int = 4, name: str = "ab2", **free: object) -> Form:
    return form_of(schedule, plan(name, schedule, nfe, "quadratic", space="flow", variable="tau"), **free)


def rmse(student: Student, made: Form, at: Probe) -> float:
    return float(levenberg.residual(student, made, at, None).square().mean().sqrt())


@pytest.fixture(scope="module")
def fitted() -> tuple[Student, Probe, Form, list[tuple[Form, float]]]:
    student = Student(normal())
    train, made = make_probe(student, 24, 1, None, None, None), start(COSINE)
    return student, train, made, list(levenberg.steps(student, made, train, None))


def test_a_reference_is_the_flow() -> None:
    """Of a normal, in closed form, and its trajectory between the states that are kept."""
    for schedule in (COSINE, FLOW, SCHEDULES["edm"]):
        model = normal(schedule)
        made = make_probe(Student(model), 5, 3, None, None, None)
        want = normal_flow(model, made.noise)
        gap = (made.x0 - want).square().mean(1).sqrt()
        assert float(gap.max()) < 2e-3 and (gap <= made.doubt).all()
        k = 30
        tau = (made.tau[k] + made.tau[k + 1]) / 2
        assert float((made.at(float(made.tau[k])) - made.y[k]).abs().max()) < 1e-6
        mean, a, b = model.net.means[0], *(float(f(schedule.t_max)) for f in (schedule.alpha, schedule.sigma))
        growth = torch.from_numpy(np.hypot((1 - tau) * STD, tau) / np.hypot(a * STD, b))
        there = (1 - tau) * mean + growth * (np.hypot(a, b) * made.noise - a * mean)
        assert float((made.at(float(tau)) - there).abs().max()) < 2e-3


def test_parts_of_a_probe_are_its_samples() -> None:
    model = exact(labelled=True, schedule=COSINE)
    whole = make_probe(Student(model), 6, 3, torch.tensor([0, 1, 2, 0, 1, 2]), None, None)
    part = whole.part(slice(2, 4))
    assert torch.equal(part.noise, whole.noise[2:4]) and torch.equal(part.x0, whole.x0[2:4])
    assert part.label is not None and part.label.tolist() == [2, 0]
    assert torch.equal(part.at(0.5), whole.at(0.5)[2:4]) and torch.equal(part.d, whole.d[:, 2:4])


def test_levenberg_lowers_the_error_many_times_and_never_raises_the_loss(fitted) -> None:
    student, train, made, steps = fitted
    assert sum(loss < 1 for _, loss in steps) >= 4
    for (at, _), (new, loss) in pairwise([(made, 1.0), *steps]):
        assert loss < 1 or (loss == 1 and new is at)
    assert all(step.allowed() and np.abs(step.weights).sum(1).max() <= BOUND for step, _ in steps)
    fresh = make_probe(student, 64, 2, None, None, None)
    before, after = rmse(student, made, fresh), rmse(student, steps[-1][0], fresh)
    assert after < before / 6


def test_levenberg_leaves_what_is_not_free() -> None:
    student = Student(normal())
    train = make_probe(student, 8, 1, None, None, None)
    for free in ({"times": False}, {"coefficients": False}, {"first": False}):
        made = start(COSINE, **free)
        new, loss = next(levenberg.steps(student, made, train, None))
        assert loss < 1
        assert np.array_equal(new.lam, made.lam) == ("times" in free)
        assert np.array_equal(new.weights, made.weights) == ("coefficients" in free)
        assert (new.lam[0] == made.lam[0]) or "first" not in free


def test_steps_end_when_a_round_of_all_blocks_gains_next_to_nothing(fitted) -> None:
    student, train, _, steps = fitted
    ratios = [loss for _, loss in steps]
    rounds = [np.prod(ratios[k - 3 : k]) for k in range(3, len(ratios) + 1)]
    assert len(levenberg._blocks(24)) == 3 and all(one <= 1 - levenberg.GAIN for one in rounds[:-1])
    assert rounds[-1] > 1 - levenberg.GAIN


def test_a_stationary_form_stays(fitted, monkeypatch) -> None:
    """At the reference itself nothing is left to gain: every block is tried once, with every damping."""
    student, train, _, steps = fitted
    end = levenberg.residual(student, steps[0][0], train, None)
    there = replace(train, x0=train.x0 + end.to(train.x0.dtype))
    tried: list[float] = []
    solved = levenberg._solved
    monkeypatch.setattr(levenberg, "_solved", lambda h, g, mu, at: tried.append(mu) or solved(h, g, mu, at))
    assert list(levenberg.steps(student, steps[0][0], there, None)) == 3 * [(steps[0][0], 1.0)]
    assert tried == 3 * list(levenberg.DAMPINGS)


@pytest.mark.parametrize(
    ("n", "sizes"), [(2, [2]), (8, [8]), (9, [9]), (20, [10, 10]), (32, [8, 8, 8, 8]), (130, [32, 33, 33, 32])]
)
def test_blocks_are_all_samples_once(n: int, sizes: list[int]) -> None:
    blocks = levenberg._blocks(n)
    assert [k for block in blocks for k in range(n)[block]] == list(range(n))
    assert [len(range(n)[block]) for block in blocks] == sizes


def test_a_step_solves_the_newest_models_of_all_blocks_moved_to_its_numbers(fitted, monkeypatch) -> None:
    """And dampings are tried on all samples, from the largest down, until one is worse than the one before."""
    student, train, made, _ = fitted
    seen: list[tuple[np.ndarray, np.ndarray, float]] = []
    whole = levenberg._solved

    def kept(hessian, gradient, mu, form):
        seen.append((hessian, gradient, mu))
        return whole(hessian, gradient, mu, form)

    def loss(form, scale):
        square = levenberg.residual(student, form, train, None).square().mean(1)
        return float((2 * scale * ((1 + square / scale).sqrt() - 1)).mean())

    monkeypatch.setattr(levenberg, "_solved", kept)
    forms, marks, found = [made], [0], levenberg.steps(student, made, train, None)
    for _ in range(4):
        forms.append(next(found)[0])
        marks.append(len(seen))
    here = forms[3].numbers()
    hessians, slopes = [], []
    for k in (1, 2, 3):  # of three blocks, each where it was linearised last
        ends = levenberg.residual(student, forms[k], train, None)
        block = slice(8 * (k % 3), 8 * (k % 3) + 8)
        square = ends.square().mean(1)
        w = 1 / (1 + square / square.median()).sqrt()
        h, g = levenberg._normal(student, forms[k], train.part(block), ends[block], w[block], None)
        hessians.append(h)
        slopes.append(g + h @ (here - forms[k].numbers()))
    np.testing.assert_allclose(seen[marks[3]][0], np.sum(hessians, 0), rtol=1e-9)
    np.testing.assert_allclose(seen[marks[3]][1], np.sum(slopes, 0), rtol=1e-9)
    for k in range(4):
        scale = levenberg.residual(student, forms[k], train, None).square().mean(1).median()
        tried = seen[marks[k] : marks[k + 1]]
        assert [mu for _, _, mu in tried] == [10.0 ** (1 - k) for k in range(len(tried))]
        trials = [forms[k].at(forms[k].numbers() + whole(*one, forms[k])).within() for one in tried]
        losses = [loss(trial, scale) for trial in trials]
        best = int(np.argmin(losses))
        assert losses[best] < loss(forms[k], scale) and np.array_equal(trials[best].numbers(), forms[k + 1].numbers())
        assert best == len(tried) - 2 or (best == len(tried) - 1 and len(tried) == len(levenberg.DAMPINGS))
        assert losses[: best + 1] == sorted(losses[: best + 1], reverse=True)


@pytest.mark.parametrize("n", [24, 21])  # blocks of eight; of ten and eleven
def test_models_of_one_place_are_the_system_of_all_samples(n: int, fitted) -> None:
    student, whole, made, _ = fitted
    train = whole.part(slice(0, n))
    r = levenberg.residual(student, made, train, None)
    parts = [levenberg._quadratic(student, made, train, r, block, None) for block in levenberg._blocks(n)]
    hessian, gradient = levenberg._joined(parts, made.numbers())
    w = 1 / (1 + r.square().mean(1) / r.square().mean(1).median()).sqrt()
    h, g = levenberg._normal(student, made, train, r, w, None)
    np.testing.assert_allclose(hessian, h, rtol=0, atol=1e-9 * np.abs(h).max())
    np.testing.assert_allclose(gradient, g, rtol=0, atol=1e-9 * np.abs(g).max())
    moved = np.linspace(-1, 1, len(gradient))
    _, there = levenberg._joined(parts, made.numbers() + moved)
    np.testing.assert_allclose(there, gradient + hessian @ moved, rtol=0, atol=1e-9 * np.abs(there).max())


def test_a_block_that_was_not_finite_is_left_out() -> None:
    one = levenberg.Quadratic(np.zeros(2), np.eye(2), np.ones(2))
    bad = one._replace(hessian=np.full((2, 2), np.nan))
    for got, want in zip(levenberg._joined([one, bad], np.ones(2)), levenberg._joined([one], np.ones(2)), strict=True):
        assert np.array_equal(got, want)
    assert np.isnan(levenberg._joined([bad], np.ones(2))[0]).all()


def test_steps_go_on_from_those_that_were_made(fitted) -> None:
    student, train, made, steps = fitted
    for k in (1, 2, 4):
        (form, loss), *_ = islice(levenberg.steps(student, made, train, None, steps[:k]), 1)
        assert loss == steps[k][1] and np.array_equal(form.numbers(), steps[k][0].numbers())
    assert list(levenberg.steps(student, made, train, None, steps)) == []


def test_a_loss_of_features_fits_these(fitted) -> None:
    """Of the first axes alone: they get better than the fit of all gets them."""
    student, train, made, steps = fitted
    seen = lambda x: 3 * x[:, 4:]  # noqa: E731
    found = list(islice(levenberg.steps(student, made, train, seen), 5))
    ends = [levenberg.residual(student, one, train, seen).square().mean().sqrt() for one in (found[-1][0], made)]
    assert ends[0] < ends[1] / 10
    assert levenberg.residual(student, made, train, seen).shape == (24, 2)


def test_features_go_into_the_normal_equations() -> None:
    """J' W J and J' W r of a nonlinear feature, whose derivative is known."""
    student = Student(normal())
    train, made = make_probe(student, 6, 1, None, None, None), start(COSINE)
    seen = lambda x: torch.tanh(2 * x[:, :3]).square()  # noqa: E731
    r = levenberg.residual(student, made, train, seen)
    w = torch.linspace(0.2, 1, 6, dtype=torch.float64)
    x, tangents = student.tangents(made, train.noise)
    t = torch.tanh(2 * x[:, :3])
    j = 4 * t * (1 - t**2) * tangents[:, :, :3]
    hessian, gradient = levenberg._normal(student, made, train, r, w, seen)
    want = torch.einsum("pnd,n,qnd->pq", j, w, j), torch.einsum("pnd,n,nd->p", j, w, r)
    np.testing.assert_allclose(hessian, want[0].numpy(), rtol=0, atol=0.02 * float(want[0].abs().max()))
    np.testing.assert_allclose(gradient, want[1].numpy(), rtol=0, atol=0.02 * float(want[1].abs().max()))


def test_batches_of_the_normal_equations_add_up() -> None:
    train = make_probe(Student(normal()), 7, 1, None, None, None)
    made, w = start(COSINE), torch.linspace(0.2, 1, 7, dtype=torch.float64)
    r = torch.randn(7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, other = (levenberg._normal(Student(normal(), batch=k), made, train, r, w, None) for k in (64, 3))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * np.abs(a).max())


def test_one_wild_sample_does_not_lead() -> None:
    """A reference in another mode, ten away: the fit of the others is nearly as good as without it."""
    student = Student(normal())
    train, made = make_probe(student, 16, 1, None, None, None), start(COSINE)
    x0 = train.x0.clone()
    x0[3] += 10.0
    rest = make_probe(student, 64, 2, None, None, None)
    ends = []
    for given in (train, replace(train, x0=x0)):
        *_, (last, _) = levenberg.steps(student, made, given, None)
        ends.append(float(levenberg.residual(student, last, rest, None).square().mean(1).sqrt().median()))
    begin = float(levenberg.residual(student, made, rest, None).square().mean(1).sqrt().median())
    assert ends[1] < begin / 3


def test_a_trial_that_is_not_finite_is_not_taken() -> None:
    """A network that knows only a band of noise levels around those of the start, and gives NaN elsewhere."""
    model = normal()
    table, left = start(COSINE).plan(), []

    class Banded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model.net

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            near = np.abs(table.t - float(t[0])).min() < 40
            left.append(not near)
            return self.inner(x, t) if near else torch.full_like(x, torch.nan)

    train = make_probe(Student(model), 8, 1, None, None, None)
    student = Student(odediff.Model(Banded(), schedule=COSINE, prediction="v", shape=(6,), range=None))
    found = list(islice(levenberg.steps(student, start(COSINE), train, None), 3))
    assert any(left) and found[0][1] < 1 and all(loss <= 1 for _, loss in found)
    assert all(bool(torch.isfinite(levenberg.residual(student, made, train, None)).all()) for made, _ in found)
    odd = replace(start(COSINE), lam=start(COSINE).lam + 0.5)
    assert ridge.solved(student, odd, train)[1] == np.inf


def test_a_row_of_ridge_is_a_least_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the ridge, each row's weights are numpy's, on the states that the rows before reach."""
    monkeypatch.setattr(ridge, "STRENGTH", 0.0)
    student = Student(normal())
    train, made = make_probe(student, 20, 1, None, None, None), start(COSINE, history=3)
    new, loss = ridge.solved(student, made, train)
    assert loss == pytest.approx(float(levenberg.residual(student, new, train, None).square().mean(1).sqrt().mean()))
    table, rows = new.plan(), student.prediction.of_plan(new.plan())
    scale, x, past = table.alpha + table.sigma, train.noise * table.prior_scale, []
    tau = table.sigma / scale
    for i in range(4):
        past.append(student.mixed(x, student.output(x, float(table.t[i]), None), rows[i]))
        y, step = x / scale[i], tau[i + 1] - tau[i]
        target = train.x0 if i == 3 else train.at(float(tau[i + 1])).double()
        if i:
            basis = torch.stack([past[i - j] - past[i] for j in range(1, min(i, 2) + 1)], -1)
            A, b = basis.reshape(-1, basis.shape[-1]).numpy(), ((target - y) / step - past[i]).flatten().numpy()
            want = np.linalg.lstsq(A, b, rcond=None)[0]
            np.testing.assert_allclose(new.weights[i, 1 : 1 + len(want)], want, rtol=1e-6, atol=1e-8)
        x = float(table.a[i]) * x + sum(float(table.b[i, j]) * past[i - j] for j in range(min(i + 1, table.depth)))


def test_ridge_is_strong_where_predictions_hardly_differ() -> None:
    """A point's flow is straight: all predictions are the same, and any weights would do."""
    student = Student(exact([[0.3, -0.1]], 0.0, schedule=COSINE))
    made, loss = ridge.solved(student, start(COSINE), make_probe(student, 4, 1, None, None, None))
    assert np.abs(made.weights).max() < 2 and loss < 1e-3


def test_ridge_searches_down_and_needs_no_derivative(fitted) -> None:
    student, train, made, _ = fitted
    found = list(ridge.search(student, made, train))
    losses = [loss for _, loss in found]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
    assert rmse(student, found[-1][0], make_probe(student, 32, 2, None, None, None)) < rmse(student, made, train) / 3
    held = list(ridge.search(student, replace(made, times=False), train))
    assert len(held) == 1 and np.array_equal(held[0][0].lam, made.lam)
    given = list(ridge.search(student, replace(made, coefficients=False), train))
    assert np.array_equal(given[-1][0].weights, made.weights) and given[-1][1] < given[0][1]


@pytest.mark.parametrize("first", [True, False])
def test_dynamic_programming_finds_the_best_of_all_subsets(first: bool) -> None:
    student = Student(normal())
    whole = make_probe(student, 6, 1, None, None, None)
    some = np.arange(0, 64, 7)
    few = replace(whole, tau=whole.tau[some], y=whole.y[some], d=whole.d[some])
    made = start(COSINE, 4, first=first)
    ends = torch.cat([few.y, whole.x0[None].float()])
    tau = np.append(few.tau, 0.0)

    def cost(times: tuple[int, ...]) -> float:
        total = 0.0
        for i, j in zip(times, (*times[1:], len(some)), strict=True):
            gap = ends[j] - ends[i] - float(tau[j] - tau[i]) * few.d[i]
            total += float(gap.double().square().mean().sqrt())
        scaled = np.hypot(1 - tau[times[0]], tau[times[0]]) * few.noise
        return total + float((scaled - few.y[times[0]]).double().square().mean().sqrt())

    best = min((c for c in combinations(range(len(some)), 4) if first or c[0] == 0), key=cost)
    lam = ridge.dynamic(made, few).lam
    np.testing.assert_allclose(lam, np.log((1 - few.tau) / few.tau)[list(best)], rtol=0, atol=1e-9)


def test_networks_of_whole_times_get_whole_times() -> None:
    model = normal(LINEAR, integer_times=True)
    student = Student(model)
    train = make_probe(student, 8, 1, None, None, None)
    assert (train.tau > 0).all()
    made = form_of(LINEAR, plan("ab2", LINEAR, 4, "quadratic", space="flow", variable="tau", snap=True))
    *_, (last, loss) = ridge.search(student, made, train)
    table = last.plan()
    assert np.array_equal(table.t, np.rint(table.t)) and not np.array_equal(table.t, made.plan().t)
    assert loss < ridge.solved(student, made, train)[1]
    odediff.sample(model, table, n=2, seed=0)


def test_a_network_that_is_closed_or_trains_is_left_as_it_was() -> None:
    net = normal().net
    closed = odediff.Model(lambda x, t: net(x, t), schedule=COSINE, prediction="v", shape=(6,), range=None)
    student = Student(closed)
    train = make_probe(student, 8, 1, None, None, None)
    made, loss = ridge.solved(student, start(COSINE).at(start(COSINE).numbers()), train)
    assert np.isfinite(loss) and made.allowed()

    class Learning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain, self.drop = nn.Parameter(torch.ones(1, dtype=torch.float64)), nn.Dropout(0.9)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.drop(self.gain * net(x, t))

    learning = odediff.Model(Learning(), schedule=COSINE, prediction="v", shape=(6,), range=None)
    again, same = ridge.solved(Student(learning), start(COSINE), train)
    assert learning.net.training and same == pytest.approx(loss, rel=1e-9)


@pytest.mark.slow
def test_an_onnx_file_is_fitted(tmp_path: Path) -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv = nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.tanh(self.conv(x) * (1 + t[:, None, None, None] / 1000))

    model = odediff.Model(Small().eval(), schedule=LINEAR, prediction="v", shape=(2, 4, 4))
    odediff.export(model, tmp_path / "n.onnx")
    file = odediff.onnx.load(tmp_path / "n.onnx")
    ends = []
    for one in (file, model):
        student = Student(one)
        train = make_probe(student, 6, 1, None, None, None)
        made, _ = next(ridge.search(student, start(LINEAR, first=False), train))
        ends.append(made.plan())
    np.testing.assert_allclose(ends[0].b, ends[1].b, rtol=0, atol=2e-3)


@pytest.mark.parametrize("seed", range(4))
def test_a_step_solves_for_the_numbers_that_are_within_their_room(seed):
    """(H + mu diag H) s + g = 0 for those; the others are at an end of it, of which at least the first time is one."""
    made = start(LINEAR)
    rng = np.random.default_rng(seed)
    half = rng.standard_normal((40, len(made.numbers()))) * np.geomspace(1e-3, 3, len(made.numbers()))
    hessian, gradient = half.T @ half, half.T @ rng.standard_normal(40)
    step = levenberg._solved(hessian, gradient, 0.1, made)
    down, up = made.room()
    assert (step >= down).all() and (step <= up).all()
    free = (step > down) & (step < up)
    assert free.any() and not free[0]
    left = (hessian + 0.1 * np.diag(np.diag(hessian))) @ step + gradient
    np.testing.assert_allclose(left[free], 0.0, atol=1e-6 * np.abs(gradient).max())
