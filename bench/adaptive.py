"""Adaptive methods of torchdiffeq: evaluations and error in x0, per variable and tolerance, on a trained network.

python bench/adaptive.py --docs
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from common import README, RESULTS, environment, exact_float32, write, write_block
from errors import errors, reference

import odediff
from odediff.adaptive import ADAPTIVE, VARIABLES, BudgetExceeded, solve

TOLERANCES = (1e-2, 1e-3, 1e-4)
PAGE = README.parent / "docs" / "adaptive.md"


def table(rows: list[dict[str, Any]], n: int, doubt: float) -> str:
    """A Markdown table: evaluations and median error per solver, variable and tolerance."""
    heads = [f"{tolerance:g}" for tolerance in TOLERANCES]
    lines = ["| solver | variable | " + " | ".join(heads) + " |", "|---|---|" + "---|" * len(heads)]
    for solver in ADAPTIVE:
        for variable in VARIABLES:
            mine = [row for row in rows if (row["solver"], row["variable"]) == (solver, variable)]
            cells = [f"{row['nfe']} ({row['median']:.4f})" if "median" in row else str(row["nfe"]) for row in mine]
            lines.append(f"| `{solver}` | {variable} | " + " | ".join(cells) + " |")
    env = environment()
    where = f"{env['device']}, torch {env['torch']}, commit {env['commit']}"
    note = f"{n} samples in one batch; the reference is uncertain by {doubt:.1e}. `bench/adaptive.py` on {where}."
    return "\n".join([*lines, "", note])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mnist")
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--max-nfe", type=int, default=300)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--docs", action="store_true", help="write the table into docs/adaptive.md")
    args = parser.parse_args()
    exact_float32()
    model = odediff.load(args.model, device="cuda" if torch.cuda.is_available() else "cpu")
    model.range = None
    noise = torch.randn(args.n, *model.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    truth, doubt = reference(model, noise, args.n)
    rows: list[dict[str, Any]] = []
    print("solver variable tolerance | nfe accepted rejected | median rmse")
    for solver in ADAPTIVE:
        for variable in VARIABLES:
            for tolerance in TOLERANCES:
                row: dict[str, Any] = {"solver": solver, "variable": variable, "tolerance": tolerance}
                try:
                    got = solve(
                        model,
                        solver,
                        variable=variable,
                        rtol=tolerance,
                        atol=tolerance,
                        noise=noise,
                        max_nfe=args.max_nfe,
                    )
                    row |= {"nfe": got.nfe, "accepted": got.accepted, "rejected": got.rejected, **errors(got.x, truth)}
                except BudgetExceeded as error:
                    row |= {"nfe": f"over {error.nfe}"}
                rows.append(row)
                print(*(f"{v:.5f}" if isinstance(v, float) else v for v in row.values()), flush=True)
    print(write("adaptive", {"model": args.model, "n": args.n, "reference_doubt": doubt, "rows": rows}, args.out))
    if args.docs:
        write_block("adaptive", table(rows, args.n, doubt), PAGE)


if __name__ == "__main__":
    main()
