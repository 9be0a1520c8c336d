"""The command line: what it prints is what happened, what it writes is what the library gives, errors are one line."""

import json
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import odediff
from odediff import analysis
from odediff.adaptive import solve
from odediff.cli import main, make_parser
from odediff.cli import train as train_command
from odediff.cli.plan import SCHEDULES
from odediff.images import image_grid
from odediff.nn import SIZES, UNet, unet_config
from odediff.spaces import SPACES
from odediff.training import TrainConfig
from odediff.training.config import AMP, LR_DECAYS, WEIGHTINGS

COMMANDS = ("sample", "plan", "info", "tune", "train", "export")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small untrained model, 1x8x8, cosine; as it predicts x0, it draws greys, not black and white."""
    folder = tmp_path_factory.mktemp("tiny")
    net = UNet(**unet_config("xs", in_channels=1, sample_size=8))
    info = {"recipe": {"steps": 0}, "seed": 3}
    odediff.Model(net, schedule=odediff.schedule.cosine(), prediction="x0", shape=(1, 8, 8), info=info).save(folder)
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny`, with three classes that it tells apart."""
    folder = tmp_path_factory.mktemp("digits")
    torch.manual_seed(0)
    net = UNet(**unet_config("xs", in_channels=1, sample_size=8, num_class_embeds=4))
    schedule = odediff.schedule.cosine()
    odediff.Model(net, schedule=schedule, prediction="x0", shape=(1, 8, 8), num_classes=3).save(folder)
    return folder


def run(capsys: pytest.CaptureFixture[str], command: str) -> str:
    assert main(shlex.split(command)) == 0
    return capsys.readouterr().out


def facts(text: str) -> dict[str, str]:
    """`name  value` lines as a dictionary."""
    return dict(re.split(r"\s{2,}", line, maxsplit=1) for line in text.splitlines())


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.mark.parametrize(
    ("solver", "options"),
    [("rk4", {}), ("unipc_3", {"grid": "logsnr"}), ("ddim", {"eta": 1.0}), ("ab3", {"clip": True})],
)
def test_sample_writes_what_the_library_draws(tiny, tmp_path, capsys, solver, options):
    out = tmp_path / "x.png"
    more = " ".join(f"--{name}" if value is True else f"--{name} {value}" for name, value in options.items())
    said = facts(run(capsys, f"sample {tiny} --solver {solver} --nfe 11 --n 5 --seed 4 --out {out} {more}"))
    assert list(said) == ["solver", "evaluations", "seconds", "picture"]
    assert said["solver"].split(",")[0] == solver
    assert said["evaluations"] == "11"
    assert float(said["seconds"]) > 0
    assert Path(said["picture"]) == out.resolve()
    want = odediff.sample(odediff.load(tiny), solver, 11, n=5, seed=4, **options)
    assert len(np.unique(pixels(out))) > 30
    assert (pixels(out) == np.asarray(image_grid(want))).all()


@pytest.mark.parametrize(
    ("argument", "label", "columns"),
    [("1", [1] * 5, None), ("0-2", [0, 1, 2, 0, 1], 3), ("2,0", [2, 0, 2, 0, 2], 2), ("0,1-2,2", [0, 1, 2, 2, 0], 4)],
)
def test_sample_takes_labels_in_turn_a_column_each(digits, tmp_path, capsys, argument, label, columns):
    out = tmp_path / "x.png"
    command = f"sample {digits} --solver ab2 --nfe 6 --n 5 --out {out} --label {argument}"
    said = facts(run(capsys, f"{command} --guidance 2.5 --threshold 0.9"))
    assert said["evaluations"] == "6"
    want = odediff.sample(odediff.load(digits), "ab2", 6, n=5, seed=0, label=label, guidance=2.5, threshold=0.9)
    assert (pixels(out) == np.asarray(image_grid(want, columns=columns))).all()
    guided = pixels(out)
    run(capsys, command)
    assert (guided != pixels(out)).any()
    assert facts(run(capsys, f"info {digits}"))["classes"] == "3, class-conditional"


