"""Peers' coefficients kept in a file, for machines without the peers.

`tests/data/peers.npz` holds for every setting of every case one number of steps: the peer's states in float64, the
times it feeds, the noise levels of its steps, and the versions it was read with. `python bench/parity.py --freeze`
writes it.
"""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import numpy as np
from parity_cases import CASES, Case, settings
from peers import Probe

PATH = Path(__file__).parent / "data" / "peers.npz"
PEERS = ("diffusers", "k-diffusion", "azula")


def steps_of(case: Case, schedule: str, spacing: str) -> int:
    """The number of steps that is kept: 13 on the first setting of a case, 7 on the others, or one that it has."""
    first = (schedule, spacing) == settings(case)[0]
    return next(steps for steps in ((13, 20, 7) if first else (7, 20)) if case.fits(steps))


def key(case: Case, schedule: str, spacing: str) -> str:
    return f"{case.name} {case.method} {schedule} {spacing} {steps_of(case, schedule, spacing)}"


def write() -> None:
    """Read every peer and keep what it says."""
    index, data = [], []
    for case in CASES:
        for schedule, spacing in settings(case):
            probe = case.read(schedule, spacing, steps_of(case, schedule, spacing))
            index.append([key(case, schedule, spacing), probe.nfe, len(probe.rho)])
            assert index[-1][0] not in {name for name, *_ in index[:-1]}, f"two cases are called {index[-1][0]}"
            data += [probe.states.ravel(), probe.t, probe.rho]
    versions = {peer: metadata.version(peer) for peer in PEERS}
    PATH.parent.mkdir(exist_ok=True)
    np.savez_compressed(PATH, index=json.dumps({"versions": versions, "probes": index}), data=np.concatenate(data))


def load() -> tuple[dict[str, Probe], dict[str, str]]:
    """Probes by key, and the versions of the peers."""
    with np.load(PATH) as file:
        index, data = json.loads(str(file["index"])), file["data"]
    probes, at = {}, 0
    for name, nfe, levels in index["probes"]:
        shape = (nfe + 1, 2 + 2 * nfe)
        states, t, rho = np.split(data[at : at + np.prod(shape) + nfe + levels], np.cumsum([np.prod(shape), nfe]))
        probes[name] = Probe(states.reshape(shape), t, rho)
        at += np.prod(shape) + nfe + levels
    return probes, index["versions"]
