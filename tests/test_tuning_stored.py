"""Tuned plans next to their model: found, run by every backend, exported, and telling when they are out of place."""

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import odediff
from odediff import Plan, Sampler, export, load, plan, sample
from odediff.identity import mark
from odediff.nn import UNet
from odediff.stored import folder_of, stored_plan, write_plan
from odediff.tuning import front, tune

FEW: dict[str, Any] = {"n": 4, "validation": 4, "held_out": 16, "iterations": 2}
LINEAR = odediff.schedule.linear()


def unet(seed: int = 0, classes: int | None = 2) -> odediff.Model:
    """A small network that nobody trained."""
    torch.manual_seed(seed)
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    more = {} if classes is None else {"num_class_embeds": classes + 1}
    sizes = {"sample_size": 4, "in_channels": 1, "out_channels": 1, "norm_num_groups": 4, "layers_per_block": 1}
    net = UNet(**blocks, **sizes, **more)
    for value in net.parameters():
        nn.init.normal_(value, std=0.2)
    return odediff.Model(net.eval(), schedule=LINEAR, prediction="v", shape=(1, 4, 4), num_classes=classes)


@pytest.fixture(scope="module", autouse=True)
def certain() -> Any:
    """Two pairs to compare with, and the fitted plan is returned whatever it is worth."""
    whole = front.pairs
    with pytest.MonkeyPatch.context() as patch:
        names = ("default", "ab2 uniform", "ddim uniform")
        patch.setattr(front, "pairs", lambda *args: {k: v for k, v in whole(*args).items() if k in names})
        patch.setattr("odediff.tuning.certificate.Certificate.holds", True)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, certain: None) -> Path:
    """A model's folder with plans for 3 and 5 evaluations, and for 3 at guidance 2.5."""
    path = tmp_path_factory.mktemp("model")
    unet().save(path)
    tune(load(path), [3, 5], save=True, **FEW)
    tune(load(path), 3, guidance=2.5, save=True, **FEW)
    return path


def test_sample_finds_them(folder: Path) -> None:
    model = load(folder)
    assert sorted(p.name for p in (folder / "tuned").iterdir()) == ["3-guidance-2.5.json", "3.json", "5.json"]
    for nfe, guidance in ((3, None), (5, None), (3, 2.5)):
        table = stored_plan(model, nfe, guidance)
        assert table.method == "tuned" and table.nfe == nfe and table.args["fitted"]["guidance"] == guidance
        options = {"seed": 1, "label": [0, 1], "guidance": guidance}
        assert torch.equal(sample(model, "tuned", nfe, **options), sample(model, table, **options))
    assert stored_plan(model, 3, None) != stored_plan(model, 3, 2.5)


def test_a_model_that_was_saved_has_a_folder(tmp_path: Path) -> None:
    model = unet(3)
    assert folder_of(model) is None
    with pytest.raises(ValueError, match="no tuned plan for 4 evaluations in any folder"):
        sample(model, "tuned", 4, n=1)
    model.save(tmp_path / "one")
    model.save(tmp_path / "two")
    assert folder_of(model) == tmp_path / "one" / "tuned" == folder_of(load(tmp_path / "one"))


def test_what_is_not_there_is_named(folder: Path, tmp_path: Path) -> None:
    model = load(folder)
    there = r"there are 3, 3-guidance-2\.5, 5: odediff\.tune\(model, nfe=4, save=True\) or `odediff tune` makes one"
    with pytest.raises(ValueError, match="no tuned plan for 4 evaluations; " + there):
        sample(model, "tuned", 4, n=1)
    with pytest.raises(ValueError, match=r"no tuned plan for 5 evaluations and guidance 2\.5; there are 3,"):
        sample(model, "tuned", 5, n=1, label=0, guidance=2.5)
    with pytest.raises(ValueError, match="a tuned plan takes no 'grid'"):
        sample(model, "tuned", 3, grid="uniform")
    unet().save(tmp_path)
    with pytest.raises(ValueError, match=f"no tuned plan for 20 evaluations in {tmp_path / 'tuned'}"):
        sample(load(tmp_path), "tuned", n=1)
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "3.json").write_text("{")
    with pytest.raises(ValueError, match=r"3\.json: not a plan"):
        sample(load(tmp_path), "tuned", 3, n=1)


