"""What `odediff.tune` gains: plans fitted by several ways, judged beside every peer on noise that none has seen.

    python bench/tune.py fit mnist --nfe 5 8 --seeds 0 1 2            fit and keep the plans, 8 beside 5
    python bench/tune.py fit mnist --nfe 8 --ways times coefficients ridge --n 2 8 128
    python bench/tune.py judge mnist digits                           errors of all plans and of the best peers
    python bench/tune.py report                                       tables and pictures of docs/tuning.md and README

Problems: mnist, fashion (bench/networks), mnist_conditional (guidance 2), digits, modes (`problems.py`). Ways:

    both            times, those that the network is fed too, and weights, Levenberg-Marquardt: `tune` unless told
    unfed           the network is fed the times of its states
    early           no late start
    times           times only, the weights of the built-in pair that it starts from
    coefficients    weights only, on the times of that pair
    ridge           both, without derivatives: rows in closed form, dynamic programming and coordinate search
    ddim times      times only, for DDIM's rows (learned schedules; compare Sabour et al. 2024, Xue et al. 2024)
    ddim dp         dynamic programming on the reference's one-step errors, DDIM's rows (compare Watson et al. 2021)

Every way is fitted to the same noises of a seed. Peers: of every family, the settings that lead at this budget in
`results/work_precision` by RMSE or by median (for mnist_conditional those of both networks), run again on the judge's
noise; built-in: the default, ddim, and the pair that a fit's certificate found best. A plan's error: RMS over a
sample's elements of x0 - x0_reference; RMSE over samples, and the median.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

if Path(sys.path[0] or ".").resolve() == Path(__file__).resolve().parent:
    sys.path.append(sys.path.pop(0))  # bench/onnx.py is here, which would hide the package onnx

import numpy as np
import rivals
import torch
from common import RESULTS, environment, exact_float32
from problems import EXACT, Problem, errors, exact
from torch import Tensor
from tqdm import tqdm
from work_precision import load, settings

import odediff
from odediff.model import Model
from odediff.tuning.certificate import errors as plan_errors
from odediff.tuning.certificate import pairs
from odediff.tuning.form import form_of
from odediff.tuning.probe import make_probe
from odediff.tuning.ridge import dynamic
from odediff.tuning.student import Student

NFE = (3, 4, 5, 6, 8, 10, 12)
FOLDER = RESULTS / "tune"
TESTS, TEST_SEEDS = 64, (1001, 1002)
REFERENCE_NFE = 121
GUIDED = 2.0
LEADERS = 2  # settings of a family, by either measure
WAYS: dict[str, dict[str, Any]] = {
    "both": {},
    "unfed": {"fed": False},
    "early": {"starts": 1},
    "times": {"coefficients": False},
    "coefficients": {"times": False},
    "ridge": {"engine": "ridge"},
}
PUBLISHED = ("ddim times", "ddim dp")
GROWN = ("both", "unfed", "early")  # those that smaller budgets of the same call help


def subject(name: str) -> tuple[Model, dict[str, Any]]:
    """The model of a problem, unclamped, and the options that it is sampled with."""
    if name in EXACT:
        found = exact(name, n=2)
        net = found.net
        return Model(net, schedule=found.schedule, prediction=found.prediction, shape=found.shape, range=None), {}
    model = odediff.load(Path(__file__).parent / "networks" / name if name == "fashion" else name)
    model.range = None
    return model, {"guidance": GUIDED} if name == "mnist_conditional" else {}


def path_of(name: str) -> Path:
    return FOLDER / f"{name}.json"


def read(name: str) -> dict[str, Any]:
    """What is known of a problem: plans, and errors of the judge."""
    found = {"plans": [], "rows": []}
    return json.loads(path_of(name).read_text()) if path_of(name).is_file() else found


def write(name: str, data: dict[str, Any]) -> None:
    """A line for each plan and row."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    blocks = [f'"{key}":[\n' + ",\n".join(map(json.dumps, data[key])) + "\n]" for key in ("plans", "rows")]
    path_of(name).write_text("{" + ",\n".join(blocks) + "}\n")


def beside(plan: dict[str, Any]) -> tuple[int, ...]:
    """The smaller budgets of the call that fitted a plan, which it grew from."""
    return tuple(sorted(nfe for nfe in plan.get("beside", ()) if nfe < plan["nfe"]))


def title(plan: dict[str, Any]) -> str:
    """What a plan is called in the rows of the judge."""
    after = f", beside {' '.join(map(str, beside(plan)))}" if beside(plan) else ""
    return f"{plan['way']}, {plan['n']} samples, seed {plan['seed']}{after}"


