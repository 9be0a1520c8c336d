"""`tune`: a plan fitted to one's own model, and a certificate of what it is worth."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import fields
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..backends import choose, prepared
from ..choices import unknown
from ..identity import mark_of
from ..model import BUNDLED, Model
from ..noise import normal
from ..philox import streams
from ..plans import Plan
from ..prediction import Clip, Label, Prediction, checked_label
from ..running import evaluating
from ..stored import check_folder, folder_of, write_plan
from .certificate import certify, pairs
from .fitting import MOST_STARTS, SHORT, Fitted, Journal, Record, Settings
from .growth import Growth
from .levenberg import Features
from .probe import REFERENCE_NFE, Probe, make_probe, reference_plan
from .report import Budget, Report, provenance
from .student import Student

ENGINES = ("levenberg", "ridge")
_LEAST = {"n": 2, "validation": 2, "held_out": 16}  # the intervals of a certificate mean nothing on fewer
_ALGORITHM = 3  # of fits: one goes on with steps of its own kind only
_STREAMS = 2**62  # seeds of training, validation and held-out noise, far from those that samples are drawn with


class Probes(NamedTuple):
    """Noise to fit to, to stop by, and to judge on."""

    train: Probe
    validation: Probe
    held_out: Probe


def tune(
    model: Model,
    nfe: int | Iterable[int] = 8,
    *,
    n: int = 32,
    validation: int = 64,
    held_out: int = 64,
    seed: int = 0,
    label: Label = None,
    guidance: float | None = None,
    clip: Clip = None,
    threshold: float | None = None,
    engine: str | None = None,
    derivatives: str = "differences",
    history: int | Sequence[int] | None = None,
    first: bool = True,
    times: bool = True,
    fed: bool | None = None,
    coefficients: bool = True,
    starts: int = 3,
    iterations: int = 12,
    patience: int = 12,
    loss: Features | None = None,
    features: Features | None = None,
    backend: str = "torch",
    batch: int = 64,
    folder: str | Path | None = None,
    save: bool | str | Path = False,
    progress: bool = False,
) -> tuple[Any, Report]:
    """Fit a plan to a model at a budget, and say what it is worth on noise that it has not seen.

        minimise  mean_n rho(|f(x_n) - f(x0_n)|^2)  over lam[0..], w[i,1..]      formulas: docs/tuning.md

    where x_n is the plan's end from noise n and x0_n that of the converged flow. The fit starts from the best built-in
    pair of method and grid, from the same begun later, and from the plan of the next smaller budget asked for, drawn
    out; the best on validation noise is returned if it beats the best of all pairs on held-out noise; else that pair.

    model: whatever `sample` takes.  nfe: a budget, or several, which share the references and each help the next;
        (plan, report), or ({nfe: plan}, report).  n, validation, held_out: noises to fit to, to stop by and to judge
        on, 2, 2 and 16 or more.  seed: of them.
    label, guidance, clip, threshold: as in `odediff.Sampler`; a conditional model without label is fitted to all its
        classes in turn, and a guided plan is for its guidance only.
    engine: "levenberg", Levenberg-Marquardt on the ends; "ridge", rows in closed form and a search over the times,
        which needs no derivative; None: ridge for int8 files, else levenberg.
    derivatives: of the network, "differences" of its outputs, which any model allows, or "exact", torch's forward mode.
    history: predictions that a row may read, or several, of which validation noise chooses; None: all, or 3.
    first: whether the first time is free too.  times, coefficients: whether those are.  fed: whether the time that the
        network is fed may differ from its state's; None: as levenberg fits times and coefficients, if the network takes
        fractional times.
    starts: how many plans the fit begins from, 1, the best built-in pair, .. 5; the late ones need levenberg, times and
        a first time that are free, a network of fractional times, and a schedule that begins before them.
    iterations, patience: steps of the last stage, fewer of those before it, and how many without gain on validation
        noise end one.
    loss: f, from samples (n, *shape) to features (n, ..); None: the samples themselves.  features: for a Frechet
    distance in the report.  backend: what evaluates the network, see `odediff.backends`.  batch: samples at a time.
    folder: keeps references and steps, so that a run that was interrupted goes on, and more budgets cost less.
    save: True, to where `solver="tuned"` finds the plan, or a folder.  progress: show a bar.
    ValueError: an option out of range, a folder that cannot be written to or a model without one to save in, fewer than
        two evaluations or more than half of the references', a loss or features of another shape, a network whose
        references are not finite.
    """
    if not hasattr(model, "integer_times"):
        raise ValueError(f"model must be an odediff.Model, got {model!r:.60}; odediff.load(name or folder) reads one")
    nfe = nfe.tolist() if isinstance(nfe, np.ndarray) else nfe
    budgets = _budgets(nfe)
    counts = {"n": n, "validation": validation, "held_out": held_out, "starts": starts, "iterations": iterations}
    _check_numbers({**counts, "patience": patience, "batch": batch}, seed)
    n, validation, held_out, seed = int(n), int(validation), int(held_out), int(seed)
    starts, iterations, patience, batch = int(starts), int(iterations), int(patience), int(batch)
    if starts > MOST_STARTS:
        raise ValueError(f"starts = {starts}: at most {MOST_STARTS}, the best built-in pair and late ones")
    quantised = getattr(getattr(model, "about", None), "precision", "") == "int8"
    engine = _engine(engine, "ridge" if quantised else "levenberg", loss)
    if fed is None:
        fed = engine == "levenberg" and times and coefficients and not model.integer_times
    free = (first, times, fed, coefficients)

    def settings(budget: int) -> Settings:
        histories = _histories(history, budget)[: None if coefficients else 1]
        return Settings(engine, histories, *free, starts, iterations, patience)

    _check_free(model, [settings(budget) for budget in budgets])
    options: dict[str, Any] = {"guidance": guidance, "clip": clip, "threshold": threshold}
    limited = {**options, "clip": Prediction(model, **options).limits}
    labels = [_labels(model, label, count) for count in (n, validation, held_out)]
    target = _target(model, save)
    if folder is not None:
        check_folder(Path(folder), "references and steps")
    *_, net = prepared(backend, *choose(backend, model), model)
    student = Student(net, batch=batch, derivatives=derivatives, **options)
    reference_plan(student, REFERENCE_NFE)
    _check_features(student, loss=loss, features=features)
    said = [None if one is None else one.tolist() for one in labels]
    work = (
        None if folder is None else Path(folder) / _key(student, n, validation, held_out, seed, said, limited, backend)
    )
    total = 3 * (REFERENCE_NFE + REFERENCE_NFE // 2)
    with tqdm(total=total, desc="references", disable=not progress) as bar:
        probes = Probes(
            *(
                make_probe(student, count, _STREAMS + 3 * seed + k, labels[k], work, bar)
                for k, count in enumerate((n, validation, held_out))
            )
        )
    about: dict[str, Any] = {"mark": mark_of(model), "weights": _weights(model), "engine": engine}
    about |= {"samples": n, "seed": seed, "guidance": student.prediction.guidance, "threshold": threshold}
    about |= {
        "clip": None if threshold is not None else limited["clip"],
        "labels": _said_labels(model, label, labels[0]),
    }
    made, reports = {}, {}
    with tqdm(disable=not progress, unit="step") as bar:

        def tick(said: str) -> None:
            bar.set_postfix_str(said)
            bar.update()

        @cache
        def journal(budget: int) -> Journal:
            name = None if work is None else work / _journal(student, settings(budget), budget, loss, probes.train)
            return Journal(name)

        builtin = cache(partial(pairs, student))
        growth = Growth(student, probes.train, probes.validation, settings, journal, builtin, loss, tick)
        before: list[Fitted] = []
        for budget in sorted(budgets):
            bar.set_description(f"nfe {budget}")
            began = time.process_time(), student.evaluations
            before = growth(budget, before)
            made[budget], reports[budget] = _judged(growth, before[0], probes.held_out, features, about, began)
            if target is not None:
                write_plan(made[budget], target, student.prediction.guidance)
    report = Report({budget: reports[budget] for budget in budgets})
    plans = {budget: made[budget] for budget in budgets}
    return (plans[budgets[0]], report) if isinstance(nfe, (int, np.integer)) else (plans, report)


def _judged(
    growth: Growth,
    fitted: Fitted,
    held_out: Probe,
    features: Features | None,
    about: dict[str, Any],
    began: tuple[float, int],
) -> tuple[Plan, Budget]:
    """What is returned at one budget, and the report on it. began: CPU time and evaluations before its fit."""
    student, nfe = growth.student, fitted.form.nfe
    builtin = growth.builtin(nfe)
    found = certify(student, fitted.form.plan(), builtin, held_out, features, partial(growth.tick, "certificate"))
    tuned = fitted.form.plan(fitted={**about, "start": fitted.start, **provenance(found)})
    report = Budget(
        *(nfe, tuned, found, fitted.start, fitted.records, "tuned" if found.holds else found.best),
        *(float(held_out.doubt.median()), student.evaluations - began[1], time.process_time() - began[0]),
    )
    return tuned if found.holds else builtin[found.best], report


def _check_numbers(counts: dict[str, Any], seed: Any) -> None:
    for name, value in counts.items():
        least, why = _LEAST.get(name, 1), ": intervals of fewer errors mean nothing" if name == "held_out" else ""
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{name} = {value!r} must be a whole number from {least} up{why}")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
        raise ValueError(f"seed = {seed!r} must be a whole number from 0 to 2^32 - 1")


def _engine(asked: str | None, default: str, loss: Any) -> str:
    if asked is not None and asked not in ENGINES:
        raise unknown("engine", asked, ENGINES)
    engine = asked or default
    if engine == "ridge" and loss is not None:
        said = "" if asked else ", the default of an int8 network,"
        raise ValueError(f'engine = "ridge"{said} fits rows to states, not to features; use "levenberg" with a loss')
    return engine


def _check_free(model: Model, settings: list[Settings]) -> None:
    one = settings[0]
    if not (one.times or one.coefficients or one.fed):
        raise ValueError("nothing is left to tune: times, coefficients and fed are all False")
    if not (one.times or one.fed) and any(max(of.histories) == 1 for of in settings):
        raise ValueError("nothing is left to tune: times are not free, and rows that read one prediction have no more")
    if one.fed and one.engine == "ridge":
        raise ValueError('fed = True: engine = "ridge" does not fit the times that are fed; use "levenberg"')
    if one.fed and model.integer_times:
        raise ValueError("fed = True needs a network of fractional times, this one knows whole times only")


def _check_features(student: Student, **given: Any) -> None:
    """ValueError: what is not callable, or gives something else than features of two samples."""
    for name, f in given.items():
        if f is None:
            continue
        if not callable(f):
            raise ValueError(f"{name} = {f!r:.60} must be callable, from samples (n, *shape) to features (n, ..)")
        for n in (2, 3):
            x = torch.zeros(n, *student.model.shape, dtype=student.dtype, device=student.model.device)
            with torch.no_grad():
                seen = f(x)
            if not isinstance(seen, Tensor) or seen.ndim < 2 or len(seen) != n or not seen.is_floating_point():
                got = f"{tuple(seen.shape)} {seen.dtype}" if isinstance(seen, Tensor) else type(seen).__name__
                said = f"features, a tensor ({n}, ..) of floating-point numbers"
                raise ValueError(f"{name} of samples {tuple(x.shape)} must be {said}, got {got}")


def _budgets(nfe: Any) -> list[int]:
    given = list(nfe) if isinstance(nfe, Iterable) else [nfe]
    bad = [one for one in given if isinstance(one, bool) or not isinstance(one, (int, np.integer)) or one < 2]
    if bad or not given:
        raise ValueError(f"nfe = {nfe!r}: a whole number of evaluations from 2 up, or a list of them: [4, 6, 8]")
    many = [one for one in given if one > REFERENCE_NFE // 2]
    if many:
        raise ValueError(f"nfe = {many[0]}: references take {REFERENCE_NFE} evaluations, a budget at most half of that")
    return list(dict.fromkeys(int(one) for one in given))


def _histories(history: int | Sequence[int] | None, nfe: int) -> tuple[int, ...]:
    asked = (nfe, SHORT) if history is None else tuple(history) if isinstance(history, Iterable) else (history,)
    bad = [one for one in asked if isinstance(one, bool) or not isinstance(one, int) or one < 1]
    if bad or not asked:
        raise ValueError(f"history = {history!r}: predictions that a row may read, whole numbers from 1 up")
    return tuple(dict.fromkeys(min(one, nfe) for one in asked))


def _labels(model: Model, label: Label, n: int) -> Tensor | None:
    """A label for each noise: those given, or all classes, in turn, or as many as there are noises, evenly spread; None
    for an unconditional model."""
    if model.num_classes is None:
        checked_label(model, label)
        return None
    given = torch.arange(model.num_classes) if label is None else checked_label(model, label)
    assert given is not None
    given = given.reshape(-1)
    count = given.numel()
    which = torch.arange(n) % count if n >= count else torch.arange(n) * count // n
    return given[which.to(given.device)].to(model.device)


def _said_labels(model: Model, label: Label, used: Tensor | None) -> str | list[int] | None:
    """What a plan says of its labels: those that were given, "all", "32 of 1000", or None: there are none."""
    if used is None:
        return None
    labels = sorted(set(used.tolist()))
    if label is not None:
        return labels
    return "all" if len(labels) == model.num_classes else f"{len(labels)} of {model.num_classes}"


def _target(model: Model, save: bool | str | Path) -> Path | None:
    if save is False:
        return None
    if not isinstance(save, (bool, str, Path)):
        raise ValueError(f"save = {save!r} must be True, False or a folder")
    folder = folder_of(model) if save is True else Path(save)
    if save is True and folder is not None and BUNDLED in folder.parents:
        raise ValueError("save = True: a bundled model's folder holds the plans of the package; name another for yours")
    if folder is None:
        raise ValueError("save = True: the model is in no folder; save it first, or name a folder for its plans")
    check_folder(folder, "the plans")
    return folder


def _weights(model: Model) -> str:
    from ..onnx.describing import weights_hash

    return weights_hash(model)


def _key(student: Student, *settings: Any) -> str:
    """The name of a folder for these references. A network is told by its weights, and by what it gives for a noise:
    two with the same weights may run other code. Three digits of that, which another number of threads keeps."""
    model, s = student.model, student.model.schedule
    x = normal(streams(0, 1), 0, model.shape, device=model.device, dtype=student.dtype)
    with evaluating(model):
        seen = [f"{float(model(x, t).double().square().mean().sqrt()):.2e}" for t in (s.t_min, s.t_max)]
    said = json.dumps([_weights(model), seen, model.prediction, s.fingerprint, *map(repr, settings)], default=str)
    return _hash(said.encode())


def _journal(student: Student, settings: Settings, nfe: int, loss: Features | None, probe: Probe) -> str:
    """The name of a fit's file. A loss is told by what it gives for one noise."""
    kept = [field.name for field in fields(Record)]
    exact = () if student.derivatives == "differences" else (student.derivatives,)
    seen = None
    if loss is not None:
        with torch.no_grad():
            seen = _hash(loss(probe.noise[:1]).cpu().numpy().tobytes())
    return f"fit-{nfe}-{_hash(repr((_ALGORITHM, settings, kept, seen, *exact)).encode())}.jsonl"


def _hash(said: bytes) -> str:
    return hashlib.sha256(said).hexdigest()[:12]
