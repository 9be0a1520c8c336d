"""Plans fitted to a model: `tune`, its report, and the parts that it is made of."""

from .certificate import Certificate, Entry, sliced_wasserstein
from .front import tune
from .report import Budget, Report

__all__ = ["Budget", "Certificate", "Entry", "Report", "sliced_wasserstein", "tune"]
