"""docs/tuning.md's measured part, its plots and README's picture, from the files of `tune.py`."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import matplotlib
import numpy as np
import torch
from common import README, write_block
from tune import FOLDER, NFE, TEST_SEEDS, TESTS, _problem, _truth, beside, subject, title
from work_precision import settings

import odediff
from odediff.tuning.report import number
from odediff.tuning.student import Student

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PAGE = README.parent / "docs" / "tuning.md"
PLOTS = README.parent / "docs" / "tuning"
ORDER = ("mnist", "fashion", "mnist_conditional", "digits", "modes")
NETWORKS = ORDER[:3]
# The bars: the error over the best peer's, networks by RMSE and median, mixtures by median.
NETWORK_BARS = {4: 1.0, 5: 1 / 2, 6: 1 / 2, 8: 1 / 3, 10: 1 / 3, 12: 1 / 3}
MIXTURE_BARS = dict.fromkeys((5, 6, 8, 10, 12), 1 / 3)
LINES = (("peer", "best peer", "s--"), ("built-in", "best built-in", "o-"), ("", "tuned", "D-"))
BUILT_IN = "the default, ddim, and the pair that a certificate found best by its median"
TAILS = "RMSE falls more slowly than the median, whatever the solver:"
GAINS = (
    "A budget fitted beside smaller ones, over the same alone, RMSE, median (starts and iterations are in the tables "
    "below, and differ):"
)
PICTURED, SHOWN = (5, 8), 6


def load() -> dict[str, dict[str, Any]]:
    """What was measured, by problem."""
    return {
        name: json.loads((FOLDER / f"{name}.json").read_text()) for name in ORDER if (FOLDER / f"{name}.json").exists()
    }


def averaged(data: dict[str, Any]) -> dict[int, dict[str, dict[str, Any]]]:
    """nfe -> name -> kind and errors, means over the sets of test noise in which the plan was measured."""
    seen: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    for row in data["rows"]:
        seen[row["nfe"], row["name"]].append(row)
    found: dict[int, dict[str, dict[str, Any]]] = defaultdict(dict)
    for (nfe, name), rows in seen.items():
        if len(rows) == len(TEST_SEEDS):
            mean = {m: sum(row[m] for row in rows) / len(rows) for m in ("rmse", "median")}
            found[nfe][name] = {"kind": rows[0]["kind"], "name": name, **mean}
    return found


def best(rows: dict[str, dict[str, Any]], kind: str, measure: str) -> dict[str, Any] | None:
    """The plan of a kind with the least error."""
    return min((row for row in rows.values() if row["kind"] == kind), key=lambda row: row[measure], default=None)


def tuned(data: dict[str, Any], rows: dict[str, dict[str, Any]], nfe: int) -> dict[str, Any] | None:
    """The way "both": the mean over seeds, at the samples, and budgets beside, that most seeds have, or that a
    certificate favours."""
    plans = [p for p in data["plans"] if p["nfe"] == nfe and p["way"] == "both"]
    if not plans:
        return None
    groups = [(p["n"], beside(p)) for p in plans]
    best_of = max(plans, key=lambda p: (groups.count((p["n"], beside(p))), -p["over_median"][0]))
    n, after = best_of["n"], beside(best_of)
    names = [title(p) for p in plans if (p["n"], beside(p)) == (n, after)]
    chosen = [rows[name] for name in names if name in rows]
    if not chosen:
        return None
    return {"n": n, "seeds": len(chosen), **{m: sum(r[m] for r in chosen) / len(chosen) for m in ("rmse", "median")}}


def table(data: dict[str, Any]) -> list[str]:
    """Errors by budget: RMSE, median."""
    rows = averaged(data)
    lines = ["| nfe | best peer | best built-in | default | tuned | tuned over the best peer, RMSE | median |"]
    lines.append("|---|---|---|---|---|---|---|")

    def cell(nfe: int, kind: str) -> str:
        found = [best(rows[nfe], kind, m) for m in ("rmse", "median")]
        return "" if None in found else f"{number(found[0]['rmse'])}, {number(found[1]['median'])}"  # type: ignore[index]

    for nfe in NFE:
        mine = tuned(data, rows[nfe], nfe)
        if mine is None or not rows[nfe]:
            continue
        peers = [best(rows[nfe], "peer", m) for m in ("rmse", "median")]
        over = [f"{mine[m] / peer[m]:.2f}" if peer else "" for m, peer in zip(("rmse", "median"), peers, strict=True)]
        plain = rows[nfe].get("default")
        cells = [
            cell(nfe, "peer"),
            cell(nfe, "built-in"),
            f"{number(plain['rmse'])}, {number(plain['median'])}" if plain else "",
        ]
        lines.append(
            f"| {nfe} | "
            + " | ".join(cells)
            + f" | {number(mine['rmse'])}, {number(mine['median'])} | {over[0]} | {over[1]} |"
        )
    return lines


def ways(data: dict[str, Any]) -> list[str]:
    """Every plan that was fitted, a line each; beside: smaller budgets in the same call."""
    rows = averaged(data)
    found = []
    for plan in sorted(data["plans"], key=lambda p: (p["nfe"], p["way"], p["n"], beside(p), p["seed"])):
        row = rows[plan["nfe"]].get(title(plan))
        if row is not None:
            cells = [
                plan["nfe"],
                plan["way"],
                " ".join(map(str, beside(plan))),
                plan["n"],
                plan.get("starts", ""),
                plan.get("iterations", ""),
                plan["seed"],
            ]
            train = plan.get("train")  # `tune.py judge` adds it
            cells += [number(of[m]) if of else "" for of in (row, train) for m in ("rmse", "median")]
            cells.append(f"{plan['cpu']:.0f}")
            found.append("| " + " | ".join(map(str, cells)) + " |")
    head = "| nfe | way | beside | samples | starts | iterations | seed "
    head += "| RMSE | median | RMSE, training | median, training | CPU s |"
    return [head, "|" + 12 * "---|", *found]


def frechet_rows() -> list[dict[str, Any]]:
    """What `tune_frechet.py` measured."""
    path = FOLDER / "frechet.json"
    return json.loads(path.read_text()) if path.is_file() else []


def distances() -> list[str]:
    """Frechet distances of samples, to the flow's and to the test images."""
    rows = {(row["problem"], row["nfe"], row["name"]): row for row in frechet_rows()}
    names = ("tuned", "default", "best peer", "ddim")
    lines = []
    for problem, nfe in dict.fromkeys(key[:2] for key in rows):
        found = [rows.get((problem, nfe, name)) for name in names]
        if None not in found:
            cells = [f"{row['flow']:.2f}, {row['test']:.2f}" for row in found]  # type: ignore[index]
            lines.append(f"| {problem} | {nfe} | " + " | ".join(cells) + " |")
    if not lines:
        return []
    flows = [(problem, row) for (problem, _, name), row in rows.items() if name == "flow"]
    said = "; ".join(f"{problem} {row['test']:.2f}" for problem, row in flows)
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows.values()))
    note = f"FD(NAME_cnn128) of {flows[0][1]['n']} samples from the same noise, to the converged flow's and to the "
    note += f"10,000 test images. The flow's own to these: {said}. `bench/tune_frechet.py`, commit {commits}."
    head = ["| network | nfe | " + " | ".join(names) + " |", "|" + (2 + len(names)) * "---|"]
    return [note, "", *head, *lines, ""]


