"""What an ONNX file holds, read with the standard library alone, and so before a runtime sees the file."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path

from .protobuf import AGAIN, Reader, Span
from .tensors import TYPES, Tensors

Value = tuple[str, tuple[int | str, ...]]  # dtype, dimensions

_UNTYPED: Value = ("undefined", ())
_CONTROL_FLOW = {("", "Loop"), ("", "If"), ("", "Scan")}


@dataclass(frozen=True)
class Summary:
    """What `read` found.

    metadata: the file's metadata_props.  inputs, outputs: name -> (dtype, dimensions), the dtype as numpy calls it (or
    "undefined", "sequence", "map", "optional", "sparse_tensor", "opaque"), a dimension a number, a name, or "?" where
    it has neither; () for a scalar, and where the file gives no shape. Inputs with a default, the initializers of old
    files, are none.  opsets: domain -> version, ONNX's own domain being "".
    operators: (domain, type) of all nodes, those of subgraphs and functions too.
    external: the files with external data, resolved.  bytes: of all tensors, here and in those files.
    """

    metadata: dict[str, str]
    inputs: dict[str, Value]
    outputs: dict[str, Value]
    opsets: dict[str, int]
    operators: frozenset[tuple[str, str]]
    external: tuple[Path, ...]
    bytes: int

    @property
    def control_flow(self) -> bool:
        """Whether there is a Loop, If or Scan."""
        return not _CONTROL_FLOW.isdisjoint(self.operators)


def read(path: str | os.PathLike[str]) -> Summary:
    """Read and check an ONNX file that is not trusted. Only the file itself is opened; external files are measured.

    External data must lie in the folder of `path`, or of the file that `path` links to.
    FileNotFoundError: no such file.  ValueError: no ONNX file, a truncated or damaged one; a tensor whose data is
    missing, or larger or smaller than its dimensions say; external data that is missing, too short, no regular file, or
    outside the folder, be it by an absolute location, by ".." or by a link.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    if not path.is_file():
        raise ValueError(f"{path} is a folder or device; give the .onnx file")
    if path.suffix.lower() == ".ort":
        raise ValueError(f"{path} is named as onnxruntime's own format, which is not checked here; give the .onnx file")
    if not path.stat().st_size:
        raise ValueError(f"{path} is no ONNX file: it is empty; {AGAIN}")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _Walk(Reader(path, data)).model((0, len(data), 0))


class _Walk:
    """One pass over the messages of a file."""

    def __init__(self, reader: Reader) -> None:
        self.reader, self.path, self.tensors = reader, reader.path, Tensors(reader)
        self.operators: set[tuple[str, str]] = set()

    def model(self, span: Span) -> Summary:
        graph, opsets, properties = None, {}, []
        for name, value in self.reader.fields("ModelProto", span):
            if name == "graph":
                graph = self.main(value)
            elif name == "opset_import":
                found = dict(self.reader.fields("OperatorSetIdProto", value))
                opsets[_domain(found.get("domain", ""))] = found.get("version", 0)
            elif name == "metadata_props":
                properties.append(value)
            elif name == "training_info":
                self.visit("TrainingInfoProto", value)
            elif name == "functions":
                self.visit("FunctionProto", value)
        if graph is None or not opsets:
            lacks = "no graph" if graph is None else "no opset_import"
            raise ValueError(f"{self.path} is no ONNX file: there is {lacks} in it; {AGAIN}")
        metadata = self.reader.pairs("metadata_props", properties)
        return Summary(metadata, *graph, opsets, frozenset(self.operators), self.tensors.external, self.tensors.bytes)

    def main(self, span: Span) -> tuple[dict[str, Value], dict[str, Value]]:
        """Inputs and outputs of the graph that is the model."""
        values: dict[str, dict[str, Value]] = {"input": {}, "output": {}}
        defaults = []
        for name, value in self.reader.fields("GraphProto", span):
            if name in values:
                key, found = self.value(value)
                values[name][key] = found
            elif name == "node":
                self.node(value)
            else:
                defaults.append((self.tensors.dense if name == "tensor" else self.tensors.sparse)(value).name)
        for key in defaults:
            values["input"].pop(key, None)
        return values["input"], values["output"]

    def visit(self, message: str, span: Span) -> None:
        """Everything within a message that can hold tensors or nodes."""
        for name, value in self.reader.fields(message, span):
            if name == "node":
                self.node(value)
            elif name == "attribute":
                self.visit("AttributeProto", value)
            elif name == "graph":
                self.visit("GraphProto", value)
            elif name == "tensor":
                self.tensors.dense(value)
            elif name == "sparse_tensor":
                self.tensors.sparse(value)

    def node(self, span: Span) -> None:
        found = {"domain": "", "op_type": ""}
        for name, value in self.reader.fields("NodeProto", span):
            if name == "attribute":
                self.visit("AttributeProto", value)
            else:
                found[name] = value
        if found["op_type"] == "EPContext":
            raise ValueError(
                f"{self.path} has an EPContext node, a binary of one provider that is not checked; export the network"
            )
        self.operators.add((_domain(found["domain"]), found["op_type"]))

    def value(self, span: Span) -> tuple[str, Value]:
        """Name and type of an input or output."""
        name, found = "", _UNTYPED
        for key, inner in self.reader.fields("ValueInfoProto", span):
            if key == "name":
                name = inner
                continue
            for kind, within in self.reader.fields("TypeProto", inner):
                found = self.tensor_type(within) if kind == "tensor" else (kind, ())
        return name, found

    def tensor_type(self, span: Span) -> Value:
        dtype, dims = _UNTYPED[0], list[int | str]()
        for name, value in self.reader.fields("TypeProto.Tensor", span):
            if name == "elem_type":
                if value and value not in TYPES:
                    raise self.reader.damaged(span[0], f"the unknown elem_type {value} of an input or output")
                dtype = TYPES[value][0] if value else _UNTYPED[0]
                continue
            for _, dim in self.reader.fields("TensorShapeProto", value):
                size: int | str = "?"
                for key, given in self.reader.fields("Dimension", dim):
                    size = "?" if given == "" or (key == "value" and given < 0) else given
                dims.append(size)
        return dtype, tuple(dims)


def _domain(name: str) -> str:
    """ONNX's own domain has two names."""
    return "" if name == "ai.onnx" else name