def test_sample_takes_ddpms_variance(tiny, tmp_path, capsys):
    out = tmp_path / "x.png"
    command = f"sample {tiny} --solver ddpm --nfe 5 --n 2 --out {out}"
    run(capsys, f"{command} --variance fixed_large")
    model = odediff.load(tiny)
    plan = odediff.plan("ddpm", model.schedule, nfe=5, variance="fixed_large")
    large = pixels(out)
    assert (large == np.asarray(image_grid(odediff.sample(model, plan, n=2, seed=0)))).all()
    run(capsys, command)
    assert (large != pixels(out)).any()


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        (
            "--solver heun_churn --option s_churn=1 --option s_tmax=None",
            {"solver": "heun_churn", "s_churn": 1.0, "s_tmax": None},
            "heun_churn, grid quadratic, s_churn 1.0, s_tmax None",
        ),
        (
            "--solver sa_solver --option predictor=2 --option tau=.5 --grid karras",
            {"solver": "sa_solver", "predictor": 2, "tau": 0.5, "grid": "karras"},
            "sa_solver, grid karras, predictor 2, tau 0.5",
        ),
        (
            "--solver ab3 --space eps --variable lam",
            {"solver": "ab3", "space": "eps", "variable": "lam"},
            "ab3, grid quadratic, space eps, variable lam",
        ),
        (
            "--solver unipc_3 --option orders=123321111",
            {"solver": "unipc_3", "orders": "123321111"},
            "unipc_3, grid quadratic, orders 123321111",
        ),
        (
            "--solver ddim --grid 999,800,700,600,500,400,300,200,100 --end 20",
            {"solver": "ddim", "grid": [999, 800, 700, 600, 500, 400, 300, 200, 100], "end": 20.0},
            "ddim, grid [999.0, 800.0, 700.0, 600.0, 500.0, 400.0, 300.0, 200.0, 100.0], end 20.0",
        ),
        ("--solver ab2 --snap", {"solver": "ab2", "snap": True}, "ab2, grid quadratic, snap True"),
        (
            "--solver torchdiffeq:rk4 --variable rho",
            {"solver": "torchdiffeq:rk4", "variable": "rho"},
            "torchdiffeq:rk4",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::odediff.methods.PrecisionWarning")
def test_sample_takes_every_option_of_a_solver(tiny, tmp_path, capsys, arguments, options, said):
    out = tmp_path / "x.png"
    found = facts(run(capsys, f"sample {tiny} --nfe 9 --n 3 --out {out} {arguments}"))
    assert found["solver"] == said
    want = odediff.sample(odediff.load(tiny), nfe=9, n=3, seed=0, **options)
    assert (pixels(out) == np.asarray(image_grid(want))).all()
    plain = odediff.sample(odediff.load(tiny), options["solver"], 9, n=3, seed=0)
    assert (pixels(out) != np.asarray(image_grid(plain))).any()


def test_sample_without_options_draws_64_with_the_default_at_20(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = facts(run(capsys, f"sample {tiny}"))
    assert (said["solver"].split(",")[0], said["evaluations"]) == (
        odediff.plan(None, odediff.schedule.linear(), 20).method,
        "20",
    )
    want = odediff.sample(odediff.load(tiny), n=64, seed=0)
    assert (pixels(tmp_path / "samples.png") == np.asarray(image_grid(want))).all()


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ("--seed 7 --n 3", {"seed": 7, "n": 3}),
        ("--seed 7-7", {"seed": [7]}),
        ("--seed 3,5,8", {"seed": [3, 5, 8]}),
        ("--seed 0-4 --n 5", {"seed": [0, 1, 2, 3, 4]}),
        ("--seed 0-2,9,1", {"seed": [0, 1, 2, 9, 1]}),
        ("--seed '3, 18446744073709551615'", {"seed": [3, 2**64 - 1]}),
    ],
)
@pytest.mark.parametrize("solver", ["ddpm", "torchdiffeq:euler"])
def test_sample_takes_a_seed_for_all_or_one_for_each(tiny, tmp_path, capsys, solver, options, want):
    out = tmp_path / "x.png"
    run(capsys, f"sample {tiny} --solver {solver} --nfe 3 --out {out} {options}")
    drawn = odediff.sample(odediff.load(tiny), solver, 3, **want)
    assert len(drawn) == want.get("n", len(want["seed"]) if isinstance(want["seed"], list) else 0)
    assert (pixels(out) == np.asarray(image_grid(drawn))).all()


