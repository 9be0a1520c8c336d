"""docs/solvers.md and its plots from the rows of `work_precision.py`, and the search for the default rule."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from common import README, write_block
from ours import options, ours
from problems import EXACT
from rivals import Setting
from work_precision import NFE, Rows

from odediff.methods import METHODS
from odediff.methods.rule import RULE

PAGE = README.parent / "docs" / "solvers.md"
PLOTS = README.parent / "docs" / "solvers"
MEAN = (5, 30)  # the budgets that geometric means run over
PUBLISHED = (  # a method with its paper's weights, the same one by exact integration, and their frame
    *(("dpmpp_2m", "ab2", "x0", "lam"), ("dpmpp_3m", "ab3", "x0", "lam"), ("unipc_2", "abm2", "x0", "lam")),
    *(("unipc_3", "abm3", "x0", "lam"), ("ipndm", "ab4", "eps", "rho")),
)
NETWORK_WEIGHT = 3.0  # of a network among the problems: closed-form problems mislead

Cells = dict[tuple[str, int], Rows]


def the_default(nfe: int) -> str:
    """The name of the setting that is the package's default, at any budget."""
    return "default"


def cells(rows: Rows) -> Cells:
    """The finished rows by (problem, budget): the smallest of `NFE` that covers the evaluations used."""
    found: Cells = defaultdict(list)
    for row in rows:
        budget = next((nfe for nfe in NFE if nfe >= row["used"]), None)
        if "error" not in row and budget is not None:
            found[row["problem"], budget].append(row)
    return found


def best(rows: Iterable[dict[str, Any]], measure: str) -> dict[str, Any] | None:
    """The row of the smallest error."""
    return min(rows, key=lambda row: row[measure], default=None)


def parse(rule: str) -> Callable[[int], str]:
    """The setting's name at a budget from "5-8: abm3 flow t uniform; 9-: ...".

    ValueError: a clause of another form; KeyError from the result: no clause covers the budget.
    """
    clauses = []
    for clause in filter(None, (part.strip() for part in rule.split(";"))):
        found = re.fullmatch(r"(\d+)(-?)(\d*):\s*(\S+) (\S+) (\S+) (\S+)", clause)
        if not found:
            raise ValueError(f"cannot read {clause!r}; write '5-8: METHOD SPACE VARIABLE GRID'")
        low, dash, high = int(found[1]), found[2], found[3]
        end = int(high) if high else math.inf if dash else low
        name = Setting("odediff", found[4], options(*found.groups()[4:]), lambda *_: None).name  # type: ignore[arg-type, return-value]
        clauses.append((low, end, name))

    def at(nfe: int) -> str:
        for low, end, name in clauses:
            if low <= nfe <= end:
                return name
        raise KeyError(f"the rule says nothing of {nfe} evaluations")

    return at


def geometric(ratios: list[float], weights: list[float] | None = None) -> float:
    """exp of the weighted mean of logs; NaN of nothing."""
    weights = [1.0] * len(ratios) if weights is None else weights
    return (
        math.exp(sum(w * math.log(r) for w, r in zip(weights, ratios, strict=True)) / sum(weights))
        if ratios
        else math.nan
    )


def ratios(found: Cells, at: Callable[[int], str], measure: str) -> dict[tuple[str, int], float]:
    """The error of our setting `at(nfe)` over that of the best peer of the cell; cells without either are left out."""
    made = {}
    for (problem, nfe), rows in found.items():
        peer = best((row for row in rows if row["family"] != "odediff"), measure)
        mine = best((row for row in rows if (row["family"], row["setting"]) == ("odediff", at(nfe))), measure)
        if peer and mine:
            made[problem, nfe] = mine[measure] / peer[measure]
    return made


def inside(per: dict[tuple[str, int], float]) -> dict[tuple[str, int], float]:
    """The cells that the means run over."""
    return {key: value for key, value in per.items() if MEAN[0] <= key[1] <= MEAN[1]}


def summary(per: dict[tuple[str, int], float], found: Cells) -> str:
    """Geometric mean over nfe 5..30, the worst cell, and what is missing."""
    missing = len(inside(dict.fromkeys(found, 0.0))) - len(inside(per))
    per = inside(per)
    if not per:
        return "no cell of 5 to 30 evaluations has both the setting and a peer"
    worst = max(per, key=per.__getitem__)
    weights = [1.0 if is_exact(problem) else NETWORK_WEIGHT for problem, _ in per]
    return (
        f"geometric mean {geometric(list(per.values())):.2f} (networks weighted {NETWORK_WEIGHT:g}: "
        f"{geometric(list(per.values()), weights):.2f}), worst {per[worst]:.2f} ({worst[0]}, {worst[1]})"
        + (f", {missing} cells missing" if missing else "")
    )


