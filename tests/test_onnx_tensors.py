"""Tensors whose data is whole are read, wherever it lies; others are refused. Nothing outside the folder is read."""

from __future__ import annotations

import os
import tracemalloc

import numpy as np
import pytest
from onnx import SparseTensorProto, TensorProto, helper, numpy_helper
from onnx_files import (
    HIDING_PLACES,
    array,
    external,
    message,
    minimal,
    network,
    refused,
    save,
    sparse,
)

from odediff.onnx import wire

DTYPES = {number: name for name, number in TensorProto.DataType.items() if name not in ("UNDEFINED", "STRING")}


@pytest.mark.parametrize("number", DTYPES, ids=DTYPES.values())
@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
def test_every_type_takes_as_much_as_its_elements(tmp_path, number, raw):
    dtype = helper.tensor_dtype_to_np_dtype(number)
    values = np.ones((5, 1), dtype=np.float32).astype(dtype)
    whole = numpy_helper.from_array(values, "w")
    size = len(whole.raw_data)
    tensor = whole if raw else helper.make_tensor("w", number, [5, 1], values)
    graph_input = helper.make_tensor_value_info("k", number, [1])
    model = network(tensor)
    model.graph.input.append(graph_input)
    summary = wire.read(save(tmp_path, model))
    assert summary.bytes == size and summary.inputs["k"] == (dtype.name, (1,))
    home = next(f.name for f, _ in tensor.ListFields() if f.name.endswith("_data"))
    held = getattr(tensor, home)
    for wrong in (held[:-1], held + held[:1] if raw else [*held, held[0]]):
        bad = TensorProto(name="w", data_type=number, dims=[5, 1], **{home: wrong})
        refused(tmp_path, network(bad), "'w'", dtype.name, "(5, 1)", f"has {len(wrong)}")


def test_strings_are_counted(tmp_path):
    text = helper.make_tensor("text", TensorProto.STRING, [2], ["a", "longer"])
    assert wire.read(save(tmp_path, network(text))).bytes == 7
    text.dims[:] = [3]
    refused(tmp_path, network(text), "'text'", "string (3,)", "has 2")
    refused(tmp_path, network(TensorProto(name="w", data_type=8, dims=[1], raw_data=b"a")), "'w'", "raw_data")


def test_a_scalar_has_one_element_and_an_empty_tensor_none(tmp_path):
    tensors = numpy_helper.from_array(np.float32(1), "scalar"), TensorProto(name="none", data_type=1, dims=[4, 0])
    assert wire.read(save(tmp_path, network(*tensors))).bytes == 4


@pytest.mark.parametrize("dims", [[3], [2, 2], []], ids=str)
def test_missing_data(tmp_path, dims):
    refused(tmp_path, network(TensorProto(name="w", data_type=1, dims=dims)), "'w'", str(tuple(dims)), "has 0")


@pytest.mark.parametrize(("kind", "numbers"), [(1, b"\x25\0\0\0\0" * 3), (6, b"\x28\x01" + b"\x28\x80\x01" * 2)])
@pytest.mark.parametrize("dims", [b"\x08\x03", b"\x0a\x01\x03"], ids=["plain", "packed"])
def test_numbers_that_are_not_packed_count_the_same(tmp_path, kind, numbers, dims):
    for given, fits in ((dims, True), (b"\x08\x04", False)):
        model = minimal(message(5, given + bytes([0x10, kind]) + numbers))
        if fits:
            assert wire.read(save(tmp_path, model)).bytes == 12
        else:
            refused(tmp_path, model, "(4,)", "has 3")


@pytest.mark.parametrize(
    ("kind", "packed", "told"),
    [
        (1, message(4, bytes(13)), "do not fill 13 bytes"),
        (11, message(10, bytes(20)), "do not fill 20 bytes"),
        (6, message(5, b"\x01\x80\x01\x01\x80"), "without an end"),
        (1, message(9, bytes(12)) + b"\x70\x02", "data_location 2"),
    ],
)
def test_fields_that_no_writer_writes(tmp_path, kind, packed, told):
    refused(tmp_path, minimal(message(5, b"\x08\x03" + bytes([0x10, kind]) + packed)), told)


def test_many_small_numbers_are_counted_across_chunks(tmp_path):
    values = np.arange(1_500_000) % 300  # of one and two bytes: numbers lie across the borders of the chunks
    tensor = helper.make_tensor("w", TensorProto.INT64, values.shape, values)
    path = save(tmp_path, network(tensor))
    tracemalloc.start()
    assert wire.read(path).bytes == values.nbytes
    assert tracemalloc.get_traced_memory()[1] < 3_000_000  # of 2.4 MB, which are searched in chunks
    tracemalloc.stop()
    tensor.int64_data.pop()
    refused(tmp_path, network(tensor), "'w'", "needs 1500000", "has 1499999")


