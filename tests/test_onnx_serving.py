"""Repositories for the Triton Inference Server: what config.pbtxt says against what the file holds."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from odediff import schedule
from odediff.onnx.metadata import KEY, About
from odediff.onnx.serving import triton_repository

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT32
TYPES = {FLOAT: "TYPE_FP32", INT: "TYPE_INT32", TensorProto.FLOAT16: "TYPE_FP16", TensorProto.UINT8: "TYPE_UINT8"}
NETWORK = {"sample": (FLOAT, ["batch", 2, 4, 4]), "timestep": (FLOAT, ["batch"]), "label": (INT, ["batch"])}
STOCHASTIC = {"noise": (FLOAT, ["batch", 2, 4, 4]), "row_noise": (FLOAT, [3, "batch", 2, 4, 4])}
FIXED = {"noise": (FLOAT, [5, 2, 4, 4]), "label": (INT, [5])}


def write(path: Path, inputs: dict[str, Any], *, external: str | None = None, metadata: str | None = None) -> Path:
    """A file whose output `out` is its first input times 2, for all of 300 weights that are 2."""
    first, (kind, dims) = next(iter(inputs.items()))
    values = [helper.make_tensor_value_info(name, *type_) for name, type_ in inputs.items()]
    weights = numpy_helper.from_array(np.full(300, 2.0, helper.tensor_dtype_to_np_dtype(kind)), "weights")
    nodes = [
        helper.make_node("ReduceMax", ["weights"], ["two"], keepdims=0),
        helper.make_node("Mul", [first, "two"], ["out"]),
    ]
    graph = helper.make_graph(nodes, "g", values, [helper.make_tensor_value_info("out", kind, dims)], [weights])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    if metadata is not None:
        helper.set_model_props(made, {KEY: metadata})
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(made, path, save_as_external_data=external is not None, location=external, size_threshold=256)
    return path


def parse(text: str) -> dict[str, list[Any]]:
    """Protobuf's text format: every field a list of its values; a message is a dict, an enum its name."""
    tokens = re.findall(r'"(?:[^"\\]|\\.)*"|[A-Za-z_]\w*|-?\d+|[\[\]{}:,]', text)
    assert "".join(tokens) == re.sub(r"\s(?=(?:[^\"]*\"[^\"]*\")*[^\"]*$)", "", text)

    def message() -> dict[str, list[Any]]:
        made: dict[str, list[Any]] = {}
        while tokens and tokens[0] != "}":
            field = tokens.pop(0)
            assert re.fullmatch(r"[a-z_]+", field)
            if tokens[0] == ":":
                tokens.pop(0)
            made.setdefault(field, []).extend(several() if tokens[0] == "[" else [one()])
        return made

    def several() -> list[Any]:
        tokens.pop(0)
        made = []
        while tokens[0] != "]":
            made.append(one())
            assert tokens[0] in ",]"
            if tokens[0] == ",":
                tokens.pop(0)
                assert tokens[0] != "]"
        tokens.pop(0)
        return made

    def one() -> Any:
        token = tokens.pop(0)
        if token == "{":
            made = message()
            assert tokens.pop(0) == "}"
            return made
        return int(token) if re.fullmatch(r"-?\d+", token) else token.strip('"')

    made = message()
    assert not tokens
    return made


def config_of(version: Path) -> dict[str, Any]:
    """The fields that are there once, and the lists of tensors."""
    made = parse((version.parent / "config.pbtxt").read_text())
    return {key: value if key in ("input", "output") else value[0] for key, value in made.items()}


def shape_of(tensor: dict[str, Any], batched: bool) -> list[int]:
    """The shape that the backend presents to the graph, as its documentation forms it."""
    own = tensor["reshape"][0].get("shape", []) if "reshape" in tensor else tensor["dims"]
    assert tensor["dims"]  # "the empty shape [ ] is not allowed"
    return [-1, *own] if batched else own


