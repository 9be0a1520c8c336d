"""All that wants a GPU, in one command of less than ten minutes: tests, the stage kernel, the bars of the backends.

    ODEDIFF_COMMIT=$(git rev-parse HEAD) PYTHONPATH=. python bench/gpu.py --out "$OUT"
    python bench/gpu.py --stages "batch 1" --out "$OUT"   some of them, where less time is left
    python bench/gpu.py --dry --out /tmp        seconds, on a CPU: the gates and the format, on a tiny network
    python bench/gpu.py --report                what bench/results/gpu.json holds, into odediff/kernels/README.md

Never run on a GPU so far: none was at hand when this was written. Every stage is a process of its own, with a limit of
seconds; what it has measured is in gpu.json when it ends, however it ends, and a stage that fails or is left out says
why and stops no other. In a stage nothing is timed before what is timed has been compared. For triton 3.6, torch 2.11
and Python 3.12 or later; without diffusers its loop is written out in torch, and labelled so.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.append(sys.path.pop(0))  # bench/onnx.py is here, which would hide the package onnx

import argparse
import json
import os
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import common
import gpu_page
import gpu_stages
import speed_samplers
import torch
from common import RESULTS, write
from speed_images import RedGateError

PAGE = Path(__file__).parent.parent / "odediff" / "kernels" / "README.md"
BUDGETS = {"tests": 115, "kernel": 60, "batch 1": 200, "batch 256": 130, "candidates": 90, "onnx": 60}  # seconds
LIMIT = 540  # importing torch, before, and stopping what hangs take some seconds more
Outcome = dict[str, Any]
Command = Callable[[str, bool, Path], list[str]]


def outcome(stage: gpu_stages.Stage, dry: bool, save: Callable[[Any], None]) -> Outcome:
    """Run a stage here: how it ended and why; what it found is what it saved last."""
    kept: list[Any] = [None]

    def keep(result: Any) -> None:
        kept[0] = result
        save(result)

    try:
        stage(dry, keep)
        ended: Outcome = {"status": "ok"}
    except gpu_stages.LeftOutError as error:
        ended = {"status": "left out", "why": str(error)}
    except RedGateError as error:
        ended = {"status": "red gate", "why": str(error)}
    except Exception as error:  # whatever it is, the other stages are not to be lost
        ended = {"status": "failed", "why": f"{type(error).__name__}: {error}"[:2000]}
    return {**ended, "result": kept[0]}


def command(name: str, dry: bool, path: Path) -> list[str]:
    """What runs a stage in a process of its own, which writes `path`."""
    return [sys.executable, __file__, "--stage", name, "--out", str(path), *(["--dry"] if dry else [])]


def isolated(name: str, dry: bool, seconds: float, command: Command = command) -> Outcome:
    """Run a stage in a process that is stopped after so many seconds; what it had saved until then is kept."""
    with tempfile.TemporaryDirectory() as folder:
        path, log = Path(folder) / "stage.json", Path(folder) / "log"
        with log.open("w") as said:
            how = {"stdout": said, "stderr": subprocess.STDOUT, "start_new_session": True}
            process = subprocess.Popen(command(name, dry, path), **how)
            try:
                code = process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError, subprocess.TimeoutExpired):  # it has just ended, or cannot end
                    os.killpg(process.pid, signal.SIGKILL)  # with what it has started
                    process.wait(timeout=5)
                code = None
        found: Outcome = json.loads(path.read_text()) if path.is_file() else {"result": None}
        if code is None:
            return {**found, "status": "timeout", "why": f"stopped after {seconds:.0f} s"}
        if code or "status" not in found:
            return {**found, "status": "failed", "why": f"exit status {code}: {log.read_text()[-2000:]}"}
        return found


def single(name: str, dry: bool, path: Path) -> None:
    """A stage in this process, its results in `path` as they come."""
    part = path.with_suffix(".part")

    def save(data: Outcome) -> None:
        part.write_text(json.dumps(data))
        part.replace(path)

    save(outcome(gpu_stages.STAGES[name], dry, lambda result: save({"result": result})))


def versions() -> dict[str, str]:
    """Of what counts beside torch."""
    there = {name: metadata.version(name) for name in ("triton", "diffusers") if speed_samplers.installed(name)}
    return {**({"CUDA": torch.version.cuda} if torch.version.cuda else {}), **there}


def measure(names: list[str], dry: bool, limit: float, out: Path) -> Path:
    """Every stage in turn, within the limit in seconds; `gpu.json` after each."""
    begin, done = time.perf_counter(), {}
    for name in names:
        left = min(BUDGETS[name], limit - (time.perf_counter() - begin))
        if left < 10:
            done[name] = {"status": "left out", "why": f"no time was left of {limit:.0f} s", "result": None}
        else:
            started = time.perf_counter()
            run = outcome(gpu_stages.STAGES[name], dry, lambda _: None) if dry else isolated(name, dry, left)
            done[name] = {**run, "seconds": round(time.perf_counter() - started, 1)}
        path = write("gpu_dry" if dry else "gpu", {"dry": dry, "versions": versions(), "stages": done}, out)
        print(f"{name}: {done[name]['status']} {done[name].get('why', '')}"[:300], file=sys.stderr)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="on a CPU: the format and the gates, on a tiny network")
    parser.add_argument("--stages", nargs="+", choices=list(BUDGETS), default=list(BUDGETS))
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for all")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--stage", choices=list(BUDGETS), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # those of the peers
    common.exact_float32()
    if args.stage:
        single(args.stage, args.dry, args.out)
        return
    path = args.out / "gpu.json"
    if not args.report:
        if not args.dry and not torch.cuda.is_available():
            parser.error("no GPU that torch sees; --dry runs the gates and the format on a CPU")
        path = measure(args.stages, args.dry, args.limit, args.out)
    text = gpu_page.text(json.loads(path.read_text()) if path.is_file() else None)
    print(text)
    if args.out == RESULTS and not args.dry:
        common.write_block("gpu", text, PAGE)


if __name__ == "__main__":
    main()
