"""Whole plans through the stage kernel, row by row, against `Sampler` on the CPU; and what its launcher refuses."""

import math
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from exact import SCHEDULES
from kernel_modules import PLACES, load
from torch import Tensor, nn

import odediff
from odediff.noise import normal
from odediff.philox import streams
from odediff.prediction import Prediction

LINEAR = SCHEDULES["linear"]
NOISE = np.log(LINEAR.sigma(np.arange(1000.0)) / LINEAR.alpha(np.arange(1000.0)))  # -lam
SHAPE = (3, 5, 6)
LIMITS = (-0.3, 0.2)  # within what the network predicts
PLANS: list[tuple[str, str, dict[str, Any]]] = [
    ("ddim", "eps", {}),
    ("heun", "x0", {}),
    ("abm4", "v", {}),
    ("dpmpp_3m", "eps", {}),
    ("unipc_3", "eps", {}),
    ("rk4", "v", {}),
    ("ddpm", "eps", {}),
    ("ddim", "eps", {"eta": 0.5}),
    ("sde_dpmpp_2m", "x0", {}),
    ("sde_dpmpp_3m", "eps", {}),
    ("sa_solver", "v", {}),
]


class Network(nn.Module):
    """eps, x0 or v of x0 = tanh(x) / 2, which amplifies no rounding, shifted by any label but the null label, 3."""

    def __init__(self, prediction: str = "eps", dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.prediction = prediction
        self.scale = nn.Parameter(torch.ones((), dtype=dtype))
        self.register_buffer("table", torch.from_numpy(NOISE).float())

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        assert x.dtype == self.scale.dtype
        low = t.floor().clamp(0, 998).long()
        noise = torch.lerp(self.table[low], self.table[low + 1], t.float() - low).view(-1, 1, 1, 1)
        alpha, sigma = torch.sigmoid(-2 * noise).sqrt(), torch.sigmoid(2 * noise).sqrt()
        state = x.float()
        x0 = torch.tanh(state) / 2 * self.scale.float()
        if label is not None:
            x0 = x0 + torch.where(label == 3, 0.0, 0.2 * label + 0.1).view(-1, 1, 1, 1)
        u, w = {"eps": (0.0, 1.0), "x0": (1.0, 0.0), "v": (-sigma, alpha)}[self.prediction]
        return (u * x0 + w * (state - alpha * x0) / sigma).to(x.dtype)


def model(
    prediction: str = "eps", dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", **options: Any
) -> odediff.Model:
    net = Network(prediction, dtype).to(device)
    return odediff.Model(net, schedule=LINEAR, prediction=prediction, shape=SHAPE, **options)


def plan_of(name: str, nfe: int = 9, **args: Any) -> odediff.Plan:
    return odediff.plan(name, LINEAR, nfe, **args)


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> SimpleNamespace:
    return load(request.param)


def poison(stage: Any) -> Any:
    """All that the stage has allocated for states in NaN."""
    for tensor in (stage.x, stage.input, stage._ring):
        if tensor is not None:
            tensor.fill_(math.nan)
    return stage


def start(plan: odediff.Plan, n: int) -> Tensor:
    cpu = torch.device("cpu")
    return normal(streams(5, n), 0, SHAPE, device=cpu, dtype=torch.float32).mul_(plan.prior_scale)


def states(stage: Any, net: Any, plan: odediff.Plan, n: int) -> list[Tensor]:
    """The state after every row."""
    stage.begin(start(plan, n).to(stage.x.device), streams(5, n))
    found = []
    with torch.no_grad():
        for _ in range(plan.nfe):
            stage(net(stage.input, stage.times))
            found.append(stage.x.cpu().clone())
    return found


def reference(m: odediff.Model, plan: odediff.Plan, n: int, label: Any = None, **options: Any) -> list[Tensor]:
    """The state after every row by `Sampler`, on the model's device: one network, one rounding of its outputs."""
    found: list[Tensor] = []
    sampler = odediff.Sampler(m, plan, **options)
    sampler(start(plan, n) / plan.prior_scale, seed=5, label=label, callback=lambda i, x, x0: found.append(x.cpu()))
    return found


def check(found: list[Tensor], want: list[Tensor], bound: float = 1e-6) -> None:
    for i, (is_, should) in enumerate(zip(found, want, strict=True)):
        size = max(1.0, float(should.abs().max()))
        worst = float((is_ - should).abs().max())  # NaN compares as too large
        assert worst <= bound * size, f"row {i}: {worst:.3g} of {size:.3g}"


@pytest.mark.parametrize("clip", [False, LIMITS], ids=["free", "clip"])
@pytest.mark.parametrize(("name", "prediction", "args"), PLANS, ids=str)
def test_every_row_of_a_plan_is_the_samplers(
    place: SimpleNamespace, name: str, prediction: str, args: dict[str, Any], clip: Any
) -> None:
    plan = plan_of(name, **args)
    m = model(prediction, device=place.device)
    want = reference(m, plan, 3, clip=clip)
    stage = poison(place.stage.Stage(Prediction(m, clip=clip), plan, 3))
    check(states(stage, m.net, plan, 3), want)
    assert stage.input is stage.x  # a float32 network reads the state itself
    assert stage.times.tolist() == [np.float32(plan.t[0])] * 3  # ready for the next run


def test_kept_eps(place: SimpleNamespace) -> None:
    m, plan = model(device=place.device), plan_of("ddim", eta=0.5)
    options: dict[str, Any] = {"clip": LIMITS, "clip_eps": "keep"}
    want = reference(m, plan, 3, **options)
    check(states(place.stage.Stage(Prediction(m, **options), plan, 3), m.net, plan, 3), want)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
def test_guidance(place: SimpleNamespace, guidance: float) -> None:
    """The two halves in one batch; at 0 and 1 one half, as in `Prediction.network`."""
    m, plan, label = model(device=place.device, num_classes=3), plan_of("dpmpp_3m"), torch.tensor([0, 2])
    want = reference(m, plan, 2, label, guidance=guidance)
    stage = poison(place.stage.Stage(Prediction(m, guidance=guidance), plan, 2))
    null = torch.full_like(label, 3)
    labels = {0.0: null, 1.0: label, 2.5: torch.cat([null, label])}[guidance].to(place.device)
    assert stage.input.shape == (len(labels), *SHAPE) and stage.times.shape == (len(labels),)
    check(states(stage, lambda x, t: m.net(x, t, labels), plan, 2), want)


@pytest.mark.parametrize("guidance", [None, 2.5])
def test_channels_last(place: SimpleNamespace, guidance: float | None) -> None:
    m, plan = model(device=place.device, num_classes=3), plan_of("sde_dpmpp_2m")
    label = torch.tensor([1, 2])
    want = reference(m, plan, 2, label, guidance=guidance)
    form = torch.channels_last
    stage = poison(place.stage.Stage(Prediction(m, guidance=guidance), plan, 2, memory_format=form))
    labels = (label if guidance is None else torch.cat([torch.full_like(label, 3), label])).to(place.device)
    check(states(stage, lambda x, t: m.net(x, t, labels).contiguous(memory_format=form), plan, 2), want)
    assert stage.input.is_contiguous(memory_format=form)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_network_of_half_precision(place: SimpleNamespace, dtype: torch.dtype) -> None:
    """A state that differs in its last bit may round to the other neighbour: one unit of the network's dtype a row."""
    m, plan = model("x0", dtype, place.device), plan_of("dpmpp_3m", 6)
    want = reference(m, plan, 3)
    stage = poison(place.stage.Stage(Prediction(m), plan, 3))
    assert stage.input.dtype == dtype
    found = states(stage, m.net, plan, 3)
    check(found, want, torch.finfo(dtype).eps * plan.nfe)
    wide = states(stage, lambda x, t: m.net(x, t).float(), plan, 3)  # what is not of the input's dtype is as good
    assert all(torch.equal(is_, was) for is_, was in zip(wide, found, strict=True))


def test_c_in_scales_what_the_network_gets(place: SimpleNamespace) -> None:
    """The same as a network that scales for itself; the first input and every later one."""
    m, plan = model("v", device=place.device), plan_of("abm4")
    want = reference(m, plan, 3)
    c_in = 2.0 ** (np.arange(plan.nfe) % 4 - 2)
    stage, fed = poison(place.stage.Stage(Prediction(m), plan, 3, c_in=c_in)), []

    def net(x: Tensor, t: Tensor) -> Tensor:
        fed.append(float((x / stage.x).median()))
        return m.net(x / fed[-1], t)

    check(states(stage, net, plan, 3), want)
    np.testing.assert_array_equal(fed, c_in)


def test_a_stage_can_begin_again_at_any_row(place: SimpleNamespace) -> None:
    m, plan = model(device=place.device), plan_of("sde_dpmpp_3m")
    stage = place.stage.Stage(Prediction(m), plan, 2)
    first = states(stage, m.net, plan, 2)
    stage.begin(torch.zeros(2, *SHAPE, device=place.device), streams(6, 2))
    with torch.no_grad():
        stage(m.net(stage.input, stage.times))
    assert not torch.equal(stage.x.cpu(), first[0])
    for is_, was in zip(states(stage, m.net, plan, 2), first, strict=True):
        torch.testing.assert_close(is_, was, rtol=0, atol=0)


def test_whole_times_are_int64_and_samples_of_any_rank_will_do(place: SimpleNamespace) -> None:
    def net(x: Tensor, t: Tensor) -> Tensor:
        assert t.dtype == torch.int64
        return torch.tanh(x) * (1 + t[:, None] / 1000)

    m = odediff.Model(net, schedule=LINEAR, prediction="v", shape=(2,), range=None, integer_times=True)
    plan = plan_of("heun", 7, snap=True)
    x = normal(streams(5, 3), 0, (2,), device=torch.device("cpu"), dtype=torch.float32)
    found: list[Tensor] = []
    odediff.Sampler(m, plan)(x.to(place.device), callback=lambda i, x, x0: found.append(x.cpu()))
    stage = place.stage.Stage(Prediction(m), plan, 3, device=place.device)
    stage.begin((x * plan.prior_scale).to(place.device))
    for t, want in zip(plan.t, found, strict=True):
        assert stage.times.tolist() == [t] * 3
        stage(net(stage.input, stage.times))
        check([stage.x.cpu()], [want])


@pytest.mark.parametrize("name", ["ddim", "heun", "rk4", "unipc_3", "abm4"])
def test_the_table_keeps_what_a_later_row_reads(name: str) -> None:
    plan, stage = plan_of(name), load("interpreter").stage
    table = stage.table(Prediction(model()), plan)
    assert table.shape == (plan.nfe, len(stage.COLUMNS) + plan.depth) and table.dtype == np.float32
    read = {i - j for i in range(plan.nfe) for j in range(1, plan.depth) if plan.b[i, j]}
    assert set(np.flatnonzero(table[:, stage.COLUMNS.index("kept")])) == read
    np.testing.assert_array_equal(table[:, len(stage.COLUMNS) :], plan.b.astype(np.float32))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["abm4", "sde_dpmpp_2m"])