def bars(known: dict[str, dict[str, Any]]) -> list[str]:
    """Each bar, met or not."""
    lines = []
    for name, data in known.items():
        rows = averaged(data)
        for nfe, bar in (NETWORK_BARS if name in NETWORKS else MIXTURE_BARS).items():
            mine = tuned(data, rows[nfe], nfe)
            measures = ("rmse", "median") if name in NETWORKS else ("median",)
            peers = [best(rows[nfe], "peer", m) for m in measures]
            if mine is None or None in peers:
                lines.append(f"- not measured: {name}, {nfe} evaluations")
                continue
            over = [mine[m] / peer[m] for m, peer in zip(measures, peers, strict=True)]  # type: ignore[index]
            said = ", ".join(f"{m} {value:.2f}" for m, value in zip(measures, over, strict=True))
            verdict = "pass" if max(over) <= bar and (bar < 1 or max(over) < 1) else "MISS"
            lines.append(f"- {verdict}: {name}, {nfe} evaluations, error over the best peer's: {said} (bar {bar:.2f})")
    return lines


def tails(known: dict[str, dict[str, Any]]) -> list[str]:
    """How RMSE goes with the median over the peers and built-in pairs of each network, and what a bar on RMSE takes."""
    lines = []
    for name in NETWORKS:
        others = [row for found in averaged(known.get(name, {"rows": []})).values() for row in found.values()]
        points = [(row["median"], row["rmse"]) for row in others if row["kind"] != "tuned"]
        if len(points) < 3:
            continue
        power = float(np.polyfit(*np.log(points).T, 1)[0])
        wanted = [f"{bar ** (1 / power):.2f} for {bar:.2f}" for bar in sorted({*NETWORK_BARS.values()} - {1.0})]
        lines.append(f"- {name}: RMSE goes as median^{power:.2f} over {len(points)} peers and built-in pairs at all ")
        lines[-1] += f"budgets; by that, the median over the best peer's has to be {', '.join(wanted)} by RMSE"
    return lines


def gains(known: dict[str, dict[str, Any]]) -> list[str]:
    """What smaller budgets gave one beside them: its errors over those alone, of the same samples and seeds."""
    lines = []
    for name, data in known.items():
        found = []
        for nfe, rows in sorted(averaged(data).items()):
            both = {title(p): p for p in data["plans"] if p["nfe"] == nfe and p["way"] == "both" and title(p) in rows}
            pairs = [
                (rows[grown], rows[alone])
                for grown, p in both.items()
                if beside(p) and (alone := title({**p, "beside": ()})) in both
            ]
            if pairs:
                over = [sum(a[m] for a, _ in pairs) / sum(b[m] for _, b in pairs) for m in ("rmse", "median")]
                found.append(f"{nfe}: {over[0]:.2f}, {over[1]:.2f}")
        if found:
            lines.append(f"- {name} {'; '.join(found)}")
    return lines


