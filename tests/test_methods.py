"""Methods against their papers: formulae written out here, independently of the library's derivations."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from exact import SCHEDULES, gaussian, run
from hypothesis import given
from hypothesis import strategies as st

import odediff
from odediff import schedule as schedules
from odediff.methods import BIBTEX, METHODS, cite, plan
from odediff.methods.frame import Grid, point
from odediff.plans import Plan

# What plans do that float32 cannot carry is in test_adams; here coefficients are compared in float64.
pytestmark = pytest.mark.filterwarnings("ignore::odediff.methods.PrecisionWarning")

LINEAR = schedules.linear()
BETAS = np.linspace(1e-4, 0.02, 1000)
ABAR = np.cumprod(1 - BETAS)
EPS_ONLY = {name for name, method in METHODS.items() if {space for space, _ in method.frames} == {"eps"}}


def network(seed: int = 0) -> torch.nn.Module:
    """A random smooth network f(x, t), float64."""
    torch.manual_seed(seed)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Conv2d(2, 8, 3, padding=1), torch.nn.Conv2d(8, 1, 3, padding=1)

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            time = (t / 1000).reshape(-1, 1, 1, 1).expand_as(x)
            return self.b(torch.tanh(self.a(torch.cat([x, time], 1))))

    return Net().double()


def subsequence(kind: str, count: int) -> np.ndarray:
    """DDIM's tau, ascending 1-based steps as 0-based indices (Song et al. 2021a, appendix D.2)."""
    i = np.arange(1, count + 1)
    tau = np.floor(1000 / count * i) if kind == "linear" else np.floor(1000 / count**2 * i**2)
    return np.maximum(tau - 1, 0)


