"""Our coefficients against those of diffusers, k-diffusion and azula, and where these are wrong: docs/parity.md.

    difference    the largest difference of two coefficients, relative to the largest that their column has held so far

The peers run unmodified on one-hot outputs (`tests/peers.py`), on the cases of the tests (`tests/parity_cases.py`).

    python bench/parity.py                 measure, write bench/results/parity.json and the tables of docs/parity.md
    python bench/parity.py --freeze        read the peers again into tests/data/peers.npz, and measure
"""

from __future__ import annotations

import argparse
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, environment, write, write_block
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import frozen  # noqa: E402
import peer_faults as faults  # noqa: E402
from parity_cases import CASES, NEAR, SCHEDULES, STEPS, Case, settings  # noqa: E402
from peers import difference  # noqa: E402

PAGE = ROOT / "docs" / "parity.md"


def compare(case: Case) -> dict[str, Any]:
    """The largest differences of a case over its schedules, spacings and step counts."""
    wide: list[float] = []
    narrow: list[float] = []
    for schedule, spacing in settings(case):
        for steps in filter(case.fits, STEPS):
            ours, theirs = case.pair(schedule, case.read(schedule, spacing, steps))
            wide.append(difference(ours, theirs))
            if case.library == "diffusers":
                probe = case.read(schedule, spacing, steps, wide=False)
                narrow.append(difference(ours, probe.states[: len(ours)]))
    return {
        "peer": case.name,
        "method": case.method,
        "args": {key: "falling" if callable(value) else value for key, value in case.args.items()},
        "spacings": case.spacings,
        "schedules": case.on,
        "compared": len(wide),
        "left_out": case.tail,
        "why": case.why,
        "float64": max(wide),
        "float32": max(narrow) if narrow else None,
    }


def near(case: Case) -> dict[str, Any]:
    """How far a method of the same name is, 13 steps on the linear schedule with exponential spacing."""
    ours, theirs = case.pair("linear", case.read("linear", "exponential", 13))
    return {"peer": case.name, "method": case.method, "difference": difference(ours, theirs), "why": case.why}


def measure_faults() -> dict[str, Any]:
    """Everything docs/parity.md says of the peers' faults."""
    grid = [(spacing, n) for spacing in ("trailing", "linspace") for n in (7, 13, 20, 23, 600)]
    kinds = [(1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint")]
    rooms = ("karras", "exponential", "logsnr")
    names = ("DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep")
    return {
        "ddim": [faults.ddim(spacing, "linear", n) for spacing, n in grid],
        "pndm": [
            faults.pndm(spacing, schedule, 20)
            for schedule in ("linear", "cosine")
            for spacing in ("leading", "linspace")
        ],
        "last_step": [
            faults.last_step(s, o, n) for s in ("linear", "cosine") for o in (2, 3) for n in (10, 14, 15, 20)
        ],
        "zero_length": [
            {"order": o, "kind": k, "spacing": r, "nan": faults.zero_length(o, k, r, 20)}
            for o, k in kinds
            for r in rooms
        ],
        "same_first_times": [
            {"name": name, "spacing": r, "raises": faults.same_first_times(name, r, 20)}
            for name in names
            for r in ("karras", "exponential")
        ],
        "ddpm_noise": [
            {"schedule": s, "steps": n, "std": faults.noise_in_the_sample(s, n)}
            for s in ("linear", "cosine")
            for n in (10, 20, 50)
        ],
        "start": [
            {"schedule": s, "scale": faults.start_scale("EulerDiscrete", s)}
            for s in ("linear", "scaled_linear", "cosine")
        ],
        "bh1": faults.bh1(20),
        "vandermonde": faults.vandermonde(23),
        "sde_order_3": [faults.sde_order_3(s, n) for s in ("linear", "cosine") for n in (20, 50, 100, 200)],
        "reab": [faults.azula_reab(s, n) for s in ("linear", "cosine") for n in (16, 64, 256)],
        "rounded": [
            rounded(schedule, spacing) for schedule in ("linear", "cosine") for spacing in ("karras", "logsnr")
        ],
    }


def rounded(schedule: str, spacing: str) -> dict[str, Any]:
    """How far the times that DPM-Solver++ feeds are from those of its noise levels, 20 steps."""
    probe = faults.read("DPMSolverMultistep", schedule, spacing, 20, begin=True)
    ours = SCHEDULES[schedule]
    exact = ours.t_of_rho(np.minimum(probe.rho[:-1], ours.rho(ours.t_max)))
    return {"schedule": schedule, "spacing": spacing, "most": float(np.abs(probe.t - exact).max())}


def table(head: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table; floats with three digits."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.2e}" if value and abs(value) < 1e-3 else f"{value:.3g}"
        return "" if value is None else str(value)

    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(cell(v) for v in row) + " |" for row in rows)])