def fit(name: str, args: argparse.Namespace) -> None:
    """Fit what is asked for and missing: the budgets of a way, samples and seed in one call, since they share work."""
    model, options = subject(name)
    backend = "torch" if name in EXACT else args.backend
    for way in args.ways:
        for n in args.n:
            for seed in args.seeds:
                asked = {"way": way, "n": n, "seed": seed, "beside": args.nfe if way in GROWN else []}
                known = {(p["nfe"], title(p)) for p in read(name)["plans"]}
                missing = {nfe for nfe in args.nfe if (nfe, title({"nfe": nfe, **asked})) not in known}
                if not missing:
                    continue
                if way in PUBLISHED:
                    fitted = {nfe: _published(model, way, nfe, n, seed, options, backend) for nfe in args.nfe}
                else:
                    fitted = _tuned(model, way, n, seed, options, backend, args)
                about = {**asked, "threads": torch.get_num_threads(), "backend": backend}
                data = read(name)  # another run may have added to it
                data["plans"] += [
                    {"nfe": nfe, **about, **said, **environment(), "plan": plan.to_json()}
                    for nfe, (plan, said) in fitted.items()
                    if nfe in missing
                ]
                write(name, data)
                for nfe, (_, said) in fitted.items():
                    print(name, nfe, about, said, flush=True)


def _tuned(
    model: Model, way: str, n: int, seed: int, options: dict[str, Any], backend: str, args: argparse.Namespace
) -> dict[int, tuple[odediff.Plan, dict[str, Any]]]:
    """Plans and what their fits say; the fitted plans themselves, whether or not they were certified."""
    effort = {"iterations": args.iterations, "starts": args.starts}
    more: dict[str, Any] = {"n": n, "seed": seed, "folder": args.work, "backend": backend, **effort}
    _, report = odediff.tune(model, args.nfe, **{**more, **options, **WAYS[way]})
    made = {}
    for nfe, budget in report.budgets.items():
        c = budget.certificate
        about = {"start": budget.start, "certified": c.holds, "over_rmse": c.rmse, "over_median": c.median}
        about |= {"evaluations": budget.evaluations, "steps": len(budget.records)}
        made[nfe] = budget.plan, {**about, "cpu": round(budget.seconds, 1), **effort, **WAYS[way]}
    return made


def _published(
    model: Model, way: str, nfe: int, n: int, seed: int, options: dict[str, Any], backend: str
) -> tuple[odediff.Plan, dict[str, Any]]:
    """A plan by another's idea."""
    began = time.process_time()
    if way == "ddim times":
        plan = _ddim_times(model, nfe, n, seed, options, backend)
    else:
        student = Student(model, **options)
        start = form_of(model.schedule, odediff.plan("ddim", model.schedule, nfe, "quadratic"), first=False)
        noise = make_probe(student, n, 2**62 + 3 * seed, _labels(model, n), None, None)
        plan = dynamic(start, noise).plan()
    return plan, {"cpu": round(time.process_time() - began, 1)}


def _ddim_times(model: Model, nfe: int, n: int, seed: int, options: dict[str, Any], backend: str) -> odediff.Plan:
    """DDIM's rows at times fitted by Levenberg-Marquardt on the ends."""
    from odediff.backends import choose, prepared
    from odediff.tuning.levenberg import steps

    student = Student(prepared(backend, *choose(backend, model), model)[-1], **options)
    noise = make_probe(student, n, 2**62 + 3 * seed, _labels(model, n), None, None)
    at = form_of(model.schedule, odediff.plan("ddim", model.schedule, nfe, "quadratic"), coefficients=False)
    for _, (made, _) in zip(range(40), steps(student, at, noise, None), strict=False):
        at = made
    return at.plan()


def _labels(model: Model, n: int) -> Tensor | None:
    return None if model.num_classes is None else torch.arange(model.num_classes).repeat(n)[:n]


