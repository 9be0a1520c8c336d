"""The Plan: a fixed-step diffusion sampler as a table of coefficients.

    d[i]   = P(x[i], net(x[i], t[i]))                          the prediction, in the plan's space
    x[i+1] = a[i] x[i] + sum_{j<K} b[i,j] d[i-j] + c[i] z[i]    one row, one evaluation of the network

A space is a pair of scalars per row, d = u x0 + w eps. Every row conserves signal and noise:

    alpha[i+1]   = a[i] alpha[i] + sum_j b[i,j] u[i-j]
    sigma[i+1]^2 = (a[i] sigma[i] + sum_j b[i,j] w[i-j])^2 + c[i]^2
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from textwrap import wrap
from types import MappingProxyType
from typing import Any

import numpy as np

from .schedule import Array
from .spaces import space_pair

VERSION = 1
_TOLERANCE = 1e-10
_COLUMNS, _WIDTH = 6, 100  # of printed tables: the deepest with a column for each prediction, and characters of others


@dataclass(frozen=True, eq=False)
class Plan:
    """A sampler of S rows and K predictions of history, checked at construction and immutable afterwards.

    space: "x0", "eps", "v" or "flow".  t: (S,), what the network is fed.  alpha, sigma: (S+1,), signal and noise of the
    states.  a: (S,).  b: (S, K), b[i, j] weighs d[i-j].  c: (S,), scale of fresh noise.  All float64.
    overdispersed: the rows may add more noise than they conserve (DDPM's fixed-large variance), never less.
    method, args, schedule: provenance, which no row depends on; a sampler refuses models of another named schedule.
    ValueError: wrong shapes, non-finite entries, history before the first row, times that leave [t], or a row that does
    not conserve signal or noise; the message names the row and the identity.
    """

    space: str
    t: Array
    alpha: Array
    sigma: Array
    a: Array
    b: Array
    c: Array
    overdispersed: bool = False
    method: str = ""
    args: Mapping[str, Any] = field(default_factory=dict)
    schedule: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("t", "alpha", "sigma", "a", "b", "c"):
            value = np.array(getattr(self, name), dtype=np.float64)
            value.setflags(write=False)
            object.__setattr__(self, name, value)
        for name in ("args", "schedule"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        self._check_shapes()
        self._check_rows()

    @property
    def nfe(self) -> int:
        """Evaluations of the network: the number of rows."""
        return len(self.t)

    @property
    def depth(self) -> int:
        """K, the number of predictions a row may read."""
        return int(self.b.shape[1])

    @property
    def stochastic(self) -> bool:
        """Whether any row adds noise."""
        return bool(np.any(self.c))

    @property
    def amplification(self) -> Array:
        """How much a row may amplify rounding, (S,): the sum of what it adds up, over the size of what comes out.

            (|a_i| r_i + sum_j |b_ij| q_{i-j} + |c_i|) / r_{i+1},    r = hypot(alpha, sigma),  q = hypot(u, w)

        for unit data, where r is the size of a state and q that of a prediction. 1 to 20 is normal. float32 has 24
        bits, of which a row of 2^k leaves 24 - k.
        """
        rows, depth = self.b.shape
        size = np.hypot(*space_pair(self.space, self.alpha[:-1], self.sigma[:-1]))
        source = np.maximum(np.arange(rows)[:, None] - np.arange(depth), 0)
        r = np.hypot(self.alpha, self.sigma)
        total: Array = (np.abs(self.a) * r[:-1] + (np.abs(self.b) * size[source]).sum(1) + np.abs(self.c)) / r[1:]
        return total

    @property
    def prior_scale(self) -> float:
        """The scale of x_T for unit normal noise, hypot(alpha[0], sigma[0]): 1 for variance-preserving schedules."""
        return float(np.hypot(self.alpha[0], self.sigma[0]))

    def _check_shapes(self) -> None:
        rows = len(self.t) if self.t.ndim == 1 else 0
        if rows < 1:
            raise ValueError(f"a plan needs at least one row: t has shape {self.t.shape}")
        shapes = {"alpha": (rows + 1,), "sigma": (rows + 1,), "a": (rows,), "c": (rows,)}
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape}, expected {shape} for {rows} rows")
        if self.b.ndim != 2 or self.b.shape[0] != rows or not 1 <= self.b.shape[1] <= rows:
            raise ValueError(f"b has shape {self.b.shape}, expected ({rows}, K) with 1 <= K <= {rows}")
        for name in ("t", "alpha", "sigma", "a", "b", "c"):
            bad = np.argwhere(~np.isfinite(getattr(self, name)))
            if len(bad):
                raise ValueError(
                    f"{name}{bad[0].tolist()} = {getattr(self, name)[tuple(bad[0])]}: every entry must be finite"
                )
        if (self.alpha < 0).any() or (self.sigma < 0).any() or (self.sigma[:-1] == 0).any():
            raise ValueError("alpha and sigma must not be negative, and sigma is 0 at most in the last state")

    def _check_rows(self) -> None:
        rows, depth = self.b.shape
        u, w = space_pair(self.space, self.alpha[:-1], self.sigma[:-1])
        source = np.arange(rows)[:, None] - np.arange(depth)
        early = np.argwhere((source < 0) & (self.b != 0))
        if len(early):
            raise ValueError(f"row {early[0, 0]} reads prediction {early[0, 1]} rows back, before the first")
        source = np.maximum(source, 0)
        signal = self.a * self.alpha[:-1] + (self.b * u[source]).sum(1)
        noise = np.hypot(self.a * self.sigma[:-1] + (self.b * w[source]).sum(1), self.c)
        for name, is_, want, pair, old in (
            ("signal: alpha' = a alpha + sum b u", signal, self.alpha[1:], u, self.alpha),
            ("noise: sigma'^2 = (a sigma + sum b w)^2 + c^2", noise, self.sigma[1:], w, self.sigma),
        ):
            scale = np.abs(want) + np.abs(self.a * old[:-1]) + np.abs(self.b * pair[source]).sum(1) + np.abs(self.c)
            gap = want - is_ if self.overdispersed and name.startswith("noise") else np.abs(want - is_)
            bad = np.flatnonzero(~(gap <= _TOLERANCE * scale))
            if len(bad):
                i = bad[0]
                raise ValueError(
                    f"row {i} does not conserve {name}: the row gives {float(is_[i])!r}, the grid {float(want[i])!r}"
                )

    def to_json(self) -> str:
        """The plan as JSON text; `from_json` gives it back bit for bit (floats are written by repr)."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        data = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in data.items()}
        data |= {"args": dict(self.args), "schedule": dict(self.schedule)}
        return json.dumps({"version": VERSION, **data}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan written by `to_json`. ValueError: no JSON, another version, unknown or missing keys, a bad table."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"not a plan: {error}") from None
        if not isinstance(data, dict) or data.pop("version", None) != VERSION:
            raise ValueError(f"not a plan of format version {VERSION}")
        names = {f.name for f in fields(cls)}
        if set(data) != names:
            raise ValueError(
                f"not a plan: missing keys {sorted(names - set(data))}, unknown keys {sorted(set(data) - names)}"
            )
        return cls(**data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __reduce__(self) -> tuple[Any, ...]:
        return Plan.from_json, (self.to_json(),)  # read-only mappings can be neither copied nor pickled

    def __str__(self) -> str:
        with np.errstate(divide="ignore"):
            lam = np.log(self.alpha) - np.log(self.sigma)
        said = {key: value for key, value in self.args.items() if value != "" and not isinstance(value, dict)}
        args = "".join(f", {key} {value}" for key, value in said.items())
        schedule = ", ".join(f"{key} {str(value)[:12]}" for key, value in self.schedule.items() if key != "name")
        head = [
            f"{self.method or 'plan'}: {self.nfe} evaluations, {self.space} space, history {self.depth}"
            + (", stochastic" if self.stochastic else "")
            + args,
            f"schedule {self.schedule.get('name', 'not named')}" + (f" ({schedule})" if schedule else ""),
            f"noise covered: sigma {self.sigma[0]:.6g} .. {self.sigma[-2]:.6g} -> {self.sigma[-1]:.6g}, "
            f"lam {lam[0]:.4f} .. {lam[-2]:.4f} -> {lam[-1]:.4f}",
        ]
        return "\n".join([*head, *self._table(lam)])

    def _table(self, lam: Array) -> list[str]:
        """A line of titles and one a row. Of more than `_COLUMNS` predictions only those that a row reads are shown."""
        titles = ["row", "t", "alpha", "sigma", "lam", "a"]
        columns = [self.t, self.alpha[:-1], self.sigma[:-1], lam[:-1], self.a]
        if self.depth <= _COLUMNS:
            titles, columns = [*titles, *(f"b{j}" for j in range(self.depth))], [*columns, *self.b.T]
        if self.stochastic:
            titles, columns = [*titles, "c"], [*columns, self.c]
        cells = [[f"{i}" for i in range(self.nfe)], *([f"{value:.6g}" for value in column] for column in columns)]
        widths = [max(map(len, [title, *column])) + 2 for title, column in zip(titles, cells, strict=True)]
        rows = [titles, *zip(*cells, strict=True)]
        lines = ["".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
        if self.depth <= _COLUMNS:
            return lines
        said = ["j:b of every b that is not 0"]
        said += [" ".join(f"{j}:{b[j]:.6g}" for j in np.flatnonzero(b)) for b in self.b]
        indent = sum(widths) + 2
        room = max(24, _WIDTH - indent)
        parts = [wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""] for text in said]
        tails = [f"\n{' ' * indent}".join(part) for part in parts]
        return [f"{line}  {tail}".rstrip() for line, tail in zip(lines, tails, strict=True)]
