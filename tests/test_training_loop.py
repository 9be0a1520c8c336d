"""`train` from images to model: it learns what can be learned, resumes bit for bit, and refuses what it cannot do."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import odediff
from odediff.spaces import space_pair
from odediff.training import TrainConfig, train

TINY: dict[str, Any] = {
    "block_out_channels": [8],
    "down_block_types": ["AttnDownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "mid_block_type": None,
    "attention_head_dim": 4,
}
SCHEDULE = {"name": "linear", "T": 10, "beta_start": 0.02, "beta_end": 0.6}
MEAN, STD = -0.2, 0.3


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of independent Gaussian pixels."""
    values = MEAN + STD * np.random.default_rng(0).standard_normal((4000, 4, 4))
    path = tmp_path_factory.mktemp("data") / "gauss.npz"
    np.savez(path, images=np.clip(np.round((values + 1) * 127.5), 0, 255).astype(np.uint8))
    return path


def _config(data: Path, out: Path, **changes: Any) -> TrainConfig:
    base: dict[str, Any] = {
        "network": {**TINY, "dropout": 0.1},
        "schedule": SCHEDULE,
        "steps": 20,
        "batch_size": 8,
        "warmup_steps": 4,
        "flip": True,
        "log_every": 3,
        "checkpoint_every": 0,
    }
    return TrainConfig(data=str(data), out=str(out), **{**base, **changes})


def _train(config: TrainConfig, **arguments: Any) -> odediff.Model:
    return train(config, progress=False, device="cpu", **arguments)


def _weights(model: odediff.Model) -> dict[str, torch.Tensor]:
    assert isinstance(model.net, nn.Module)
    return model.net.state_dict()


def _log(out: Path) -> list[tuple[float, float, float]]:
    """Step, loss and rate of every line; what is measured in seconds is not repeatable."""
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [(r["step"], r["loss"], r["lr"]) for r in records]


def _assert_same_run(a: Path, b: Path) -> None:
    first, second = (load_file(out / "checkpoint.safetensors") for out in (a, b))
    assert first.keys() == second.keys()
    # Weights, averages, moments and random states.
    assert {k.split(".")[0] for k in first} == {"net", "ema", "adam", "rng", "loss_sum"}
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different
    assert _log(a) == _log(b)
    for name, value in load_file(a / "model" / "model.safetensors").items():
        assert torch.equal(value, load_file(b / "model" / "model.safetensors")[name])


@pytest.fixture(scope="session")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that never stopped."""
    out = tmp_path_factory.mktemp("whole")
    _train(_config(data, out))
    return out


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_learns_gaussian_pixels_to_the_least_possible_loss(data: Path, tmp_path: Path, prediction: str) -> None:
    config = _config(
        data,
        tmp_path,
        prediction=prediction,
        steps=300,
        batch_size=64,
        lr=6e-3,
        warmup_steps=20,
        network={**TINY, "block_out_channels": [16], "down_block_types": ["DownBlock2D"]},
    )
    model = _train(config)
    t = np.arange(10.0)
    alpha, sigma = model.schedule.alpha(t), model.schedule.sigma(t)
    u, w = space_pair(prediction, alpha, sigma)
    least = (u * sigma - w * alpha) ** 2 * STD**2 / (alpha**2 * STD**2 + sigma**2)
    generator = torch.Generator().manual_seed(1)
    got = []
    with torch.no_grad():
        for i in range(10):
            x0 = MEAN + STD * torch.randn(2000, 1, 4, 4, generator=generator)
            eps = torch.randn(2000, 1, 4, 4, generator=generator)
            error = model(alpha[i] * x0 + sigma[i] * eps, float(i)) - (u[i] * x0 + w[i] * eps)
            got.append(float(error.square().mean()))
    # The sampling error of the ratio is below 1 %.
    assert 0.99 < np.mean(got) / np.mean(least) < 1.04
    losses = [loss for step, loss, _ in _log(tmp_path) if step > 150]
    assert np.mean(losses) == pytest.approx(np.mean(least), rel=0.06)


def test_writes_a_model_with_the_averaged_weights(data: Path, whole: Path) -> None:
    model = odediff.load(whole / "model")
    assert model.shape == (1, 4, 4) and model.prediction == "eps" and model.schedule.identity == SCHEDULE
    checkpoint = load_file(whole / "checkpoint.safetensors")
    for name, value in _weights(model).items():
        assert torch.equal(value, checkpoint[f"ema.{name}"])
        assert not torch.equal(value, checkpoint[f"net.{name}"])
    config = TrainConfig.from_dict(json.loads((whole / "config.json").read_text()))
    assert config == _config(data, whole)
    assert model.info["training"] == config.to_dict() and model.info["step"] == 20
    assert model.info["data"]["shape"] == [4000, 1, 4, 4]


def test_log_has_a_line_every_so_often(whole: Path) -> None:
    records = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [3, 6, 9, 12, 15, 18]
    assert all(set(r) == {"step", "loss", "lr", "images/s", "seconds"} for r in records)
    assert all(0 < a["seconds"] < b["seconds"] for a, b in zip(records, records[1:], strict=False))


def test_two_halves_are_the_whole_bit_for_bit(data: Path, tmp_path: Path) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    _train(_config(data, once, steps=100, lr_decay="constant"))
    _train(_config(data, twice, steps=50, lr_decay="constant"))
    assert odediff.load(twice / "model").info["step"] == 50
    _train(_config(data, twice, steps=100, lr_decay="constant"), resume=True)
    _assert_same_run(once, twice)


class _Stop(Exception):
    pass


def test_resumes_after_dying_between_checkpoints(data: Path, tmp_path: Path, whole: Path) -> None:
    def die(record: dict[str, Any]) -> None:
        if record["step"] == 15:
            raise _Stop

    config = _config(data, tmp_path, checkpoint_every=7)
    with pytest.raises(_Stop):
        _train(config, on_log=die)
    assert [step for step, _, _ in _log(tmp_path)] == [3, 6, 9, 12, 15]
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 18, "lo')
    seen: list[float] = []
    _train(config, resume=True, on_log=lambda record: seen.append(record["step"]))
    assert seen == [15, 18]
    _assert_same_run(whole, tmp_path)


INTERRUPTED = """
import json, signal, sys
from odediff.training import TrainConfig, train

