import copy
import json
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from exact import SCHEDULES
from hypothesis import assume, given
from hypothesis import strategies as st

from odediff import schedule as schedules
from odediff.methods import METHODS, plan
from odediff.methods.singlestep import SOLVER_TYPES
from odediff.plans import Plan
from odediff.spaces import SPACES, space_pair
from odediff.trace import Point, lower, probe

# What plans do that float32 cannot carry is in test_adams; here coefficients are compared in float64.
pytestmark = pytest.mark.filterwarnings("ignore::odediff.methods.PrecisionWarning")

LINEAR = schedules.linear()


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any method on any schedule, grid, budget and frame."""
    name = draw(st.sampled_from(sorted(METHODS)))
    method = METHODS[name]
    kind = draw(st.sampled_from([*SCHEDULES, "betas"]))
    if kind == "betas":
        schedule = schedules.from_betas(draw(st.lists(st.floats(1e-4, 0.3), min_size=30, max_size=80)))
    else:
        schedule = SCHEDULES[kind]
    nfe = draw(st.integers(method.min_nfe, 24))
    steps = len(method.layout(nfe))
    grid: Any = draw(st.sampled_from(["uniform", "quadratic", "logsnr", "karras", "asinh", "array"]))
    if grid == "array":
        shares = sorted(draw(st.lists(st.integers(1, 999), min_size=steps, max_size=steps, unique=True)), reverse=True)
        grid = schedule.t_end + np.array(shares) / 1000 * (schedule.t_max - schedule.t_end)
    start = schedule.t_max if isinstance(grid, str) else grid[0]
    frames = [f for f in method.frames if schedule.alpha(start) > 0 or f[0] != "eps"]
    if not frames:
        schedule, frames = schedules.linear(), list(method.frames)
        grid = "uniform"
    space, variable = draw(st.sampled_from(frames))
    args: dict[str, Any] = {}
    if "eta" in method.args:
        args["eta"] = draw(st.floats(0, 1))
    if "variance" in method.args:
        args["variance"] = draw(st.sampled_from(["fixed_small", "fixed_large"]))
    if "order" in method.args:
        args["order"] = draw(st.integers(1, 4))
    if "s_churn" in method.args:
        args |= {"s_churn": draw(st.floats(0, 100)), "s_noise": draw(st.floats(1, 1.1)), "s_tmin": 0.0, "s_tmax": None}
    if "tau" in method.args:
        args |= {"tau": draw(st.floats(0, 1.5)), "predictor": draw(st.integers(1, 4))}
        args["corrector"] = draw(st.integers(0, 3))
    if "orders" in method.args:
        args["orders"] = draw(st.sampled_from(["", "1234" * nfe]))[:nfe]
    for option, values in (("b", ["bh1", "bh2"]), ("form", ["exact", "few_steps"]), ("solver_type", SOLVER_TYPES)):
        if option in method.args:
            args[option] = draw(st.sampled_from(values))
    try:
        return plan(name, schedule, nfe, grid, space=space, variable=variable, **args)
    except ValueError as error:
        assume("more than float32 can carry" not in str(error))
        raise


def gaps(p: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Row by row, what signal and noise are off by, relative to the largest term: written out, not vectorised."""
    signal, noise = np.zeros(p.nfe), np.zeros(p.nfe)
    for i in range(p.nfe):
        s, n = p.a[i] * p.alpha[i], p.a[i] * p.sigma[i]
        largest = max(p.alpha[i + 1], p.sigma[i + 1], abs(s), abs(n), p.c[i])
        for j in range(min(i + 1, p.depth)):
            u, w = {
                "x0": (1, 0),
                "eps": (0, 1),
                "v": (-p.sigma[i - j], p.alpha[i - j]),
                "flow": (-1, 1),
            }[p.space]
            s, n = s + p.b[i, j] * u, n + p.b[i, j] * w
            largest = max(largest, abs(p.b[i, j] * u), abs(p.b[i, j] * w))
        signal[i] = (s - p.alpha[i + 1]) / largest
        noise[i] = (n**2 + p.c[i] ** 2 - p.sigma[i + 1] ** 2) / largest**2
    return signal, noise


@given(plans())
def test_every_plan_conserves_signal_and_noise(p: Plan) -> None:
    signal, noise = gaps(p)
    assert np.abs(signal).max() <= 1e-12
    assert (noise >= -1e-12).all() if p.overdispersed else np.abs(noise).max() <= 1e-12
    assert p.sigma[-1] == 0 and p.alpha[-1] == 1


