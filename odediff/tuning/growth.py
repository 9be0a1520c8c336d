"""Fits of several budgets, each helped by the one before it: its plans, drawn out, are more places to begin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..plans import Plan
from .fitting import Fit, Fitted, Journal, Settings, starts
from .levenberg import Features
from .probe import Probe
from .student import Student

_STRIDE = 8  # one more evaluation in so many, and at least one, at each step from a budget to the next


def way(before: int, nfe: int) -> list[int]:
    """The budgets between two, at which a plan that is drawn out is fitted for a while."""
    steps = [before]
    while steps[-1] < nfe:
        steps.append(steps[-1] + max(1, steps[-1] // _STRIDE))
    return [step for step in steps[1:] if step < nfe]


@dataclass(frozen=True, eq=False)
class Growth:
    """The fits of a model's budgets.

    settings, journal: of a budget, the same at every call.  builtin: the pairs of a budget.
    tick: called after every step.
    """

    student: Student
    train: Probe
    validation: Probe
    settings: Callable[[int], Settings]
    journal: Callable[[int], Journal]
    builtin: Callable[[int], dict[str, Plan]]
    features: Features | None
    tick: Callable[[str], None]

    def __call__(self, nfe: int, before: list[Fitted]) -> list[Fitted]:
        """The fits of a budget, the best on validation noise first: from built-in plans, and from those of the next
        smaller budget: all of them drawn out to the first budget between, the best of them on to the others."""
        student = self.student
        begin = starts(student, student.model.schedule, self.builtin(nfe), self.validation, self.settings(nfe))
        found = self._fit(nfe)(begin)
        if not before or not self._free(nfe):
            return [found]
        forms = {f"{one.start} at {one.form.nfe}": one.form for one in before}
        for step in way(before[0].form.nfe, nfe):
            forms = self._grown(step).begun({name: form.grown(step) for name, form in forms.items()})
        other = self._grown(nfe)({name: form.grown(nfe) for name, form in forms.items()})
        return sorted((replace(found, records=other.records), other), key=lambda one: one.mean)

    def _free(self, nfe: int) -> bool:
        one = self.settings(nfe)
        return one.engine == "levenberg" and one.times and one.coefficients and not self.student.model.integer_times

    def _grown(self, nfe: int) -> Fit:
        fit, histories = self._fit(nfe), self.settings(nfe).histories
        return replace(fit, settings=replace(fit.settings, histories=(max(histories),)), grown=True)

    def _fit(self, nfe: int) -> Fit:
        return Fit(
            *(self.student, self.train, self.validation, self.settings(nfe)),
            *(self.journal(nfe), self.features, self.tick),
        )
