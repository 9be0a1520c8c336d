"""The check against TensorRT's documentation. TensorRT itself was never run here: no test says that it takes a file."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

import onnx
import torch
from onnx import TensorProto, numpy_helper
from onnx import helper as h

import odediff
from odediff.onnx import tensorrt
from odediff.onnx.tensorrt import Finding, check, parse

F, I32, I64, BOOL, DOUBLE = (TensorProto.DataType.Value(n) for n in ("FLOAT", "INT32", "INT64", "BOOL", "DOUBLE"))
X = ("x", F, ["batch", 4])
Y = ("y", F, ["batch", 4])


def infos(values):
    return [h.make_tensor_value_info(*value) for value in values]


def constants(known):
    return [numpy_helper.from_array(np.asarray(value), name) for name, value in known.items()]


def body(nodes, inputs, outputs, known=()):
    return h.make_graph(nodes, "body", infos(inputs), infos(outputs), constants(dict(known)))


def node(op, inputs, outputs, **attributes):
    """An operator; inputs and outputs in words, "-" for one that is left out."""
    names = [[name.replace("-", "") for name in words.split()] for words in (inputs, outputs)]
    return h.make_node(op, *names, name=f"{op}_{names[1][0]}", **attributes)


@pytest.fixture
def file(tmp_path):
    def write(*nodes, inputs=(X,), outputs=(Y,), opset=20, domains=(), **known):
        graph = h.make_graph(list(nodes), "g", infos(inputs), infos(outputs), constants(known))
        imports = [h.make_opsetid("", opset), *(h.make_opsetid(d, 1) for d in domains)]
        path = tmp_path / "made.onnx"
        onnx.save(h.make_model(graph, opset_imports=imports, ir_version=10), path)
        return path

    return write


def refusals(path):
    report = check(path)
    found = [f"{f.node}: {f.what}" for f in report.findings if f.severity == "refused"]
    assert report.ok == (found == [])
    assert all(f.remedy for f in report.findings if f.severity == "refused")
    return found


def notes(path):
    return [f.what for f in check(path).findings if f.severity == "note"]


# the table


def documented():
    table = json.loads(Path(tensorrt.__file__).with_suffix(".json").read_text())
    return table, [*table["operators"], *table["unsupported"]]


def valid(op, opset):
    try:
        return not onnx.defs.get_schema(op, opset, "").deprecated
    except onnx.defs.SchemaError:
        return False


def test_every_operator_of_the_table_is_one_of_onnx_in_its_range_of_opsets():
    table, names = documented()
    low, high = table["opsets"]
    assert {op for op in names if not any(valid(op, opset) for opset in range(low, high + 1))} == set()
    assert len(set(names)) == len(names) > 190


def test_the_table_speaks_of_every_operator_of_its_range_but_one_that_came_later():
    table, names = documented()
    known = {s.name for s in onnx.defs.get_all_schemas_with_history() if not s.domain}
    current = {op for op in known if valid(op, table["opsets"][1])}
    assert current - set(names) == {"Swish"}  # from TensorRT 11.0


def test_the_table_is_well_formed():
    table, _ = documented()
    names = set(table["types"].values())
    assert set(table["types"]) <= set(TensorProto.DataType.keys())
    assert table["version"] == "10.15"
    assert "10.15" in table["source"][0]
    for op, row in table["operators"].items():
        assert row["types"], op
        assert set(row["types"]) <= names, op
        for opset in row.get("since", {}):
            assert onnx.defs.get_schema(op, table["opsets"][1], "").since_version >= int(opset)
            assert onnx.defs.get_schema(op, int(opset), "").since_version == int(opset), op
        for rule in row.get("restrictions", ()):
            assert rule["text"]
            if "attribute" in rule:
                schemas = [s for s in onnx.defs.get_all_schemas_with_history() if s.name == op and not s.domain]
                assert any(rule["attribute"] in s.attributes for s in schemas), op


# operators, types, opsets


def test_a_supported_graph_is_listed_whole(file):
    report = check(file(node("Add", "x c", "z"), node("Relu", "z", "y"), c=np.ones(4, np.float32)))
    assert report.ok
    assert report.findings == ()
    assert report.operators == {"Add": (1, ("FP32",)), "Relu": (1, ("FP32",))}
    assert report.types == {"FP32": 4}
    assert report.shapes == ("input x: FP32 (batch, 4)", "output y: FP32 (batch, 4)")
    assert (report.opset, report.table) == (20, "10.15")
    assert "operators.md" in report.source
    assert report.parser.startswith("not run")


def test_operators_that_the_table_has_not_are_refused(file):
    assert refusals(file(node("Det", "x", "y"), outputs=[("y", F, [])], inputs=[("x", F, [2, 2])])) == [
        "Det_y: operator Det: documented as unsupported"
    ]
    assert refusals(file(node("Swish", "x", "y"), opset=24)) == ["Swish_y: operator Swish: not in the table"]
    foreign = node("FusedConv", "x", "z", domain="com.microsoft")
    assert refusals(file(foreign, node("Relu", "x", "y"), domains=["com.microsoft"])) == [
        "FusedConv_z: operator FusedConv of domain com.microsoft"
    ]
    assert refusals(file(node("Relu", "x", "y", domain="ai.onnx"))) == []


def test_operators_inside_bodies_are_checked(file):
    then, other = (body([node(op, "x", op)], [], [(op, F, ["batch", 4])]) for op in ("BitwiseNot", "Relu"))
    path = file(node("If", "c", "y", then_branch=then, else_branch=other), c=np.array(True))
    assert "BitwiseNot_BitwiseNot: operator BitwiseNot: documented as unsupported" in refusals(path)


def test_functions_are_read_as_the_operators_they_hold(tmp_path):
    made = h.make_function("own", "Twice", ["a"], ["b"], [h.make_node("Det", ["a"], ["b"])], [h.make_opsetid("", 20)])
    call = h.make_node("Twice", ["x"], ["y"], domain="own")
    graph = h.make_graph([call], "g", infos([("x", F, [2, 2])]), infos([("y", F, [])]))
    imports = [h.make_opsetid("", 20), h.make_opsetid("own", 1)]
    onnx.save(h.make_model(graph, opset_imports=imports, functions=[made]), tmp_path / "f.onnx")
    assert [w.partition(": ")[2] for w in refusals(tmp_path / "f.onnx")] == ["operator Det: documented as unsupported"]


@pytest.mark.parametrize(("opset", "taken"), [(8, False), (9, True), (24, True), (25, False)])
def test_opsets_outside_the_documented_range_are_refused(file, opset, taken):
    found = refusals(file(node("Relu", "x", "y"), opset=opset))
    assert found == ([] if taken else [f": opset {opset}, TensorRT takes 9 to 24"])


def test_operand_types_are_those_of_the_table(file):
    ints = {"inputs": [("x", I32, ["batch", 4])], "outputs": [("y", I32, ["batch", 4])]}
    assert refusals(file(node("Relu", "x", "y"), **ints)) == []
    unsigned = {"inputs": [("x", F, ["batch", 4])], "outputs": [("y", TensorProto.UINT8, ["batch", 4])]}
    assert refusals(file(node("Cast", "x", "y", to=TensorProto.UINT8), **unsigned)) == []
    half = {"inputs": [("x", TensorProto.INT8, ["batch", 4])], "outputs": [("y", TensorProto.INT8, ["batch", 4])]}
    assert refusals(file(node("Identity", "x", "y"), **half)) == ["Identity_y: Identity of INT8"]
    # the condition is no operand whose type matters, what is chosen is
    choice = {"inputs": [X, ("c", BOOL, ["batch", 4])], "z": np.zeros(4, np.float32)}
    assert refusals(file(node("Where", "c x z", "y"), **choice)) == []
    made = {"inputs": [X], "outputs": [("y", TensorProto.INT8, ["batch", 4])]}
    assert refusals(file(node("Cast", "x", "y", to=TensorProto.INT8), **made)) == ["Cast_y: Cast of INT8"]


def test_double_and_other_types_are_refused(file):
    wide = [node("Cast", "x", "d", to=DOUBLE), node("Cast", "d", "y", to=F)]
    assert refusals(file(*wide)) == ["Cast_d: double tensor, which TensorRT cuts to float32"]
    short = [node("Cast", "x", "d", to=TensorProto.INT16), node("Cast", "d", "y", to=F)]
    assert "Cast_d: INT16 tensor" in refusals(file(*short))
    byte = [node("Cast", "x", "d", to=TensorProto.UINT8), node("Cast", "d", "y", to=F)]
    assert refusals(file(*byte)) == ["Cast_d: UINT8 tensor inside the network"]
    assert refusals(file(node("Add", "x c", "y"), c=np.ones(4))) != []
    sequence = [node("SequenceConstruct", "x", "s"), node("ConcatFromSequence", "s", "y", axis=0)]
    assert "SequenceConstruct_s: onnx cannot tell the type of what it gives" in refusals(file(*sequence))
    odd = [node("MatMul", "x c", "z"), node("Relu", "z", "r"), node("Relu", "r", "y")]
    assert refusals(file(*odd, c=np.ones((3, 4), np.float32))) == [
        "MatMul_z: onnx cannot tell the type of what it gives"
    ]


def test_operators_that_came_late_are_noted_with_their_version(file):
    image, scale = ("x", F, ["batch", 4, 8, 8]), np.ones(4, np.float32)
    norm = node("GroupNormalization", "x s s", "y", num_groups=2)
    given = {"inputs": [image], "outputs": [("y", F, ["batch", 4, 8, 8])], "s": scale}
    for opset in (21, 23):
        assert notes(file(norm, opset=opset, **given)) == ["GroupNormalization needs TensorRT 10.9 or later"]
        assert check(file(norm, opset=opset, **given)).types == {"FP32": 3}
    first = node("GroupNormalization", "x s s", "z", num_groups=2)
    assert check(file(first, node("Relu", "z", "y"), opset=23, **given)).types == {"FP32": 4}
    groups = {**given, "s": np.ones(2, np.float32)}
    assert check(file(norm, opset=18, **groups)).findings == ()  # the operator of opset 18 came earlier
    heads = {"inputs": [image], "outputs": [("y", F, ["batch", 4, 8, 8])]}
    assert notes(file(node("Attention", "x x x", "y"), opset=23, **heads)) == [
        "Attention needs TensorRT 10.14 or later"
    ]


# restrictions of the table


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "broken"),
    [
        ("Attention", "x x x", {}, None),
        ("Attention", "x x x", {"softcap": 0.0, "qk_matmul_output_mode": 0}, None),
        ("Attention", "x x x", {"softcap": 5.0}, "softcap is unsupported"),
        ("Attention", "x x x - x x", {}, "past_key, past_value and nonpad_kv_seqlen inputs are unsupported"),
        ("Resize", "x - scales", {"mode": "nearest"}, None),
        ("Resize", "x - scales", {"mode": "cubic"}, "mode must be nearest, linear"),
        ("Resize", "x - scales", {"antialias": 1, "mode": "linear"}, "antialiasing is not supported"),
        ("Resize", "x - scales", {"axes": [0, 1, 2, 3]}, None),
        ("Resize", "x - scales", {"axes": [1, 0, 2, 3]}, "axes must count every axis from 0 where scales is an input"),
        ("AveragePool", "x", {"kernel_shape": [1, 1], "dilations": [1, 1]}, None),
        ("AveragePool", "x", {"kernel_shape": [1, 1], "dilations": [2, 2]}, "dilations must be empty or all ones"),
        ("GridSample", "x grid", {}, None),
        ("ReduceMax", "x axes", {}, None),
        ("ReduceMax", "x computed", {}, "axes must be an initializer"),
        ("LayerNormalization", "x gain", {}, None),
        ("CumSum", "x axis", {}, None),
        ("CumSum", "x late", {}, "axis must be a build-time constant"),
    ],
)
def test_restrictions_of_the_table_are_checked(file, op, inputs, attributes, broken):
    path = file(
        node("Add", "axes axes", "computed"),
        node(op, inputs, "y", **attributes),
        inputs=[("x", F, ["batch", 4, 8, 8]), ("late", I32, []), ("grid", F, ["batch", 8, 8, 2])],
        outputs=[("y", F, None)],
        opset=23,
        scales=np.ones(4, np.float32),
        axes=np.array([1]),
        axis=np.array(1),
        gain=np.ones(8, np.float32),
    )
    found = [f.partition(f"{op}: ")[2] for f in refusals(path) if f"{op}: " in f]
    assert found == ([] if broken is None else [broken])


def test_ranks_and_extra_outputs_are_checked(file):
    row = {"inputs": [("x", F, ["batch", 4, 8])], "outputs": [("y", F, None)]}
    pool = {"kernel_shape": [2]}
    assert refusals(file(node("MaxPool", "x", "y", **pool), **row))[0] == "MaxPool_y: MaxPool: 2D or 3D pooling only"
    image = {"inputs": [("x", F, ["batch", 4, 8, 8])], "outputs": [("y", F, ["batch", 4, 7, 7])]}
    assert refusals(file(node("MaxPool", "x", "y", kernel_shape=[2, 2]), **image)) == []
    both = node("MaxPool", "x", "y i", kernel_shape=[2, 2])
    assert refusals(file(both, **image)) == ["MaxPool_y: MaxPool: the output Indices is unsupported"]


def test_the_k_of_topk_is_limited_and_must_be_known(file):
    flat = {"inputs": [("x", F, ["batch", 8000])]}
    for k, taken in ((3839, True), (3840, False)):
        given = {**flat, "outputs": [("y", F, ["batch", k])], "k": np.array([k])}
        found = refusals(file(node("TopK", "x k", "y i"), **given))
        assert found == ([] if taken else ["TopK_y: TopK: K must be less than 3840"])
    unsorted = node("TopK", "x k", "y i", sorted=0)
    assert refusals(file(unsorted, **flat, outputs=[("y", F, ["batch", 2])], k=np.array([2]))) == [
        "TopK_y: TopK: sorted must be 1"
    ]


def test_what_the_check_cannot_know_is_noted(file):
    random = node("RandomNormalLike", "x", "y", seed=1.0)
    assert notes(file(random)) == ["RandomNormalLike: TensorRT ignores seed (not checked)"]


# int64


LABEL = ("label", I32, ["batch"])


@pytest.mark.parametrize(
    ("nodes", "refused"),
    [
        pytest.param([("Shape", "x", "s"), ("Reshape", "x s", "y")], [], id="a shape"),
        pytest.param(
            [("Shape", "x", "s"), ("Add", "s s", "t"), ("Concat", "t", "u"), ("ConstantOfShape", "u", "z")],
            [],
            id="a computed shape",
        ),
        pytest.param(
            [("Shape", "x", "s"), ("Cast", "s", "f")],
            ["Cast_f: int64 from shapes or counters used as data"],
            id="a shape as data",
        ),
        pytest.param(
            [("Shape", "x", "s"), ("Add", "s s", "t"), ("Cast", "t", "f")],
            ["Cast_f: int64 from shapes or counters used as data"],
            id="a computed shape as data",
        ),
        pytest.param(
            [("Shape", "x", "s"), ("Gather", "s one", "c"), ("Cast", "c", "f"), ("Mul", "x f", "z")],
            [],
            id="a known size as data",
        ),
        pytest.param(
            [("Shape", "x", "s"), ("Slice", "s one two", "c"), ("Cast", "c", "f"), ("Mul", "x f", "z")],
            [],
            id="a known size, sliced, as data",
        ),
        pytest.param(
            [("Shape", "x", "s"), ("Gather", "s zero", "c"), ("Cast", "c", "f"), ("Mul", "x f", "z")],
            ["Cast_f: int64 from shapes or counters used as data"],
            id="the batch size as data",
        ),
        pytest.param([("Cast", "one", "f"), ("Mul", "x f", "z")], [], id="a constant as data"),
        pytest.param([("Gather", "table label", "z")], [], id="int32 indices"),
        pytest.param([("Cast", "x", "i"), ("Gather", "table i", "z")], ["Cast_i: int64 data"], id="from floats"),
        pytest.param([("ArgMax", "x", "i"), ("Gather", "table i", "z")], ["ArgMax_i: int64 data"], id="found in data"),
        pytest.param([("ArgMax", "x", "i")], [], id="found in data but not read"),
        pytest.param(
            [("Cast", "label", "i"), ("Slice", "x i i", "z")],
            ["Slice_z: Slice: the shape of its output depends on data"],
            id="labels as bounds",
        ),
        pytest.param(
            [("ArgMax", "x", "i"), ("Add", "i one", "j"), ("Gather", "table j", "z")],
            ["ArgMax_i: int64 data"],
            id="one refusal for one path",
        ),
        pytest.param(
            [("Cast", "label", "i"), ("Gather", "table i", "e"), ("Cast", "e", "j"), ("Gather", "table j", "z")],
            ["Cast_j: int64 data"],
            id="from an embedding",
        ),
        pytest.param(
            [("Cast", "label", "i"), ("Cast", "i", "f")],
            ["Cast_f: int64 from shapes or counters used as data"],
            id="labels as data",
        ),
        pytest.param(
            [("Cast", "label", "i"), ("Reshape", "x i", "z")],
            ["Reshape_z: Reshape: the shape of its output depends on data"],
            id="labels as a shape",
        ),
    ],
)
def test_int64_is_for_shapes_and_indices(file, nodes, refused):
    to = {"f": F, "i": I64, "j": I64}
    made = [
        node(op, a, b, **({"to": to[b]} if op == "Cast" else {"axis": 0} if op == "Concat" else {}))
        for op, a, b in nodes
    ]
    if all("y" not in n.output for n in made):
        made.append(node("Relu", "x", "y"))
    given = {"zero": np.array([0]), "one": np.array([1]), "two": np.array([2]), "table": np.ones((9, 4), np.float32)}
    assert refusals(file(*made, inputs=[X, LABEL], **given)) == refused


@pytest.mark.parametrize(("start", "taken"), [(1, True), (0, False)])
def test_a_part_of_a_shape_is_known_by_itself(file, start, taken):
    nodes = [node("Shape", "x", "s", start=start), node("Cast", "s", "f", to=F), node("Relu", "x", "y")]
    assert (refusals(file(*nodes)) == []) == taken


def test_labels_cast_to_int64_are_noted(file):
    nodes = [node("Cast", "label", "i", to=I64), node("Gather", "table i", "y")]
    path = file(*nodes, inputs=[LABEL], table=np.ones((9, 4), np.float32))
    assert refusals(path) == []
    assert notes(path) == ["int64 indices, cast from narrower integers"]


def test_data_cast_to_int64_twice_is_no_index(file):
    nodes = [node("Cast", "x", "i", to=I64), node("Cast", "i", "j", to=I64), node("Gather", "table j", "z")]
    path = file(*nodes, node("Relu", "x", "y"), table=np.ones((9, 4), np.float32))
    assert refusals(path) == ["Cast_i: int64 data"]
    assert notes(path) == []


@pytest.mark.parametrize(("op", "made"), [("Constant", []), ("Cast", ["If_s: int64 data"])])
def test_a_branch_is_data_if_what_it_gives_is(file, op, made):
    def branch(name):
        first = {"Constant": node("Constant", "", name, value_ints=[2, 2]), "Cast": node("Cast", "flat", name, to=I64)}
        return body([first[op]], [], [(name, I64, [2])])

    choice = node("If", "on", "s", then_branch=branch("a"), else_branch=branch("b"))
    inputs = [("x", F, [4]), ("flat", F, [2])]
    path = file(choice, node("Reshape", "x s", "y"), inputs=inputs, outputs=[("y", F, [2, 2])], on=np.array(True))
    assert [f for f in refusals(path) if f.startswith("If")] == made


def test_int64_inputs_and_outputs_are_refused(file):
    wide = ("label", I64, ["batch"])
    table = np.ones((9, 4), np.float32)
    assert refusals(file(node("Gather", "table label", "y"), inputs=[wide], table=table)) == ["label: int64 input"]
    found = refusals(file(node("Shape", "x", "y"), outputs=[("y", I64, [2])]))
    assert found == ["y: int64 output"]


# dynamic shapes


def test_only_the_batch_axis_may_be_dynamic(file):
    wild = {"inputs": [("x", F, ["batch", "width"])], "outputs": [("y", F, ["batch", "width"])]}
    assert refusals(file(node("Relu", "x", "y"), **wild)) == [
        "x: axis 1 of this input is dynamic (width)",
        "y: axis 1 of this output is dynamic (width)",
    ]
    unnamed = {"inputs": [("x", F, [None, None])], "outputs": [("y", F, [None, 4])]}
    assert refusals(file(node("Relu", "x", "y"), **unnamed)) == ["x: axis 1 of this input is dynamic (unnamed)"]
    assert refusals(file(node("Relu", "x", "y"), inputs=[("x", F, [2, 4])], outputs=[("y", F, [2, 4])])) == []
    assert refusals(file(node("Relu", "x", "y"), inputs=[("x", F, None)])) == ["x: input of unknown rank"]


def test_the_batch_axis_is_known_by_its_name_elsewhere(file):
    rows = ("rows", F, [3, "batch", 4])
    nodes = [node("ReduceSum", "rows axes", "r", keepdims=0), node("Add", "x r", "y")]
    assert refusals(file(*nodes, inputs=[X, rows], axes=np.array([0]))) == []
    other = ("rows", F, [3, "n", 4])
    assert refusals(file(*nodes, inputs=[X, other], axes=np.array([0]))) == [
        "rows: axis 1 of this input is dynamic (n)"
    ]
    second = ("rows", F, ["n", 4])
    assert notes(file(node("Add", "x rows", "y"), inputs=[X, second])) == [
        "axis 0 of the inputs has several names: batch, n"
    ]


def test_shapes_that_depend_on_data_are_refused(file):
    found = refusals(file(node("NonZero", "x", "i"), node("Relu", "x", "y")))
    assert found == ["NonZero_i: NonZero: the shape of its output depends on data"]
    nodes = [node("ReduceMax", "n", "m", keepdims=0), node("Range", "start m step", "r"), node("Relu", "x", "y")]
    given = {"start": np.array(0, np.int32), "step": np.array(1, np.int32)}
    assert refusals(file(*nodes, inputs=[X, ("n", I32, ["batch"])], **given)) == [
        "Range_r: Range: the shape of its output depends on data"
    ]
    constant = [node("Range", "start stop step", "r"), node("Relu", "x", "y")]
    assert refusals(file(*constant, stop=np.array(4, np.int32), **given)) == []


def test_sizes_that_onnx_cannot_tell_are_noted(file):
    swapped = [node("Shape", "x", "s"), node("Gather", "s order", "t"), node("Reshape", "x t", "z")]
    path = file(*swapped, node("Relu", "x", "y"), order=np.array([1, 0]))
    assert notes(path) == []  # the batch size is known by name, here too
    row = [node("Shape", "x", "s"), node("ReduceProd", "s", "p"), node("Reshape", "x p", "z")]
    assert notes(file(*row, node("Relu", "x", "y"))) == []  # axis 0 may be anything
    flat = [node("Shape", "x", "s"), node("ReduceProd", "s", "p"), node("Concat", "one p", "t", axis=0)]
    path = file(*flat, node("Reshape", "x t", "z"), node("Relu", "x", "y"), one=np.array([1]))
    assert notes(path) == ["onnx's shape inference does not tell every size beyond axis 0 of 1 tensor"]


# control flow


def loop(file, *inside, before=(), count="n", start="t", keep="go", carried=("batch", 4), **known):
    """x is carried through `inside`, which makes `x2` from `x1`, `i` and `w`."""
    nodes = [node("Identity", "go", "same"), *inside]
    ends = [("same" if keep == "go" else keep, BOOL, []), ("x2", F, list(carried))]
    inner = body(nodes, [("i", I64, []), ("go", BOOL, []), ("x1", F, ["batch", 4])], ends)
    given = {"n": np.array(3), "t": np.array(True), "w": np.ones((3, 4), np.float32), **known}
    inputs = [X, ("late", BOOL, []), ("image", F, ["batch", 4, 8, 8]), ("kernel", F, [4, 4, 1, 1])]
    return file(*before, node("Loop", f"{count} {start} x", "y", body=inner), inputs=inputs, **given)


PLAIN = (
    [node("Identity", "go", "same"), node("Gather", "w i", "row"), node("Mul", "x1 row", "x2")],
    [("i", I64, []), ("go", BOOL, []), ("x1", F, ["batch", 4])],
    [("same", BOOL, []), ("x2", F, ["batch", 4])],
)
STEP = [node("Gather", "w i", "row"), node("Mul", "x1 row", "x2")]


def test_a_loop_with_a_constant_count_is_taken(file):
    path = loop(file, *STEP)
    assert check(path).findings == ()
    assert check(path).shapes[-1] == "Loop Loop_y: 3 iterations"
    assert check(path).operators["Gather"] == (1, ("FP32", "INT64"))
    assert refusals(loop(file, *STEP, start="-")) == []
    turned = [node("Relu", "x", "z"), node("Loop", "n t z", "u", body=body(*PLAIN)), node("Relu", "u", "y")]
    given = {"n": np.array(3), "t": np.array(True), "w": np.ones((3, 4), np.float32)}
    assert check(file(*turned, **given)).findings == ()
    assert refusals(loop(file, *STEP, before=[node("Identity", "t", "t2")], start="t2")) == []
    yes = node("Constant", "", "on", value=numpy_helper.from_array(np.array(True)))
    assert refusals(loop(file, *STEP, yes, keep="on")) == []


def test_a_loop_without_a_constant_count_is_refused(file):
    late = [node("Cast", "x", "k", to=I64), node("ReduceMax", "k", "m", keepdims=0)]
    message = "Loop_y: Loop without a constant trip count"
    assert message in refusals(loop(file, *STEP, before=late, count="m"))
    assert message in refusals(loop(file, *STEP, count="-"))
    size = [node("Shape", "x", "s"), node("Gather", "s zero", "m")]
    assert message in refusals(loop(file, *STEP, before=size, count="m", zero=np.array(0)))
    known = [node("Shape", "w", "s"), node("Gather", "s zero", "m")]
    assert refusals(loop(file, *STEP, before=known, count="m", zero=np.array(0))) == []


def test_a_loop_with_a_condition_is_refused(file):
    message = "Loop_y: Loop with a condition that is not constant true"
    assert refusals(loop(file, *STEP, start="late")) == [message]
    assert refusals(loop(file, *STEP, start="f", f=np.array(False))) == [message]
    assert refusals(loop(file, *STEP, node("Less", "i n", "on"), keep="on")) == [message]


def test_carried_tensors_keep_their_shape(file):
    grown = [node("Concat", "x1 x1", "x2", axis=1)]
    assert "Loop_y: Loop: the length of scan outputs cannot be dynamic; carried tensors keep their shape" in refusals(
        loop(file, *grown, carried=("batch", 8))
    )


def test_a_loops_counter_is_an_index_and_no_number(file):
    number = [node("Cast", "i", "f", to=F), node("Mul", "x1 f", "x2")]
    assert refusals(loop(file, *number)) == ["Cast_f: int64 from shapes or counters used as data"]
    sized = [node("Unsqueeze", "i zero", "s"), node("Expand", "one s", "e"), node("Identity", "x1", "x2")]
    given = {"zero": np.array([0]), "one": np.ones(1, np.float32)}
    assert refusals(loop(file, *sized, **given)) == [
        "Expand_e: Expand: the shape of its output depends on a loop's counter"
    ]
    window = [
        node("Unsqueeze", "i zero", "s"),
        node("Add", "s unit", "e"),
        node("Slice", "w s e zero", "row"),
        node("Mul", "x1 row", "x2"),
    ]
    assert refusals(loop(file, *window, zero=np.array([0]), unit=np.array([1]))) == []


def test_int64_carried_through_a_loop_is_refused(file):
    inner = body(
        [node("Identity", "go", "same"), node("Add", "k i", "k2"), node("Gather", "w k", "y1")],
        [("i", I64, []), ("go", BOOL, []), ("k", I64, [])],
        [("same", BOOL, []), ("k2", I64, []), ("y1", F, [4])],
    )
    path = file(
        node("Loop", "n - zero", "k3 y", body=inner),
        inputs=[],
        outputs=[("y", F, [3, 4])],
        n=np.array(3),
        zero=np.array(0),
        w=np.ones((3, 4), np.float32),
    )
    assert refusals(path) == ["Loop_k3: int64 data"]


def test_every_carried_tensor_has_a_type_of_the_table(file):
    inner = body(
        [node("Identity", "go", "same"), node("Identity", "x1", "x2"), node("Identity", "q1", "q2")],
        [("i", I64, []), ("go", BOOL, []), ("x1", F, ["batch", 4]), ("q1", TensorProto.INT8, [4])],
        [("same", BOOL, []), ("x2", F, ["batch", 4]), ("q2", TensorProto.INT8, [4])],
    )
    path = file(node("Loop", "n - x q", "y r", body=inner), n=np.array(3), q=np.zeros(4, np.int8))
    assert "Loop_y: Loop of INT8" in refusals(path)


def test_weights_of_convolutions_are_constants(file):
    inside = [node("Conv", "image kernel", "c"), node("Identity", "x1", "x2")]
    assert refusals(loop(file, *inside)) == ["Conv_c: Conv with weights that are no constants"]
    given = {"inputs": [("x", F, ["batch", 4, 8, 8])], "outputs": [("y", F, ["batch", 4, 8, 8])]}
    weight = np.ones((4, 4, 1, 1), np.float32)
    assert check(file(node("Conv", "x w", "y"), **given, w=weight)).findings == ()
    turned = [node("Transpose", "w", "v", perm=[1, 0, 2, 3]), node("Conv", "x v", "y")]
    assert refusals(file(*turned, **given, w=weight)) == []
    assert notes(file(*turned, **given, w=weight)) == ["Conv with computed constant weights"]
    whole = [node("DequantizeLinear", "q scale zero", "v"), node("Conv", "x v", "y")]
    quantised = {"q": weight.astype(np.int8), "scale": np.float32(0.1), "zero": np.int8(0)}
    assert check(file(*whole, **given, **quantised)).findings == ()


def test_random_weights_are_no_constants(file):
    given = {"inputs": [("x", F, ["batch", 4, 8, 8])], "outputs": [("y", F, ["batch", 4, 8, 8])]}
    nodes = [node("RandomNormalLike", "w", "v"), node("Conv", "x v", "y")]
    path = file(*nodes, **given, w=np.ones((4, 4, 1, 1), np.float32))
    assert refusals(path) == ["Conv_y: Conv with weights that are no constants"]


def branches(file, second, shape, condition="c", **known):
    then = body([node("Relu", "x", "a")], [], [("a", F, ["batch", 4])])
    other = body(second, [], [("b", F, shape)])
    made = node("If", condition, "y", then_branch=then, else_branch=other)
    return file(made, inputs=[X, ("c", BOOL, [])], outputs=[("y", F, None)], **known)


def test_branches_have_one_shape(file):
    same = [node("Abs", "x", "b")]
    twice = [node("Concat", "x x", "b", axis=1)]
    assert [f for f in refusals(branches(file, same, ["batch", 4])) if f.startswith("If")] == []
    assert "If_y: If: shapes depend on the condition" in refusals(branches(file, twice, ["batch", 8]))
    constant = branches(file, twice, ["batch", 8], "on", on=np.array(True))
    assert [f for f in refusals(constant) if f.startswith("If")] == []
    flat = [node("ReduceMax", "x", "b", keepdims=0)]
    message = "If_y: If: the outputs of both branches must have the same rank and different names"
    assert refusals(branches(file, flat, []))[1:] == [message, "If_y: If: shapes depend on the condition"]


@pytest.mark.parametrize(("length", "taken"), [(3, True), ("batch", False)])
def test_scan_needs_a_known_length(file, length, taken):
    step = body(
        [node("Add", "h e", "h2"), node("Identity", "h2", "o")],
        [("h", F, [4]), ("e", F, [4])],
        [("h2", F, [4]), ("o", F, [4])],
    )
    made = node("Scan", "h0 x", "last y", body=step, num_scan_inputs=1)
    path = file(made, inputs=[("x", F, [length, 4])], outputs=[("y", F, [length, 4])], h0=np.zeros(4, np.float32))
    assert refusals(path) == ([] if taken else ["Scan_last: Scan over a length that is not known"])


# quantisation


@pytest.mark.parametrize(
    ("zero", "refused"),
    [
        (np.int8(0), []),
        (np.int8(3), ["QuantizeLinear: y_zero_point must be zero", "DequantizeLinear: x_zero_point must be zero"]),
        (np.uint8(0), ["UINT8 tensor inside the network", "QuantizeLinear to UINT8", "DequantizeLinear of UINT8"]),
    ],
)
def test_quantised_types_and_zero_points(file, zero, refused):
    nodes = [node("QuantizeLinear", "x scale zero", "q"), node("DequantizeLinear", "q scale zero", "y")]
    found = [f.partition(": ")[2] for f in refusals(file(*nodes, scale=np.float32(0.1), zero=zero))]
    assert list(dict.fromkeys(found)) == refused


def test_without_a_zero_point_the_type_is_uint8(file):
    nodes = [node("QuantizeLinear", "x scale", "q"), node("DequantizeLinear", "q scale", "y")]
    assert "QuantizeLinear_q: QuantizeLinear to UINT8" in refusals(file(*nodes, scale=np.float32(0.1)))


def test_a_computed_zero_point_is_refused(file):
    nodes = [node("QuantizeLinear", "x scale z", "q"), node("DequantizeLinear", "q scale z", "y")]
    found = refusals(file(*nodes, inputs=[X, ("z", TensorProto.INT8, [])], scale=np.float32(0.1)))
    assert "QuantizeLinear_q: QuantizeLinear: y_zero_point must be zero" in found


def test_a_quantised_bias_of_int32_is_refused(file):
    nodes = [node("DequantizeLinear", "q scale", "b"), node("Add", "x b", "y")]
    found = refusals(file(*nodes, q=np.zeros(4, np.int32), scale=np.float32(0.1)))
    assert found == ["DequantizeLinear_b: DequantizeLinear of INT32"]


# files and reports


def test_what_is_no_onnx_file_is_said_so(tmp_path, file):
    with pytest.raises(FileNotFoundError):
        check(tmp_path / "none.onnx")
    for content, message in ((b"hello, no model", "is no ONNX file"), (b"", "holds no graph")):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            check(tmp_path / "bad.onnx")
    with pytest.raises(ValueError, match='reads "nothing", which nothing before it gives'):
        check(file(node("Relu", "nothing", "y")))
    with pytest.raises(ValueError, match='Loop "Loop_y" lacks body'):
        check(file(node("Loop", "n - x", "y"), n=np.array(3)))
    with pytest.raises(ValueError, match='Loop "Loop_y" lacks outputs'):
        check(file(node("Loop", "n - x", "y", body=body([], [], [])), n=np.array(3)))
    with pytest.raises(ValueError, match='no node gives the output "y"'):
        check(file(node("Relu", "x", "z")))


def test_weights_outside_the_file_are_not_read(tmp_path):
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    graph = h.make_graph([node("Add", "x w", "y")], "g", infos([X]), infos([Y]), [weight])
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 20)])
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "w.bin").unlink()
    assert check(tmp_path / "m.onnx").ok


def test_numbers_outside_the_file_are_noted(tmp_path):
    known = [numpy_helper.from_array(np.array([3]), "k")]
    graph = h.make_graph([node("TopK", "x k", "y i")], "g", infos([X]), infos([("y", F, ["batch", 3])]), known)
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 20)])
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    assert "TopK: K must be less than 3840 (not checked)" in notes(tmp_path / "m.onnx")


def test_initializers_listed_among_the_inputs_are_no_inputs(file):
    path = file(node("Add", "x c", "y"), inputs=[X, ("c", F, [4])], c=np.ones(4, np.float32))
    assert check(path).shapes == ("input x: FP32 (batch, 4)", "output y: FP32 (batch, 4)")


def test_sparse_initializers_are_refused(tmp_path):
    values = numpy_helper.from_array(np.ones(1, np.float32), "w")
    sparse = h.make_sparse_tensor(values, numpy_helper.from_array(np.array([2])), [4])
    nodes = [node("Add", "x w", "y")]
    graph = h.make_graph(nodes, "g", infos([X]), infos([Y]), sparse_initializer=[sparse])
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 20)]), tmp_path / "m.onnx")
    assert refusals(tmp_path / "m.onnx") == ["w: sparse initializer"]


def test_the_report_is_a_table_for_readers(file):
    wide = [node("Cast", "x", "d", to=DOUBLE), node("Cast", "d", "y", to=F)]
    lines = str(check(file(*wide))).splitlines()
    assert lines[0] == "TensorRT 10.15, as documented: 1 refused"
    assert lines[1].startswith("TensorRT's parser: not run")
    assert "Cast                           2  DOUBLE, FP32" in lines
    assert "refused:" in lines
    assert "notes:" not in lines
    assert "  double tensor, which TensorRT cuts to float32: Cast_d; cast to float32 before the export" in lines
    assert max(map(len, lines)) <= 120
    good = str(check(file(node("Relu", "x", "y"))))
    assert good.startswith("TensorRT 10.15, as documented: nothing refused")
    many = [node("Cast", f"x{i}" if i else "x", f"x{i + 1}", to=DOUBLE) for i in range(6)]
    assert "Cast_x1, Cast_x2, Cast_x3, Cast_x4 and 2 more" in str(check(file(*many, node("Cast", "x6", "y", to=F))))


def test_reports_cannot_be_changed(file):
    report = check(file(node("Relu", "x", "y")))
    with pytest.raises(AttributeError):
        report.findings = ()
    with pytest.raises(TypeError):
        report.operators["Relu"] = (2, ())


# the real parser, played by a stand-in


def stand_in(errors=(), taken=None, broken=False):
    """A module with as much of TensorRT's Python interface as `parse` uses, and a record of what was asked of it."""
    asked = {}

    class Parser:
        num_errors = len(errors)

        def __init__(self, network, logger):
            asked["network"] = network

        def parse_from_file(self, path):
            asked["path"] = path
            return not errors if taken is None else taken

        def get_error(self, index):
            name, text = errors[index]
            return SimpleNamespace(desc=lambda: text, node_name=lambda: name)

    class Builder:
        def __init__(self, logger):
            if broken:
                raise TypeError("factory function returned nullptr")

        def create_network(self, flags):
            asked["flags"] = flags
            return "network"

    class Logger:
        ERROR = 1

        def __init__(self, level):
            asked["level"] = level

    flags = SimpleNamespace(EXPLICIT_BATCH=0)
    module = SimpleNamespace(
        __version__="10.99", Builder=Builder, Logger=Logger, OnnxParser=Parser, NetworkDefinitionCreationFlag=flags
    )
    return module, asked


