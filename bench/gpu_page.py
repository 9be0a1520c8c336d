"""The page of bench/gpu.py: what was measured against its bars, or that it was not."""

from __future__ import annotations

import statistics
from typing import Any

from speed_page import ratio

Found = dict[str, Any]
NEVER = "Not measured yet: no GPU was at hand. `python bench/gpu.py` measures it in less than ten minutes."
EXPECTED = ("tests", "kernel", "batch 1", "batch 256", "candidates", "onnx")


def text(data: Found | None) -> str:
    """Markdown of the results, None: there are none."""
    if data is None:
        return NEVER
    stages, where = data["stages"], data["environment"]
    others = "".join(f", {name} {said}" for name, said in data.get("versions", {}).items())
    lines = [f"On {where['device']}, torch {where['torch']}{others}, commit {where['commit']}."]
    if data["dry"]:
        lines = ["A dry run on a tiny network, of which no number says anything.", *lines]
    lines += ["", *bars(stages), ""]
    for name in EXPECTED:
        stage = stages.get(name, {"status": "not run", "result": None})
        if stage["status"] != "ok":
            lines.append(f"- {name}: {stage['status']}" + (f": {stage['why']}" if "why" in stage else ""))
        if stage["result"]:
            lines += TABLES[name](stage["result"])
    return "\n".join(lines)


def bars(stages: dict[str, Found]) -> list[str]:
    """A line for each bar: pass, MISS, or not measured."""
    results = {name: (stage["result"] or {}) for name, stage in stages.items()}
    shares = [statistics.median(row["shares"]) for row in results.get("kernel", {}).get("rows", []) if not row["noise"]]
    made = [
        _bar("stage kernel: share of copy bandwidth, 64 MiB, without noise, the least", min(shares, default=None), 0.85)
    ]
    one = results.get("batch 1", {})
    for peer, least in (("eager", 5.0), ("compiled", 1.5)):
        best = max(_ratios(one, peer), key=lambda found: found[1], default=(None, None, peer))
        made.append(_bar(f"batch 1: {best[0] or 'the best of ours'} against {best[2]}", best[1], least))
    many = results.get("batch 256", {})
    rates = [many["flops"] / statistics.median(row["rounds"]) / many["peak"] for row in _rows(many)]
    made.append(_bar("batch 256: share of the matrix products' peak", max(rates, default=None), 0.45))
    counts = results.get("tests", {}).get("counts", {})
    ended = stages.get("tests", {}).get("status") == "ok" or {"failed", "error"} & set(counts)
    passed = float(bool(counts.get("passed")) and not {"failed", "error"} & set(counts)) if ended else None
    return [*made, _bar("tests marked gpu pass", passed, 1.0)]


def _bar(what: str, value: float | None, least: float) -> str:
    if value is None:
        return f"- not measured: {what} (bar {least:g})"
    return f"- {'pass' if value >= least else 'MISS'}: {what}: {value:.2f} (bar {least:g})"


def _rows(case: Found) -> list[Found]:
    return [row for group in case.get("groups", []) for row in group["rows"]]


def _ratios(case: Found, peer: str) -> list[tuple[str, float, str]]:
    """(our way, median of peer's time over it, the peer's name); within rounds where both ran in one group.

    Groups are compared through the way that is in all of them.
    """
    found = []
    for group in case.get("groups", []):
        base = group["rows"][0]
        for theirs in (row for row in group["rows"] if row["name"].endswith(f", {peer}")):
            over = ratio(theirs["rounds"], base["rounds"])[1]
            for other in case["groups"]:
                for ours in (row for row in other["rows"] if row["name"].startswith("odediff")):
                    under = ratio(ours["rounds"], other["rows"][0]["rounds"])[1]
                    same = other is group
                    value = ratio(theirs["rounds"], ours["rounds"])[1] if same else over / under
                    found.append((ours["name"], value, theirs["name"]))
    return found


def _tests(result: Found) -> list[str]:
    counts = ", ".join(f"{n} {what}" for what, n in result["counts"].items())
    return ["", f"Tests marked gpu: {counts}.", *(f"- {line}" for line in result["bad"])]


def _kernel(result: Found) -> list[str]:
    copy = statistics.median(result["copy"])
    lines = ["", f"Stage kernel on 64 MiB of state; a copy moves {copy / 1e9:.0f} GB/s.", ""]
    lines += ["| plan | K | network | noise | GB/s | of a copy | kernels a row |", "|---|---|---|---|---|---|---|"]
    for row in result["rows"]:
        rate, share = (statistics.median(row[key]) for key in ("rates", "shares"))
        known = f"| {row['plan']} | {row['depth']} | {row['dtype']} | {'yes' if row['noise'] else 'no'} "
        seen = sum(row["launches"].values()) or "not seen"
        lines.append(f"{known}| {rate / 1e9:.0f} | {share:.0%} | {seen} |")
    if "small" in result:
        lines += ["", f"A row of 1x4x64x64 in a graph: {statistics.median(result['small']) * 1e6:.1f} us."]
    return lines


def _images(result: Found) -> list[str]:
    lines = ["", f"{result['model']}, batch {result['batch']}, {result['dtype']}, {result['nfe']} evaluations.", ""]
    lines += [
        "| way | ms | RMS from eager torch | peak of a run, MB | held between runs, MB |",
        "|---|---|---|---|---|",
    ]
    seen: set[str] = set()
    for row in _rows(result):
        if row["name"] not in seen:
            milliseconds = statistics.median(row["rounds"]) * 1e3
            memory = " | ".join(f"{row[key] / 1e6:.0f}" for key in ("peak", "held"))
            lines.append(f"| {row['name']} | {milliseconds:.1f} | {row['rms']:.1e} | {memory} |")
            seen.add(row["name"])
    for group in result["groups"]:
        lines += [f"- {way}: {why}" for way, why in group["errors"].items()]
    return lines


def _profiled(result: Found) -> list[str]:
    lines, profile = _images(result), result.get("profile", {"why": "not measured"})
    lines += ["", f"Matrix products reach {result['peak'] / 1e12:.1f} TFLOP/s. An evaluation in eager torch:", ""]
    if "why" in profile:
        return [*lines, f"no profile: {profile['why']}"]
    lines += ["| kernels | of the time |", "|---|---|"]
    lines += [f"| {kind} | {share:.0%} |" for kind, share in profile["kinds"].items()]
    return lines + [f"| `{row['name'][:70]}`, {row['calls']} | {row['share']:.1%} |" for row in profile["kernels"][:10]]


def _candidates(result: Found) -> list[str]:
    lines = ["", *(f"- {name}: {verdict}" for name, verdict in result["verdicts"].items()), ""]
    lines += ["| candidate | size | eager, us | compile, us | kernel, us |", "|---|---|---|---|---|"]
    for case in result["cases"]:
        spent = (f"{statistics.median(case[way]) * 1e6:.1f}" for way in ("eager", "compile", "kernel"))
        lines.append(f"| {case['name']} | {case['size']} | {' | '.join(spent)} |")
    return lines


TABLES = {
    "tests": _tests,
    "kernel": _kernel,
    "batch 1": _images,
    "batch 256": _profiled,
    "candidates": _candidates,
    "onnx": lambda result: ["", result["table"]],
}
