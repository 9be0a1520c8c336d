"""Make the bundled model of a finished run: half-precision weights with their provenance, log, recipe, curve, pictures.

    python bench/bundle.py runs/mnist --name mnist
    python bench/bundle.py runs/fashion --name fashion --models bench/networks      not shipped

writes odediff/models/NAME (shipped) and docs/NAME (recipe.json, log.jsonl, loss.png, samples.png).
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from common import environment

import odediff

ROOT = Path(__file__).parent.parent


def curve(records: list[dict[str, float]], path: Path) -> None:
    """Loss and learning rate over the steps."""
    steps = [record["step"] for record in records]
    figure, axis = plt.subplots(figsize=(7, 3.5), layout="constrained")
    axis.plot(steps, [record["loss"] for record in records], linewidth=1)
    axis.set(xlabel="step", ylabel="mean loss since the last record", yscale="log")
    rate = axis.twinx()
    rate.plot(steps, [record["lr"] for record in records], linewidth=1, color="0.6")
    rate.set_ylabel("learning rate", color="0.5")
    figure.savefig(path, dpi=110)


def picture(model: odediff.Model, path: Path) -> None:
    """64 samples; of a class-conditional model 8 of each class at guidance 2, a column each."""
    classes = model.num_classes
    if classes is None:
        odediff.save_images(odediff.sample(model, "rk4", 20, n=64, seed=0), path)
        return
    label = [k % classes for k in range(8 * classes)]
    odediff.save_images(odediff.sample(model, "rk4", 20, seed=0, label=label, guidance=2.0), path, columns=classes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", default="mnist")
    parser.add_argument("--models", type=Path, default=ROOT / "odediff" / "models", help="where the model goes")
    args = parser.parse_args()
    recipe = json.loads((args.run / "config.json").read_text())
    recipe |= {"data": Path(recipe["data"]).name, "out": f"runs/{args.name}"}
    records = [json.loads(line) for line in (args.run / "log.jsonl").read_text().splitlines()]
    model = odediff.load(args.run / "model")
    images = records[-1]["step"] * recipe["batch_size"]
    model.info = {"data": args.name, "recipe": recipe, "images_seen": images, "trained_on": environment()}
    model.save(args.models / args.name, dtype=torch.float16)
    docs = ROOT / "docs" / args.name
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n")
    shutil.copy(args.run / "log.jsonl", docs / "log.jsonl")
    curve(records, docs / "loss.png")
    picture(odediff.load(args.models / args.name), docs / "samples.png")


if __name__ == "__main__":
    main()