@pytest.mark.parametrize(
    ("inputs", "largest"),
    [(NETWORK, 16), ({"noise": NETWORK["sample"]}, 16), (STOCHASTIC, 0), (FIXED, 0)],
    ids=["network", "sampler", "stochastic", "fixed"],
)
def test_the_configuration_says_what_the_file_holds(tmp_path, inputs, largest):
    version = triton_repository(write(tmp_path / "digits.onnx", inputs), tmp_path / "repository")
    assert version == tmp_path / "repository" / "digits" / "1"
    config = config_of(version)
    assert (config["name"], config["backend"], config["max_batch_size"]) == ("digits", "onnxruntime", largest)
    assert ("dynamic_batching" in config) == (largest > 1)
    graph = onnx.load(version / "model.onnx").graph
    for tensors, values in ((config["input"], graph.input), (config["output"], graph.output)):
        assert [one["name"][0] for one in tensors] == [one.name for one in values]
        for tensor, value in zip(tensors, values, strict=True):
            held = value.type.tensor_type
            assert shape_of(tensor, largest > 0) == [dim.dim_value or -1 for dim in held.shape.dim]
            assert tensor["data_type"] == [TYPES[held.elem_type]]


def test_the_server_may_batch_exactly_where_the_backend_would_complete_the_configuration(tmp_path):
    """With max_batch_size 0 and no fixed first axis the backend would set 4 by itself: both must not meet."""
    for k, inputs in enumerate([NETWORK, STOCHASTIC, FIXED, {"x": (FLOAT, ["n", "?"])}, {"x": (FLOAT, [1, "n"])}]):
        config = config_of(triton_repository(write(tmp_path / f"m{k}.onnx", inputs), tmp_path / "r"))
        can = all(isinstance(dims[0], str) for _, dims in inputs.values())
        assert (config["max_batch_size"] > 0) == can


def test_dimensions_without_a_number_are_open(tmp_path):
    path = write(tmp_path / "m.onnx", {"x": (TensorProto.FLOAT16, ["n", 3, "height", None])})
    (tensor,) = config_of(triton_repository(path, tmp_path / "r"))["input"]
    assert (tensor["dims"], tensor["data_type"]) == ([3, -1, -1], ["TYPE_FP16"])


def test_options_reach_the_configuration(tmp_path):
    path = write(tmp_path / "m.onnx", NETWORK)
    made = {"max_batch": 12, "preferred": [8, 4], "delay": 250, "instances": 3, "gpu": True, "threads": 2}
    config = config_of(triton_repository(path, tmp_path, "net-2.b", **made))
    assert (config["name"], config["max_batch_size"]) == ("net-2.b", 12)
    assert config["instance_group"] == {"count": [3], "kind": ["KIND_GPU"]}
    assert config["dynamic_batching"] == {"preferred_batch_size": [4, 8], "max_queue_delay_microseconds": [250]}
    assert config["parameters"] == {"key": ["intra_op_thread_count"], "value": [{"string_value": ["2"]}]}


def test_the_defaults_are_one_instance_on_the_cpu_and_no_delay(tmp_path):
    config = config_of(triton_repository(write(tmp_path / "m.onnx", NETWORK), tmp_path))
    assert config["instance_group"] == {"count": [1], "kind": ["KIND_CPU"]}
    assert config["dynamic_batching"] == {}
    assert "parameters" not in config


def test_a_batch_of_one_is_not_joined(tmp_path):
    config = config_of(triton_repository(write(tmp_path / "m.onnx", NETWORK), tmp_path, max_batch=1))
    assert config["max_batch_size"] == 1
    assert "dynamic_batching" not in config
    assert shape_of(config["input"][1], True) == [-1]


def test_tensor_names_are_escaped(tmp_path):
    name = 'x:0 "a\\b" \n\u00e9'
    version = triton_repository(write(tmp_path / "m.onnx", {name: NETWORK["sample"]}), tmp_path)
    (tensor,) = config_of(version)["input"]
    assert tensor["name"] == ['x:0 \\"a\\\\b\\" \\012\\303\\251']


