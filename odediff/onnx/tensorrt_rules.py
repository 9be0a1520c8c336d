"""What of an ONNX graph TensorRT's parser does not take: one function for each kind of refusal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from .dataflow import INTEGERS, Graph, Node, Origin, Value

Table = dict[str, Any]
# Inputs that say a shape or an axis, and of these the ones that sizes of the output depend on.
SIZING = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Slice": (1, 2, 4),
    "Split": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Upsample": (1,),
}
AXES = {"CumSum": (1,), "OneHot": (1,), "Squeeze": (1,), "Trilu": (1,), "Unsqueeze": (1,), "Loop": (0,)}
AXES |= {"Pad": (3,), "Slice": (3,), "Shape": (0,), "Size": (0,)}
AXES |= {f"Reduce{kind}": (1,) for kind in "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare".split()}
INDICES = dict.fromkeys(("Gather", "GatherElements", "GatherND", "Scatter", "ScatterElements", "ScatterND"), (1,))
INDICES |= {"OneHot": (0,)}
DATA_SHAPED = ("NonZero", "NonMaxSuppression")
_KEEP = "keep int64 to shapes and indices, and cast data to int32 or float32"


@dataclass(frozen=True)
class Finding:
    """Something to know.  severity: "refused" or "note".  node: the name of a node or tensor, "" for the whole file."""

    severity: str
    node: str
    what: str
    remedy: str


def refused(node: str, what: str, remedy: str) -> Finding:
    return Finding("refused", node, what, remedy)


def note(node: str, what: str, remedy: str = "") -> Finding:
    return Finding("note", node, what, remedy)


def type_name(kind: int, table: Table) -> str:
    """A tensor's type in the words of TensorRT, or of ONNX where TensorRT has no such type."""
    name = TensorProto.DataType.Name(kind)  # type: ignore[arg-type]
    return str(table["types"].get(name, name))


def interface(graph: Graph, table: Table) -> Iterator[Finding]:
    """Inputs and outputs: no int64, and no dynamic size but the batch axis, which is axis 0 and any of its name."""
    first = {v.shape[0] for v in graph.inputs if v.shape}
    names = sorted(size for size in first if isinstance(size, str))
    if len(names) > 1:
        yield note("", f"axis 0 of the inputs has several names: {', '.join(names)}", "name the batch axis once")
    for kind, values in (("input", graph.inputs), ("output", graph.outputs)):
        for value in values:
            if value.type == TensorProto.INT64:
                yield refused(value.name, f"int64 {kind}", f"make the {kind} int32 or float32")
            if value.shape is None:
                yield refused(value.name, f"{kind} of unknown rank", "export it with a shape")
            for axis, size in enumerate(value.shape or ()):
                if axis and not isinstance(size, int) and size not in names:
                    what = f"axis {axis} of this {kind} is dynamic ({size or 'unnamed'})"
                    yield refused(value.name, what, "export it with a fixed size; only the batch axis may be dynamic")


def tensor_types(graph: Graph, table: Table) -> Iterator[Finding]:
    """Tensors of types that TensorRT has not, or has at the edge of a network only."""
    edge = {id(v) for v in (*graph.inputs, *graph.outputs)}
    for value in graph.values():
        node = value.name if value.producer is None else value.producer.name
        name = TensorProto.DataType.Name(value.type)  # type: ignore[arg-type]
        if value.type == TensorProto.DOUBLE:
            yield refused(node, "double tensor, which TensorRT cuts to float32", "cast to float32 before the export")
        elif value.type and name not in table["types"]:
            yield refused(node, f"{name} tensor", f"use one of {', '.join(sorted(set(table['types'].values())))}")
        elif value.type == TensorProto.UINT8 and id(value) not in edge:
            yield refused(node, "UINT8 tensor inside the network", "UINT8 is for inputs and outputs only; cast there")
        elif value.tensor is None and value.producer is None and id(value) not in edge and value.sizes is None:
            yield refused(node, "sparse initializer", "store it dense")


