"""Whether the data of tensors is whole, and where it lies, from their headers alone.

bytes = ceil(bits(dtype) prod(dims) / 8), in raw_data or an external file; or prod(dims) numbers in a typed field
Source: onnx.proto, TensorProto and SparseTensorProto.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

from .protobuf import AGAIN, Reader, Span

_RANK = 64  # what numpy can hold
_LOCATIONS = (0, 1)  # in the file, external
# TensorProto.DataType: the name in numpy and ml_dtypes, bits of an element, the field of elements not in raw_data.
TYPES = {
    1: ("float32", 32, "float_data"),
    2: ("uint8", 8, "int32_data"),
    3: ("int8", 8, "int32_data"),
    4: ("uint16", 16, "int32_data"),
    5: ("int16", 16, "int32_data"),
    6: ("int32", 32, "int32_data"),
    7: ("int64", 64, "int64_data"),
    8: ("string", 0, "string_data"),
    9: ("bool", 8, "int32_data"),
    10: ("float16", 16, "int32_data"),
    11: ("float64", 64, "double_data"),
    12: ("uint32", 32, "uint64_data"),
    13: ("uint64", 64, "uint64_data"),
    14: ("complex64", 64, "float_data"),
    15: ("complex128", 128, "double_data"),
    16: ("bfloat16", 16, "int32_data"),
    17: ("float8_e4m3fn", 8, "int32_data"),
    18: ("float8_e4m3fnuz", 8, "int32_data"),
    19: ("float8_e5m2", 8, "int32_data"),
    20: ("float8_e5m2fnuz", 8, "int32_data"),
    21: ("uint4", 4, "int32_data"),
    22: ("int4", 4, "int32_data"),
    23: ("float4_e2m1fn", 4, "int32_data"),
    24: ("float8_e8m0fnu", 8, "int32_data"),
    25: ("uint2", 2, "int32_data"),
    26: ("int2", 2, "int32_data"),
    27: ("float6_e2m3fn", 6, "int32_data"),
    28: ("float6_e3m2fn", 6, "int32_data"),
}


@dataclass
class Tensor:
    """The header of a TensorProto, and how much data it holds."""

    label: str = ""  # what errors call it
    name: str = ""
    data_type: int = 0
    data_location: int = 0
    segment: Span | None = None
    dims: list[int] = field(default_factory=list)
    stored: dict[str, int] = field(default_factory=dict)  # field -> bytes of raw_data, else numbers
    text: int = 0  # bytes of string_data
    entries: list[Span] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{TYPES[self.data_type][0]} {tuple(self.dims)}"


class Tensors:
    """The tensors of one file, as far as they were met: their bytes, and their external files."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.files: dict[str, tuple[Path, int]] = {}  # location -> the file, its size
        self.bytes = 0

    @property
    def external(self) -> tuple[Path, ...]:
        """The files with external data, resolved and sorted."""
        return tuple(sorted({file for file, _ in self.files.values()}))

    def sparse(self, span: Span) -> Tensor:
        """The values, which carry the name, of a sparse tensor that is whole and whose indices fit them."""
        parts: dict[str, Tensor] = {}
        dims = []
        for name, value in self.reader.fields("SparseTensorProto", span):
            if name == "dims":
                dims.append(value)
            else:
                parts[name] = self.dense(value)
        if set(parts) != {"values", "indices"}:
            raise ValueError(f"{self.reader.path}: a sparse tensor at byte {span[0]} lacks values or indices; {AGAIN}")
        values, indices = parts["values"], parts["indices"]
        self.elements(values.label, dims, 64)
        count = values.dims
        if len(count) != 1 or indices.data_type != 7 or indices.dims not in (count, [*count, len(dims)]):
            raise ValueError(
                f"{self.reader.path}: sparse {values.label} has {values} values and {indices} indices; "
                f"they must be (n,), and int64 (n,) or (n, {len(dims)}); {AGAIN}"
            )
        return values

    def dense(self, span: Span) -> Tensor:
        """A tensor that is whole."""
        tensor = Tensor()
        for name, value in self.reader.fields("TensorProto", span):
            if name == "dims":
                tensor.dims.append(value)
            elif name == "external_data":
                tensor.entries.append(value)
            elif name == "raw_data":
                tensor.stored[name] = value[1] - value[0]
            elif name == "string_data":
                tensor.stored[name] = tensor.stored.get(name, 0) + 1
                tensor.text += value[1] - value[0]
            elif name.endswith("_data"):
                tensor.stored[name] = tensor.stored.get(name, 0) + value
            else:
                setattr(tensor, name, value)
        tensor.label = f"tensor {tensor.name!r:.80}" if tensor.name else f"the tensor at byte {span[0]}"
        self.check(tensor)
        return tensor

    def check(self, tensor: Tensor) -> None:
        """ValueError: the tensor's data is not what its type and dimensions say. Counts its bytes."""
        where = f"{self.reader.path}: {tensor.label}"
        if tensor.segment:
            raise ValueError(f"{where} is one segment of a tensor, which runtimes do not read; {AGAIN}")
        for key, value, known in (
            ("data_type", tensor.data_type, TYPES),
            ("data_location", tensor.data_location, _LOCATIONS),
        ):
            if value not in known:
                raise ValueError(f"{where} has the unknown {key} {value}; {AGAIN}")
        dtype, bits, home = TYPES[tensor.data_type]
        count = self.elements(tensor.label, tensor.dims, bits or 8)
        size = -(-bits * count // 8)
        stored = {name: held for name, held in tensor.stored.items() if held}
        if tensor.data_location or tensor.entries:
            if stored or dtype == "string":
                raise ValueError(f"{where} is external, but has {', '.join(stored) or 'text'}; {AGAIN}")
            self.check_external(tensor, size)
        elif set(stored) - {"raw_data" if "raw_data" in stored and dtype != "string" else home}:
            raise ValueError(f"{where} is {dtype}, but has {' and '.join(stored)}; {AGAIN}")
        else:
            raw = "raw_data" in stored or bits in (2, 4)  # numbers of 2 or 4 bits share a byte, there and in int32_data
            need = size if raw else 2 * count if dtype.startswith("complex") else count
            held, unit = sum(stored.values()), "bytes" if raw else f"numbers in {home}"
            if held != need:
                raise ValueError(f"{where}, {tensor}, needs {need} {unit}, but has {held}; {AGAIN}")
        self.bytes += size + tensor.text

    def elements(self, label: str, dims: list[int], bits: int) -> int:
        """The product of dims. ValueError: a negative one, too many of them, or more than int64 can count."""
        count = size = 1
        for dim in dims[:_RANK]:
            count, size = count * dim, size * max(dim, 1)
            if dim < 0 or size * bits >= 2**66:
                what = f"the negative dimension {dim}" if dim < 0 else "more bytes than int64 can count"
                raise ValueError(f"{self.reader.path}: {label} has {what}, dims {tuple(dims[:_RANK])}; {AGAIN}")
        if len(dims) > _RANK:
            raise ValueError(f"{self.reader.path}: {label} has {len(dims)} dimensions, more than {_RANK}; {AGAIN}")
        return count

    def check_external(self, tensor: Tensor, need: int) -> None:
        """ValueError: the external file is not there or elsewhere, or does not hold the `need` bytes at the offset."""
        where = f"{self.reader.path}: {tensor.label}"
        given = self.reader.pairs(f"external_data of {tensor.label}", tensor.entries)
        for key in {"offset", "length"} & set(given):
            if not re.fullmatch("[0-9]{1,19}", given[key]):
                raise ValueError(f"{where} has {key} = {given[key]!r:.60} in its external data, no number; {AGAIN}")
        location = given.get("location", "")
        if location not in self.files:
            self.files[location] = self.place(where, location)
        file, size = self.files[location]
        offset = int(given.get("offset", 0))
        length = int(given.get("length", max(size - offset, 0)))
        if length != need:
            raise ValueError(f"{where}, {tensor}, needs {need} bytes, but {length} are given in {location!r}; {AGAIN}")
        if offset + length > size:
            raise ValueError(
                f"{where} has bytes {offset} to {offset + length} of {location!r}, which ends at {size}; {AGAIN}"
            )

    def place(self, where: str, location: str) -> tuple[Path, int]:
        """The file of a location, and its size. ValueError: it is outside the folder, missing, or no regular file."""
        told = f"{where} has its data in {location!r:.200}"
        split = PureWindowsPath(location)  # takes / and \ for separators, and knows drives
        if not location or split.anchor or ".." in split.parts:
            raise ValueError(f"{told}, which is no path within the model's folder; put the data there and export again")
        if any(sign in location for sign in "*\0"):  # onnxruntime takes "*/_ORT_MEM_ADDR_/*" for an address in memory
            raise ValueError(f"{told}, which is no name of a file; {AGAIN}")
        try:
            file = (self.reader.path.parent / location).resolve()
            folders = self.reader.path.parent.resolve(), self.reader.path.resolve().parent
            if not any(file.is_relative_to(folder) for folder in folders):
                raise ValueError(f"{told}, a link out of the model's folder, to {file}; copy the file into it")
            found = file.stat()
        except FileNotFoundError:
            raise ValueError(f"{told}, which is missing; put it beside the model") from None
        except (OSError, RuntimeError) as error:  # a loop of links, a name too long, a folder that may not be read
            raise ValueError(f"{told}, which cannot be reached: {error}; {AGAIN}") from None
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{told}, which is no regular file; {AGAIN}")
        return file, found.st_size
