"""Diffusion sampling as tables: a solver on a noise schedule compiles to a `Plan`, and one loop runs any plan.

    import odediff

    model = odediff.load("mnist")
    x = odediff.sample(model, solver="rk4", nfe=20, n=16, seed=0)
    odediff.save_images(x, "grid.png")

The public names load on first use: `import odediff` alone costs milliseconds and needs no torch, because plans are
compiled, and exported samplers are run, on machines that do not have it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from odediff import analysis as analysis
    from odediff import onnx as onnx
    from odediff import schedule as schedule
    from odediff.adaptive import BudgetExceeded as BudgetExceeded
    from odediff.adaptive import solve as solve
    from odediff.exporting import export as export
    from odediff.images import save_images as save_images
    from odediff.methods import METHODS as METHODS
    from odediff.methods import cite as cite
    from odediff.methods import plan as plan
    from odediff.model import Model as Model
    from odediff.model import load as load
    from odediff.plans import Plan as Plan
    from odediff.sampling import Sampler as Sampler
    from odediff.sampling import sample as sample
    from odediff.tuning import tune as tune

# Where each public name lives; a module that is public as a whole is under its own name.
_HOME = {
    "BudgetExceeded": "adaptive",
    "METHODS": "methods",
    "Model": "model",
    "Plan": "plans",
    "Sampler": "sampling",
    "analysis": "analysis",
    "cite": "methods",
    "export": "exporting",
    "load": "model",
    "onnx": "onnx",
    "plan": "methods",
    "sample": "sampling",
    "save_images": "images",
    "schedule": "schedule",
    "solve": "adaptive",
    "tune": "tuning",
}

__all__ = [
    "METHODS",
    "BudgetExceeded",
    "Model",
    "Plan",
    "Sampler",
    "__version__",
    "analysis",
    "cite",
    "export",
    "load",
    "onnx",
    "plan",
    "sample",
    "save_images",
    "schedule",
    "solve",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_HOME[name]}")
    value = module if name == _HOME[name] else getattr(module, name)
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
