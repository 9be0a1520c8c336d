"""P against closed forms, numpy and diffusers' schedulers: guidance, limits on x0, both conventions of eps."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from exact import SCHEDULES, Denoiser, gaussian, gaussian_flow, run
from torch import Tensor

import odediff
from odediff import Sampler, plan, sample
from odediff import schedule as schedules
from odediff.adaptive import solve
from odediff.schedule import Array, Schedule
from odediff.spaces import SPACES, space_pair

LINEAR = SCHEDULES["linear"]
MEANS, STDS = (0.7, -0.5, 0.1), (0.4, 0.4, 0.4)  # the last is the null label's
PLANS: list[tuple[str, dict[str, Any]]] = [
    ("rk4", {}),
    ("ab3", {}),
    ("unipc_3", {}),
    ("ddim", {"eta": 0.5}),
    ("ddpm", {}),
]


class Conditional:
    """The exact score of one Gaussian a label, as a network of any prediction; counts and remembers its inputs."""

    def __init__(
        self,
        prediction: str = "v",
        schedule: Schedule = LINEAR,
        means: tuple[float, ...] = MEANS,
        stds: tuple[float, ...] = STDS,
    ) -> None:
        self.prediction, self.schedule = prediction, schedule
        self.denoisers = [gaussian(mean, std) for mean, std in zip(means, stds, strict=True)]
        self.labels: list[list[int]] = []
        self.states: list[Tensor] = []

    def __call__(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        assert len(x) == len(t) == len(label)
        self.labels.append(label.tolist())
        self.states.append(x.clone())
        alpha, sigma = float(self.schedule.alpha(float(t[0]))), float(self.schedule.sigma(float(t[0])))
        state = x.double().numpy()
        x0 = np.stack([self.denoisers[k](row, alpha, sigma) for k, row in zip(label.tolist(), state, strict=True)])
        u, w = space_pair(self.prediction, np.float64(alpha), np.float64(sigma))
        return torch.from_numpy(u * x0 + w * (state - alpha * x0) / sigma).to(x.dtype)

    @property
    def model(self) -> odediff.Model:
        return odediff.Model(
            self,
            schedule=self.schedule,
            prediction=self.prediction,
            shape=(2,),
            range=None,
            num_classes=len(self.denoisers) - 1,
        )


def unit(n: int = 5, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, *(shape or (2,)), dtype=torch.float64, generator=torch.Generator().manual_seed(4)).to(dtype)


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Tensor]], None]:
    """Make the sampler's row noises these, in turn."""

    def use(noises: list[Tensor]) -> None:
        left: Iterator[Tensor] = iter(noises)
        monkeypatch.setattr("odediff.sampling.normal", lambda *_, **__: next(left))

    return use


def guided_denoiser(g: float, k: int) -> Denoiser:
    null, own = gaussian(MEANS[-1], STDS[-1]), gaussian(MEANS[k], STDS[k])
    return lambda x, alpha, sigma: (1 - g) * null(x, alpha, sigma) + g * own(x, alpha, sigma)


@pytest.mark.parametrize(("name", "args"), PLANS, ids=str)
@pytest.mark.parametrize("schedule", [SCHEDULES[s] for s in ("linear", "edm", "flow")], ids=["linear", "edm", "flow"])
def test_guidance_is_the_mixed_denoiser_in_every_space(
    name: str, args: dict[str, Any], schedule: Schedule, draws: Any
) -> None:
    """To 1e-12 of the numpy executor; each sample with its own label, also beside clipping."""
    p, noise, label = plan(name, schedule, 9, **args), unit(4), [0, 1, 1, 0]
    z = [unit(4) * (i + 1) for i in range(9)]
    rows = iter(z)
    noises = np.array([next(rows).numpy() if c else np.zeros((4, 2)) for c in p.c])
    for g, clip in ((2.5, None), (-0.5, None), (0.3, (-0.4, 0.5))):
        each = [guided_denoiser(g, k) for k in label]

        def denoise(x: Array, alpha: float, sigma: float, each: Any = each, clip: Any = clip) -> Array:
            x0 = np.stack([one(row, alpha, sigma) for one, row in zip(each, x, strict=True)])
            return x0 if clip is None else x0.clip(*clip)

        want = run(p, denoise, np.hypot(p.alpha[0], p.sigma[0]) * noise.numpy(), noises)[-1]
        for prediction in SPACES:
            if prediction == "eps" and schedule.alpha(schedule.t_max) == 0:
                continue
            draws(z)
            got = Sampler(Conditional(prediction, schedule).model, p, guidance=g, clip=clip)(noise, label=label, seed=0)
            np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=1e-11, err_msg=prediction)