def plot(known: dict[str, dict[str, Any]]) -> None:
    """Median errors over evaluations, a panel for each problem that has several budgets."""
    PLOTS.mkdir(exist_ok=True)
    shown = {name: data for name, data in known.items() if len(averaged(data)) > 1}
    canvas, axes = plt.subplots(1, len(shown), figsize=(3.4 * len(shown), 3.4), squeeze=False)
    for axis, (name, data) in zip(axes[0], shown.items(), strict=True):
        rows = averaged(data)
        for kind, label, style in LINES:
            points = []
            for nfe in NFE:
                row = best(rows[nfe], kind, "median") if kind else tuned(data, rows[nfe], nfe)
                if row is not None:
                    points.append((nfe, row["median"]))
            if points:
                axis.loglog(*zip(*points, strict=True), style, label=label, markersize=4)
        axis.set_title(name)
        axis.set_xlim(NFE[0] / 1.1, NFE[-1] * 1.1)
        axis.set_xticks(NFE, [str(n) for n in NFE])
        axis.minorticks_off()
        axis.set_xlabel("evaluations")
    axes[0][0].set_ylabel("median error in x0")
    axes[0][0].legend()
    canvas.tight_layout()
    canvas.savefig(PLOTS / "errors.png", dpi=130)
    plt.close(canvas)


def picture(data: dict[str, Any]) -> None:
    """DDIM, the best peer, tuned and the reference on the same noise, at the budgets of `PICTURED`."""
    import rivals

    model, options = subject("mnist")
    noise = torch.randn(TESTS, *model.shape, generator=torch.Generator().manual_seed(TEST_SEEDS[0]))
    student, rows = Student(model, **options), averaged(data)
    truth, _ = _truth(student, noise, None)
    problem = _problem("mnist", model, noise, None, options)
    canvas, axes = plt.subplots(4, len(PICTURED), figsize=(4.2 * len(PICTURED), 3.4))
    for column, nfe in enumerate(PICTURED):
        peer = best(rows[nfe], "peer", "median")
        plans = [p for p in data["plans"] if (p["nfe"], p["way"], p["seed"]) == (nfe, "both", 0)]
        plans.sort(key=lambda p: p["over_median"][0])
        assert peer is not None
        family, name = peer["name"].split(" ", 1)
        setting = next(one for one in settings(family, False) if one.name == name)
        shown = {
            "DDIM": student.run(odediff.plan("ddim", model.schedule, nfe, "uniform"), noise),
            f"best peer, {family}": rivals.measure(problem, setting, nfe)[0],
            "tuned": student.run(odediff.Plan.from_json(plans[0]["plan"]), noise),
            "reference": truth,
        }
        for axis, (label, x) in zip(axes[:, column], shown.items(), strict=True):
            strip = torch.cat(list(x[:SHOWN, 0].float().clamp(-1, 1)), 1)
            axis.imshow(strip, cmap="gray", vmin=-1, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
        axes[0, column].set_title(f"{nfe} evaluations", fontsize=9)
    canvas.tight_layout()
    canvas.savefig(PLOTS / "digits.png", dpi=130)
    plt.close(canvas)


def report() -> None:
    """Write everything."""
    known = load()
    lines = ["Errors in x0 on noise that no plan has seen: RMSE, median.", ""]
    for name, data in known.items():
        made = table(data)
        lines += [f"**{name}**", "", *(made if len(made) > 2 else ["Fitted, and not judged on both sets."]), ""]
    lines += ["![median errors over evaluations](tuning/errors.png)", "", "Bars of the issue that asked for this:", ""]
    lines += [
        *bars(known),
        "",
        TAILS,
        "",
        *tails(known),
        "",
        GAINS,
        "",
        *gains(known),
        "",
        *distances(),
        "All plans that were fitted:",
        "",
    ]
    for name, data in known.items():
        lines += [f"**{name}**", "", *ways(data), ""]
    machines = sorted({(p["device"], p["torch"], p["commit"]) for data in known.values() for p in data["plans"]})
    said = "; ".join(f"{device}, torch {version}, commit {commit}" for device, version, commit in machines)
    lines.append(
        f"`bench/tune.py`: {len(TEST_SEEDS)} sets of {TESTS} noises, means of the two; peers: the settings that lead "
        f"at the budget in docs/solvers.md, run again; built-in: {BUILT_IN}. Plans fitted on {said}; CPU time of a "
        "fit, its starts and certificate included, of the last run where it went on from an interrupted one; of those "
        "with nothing beside them some include their references."
    )
    plot(known)
    if "mnist" in known:
        picture(known["mnist"])
    write_block("tune", "\n".join(lines), PAGE)
    if "mnist" in known:
        said = "Errors in x0 on fresh noise, the bundled model: RMSE, median. "
        said += f"Built-in: {BUILT_IN}. How each was fitted: docs/tuning.md."
        write_block("tuned", "\n".join([said, "", *table(known["mnist"])]))
    print("\n".join(bars(known)))


if __name__ == "__main__":
    report()
