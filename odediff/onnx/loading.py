"""Load an ONNX file: checked before anything runs it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..schedule import Schedule
from . import wire
from .engines import Options
from .metadata import KEY, About
from .runtime import DTYPES, OnnxModel, OnnxSampler


def load(
    path: str | os.PathLike[str],
    *,
    provider: str = "cpu",
    threads: int | None = None,
    memory: int | None = None,
    cuda_graph: bool = False,
    names: Mapping[str, str] | None = None,
    schedule: Schedule | None = None,
    prediction: str | None = None,
    shape: Sequence[int] | None = None,
    range: Sequence[float] | None = None,
    integer_times: bool = False,
    num_classes: int | None = None,
) -> OnnxModel | OnnxSampler:
    """An ONNX file, checked before anything runs it: a network as a model, a sampler with `run(n, seed)`.

    provider: "cpu", "cuda", "tensorrt" (of onnxruntime) or "openvino"; asked for by name, and verified to be what runs.
    threads: of one operator; None: as many as there are cores.  memory: bytes that a batch may take, None: no limit.
    cuda_graph: record the launches once and replay them; files of a fixed batch, on "cuda" or "tensorrt".
    For a network that odediff did not export: schedule, prediction and shape, which its file does not hold, and range,
    integer_times, num_classes as in `odediff.Model`; names: what it calls `sample`, `timestep`, `label`, `out_sample`.
    FileNotFoundError: no such file.  ValueError: not an ONNX file, a damaged one, one that reaches for data outside its
    folder, other metadata than odediff's, missing or needless arguments.
    ProviderError: the provider is not there, or cannot read the file; raised by the first run.
    """
    path = Path(path)
    summary = wire.read(path)
    options = Options(provider, threads, memory, cuda_graph)
    foreign = {"schedule": schedule, "prediction": prediction, "shape": shape}
    if KEY in summary.metadata:
        given = [
            name for name, value in {**foreign, "range": range, "num_classes": num_classes}.items() if value is not None
        ]
        if given or integer_times:
            raise ValueError(f"{path} says its own {(given or ['integer_times'])[0]}; leave it out")
        try:
            about = About.from_json(summary.metadata[KEY])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    else:
        more = {"range": None if range is None else tuple(range), "integer_times": integer_times}
        about = _foreign(path, summary, (names or {}).get("sample", "sample"), foreign, num_classes=num_classes, **more)
    kind = OnnxModel if about.plan is None else OnnxSampler
    found = _names(path, about, summary, names or {})
    options.check(about.batch)
    return kind(path, about, summary, found, options)


def _foreign(path: Path, summary: wire.Summary, sample: str, needed: Mapping[str, Any], **more: Any) -> About:
    """What is said of a network that odediff did not export. ValueError: something that is needed is not."""
    missing = [name for name, value in needed.items() if value is None]
    if missing:
        raise ValueError(f"{path} was not exported by odediff: give {', '.join(missing)} of the network in it")
    taken, dims = summary.inputs.get(sample, ("", ()))
    return About(
        prediction=needed["prediction"],
        schedule=dict(needed["schedule"].identity),
        shape=tuple(needed["shape"]),
        precision="fp16" if taken == "float16" else "fp32",
        batch=dims[0] if dims and isinstance(dims[0], int) else None,
        **more,
    )


def _names(path: Path, about: About, summary: wire.Summary, given: Mapping[str, str]) -> dict[str, str]:
    """What the file calls the inputs and the output. ValueError: it has others, of other types, or other shapes."""
    sampler = about.plan is not None
    inputs = ["noise"] if sampler else ["sample", "timestep"]
    outputs = ["images"] if sampler else ["out_sample"]
    plan = about.table()
    if plan is not None and plan.stochastic:
        inputs.append("row_noise")
    if about.num_classes is not None and not (sampler and about.prediction_options.get("guidance") == 0):  # type: ignore[union-attr]
        inputs.append("label")
    unknown = set(given) - {*inputs, *outputs}
    if unknown:
        raise ValueError(
            f"names has {sorted(unknown)[0]!r}; it maps {', '.join([*inputs, *outputs])} to the file's own"
        )
    found = {what: given.get(what, what) for what in (*inputs, *outputs)}
    for what, have in ((inputs, summary.inputs), (outputs, summary.outputs)):
        for name in what:
            if found[name] not in have:
                raise ValueError(
                    f"{path} has no {found[name]!r}, but {', '.join(have) or 'nothing'}; "
                    f"say what it calls {name} with names={{...}}"
                )
    spare = set(summary.inputs) - set(found.values())
    if spare:
        raise ValueError(f"{path} has an input {sorted(spare)[0]!r} that odediff would not know how to feed")
    for name in (inputs[0], *inputs[1:], outputs[0]):
        dtype, dims = have_of(summary, found[name])
        if dtype not in DTYPES:
            raise ValueError(f"{path}: {found[name]} is of type {dtype}; odediff feeds {', '.join(DTYPES)}")
        if name in ("timestep", "label") and len(dims) > 1:
            raise ValueError(f"{path}: {found[name]} has the shape {dims}; odediff feeds (batch,)")
        at = dims[1:2] if name == "row_noise" else () if name == "timestep" and dims == (1,) else dims[:1]
        if at and isinstance(at[0], int) and at[0] != about.batch:
            raise ValueError(f"{path}: {found[name]} has a batch of {at[0]}, and not of {about.batch or 'any size'}")
        if name in (inputs[0], outputs[0]) and dims:
            fits = len(dims) == 1 + len(about.shape) and all(
                not isinstance(dim, int) or dim == size for dim, size in zip(dims[1:], about.shape, strict=True)
            )
            if not fits:
                raise ValueError(f"{path}: {found[name]} has the shape {dims}, for samples of {about.shape}")
    return found


def have_of(summary: wire.Summary, name: str) -> tuple[str, tuple[int | str, ...]]:
    """Type and dimensions of an input or output."""
    return {**summary.inputs, **summary.outputs}[name]
