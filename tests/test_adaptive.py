"""torchdiffeq by name: the right ODE in every variable, an exact count, and a budget that ends in a picture."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from exact import SCHEDULES, Denoiser, gaussian, gaussian_flow, mixture, run
from torch import Tensor

import odediff
from odediff import plan, sample
from odediff.adaptive import ADAPTIVE, FIXED, VARIABLES, BudgetExceeded, solve
from odediff.noise import normal
from odediff.philox import streams
from odediff.schedule import Array, Schedule
from odediff.spaces import space_pair

LINEAR, EDM, FLOW = (SCHEDULES[name] for name in ("linear", "edm", "flow"))
GAUSSIAN = gaussian(0.2, 0.5)
MIXTURE = mixture(np.array([[1.0, 0.5], [-0.8, 0.3], [0.1, -1.0]]), 0.3)


class Network:
    """An exact denoiser that returns any prediction, counts, and remembers what it was given."""

    def __init__(self, schedule: Schedule = LINEAR, denoise: Denoiser = GAUSSIAN, prediction: str = "v") -> None:
        self.schedule, self.denoise, self.prediction, self.calls = schedule, denoise, prediction, 0
        self.states: list[Tensor] = []
        self.times: list[float] = []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        self.states.append(x.clone())
        self.times.append(float(t[0]))
        alpha, sigma = scales(self.schedule, float(t[0]))
        state = x.double().numpy()
        x0 = self.denoise(state, alpha, sigma)
        u, w = space_pair(self.prediction, np.float64(alpha), np.float64(sigma))
        return torch.from_numpy(u * x0 + w * (state - alpha * x0) / sigma).to(x.dtype)


def model(net: Callable[..., Any], schedule: Schedule | None = None, **options: Any) -> odediff.Model:
    if isinstance(net, Network):
        schedule, options = net.schedule, {"prediction": net.prediction, **options}
    return odediff.Model(net, **{"schedule": schedule or LINEAR, "shape": (2,), "range": None, **options})


def unit(n: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).to(dtype)


def scales(schedule: Schedule, t: float) -> tuple[float, float]:
    return float(schedule.alpha(t)), float(schedule.sigma(t))


def start(schedule: Schedule, noise: Tensor) -> Array:
    return np.hypot(*scales(schedule, schedule.t_max)) * noise.numpy()


CLOSED_FORM = [
    ("linear", "rho"),
    ("edm", "t"),
    ("edm", "phi"),
    ("flow", "t"),
    ("zero_snr", "phi"),
]


@pytest.mark.parametrize("solver", ADAPTIVE)
@pytest.mark.parametrize(("name", "variable"), CLOSED_FORM)
def test_adaptive_methods_reach_the_closed_form_flow(solver: str, name: str, variable: str) -> None:
    """x(t_min) of N(0.2, 0.5^2) data is known; the error in x0 falls 20 times from tolerance 1e-2 to 1e-5."""
    schedule, noise = SCHEDULES[name], unit()
    begin, end = scales(schedule, schedule.t_max), scales(schedule, schedule.t_min)
    want = GAUSSIAN(gaussian_flow(start(schedule, noise), begin, end, 0.2, 0.5), *end)
    errors = []
    for tolerance in (1e-2, 1e-5):
        net = Network(schedule)
        got = solve(model(net), solver, variable=variable, rtol=tolerance, atol=tolerance, noise=noise)
        errors.append(float(np.abs(got.x.numpy() - want).max()))
        assert got.nfe == net.calls
    assert errors[1] < (5e-3 if solver == "fehlberg2" else 1e-3)  # its error estimate is of the order it propagates
    assert errors[1] < max(errors[0] / 20, 1e-5)


def test_tables_are_integrated_over_t_too_across_their_kinks() -> None:
    """lam(t) of a table has a kink at every step; a tight tolerance steps over them all the same."""
    net, noise = Network(LINEAR), unit()
    end = scales(LINEAR, 0.0)
    want = GAUSSIAN(gaussian_flow(start(LINEAR, noise), scales(LINEAR, 999.0), end, 0.2, 0.5), *end)
    got = solve(model(net), "bosh3", variable="t", rtol=1e-5, atol=1e-5, noise=noise)
    assert float(np.abs(got.x.numpy() - want).max()) < 1e-3


STAGES = {"dopri5": 6, "dopri8": 13, "bosh3": 3, "fehlberg2": 2, "adaptive_heun": 1}  # new evaluations a step


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_accepted_and_rejected_steps_account_for_every_evaluation(solver: str) -> None:
    """Two to choose the first step, those of every step tried, and one at the end."""
    net = Network(denoise=MIXTURE)
    got = solve(model(net), solver, variable="rho", rtol=1e-4, atol=1e-4, noise=unit())
    assert got.accepted > 3 and got.rejected > 0
    assert got.nfe == net.calls == 3 + STAGES[solver] * (got.accepted + got.rejected)


@pytest.mark.parametrize(("name", "variable"), CLOSED_FORM)
@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-4])
def test_the_last_step_ends_at_t_min_not_beyond(name: str, variable: str, tolerance: float) -> None:
    """Beyond it no network was trained: bosh3's last stages, at 1/2, 3/4 and 1, have times that fall to t_min."""
    net = Network(SCHEDULES[name], MIXTURE)
    solve(model(net), "bosh3", variable=variable, rtol=tolerance, atol=tolerance, noise=unit())
    assert net.times[-4] > net.times[-3] > net.times[-2] and net.times[-1] == net.schedule.t_min
    assert net.times[-2] == pytest.approx(net.schedule.t_min, rel=1e-9, abs=1e-9)
    assert all(net.schedule.t_min <= t <= net.schedule.t_max for t in net.times)


