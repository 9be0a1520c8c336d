"""One recording serves every later run: seeds, labels and starts are written into its buffers, all else is replayed.

A tape stands in for the CUDA graph on a CPU: it records each operation of torch and each launch of an interpreted
kernel with the tensors that they got, and runs these again, in order, on the same tensors, without the code around.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import kernel_modules
import pytest
import torch
from test_kernels_plans import LIMITS, model, plan_of
from test_onnx_export import tiny
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import odediff
from odediff import graph, staged, step
from odediff.philox import streams
from odediff.prediction import Prediction

CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("abm4", {}, {}),
    ("ddim", {"eta": 1.0}, {}),
    ("sde_dpmpp_2m", {}, {"clip": LIMITS}),
    ("dpmpp_3m", {}, {"guidance": 2.5}),
    ("rk4", {}, {"guidance": 0.0}),
    ("ddim", {"eta": 0.5}, {"threshold": 0.9}),
]


class Tape(TorchDispatchMode):
    """What a CUDA graph would hold; `replay` runs it."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Any] = []
        self.launching = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self.launching:
            self.steps.append((func, args, kwargs or {}, out))
        return out

    def launch(self, kernel: Any, grid: Any, args: Any, kwargs: Any) -> None:
        self.launching = True
        kernel[grid](*args, **kwargs)
        self.launching = False
        self.steps.append((lambda *a, **k: kernel[grid](*a, **k), args, kwargs, None))

    def replay(self) -> None:
        for func, args, kwargs, kept in self.steps:
            new = func(*args, **kwargs)
            for there, here in zip(tree_leaves(kept), tree_leaves(new), strict=True):
                if isinstance(there, Tensor) and there.data_ptr() != here.data_ptr():
                    there.copy_(here)


class Tapped:
    """A kernel whose launches a tape sees, while there is one."""

    def __init__(self, kernel: Any, tapes: list[Tape]) -> None:
        self.kernel, self.tapes = kernel, tapes

    def __getitem__(self, grid: Any) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            if self.tapes:
                self.tapes[-1].launch(self.kernel, grid, args, kwargs)
            else:
                self.kernel[grid](*args, **kwargs)

        return launch


