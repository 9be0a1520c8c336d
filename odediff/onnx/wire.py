"""Placeholder until the branch `wire` is merged: the same interface through the onnx package."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

TYPES = {1: "float32", 6: "int32", 7: "int64", 10: "float16", 11: "float64"}


@dataclass(frozen=True)
class Summary:
    """What a file holds."""

    metadata: dict[str, str]
    inputs: dict[str, tuple[str, tuple[int | str, ...]]]
    outputs: dict[str, tuple[str, tuple[int | str, ...]]]


def read(path: Path) -> Summary:
    """Read it."""
    made = onnx.load(path, load_external_data=False)

    def values(entries: Any) -> dict[str, tuple[str, tuple[int | str, ...]]]:
        return {
            one.name: (
                TYPES[one.type.tensor_type.elem_type],
                tuple(dim.dim_value or dim.dim_param for dim in one.type.tensor_type.shape.dim),
            )
            for one in entries
        }

    metadata = {one.key: one.value for one in made.metadata_props}
    return Summary(metadata, values(made.graph.input), values(made.graph.output))
