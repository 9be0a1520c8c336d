"""Frechet distances of tuned plans' samples, beside the default's, DDIM's and the best peer's, from the same noise.

    python bench/tune_frechet.py mnist fashion --nfe 5 8 10 --data ../shared/data

FD(NAME_cnn128), of 128 features, to the converged flow's samples from the same noise, which is the solver's part, and
to the test images, which is the network's too. The plans are those of `tune.py`, seed 0, that certificates favour; the
peer is the one that `tune.py judge` found best by median, so fit and judge come first. Kept in
`results/tune/frechet.json`; `tune.py report` writes the table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rivals
import torch
import tune
from common import environment
from frechet import Features, frechet
from torch import Tensor
from tune_page import averaged, best, frechet_rows
from work_precision import settings

import odediff
from odediff.backends import choose, prepared
from odediff.model import Model
from odediff.tuning.student import Student

N, SEED, REFERENCE_NFE = 1000, 2001, 64
IMAGES = {"mnist": "mnist.npz", "fashion": "fashion_mnist.npz"}


def runs(
    name: str, nfe: int, model: Model, student: Student, noise: Tensor
) -> dict[str, tuple[str, Callable[[], Tensor]]]:
    """What is drawn at a budget: name -> what it is in full, and a function that gives the samples.

    model: for the peers, which call its network with a time for every sample.  student: runs ours.

    ValueError: a budget without a plan or a judged peer.
    """
    data = tune.read(name)
    plans = [p for p in data["plans"] if (p["nfe"], p["way"], p["seed"]) == (nfe, "both", 0)]
    plans.sort(key=lambda p: p["over_median"][0])
    peer = best(averaged(data)[nfe], "peer", "median")
    if not plans or peer is None:
        raise ValueError(f"{name} at {nfe} evaluations was not fitted and judged; bench/tune.py does both")
    tuned = odediff.Plan.from_json(plans[0]["plan"])
    family, option = peer["name"].split(" ", 1)
    setting = next(one for one in settings(family, False) if one.name == option)
    problem = tune._problem(name, model, noise, None, {})
    plain, ddim = odediff.plan(None, model.schedule, nfe), odediff.plan("ddim", model.schedule, nfe, "uniform")
    return {
        "tuned": (plans[0]["plan"], lambda: student.run(tuned, noise)),
        "default": (plain.to_json(), lambda: student.run(plain, noise)),
        "ddim": (ddim.to_json(), lambda: student.run(ddim, noise)),
        "best peer": (peer["name"], lambda: rivals.measure(problem, setting, nfe)[0]),
    }


def measure(name: str, budgets: list[int], data: Path) -> None:
    """Add what is missing of a network's rows, or was of another plan."""
    features = Features(data / f"{name}_cnn128.safetensors", torch.device("cpu"))
    with np.load(data / IMAGES[name]) as images:
        test = features(torch.from_numpy(images["x_test"])[:, None].float() / 255)
    model, _ = tune.subject(name)
    student = Student(prepared("onnx", *choose("onnx", model), model)[-1])
    noise = torch.randn(N, *model.shape, generator=torch.Generator().manual_seed(SEED))
    flow = odediff.plan("abm4", model.schedule, REFERENCE_NFE, "asinh", space="flow", variable="t")
    wanted = [(nfe, what, *run) for nfe in budgets for what, run in runs(name, nfe, model, student, noise).items()]
    wanted = [(REFERENCE_NFE, "flow", flow.to_json(), lambda: student.run(flow, noise)), *wanted]
    there: Tensor | None = None
    for nfe, what, plan, run in wanted:
        key = {"problem": name, "nfe": nfe, "name": what}
        if what != "flow" and any(row | key | {"plan": plan} == row for row in frechet_rows()):
            continue
        f = features((run().float().clamp(-1, 1) + 1) / 2)
        there = f if there is None else there
        made = {**key, "n": N, "flow": frechet(f, there), "test": frechet(f, test), **environment(), "plan": plan}
        rows = [row for row in frechet_rows() if row | key != row] + [made]
        (tune.FOLDER / "frechet.json").write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
        print(name, nfe, what, made["flow"], made["test"], flush=True)


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