# Butcher tableaus of torchdiffeq's fixed methods: Hairer et al. 1993, II.1 (Heun's third order: Table II.1.1).
TABLEAUS: dict[str, tuple[list[list[float]], list[float]]] = {
    "torchdiffeq:euler": ([[]], [1]),
    "torchdiffeq:midpoint": ([[], [1 / 2]], [0, 1]),
    "torchdiffeq:heun2": ([[], [1]], [1 / 2, 1 / 2]),
    "torchdiffeq:heun3": ([[], [1 / 3], [0, 2 / 3]], [1 / 4, 0, 3 / 4]),
    "torchdiffeq:rk4": ([[], [1 / 3], [-1 / 3, 1], [1, -1, 1]], [1 / 8, 3 / 8, 3 / 8, 1 / 8]),
}


def ode(schedule: Schedule, variable: str, denoise: Denoiser) -> tuple[Callable[[float], float], Any, Any]:
    """(s of t, slope of (s, y), x of (s, y)): the module's table of equations, derivatives over t by differences."""
    s_of_t = {"t": float, "rho": lambda t: float(schedule.rho(t)), "phi": lambda t: np.arctan(float(schedule.rho(t)))}
    t_of_s = {"t": float, "rho": schedule.t_of_rho, "phi": lambda s: schedule.t_of_rho(np.tan(s))}[variable]
    scale = {"t": lambda a, s: 1.0, "rho": lambda a, s: a, "phi": np.hypot}[variable]

    def state(s: float, y: Array) -> Array:
        return scale(*scales(schedule, float(t_of_s(s)))) * y

    def slope(s: float, y: Array) -> Array:
        t, x = float(t_of_s(s)), state(s, y)
        alpha, sigma = scales(schedule, t)
        x0 = denoise(x, alpha, sigma)
        eps = (x - alpha * x0) / sigma
        if variable == "rho":
            return eps
        if variable == "phi":
            return np.cos(s) * eps - np.sin(s) * x0
        (a1, s1), (a0, s0) = scales(schedule, t + 1e-4), scales(schedule, t - 1e-4)
        return (a1 - a0) / 2e-4 * x0 + (s1 - s0) / 2e-4 * eps

    return s_of_t[variable], slope, state


GRIDS = {  # ends, stages and their halves and thirds keep off the kinks of the table, for the differences' sake
    "linear": [998.5, 700.3, 333.9, 50.23, 3.61],
    "edm": [79.9, 20.0, 3.0, 0.4, 0.01],
    "flow": [0.99, 0.8, 0.5, 0.2, 0.01],
}