@pytest.fixture
def taped(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Backends that need a GPU, on the CPU: interpreted kernels, and tapes for graphs, which are kept in `made`."""
    stage, recording, made = kernel_modules.load("interpreter").stage, [], []

    def capture(loop: Any, device: torch.device) -> Any:
        loop()
        tape = Tape()
        recording.append(tape)
        with tape:
            loop()
        recording.pop()
        made.append(tape)
        return tape.replay, 1000

    for name in ("advance_row", "next_row"):
        monkeypatch.setattr(stage, name, Tapped(getattr(stage, name), recording))
    monkeypatch.setitem(sys.modules, "odediff.kernels.stage", stage)
    monkeypatch.setattr("odediff.sampling.choose", lambda backend, given: (backend, "asked for"))
    monkeypatch.setattr(graph, "capture", capture)
    monkeypatch.setattr(step, "_row", None)  # a tape sees aten's operations, which are what a GPU has
    return SimpleNamespace(stage=stage, made=made)


@pytest.mark.parametrize(("name", "args", "predict"), CASES, ids=str)
def test_a_recording_serves_other_seeds_labels_and_starts(
    taped: SimpleNamespace, name: str, args: dict[str, Any], predict: dict[str, Any]
) -> None:
    m, plan = model(num_classes=3), plan_of(name, 8 if name == "rk4" else 6, **args)
    sampler = odediff.Sampler(m, plan, **predict, backend="cudagraph")
    unrecorded = odediff.Sampler(m, plan, **predict, backend="torch" if "threshold" in predict else "triton")
    start = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(3))
    runs: list[dict[str, Any]] = [
        {"seed": 1, "label": [0, 2]},
        {"seed": [2**40 + 1, 7], "label": [2, 1]},
        {"seed": 4, "label": 1, "noise": start},
        {"seed": 1, "label": [0, 2]},
    ]
    for run in runs:
        torch.testing.assert_close(sampler(n=2, **run), unrecorded(n=2, **run), rtol=0, atol=0)
    assert len(taped.made) == 1
    if "guidance" not in predict:
        for n in (2, 3):
            torch.testing.assert_close(sampler(n=n, seed=1), unrecorded(n=n, seed=1), rtol=0, atol=0)
        assert len(taped.made) == 3
        assert sampler._recorder is not None and sampler._recorder.pool == {2: 2000, 3: 1000}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_replay_has_the_bits_of_a_run_and_begins_at_row_0_wherever_the_last_ended(
    taped: SimpleNamespace, dtype: torch.dtype
) -> None:
    m, plan = model("x0", dtype), plan_of("sde_dpmpp_3m", 5)
    sampler, unrecorded = (odediff.Sampler(m, plan, backend=backend) for backend in ("cudagraph", "triton"))
    sampler(n=2, seed=1)
    assert sampler._recorder is not None
    (loop, *_), want = sampler._recorder._kept[2, torch.float32, False], unrecorded(n=2, seed=5)
    for spoil in (lambda s: s._row.fill_(3), lambda s: s.times.fill_(7), lambda s: s.input.fill_(torch.nan)):
        spoil(loop._stage)
        torch.testing.assert_close(sampler(n=2, seed=5), want, rtol=0, atol=0)


def test_the_recordings_that_were_used_last_are_kept(taped: SimpleNamespace) -> None:
    """A fifth batch size drops the one that was used longest ago, and nothing but time is lost."""
    m, plan = model(), plan_of("ddim")
    sampler = odediff.Sampler(m, plan, backend="cudagraph")
    recorder, eager = sampler._recorder, odediff.Sampler(m, plan)
    assert recorder is not None and graph.KEPT == 4
    for n, made in ((1, 1), (2, 2), (3, 3), (4, 4), (1, 4), (5, 5), (1, 5), (3, 5), (2, 6), (4, 7)):
        got = sampler(n=n, seed=n)
        torch.testing.assert_close(got, eager(n=n, seed=n), rtol=0, atol=3e-6)
        assert len(taped.made) == made and len(recorder._kept) == min(made, graph.KEPT)
    assert [n for n, *_ in recorder._kept] == [1, 3, 2, 4] and recorder.pool == dict.fromkeys([1, 2, 3, 4], 1000)


def test_a_result_is_not_written_again(taped: SimpleNamespace) -> None:
    sampler = odediff.Sampler(model(), plan_of("ddim"), backend="cudagraph")
    first = sampler(n=2, seed=1)
    kept = first.clone()
    sampler(n=2, seed=2)
    torch.testing.assert_close(first, kept, rtol=0, atol=0)


def test_between_two_evaluations_is_one_kernel_and_what_raises_the_row(taped: SimpleNamespace) -> None:
    """Of the whole recording: what the network does apart, the start of a run, and two launches a row."""
    m, plan = odediff.Model(lambda x, t: x, schedule=model().schedule, shape=(2,)), plan_of("sde_dpmpp_2m", 7)
    odediff.Sampler(m, plan, backend="cudagraph")(n=3, seed=0)
    (tape,) = taped.made
    names = [getattr(func, "__name__", "launch") for func, *_ in tape.steps]
    assert names.count("<lambda>") == 2 * plan.nfe
    assert names[names.index("<lambda>") :] == ["<lambda>"] * (2 * plan.nfe)


def test_float64_is_recorded_as_eager_torch(taped: SimpleNamespace) -> None:
    m, plan = model(), plan_of("ddpm", 5)
    sampler = odediff.Sampler(m, plan, backend="cudagraph")
    noise = torch.randn(2, 3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for given in (noise, noise.float(), noise):
        got = sampler(given, seed=1)
        assert got.dtype == given.dtype
        torch.testing.assert_close(got, odediff.Sampler(m, plan)(given, seed=1), rtol=0, atol=3e-6)
    loops = {dtype: type(one.loop) for (_, dtype, _), one in sampler._recorder._kept.items()}
    assert loops == {torch.float64: graph.Eager, torch.float32: staged.Staged}


def test_why_says_how_rows_are_run_and_a_refusal_comes_before_any_work(
    taped: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    m, plan = model(), plan_of("ddim")
    assert odediff.Sampler(m, plan, backend="cudagraph").why == "asked for; each row is one kernel"
    thresholded = odediff.Sampler(m, plan, backend="cudagraph", threshold=0.9)
    assert thresholded.why.startswith("asked for; rows in eager torch: threshold = 0.9: the fused kernel has no")
    monkeypatch.setattr("odediff.backends.runner", lambda *_: pytest.fail("prepared"))
    with pytest.raises(
        ValueError, match='no dynamic thresholding.*; use backend="torch" or "compile", or clip instead'
    ):
        odediff.Sampler(m, plan, backend="triton", threshold=0.9)
    monkeypatch.setattr(staged, "find_spec", lambda name: None)
    assert staged.refusal(Prediction(m)) == ("triton is not installed", "pip install 'odediff[triton]'")


@pytest.mark.parametrize("backend", ["cudagraph", "triton"])
def test_bad_labels_and_outputs_are_named(taped: SimpleNamespace, backend: str) -> None:
    plan = plan_of("ddim")
    with pytest.raises(ValueError, match="3 labels for 2 samples"):
        odediff.Sampler(model(num_classes=3), plan, backend=backend)(torch.zeros(2, 3, 5, 6), label=[0, 1, 2])
    with pytest.raises(ValueError, match="guidance = 2 needs label="):
        odediff.Sampler(model(num_classes=3), plan, guidance=2.0, backend=backend)(n=2)
    for out, says in ((lambda x: (x, x), "returned tuple; expected a tensor"), (lambda x: x[:1], r"\(1, 2\)")):
        m = odediff.Model(lambda x, t, out=out: out(x), schedule=model().schedule, shape=(2,))
        with pytest.raises(ValueError, match=says):
            odediff.Sampler(m, plan, backend=backend)(n=2, seed=0)


def test_rows_are_channels_last_where_the_weights_are(taped: SimpleNamespace) -> None:
    m, plan = tiny(4), odediff.plan("sde_dpmpp_2m", odediff.schedule.linear(), 4)
    m.net.to(memory_format=torch.channels_last)
    want = odediff.Sampler(m, plan)(n=2, seed=1, label=[0, 3])
    fed: list[bool] = []
    m.net.register_forward_pre_hook(lambda _, args: fed.append(args[0].is_contiguous()))
    for backend in ("triton", "cudagraph"):
        got = odediff.Sampler(m, plan, backend=backend)(n=2, seed=1, label=[0, 3])
        assert got.is_contiguous() and not any(fed)
        torch.testing.assert_close(got, want, rtol=0, atol=3e-6)


def test_the_layout_is_that_of_the_convolutions() -> None:
    last, last_3d = torch.channels_last, torch.channels_last_3d
    conv, point, line = nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 1), nn.Conv1d(2, 2, 3)
    assert staged.layout(nn.Sequential(conv, point), 3) == torch.contiguous_format
    for net, rank, form in (
        (nn.Sequential(conv, point).to(memory_format=last), 3, last),
        (nn.Conv3d(2, 2, 3).to(memory_format=last_3d), 4, last_3d),
        (point.to(memory_format=last), 3, torch.contiguous_format),
        (line, 2, torch.contiguous_format),
        (lambda x, t: x, 3, torch.contiguous_format),
    ):
        assert staged.layout(net, rank) == form


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "args", "predict"), CASES, ids=str)
def test_a_run_waits_for_nothing(name: str, args: dict[str, Any], predict: dict[str, Any]) -> None:
    """From labels and streams to the final state, once recorded: no host synchronisation."""
    m, plan = model(num_classes=3, device="cuda"), plan_of(name, 8 if name == "rk4" else 6, **args)
    sampler = odediff.Sampler(m, plan, **predict, backend="cudagraph")
    label = torch.tensor([0, 2], device="cuda")
    want = odediff.Sampler(m, plan, **predict)(n=2, seed=1, label=label)
    torch.testing.assert_close(sampler(n=2, seed=1, label=label), want, rtol=0, atol=1e-5)
    x, batch = torch.randn(2, 3, 5, 6, device="cuda"), streams(5, 2)
    if "threshold" in predict:  # an eager loop, whose noise numpy's words go into beforehand
        return
    assert sampler._recorder is not None
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = sampler._recorder(x, label, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    want = odediff.Sampler(m, plan, **predict)(x / plan.prior_scale, seed=5, label=label)
    torch.testing.assert_close(got.clamp(-1, 1), want, rtol=0, atol=1e-5)
    assert sampler._recorder.pool[2] > 0


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:called a synchronizing CUDA operation")
def test_a_call_waits_once_to_see_whether_the_images_are_finite(recwarn: pytest.WarningsRecorder) -> None:
    m, plan = model(device="cuda"), plan_of("ddpm", 6)
    sampler = odediff.Sampler(m, plan, backend="cudagraph")
    sampler(n=2, seed=1)
    from odediff.running import finish

    x = torch.zeros(2, 3, 5, 6, device="cuda")
    recwarn.clear()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        finish(m, sampler._recorder(x, None, streams(5, 2)))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([one for one in recwarn if "called a synchronizing CUDA operation" in str(one.message)]) == 1
