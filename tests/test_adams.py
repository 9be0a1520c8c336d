"""Adams methods beyond their weights: correctors, v space, rows that float32 cannot carry, ends above sigma = 0."""

import warnings

import numpy as np
import pytest
from exact import SCHEDULES, mixture, run
from hypothesis import given
from hypothesis import strategies as st

from odediff import schedule as schedules
from odediff.methods import METHODS, REFUSED, PrecisionWarning, plan
from odediff.methods.frame import LIMIT

LINEAR, EDM, FLOW = SCHEDULES["linear"], SCHEDULES["edm"], SCHEDULES["flow"]
CENTRES = np.array([[1.0, 0.5], [-0.8, 0.3], [0.1, -1.2]])
DENOISE = mixture(CENTRES, 0.5)
X = np.array([[-1.5, 0.4], [0.9, 1.3], [0.2, -0.6]])

BASHFORTH = {1: [1.0], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}
MOULTON = {
    2: [1 / 2, 1 / 2],
    3: [5 / 12, 8 / 12, -1 / 12],
    4: [9 / 24, 19 / 24, -5 / 24, 1 / 24],
    5: [251 / 720, 646 / 720, -264 / 720, 106 / 720, -19 / 720],
}


@pytest.mark.parametrize("order", [2, 3, 4])
def test_a_corrector_is_adams_moulton_with_the_evaluation_at_the_predicted_state(order: int) -> None:
    """P(EC) with the classical constant weights on equal steps in rho, written out on a mixture's eps."""
    rho = np.linspace(8.0, 0.5, 12)
    p = plan(f"abm{order}", EDM, 12, EDM.t_of_rho(rho), space="eps", variable="rho")
    h, start, predicted, d = rho[1] - rho[0], 8.0 * X, 8.0 * X, []
    for i, r in enumerate(rho):
        d.insert(0, (predicted - DENOISE(predicted, 1.0, r)) / r)
        if i:
            weights = MOULTON[min(order + 1, i + 1)]
            start = start + h * sum(w * k for w, k in zip(weights, d, strict=False))
        step = [h * w for w in BASHFORTH[min(order, i + 1)]] if i < 11 else [-r]
        predicted = start + sum(w * k for w, k in zip(step, d, strict=False))
    np.testing.assert_allclose(run(p, DENOISE, 8.0 * X)[-1], predicted, rtol=0, atol=1e-11)


def test_a_corrector_costs_no_evaluation_and_is_not_the_predictor() -> None:
    a, b = plan("ab3", LINEAR, 10), plan("abm3", LINEAR, 10)
    assert a.nfe == b.nfe == 10 and (a.t == b.t).all()
    assert np.abs(a.b[5, :3] - b.b[5, :3]).max() > 0.01


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_one_prediction_in_v_is_ddim(schedule: schedules.Schedule) -> None:
    ddim, first = plan("euler", schedule, 8, space="v"), plan("ab2", schedule, 8, ddim_grid(schedule), space="v")
    np.testing.assert_allclose((first.a[0], first.b[0, 0]), (ddim.a[0], ddim.b[0, 0]), rtol=1e-11)


def ddim_grid(schedule: schedules.Schedule) -> np.ndarray:
    return np.asarray(plan("euler", schedule, 8).t)


@given(st.data())
def test_v_integrates_polynomials_in_v_but_for_the_steps_own_error(data: st.DataObject) -> None:
    """On a variance-preserving schedule dx/dphi = v: rows hold the integrals of L_j, up to what conserves x0 and eps.

    That change is what the polynomial misses of sin and cos, so it falls with the step as h^(K + 1).
    """
    count = data.draw(st.integers(2, 4))
    centre = data.draw(st.floats(0.5, 1.1))
    gaps = []
    for h in (0.08, 0.04):
        phi = centre - h * np.arange(count + 1)
        schedule = LINEAR
        t = schedule.t_of_lam(-np.log(np.tan(phi)))
        p = plan(f"ab{count}", schedule, count, t[:-1], end=float(t[-1]), space="v", variable="phi")
        bashforth = -h * np.array(BASHFORTH[count])
        gaps.append(np.abs(p.b[-1, :count] - bashforth).max() + abs(p.a[-1] - 1.0))
    assert gaps[0] < 10 * 0.08 ** (count + 1)
    assert gaps[0] / gaps[1] > 2 ** (count + 0.5)


