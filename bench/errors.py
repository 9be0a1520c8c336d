"""Error in x0 against a converged reference, per method and nfe, on a trained network.

    error of a sample = RMS over its pixels of x0 - x0_reference;   printed: median over samples, and RMSE over all

The reference is Kutta's rk4 with 401 evaluations on the log-SNR grid, in float64 around the float32 network; a
second one, ab4 with as
many evaluations, says how far it is converged. Samples are not clamped. Stochastic methods have no such error and
are left out.

    python bench/errors.py                 every method as it comes: the README's table
    python bench/errors.py --all           every candidate frame and every grid: how the defaults were chosen
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, environment, exact_float32, write, write_block
from torch import Tensor
from tqdm import tqdm

import odediff
from odediff.grids import GRIDS
from odediff.methods import plan

NFE = (5, 10, 20, 50)
METHODS = [name for name, method in odediff.METHODS.items() if name == "ddim" or not method.stochastic]
# Worth trying: the natural variable of each space, and those in which lam's infinite ends are finite.
CANDIDATES = [("eps", "lam"), ("eps", "rho"), ("x0", "lam"), ("flow", "t"), ("flow", "tau"), ("flow", "phi")]


def run(model: odediff.Model, made: odediff.Plan, noise: Tensor, batch: int) -> Tensor:
    """Samples of a plan, in batches."""
    sampler = odediff.Sampler(model, made)
    return torch.cat([sampler(part) for part in noise.split(batch)])


def reference(model: odediff.Model, noise: Tensor, batch: int) -> tuple[Tensor, float]:
    """The converged x0, and the median distance of a second, different one."""
    first, second = (
        run(model, plan(name, model.schedule, 401, "logsnr", space=space), noise, batch)
        for name, space in (("rk4", "flow"), ("ab4", "eps"))
    )
    return first, errors(second, first)["median"]


def errors(x: Tensor, reference: Tensor) -> dict[str, float]:
    """Median over samples of the RMS error, and RMSE over all."""
    square = (x - reference).square().flatten(1).mean(1)
    return {"median": float(square.sqrt().median()), "rmse": float(square.mean().sqrt())}


def settings(nfes: list[int], methods: list[str], everything: bool) -> list[dict[str, Any]]:
    """Keyword arguments of `plan`, one dict a row."""
    rows: list[dict[str, Any]] = []
    for name in methods:
        method = odediff.METHODS[name]
        frames = [f for f in method.frames if f in CANDIDATES] if everything else method.frames[:1]
        grids = GRIDS if everything else (method.grid,)
        rows += [
            {"name": name, "nfe": nfe, "space": space, "variable": variable, "grid": grid}
            for space, variable in frames
            for grid in grids
            for nfe in nfes
            if nfe >= method.min_nfe
        ]
    return rows


def table(rows: list[dict[str, Any]], nfes: list[int], note: str) -> str:
    """A Markdown table of medians, with RMSE in brackets."""
    head = "| method | runs in | grid | " + " | ".join(f"nfe {n}" for n in nfes) + " |"
    lines = [head, "|---|---|---|" + "---|" * len(nfes)]
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = {row["nfe"]: row for row in rows if row["name"] == name}
        first = next(iter(mine.values()))
        least = f"from {odediff.METHODS[name].min_nfe}"
        cells = [f"{mine[n]['median']:.4f} ({mine[n]['rmse']:.4f})" if n in mine else least for n in nfes]
        lines.append(
            f"| `{name}` | {first['space']}, {first['variable']} | {first['grid']} | " + " | ".join(cells) + " |"
        )
    return "\n".join([*lines, "", note])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mnist")
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--nfe", type=int, nargs="+", default=list(NFE))
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--readme", action="store_true", help="write the table into README.md")
    args = parser.parse_args()
    exact_float32()
    model = odediff.load(args.model, device="cuda" if torch.cuda.is_available() else "cpu")
    model.range = None
    noise = torch.randn(args.n, *model.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    truth, doubt = reference(model, noise, args.batch)
    rows = settings(args.nfe, args.methods, args.all)
    for row in tqdm(rows):
        row.update(errors(run(model, plan(schedule=model.schedule, **row), noise, args.batch), truth))
    env = environment()
    note = (
        f"Median (RMSE) over {args.n} samples; the reference is uncertain by {doubt:.1e}. "
        f"Measured by `bench/errors.py` on {env['device']}, "
        f"torch {env['torch']}, commit {env['commit']}, batch {args.batch}."
    )
    data = {"model": args.model, "n": args.n, "batch": args.batch, "reference_doubt": doubt, "rows": rows}
    print(write("errors_all" if args.all else "errors", data, args.out))
    if args.all:
        best = sorted(rows, key=lambda r: (r["name"], r["nfe"], r["median"]))
        for row in best:
            print(*(f"{v:.5f}" if isinstance(v, float) else v for v in row.values()))
        return
    print(table(rows, args.nfe, note))
    if args.readme:
        write_block("errors", table(rows, args.nfe, note))


if __name__ == "__main__":
    main()
