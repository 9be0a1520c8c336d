"""Work against precision: the error in x0 of every solver, ours and the peers', at equal counted evaluations.

    python bench/work_precision.py --problems gaussian modes --families odediff diffusers --ours all
    python bench/work_precision.py --problems mnist bench/networks/fashion --engine openvino --within 4
    python bench/work_precision.py --report                                              page and plots only
    python bench/work_precision.py --suggest ["5-8: abm3 flow t uniform; 9-: abm3 flow t quadratic"]

Every problem has its file in `bench/results/work_precision`; rows that are there are not measured again (--redo does),
so processes may run side by side, each on problems of its own. One thread, float32 states.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ours
import rivals
import rivals_other
import torch
from common import RESULTS, environment, exact_float32, write
from problems import EXACT, Problem, errors, exact, network
from rivals import Setting
from torch import Tensor
from tqdm import tqdm

NFE = (3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 50)
FAMILIES = ("odediff", "diffusers", "k-diffusion", "azula", "torchdiffeq")
GATE = 10  # every setting is measured up to this budget
REFERENCE_NFE = 401
COLUMNS = ("used", "rmse", "median", "p95", "cpu", "notes", "error")
PACKAGES = ("diffusers", "k-diffusion", "azula", "torchdiffeq", "torch", "numpy", "scikit-learn")
Rows = list[dict[str, Any]]


def settings(family: str, everything: bool) -> list[Setting]:
    """All settings of a family."""
    return {
        "odediff": lambda: ours.ours(everything),
        "diffusers": rivals.diffusers_settings,
        "k-diffusion": rivals_other.k_settings,
        "azula": rivals_other.azula_settings,
        "torchdiffeq": rivals_other.torchdiffeq_settings,
    }[family]()


def row(problem: Problem, setting: Setting, nfe: int, truth: Tensor) -> dict[str, Any]:
    """One measurement: errors, evaluations and CPU seconds a sample; or the message of what went wrong."""
    made = {"problem": problem.name, "family": setting.family, "setting": setting.name, "nfe": nfe}
    begin = time.process_time()
    try:
        x, used, notes = rivals.measure(problem, setting, nfe)
    except Exception as error:  # a peer that fails is a result
        message = f"{type(error).__name__}: {error}".split("\n")[0][:160]
        return {**made, "used": problem.used, "error": message}
    seconds = (time.process_time() - begin) / len(problem.noise)
    return {**made, "used": used, **errors(x, truth), "cpu": seconds, **({"notes": notes} if notes else {})}


def load(folder: Path = RESULTS) -> dict[str, Any]:
    """What has been measured so far, of all problems."""
    data: dict[str, Any] = {"problems": {}, "parts": [], "rows": []}
    for path in sorted((folder / "work_precision").glob("*.json")):
        one = json.loads(path.read_text())
        name = one["problem"].pop("name")
        data["problems"][name] = one["problem"]
        data["parts"] += one["parts"]
        for line in one["settings"]:
            family, setting, rows = json.loads(line)
            for nfe, row in rows.items():
                found = {key: value for key, value in zip(COLUMNS, row, strict=True) if value is not None}
                data["rows"].append({"problem": name, "family": family, "setting": setting, "nfe": int(nfe), **found})
    return data


def save(data: dict[str, Any], problem: str, folder: Path) -> Path:
    """A problem's file, a setting on a line, its rows by budget: {"10": [used, rmse, ..]}."""

    def short(value: Any) -> Any:
        return float(f"{value:.4g}") if isinstance(value, float) else value

    settings: dict[tuple[str, str], dict[int, list[Any]]] = {}
    for one in data["rows"]:
        if one["problem"] == problem:
            rows = settings.setdefault((one["family"], one["setting"]), {})
            rows[one["nfe"]] = [short(one.get(key)) for key in COLUMNS]
    lines = [json.dumps([*key, rows], separators=(",", ":")) for key, rows in settings.items()]
    parts = [part for part in data["parts"] if part["problem"] == problem]
    made = {"problem": {"name": problem, **data["problems"][problem]}, "columns": COLUMNS, "parts": parts}
    return write(problem, {**made, "settings": lines}, folder / "work_precision")


