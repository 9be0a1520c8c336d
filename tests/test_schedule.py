import numpy as np
import pytest
from exact import SCHEDULES
from hypothesis import given
from hypothesis import strategies as st

from odediff import schedule as schedules
from odediff.grids import GRIDS, times

betas = st.lists(st.floats(1e-5, 0.5), min_size=2, max_size=40)


@pytest.mark.parametrize("name", SCHEDULES)
def test_inverses_are_exact(name: str) -> None:
    s = SCHEDULES[name]
    t = np.linspace(s.t_end, s.t_max, 100_003)[1:-1]
    assert np.abs(s.t_of_lam(s.lam(t)) - t).max() <= 1e-12
    assert np.abs(s.t_of_rho(s.rho(t)) - t).max() <= 1e-12
    lam = np.linspace(float(s.lam(s.t_finite)), float(s.lam(s.t_min)), 100_003)
    assert np.abs(s.lam(s.t_of_lam(lam)) - lam).max() <= 1e-12


@pytest.mark.parametrize("name", SCHEDULES)
def test_scales_agree_with_lam_and_fall_to_zero_noise(name: str) -> None:
    s = SCHEDULES[name]
    t = np.linspace(s.t_min, s.t_finite, 999)
    np.testing.assert_allclose(np.log(s.alpha(t) / s.sigma(t)), s.lam(t), atol=1e-12)
    np.testing.assert_allclose(s.rho(t), s.sigma(t) / s.alpha(t), rtol=1e-12)
    assert (np.diff(s.lam(t)) < 0).all()
    assert s.sigma(s.t_end) == 0 and s.alpha(s.t_end) == 1


@pytest.mark.parametrize("name", [name for name, s in SCHEDULES.items() if s.steps])
def test_tables_preserve_variance(name: str) -> None:
    s = SCHEDULES[name]
    t = np.linspace(-1, 999, 4001)
    np.testing.assert_allclose(s.alpha(t) ** 2 + s.sigma(t) ** 2, 1, rtol=1e-14)


def test_linear_is_ddpm() -> None:
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    s = schedules.linear()
    t = np.arange(1000)
    np.testing.assert_allclose(s.alpha(t), np.sqrt(abar), rtol=1e-12)
    np.testing.assert_allclose(s.sigma(t), np.sqrt(1 - abar), rtol=1e-11)


def test_scaled_linear_cosine_sigmoid_formulae() -> None:
    k = np.arange(1000)
    beta = (np.sqrt(0.00085) + k / 999 * (np.sqrt(0.012) - np.sqrt(0.00085))) ** 2
    np.testing.assert_allclose(schedules.scaled_linear().alpha(k), np.sqrt(np.cumprod(1 - beta)), rtol=1e-12)
    f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    beta = np.minimum(1 - f[1:] / f[:-1], 0.999)
    assert (beta == 0.999).sum() == 1
    np.testing.assert_allclose(schedules.cosine().alpha(k), np.sqrt(np.cumprod(1 - beta)), rtol=1e-10)
    g = 1 / (1 + np.exp(6 * np.arange(1001) / 1000 - 3))
    abar = ((g - g[-1]) / (g[0] - g[-1]))[1:]
    np.testing.assert_allclose(schedules.sigmoid().alpha(k)[:-1], np.sqrt(abar[:-1]), rtol=1e-9)


def test_between_the_steps_lam_is_linear() -> None:
    s = schedules.linear()
    np.testing.assert_allclose(s.lam(10.25), 0.75 * s.lam(10) + 0.25 * s.lam(11), rtol=1e-14)
    np.testing.assert_allclose(s.rho(-0.25), 0.75 * s.rho(0), rtol=1e-14)


