"""Observed orders of convergence, float64, in the state before the closed-form last row.

A multistep method ramps its order up from 1, so its grid starts with steps that double from tiny to full size: then
what is measured is the full rows and not the first one.
"""

from collections.abc import Callable

import numpy as np
import pytest
from exact import gaussian, gaussian_flow, mixture, run

from odediff import schedule as schedules
from odediff.analysis import gaussian_moments
from odediff.methods import METHODS, plan
from odediff.plans import Plan

FLOW = schedules.flow()
LINEAR = schedules.linear()
ENDS = (1.5, -0.9)  # log rho; symmetric ends would cancel the midpoint rule's leading error on Gaussian data
CONSTANT_WEIGHTS = ("ipndm", "pndm", "plms")  # made for equal steps: a ramp of tiny ones would be another method
CENTRES = np.array([[1.0, 0.5], [-0.8, 0.3], [0.1, -1.2]])


def grid(name: str, space: str, steps: int, order: int) -> np.ndarray:
    """Times of `steps` full steps, uniform in the variable that the method runs in, between two fixed noise levels."""
    variable = {frame[0]: frame[1] for frame in reversed(METHODS[name].frames)}[space]
    variable = "tau" if variable == "t" else variable  # on the flow schedule t is tau
    at: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "rho": np.log,
        "lam": lambda s: -s,
        "tau": lambda s: np.log(s) - np.log1p(-s),
        "phi": lambda s: np.log(np.tan(s)),
    }  # the variable -> log rho
    s0, s1 = {
        "rho": np.exp(ENDS),
        "lam": -np.array(ENDS),
        "tau": 1 / (1 + np.exp(-np.array(ENDS))),
        "phi": np.arctan(np.exp(ENDS)),
    }[variable]
    full = np.linspace(0, 1, steps + 1)
    if METHODS[name].stages == 1 and order > 1 and name not in CONSTANT_WEIGHTS:
        doublings = int(np.ceil((order - 1) / 2 * np.log2(steps))) + 6
        full = np.concatenate([[0], full[1] * 2.0 ** np.arange(-doublings, 0), full[1:]])
    t = schedules.from_identity(FLOW.identity).t_of_lam(-at[variable](s0 + full * (s1 - s0)))
    return np.asarray(t)


def last_state(name: str, space: str, steps: int, order: int, denoise, x: np.ndarray) -> tuple[np.ndarray, Plan]:  # type: ignore[no-untyped-def]
    t = grid(name, space, steps, order)
    most = (len(t) - 1) * 4 + 1
    nfe = next(n for n in range(most, 0, -1) if len(METHODS[name].layout(n)) == len(t))  # only full steps, the last row
    made = plan(name, FLOW, nfe, t, space=space)
    return run(made, denoise, x)[-2], made


def observed(errors: list[float]) -> float:
    """Order from successive halvings: the last."""
    return float(np.log2(errors[-2] / errors[-1]))


DETERMINISTIC = [name for name in METHODS if not plan(name, LINEAR).stochastic]
CASES = [(name, space) for name in DETERMINISTIC for space in dict.fromkeys(frame[0] for frame in METHODS[name].frames)]
STEPS = {1: (256, 512), 2: (512, 1024), 3: (128, 256), 4: (128, 256), 5: (256, 512)}
# Still settling at the usual steps; lms on equal steps in rho has long ones where rho is small.
LATE = {
    ("abm2", "flow"): (512, 1024),
    ("ab4", "v"): (256, 512),
    ("deis_4", "eps"): (256, 512),
    ("lms", "eps"): (512, 1024),
}


@pytest.mark.parametrize(("name", "space"), CASES)
def test_order_on_gaussian_data(name: str, space: str) -> None:
    order, mean, std = METHODS[name].order, 0.4, 0.6
    x = np.array([-1.5, -0.2, 0.7, 2.0])
    errors = []
    for steps in LATE.get((name, space), STEPS[order]):
        got, made = last_state(name, space, steps, order, gaussian(mean, std), x)
        ends = [(made.alpha[i], made.sigma[i]) for i in (0, -2)]
        errors.append(np.abs(got - gaussian_flow(x, ends[0], ends[1], mean, std)).max())
    # along y = sqrt(v + q^2) the midpoint rule's leading error, y''' + 3 f_y y'', vanishes: one order more, only here
    want = 3 if name == "midpoint" else order
    assert observed(errors) == pytest.approx(want, abs=0.25), errors