@pytest.mark.parametrize("solver", FIXED)
@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("name", GRIDS)
def test_fixed_methods_are_their_tableaus_in_every_variable(solver: str, variable: str, name: str) -> None:
    """By a Runge-Kutta loop in numpy, written from the module's table of equations, with a clipped denoiser too."""
    schedule, t = SCHEDULES[name], GRIDS[name]
    a, b = TABLEAUS[solver]
    for clip in (None, (-0.6, 0.4)):
        denoise = MIXTURE if clip is None else lambda *args: np.clip(MIXTURE(*args), -0.6, 0.4)
        s_of_t, slope, state = ode(schedule, variable, denoise)
        s = [s_of_t(value) for value in t]
        y = np.hypot(*scales(schedule, t[0])) * unit().numpy() / state(s[0], np.ones(1))
        for s0, s1 in zip(s, s[1:], strict=False):
            k: list[Array] = []
            for row in a:
                place = y + (s1 - s0) * sum(w * d for w, d in zip(row, k, strict=True))
                k.append(slope(s0 + sum(row) * (s1 - s0), place))
            y = y + (s1 - s0) * sum(w * d for w, d in zip(b, k, strict=True))
        want = denoise(state(s[-1], y), *scales(schedule, t[-1]))
        net = Network(schedule, MIXTURE)
        got = solve(model(net), solver, nfe=4 * len(b) + 1, grid=t, variable=variable, noise=unit(), clip=clip)
        assert got.nfe == net.calls == 4 * len(b) + 1
        np.testing.assert_allclose(got.x.numpy(), want, rtol=0, atol=1e-7 if variable == "t" else 1e-11)


TWINS = {"euler": "euler", "midpoint": "midpoint", "heun2": "heun", "rk4": "rk4_38"}


@pytest.mark.parametrize("theirs", TWINS)
@pytest.mark.parametrize("schedule", [LINEAR, EDM], ids=["linear", "edm"])
@pytest.mark.parametrize(("grid", "steps"), [("quadratic", 5), ("quadratic", 30), ("logsnr", 12), (None, 6)])
def test_our_plans_in_eps_and_rho_are_torchdiffeqs_methods(
    theirs: str, schedule: Schedule, steps: int, grid: Any
) -> None:
    """Two independent roads to the same float64 numbers, also on a grid that ends below t_min, where lam diverges."""
    nfe = steps * FIXED[f"torchdiffeq:{theirs}"] + 1
    if grid is None:
        share = np.array([1.0, 0.6, 0.1, 0.01, 0.0012, 0.0005, 0.0002])
        grid = schedule.t_end + (schedule.t_max - schedule.t_end) * share * (1 if schedule is LINEAR else share)
        assert np.sum(grid < schedule.t_min) >= 2
    got = solve(
        model(Network(schedule, MIXTURE)), f"torchdiffeq:{theirs}", variable="rho", nfe=nfe, grid=grid, noise=unit()
    )
    p = plan(TWINS[theirs], schedule, nfe, grid, space="eps")
    np.testing.assert_allclose(
        got.x.numpy(), odediff.Sampler(model(Network(schedule, MIXTURE)), p)(unit()).numpy(), rtol=0, atol=1e-10
    )
    assert got.nfe == nfe


@pytest.mark.parametrize(("name", "grid"), [("edm", [40.0, 9.0, 1.0, 0.1]), ("flow", [0.9, 0.6, 0.3, 0.1])])
def test_a_grid_may_start_anywhere(name: str, grid: list[float]) -> None:
    """The start is scaled to the first state of the grid, as a plan's is: hypot(alpha, sigma) there."""
    net = Network(SCHEDULES[name], MIXTURE)
    want = sample(model(net), plan("euler", net.schedule, 4, grid, space="eps"), noise=unit())
    for variable in VARIABLES:
        net.states.clear()
        got = solve(model(net), "torchdiffeq:euler", nfe=4, grid=grid, variable=variable, noise=unit()).x
        torch.testing.assert_close(net.states[0], np.hypot(*scales(net.schedule, grid[0])) * unit(), rtol=1e-14, atol=0)
        if variable == "rho":
            torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", FIXED)
def test_fixed_methods_meet_a_budget_exactly_or_name_the_nearest(solver: str) -> None:
    stages = FIXED[solver]
    possible = [steps * stages + 1 for steps in range(1, 40)]
    for nfe in range(1, 22):
        net = Network()
        if nfe in possible:
            assert solve(model(net), solver, nfe=nfe, noise=unit()).nfe == net.calls == nfe
            continue
        near = sorted([*[p for p in possible if p < nfe][-1:], *[p for p in possible if p > nfe][:1]])
        with pytest.raises(ValueError, match=re.escape(f"{solver} takes {stages} evaluations a step")) as error:
            solve(model(net), solver, nfe=nfe, noise=unit())
        assert str(error.value).endswith(f"nfe={nfe} does not fit; nearest: {near}") and net.calls == 0


