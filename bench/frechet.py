"""Frechet distance FD(mnist_cnn128) of the bundled model's samples to the MNIST test set.

    FD = |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)),    mean and covariance of 128 features in float64

The distance barely sees lost diversity, so precision and recall (Kynkaanniemi et al. 2019, k = 3) and the distance
of a sample
to its nearest training image stand beside it. Data: MNIST as `mnist.npz`, features `mnist_cnn128.safetensors`.

    python bench/frechet.py --data ../shared/data --readme

Drawing 10,000 samples at all five settings is 2 million evaluations, hours on one CPU core: settings can be measured
apart (`--settings ddim:10`), and several processes at a time add to the same results file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import RESULTS, environment, write, write_block
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

import odediff

SETTINGS = ["ddim:10", "ddim:20", "ddim:50", "ddim:100", "rk4:20"]
REAL = "real"
ENGINES = {"torch": "", "OpenVINO": "f32", "OpenVINO-bf16": "bf16"}  # the precision it computes in
ORDER = ["training images", "test images + noise 0.1", "test images, blurred 3x3", *SETTINGS]


class Features:
    """The 28x28 feature network: input (N, 1, 28, 28) in [0, 1], 128 features."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self.w = {key: value.to(device) for key, value in load_file(path).items()}
        self.device = device

    @torch.no_grad()
    def __call__(self, images: Tensor, batch: int = 2000) -> Tensor:
        out = []
        for x in images.split(batch):
            x = x.to(self.device)
            for layer in ("c1", "c2", "c3"):
                x = F.max_pool2d(F.relu(F.conv2d(x, self.w[f"{layer}.weight"], self.w[f"{layer}.bias"], padding=1)), 2)
            out.append(F.silu(F.linear(x.flatten(1), self.w["f.weight"], self.w["f.bias"])))
        return torch.cat(out).double()


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance of two feature sets, (N, D) float64."""
    ma, mb, sa, sb = a.mean(0), b.mean(0), torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(sa)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ sb @ root).clamp(min=0).sqrt().sum()
    return float((ma - mb).square().sum() + sa.trace() + sb.trace() - 2 * cross)


def coverage(reference: Tensor, other: Tensor, k: int = 3) -> float:
    """Share of `other` that lies within the k-nearest-neighbour radius of a reference point."""
    radius = torch.cat([torch.cdist(part, reference).kthvalue(k + 1, dim=1).values for part in reference.split(2000)])
    return float(
        torch.cat([(torch.cdist(part, reference) <= radius).any(1) for part in other.split(2000)]).double().mean()
    )


def nearest(samples: Tensor, train: Tensor) -> float:
    """Median RMS pixel distance, on [0, 1], of a sample to its nearest training image."""
    flat = train.flatten(1)
    best = torch.cat([torch.cdist(part, flat).min(1).values for part in samples.flatten(1).split(500)])
    return float(best.median() / flat.shape[1] ** 0.5)


def draw(model: odediff.Model, solver: str, nfe: int, n: int, batch: int) -> Tensor:
    """n samples in [0, 1] on the CPU."""
    parts = [
        odediff.sample(model, solver, nfe, seed=range(k, min(k + batch, n)))
        for k in tqdm(range(0, n, batch), f"{solver} {nfe}")
    ]
    return (torch.cat(parts).cpu() + 1) / 2


def measure(name: str, images: Tensor, real: Tensor, train: Tensor, features: Features, engine: str) -> dict[str, Any]:
    """One row of the table."""
    f = features(images)
    return {
        "images": name,
        "n": len(images),
        "FD": frechet(f, real),
        "precision": coverage(real, f),
        "recall": coverage(f, real),
        "nearest": nearest(images[:2000].to(features.device), train.to(features.device)),
        "commit": environment()["commit"],
        "engine": engine,
    }


def fingerprint(net: nn.Module) -> str:
    """SHA-256 of the weights."""
    return hashlib.sha256(torch.cat([value.flatten() for value in net.state_dict().values()]).cpu().numpy()).hexdigest()


def add(rows: list[dict[str, Any]], digest: str, batch: int, folder: Path) -> list[dict[str, Any]]:
    """Add rows to the results for these weights, in place of older ones of the same name; all there are now, sorted."""
    path = folder / "frechet.json"
    old = json.loads(path.read_text()) if path.exists() else {}
    kept = old["rows"] if old.get("weights") == digest else []
    names = [row["images"] for row in rows]
    rows = sorted(
        [row for row in kept if row["images"] not in names] + rows, key=lambda row: ORDER.index(row["images"])
    )
    write("frechet", {"weights": digest, "batch": batch, "rows": rows}, folder)
    return rows


def table(rows: list[dict[str, Any]], batch: int) -> str:
    """A Markdown table."""
    lines = [
        "| images | n | FD(mnist_cnn128) | precision | recall | RMS to nearest training image | network run by |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        scores = " | ".join(f"{row[key]:.2f}" for key in ("FD", "precision", "recall"))
        lines.append(f"| {row['images']} | {row['n']} | {scores} | {row['nearest']:.3f} | {row['engine']} |")
    env = environment()
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    where = f"{env['device']}, torch {env['torch']}, commit {commits}, batch {batch}"
    note = f"Measured by `bench/frechet.py` on {where}."
    return "\n".join([*lines, "", note])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with mnist.npz and mnist_cnn128.safetensors")
    parser.add_argument("--model", default="mnist")
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument(
        "--engine", choices=ENGINES, default="torch", help="what runs the network; OpenVINO: one thread, checked first"
    )
    parser.add_argument(
        "--settings", nargs="*", default=[REAL, *SETTINGS], help="SOLVER:NFE or real; nothing: only the table"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--readme", action="store_true", help="write the table into README.md")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = odediff.load(args.model, device=device)
    features = Features(args.data / "mnist_cnn128.safetensors", device)
    with np.load(args.data / "mnist.npz") as data:
        train, test = (torch.from_numpy(data[key])[:, None].float() / 255 for key in ("x_train", "x_test"))
    real, rows, digest = features(test), [], fingerprint(model.net)
    if args.engine != "torch":
        from engine import openvino_network

        model.net = openvino_network(model.net, model.shape, args.batch, ENGINES[args.engine])
    if not args.settings:
        rows = add([], digest, args.batch, args.out)
    for setting in args.settings:
        engine = "" if setting == REAL else args.engine
        if setting == REAL:
            noise = 0.1 * torch.randn(test.shape, generator=torch.Generator().manual_seed(0))
            sets = {
                "training images": train[: args.n],
                "test images + noise 0.1": (test + noise).clamp(0, 1)[: args.n],
                "test images, blurred 3x3": F.avg_pool2d(test[: args.n], 3, 1, 1),
            }
        else:
            solver, nfe = setting.split(":")
            sets = {setting: draw(model, solver, int(nfe), args.n, args.batch)}
        rows = add(
            [measure(name, x, real, train, features, engine) for name, x in sets.items()], digest, args.batch, args.out
        )
        print(table(rows, args.batch), flush=True)
    if args.readme:
        write_block("frechet", table(rows, args.batch))


if __name__ == "__main__":
    main()