def fixed(found: Cells, measure: str) -> dict[str, tuple[str, dict[tuple[str, int], float]]]:
    """Per family the one setting whose errors over the best peer's have the least geometric mean over the networks'
    cells of 5 to 30 evaluations, of those that are in all of them; and its ratios."""
    wanted = {key for key in inside(dict.fromkeys(found, 0.0)) if not is_exact(key[0])}
    least = {
        key: peer[measure]
        for key in wanted
        if (peer := best((r for r in found[key] if r["family"] != "odediff"), measure))
    }
    per: dict[tuple[str, str], dict[tuple[str, int], float]] = defaultdict(dict)
    for key, floor in least.items():
        for row in found[key]:
            ratio = row[measure] / floor
            each = per[row["family"], row["setting"]]
            each[key] = min(ratio, each.get(key, math.inf))
    chosen: dict[str, tuple[str, dict[tuple[str, int], float]]] = {}
    for (family, setting), one in per.items():
        if len(one) == len(least) and setting != "default":
            mean = geometric(list(one.values()))
            if family not in chosen or mean < geometric(list(chosen[family][1].values())):
                chosen[family] = setting, one
    return chosen


def is_exact(problem: str) -> bool:
    """Whether the problem is one in closed form."""
    return problem.partition("@")[0] in EXACT


def suggest(rows: Rows, rule: str, measure: str) -> str:
    """Per budget our settings with the smallest weighted geometric mean over the problems; then the cells of a rule, or
    of the default."""
    found, lines = cells(rows), ["nfe | weighted mean, mean over networks, worst | setting"]
    problems = sorted({problem for problem, _ in found})
    for nfe in sorted({nfe for _, nfe in found}):
        per: dict[str, dict[str, float]] = defaultdict(dict)
        for problem in problems:
            peer = best((r for r in found.get((problem, nfe), []) if r["family"] != "odediff"), measure)
            for row in found.get((problem, nfe), []) if peer else []:
                if row["family"] == "odediff":
                    per[row["setting"]][problem] = row[measure] / peer[measure]
        most = max((len(one) for one in per.values()), default=0)
        ranked = []
        for name, one in per.items():
            if len(one) == most:  # a setting that failed somewhere is no default
                weights = [1.0 if is_exact(problem) else NETWORK_WEIGHT for problem in one]
                nets = geometric([value for problem, value in one.items() if not is_exact(problem)])
                ranked.append((geometric(list(one.values()), weights), nets, max(one.values()), name))
        lines += [
            f"{nfe:3} | {mean:.2f} {nets:.2f} {worst:.2f} | {name}" for mean, nets, worst, name in sorted(ranked)[:8]
        ]
    per_cell = ratios(found, parse(rule) if rule else the_default, measure)
    lines.append(f"rule: {rule or 'default'}")
    lines += [
        f"{problem}: " + " ".join(f"{nfe}:{per_cell[problem, nfe]:.2f}" for nfe in NFE if (problem, nfe) in per_cell)
        for problem in problems
    ]
    return "\n".join([*lines, summary(per_cell, found)])


def _cell(row: dict[str, Any] | None, measure: str) -> str:
    return f"{row[measure]:.2g} {row['family']} {row['setting']}" if row else ""


def tables(rows: Rows, measure: str) -> str:
    """A Markdown table per problem."""
    found, per = cells(rows), ratios(cells(rows), the_default, measure)
    lines = []
    for problem in dict.fromkeys(problem for problem, _ in found):
        lines += [f"### {problem}", "", f"![{problem}](solvers/{problem}.png)", ""]
        lines += [
            "| nfe | best peer | best of diffusers | default | our best | default / best peer |",
            "|---|---|---|---|---|---|",
        ]
        for nfe in NFE:
            here = found.get((problem, nfe), [])
            own = [row for row in here if row["family"] == "odediff"]
            four = (
                best((row for row in here if row["family"] != "odediff"), measure),
                best((row for row in here if row["family"] == "diffusers"), measure),
                best((row for row in own if row["setting"] == "default"), measure),
                best(own, measure),
            )
            if here:
                ratio = f"{per[problem, nfe]:.2f}" if (problem, nfe) in per else ""
                lines.append(f"| {nfe} | " + " | ".join(_cell(row, measure) for row in four) + f" | {ratio} |")
        lines.append("")
    return "\n".join(lines)


