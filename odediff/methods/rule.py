"""The solver that is taken when none is named: a rule of the budget, measured in docs/solvers.md."""

from __future__ import annotations

from typing import NamedTuple


class Choice(NamedTuple):
    """A method in a frame on a grid, from this budget on."""

    least: int
    name: str
    space: str | None
    variable: str | None
    grid: str


RULE = (
    Choice(1, "ddim", None, None, "quadratic"),
    Choice(3, "ab2", "flow", "t", "power:1.25"),
    Choice(4, "abm3", "x0", "lam", "power:1.25"),
    Choice(7, "abm2", "flow", "t", "power:1.5"),
    Choice(10, "abm2", "flow", "t", "power:1.5:0.5"),
    Choice(15, "abm3", "flow", "t", "power:1.5:0.5"),
    Choice(20, "abm4", "flow", "t", "asinh"),
)


def default(nfe: int) -> Choice:
    """The choice for a budget."""
    return max(choice for choice in RULE if choice.least <= max(nfe, 1))


# The budget from which a Runge-Kutta method has less error than ddim, both as they come, on both trained networks of
# docs/solvers.md, at this budget and the larger ones measured there.
AHEAD_OF_DDIM = {"heun": 15, "midpoint": 4, "rk3": 8, "rk4": 10, "rk4_38": 10}


def advice(name: str, nfe: int) -> str | None:
    """What to say of a method at a budget where ddim beats it; None of the others."""
    if nfe >= AHEAD_OF_DDIM.get(name, 1):
        return None
    return (
        f"{name} at {nfe} evaluations has a larger error than ddim, which it beats from {AHEAD_OF_DDIM[name]} up: take "
        f"{default(nfe).name}, the default at this budget (no solver named), or more evaluations (docs/solvers.md)"
    )
