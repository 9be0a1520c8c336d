"""Plans that were fitted to a model, in a folder next to it: one JSON file for each budget and guidance scale."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .plans import Plan

SOLVER = "tuned"  # the solver's name that stands for them


def folder_of(model: Any) -> Path | None:
    """Where a model's plans are: `tuned` in its folder, `NAME.tuned` beside NAME.onnx; None: it is in no folder."""
    path = getattr(model, "path", None)
    if path is not None:
        return Path(path).with_suffix(".tuned")
    folder = getattr(model, "folder", None)
    return None if folder is None else Path(folder) / "tuned"


def check_folder(folder: Path, what: str) -> None:
    """ValueError: a folder that cannot be written to, or made. what: would go there."""
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"{what} cannot be written to {folder}; name another folder")


def write_plan(plan: Plan, folder: Path, guidance: float | None) -> Path:
    """Write a plan for its budget; what was there is replaced when the new file is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _name(plan.nfe, guidance)
    spare = path.with_suffix(".part")
    spare.write_text(plan.to_json() + "\n")
    os.replace(spare, path)
    return path


def plan_path(folder: Path, nfe: int, guidance: float | None) -> Path:
    """The file of a plan in a folder."""
    return folder / _name(nfe, guidance)


def stored_plan(model: Any, nfe: int, guidance: float | None) -> Plan:
    """The plan that was fitted to a model at a budget and guidance.

    ValueError: there is none; the message names those that there are, and how to make one.
    """
    folder = folder_of(model)
    path = None if folder is None else folder / _name(nfe, guidance)
    if path is None or not path.is_file():
        have = sorted(one.stem for one in folder.glob("*.json")) if folder is not None and folder.is_dir() else []
        at = f"{nfe} evaluations" + ("" if guidance is None else f" and guidance {guidance:g}")
        raise ValueError(
            f"no tuned plan for {at}"
            + (f"; there are {', '.join(have)}" if have else f" in {folder or 'any folder'}")
            + f": odediff.tune(model, nfe={nfe}, save=True) or `odediff tune` makes one"
        )
    try:
        return Plan.from_json(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _name(nfe: int, guidance: float | None) -> str:
    if guidance is None or guidance == 1:  # the same
        return f"{nfe}.json"
    return f"{nfe}-guidance-{float(guidance)!r}.json".replace(".0.json", ".json")