def plot(problem: str, rows: Rows, measure: str) -> None:
    """Error over evaluations and over CPU seconds a sample, log-log: the default, the best peers, DDIM."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = cells(rows)
    picks: dict[str, Callable[[dict[str, Any], int], bool]] = {
        "odediff default": lambda r, _: (r["family"], r["setting"]) == ("odediff", "default"),
        "odediff best": lambda r, _: r["family"] == "odediff",
        "diffusers best": lambda r, _: r["family"] == "diffusers",
        "k-diffusion best": lambda r, _: r["family"] == "k-diffusion",
        "azula best": lambda r, _: r["family"] == "azula",
        "torchdiffeq best": lambda r, _: r["family"] == "torchdiffeq",
        "diffusers DDIM trailing": lambda r, _: r["setting"].startswith("DDIM") and "trailing" in r["setting"],
    }
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    for (label, pick), marker in zip(picks.items(), "o.sv^xd", strict=True):
        chosen = [best((r for r in found.get((problem, nfe), []) if pick(r, nfe)), measure) for nfe in NFE]
        line = [row for row in chosen if row]
        if line:
            style: dict[str, Any] = {"marker": marker, "label": label, "lw": 2.5 if label == "odediff default" else 1.0}
            axes[0].plot([row["used"] for row in line], [row[measure] for row in line], **style)
            axes[1].plot([row["cpu"] for row in line], [row[measure] for row in line], **style)
    for axis, title in zip(axes, ("evaluations", "CPU seconds a sample, one thread"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel=title)
        axis.grid(alpha=0.3, which="both")
    shown = [nfe for nfe in NFE if (problem, nfe) in found]
    axes[0].set_xticks(shown, [str(nfe) for nfe in shown])
    axes[0].minorticks_off()
    axes[0].set_ylabel(f"{measure} error in x0")
    axes[0].legend(fontsize=8)
    figure.suptitle(problem)
    PLOTS.mkdir(exist_ok=True)
    figure.savefig(PLOTS / f"{problem}.png", dpi=110)
    pyplot.close(figure)


def report(data: dict[str, Any], measure: str) -> None:
    """Fill the page's blocks and draw the plots."""
    rows = data["rows"]
    found = cells(rows)
    for problem in data["problems"]:
        plot(problem, rows, measure)
    doubts = "; ".join(
        f"{name} {one['n']} samples, reference uncertain by {one['reference_doubt']:.1e}"
        for name, one in data["problems"].items()
    )
    last = data["parts"][-1]
    versions = ", ".join(f"{name} {number}" for name, number in last["versions"].items())
    failed = sum("error" in row for row in rows)
    commits = ", ".join(sorted({part["commit"] for part in data["parts"]}))
    note = f"{len(rows)} runs, {failed} failed. {doubts}. {last['device']}, {versions}, commit {commits}."
    write_block("solvers", tables(rows, measure) + "\n" + note, PAGE)
    write_block("methods", methods_table(rows, measure), PAGE)
    write_block("published", published_table(rows, measure), PAGE.parent / "methods.md")
    write_block("rule", f"{rule_of_thumb()}\n\n{bars(found, measure)}", PAGE)


def against_ddim(rows: Rows, measure: str) -> dict[str, dict[int, list[float]]]:
    """Of every method as it comes, its error over that of ddim: by budget, one ratio for each network that has both."""
    names = {one.name: one.method for one in ours(False) if one.name != "default"}
    mine = {
        (row["problem"], names[row["setting"]], row["nfe"]): row[measure]
        for row in rows
        if row["family"] == "odediff" and row["setting"] in names and "error" not in row
    }
    made: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (problem, method, nfe), value in sorted(mine.items()):
        if not is_exact(problem) and (problem, "ddim", nfe) in mine:
            made[method][nfe].append(value / mine[problem, "ddim", nfe])
    return made


def ahead_from(ratios: dict[int, list[float]]) -> int | None:
    """The smallest budget from which, at all that were measured, a method beats ddim on every network."""
    budgets = sorted(ratios, reverse=True)
    behind = next((k for k, nfe in enumerate(budgets) if max(ratios[nfe]) >= 1.0), len(budgets))
    return budgets[behind - 1] if behind else None