def test_sample_reports_what_an_adaptive_solver_used(tiny, tmp_path, capsys):
    command = f"sample {tiny} --solver bosh3 --n 2 --out {tmp_path / 'x.png'}"
    loose = facts(run(capsys, f"{command} --rtol 1e-1 --atol 1e-1"))
    tight = facts(run(capsys, f"{command} --rtol 1e-4 --atol 1e-3"))
    want = solve(odediff.load(tiny), "bosh3", rtol=1e-4, atol=1e-3, n=2, seed=0)
    assert int(tight["evaluations"]) == want.nfe
    assert 3 < int(loose["evaluations"]) < want.nfe


def table_and_verdict(said: str) -> tuple[str, list[list[str]]]:
    """What `plan` prints: the table, and below it `name  value` lines, of which several may be warnings."""
    table, verdict = said.split("\n\n")
    return table, [re.split(r"\s{2,}", line, maxsplit=1) for line in verdict.splitlines()]


def test_plan_prints_the_table_and_its_verdict(capsys):
    said = run(capsys, "plan ddim --nfe 6 --schedule flow --grid uniform --eta 0.5")
    plan = odediff.plan("ddim", odediff.schedule.flow(), nfe=6, grid="uniform", eta=0.5)
    table, verdict = table_and_verdict(said)
    assert table == f"{plan}"
    order = analysis.observed_order("ddim", odediff.schedule.flow(), grid="uniform", eta=0.5).order["gaussian"]
    factors = analysis.amplification(plan)
    assert verdict == [
        ["order", f"1 with its default options; observed, start-up rows included: {order:.2f} on Gaussian data"],
        ["amplification", f"{factors.max():.3g} in row {factors.argmax()}, the largest"],
    ]


@pytest.mark.parametrize(
    ("arguments", "options", "order"),
    [
        ("ab3 --space x0 --variable lam", {"space": "x0", "variable": "lam"}, "3"),
        ("lms --option order=1", {"order": 1}, "4 with its default options"),
        ("ab3 --snap", {"snap": True}, "3"),
        ("unipc_2 --option orders=falling --option b=bh1", {"orders": "falling", "b": "bh1"}, "3 with its .* options"),
    ],
)
def test_plan_takes_every_option_in_table_and_verdict(arguments, options, order, capsys):
    """lms of order 1 is Euler: an order of 4 would be that of other options than those of the table."""
    table, verdict = table_and_verdict(run(capsys, f"plan {arguments} --nfe 9"))
    name = arguments.split()[0]
    assert table == str(odediff.plan(name, odediff.schedule.linear(), nfe=9, **options))
    found = analysis.observed_order(name, odediff.schedule.linear(), **options).order
    assert re.fullmatch(f"{order}; observed, .*: {found['gaussian']:.2f} on Gaussian data, .*", verdict[0][1])


@pytest.mark.parametrize(("end", "options"), [("", {}), ("--end 20", {"end": 20.0})])
@pytest.mark.parametrize("solver", ["ab2", ""])
def test_plan_takes_times_and_an_end(solver, end, options, capsys):
    table, verdict = table_and_verdict(run(capsys, f"plan {solver} --nfe 4 --grid 999,600,300.5,100 {end}"))
    want = odediff.plan(solver or None, odediff.schedule.linear(), 4, [999, 600, 300.5, 100], **options)
    assert table == str(want) and want.sigma[-1] == (0 if not end else odediff.schedule.linear().sigma(20))
    order = odediff.METHODS[want.method].order
    assert verdict[0] == ["order", f"{order}; not observed: the times of --grid are for one budget"]
    assert verdict[1][0] == "amplification"


def test_plan_snaps_where_asked_and_where_the_network_needs_it(tiny, capsys):
    plain, snapped = (run(capsys, f"plan ab3 --nfe 5 --model {tiny} {flag} --json -") for flag in ("", "--snap"))
    for text, snap in ((plain, False), (snapped, True)):
        assert odediff.Plan.from_json(text) == odediff.plan("ab3", odediff.schedule.cosine(), 5, snap=snap)
    assert plain != snapped


def test_plan_of_options_for_one_budget_says_that_no_order_is_observed(capsys):
    table, verdict = table_and_verdict(run(capsys, "plan unipc_3 --nfe 8 --option orders=12333321"))
    assert table == str(odediff.plan("unipc_3", odediff.schedule.linear(), nfe=8, orders="12333321"))
    assert verdict[0][1].startswith("4 with its default options; not observed at other budgets: orders = '12333321'")
    assert verdict[1][0] == "amplification"


