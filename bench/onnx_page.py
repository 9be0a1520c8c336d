"""What `bench/onnx.py` measured, as tables, and the bars that it was to clear."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import write_block

PAGE = Path(__file__).parent.parent / "docs" / "deploy.md"
NAMES = {
    "fashion": "The small network `bench/networks/fashion`",
    "mnist": "The bundled model `mnist`",
    "cifar": "A U-Net of CIFAR-10's size",
    "tiny": "A tiny network",
}
Case = dict[str, Any]
BARRED = {"fashion": "set for a network of 1M parameters", "mnist": "on the bundled model, of 1.7M"}


def find(rows: list[Case], runs: str, **more: Any) -> Case:
    """The row of a way; fp32, a dynamic batch and the CPU if more does not say otherwise. Empty: not measured."""
    wanted = {"runs": runs, "precision": "fp32", "fixed": False, "provider": "cpu", "cuda_graph": False, **more}
    found = (row for row in rows if "seconds" in row and all(row[key] == value for key, value in wanted.items()))
    return next(found, {})


def bars(cases: list[Case], model: str) -> list[str]:
    """A line for each bar, passed or missed, on a model on the CPU."""
    by_batch = {case["batch"]: case for case in cases if case["model"] == model and case["clock"].startswith("CPU")}
    if not {1, 16} <= set(by_batch):
        return []
    rows, forward = by_batch[16]["rows"], by_batch[1]["forward"]
    network, loop, int8 = find(rows, "network"), find(rows, "loop"), find(rows, "network", precision="int8")
    sampler = network["seconds"] / loop["seconds"]
    exact = [row for case in by_batch.values() for row in case["rows"] if "rms" in row]
    exact = [row for row in exact if row["precision"] == "fp32" and row["runs"] != "diffusers"]
    rms, most = (max(row[key] for row in exact) for key in ("rms", "max_abs"))
    lines = [
        _bar("plan and network session, batch 16, over diffusers' loop", network.get("ratio"), 1.4),
        _bar("whole-sampler graph (loop), batch 16, over the network session", sampler, 0.95),
        _bar("int8 network session, batch 16, over diffusers' loop", int8.get("ratio"), 1.9),
        _bar("forward, batch 1, over eager torch", find(forward, "network").get("ratio"), 3.0),
    ]
    verdict = "pass" if rms <= 1e-5 else "MISS"
    return [*lines, f"- {verdict}: fp32 images agree with eager torch to RMS {rms:.1e} (bar 1e-5), at most {most:.1e}"]


def _bar(what: str, got: float | None, least: float) -> str:
    if got is None:
        return f"- not measured: {what} (bar {least:g}x)"
    return f"- {'pass' if got >= least else 'MISS'}: {what} {got:.2f}x (bar {least:g}x)"


def text(data: Case) -> str:
    """All tables, Markdown."""
    parts = []
    for model in dict.fromkeys(case["model"] for case in data["cases"]):
        parts.append(_tables([case for case in data["cases"] if case["model"] == model]))
    for model, said in BARRED.items():
        if lines := bars(data["cases"], model):
            parts.append("\n".join([f"Bars, {said}:", "", *lines]))
    if "quality" in data:
        parts.append(_quality(data["quality"]))
    return "\n\n".join(parts)


def _tables(cases: list[Case]) -> str:
    """One model: the samples, and the network alone."""
    batches = [case["batch"] for case in cases]
    speed = [f"ms an image, batch {n} | x diffusers (quartiles)" for n in batches]
    head = ["way", *speed, "max abs | RMS", "load s", "from nothing s", "file MB", "peak MB"]
    lines = [_line(head), _line(["---"] * _line(head).count(" | ")) + "---|"]
    last = {row["way"]: row for row in cases[-1]["rows"]}
    missing = {row["way"]: row["error"] for case in cases for row in case["rows"] if "error" in row}
    for way, row in last.items():
        if way in missing:
            continue
        each = [_speed(_row(case["rows"], way), case["batch"]) for case in cases]
        size = f"{row['bytes'] / 1e6:.1f}" if "bytes" in row else ""
        rest = [f"{row['max_abs']:.1e} | {row['rms']:.1e}", f"{row['load']:.2f}", f"{row['start']:.2f}", size]
        lines.append(_line([way, *each, *rest, f"{row['peak'] / 1e6:.0f}"]))
    alone = [_line(["network alone", *(f"ms, batch {n} | x eager torch (quartiles)" for n in batches)])]
    alone.append(_line(["---"] * alone[0].count(" | ")) + "---|")
    for row in cases[-1]["forward"]:
        each = [_speed(_row(case["forward"], row["way"]), 1) for case in cases]
        alone.append(_line([row["way"], *each]))
    first = cases[0]
    what = f"{NAMES[first['model']]}, {first['parameters'] / 1e6:.1f}M parameters, DDIM, {first['nfe']} evaluations:"
    notes = [f"Not available: {way}: {why}" for way, why in missing.items()]
    return "\n".join([what, "", *lines, "", *alone, "", *notes, *[""] * bool(notes), _note(cases)])


def _row(rows: list[Case], way: str) -> Case:
    return next(row for row in rows if row["way"] == way)


def _speed(row: Case, share: int) -> str:
    return f"{1e3 * row['seconds'] / share:.2f} | {row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _note(cases: list[Case]) -> str:
    first = cases[0]
    env, versions = first["environment"], ", ".join(f"{name} {found}" for name, found in first["versions"].items())
    rounds = ", ".join(f"{case['repeats']} at batch {case['batch']}" for case in cases)
    return (
        f"`bench/onnx.py` on {env['device']}, torch {env['torch']}, {versions}, commit {env['commit']}; "
        f"{first['clock']}, medians of rounds ({rounds}); agreement with eager torch, file, load and memory at "
        f"batch {cases[-1]['batch']}."
    )


def _quality(made: Case) -> str:
    head = ["images", "n", "FD(mnist_cnn128) to the test set", "FD to fp32's", "precision", "recall"]
    lines = [_line(head), "|---|---|---|---|---|---|"]
    for row in made["rows"]:
        if "error" in row:
            lines.append(_line([row["images"], f"not available: {row['error']}", "", "", "", ""]))
            continue
        scores = [f"{row[key]:.2f}" for key in ("FD", "FD_fp32", "precision", "recall")]
        lines.append(_line([row["images"], str(row["n"]), *scores]))
    env = made["environment"]
    return "\n".join(
        ["What int8 costs, on the bundled model:", "", *lines, "", f"On {env['device']}, commit {env['commit']}."]
    )


def publish(name: str, made: str) -> None:
    """Into the page's block of that name, if there is the page."""
    if PAGE.exists():
        write_block(name, made, PAGE)
    else:
        print(f"{PAGE} is not there; nothing was written into it")