@pytest.mark.parametrize("external", [None, "m.onnx.data"])
def test_the_copy_runs(tmp_path, external):
    path = write(tmp_path / "from" / "m.onnx", {"noise": NETWORK["sample"]}, external=external)
    version = triton_repository(path, tmp_path / "r")
    files = {str(file.relative_to(version)) for file in version.rglob("*") if file.is_file()}
    assert files == ({f"model.onnx/{name}" for name in ("model.onnx", external)} if external else {"model.onnx"})
    shutil.rmtree(path.parent)
    file = version / "model.onnx" / "model.onnx" if external else version / "model.onnx"
    x = np.ones((3, 2, 4, 4), np.float32)
    np.testing.assert_array_equal(onnxruntime.InferenceSession(file).run(["out"], {"noise": x})[0], 2 * x)


def test_the_copy_is_readable_as_other_files_are(tmp_path):
    """The server runs as another user than the one who exports."""
    path = write(tmp_path / "from" / "m.onnx", NETWORK)
    path.chmod(0o600)
    (tmp_path / "as_usual").mkdir()
    (tmp_path / "as_usual" / "file").touch()
    version = triton_repository(path, tmp_path / "r")
    assert version.stat().st_mode == (tmp_path / "as_usual").stat().st_mode
    assert (version / "model.onnx").stat().st_mode == (tmp_path / "as_usual" / "file").stat().st_mode


def test_the_next_copy_is_the_next_version(tmp_path):
    path = write(tmp_path / "m.onnx", NETWORK)
    assert [triton_repository(path, tmp_path / "r").name for _ in range(3)] == ["1", "2", "3"]
    shutil.rmtree(tmp_path / "r" / "m" / "1")
    (tmp_path / "r" / "m" / "9").mkdir()
    (tmp_path / "r" / "m" / "011").mkdir()  # Triton ignores such names
    assert triton_repository(path, tmp_path / "r").name == "10"


def test_another_configuration_is_not_overwritten(tmp_path):
    path = write(tmp_path / "m.onnx", NETWORK)
    version = triton_repository(path, tmp_path / "r")
    with pytest.raises(ValueError, match=r"config\.pbtxt says something else .* move it away"):
        triton_repository(path, tmp_path / "r", instances=2)
    assert sorted(os.listdir(version.parent)) == ["1", "config.pbtxt"]
    assert config_of(version)["instance_group"]["count"] == [1]
    (version.parent / "config.pbtxt").unlink()
    assert config_of(triton_repository(path, tmp_path / "r", instances=2))["instance_group"]["count"] == [2]


BAD = [
    (NETWORK, {"name": "a/b"}, r"name = 'a/b' must be letters"),
    (NETWORK, {"name": ""}, "name = '' must be letters"),
    (NETWORK, {"name": ".."}, "a letter or digit first"),
    (NETWORK, {"name": "a\n"}, "must be letters"),
    (NETWORK, {"name": 3}, "name = 3"),
    (NETWORK, {"max_batch": 0}, "max_batch = 0 must be a whole number in 1"),
    (NETWORK, {"max_batch": True}, "max_batch = True"),
    (NETWORK, {"max_batch": 2.0}, r"max_batch = 2\.0"),
    (NETWORK, {"max_batch": 2**31}, "max_batch = 2147483648"),
    (NETWORK, {"instances": 0}, "instances = 0"),
    (NETWORK, {"instances": None}, "instances = None"),
    (NETWORK, {"threads": -1}, "threads = -1"),
    (NETWORK, {"delay": None}, "delay = None"),
    (NETWORK, {"gpu": "0"}, "gpu = '0' must be True or False"),
    (NETWORK, {"delay": -1}, "delay = -1 must be a whole number in 0"),
    (NETWORK, {"preferred": [4, 17]}, r"preferred\[1\] = 17 must be a whole number in 1 \.\. 16"),
    (NETWORK, {"preferred": 4}, r"preferred = 4 must be a list"),
    (NETWORK, {"max_batch": 1, "delay": 5}, "delay is about batches, and max_batch = 1"),
    (STOCHASTIC, {"max_batch": 4}, r"row_noise has the shape \(3, 'batch', 2, 4, 4\).* leave max_batch out"),
    (FIXED, {"preferred": [5]}, r"noise has the shape \(5, 2, 4, 4\).* leave preferred out"),
    (FIXED, {"delay": 5}, "leave delay out"),
    ({"x": (FLOAT, ["n", 2]), "t": (FLOAT, [])}, {}, "t is a scalar or has no shape"),
    ({"x": (FLOAT, ["n"]), "words": (TensorProto.STRING, ["n"])}, {}, "words is of type string; Triton serves bool"),
]


