"""What a plan does, read from its table and measured on data whose denoiser is known.

Everything here runs in float64 numpy; only `work_precision` of a `Model` loads torch, and only a plot matplotlib.
"""

from .checks import amplification, rounding, warnings
from .drawing import draw
from .growth import Stability, stability
from .moments import gaussian_moments, wasserstein_gaussian
from .orders import ObservedOrder, observed_order
from .precision import WorkPrecision, work_precision
from .problems import Problem, flow_map, gaussian, gaussian_flow, mixture, trajectory

__all__ = [
    "ObservedOrder",
    "Problem",
    "Stability",
    "WorkPrecision",
    "amplification",
    "draw",
    "flow_map",
    "gaussian",
    "gaussian_flow",
    "gaussian_moments",
    "mixture",
    "observed_order",
    "rounding",
    "stability",
    "trajectory",
    "warnings",
    "wasserstein_gaussian",
    "work_precision",
]
