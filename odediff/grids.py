"""Time grids: where along the schedule the network is evaluated.

A grid maps the share of the evaluations spent so far, f in [0, 1), to a time; f = 1 is sigma = 0. A step that takes m
evaluations spans m / nfe, so one grid has the same density for every method. No named grid goes below t_min, where the
network was not trained: where the last start would, the powers end there instead.

    power:P    t = t_end + (t_max - t_end) (1 - f)^P          uniform in (t - t_end)^(1/P), P in [1, 4]
    power:P:S  the same, the last step S times as wide as its share, S in (0, 1]; power:P:1 is power:P
    uniform    power:1
    quadratic  power:2                                        DDIM, appendix D.2
    logsnr     lam linear in f from lam(t_max) to lam(t_min)  DPM-Solver, section 3.4
    karras     rho^(1/7) linear in f, the same ends           Karras et al. 2022, eq. 5
    asinh      asinh(lam / 2) linear in f, the same ends      ours: logsnr, but denser around rho = 1
"""

from __future__ import annotations

import reprlib

import numpy as np
from numpy.typing import ArrayLike

from .choices import unknown
from .schedule import Array, Schedule

POWERS = {"uniform": 1.0, "quadratic": 2.0}
GRIDS = ("uniform", "quadratic", "logsnr", "karras", "asinh")


def times(schedule: Schedule, grid: str | ArrayLike, evaluations: list[int], *, snap: bool = False) -> Array:
    """The times at which steps of these many `evaluations` start, float64, strictly decreasing, shape (steps,).

    grid: a name from `GRIDS`, "power:P" or "power:P:S" with numbers P from 1 to 4 and S above 0 to 1, or the times
    themselves (without the end, where sigma = 0).
    snap: round to the integer times that a network with an embedding table knows.
    ValueError: unknown name, no numbers, wrong length, times that do not decrease or leave the schedule, steps that
    snapping merges; a snap that is not True or False.
    """
    if not isinstance(snap, (bool, np.bool_)):
        raise ValueError(f"snap = {snap!r} must be True or False")
    if isinstance(grid, str):
        t = _named(schedule, grid, evaluations)
    else:
        t = _explicit(grid, evaluations)
    if snap and schedule.steps is None:
        raise ValueError(f'snap=True needs a table of steps; schedule "{schedule.identity["name"]}" is continuous')
    if snap:
        t = np.maximum(np.rint(t), schedule.t_min)
        if isinstance(grid, str):  # times that rounding merged move up by one each, so that nfe stays a promise
            rank = np.arange(len(t), dtype=np.float64)
            t = np.minimum((np.maximum.accumulate(t[::-1] - rank) + rank)[::-1], schedule.t_max - rank)
    inside = (t > schedule.t_end) & (t <= schedule.t_max)
    if not inside.all():
        raise ValueError(
            f"grid time {t[~inside][0]:g} is outside ({schedule.t_end:g}, {schedule.t_max:g}]; the end is added"
        )
    flat = np.flatnonzero(~(np.diff(t) < 0))
    if len(flat):
        k = int(flat[0])
        raise ValueError(
            f"grid times must strictly decrease, but t[{k}] = {t[k]:g} and t[{k + 1}] = {t[k + 1]:g}"
            + ("; rounded to whole times they merge" if snap else "")
        )
    return t


def _explicit(grid: ArrayLike, evaluations: list[int]) -> Array:
    try:
        given = np.asarray(grid)
    except (TypeError, ValueError, RuntimeError):  # ragged lists; tensors on a GPU or with a gradient
        given = np.array(None)
    if given.dtype.kind not in "iuf":  # no strings, None, booleans or complex numbers, which numpy would convert
        raise ValueError(
            f"grid = {reprlib.repr(grid)} is no list of numbers: give the times where steps start, such as "
            f"[999, 600, 200], or a name: {', '.join(GRIDS)}"
        )
    if given.shape != (len(evaluations),):
        raise ValueError(
            f"the grid has shape {given.shape}, but steps of {'+'.join(map(str, evaluations))} evaluations "
            f"start at {len(evaluations)} times (the end, sigma = 0, is added)"
        )
    return given.astype(np.float64)


def _named(schedule: Schedule, grid: str, evaluations: list[int]) -> Array:
    start, end = schedule.t_max, schedule.t_end
    power, last = _power(grid) or (None, 1.0)
    spent = np.cumsum([0, *evaluations[:-1]]) / (sum(evaluations[:-1]) + last * evaluations[-1])
    if power is not None:
        lowest = ((schedule.t_min - end) / (start - end)) ** (1 / power)
        if 1.0 - spent[-1] < lowest:
            spent = spent / spent[-1] * (1.0 - lowest)
        line = start + spent * (end - start)  # whole times stay whole
        return np.maximum(line if power == 1 else end + (start - end) * (1.0 - spent) ** power, schedule.t_min)
    t = np.full(len(spent), start)
    first = 0 if schedule.t_finite == start else 1  # alpha(t_max) = 0: lam is infinite there, the ramp starts one later
    if len(spent) - first < 2:
        t[first:] = schedule.t_finite
        return t
    f = (spent[first:] - spent[first]) / (spent[-1] - spent[first])
    lam = schedule.lam([schedule.t_finite, schedule.t_min])
    if grid == "logsnr":
        ramp = lam[0] + f * (lam[1] - lam[0])
    elif grid == "asinh":
        width = np.arcsinh(lam / 2.0)
        ramp = 2.0 * np.sinh(width[0] + f * (width[1] - width[0]))
    else:
        root = np.exp(-lam / 7.0)
        ramp = -7.0 * np.log(root[0] + f * (root[1] - root[0]))
    t[first:-1] = schedule.t_of_lam(ramp[:-1])
    t[first], t[-1] = schedule.t_finite, schedule.t_min  # exactly, whatever the inverse rounds to
    return t


def _power(grid: str) -> tuple[float, float] | None:
    """(P, S) of a grid of powers, None for the other names. ValueError: no such grid, no such numbers."""
    if grid in GRIDS:
        return (POWERS[grid], 1.0) if grid in POWERS else None
    kind, *numbers = grid.split(":")
    if kind != "power" or len(numbers) not in (1, 2):
        raise unknown("grid", grid, (*GRIDS, "power:P", "power:P:S"), " or pass an array of times")
    power, last = (_number(text) for text in (*numbers, "1")[:2])
    if not 1.0 <= power <= 4.0:
        raise ValueError(f"grid {grid!r}: the power must be a number from 1 to 4, such as power:1.5")
    if not 0.0 < last <= 1.0:
        raise ValueError(f"grid {grid!r}: the last step's width must be a number above 0 to 1, such as power:1.5:0.5")
    return power, last


def _number(text: str) -> float:
    """The number, NaN if it is none."""
    try:
        return float(text)
    except ValueError:
        return np.nan