def operator(node: Node, schema: onnx.defs.OpSchema | None, table: Table) -> Iterator[Finding]:
    """An operator that the table has not, or not for these types, or only from some version of TensorRT."""
    if node.domain:
        yield refused(node.name, f"operator {node.op} of domain {node.domain}", "use operators of ONNX alone")
        return
    row = table["operators"].get(node.op)
    if row is None:
        where = "documented as unsupported" if node.op in table["unsupported"] else "not in the table"
        yield refused(node.name, f"operator {node.op}: {where}", "write it with supported operators")
        return
    if schema is None:
        yield refused(node.name, f"operator {node.op} is not in this opset", "export it again with one opset")
        return
    since = row.get("since", {}).get(str(schema.since_version))
    if since:
        yield note(node.name, f"{node.op} needs TensorRT {since} or later", "for older ones export at a lower opset")
    for kind in sorted({v.type for v in _typed(node, schema) if v.type}):
        name = type_name(kind, table)
        if name not in row["types"] and kind != TensorProto.DOUBLE:
            yield refused(node.name, f"{node.op} of {name}", f"cast to one of {', '.join(row['types'])}")


def _typed(node: Node, schema: onnx.defs.OpSchema) -> list[Value]:
    """The operands that the table's types speak of: those of the first type that may vary, and the first output."""
    allowed = {c.type_param_str: len(c.allowed_type_strs) for c in schema.type_constraints}
    slots = [(s, v) for s, v in (*_slots(schema.inputs, node.inputs), *_slots(schema.outputs, node.outputs))]
    vary = [s for s, _ in slots if allowed.get(s, 1) > 1] or [s for s, _ in slots]
    found = [v for s, v in slots if v is not None and vary and s == vary[0]]
    ends = [(s, v) for s, v in _slots(schema.outputs[:1], node.outputs[:1]) if v is not None]
    quantised = node.op in ("QuantizeLinear", "DequantizeLinear")
    return found + [v for s, v in ends if allowed.get(s, 1) > 1 and not quantised]


def _slots(formal: Any, actual: list[Value | None]) -> Iterator[tuple[str, Value | None]]:
    """Type variable and value of each operand; the last formal one repeats if it is variadic."""
    if formal:
        for index, value in enumerate(actual):
            yield formal[min(index, len(formal) - 1)].type_str, value


def restrictions(node: Node, table: Table) -> Iterator[Finding]:
    """The table's restrictions: refused where broken, noted where this check cannot know."""
    row = {} if node.domain else table["operators"].get(node.op, {})
    for rule in row.get("restrictions", ()):
        verdict = next((c(node, rule) for key, c in _CHECKS.items() if key in rule), None)
        if verdict is None:
            yield note(node.name, f"{node.op}: {rule['text']} (not checked)")
        elif not verdict:
            yield refused(node.name, f"{node.op}: {rule['text']}", "export it so that this holds")


def _attribute(node: Node, rule: Table) -> bool:
    value = node.attribute(rule["attribute"])
    value = value.decode() if isinstance(value, bytes) else value
    return value is None or value in rule["in"]


def _ranks(node: Node, rule: Table) -> bool | None:
    shapes = [v.shape for i in rule["rank"] if (v := node.input(i)) is not None]
    if any(s is not None and len(s) not in rule["in"] for s in shapes):
        return False
    return None if any(s is None for s in shapes) else True


def _initializer(node: Node, rule: Table) -> bool:
    given = [v for i in rule["initializer"] if (v := node.input(i)) is not None]
    return all(v.origin == Origin.CONSTANT and (v.producer is None or v.producer.op == "Constant") for v in given)


def _compared(index: int, holds: Callable[[Any], bool]) -> Callable[[Node], bool | None]:
    """Of an input that must be known when the engine is built: None where this check cannot read it."""

    def verdict(node: Node) -> bool | None:
        value = node.input(index)
        number = None if value is None else value.number()
        if value is None:
            return True
        return (None if value.origin == Origin.CONSTANT else False) if number is None else bool(holds(number))

    return verdict


