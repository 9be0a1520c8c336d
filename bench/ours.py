"""odediff's own settings: every deterministic method as it comes, and the candidates for the default."""

from __future__ import annotations

from collections.abc import Callable

from problems import Problem
from rivals import Setting
from torch import Tensor

import odediff
from odediff.methods import METHODS

FRAMES = (("flow", "t"), ("flow", "tau"), ("eps", "lam"), ("x0", "lam"), ("v", "phi"), ("v", "t"))
ADAMS = ("ab2", "ab3", "ab4", "abm2", "abm3", "abm4")
ADAMS_GRIDS = ("uniform", "power:1.25", "power:1.5", "power:1.5:0.5", "power:1.75", "quadratic", "asinh", "logsnr")


def _run(name: str | None, **options: str) -> Callable[[Problem, int], Tensor]:
    def run(problem: Problem, nfe: int) -> Tensor:
        plan = odediff.plan(name, problem.schedule, nfe, **options)
        return odediff.Sampler(problem.model, plan)(problem.noise)

    return run


def ours(everything: bool) -> list[Setting]:
    """The default, and every method in its default frame and grid; everything: the Adams methods in `FRAMES` on
    `ADAMS_GRIDS` too."""
    keys: dict[tuple[str, str, str, str], None] = {}
    for name, method in METHODS.items():
        if method.stochastic and name != "ddim":
            continue
        keys[(name, *method.frames[0], method.grid)] = None
        if everything and name in ADAMS:
            keys |= dict.fromkeys((name, *frame, grid) for frame in FRAMES for grid in ADAMS_GRIDS)
    made = [(name, options(*rest)) for name, *rest in keys]
    settings = [Setting("odediff", name, one, _run(name, **one), METHODS[name].min_nfe) for name, one in made]
    return [Setting("odediff", "default", {}, _run(None)), *settings]


def options(space: str, variable: str, grid: str) -> dict[str, str]:
    """As a setting records them."""
    return {"space": space, "variable": variable, "grid": grid}
