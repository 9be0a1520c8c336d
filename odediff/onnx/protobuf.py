"""The fields of a protobuf message, with the standard library alone: as much of the format as ONNX files use.

A message is a run of fields, each a varint `8 number + wire type` and a value. Wire type 0 is a varint (seven bits a
byte, lowest first), 1 eight bytes, 5 four bytes, 2 a length and that many bytes: text, packed numbers or a message.
The file is mapped into memory and only headers are touched: what nobody asks for is skipped by its length.
Sources: https://protobuf.dev/programming-guides/encoding, and the field numbers of onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Span = tuple[int, int, int]  # the first byte, the one after the last, and how many messages it lies in

AGAIN = "export or download it again"
_DEPTH = 100  # of messages in messages: what protobuf itself reads
_CHUNK = 2**20
_CONTINUED = bytes(range(128, 256))  # every byte of a varint but its last
# A field is a number, numbers, text, one message (or bytes), many of them, or is only counted: varints, 4 or 8 bytes.
_INT, _INTS, _TEXT, _ONE, _MANY, _VARINTS, _FOURS, _EIGHTS = range(8)
_WIRE = {_INT: (0,), _INTS: (0, 2), _VARINTS: (0, 2), _FOURS: (5, 2), _EIGHTS: (1, 2)}  # the others: 2
_FIELDS: dict[str, dict[int, tuple[str, int]]] = {
    "ModelProto": {
        7: ("graph", _ONE),
        8: ("opset_import", _MANY),
        14: ("metadata_props", _MANY),
        20: ("training_info", _MANY),
        25: ("functions", _MANY),
    },
    "TrainingInfoProto": {1: ("graph", _ONE), 2: ("graph", _ONE)},
    "FunctionProto": {7: ("node", _MANY), 11: ("attribute", _MANY)},
    "GraphProto": {
        1: ("node", _MANY),
        5: ("tensor", _MANY),
        11: ("input", _MANY),
        12: ("output", _MANY),
        15: ("sparse_tensor", _MANY),
    },
    "NodeProto": {4: ("op_type", _TEXT), 5: ("attribute", _MANY), 7: ("domain", _TEXT)},
    "AttributeProto": {
        5: ("tensor", _ONE),
        6: ("graph", _ONE),
        10: ("tensor", _MANY),
        11: ("graph", _MANY),
        22: ("sparse_tensor", _ONE),
        23: ("sparse_tensor", _MANY),
    },
    "SparseTensorProto": {1: ("values", _ONE), 2: ("indices", _ONE), 3: ("dims", _INTS)},
    "TensorProto": {
        1: ("dims", _INTS),
        2: ("data_type", _INT),
        3: ("segment", _ONE),
        4: ("float_data", _FOURS),
        5: ("int32_data", _VARINTS),
        6: ("string_data", _MANY),
        7: ("int64_data", _VARINTS),
        8: ("name", _TEXT),
        9: ("raw_data", _ONE),
        10: ("double_data", _EIGHTS),
        11: ("uint64_data", _VARINTS),
        13: ("external_data", _MANY),
        14: ("data_location", _INT),
    },
    "StringStringEntryProto": {1: ("key", _TEXT), 2: ("value", _TEXT)},
    "OperatorSetIdProto": {1: ("domain", _TEXT), 2: ("version", _INT)},
    "ValueInfoProto": {1: ("name", _TEXT), 2: ("type", _ONE)},
    "TypeProto": {
        1: ("tensor", _ONE),
        4: ("sequence", _ONE),
        5: ("map", _ONE),
        7: ("opaque", _ONE),
        8: ("sparse_tensor", _ONE),
        9: ("optional", _ONE),
    },
    "TypeProto.Tensor": {1: ("elem_type", _INT), 2: ("shape", _ONE)},
    "TensorShapeProto": {1: ("dim", _MANY)},
    "Dimension": {1: ("value", _INT), 2: ("param", _TEXT)},
}


class Reader:
    """The bytes of an ONNX file, which is not trusted: ValueError wherever they are not what protobuf writes."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data = path, data

    def damaged(self, at: int, what: str) -> ValueError:
        """The error for byte `at`."""
        return ValueError(f"{self.path} is no ONNX file, or a damaged one: {what} at byte {at}; {AGAIN}")

    def fields(self, message: str, span: Span) -> Iterator[tuple[str, Any]]:
        """(name, value) of the fields listed for the kind of `message`, in the order of the file.

        value: an int, a str, the span of a message or of bytes, or for the data of tensors how many numbers there are.
        ValueError: truncated, too long, too deep, a wrong wire type, or one message given twice, which readers merge.
        """
        known, (at, end, depth), seen = _FIELDS[message], span, set()
        while at < end:
            begin = at
            tag, at = self._varint(at, end)
            number, wire = tag >> 3, tag & 7
            if not 0 < number < 2**29:
                raise self.damaged(begin, f"the field number {number} in {message}")
            start, at = self._extent(wire, at, end)
            if number not in known:
                continue
            name, kind = known[number]
            if wire not in _WIRE.get(kind, (2,)):
                raise self.damaged(begin, f"wire type {wire} for {name} in {message}")
            if kind in (_ONE, _MANY):
                if kind == _ONE and number in seen:
                    raise self.damaged(begin, f"a second {name} in {message}")
                if depth == _DEPTH:
                    raise self.damaged(begin, f"more than {_DEPTH} messages within one another")
                seen.add(number)
                yield name, (start, at, depth + 1)
            elif kind == _TEXT:
                yield name, self._text(start, at)
            elif kind in (_INT, _INTS):
                yield from ((name, value) for value in self._integers(start, at))
            else:
                yield name, self._count(kind, start, at)

    def pairs(self, what: str, spans: Iterable[Span]) -> dict[str, str]:
        """Keys and values. ValueError: a key that occurs twice, of which readers take one or the other."""
        found: dict[str, str] = {}
        for span in spans:
            entry = dict(self.fields("StringStringEntryProto", span))
            if (key := entry.get("key", "")) in found:
                raise ValueError(f"{self.path} has the key {key!r:.60} twice in {what}; {AGAIN}")
            found[key] = entry.get("value", "")
        return found

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """The number at a byte, modulo 2^64, and the byte after it."""
        value = 0
        for place, where in enumerate(range(at, min(end, at + 10))):
            byte = self.data[where]
            value |= (byte & 127) << 7 * place
            if byte < 128:
                return value & (2**64 - 1), where + 1
        raise self.damaged(at, "a number without an end")

    def _extent(self, wire: int, at: int, end: int) -> tuple[int, int]:
        """Where a value starts (behind its length) and where it ends."""
        if wire == 0:
            return at, self._varint(at, end)[1]
        if wire not in (1, 2, 5):
            raise self.damaged(at, f"wire type {wire}, which ONNX does not use,")
        length, start = self._varint(at, end) if wire == 2 else (8 if wire == 1 else 4, at)
        if length > end - start:
            raise self.damaged(at, f"a field of {length} bytes where {end - start} are left")
        return start, start + length

    def _text(self, start: int, end: int) -> str:
        try:
            return self.data[start:end].decode()
        except UnicodeDecodeError:
            raise self.damaged(start, "text that is not UTF-8") from None

    def _integers(self, at: int, end: int) -> Iterator[int]:
        """Varints one after the other, as int64."""
        while at < end:
            value, at = self._varint(at, end)
            yield value - 2**64 if value >= 2**63 else value

    def _count(self, kind: int, start: int, end: int) -> int:
        """How many numbers lie between two bytes."""
        if kind != _VARINTS:
            count, rest = divmod(end - start, 4 if kind == _FOURS else 8)
            if rest:
                raise self.damaged(start, f"numbers that do not fill {end - start} bytes")
            return count
        if end > start and self.data[end - 1] >= 128:
            raise self.damaged(end - 1, "a number without an end")
        chunks = ((first, min(first + _CHUNK, end)) for first in range(start, end, _CHUNK))
        return sum(len(self.data[first:last].translate(None, _CONTINUED)) for first, last in chunks)