def judge(name: str, args: argparse.Namespace) -> None:
    """Errors on two sets of fresh noise: all plans, our built-in pairs that lead, and the peers that lead."""
    model, options = subject(name)
    net = model.net
    _on_training_noise(name, Student(model, **options))
    data = read(name)
    for seed in TEST_SEEDS:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(TESTS, *model.shape, generator=generator)
        labels = _labels(model, TESTS)
        problem = _problem(name, model, noise, labels, options)
        student = Student(model, **options)
        truth, doubt = _truth(student, noise, labels)
        done = {(row["nfe"], row["name"]) for row in data["rows"] if row["test"] == seed}
        for nfe in args.nfe:
            runs: dict[str, Any] = {}
            for made in data["plans"]:
                if made["nfe"] == nfe:
                    runs[title(made)] = ("tuned", odediff.Plan.from_json(made["plan"]))
            builtin = pairs(student, nfe)
            leaders = {
                odediff.Plan.from_json(p["plan"]).args.get("fitted", {}).get("best")
                for p in data["plans"]
                if p["nfe"] == nfe
            }
            for key in {"default", *leaders} & set(builtin):
                runs[key] = ("built-in", builtin[key])
            runs["ddim quadratic"] = ("built-in", builtin["ddim quadratic"])
            for setting in _peers(name, nfe):
                runs[f"{setting.family} {setting.name}"] = ("peer", setting)
            for key, (kind, run) in tqdm(runs.items(), desc=f"{name} {seed} {nfe}"):
                if (nfe, key) in done:
                    continue
                try:
                    if kind == "peer":
                        x, used, _ = rivals.measure(problem, run, nfe)
                        if used > nfe:
                            continue
                    else:
                        x = student.run(run, noise, labels)
                except Exception as error:  # a peer that fails is a result
                    print(name, nfe, key, error)
                    continue
                row = {"nfe": nfe, "name": key, "kind": kind, "test": seed, "doubt": doubt}
                data["rows"].append({**row, **{k: float(f"{v:.4g}") for k, v in errors(x, truth).items()}})
            write(name, data)
    assert model.net is net


def _on_training_noise(name: str, student: Student) -> None:
    """Add to every plan its errors on the noise that it was fitted to."""
    probes: dict[Any, Any] = {}
    found: dict[str, dict[str, float]] = {}
    for made in tqdm(read(name)["plans"], desc=f"{name}, training noise"):
        if "train" not in made:
            n, seed = made["n"], made["seed"]
            if (n, seed) not in probes:
                probes[n, seed] = make_probe(student, n, 2**62 + 3 * seed, _labels(student.model, n), None, None)
            e = plan_errors(student, odediff.Plan.from_json(made["plan"]), probes[n, seed])
            found[made["plan"]] = {"rmse": float((e**2).mean() ** 0.5), "median": float(np.median(e))}
    data = read(name)  # a fit may have added to it
    for made in data["plans"]:
        if made["plan"] in found:
            made["train"] = found[made["plan"]]
    write(name, data)


def _truth(student: Student, noise: Tensor, labels: Tensor | None) -> tuple[Tensor, float]:
    """The converged ends, and the median RMS distance of another solver's."""
    schedule = student.model.schedule
    x0, other = (
        student.run(odediff.plan(name, schedule, nfe, grid, space="flow", variable=variable), noise, labels).double()
        for name, nfe, grid, variable in (
            ("rk4", REFERENCE_NFE, "asinh", "tau"),
            ("abm4", REFERENCE_NFE // 2, "asinh", "t"),
        )
    )
    return x0, errors(other, x0)["median"]


def _problem(name: str, model: Model, noise: Tensor, labels: Tensor | None, options: dict[str, Any]) -> Problem:
    """The network as the peers call it: guided, for these labels."""
    net: Any = model.net
    if labels is not None:
        prediction = Student(model, **options).prediction

        def net(x: Tensor, t: Tensor) -> Tensor:
            return prediction.network(labels, x)(x, float(t.flatten()[0]))

    made = Problem(name, net, model, len(noise), None if name in EXACT else torch.float32)
    made.noise = noise
    return made


def _peers(name: str, nfe: int) -> list[rivals.Setting]:
    """The settings that lead at a budget in results/work_precision, a few of each family."""
    sources = {"mnist_conditional": ("mnist", "fashion")}.get(name, (name,))
    rows = [r for r in load()["rows"] if r["problem"] in sources and r["nfe"] == nfe and "error" not in r]
    kept: list[rivals.Setting] = []
    for family in ("diffusers", "k-diffusion", "azula", "torchdiffeq"):
        mine = [r for r in rows if r["family"] == family and r["used"] <= nfe]
        names = {
            r["setting"]
            for source in sources
            for m in ("rmse", "median")
            for r in sorted((r for r in mine if r["problem"] == source), key=lambda r: r[m])[:LEADERS]
        }
        kept += [setting for setting in settings(family, False) if setting.name in names]
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fit", "judge", "report"))
    parser.add_argument("problems", nargs="*")
    parser.add_argument("--nfe", type=int, nargs="+", default=list(NFE))
    parser.add_argument("--ways", nargs="+", default=["both"], choices=(*WAYS, *PUBLISHED))
    parser.add_argument("--n", type=int, nargs="+", default=[32])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--backend", default="onnx")
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, help="keeps references and steps, so that a run that stopped goes on")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    exact_float32()
    if args.what == "report":
        import tune_page

        tune_page.report()
        return
    for name in args.problems:
        (fit if args.what == "fit" else judge)(name, args)


if __name__ == "__main__":
    main()
