"""Run exported files with numpy and onnxruntime alone: the network as a model, the sampler as `run(n, seed)`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from ..philox import Seed, fresh_seed, normal_array, streams
from ..schedule import Schedule
from . import wire
from .engines import Engine, Options, make
from .metadata import About

if TYPE_CHECKING:
    import torch

Array = NDArray[np.float32]
DTYPES = {"float32": np.float32, "float16": np.float16, "float64": np.float64, "int32": np.int32, "int64": np.int64}


@lru_cache(maxsize=8)
def _session(path: str, changed: int, size: int, options: Options) -> Engine:
    """Sessions by file, its state and options; the last eight are kept."""
    return make(path, options)


class File:
    """An ONNX file in a session: what both kinds share."""

    def __init__(
        self, path: Path, about: About, summary: wire.Summary, names: Mapping[str, str], options: Options
    ) -> None:
        self.path, self.about, self.summary, self.names, self.options = path, about, summary, dict(names), options
        self.shape, self.range, self.num_classes = about.shape, about.range, about.num_classes
        self._read = self._state()

    @cached_property
    def engine(self) -> Engine:
        """The session. ProviderError: the provider is missing, or is not the one that runs. ValueError: another file
        is there now than was read."""
        if self._state() != self._read:
            raise ValueError(f"{self.path} was overwritten since it was loaded; load it again")
        return _session(*self._read, self.options)

    def _state(self) -> tuple[str, int, int]:
        """The file, by its own name and not a link's target, beside which its data may not be; its time and size."""
        file = self.path.absolute()
        stat = file.stat()
        return str(file), stat.st_mtime_ns, stat.st_size

    def _dtype(self, what: str) -> Any:
        return DTYPES[self.summary.inputs[self.names[what]][0]]

    def _labels(self, label: Any, n: int) -> NDArray[Any]:
        """(n,) of the file's type; None is the null label."""
        if self.num_classes is None:
            raise ValueError(f"label = {label!r:.60} for an unconditional model; leave it out")
        given = np.asarray(self.num_classes if label is None else label)
        if given.dtype.kind not in "iu" or given.ndim > 1 or (given.ndim and len(given) != n):
            raise ValueError(f"label = {label!r:.60} must be a whole number, or one for each of {n} samples")
        bad = given[(given < 0) | (given > self.num_classes)]
        if bad.size:
            raise ValueError(f"label = {bad.flat[0]} is outside 0 .. {self.num_classes - 1}, the model's classes")
        return np.broadcast_to(given, (n,)).astype(self._dtype("label"))