@pytest.mark.parametrize("kind", ["linear", "quadratic"])
@pytest.mark.parametrize("solver", ["euler", "ddim"])
def test_ddim_paper_is_euler(kind: str, solver: str) -> None:
    """Eq. 12 with sigma = 0, over the paper's two subsequences, on a random network in float64."""
    net, tau = network(), subsequence(kind, 10)
    x = noise = torch.randn(3, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for k in range(len(tau) - 1, -1, -1):
        now, before = ABAR[int(tau[k])], ABAR[int(tau[k - 1])] if k else 1.0
        with torch.no_grad():
            eps = net(x, torch.full((3,), tau[k], dtype=torch.float64))
        x = before**0.5 * (x - (1 - now) ** 0.5 * eps) / now**0.5 + (1 - before) ** 0.5 * eps
    model = odediff.Model(net, schedule=LINEAR, shape=(1, 6, 6), range=None)
    ours = odediff.sample(model, solver, 10, grid=tau[::-1], noise=noise)
    assert float((ours - x).abs().max()) <= 1e-12 * float(x.abs().max())


def test_euler_is_eulers_method_in_x_over_alpha_and_rho() -> None:
    p = plan("euler", LINEAR, 10, space="eps")
    rho = p.sigma / p.alpha
    np.testing.assert_allclose(p.a, p.alpha[1:] / p.alpha[:-1], rtol=1e-13)
    np.testing.assert_allclose(p.b[:, 0], p.alpha[1:] * (rho[1:] - rho[:-1]), rtol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_euler_is_the_same_step_in_every_space(schedule: schedules.Schedule) -> None:
    x = np.array([0.3, -1.2]) * np.hypot(schedule.alpha(schedule.t_max), schedule.sigma(schedule.t_max))
    spaces = [s for s in ("x0", "flow", "v", "eps") if s != "eps" or schedule.alpha(schedule.t_max) > 0]
    ends = [run(plan("euler", schedule, 7, space=s), gaussian(0.2, 0.5), x)[-1] for s in spaces]
    for end in ends[1:]:
        np.testing.assert_allclose(end, ends[0], rtol=1e-9)


def dpmpp_2m(lam: np.ndarray, alpha: np.ndarray, sigma: np.ndarray, d: np.ndarray, x: float) -> float:
    """DPM-Solver++ Algorithm 2, as printed, with D_i written out."""
    for i in range(1, len(lam)):
        h = lam[i] - lam[i - 1]
        if i == 1:
            big = d[0]
        else:
            r = (lam[i - 1] - lam[i - 2]) / h
            big = (1 + 1 / (2 * r)) * d[i - 1] - 1 / (2 * r) * d[i - 2]
        x = sigma[i] / sigma[i - 1] * x - alpha[i] * (np.exp(-h) - 1) * big
    return x


def unipc(
    lam: np.ndarray, alpha: np.ndarray, sigma: np.ndarray, d: np.ndarray, x: float, orders: list[int], bh1: bool = False
) -> float:
    """UniPC from its linear system R rho = b, ending on the predictor, as its authors do.

    orders: p of every row, before the ramp at the start.  bh1: B(h) = -h, not e^-h - 1.
    """

    def update(i: int, x: float, nodes: list[int], p: int, corrector: bool) -> float:
        h = lam[i] - lam[i - 1]
        hh, big_b = -h, -h if bh1 else np.expm1(-h)
        r = np.array([(lam[k] - lam[i - 1]) / h for k in nodes] + [1.0])
        phi, factorial, b = np.expm1(hh) / hh - 1, 1.0, []
        for k in range(1, p + 1):
            b.append(phi * factorial / big_b)
            factorial *= k + 1
            phi = phi / hh - 1 / factorial
        vandermonde = np.array([r ** (k - 1) for k in range(1, p + 1)])
        if corrector:
            weights = np.array([0.5]) if p == 1 else np.linalg.solve(vandermonde, np.array(b))
            known = [(d[k] - d[i - 1]) / rk for k, rk in zip(nodes, r[:-1], strict=True)] + [d[i] - d[i - 1]]
        else:
            weights = np.array([0.5]) if p == 2 else np.linalg.solve(vandermonde[:-1, :-1], np.array(b)[:-1])
            known = [(d[k] - d[i - 1]) / rk for k, rk in zip(nodes, r[:-1], strict=True)]
        return sigma[i] / sigma[i - 1] * x - alpha[i] * np.expm1(hh) * d[i - 1] - alpha[i] * big_b * (weights @ known)

    for i in range(1, len(lam)):
        p = min(orders[i - 1], i)
        nodes = [i - 1 - m for m in range(1, p)]
        predicted = (
            update(i, x, nodes, p, False)
            if p > 1
            else (sigma[i] / sigma[i - 1] * x - alpha[i] * np.expm1(lam[i - 1] - lam[i]) * d[i - 1])
        )
        if i == len(lam) - 1:
            return predicted
        x = update(i, x, nodes, p, True)
    raise AssertionError


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("dpmpp_2m", {}),
        *((f"unipc_{k}", {"b": b}) for k in (2, 3, 4) for b in ("bh1", "bh2")),
        ("unipc_3", {"orders": "123432111"}),
        ("unipc_2", {"orders": "122222221", "b": "bh1"}),
    ],
)
@pytest.mark.parametrize("grid", ["logsnr", "quadratic"])
def test_published_formulae(name: str, args: dict[str, str], grid: str) -> None:
    """The table, unrolled to a linear map of x_T and d_0.., equals the paper's update on unit vectors, at every row."""
    p = plan(name, LINEAR, 9, grid, **args)
    orders = [int(k) for k in args.get("orders") or 9 * name[-1:]] if name != "dpmpp_2m" else []
    lam = np.log(p.alpha[:-1] / p.sigma[:-1])
    for rows in range(1, 9):
        for k in range(rows + 1):
            d = np.zeros(9)
            x = 1.0 if k == 0 else 0.0
            if k:
                d[k - 1] = 1.0
            known = (lam[: rows + 1], p.alpha, p.sigma, d, x)
            want = unipc(*known, orders, args.get("b") == "bh1") if orders else dpmpp_2m(*known)
            got = x
            for i in range(rows):
                got = p.a[i] * got + sum(p.b[i, j] * d[i - j] for j in range(min(p.depth, i + 1)))
            assert got == pytest.approx(want, abs=1e-9), (rows, k)