@given(plans())
def test_json_round_trip_is_exact(p: Plan) -> None:
    again = Plan.from_json(p.to_json())
    assert again == p and again.to_json() == p.to_json()
    for name in ("t", "alpha", "sigma", "a", "b", "c"):
        assert getattr(again, name).tobytes() == getattr(p, name).tobytes()


@given(plans(), st.data())
def test_a_wrong_row_is_refused_with_its_number(p: Plan, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["a", "b", "c", "alpha", "sigma"]))
    value = getattr(p, name).copy()
    index = data.draw(st.sampled_from(np.argwhere(value != 0).tolist() or [[0]]))
    assume(abs(value[tuple(index)]) > 0.01)  # noises add as squares: a small coefficient hardly tells
    assume(name in "abc" or index[0] > 0)  # what no row makes, none can break: the start is given
    # these may have more noise than they conserve, and eps space is all noise
    assume(not p.overdispersed or (p.space == "x0" and name not in ("c", "sigma")))
    largest = np.abs(value[index[0]]).max()
    value[tuple(index)] += 1e-6 * max(1.0, largest)
    with pytest.raises(ValueError, match=r"row \d+ does not conserve") as caught:
        replace(p, **{name: value})
    row = int(str(caught.value).split()[1])
    # a coefficient spoils its own row; a noise level the row before, its own, and in v space those that read its (u, w)
    first, last = index[0], index[0]
    if name in ("alpha", "sigma"):
        first, last = index[0] - 1, index[0] + (p.depth if p.space == "v" else 0)
    assert first <= row <= last


@pytest.mark.parametrize("space", SPACES)
def test_a_space_is_linear_in_data_and_noise(space: str) -> None:
    u, w = space_pair(space, np.array([0.6]), np.array([0.8]))
    assert {"x0": (1, 0), "eps": (0, 1), "v": (-0.8, 0.6), "flow": (-1, 1)}[space] == (u[0], w[0])


def test_plans_can_be_copied_and_sent_to_another_process() -> None:
    p = plan("unipc_2", schedules.cosine(), 6)
    assert copy.deepcopy(p) == p == pickle.loads(pickle.dumps(p))


def test_an_overdispersed_plan_is_held_to_no_less_noise() -> None:
    p = plan("ddpm", schedules.linear(), 5, variance="fixed_large")
    with pytest.raises(ValueError, match="row 2 does not conserve noise"):
        replace(p, c=p.c * np.array([1, 1, 0.5, 1, 1]))
    with pytest.raises(ValueError, match="row 0 does not conserve noise"):
        replace(p, overdispersed=False)


def test_plans_are_immutable_and_independent_of_their_input() -> None:
    p = plan("heun", schedules.linear(), 5)
    with pytest.raises(TypeError):
        p.args["grid"] = "uniform"  # type: ignore[index]
    with pytest.raises(ValueError, match="read-only"):
        p.a[0] = 3
    with pytest.raises(AttributeError):
        p.space = "x0"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"t": np.zeros((0,))}, "at least one row"),
        ({"alpha": np.ones(3)}, r"alpha has shape \(3,\), expected \(6,\)"),
        ({"b": np.ones((5, 6))}, r"expected \(5, K\) with 1 <= K <= 5"),
        ({"a": np.full(5, np.nan)}, r"a\[0\] = nan: every entry must be finite"),
        ({"space": "noise"}, "unknown space 'noise'"),
        ({"sigma": np.zeros(6)}, "sigma is 0 at most in the last state"),
        ({"b": np.eye(5) + 1}, "reads prediction 1 rows back, before the first"),
    ],
)
def test_bad_tables(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(plan("heun", schedules.linear(), 5), **change)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d | {"version": 2}, "version 1"),
        (lambda d: d | {"colour": 1}, "unknown keys \\['colour'\\]"),
        (lambda d: {k: v for k, v in d.items() if k != "a"}, "missing keys \\['a'\\]"),
        (lambda d: [d], "version 1"),
    ],
)
def test_bad_json(edit, message: str) -> None:  # type: ignore[no-untyped-def]
    data = json.loads(plan("euler", schedules.linear(), 3).to_json())
    with pytest.raises(ValueError, match=message):
        Plan.from_json(json.dumps(edit(data)))
    with pytest.raises(ValueError, match="not a plan"):
        Plan.from_json("{")


def test_a_plan_prints_as_a_table_with_its_noise_range() -> None:
    text = str(plan("rk4", schedules.linear(), 20, "uniform"))
    lines = text.splitlines()
    assert lines[0].startswith("rk4: 20 evaluations") and "sigma 0.99998" in lines[2]
    rows = [line.split() for line in lines if line.split()[0].isdigit()]
    assert len(rows) == 20 and [int(r[0]) for r in rows] == list(range(20))
    assert len({len(line) for line in lines[3:]}) == 1
    assert " c" in str(plan("ddpm", schedules.linear(), 3)).splitlines()[3]


