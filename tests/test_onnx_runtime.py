"""Files run with numpy and onnxruntime alone; other people's too; what cannot run says why."""

import importlib.util
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from test_onnx_export import LINEAR, images, tiny

import odediff
from odediff.onnx import OnnxModel, OnnxSampler, load
from odediff.onnx.engines import ProviderError

WITHOUT_TORCH = """
import importlib.util, sys
sys.path[:] = [path for path in sys.path if "-packages" not in path] + sys.argv[1:3]
assert importlib.util.find_spec("torch") is None and importlib.util.find_spec("onnx") is None
import numpy as np
import odediff
file = odediff.onnx.load(sys.argv[3])
np.save(sys.argv[4], file.run(5, 3))
network = odediff.onnx.load(sys.argv[5])
assert network(np.ones((2, *network.shape), np.float32), 300.0).shape == (2, *network.shape)
assert "torch" not in sys.modules
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A network's file, and a stochastic sampler's made of it."""
    folder = tmp_path_factory.mktemp("files")
    odediff.export(tiny(), folder / "net.onnx")
    odediff.export(load(folder / "net.onnx"), folder / "sampler.onnx", "ddim", 4, eta=1.0)
    return folder


def test_an_installation_without_torch_draws_the_same_images(files, tmp_path):
    """A folder that holds links to numpy and onnxruntime, and what they load, is all that the interpreter finds."""
    site = Path(sysconfig.get_paths()["purelib"])
    links = tmp_path / "site"
    links.mkdir()
    for name in ("numpy", "numpy.libs", "onnxruntime", "flatbuffers", "google", "packaging"):
        if (site / name).exists():
            (links / name).symlink_to(site / name)
    here = Path(odediff.__file__).parents[1]
    args = [links, here, files / "sampler.onnx", tmp_path / "x.npy", files / "net.onnx"]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", WITHOUT_TORCH, *map(str, args)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), images(tiny(), "ddim", 4, n=5, seed=3, eta=1.0), atol=1e-4)


def test_the_runtime_loads_neither_torch_nor_onnx(files):
    run = f"import sys, odediff; odediff.onnx.load({str(files / 'sampler.onnx')!r}).run(1, 0)"
    code = f"{run}; print('torch' in sys.modules, 'onnx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_a_sample_is_the_seeds_and_its_own(files):
    file = load(files / "sampler.onnx")
    want = file.run(4, 9)
    np.testing.assert_allclose(file.run(2, 9), want[:2], atol=1e-6)
    assert np.abs(want[0] - want[1]).max() > 0.1
    alone = file.run(seed=[9, 11])
    np.testing.assert_allclose(alone[0], want[0], atol=1e-6)
    assert file.run(seed=0).shape == (1, 2, 4, 6)
    assert not np.array_equal(file.run(1), file.run(1))  # a fresh seed each


def test_outputs_are_fresh_arrays(files):
    sampler, network = load(files / "sampler.onnx"), load(files / "net.onnx")
    first = sampler.run(2, 0)
    kept = first.copy()
    sampler.run(2, 1)
    np.testing.assert_array_equal(first, kept)
    x = np.ones((2, 2, 4, 6), np.float32)
    outs = [network(x, t) for t in (10.0, 500.0, 900.0)]
    assert not any(np.shares_memory(a, b) for a in outs for b in (*outs, x) if a is not b)
    assert np.abs(outs[0] - outs[1]).max() > 1e-3


def test_explicit_noise_is_taken_as_it_is(tmp_path, files):
    odediff.export(load(files / "net.onnx"), tmp_path / "s.onnx", "abm3", 5)
    file = load(tmp_path / "s.onnx")
    noise = torch.randn(3, 2, 4, 6, generator=torch.Generator().manual_seed(0))
    want = odediff.sample(tiny(), "abm3", 5, noise=noise).numpy()
    np.testing.assert_allclose(file.run(noise=noise.numpy()), want, atol=2e-6)