def solvers(model: odediff.Model, **options: Any) -> dict[str, Tensor]:
    """Guided samples by two plans and an adaptive method, all close to converged."""
    return {
        "rk4": sample(model, "rk4", 201, grid="logsnr", **options),
        "ab4": sample(model, "ab4", 201, grid="logsnr", **options),
        "dopri5": sample(model, "dopri5", rtol=1e-7, atol=1e-7, **options),
    }


@pytest.mark.parametrize("g", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_guided_gaussians_of_one_width_follow_the_flow_of_a_shifted_mean(g: float) -> None:
    """eps = sigma (x - alpha m) / v is linear in m: guidance moves the mean to m_null + g (m_label - m_null)."""
    noise, label = unit(), [0, 1, 0, 1, 1]
    mean = MEANS[-1] + g * (np.array(MEANS)[label] - MEANS[-1])
    begin, end = ((float(LINEAR.alpha(t)), float(LINEAR.sigma(t))) for t in (LINEAR.t_max, LINEAR.t_min))
    x = [gaussian_flow(np.hypot(*begin) * one, begin, end, m, 0.4) for one, m in zip(noise.numpy(), mean, strict=True)]
    want = np.stack([gaussian(m, 0.4)(one, *end) for one, m in zip(x, mean, strict=True)])  # the last row, onto sigma 0
    for name, got in solvers(Conditional().model, noise=noise, label=label, guidance=g).items():
        np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("g", [0.0, 0.5, 1.0, 2.0, 3.0])
def test_guided_gaussians_of_two_widths_follow_the_closed_form_flow(g: float) -> None:
    """One mean m, widths s of the label and r of null: with y = x / alpha the guided ODE is

    dy / d rho = rho [(1 - g) / (r^2 + rho^2) + g / (s^2 + rho^2)] (y - m),
    y - m ~ (r^2 + rho^2)^((1 - g) / 2) (s^2 + rho^2)^(g / 2).
    """
    m, s, r = 0.2, 0.3, 0.8
    edm, noise = SCHEDULES["edm"], unit()
    net = Conditional("x0", edm, means=(m, m), stds=(s, r))
    rho, end = float(edm.sigma(edm.t_max)), float(edm.sigma(edm.t_min))
    ratio = ((r**2 + end**2) / (r**2 + rho**2)) ** ((1 - g) / 2) * ((s**2 + end**2) / (s**2 + rho**2)) ** (g / 2)
    y = m + ratio * (np.hypot(1, rho) * noise.numpy() - m)
    want = (1 - g) * gaussian(m, r)(y, 1.0, end) + g * gaussian(m, s)(y, 1.0, end)  # the last row, onto sigma = 0
    for name, got in solvers(net.model, noise=noise, label=0, guidance=g).items():
        np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("solver", ["rk4", "unipc_3", "ddpm", "torchdiffeq:rk4", "dopri5"])
def test_one_guided_evaluation_is_one_call_on_both_halves(solver: str) -> None:
    """The null half comes first; at 1 and at 0 one half is enough; labels or none without guidance are one half too."""
    cases: list[tuple[dict[str, Any], list[int]]] = [
        ({"label": [1, 0, 1], "guidance": 2.0}, [2, 2, 2, 1, 0, 1]),
        ({"label": 1, "guidance": 1.5}, [2, 2, 2, 1, 1, 1]),
        ({"label": [1, 0, 1], "guidance": 1}, [1, 0, 1]),
        ({"label": [1, 0, 1]}, [1, 0, 1]),
        ({"label": [1, 0, 1], "guidance": 0.0}, [2, 2, 2]),
        ({}, [2, 2, 2]),
    ]
    for options, labels in cases:
        net = Conditional()
        if solver == "dopri5":
            nfe = solve(net.model, noise=unit(3), **options).nfe
        else:
            nfe = 13
            sample(net.model, solver, nfe, noise=unit(3), seed=0, **options)
        assert net.labels == [labels] * nfe
        if len(labels) == 6:
            assert all(torch.equal(*x.chunk(2)) for x in net.states)


@pytest.mark.parametrize("solver", ["ab2", "ddpm", "dopri5"])
def test_guidance_1_is_conditional_and_0_unconditional_bit_for_bit(solver: str) -> None:
    draw = lambda **options: sample(Conditional().model, solver, n=3, seed=1, **options)  # noqa: E731
    label = torch.tensor([0, 1, 1], dtype=torch.uint8)
    assert torch.equal(draw(label=label, guidance=1), draw(label=label))
    assert torch.equal(draw(label=label, guidance=0), draw())
    assert not torch.equal(draw(label=label), draw())
    assert float((draw(label=label, guidance=1 + 1e-9) - draw(label=label)).abs().max()) < 1e-6


def test_labels_come_in_every_shape_and_a_sampler_serves_them_all() -> None:
    net = Conditional()
    sampler = Sampler(net.model, plan("ddim", LINEAR, 4), guidance=2.0)
    ones = sampler(n=3, seed=0, label=1)
    mixed = sampler(n=3, seed=0, label=[1, 0, 1])
    assert torch.equal(ones[[0, 2]], mixed[[0, 2]]) and not torch.equal(ones[1], mixed[1])
    for label in ((1, 0, 1), np.array([1, 0, 1]), torch.tensor([1, 0, 1]), torch.tensor([1, 0, 1], dtype=torch.int32)):
        assert torch.equal(sampler(n=3, seed=0, label=label), mixed)
        assert torch.equal(sampler(seed=0, label=label), mixed)  # as many samples as labels
    for label in (np.int64(1), torch.tensor(1), np.array(1), [1, 1, 1]):
        assert torch.equal(sampler(n=3, seed=0, label=label), ones)
    assert sampler(seed=0, label=1).shape == (1, 2)
    assert sampler(unit(3), label=[1, 0, 1]).shape == (3, 2)


CONDITIONAL: list[tuple[dict[str, Any], str]] = [
    ({"label": 2}, r"label = 2 is outside 0 \.\. 1, the model's classes; leave label out for an unconditional sample"),
    ({"label": [0, -1]}, r"label = -1 is outside 0 \.\. 1"),
    ({"label": 1.0}, "label = 1.0 must be a whole number, or one for each sample"),
    ({"label": True}, "label = True must be a whole number"),
    ({"label": "3"}, "label = '3' must be a whole number"),
    ({"label": [0, None]}, r"label = \[0, None\] must be a whole number"),
    ({"label": [[0, 1]]}, r"label = \[\[0, 1\]\] must be"),
    ({"label": []}, r"label = \[\] must be"),
    ({"label": [0, 1, 1], "n": 2}, "3 labels for 2 samples; give one for each, or one for all"),
    ({"label": [0], "n": 2}, "1 labels for 2 samples"),
    ({"label": [0, 1], "noise": unit(5)}, "2 labels for 5 samples"),
    ({"guidance": 2.0}, "guidance = 2 needs label=..., the class to guide to; or leave guidance out"),
    ({"guidance": float("nan"), "label": 0}, "guidance = nan must be a finite number: 1 is conditional"),
    ({"guidance": "2", "label": 0}, "guidance = '2' must be a finite number"),
    ({"guidance": True, "label": 0}, "guidance = True must be a finite number"),
    ({"threshold": 0.995}, r"threshold = 0.995 needs a model with a range; give Model\(range=\(low, high\)\)"),
]
PLAIN: list[tuple[dict[str, Any], str]] = [
    ({"label": 0}, "label = 0 for an unconditional model; leave it out"),
    ({"guidance": 1.0}, "guidance = 1 needs a class-conditional model; leave it out"),
    ({"threshold": 0.995, "clip": True}, "threshold = 0.995 and clip = True both limit x0; give one of them"),
    ({"threshold": 0.995, "clip": (-1, 1)}, r"threshold = 0.995 and clip = \(-1, 1\) both limit x0"),
    ({"threshold": 0.0}, r"threshold = 0.0 must be a quantile in \(0, 1\], such as 0.995"),
    ({"threshold": 99.5}, "threshold = 99.5 must be"),
    ({"threshold": True}, "threshold = True must be"),
    ({"clip_eps": "raw", "clip": True}, "clip_eps = 'raw'; choose recompute or keep"),
    ({"clip_eps": "keep"}, 'clip_eps = "keep" needs a limit on x0: give clip or threshold'),
    (
        {"clip_eps": "keep", "clip": True, "solver": "dpmpp_2m"},
        'clip_eps = "keep" is defined for one-step methods; row 1 of dpmpp_2m reads earlier predictions: use clip_eps=',
    ),
    ({"clip_eps": "keep", "threshold": 0.9, "solver": "rk4"}, "row 1 of rk4 reads earlier predictions"),
    ({"clip_eps": "keep", "clip": True, "solver": "dopri5"}, "dopri5 takes no 'clip_eps'"),
]


@pytest.mark.parametrize(("options", "message"), CONDITIONAL + PLAIN, ids=str)
@pytest.mark.parametrize("solver", ["ddim", "dopri5"])
def test_options_that_do_not_fit_are_refused_before_any_work(
    options: dict[str, Any], message: str, solver: str
) -> None:
    calls: list[Tensor] = []
    plain = odediff.Model(lambda x, t: calls.append(x) or x, schedule=LINEAR, shape=(2,))  # type: ignore[func-returns-value]
    net = Conditional()
    model = net.model if (options, message) in CONDITIONAL else plain
    if solver == "dopri5" and "clip_eps" in options and "solver" not in options:
        message = "dopri5 takes no 'clip_eps'"
    with pytest.raises(ValueError, match=message):
        sample(model, **{"solver": solver, **options})
    assert not calls and not net.labels


def threshold(x0: Array, p: float, low: float, high: float) -> Array:
    """Saharia et al. 2022, section 2.3, on the range (low, high), from numpy's quantile."""
    middle, half = (low + high) / 2, (high - low) / 2
    y = (x0 - middle) / half
    s = np.maximum(np.quantile(np.abs(y).reshape(len(y), -1), p, axis=1), 1.0).reshape(-1, *[1] * (y.ndim - 1))
    out: Array = middle + half * np.clip(y, -s, s) / s
    return out


def wide(schedule: Schedule, prediction: str, limits: tuple[float, float]) -> tuple[odediff.Model, Denoiser]:
    """A model of 3x2x2 whose x0 lies far out of range, and its denoiser."""
    centre = np.linspace(-2, 3, 12).reshape(3, 2, 2)
    denoise = lambda x, alpha, sigma: centre + 0.3 * x * alpha / np.hypot(alpha, sigma)  # noqa: E731

    def net(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = float(schedule.alpha(float(t[0]))), float(schedule.sigma(float(t[0])))
        u, w = space_pair(prediction, np.float64(alpha), np.float64(sigma))
        x0 = denoise(x.numpy(), alpha, sigma)
        return torch.from_numpy(u * x0 + w * (x.numpy() - alpha * x0) / sigma)

    return odediff.Model(net, schedule=schedule, prediction=prediction, shape=(3, 2, 2), range=limits), denoise


@pytest.mark.parametrize("name", ["rk4", "ab3", "dpmpp_2m", "ddim"])
@pytest.mark.parametrize("p", [0.2, 0.9, 0.995, 1.0])
@pytest.mark.parametrize("limits", [(-1.0, 1.0), (0.0, 1.0), (-20.0, 20.0)])
def test_thresholding_is_numpys_in_every_space(name: str, p: float, limits: tuple[float, float]) -> None:
    """Against the executor with a thresholded denoiser; each sample has its own quantile. (-20, 20) changes nothing."""
    made, noise = plan(name, LINEAR, 9), unit(4, 3, 2, 2) * torch.tensor([1.0, 2, 4, 8]).view(4, 1, 1, 1)
    for prediction in ("eps", "v", "flow", "x0"):
        model, denoise = wide(LINEAR, prediction, limits)
        shrunk = lambda x, a, s: threshold(denoise(x, a, s), p, *limits)  # noqa: B023, E731
        states = run(made, shrunk, np.hypot(made.alpha[0], made.sigma[0]) * noise.numpy())
        seen: list[Tensor] = []
        got = Sampler(model, made, threshold=p)(noise, callback=lambda i, x, x0: seen.append(x0))  # noqa: B023
        np.testing.assert_allclose(got.numpy(), states[-1].clip(*limits), rtol=0, atol=1e-10, err_msg=prediction)
        for i, x0 in enumerate(seen):
            want = shrunk(states[i], made.alpha[i], made.sigma[i])
            np.testing.assert_allclose(x0.numpy(), want, rtol=0, atol=1e-10)
        assert torch.equal(Sampler(model, made, threshold=p)(noise[2:3]), got[2:3])
        free = Sampler(model, made)(noise)
        assert (float((free - got).abs().max()) < 1e-9) == (limits[1] == 20)
        assert torch.equal(Sampler(model, made, threshold=p, clip=False)(noise), got)
        model.clip = True  # the model's own setting gives way
        assert torch.equal(Sampler(model, made, threshold=p)(noise), got)


def test_thresholding_along_the_ode_is_the_thresholded_denoiser() -> None:
    """torchdiffeq's Euler over rho is our Euler in eps, which the executor holds to numpy."""
    model, _ = wide(LINEAR, "v", (-1.0, 1.0))
    noise = unit(4, 3, 2, 2)
    want = Sampler(model, plan("euler", LINEAR, 9, space="eps"), threshold=0.9)(noise)
    got = solve(model, "torchdiffeq:euler", nfe=9, variable="rho", noise=noise, threshold=0.9).x
    np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=0, atol=1e-10)


def test_float32_thresholds_as_float64_does() -> None:
    model, _ = wide(LINEAR, "x0", (-1.0, 1.0))
    model.net = lambda x, t: 3 * x.flip(1)
    noise = unit(6, 3, 2, 2)
    made = plan("ab2", LINEAR, 12)
    wanted = Sampler(model, made, threshold=0.9)(noise)
    got = Sampler(model, made, threshold=0.9)(noise.float())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=1e-5)


