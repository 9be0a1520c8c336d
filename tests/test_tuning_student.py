"""Tangents of a plan against differences of the whole plan, for every free number, in float64."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from exact import SCHEDULES
from exact import run as run_exactly
from torch import Tensor
from tuned import exact, unit

import odediff
from odediff import Sampler, plan
from odediff.nn import UNet
from odediff.schedule import Array, Schedule
from odediff.tuning import student as students
from odediff.tuning.form import Form, form_of
from odediff.tuning.student import Student

FLOW, COSINE = SCHEDULES["flow"], SCHEDULES["cosine"]
CLIP = (-0.9, 0.8)


@pytest.fixture
def fine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Differences so small that in float64 only a wrong term remains."""
    monkeypatch.setattr(students, "_TIME", 1e-6)
    monkeypatch.setattr(Student, "__init__", _narrow(Student.__init__))


def _narrow(made: Any) -> Any:
    def init(self: Student, *args: Any, **options: Any) -> None:
        made(self, *args, **options)
        self.width = 1e-6

    return init


def start(schedule: Schedule, nfe: int = 4, spread: float = 0.1, seed: int = 1, **free: Any) -> Form:
    """A form with every kind of number free, and none of them at a special value."""
    table = plan("ab2", schedule, nfe, "quadratic", space="flow", variable="tau")
    made = form_of(schedule, table, **{"fed": True, **free})
    numbers = made.numbers() + spread * np.random.default_rng(seed).normal(size=len(made.numbers()))
    made = made.at(numbers)
    low, high = made.bounds
    middle = low + 0.4 * (high - low)
    return replace(made, lam=np.linspace(middle - 2.5, middle + 2.5, nfe) + 0.1 * np.sin(np.arange(nfe)))


def differences(student: Student, made: Form, noise: Tensor, label: Tensor | None, h: float = 1e-5) -> Tensor:
    """The end of the plan by each free number, central differences of the whole, inwards where the schedule ends."""
    numbers, found = made.numbers(), []
    for k in range(len(numbers)):
        step = np.zeros(len(numbers))
        step[k] = h
        ends = [student.run(made.at(numbers + s * step).plan(), noise, label) for s in (1, -1)]
        found.append((ends[0] - ends[1]) / (2 * h))
    return torch.stack(found)


def apart(one: Tensor, other: Tensor) -> Tensor:
    """How far derivatives are apart, number by number, (P,)."""
    return (one - other).flatten(1).norm(dim=1) / other.flatten(1).norm(dim=1)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], list[int] | None]] = {
    "v": ({}, {}, None),
    "eps": ({"prediction": "eps", "schedule": COSINE}, {}, None),
    "x0": ({"prediction": "x0"}, {}, None),
    "flow": ({"prediction": "flow"}, {}, None),
    "edm": ({"prediction": "x0", "schedule": SCHEDULES["edm"]}, {}, None),
    "clip": ({}, {"clip": CLIP}, None),
    "threshold": ({"range": CLIP}, {"threshold": 0.8}, None),
    "labels": ({"labelled": True}, {}, [0, 1, 2, 0, 1, 2]),
    "guided": ({"labelled": True}, {"guidance": 2.5}, [0, 1, 2, 0, 1, 2]),
    "guided and clipped": ({"labelled": True}, {"guidance": 2.5, "clip": CLIP}, [0, 1, 2, 0, 1, 2]),
}


@pytest.mark.parametrize("case", CASES)
def test_tangents_are_the_derivatives_of_the_whole_plan(case: str, fine: None) -> None:
    """By every time, the first too, every fed time and every weight."""
    of_model, options, labels = CASES[case]
    model = exact(**{"schedule": FLOW, **of_model})
    student = Student(model, **options)
    label = None if labels is None else torch.tensor(labels)
    made, noise = start(model.schedule), unit()
    assert made.allowed()
    x, tangents = student.tangents(made, noise, label)
    torch.testing.assert_close(x, student.run(made.plan(), noise, label), rtol=0, atol=1e-12)
    want = differences(student, made, noise, label)
    assert len(want) == 4 + 4 + 6 and (want.flatten(1).norm(dim=1) > 1e-5).all()  # lam, feed, w
    assert apart(tangents, want).max() < 1e-4


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_the_differences_that_networks_get_are_as_good_as_a_step_needs(prediction: str) -> None:
    """The spans as they are, on a network that needs them in float64: three percent of the largest."""
    model = exact(prediction=prediction, schedule=FLOW)
    student, made, noise = Student(model), start(FLOW, fed=False), unit()
    _, tangents = student.tangents(made, noise)
    want = differences(student, made, noise, None)
    assert apart(tangents, want).max() < 0.02


def test_in_a_schedule_of_unit_states_the_start_has_no_scale_to_differentiate(fine: None) -> None:
    """On a DDPM table hypot(alpha, sigma) = 1; between its whole times lam is smooth."""
    student = Student(exact(schedule=COSINE))
    made, noise = start(COSINE, fed=False), unit()
    _, tangents = student.tangents(made, noise)
    assert apart(tangents, differences(student, made, noise, None)).max() < 2e-5


