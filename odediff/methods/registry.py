"""The registry: each method's function and what is known of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

from ..schedule import Array
from . import edm, linear, multistep, sde, singlestep, stochastic
from . import tableaus as rk
from .frame import FRAMES, VARIABLES

Split = Callable[[int], list[int]]


@dataclass(frozen=True)
class Method:
    """A fixed-step sampler and what is known of it.

    run: `run(f, x, grid, **args)`, the method in its paper's notation, on arrays or on basis vectors.
    order: of convergence on smooth problems, once the warm-up rows are as accurate as the rest.
    stages: evaluations of a full step.  min_nfe: the smallest budget with one full-order step.
    frames: the (space, variable) pairs it may run in, the default first; where alpha(t_max) = 0 makes that singular,
    the next. grid: default time grid.  args: options of `run`.  source: key in `BIBTEX`; where: equation or section.
    stochastic: some options add noise; the order is then the weak one.  noise: the option that scales it, 0 for none;
    empty: it has none.  overdispersed: whether these options add more noise than the rows conserve.
    split: the evaluations of each step for a budget, where steps differ.
    """

    run: Callable[..., Array]
    order: int
    source: str
    where: str
    frames: tuple[tuple[str, str], ...]
    grid: str
    stages: int = 1
    min_nfe: int = 1
    args: Mapping[str, Any] = field(default_factory=dict)
    stochastic: bool = False
    noise: str = ""
    overdispersed: Callable[[Mapping[str, Any]], bool] = lambda args: False
    split: Split | None = None

    @property
    def space(self) -> str:
        """The space of its predictions, in the default frame."""
        return self.frames[0][0]

    @property
    def variable(self) -> str:
        """What it integrates over, or its polynomials are in, in the default frame."""
        return self.frames[0][1]

    @property
    def deterministic(self) -> bool:
        """Whether it adds no noise with its default options."""
        return not self.stochastic or self.args.get(self.noise) == 0

    @property
    def kinds(self) -> dict[str, list[str]]:
        """The types that `run` declares for each option: "float", "int", "str", and "None" besides."""
        declared = inspect.signature(self.run).parameters
        return {key: declared[key].annotation.split(" | ") for key in self.args}

    def layout(self, nfe: int, closing: bool = True) -> list[int]:
        """Evaluations of each step; they sum to nfe. closing: the last is the closed-form row onto sigma = 0."""
        whole = nfe + (not closing)
        if self.split is not None:
            steps = self.split(whole)
        else:
            steps = [1] * whole if self.stages == 1 else rk.layout(self.stages, whole)
        return steps if closing else steps[:-1]


_ANY = tuple((space, variable) for space in FRAMES for variable in VARIABLES)
_NATURAL = {"eps": "rho", "x0": "lam", "flow": "tau", "v": "phi"}


def _runge_kutta(tableau: rk.Tableau, order: int, source: str, where: str, grid: str) -> Method:
    run = partial(rk.runge_kutta, tableau=tableau)
    frames = tuple((space, _NATURAL[space]) for space in ("flow", "eps", "x0"))
    return Method(run, order, source, where, frames, grid, stages=len(tableau.b), min_nfe=len(tableau.b) + 1)


def _adams(order: int, space: str, variable: str, grid: str, corrector: int = 0) -> Method:
    run = partial(multistep.adams_bashforth, order=order, corrector=corrector)
    frames = ((space, variable), *(pair for pair in _ANY if pair != (space, variable)))
    where = "III.1, P(EC), variable steps" if corrector else "III.5, variable steps"
    return Method(run, max(order, corrector), "hairer1993", where, frames, grid, min_nfe=order + 1)


def _deis(order: int) -> Method:
    run = partial(multistep.adams_bashforth, order=order)
    frames = (("eps", "t"), ("eps", "rho"), ("eps", "lam"))
    return Method(run, order, "zhang2023", "eq. 14: tAB, rhoAB, log rho", frames, "quadratic", min_nfe=order + 1)


def _unipc(order: int) -> Method:
    return Method(
        partial(multistep.unipc, order=order),
        order + 1,
        "zhao2023",
        "UniP-p with UniC-p, data prediction",
        _X0,
        "quadratic",
        min_nfe=order + 1,
        args={"b": "bh2", "orders": ""},
    )


def _dpm_solver(
    stages: int, frames: tuple[tuple[str, str], ...], source: str, where: str, split: Split | None = None
) -> Method:
    return Method(
        singlestep.dpm_solver,
        stages,
        source,
        where,
        frames,
        "quadratic",
        stages=stages,
        min_nfe=stages + 1 + (split is not None),
        args={"solver_type": "dpmsolver"},
        split=split,
    )


def _dpmpp_multistep(order: int, where: str) -> Method:
    run = partial(multistep.dpmpp, order=order)
    return Method(run, 2, "lu2022b", where, (*_X0, *_EPS), "quadratic", min_nfe=order + 1)


_EULER = tuple((space, _NATURAL[space]) for space in ("x0", "eps", "v", "flow"))
_X0 = (("x0", "lam"),)
_EPS = (("eps", "lam"),)
_RHO = (("eps", "rho"),)

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "euler": Method(multistep.euler, 1, "song2021a", "eq. 12, 14", _EULER, "quadratic"),
        "ddim": Method(
            stochastic.ddim,
            1,
            "song2021a",
            "eq. 12, 16",
            _X0,
            "quadratic",
            args={"eta": 0.0},
            stochastic=True,
            noise="eta",
        ),
        "ddpm": Method(
            stochastic.ddpm,
            1,
            "ho2020",
            "eq. 7, Algorithm 2",
            _X0,
            "uniform",
            args={"variance": "fixed_small"},
            stochastic=True,
            overdispersed=lambda args: args["variance"] == "fixed_large",
        ),
        "heun": _runge_kutta(rk.HEUN, 2, "karras2022", "Algorithm 1 in (eps, rho)", "quadratic"),
        "midpoint": _runge_kutta(rk.MIDPOINT, 2, "hairer1993", "II.1, eq. 1.3", "quadratic"),
        "rk3": _runge_kutta(rk.RK3, 3, "kutta1901", "Hairer et al. 1993, II.1", "quadratic"),
        "rk4": _runge_kutta(rk.RK4, 4, "kutta1901", "Hairer et al. 1993, Table II.1.2", "quadratic"),
        "rk4_38": _runge_kutta(rk.RK4_38, 4, "kutta1901", "Hairer et al. 1993, Table II.1.2", "quadratic"),
        "ab2": _adams(2, "flow", "tau", "quadratic"),
        "ab3": _adams(3, "flow", "t", "quadratic"),
        "ab4": _adams(4, "flow", "t", "quadratic"),
        "abm2": _adams(2, "flow", "t", "quadratic", corrector=3),
        "abm3": _adams(3, "flow", "t", "quadratic", corrector=4),
        "abm4": _adams(4, "flow", "t", "quadratic", corrector=5),
        "deis_1": _deis(1),
        "deis_2": _deis(2),
        "deis_3": _deis(3),
        "deis_4": _deis(4),
        "ipndm": Method(multistep.ipndm, 2, "zhang2023", "iPNDM", (("eps", "rho"),), "quadratic", min_nfe=5),
        "dpmpp_2m": _dpmpp_multistep(2, "Algorithm 2"),
        "dpmpp_3m": _dpmpp_multistep(3, "authors' code"),
        "unipc_2": _unipc(2),
        "unipc_3": _unipc(3),
        "unipc_4": _unipc(4),
        "dpm_2": _dpm_solver(2, _EPS, "lu2022a", "Algorithm 1, r1 = 1/2"),
        "dpm_3": _dpm_solver(3, _EPS, "lu2022a", "Algorithm 2, r1 = 1/3, r2 = 2/3"),
        "dpm_fast": _dpm_solver(3, _EPS, "lu2022a", "DPM-Solver-fast", singlestep.fast),
        "dpmpp_2s": _dpm_solver(2, _X0, "lu2022b", "Algorithm 1, r = 1/2"),
        "dpmpp_3s": _dpm_solver(3, _X0, "lu2022b", "authors' code"),
        "lms": Method(linear.lms, 4, "crowson2022", "sample_lms", _RHO, "quadratic", min_nfe=5, args={"order": 4}),
        "pndm": Method(
            linear.pndm,
            2,
            "liu2022",
            "F-PNDM: Algorithm 2, eq. 12, 13",
            (("eps", "t"),),
            "quadratic",
            min_nfe=13,
            split=partial(linear.with_start, [4, 4, 4]),
        ),
        "plms": Method(
            linear.pndm,
            2,
            "liu2022",
            "eq. 12; diffusers' skip_prk_steps",
            (("eps", "t"),),
            "quadratic",
            min_nfe=6,
            split=partial(linear.with_start, [2]),
        ),
        "heun_churn": Method(
            edm.heun_churn,
            2,
            "karras2022",
            "Algorithm 2; Table 5, ImageNet-64",
            _RHO,
            "quadratic",
            stages=2,
            min_nfe=3,
            args={"s_churn": 40.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003},
            stochastic=True,
            noise="s_churn",
            overdispersed=lambda args: args["s_noise"] > 1,
        ),
        "euler_ancestral": Method(
            sde.euler_ancestral,
            1,
            "crowson2022",
            "sample_euler_ancestral",
            _X0,
            "quadratic",
            args={"eta": 1.0},
            stochastic=True,
            noise="eta",
        ),
        "sde_dpmpp_2m": Method(
            sde.sde_dpmpp_2m,
            2,
            "lu2022b",
            "SDE-DPM-Solver++(2M)",
            _X0,
            "quadratic",
            min_nfe=3,
            stochastic=True,
        ),
        "sde_dpmpp_3m": Method(
            sde.sde_dpmpp_3m,
            2,
            "crowson2022",
            "sample_dpmpp_3m_sde",
            _X0,
            "quadratic",
            min_nfe=4,
            args={"eta": 1.0},
            stochastic=True,
        ),
        "sa_solver": Method(
            sde.sa_solver,
            2,
            "xue2023",
            "eq. 15 and 18, data prediction",
            _X0,
            "quadratic",
            min_nfe=4,
            args={
                "tau": 1.0,
                "predictor": 3,
                "corrector": 3,
                "s_tmin": 0.0,
                "s_tmax": None,
                "form": "exact",
                "orders": "",
            },
            stochastic=True,
            noise="tau",
        ),
    }
)