def test_a_deep_plan_prints_what_its_rows_read_within_100_columns() -> None:
    """Thirteen columns of pndm's history would be 230 wide, nearly all zeros."""
    p = plan("pndm", LINEAR, 14, "uniform")
    assert p.depth == 13
    lines = str(p).splitlines()
    assert max(map(len, lines)) <= 100
    titles, *rows = lines[3:]
    numbers, read = titles.split()[:6], []
    assert numbers == ["row", "t", "alpha", "sigma", "lam", "a"] and titles.endswith("  j:b of every b that is not 0")
    for line in rows:
        cells = line.split()
        if ":" not in cells[0]:
            i = len(read)
            read.append([])
            values = [i, p.t[i], p.alpha[i], p.sigma[i], np.log(p.alpha[i] / p.sigma[i]), p.a[i]]
            assert cells[:6] == [f"{value:.6g}" for value in values]
            cells = cells[6:]
        assert line.index(cells[0]) == titles.index("j:b")  # what is continued stays in its column
        read[-1] += cells
    assert read == [[f"{j}:{b[j]:.6g}" for j in range(13) if b[j] != 0] for b in p.b]


def test_a_deep_stochastic_plan_prints_its_noise_and_a_row_that_reads_nothing() -> None:
    rows = 8
    b = np.zeros((rows, rows))
    b[-1, [0, 7]] = 0.25, 0.75
    ones = np.ones(rows + 1)
    c = np.array([1.0, *np.zeros(rows - 1)])
    a = np.array([*np.ones(rows - 1), 0.0])
    p = Plan("x0", np.arange(rows, 0, -1), ones, [1, *[2**0.5] * (rows - 1), 0], a, b, c)
    table = [line.split() for line in str(p).splitlines()[3:]]
    assert table[0][5:7] == ["a", "c"]
    assert table[1][5:] == ["1", "1"] and table[2][5:] == ["1", "0"] and table[8][5:] == ["0", "0", "0:0.25", "7:0.75"]


@pytest.mark.parametrize(("name", "depth"), [("euler", 1), ("ab4", 4), ("unipc_4", 5), ("rk4", 4)])
def test_an_ordinary_plan_prints_every_coefficient_in_its_column(name: str, depth: int) -> None:
    p = plan(name, LINEAR, 9)
    titles, *rows = [line.split() for line in str(p).splitlines()[3:]]
    assert p.depth == depth and titles == ["row", "t", "alpha", "sigma", "lam", "a", *(f"b{j}" for j in range(depth))]
    lam = np.log(p.alpha[:-1] / p.sigma[:-1])
    columns = [np.arange(9), p.t, p.alpha[:-1], p.sigma[:-1], lam, p.a, *p.b.T]
    assert rows == [[f"{value:.6g}" for value in row] for row in zip(*columns, strict=True)]


def test_probe_reads_a_sampler_and_lower_rewrites_it() -> None:
    # x1 = 2 x0 + 3 d0, x2 = 5 x1 + 7 d1 + 11 d0 + 13 z1
    def run(f, x):  # type: ignore[no-untyped-def]
        p = Point(1.0, 0.5, 0.5)
        d0 = f(x, p)
        x = 2 * x + 3 * d0
        return 5 * x + 7 * f(x, p) + 11 * d0 + 13 * f.noise()

    states, points = probe(run, 2)
    assert len(points) == 2
    np.testing.assert_array_equal(states, [[1, 0, 0, 0, 0], [2, 3, 0, 0, 0], [10, 26, 7, 0, 13]])
    a, b, c = lower(states)
    np.testing.assert_array_equal(a, [2, 5])
    np.testing.assert_array_equal(b, [[3, 0], [7, 11]])
    np.testing.assert_array_equal(c, [0, 13])


@pytest.mark.parametrize(
    ("run", "nfe", "message"),
    [
        (lambda f, x: x + f(x, None), 2, "1 times, not 2"),
        (lambda f, x: x + f(x, None) + f(x, None), 1, "more than the 1 times"),
        (lambda f, x: f(x, None) + f.noise() + f.noise(), 1, "row 0 draws two noises"),
    ],
)
def test_probe_counts(run, nfe: int, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        probe(run, nfe)


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ([[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [1, 1, 1, 0, 0]], "holds neither start nor noise"),
        ([[1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]], "not made yet"),
        ([[1, 0, 0, 0, 0], [1, 1, 0, 1, 0], [1, 1, 1, 0, 1]], "re-weighs the noise"),
    ],
)
def test_lower_refuses_what_no_row_can_hold(states: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lower(np.array(states, dtype=float))
