"""Model: what it hands to a network and takes back, and folders that load to the same bits or not at all."""

import io
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from exact import SCHEDULES
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import odediff
import odediff.model as module
from odediff import schedule as schedules
from odediff.nn import UNet
from odediff.schedule import Schedule

LINEAR = schedules.linear()
SMALL: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


class Affine(nn.Module):
    """w x + b + t / 1000, which remembers what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.tensor(-0.3))
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.seen.append((x, t))
        return self.w * x + self.b + (t / 1000).to(x.dtype).reshape(-1, 1)


class Foreign(nn.Module):
    """A network that odediff does not build: whole-number buffers, a tied weight, weights in another memory order."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        self.first.weight = nn.Parameter(self.first.weight.data.to(memory_format=torch.channels_last))
        self.last = nn.Conv2d(width, 1, 3, padding=1)
        self.also_last = self.last

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.also_last(self.norm(self.first(x))) * (1 + t.to(x.dtype).reshape(-1, 1, 1, 1) / 1000)
        return out


def unet(seed: int = 0) -> UNet:
    torch.manual_seed(seed)
    net = UNet(**SMALL)
    for parameter in net.parameters():  # no zeros and ones left that a lost tensor could hide behind
        parameter.data += 0.05 * torch.randn_like(parameter)
    return net


def foreign(seed: int = 0, width: int = 6) -> Foreign:
    torch.manual_seed(seed)
    net = Foreign(width)
    net(torch.randn(4, 1, 8, 8), torch.zeros(4))  # moves the running mean and variance off 0 and 1
    return net


def model(net: Callable[..., Any], **options: Any) -> odediff.Model:
    return odediff.Model(net, **{"schedule": LINEAR, "shape": (1, 8, 8), **options})


def output(of: odediff.Model, t: float = 411.5) -> Tensor:
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    training = of.net.training
    of.net.eval()
    with torch.no_grad():
        out = of(x, t)
    of.net.train(training)
    return out


def test_modules_callables_and_objects_with_a_sample_are_the_same_network() -> None:
    x = torch.randn(3, 2)
    wanted = (0.7 * x - 0.3 + 0.25).double()
    plain = lambda x, t: 0.7 * x - 0.3 + t[:, None] / 1000  # noqa: E731
    for net in (Affine(), plain, lambda x, t: SimpleNamespace(sample=plain(x, t))):
        torch.testing.assert_close(model(net, shape=(2,))(x, 250.0).double(), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("state", "integer", "kind"),
    [
        (torch.float32, False, torch.float32),
        (torch.float64, False, torch.float64),
        (torch.float16, False, torch.float32),
        (torch.float32, True, torch.int64),
        (torch.float64, True, torch.int64),
    ],
    ids=str,
)
def test_time_is_one_number_a_sample_and_never_in_half_precision(
    state: torch.dtype, integer: bool, kind: torch.dtype
) -> None:
    seen: list[Tensor] = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return x

    model(net, shape=(2,), integer_times=integer)(torch.zeros(5, 2, dtype=state), 997.0 if integer else 997.3)
    assert seen[0].dtype == kind and seen[0].shape == (5,)
    assert torch.equal(seen[0], torch.full((5,), 997 if integer else 997.3, dtype=kind))


def test_a_float32_network_that_embeds_time_itself_takes_a_float64_state() -> None:
    """Time comes in the network's precision (float32 at least): float64 noise must not break an ordinary network."""

    class Embeds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            out: Tensor = x * self.linear(torch.sin(t[:, None] / torch.tensor([1.0, 10.0, 100.0, 1000.0])))
            return out

    for state in (torch.float32, torch.float64):
        assert model(Embeds(), shape=(2,))(torch.ones(3, 2, dtype=state), 997.3).dtype == state


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_state_is_cast_to_the_network_and_the_output_back(dtype: torch.dtype) -> None:
    net = Affine().to(dtype)
    x = torch.randn(4, 2)
    wrapped = model(net, shape=(2,))
    with torch.no_grad():
        out = wrapped(x, 500.0)
        want = (net.w * x.to(dtype) + net.b + torch.tensor(0.5, dtype=dtype)).float()
    assert wrapped.dtype == net.seen[0][0].dtype == dtype
    assert out.dtype == torch.float32 and torch.equal(out, want)
    assert net.seen[0][1].dtype.itemsize >= 4  # bfloat16 has no 997