def equal_table(rows: list[dict[str, Any]]) -> str:
    head = ["peer", "ours", "schedules", "spacings", "plans", "float64", "float32", "left out"]

    def ours(row: dict[str, Any]) -> str:
        args = ", ".join(f"{key}={value!r}" for key, value in row["args"].items())
        return f"`{row['method']}`" + (f" {args}" if args else "")

    def left(row: dict[str, Any]) -> str:
        return f"last {row['left_out']}: {row['why']}" if row["left_out"] else ""

    return table(
        head,
        [
            [
                f"`{row['peer']}`",
                ours(row),
                ", ".join(row["schedules"]),
                ", ".join(row["spacings"]),
                row["compared"],
                f"{row['float64']:.0e}",
                f"{row['float32']:.0e}" if row["float32"] else "",
                left(row),
            ]
            for row in rows
        ],
    )


def fault_tables(found: dict[str, Any]) -> dict[str, str]:
    """Block name -> table."""

    def of(name: str, head: list[str], keys: list[str]) -> str:
        return table(head, [[row[key] for key in keys] for row in found[name]])

    steps = ["schedule", "spacing", "steps"]
    return {
        "ddim": of(
            "ddim",
            [*steps, "difference", "signal held", "noise left", "error", "error, our rows on the same times"],
            [*steps, "difference", "signal", "noise", "error", "error_ours"],
        ),
        "pndm": of("pndm", [*steps, "signal held", "noise left", "error"], [*steps, "signal", "noise", "error"]),
        "last_step": of("last_step", ["schedule", "order", "steps", "error"], ["schedule", "order", "steps", "error"]),
        "zero_length": of(
            "zero_length", ["order", "solver_type", "spacing", "NaN"], ["order", "kind", "spacing", "nan"]
        ),
        "same_first_times": of("same_first_times", ["scheduler", "spacing", "raises"], ["name", "spacing", "raises"]),
        "ddpm_noise": of("ddpm_noise", ["schedule", "steps", "noise added"], ["schedule", "steps", "std"]),
        "start": table(["schedule", "scale"], [[row["schedule"], f"{row['scale']:.6f}"] for row in found["start"]]),
        "reab": of(
            "reab",
            ["schedule", "steps", "difference", "difference, subscript changed", "error", "error, subscript right"],
            ["schedule", "steps", "difference", "difference_wrong", "error", "error_right"],
        ),
        "sde_order_3": of(
            "sde_order_3",
            [
                "schedule",
                "steps",
                "difference, sign right",
                "difference, sign wrong",
                "std",
                "std, sign right",
                "std, ours",
            ],
            ["schedule", "steps", "difference", "difference_wrong", "std", "std_right", "std_ours"],
        ),
        "vandermonde": f"Difference of vAB, order 3, from exact weights on edm, 23 steps: {found['vandermonde']:.1e}.",
        "bh1": f"NaN at 20 steps: {found['bh1']}.",
        "rounded": of("rounded", ["schedule", "spacing", "most"], ["schedule", "spacing", "most"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--freeze", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.freeze:
        frozen.write()
    env, versions = environment(), {peer: metadata.version(peer) for peer in frozen.PEERS}
    equal = [compare(case) for case in tqdm(CASES)]
    other, found = [near(case) for case in NEAR], measure_faults()
    print(write("parity", {"peers": versions, "equal": equal, "near": other, "faults": found}, args.out))
    said = ", ".join(f"{peer} {version}" for peer, version in versions.items())
    made = f"torch {env['torch']}, numpy {env['numpy']}, commit {env['commit']}"
    note = f"Measured by `bench/parity.py` with {said}, {made}."
    write_block("equal", equal_table(equal) + "\n\n" + note, PAGE)
    rows = [[f"`{row['peer']}`", f"`{row['method']}`", row["difference"], row["why"]] for row in other]
    write_block("near", table(["peer", "ours", "difference", "why"], rows), PAGE)
    for name, text in fault_tables(found).items():
        write_block(name, text, PAGE)


if __name__ == "__main__":
    main()
