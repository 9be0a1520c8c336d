"""Reading a sampler's table out of its code.

A sampler is linear in its start, in the network's outputs and in its noises. Run once on basis vectors, where the
network records its argument and hands back the next basis vector, it writes down its own coefficients:

    X[i] = A[i] x_T + sum_k B[i,k] d[k] + sum_k C[i,k] z[k]

`lower` rewrites each recorded state in terms of the one before. Runge-Kutta stages, correctors and order ramps collapse
without anyone doing an elimination.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .schedule import Array

# Where alpha starts near 0 a state's coefficients grow to 1e4 and the rows are their small differences: long double
# keeps the rows exact to float64 (where a machine has none they are good to about 1e-12).
_WIDE = np.longdouble
_ROUNDING = 1e3 * float(np.finfo(_WIDE).eps)


@dataclass(frozen=True)
class Point:
    """A place on the schedule: the time the network is fed, and the state's signal and noise scale."""

    t: float
    alpha: float
    sigma: float

    @property
    def lam(self) -> float:
        """Half log-SNR, log(alpha / sigma); infinite where either is 0."""
        with np.errstate(divide="ignore"):
            return float(np.log(self.alpha) - np.log(self.sigma))

    @property
    def rho(self) -> float:
        """sigma / alpha; inf where alpha = 0."""
        with np.errstate(divide="ignore"):
            return float(np.float64(self.sigma) / self.alpha)


class Network(Protocol):
    """What a method calls: the prediction at a state, and a fresh noise."""

    def __call__(self, x: Array, point: Point) -> Array: ...

    def noise(self) -> Array: ...


class Recorder:
    """A network that records its arguments and answers with basis vectors (x_T, d_0.., z_0..), length 1 + 2 nfe."""

    def __init__(self, nfe: int) -> None:
        self.nfe = nfe
        self.start = self._basis(0)
        self.states: list[Array] = []
        self.points: list[Point] = []
        self.noises = 0

    def _basis(self, k: int) -> Array:
        return np.eye(1, 1 + 2 * self.nfe, k, dtype=_WIDE)[0]

    def __call__(self, x: Array, point: Point) -> Array:
        if len(self.states) == self.nfe:
            raise ValueError(f"the method evaluates the network more than the {self.nfe} times it was given")
        self.states.append(np.array(x, dtype=_WIDE))
        self.points.append(point)
        return self._basis(len(self.states))

    def noise(self) -> Array:
        """The noise of the current row. ValueError: a second noise in one row, which a plan cannot hold."""
        row = len(self.states)
        if self.noises == row:
            raise ValueError(f"row {row - 1} draws two noises; a plan has one per evaluation")
        self.noises = row
        return self._basis(self.nfe + row)


def probe(run: Callable[[Network, Array], Array], nfe: int) -> tuple[Array, list[Point]]:
    """Run a sampler on basis vectors; give its states, shape (nfe + 1, 1 + 2 nfe), and the points it evaluated at.

    ValueError: it evaluated the network more or less often than `nfe`.
    """
    recorder = Recorder(nfe)
    final = run(recorder, recorder.start)
    if len(recorder.states) != nfe:
        raise ValueError(f"the method evaluated the network {len(recorder.states)} times, not {nfe}")
    return np.array([*recorder.states, final]), recorder.points


def lower(states: Array) -> tuple[Array, Array, Array]:
    """Coefficients (a, b, c), shapes (S,), (S, K), (S,), of x[i+1] in terms of x[i], d[i], d[i-1].. and z[i].

    What cancels to rounding is zero, and K is the longest history that is left.
    ValueError: a state before the last holds neither start nor noise (no row could continue from it), a row reads
    the future or mixes its noises in a way that no single row can.
    """
    rows = len(states) - 1
    random = np.array([0, *range(rows + 1, 2 * rows + 1)])
    a, c, history = np.zeros(rows, _WIDE), np.zeros(rows, _WIDE), np.zeros((rows, rows), _WIDE)
    for i in range(rows):
        old, new = states[i], states[i + 1]
        k = random[np.argmax(np.abs(old[random]))]
        if old[k] == 0:
            raise ValueError(f"state {i} holds neither start nor noise, so row {i} cannot continue from it")
        a[i] = new[k] / old[k]
        rest = new - a[i] * old
        rest[np.abs(rest) <= _ROUNDING * (np.abs(new) + np.abs(a[i] * old))] = 0.0
        d, z = rest[1 : rows + 1], rest[rows + 1 :]
        if d[i + 1 :].any():
            raise ValueError(f"row {i} reads a prediction that is not made yet")
        if np.delete(z, i).any():
            raise ValueError(f"row {i} re-weighs the noise of an earlier row; a plan keeps only its own")
        c[i], history[i, : i + 1] = z[i], d[: i + 1][::-1]
    depth = max(1, int(np.flatnonzero(history.any(0)).max(initial=0)) + 1)
    return a.astype(np.float64), history[:, :depth].astype(np.float64), c.astype(np.float64)