@pytest.mark.parametrize(("inputs", "options", "message"), BAD, ids=[str(case[1:]) for case in BAD])
def test_bad_input_writes_nothing(tmp_path, inputs, options, message):
    path = write(tmp_path / "m.onnx", inputs)
    with pytest.raises(ValueError, match=message):
        triton_repository(path, tmp_path / "r", **options)
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_bad_files_write_nothing(tmp_path):
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ValueError, match=r"text\.onnx"):
        triton_repository(tmp_path / "text.onnx", tmp_path / "r")
    with pytest.raises(FileNotFoundError):
        triton_repository(tmp_path / "none.onnx", tmp_path / "r")
    write(tmp_path / "meta.onnx", NETWORK, metadata="{}")
    with pytest.raises(ValueError, match=r"meta\.onnx: the metadata is not of the format"):
        triton_repository(tmp_path / "meta.onnx", tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_our_own_metadata_pass(tmp_path):
    about = About("eps", dict(schedule.linear().identity), (2, 4, 4), None)
    path = write(tmp_path / "m.onnx", NETWORK, metadata=about.to_json())
    assert triton_repository(path, tmp_path / "r").is_dir()


def test_external_data_in_a_folder_below_keep_their_place(tmp_path):
    (tmp_path / "from" / "weights").mkdir(parents=True)
    path = write(tmp_path / "from" / "m.onnx", {"noise": NETWORK["sample"]}, external="weights/m.data")
    version = triton_repository(path, tmp_path / "r")
    assert (version / "model.onnx" / "weights" / "m.data").stat().st_size == 300 * 4
    assert onnxruntime.InferenceSession(version / "model.onnx" / "model.onnx")


def test_a_link_to_a_file_is_followed(tmp_path):
    path = write(tmp_path / "from" / "m.onnx", NETWORK)
    (tmp_path / "latest.onnx").symlink_to(path)
    version = triton_repository(tmp_path / "latest.onnx", tmp_path / "r")
    assert version.parent.name == "latest"
    assert not (version / "model.onnx").is_symlink()
    assert (version / "model.onnx").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("together", [False, True])
def test_external_data_behind_a_link_are_refused(tmp_path, together):
    """Their name in the graph is the link's; with the model beside them, as in the cache of a model hub, too."""
    path = write(tmp_path / "m.onnx", {"noise": NETWORK["sample"]}, external="m.data")
    (tmp_path / "blobs").mkdir()
    for name in ("m.onnx", "m.data")[0 if together else 1 :]:
        (tmp_path / name).rename(tmp_path / "blobs" / f"real.{name}")
        (tmp_path / name).symlink_to(f"blobs/real.{name}")
    with pytest.raises(ValueError, match=r"m\.onnx has external data behind links"):
        triton_repository(path, tmp_path / "r")
    assert list((tmp_path / "r").iterdir()) == []


def test_a_failed_copy_leaves_no_version(tmp_path, monkeypatch):
    path = write(tmp_path / "m.onnx", NETWORK)

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="no space"):
        triton_repository(path, tmp_path / "r")
    assert list((tmp_path / "r").iterdir()) == []


def test_it_needs_numpy_alone():
    code = "import sys, odediff.onnx.serving; print(*(sys.modules.keys() & {'torch', 'onnx', 'onnxruntime'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