def test_plan_prints_the_orders_of_deterministic_methods_on_both_problems(capsys):
    _, verdict = table_and_verdict(run(capsys, "plan rk4 --nfe 20"))
    found = analysis.observed_order("rk4", odediff.schedule.linear()).order
    assert verdict[0][1] == (
        f"4; observed, start-up rows included: {found['gaussian']:.2f} on Gaussian data, "
        f"{found['mixture']:.2f} on a mixture"
    )


def test_plan_prints_warnings(capsys):
    _, verdict = table_and_verdict(run(capsys, "plan ipndm --nfe 8 --grid karras"))
    plan = odediff.plan("ipndm", odediff.schedule.linear(), nfe=8, grid="karras")
    assert verdict[2:] == [["warning", said] for said in analysis.warnings(plan)]
    assert len(verdict) == 4


def test_plan_draws_the_plan(tmp_path, capsys):
    table, _ = table_and_verdict(run(capsys, f"plan rk4 --nfe 9 --plot {tmp_path / 'plan.png'}"))
    assert table == str(odediff.plan("rk4", odediff.schedule.linear(), nfe=9))
    assert min(pixels(tmp_path / "plan.png").shape[:2]) > 400


def test_plan_as_json_loses_no_bit(tmp_path, capsys):
    want = odediff.plan("rk4", odediff.schedule.linear(), nfe=9)
    assert run(capsys, f"plan rk4 --nfe 9 --json {tmp_path / 'plan.json'}").startswith(f"{want}\n\n")
    assert odediff.Plan.from_json((tmp_path / "plan.json").read_text()) == want
    assert odediff.Plan.from_json(run(capsys, "plan rk4 --nfe 9 --json -")) == want


def test_plan_takes_a_models_schedule(tiny, capsys):
    said = run(capsys, f"plan euler --nfe 4 --model {tiny}")
    assert said.startswith(f"{odediff.plan('euler', odediff.schedule.cosine(), nfe=4)}\n\n")


@pytest.mark.parametrize("name", SCHEDULES)
def test_plan_knows_every_named_schedule(name, capsys):
    assert f"schedule {name}" in run(capsys, f"plan dpmpp_2m --nfe 5 --schedule {name}")