def test_dpmpp_3m_carries_half_of_the_second_derivative() -> None:
    """The published D2 counts half: that is why its order is 2, and that of ab3 in (x0, lam), which is exact, 3."""
    lam = np.array([-1.0, -0.7, -0.2, 0.4])
    t = LINEAR.t_of_lam(lam)
    published, exact = (plan(n, LINEAR, 4, t, **k) for n, k in (("dpmpp_3m", {}), ("ab3", {"space": "x0"})))
    alpha, h, r0, r1 = published.alpha[3], 0.6, 0.5 / 0.6, 0.3 / 0.6
    phi3 = (np.exp(-h) - 1 + h) / h**2 - 0.5
    d2 = np.array([1 / r0, -1 / r0 - 1 / r1, 1 / r1]) / (r0 + r1)  # (D1_0 - D1_1) / (r0 + r1) in d[i], d[i-1], d[i-2]
    np.testing.assert_allclose(exact.b[2, :3] - published.b[2, :3], -alpha * phi3 * d2, rtol=1e-10)


def test_ipndm_weights_are_adams_bashforths() -> None:
    p = plan("ipndm", LINEAR, 6)
    full = p.b[4] / (p.alpha[5] * (p.sigma[5] / p.alpha[5] - p.sigma[4] / p.alpha[4]))
    np.testing.assert_allclose(full, np.array([55, -59, 37, -9]) / 24, rtol=1e-9)
    second = p.b[1, :2] / (p.alpha[2] * (p.sigma[2] / p.alpha[2] - p.sigma[1] / p.alpha[1]))
    np.testing.assert_allclose(second, [1.5, -0.5], rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "a", "b"),
    [
        ("heun", [[], [1]], [1 / 2, 1 / 2]),
        ("midpoint", [[], [1 / 2]], [0, 1]),
        ("rk3", [[], [1 / 2], [-1, 2]], [1 / 6, 4 / 6, 1 / 6]),
        ("rk4", [[], [1 / 2], [0, 1 / 2], [0, 0, 1]], [1 / 6, 2 / 6, 2 / 6, 1 / 6]),
        ("rk4_38", [[], [1 / 3], [-1 / 3, 1], [1, -1, 1]], [1 / 8, 3 / 8, 3 / 8, 1 / 8]),
    ],
)
def test_runge_kutta_in_rho(name: str, a: list[list[float]], b: list[float]) -> None:
    """One step in (x / alpha, rho), then the closed-form row, with slopes that would expose any mixed-up stage."""
    p = plan(name, LINEAR, len(b) + 1, [700.0, 150.0], space="eps")
    rho0, rho1 = LINEAR.rho([700.0, 150.0])
    slope = lambda y, rho: np.sin(3 * y) + rho * y  # noqa: E731
    y, h, k = 0.7, rho1 - rho0, []
    for row in a:
        k.append(slope(y + h * np.dot(row, k), rho0 + sum(row) * h))
    y1 = y + h * np.dot(b, k)
    end = y1 + (0 - rho1) * slope(y1, rho1)
    denoise = lambda x, al, si: x - si * slope(x / al, si / al) if al == 1 else (x - si * slope(x / al, si / al)) / al  # noqa: E731
    states = run(p, denoise, np.array(y * p.alpha[0]))
    np.testing.assert_allclose(states[-2] / p.alpha[-2], y1, rtol=1e-12)
    np.testing.assert_allclose(states[-1], end, rtol=1e-12)


