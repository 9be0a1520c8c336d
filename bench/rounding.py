"""What float32 costs a plan, against what its table says: docs/analysis.md.

loss   RMS of x32 - x64 over RMS of x64, the last states of the rows in float32 and in float64, from one start, with
       an exact network rounded to the state's precision; in units of 2^-24, the larger of two problems
row    the largest `Plan.amplification`
plan   `analysis.rounding`

python bench/rounding.py        about a minute, writes bench/results/rounding.json and the table of docs/analysis.md
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, write, write_block
from tqdm import tqdm

from odediff import analysis, plan
from odediff import schedule as schedules
from odediff.methods import METHODS
from odediff.plans import Plan
from odediff.spaces import space_pair

PAGE = Path(__file__).parent.parent / "docs" / "analysis.md"
SCHEDULES = {
    "linear": schedules.linear(),
    "cosine": schedules.cosine(),
    "sigmoid": schedules.sigmoid(),
    "zero_snr": schedules.linear().zero_terminal_snr(),
}
NFES = (5, 6, 8, 10, 15, 20, 30, 60)
GRIDS = (None, "uniform", "logsnr")
UNIT = 2.0**-24
ANGLES = np.arange(8) * np.pi / 4
PROBLEMS = {
    "gaussian": analysis.gaussian(0.3, 0.5),
    "mixture": analysis.mixture(np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1), std=0.1),
}


def run(made: Plan, denoise: Any, x: np.ndarray, kind: type) -> np.ndarray:
    """The plan's rows in a precision; the network is exact and rounded to it."""
    u, w = space_pair(made.space, made.alpha[:-1], made.sigma[:-1])
    history: list[np.ndarray] = []
    for i in range(made.nfe):
        wide = x.astype(np.float64)
        x0 = denoise(wide, made.alpha[i], made.sigma[i])
        d = u[i] * x0 + w[i] * (wide - made.alpha[i] * x0) / made.sigma[i]
        history = [d.astype(kind), *history[: made.depth - 1]]
        x = kind(made.a[i]) * x
        for b, old in zip(made.b[i], history, strict=False):
            x = x + kind(b) * old
    return x


def measure(name: str, schedule: str, grid: str | None, nfe: int) -> dict[str, Any] | None:
    """One plan; None where there is none."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            made = plan(name, SCHEDULES[schedule], nfe, grid)
    except ValueError:
        return None
    if made.stochastic:
        return None
    start = np.random.default_rng(0).normal(size=(256, 2)).astype(np.float32)
    row: dict[str, Any] = {"method": name, "schedule": schedule, "grid": grid or "default", "nfe": nfe}
    row |= {"warned": bool(caught), "row": float(made.amplification.max()), "plan": analysis.rounding(made)}
    for key, denoise in PROBLEMS.items():
        narrow, wide = run(made, denoise, start, np.float32), run(made, denoise, start.astype(np.float64), np.float64)
        gap = narrow.astype(np.float64) - wide
        row[key] = float(np.sqrt(np.mean(gap**2) / np.mean(wide**2)) / UNIT)
    return row


def count(rows: list[dict[str, Any]], caught: str, of: Any) -> list[Any]:
    """Of the plans that lose more than 2^-10, and of those that lose less than 2^-14, how many a criterion names."""
    lossy = [row for row in rows if max(row[key] for key in PROBLEMS) > 2.0**14]
    sound = [row for row in rows if max(row[key] for key in PROBLEMS) < 2.0**10]
    named = (sum(map(of, lossy)), sum(map(of, sound)))
    return [caught, f"{named[0]} of {len(lossy)}", f"{named[1]} of {len(sound)}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    settings = itertools.product(METHODS, SCHEDULES, GRIDS, NFES)
    rows = [row for setting in tqdm(list(settings)) if (row := measure(*setting))]
    counts = [
        count(rows, "a row above 2^10", lambda row: row["row"] > 2.0**10),
        count(rows, "any `PrecisionWarning`", lambda row: row["warned"]),
        count(rows, "a row above 100", lambda row: row["row"] > 100),
        count(rows, "`rounding` above 2^14", lambda row: row["plan"] > 2.0**14),
    ]
    print(write("rounding", {"plans": len(rows), "counts": counts}, args.out))
    lines = ["| criterion | loses more than 1e-3 | loses less than 6e-5 |", "|---|---|---|"]
    write_block("rounding", "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in counts)]), PAGE)


if __name__ == "__main__":
    main()