def test_one_captured_row_serves_every_row(name: str) -> None:
    """A graph of one network call and one stage, replayed nfe times, and again, without a word from the host."""
    place, m, plan = load("cuda"), model(device="cuda"), plan_of(name)
    want = reference(m, plan, 2)
    stage = place.stage.Stage(Prediction(m), plan, 2)
    states(stage, m.net, plan, 2)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        stage(m.net(stage.input, stage.times))
    for _ in range(2):
        stage.begin(start(plan, 2).cuda(), streams(5, 2))
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(plan.nfe):
                graph.replay()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        check([stage.x.cpu()], want[-1:])


INTERPRETED = load("interpreter")
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("thresholding", {"threshold": 0.995}, 'threshold = 0.995: .*use backend="torch" or "compile", or clip instead'),
    ("float64", {"dtype": torch.float64}, r'dtype = torch.float64: .* use backend="torch"'),
    ("c_in", {"c_in": [1.0, 2.0]}, r"c_in must hold 9 finite numbers.*got shape \(2,\)"),
    ("infinite c_in", {"c_in": [math.inf] * 9}, "c_in must hold 9 finite numbers"),
    (
        "format",
        {"memory_format": torch.channels_last_3d},
        r"channels_last_3d does not fit .* shape \(3, 5, 6\)",
    ),
    ("n", {"n": 0}, "n = 0: how many samples"),
]