@given(st.data())
def test_every_frame_of_adams_conserves_on_random_grids(data: st.DataObject) -> None:
    """The table checks itself at construction, to 1e-10; here to rounding of its own terms."""
    schedule = data.draw(st.sampled_from(list(SCHEDULES.values())))
    name = data.draw(st.sampled_from(["ab2", "ab3", "ab4", "abm2", "abm3", "abm4"]))
    space, variable = data.draw(st.sampled_from(METHODS[name].frames))
    if space == "eps" and schedule.alpha(schedule.t_max) == 0:
        return
    nfe = data.draw(st.integers(METHODS[name].min_nfe, 15))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            p = plan(name, schedule, nfe, data.draw(st.sampled_from(["uniform", "logsnr", "asinh"])), space=space)
        except ValueError as error:
            assert "more than float32 can carry" in str(error)
            return
    assert p.nfe == nfe and p.sigma[-1] == 0


def test_amplification_of_a_row_by_hand() -> None:
    p = plan("ab2", LINEAR, 4, [900.0, 600.0, 300.0, 50.0], space="eps", variable="rho")
    i = 2
    want = (abs(p.a[i]) + abs(p.b[i, 0]) + abs(p.b[i, 1])) / 1.0  # variance-preserving: states and eps are of size 1
    assert p.amplification[i] == pytest.approx(want, rel=1e-12)
    q = plan("euler", EDM, 3, [80.0, 10.0, 1.0], space="eps")
    assert q.amplification[1] == pytest.approx((np.hypot(1, 10) + 9) / np.hypot(1, 1), rel=1e-12)
    noisy = plan("ddpm", LINEAR, 3, [900.0, 600.0, 300.0])
    assert noisy.amplification[0] == pytest.approx(abs(noisy.a[0]) + abs(noisy.b[0, 0]) + noisy.c[0], rel=1e-12)


def test_weights_that_lose_float32_lower_the_order_there_and_say_so() -> None:
    """Four points of sigma's end of the cosine schedule seen in phi: a cubic through them explodes on the last step."""
    schedule = SCHEDULES["zero_snr"]
    with pytest.warns(UserWarning, match=r"ab4: lower order in the steps from t = .*more evaluations"):
        p = plan("ab4", schedule, 5, "karras", space="flow", variable="phi")
    lowered = p.args["lowered"]
    rows = [int(np.flatnonzero(p.t == t)[0]) for t in lowered]
    assert rows and (np.count_nonzero(p.b[rows], axis=1) < np.minimum(4, np.array(rows) + 1)).all()
    assert (p.amplification[rows] <= LIMIT).all()
    whole = [i for i in range(4) if i not in rows]
    assert (np.count_nonzero(p.b[whole], axis=1) == np.minimum(4, np.array(whole) + 1)).all()
    assert "lowered" in str(p)


def test_lowering_is_what_keeps_float32() -> None:
    """The same table run in float32 and float64 agrees to what the documented limit promises."""
    with pytest.warns(UserWarning, match="lower order"):
        p = plan("ab4", SCHEDULES["zero_snr"], 5, "karras", space="flow", variable="phi")
    wide, x = run(p, DENOISE, X)[-1], X.astype(np.float32)
    history: list[np.ndarray] = []
    for i in range(p.nfe):
        x0 = DENOISE(x.astype(np.float64), p.alpha[i], p.sigma[i])
        eps = (x - p.alpha[i] * x0) / p.sigma[i]
        history.insert(0, (eps - x0).astype(np.float32))
        x = np.float32(p.a[i]) * x + sum(np.float32(b) * d for b, d in zip(p.b[i], history, strict=False))
    assert np.abs(x - wide).max() < LIMIT * 2.0**-23 * p.nfe


