"""Whether TensorRT's ONNX parser takes a file: by its documentation, kept in tensorrt.json, and by the parser itself.

Refused are
    operators that the table has not, in other domains, or for other types; opsets outside the documented range;
    int64 inputs, outputs and data. int64 is taken where it derives from constants, shapes, a loop's counter or a
        narrower integer, and is read as a shape, an axis or an index;
    double tensors; types that TensorRT has not;
    dynamic sizes but the batch axis: a size depends on the inputs' sizes, on a loop's counter or on data, so it is
        refused where an input has one outside the batch axis, and where an operator makes one of a counter or data;
    Loop without a constant trip count or with a condition, Scan and If with shapes that are not known;
    convolution weights that are no constants; quantised types and zero points but the documented ones.
Source: onnx/onnx-tensorrt, docs/operators.md and docs/Changelog.md, of the version in the table.
"""

from __future__ import annotations

import importlib
import json
import os
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx
import onnx.inliner
import onnx.shape_inference
from google.protobuf.message import DecodeError

from . import tensorrt_rules as rules
from .dataflow import Graph, Node, Value, read
from .tensorrt_rules import Finding, Table

_ORIGINS = ("constants", "sizes of tensors", "a loop's counter", "indices", "data")  # in the order of `Origin`
_WIDTH, _NAMES = 120, 4  # of a printed report: characters of a line, and nodes named for one finding


@dataclass(frozen=True)
class Report:
    """What `check` or `parse` found.

    table: version of the documentation.  source: where it is from.  opset: of the file.
    operators: name -> (how many, types of their tensors).  types: type -> how many tensors.
    shapes: inputs, outputs and what makes shapes, one line each.  findings: `Finding`s, in the order of the rules.
    parser: what TensorRT's own parser said, or why it was not run.
    """

    table: str
    source: str
    opset: int
    operators: Mapping[str, tuple[int, tuple[str, ...]]]
    types: Mapping[str, int]
    shapes: tuple[str, ...]
    findings: tuple[Finding, ...]
    parser: str = "not run: this is the documentation's word alone"

    @property
    def ok(self) -> bool:
        """Whether nothing is refused."""
        return not any(f.severity == "refused" for f in self.findings)

    def __str__(self) -> str:
        groups: dict[tuple[str, str, str], list[str]] = {}
        for f in self.findings:
            groups.setdefault((f.severity, f.what, f.remedy), []).append(f.node)
        count = sum(severity == "refused" for severity, _, _ in groups)
        lines = [
            f"TensorRT {self.table}, as documented: {'nothing refused' if self.ok else f'{count} refused'}",
            f"TensorRT's parser: {self.parser}",
            f"opset {self.opset}",
            "",
            f"{'operator':<26}{'count':>6}  types",
            *(f"{op:<26}{count:>6}  {', '.join(types)}" for op, (count, types) in self.operators.items()),
            "",
            f"tensors: {', '.join(f'{count} {name}' for name, count in self.types.items())}",
            *self.shapes,
        ]
        for severity, title in (("refused", "refused"), ("note", "notes")):
            rows = [_line(what, remedy, nodes) for (s, what, remedy), nodes in groups.items() if s == severity]
            lines += ["", f"{title}:", *rows] if rows else []
        return "\n".join(lines)


def _line(what: str, remedy: str, nodes: list[str]) -> str:
    names = [name for name in dict.fromkeys(nodes) if name]
    shown = ", ".join(names[:_NAMES]) + (f" and {len(names) - _NAMES} more" if len(names) > _NAMES else "")
    text = "".join([what, f": {shown}" if names else "", f"; {remedy}" if remedy else ""])
    return textwrap.fill(text, _WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)


@cache
def table() -> Table:
    """TensorRT's documented support: version, opsets, types, operators with types and restrictions."""
    loaded: Table = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return loaded


def check(path: str | Path) -> Report:
    """What an ONNX file is made of, and what of it TensorRT's documentation says its parser does not take.

    path: an ONNX file; weights outside it are not read.
    FileNotFoundError: there is none.  ValueError: it is no valid ONNX file.
    """
    opset, graph, failure = _read(Path(path))
    data = table()
    nodes = [node for _, node in graph.walk()]
    schemas = {node.op: _schema(node.op, opset) for node in nodes if not node.domain}
    findings = [*_opset(opset, data), *failure]
    for of_graph in rules.OF_GRAPH:
        findings += of_graph(graph, data)
    for node in nodes:
        findings += rules.operator(node, schemas.get(node.op), data)
        for of_node in rules.OF_NODE:
            findings += of_node(node, data)
    return Report(
        table=data["version"],
        source="; ".join(data["source"]),
        opset=opset,
        operators=MappingProxyType(_operators(nodes, data)),
        types=MappingProxyType(dict(sorted(Counter(_name(v, data) for v in graph.values()).items()))),
        shapes=tuple(_shapes(graph, nodes, data)),
        findings=tuple(dict.fromkeys(findings)),
    )


