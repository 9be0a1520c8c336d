"""Frechet distances of tuned plans' samples, beside the default's, DDIM's and the best peer's, from the same noise.

    python bench/tune_frechet.py mnist fashion --nfe 5 8 10 --data ../shared/data

FD(NAME_cnn128), of 128 features, to the converged flow's samples from the same noise, which is the solver's part, and
to the test images, which is the network's too. The plans are those of `tune.py`, seed 0; the peer is the one that
`tune.py judge` found best by median. Kept in `results/tune/frechet.json`; `tune.py report` writes the table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tune
from frechet import Features, frechet
from torch import Tensor
from tune import _problem, read, subject

import odediff
from odediff.backends import choose, prepared
from odediff.tuning.student import Student

N, SEED, REFERENCE_NFE = 1000, 2001, 64
IMAGES = {"mnist": "mnist.npz", "fashion": "fashion_mnist.npz"}


def runs(name: str, nfe: int, student: Student, noise: Tensor) -> dict[str, Any]:
    """What is drawn at a budget: name -> a function that gives the samples."""
    import rivals
    from tune_page import averaged, best
    from work_precision import settings

    data, model = read(name), student.model
    plans = [p for p in data["plans"] if (p["nfe"], p["way"], p["n"], p["seed"]) == (nfe, "both", 32, 0)]
    tuned = odediff.Plan.from_json(plans[0]["plan"])
    peer = best(averaged(data)[nfe], "peer", "median")
    assert peer is not None
    family, option = peer["name"].split(" ", 1)
    setting = next(one for one in settings(family, False) if one.name == option)
    problem = _problem(name, model, noise, None, {})
    return {
        "tuned": lambda: student.run(tuned, noise),
        "default": lambda: student.run(odediff.plan(None, model.schedule, nfe), noise),
        "ddim": lambda: student.run(odediff.plan("ddim", model.schedule, nfe, "uniform"), noise),
        "best peer": lambda: rivals.measure(problem, setting, nfe)[0],
    }


def known() -> list[dict[str, Any]]:
    """The rows that were measured."""
    path = tune.FOLDER / "frechet.json"
    return json.loads(path.read_text()) if path.is_file() else []


def measure(name: str, budgets: list[int], data: Path) -> None:
    """Add what is missing of a network's rows."""
    rows = known()
    features = Features(data / f"{name}_cnn128.safetensors", torch.device("cpu"))
    with np.load(data / IMAGES[name]) as images:
        test = features(torch.from_numpy(images["x_test"])[:, None].float() / 255)
    model, _ = subject(name)
    student = Student(prepared("onnx", *choose("onnx", model), model)[-1])
    noise = torch.randn(N, *model.shape, generator=torch.Generator().manual_seed(SEED))

    def seen(x: Tensor) -> Tensor:
        return features((x.float().clamp(-1, 1) + 1) / 2)

    schedule = model.schedule
    flow = odediff.plan("abm4", schedule, REFERENCE_NFE, "asinh", space="flow", variable="t")
    there = seen(student.run(flow, noise))
    rows = [row for row in rows if (row["problem"], row["name"]) != (name, "flow")]
    rows.append({"problem": name, "nfe": REFERENCE_NFE, "name": "flow", "flow": 0.0, "test": frechet(there, test)})
    for nfe in budgets:
        for what, run in runs(name, nfe, student, noise).items():
            if any((row["problem"], row["nfe"], row["name"]) == (name, nfe, what) for row in rows):
                continue
            f = seen(run())
            rows.append(
                {"problem": name, "nfe": nfe, "name": what, "flow": frechet(f, there), "test": frechet(f, test)}
            )
            print(rows[-1], flush=True)
            (tune.FOLDER / "frechet.json").write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", nargs="+", choices=IMAGES)
    parser.add_argument("--nfe", type=int, nargs="+", default=[5, 8, 10])
    parser.add_argument("--data", type=Path, required=True, help="folder with images and feature networks")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.problems:
        measure(name, args.nfe, args.data)


if __name__ == "__main__":
    main()
