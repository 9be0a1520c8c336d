"""The loop against a plan's definition, written in numpy (exact.py), and everything a caller can ask of `sample`."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from exact import SCHEDULES, Denoiser, mixture, run
from torch import Tensor

import odediff
from odediff import Sampler, plan, sample
from odediff import schedule as schedules
from odediff.noise import normal
from odediff.philox import Seed, streams
from odediff.running import finish
from odediff.schedule import Array, Schedule
from odediff.spaces import SPACES, space_pair

LINEAR = SCHEDULES["linear"]
CPU = torch.device("cpu")
MIXTURE = mixture(np.array([[1.0, 0.5], [-0.8, 0.3], [0.1, -1.0]]), 0.3)
PLANS: list[tuple[str, dict[str, Any]]] = [
    ("euler", {}),
    ("heun", {}),
    ("rk4", {}),
    ("ab3", {}),
    ("dpmpp_3m", {}),
    ("unipc_3", {}),
    ("ddim", {"eta": 0.5}),
    ("ddpm", {}),
    ("ddpm", {"variance": "fixed_large"}),
]


class Network:
    """An exact denoiser in disguise: returns eps, x0, v or flow; counts, and remembers what it was given."""

    def __init__(self, prediction: str = "eps", schedule: Schedule = LINEAR, denoise: Denoiser = MIXTURE) -> None:
        self.prediction, self.schedule, self.denoise = prediction, schedule, denoise
        self.times: list[Tensor] = []
        self.states: list[Tensor] = []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.times.append(t)
        self.states.append(x.clone())
        alpha, sigma = (float(value) for value in (self.schedule.alpha(float(t[0])), self.schedule.sigma(float(t[0]))))
        state = x.double().numpy()
        x0 = self.denoise(state, alpha, sigma)
        u, w = space_pair(self.prediction, np.float64(alpha), np.float64(sigma))
        return torch.from_numpy(u * x0 + w * (state - alpha * x0) / sigma).to(x.dtype)

    @property
    def calls(self) -> int:
        return len(self.times)


def model(net: Network | None = None, **options: Any) -> odediff.Model:
    net = Network() if net is None else net
    return odediff.Model(
        net, **{"schedule": net.schedule, "prediction": net.prediction, "shape": (2,), "range": None, **options}
    )


def unit(n: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).to(dtype)


def exact(p: odediff.Plan, noise: Tensor, seed: Seed = 0, denoise: Denoiser = MIXTURE) -> list[Array]:
    """Every state of the plan by the numpy executor, from the same noises."""
    batch = streams(seed, len(noise))
    rows = [normal(batch, i + 1, (2,), device=CPU, dtype=torch.float64).numpy() for i in range(p.nfe)]
    return run(p, denoise, np.hypot(p.alpha[0], p.sigma[0]) * noise.double().numpy(), np.array(rows))


def predictions(schedule: Schedule) -> list[str]:
    return [space for space in SPACES if space != "eps" or schedule.alpha(schedule.t_max) > 0]


@pytest.mark.parametrize(("name", "args"), PLANS, ids=str)
@pytest.mark.parametrize("schedule", [SCHEDULES[s] for s in ("linear", "edm", "flow")], ids=["linear", "edm", "flow"])
def test_the_loop_is_the_plan_whatever_the_network_predicts(
    name: str, args: dict[str, Any], schedule: Schedule
) -> None:
    """float64, to 1e-12: eps, x0, v and flow networks of one denoiser draw the same samples, those of the table."""
    p, noise = plan(name, schedule, 9, **args), unit()
    want = exact(p, noise, seed=3)[-1]
    for prediction in predictions(schedule):
        net = Network(prediction, schedule)
        x = Sampler(model(net), p)(noise, seed=3)
        assert x.dtype == torch.float64 and net.calls == 9
        np.testing.assert_allclose(x.numpy(), want, rtol=0, atol=1e-12, err_msg=prediction)
        np.testing.assert_array_equal([float(t[0]) for t in net.times], p.t)


@pytest.mark.parametrize(("name", "args"), PLANS, ids=str)
def test_float32_stays_close_to_float64(name: str, args: dict[str, Any]) -> None:
    p, noise = plan(name, LINEAR, 12, **args), unit(dtype=torch.float32)
    for prediction in SPACES:
        x = Sampler(model(Network(prediction)), p)(noise, seed=3)
        assert x.dtype == torch.float32
        np.testing.assert_allclose(x.numpy(), exact(p, noise, seed=3)[-1], rtol=0, atol=1e-5, err_msg=prediction)


@pytest.mark.parametrize(
    ("grid", "scale"), [(None, 80.0**2 + 1), ([40.0, 9.0, 1.0, 0.1], 40.0**2 + 1)], ids=["sigma_max", "from 40"]
)
def test_the_start_is_scaled_to_the_first_state_of_the_grid(grid: list[float] | None, scale: float) -> None:
    """EDM: x_T = hypot(1, sigma[0]) noise, unit-variance data with its noise, wherever the grid starts."""
    net, noise = Network(schedule=SCHEDULES["edm"]), unit()
    sample(model(net), "euler", 4, grid=grid, noise=noise)
    torch.testing.assert_close(net.states[0], scale**0.5 * noise, rtol=1e-14, atol=0)


def test_a_sampler_keeps_nothing_between_calls_even_interleaved() -> None:
    """Three samplers, each run within the rows of another and of itself, draw what they draw alone."""
    shared = model()
    samplers = [Sampler(shared, plan(name, LINEAR, 7)) for name in ("ab4", "unipc_3", "ddpm")]
    noise = unit(3)
    alone = [sampler(noise, seed=k) for k, sampler in enumerate(samplers)]
    assert all(torch.equal(sampler(noise, seed=k), alone[k]) for k, sampler in enumerate(samplers))

    def nested(depth: int) -> Callable[[int, Tensor, Tensor], None] | None:
        if depth == 2:
            return None

        def callback(i: int, x: Tensor, x0: Tensor) -> None:
            if i in (1, 4):
                for k, sampler in enumerate(samplers):
                    assert torch.equal(sampler(noise, seed=k, callback=nested(depth + 1)), alone[k])

        return callback

    for k, sampler in enumerate(samplers):
        assert torch.equal(sampler(noise, seed=k, callback=nested(0)), alone[k])


def test_a_range_clamps_the_result_and_no_range_does_not() -> None:
    noise = unit(40)
    free = sample(model(), "euler", 5, noise=noise)
    assert float(free.min()) < -1 and float(free.max()) > 0.7
    assert torch.equal(sample(model(range=(-1.0, 0.7)), "euler", 5, noise=noise), free.clamp(-1.0, 0.7))


def clip_denoiser(low: float, high: float) -> Denoiser:
    return lambda x, alpha, sigma: np.clip(MIXTURE(x, alpha, sigma), low, high)


@pytest.mark.parametrize(("name", "args"), PLANS, ids=str)
@pytest.mark.parametrize("schedule", [SCHEDULES[s] for s in ("linear", "edm", "flow")], ids=["linear", "edm", "flow"])
def test_clipping_is_a_clamped_denoiser_in_every_space(name: str, args: dict[str, Any], schedule: Schedule) -> None:
    """The definition: x0 clamped, eps = (x - alpha x0) / sigma recomputed from it, then the row as ever."""
    p, noise = plan(name, schedule, 9, **args), unit(12)
    want = exact(p, noise, 0, clip_denoiser(-0.6, 0.4))[-1]
    assert np.abs(want - exact(p, noise)[-1]).max() > 0.05  # the limits bite
    for prediction in predictions(schedule):
        x = Sampler(model(Network(prediction, schedule)), p, clip=(-0.6, 0.4))(noise, seed=0)
        np.testing.assert_allclose(x.numpy(), want, rtol=0, atol=1e-12, err_msg=prediction)


@pytest.mark.parametrize(("solver", "space"), [("euler", "eps"), ("euler", "v"), ("ddim", "x0")])
def test_clipped_ddim_by_hand(solver: str, space: str) -> None:
    """DDIM's loop in float64 with clip_x0 as in Ho et al.'s code, on a network that is no denoiser at all."""

    def net(x: Tensor, t: Tensor) -> Tensor:
        return 0.7 * torch.tanh(x.flip(1) - t[:, None] / 999) + 0.4 * x

    tau = [999, 700, 444, 100, 7]
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    x, clamped = unit(), 0
    for now, after in zip(tau, [*tau[1:], None], strict=True):
        a, b = float(abar[now]), 1.0 if after is None else float(abar[after])
        eps = net(x, torch.full((5,), float(now), dtype=torch.float64))
        x0 = (x - (1 - a) ** 0.5 * eps) / a**0.5
        clamped += int((x0.abs() > 1).sum())
        x0 = x0.clamp(-1, 1)
        x = b**0.5 * x0 + (1 - b) ** 0.5 * (x - a**0.5 * x0) / (1 - a) ** 0.5
    assert 10 < clamped < 45  # of 50
    wrapped = odediff.Model(net, schedule=LINEAR, shape=(2,), clip=True)
    ours = Sampler(wrapped, plan(solver, LINEAR, 5, tau, space=space))(unit())
    np.testing.assert_allclose(ours.numpy(), x.numpy(), rtol=0, atol=1e-12)


def test_clip_defaults_to_the_model_and_overrides_it() -> None:
    noise, limits = unit(12), (-0.6, 0.4)
    wrapped = {
        "free": odediff.Model(Network(), schedule=LINEAR, shape=(2,), range=limits),
        "clips": odediff.Model(Network(), schedule=LINEAR, shape=(2,), range=limits, clip=True),
        "unbounded": model(),
    }
    draw = lambda name, clip: sample(wrapped[name], "ab2", 8, noise=noise, clip=clip)  # noqa: E731
    free, clipped = draw("free", None), draw("free", True)
    assert float((free - clipped).abs().max()) > 0.01
    assert torch.equal(draw("clips", None), clipped) and torch.equal(draw("clips", False), free)
    assert torch.equal(draw("free", limits), clipped)
    assert torch.equal(draw("unbounded", limits).clamp(*limits), clipped)
    narrow = draw("unbounded", (-0.2, 0.1))
    assert torch.equal(draw("clips", (-0.2, 0.1)), narrow) and not torch.equal(narrow, clipped)
    with pytest.raises(ValueError, match=r"clip=True needs a model with a range; pass clip=\(low, high\)"):
        draw("unbounded", True)


@pytest.mark.parametrize("clip", [(1, -1), (0.0, 0.0), (1.0,), (float("nan"), 1.0), (None, 1), ("a", "b"), 5], ids=str)
@pytest.mark.parametrize("solver", ["rk4", "dopri5"])
def test_clip_limits_are_checked(clip: Any, solver: str) -> None:
    with pytest.raises(ValueError, match=r"clip must be True, False or \(low, high\) with low < high, got"):
        sample(model(), solver, clip=clip)


@pytest.mark.parametrize("clip", [None, (-0.6, 0.4)], ids=["free", "clipped"])
@pytest.mark.parametrize("name", ["rk4", "ab3", "ddpm"])
def test_the_callback_sees_every_state_and_predicted_x0(name: str, clip: tuple[float, float] | None) -> None:
    """After row i: (i, x[i+1], the x0 predicted at x[i]), still the same when the run is over and clamped."""
    p, noise = plan(name, LINEAR, 9), unit(12)
    seen: list[tuple[int, Tensor, Tensor]] = []
    gradients: list[bool] = []

    def callback(i: int, x: Tensor, x0: Tensor) -> None:
        seen.append((i, x, x0))
        gradients.append(torch.is_grad_enabled())

    result = Sampler(model(range=(-0.5, 0.5)), p, clip=clip)(noise, seed=2, callback=callback)
    denoise = MIXTURE if clip is None else clip_denoiser(*clip)
    states = exact(p, noise, 2, denoise)
    assert [i for i, _, _ in seen] == list(range(9)) and not any(gradients)
    for i, x, x0 in seen:
        np.testing.assert_allclose(x.numpy(), states[i + 1], rtol=0, atol=1e-12, err_msg=f"x of row {i}")
        want = denoise(states[i], p.alpha[i], p.sigma[i])
        np.testing.assert_allclose(x0.numpy(), want, rtol=0, atol=1e-12, err_msg=f"x0 of row {i}")
    assert float(np.abs(states[-1]).max()) > 0.5
    np.testing.assert_allclose(result.numpy(), states[-1].clip(-0.5, 0.5), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["euler", "ab3", "rk4", "ddpm"])
def test_a_callback_that_writes_cannot_change_the_samples(name: str) -> None:
    def vandal(i: int, x: Tensor, x0: Tensor) -> None:
        x.fill_(7.0)
        x0.fill_(-7.0)

    noise = unit()
    want = sample(model(), name, 11, noise=noise, seed=0)
    assert torch.equal(sample(model(), name, 11, noise=noise, seed=0, callback=vandal), want)


@pytest.mark.parametrize("solver", ["rk4", "dopri5"])
def test_progress_is_a_bar_without_warnings_or_nothing(solver: str, capsys: pytest.CaptureFixture[str]) -> None:
    noise = unit()
    quiet = sample(model(), solver, noise=noise)
    assert capsys.readouterr() == ("", "")
    assert torch.equal(sample(model(), solver, noise=noise, progress=True), quiet)
    out, err = capsys.readouterr()
    assert out == "" and solver in err and "eval" in err and ("20/20" in err) == (solver == "rk4")


def test_a_plan_for_another_schedule_is_refused() -> None:
    betas = np.linspace(1e-4, 0.02, 50)
    mine, other = schedules.from_betas(betas), schedules.from_betas(betas * 1.001)
    again = odediff.Plan.from_json(plan("rk4", mine, 6).to_json())
    assert sample(model(Network(schedule=mine)), again, n=1, seed=0).isfinite().all()
    with pytest.raises(ValueError, match=r"plan is for schedule .*betas.*; compile it with odediff.plan\(name, model"):
        Sampler(model(Network(schedule=other)), again)
    with pytest.raises(ValueError, match="'scaled_linear'.*the model .*'linear'"):
        Sampler(model(), plan("rk4", SCHEDULES["scaled_linear"], 6))


def test_networks_that_know_whole_times_only_get_whole_times() -> None:
    net = Network()
    whole = model(net, integer_times=True)
    with pytest.raises(ValueError, match=r"knows whole times only, the plan has t = \d+\.\d+; use plan\(..., snap=Tr"):
        Sampler(whole, plan("ab3", LINEAR, 12))
    with pytest.raises(ValueError, match="rk4 evaluates between the grid's times"):
        sample(whole, "rk4", n=1, seed=0)
    with pytest.raises(ValueError, match="knows whole times only: use a multistep method"):
        sample(whole, "dopri5", n=1, seed=0)
    assert net.calls == 0
    noise = unit()
    x = sample(whole, "ab3", 12, noise=noise)
    p = plan("ab3", LINEAR, 12, snap=True)
    assert all(t.dtype == torch.int64 for t in net.times) and [int(t[0]) for t in net.times] == p.t.tolist()
    assert [int(t[0]) for t in net.times] == np.rint(plan("ab3", LINEAR, 12).t).tolist()
    np.testing.assert_allclose(x.numpy(), exact(p, noise)[-1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["flow", "zero_snr"])
def test_a_singular_prediction_is_refused_with_the_remedy(name: str) -> None:
    """alpha(t_max) = 0: eps says nothing about x0 there, in whatever space the plan runs."""
    net = Network("eps", SCHEDULES[name])
    for solver in ("rk4", "dpmpp_2m", "ab2"):
        with pytest.raises(ValueError, match='alpha = 0 at row 0: prediction "eps" is singular.*use "v" or "x0"'):
            sample(model(net), solver, 10, n=1, seed=0)
    assert net.calls == 0
    start = float(SCHEDULES[name].t_max) * 0.99
    assert sample(model(net), "euler", 2, grid=[start, start / 2], n=1, seed=0).isfinite().all()


@pytest.mark.parametrize(
    ("value", "clip"), [(np.nan, None), (np.nan, (-1.0, 1.0)), (np.inf, None), (-np.inf, None)], ids=str
)
def test_a_network_that_breaks_is_an_error_not_a_picture(value: float, clip: tuple[float, float] | None) -> None:
    broken = lambda x, t: torch.where(t[:, None] < 500, value, x)  # noqa: E731
    wrapped = odediff.Model(broken, schedule=LINEAR, shape=(2,))
    with pytest.raises(FloatingPointError, match="6 of 6 values are not finite: the network returned NaN or inf"):
        sample(wrapped, "ab2", 8, n=3, seed=0, clip=clip)


P = plan("euler", LINEAR, 5)
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"solver": "rk4", "eta": 0.5}, "rk4 has no option 'eta'; it takes none"),
    ({"solver": "ddim", "eta": 1.5}, r"eta = 1.5 is outside \[0, 1\]"),
    ({"solver": "rk4", "rtol": 1e-3}, "a fixed-step solver takes no 'rtol'; remove it"),
    ({"solver": "rk4", "atol": 1e-3}, "a fixed-step solver takes no 'atol'"),
    ({"solver": P, "max_nfe": 9}, "a fixed-step solver takes no 'max_nfe'"),
    ({"solver": P, "nfe": 5}, "a compiled plan takes no 'nfe'"),
    ({"solver": P, "grid": "uniform"}, "a compiled plan takes no 'grid'"),
    ({"solver": P, "eta": 0.0}, "a compiled plan takes no 'eta'"),
    ({"solver": "dopri5", "nfe": 20}, "dopri5 chooses its own steps: it takes rtol, atol and max_nfe, not nfe"),
    ({"solver": "dopri5", "eta": 0.0}, "dopri5 takes no 'eta'"),
    ({"solver": "dopri5", "callback": print}, "dopri5 takes no 'callback'"),
    ({"solver": "torchdiffeq:rk4", "rtol": 1e-3}, "torchdiffeq:rk4 is a fixed-step method: it takes nfe and grid"),
    ({"solver": "rk5"}, "unknown solver 'rk5'; did you mean rk4 or rk3. choose .*rk4"),
    ({"solver": "dopri6"}, "unknown solver 'dopri6'; did you mean dopri8 or dopri5. choose .*dopri5"),
    ({"solver": ["rk4"]}, r"unknown solver \['rk4'\]; choose .*dopri5"),
    (
        {"solver": "heun_churn", "churn": 1.0},
        r"no option 'churn'; did you mean s_churn\? it takes \['s_churn', 's_noise',",
    ),
    ({"solver": "ddim", "guidence": 2.0}, r"ddim has no option 'guidence'; did you mean guidance\? it takes \['eta'\]"),
    ({"solver": "ddim", "etaa": 0.5}, r"ddim has no option 'etaa'; did you mean eta\? it takes"),
    ({"solver": "ab3", "varable": "t"}, r"ab3 has no option 'varable'; did you mean variable\? it takes none"),
    (
        {"guidence": 2.0},
        r"'guidence' belongs to a method, and none is named; did you mean guidance\? name one of METHODS",
    ),
    ({"space": "eps"}, "'space' belongs to a method, and none is named; name one of METHODS"),
    ({"eta": 0.5}, "'eta' belongs to a method, and none is named; name one of METHODS"),
    ({"solver": P, "guidence": 2.0}, r"a compiled plan takes no 'guidence'; did you mean guidance\?$"),
    ({"solver": "dopri5", "tresholds": 1}, r"dopri5 takes no 'tresholds'; did you mean threshold\?$"),
    ({"nfe": "10"}, "nfe='10' must be a whole number of evaluations"),
    ({"nfe": math.nan}, "nfe=nan must be a whole number of evaluations"),
    ({"callback": 3}, "callback = 3 must be callable"),
    ({"solver": "heun_churn", "s_churn": "10"}, "s_churn = '10' is no option of heun_churn, which takes float there"),
    (
        {"solver": "ab3", "variable": "lamb"},
        r"unknown variable 'lamb'; did you mean lam\? choose lam, rho, tau, phi, t",
    ),
    ({"solver": "deis_3", "space": "x0"}, "deis_3 does not run in space='x0', variable=None; it runs in .eps, t."),
    ({"solver": "ab3", "end": 5.0}, "end = 5.0 needs an explicit grid"),
    ({"solver": "ab3", "snap": "yes"}, "snap = 'yes' must be True or False"),
    ({"solver": P, "space": "eps"}, "a compiled plan takes no 'space'"),
    ({"solver": P, "s_tmax": None}, "a compiled plan takes no 's_tmax'"),
    ({"solver": P, "snap": False}, "a compiled plan takes no 'snap'"),
    ({"solver": "dopri5", "space": "eps"}, "dopri5 takes no 'space'"),
    ({"solver": "dopri5", "s_churn": 10.0}, "dopri5 takes no 's_churn'"),
    ({"solver": "dopri5", "variable": "lam"}, "unknown variable 'lam'; choose t, rho, phi"),
    ({"solver": "torchdiffeq:rk4", "orders": ""}, "torchdiffeq:rk4 takes no 'orders'"),
    ({"solver": "rk4", "nfe": 4}, r"rk4 cannot meet nfe=4.*nearest: 5"),
    ({"grid": "linear"}, "unknown grid 'linear'; choose uniform"),
    ({"n": 0}, "n = 0: how many samples to draw, a whole number from 1 up"),
    ({"n": 2.0}, "n = 2.0: how many"),
    ({"n": True}, "n = True: how many"),
    ({"n": 3, "noise": unit()}, "n = 3, but noise holds 5 samples; leave n out"),
    ({"noise": torch.zeros(5, 3)}, r"noise has shape \(5, 3\), expected \(n, 2\)"),
    ({"noise": torch.zeros(2)}, r"noise has shape \(2,\), expected \(n, 2\)"),
    ({"noise": torch.zeros(0, 2)}, r"noise has shape \(0, 2\)"),
    ({"noise": torch.tensor(1.0)}, r"noise has shape \(\)"),
    ({"noise": torch.zeros(5, 2, dtype=torch.int64)}, "noise has dtype torch.int64, expected a floating-point tensor"),
    ({"noise": np.zeros((5, 2))}, "noise .*ndarray.*tensor"),
    ({"noise": unit() * np.nan}, "noise.*not finite"),
    ({"noise": unit() * np.inf, "solver": "dopri5"}, "noise.*not finite"),
    ({"seed": -1}, "seed = -1 "),
    ({"seed": -1, "noise": unit()}, "seed = -1 "),
    ({"seed": -1, "noise": unit(), "solver": "ddpm"}, "seed = -1 "),
    ({"seed": -1, "noise": unit(), "solver": "dopri5"}, "seed = -1 "),
    ({"seed": 0.5}, "seed = 0.5 "),
    ({"seed": "0-7"}, "seed = '0-7' must be a whole number"),
    ({"seed": [3, -1]}, r"seed\[1\] = -1 "),
    ({"seed": [3, -1], "noise": unit(2), "solver": "dopri5"}, r"seed\[1\] = -1 "),
    ({"seed": []}, "seed holds no seeds; give one per sample"),
    ({"seed": [3, 4], "n": 3}, "seed holds 2 seeds for n = 3 samples; give one per sample, or leave n out"),
    ({"seed": [3, 4], "n": 3, "solver": "dopri5"}, "seed holds 2 seeds for n = 3 samples"),
    ({"seed": [3, 4], "noise": unit()}, "seed holds 2 seeds for n = 5 samples"),
    ({"seed": [3, 4], "noise": unit(), "solver": "ddpm"}, "seed holds 2 seeds for n = 5 samples"),
]


@pytest.mark.parametrize(
    ("options", "message"), REFUSED, ids=[f"{k} {' '.join(o)}" for k, (o, _) in enumerate(REFUSED)]
)
def test_options_that_do_not_fit_are_refused_before_any_work(options: dict[str, Any], message: str) -> None:
    net = Network()
    with pytest.raises(ValueError, match=message):
        sample(model(net), **options)
    assert net.calls == 0


@pytest.mark.parametrize("given", ["mnist", None, Network()])
def test_what_is_no_model_or_plan_is_refused_by_name(given: Any) -> None:
    with pytest.raises(ValueError, match=r"model must be an odediff.Model, got .*odediff.load"):
        sample(given, "ddim", 3)
    with pytest.raises(ValueError, match=f"a Plan, got {type(given).__name__} and Plan; "):
        Sampler(given, P)
    with pytest.raises(ValueError, match=f"got Model and {type(given).__name__}; "):
        Sampler(model(), given)


def test_the_defaults_are_20_evaluations_and_one_sample() -> None:
    net = Network()
    x = sample(model(net), seed=5)
    assert net.calls == 20 and x.shape == (1, 2) and not x.requires_grad
    assert torch.equal(x, Sampler(model(), plan(None, LINEAR, 20))(n=1, seed=5))
    assert sample(model(), "euler", 3, n=4, seed=0).shape == (4, 2)
    assert sample(model(), "euler", 3, noise=unit(6)).shape == (6, 2)
    assert sample(model(), "euler", 3, noise=unit(6), n=6).shape == (6, 2)


@pytest.mark.parametrize("nfe", [10, 11, 13, 20, 47])
def test_options_reach_the_plan(nfe: int) -> None:
    noise, net = unit(), Network()
    for options, args in (
        ({"solver": "rk4", "grid": "karras"}, {"grid": "karras"}),
        ({"solver": "ddim", "eta": 0.7}, {"eta": 0.7}),
        ({"solver": "dpmpp_2m", "grid": np.linspace(990, 2, nfe)}, {"grid": np.linspace(990, 2, nfe)}),
    ):
        net.times.clear()
        x = sample(model(net), nfe=nfe, noise=noise, seed=1, **options)  # type: ignore[arg-type]
        p = plan(str(options["solver"]), LINEAR, nfe, **args)  # type: ignore[arg-type]
        np.testing.assert_allclose(x.numpy(), exact(p, noise, 1)[-1], rtol=0, atol=1e-11)
        assert net.calls == nfe


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        ("heun_churn", {"s_churn": 1.0, "s_tmin": 0.5, "s_tmax": 5.0}),
        ("ab3", {"space": "eps", "variable": "rho"}),
        ("ab3", {"snap": True, "grid": "karras"}),
        ("ab3", {"grid": np.linspace(990, 50, 9), "end": 20.0}),
        ("unipc_3", {"orders": "123333321", "b": "bh1"}),
        ("sa_solver", {"tau": 0.6, "predictor": 2}),
        ("ddim", {"eta": 0.5, "grid": "uniform"}),
        ("ddpm", {"variance": "fixed_large"}),
    ],
    ids=str,
)
def test_every_option_of_a_method_reaches_its_plan(solver: str, options: dict[str, Any]) -> None:
    noise = unit()
    x = sample(model(), solver, 9, noise=noise, seed=1, **options)
    assert torch.equal(x, Sampler(model(), plan(solver, LINEAR, 9, **options))(noise, seed=1))
    for left_out in set(options) - {"grid"}:  # each of them counts
        rest = {key: value for key, value in options.items() if key != left_out}
        assert not torch.equal(x, sample(model(), solver, 9, noise=noise, seed=1, **rest)), left_out


def test_a_variable_reaches_torchdiffeq() -> None:
    noise = unit()
    x = sample(model(), "torchdiffeq:rk4", 9, noise=noise, variable="rho")
    assert torch.equal(x, odediff.solve(model(), "torchdiffeq:rk4", nfe=9, noise=noise, variable="rho").x)
    assert not torch.equal(x, sample(model(), "torchdiffeq:rk4", 9, noise=noise))


@pytest.mark.parametrize("solver", ["rk4", "ddpm", "dopri5"])
def test_seeds_repeat_and_differ(solver: str) -> None:
    draw = lambda seed, **options: sample(model(), solver, **{"n": 3, **options}, seed=seed)  # noqa: E731
    assert torch.equal(draw(7), draw(7))
    assert not torch.equal(draw(7), draw(8)) and not torch.equal(draw(None), draw(None))
    given = {"n": None, "noise": unit(3)}
    assert torch.equal(draw(7, **given), draw(7, **given))
    assert torch.equal(draw(7, **given), draw(8, **given)) == (solver != "ddpm")
    if solver != "dopri5":  # whose error norm is over the batch
        assert torch.equal(draw(7, n=5)[:3], draw(7))


@pytest.mark.parametrize("solver", ["rk4", "ddpm", "torchdiffeq:rk4"])
def test_a_list_names_each_samples_noise(solver: str) -> None:
    """Start and row noise of a sample go with its seed: alone, in any order and in any batch, to the bit."""
    draw = lambda **options: sample(model(), solver, 9 if solver != "rk4" else 11, **options)  # noqa: E731
    seeds = [8, 2**40, 3, 5, 3]
    x = draw(seed=seeds)
    assert x.shape == (5, 2) and torch.equal(draw(seed=torch.tensor(seeds), n=5), x) and torch.equal(x[2], x[4])
    assert torch.equal(draw(seed=seeds[::-1]), x.flip(0))
    for k, seed in enumerate(seeds):
        assert torch.equal(draw(seed=[seed])[0], x[k]) and torch.equal(draw(seed=seed, n=3)[0], x[k])
    assert torch.equal(draw(seed=range(3, 7)), torch.cat([draw(seed=range(3, 5)), draw(seed=range(5, 7))]))
    assert not torch.equal(draw(seed=3, n=2)[1], draw(seed=[3, 4])[1])


def test_the_rows_noise_goes_with_the_seeds_where_the_start_is_given() -> None:
    p, noise = plan("ddpm", LINEAR, 7), unit(4)
    x = Sampler(model(), p)(noise, seed=[6, 2, 9, 2**63])
    np.testing.assert_allclose(x.numpy(), exact(p, noise, [6, 2, 9, 2**63])[-1], rtol=0, atol=1e-12)
    assert torch.equal(Sampler(model(), p)(noise[1:3], seed=[2, 9]), x[1:3])


def test_the_start_is_row_0_of_the_seeds() -> None:
    """Times hypot(1, 80) on EDM's schedule, in float32."""
    for seed in (7, [7, 1, 4]):
        net = Network(schedule=SCHEDULES["edm"])
        sample(model(net), "euler", 4, n=3, seed=seed)
        want = normal(streams(seed, 3), 0, (2,), device=CPU, dtype=torch.float32)
        torch.testing.assert_close(net.states[0], want * (80.0**2 + 1) ** 0.5, rtol=1e-6, atol=0)


