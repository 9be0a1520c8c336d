"""What `tune` has to show: a table, a picture, and what goes into the plan's provenance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..plans import Plan
from .certificate import Certificate, Entry, Interval
from .fitting import Record

SHOWN = 6


@dataclass(frozen=True)
class Budget:
    """One budget: the fitted plan, whether or not it holds, its certificate, the pair that the fit started from, its
    steps, and the name of what was returned.

    doubt: median error of the held-out references, an upper bound.  evaluations: of the network, in samples.
    seconds: of process CPU time.
    """

    nfe: int
    plan: Plan
    certificate: Certificate
    start: str
    records: tuple[Record, ...]
    returned: str
    doubt: float
    evaluations: int
    seconds: float

    def __str__(self) -> str:
        c = self.certificate
        head = f"{self.nfe} evaluations; held-out noise, references good to {self.doubt:.1e}"
        has_frechet = c.tuned.frechet is not None
        titles = ["plan", "samples", "RMSE", "95 %", "median", "95 %", "sliced W2", *(["Frechet"] * has_frechet)]
        shown = [c.tuned, *c.pairs[:SHOWN]]
        shown += [entry for entry in c.pairs[SHOWN:] if entry.name == "default"]
        rows = [_cells(entry, has_frechet) for entry in shown]
        widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
        table = [[f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)] for row in (titles, *rows)]
        lines = ["  ".join(row).rstrip() for row in table]
        more = len(c.pairs) - SHOWN
        verdict = f"tuned over the best pair: RMSE {_interval(c.rmse)}, median {_interval(c.median)}" + (
            "" if c.holds else "; not better beyond its interval, so the best built-in pair is returned"
        )
        cost = f"{self.evaluations} evaluations of a sample, {self.seconds:.0f} s of CPU time; from {self.start}"
        return "\n".join([head, *lines, *([f"and {more} more pairs"] if more > 0 else []), verdict, cost])


@dataclass(frozen=True)
class Report:
    """The budgets that were tuned: `report[8]` is one; `str` has their tables."""

    budgets: Mapping[int, Budget]

    def __getitem__(self, nfe: int) -> Budget:
        return self.budgets[nfe]

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.budgets.values()))

    def plot(self, path: str | Path, measure: str = "median") -> None:
        """Draw the error over the evaluations, log-log: tuned, best built-in pair, the default, ddim.

        measure: "median" or "rmse".  ValueError: another.
        """
        from ..analysis.plotting import check_path, figure, legend, save, style

        check_path(path)
        if measure not in ("median", "rmse"):
            raise ValueError(f"unknown measure {measure!r}; choose median, rmse")
        canvas, (axes,) = figure(1)
        lines: dict[str, list[tuple[int, Interval]]] = {}
        for nfe, budget in sorted(self.budgets.items()):
            pairs = budget.certificate.pairs
            found = {
                "tuned": [budget.certificate.tuned],
                "best built-in pair": [entry for entry in pairs if entry.n == budget.certificate.tuned.n],
                "default": [entry for entry in pairs if entry.name == "default"],
                "ddim quadratic": [entry for entry in pairs if entry.name == "ddim quadratic"],
            }
            for name, entries in found.items():
                if entries:
                    best = min((getattr(entry, measure) for entry in entries), key=lambda one: one[0])
                    lines.setdefault(name, []).append((nfe, best))
        for k, (name, points) in enumerate(lines.items()):
            at, values = [nfe for nfe, _ in points], [one[0] for _, one in points]
            spread = [[v - one[1] for v, (_, one) in zip(values, points, strict=True)]]
            spread += [[one[2] - v for v, (_, one) in zip(values, points, strict=True)]]
            axes.errorbar(at, values, spread, label=name, capsize=3, **style(k))
        axes.set(xscale="log", yscale="log", xlabel="evaluations of the network", ylabel=f"{measure} error in x0")
        axes.set_xticks(sorted(self.budgets), [str(nfe) for nfe in sorted(self.budgets)])
        axes.minorticks_off()
        legend(axes)
        save(canvas, path)


def provenance(certificate: Certificate) -> dict[str, Any]:
    """What a tuned plan says of itself, JSON-able."""
    return {
        "held_out": certificate.tuned.n,
        "rmse": list(certificate.tuned.rmse),
        "median": list(certificate.tuned.median),
        "over_best_rmse": list(certificate.rmse),
        "over_best_median": list(certificate.median),
        "best": certificate.best,
    }


def _cells(entry: Entry, has_frechet: bool) -> list[str]:
    spread = "-" if entry.wasserstein is None else number(entry.wasserstein)
    cells = [entry.name, str(entry.n), number(entry.rmse[0]), _range(entry.rmse)]
    cells += [number(entry.median[0]), _range(entry.median), spread]
    return cells + ["-" if entry.frechet is None else f"{entry.frechet:.3f}"] * has_frechet


def _range(one: Interval) -> str:
    return f"{number(one[1])} to {number(one[2])}"


def number(error: float) -> str:
    """Four places, or two digits of what is smaller."""
    return f"{error:.4f}" if error >= 1e-3 or error == 0 else f"{error:.1e}"


def _interval(one: Interval) -> str:
    return f"{one[0]:.2f} ({one[1]:.2f} to {one[2]:.2f})"
