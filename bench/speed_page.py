"""What `bench/speed.py` measured, as tables, bars, plots and a comparison with older results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS
from speed_images import COMPILED

PLOTS = Path(__file__).parent.parent / "docs" / "speed"
SMALL, LARGE = [1, 3, 32, 32], [64, 3, 64, 64]
NAMES = {
    "mnist": "The bundled `mnist`",
    "cifar": "A U-Net of CIFAR-10's size, random weights",
    "tiny": "A tiny network",
}
SAME = {  # samplers of the same method
    "ddim": [("diffusers", "DDIM"), ("azula", "DDIM"), ("torchdiffeq", "euler"), ("k-diffusion", "euler")],
    "dpmpp_2m": [("diffusers", "DPMSolverMultistep"), ("k-diffusion", "dpmpp_2m")],
    "unipc_3": [("diffusers", "UniPCMultistep")],
    "lms": [("diffusers", "LMSDiscrete"), ("k-diffusion", "lms")],
}
Case = dict[str, Any]


def ratio(over: list[float], under: list[float]) -> tuple[float, float, float]:
    """Quartiles and median of a ratio within rounds: (low, median, high)."""
    low, middle, high = np.quantile(np.divide(over, under), [0.25, 0.5, 0.75]).tolist()
    return low, middle, high


def find(rows: list[Case], name: str, library: str = "odediff") -> list[float]:
    """The rounds of a row, [] if it is not there."""
    found = (row for row in rows if row.get("library", library) == library and row["name"] == name)
    return next(found, {}).get("rounds", [])


def text(data: Case) -> str:
    """All tables, Markdown."""
    parts = [_samplers(data["samplers"])]
    for name in dict.fromkeys((case["model"], case["dtype"]) for case in data["images"]):
        cases = [case for case in data["images"] if (case["model"], case["dtype"]) == name]
        parts += [_images(cases), *_left_out(cases, data["device"])]
    parts += ["\n".join(["Bars:", "", *bars(data)]), *_share(data)]
    parts.append("\n".join(["Where we lose:", "", *(_losses(data) or ["- nowhere in these tables"])]))
    if rows := error_over_seconds():
        parts.append(rows)
    env = data["environment"]
    versions = ", ".join(f"{name} {found}" for name, found in data["versions"].items())
    rows = f"rows in one C kernel ({data['rows']})" if data.get("rows") else "rows in aten"
    said = f"`bench/speed.py` on {env['device']}, torch {env['torch']}, {versions}, {rows}, commit {env['commit']}"
    return "\n\n".join([*parts, f"{said}; {data['clock']}, medians of rounds in which everything runs once."])


def bars(data: Case) -> list[str]:
    """A line for each bar of the CPU or the GPU: pass, MISS or not measured."""
    at = {tuple(case["shape"]): case["rows"] for case in data["samplers"]}
    small, large = (at.get(tuple(shape), []) for shape in (SMALL, LARGE))
    row = find(small, "ddim")
    lines = [
        _bar("a row of ddim below diffusers' DDIM, 1x3x32x32", find(small, "DDIM", "diffusers"), row, 15),
        _bar("a row of ddim below diffusers' UniPC, 1x3x32x32", find(small, "UniPCMultistep", "diffusers"), row, 100),
        _bound([1.5 * t for t in find(large, "copy", "torch")], find(large, "ddim")),
    ]
    made = [one["made"] for case in data["samplers"] for one in case["rows"] if one["library"] == "odediff"]
    most = max(made, default=0.0)
    lines.append(f"- {'pass' if most == 0 else 'MISS'}: no tensor of the state's size is made per row ({most:g})")
    return lines + (_gpu_bars(data) if data["device"] == "cuda" else _cpu_bars(data))


def _cpu_bars(data: Case) -> list[str]:
    return [
        _bar(f"{case['model']}, batch {case['batch']}, the best backend below diffusers eager", *_best(case), 1.4)
        for case in data["images"]
        if case["batch"] in (1, 8) and case["model"] != "tiny"
    ]


def _gpu_bars(data: Case) -> list[str]:
    lines = []
    for case in data["images"]:
        if case["model"] == "cifar" and case["batch"] == 1 and case["dtype"] == "float32":
            theirs, ours = _best(case)
            lines.append(_bar("cifar, batch 1, below diffusers eager", theirs, ours, 5))
            compiled = find(case["rows"], "diffusers, compiled")
            lines.append(_bar("cifar, batch 1, below diffusers compiled", compiled, ours, 1.5))
        if case["model"] == "cifar" and case["batch"] == 256 and case["dtype"] == "bfloat16":
            least = [case["flops"] / case["peak"]] * len(_best(case)[1])
            lines.append(_bar("cifar, batch 256, share of the matrix-product peak", least, _best(case)[1], 0.45))
    return lines


def _best(case: Case) -> tuple[list[float], list[float]]:
    """Rounds of diffusers eager, and of our fastest backend."""
    ours = [row["rounds"] for row in case["rows"] if row["name"].startswith("odediff") and "rounds" in row]
    return find(case["rows"], "diffusers, eager"), min(ours, key=np.median, default=[])


def _bar(what: str, over: list[float], under: list[float], least: float) -> str:
    if not over or not under:
        return f"- not measured: {what} (bar {least:.3g}x)"
    got = ratio(over, under)[1]
    return f"- {'pass' if got >= least else 'MISS'}: {what} {got:.2f}x (bar {least:.3g}x)"


def _bound(bound: list[float], row: list[float]) -> str:
    what = "a row of ddim over the copy bound, 64x3x64x64"
    if not bound or not row:
        return f"- not measured: {what} (bar at most 1.5x)"
    got = ratio(row, bound)[1]
    return f"- {'pass' if got <= 1.5 else 'MISS'}: {what} {got:.2f}x (bar at most 1.5x)"


def _losses(data: Case) -> list[str]:
    """A line for each peer that is faster than what we have for the same."""
    lines = []
    for case in data["samplers"]:
        shape = "x".join(map(str, case["shape"]))
        for name, (library, theirs) in ((n, one) for n, peers in SAME.items() for one in peers):
            ours, other = find(case["rows"], name), find(case["rows"], theirs, library)
            if ours and other and (by := ratio(ours, other)[1]) > 1:
                lines.append(f"- {shape}: {library} {theirs} is faster than odediff {name} ({by:.2f} times)")
    for case in data["images"]:
        rows = {row["name"]: row["rounds"] for row in case["rows"] if "rounds" in row}
        ours = {name for name in rows if name.startswith("odediff")}
        peer = min(rows.keys() - ours, key=lambda name: np.median(rows[name]), default=None)
        if peer is None or not ours:
            continue
        best = min(ours, key=lambda name: np.median(rows[name]))
        for name, what in {"odediff, torch": "the default backend", best: "our fastest"}.items():
            if name in rows and (by := ratio(rows[name], rows[peer])[1]) > 1:
                where = f"{case['model']}, {case['dtype']}, batch {case['batch']}"
                lines.append(f"- {where}: {peer} is faster than {name}, {what} ({by:.2f} times)")
    return lines


def _samplers(cases: list[Case]) -> str:
    """The table of what an evaluation costs beside the network."""
    shapes = ["x".join(map(str, case["shape"])) for case in cases]
    each = [cell for shape in shapes for cell in (f"us, {shape}", "x copy bound")]
    head = ["library", "sampler", *each, "passes", "new tensors"]
    lines = [_line(head), "|---" * len(head) + "|"]
    for k, row in enumerate(cases[0]["rows"]):
        each = []
        for case in cases:
            here, copy = case["rows"][k]["rounds"], find(case["rows"], "copy", "torch")
            each += [f"{1e6 * np.median(here):.1f}", f"{ratio(here, [1.5 * t for t in copy])[1]:.1f}"]
        lines.append(_line([row["library"], row["name"], *each, f"{row['streams']:.1f}", f"{row['made']:.1f}"]))
    note = (
        "Per evaluation, the network left out: microseconds, and the time over the copy bound: that of 3 passes, what "
        "a row with one term needs, at the speed of a copy; with k > 1 predictions it needs k + 3. Start and finish of "
        "our samples are in our time, `set_timesteps` is not in diffusers'. Passes are reads and writes by operations, "
        "in sizes of the state; without the C kernel our rows go a block at a time, so that memory sees fewer. "
        "*With Model*: the times that a network is given and the check of what it returns, too."
    )
    return "\n".join(["What a sampler costs without the network:", "", *lines, "", note])


def _images(cases: list[Case]) -> str:
    first = cases[0]
    columns = ("ms", "x diffusers eager (quartiles)", "of the peak")
    each = [cell for case in cases for cell in (f"images/s, batch {case['batch']}", *columns)]
    head = ["way", *each, f"peak MB, batch {cases[-1]['batch']}"]
    lines = [_line(head), "|---" * len(head) + "|"]
    for name in dict.fromkeys(row["name"] for case in cases for row in case["rows"]):
        each = [cell for case in cases for cell in _speed(case, name)]
        peak = next((row.get("peak") for row in cases[-1]["rows"] if row["name"] == name), None)
        lines.append(_line([name, *each, "" if peak is None or name in COMPILED else f"{peak / 1e6:.0f}"]))
    errors = {row["name"]: row["error"] for case in cases for row in case["rows"] if "error" in row}
    notes = [f"Not available: {name}: {why}" for name, why in errors.items()]
    what = f"{NAMES[first['model']]}, {first['parameters'] / 1e6:.1f}M parameters, {first['dtype']}"
    rounds = ", ".join(f"{case['rounds']} at batch {case['batch']}" for case in cases)
    flops = f"{first['flops'] / first['batch'] / first['nfe'] / 1e9:.2f} GFLOP an evaluation"
    last = f"Peak: {first['peak'] / 1e9:.0f} GFLOP/s, a matrix product's; {flops}. Rounds: {rounds}."
    return "\n".join([f"{what}, DDIM, {first['nfe']} evaluations:", "", *lines, "", *notes, *[""] * bool(notes), last])


def _left_out(cases: list[Case], device: str) -> list[str]:
    """What a run without arguments does not take the time for."""
    batches = [case["batch"] for case in cases]
    missing = [str(n) for n in ((1, 8, 64, 256, 1024) if device == "cuda" else (1, 8, 64)) if n not in batches]
    eager = [str(case["batch"]) for case in cases if not any(find(case["rows"], name) for name in COMPILED)]
    said = [f"batches of {', '.join(missing)}"] * bool(missing)
    said += [f"what compiles at batches of {', '.join(eager)}"] * bool(eager)
    return [f"Left out: {'; '.join(said)}."] * bool(said)


def _speed(case: Case, name: str) -> list[str]:
    here, base = find(case["rows"], name), find(case["rows"], "diffusers, eager")
    if not here:
        return [""] * 4
    middle = float(np.median(here))
    low, half, high = ratio(base, here) if base else (np.nan,) * 3
    share = case["flops"] / case["peak"] / middle
    times = [f"{case['batch'] / middle:.3g}", f"{1e3 * middle:.0f}" if middle > 0.1 else f"{1e3 * middle:.3g}"]
    return [*times, f"{half:.2f} ({low:.2f} to {high:.2f})", f"{share:.0%}"]


def _share(data: Case) -> list[str]:
    """What the solver itself takes of a large network's time."""
    rows = next((case["rows"] for case in data["samplers"] if case["shape"] == SMALL), [])
    ours = find(rows, "ddim with Model, a module")
    large = [case for case in data["images"] if case["model"] == "cifar" and case["batch"] == 1]
    network = find(large[0]["rows"], "odediff, torch") if large else []
    if not ours or not network:
        return []
    share = float(np.median(ours)) / (float(np.median(network)) / large[0]["nfe"])
    return [
        f"The solver's own time is {share:.2%} of that of the large network at batch 1: with a network that size the "
        "solver's arithmetic does not matter, only its evaluations and what runs them do."
    ]