BAD_RUNS = [
    ({"n": 0, "seed": 0}, "n = 0"),
    ({"n": 2, "seed": -1}, "seed = -1"),
    ({"n": 2, "seed": [1, 2, 3]}, "3 seeds for n = 2"),
    ({"noise": np.zeros((2, 2, 4, 5), np.float32)}, r"noise has shape \(2, 2, 4, 5\), expected \(n, 2, 4, 6\)"),
    ({"noise": np.full((1, 2, 4, 6), np.nan, np.float32)}, "finite"),
    ({"noise": np.zeros((1, 2, 4, 6), np.int64)}, "floating-point"),
    ({"n": 3, "noise": np.zeros((2, 2, 4, 6), np.float32)}, "n = 3, but noise holds 2"),
    ({"n": 1, "label": 3}, "label = 3 for an unconditional model"),
]


@pytest.mark.parametrize(("options", "message"), BAD_RUNS, ids=lambda value: str(value)[:30])
def test_bad_runs_are_refused(files, options, message):
    with pytest.raises(ValueError, match=message):
        load(files / "sampler.onnx").run(**options)


BAD_LOADS = [
    ({"provider": "gpu"}, "provider = 'gpu'; choose cpu, cuda, tensorrt or openvino"),
    ({"threads": 0}, "threads = 0 must be a whole number"),
    ({"memory": 1.5}, "memory = 1.5 must be a whole number"),
    ({"cuda_graph": True}, "cuda_graph=True needs a file of a fixed batch"),
    ({"prediction": "eps"}, "says its own prediction"),
    ({"integer_times": True}, "says its own integer_times"),
    ({"names": {"nois": "noise"}}, "names has 'nois'; it maps noise"),
    ({"names": {"noise": "x"}}, "has no 'x', but noise, row_noise"),
]


@pytest.mark.parametrize(("options", "message"), BAD_LOADS, ids=lambda value: str(value)[:30])
def test_bad_loads_are_refused(files, options, message):
    with pytest.raises(ValueError, match=message):
        load(files / "sampler.onnx", **options)


def test_a_missing_provider_is_an_error_and_no_fallback(files):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has the CUDA provider")
    with pytest.raises(ProviderError, match=r"'cuda' is not in this onnxruntime.*pip install 'odediff\[onnx-gpu\]'"):
        load(files / "sampler.onnx", provider="cuda").run(1, 0)


def test_a_provider_that_gives_up_silently_is_an_error(files, monkeypatch):
    """onnxruntime runs on the CPU where a provider's libraries are missing; the session is asked what it runs on."""
    import onnxruntime

    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, settings, providers: real(path, settings, providers=["CPUExecutionProvider"]),
    )
    with pytest.raises(ProviderError, match="asked for, but onnxruntime runs CPUExecutionProvider"):
        load(files / "sampler.onnx", provider="cuda").run(1, 0)


def test_sessions_are_kept_by_file_and_options(files, tmp_path):
    first = load(files / "sampler.onnx").engine
    assert load(files / "sampler.onnx").engine is first
    assert load(files / "sampler.onnx", threads=1).engine is not first
    path = tmp_path / "n.onnx"
    path.write_bytes((files / "net.onnx").read_bytes())
    before = load(path).engine
    odediff.export(tiny(), path)
    assert load(path).engine is not before


def test_threads_reach_the_session(files):
    assert load(files / "net.onnx", threads=1).engine.session.get_session_options().intra_op_num_threads == 1


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
def test_openvino_runs_the_same_files(files):
    for name in ("net.onnx", "sampler.onnx"):
        file, other = load(files / name, provider="openvino", threads=1), load(files / name)
        if isinstance(file, OnnxSampler):
            np.testing.assert_allclose(file.run(3, 2), other.run(3, 2), atol=1e-4)
        else:
            np.testing.assert_allclose(images(file, "ddim", 4), images(other, "ddim", 4), atol=1e-4)


