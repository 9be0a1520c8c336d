"""The whole sampler as an ONNX graph: `noise` in, `images` out.

    d  = p x + q net(x, t),  or  m x0' + p x + q net(x, t) with limits on x0          `odediff.step`, in float32
    x' = a x + sum_j b_j d_j + c z

    unrolled    the network once a row, coefficients as constants: no control flow
    loop        the network once, in the body of a `Loop`; the table's columns are initialisers, read by the row's
                number; x and the last K - 1 predictions are carried

Weights are stored once in both; in a loop inside its body, where an executor knows them as constants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper

from ..plans import Plan
from ..prediction import Prediction
from .graph import Builder, opset_in, value
from .inlined import Network

FORMS = ("loop", "unrolled")
OLDEST = 11  # opset that has the operators used here in these forms


Read = Callable[[str, ArrayLike], str]
Term = tuple[str, ArrayLike, str]  # a coefficient's name, its column of the table, and the value that it weighs


class Writer:
    """One sampler, written row by row into a builder."""

    def __init__(self, network: Network, plan: Plan, prediction: Prediction, batch: int | None) -> None:
        self.network, self.plan, self.prediction, self.batch = network, plan, prediction, batch
        rows = prediction.of_plan(plan)
        self.prediction_columns = np.array([(*row.to_x0, *row.to_d, *row.back) for row in rows]).T
        self.shape, self.model = list(prediction.model.shape), prediction.model
        self.opset = opset_in(network.proto)
        self.only: int | None = None  # the row being written, None: all of them at once

    def here(self, column: ArrayLike) -> NDArray[Any]:
        """The part of a column that is being written."""
        return np.asarray(column)[slice(None) if self.only is None else self.only]

    def read(self, g: Builder, name: str, column: ArrayLike) -> str:
        """A coefficient's value: a constant of the row being written, or the entry of row number `i`."""
        column = np.asarray(column)
        kind = np.int64 if column.dtype.kind == "i" else np.float32
        if self.only is not None:
            return g.constant(column[self.only], kind)
        return g.op("Gather", g.constant(column, kind, name), "i", axis=0)

    @property
    def labelled(self) -> bool:
        """Whether `label` is an input."""
        return self.model.num_classes is not None and self.prediction.guidance != 0

    def inputs(self) -> list[onnx.ValueInfoProto]:
        n: int | str = self.batch or "batch"
        made = [value("noise", [n, *self.shape])]
        if rows := int(np.count_nonzero(self.plan.c)):
            made.append(value("row_noise", [rows, n, *self.shape]))
        return [*made, value("label", [n], TensorProto.INT32)] if self.labelled else made

    def row(self, g: Builder, read: Read, x: str, history: list[str], prefix: str) -> tuple[str, list[str]]:
        """The next state, and the history with this row's prediction in front.

        read: the value of a coefficient in this row, by its name and its column of the table.
        """
        plan = self.plan
        d = self.predict(g, read, x, self.evaluate(g, x, read("t", plan.t[:, None]), prefix))
        history = [d, *history][: plan.depth]
        terms: list[Term] = [("a", plan.a, x), *((f"b{j}", plan.b[:, j], of) for j, of in enumerate(history))]
        if plan.stochastic:
            terms.append(("c", plan.c, "row_noise"))
        return self.combine(g, read, terms), history

    def combine(self, g: Builder, read: Read, terms: Sequence[Term]) -> str:
        """The sum of weight * value. What has weight 0 in every row that is written here is left out."""
        made = []
        for name, column, of in terms:
            if not np.any(self.here(column)):
                continue
            if of == "row_noise":
                drawn = np.cumsum(self.plan.c != 0) - (self.plan.c != 0)
                last = np.count_nonzero(self.plan.c) - 1
                of = g.op("Gather", of, read("z", np.minimum(drawn, last)), axis=0)
            made.append(of if np.all(self.here(column) == 1) else g.op("Mul", of, read(name, column)))
        return reduce(lambda left, right: g.op("Add", left, right), made)

    def evaluate(self, g: Builder, x: str, t: str, prefix: str) -> str:
        """The network's output at x and the 1-element value t: one evaluation, guided or not."""
        g_, null = self.prediction.guidance, self.model.num_classes
        if null is None:
            return self.network.call(g, x, self.spread(g, t), None, prefix)
        if g_ in (None, 0, 1):
            label = "label" if g_ != 0 else self.spread(g, g.constant([null], np.int32))
            return self.network.call(g, x, self.spread(g, t), label, prefix)
        times, nulls = self.spread(g, t), self.spread(g, g.constant([null], np.int32))
        xs, ts, labels = (g.op("Concat", a, b, axis=0) for a, b in ((x, x), (times, times), (nulls, "label")))
        out = self.network.call(g, xs, ts, labels, prefix)
        halves = [f"{g.prefix}{name}_{len(g.nodes)}" for name in ("unconditional", "conditional")]
        base, asked = g.ops("Split", out, names=halves, axis=0, **({"num_outputs": 2} if self.opset >= 18 else {}))
        return g.op("Add", base, g.op("Mul", g.op("Sub", asked, base), g.constant(g_)))

    def spread(self, g: Builder, one: str) -> str:
        """A value of shape (1,) for every sample, (batch,)."""
        size = g.constant([self.batch], np.int64) if self.batch else "batch_size"
        return g.op("Expand", one, size)

    def predict(self, g: Builder, read: Read, x: str, out: str) -> str:
        """d, in the plan's space."""
        x0_p, x0_q, d_p, d_q, back_m, back_p, back_q = self.prediction_columns
        if self.prediction.limits is None:
            return self.combine(g, read, [("d_q", d_q, out), ("d_p", d_p, x)])
        x0 = self.limited(g, self.combine(g, read, [("x0_q", x0_q, out), ("x0_p", x0_p, x)]))
        return self.combine(g, read, [("back_m", back_m, x0), ("back_p", back_p, x), ("back_q", back_q, out)])

    def limited(self, g: Builder, x0: str) -> str:
        """x0 clamped, or thresholded as `odediff.step.thresholded` does."""
        assert self.prediction.limits is not None
        low, high = self.prediction.limits
        quantile = self.prediction.threshold
        if quantile is None:
            return g.op("Clip", x0, g.constant(low), g.constant(high))
        size = int(np.prod(self.shape))
        y = g.op("Sub", x0, g.constant((high + low) / 2))
        rank, share = divmod(quantile * (size - 1), 1.0)
        flat = g.op("Abs", g.op("Reshape", y, g.constant([0, size], np.int64)))
        count = size - int(rank)  # the largest, of which the last is the order statistic `rank`
        top = f"{g.prefix}largest_{len(g.nodes)}"
        g.ops("TopK", flat, g.constant([count], np.int64), names=[top, f"{top}_where"], axis=1)
        below, above = (
            g.op("Gather", top, g.constant([max(count - 1 - step, 0)], np.int64), axis=1) for step in (0, 1)
        )
        s = g.op("Add", below, g.op("Mul", g.op("Sub", above, below), g.constant(share)))
        s = g.op("Max", s, g.constant((high - low) / 2))
        s = g.op("Reshape", s, g.constant([0, *[1] * len(self.shape)], np.int64))
        y = g.op("Max", g.op("Min", y, s), g.op("Neg", s))
        return g.op("Add", g.op("Mul", y, g.op("Div", g.constant((high - low) / 2), s)), g.constant((high + low) / 2))