@pytest.mark.parametrize("nfe", [0, -3, 9.0, True])
def test_an_impossible_number_of_evaluations_is_refused(nfe: Any) -> None:
    with pytest.raises(ValueError, match=rf"nfe={nfe!r} (does not fit|must be a whole number)"):
        solve(model(Network()), "torchdiffeq:rk4", nfe=nfe, n=1)


def test_all_variables_meet_at_a_tight_tolerance_also_with_clipping() -> None:
    """A clipped network is another ODE, the same one in every variable; eps is recomputed from the clamped x0."""
    for clip in (None, (-0.6, 0.4)):
        net = Network(EDM, MIXTURE)
        x = [
            solve(
                model(net), "dopri5", variable=variable, rtol=1e-6, atol=1e-6, noise=unit(), clip=clip, max_nfe=5000
            ).x
            for variable in VARIABLES
        ]
        fine = plan("rk4", EDM, 401, "karras", space="flow")
        x.append(odediff.Sampler(model(net), fine, clip=clip)(unit()))
        for other in x[1:]:
            torch.testing.assert_close(other, x[0], rtol=0, atol=1e-3)


def test_defaults_and_the_front_door() -> None:
    net, noise = Network(denoise=MIXTURE), unit()
    got = solve(model(net), noise=noise)
    assert net.calls == got.nfe
    same = solve(model(net), "dopri5", rtol=1e-3, atol=1e-3, variable="phi", max_nfe=1000, noise=noise)
    assert torch.equal(got.x, same.x) and got.nfe == same.nfe
    assert torch.equal(sample(model(net), "dopri5", noise=noise), got.x)
    tight = solve(model(net), "bosh3", rtol=1e-5, atol=1e-6, noise=noise)
    assert torch.equal(sample(model(net), "bosh3", rtol=1e-5, atol=1e-6, noise=noise), tight.x)
    net.calls = 0
    fixed = sample(model(net), "torchdiffeq:heun3", 13, grid="karras", noise=noise)
    assert net.calls == 13
    assert torch.equal(fixed, solve(model(net), "torchdiffeq:heun3", nfe=13, grid="karras", noise=noise).x)
    assert torch.equal(sample(model(net, range=(-0.5, 0.5)), "dopri5", noise=noise), got.x.clamp(-0.5, 0.5))


@pytest.mark.parametrize("solver", ["dopri5", "bosh3", "torchdiffeq:rk4"])
def test_float32_is_the_default_and_close_to_float64(solver: str) -> None:
    options: dict[str, Any] = {"nfe": 21} if solver in FIXED else {"rtol": 1e-5, "atol": 1e-5}
    single, double = (
        solve(model(Network(EDM, MIXTURE)), solver, noise=unit(dtype=dtype), **options).x
        for dtype in (torch.float32, torch.float64)
    )
    assert single.dtype == torch.float32 and double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-4)
    assert solve(model(Network()), solver, n=2, seed=0, **options).x.dtype == torch.float32


@pytest.mark.parametrize("variable", VARIABLES)
def test_seeds_start_the_flow(variable: str) -> None:
    """A fixed-step method takes each sample by itself: the list's samples are those of its seeds, to the bit."""
    draw = lambda seed, n=None: solve(model(Network()), "torchdiffeq:heun3", nfe=13, variable=variable, seed=seed, n=n)  # noqa: E731
    x = draw([4, 2**63, 0]).x
    assert torch.equal(x, torch.cat([draw(seed).x for seed in (4, 2**63, 0)]))
    assert torch.equal(draw(4, 2).x[0], x[0]) and not torch.equal(draw(4, 2).x[1], x[1])
    noise = normal(streams([4, 2**63, 0]), 0, (2,), device=torch.device("cpu"), dtype=torch.float32)
    assert torch.equal(x, solve(model(Network()), "torchdiffeq:heun3", nfe=13, variable=variable, noise=noise).x)
    with pytest.raises(ValueError, match="seed holds 2 seeds for n = 3 samples"):
        draw([4, 5], 3)