def test_a_plain_callable_sees_the_state_as_it_is() -> None:
    seen: list[torch.dtype] = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x.dtype)
        return x.half()

    wrapped = model(net, shape=(2,))
    for dtype in (torch.float32, torch.float64):
        assert wrapped(torch.ones(1, 2, dtype=dtype), 1.0).dtype == dtype
    assert seen == [torch.float32, torch.float64]
    assert wrapped.dtype is None and wrapped.device == torch.device("cpu")


@pytest.mark.parametrize(
    ("out", "got"),
    [
        (lambda x: torch.cat([x, x], 1), r"\(2, 6, 4, 4\)"),
        (lambda x: x[:1], r"\(1, 3, 4, 4\)"),
        (lambda x: (x,), "tuple"),
        (lambda x: None, "NoneType"),
        (lambda x: SimpleNamespace(sample=x[..., 0]), r"\(2, 3, 4\)"),
    ],
    ids=["twice the channels", "one sample", "tuple", "nothing", "sample"],
)
def test_an_output_of_another_shape_is_refused(out: Callable[[Tensor], Any], got: str) -> None:
    with pytest.raises(ValueError, match=rf"the network returned {got} for an input of shape \(2, 3, 4, 4\)"):
        model(lambda x, t: out(x), shape=(3, 4, 4))(torch.zeros(2, 3, 4, 4), 1.0)


def test_to_moves_the_network_and_returns_the_model() -> None:
    wrapped = model(Affine(), shape=(2,))
    assert wrapped.to("cpu") is wrapped and wrapped.device == torch.device("cpu")
    assert wrapped.to("meta").device == torch.device("meta")
    with pytest.raises(ValueError, match="plain callable cannot be moved"):
        model(lambda x, t: x).to("cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"net": "unet"}, r"net must be a module or callable f\(x, t\), got str"),
        ({"schedule": "linear"}, r"such as schedule.linear\(\), got 'linear'"),
        ({"prediction": "epsilon"}, "unknown prediction 'epsilon'; choose x0, eps, v, flow"),
        ({"shape": ()}, r"positive whole numbers such as \(3, 32, 32\), got \(\)"),
        ({"shape": (3, 0, 32)}, r"got \(3, 0, 32\)"),
        ({"shape": (3, 32.0)}, r"got \(3, 32.0\)"),
        ({"shape": 3}, "positive whole numbers such as .*got 3"),  # the TypeError of a loop over 3 would not say
        ({"range": (1, -1)}, r"low < high, or None, got \(1, -1\)"),
        ({"range": (0.0, float("inf"))}, r"got \(0.0, inf\)"),
        ({"range": (float("nan"), 1.0)}, r"got \(nan, 1.0\)"),
        ({"range": (-1, 0, 1)}, r"got \(-1, 0, 1\)"),
        ({"range": 1}, "low < high, or None, got 1"),
        ({"clip": True, "range": None}, "clip=True needs a range"),
        ({"integer_times": True, "schedule": schedules.edm()}, 'schedule "edm" is continuous'),
        ({"num_classes": 0}, "num_classes = 0 must be a whole number from 1 up, or None"),
        ({"num_classes": True}, "num_classes = True must be"),
        ({"num_classes": 10.0}, "num_classes = 10.0 must be"),
    ],
    ids=str,
)
def test_errors_name_the_value_and_the_remedy(options: dict[str, Any], message: str) -> None:
    net = options.pop("net", lambda x, t: x)
    with pytest.raises(ValueError, match=message):
        model(net, **options)


