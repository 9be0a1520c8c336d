"""Work against precision: the error in x0 of every solver, ours and the peers', at equal counted evaluations.

    python bench/work_precision.py --problems gaussian modes --families odediff diffusers --ours all
    python bench/work_precision.py --problems mnist --families diffusers --part 1/8      a part of the settings
    python bench/work_precision.py --report                                              page and plots only
    python bench/work_precision.py --suggest ["5-8: abm3 flow t uniform; 9-: abm3 flow t quadratic"]

Rows that `bench/results/work_precision.json` has are not measured again (--redo does). One thread, float32 states.
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
REFERENCE_NFE = 401
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
    """What has been measured so far."""
    path = folder / "work_precision.json"
    if not path.is_file():
        return {"problems": {}, "parts": [], "rows": []}
    data = json.loads(path.read_text())
    del data["environment"]
    columns = data.pop("columns")
    data["rows"] = [
        {key: value for key, value in zip(columns, json.loads(line), strict=True) if value is not None}
        for line in data["rows"]
    ]
    return data


def save(data: dict[str, Any], folder: Path) -> Path:
    """One line of JSON a row, in columns: a hundred thousand numbers on lines of their own would be unreadable."""
    columns = ["problem", "family", "setting", "nfe", "used", "rmse", "median", "p95", "cpu", "notes", "error"]

    def short(value: Any) -> Any:
        return float(f"{value:.5g}") if isinstance(value, float) else value

    lines = [json.dumps([short(one.get(key)) for key in columns]) for one in data["rows"]]
    return write("work_precision", {**data, "columns": columns, "rows": lines}, folder)


def measure(data: dict[str, Any], problem: Problem, args: argparse.Namespace) -> None:
    """Add the rows that are asked for and missing, saving after each family."""
    truth, doubt = problem.reference(REFERENCE_NFE)
    data["problems"][problem.name] = {"n": len(problem.noise), "reference_doubt": doubt, "engine": args.engine}
    index, parts = (int(word) for word in args.part.split("/"))
    for family in args.families:
        chosen = settings(family, args.ours == "all")[index - 1 :: parts]
        asked = {(one.name, nfe) for one in chosen for nfe in args.nfe if nfe >= one.least}
        here = [r for r in data["rows"] if (r["problem"], r["family"]) == (problem.name, family)]
        done = set() if args.redo else {(r["setting"], r["nfe"]) for r in here}
        if args.redo:
            again = [r for r in here if (r["setting"], r["nfe"]) in asked]
            data["rows"] = [r for r in data["rows"] if not any(r is old for old in again)]
        todo = [(one, nfe) for one in chosen for nfe in args.nfe if (one.name, nfe) in asked - done]
        for setting, nfe in tqdm(todo, desc=f"{problem.name} {family}", disable=not todo):
            data["rows"].append(row(problem, setting, nfe, truth))
        if todo:
            versions = {name: version(name) for name in PACKAGES}
            data["parts"].append(
                {"problem": problem.name, "family": family, "rows": len(todo), **environment(), "versions": versions}
            )
            save(data, args.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="*", default=[*EXACT, "mnist"], choices=[*EXACT, "mnist"])
    parser.add_argument("--network", type=Path, help="the folder of one more model")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--nfe", type=int, nargs="+", default=list(NFE))
    parser.add_argument("--ours", choices=("defaults", "all"), default="defaults")
    parser.add_argument("--part", default="1/1", help="i/m: every m-th setting, from the i-th")
    parser.add_argument("--engine", choices=("torch", "openvino"), default="torch", help="that runs the networks")
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
    names = [*args.problems, *([str(args.network)] if args.network else [])]
    for name in names:
        problem = exact(name) if name in EXACT else network(name, engine=args.engine)
        measure(data, problem, args)
    print(len(data["rows"]), "rows;", sum("error" in r for r in data["rows"]), "failed")


if __name__ == "__main__":
    main()
