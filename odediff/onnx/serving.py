"""A model repository for NVIDIA's Triton Inference Server around an ONNX file.

    FOLDER/NAME/config.pbtxt            names, types and shapes, batching, instances
    FOLDER/NAME/VERSION/model.onnx      with external data a folder of that name, with model.onnx and the data in it

Triton joins requests along the first axis, if that is the batch of every input and output; it is left out of `dims`
then, and a tensor of shape (batch,) is requested as (batch, 1). Otherwise, as where a batch is fixed or in `row_noise`
(rows, batch, ..), max_batch_size is 0, `dims` are the whole shape, and requests are run one by one.

Sources: the server's documentation, "Model Configuration", "Model Repository" and "Batchers"; the README of its
onnxruntime backend.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import wire
from .metadata import KEY, About

TYPES = {
    "bool": "TYPE_BOOL",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    **{f"{sign}int{bits}": f"TYPE_{sign}INT{bits}".upper() for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
MAX_BATCH = 16  # unless the caller names one


def triton_repository(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    name: str | None = None,
    *,
    max_batch: int | None = None,
    preferred: Sequence[int] = (),
    delay: int = 0,
    instances: int = 1,
    gpu: bool = False,
    threads: int | None = None,
) -> Path:
    """Put a copy of an exported network or sampler, or of another ONNX file, into a model repository; its new folder.

    folder: the repository, made if missing.  name: the model's, of letters, digits, "_", "-" and "."; None: the file's.
    max_batch: samples that Triton runs at a time, from 1 up; None: 16, or 0 where it cannot batch.
    preferred: batch sizes to wait for, of value only where some are much faster.  delay: microseconds to wait for them,
        or for a full batch.  instances: sessions on the CPU, or with gpu on each GPU.  threads: of a session on the
        CPU; None: one a core.
    The copy is version 1, or one more than the last: Triton serves the newest. config.pbtxt is of all versions, so one
    that says something else is not overwritten.
    ValueError: a bad or damaged file, tensors that Triton has no type or shape for, options out of range, batching
    where Triton cannot, another config.pbtxt.  FileNotFoundError: no such file.  No file is written then.
    """
    path, name = Path(path), Path(path).stem if name is None else name
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError(f'name = {name!r} must be letters, digits, "_", "-" and ".", a letter or digit first')
    summary = wire.read(path)
    _check(path, summary)
    if not isinstance(gpu, bool):
        raise ValueError(f"gpu = {gpu!r} must be True or False")
    if not isinstance(preferred, (list, tuple)):
        raise ValueError(f"preferred = {preferred!r} must be a list of batch sizes such as [4, 8]")
    optional = {"max_batch": max_batch, "threads": threads}
    _numbers({"instances": instances} | {key: value for key, value in optional.items() if value is not None}, 1)
    batched = _batch(path, summary, max_batch, preferred, delay)
    config = "\n".join([f"name: {_text(name)}", 'backend: "onnxruntime"', f"max_batch_size: {batched}"])
    config += f"\ninput [\n{_tensors(summary.inputs, batched)}\n]\noutput [\n{_tensors(summary.outputs, batched)}\n]\n"
    config += f"instance_group [ {{ count: {instances} kind: {'KIND_GPU' if gpu else 'KIND_CPU'} }} ]\n"
    if batched > 1:
        config += f"dynamic_batching {{{''.join(_batching(preferred, delay))} }}\n"
    if threads is not None:
        config += f'parameters {{ key: "intra_op_thread_count" value: {{ string_value: "{threads}" }} }}\n'
    return _write(path, summary, Path(folder) / name, config)


def _check(path: Path, summary: wire.Summary) -> None:
    """ValueError: metadata that odediff does not write, a tensor that Triton cannot take."""
    if KEY in summary.metadata:
        try:
            About.from_json(summary.metadata[KEY])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    for name, (dtype, dims) in (*summary.inputs.items(), *summary.outputs.items()):
        if dtype not in TYPES:
            raise ValueError(f"{path}: {name} is of type {dtype}; Triton serves {', '.join(TYPES)}")
        if not dims:
            raise ValueError(
                f"{path}: {name} is a scalar or has no shape, which Triton does not serve; give it an axis"
            )


def _batch(path: Path, summary: wire.Summary, given: int | None, preferred: Sequence[int], delay: int) -> int:
    """max_batch_size. ValueError: batching of a file that Triton cannot batch, sizes above the largest batch."""
    values = {**summary.inputs, **summary.outputs}
    other = next((name for name, (_, dims) in values.items() if isinstance(dims[0], int)), None)
    largest = 0 if other else MAX_BATCH if given is None else given
    _numbers({"delay": delay}, 0)
    asked = [key for key, value in {"preferred": preferred, "delay": delay}.items() if value]
    if other and (given is not None or asked):
        raise ValueError(
            f"{path}: {other} has the shape {values[other][1]}, and Triton batches only where the first axis of every "
            f"tensor is a batch of any size; leave {'max_batch' if given is not None else asked[0]} out"
        )
    if largest == 1 and asked:
        raise ValueError(f"{asked[0]} is about batches, and max_batch = 1; leave one of them out")
    _numbers({f"preferred[{k}]": size for k, size in enumerate(preferred)}, 1, largest)
    return largest


def _numbers(given: dict[str, Any], low: int, high: int = 2**31 - 1) -> None:
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{name} = {value!r} must be a whole number in {low} .. {high}")


def _batching(preferred: Sequence[int], delay: int) -> Iterator[str]:
    if preferred:
        yield f" preferred_batch_size: [ {', '.join(map(str, sorted(set(preferred))))} ]"
    if delay:
        yield f" max_queue_delay_microseconds: {delay}"


def _tensors(values: dict[str, wire.Value], batched: int) -> str:
    made = []
    for name, (dtype, dims) in values.items():
        own = [dim if isinstance(dim, int) else -1 for dim in dims[1 if batched else 0 :]]
        shape = f"dims: [ {', '.join(map(str, own))} ]" if own else "dims: [ 1 ] reshape { shape: [ ] }"
        made.append(f"  {{ name: {_text(name)} data_type: {TYPES[dtype]} {shape} }}")
    return ",\n".join(made)


def _text(text: str) -> str:
    """A string of protobuf's text format."""
    plain = {byte: chr(byte) for byte in range(32, 127)} | {ord(mark): f"\\{mark}" for mark in '"\\'}
    return '"' + "".join(plain.get(byte, f"\\{byte:03o}") for byte in text.encode()) + '"'


