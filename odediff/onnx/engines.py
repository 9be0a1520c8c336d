"""What runs a file: onnxruntime with one of its providers, or OpenVINO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
Feeds = Mapping[str, NDArray[Any]]
Placed = Mapping[str, tuple[int, Any, tuple[int, ...]]]  # address, dtype, shape of memory on the device


class ProviderError(ValueError):
    """What was asked to run a file is not there, or cannot read it."""


@dataclass(frozen=True)
class Options:
    """How to run a file: see `odediff.onnx.load`. ValueError: values out of range, a provider of another name."""

    provider: str = "cpu"
    threads: int | None = None
    memory: int | None = None
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        if self.provider not in (*PROVIDERS, "openvino"):
            raise ValueError(f"provider = {self.provider!r}; choose {', '.join(PROVIDERS)} or openvino")
        for name in ("threads", "memory"):
            given = getattr(self, name)
            if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
                raise ValueError(f"{name} = {given!r} must be a whole number from 1 up, or None")

    def check(self, batch: int | None) -> None:
        """ValueError: a CUDA graph of a file or provider that cannot have one."""
        if self.cuda_graph and (batch is None or self.provider not in ("cuda", "tensorrt")):
            raise ValueError(
                "cuda_graph=True needs a file of a fixed batch, export(.., batch=N), on provider cuda or tensorrt"
            )

    def batch(self, each: int, n: int) -> int:
        """How many of n samples to run at a time, if one takes `each` bytes. ValueError: not even one fits."""
        if self.memory is None or not each:
            return n
        if self.memory < each:
            raise ValueError(f"memory = {self.memory} bytes is less than one sample takes, {each}")
        return min(n, self.memory // each)


class Engine(Protocol):
    """A file, ready to run; `place` is the device's kind and number."""

    place: tuple[str, int]

    def run(self, feeds: Feeds, output: str) -> NDArray[Any]:
        """One output, a fresh array."""

    def bind(self, feeds: Feeds, inputs: Placed, outputs: Placed) -> None:
        """Run with inputs and outputs that are on the device already."""


class OnnxRuntime:
    """A session with one provider, verified. With a CUDA graph, inputs and outputs are copied to and from fixed places,
    each of its own: an output never aliases an input."""

    def __init__(self, path: str, options: Options) -> None:
        import onnxruntime as ort

        name = PROVIDERS[options.provider]
        if name not in ort.get_available_providers():
            extra = "onnx" if options.provider == "cpu" else "onnx-gpu"
            raise ProviderError(
                f"provider {options.provider!r} is not in this onnxruntime, which has "
                f"{', '.join(ort.get_available_providers())}: pip install 'odediff[{extra}]'"
            )
        settings = ort.SessionOptions()
        settings.log_severity_level = 3
        if options.threads is not None:
            settings.intra_op_num_threads = options.threads
        given = {"use_tf32": "0"} if options.provider == "cuda" else {}  # fp32 is fp32; fp16 is there for speed
        if options.cuda_graph:
            given["enable_cuda_graph" if options.provider == "cuda" else "trt_cuda_graph_enable"] = "1"
        self.session = ort.InferenceSession(path, settings, providers=[(name, given)])
        if self.session.get_providers()[0] != name:
            raise ProviderError(
                f"provider {options.provider!r} was asked for, but onnxruntime runs {self.session.get_providers()[0]}: "
                "its libraries (CUDA, cuDNN, TensorRT) are missing or of another version"
            )
        self.place = ("cpu" if options.provider == "cpu" else "cuda", 0)
        self._fixed: dict[str, Any] = {}
        self._graph = options.cuda_graph
        self._one = Lock()  # the places are those of all threads

    def run(self, feeds: Feeds, output: str) -> NDArray[Any]:
        if self._graph:
            with self._one:
                return self._replay(feeds, output)
        out: NDArray[Any] = self.session.run([output], dict(feeds))[0]
        return out

    def _replay(self, feeds: Feeds, output: str) -> NDArray[Any]:
        binding = self.session.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, self._placed(name, array))
        if output not in self._fixed:
            binding.bind_output(output, *self.place)
            self.session.run_with_iobinding(binding)
            self._fixed[output] = binding.get_outputs()[0]
        binding.bind_ortvalue_output(output, self._fixed[output])
        self.session.run_with_iobinding(binding)
        return np.array(self._fixed[output].numpy())

    def _placed(self, name: str, array: NDArray[Any]) -> Any:
        """The input's fixed place on the device, holding the array."""
        import onnxruntime as ort

        if name not in self._fixed:
            self._fixed[name] = ort.OrtValue.ortvalue_from_numpy(array, *self.place)
        else:
            self._fixed[name].update_inplace(array)
        return self._fixed[name]

    def bind(self, feeds: Feeds, inputs: Placed, outputs: Placed) -> None:
        binding = self.session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name, (address, dtype, shape) in inputs.items():
            binding.bind_input(name, *self.place, dtype, shape, address)
        for name, (address, dtype, shape) in outputs.items():
            binding.bind_output(name, *self.place, dtype, shape, address)
        self.session.run_with_iobinding(binding)


class OpenVino:
    """The same file on OpenVINO, on the CPU."""

    place = ("cpu", 0)

    def __init__(self, path: str, options: Options) -> None:
        try:
            import openvino
        except ImportError:
            raise ProviderError("provider 'openvino' needs the openvino package: pip install openvino") from None
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if options.threads is not None:
            settings |= {"INFERENCE_NUM_THREADS": options.threads, "ENABLE_CPU_PINNING": False}
        model = openvino.Core().read_model(path)
        self._request = openvino.compile_model(model, "CPU", settings).create_infer_request()
        self._one = Lock()  # a request runs once at a time

    def run(self, feeds: Feeds, output: str) -> NDArray[Any]:
        with self._one:
            return np.array(self._request.infer(dict(feeds))[output])

    def bind(self, feeds: Feeds, inputs: Placed, outputs: Placed) -> None:
        raise ProviderError("OpenVINO runs on the CPU here; it has no memory on a GPU to bind")


def make(path: str, options: Options) -> Engine:
    """A session. ProviderError: the provider is not there, or cannot read the file."""
    try:
        return OpenVino(path, options) if options.provider == "openvino" else OnnxRuntime(path, options)
    except ImportError:
        raise ProviderError("running ONNX files needs onnxruntime: pip install 'odediff[onnx]'") from None
    except ProviderError:
        raise
    except Exception as error:  # onnxruntime raises classes of its own
        raise ProviderError(f"{path}: {str(error).splitlines()[0]:.300}") from None