def sampler_graph(
    network: Network, plan: Plan, prediction: Prediction, *, form: str, batch: int | None
) -> onnx.ModelProto:
    """The sampler's graph: `noise` (batch, *shape) float32, unit normal, to `images` in the model's range.

    row_noise: (rows that draw noise, batch, *shape), of stochastic plans.  label: (batch,) int32, of class-conditional
    models.  form: "loop" or "unrolled".  batch: None, a dynamic axis "batch", or a number.
    ValueError: what `Prediction.of_plan` raises; a network in operators of before opset 11.
    """
    w, g = Writer(network, plan, prediction, batch), Builder()
    if w.opset < OLDEST:
        raise ValueError(
            f"the network is in opset {w.opset}, a sampler needs {OLDEST} or later; convert the file first"
        )
    if batch is None:
        g.op("Slice", g.op("Shape", "noise"), *(g.constant([k], np.int64) for k in (0, 1)), name="batch_size")
    scale = plan.prior_scale
    x = "noise" if scale == 1 else g.op("Mul", "noise", g.constant(scale))
    if form == "unrolled":
        history: list[str] = []
        for w.only in range(plan.nfe):
            x, history = w.row(g, partial(w.read, g), x, history, f"row{w.only}/")
    else:
        x = _loop(w, g, x)
    limits = prediction.model.range
    if limits is None:
        g.op("Identity", x, name="images")
    else:
        g.op("Clip", x, g.constant(limits[0]), g.constant(limits[1]), name="images")
    graph = helper.make_graph(
        g.nodes, "sampler", w.inputs(), [value("images", [batch or "batch", *w.shape])], list(g.tensors.values())
    )
    made = helper.make_model(graph, opset_imports=network.proto.opset_import, functions=network.proto.functions)
    made.ir_version = max(network.proto.ir_version, 4)  # before 4, weights had to be inputs
    return made


def _loop(w: Writer, g: Builder, x: str) -> str:
    """A `Loop` over the plan's rows; the final state."""
    shape: list[int | str] = [w.batch or "batch", *w.shape]
    past = [f"past{j}" for j in range(w.plan.depth - 1)]
    inner = Builder("loop/")
    after, history = w.row(inner, partial(w.read, inner), "x", past, "row/")
    again = inner.op("Identity", "more", name="more_out")
    kept = [inner.op("Identity", d, name=f"past{j}_out") for j, d in enumerate(history[: w.plan.depth - 1])]
    state = inner.op("Identity", after, name="x_out")
    body = helper.make_graph(
        inner.nodes,
        "row",
        [
            value("i", [], TensorProto.INT64),
            value("more", [], TensorProto.BOOL),
            *(value(v, shape) for v in ("x", *past)),
        ],
        [value(again, [], TensorProto.BOOL), *(value(v, shape) for v in (state, *kept))],
        list(inner.tensors.values()),
    )
    empty = [g.op("Mul", x, g.constant(0.0), name=f"no_{name}") for name in past]  # read with weight 0 only
    count, go = g.constant(w.plan.nfe, np.int64, "evaluations"), g.constant(True, np.bool_, "go")
    return g.ops("Loop", count, go, x, *empty, names=["x_last", *(f"{name}_last" for name in past)], body=body)[0]