def _iota(node: Node, rule: Table) -> bool | None:
    axes, shape = node.attribute("axes"), first.shape if (first := node.input(0)) else None
    if axes is None or node.input(2) is None:
        return True
    return None if shape is None else list(axes) == list(range(len(shape)))


def _branches(node: Node, rule: Table) -> bool | None:
    pairs = list(zip(*(body.outputs for body in node.bodies.values()), strict=False))
    if any(a.name == b.name for a, b in pairs):
        return False
    ranks = [{len(v.shape) for v in pair if v.shape is not None} for pair in pairs]
    if any(len(found) > 1 for found in ranks):
        return False
    return None if any(v.shape is None for pair in pairs for v in pair) else True


def _carried(node: Node, rule: Table) -> bool:
    pairs = zip(node.inputs[2:], node.bodies["body"].outputs[1:], strict=False)
    return not any(v is not None and _differ(v, out) for v, out in pairs)


def _differ(a: Value, b: Value) -> bool:
    """Whether two shapes are known to differ."""
    if a.shape is None or b.shape is None:
        return False
    sizes = zip(a.shape, b.shape, strict=False)
    return len(a.shape) != len(b.shape) or any(isinstance(m, int) and isinstance(n, int) and m != n for m, n in sizes)


_CHECKS: dict[str, Callable[[Node, Table], bool | None]] = {
    "attribute": _attribute,
    "rank": _ranks,
    "absent": lambda node, rule: all(node.input(i) is None for i in rule["absent"]),
    "outputs": lambda node, rule: all(v is None for v in node.outputs[rule["outputs"] :]),
    "constant": lambda node, rule: all(
        v.origin == Origin.CONSTANT for i in rule["constant"] if (v := node.input(i)) is not None
    ),
    "initializer": _initializer,
    "static": lambda node, rule: all(v.static for i in rule["static"] if (v := node.input(i)) is not None),
    "zero": lambda node, rule: _compared(rule["zero"], lambda n: not np.any(n.astype(np.float32)))(node),
    "below": lambda node, rule: _compared(rule["input"], lambda n: n.max() < rule["below"])(node),
    "axes": _iota,
    "branches": _branches,
    "loop": _carried,
}


def int64_paths(graph: Graph, table: Table) -> Iterator[Finding]:
    """64-bit integers that are data: computed from data, or from shapes and counters but fed to what is no shape."""
    edge = {id(v) for v in graph.inputs}
    for value in (v for v in graph.values() if v.type == TensorProto.INT64 and v.uses and id(v) not in edge):
        source = value.producer
        name = value.name if source is None else source.name
        above = [v for v in source.inputs if v is not None and v.type == TensorProto.INT64] if source else []
        if value.origin == Origin.DATA:
            if not any(v.origin == Origin.DATA for v in above):
                yield refused(name, "int64 data", _KEEP)
            continue
        if value.origin == Origin.INDEX and not any(v.origin == Origin.INDEX for v in above):
            yield note(name, "int64 indices, cast from narrower integers", "index by the int32 input itself")
        for node, index in value.uses if value.origin > Origin.CONSTANT else ():
            shaping = (*SIZING.get(node.op, ()), *AXES.get(node.op, ()), *INDICES.get(node.op, ()))
            whole = not node.bodies and all(v is None or v.type in INTEGERS for v in node.outputs)
            if node.domain or not (index in shaping or whole):
                yield refused(node.name, "int64 from shapes or counters used as data", _KEEP)


def data_shapes(node: Node, table: Table) -> Iterator[Finding]:
    """Shapes that depend on data, or change from one iteration of a loop to the next."""
    if node.domain:
        return
    remedy = "give it a shape that depends on the batch alone"
    if node.op in DATA_SHAPED:
        yield refused(node.name, f"{node.op}: the shape of its output depends on data", remedy)
    for index in SIZING.get(node.op, ()):
        value = node.input(index)
        highest = Origin.COUNTER if node.op == "Slice" else Origin.SHAPE
        if value is not None and value.origin > highest:
            cause = "a loop's counter" if value.origin == Origin.COUNTER else "data"
            yield refused(node.name, f"{node.op}: the shape of its output depends on {cause}", remedy)