def promising(rows: Rows, nfe: int, within: float) -> set[str] | None:
    """The settings of a problem and family whose error, median or RMSE, at the last budget below nfe that was measured
    is at most `within` times the family's smallest; None, all of them, where that budget is below `GATE`."""
    budgets = {row["nfe"] for row in rows if row["nfe"] < nfe}
    if not budgets or max(budgets) < GATE:
        return None
    last = [row for row in rows if row["nfe"] == max(budgets) and "error" not in row]
    kept: set[str] = set()
    for measure in ("median", "rmse"):
        least = min((row[measure] for row in last), default=0.0)
        kept |= {row["setting"] for row in last if row[measure] <= within * least}
    return kept | {"default"}


def measure(data: dict[str, Any], problem: Problem, args: argparse.Namespace) -> None:
    """Add the rows that are asked for and missing, budget by budget, saving after each."""
    truth, doubt = problem.reference(REFERENCE_NFE)
    about = {"n": len(problem.noise), "reference_doubt": doubt, "engine": args.engine}
    data["problems"][problem.name] = about
    for family in args.families:
        chosen = settings(family, args.ours == "all")
        if args.only:
            chosen = [one for one in chosen if one.name in args.only]
        if args.redo:
            names = {one.name for one in chosen}
            key = (problem.name, family)
            data["rows"] = [
                r
                for r in data["rows"]
                if (r["problem"], r["family"]) != key or r["setting"] not in names or r["nfe"] not in args.nfe
            ]
        before = len(data["rows"])
        for nfe in sorted(args.nfe):
            here = [r for r in data["rows"] if (r["problem"], r["family"]) == (problem.name, family)]
            done = {r["setting"] for r in here if r["nfe"] == nfe}
            kept = promising(here, nfe, args.within) if args.within else None
            todo = [s for s in chosen if nfe >= s.least and s.name not in done and (kept is None or s.name in kept)]
            for setting in tqdm(todo, desc=f"{problem.name} {family} {nfe}", disable=not todo):
                data["rows"].append(row(problem, setting, nfe, truth))
            if todo:
                save(data, problem.name, args.out)
        if added := len(data["rows"]) - before:
            versions = {name: version(name) for name in PACKAGES}
            part = {"problem": problem.name, "family": family, "rows": added, "within": args.within}
            data["parts"].append({**part, **environment(), "versions": versions})
            save(data, problem.name, args.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--problems", nargs="+", default=[*EXACT, "mnist"], help=f"of {EXACT}, a model's name or folder"
    )
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--nfe", type=int, nargs="+", default=list(NFE))
    parser.add_argument("--ours", choices=("defaults", "all"), default="defaults")
    parser.add_argument("--only", nargs="+", metavar="SETTING", help="these settings only, by name, such as 'default'")
    parser.add_argument("--engine", choices=("torch", "openvino"), default="torch", help="that runs the networks")
    parser.add_argument(
        "--within",
        type=float,
        metavar="X",
        help=f"from the budget after {GATE} on, leave out settings whose error at the budget before is more than X "
        "times their family's smallest",
    )
    parser.add_argument("--redo", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--suggest", nargs="?", const="", metavar="RULE")
    parser.add_argument("--measure", choices=("median", "rmse", "p95"), default="median")
    args = parser.parse_args()
    torch.set_num_threads(1)
    exact_float32()
    data = load(args.out)
    if args.suggest is not None or args.report:
        import solver_page

        if args.suggest is not None:
            print(solver_page.suggest(data["rows"], args.suggest, args.measure))
        if args.report:
            solver_page.report(data, args.measure)
        return
    for name in args.problems:
        problem = exact(name) if name.partition("@")[0] in EXACT else network(name, engine=args.engine)
        measure(data, problem, args)
        here = [r for r in data["rows"] if r["problem"] == problem.name]
        print(f"{problem.name}: {len(here)} rows, {sum('error' in r for r in here)} failed", flush=True)


if __name__ == "__main__":
    main()