def test_weights_are_not_copied(tmp_path):
    path = save(tmp_path, network(array(2_000_000)))
    tracemalloc.start()
    summary = wire.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert summary.bytes == 8_000_000 and peak < 200_000


@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        (TensorProto(name="w", data_type=1, dims=[-3], raw_data=bytes(12)), ["negative", "-3"]),
        (TensorProto(name="w", data_type=1, dims=[-(2**63)], raw_data=bytes(12)), ["negative", str(-(2**63))]),
        (TensorProto(name="w", data_type=1, dims=[2**40, 2**40], raw_data=bytes(12)), ["int64", str(2**40)]),
        (TensorProto(name="w", data_type=1, dims=[0, 2**40, 2**40]), ["int64"]),
        (TensorProto(name="w", data_type=1, dims=[2**61], raw_data=bytes(12)), ["int64"]),
        (TensorProto(name="w", data_type=1, dims=[1] * 65, raw_data=bytes(4)), ["65 dimensions"]),
        (TensorProto(name="w", data_type=99, dims=[1], raw_data=bytes(4)), ["data_type 99"]),
        (TensorProto(name="w", dims=[1], raw_data=bytes(4)), ["data_type 0"]),
        (TensorProto(name="w", data_type=1, dims=[1], int32_data=[1]), ["float32", "int32_data"]),
        (TensorProto(name="w", data_type=1, dims=[1], float_data=[1], raw_data=bytes(4)), ["float_data", "raw_data"]),
        (TensorProto(name="w", data_type=1, segment=TensorProto.Segment(begin=0, end=1)), ["segment"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_tensors_that_are_not_whole(tmp_path, tensor, told):
    refused(tmp_path, network(tensor), "'w'", *told)


@pytest.mark.parametrize("place", HIDING_PLACES)
def test_external_data_is_found_wherever_it_hides(tmp_path, place):
    make = HIDING_PLACES[place]
    assert wire.read(save(tmp_path, make(external()))).external == ((tmp_path / "data.bin").resolve(),)
    refused(tmp_path, make(external("../data.bin")), "'w'", "'../data.bin'")


@pytest.mark.parametrize(
    "location",
    ["", "/etc/passwd", "..", "../data.bin", "a/../../data.bin", "a/../data.bin", "..\\data.bin", "C:\\data.bin"]
    + ["C:data.bin", "\\\\host\\data.bin", "*/_ORT_MEM_ADDR_/*", "data\0.bin", "d" * 5000],
)
def test_locations_that_are_no_file_of_the_folder(tmp_path, location):
    (tmp_path / "a").mkdir()
    (tmp_path / "*" / "_ORT_MEM_ADDR_").mkdir(parents=True)
    (tmp_path / "*" / "_ORT_MEM_ADDR_" / "*").write_bytes(bytes(12))
    for name in ("..\\data.bin", "C:\\data.bin", "C:data.bin", "\\\\host\\data.bin"):
        (tmp_path / name).write_bytes(bytes(12))  # one name on this system, a path on another
    refused(tmp_path, network(external(location)), "'w'", f"{location!r}"[:100])


@pytest.mark.parametrize(
    ("at", "fits"), [("data.bin", True), ("./data.bin", True), ("a/b/more.bin", True), ("a", False)]
)
def test_locations_within_the_folder(tmp_path, at, fits):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "more.bin").write_bytes(bytes(12))
    model = network(external(at))
    if fits:
        assert wire.read(save(tmp_path, model)).external == ((tmp_path / at).resolve(),)
    else:
        refused(tmp_path, model, "'w'", "'a'", "no regular file")


def test_links_may_not_leave_the_folder(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "inside-not"  # a prefix of the name is no parent
    inside.mkdir()
    outside.mkdir()
    (outside / "secret.bin").write_bytes(bytes(12))
    (inside / "link.bin").symlink_to(outside / "secret.bin")
    (inside / "folder").symlink_to(outside)
    (inside / "loop.bin").symlink_to(inside / "loop.bin")
    (inside / "gone.bin").symlink_to(inside / "nowhere.bin")
    (inside / "fine.bin").symlink_to(inside / "data.bin")
    refused(inside, network(external("link.bin")), "'link.bin'", "out of the model's folder", str(outside))
    refused(inside, network(external("folder/secret.bin")), "'folder/secret.bin'", "out of the model's folder")
    refused(inside, network(external("loop.bin")), "'loop.bin'")
    refused(inside, network(external("gone.bin")), "'gone.bin'", "missing")
    assert wire.read(save(inside, network(external("fine.bin")))).external == ((inside / "data.bin").resolve(),)


def test_a_linked_model_finds_its_data_where_onnxruntime_does(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"  # the layout of a Hugging Face cache
    blobs.mkdir()
    snapshot.mkdir()
    model = save(blobs, network(external("weights.bin")))
    (snapshot / "model.onnx").symlink_to(model)
    with pytest.raises(ValueError, match=r"'weights.bin', which is missing"):
        wire.read(snapshot / "model.onnx")
    (snapshot / "weights.bin").symlink_to(blobs / "data.bin")
    assert wire.read(snapshot / "model.onnx").external == ((blobs / "data.bin").resolve(),)
    (snapshot / "weights.bin").unlink()
    (snapshot / "weights.bin").write_bytes(bytes(12))
    assert wire.read(snapshot / "model.onnx").external == ((snapshot / "weights.bin").resolve(),)
    (tmp_path / "elsewhere.bin").write_bytes(bytes(12))
    (snapshot / "weights.bin").unlink()
    (snapshot / "weights.bin").symlink_to(tmp_path / "elsewhere.bin")
    with pytest.raises(ValueError, match="out of the model's folder"):
        wire.read(snapshot / "model.onnx")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_no_data(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path, network(external("pipe", size=0)), "'pipe'", "no regular file")
    with pytest.raises(ValueError, match="folder or device"):
        wire.read(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("keys", "data", "told"),
    [
        ({}, None, ["'data.bin'", "missing"]),
        ({}, 11, ["0 to 12", "ends at 11"]),
        ({"offset": 4}, 12, ["4 to 16", "ends at 12"]),
        ({"offset": 2**62}, 12, [str(2**62)]),
        ({"length": 11}, 12, ["needs 12", "11 are given"]),
        ({"length": 13}, 13, ["needs 12", "13 are given"]),
        ({"length": None}, 13, ["needs 12", "13 are given"]),
        ({"length": None, "offset": 1}, 12, ["needs 12", "11 are given"]),
        ({"offset": -1}, 12, ["offset = '-1'"]),
        ({"length": "1_2"}, 12, ["length = '1_2'"]),
        ({"offset": "9" * 5000}, 12, ["offset = '999"]),
        ({"location": None}, 12, ["''"]),
    ],
)
def test_external_data_that_does_not_fit(tmp_path, keys, data, told):
    refused(tmp_path, network(external(**keys)), "'w'", *told, data=data)


@pytest.mark.parametrize(
    "keys", [{}, {"offset": 4}, {"offset": None}, {"length": None, "offset": 4}, {"checksum": "x"}]
)
def test_external_data_that_fits(tmp_path, keys):
    assert wire.read(save(tmp_path, network(external(**keys)), 16)).bytes == 12


def test_data_is_here_or_external_but_not_both(tmp_path):
    both = external()
    both.raw_data = bytes(12)
    refused(tmp_path, network(both), "'w'", "raw_data")
    both.data_location = TensorProto.DEFAULT  # which some readers heed, and others not
    refused(tmp_path, network(both), "'w'", "raw_data")
    twice = external()
    twice.external_data.add(key="location", value="../data.bin")
    refused(tmp_path, network(twice), "'w'", "'location' twice")
    text = external()
    text.data_type = TensorProto.STRING
    refused(tmp_path, network(text), "'w'", "text")


@pytest.mark.parametrize("shape", [(3, 2), (4,), (1, 3)])
def test_indices_must_fit_their_values(tmp_path, shape):
    indices = numpy_helper.from_array(np.zeros(shape, dtype=np.int64))
    refused(tmp_path, network(sparse_initializer=[sparse(array(), indices)]), "'w'", str(shape))
    narrow = numpy_helper.from_array(np.zeros(3, dtype=np.int32))
    refused(tmp_path, network(sparse_initializer=[sparse(array(), narrow)]), "'w'", "int32")
    square = numpy_helper.from_array(np.zeros((1, 3), dtype=np.float32), "w")
    refused(
        tmp_path, network(sparse_initializer=[sparse(square, numpy_helper.from_array(np.zeros((1, 3), int)))]), "(1, 3)"
    )
    negative = sparse(array())
    negative.dims[:] = [-9]
    refused(tmp_path, network(sparse_initializer=[negative]), "'w'", "negative dimension -9")
    lacking = SparseTensorProto(values=array(), dims=[9])
    refused(tmp_path, network(sparse_initializer=[lacking]), "lacks")
    pairs = numpy_helper.from_array(np.zeros((3, 1), dtype=np.int64))
    assert wire.read(save(tmp_path, network(sparse_initializer=[sparse(array(), pairs)]))).bytes == 12 + 24