def test_zero_terminal_snr_is_lin_et_al_algorithm_1() -> None:
    root = np.sqrt(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    want = (root - root[-1]) * root[0] / (root[0] - root[-1])
    s = schedules.linear().zero_terminal_snr()
    np.testing.assert_allclose(s.alpha(np.arange(1000)), want, rtol=1e-10, atol=1e-15)
    assert s.alpha(999) == 0 and s.sigma(999) == 1
    np.testing.assert_allclose(1 / s.rho(998.5), 0.5 / s.rho(998), rtol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_derivatives_are_those_of_the_scales(name: str) -> None:
    s = SCHEDULES[name]
    for share in (0.1234, 0.5678, 0.99987):
        t = s.t_min + share * (s.t_max - s.t_min)
        h = 1e-6 * s.t_max
        want = [(f(t + h) - f(t - h)) / (2 * h) for f in (s.alpha, s.sigma)]
        np.testing.assert_allclose(s.derivatives(t), want, rtol=1e-5, atol=1e-9)


@given(betas)
def test_any_betas_make_a_schedule(values: list[float]) -> None:
    s = schedules.from_betas(values)
    np.testing.assert_allclose(s.alpha(np.arange(len(values))) ** 2, np.cumprod(1 - np.array(values)), rtol=1e-10)
    t = np.linspace(-1, s.t_max, 57)[1:]
    np.testing.assert_allclose(s.t_of_lam(s.lam(t)), t, atol=1e-10)
    assert schedules.from_alphas_cumprod(s.alpha(np.arange(len(values))) ** 2).steps == len(values)


@pytest.mark.parametrize("name", SCHEDULES)
def test_identity_rebuilds_the_schedule(name: str) -> None:
    import json

    s = SCHEDULES[name]
    again = schedules.from_identity(json.loads(json.dumps(s.identity)))
    assert again == s and again.fingerprint == s.fingerprint
    t = np.linspace(s.t_end, s.t_max, 99)
    assert (again.lam(t) == s.lam(t)).all()


def test_numbers_of_any_kind_make_equal_schedules() -> None:
    import json

    a, b = schedules.edm(sigma_max=np.float32(80)), schedules.edm(sigma_max=80)  # type: ignore[arg-type]
    assert a == b and hash(a) == hash(b) and json.dumps(a.identity) == json.dumps(b.identity)
    assert json.dumps(schedules.linear(T=np.int64(10)).identity)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 3 steps"):
        schedules.linear(T=2).zero_terminal_snr()


def test_schedules_differ_by_their_numbers() -> None:
    assert schedules.linear() != schedules.linear(beta_end=0.03) != schedules.cosine()
    a, b = schedules.from_betas([0.1, 0.2]), schedules.from_betas([0.1, 0.3])
    assert a.fingerprint != b.fingerprint and len(str(a.fingerprint)) < 150


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.from_alphas_cumprod([0.9, 0.95]), "fall strictly.*index 1"),
        (lambda: schedules.from_alphas_cumprod([1.0, 0.5]), "must lie in"),
        (lambda: schedules.from_betas([0.1, 1.0]), r"betas\[1\] = 1.0"),
        (lambda: schedules.from_betas([0.1]), "T >= 2"),
        (lambda: schedules.edm(1.0, 0.5), "sigma_min < sigma_max"),
        (lambda: schedules.flow(t_max=1.5), "t_max <= 1"),
        (lambda: schedules.from_identity({"name": "lienar"}), "unknown schedule 'lienar'"),
        (lambda: schedules.from_identity({"name": "linear", "beta": 1}), "does not take"),
        (lambda: schedules.from_identity({"name": "edm", "zero_terminal_snr": True}), "applies to tables"),
        (lambda: schedules.linear().lam(1000.0), r"time 1000.0 is outside \[-1, 999\]"),
        (lambda: schedules.linear().t_of_lam(-9.0), "half log-SNR -9.0 is below"),
    ],
)
def test_errors_name_the_value(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("evaluations", [[1], [1] * 2, [1] * 20, [4, 4, 4, 3, 1], [1] * 100, [1] * 1500], ids=len)
def test_named_grids_run_from_noise_and_stay_where_the_network_was_trained(
    name: str, grid: str, evaluations: list[int]
) -> None:
    s = SCHEDULES[name]
    t = times(s, grid, evaluations)
    assert t.shape == (len(evaluations),) and t[0] == s.t_max
    assert (np.diff(t) < 0).all() and t[-1] >= s.t_min


@pytest.mark.parametrize("grid", [*GRIDS, "power:1.5", "power:1.5:0.5"])
@pytest.mark.parametrize("count", [1, 20, 100, 1000])
def test_snapped_grids_are_distinct_whole_times(grid: str, count: int) -> None:
    t = times(schedules.linear(), grid, [1] * count, snap=True)
    assert (t == np.rint(t)).all() and (np.diff(t) < 0).all() and 0 <= t[-1] <= t[0] <= 999


def test_a_short_table_is_not_left_either() -> None:
    for steps in (2, 10, 50):
        for grid in (*GRIDS, "power:1.5", "power:1.5:0.5"):
            assert times(schedules.linear(T=steps), grid, [1] * 60)[-1] >= 0


def test_grids_are_their_formulae() -> None:
    s = schedules.linear()
    np.testing.assert_allclose(times(s, "uniform", [1] * 1000), np.arange(999, -1, -1))
    np.testing.assert_allclose(times(s, "uniform", [4, 4, 2]), [999, 599, 199])
    np.testing.assert_allclose(np.diff(np.sqrt(times(s, "quadratic", [1] * 10) + 1)), -np.sqrt(1000) / 10)
    np.testing.assert_allclose(np.diff((times(s, "power:1.5", [1] * 10) + 1) ** (2 / 3)), -(1000 ** (2 / 3)) / 10)
    widths = np.diff([*((times(s, "power:1.5:0.25", [1, 2, 1, 2]) + 1) ** (2 / 3)), 0.0])
    np.testing.assert_allclose(widths / widths[0], [1, 2, 1, 0.5])
    for name, power in (("uniform", "power:1"), ("quadratic", "power:2.0"), ("power:1.5", "power:1.5:1")):
        np.testing.assert_allclose(times(s, name, [1, 2, 1]), times(s, power, [1, 2, 1]), rtol=1e-14)
    np.testing.assert_allclose(np.diff(s.lam(times(s, "logsnr", [1] * 9)), 2), 0, atol=1e-11)
    rho = s.rho(times(s, "karras", [1] * 9))
    np.testing.assert_allclose(np.diff(rho ** (1 / 7), 2), 0, atol=1e-12)
    np.testing.assert_allclose(rho[[0, -1]], s.rho([999, 0]), rtol=1e-12)
    lam = s.lam(times(s, "asinh", [1] * 9))
    np.testing.assert_allclose(np.diff(np.arcsinh(lam / 2), 2), 0, atol=1e-11)
    np.testing.assert_allclose(lam[[0, -1]], s.lam([999, 0]), rtol=1e-12)


@pytest.mark.parametrize(
    ("grid", "evaluations", "snap", "message"),
    [
        ("sigmoid", [1], False, "unknown grid 'sigmoid'; choose uniform"),
        (
            "quadratc",
            [1],
            False,
            "unknown grid 'quadratc'; did you mean quadratic. choose .* or pass an array",
        ),
        ("power:0.5", [1], False, "grid 'power:0.5': the power must be a number from 1 to 4, such as power:1.5"),
        ("power:two", [1], False, "grid 'power:two': the power must be a number from 1 to 4"),
        ("power:nan", [1], False, "grid 'power:nan': the power must be a number from 1 to 4"),
        ("power:1.5:0", [1], False, "grid 'power:1.5:0': the last step's width must be a number above 0 to 1"),
        ("power:1.5:1.1", [1], False, "the last step's width must be a number above 0 to 1, such as power:1.5:0.5"),
        ("power:1.5:half", [1], False, "the last step's width must be a number above 0 to 1"),
        ("power:1:1:1", [1], False, "unknown grid 'power:1:1:1'"),
        ("power", [1], False, "unknown grid 'power'; did you mean power:P"),
        ("cube:3", [1], False, "unknown grid 'cube:3'; choose uniform"),
        ([None, 3.0], [1, 1], False, r"grid = \[None, 3.0\] is no list of numbers: give the times where steps start"),
        (["900", "3"], [1, 1], False, r"grid = \['900', '3'\] is no list of numbers.*or a name: uniform, quadratic"),
        ([900, "3"], [1, 1], False, "is no list of numbers"),
        ([[900.0, 3.0], [1.0]], [1, 1], False, "is no list of numbers"),
        ({900: 3}, [1, 1], False, r"grid = \{900: 3\} is no list of numbers"),
        ({900, 3}, [1, 1], False, "is no list of numbers"),
        ((t for t in (900, 3)), [1, 1], False, "is no list of numbers"),
        ([True, False], [1, 1], False, "is no list of numbers"),
        ([900j, 3], [1, 1], False, "is no list of numbers"),
        (b"karras", [1], False, "is no list of numbers"),
        ([[900.0, 3.0]], [1, 1], False, r"shape \(1, 2\), but steps of 1\+1 evaluations start at 2 times"),
        ([], [1, 1], False, r"shape \(0,\), but .* start at 2 times"),
        (5.0, [1], False, r"shape \(\), but .* start at 1 times"),
        ([np.inf, 3.0], [1, 1], True, r"inf is outside \(-1, 999\]; the end is added"),
        ("uniform", [1, 1], "yes", "snap = 'yes' must be True or False"),
        ([900, 3], [1, 1], 0, "snap = 0 must be True or False"),
        ([999.0, 5.0], [4, 4, 1], False, r"shape \(2,\).*4\+4\+1"),
        ([999.0, 5.0, 5.0], [1] * 3, False, r"t\[1\] = 5 and t\[2\] = 5"),
        ([999.0, -1.0], [1] * 2, False, r"-1 is outside \(-1, 999\]"),
        ([float("nan"), 5.0], [1] * 2, False, "nan is outside"),
        ([999.0, 5.2, 4.9], [1] * 3, True, "rounded to whole times they merge"),
        ("quadratic", [1] * 1001, True, r"-1 is outside \(-1, 999\]"),
    ],
)
def test_bad_grids(grid, evaluations: list[int], snap: bool, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        times(schedules.linear(), grid, evaluations, snap=snap)