@pytest.mark.parametrize(
    ("network", "num_classes", "message"),
    [
        ({}, 3, "num_classes = 3 does not fit the network's num_class_embeds = None: a table has one row more"),
        ({"num_class_embeds": 4}, None, "num_classes = None does not fit the network's num_class_embeds = 4"),
        ({"num_class_embeds": 3}, 3, "num_classes = 3 does not fit the network's num_class_embeds = 3"),
        ({"class_embed_type": "timestep"}, None, 'class_embed_type = "timestep"; say how many classes'),
        (
            {"class_embed_type": "identity"},
            3,
            '"identity" takes embeddings, not labels; wrap the network in a callable',
        ),
    ],
    ids=str,
)
def test_classes_that_the_unet_does_not_embed_are_refused(
    network: dict[str, Any], num_classes: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model(UNet(**SMALL, **network), num_classes=num_classes)


def test_a_label_reaches_the_network_and_no_label_is_the_null_label() -> None:
    """By hand for a callable, by the rows of its table for the U-Net."""
    seen: list[Tensor] = []

    def net(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        seen.append(label)
        return x * label[:, None]

    x, label = torch.ones(3, 2), torch.tensor([0, 1, 2])
    conditional = model(net, shape=(2,), num_classes=3)
    assert torch.equal(conditional(x, 5.0, label), x * torch.tensor([[0.0], [1.0], [2.0]]))
    assert torch.equal(conditional(x, 5.0), 3 * x)
    assert [value.tolist() for value in seen] == [[0, 1, 2], [3, 3, 3]]
    assert all(value.dtype == torch.int64 for value in seen)
    with pytest.raises(ValueError, match="label given to an unconditional model; leave it out, or make Model"):
        model(lambda x, t: x, shape=(2,))(x, 5.0, label)

    torch.manual_seed(0)
    ours = UNet(**SMALL, num_class_embeds=4).eval()
    assert ours.class_embedding is not None
    pictures, wrapped = torch.randn(2, 1, 8, 8), model(ours, num_classes=3)
    with torch.no_grad():
        null, two = wrapped(pictures, 5.0), wrapped(pictures, 5.0, torch.tensor([2, 2]))
        assert not torch.allclose(null, two, atol=1e-3)
        table = ours.class_embedding.weight
        table[2] = table[3]
        assert torch.equal(wrapped(pictures, 5.0, torch.tensor([2, 2])), null)


@pytest.mark.parametrize("network", [{"num_class_embeds": 4}, {"class_embed_type": "timestep"}], ids=str)
def test_a_conditional_model_survives_a_round_trip(network: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved = model(UNet(**SMALL, **network).eval(), num_classes=3)
    saved.save(tmp_path)
    loaded = odediff.load(tmp_path)
    assert loaded.num_classes == 3
    x, label = torch.randn(2, 1, 8, 8), torch.tensor([0, 2])
    with torch.no_grad():
        assert torch.equal(loaded(x, 7.0, label), saved(x, 7.0, label)) and torch.equal(loaded(x, 7.0), saved(x, 7.0))


def test_folders_of_the_first_format_still_load(tmp_path: Path) -> None:
    """What version 0.1.0 wrote: no num_classes, which meant none."""
    saved = model(unet())
    saved.save(tmp_path)
    path = tmp_path / "model.json"
    data = json.loads(path.read_text())
    assert data.pop("num_classes", 0) is None and data["format"] == "odediff-model-2"
    path.write_text(json.dumps({**data, "format": "odediff-model-1"}))
    loaded = odediff.load(tmp_path)
    assert loaded.num_classes is None and torch.equal(output(loaded), output(saved))
    assert odediff.load("mnist").num_classes is None


class Flags(nn.Module):
    """Two submodules, one of them frozen in evaluation mode; records every flag when called."""

    def __init__(self, fail: bool = False) -> None:
        super().__init__()
        self.frozen, self.live = nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2))
        self.fail, self.seen = fail, set[tuple[bool, bool]]()
        self.frozen.eval()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.seen |= {(module.training, torch.is_grad_enabled()) for module in self.modules()}
        if self.fail:
            raise RuntimeError("out of memory")
        out: Tensor = self.live(self.frozen(x))
        return out

    def flags(self) -> list[bool]:
        return [module.training for module in self.modules()]


@pytest.mark.parametrize("solver", ["rk4", "dopri5"])
@pytest.mark.parametrize("fail", [False, True])
def test_the_network_samples_in_evaluation_mode_and_is_left_as_it_was(solver: str, fail: bool) -> None:
    net = Flags(fail)
    before = net.flags()
    assert True in before and False in before
    try:
        x = odediff.sample(model(net, shape=(2,)), solver, n=2, seed=0)
    except RuntimeError as error:
        assert fail and str(error) == "out of memory"
    else:
        assert not fail and not x.requires_grad
    assert net.seen == {(False, False)}
    assert net.flags() == before and torch.is_grad_enabled()


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_everything_survives_a_round_trip(schedule: Schedule, tmp_path: Path) -> None:
    saved = model(
        unet(),
        schedule=schedule,
        prediction="v",
        range=(0.0, 1.0),
        clip=True,
        integer_times=schedule.steps is not None,
        info={"dataset": "none", "epochs": 3, "loss": [0.25, None]},
    )
    saved.save(tmp_path / "new" / "folder")
    loaded = odediff.load(tmp_path / "new" / "folder")
    for name in ("schedule", "prediction", "shape", "range", "clip", "integer_times", "info"):
        assert getattr(loaded, name) == getattr(saved, name), name
    times = np.linspace(schedule.t_min, schedule.t_max, 7)
    np.testing.assert_array_equal(loaded.schedule.lam(times), schedule.lam(times))
    before, after = saved.net.state_dict(), loaded.net.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(output(saved), output(loaded))
    assert not any(module.training for module in loaded.net.modules())
    assert not any(parameter.requires_grad for parameter in loaded.net.parameters())
    assert all(parameter.requires_grad for parameter in saved.net.parameters()) and saved.net.training


def test_schedules_from_arrays_and_no_range_survive_too(tmp_path: Path) -> None:
    betas = np.geomspace(1e-4, 0.05, 77)
    for schedule in (schedules.from_betas(betas), schedules.from_alphas_cumprod(np.cumprod(1 - betas))):
        model(unet(), schedule=schedule, range=None).save(tmp_path)
        loaded = odediff.load(str(tmp_path))
        assert loaded.range is None and loaded.schedule == schedule
        plan = odediff.plan("rk4", schedule, nfe=6)
        assert odediff.Sampler(loaded, plan)(n=1, seed=0).isfinite().all()


def payload(path: Path) -> int:
    """Bytes of the tensors in a safetensors file."""
    return path.stat().st_size - 8 - struct.unpack("<Q", path.read_bytes()[:8])[0]


def test_half_precision_halves_the_file_and_loads_as_float32(tmp_path: Path) -> None:
    saved = model(unet())
    saved.save(tmp_path / "full")
    saved.save(tmp_path / "half", dtype=torch.float16)
    full, half = (payload(tmp_path / name / "model.safetensors") for name in ("full", "half"))
    assert 2 * half == full
    assert saved.dtype == torch.float32  # saving does not touch the network
    loaded = odediff.load(tmp_path / "half")
    assert loaded.dtype == torch.float32
    for key, value in saved.net.state_dict().items():
        assert torch.equal(loaded.net.state_dict()[key], value.half().float()), key
    assert odediff.load(tmp_path / "half", dtype=torch.float16).dtype == torch.float16


def test_a_foreign_network_goes_through_net(tmp_path: Path) -> None:
    saved = model(foreign())
    saved.save(tmp_path, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"odediff does not build; pass it as load\(..., net=...\)"):
        odediff.load(tmp_path)
    net = foreign(seed=1)
    loaded = odediff.load(tmp_path, net=net)
    assert loaded.net is net and loaded.dtype == torch.float32
    for key, value in saved.net.state_dict().items():
        want = value.half().float() if value.is_floating_point() else value
        assert torch.equal(net.state_dict()[key], want) and net.state_dict()[key].dtype == want.dtype, key
    assert net.norm.num_batches_tracked.dtype == torch.int64 and net.norm.num_batches_tracked == 1
    assert net.also_last is net.last
    torch.testing.assert_close(output(loaded), output(saved), atol=5e-3, rtol=0)


def test_a_network_of_that_name_or_built_on_it_is_not_taken_for_odediffs_unet(tmp_path: Path) -> None:
    """It would load without an error and compute something else."""
    namesake = type("UNet", (Foreign,), {"config": {"width": 6}})

    class Residual(UNet):
        def forward(self, x: Tensor, t: Tensor | float) -> Tensor:
            return x - super().forward(x, t)

    for k, build in enumerate((namesake, lambda: Residual(**SMALL))):
        saved = model(build())
        saved.save(tmp_path / str(k))
        with pytest.raises(ValueError, match="pass it as load"):
            odediff.load(tmp_path / str(k))
        assert torch.equal(output(odediff.load(tmp_path / str(k), net=build())), output(saved))


def test_what_cannot_be_saved_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only a model around an nn.Module can be saved"):
        model(lambda x, t: x).save(tmp_path / "a")
    with pytest.raises((TypeError, ValueError), match="JSON"):
        model(unet(), info={"when": object()}).save(tmp_path / "a")
    with pytest.raises(ValueError, match="dtype = torch.int8"):  # it would truncate every weight to 0
        model(unet()).save(tmp_path / "a", dtype=torch.int8)
    assert not (tmp_path / "a").exists()


def _no_space(*args: Any, **options: Any) -> None:
    raise OSError(28, "No space left on device")


def _half_written(tensors: dict[str, Tensor], path: Path, *args: Any, **options: Any) -> None:
    save_file(tensors, path)
    os.truncate(path, 1000)
    _no_space()


@pytest.mark.parametrize(
    ("target", "failure"),
    [("odediff.model.save_file", _half_written), ("pathlib.Path.write_text", _no_space), ("os.replace", _no_space)],
    ids=["weights", "text", "replace"],
)
def test_an_interrupted_save_leaves_the_old_model(
    target: str, failure: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up while a better model, of another kind and schedule, is written over the old one."""
    old = model(unet(0))
    old.save(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(target, failure)
        model(unet(1), prediction="v", schedule=schedules.cosine()).save(tmp_path)
    loaded = odediff.load(tmp_path)
    assert (loaded.prediction, loaded.schedule) == ("eps", LINEAR)
    assert torch.equal(output(loaded), output(old))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def _json(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        data = json.loads((folder / "model.json").read_text())
        change(data)
        (folder / "model.json").write_text(json.dumps(data))

    return edit


def _weights(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return edit


def _file(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


def _truncated(share: float) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "model.safetensors"
        os.truncate(path, int(share * path.stat().st_size))

    return edit


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "unknown key": (_json(lambda d: d.update(guidance=2)), r"unknown keys \['guidance'\]"),
    "missing key": (_json(lambda d: d.pop("schedule")), r"missing keys \['schedule'\]"),
    "another format": (
        _json(lambda d: d.update(format="odediff-model-3")),
        "not of a format .*: odediff-model-1, odedi",
    ),
    "a list as format": (_json(lambda d: d.update(format=[1])), "not of a format"),
    "no format": (_json(lambda d: d.pop("format")), "not of a format .*odediff-model-1"),
    "a key of another format": (_json(lambda d: d.update(format="odediff-model-1")), r"unknown keys \['num_classes'\]"),
    "no classes": (_json(lambda d: d.pop("num_classes")), r"missing keys \['num_classes'\]"),
    "classes": (_json(lambda d: d.update(num_classes=3)), "num_classes = 3 does not fit .* num_class_embeds = None"),
    "classes kind": (_json(lambda d: d.update(num_classes="3")), "num_classes.*'3'"),
    "a list": (_file("model.json", b"[1, 2]"), "not of a format"),
    "half of the text": (_file("model.json", b'{"format": "odediff-mo'), "is not JSON"),
    "no text": (_file("model.json", b"\xff\xfe\x00\x01"), "is not JSON"),
    "prediction": (_json(lambda d: d.update(prediction="noise")), "unknown prediction 'noise'; choose x0, eps"),
    "schedule": (_json(lambda d: d["schedule"].update(name="quartic")), "unknown schedule 'quartic'; known: linear"),
    "schedule key": (_json(lambda d: d["schedule"].update(beta=1)), "schedule 'linear' does not take"),
    "schedule kind": (_json(lambda d: d.update(schedule=None)), "schedule.*None"),
    "shape": (_json(lambda d: d.update(shape=[1, -8, 8])), r"shape must hold positive whole numbers.*\(1, -8, 8\)"),
    "shape kind": (_json(lambda d: d.update(shape=8)), "shape.*8"),
    "range": (_json(lambda d: d.update(range=[1, -1])), "range must be"),
    "range kind": (_json(lambda d: d.update(range=3)), "range.*3"),
    "network class": (_json(lambda d: d["network"].update({"class": "DiT"})), "network must be .*'DiT'"),
    "network key": (_json(lambda d: d["network"]["config"].update(depth=3)), r"unknown .*keys \['depth'\]"),
    "network value": (_json(lambda d: d["network"]["config"].update(act_fn="sin")), "act_fn = 'sin' is not supported"),
    "network kind": (_json(lambda d: d.update(network=7)), "network.*7"),
    "missing tensor": (_weights(lambda w: w.pop("conv_in.bias")), r"missing \['conv_in.bias'\], unknown none"),
    "extra tensor": (_weights(lambda w: w.update(z=torch.ones(1))), r"missing none, unknown \['z'\]"),
    "wrong shape": (
        _weights(lambda w: w.update({"conv_in.bias": torch.ones(9)})),
        r"conv_in.bias has shape \(9,\), the network needs \(8,\)",
    ),
    "truncated": (_truncated(0.9), "truncated or not safetensors"),
    "truncated header": (_truncated(0.01), "truncated or not safetensors"),
    "empty": (_truncated(0), "truncated or not safetensors"),
    "garbage": (_file("model.safetensors", bytes(range(256)) * 40), "truncated or not safetensors"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    model(unet()).save(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_folder_is_an_error_that_names_the_file_and_the_fault(fault: str, folder: Path) -> None:
    edit, message = BROKEN[fault]
    assert odediff.load(folder).shape == (1, 8, 8)
    edit(folder)
    with pytest.raises(ValueError, match=rf"model\.(json|safetensors)\b.*{message}"):
        odediff.load(folder)


def test_a_broken_folder_leaves_the_network_it_was_to_fill(tmp_path: Path) -> None:
    model(foreign(width=5)).save(tmp_path)
    net = foreign()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=r"first.bias has shape \(5,\), the network needs \(6,\)|first.weight has"):
        odediff.load(tmp_path, net=net)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        odediff.load(folder)


def test_bundled_models_load_by_name(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUNDLED", saved.parent)
    assert saved.name in module.bundled()
    assert torch.equal(output(odediff.load(saved.name)), output(odediff.load(saved)))
    with pytest.raises(FileNotFoundError, match=rf"no model 'mnits': bundled are .*{saved.name}.*a folder must hold"):
        odediff.load("mnits")


class Malice:
    """Unpickling this creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pickle_is_never_unpickled(name: str, how: str, folder: Path) -> None:
    victim, content = folder / "owned", io.BytesIO()
    bait = {"conv_in.bias": Malice(victim)}
    if how == "pickle":
        content.write(pickle.dumps(bait))
        pickle.loads(content.getvalue())
    else:
        torch.save(bait, content)
        torch.load(io.BytesIO(content.getvalue()), weights_only=False)
    assert victim.is_dir()  # the bait works
    victim.rmdir()
    (folder / name).write_bytes(content.getvalue())
    for net in (None, unet()):
        with pytest.raises(ValueError, match=name):
            odediff.load(folder, net=net)
    assert not victim.exists()


def test_the_dtype_is_that_of_the_first_floating_tensor_and_no_later_one_is_looked_at():
    class Net(nn.Module):
        def parameters(self, recurse=True):
            yield torch.zeros(1, dtype=torch.int64)
            yield torch.zeros(1, dtype=torch.float64)
            raise AssertionError("looked further")

    assert odediff.Model(Net(), schedule=odediff.schedule.linear(), shape=(1, 2, 2)).dtype == torch.float64