def _write(path: Path, summary: wire.Summary, home: Path, config: str) -> Path:
    """Copy to a folder beside the versions, which Triton does not look into, and rename that once it is complete."""
    file = home / "config.pbtxt"
    if file.exists() and file.read_text(encoding="utf-8") != config:
        raise ValueError(f"{file} says something else than these options; move it away to have it written anew")
    made = not home.exists()
    home.mkdir(parents=True, exist_ok=True)
    versions = [int(one.name) for one in home.iterdir() if re.fullmatch("[1-9][0-9]*", one.name)]
    version = home / str(max(versions, default=0) + 1)
    try:
        with tempfile.TemporaryDirectory(prefix=".", dir=home) as temporary:
            new = Path(temporary) / "new"
            _copy(path, summary, new)
            file.write_text(config, encoding="utf-8")
            os.replace(new, version)
    except BaseException:
        if made:
            with suppress(OSError):
                home.rmdir()
        raise
    return version


def _copy(path: Path, summary: wire.Summary, new: Path) -> None:
    """ValueError: external data that are links, whose names the graph would not find again."""
    inner = new / "model.onnx" if summary.external else new
    inner.mkdir(parents=True)
    shutil.copyfile(path, inner / "model.onnx")
    bases = (path.resolve().parent, path.parent.resolve())
    for data in summary.external:
        target = inner / data.relative_to(next(base for base in bases if data.is_relative_to(base)))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(data, target)
    try:
        wire.read(inner / "model.onnx")
    except ValueError:
        raise ValueError(f"{path} has external data behind links, or changed while it was copied; copy both") from None
