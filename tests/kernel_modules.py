"""The kernels, as the interpreter's functions on the CPU or as the compiler's, in one process.

triton.jit decides at import whether a function is interpreted, so that each kind is a copy of the modules of its own,
imported with the knob set, which leaves neither the environment nor sys.modules changed.
"""

from __future__ import annotations

import importlib
import sys
from functools import cache
from types import SimpleNamespace

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is published for Linux only")

PLACES = ["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)]


@cache
def load(place: str) -> SimpleNamespace:
    """The modules `stage`, `noise` and `probes` for the "interpreter" or for "cuda", and the device they run on."""

    def ours() -> dict[str, object]:
        return {m: sys.modules[m] for m in sys.modules if m.startswith(("odediff.kernels", "kernel_probes"))}

    before = ours()
    for name in before:
        del sys.modules[name]
    try:
        with triton.knobs.runtime.scope():
            triton.knobs.runtime.interpret = place == "interpreter"
            stage, noise = (importlib.import_module(f"odediff.kernels.{name}") for name in ("stage", "noise"))
            probes = importlib.import_module("kernel_probes")
    finally:
        for name in ours():
            del sys.modules[name]
        sys.modules.update(before)
    device = torch.device("cpu" if place == "interpreter" else "cuda")
    return SimpleNamespace(stage=stage, noise=noise, probes=probes, device=device)