def error_over_seconds(name: str = "mnist", budgets: tuple[str, ...] = ("10", "20")) -> str:
    """The most accurate setting of each library, from the measurement of docs/solvers.md. "": it is not there."""
    path = RESULTS / "work_precision" / f"{name}.json"
    if not path.exists():
        return ""
    data = json.loads(path.read_text())
    at = {key: data["columns"].index(key) for key in ("median", "cpu")}
    settings = [json.loads(one) for one in data["settings"]]
    each = [cell for n in budgets for cell in (f"error, {n} evaluations", "ms a sample")]
    lines = [_line(["library", *each]), "|---" * (1 + len(each)) + "|"]
    for family in dict.fromkeys(one[0] for one in settings):
        each = []
        for n in budgets:
            rows = [one[2][n] for one in settings if one[0] == family and n in one[2] and len(one[2][n]) > at["cpu"]]
            best = min((row for row in rows if row[at["median"]] is not None), key=lambda row: row[at["median"]])
            each += [f"{best[at['median']]:.4f}", f"{1e3 * best[at['cpu']]:.2f}"]
        lines.append(_line([family, *each]))
    head = f"Error over seconds on `{name}`, each library's most accurate setting of a budget (docs/solvers.md):"
    return "\n".join([head, "", *lines])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def compare(new: Case, old: Case, by: float = 1.1) -> list[str]:
    """What takes `by` times as long as in older results of the same kind of device, and what got worse in passes."""
    if new["environment"]["device"] != old["environment"]["device"]:
        return [f"not compared: measured on {old['environment']['device']} and {new['environment']['device']}"]
    then, lines = _flat(old), []
    for key, row in _flat(new).items():
        if key not in then:
            continue
        grown = float(np.median(row["rounds"])) / float(np.median(then[key]["rounds"]))
        if grown > by:
            lines.append(f"- {', '.join(key)}: {grown:.2f} times as long")
        for what in ("streams", "made"):
            if row.get(what, 0) > then[key].get(what, 0) + 0.01:
                lines.append(f"- {', '.join(key)}: {what} {then[key][what]:g} -> {row[what]:g}")
    return lines or ["no regressions"]


