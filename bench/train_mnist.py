"""Train the bundled MNIST model: DDPM's Algorithm 1, eps prediction, linear schedule, 1.9M parameters.

A short run first measures images/s; the real one gets as many steps as fit into --seconds, and its recipe, with that
number, is written beside the log, so `odediff train` can repeat it exactly.

    python bench/train_mnist.py --data mnist.npz --out runs/mnist --seconds 420
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from common import environment

import odediff
from odediff.training import TrainConfig, train


def preview(model: odediff.Model, step: int, folder: Path) -> None:
    """64 samples of the averaged model."""
    odediff.save_images(odediff.sample(model, "ddim", 50, n=64, seed=0), folder / f"preview_{step:06d}.png")


def images_per_second(config: TrainConfig, scratch: Path) -> float:
    """Speed of the last hundred of three hundred steps."""
    records: list[dict[str, float]] = []
    short = replace(config, out=str(scratch), steps=300, log_every=100, checkpoint_every=0, preview_every=0)
    train(short, progress=False, on_log=records.append)
    shutil.rmtree(scratch)
    return records[-1]["images/s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=420)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    cuda = torch.cuda.is_available()
    config = TrainConfig(
        data=args.data,
        out=str(args.out),
        size="s",
        batch_size=args.batch,
        lr=1e-3,
        warmup_steps=500,
        lr_decay="cosine",
        ema_decay=0.9995,
        grad_clip=1.0,
        amp="bf16" if cuda else "off",
        compile=args.compile,
        log_every=200,
        checkpoint_every=5000,
        seed=0,
    )
    rate = images_per_second(config, args.out.with_name("speed"))
    steps = int(args.seconds * rate / args.batch)
    config = replace(config, steps=steps, preview_every=max(1, steps // 4))
    print(f"{rate:.0f} images/s: {steps} steps, {steps * args.batch / 60_000:.0f} epochs; {environment()}", flush=True)
    model = train(config, preview=preview, progress=False, on_log=lambda record: print(record, flush=True))
    model.info = {
        "data": "MNIST",
        "recipe": {**config.to_dict(), "data": "mnist.npz", "out": "runs/mnist"},
        **environment(),
    }
    model.save(args.out / "bundle", dtype=torch.float16)
    (args.out / "environment.json").write_text(json.dumps(environment(), indent=1) + "\n")


if __name__ == "__main__":
    main()
