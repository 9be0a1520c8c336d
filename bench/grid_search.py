"""How far one fixed choice per budget can go: Adams methods on families of grids that the library does not all name.

    python bench/grid_search.py gaussian modes digits mnist bench/networks/fashion      measure
    python bench/grid_search.py --report                                                the table of docs/solvers.md

    power P, S    (1 - f)^P with a last step S times as wide as the others; S = 0 lands on t_min
    asinh C, S    asinh(lam / C) linear in f, C from 1/2 to 8, S = 3/4 or 0
    blend P, w    (1 - w) (power P's variable) + w (lam's), both over 0 .. 1, linear in f, landing on t_min

Errors are medians over the samples of `problems.py`, over that of the best peer in `results/work_precision`. Beyond 10
evaluations, the first `LATE` only.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, environment, write_block
from problems import EXACT, Problem, errors, exact, network
from solver_page import PAGE, best, cells, geometric, is_exact
from tqdm import tqdm
from work_precision import REFERENCE_NFE, load

import odediff

NFE = (3, 4, 5, 6, 8, 10, 12, 15, 20, 30)
FRAMES = (
    *(("abm2", "flow", "t"), ("abm3", "flow", "t"), ("abm4", "flow", "t"), ("ab4", "flow", "t")),
    *(("ab4", "eps", "lam"), ("abm4", "flow", "tau"), ("ab2", "flow", "t"), ("abm2", "x0", "lam")),
    *(("abm3", "x0", "lam"), ("abm4", "x0", "lam"), ("abm3", "v", "phi"), ("abm2", "flow", "tau")),
)
LATE = 6  # of FRAMES
FOLDER = RESULTS / "grid_search"
Times = Callable[[int], np.ndarray]


def grids(schedule: odediff.schedule.Schedule) -> dict[str, Times]:
    """name -> the times for n evaluations."""
    start, low, end = schedule.t_max, schedule.t_min, schedule.t_end
    t = np.concatenate([np.linspace(start, 20, 2000), np.geomspace(20, max(low, 1e-3), 2000)[1:]])
    lam = np.asarray(schedule.lam(t))

    def power(p: float, s: float) -> Times:
        least = ((low - end) / (start - end)) ** (1 / p)

        def times(n: int) -> np.ndarray:
            f = np.arange(n) / (n - 1 + s)
            f = f * (1 - least) if s == 0 else np.minimum(f, 1 - least)
            return np.maximum(end + (start - end) * (1 - f) ** p, low)

        return times

    def ramp(u: np.ndarray, s: float) -> Times:
        u = (u - u[0]) / (u[-1] - u[0])

        def times(n: int) -> np.ndarray:
            found = np.interp(np.arange(n) / (n - 1 + s), u, t)
            found[0] = start
            if s == 0:
                found[-1] = low
            return found

        return times

    def width(p: float) -> np.ndarray:
        return 1 - ((t - end) / (start - end)) ** (1 / p)

    made = {f"power {p:g}, {s:g}": power(p, s) for p, s in product((1, 1.25, 1.5, 1.75, 2, 2.5, 3), (1, 0.5, 0.25, 0))}
    made |= {f"asinh {c:g}, {s:g}": ramp(np.arcsinh(lam / c), s) for c, s in product((0.5, 1, 2, 4, 8), (0.25, 0))}
    for p, w in product((1.25, 1.5, 1.75, 2), (0.1, 0.2, 0.3, 0.4, 0.6)):
        along, rise = width(p), (lam - lam[0]) / (lam[-1] - lam[0])
        made[f"blend {p:g}, {w:g}"] = ramp((1 - w) * along / along[-1] + w * rise, 0)
    return made


def measure(problem: Problem) -> None:
    """Add the medians that are missing to the problem's file, budget by budget."""
    path = FOLDER / f"{problem.name}.json"
    data: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"medians": {}}
    truth, _ = problem.reference(REFERENCE_NFE)
    for nfe in NFE:
        frames = FRAMES if nfe <= 10 else FRAMES[:LATE]
        for frame, (name, times) in tqdm(list(product(frames, grids(problem.schedule).items())), desc=str(nfe)):
            rows = data["medians"].setdefault(f"{' '.join(frame)}, {name}", {})
            if str(nfe) in rows:
                continue
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    plan = odediff.plan(frame[0], problem.schedule, nfe, times(nfe), space=frame[1], variable=frame[2])
                x = odediff.Sampler(problem.model, plan)(problem.noise)
            except (ValueError, FloatingPointError):  # a budget below the method's least, rows beyond float32
                continue
            rows[str(nfe)] = float(f"{errors(x, truth)['median']:.4g}")
        write({**data, "environment": environment()}, path)


def write(data: dict[str, Any], path: Path) -> None:
    """A setting a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f"{json.dumps(key)}:{json.dumps(rows)}" for key, rows in sorted(data["medians"].items()))
    path.write_text(f'{{"environment":{json.dumps(data["environment"])},"medians":{{\n{lines}\n}}}}\n')


def report() -> None:
    """Per budget: the choice that is best over all problems, the one best on the networks, and what each costs."""
    found = cells(load()["rows"])
    data = {path.stem: json.loads(path.read_text())["medians"] for path in sorted(FOLDER.glob("*.json"))}
    lines = ["| nfe | settings | best over all five | all | networks | best on the networks | all | networks |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    means: list[float] = []
    for nfe in NFE:
        peers = {
            name: best((r for r in found[name, nfe] if r["family"] != "odediff"), "median")["median"] for name in data
        }
        rows = {
            key: {name: data[name][key][str(nfe)] / peers[name] for name in data}
            for key in set.intersection(*(set(one) for one in data.values()))
            if all(str(nfe) in one[key] for one in data.values())
        }

        def mean(row: dict[str, float], networks: bool = False) -> float:
            return geometric([value for name, value in row.items() if not (networks and is_exact(name))])

        chosen = min(rows, key=lambda key: mean(rows[key])), min(rows, key=lambda key: mean(rows[key], True))
        cellsof = [f"`{key}` | {mean(rows[key]):.2f} | {mean(rows[key], True):.2f}" for key in chosen]
        lines.append(f"| {nfe} | {len(rows)} | {cellsof[0]} | {cellsof[1]} |")
        if 5 <= nfe <= 30:
            means.append(mean(rows[chosen[0]]))
    lines.append(f"\nThe best over all five, geometric mean over 5 to 30 evaluations: {geometric(means):.2f}.")
    write_block("frontier", "\n".join(lines), PAGE)
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", nargs="*")
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.problems:
        measure(exact(name) if name in EXACT else network(name, engine="openvino"))
    if args.report:
        report()


if __name__ == "__main__":
    main()
