"""The recipe of a run: its learning rate, its refusals, its way through JSON."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from odediff.nn import UNet, unet_config
from odediff.training import TrainConfig


def test_learning_rate_warms_up_and_follows_the_cosine() -> None:
    config = TrainConfig(data="x", out="y", lr=2.0, warmup_steps=4, steps=100)
    rates = [config.learning_rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.5) and rates[50] == pytest.approx(1.0) and rates[99] < 0.001
    assert rates[25] == pytest.approx(1 + 0.5**0.5)
    constant = replace(config, lr_decay="constant")
    assert [constant.learning_rate(step) for step in (0, 1, 2, 3, 4, 99)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": "xxl"}, "size = 'xxl'; choose one of xs, s, m, l, xl"),
        ({"prediction": "score"}, "prediction = 'score'; choose one of x0, eps, v, flow"),
        ({"lr_decay": "step"}, "lr_decay = 'step'; choose one of constant, cosine"),
        ({"amp": "fp8"}, "amp = 'fp8'; choose one of off, bf16, fp16"),
        ({"weighting": "snr"}, "weighting = 'snr'"),
        ({"steps": 0}, "steps = 0: it must be an integer of at least 1"),
        ({"batch_size": 1.5}, "batch_size = 1.5"),
        ({"lr": float("nan")}, "lr = nan: it must be a finite number of at least 0"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"ema_decay": 1.0}, "ema_decay below 1"),
        ({"label_dropout": -0.1}, "label_dropout = -0.1: it must be a finite number of at least 0"),
        ({"label_dropout": 1.0}, "label_dropout = 1.0: it must be below 1, or no label is ever seen"),
        ({"schedule": {"name": "quartic"}}, "unknown schedule 'quartic'"),
    ],
)
def test_a_bad_recipe_is_refused_by_name(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrainConfig(data="x.npz", out="out", **change)


def test_recipe_goes_through_json() -> None:
    config = TrainConfig(data="x", out="y", weighting=np.ones(3), network={"block_out_channels": [8]})  # type: ignore[arg-type]
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match=r"unknown training options \['batchsize'\]; known: .*'batch_size'"):
        TrainConfig.from_dict({"data": "x", "out": "y", "batchsize": 3})


def test_a_run_from_before_a_field_existed_resumes_with_its_default() -> None:
    saved = TrainConfig(data="x", out="y").to_dict()
    for name in ("labels", "label_dropout"):
        del saved[name]
    TrainConfig(data="x", out="z", steps=7).check_resumes(saved, Path("checkpoint"))
    with pytest.raises(ValueError, match=r"cannot resume checkpoint with another recipe \(labels: None -> 'y'\)"):
        TrainConfig(data="x", out="y", labels="y").check_resumes(saved, Path("checkpoint"))


@pytest.mark.parametrize("name", ["mnist", "mnist_conditional"])
def test_the_recipes_in_the_docs_are_whole(name: str, repository: Path) -> None:
    recipe = json.loads((repository / "docs" / name / "recipe.json").read_text())
    config = TrainConfig.from_dict(recipe)
    assert (config.labels, config.label_dropout) == (("y_train", 0.1) if name == "mnist_conditional" else (None, 0.1))
    UNet(**unet_config(config.size, in_channels=1, sample_size=28, **config.network))