@given(st.data())
def test_adams_weights_are_exact_for_polynomials(data: st.DataObject) -> None:
    """Integrate a polynomial of degree K - 1 in the method's variable: the weights must give its integral over q."""
    schedule = data.draw(st.sampled_from([LINEAR, SCHEDULES["flow"], SCHEDULES["edm"], SCHEDULES["cosine"]]))
    space = data.draw(st.sampled_from(["x0", "eps", "flow"]))
    variable = data.draw(st.sampled_from(["lam", "rho", "tau", "phi", "t"]))
    count = data.draw(st.integers(2, 4))
    lam = (
        np.sort(
            np.array(data.draw(st.lists(st.integers(-30, 30), min_size=count + 1, max_size=count + 1, unique=True)))
        )
        / 12
    )
    points = [point(schedule, float(t)) for t in schedule.t_of_lam(lam)]
    grid = Grid(schedule, space, variable, tuple(points), (1,) * count)
    nodes, start, end = points[:count][::-1], points[count - 1], points[count]
    a, b = grid.adams_row(nodes, start, end)
    assert a == pytest.approx(grid.scale(end) / grid.scale(start), rel=1e-13)
    weights = b / grid.scale(end)
    at = np.array([grid.coordinate(p) for p in nodes])
    shift, scale = at.mean(), np.ptp(at)
    fine = np.linspace(start.lam, end.lam, 20_001)
    middle = (fine[1:] + fine[:-1]) / 2
    q = {"x0": np.exp, "eps": lambda v: np.exp(-v), "flow": lambda v: 1 / (1 + np.exp(v))}[space]
    s = {
        "lam": lambda v: v,
        "rho": lambda v: np.exp(-v),
        "tau": lambda v: 1 / (1 + np.exp(v)),
        "phi": lambda v: np.arctan(np.exp(-v)),
        "t": schedule.t_of_lam,
    }[variable](middle)
    for degree in range(count):
        want = float((((s - shift) / scale) ** degree * np.diff(q(fine))).sum())
        got = float(weights @ ((at - shift) / scale) ** degree)
        size = np.abs(weights).sum() * np.abs(((at - shift) / scale) ** degree).max()
        assert got == pytest.approx(want, abs=2e-6 * max(1.0, size))


def test_ab1_to_ab4_reduce_to_known_weights_on_equal_steps() -> None:
    t = SCHEDULES["edm"].t_of_rho(np.linspace(6, 1, 7))
    p = plan("ab4", SCHEDULES["edm"], 7, t, space="eps", variable="rho")
    h = -5 / 6
    np.testing.assert_allclose(p.b[4] / h, np.array([55, -59, 37, -9]) / 24, rtol=1e-10)
    np.testing.assert_allclose(p.b[2, :3] / h, np.array([23, -16, 5]) / 12, rtol=1e-10)
    np.testing.assert_allclose(p.b[0], [h, 0, 0, 0], rtol=1e-12)


