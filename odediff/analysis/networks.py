"""Work and precision of a trained network: the torch side of `work_precision`, loaded for a `Model` only."""

from __future__ import annotations

import numpy as np
import torch

from ..methods import plan as compile_plan
from ..model import Model
from ..plans import Plan
from ..sampling import Sampler
from ..schedule import Array

REFERENCE_NFE = 401


class NetworkRuns:
    """A model and fixed starts: what `work_precision` runs plans on.

    The state is float64 around a network of any dtype, samples are not clamped at the end, and x0 is clipped on the way
    where the model asks for it.  noise: (n, *model.shape), float64.  ValueError: no Model.
    """

    def __init__(self, model: object, seed: int, n: int, batch: int) -> None:
        if not isinstance(model, Model):
            raise ValueError(f"expected an odediff.Model or an odediff.analysis.Problem, got {model!r}")
        self.schedule, self.snap = model.schedule, model.integer_times
        self._clip = model.range if model.clip and model.range else False
        self._model = Model(
            model.net,
            schedule=model.schedule,
            prediction=model.prediction,
            shape=model.shape,
            range=None,
            integer_times=model.integer_times,
        )
        noise = np.random.default_rng(seed).standard_normal((n, *model.shape))
        self._noise = torch.from_numpy(noise).to(model.device).split(batch)

    def final(self, plan: Plan) -> Array:
        """The samples of a plan, (n, D) float64."""
        sampler = Sampler(self._model, plan, clip=self._clip)
        x = torch.cat([sampler(part) for part in self._noise])
        return np.asarray(x.flatten(1).cpu().numpy(), dtype=np.float64)

    def reference(self, nfe: int | None) -> tuple[Array, Array]:
        """Converged samples, and those of another method with as many evaluations, each (n, D).

        Kutta's rk4 and ab4 on the log-SNR grid; for a network that knows whole times only, ab4 and ab3 on as many of
        them.
        """
        nfe = REFERENCE_NFE if nfe is None else nfe
        first, second, grid = "rk4", "ab4", "logsnr"
        if self.snap:
            first, second, grid, nfe = "ab4", "ab3", "uniform", min(nfe, self.schedule.steps or nfe)
        elif self.schedule.t_finite < self.schedule.t_max:  # alpha(t_max) = 0: even in t, the first row is a short one
            grid = "quadratic"
        plans = [compile_plan(name, self.schedule, nfe, grid, space="flow", snap=self.snap) for name in (first, second)]
        return self.final(plans[0]), self.final(plans[1])
