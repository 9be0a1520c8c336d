"""Every backend draws what eager torch draws; which one runs is said, and what cannot run is refused."""

import sys

import kernel_modules
import numpy as np
import pytest
import torch
from test_onnx_export import tiny
from torch import nn

import odediff
from odediff import backends
from odediff.onnx import OnnxModel
from odediff.parity import ParityError

LINEAR = odediff.schedule.linear()
CASES = [
    ("abm4", 6, {}, {}),
    ("ddim", 4, {"eta": 1.0}, {}),
    ("dpmpp_3m", 5, {}, {"clip": True}),
    ("abm3", 5, {}, {"guidance": 2.5}),
    ("ddim", 3, {}, {"threshold": 0.9}),
]


def draw(model, name, nfe, options, predict, **more):
    plan = odediff.plan(name, LINEAR, nfe, **options)
    sampler = odediff.Sampler(model, plan, **predict, **more)
    return sampler(n=3, seed=1, label=[0, 3, 1])


@pytest.fixture(scope="module")
def onnx_model():
    """A conditional model, and the sampler's own evaluation of it in onnxruntime, made once."""
    model = tiny(4)
    return model, backends.runner("onnx", model)


@pytest.mark.parametrize(("name", "nfe", "options", "predict"), CASES)
def test_onnx_draws_what_torch_draws(onnx_model, monkeypatch, name, nfe, options, predict):
    model, made = onnx_model
    monkeypatch.setattr("odediff.backends.runner", lambda backend, given: made if backend == "onnx" else given)
    want = draw(model, name, nfe, options, predict)
    got = draw(model, name, nfe, options, predict, backend="onnx")
    np.testing.assert_allclose(got, want, atol=3e-6)


def test_onnx_runs_in_onnxruntime_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = tiny(4)
    sampler = odediff.Sampler(model, odediff.plan("ddim", LINEAR, 3), backend="auto")
    assert (sampler.backend, "onnxruntime is faster" in sampler.why) == ("onnx", True)
    assert isinstance(sampler.prediction.model, OnnxModel) and sampler.model is model
    seen = []
    x = sampler(n=2, seed=0, callback=lambda i, x, x0: seen.append(i))
    assert seen == [0, 1, 2] and len(list(tmp_path.iterdir())) == 1
    weights = [p.detach().clone() for p in model.net.parameters()]
    with torch.no_grad():
        for p in model.net.parameters():
            p.zero_()
    torch.testing.assert_close(sampler(n=2, seed=0), x)  # a copy of the weights, taken when the sampler was made
    assert any(bool(p.any()) for p in weights)
    del sampler
    assert not list(tmp_path.iterdir())


def test_onnx_runs_a_large_batch_in_parts_no_smaller_than_the_weights(monkeypatch):
    monkeypatch.setattr("odediff.onnx.session.CACHE", 1)
    model = tiny(4)
    file = backends.runner("onnx", model)
    weights = sum(p.nbytes for p in model.net.parameters())
    assert file.options.memory >= max(weights, file.about.memory)
    most = file.options.memory // file.about.memory
    x = torch.randn(2 * most + 1, *model.shape, generator=torch.Generator().manual_seed(0))
    label = torch.arange(len(x)) % 4
    seen, run = [], file.engine.run
    monkeypatch.setattr(file.engine, "run", lambda feeds, out: seen.append(len(feeds["sample"])) or run(feeds, out))
    with torch.no_grad():
        torch.testing.assert_close(file(x, 300.0, label), model(x, 300.0, label), atol=1e-5, rtol=0)
    assert len(seen) == 3 and sum(seen) == len(x) and max(seen) <= most


class Counting:
    """What torch.compile may call to compile a graph, which here compiles nothing and counts."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


def test_compile_compiles_once_for_every_solver_budget_and_batch(monkeypatch):
    torch._dynamo.reset()
    counting, compiler = Counting(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda net: compiler(net, backend=counting))
    model = tiny(4)
    runs = backends.runner("compile", model)
    monkeypatch.setattr("odediff.backends.runner", lambda backend, given: runs)
    for n, name, nfe in [(4, "ddim", 3), (3, "ddim", 7), (5, "abm4", 6), (2, "unipc_3", 4)]:
        sampler = odediff.Sampler(model, odediff.plan(name, LINEAR, nfe), backend="compile")
        want = odediff.sample(model, name, nfe, n=n, seed=2, label=list(range(4))[:n] if n <= 4 else None)
        got = sampler(n=n, seed=2, label=list(range(4))[:n] if n <= 4 else None)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
        assert counting.graphs == 1
    assert runs.net.net.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert runs.net.net.conv.weight.data_ptr() != model.net.conv.weight.data_ptr()
    sampler(n=1, seed=0)
    assert counting.graphs == 2
    sampler(n=1, seed=1)
    assert counting.graphs == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # of torch's own code
def test_compiled_code_draws_what_torch_draws():
    torch._dynamo.reset()
    model = tiny(4)
    got = draw(model, "abm3", 5, {}, {"guidance": 2.0}, backend="compile")
    torch.testing.assert_close(got, draw(model, "abm3", 5, {}, {"guidance": 2.0}), rtol=0, atol=1e-5)


def test_auto_says_what_it_took_and_why(monkeypatch):
    function = odediff.Model(lambda x, t: x, schedule=LINEAR, shape=(2,))
    plan = odediff.plan("ddim", LINEAR, 2)
    sampler = odediff.Sampler(function, plan, backend="auto")
    assert (sampler.backend, sampler.why) == ("torch", "the network is no nn.Module, which is all that can be exported")
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name == "onnxruntime" else object())
    sampler = odediff.Sampler(tiny(), plan, backend="auto")
    assert sampler.backend == "torch" and "onnxruntime not installed" in sampler.why
    assert odediff.Sampler(tiny(), plan).why == "asked for"


class Unexportable(nn.Module):
    """A network whose output's layout depends on its numbers."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x, t):
        return self.weight * (x if float(x.sum()) > 0 else -x)