def foreign(
    path: Path, *, time: list[int | str] | None = None, kind: int = TensorProto.INT64, half: bool = False
) -> Path:
    """A file of somebody else: out = w x + sin(t / 1000), with names and types of its own."""
    float_, time = TensorProto.FLOAT16 if half else TensorProto.FLOAT, ["n"] if time is None else time
    nodes = [
        helper.make_node("Cast", ["when"], ["t"], to=float_),
        helper.make_node("Div", ["t", "thousand"], ["s"]),
        helper.make_node("Sin", ["s"], ["wave"]),
        *(
            [helper.make_node("Unsqueeze", ["wave", "axes"], ["w4"])]
            if time
            else [helper.make_node("Identity", ["wave"], ["w4"])]
        ),
        helper.make_node("Mul", ["picture", "weight"], ["scaled"]),
        helper.make_node("Add", ["scaled", "w4"], ["noise_pred"]),
    ]
    np_float = np.float16 if half else np.float32
    tensors = [
        onnx.numpy_helper.from_array(np.array(1000, np_float), "thousand"),
        onnx.numpy_helper.from_array(np.array(0.25, np_float), "weight"),
        onnx.numpy_helper.from_array(np.array([1, 2, 3], np.int64), "axes"),
    ]
    shape = ["n", 2, 4, 6]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("picture", float_, shape), helper.make_tensor_value_info("when", kind, time)],
        [helper.make_tensor_value_info("noise_pred", float_, shape)],
        tensors if time else tensors[:2],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(made, full_check=True)
    onnx.save(made, path)
    return path


NAMES = {"sample": "picture", "timestep": "when", "out_sample": "noise_pred"}
ABOUT = {"schedule": LINEAR, "prediction": "v", "shape": (2, 4, 6), "range": (-1.0, 1.0)}


@pytest.mark.parametrize("form", ["unrolled", "loop"])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("time", [[], [1], ["n"]], ids=str)
def test_a_network_from_elsewhere_is_a_model_and_becomes_a_sampler(tmp_path, form, half, time):
    file = load(foreign(tmp_path / "f.onnx", time=time, half=half), names=NAMES, integer_times=True, **ABOUT)
    assert isinstance(file, OnnxModel)
    same = odediff.Model(
        lambda x, t: 0.25 * x + torch.sin(t.float() / 1000)[:, None, None, None], integer_times=True, **ABOUT
    )
    want = images(same, "dpmpp_2m", 6)
    bound = 5e-3 if half else 2e-6
    np.testing.assert_allclose(images(file, "dpmpp_2m", 6), want, atol=bound)
    odediff.export(file, tmp_path / "s.onnx", "dpmpp_2m", 6, form=form)
    np.testing.assert_allclose(load(tmp_path / "s.onnx").run(3, 5), want, atol=bound)


def test_a_network_from_elsewhere_has_to_be_told_about(tmp_path):
    path = foreign(tmp_path / "f.onnx")
    for options, message in [
        ({}, "give schedule, prediction, shape"),
        (ABOUT, "has no 'sample', but picture, when; say what it calls sample"),
        ({**ABOUT, "names": {**NAMES, "timestep": "picture"}}, "has an input 'when' that odediff would not know"),
        (
            {**ABOUT, "names": NAMES, "shape": (3, 4, 6)},
            r"picture has the shape \('n', 2, 4, 6\), for samples of \(3, 4, 6\)",
        ),
        ({**ABOUT, "names": NAMES, "prediction": "noise"}, "prediction = 'noise'"),
        ({**ABOUT, "names": NAMES, "num_classes": 4}, "has no 'label'"),
    ]:
        with pytest.raises(ValueError, match=message):
            load(path, **options)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing.onnx")