def parse(path: str | Path) -> Report:
    """`check`, and the verdict of TensorRT's own parser where the package `tensorrt` is installed and can run.

    Errors as for `check`.
    """
    report = check(path)
    try:
        trt = importlib.import_module("tensorrt")
    except ModuleNotFoundError as error:
        missing = error.name == "tensorrt"
        return replace(report, parser="not run: tensorrt is not installed" if missing else f"not run: {error}")
    except (ImportError, OSError) as error:
        return replace(report, parser=f"not run: tensorrt cannot be loaded: {error}")
    name = f"TensorRT {getattr(trt, '__version__', 'of unknown version')}"
    try:
        builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    except Exception as error:  # pybind's own, on a machine without a GPU
        return replace(report, parser=f"not run: {name} cannot start here: {error}")
    explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)  # later versions know nothing else
    network = builder.create_network(0 if explicit is None else 1 << int(explicit))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    taken = parser.parse_from_file(os.fspath(path))
    errors = [_parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
    if not taken and not errors:
        errors = [rules.refused("", f"{name} refused the file without a reason", "run it under trtexec --verbose")]
    verdict = f"{name} took the file" if not errors else f"{name} gave {len(errors)} error{'s' * (len(errors) > 1)}"
    return replace(report, findings=(*report.findings, *errors), parser=verdict)


def _parser_error(error: Any) -> Finding:
    node = error.node_name() if hasattr(error, "node_name") else ""
    return rules.refused(node, f"TensorRT's parser: {error.desc()}", "see the operator's row in its documentation")


def _read(path: Path) -> tuple[int, Graph, list[Finding]]:
    """The opset of a file, its graph with functions inlined, and a finding if shapes could not be inferred."""
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except DecodeError as error:
        raise ValueError(f"{path} is no ONNX file ({error}); give one that odediff export wrote") from None
    if not model.graph.node:
        raise ValueError(f"{path} holds no graph of operators; give an ONNX file that odediff export wrote")
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    for named in (*model.opset_import, *_nodes(model.graph)):
        named.domain = "" if named.domain == "ai.onnx" else named.domain
    opset = next((o.version for o in model.opset_import if not o.domain), 0)
    try:
        return opset, read(_inferred(model)), []
    except onnx.shape_inference.InferenceError as error:
        return opset, read(model), [rules.refused("", f"onnx's shape inference fails: {error}", "export it again")]


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the types and shapes that onnx infers; for that a GroupNormalization is an Identity.

    onnx 1.23 gives it no output type at opsets above 21, and so to nothing after it.
    """
    norms = {i for i, n in enumerate(_nodes(model.graph)) if n.op_type == "GroupNormalization" and not n.domain}

    def name(proto: onnx.ModelProto, op: str) -> None:
        for i, node in enumerate(_nodes(proto.graph)):
            node.op_type = op if i in norms else node.op_type

    name(model, "Identity")
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    finally:
        name(model, "GroupNormalization")
    name(inferred, "GroupNormalization")
    return inferred


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)


def _opset(opset: int, data: Table) -> Iterator[Finding]:
    low, high = data["opsets"]
    if not low <= opset <= high:
        yield rules.refused("", f"opset {opset}, TensorRT takes {low} to {high}", f"export at an opset up to {high}")


def _schema(op: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op, opset, "")
    except onnx.defs.SchemaError:
        return None


def _name(value: Value, data: Table) -> str:
    return rules.type_name(value.type, data) if value.type else "unknown"


def _operators(nodes: list[Node], data: Table) -> dict[str, tuple[int, tuple[str, ...]]]:
    found: dict[str, tuple[int, set[str]]] = {}
    for node in nodes:
        op = f"{node.domain}.{node.op}" if node.domain else node.op
        count, types = found.get(op, (0, set()))
        tensors = [v for v in (*node.inputs, *node.outputs) if v is not None]
        found[op] = count + 1, types | {_name(v, data) for v in tensors}
    return {op: (count, tuple(sorted(types))) for op, (count, types) in sorted(found.items())}


def _shapes(graph: Graph, nodes: list[Node], data: Table) -> Iterator[str]:
    """The interface, how many shapes are constant, and the loops and branches."""
    for kind, values in (("input", graph.inputs), ("output", graph.outputs)):
        for value in values:
            sizes = "rank unknown" if value.shape is None else ", ".join(str(s or "?") for s in value.shape)
            yield f"{kind} {value.name}: {_name(value, data)} ({sizes})"
    made: Counter[tuple[str, int]] = Counter()
    for node in nodes:
        given = [v for i in rules.SIZING.get(node.op, ()) if (v := node.input(i)) is not None]
        if node.op in ("Shape", "Size"):
            given = [v for v in node.outputs if v is not None]
        if given and not node.domain:
            made[node.op, max(v.origin for v in given)] += 1
    for (op, origin), count in sorted(made.items()):
        yield f"{op}: {count} from {_ORIGINS[origin]}"
    for node in nodes:
        if node.op == "Loop" and not node.domain:
            limit = node.input(0)
            trips = None if limit is None else limit.number()
            yield f"Loop {node.name}: {'unknown' if trips is None else trips.item()} iterations"
        elif node.bodies:
            yield f"{node.op} {node.name}"