@pytest.mark.parametrize(
    "command", ["plan rk4 --nfe 9 --schedule cosine", "info", "info ab3", "--help", "train --help"]
)
def test_commands_that_need_no_network_load_no_torch(command):
    script = (
        "import sys, odediff.cli\n"
        f"try: odediff.cli.main({shlex.split(command)!r})\n"
        "except SystemExit: pass\n"
        "slow = {'torch', 'PIL', 'tqdm', 'safetensors', 'torchdiffeq', 'matplotlib'}\n"
        "print(sorted(slow & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout
    assert done.stderr == "[]\n"


def test_info_lists_every_method_with_its_order(capsys):
    said = run(capsys, "info")
    for name, method in odediff.METHODS.items():
        noise = "" if not method.stochastic else r"option +" if name == "ddim" else r"yes +"
        numbers = f"{method.order} +{method.stages} +{method.min_nfe}"
        where = f"{method.space} +{method.variable} +{method.grid} +{noise}{method.source}, {re.escape(method.where)}"
        assert re.search(rf"^{name} +{numbers} +{where}$", said, re.MULTILINE)


def test_info_stands_in_columns_of_at_most_120_characters(capsys):
    table = run(capsys, "info").split("\n\n")[0].splitlines()
    assert len(table) == 1 + len(odediff.METHODS) and max(map(len, table)) <= 120
    for title, values in (
        ("space", {method.space for method in odediff.METHODS.values()}),
        ("variable", {method.variable for method in odediff.METHODS.values()}),
        ("grid", {method.grid for method in odediff.METHODS.values()}),
        ("noise", {"yes", "option", ""}),
        ("source", {method.source + "," for method in odediff.METHODS.values()}),
    ):
        at = table[0].index(title)
        assert {(line[at:].split(" ")[0], line[at - 1]) for line in table[1:]} == {(value, " ") for value in values}


def test_info_of_a_solver_tells_all_about_it(capsys):
    said = run(capsys, "info heun_churn")
    table, doc, *cited = said.split("\n\n")
    assert [re.split(r"\s{2,}", line, maxsplit=1) for line in table.splitlines()] == [
        ["solver", "heun_churn"],
        ["source", "karras2022, Algorithm 2; Table 5, ImageNet-64"],
        ["order", "2, the weak one where it adds noise"],
        ["evaluations", "2 a step, from 3 in all: 2+1"],
        ["space", "eps by default"],
        ["variable", "rho by default"],
        ["frames", "eps, over rho"],
        ["grid", "quadratic by default, where the schedule asks for no other"],
        ["noise", "scaled by s_churn; 0 for none"],
        ["options", "s_churn = 40.0 (float)"],
        ["", "s_tmin = 0.05 (float)"],
        ["", "s_tmax = 50.0 (float or None)"],
        ["", "s_noise = 1.003 (float)"],
    ]
    assert doc.startswith("Raise the noise from rho to rho^") and "gamma = min(" in cited[0]
    assert said.endswith(f"\n\n{odediff.cite('heun_churn')}\n")


@pytest.mark.parametrize("name", odediff.METHODS)
def test_info_knows_every_solver(name, capsys):
    said, method = run(capsys, f"info {name}"), odediff.METHODS[name]
    assert f"evaluations  {method.stages} a step, from {method.min_nfe} in all: " in said
    assert all(f"{key} = {value!r} (" in said for key, value in method.args.items())
    frames = [line.split(", over ") for line in said.split("\n\n")[0].splitlines() if ", over " in line]
    found = [(frame[0].split()[-1], variable) for frame in frames for variable in frame[1].split(", ")]
    assert sorted(found) == sorted(method.frames) and found[0] == method.frames[0]
    assert ("noise        none" in said) == (not method.stochastic) and said.endswith(f"\n\n{odediff.cite(name)}\n")
    assert ("the default" in said) == (name == "ddim")


def test_info_of_torchdiffeqs_solvers(capsys):
    assert facts(run(capsys, "info dopri5"))["options"].startswith("rtol and atol (0.001), max_nfe (1000), variable")
    assert facts(run(capsys, "info torchdiffeq:rk4"))["kind"] == "4 evaluations a step and one at the end"


def test_info_of_a_model_tells_its_facts(tiny, capsys):
    said = facts(run(capsys, f"info {tiny}"))
    count = sum(p.numel() for p in odediff.load(tiny).net.parameters())
    assert said["shape"].startswith("1 x 8 x 8")
    assert said["parameters"] == f"{count:,}"
    assert said["prediction"] == "x0"
    assert said["schedule"].startswith("name cosine, T 1000")
    assert said["range"] == "-1 .. 1"
    assert said["recipe"] == "steps 0"
    assert said["seed"] == "3"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8))
    return path


def test_train_then_resume_then_sample(images, tmp_path, capsys):
    out = tmp_path / "run"
    recipe = "--size xs --batch-size 4 --prediction x0 --schedule cosine --preview-every 2"
    said = facts(run(capsys, f"train --data {images} --out {out} --steps 4 --device cpu {recipe}"))
    assert said["steps"] == "4"
    assert Path(said["model"]) == out / "model"
    assert Path(said["picture"]) == out / "previews" / "000004.png"
    assert sorted(p.name for p in (out / "previews").iterdir()) == ["000002.png", "000004.png"]
    model = odediff.load(out / "model")
    assert model.schedule == odediff.schedule.cosine()
    # the last preview shows the averaged weights that were saved
    want = image_grid(odediff.sample(model, n=64, seed=0))
    assert (pixels(out / "previews" / "000004.png") == np.asarray(want)).all()
    assert (pixels(out / "previews" / "000002.png") != np.asarray(want)).any()
    run(capsys, f"train --out {out} --resume --steps 5 --device cpu")
    config = json.loads((out / "config.json").read_text())
    assert (config["steps"], config["batch_size"], config["size"]) == (5, 4, "xs")
    assert (out / "previews" / "000005.png").is_file()
    drawn = facts(run(capsys, f"{said['next'].removeprefix('odediff ')} --n 2 --nfe 5 --out {out / 'x.png'}"))
    assert drawn["evaluations"] == "5"