def test_diffusers_network_goes_the_whole_way(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()
    model = odediff.Model(net, schedule=LINEAR, prediction="v", shape=(1, 8, 8))
    odediff.export(model, tmp_path / "s.onnx", nfe=5)
    np.testing.assert_allclose(load(tmp_path / "s.onnx").run(2, 1), images(model, None, 5, n=2, seed=1), atol=5e-6)


def test_other_metadata_under_our_name_is_refused(files, tmp_path):
    made = onnx.load(files / "sampler.onnx")
    (entry,) = (one for one in made.metadata_props if one.key == "odediff")
    for text, message in [
        ("{}", "not of the format"),
        (entry.value.replace('"unrolled"', "3"), "."),
        (entry.value[:-9], "not JSON"),
    ]:
        entry.value = text
        onnx.save(made, tmp_path / "m.onnx")
        with pytest.raises(ValueError, match=message) as caught:
            load(tmp_path / "m.onnx")
        assert "m.onnx" in str(caught.value)


def test_a_graph_that_does_not_do_what_it_says_is_an_error(tmp_path, files):
    """The right names and shapes on the outside, a graph within that onnxruntime refuses."""
    made = onnx.load(files / "net.onnx")
    made.graph.node[0].input[0] = "nowhere"
    onnx.save(made, tmp_path / "n.onnx")
    with pytest.raises(ProviderError, match="n.onnx"):
        load(tmp_path / "n.onnx")(np.zeros((1, 2, 4, 6), np.float32), 1.0)


def test_a_file_that_was_overwritten_since_it_was_loaded_does_not_run(files, tmp_path):
    path = tmp_path / "s.onnx"
    path.write_bytes((files / "sampler.onnx").read_bytes())
    late, running = load(path), load(path)
    want = running.run(2, 1)
    odediff.export(load(files / "net.onnx"), path, "ddim", 3)
    with pytest.raises(ValueError, match=r"s\.onnx was overwritten since it was loaded; load it again"):
        late.run(2, 1)
    np.testing.assert_array_equal(running.run(2, 1), want)
    assert load(path).nfe == 3


def test_guidance_in_the_file_asks_for_a_label(tmp_path):
    odediff.export(tiny(4), tmp_path / "s.onnx", "ddim", 3, guidance=2.0)
    with pytest.raises(ValueError, match=r"the file has guidance = 2 and needs label="):
        load(tmp_path / "s.onnx").run(2, 1)


def test_whole_numbers_are_no_state(files):
    with pytest.raises(ValueError, match="x has dtype int64, expected floating-point"):
        load(files / "net.onnx")(np.ones((1, 2, 4, 6), np.int64), 3.0)


def test_threads_take_turns_on_a_request_of_openvino(files, monkeypatch):
    pytest.importorskip("openvino")
    file, inside = load(files / "sampler.onnx", provider="openvino"), []

    class Request:
        def infer(self, feeds):
            inside.append(True)
            time.sleep(0.02)
            assert len(inside) == 1
            inside.pop()
            return {"images": feeds["noise"]}

    monkeypatch.setattr(file.engine, "_request", Request())
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(lambda seed: file.run(1, seed), range(4)))) == 4


def test_a_link_is_run_with_the_data_beside_it(files, tmp_path):
    """As a download cache keeps files: links in one folder to files of other names in another."""
    made = onnx.load(files / "sampler.onnx")
    onnx.save(made, tmp_path / "s.onnx", save_as_external_data=True, location="s.onnx.data", size_threshold=200)
    want = load(tmp_path / "s.onnx").run(2, 1)
    for folder in ("blobs", "cache"):
        (tmp_path / folder).mkdir()
    for name in ("s.onnx", "s.onnx.data"):
        (tmp_path / name).rename(tmp_path / "blobs" / f"hash-{name[2:]}")
        (tmp_path / "cache" / name).symlink_to(tmp_path / "blobs" / f"hash-{name[2:]}")
    np.testing.assert_array_equal(load(tmp_path / "cache" / "s.onnx").run(2, 1), want)