def control(node: Node, table: Table) -> Iterator[Finding]:
    """Loop without a static trip count, Scan over an unknown length, If whose shapes depend on the condition."""
    if node.op == "Loop" and not node.domain:
        trip, condition, body = node.input(0), node.input(1), node.bodies["body"]
        if trip is None or trip.origin != Origin.CONSTANT:
            yield refused(node.name, "Loop without a constant trip count", "make the count an initializer")
        passed = _true(body.outputs[0]) or (len(body.inputs) > 1 and _same(body.outputs[0], body.inputs[1]))
        if not passed or not (condition is None or _true(condition)):
            yield refused(node.name, "Loop with a condition that is not constant true", "count the iterations instead")
    elif node.op == "Scan" and not node.domain:
        count = node.attribute("num_scan_inputs") or len(node.inputs)
        axes = node.attribute("scan_input_axes") or [0] * count
        for value, axis in zip(node.inputs[len(node.inputs) - count :], axes, strict=False):
            if value is None or value.shape is None or not isinstance(value.shape[axis], int):
                yield refused(node.name, "Scan over a length that is not known", "export it with a fixed length")
    elif node.op == "If" and not node.domain and (chosen := node.input(0)) is not None:
        pairs = zip(*(body.outputs for body in node.bodies.values()), strict=False)
        if chosen.origin != Origin.CONSTANT and any(_differ(a, b) for a, b in pairs):
            yield refused(node.name, "If: shapes depend on the condition", "give both branches the same shapes")


def _true(value: Value) -> bool:
    number = value.number()
    return number is not None and bool(number.all())


def _same(value: Value, other: Value) -> bool:
    """Whether a value is another, handed on unchanged."""
    while value is not other and value.producer is not None and value.producer.op == "Identity":
        given = value.producer.inputs[0]
        if given is None:
            return False
        value = given
    return value is other


def weights(node: Node, table: Table) -> Iterator[Finding]:
    """Convolutions whose weights are no constants."""
    value = node.input(1)
    if node.op not in ("Conv", "ConvTranspose", "DeformConv") or node.domain or value is None:
        return
    if value.origin != Origin.CONSTANT:
        yield refused(node.name, f"{node.op} with weights that are no constants", "store the weights as an initializer")
    elif value.producer is not None and value.producer.op not in ("Constant", "Identity", "DequantizeLinear"):
        yield note(node.name, f"{node.op} with computed constant weights", "store the weights as an initializer")


def quantisation(node: Node, table: Table) -> Iterator[Finding]:
    """What is quantised must be of a type that is dequantised."""
    if node.op == "QuantizeLinear" and not node.domain and node.outputs and node.outputs[0] is not None:
        types, name = table["operators"]["DequantizeLinear"]["types"], type_name(node.outputs[0].type, table)
        if name not in types:
            yield refused(node.name, f"QuantizeLinear to {name}", "quantise to INT8 with zero point 0")


def unknown(graph: Graph, table: Table) -> Iterator[Finding]:
    """Tensors of which onnx does not tell the type, or every size beyond axis 0."""
    for value in graph.values():
        source = value.producer
        above = [v for v in source.inputs if v is not None] if source is not None else []
        if not value.type and (value.uses or source is None) and all(v.type for v in above):
            what, name = "onnx cannot tell the type of what it gives", value.name if source is None else source.name
            yield refused(name, what, "its inputs may contradict each other, or be sequences; export it again")
    count = sum(
        v.shape is None or any(size is None or str(size).startswith("unk__") for size in v.shape[1:])
        for v in graph.values()
        if v.type
    )
    if count:
        what = f"onnx's shape inference does not tell every size beyond axis 0 of {count} tensor{'s' * (count > 1)}"
        yield note("", what, "their sizes come from shapes alone, as far as this check sees; a fixed batch tells more")


OF_GRAPH = (interface, tensor_types, int64_paths, unknown)
OF_NODE = (restrictions, data_shapes, control, weights, quantisation)