@pytest.mark.parametrize("variable", ["rho", "phi"])
@pytest.mark.parametrize("solver", ADAPTIVE)
def test_the_budget_is_enough_to_the_last_evaluation(solver: str, variable: str) -> None:
    """What takes N evaluations succeeds with max_nfe = N, to the bit, and fails with N - 1, having used N - 1."""
    net, noise = Network(EDM, MIXTURE), unit()
    free = solve(model(net), solver, variable=variable, noise=noise)
    again = solve(model(net), solver, variable=variable, noise=noise, max_nfe=free.nfe)
    assert torch.equal(again.x, free.x)
    for short in (1, 2):
        net.calls = 0
        with pytest.raises(BudgetExceeded) as caught:
            solve(model(net), solver, variable=variable, noise=noise, max_nfe=free.nfe - short)
        assert caught.value.nfe == net.calls == free.nfe - short


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("max_nfe", [4, 9, 17, 40, 41])
def test_a_budget_that_runs_out_carries_the_best_state(max_nfe: int, variable: str) -> None:
    """(t, x) lies on the closed-form flow, and the samples are the denoiser's answer there, in the model's range."""
    net, noise = Network(EDM, prediction="x0"), unit()
    wrapped = model(net, range=(-0.3, 0.6))
    with pytest.raises(odediff.BudgetExceeded, match=rf"max_nfe = {max_nfe} .*raise max_nfe or loosen") as caught:
        solve(wrapped, "dopri5", variable=variable, rtol=1e-9, atol=1e-9, max_nfe=max_nfe, noise=noise)
    error = caught.value
    assert error.nfe == net.calls == max_nfe
    assert error.t == pytest.approx(80.0, rel=1e-12) if max_nfe < 9 else EDM.t_min < error.t < 79.99
    here = scales(EDM, error.t)
    want = gaussian_flow(start(EDM, noise), scales(EDM, 80.0), here, 0.2, 0.5)
    np.testing.assert_allclose(error.x.numpy(), want, rtol=1e-7)
    answer = GAUSSIAN(error.x.numpy(), *here).clip(-0.3, 0.6)
    np.testing.assert_allclose(error.samples.numpy(), answer, rtol=0, atol=1e-12)
    assert f"t = {error.t:.3f}" in str(error)


def test_sample_raises_the_same_and_leaves_the_network_as_it_was() -> None:
    class Rough(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            assert not self.training
            return torch.sign(torch.sin(1e6 * x))

    net = Rough()
    with pytest.raises(BudgetExceeded) as caught:
        sample(odediff.Model(net, schedule=LINEAR, shape=(2,)), "dopri5", n=3, seed=0, max_nfe=50)
    assert net.training
    samples = caught.value.samples
    assert samples.shape == (3, 2) and samples.isfinite().all() and float(samples.abs().max()) <= 1


@pytest.mark.parametrize(("solver", "max_nfe"), [("dopri5", None), *((solver, 150) for solver in ADAPTIVE)])
def test_a_network_without_a_smooth_piece_ends_at_the_budget(solver: str, max_nfe: int | None) -> None:
    calls = 0

    def rough(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.sign(torch.sin(1e6 * x) + torch.sin(1e4 * t[:, None]))

    with pytest.raises(BudgetExceeded) as caught:
        solve(model(rough), solver, rtol=1e-7, atol=1e-7, noise=unit(), max_nfe=max_nfe)
    assert caught.value.nfe == calls == (1000 if max_nfe is None else max_nfe)


def test_a_step_that_underflows_ends_before_the_budget_with_the_best_state() -> None:
    net = Network(EDM)
    noisy = lambda x, t: net(x, t) + (0.0 if t[0] > 20 else 1e12 * torch.sign(torch.sin(1e6 * x)))  # noqa: E731
    with pytest.raises(BudgetExceeded, match="torchdiffeq gave up after .*underflow in dt") as caught:
        solve(model(noisy, EDM, prediction="v", range=(-1.0, 1.0)), rtol=1e-9, atol=1e-9, noise=unit(), max_nfe=5000)
    error = caught.value
    assert error.nfe == net.calls < 5000
    want = gaussian_flow(start(EDM, unit()), scales(EDM, 80.0), scales(EDM, error.t), 0.2, 0.5)
    np.testing.assert_allclose(error.x.numpy(), want, rtol=1e-6)
    assert 19 < error.t < 21 and error.samples.isfinite().all() and float(error.samples.abs().max()) <= 1


def test_an_assertion_of_the_network_is_its_own_not_a_budget() -> None:
    def careful(x: Tensor, t: Tensor) -> Tensor:
        assert t[0] > 500, "this network was trained above 500 only"
        return 0.3 * x

    with pytest.raises(AssertionError, match="trained above 500 only"):
        solve(model(careful), noise=unit())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-20), (torch.float64, 1e-300)], ids=str)