@pytest.mark.parametrize("broken", ["export", "parity"])
def test_auto_takes_torch_where_onnx_cannot_run_the_network_and_says_so(monkeypatch, broken):
    model = odediff.Model(Unexportable(), schedule=LINEAR, shape=(2,)) if broken == "export" else tiny()
    if broken == "parity":
        monkeypatch.setattr("odediff.onnx.session.parity.gap", raising(ParityError("out_sample is off by 3")))
    says = {"export": "torch.onnx could not trace the network", "parity": "out_sample is off by 3"}[broken]
    plan = odediff.plan("ddim", LINEAR, 2)
    with pytest.warns(UserWarning, match=f"the network is run by eager torch; onnx cannot run this network: {says}"):
        sampler = odediff.Sampler(model, plan, backend="auto")
    assert sampler.backend == "torch" and sampler.why.startswith(f"onnx cannot run this network: {says}")
    torch.testing.assert_close(sampler(n=2, seed=0), odediff.Sampler(model, plan)(n=2, seed=0), rtol=0, atol=0)
    with pytest.raises(ValueError, match=says):
        odediff.Sampler(model, plan, backend="onnx")


def raising(error):
    def call(*args):
        raise error

    return call


def test_what_cannot_run_is_refused(monkeypatch):
    plan = odediff.plan("ddim", LINEAR, 2)
    function = odediff.Model(lambda x, t: x, schedule=LINEAR, shape=(2,))
    for model, backend, message in [
        (tiny(), "tensorrt", "unknown backend 'tensorrt'"),
        (tiny(), "cudagrap", "did you mean cudagraph"),
        (function, "onnx", "needs a network that is an nn.Module"),
        (function, "compile", "needs a network that is an nn.Module"),
        (tiny(), "cudagraph", "needs a model on a CUDA GPU, not on cpu"),
        (tiny(), "triton", "needs a model on a CUDA GPU, not on cpu"),
    ]:
        with pytest.raises(ValueError, match=message):
            odediff.Sampler(model, plan, backend=backend)
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ValueError, match=r"needs onnxscript: pip install 'odediff\[onnx\]'"):
        odediff.Sampler(tiny(), plan, backend="onnx")


@pytest.mark.parametrize(("name", "nfe", "options", "predict"), CASES[:4])
@pytest.mark.parametrize("labelled", [True, False])
def test_the_kernel_draws_what_torch_draws(monkeypatch, name, nfe, options, predict, labelled):
    """In triton's interpreter; on a GPU the same loop runs the compiled kernel."""
    if "guidance" in predict and not labelled:
        pytest.skip("guidance needs labels")
    interpreted = kernel_modules.load("interpreter").stage
    model, plan, label = tiny(4), odediff.plan(name, LINEAR, nfe, **options), [0, 3, 1] if labelled else None
    want = odediff.Sampler(model, plan, **predict)(n=3, seed=1, label=label)
    monkeypatch.setitem(sys.modules, "odediff.kernels.stage", interpreted)
    monkeypatch.setattr("odediff.sampling.choose", lambda backend, given: (backend, "asked for"))
    got = odediff.Sampler(model, plan, **predict, backend="triton")(n=3, seed=1, label=label)
    torch.testing.assert_close(got, want, rtol=0, atol=3e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "cudagraph"])
@pytest.mark.parametrize(("name", "nfe", "options", "predict"), CASES)
def test_on_a_gpu_kernel_and_graph_draw_what_torch_draws(name, nfe, options, predict, backend):
    model, plan = tiny(4).to("cuda"), odediff.plan(name, LINEAR, nfe, **options)
    if backend == "triton" and "threshold" in predict:
        pytest.skip("refused")
    sampler = odediff.Sampler(model, plan, **predict, backend=backend)
    label = torch.tensor([0, 3, 1], device="cuda")
    for seed in (1, 2, 1):
        want = odediff.Sampler(model, plan, **predict)(n=3, seed=seed, label=label)
        torch.testing.assert_close(sampler(n=3, seed=seed, label=label), want, rtol=0, atol=1e-5)


def test_bad_options_are_refused_before_a_backend_prepares(monkeypatch):
    monkeypatch.setattr("odediff.backends.runner", lambda *_: pytest.fail("prepared"))
    with pytest.raises(ValueError, match="needs a class-conditional model"):
        odediff.Sampler(tiny(), odediff.plan("ddim", LINEAR, 2), guidance=2.0, backend="onnx")
