"""Noises, and the trajectory of each as a fine plan integrates it: what plans are fitted to and judged by.

    y = x / (alpha + sigma) over tau = sigma / (alpha + sigma),    dy / dtau = d;    between states a cubic (Hermite)

Stored in float32, on disk if a folder is given, so that every budget, and a run that was interrupted, shares them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..methods import plan as compile_plan
from ..noise import normal
from ..philox import streams
from ..plans import Plan
from ..schedule import Array
from .student import Student

REFERENCE_NFE = 64


@dataclass(frozen=True, eq=False)
class Probe:
    """n noises with their references.

    noise, x0: (n, *shape), x0 where the flow ends.  doubt: (n,) RMS by which half as many evaluations end elsewhere, an
    upper bound of the error.  label: (n,) int64 or None.  tau, y, d: (M,), (M, n, *shape) twice, the trajectory.
    """

    noise: Tensor
    x0: Tensor
    doubt: Tensor
    label: Tensor | None
    tau: Array
    y: Tensor
    d: Tensor

    def part(self, which: slice) -> Probe:
        """Some of the samples."""
        label = None if self.label is None else self.label[which]
        return Probe(
            *(self.noise[which], self.x0[which], self.doubt[which], label),
            *(self.tau, self.y[:, which], self.d[:, which]),
        )

    def at(self, tau: float) -> Tensor:
        """y at tau, (n, *shape)."""
        k = int(np.clip(np.searchsorted(-self.tau, -tau) - 1, 0, len(self.tau) - 2))
        h = float(self.tau[k + 1] - self.tau[k])
        u = (tau - float(self.tau[k])) / h
        ends = (2 * u**3 - 3 * u**2 + 1) * self.y[k] + (3 * u**2 - 2 * u**3) * self.y[k + 1]
        slopes = (u**3 - 2 * u**2 + u) * self.d[k] + (u**3 - u**2) * self.d[k + 1]
        return ends + h * slopes


def make_probe(
    student: Student, n: int, seed: int, label: Tensor | None, folder: Path | None, progress: object
) -> Probe:
    """n noises of a seed and their references; read from `folder` if they are there. label: (n,) or None.

    ValueError: the network gives what is not finite on the way.
    """
    path = None if folder is None else folder / f"probe-{seed}-{n}.pt"
    if path is not None and path.is_file():
        saved = torch.load(path, weights_only=True)
        tensors = {key: value if value is None else value.to(student.model.device) for key, value in saved.items()}
        return Probe(**{**tensors, "tau": saved["tau"].numpy()})
    model = student.model
    noise = normal(streams(seed, n), 0, model.shape, device=model.device, dtype=student.dtype)
    fine, coarse = (reference_plan(student, count) for count in (REFERENCE_NFE, REFERENCE_NFE // 2))
    x0, y, d = _trajectory(student, fine, noise, label, progress)
    if not bool(torch.isfinite(x0).all()):
        raise ValueError("the references are not finite: the network, in its precision, overflows or gives NaN")
    other, _, _ = _trajectory(student, coarse, noise, label, progress)
    doubt = (x0 - other).flatten(1).square().mean(1).sqrt()
    tau = fine.sigma[:-1] / (fine.alpha[:-1] + fine.sigma[:-1])
    made = Probe(noise, x0, doubt, label, tau, y, d)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        spare = path.with_suffix(".part")
        torch.save({**vars(made), "tau": torch.from_numpy(tau)}, spare)
        os.replace(spare, path)
    return made


def reference_plan(student: Student, nfe: int) -> Plan:
    """The plan that a reference follows. ValueError: the network knows fewer times than that."""
    model = student.model
    if model.integer_times:
        if (known := int(model.schedule.t_max - model.schedule.t_min) + 1) < nfe:
            raise ValueError(f"references take {nfe} evaluations, and the network knows {known} whole times")
        return compile_plan("abm4", model.schedule, nfe, "uniform", space="flow", variable="t", snap=True)
    return compile_plan("abm4", model.schedule, nfe, "asinh", space="flow", variable="t")


def _trajectory(
    student: Student, plan: Plan, noise: Tensor, label: Tensor | None, progress: object
) -> tuple[Tensor, Tensor, Tensor]:
    """The end, and y and d along the way."""
    scale: list[float] = (plan.alpha + plan.sigma).tolist()
    ys: list[Tensor] = []
    ds: list[Tensor] = []

    def seen(x: Tensor, d: Tensor) -> None:
        ys.append((x / scale[len(ys)]).float())
        ds.append(d.float())
        getattr(progress, "update", lambda: None)()

    x = student.run(plan, noise, label, seen)
    return x, torch.stack(ys), torch.stack(ds)