def published_table(rows: Rows, measure: str) -> str:
    """Error by exact integration over that of the published weights: geometric means over 3 to 20 evaluations."""
    found = {
        (r["problem"], r["setting"], r["nfe"]): r[measure] for r in rows if r["family"] == "odediff" and measure in r
    }
    names = {"gaussian": "normal data", "modes": "eight modes", "digits": "digits mixture"}
    names |= {"mnist": "MNIST network", "fashion": "Fashion-MNIST network"}
    lines = ["| published | exact | " + " | ".join(names.values()) + " |", "|---|---" + "|---" * len(names) + "|"]
    for published, exact, space, variable in PUBLISHED:
        setting = f"space={space} variable={variable} grid=quadratic"
        cells = []
        for problem in names:
            pairs = [
                [found.get((problem, f"{name} {setting}", nfe)) for name in (exact, published)]
                for nfe in NFE
                if nfe <= 20
            ]
            over = [one / other for one, other in pairs if one is not None and other is not None]
            cells.append(f"{geometric(over):.2f}" if over else "")
        lines.append(f"| `{published}` | `{exact}` ({space}, {variable}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def methods_table(rows: Rows, measure: str) -> str:
    """Every method of ours as it comes, over ddim."""
    made = against_ddim(rows, measure)
    lines = ["| method | better from | " + " | ".join(map(str, NFE)) + " |", "|---|---|" + "---|" * len(NFE)]
    for method in (name for name in METHODS if name in made and name != "ddim"):
        found = made[method]
        each = [" ".join(f"{ratio:.2g}" for ratio in found[nfe]) if nfe in found else "" for nfe in NFE]
        lines.append(f"| `{method}` | {ahead_from(found) or ''} | " + " | ".join(each) + " |")
    return "\n".join(lines)


def rule_of_thumb() -> str:
    """The package's rule as a table."""
    lines = ["| evaluations | method | space, variable | grid |", "|---|---|---|---|"]
    for choice, after in zip(RULE, [*RULE[1:], None], strict=True):
        last = after.least - 1 if after else None
        budgets = f"{choice.least} and more" if last is None else f"{choice.least} to {last}"
        budgets = f"{choice.least}" if last == choice.least else budgets
        frame = METHODS[choice.name].frames[0] if choice.space is None else (choice.space, choice.variable)
        lines.append(f"| {budgets} | `{choice.name}` | {', '.join(map(str, frame))} | {choice.grid} |")
    return "\n".join(lines)


def duel(found: Cells, measure: str, whom: str, setting: str | None) -> str:
    """Where on the networks, at every budget, the default loses to a setting of diffusers, or to a cell's best."""
    lost, cells_seen = [], 0
    for (problem, nfe), rows in sorted(found.items()):
        peer = best((r for r in rows if r["family"] == "diffusers" and setting in (None, r["setting"])), measure)
        mine = best((r for r in rows if (r["family"], r["setting"]) == ("odediff", "default")), measure)
        if peer and mine and not is_exact(problem):
            cells_seen += 1
            if mine[measure] >= peer[measure]:
                lost.append(f"{problem} at {nfe} ({mine[measure] / peer[measure]:.2f})")
    where = f"loses to {whom} in {len(lost)}: {', '.join(lost)}" if lost else f"beats {whom} in all"
    return f"Of the {cells_seen} cells of the networks, 3 to 50 evaluations, the default {where}."


def bars(found: Cells, measure: str) -> str:
    """How the default and the best fixed setting of each family stand to the best peer of every cell."""
    per = ratios(found, the_default, measure)
    chosen = {"odediff default": ("", inside(per)), **fixed(found, measure)}
    problems = list(dict.fromkeys(problem for problem, _ in found))
    lines = [
        f"Error over that of the best peer of each cell, geometric means over budgets of {MEAN[0]} to {MEAN[1]}; a "
        "peer would have to be the best everywhere to have 1.00. Below the default, the one setting of each family "
        "that does best over the networks' cells, of those that ran in all.",
        "",
        "| | " + " | ".join(problems) + " | networks | worst on networks |",
        "|---|" + "---|" * (len(problems) + 2),
    ]
    for family, (setting, one) in chosen.items():
        nets = [value for (problem, _), value in one.items() if not is_exact(problem)]
        means = [geometric([value for (at, _), value in one.items() if at == problem]) for problem in problems]
        numbers = [*means, geometric(nets), max(nets, default=math.nan)]
        name = f"{family} `{setting}`" if setting else family
        lines.append(f"| {name} | " + " | ".join("" if math.isnan(x) else f"{x:.2f}" for x in numbers) + " |")
    if "diffusers" in chosen:
        lines += ["", duel(found, measure, "that setting of diffusers", chosen["diffusers"][0])]
        lines += ["", duel(found, measure, "whichever setting of diffusers is the best of the cell", None)]
    return "\n".join([*lines, "", f"The default: {summary(per, found)}."])