@pytest.mark.parametrize("solver", ["euler", "ddpm", "torchdiffeq:euler"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_noise_is_read_never_written_and_computed_with_in_float32_or_wider(solver: str, dtype: torch.dtype) -> None:
    noise = unit(dtype=dtype)
    before = noise.clone()
    for nfe in (2, 6):
        x = sample(model(), solver, nfe, noise=noise, seed=0)
        assert torch.equal(noise, before)
        wide = noise.to(torch.float64 if dtype == torch.float64 else torch.float32)
        assert x.dtype == wide.dtype and torch.equal(x, sample(model(), solver, nfe, noise=wide, seed=0))


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_result_lives_with_the_network_in_float32_or_wider(dtype: torch.dtype, device: str) -> None:
    class Scale(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(0.5))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            assert x.dtype == dtype and x.device == t.device == self.weight.device
            return self.weight * x

    net = Scale().to(device, dtype)
    wrapped = odediff.Model(net, schedule=LINEAR, shape=(2,))
    for solver in ("ddpm", "dopri5"):
        x = sample(wrapped, solver, n=2, seed=0)
        assert x.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert x.device.type == device and not x.requires_grad
    assert sample(wrapped, "ddpm", 5, noise=unit()).dtype == torch.float64


def test_large_values_that_are_finite_are_no_error_though_their_sum_overflows():
    plan = odediff.plan("ddim", odediff.schedule.linear(), 2)
    model = odediff.Model(
        lambda x, t: 0 * x, schedule=odediff.schedule.linear(), prediction="x0", shape=(2, 3, 3), range=None
    )
    noise = torch.full((2, 2, 3, 3), 6e4, dtype=torch.float16)
    assert not torch.isfinite(noise.sum())
    assert torch.equal(odediff.Sampler(model, plan)(noise), torch.zeros(2, 2, 3, 3))
    big = torch.full((4,), 3e38)
    assert not torch.isfinite(big.sum())
    assert torch.equal(finish(model, big), big)
    for bad in ([math.inf, 0.0], [math.inf, -math.inf], [math.nan, 3e38]):
        with pytest.raises(FloatingPointError, match=f"{sum(not math.isfinite(v) for v in bad)} of 2 values"):
            finish(model, torch.tensor(bad))
