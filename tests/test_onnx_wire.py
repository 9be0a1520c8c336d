"""The reader of ONNX files that are not trusted, against what the `onnx` package writes and reads."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper
from onnx_files import (
    agrees,
    array,
    everything,
    external,
    message,
    messages,
    minimal,
    network,
    refused,
    save,
    varint,
)

from odediff.onnx import wire


def test_a_model_with_everything_reads_as_onnx_reads_it(tmp_path):
    path = save(tmp_path, everything())
    summary, model = wire.read(path), onnx.load(path)  # which puts the external data in place
    agrees(summary, model)
    assert summary.inputs["u"] == ("bfloat16", ("?", 4, "?", 0, "?")) and summary.inputs["n"] == ("int32", ())
    assert "w" not in summary.inputs and summary.outputs["sequence"] == ("sequence", ())
    assert summary.external == ((tmp_path / "data.bin").resolve(),)
    tensors = [m for m in messages(everything()) if isinstance(m, TensorProto)]
    sizes = {TensorProto.FLOAT: 4, TensorProto.INT32: 4, TensorProto.INT64: 8}
    numbers = sum(sizes[t.data_type] * int(np.prod(t.dims)) for t in tensors if t.data_type in sizes)
    assert summary.bytes == numbers + len("one" + "three")
    assert summary.control_flow and not wire.read(save(tmp_path, network())).control_flow


def test_the_default_domain_has_one_name(tmp_path):
    nodes = [helper.make_node("Scan", ["x"], ["y"], domain="ai.onnx")]
    model = network(nodes=nodes)
    model.opset_import[0].domain = "ai.onnx"
    summary = wire.read(save(tmp_path, model))
    assert summary.operators == {("", "Scan")} and summary.opsets == {"": 20, "custom": 1} and summary.control_flow


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_net_exported_by_torch(tmp_path, caplog, elsewhere):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(8, 3, 3, padding=1))
    path = tmp_path / "net.onnx"
    caplog.set_level(logging.ERROR, "torch.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.onnx's own, about its use of torch
        torch.onnx.export(
            net.eval(),
            (torch.zeros(2, 3, 8, 8),),
            path,
            dynamo=True,
            verbose=False,
            input_names=["sample"],
            output_names=["out_sample"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=elsewhere,
        )
    summary = wire.read(path)
    agrees(summary, onnx.load(path))
    assert summary.inputs == {"sample": ("float32", ("batch", 3, 8, 8))}
    weights = sum(p.numel() * p.element_size() for p in net.parameters())
    assert weights <= summary.bytes < weights + 200  # shapes are tensors too
    assert summary.external == (((tmp_path / "net.onnx.data").resolve(),) if elsewhere else ())


def nested(levels: int) -> bytes:
    """If in If in If ..."""
    content = b""
    for _ in range(levels):
        content = message(1, message(4, b"If") + message(5, message(6, content)))
    return minimal(content)


def test_depth_is_limited(tmp_path):
    deepest = nested(33)
    ModelProto.FromString(deepest)  # protobuf's own limit
    assert wire.read(save(tmp_path, deepest)).operators == {("", "If")}
    for levels in (34, 1000):
        with pytest.raises(DecodeError):
            ModelProto.FromString(nested(levels))
        refused(tmp_path, nested(levels), "100 messages")


PLAIN = network(array()).SerializeToString()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", ["empty"]),
        (b"hello, this is text", ["byte"]),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), ["byte"]),
        (b"\x08\x0a", ["no graph"]),
        (network().graph.SerializeToString(), ["ONNX"]),
        (message(7, b""), ["no opset_import"]),
        (PLAIN[:-1], ["damaged"]),
        (PLAIN + b"\x80", ["without an end"]),
        (PLAIN + b"\x08" + b"\xff" * 10 + b"\x01", ["without an end"]),
        (PLAIN + b"\x3a\xff\xff\xff\xff\x0f", [str(2**32 - 1), "are left"]),
        (PLAIN + b"\x3a" + b"\xff" * 9 + b"\x01", ["are left"]),
        (PLAIN + b"\x09\0\0\0\0", ["8 bytes where 4 are left"]),
        (PLAIN + b"\x00\x00", ["field number 0"]),
        (PLAIN + b"\x3b", ["wire type 3"]),
        (PLAIN + b"\x38\x00", ["wire type 0 for graph"]),
        (PLAIN + message(7, b""), ["second graph"]),
        (PLAIN + message(14, message(1, b"\xff")), ["UTF-8"]),
        (PLAIN + message(14, message(1, b"key")) * 2, ["'key' twice"]),
    ],
)
def test_files_that_are_not_onnx(tmp_path, content, told):
    refused(tmp_path, content, *told)


def test_unknown_fields_are_skipped(tmp_path):
    extra = message(900, b"later") + varint(901 << 3) + b"\x05" + varint(902 << 3 | 1) + bytes(8)
    assert wire.read(save(tmp_path, PLAIN + extra)) == wire.read(save(tmp_path, PLAIN))


def test_the_path_itself(tmp_path):
    path = save(tmp_path, network(array()))
    with pytest.raises(FileNotFoundError, match=r"no file .*absent\.onnx"):
        wire.read(tmp_path / "absent.onnx")
    with pytest.raises(ValueError, match="folder or device"):
        wire.read(tmp_path)
    with pytest.raises(ValueError, match="own format"):
        wire.read(path.rename(tmp_path / "model.ort"))
    renamed = (tmp_path / "model.ort").rename(tmp_path / "network")
    assert wire.read(str(renamed)).bytes == 12


def test_compiled_contexts_are_refused(tmp_path):
    node = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context="../engine")
    refused(tmp_path, network(nodes=[node]), "EPContext")


def test_an_unknown_type_of_an_input_is_refused(tmp_path):
    model = network()
    model.graph.input[0].type.tensor_type.elem_type = 99
    refused(tmp_path, model, "elem_type 99")


def test_only_the_model_is_opened_and_no_library_is_needed(tmp_path):
    path = save(tmp_path, network(external()))
    script = f"""
import sys
from odediff.onnx import wire
heavy = {{"torch", "onnx", "google.protobuf"}} & set(sys.modules)
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
wire.read({str(path)!r})
print(sorted(heavy), opened)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == f"[] {[str(path)]}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


EVERYTHING = everything().SerializeToString()
EDITS = st.lists(st.tuples(st.integers(0, len(EVERYTHING) - 1), st.integers(0, 255)), max_size=4)


@given(EDITS, st.none() | st.integers(0, len(EVERYTHING)))
def test_damaged_files_are_read_as_onnx_reads_them_or_refused(folder, edits, length):
    content = bytearray(EVERYTHING)
    for place, byte in edits:
        content[place] = byte
    path = save(folder, bytes(content[:length]))
    try:
        summary = wire.read(path)
    except ValueError as error:
        assert str(path) in str(error)
        return
    try:
        model = ModelProto.FromString(path.read_bytes())
    except DecodeError:  # damage where nobody looks
        return
    agrees(summary, model)


def test_every_truncation_is_refused(tmp_path):
    for length in range(len(PLAIN)):
        path = save(tmp_path, PLAIN[:length])
        try:
            summary = wire.read(path)
        except ValueError:
            continue
        agrees(summary, ModelProto.FromString(PLAIN[:length]))  # it ended between two fields
        assert summary != wire.read(save(tmp_path, PLAIN))