def _flat(data: Case) -> dict[tuple[str, ...], Case]:
    made = {}
    for case in data["samplers"]:
        shape = "x".join(map(str, case["shape"]))
        made |= {(shape, row["library"], row["name"]): row for row in case["rows"]}
    for case in data["images"]:
        key = (case["model"], case["dtype"], f"batch {case['batch']}")
        made |= {(*key, row["name"]): row for row in case["rows"] if "rounds" in row}
    return made


def plot(data: Case, folder: Path = PLOTS) -> list[Path]:
    """Bars of both tables."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    cases = [case for case in data["samplers"] if case["shape"] in (SMALL, LARGE)]
    paths = []
    figure, axes = pyplot.subplots(1, len(cases), figsize=(6 * len(cases), 6), squeeze=False, layout="constrained")
    for axis, case in zip(axes[0], cases, strict=True):
        rows = sorted(case["rows"], key=lambda row: -np.median(row["rounds"]))
        micro = [1e6 * float(np.median(row["rounds"])) for row in rows]
        colors = ["tab:blue" if row["library"] == "odediff" else "silver" for row in rows]
        axis.barh([f"{row['library']} {row['name']}" for row in rows], micro, color=colors)
        axis.set(xscale="log", title="x".join(map(str, case["shape"])), xlabel="us an evaluation, network left out")
        axis.xaxis.set_minor_formatter("")
    paths.append(folder / "samplers.png")
    figure.savefig(paths[-1], dpi=110)
    cases = [case for case in data["images"] if case["dtype"] == "float32"]
    figure, axes = pyplot.subplots(1, len(cases), figsize=(4.2 * len(cases), 3.6), squeeze=False, layout="constrained")
    for axis, case in zip(axes[0], cases, strict=True):
        rows = [row for row in case["rows"] if "rounds" in row][::-1]
        speed = [case["batch"] / float(np.median(row["rounds"])) for row in rows]
        colors = ["tab:blue" if row["name"].startswith("odediff") else "silver" for row in rows]
        axis.barh([row["name"] for row in rows], speed, color=colors)
        axis.set(title=f"{case['model']}, batch {case['batch']}", xlabel="images/s")
    paths.append(folder / "images.png")
    figure.savefig(paths[-1], dpi=110)
    pyplot.close("all")
    return paths