def test_a_tolerance_below_rounding_is_named(dtype: torch.dtype, tolerance: float) -> None:
    """torchdiffeq's error norm overflows there, and its step is NaN."""
    with pytest.raises(ValueError, match=rf"rtol = {tolerance:g}"):
        solve(model(Network()), rtol=tolerance, atol=tolerance, noise=unit(dtype=dtype))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("solver", [*ADAPTIVE, *FIXED])
def test_a_network_that_breaks_ends_at_once(solver: str, value: float) -> None:
    """At the first evaluation that is not finite, with the time and the count of it."""
    times: list[float] = []

    def broken(x: Tensor, t: Tensor) -> Tensor:
        times.append(float(t[0]))
        return torch.full_like(x, value) if times[-1] < 600 else 0.3 * x

    options: dict[str, Any] = {"nfe": 25} if solver in FIXED else {"rtol": 1e-4, "atol": 1e-4}
    with pytest.raises(FloatingPointError) as caught:
        solve(model(broken), solver, noise=unit(), **options)
    assert f"returned NaN or inf at t = {times[-1]:.3f}, evaluation {len(times)}" in str(caught.value)
    assert times[-1] < 600 <= min(times[:-1]) and len(times) > 3


@pytest.mark.parametrize(
    ("solver", "options", "message"),
    [
        ("rk4", {}, "unknown solver 'rk4'; choose dopri5, dopri8, .*torchdiffeq:rk4"),
        ("dopri5", {"variable": "lam"}, "unknown variable 'lam'; choose t, rho, phi"),
        ("dopri5", {"nfe": 20}, "dopri5 chooses its own steps: it takes rtol, atol and max_nfe, not nfe or grid"),
        ("dopri5", {"grid": "karras"}, "dopri5 chooses its own steps"),
        ("dopri5", {"grid": np.array([900.0, 5.0])}, "dopri5 chooses its own steps"),
        ("torchdiffeq:rk4", {"rtol": 1e-3}, "torchdiffeq:rk4 is a fixed-step method: it takes nfe and grid, not rtol"),
        ("torchdiffeq:rk4", {"atol": 1e-3}, "fixed-step method"),
        ("torchdiffeq:rk4", {"max_nfe": 99}, "fixed-step method"),
        ("torchdiffeq:rk4", {"grid": "linear", "nfe": 9}, "unknown grid 'linear'"),
        ("torchdiffeq:rk4", {"nfe": 9, "grid": [900.0, 5.0]}, "start at 3 times"),
        ("dopri5", {"rtol": 0.0}, "rtol = 0.0 must be positive and finite"),
        ("dopri5", {"atol": -1.0}, "atol = -1.0 must be positive"),
        ("dopri5", {"rtol": float("nan")}, "rtol = nan must be positive"),
        ("dopri5", {"max_nfe": 3}, "max_nfe = 3.*an adaptive method needs at least 4"),
        ("dopri5", {"max_nfe": 10.5}, "max_nfe = 10.5"),
        ("dopri5", {"clip": True}, "clip=True needs a model with a range"),
        ("dopri5", {"n": 0}, "n = 0: how many"),
        ("dopri5", {"noise": torch.zeros(2, 3)}, r"noise has shape \(2, 3\), expected \(n, 2\)"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(solver: str, options: dict[str, Any], message: str) -> None:
    net = Network()
    with pytest.raises(ValueError, match=message):
        solve(model(net), solver, **options)
    assert net.calls == 0


@pytest.mark.parametrize("name", ["zero_snr", "flow"])
def test_rho_is_refused_where_it_is_infinite_and_only_there(name: str) -> None:
    schedule = SCHEDULES[name]
    net = Network(schedule, prediction="x0")
    for solver in ("dopri5", "torchdiffeq:euler"):
        with pytest.raises(ValueError, match='alpha = 0 at t.*singular at zero terminal SNR; use variable="phi"'):
            solve(model(net), solver, variable="rho", noise=unit())
    assert net.calls == 0
    grid = [0.9 * schedule.t_max, 0.5 * schedule.t_max, 0.1 * schedule.t_max]
    got = solve(model(net), "torchdiffeq:euler", nfe=3, grid=grid, variable="rho", noise=unit()).x
    want = run(plan("euler", schedule, 3, grid), GAUSSIAN, np.hypot(*scales(schedule, grid[0])) * unit().numpy())[-1]
    np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match='prediction "eps" is singular at zero terminal SNR; use "v" or "x0"'):
        solve(model(Network(schedule, prediction="eps")), noise=unit())