def test_train_with_labels_previews_every_class(tmp_path, capsys):
    rng, out = np.random.default_rng(0), tmp_path / "run"
    np.savez(tmp_path / "x.npz", images=rng.integers(0, 256, (40, 8, 8), dtype=np.uint8), y=np.arange(40) % 10)
    recipe = "--size xs --batch-size 4 --prediction x0 --labels y --label-dropout 0.2"
    said = facts(run(capsys, f"train --data {tmp_path / 'x.npz'} --out {out} --steps 2 --device cpu {recipe}"))
    model = odediff.load(out / "model")
    assert (model.num_classes, model.info["training"]["label_dropout"]) == (10, 0.2)
    want = odediff.sample(model, n=60, seed=0, label=[*range(10)] * 6)
    assert (pixels(Path(said["picture"])) == np.asarray(image_grid(want, columns=10))).all()
    run(capsys, f"train --out {out} --resume --steps 3 --device cpu")
    assert odediff.load(out / "model").num_classes == 10
    drawn = facts(run(capsys, f"{said['next'].removeprefix('odediff ')} --n 2 --nfe 5 --out {out / 'x.png'} --label 7"))
    assert drawn["evaluations"] == "5"


@pytest.mark.parametrize("classes", [65, 3])
def test_a_preview_has_every_class_however_many(classes, tmp_path, monkeypatch):
    seen = []

    def sample(model, nfe, n, seed, label):
        seen.append((n, label))
        return torch.zeros(n, 1, 8, 8)

    monkeypatch.setattr("odediff.sampling.sample", sample)
    model = odediff.Model(lambda *_: None, schedule=odediff.schedule.cosine(), shape=(1, 8, 8), num_classes=classes)
    train_command.preview()(model, 7, tmp_path)
    assert seen == [(65, list(range(65)))] if classes == 65 else seen == [(63, [0, 1, 2] * 21)]
    assert train_command.preview_path(tmp_path, 7).is_file()


def test_train_repeats_a_recipe(images, tmp_path, capsys):
    recipe = tmp_path / "recipe.json"
    options = TrainConfig(data=str(images), out="elsewhere", size="xs", steps=2, batch_size=4, lr=0.01, prediction="v")
    recipe.write_text(json.dumps(options.to_dict()))
    out = tmp_path / "run"
    run(capsys, f"train --recipe {recipe} --out {out} --steps 1 --device cpu")
    config = json.loads((out / "config.json").read_text())
    assert config == {**options.to_dict(), "out": str(out), "steps": 1}
    assert odediff.load(out / "model").prediction == "v"
    recipe.write_text("[1]")
    assert main(["train", "--recipe", str(recipe), "--out", str(tmp_path / "other")]) == 2
    assert "holds no options of a run" in capsys.readouterr().err
    recipe.write_text("{")
    assert main(["train", "--recipe", str(recipe), "--out", str(tmp_path / "other")]) == 2
    assert "is not JSON" in capsys.readouterr().err