def test_without_tensorrt_the_report_says_that_its_parser_was_not_run(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    report = parse(file(node("Relu", "x", "y")))
    assert report.ok
    assert report.parser == "not run: tensorrt is not installed"
    assert "not run: tensorrt is not installed" in str(report)


def test_the_parsers_word_is_added_to_the_report(file, monkeypatch):
    """Our handling alone, with a stand-in: TensorRT's real parser was never run here."""
    path = file(node("Relu", "x", "y"))
    module, asked = stand_in()
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    report = parse(path)
    assert report.ok
    assert report.parser == "TensorRT 10.99 took the file"
    assert asked == {"level": 1, "flags": 1, "network": "network", "path": str(path)}
    del module.NetworkDefinitionCreationFlag.EXPLICIT_BATCH
    assert parse(path).ok
    assert asked["flags"] == 0


def test_the_parsers_errors_are_refusals(file, monkeypatch):
    """Our handling alone, with a stand-in: TensorRT's real parser was never run here."""
    module, _ = stand_in([("relu", "Assertion failed"), ("", "No importer")])
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    path = file(node("Relu", "x", "y"))
    report = parse(path)
    assert check(path).ok
    assert not report.ok
    assert report.parser == "TensorRT 10.99 gave 2 errors"
    assert [(f.node, f.what) for f in report.findings] == [
        ("relu", "TensorRT's parser: Assertion failed"),
        ("", "TensorRT's parser: No importer"),
    ]
    silent, _ = stand_in(taken=False)
    monkeypatch.setitem(sys.modules, "tensorrt", silent)
    assert not parse(path).ok


def test_a_tensorrt_that_cannot_start_is_said_not_to_have_run(file, monkeypatch):
    """Our handling alone, with a stand-in: TensorRT's real parser was never run here."""
    module, asked = stand_in(broken=True)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    report = parse(file(node("Relu", "x", "y")))
    assert report.parser == "not run: TensorRT 10.99 cannot start here: factory function returned nullptr"
    assert "path" not in asked


# the bundled network


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    model = odediff.load("mnist")

    def write(opset, batch):
        path = tmp_path_factory.mktemp("network") / "network.onnx"
        args = torch.zeros(batch or 2, *model.shape), torch.ones(batch or 2)
        dims = None if batch else {name: {0: torch.export.Dim("batch", min=1)} for name in ("x", "t")}
        torch.onnx.export(
            model.net.eval(),
            args,
            path,
            dynamo=True,
            opset_version=opset,
            input_names=["sample", "timestep"],
            output_names=["out_sample"],
            dynamic_shapes=dims,
            verbose=False,
        )
        return path

    return write


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # of torch.onnx about torch
@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize(
    ("opset", "late"),
    [
        (20, set()),
        (21, {"GroupNormalization needs TensorRT 10.9 or later"}),
        (23, {"GroupNormalization needs TensorRT 10.9 or later", "Attention needs TensorRT 10.14 or later"}),
    ],
)
def test_the_bundled_network_is_taken(export, opset, late, batch):
    report = check(export(opset, batch))
    assert report.ok, str(report)
    assert {f.what for f in report.findings} == late
    assert report.opset == opset
    assert set(report.types) == {"FP32", "INT64"}
    assert report.shapes[:3] == (
        f"input sample: FP32 ({batch or 'batch'}, 1, 28, 28)",
        f"input timestep: FP32 ({batch or 'batch'})",
        f"output out_sample: FP32 ({batch or 'batch'}, 1, 28, 28)",
    )
    assert report.operators["Conv"] == (36, ("FP32",))


def test_findings_are_values():
    assert Finding("note", "a", "b", "c") == Finding("note", "a", "b", "c")
