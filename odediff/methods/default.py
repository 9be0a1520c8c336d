"""The solver that is taken when none is named: a rule of the schedule and the budget, measured in docs/solvers.md."""

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
    Choice(3, "abm2", "flow", "t", "uniform"),
    Choice(4, "abm3", "flow", "t", "uniform"),
    Choice(9, "abm3", "flow", "t", "quadratic"),
)


def default(nfe: int) -> Choice:
    """The choice for a budget."""
    return max(choice for choice in RULE if choice.least <= max(nfe, 1))
