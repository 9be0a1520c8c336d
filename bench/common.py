"""What every measurement records beside its numbers."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"


def environment() -> dict[str, Any]:
    """Machine, versions and commit (ODEDIFF_COMMIT where there is no git, as on the GPU machine)."""
    commit = os.environ.get("ODEDIFF_COMMIT")
    if commit is None:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        try:
            commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        except OSError:  # no git there
            commit = ""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else _processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "commit": commit or "unknown",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def write(name: str, data: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write results as `folder/name.json`, the environment included."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"environment": environment(), **data}, indent=1) + "\n")
    return path


def exact_float32() -> None:
    """Full float32 matrix products and convolutions on CUDA: an error table must not measure TF32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def pin() -> None:
    """One thread of this process and its children on one core."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.environ |= {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    torch.set_num_threads(1)


def write_block(name: str, text: str, page: Path = README) -> None:
    """Put text between `<!-- name -->` and `<!-- /name -->` of a page. ValueError: the page has no such block."""
    block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    old = page.read_text()
    if not block.search(old):
        raise ValueError(f"{page} has no block <!-- {name} --> .. <!-- /{name} -->")
    page.write_text(block.sub(lambda found: f"{found[1]}{text}\n{found[2]}", old))
