"""The U-Net: diffusers' network on the same weights, exact sizes, and errors before anything is built."""

import json
import math
import warnings
from typing import Any

import pytest
import torch
from safetensors.torch import save

from odediff.nn import SIZES, UNet, unet_config, zero_residuals

SMALL: dict[str, Any] = {
    "sample_size": 28,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 16, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 2,
    "norm_num_groups": 4,
}
# The configuration of google/ddpm-cifar10-32, as published.
DDPM_CIFAR10: dict[str, Any] = {
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
ONE_LEVEL = {"block_out_channels": [8], "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
VARIANTS: dict[str, dict[str, Any]] = {
    "heads of 8": {},
    "one head": {"attention_head_dim": None},
    "heads that leave a rest": {"attention_head_dim": 5},
    "one layer": {"layers_per_block": 1},
    "three layers": {"layers_per_block": 3},
    "one level": {**ONE_LEVEL, "sample_size": 7},
    "odd embedding": {"block_out_channels": [9, 18, 18], "norm_num_groups": 3},
    "scale and shift": {"resnet_time_scale_shift": "scale_shift"},
    "scale and shift, normed middle": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 8},
    "middle without attention": {"add_attention": False, "mid_block_scale_factor": 2.0},
    "no middle": {"mid_block_type": None},
    "scaled middle": {"mid_block_scale_factor": math.sqrt(2), "attn_norm_num_groups": 2},
    "DDPM's conventions": {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6},
    "centred": {"center_input_sample": True, "act_fn": "gelu", "time_embedding_dim": 20, "in_channels": 3},
    "a table of classes": {"num_class_embeds": 11},
    "classes embedded as times": {"class_embed_type": "timestep", "flip_sin_to_cos": False, "freq_shift": 1},
    "embeddings for classes": {"class_embed_type": "identity", "time_embedding_dim": 20},
    "DDPM for CIFAR-10": DDPM_CIFAR10,
}


def _theirs(config: dict[str, Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diffusers = pytest.importorskip("diffusers")
        return diffusers.UNet2DModel(**config).eval()


def _label(config: dict[str, Any]) -> torch.Tensor | None:
    kind = config.get("class_embed_type")
    if kind == "identity":
        return torch.randn(2, config["time_embedding_dim"])
    return torch.tensor([10, 3]) if kind or config.get("num_class_embeds") else None


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_diffusers_on_the_same_weights(name: str) -> None:
    config = VARIANTS[name] if name == "DDPM for CIFAR-10" else SMALL | VARIANTS[name]
    torch.manual_seed(0)
    theirs, ours = _theirs(config), UNet(**config).eval()
    # Distinct affine parameters: at the initial ones and zeros a swapped norm would go unnoticed.
    for parameter in theirs.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(2, config["in_channels"], config["sample_size"], config["sample_size"])
    label = _label(config)
    with torch.no_grad():
        for t in (torch.tensor([999, 3]), torch.tensor([12.75, 0.5]), torch.tensor(41.25)):
            want, got = theirs(x, t, label).sample, ours(x, t, label)
            assert got.shape == want.shape
            assert (got - want).abs().max() < 1e-5 * max(1.0, float(want.abs().max()))


def test_a_label_is_needed_by_a_network_with_classes_and_refused_by_others() -> None:
    x = torch.randn(1, 1, 28, 28)
    with pytest.raises(ValueError, match="label is missing: the network has a class embedding"):
        UNet(**SMALL, num_class_embeds=3)(x, 5)
    with pytest.raises(ValueError, match="label given to a network without class embedding; build it with num_class"):
        UNet(**SMALL)(x, 5, torch.tensor([0]))


def test_is_not_diffusers_where_diffusers_truncates_time() -> None:
    # Given a Python float, diffusers casts it to a whole number; we do not.
    net = UNet(**SMALL)
    x = torch.randn(1, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(net(x, 12.75), net(x, torch.tensor([12.75])))
        assert not torch.allclose(net(x, 12.75), net(x, 12), atol=1e-4)
        assert torch.equal(net(x, 12), net(x, torch.tensor(12)))


def test_each_sample_has_its_own_time() -> None:
    net = UNet(**SMALL)
    x = torch.randn(1, 1, 28, 28).expand(3, -1, -1, -1)
    t = torch.tensor([0.0, 500.0, 999.0])
    with torch.no_grad():
        together = net(x, t)
        for i in range(3):
            torch.testing.assert_close(together[i : i + 1], net(x[:1], t[i]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_time_is_embedded_in_float32_whatever_the_network(dtype: torch.dtype) -> None:
    net = UNet(**SMALL).to(dtype)
    seen: list[torch.Tensor] = []
    net.time_embedding.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        out = net(torch.randn(1, 1, 28, 28).to(dtype), torch.tensor([998.7], dtype=torch.float32))
    assert out.dtype == dtype
    # In half precision 998.7 is 998.5 or 1000, and its fastest wave is off by 0.2 or more.
    k = torch.arange(4, dtype=torch.float64)
    angle = torch.tensor(998.7, dtype=torch.float32).double() * 10_000 ** (-k / 4)
    want = torch.cat([angle.cos(), angle.sin()])
    torch.testing.assert_close(seen[0][0].double(), want, atol=max(1e-4, torch.finfo(dtype).eps), rtol=0)


PARAMETERS = {
    "xs": (331_627, 330_761),
    "s": (1_908_995, 1_907_265),
    "m": (8_597_827, 8_595_521),
    "l": (35_746_307, 25_833_985),
    "xl": (57_891_843, 42_408_961),
}


@pytest.mark.parametrize("size", PARAMETERS)
def test_sizes_have_exactly_these_parameters(size: str) -> None:
    assert set(PARAMETERS) == set(SIZES)
    counts = []
    for channels, side in ((3, 32), (1, 28)):
        with torch.device("meta"):
            net = UNet(**unet_config(size, in_channels=channels, sample_size=side))
        counts.append(sum(p.numel() for p in net.parameters()))
    assert tuple(counts) == PARAMETERS[size]


def test_the_bundled_size_fits_four_megabytes_in_half_precision() -> None:
    net = UNet(**unet_config("s", in_channels=1, sample_size=28)).half()
    assert len(save(dict(net.state_dict()))) <= 4_000_000


@pytest.mark.parametrize("shape", [(28, 28), (32, 32), (30, 20), (7, 7), (16, 24)])
def test_a_named_size_takes_any_image(shape: tuple[int, int]) -> None:
    net = UNet(**unet_config("xs", in_channels=2, sample_size=shape))
    with torch.no_grad():
        assert net(torch.randn(1, 2, *shape), 1).shape == (1, 2, *shape)


def test_ddpm_is_the_size_l() -> None:
    ours = unet_config("l", in_channels=3, sample_size=32)
    assert {key: ours[key] for key in DDPM_CIFAR10} == DDPM_CIFAR10


def test_config_is_whole_and_json_and_builds_the_same_network() -> None:
    net = UNet(**{**SMALL, "block_out_channels": (8, 16, 16), "sample_size": (28, 20)})
    config = json.loads(json.dumps(net.config))
    assert config == net.config and config["block_out_channels"] == [8, 16, 16]
    again = UNet(**config)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diffusers = pytest.importorskip("diffusers")
    theirs = {key for key in diffusers.UNet2DModel(**SMALL).config if not key.startswith("_")}
    assert set(config) == theirs


def test_zero_residuals_make_branches_the_identity_and_the_answer_zero() -> None:
    net = zero_residuals(UNet(**SMALL))
    x = torch.randn(2, 8, 28, 28)
    with torch.no_grad():
        assert torch.equal(net(torch.randn(2, 1, 28, 28), 5), torch.zeros(2, 1, 28, 28))
        assert torch.equal(net.get_submodule("down_blocks.0.resnets.0")(x, torch.randn(2, 32)), x)
        h = torch.randn(2, 16, 7, 7)
        assert torch.equal(net.get_submodule("mid_block.attentions.0")(h), h)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"block_out_chanels": [8]}, ValueError, r"\['block_out_chanels'\].*block_out_channels"),
        ({"time_embedding_type": "fourier"}, ValueError, "time_embedding_type = 'fourier'.*positional"),
        ({"downsample_type": "resnet"}, ValueError, "downsample_type = 'resnet'.*conv"),
        ({"act_fn": "tanh"}, ValueError, "act_fn = 'tanh'.*silu"),
        ({"class_embed_type": "simple_projection"}, ValueError, "class_embed_type = 'simple_projection'.*'timestep'"),
        ({"num_class_embeds": 0}, ValueError, "num_class_embeds = 0: it must be a positive integer or None"),
        (
            {"num_class_embeds": 10, "class_embed_type": "timestep"},
            ValueError,
            "num_class_embeds = 10 is the size of a table, which class_embed_type = 'timestep' does not have",
        ),
        ({"resnet_time_scale_shift": "spatial"}, ValueError, "'spatial'.*scale_shift"),
        ({"down_block_types": ["DownBlock2D", "SkipDownBlock2D", "DownBlock2D"]}, ValueError, "SkipDownBlock2D"),
        ({"up_block_types": ["UpBlock2D"]}, ValueError, "up_block_types has 1 entries, block_out_channels 3"),
        ({"block_out_channels": []}, ValueError, r"block_out_channels = \[\]"),
        ({"block_out_channels": [8, 18, 16]}, ValueError, r"norm_num_groups = 4 does not divide \[18\]"),
        ({"attn_norm_num_groups": 5}, ValueError, r"attn_norm_num_groups = 5 does not divide \[16\]"),
        ({"layers_per_block": 0}, ValueError, "layers_per_block = 0: it must be a positive integer"),
        ({"dropout": 1.0}, ValueError, "dropout = 1.0"),
        ({"attention_head_dim": 17}, ValueError, "attention_head_dim = 17 is more than the 16"),
        ({"freq_shift": 4}, ValueError, "freq_shift = 4 must be less than half of the 8"),
        ({"sample_size": 30}, ValueError, "size 30 is not divisible by .* = 4 for 3 levels; make it 28 or 32"),
    ],
)
def test_a_bad_configuration_is_refused_by_name(change: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        UNet(**{**SMALL, **change})


def test_an_image_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(ValueError, match="size 26 is not divisible by .* make it 24 or 28"):
        UNet(**SMALL)(torch.zeros(1, 1, 28, 26), 0)


def test_an_unknown_size_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'xxl'; known: xs, s, m, l, xl"):
        unet_config("xxl", in_channels=1, sample_size=28)
