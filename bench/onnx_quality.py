"""What int8 costs in samples: Frechet distances of the exported sampler's images, int8 beside fp32."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import frechet
import numpy as np
import torch
from common import environment
from torch import Tensor
from tqdm import tqdm

import odediff

NFE, BATCH = 20, 100


def draw(file: odediff.onnx.OnnxSampler, seeds: range) -> Tensor:
    """Images in [0, 1], one a seed."""
    parts = [file.run(seed=seeds[k : k + BATCH]) for k in tqdm(range(0, len(seeds), BATCH), file.path.name)]
    return (torch.from_numpy(np.concatenate(parts)) + 1) / 2


def quality(data: Path, n: int) -> dict[str, Any]:
    """Distances of n images of DDIM 20 to the test set and to fp32's of the same seeds; fp32's of other seeds say how
    much chance there is in them."""
    features = frechet.Features(data / "mnist_cnn128.safetensors", torch.device("cpu"))
    with np.load(data / "mnist.npz") as arrays:
        real = features(torch.from_numpy(arrays["x_test"])[:, None].float() / 255)
    model, rows, found = odediff.load("mnist"), [], {}
    sets = {"fp32": ("fp32", range(n)), "fp32, other seeds": ("fp32", range(n, 2 * n)), "int8": ("int8", range(n))}
    with tempfile.TemporaryDirectory() as folder:
        for name, (precision, seeds) in sets.items():
            path = Path(folder) / f"{precision}.onnx"
            try:
                if not path.exists():
                    odediff.export(model, path, "ddim", NFE, form="loop", precision=precision)
            except Exception as error:  # a precision that is not there is a result
                rows.append({"images": name, "error": f"{type(error).__name__}: {error}".split("\n")[0][:200]})
                continue
            f = found[name] = features(draw(odediff.onnx.load(path, threads=1), seeds))
            apart = 0.0 if name == "fp32" else frechet.frechet(f, found["fp32"])
            scores = {"precision": frechet.coverage(real, f), "recall": frechet.coverage(f, real)}
            rows.append({"images": name, "n": n, "FD": frechet.frechet(f, real), "FD_fp32": apart, **scores})
    return {"nfe": NFE, "rows": rows, "environment": environment()}