def test_rows_that_lose_float32_are_warned_of() -> None:
    """Nothing can be lowered in a first row; where alpha starts at 5e-5, eps says nearly nothing of x0."""
    with pytest.warns(
        PrecisionWarning, match=r"deis_2, row 0 at t = 999 amplifies rounding 1.*: a float32 state keeps"
    ):
        p = plan("deis_2", SCHEDULES["cosine"], 10)
    assert LIMIT < p.amplification[0] < REFUSED and p.amplification[1:].max() < LIMIT
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan("dpmpp_2m", SCHEDULES["cosine"], 10)


def test_rows_that_cannot_be_lowered_are_refused() -> None:
    steep = schedules.from_alphas_cumprod(np.array([0.999, 0.5, 1e-13]))
    with pytest.raises(ValueError, match=r"euler, row 0 at t = 2 amplifies rounding .* more than float32 can carry"):
        plan("euler", steep, 3, "uniform", space="eps")
    assert plan("euler", steep, 3, "uniform", space="x0").amplification.max() < REFUSED


@pytest.mark.parametrize("name", ["ddim", "heun", "rk4", "ab3", "abm3", "dpmpp_3m", "unipc_3", "ipndm"])
def test_an_end_above_zero_noise_is_the_methods_own_last_step(name: str) -> None:
    """It lands on the asked point, and nothing before it differs from a plan with one step more."""
    method = METHODS[name]
    starts = [900.0, 700.0, 500.0, 300.0, 150.0]
    nfe = 5 * method.stages
    p = plan(name, LINEAR, nfe, starts, end=40.0)
    assert p.alpha[-1] == LINEAR.alpha(40.0) and p.sigma[-1] == LINEAR.sigma(40.0) and p.args["end"] == 40.0
    longer = plan(name, LINEAR, nfe + 1, [*starts, 40.0])
    rows = nfe - 1 if name in ("abm3", "unipc_3") else nfe  # a corrector's last row still waits for its evaluation
    np.testing.assert_array_equal(p.t, longer.t[:nfe])
    np.testing.assert_allclose(p.b[:rows, : p.depth], longer.b[:rows, : p.depth], rtol=1e-12, atol=1e-14)


def test_an_end_out_of_place_is_refused() -> None:
    with pytest.raises(ValueError, match=r"end = 5.0 needs an explicit grid: the grid 'quadratic' runs to sigma = 0"):
        plan("ddim", LINEAR, 4, end=5.0)
    with pytest.raises(ValueError, match=r"end = 200.0 must lie in \[-1, 100\)"):
        plan("ddim", LINEAR, 2, [500.0, 100.0], end=200.0)
    zero = plan("ddim", LINEAR, 2, [500.0, 100.0], end=-1.0)
    assert zero == plan("ddim", LINEAR, 2, [500.0, 100.0])


def test_unipcs_options_are_checked() -> None:
    with pytest.raises(ValueError, match="unknown b = 'bh3'; choose bh1 or bh2"):
        plan("unipc_2", LINEAR, 5, b="bh3")
    with pytest.raises(ValueError, match="'1230': give one digit of 1 to 4 for each of the 5 rows, .* or 'falling'"):
        plan("unipc_2", LINEAR, 5, orders="1230")
    assert plan("unipc_2", LINEAR, 5, orders="33333").b.tolist() == plan("unipc_3", LINEAR, 5).b.tolist()


def test_the_published_and_the_exact_weight_of_the_older_prediction_in_2m():
    """docs/methods.md: (e^-h - 1) / 2 and (1 - h - e^-h) / h on even steps h in lam, where alpha = 1."""
    h = 0.985
    times = 80.0 * np.exp(-h * np.arange(8))
    published = plan("dpmpp_2m", SCHEDULES["edm"], 8, times)
    exact = plan("ab2", SCHEDULES["edm"], 8, times, space="x0", variable="lam")
    np.testing.assert_allclose(published.b[1:-1, 1], -(1 - np.exp(-h)) / 2, rtol=1e-12)
    np.testing.assert_allclose(exact.b[1:-1, 1], -(h - 1 + np.exp(-h)) / h, rtol=1e-12)
    np.testing.assert_allclose([published.b[1, 1], exact.b[1, 1]], [-0.313, -0.364], atol=5e-4)