KEPT: list[tuple[str, dict[str, Any]]] = [
    ("euler", {"space": "eps"}),
    ("euler", {"space": "v"}),
    ("euler", {"space": "x0"}),
    ("ddim", {}),
    ("ddim", {"eta": 0.6}),
]


@pytest.mark.parametrize(
    ("on", "name", "args"),
    [
        (s, *method)
        for s in ("linear", "edm", "flow")
        for method in KEPT
        if s != "flow" or method != KEPT[0]  # alpha(1) = 0, where eps space is singular
    ],
    ids=str,
)
@pytest.mark.parametrize("limit", [{"clip": (-0.6, 0.4)}, {"threshold": 0.9}], ids=str)
def test_kept_eps_is_the_step_with_the_networks_own_eps(
    on: str, name: str, args: dict[str, Any], limit: dict[str, Any], draws: Any
) -> None:
    """x' = alpha' x0' + sqrt(sigma'^2 - c^2) eps + c z with eps of the unlimited x0, whatever the plan's space."""
    schedule = SCHEDULES[on]
    p, noise = plan(name, schedule, 9, **args), unit(4, 3, 2, 2)
    z = [unit(4, 3, 2, 2) * (i + 1) for i in range(9)]
    _, denoise = wide(schedule, "x0", (-1.0, 1.0))
    rows, x = iter(z), np.hypot(p.alpha[0], p.sigma[0]) * noise.numpy()
    for i in range(9):
        x0 = denoise(x, p.alpha[i], p.sigma[i])
        eps = (x - p.alpha[i] * x0) / p.sigma[i]
        kept = x0.clip(-0.6, 0.4) if "clip" in limit else threshold(x0, 0.9, -1, 1)
        x = p.alpha[i + 1] * kept + np.sqrt(max(p.sigma[i + 1] ** 2 - p.c[i] ** 2, 0)) * eps
        x = x + p.c[i] * next(rows).numpy() if p.c[i] else x
    for prediction in SPACES:
        if prediction == "eps" and schedule.alpha(schedule.t_max) == 0:
            continue
        draws(z)
        model, _ = wide(schedule, prediction, (-1.0, 1.0))
        got = Sampler(model, p, clip_eps="keep", **limit)(noise, seed=0)
        np.testing.assert_allclose(got.numpy(), x.clip(-1, 1), rtol=0, atol=1e-10, err_msg=prediction)


