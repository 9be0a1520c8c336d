"""The log of a run: one JSON object a line, and the progress bar."""

import json
from pathlib import Path
from typing import Any


class Log:
    """Appends records to `path`, a JSON object a line; each reaches the file before `write` returns.

    Opened at `step`: later records, of steps that a resumed run makes again, are dropped, and so is a line cut short.
    """

    def __init__(self, path: Path, step: int) -> None:
        kept = [line for line in _lines(path) if _step(line) <= step]
        path.write_text("".join(line + "\n" for line in kept))
        self._file = path.open("a", buffering=1)

    def write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")

    def close(self) -> None:
        self._file.close()


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