class Counter:
    """A callable network that counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return 0.5 * x


@pytest.mark.parametrize("name", METHODS)
def test_nfe_is_exact(name: str) -> None:
    """Every budget from the smallest to 60: rows, evaluations, finite result, last row on sigma = 0."""
    counter = Counter()
    model = odediff.Model(counter, schedule=LINEAR, shape=(1, 1, 1), range=None)
    for nfe in range(METHODS[name].min_nfe, 61):
        counter.calls = 0
        p = plan(name, LINEAR, nfe)
        x = odediff.Sampler(model, p)(torch.ones(1, 1, 1, 1), seed=0)
        assert counter.calls == p.nfe == nfe
        assert p.sigma[-1] == 0 and torch.isfinite(x).all()


@pytest.mark.parametrize("name", [name for name, m in METHODS.items() if m.min_nfe > 1])
def test_an_impossible_budget_names_the_nearest(name: str) -> None:
    smallest = METHODS[name].min_nfe
    with pytest.raises(ValueError, match=rf"{name} cannot meet nfe={smallest - 1}.*nearest: {smallest}\)"):
        plan(name, LINEAR, smallest - 1)


@pytest.mark.parametrize(
    ("nfe", "stages", "weights"),
    [(6, [[]], [1]), (7, [[], [1]], [1 / 2, 1 / 2]), (8, [[], [1 / 2], [-1, 2]], [1 / 6, 4 / 6, 1 / 6])],
)
def test_a_leftover_step_is_eulers_heuns_or_kuttas(nfe: int, stages: list[list[float]], weights: list[float]) -> None:
    """The rows after the one full step of rk4, against the tableau, in (x / alpha, rho) with a nonlinear slope."""
    p = plan("rk4", LINEAR, nfe, [800.0, 300.0, 60.0], space="eps")
    slope = lambda y, rho: np.sin(3 * y) + rho * y  # noqa: E731
    denoise = lambda x, al, si: (x - si * slope(x / al, si / al)) / al  # noqa: E731
    states = run(p, denoise, np.array(0.7 * p.alpha[0]))
    y, rho, h, k = states[4] / p.alpha[4], LINEAR.rho(300.0), LINEAR.rho(60.0) - LINEAR.rho(300.0), []
    for row in stages:
        k.append(slope(y + h * np.dot(row, k), rho + sum(row) * h))
    np.testing.assert_allclose(states[-2] / p.alpha[-2], y + h * np.dot(weights, k), rtol=1e-12)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("schedule", [SCHEDULES["cosine"], SCHEDULES["sigmoid"]], ids=["cosine", "sigmoid"])
def test_default_frames_keep_float32(name: str, schedule: schedules.Schedule) -> None:
    """Rows of default plans do not blow up where alpha starts at 1e-4, but for methods that run on eps alone."""
    if name not in EPS_ONLY:
        assert np.abs(plan(name, schedule, 20).b).sum(1).max() < 30


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.from_betas([0.99] * 10),
        schedules.from_alphas_cumprod(np.cos((np.arange(1, 1001) / 1000 + 0.008) / 1.008 * np.pi / 2 * 0.9999999) ** 2),
    ],
    ids=["betas near 1", "unclipped cosine"],
)
@pytest.mark.parametrize("name", sorted(set(METHODS) - EPS_ONLY))
def test_nearly_no_signal_at_the_start(name: str, schedule: schedules.Schedule) -> None:
    """Every grid compiles to rows that conserve; where steps are not absurd (lam from -37) they also land near x0."""
    for grid in ("uniform", "quadratic", "logsnr", "karras", "asinh"):
        p = plan(name, schedule, 9, grid)
        got = run(p, gaussian(0.0, 1.0), np.array([1.0, -0.5]))[-1]  # data N(0, 1): x0 of unit noise is itself
        assert np.isfinite(got).all()
        if not p.stochastic and grid in ("uniform", "quadratic"):
            assert np.abs(got).max() < 1.6


def test_runge_kutta_spends_leftovers_on_lower_orders() -> None:
    layouts = {nfe: METHODS["rk4"].layout(nfe) for nfe in (5, 6, 7, 8, 9, 20)}
    assert layouts == {
        5: [4, 1],
        6: [4, 1, 1],
        7: [4, 2, 1],
        8: [4, 3, 1],
        9: [4, 4, 1],
        20: [4, 4, 4, 4, 3, 1],
    }


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plan("dopri5", LINEAR), "unknown solver 'dopri5'; .*dopri5, have no table: see odediff.solve"),
        (lambda: plan(None, LINEAR, None), "nfe=None must be a whole number"),  # type: ignore[arg-type]
        (lambda: plan("ab3", LINEAR, vriable="t"), r"no option 'vriable'; did you mean variable\? it takes none"),
        (lambda: plan("ab3", LINEAR, variable="lamb"), r"unknown variable 'lamb'; did you mean lam\?"),
        (lambda: cite(replace(plan("ddim", LINEAR, 3), method="mine")), "names no method of METHODS but 'mine'"),
        (lambda: plan("rk5", LINEAR), "unknown solver 'rk5'; did you mean rk4 or rk3. choose euler"),
        (lambda: plan("rk4", LINEAR, 20.0), "nfe=20.0"),  # type: ignore[arg-type]
        (lambda: plan("rk4", LINEAR, True), "nfe=True"),
        (lambda: plan("rk4", LINEAR, eta=0.5), "rk4 has no option 'eta'"),
        (lambda: plan("ddim", LINEAR, eta=1.5), r"eta = 1.5 is outside \[0, 1\]"),
        (lambda: plan("ddpm", LINEAR, variance="learned"), "unknown variance 'learned'"),
        (lambda: plan("rk4", LINEAR, space="v"), "does not run in space='v'"),
        (lambda: plan("rk4", LINEAR, space="noise"), "unknown space 'noise'"),
        (lambda: plan("ipndm", SCHEDULES["flow"]), r"alpha = 0 at t\[0\] = 1"),
        (lambda: plan("rk4", LINEAR, snap=True), "between the grid's times"),
        (lambda: plan("euler", SCHEDULES["edm"], snap=True), "needs a table of steps"),
        (lambda: plan("euler", "linear"), "schedule must be an odediff.schedule.Schedule"),  # type: ignore[arg-type]
        (lambda: cite("none"), "unknown solver 'none'; choose euler, .*sa_solver$"),
        (lambda: cite("DPM++_2M"), "unknown solver .*; did you mean dpmpp_2m, .*choose euler"),
        (
            lambda: plan("euler", LINEAR, 5, "karas"),
            "unknown grid 'karas'; did you mean karras. choose uniform, ",
        ),
        (lambda: plan("euler", LINEAR, 5, snap="yes"), "snap = 'yes' must be True or False"),  # type: ignore[arg-type]
        (lambda: plan("euler", LINEAR, 5, snap=None), "snap = None must be True"),  # type: ignore[arg-type]
        (lambda: plan("euler", SCHEDULES["flow"], 2, [0.9, 0.5], end=False), r"end = False must lie in \[0, 0.5\)"),
        (lambda: plan("euler", LINEAR, 2, [900, 5], end=np.nan), r"end = nan must lie in \[-1, 5\)"),
        (lambda: plan("euler", LINEAR, 2, [900, 5], end=1j), r"end = 1j must lie in \[-1, 5\)"),  # type: ignore[arg-type]
    ],
)
def test_errors_name_value_and_remedy(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", ["euler", "heun", "ab3", "dpmpp_2m", "unipc_3", "ddpm", "lms", "plms", "sa_solver"])
def test_snapped_plans_feed_whole_times(name: str) -> None:
    p = plan(name, LINEAR, 21, snap=True)
    assert (p.t == np.rint(p.t)).all() and p.t[-1] >= 0
    np.testing.assert_allclose(p.sigma[:-1], np.sqrt(1 - ABAR[p.t.astype(int)]), rtol=1e-10)


def test_singular_starts_move_to_a_regular_frame() -> None:
    for schedule in (SCHEDULES["flow"], SCHEDULES["zero_snr"]):
        for name in METHODS:
            if name in EPS_ONLY:
                with pytest.raises(ValueError, match=f"alpha = 0 at t.0. = .*: {name} runs in space"):
                    plan(name, schedule, 14)
            else:
                p = plan(name, schedule, 14)
                assert p.alpha[0] == 0 and p.space != "eps"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_cited_and_described(name: str) -> None:
    method = METHODS[name]
    text = cite(name)
    assert (
        text == BIBTEX[method.source] == cite(plan(name, LINEAR, max(8, method.min_nfe)))
        and text.startswith("@")
        and text.count("{") == text.count("}")
    )
    assert method.where and 1 <= method.order <= 5 and method.frames


@pytest.mark.parametrize("name", METHODS)
def test_space_variable_and_determinism_are_those_of_the_default_plan(name: str) -> None:
    method, p = METHODS[name], plan(name, LINEAR, 20)
    assert (method.space, method.variable) == (p.space, p.args["variable"])
    assert method.deterministic == (not p.stochastic)
    assert set(method.kinds) == set(method.args) and (method.stochastic or method.deterministic)
    if method.noise:  # 0 is none, more is some, whatever the default
        assert not plan(name, LINEAR, 20, **{method.noise: 0}).stochastic
        assert plan(name, LINEAR, 20, **{method.noise: 0.5}).stochastic
    elif method.stochastic:
        assert not method.deterministic


def test_which_methods_add_noise() -> None:
    noisy = {name: method.deterministic for name, method in METHODS.items() if method.stochastic}
    always = ("ddpm", "heun_churn", "euler_ancestral", "sde_dpmpp_2m", "sde_dpmpp_3m", "sa_solver")
    assert noisy == {"ddim": True, **dict.fromkeys(always, False)}


@pytest.mark.parametrize(
    ("name", "nfe", "digits"),
    [("unipc_2", 5, "22221"), ("unipc_3", 7, "3333321"), ("unipc_3", 4, "3321"), ("unipc_4", 6, "444321")],
)
def test_falling_orders_are_the_order_or_the_rows_left(name: str, nfe: int, digits: str) -> None:
    p, q = plan(name, LINEAR, nfe, orders="falling", b="bh1"), plan(name, LINEAR, nfe, orders=digits, b="bh1")
    for key in ("a", "b", "c", "t"):
        np.testing.assert_array_equal(getattr(p, key), getattr(q, key))
    assert p.args["orders"] == "falling" and p != plan(name, LINEAR, nfe, b="bh1")


def test_edm_gets_karras_grid_by_default() -> None:
    assert plan("heun", SCHEDULES["edm"], 9).args["grid"] == "karras"
    assert plan("heun", LINEAR, 9).args["grid"] == METHODS["heun"].grid == "quadratic"
    assert plan("heun", SCHEDULES["edm"], 9, "uniform").args["grid"] == "uniform"


def test_a_plan_remembers_where_it_came_from() -> None:
    p = plan("ddim", LINEAR, 5, "uniform", eta=0.3)
    assert (p.method, p.args["eta"], p.args["grid"], p.schedule) == ("ddim", 0.3, "uniform", LINEAR.fingerprint)
    assert plan("euler", LINEAR, 2, [999.0, 3.0]).args["grid"] == "explicit"
    q = plan("ddim", LINEAR, np.int64(5), "uniform", eta=np.float32(0.5))  # type: ignore[arg-type]
    assert Plan.from_json(q.to_json()) == q == plan("ddim", LINEAR, 5, "uniform", eta=0.5)
    assert dict(Plan.from_json(p.to_json()).args) == dict(p.args)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("ddim", {"eta": "1"}, "eta = '1' is no option of ddim, which takes float there"),
        ("ddim", {"eta": None}, "eta = None is no option"),
        ("ddim", {"eta": True}, "eta = True is no option"),
        ("lms", {"order": 2.0}, "order = 2.0 is no option of lms, which takes int there"),
        ("sa_solver", {"predictor": 2.0}, "predictor = 2.0 is no option"),
        ("sa_solver", {"tau": [1.0]}, r"tau = \[1.0\] is no option"),
        ("heun_churn", {"s_tmax": "50"}, "s_tmax = '50' is no option of heun_churn, which takes float or None there"),
        ("unipc_3", {"orders": 0}, "orders = 0 is no option of unipc_3, which takes str there"),
        ("dpmpp_2m", {"end": "50"}, r"end = '50' must lie in \[-1, 100\)"),
        ("dpmpp_2m", {"end": True}, r"end = True must lie in \[-1, 100\)"),
        ("dpmpp_2m", {"end": [-1]}, r"end = \[-1\] must lie in \[-1, 100\)"),
        (["rk4"], {}, r"unknown solver \['rk4'\]"),
    ],
)
def test_options_of_another_type_are_refused(name: str, args: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(name, LINEAR, 8, np.linspace(999, 100, 8), **args)  # type: ignore[arg-type]


def test_options_that_are_empty_are_not_printed() -> None:
    text = str(plan("unipc_3", LINEAR, 8))
    assert "b bh2\n" in text and "orders" not in text
    assert "orders 12333321" in str(plan("unipc_3", LINEAR, 8, orders="12333321"))
