"""The ways to draw the same samples that `bench/onnx.py` compares, each from a folder of files; nothing is imported
that a way does not need. As a script: load time and peak memory of one way in a process of its own.

    python bench/onnx_ways.py FOLDER BATCH '{"runs": "loop"}'
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
T = 500.0  # at which the network alone is timed


@dataclass(frozen=True)
class Way:
    """What draws the samples.

    runs: "diffusers", its U-Net and its scheduler as its pipeline calls them; "eager" and "compile", odediff.Sampler
    around torch; "network", the same around a file; "unrolled" and "loop", a file that is the sampler.
    precision: of the file.  fixed: its batch is.  provider, cuda_graph: of `odediff.onnx.load`.
    """

    runs: str
    precision: str = "fp32"
    fixed: bool = False
    provider: str = "cpu"
    cuda_graph: bool = False

    def __str__(self) -> str:
        torch = {"diffusers": "diffusers, eager", "eager": "odediff, eager torch", "compile": "odediff, torch.compile"}
        if self.runs in torch:
            return torch[self.runs]
        engine = "OpenVINO" if self.provider == "openvino" else "onnxruntime"
        words = [f"{engine}, {'network called' if self.runs == 'network' else f'sampler, {self.runs}'}"]
        words += [self.precision] * (self.precision != "fp32") + ["fixed batch"] * self.fixed
        return ", ".join([*words, *["CUDA graph"] * self.cuda_graph])

    def file(self, batch: int) -> str | None:
        """The name of the file that it runs."""
        if self.runs not in ("network", "unrolled", "loop"):
            return None
        return f"{self.runs}-{self.precision}-{batch if self.fixed else 'dynamic'}.onnx"


class Ready(NamedTuple):
    """A way, loaded: unit noise to images, and x to the network's output at `T`, unless the network is not apart."""

    sample: Callable[[Array], Array]
    forward: Callable[[Array], Array] | None


def load(way: Way, folder: Path, batch: int) -> Ready:
    """Load what `bench/onnx.py` wrote. Errors are those of `odediff.onnx.load`: the provider is not there."""
    name = way.file(batch)
    if name is None:
        return _diffusers(folder) if way.runs == "diffusers" else _torch(folder, way.runs == "compile")
    import odediff.onnx

    file: Any = odediff.onnx.load(
        folder / name, provider=way.provider, threads=1 if way.provider != "cuda" else None, cuda_graph=way.cuda_graph
    )
    _ = file.engine  # the session
    if way.runs != "network":
        return Ready(lambda noise: file.run(noise=noise), None)
    return _sampler(file, folder)


def _plan(folder: Path) -> Any:
    from odediff.plans import Plan

    return Plan.from_json((folder / "plan.json").read_text())


def _sampler(model: Any, folder: Path) -> Ready:
    """odediff.Sampler around a module or a file."""
    import torch

    import odediff

    run = odediff.Sampler(model, _plan(folder))

    @torch.no_grad()
    def forward(x: Array) -> Array:
        return model(torch.from_numpy(x).to(model.device), T).cpu().numpy()

    return Ready(lambda noise: run(torch.from_numpy(noise).to(model.device)).cpu().numpy(), forward)


def _model(folder: Path) -> Any:
    import torch

    import odediff

    torch.set_num_threads(1)
    model = odediff.load(folder, device="cuda" if torch.cuda.is_available() else "cpu")
    model.net.eval()
    return model


def _torch(folder: Path, compiled: bool) -> Ready:
    model = _model(folder)
    if compiled:
        import torch

        model.net.compile(dynamic=False)
        torch._dynamo.config.cache_size_limit = 64
    return _sampler(model, folder)


def _diffusers(folder: Path) -> Ready:
    """diffusers' U-Net with the same weights, and the loop of its `DDIMPipeline` without the bar."""
    import diffusers
    import torch

    model, nfe = _model(folder), _plan(folder).nfe
    net = diffusers.UNet2DModel(**model.net.config).to(model.device).eval()
    net.load_state_dict(model.net.state_dict())
    scheduler = scheduler_of(model)

    @torch.no_grad()
    def sample(noise: Array) -> Array:
        image = torch.from_numpy(noise).to(model.device)
        scheduler.set_timesteps(nfe)
        for t in scheduler.timesteps:
            image = scheduler.step(net(image, t).sample, t, image, eta=0.0).prev_sample
        return image.clamp(*model.range).cpu().numpy()

    @torch.no_grad()
    def forward(x: Array) -> Array:
        return net(torch.from_numpy(x).to(model.device), torch.tensor(T)).sample.cpu().numpy()

    return Ready(sample, forward)


def scheduler_of(model: Any) -> Any:
    """diffusers' DDIM on the model's schedule; its times are those of the plan."""
    import diffusers

    identity = model.schedule.identity
    return diffusers.DDIMScheduler(
        num_train_timesteps=identity["T"],
        beta_schedule=identity["name"],
        beta_start=identity["beta_start"],
        beta_end=identity["beta_end"],
        prediction_type={"eps": "epsilon", "v": "v_prediction"}[model.prediction],
        timestep_spacing="trailing",
        clip_sample=False,
    )


def main(folder: str, batch: str, text: str) -> None:
    way, n, begin = Way(**json.loads(text)), int(batch), time.process_time()
    ready = load(way, Path(folder), n)
    start = time.process_time() - begin
    shape = json.loads((Path(folder) / "model.json").read_text())["shape"]
    ready.sample(np.random.default_rng(0).standard_normal((n, *shape), dtype=np.float32))
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak is not None
    print(json.dumps({"start": start, "peak": 1024 * int(peak[1]), "torch": "torch" in sys.modules}))


if __name__ == "__main__":
    main(*sys.argv[1:])