class OnnxModel(File):
    """An exported network, usable wherever an `odediff.Model` is: `odediff.sample(odediff.onnx.load(path), "rk4", 20)`.

    `model(x, t)` takes and returns numpy arrays, or torch tensors where torch is installed.
    """

    @property
    def net(self) -> OnnxModel:
        """Itself: no module is in it."""
        return self

    @cached_property
    def schedule(self) -> Schedule:
        """The noise schedule."""
        return self.about.noise_schedule()

    @property
    def prediction(self) -> str:
        """What the output is: "eps", "x0", "v" or "flow"."""
        return self.about.prediction

    @property
    def clip(self) -> bool:
        """Whether every predicted x0 is clamped to `range` by default."""
        return self.about.clip

    @property
    def integer_times(self) -> bool:
        """Whether the network knows whole times only."""
        return self.about.integer_times

    @property
    def info(self) -> dict[str, Any]:
        """Provenance."""
        return {"weights": self.about.weights, "license": self.about.license, "precision": self.about.precision}

    @property
    def dtype(self) -> None:
        """None: the state's dtype goes in and comes out."""
        return None

    @property
    def device(self) -> torch.device:
        """Where states are kept: the GPU of the provider, or the CPU."""
        import torch

        return torch.device(*self.engine.place)

    @overload
    def __call__(self, x: torch.Tensor, t: float, label: Any = None) -> torch.Tensor: ...
    @overload
    def __call__(self, x: NDArray[Any], t: float, label: Any = None) -> NDArray[Any]: ...
    def __call__(self, x: Any, t: float, label: Any = None) -> Any:
        """The network's raw output at time t for the whole batch, in x's dtype and shape; computed in float32.

        x: (N, *shape), float32 or float64.  label: a whole number or (N,), of a class-conditional model; None: the null
        label.  Run in parts of at most the memory budget, but for tensors on the provider's own GPU.
        ValueError: another shape, a batch that the file does not take, labels that it does not have, a budget that is
        less than one sample takes.
        """
        if tuple(x.shape[1:]) != self.shape or not len(x):
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (n, {', '.join(map(str, self.shape))})")
        if self.about.batch not in (None, len(x)):
            raise ValueError(
                f"the file has a fixed batch of {self.about.batch}, got {len(x)} samples; export with batch=None"
            )
        if isinstance(x, np.ndarray):
            if x.dtype.kind != "f":
                raise ValueError(f"x has dtype {x.dtype}, expected floating-point numbers")
            return self._numpy(x, t, label)
        if x.is_cuda and self.engine.place[0] == "cuda":
            return self._cuda(x, t, label)
        import torch

        label = label.detach().cpu().numpy() if isinstance(label, torch.Tensor) else label
        return torch.from_numpy(self._numpy(x.detach().cpu().numpy(), t, label)).to(x.device)

    def _numpy(self, x: NDArray[Any], t: float, label: Any) -> NDArray[Any]:
        given = np.ascontiguousarray(x, self._dtype("sample"))
        if np.ndim(label):
            label = self._labels(label, len(x))
        most = self.about.batch or self.options.batch(self.about.memory, len(x))
        size = -(-len(x) // -(-len(x) // most))  # of parts that are as equal as can be
        outs = [
            self._part(given[k : k + size], t, label[k : k + size] if np.ndim(label) else label)
            for k in range(0, len(x), size)
        ]
        out = outs[0] if len(outs) == 1 else np.concatenate(outs)
        if out.shape != x.shape:
            raise ValueError(
                f"the network returned {out.shape} for an input of shape {x.shape}; expected the same shape"
            )
        return out.astype(x.dtype, copy=False)

    def _part(self, x: NDArray[Any], t: float, label: Any) -> NDArray[Any]:
        """The output for samples that run at once, in the file's own types."""
        return self.engine.run({**self._rest(len(x), t, label), self.names["sample"]: x}, self.names["out_sample"])

    def _cuda(self, x: torch.Tensor, t: float, label: Any) -> torch.Tensor:
        """On the provider's own device, without a copy through the host. The output is a fresh tensor: no aliasing."""
        import torch

        label = label.cpu().numpy() if isinstance(label, torch.Tensor) else label
        given = x.to(getattr(torch, np.dtype(self._dtype("sample")).name)).contiguous()
        kind = DTYPES[self.summary.outputs[self.names["out_sample"]][0]]
        out = torch.empty_like(given, dtype=getattr(torch, np.dtype(kind).name))
        torch.cuda.current_stream(x.device).synchronize()
        self.engine.bind(
            self._rest(len(x), t, label),
            {self.names["sample"]: (given.data_ptr(), self._dtype("sample"), tuple(given.shape))},
            {self.names["out_sample"]: (out.data_ptr(), kind, tuple(out.shape))},
        )
        return out.to(x.dtype)

    def _rest(self, n: int, t: float, label: Any) -> dict[str, NDArray[Any]]:
        """The inputs beside the sample."""
        dims = self.summary.inputs[self.names["timestep"]][1]
        size = () if not dims else (1,) if dims == (1,) and self.about.batch != 1 else (n,)
        made: dict[str, NDArray[Any]] = {self.names["timestep"]: np.full(size, t, self._dtype("timestep"))}
        if self.num_classes is not None:
            made[self.names["label"]] = self._labels(label, n)
        elif label is not None:
            self._labels(label, n)
        return made


class OnnxSampler(File):
    """An exported sampler: noise in, images out."""

    @property
    def nfe(self) -> int:
        """Evaluations of the network in the graph."""
        return self.plan.nfe

    @cached_property
    def plan(self) -> Any:
        """The table that was compiled in."""
        return self.about.table()

    def run(
        self, n: int | None = None, seed: Seed | None = None, *, noise: Array | None = None, label: Any = None
    ) -> Array:
        """Samples (n, *shape) float32 in the data's range; sample k is that of `odediff.sample` with the same seed.

        n, seed, noise, label: as `odediff.Sampler`; noise is a numpy array.  Drawn in batches of at most the memory
        budget; a file of a fixed batch runs as often as it takes.
        ValueError: as `odediff.Sampler`.  FloatingPointError: values that are not finite.
        """
        if noise is not None:
            noise = np.asarray(noise)
            if noise.ndim == 0 or noise.shape[1:] != self.shape or not len(noise):
                raise ValueError(f"noise has shape {noise.shape}, expected (n, {', '.join(map(str, self.shape))})")
            if noise.dtype.kind != "f" or not np.isfinite(noise).all():
                raise ValueError("noise must hold finite floating-point numbers")
            if n not in (None, len(noise)):
                raise ValueError(f"n = {n}, but noise holds {len(noise)} samples; leave n out")
            n = len(noise)
        if n is None and np.ndim(label) == 1:
            n = len(label)
        batch = streams(fresh_seed() if seed is None else seed, n)
        labels = None
        if "label" in self.names:
            guidance = (self.about.prediction_options or {}).get("guidance")
            if label is None and guidance is not None:
                raise ValueError(f"the file has guidance = {guidance:g} and needs label=..., the class to guide to")
            labels = self._labels(label, len(batch))
        elif label is not None:
            self._labels(label, len(batch))
            raise ValueError("label given to a sampler that was exported unconditional (guidance = 0); leave it out")
        size = self.about.batch or self.options.batch(self.about.memory, len(batch))
        out = np.empty((len(batch), *self.shape), np.float32)
        for k in range(0, len(batch), size):
            part = (
                np.minimum(np.arange(k, k + size), len(batch) - 1)
                if self.about.batch
                else np.arange(k, min(k + size, len(batch)))
            )
            got = self.engine.run(self._feeds(batch, part, noise, labels), self.names["images"])
            out[k : k + size] = got[: len(batch) - k]
        if not np.isfinite(out).all():
            raise FloatingPointError("the sampler returned values that are not finite; try another seed, or fp32")
        return out

    def _feeds(self, batch: Any, part: NDArray[Any], noise: Array | None, labels: Any) -> dict[str, NDArray[Any]]:
        own = type(batch)(batch.seed[part], batch.index[part])
        x = normal_array(own, 0, self.shape) if noise is None else np.ascontiguousarray(noise[part], np.float32)
        feeds: dict[str, NDArray[Any]] = {self.names["noise"]: x}
        if "row_noise" in self.names:
            rows = np.flatnonzero(self.plan.c)
            feeds[self.names["row_noise"]] = np.stack([normal_array(own, int(i) + 1, self.shape) for i in rows])
        if labels is not None:
            feeds[self.names["label"]] = labels[part]
        return feeds