def test_kept_eps_is_nothing_new_where_no_limit_bites() -> None:
    model, _ = wide(LINEAR, "eps", (-50.0, 50.0))
    noise, p = unit(3, 3, 2, 2), plan("ddim", LINEAR, 7)
    free = Sampler(model, p)(noise)
    for limit in ({"clip": True}, {"threshold": 0.5}):
        got = Sampler(model, p, clip_eps="keep", **limit)(noise)  # type: ignore[arg-type]
        np.testing.assert_allclose(got.numpy(), free.numpy(), rtol=0, atol=1e-11)


def test_a_row_that_reads_no_prediction_cannot_keep_its_eps() -> None:
    """A row that only rescales, at a constant alpha / sigma: there is nowhere to put the term."""
    alpha, sigma = [0.3, 0.6, 1.0], [0.4, 0.8, 0.0]
    p = odediff.Plan("x0", [900.0, 100.0], alpha, sigma, [2.0, 0.0], [[0.0], [1.0]], [0.0, 0.0])  # type: ignore[arg-type]
    model = odediff.Model(lambda x, t: x, schedule=LINEAR, shape=(2,), prediction="x0")
    assert Sampler(model, p, clip=True)(unit()).isfinite().all()
    with pytest.raises(ValueError, match=r'clip_eps = "keep": row 0 does not read its prediction; use clip_eps="rec'):
        Sampler(model, p, clip=True, clip_eps="keep")


PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


def linear_network(x: Tensor, t: Tensor) -> Tensor:
    """Random and linear, another one at every time: no denoiser of anything, so that limits bite everywhere."""
    generator = torch.Generator().manual_seed(8)
    a, b = (torch.randn(48, 48, generator=generator, dtype=torch.float64) / 10 for _ in range(2))
    flat = x.flatten(1) @ (a + t.reshape(-1)[0].double() / 1000 * b)
    return flat.view_as(x)


def peer(kind: str, exact: bool, **options: Any) -> tuple[Any, Schedule]:
    """A diffusers scheduler and our schedule on its table; exact: the peer's float32 table is widened to float64."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diffusers = pytest.importorskip("diffusers")
        theirs = getattr(diffusers, kind)(timestep_spacing="leading", **options)
    table = theirs.alphas_cumprod.double()
    if exact:
        theirs.alphas_cumprod = table
    return theirs, schedules.from_alphas_cumprod(table.numpy())


@pytest.mark.parametrize("nfe", [4, 10, 50])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("clip_eps", ["recompute", "keep"])
@pytest.mark.parametrize("limit", ["clip", "threshold"])
def test_equals_diffusers_ddim_in_both_conventions(
    nfe: int, prediction: str, eta: float, clip_eps: str, limit: str, draws: Any
) -> None:
    """`use_clipped_model_output` True is "recompute", False (its default) is "keep".

    The unmodified scheduler to its float32 scalars: 50 rows, each off by 1e-7 times eps, which a random network lets
    grow to 1 / sigma = 100; and the same code on a float64 table, where the formulas alone are left, to 1e-12.
    """
    asked = {"clip_sample": True} if limit == "clip" else {"thresholding": True, "sample_max_value": 1e9}
    ours: dict[str, Any] = {"clip": True} if limit == "clip" else {"threshold": 0.995}
    for exact, tolerance in ((False, 5e-4), (True, 1e-12)):
        theirs, schedule = peer("DDIMScheduler", exact, prediction_type=PREDICTIONS[prediction], **asked)
        theirs.set_timesteps(nfe)
        z = [unit(3, 3, 4, 4) * (0.5 + i / nfe) for i in range(nfe)]
        x = noise = unit(3, 3, 4, 4)
        for t, one in zip(theirs.timesteps, z, strict=True):
            out = linear_network(x, t)
            used = clip_eps == "recompute"
            x = theirs.step(
                out, t, x, eta=eta, use_clipped_model_output=used, variance_noise=one if eta else None
            ).prev_sample
        model = odediff.Model(linear_network, schedule=schedule, prediction=prediction, shape=(3, 4, 4))
        p = plan("ddim", schedule, nfe, theirs.timesteps.numpy().astype(float), eta=eta)
        assert (p.alpha[-1], p.sigma[-1]) == (1.0, 0.0)
        draws(z)
        got = Sampler(model, p, clip_eps=clip_eps, **ours)(noise, seed=0)
        np.testing.assert_allclose(got.numpy(), x.clamp(-1, 1).numpy(), rtol=0, atol=tolerance)
    free = Sampler(model, plan("ddim", schedule, nfe, p.t, eta=0.0))(noise)
    assert float((free - got).abs().max()) > 0.05


@pytest.mark.parametrize("nfe", [4, 50])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("limit", ["clip", "threshold"])
def test_equals_diffusers_ddpm(nfe: int, prediction: str, variance: str, limit: str, draws: Any) -> None:
    """Its posterior mean is written in x0' and x, which is "recompute"; ancestral noise from the same generator."""
    asked = {"clip_sample": True} if limit == "clip" else {"thresholding": True, "sample_max_value": 1e9}
    ours: dict[str, Any] = {"clip": True} if limit == "clip" else {"threshold": 0.995}
    for exact, tolerance in ((False, 5e-4), (True, 1e-12)):
        theirs, schedule = peer(
            "DDPMScheduler", exact, prediction_type=PREDICTIONS[prediction], variance_type=variance, **asked
        )
        theirs.set_timesteps(nfe)
        generator, again = (torch.Generator().manual_seed(3) for _ in range(2))
        x = noise = unit(3, 3, 4, 4)
        for t in theirs.timesteps:
            x = theirs.step(linear_network(x, t), t, x, generator=generator).prev_sample
        draws([torch.randn(3, 3, 4, 4, dtype=torch.float64, generator=again) for _ in range(nfe)])
        model = odediff.Model(linear_network, schedule=schedule, prediction=prediction, shape=(3, 4, 4))
        p = plan("ddpm", schedule, nfe, theirs.timesteps.numpy().astype(float), variance=variance)
        got = Sampler(model, p, **ours)(noise, seed=0)
        np.testing.assert_allclose(got.numpy(), x.clamp(-1, 1).numpy(), rtol=0, atol=tolerance)