@pytest.mark.parametrize("schedule", [FLOW, SCHEDULES["edm"], SCHEDULES["linear"]], ids=["flow", "edm", "linear"])
@pytest.mark.parametrize("end", ["first", "last"])
def test_at_an_end_of_the_schedule_derivatives_point_inwards(schedule: Schedule, end: str, fine: None) -> None:
    """Outside nothing changes, so central differences would be halved there."""
    student = Student(exact(schedule=schedule))
    made, noise = start(schedule, fed=False), unit()
    lam, k = made.lam.copy(), 0 if end == "first" else 3
    lam[k] = made.bounds[k > 0]
    made = replace(made, lam=lam)
    h = -1e-5 if k else 1e-5
    runs = [student.run(replace(made, lam=lam + m * h * (np.arange(4) == k)).plan(), noise) for m in (0, 1, 2)]
    want = (4 * runs[1] - 3 * runs[0] - runs[2]) / (2 * h)
    _, tangents = student.tangents(made, noise)
    assert float((tangents[k] - want).norm() / want.norm()) < 0.01


@pytest.mark.parametrize("schedule", [FLOW, COSINE.zero_terminal_snr()], ids=["flow", "zero_snr"])
def test_a_first_state_without_signal_has_no_derivative_and_spoils_none(schedule: Schedule, fine: None) -> None:
    student, noise = Student(exact(schedule=schedule)), unit()
    made = replace(start(schedule, first=False), feed=np.array([0.1, 0.0, 0.2, 0.0]))
    made = replace(made, lam=np.array([-np.inf, -2.3, -0.2, 1.9]))
    plan = made.plan()
    assert plan.alpha[0] == 0 and made.allowed()
    x, tangents = student.tangents(made, noise)
    torch.testing.assert_close(x, student.run(plan, noise), rtol=0, atol=1e-12)
    want = differences(student, made, noise, None)
    assert apart(tangents[1:3], want[1:3]).max() < 2e-5 and apart(tangents[4:], want[4:]).max() < 2e-5


def test_only_free_numbers_have_tangents() -> None:
    noise, student = unit(), Student(exact(schedule=FLOW))
    for free, count in (
        ({"fed": False}, 4 + 6),
        ({"fed": False, "first": False}, 3 + 6),
        ({"fed": False, "times": False}, 6),
        ({"fed": True, "coefficients": False}, 8),
        ({"fed": False, "history": 2}, 4 + 3),
    ):
        assert student.tangents(start(FLOW, **free), noise)[1].shape == (count, 6, 3)


def test_a_student_runs_the_table(fine: None) -> None:
    """The numpy executor and the sampler end where it does; samples in any batches."""
    model, noise = exact(schedule=COSINE), unit()

    def denoise(x: Array, alpha: float, sigma: float) -> Array:
        net = exact(prediction="x0", schedule=COSINE).net
        return net(torch.from_numpy(x), torch.full((len(x),), float(COSINE.t_of_lam(np.log(alpha / sigma))))).numpy()

    for name in ("ab3", "unipc_3", "rk4"):
        table = plan(name, COSINE, 9)
        want = Student(model).run(table, noise)
        torch.testing.assert_close(want, Sampler(model, table)(noise), rtol=0, atol=1e-12)
        np.testing.assert_allclose(want.numpy(), run_exactly(table, denoise, noise.numpy())[-1], rtol=0, atol=1e-7)
        torch.testing.assert_close(Student(model, batch=4).run(table, noise), want, rtol=0, atol=1e-13)


def tiny(classes: int | None = None) -> odediff.Model:
    """A U-Net with attention that nobody trained, its last layer included."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    sizes = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 8}
    more = {} if classes is None else {"num_class_embeds": classes + 1}
    net = UNet(sample_size=4, in_channels=1, out_channels=1, **blocks, **sizes, **more)
    for value in net.parameters():
        torch.nn.init.normal_(value, std=0.3)
    return odediff.Model(net.double(), schedule=COSINE, prediction="v", shape=(1, 4, 4), num_classes=classes)


@pytest.mark.parametrize("options", [{}, {"clip": True}, {"guidance": 2.0}], ids=["free", "clip", "guided"])
def test_exact_derivatives_of_a_network_are_its_differences(options: dict[str, Any], fine: None) -> None:
    model = tiny(3 if "guidance" in options else None)
    label = torch.tensor([0, 2]) if "guidance" in options else None
    noise = unit(2, 16).view(2, 1, 4, 4)
    made = start(COSINE, 3, fed=False)
    found = [Student(model, derivatives=kind, **options) for kind in ("differences", "exact")]
    (x, one), (y, other) = (student.tangents(made, noise, label) for student in found)
    assert torch.equal(x, y) and (other.flatten(1).norm(dim=1) > 1e-4).all()
    assert apart(one, other).max() < 1e-4
    assert model.net.training and not other.requires_grad


def test_evaluations_are_counted_sample_by_sample() -> None:
    model, noise = exact(schedule=COSINE), unit()
    student, made = Student(model, batch=4), start(COSINE, fed=False)
    student.run(made.plan(), noise)
    assert student.evaluations == model.net.calls == 4 * 6
    student.tangents(made, noise)
    # a run; of each row's time one more; along the numbers that earlier rows depend on: lam0 lam1, +lam2 w1, +lam3 w2
    assert student.evaluations == model.net.calls
    assert 4 * 6 < student.evaluations - 4 * 6 <= (4 + 4 + 10 * 3) * 6


def test_what_a_student_refuses() -> None:
    with pytest.raises(ValueError, match="derivatives = 'forward'; choose differences or exact"):
        Student(tiny(), derivatives="forward")
    with pytest.raises(ValueError, match='needs an nn.Module without a threshold; use "differences"'):
        Student(tiny(), derivatives="exact", threshold=0.9)
    closed = odediff.Model(lambda x, t: x, schedule=FLOW, shape=(3,), range=None, prediction="v")
    with pytest.raises(ValueError, match='needs an nn.Module without a threshold; use "differences"'):
        Student(closed, derivatives="exact")