def test_a_plan_is_written_whole_and_by_its_guidance(tmp_path: Path) -> None:
    model, table = odediff.Model(lambda x, t: x, schedule=LINEAR, shape=(2,)), plan("ddim", LINEAR, 3)
    model.folder = tmp_path
    names = {
        None: "3",
        2: "3-guidance-2",
        2.5: "3-guidance-2.5",
        1.2345678: "3-guidance-1.2345678",
        0.0: "3-guidance-0",
    }
    for guidance, name in names.items():
        assert write_plan(table, tmp_path / "tuned", guidance).name == f"{name}.json"
        assert stored_plan(model, 3, guidance) == table
    assert len(list((tmp_path / "tuned").iterdir())) == len(names)
    write_plan(plan("ab2", LINEAR, 3), tmp_path / "tuned", None)
    assert stored_plan(model, 3, None).method == "ab2"


def test_another_model_or_guidance_warns(folder: Path) -> None:
    model, other = load(folder), unet(1)
    table = stored_plan(model, 3, None)
    with pytest.warns(UserWarning, match="fitted to another model, and such plans do not transfer"):
        Sampler(other, table)
    with pytest.warns(UserWarning, match=r"fitted at guidance None and runs at 4\.0"):
        sample(model, table, n=1, label=0, guidance=4.0)
    with pytest.warns(UserWarning, match=r"fitted at guidance 2\.5 and runs at None"):
        sample(model, stored_plan(model, 3, 2.5), n=1, label=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Sampler(model, table, guidance=1.0)  # which is None's
        Sampler(other, plan("ddim", LINEAR, 3))


def test_other_labels_than_those_fitted_warn() -> None:
    model = unet(classes=3)
    made = plan("ddim", model.schedule, 2)
    for labels, label, said in (
        ([1], 0, r"fitted to the labels \[1\] and runs on 0: tune"),
        ([0, 2], [0, 1], "runs on 1: tune"),
        ([0, 2], [2, 0], None),
        ("all", 1, None),
        ("8 of 20", 1, None),
        ([1], None, None),
    ):
        table = replace(made, args={"fitted": {"labels": labels}})
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            sample(model, table, n=2, label=label)
        texts = [str(one.message) for one in heard if "labels" in str(one.message)]
        assert not texts if said is None else len(texts) == 1 and re.search(said, texts[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_precision_of_the_same_weights_is_the_same_model(folder: Path, dtype: torch.dtype) -> None:
    model = load(folder, dtype=dtype)
    table = stored_plan(model, 3, None)
    x = sample(model, table, n=4, seed=0, label=0)
    want = sample(load(folder), table, n=4, seed=0, label=0)
    assert float((x - want).abs().max()) < 0.1


def test_a_mark_tells_weights_apart() -> None:
    marks = np.array([mark(unet(seed).net) for seed in range(12)])
    assert marks.shape[1] >= 8 and 0.5 < marks.std() < 1.5
    gaps = np.abs(marks[:, None] - marks[None]).max(2) + 10 * np.eye(12)
    assert gaps.min() > 0.5
    assert mark(lambda x, t: x) is None and mark(nn.Linear(1, 1)) is None
    assert mark(unet(0).net) == mark(unet(0).net)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.label = nn.Conv2d(1, 1, 3, padding=1), nn.Embedding(3, 16)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return torch.tanh(self.conv(x) + self.label(label).view(-1, 1, 4, 4) * (1 + t[:, None, None, None] / 1000))


def of(seed: int) -> odediff.Model:
    """`Tiny` with weights of its own."""
    net = Tiny().eval()
    torch.manual_seed(seed)
    for value in net.parameters():
        nn.init.normal_(value, std=0.3)
    return odediff.Model(net, schedule=LINEAR, prediction="v", shape=(1, 4, 4), num_classes=2)


def test_a_model_and_its_own_file_share_plans_and_another_models_warns(tmp_path: Path) -> None:
    """In both directions; a file of before the entry is told by the hash of its weights alone."""
    one, other = of(1), of(2)
    made = {name: export(model, tmp_path / f"{name}.onnx") for name, model in (("one", one), ("other", other))}
    file, others = (odediff.onnx.load(made[name].path) for name in ("one", "other"))
    assert file.about.mark == mark(one.net) != mark(other.net) == others.about.mark
    (of_file, _), (of_torch, _) = (tune(model, 2, engine="ridge", **FEW) for model in (file, one))
    assert of_file.args["fitted"]["mark"] == of_torch.args["fitted"]["mark"] == mark(one.net)
    half = of(1)
    half.net.half()
    object.__setattr__(older := odediff.onnx.load(made["one"].path), "about", replace(file.about, mark=None))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for table, model in ((of_file, one), (of_file, half), (of_torch, file), (of_torch, older)):
            Sampler(model, table)
    for table, model in ((of_file, other), (of_torch, others), (of_file, others)):
        with pytest.warns(UserWarning, match="fitted to another model"):
            Sampler(model, table)
    export(file, tmp_path / "sampler.onnx", of_torch)
    assert odediff.onnx.load(tmp_path / "sampler.onnx").about.mark == file.about.mark


@pytest.mark.slow
def test_files_have_plans_of_their_own_and_samplers_hold_them(tmp_path: Path) -> None:
    """An ONNX file's plans are beside it; backends and the graph of the sampler draw what torch draws."""
    model = odediff.Model(Tiny().eval(), schedule=LINEAR, prediction="v", shape=(1, 4, 4), num_classes=2)
    export(model, tmp_path / "net.onnx")
    file = odediff.onnx.load(tmp_path / "net.onnx")
    table, _ = tune(file, 3, guidance=3.0, engine="ridge", save=True, **FEW)
    assert folder_of(file) == tmp_path / "net.tuned" and (tmp_path / "net.tuned" / "3-guidance-3.json").is_file()
    options: dict[str, Any] = {"n": 2, "seed": 0, "label": [0, 1], "guidance": 3.0}
    want = sample(file, "tuned", 3, **options)
    assert Plan.from_json(table.to_json()) == table == stored_plan(file, 3, 3.0)
    torch.testing.assert_close(sample(model, table, **options), want, rtol=0, atol=1e-5)
    run = Sampler(model, table, guidance=3.0, backend="onnx")
    torch.testing.assert_close(run(n=2, seed=0, label=[0, 1]), want, rtol=0, atol=1e-5)
    export(file, tmp_path / "sampler.onnx", "tuned", 3, guidance=3.0)
    drawn = odediff.onnx.load(tmp_path / "sampler.onnx").run(2, 0, label=[0, 1])
    np.testing.assert_allclose(drawn, want.numpy(), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="no tuned plan for 3 evaluations; there are 3-guidance-3"):
        export(file, tmp_path / "other.onnx", "tuned", 3)
    model.folder = tmp_path
    write_plan(table, tmp_path / "tuned", 3.0)
    export(model, tmp_path / "again.onnx", "tuned", 3, guidance=3.0, form="loop")
    drawn = odediff.onnx.load(tmp_path / "again.onnx").run(2, 0, label=[0, 1])
    np.testing.assert_allclose(drawn, want.numpy(), rtol=0, atol=1e-5)
    torch.manual_seed(9)
    with torch.no_grad():
        model.net.conv.weight.normal_()
    export(model, tmp_path / "changed.onnx")
    with pytest.warns(UserWarning, match="fitted to another model"):
        Sampler(odediff.onnx.load(tmp_path / "changed.onnx"), table, guidance=3.0)


@pytest.mark.parametrize("nfe", [4, 6, 8, 10])
def test_the_bundled_model_has_plans_that_were_certified_for_it(nfe):
    model = odediff.load("mnist")
    plan = stored_plan(model, nfe, None)
    assert plan.nfe == nfe
    assert plan.args["fitted"]["held_out"] == 64
    assert min(plan.args["fitted"]["over_best_rmse"][2], plan.args["fitted"]["over_best_median"][2]) < 1
    x = odediff.sample(model, "tuned", nfe, n=1, seed=0)  # warns if the weights are other ones
    fine = odediff.sample(model, "abm4", 40, n=1, seed=0)
    assert float((x - fine).square().mean().sqrt()) < 0.2