@pytest.mark.parametrize(("options", "says"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_what_a_stage_refuses(options: dict[str, Any], says: str) -> None:
    options = dict(options)
    prediction = Prediction(model(), threshold=options.pop("threshold", None))
    with pytest.raises(ValueError, match=says):
        INTERPRETED.stage.Stage(prediction, plan_of("ddim"), options.pop("n", 2), **options)


def test_a_sample_of_two_to_the_31_elements_is_refused() -> None:
    m = odediff.Model(Network(), schedule=LINEAR, shape=(2, 2**15, 2**15))
    with pytest.raises(ValueError, match=r"shape = \(2, 32768, 32768\): .* less than 2\^31"):
        INTERPRETED.stage.Stage(Prediction(m), plan_of("ddim"), 1)


def test_the_compiled_kernel_is_refused_on_the_cpu() -> None:
    with pytest.raises(ValueError, match='runs on a CUDA GPU, not on cpu; use backend="torch"'):
        load("cuda").stage.Stage(Prediction(model()), plan_of("ddim"), 2, device="cpu")


def test_what_a_call_refuses() -> None:
    stage = INTERPRETED.stage.Stage(Prediction(model()), plan_of("ddpm"), 2)
    x = torch.zeros(2, *SHAPE)
    for bad, says in ((x[:1], r"x is \(1, 3, 5, 6\)"), (x.double(), "torch.float64, expected")):
        with pytest.raises(ValueError, match=says):
            stage.begin(bad, streams(5, 2))
    for given, says in ((None, "not none"), (streams(5, 3), "not 3")):
        with pytest.raises(ValueError, match=f"the plan adds noise: give 2 streams, one for each sample, {says}"):
            stage.begin(x, given)
    stage.begin(x, streams(5, 2))
    for bad, says in (
        (x[:1], r"returned \(1, 3, 5, 6\)"),
        (x.double(), "torch.float64 on cpu"),
        (x.to("meta"), "on meta"),
        (x.contiguous(memory_format=torch.channels_last), r"strides \(90, 1, 18, 3\), which are not of"),
    ):
        with pytest.raises(ValueError, match=says):
            stage(bad)


def test_without_triton_the_message_says_what_to_install() -> None:
    code = "import sys; sys.modules['triton'] = None\nimport odediff, odediff.sampling\nimport odediff.kernels.stage"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError: fused kernels need triton: pip install 'odediff[triton]'" in done.stderr