X = np.array([[-1.5, 0.4], [0.9, 1.3], [0.2, -0.6]])


def integrate(steps: int) -> np.ndarray:
    """The mixture's flow by Runge-Kutta 4 on dx/dt = eps - x0, written out and independent of the library."""
    denoise = mixture(CENTRES, 0.5)
    x, (t, end) = X, 1 / (1 + np.exp(-np.array(ENDS)))
    h = (end - t) / steps

    def velocity(x: np.ndarray, t: float) -> np.ndarray:
        return (x - denoise(x, 1 - t, t)) / t

    for _ in range(steps):
        k1 = velocity(x, t)
        k2 = velocity(x + h / 2 * k1, t + h / 2)
        k3 = velocity(x + h / 2 * k2, t + h / 2)
        x, t = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + velocity(x + h * k3, t + h)), t + h
    return x


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    fine = integrate(2000)
    assert np.abs(fine - integrate(1500)).max() < 1e-11
    return fine


@pytest.mark.parametrize(("name", "space"), CASES)
def test_order_on_a_mixture(name: str, space: str, truth: np.ndarray) -> None:
    order, denoise = METHODS[name].order, mixture(CENTRES, 0.5)
    steps = LATE.get((name, space), STEPS[order])
    # a typical entry: where two leading terms all but cancel, one entry settles later than the rounding allows
    errors = [float(np.median(np.abs(last_state(name, space, n, order, denoise, X)[0] - truth))) for n in steps]
    assert observed(errors) == pytest.approx(order, abs=0.25), errors


WEAK: list[tuple[str, dict[str, object]]] = [
    ("ddpm", {"variance": "fixed_small"}),
    ("ddpm", {"variance": "fixed_large"}),
    ("ddim", {"eta": 0.5}),
    ("euler_ancestral", {"eta": 0.7}),
    ("sde_dpmpp_2m", {}),
    ("sde_dpmpp_3m", {}),
    ("sa_solver", {}),
    ("sa_solver", {"predictor": 2, "corrector": 0, "form": "few_steps"}),
    ("sa_solver", {"predictor": 3, "corrector": 1, "form": "few_steps"}),
    ("heun_churn", {"s_noise": 1.0}),
]


@pytest.mark.parametrize(("name", "args"), WEAK)
def test_weak_order_of_stochastic_methods(name: str, args: dict[str, object]) -> None:
    """Mean and variance of the last state but one converge to the data's diffused moments."""
    mean, variance, errors, method = 0.3, 0.25, [], METHODS[name]
    for steps in (400, 800):
        t = np.linspace(999, 10, steps)
        p = plan(name, LINEAR, (steps - 1) * method.stages + 1, t, **args)
        m, v = gaussian_moments(p, mean, variance)
        start, end = (np.array([p.alpha[i], p.sigma[i]]) for i in (0, -2))
        want = end[0] ** 2 * variance + end[1] ** 2
        errors.append(abs(v[-2] - want) + abs(m[-2] - end[0] * mean))
        assert start[0] < 0.01
    assert observed(errors) == pytest.approx(method.order, abs=0.25), errors


def test_ipndm_is_of_order_4_only_where_steps_are_equal_in_rho() -> None:
    """Its rows are Adams-Bashforth's with constant weights, exact for cubics in rho on equal steps, and only there."""
    t = FLOW.t_of_rho(np.linspace(3.0, 0.3, 12))
    p = plan("ipndm", FLOW, 12, t)
    q = plan("ab4", FLOW, 12, t, space="eps", variable="rho")
    np.testing.assert_allclose(p.b, q.b, rtol=1e-9, atol=1e-12)
    uneven = FLOW.t_of_lam(np.linspace(-1, 1, 12))
    assert (
        np.abs(plan("ipndm", FLOW, 12, uneven).b - plan("ab4", FLOW, 12, uneven, space="eps", variable="rho").b).max()
        > 0.01
    )