def interrupt(record):
    if record["step"] == 6:
        signal.raise_signal(signal.SIGINT)

before = signal.getsignal(signal.SIGINT)
try:
    train(TrainConfig.from_dict(json.loads(sys.argv[1])), progress=False, device="cpu", on_log=interrupt)
except KeyboardInterrupt as stop:
    print(stop)
assert signal.getsignal(signal.SIGINT) is before
"""


def test_interrupt_saves_and_says_how_to_go_on(data: Path, tmp_path: Path, whole: Path) -> None:
    """In a process of its own: where a library has used AMX in this one, Linux cannot deliver a signal on a small
    alternate stack, such as faulthandler's, and kills the process instead."""
    config = _config(data, tmp_path)
    command = [sys.executable, "-c", INTERRUPTED, json.dumps(config.to_dict())]
    environment = {**os.environ, "PYTHONPATH": str(Path(odediff.__file__).parent.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.search(r"stopped at step [67] of 20; .*resume=True", done.stdout)
    assert not (tmp_path / "model").exists()
    _train(config, resume=True)
    _assert_same_run(whole, tmp_path)


KILLED = """
import sys, time
import odediff.training.checkpoint as checkpoint
from odediff.training import TrainConfig, train
from pathlib import Path
import json

moment, config = sys.argv[1], TrainConfig.from_dict(json.loads(sys.argv[2]))
save, saves = checkpoint.save_file, []

def save_file(tensors, path, metadata):
    saves.append(path)
    save(tensors, path, metadata=metadata)
    if len(saves) < 2:
        return
    if moment == "half written":
        raw = Path(path).read_bytes()
        Path(path).write_bytes(raw[: len(raw) // 2])
    print("saving", flush=True)
    time.sleep(60)

checkpoint.save_file = save_file
train(config, progress=False, device="cpu")
"""


@pytest.mark.parametrize("moment", ["half written", "before the rename"])
def test_survives_kill_9_during_a_save(data: Path, tmp_path: Path, whole: Path, moment: str) -> None:
    config = _config(data, tmp_path, checkpoint_every=7)
    command = [sys.executable, "-c", KILLED, moment, json.dumps(config.to_dict())]
    environment = {**os.environ, "PYTHONPATH": str(Path(odediff.__file__).parent.parent)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None and process.stdout.readline() == "saving\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["checkpoint.safetensors", "checkpoint.safetensors.new", "config.json", "log.jsonl"]
    # Dead at step 14, while saving: the checkpoint of step 7 is whole.
    seen: list[float] = []
    _train(config, resume=True, on_log=lambda record: seen.append(record["step"]))
    assert seen == [9, 12, 15, 18]
    _assert_same_run(whole, tmp_path)


def test_preview_sees_the_average_and_disturbs_nothing(data: Path, tmp_path: Path, whole: Path) -> None:
    calls: list[tuple[int, Path]] = []

    def preview(model: odediff.Model, step: int, folder: Path) -> None:
        calls.append((step, folder))
        assert isinstance(model.net, nn.Module) and not model.net.training
        torch.rand(step)
        torch.manual_seed(step)

    _train(_config(data, tmp_path, preview_every=8), preview=preview)
    assert calls == [(step, tmp_path / "previews") for step in (8, 16, 20)]
    assert (tmp_path / "previews").is_dir()
    _assert_same_run(whole, tmp_path)


def test_leaves_the_callers_random_numbers_alone(data: Path, tmp_path: Path, whole: Path) -> None:
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    _train(_config(data, tmp_path))
    assert torch.equal(torch.rand(3), want)
    _assert_same_run(whole, tmp_path)


def test_seed_matters(data: Path, tmp_path: Path, whole: Path) -> None:
    _train(_config(data, tmp_path, seed=1, steps=3))
    assert _log(tmp_path)[0][1] != _log(whole)[0][1]


def test_a_run_that_blows_up_stops_and_keeps_the_last_checkpoint(data: Path, tmp_path: Path) -> None:
    bad = _config(data, tmp_path, lr=1e30, grad_clip=0.0, warmup_steps=0, lr_decay="constant", steps=50)
    said = r"stopped being finite by step 3 \(mean loss (nan|inf)\).*lr \(now 1e\+30\).*there is no earlier checkpoint"
    with pytest.raises(FloatingPointError, match=said):
        _train(bad)
    assert not (tmp_path / "checkpoint.safetensors").exists()
    good = _config(data, tmp_path / "good", steps=5)
    _train(good)
    checkpoint = tmp_path / "good" / "checkpoint.safetensors"
    before = checkpoint.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", lambda x: torch.full_like(x, torch.nan))
        with pytest.raises(FloatingPointError, match=r"checkpoint\.safetensors is kept"):
            _train(replace(good, steps=20), resume=True)
    assert checkpoint.read_bytes() == before


def test_a_folder_with_a_run_is_not_overwritten(data: Path, whole: Path) -> None:
    with pytest.raises(FileExistsError, match=r"holds a run at step 20: continue it with resume=True"):
        _train(_config(data, whole))


def test_resume_needs_a_checkpoint_the_same_recipe_and_the_same_data(data: Path, tmp_path: Path, whole: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*start the run without resume"):
        _train(_config(data, tmp_path), resume=True)
    with pytest.raises(ValueError, match=r"\(batch_size: 8 -> 9; lr: 0.001 -> 0.002\); only checkpoint_every, data"):
        _train(_config(data, whole, lr=2e-3, batch_size=9), resume=True)
    other = tmp_path / "other.npz"
    np.savez(other, images=np.zeros((4000, 4, 4), np.uint8))
    with pytest.raises(ValueError, match=r"its data was .*crc32.* is .*crc32"):
        _train(_config(other, whole), resume=True)
    checkpoint = tmp_path / "checkpoint.safetensors"
    checkpoint.write_bytes((whole / "checkpoint.safetensors").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is damaged"):
        _train(_config(data, tmp_path), resume=True)
    checkpoint.write_bytes((whole / "model" / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"is no checkpoint of a training run"):
        _train(_config(data, tmp_path), resume=True)


def test_a_run_may_move_and_one_that_is_done_stays_done(data: Path, tmp_path: Path, whole: Path) -> None:
    moved = tmp_path / "moved.npz"
    moved.write_bytes(data.read_bytes())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.safetensors").write_bytes((whole / "checkpoint.safetensors").read_bytes())
    model = _train(_config(moved, tmp_path / "run", log_every=5, preview_every=1), resume=True)
    assert model.info["step"] == 20
    same = load_file(whole / "model" / "model.safetensors")
    assert all(torch.equal(same[name], value) for name, value in _weights(model).items())


def test_float16_needs_cuda(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'amp = "fp16" needs a CUDA device, not cpu'):
        _train(_config(data, tmp_path / "run", amp="fp16"))
    assert not (tmp_path / "run").exists()


def test_bfloat16_on_the_cpu_learns_and_resumes_bit_for_bit(data: Path, tmp_path: Path) -> None:
    """The weights stay float32, the matrix products do not: another run than the float32 one, and close to it."""
    exact, whole, halves = (tmp_path / name for name in ("exact", "whole", "halves"))
    _train(_config(data, exact))
    _train(_config(data, whole, amp="bf16"))
    _train(_config(data, halves, amp="bf16", steps=10, lr_decay="constant"))
    gap = [abs(a[1] - b[1]) for a, b in zip(_log(exact), _log(whole), strict=True)]
    assert 0 < max(gap) < 0.05
    _train(_config(data, tmp_path / "straight", amp="bf16", lr_decay="constant"))
    _train(_config(data, halves, amp="bf16", lr_decay="constant"), resume=True)
    _assert_same_run(tmp_path / "straight", halves)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_trains_on_cuda(data: Path, tmp_path: Path, amp: str, compiled: bool) -> None:
    config = _config(data, tmp_path, amp=amp, compile=compiled, steps=150, batch_size=64, lr=5e-3, checkpoint_every=60)
    train(config, progress=False, device="cuda")
    losses = [loss for _, loss, _ in _log(tmp_path)]
    assert np.mean(losses[-10:]) < 0.5 * losses[0]
    resumed = train(replace(config, steps=160), progress=False, device="cuda", resume=True)
    assert resumed.info["step"] == 160 and resumed.device.type == "cuda"


CLASS_MEANS = np.array([-0.7, 0.0, 0.6])


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nearly constant images whose level is their class; class 2 is half of them."""
    rng = np.random.default_rng(1)
    labels = rng.choice(3, 600, p=[0.25, 0.25, 0.5])
    values = CLASS_MEANS[labels, None, None] + 0.05 * rng.standard_normal((600, 4, 4))
    path = tmp_path_factory.mktemp("data") / "levels.npz"
    np.savez(path, images=np.round((values + 1) * 127.5).astype(np.uint8), y=labels.astype(np.uint8))
    return path


def test_labels_teach_the_classes_and_the_null_label_all_of_them(labelled: Path, tmp_path: Path) -> None:
    """Where nothing is left of the image, the best prediction of it is its class's mean; without a class, the mean."""
    config = _config(
        labelled,
        tmp_path,
        labels="y",
        label_dropout=0.25,
        prediction="x0",
        steps=400,
        batch_size=64,
        lr=6e-3,
        flip=False,
        warmup_steps=20,
        network={**TINY, "block_out_channels": [16], "down_block_types": ["DownBlock2D"]},
    )
    model = _train(config)
    assert model.num_classes == 3 and odediff.load(tmp_path / "model").num_classes == 3
    assert _weights(model)["class_embedding.weight"].shape == (4, 128)
    alpha, noise = (
        float(model.schedule.alpha(9.0)),
        torch.randn(400, 1, 4, 4, generator=torch.Generator().manual_seed(1)),
    )
    assert alpha < 0.15
    with np.load(labelled) as file:
        mixed = CLASS_MEANS[file["y"]].mean()
    with torch.no_grad():
        for k, mean in enumerate(CLASS_MEANS):
            got = model(alpha * mean + noise, 9.0, torch.full((400,), k))
            assert float(got.mean()) == pytest.approx(mean, abs=0.05)
        got = model(alpha * mixed + noise, 9.0)
        assert float(got.mean()) == pytest.approx(mixed, abs=0.05)


def test_a_labelled_run_resumes_bit_for_bit(labelled: Path, tmp_path: Path) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    options: dict[str, Any] = {"labels": "y", "label_dropout": 0.5, "lr_decay": "constant"}
    _train(_config(labelled, once, **options))
    _train(_config(labelled, twice, **options, steps=9))
    _train(_config(labelled, twice, **options), resume=True)
    _assert_same_run(once, twice)
    other = tmp_path / "other"
    _train(_config(labelled, other, **{**options, "label_dropout": 0.4}))
    assert _log(other) != _log(once)


def test_labels_are_part_of_the_data_and_of_the_recipe(labelled: Path, tmp_path: Path) -> None:
    _train(_config(labelled, tmp_path / "run", labels="y", steps=3))
    with np.load(labelled) as file:
        images, labels = file["images"], file["y"].copy()
    labels[[0, 1]] = (labels[[0, 1]] + 1) % 3
    np.savez(tmp_path / "relabelled.npz", images=images, y=labels, z=labels)
    with pytest.raises(ValueError, match=r"its data was .*labels_crc32.* is .*labels_crc32"):
        _train(_config(tmp_path / "relabelled.npz", tmp_path / "run", labels="y", steps=6), resume=True)
    with pytest.raises(ValueError, match=r"\(labels: 'y' -> 'z'; label_dropout: 0.1 -> 0.2\)"):
        _train(_config(labelled, tmp_path / "run", labels="z", label_dropout=0.2, steps=6), resume=True)
    with pytest.raises(ValueError, match="labels: 'y' -> None"):
        _train(_config(labelled, tmp_path / "run", steps=6), resume=True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": "y", "network": {**TINY, "num_class_embeds": 3}}, "num_classes = 3 does not fit .* = 3"),
        (
            {"labels": "y", "network": {**TINY, "class_embed_type": "identity"}},
            "class_embed_type = 'identity' does not",
        ),
        ({"network": {**TINY, "num_class_embeds": 4}}, "num_classes = None does not fit .*num_class_embeds = 4"),
        ({"labels": "x"}, r"levels.npz has no array 'x'; it holds \['images', 'y'\]"),
        ({"labels": "images"}, r"images holds uint8 of shape \(600, 4, 4\); labels must be whole numbers, \(600,\)"),
    ],
    ids=str,
)
def test_labels_that_do_not_fit_are_refused_before_training(
    labelled: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        _train(_config(labelled, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()
