"""How often a class-conditional model draws the digit it was asked for, by an independent classifier.

    accuracy of a class = share of its samples that the classifier puts in that class

The classifier is `mnist_cnn128.safetensors` with its head `o`, trained on MNIST's training set for another purpose; its
own accuracy on the test set stands beside the samples'. Guidance trades diversity for accuracy, which accuracy cannot
see: `diversity` is the trace of the covariance of the 128 features within a class, mean over classes, as a share of
the test set's (1: as varied as real digits), and the Frechet distance to the test set stands beside it.

    python bench/conditional.py runs/mnist_conditional/model --data ../shared/data
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import RESULTS, environment, exact_float32, write, write_block
from frechet import Features, fingerprint, frechet
from torch import Tensor
from tqdm import tqdm

import odediff

GUIDANCE = (1.0, 2.0, 4.0)


def draw(model: odediff.Model, label: Tensor, batch: int, **options: Any) -> Tensor:
    """One sample for each label, in [0, 1], on the CPU."""
    parts = [
        odediff.sample(model, label=part, seed=k, **options)
        for k, part in enumerate(tqdm(label.split(batch), f"guidance {options['guidance']:g}"))
    ]
    return (torch.cat(parts).cpu() + 1) / 2


def classify(classifier: Features, features: Tensor) -> Tensor:
    """The most probable class of each row of features, (N,)."""
    head = (classifier.w[f"o.{name}"].double() for name in ("weight", "bias"))
    return F.linear(features, *head).argmax(1).cpu()


def spread(features: Tensor, label: Tensor, classes: int) -> float:
    """Mean over the classes of the trace of the covariance within one."""
    return float(np.mean([float(features[label == k].var(0).sum()) for k in range(classes)]))


def measure(classifier: Features, images: Tensor, label: Tensor, classes: int) -> tuple[dict[str, Any], Tensor]:
    """Accuracy of these images as asked for, and their features."""
    features = classifier(images)
    right = (classify(classifier, features) == label).double()
    accuracy = float(right.mean())
    return {
        "n": len(label),
        "accuracy": accuracy,
        "standard_error": math.sqrt(accuracy * (1 - accuracy) / len(label)),
        "per_class": [float(right[label == k].mean()) for k in range(classes)],
        "spread": spread(features, label, classes),
    }, features


def table(rows: list[dict[str, Any]], note: str) -> str:
    """A Markdown table of percentages."""
    classes = range(len(rows[0]["per_class"]))
    lines = [
        "| images | n | as asked | FD(mnist_cnn128) | diversity | " + " | ".join(map(str, classes)) + " |",
        "|---|---|---|---|---|" + "---|" * len(classes),
    ]
    for row in rows:
        each = " | ".join(f"{100 * share:.1f}" for share in row["per_class"])
        overall = f"{100 * row['accuracy']:.2f} % +- {100 * row['standard_error']:.2f}"
        lines.append(
            f"| {row['images']} | {row['n']} | {overall} | {row['FD']:.2f} | {row['diversity']:.2f} | {each} |"
        )
    return "\n".join([*lines, "", note])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a class-conditional model: a folder or a bundled name")
    parser.add_argument("--data", type=Path, required=True, help="folder with mnist.npz and mnist_cnn128.safetensors")
    parser.add_argument("--guidance", type=float, nargs="+", default=GUIDANCE)
    parser.add_argument("--solver", default="rk4")
    parser.add_argument("--nfe", type=int, default=20)
    parser.add_argument("--threshold", type=float, help="dynamic thresholding at this quantile")
    parser.add_argument("--n", type=int, default=1000, help="samples, the classes in turn")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, help="write the table into this page's block")
    args = parser.parse_args()
    exact_float32()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = odediff.load(args.model, device=device)
    if model.num_classes is None or args.n < 2 * model.num_classes:
        raise SystemExit(f"{args.model} must be class-conditional, and --n at least two samples a class")
    classifier = Features(args.data / "mnist_cnn128.safetensors", device)
    with np.load(args.data / "mnist.npz") as data:
        test, digits = torch.from_numpy(data["x_test"])[:, None].float() / 255, torch.from_numpy(data["y_test"]).long()
    real, of_test = measure(classifier, test, digits, model.num_classes)
    rows = [{"images": "test images", **real, "FD": 0.0}]
    label = torch.arange(args.n) % model.num_classes
    solver = {"solver": args.solver, "nfe": args.nfe, "threshold": args.threshold}
    for g in args.guidance:
        images = draw(model, label, args.batch, guidance=g, **solver)
        row, features = measure(classifier, images, label, model.num_classes)
        rows.append({"images": f"guidance {g:g}", "guidance": g, **row, "FD": frechet(features, of_test)})
    for row in rows:
        row["diversity"] = row.pop("spread") / real["spread"]
    env = environment()
    how = f"{args.solver}, nfe {args.nfe}" + ("" if args.threshold is None else f", threshold {args.threshold:g}")
    note = f"{how}, batch {args.batch}; `bench/conditional.py` on {env['device']}, commit {env['commit']}."
    print(table(rows, note))
    data = {"model": args.model, "weights": fingerprint(model.net), **solver, "batch": args.batch, "rows": rows}
    print(write("conditional", data, args.out))
    if args.page:
        write_block("conditional", table(rows, note), args.page)


if __name__ == "__main__":
    main()