def test_train_tells_the_defaults_and_choices_of_the_library():
    options = {option.field: option for option in train_command.OPTIONS + train_command.FLAGS}
    config = TrainConfig(data="", out="")
    own = {"data", "out", "network", "schedule"}
    assert set(options) == {f.name for f in fields(TrainConfig)} - own
    assert {name: option.default for name, option in options.items()} == {n: getattr(config, n) for n in options}
    choices = {name: set(option.choices) for name, option in options.items() if option.choices}
    assert choices == {
        "size": set(SIZES),
        "lr_decay": set(LR_DECAYS),
        "prediction": set(SPACES),
        "weighting": set(WEIGHTINGS),
        "amp": set(AMP),
    }


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_shows_examples_that_parse(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*filter(None, [command]), "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    examples = [re.split(r"\s{2,}", line.strip())[0] for line in text.splitlines() if line.startswith("  odediff ")]
    assert len(examples) >= 3
    for example in examples:
        make_parser().parse_args(shlex.split(example)[1:])


def test_without_a_command_the_help_is_shown(capsys):
    assert "start here:" in run(capsys, "")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("sample TINY --solver rk5", "rk5"),
        ("sample TINY --solver rk4 --nfe 2", "nearest: 5"),
        ("sample TINY --n 0", "--n must be 1 or more"),
        ("sample TINY --seed=-1", "seed = -1"),
        ("sample TINY --seed 0-7 --n 5", "seed holds 8 seeds for n = 5 samples"),
        ("sample TINY --seed 3,18446744073709551616", "seed[1] = 18446744073709551616"),
        ("sample TINY --seed 3,", "argument --seed: '' in '3,' is no whole number or range; write 7, 0-9 or 3,5,8"),
        ("sample TINY --seed 1.5", "'1.5' in '1.5' is no whole number"),
        ("sample TINY --seed 3,-1", "'-1' in '3,-1' is no whole number"),
        ("sample TINY --seed 1-2-3", "'1-2-3' in '1-2-3' is no whole number"),
        ("sample TINY --seed 7-3", "'7-3' must count up"),
        ("sample TINY --seed 0-18446744073709551615", "no more than a million numbers"),
        ("sample TINY --out no/such/folder/x.png", "no folder no/such/folder"),
        ("sample TINY --out x.txt", ".png"),
        ("sample TINY --device abacus", "abacus"),
        ("sample TINY --rtol 1e-3", "rtol"),
        ("sample TINY --solver dopri5 --variance fixed_large", "ddpm"),
        ("sample TINY --label 0-9", "label = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0"),
        ("sample TINY --label nine", "'nine' in 'nine' is no whole number or range"),
        ("sample TINY --label 9-0", "'9-0' must count up"),
        ("sample TINY --label=-1", "'-1' in '-1' is no whole number"),
        ("sample TINY --guidance 2", "guidance = 2 needs a class-conditional model"),
        ("sample TINY --threshold 0.995 --clip", "both limit x0"),
        ("sample TINY --threshold 99.5", "threshold = 99.5 must be a quantile"),
        ("train --out run --data x --label-dropout 1", "label_dropout = 1.0"),
        ("train --out run --data TINY --labels y", "holds none of"),
        ("sample nowhere", "no model 'nowhere'"),
        ("plan rk9", "unknown solver 'rk9'; did you mean rk4 or rk3? choose euler"),
        ("plan rk4 --eta 1", "'eta'"),
        ("plan rk4 --grid karas", "unknown grid 'karas'; did you mean karras? choose uniform"),
        ("plan rk4 --space noise", "invalid choice: 'noise'"),
        ("plan rk4 --option", "expected one argument"),
        ("plan rk4 --option tau=1", "rk4 has no option 'tau'; it takes none"),
        ("plan sa_solver --option nfe=3", "--option nfe=3: nfe is no option of a solver; write it as --nfe"),
        ("plan sa_solver --option label=3", "no option 'label'; it takes ['corrector', 'form', 'orders', 'predictor'"),
        ("sample TINY --option guidance=3", "guidance is no option of a solver; write it as --guidance"),
        ("plan rk4 --end 20", "end = 20.0 needs an explicit grid"),
        ("plan ab2 --nfe 3 --grid 900,300 --end 20", "the grid has shape (2,), but steps of 1+1+1 evaluations"),
        ("plan ab2 --nfe 3 --grid 900,3OO", "unknown grid '900,3OO'"),
        ("plan ab2 --snap --schedule edm", "snap=True needs a table of steps"),
        ("sample TINY --solver dopri5 --snap", "dopri5 takes no 'snap'"),
        ("plan dopri5", "dopri5, have no table: see odediff.solve"),
        ("plan sa_solver --option tau", "--option tau: write KEY=VALUE, such as s_churn=10"),
        ("plan sa_solver --option =1", "--option =1: write KEY=VALUE"),
        ("plan sa_solver --option tau=x", "tau = 'x' is no option of sa_solver, which takes float there"),
        ("plan sa_solver --option tau=None", "tau = 'None' is no option of sa_solver, which takes float there"),
        ("plan sa_solver --option predictor=2.0", "predictor = '2.0' is no option of sa_solver, which takes int there"),
        ("plan sa_solver --option s_tmax=x", "s_tmax = 'x' is no option of sa_solver, which takes float or None there"),
        ("plan sa_solver --option tau=1 --option tau=2", "--option tau=2: tau is given twice"),
        ("plan ddim --eta 1 --option eta=0", "--option eta=0: eta is given twice"),
        (
            "sample TINY --solver heun_churn --option churn=1",
            "no option 'churn'; did you mean s_churn? it takes ['s_churn'",
        ),
        ("sample TINY --solver heun_chrun --option s_churn=1", "'heun_chrun'; did you mean heun_churn"),
        (
            "sample TINY --solver dopri5 --option s_churn=1",
            "--option s_churn=1: dopri5 is torchdiffeq's and takes none",
        ),
        ("sample TINY --solver dopri5 --space eps", "dopri5 takes no 'space'"),
        ("sample TINY --solver dopri5 --variable lam", "unknown variable 'lam'; choose t, rho, phi"),
        ("plan rk4 --nfe 9 --json no/such/plan.json", "no/such/plan.json"),
        ("plan rk4 --nfe 9 --plot no/such/plan.png", "no folder no/such"),
        ("plan rk4 --nfe 9 --plot plan.txt", ".png"),
        ("info nowhere", "no solver and no model 'nowhere'; `odediff info` lists both"),
        ("info unipc3", "no solver and no model 'unipc3'; did you mean unipc_3, unipc_"),
        ("info minst", "no solver and no model 'minst'; did you mean mnist or midpoint? `odediff info` lists"),
        ("train --out run", "--data is missing"),
        ("train --out run --resume", "nothing to resume in run"),
        ("train --out run --resume --recipe r.json", "leave --recipe away"),
        ("train --out run --recipe missing.json", "missing.json"),
        ("train --out run --data nowhere.npz", "nowhere.npz"),
        ("train --out run --data x --batch-size 0", "batch_size = 0"),
        ("train --data x", "--out"),
        ("dance", "invalid choice: 'dance'"),
        ("plan rk4 --nfe many", "invalid int value: 'many'"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(tiny, tmp_path, capsys, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(shlex.split(argv.replace("TINY", str(tiny))))
    except SystemExit as stopped:
        code = stopped.code
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert said.err.startswith("odediff: error: ")
    assert said.err.count("\n") == 1
    assert message in said.err
    assert list(tmp_path.iterdir()) == []


def test_a_budget_that_runs_out_leaves_the_best_picture(tiny, tmp_path, capsys):
    out = tmp_path / "best.png"
    command = f"sample {tiny} --solver dopri5 --rtol 1e-6 --max-nfe 10 --n 2 --out {out}"
    assert main(shlex.split(command)) == 2
    said = capsys.readouterr().err
    assert "raise max_nfe or loosen" in said and str(out) in said and said.count("\n") == 1
    assert pixels(out).std() > 0


def test_a_defect_of_the_library_keeps_its_traceback(tiny, monkeypatch):
    monkeypatch.setattr("odediff.methods.plan", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["plan", "rk4"])


def test_without_torch_the_remedy_is_named():
    script = "import sys; sys.modules['torch'] = None; from odediff.cli import main; sys.exit(main(['sample']))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "odediff: error: this command needs torch: pip install torch\n")


def test_an_interrupt_is_one_line_and_exit_code_130(tiny, images, tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        signal.getsignal(signal.SIGINT)(signal.SIGINT, None)  # what a signal would call: tests/test_training_loop.py

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("odediff.methods.plan", interrupted)
    assert main(["plan", "rk4"]) == 130
    assert capsys.readouterr().err == "odediff: interrupted\n"
    monkeypatch.setattr("odediff.sampling.sample", lambda *_, **__: interrupt() or torch.zeros(1, 1, 8, 8))
    command = (
        f"train --data {images} --out {tmp_path} --size xs --batch-size 2 --steps 5 --preview-every 1 --device cpu"
    )
    assert main(shlex.split(command)) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("odediff: stopped at step 2 of 5")
    assert "--resume" in last


def test_the_module_is_the_command():
    argv = ["plan", "rk4", "--nfe", "6"]
    done = subprocess.run([sys.executable, "-m", "odediff", *argv], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{odediff.plan('rk4', odediff.schedule.linear(), nfe=6)}\n\norder ")
    done = subprocess.run([sys.executable, "-m", "odediff", "plan", "rk9"], capture_output=True, text=True)
    assert (done.returncode, done.stderr[:16]) == (2, "odediff: error: ")


@pytest.mark.parametrize("nfe", ["6", "1000"])  # less, and more, than what Python and the pipe hold back
def test_a_reader_that_leaves_early_gets_no_traceback(nfe, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    command = [sys.executable, "-m", "odediff", "plan", "euler", "--nfe", nfe]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
