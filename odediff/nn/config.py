"""The configuration of a U-Net: diffusers' keys, checked before anything is built."""

from collections.abc import Callable
from typing import Any

from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "mish": nn.Mish,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
}
DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D")
UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D")

DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}

CHOICES: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False, True),
    "time_embedding_type": ("positional",),
    "flip_sin_to_cos": (False, True),
    "mid_block_type": ("UNetMidBlock2D", None),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "act_fn": tuple(ACTIVATIONS),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "add_attention": (False, True),
    "class_embed_type": (None, "timestep", "identity"),
}


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _size(value: Any) -> bool:
    return (
        value is None
        or _positive(value)
        or (isinstance(value, list) and len(value) == 2 and all(map(_positive, value)))
    )


RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "sample_size": (_size, "a positive integer, a pair (height, width) or None"),
    "in_channels": (_positive, "a positive integer"),
    "out_channels": (_positive, "a positive integer"),
    "time_embedding_dim": (lambda v: v is None or _positive(v), "a positive integer or None"),
    "freq_shift": (_real, "a number"),
    "layers_per_block": (_positive, "a positive integer"),
    "mid_block_scale_factor": (lambda v: _real(v) and v > 0, "a positive number"),
    "dropout": (lambda v: _real(v) and 0 <= v < 1, "a number in [0, 1)"),
    "attention_head_dim": (lambda v: v is None or _positive(v), "a positive integer or None"),
    "norm_num_groups": (_positive, "a positive integer"),
    "attn_norm_num_groups": (lambda v: v is None or _positive(v), "a positive integer or None"),
    "norm_eps": (lambda v: _real(v) and v > 0, "a positive number"),
    "num_class_embeds": (lambda v: v is None or _positive(v), "a positive integer or None"),
    "num_train_timesteps": (lambda v: v is None or _positive(v), "a positive integer or None (it has no effect)"),
}


def checked_config(given: dict[str, Any]) -> dict[str, Any]:
    """`DEFAULTS` with `given` laid over it, as plain JSON types.

    Raises `ValueError` for a key that no U-Net has and for a value that is not supported or does not fit the
    others; the message names the key, the value and what would do.
    """
    if unknown := sorted(set(given) - set(DEFAULTS)):
        raise ValueError(f"unknown U-Net configuration keys {unknown}; known: {sorted(DEFAULTS)}")
    config = DEFAULTS | {key: list(v) if isinstance(v, tuple) else v for key, v in given.items()}
    for key, supported in CHOICES.items():
        if config[key] not in supported:
            raise ValueError(f"{key} = {config[key]!r} is not supported; supported: {list(supported)}")
    for key, (fits, wanted) in RULES.items():
        if not fits(config[key]):
            raise ValueError(f"{key} = {config[key]!r}: it must be {wanted}")
    if config["class_embed_type"] and config["num_class_embeds"]:
        raise ValueError(
            f"num_class_embeds = {config['num_class_embeds']} is the size of a table, which class_embed_type = "
            f"{config['class_embed_type']!r} does not have; leave one of them None"
        )
    _check_levels(config)
    return config


def _check_levels(config: dict[str, Any]) -> None:
    channels = config["block_out_channels"]
    if not (isinstance(channels, list) and channels and all(map(_positive, channels))):
        raise ValueError(f"block_out_channels = {channels!r}: it must be a list of positive integers, one a level")
    for key, supported in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
        if wrong := [name for name in config[key] if name not in supported]:
            raise ValueError(f"{key} = {wrong} is not supported; supported: {list(supported)}")
        if len(config[key]) != len(channels):
            raise ValueError(
                f"{key} has {len(config[key])} entries, block_out_channels {len(channels)}; give one a level"
            )
    for key in ("norm_num_groups", "attn_norm_num_groups"):
        split = channels if key == "norm_num_groups" else channels[-1:]
        if wrong := [c for c in split if config[key] is not None and c % config[key]]:
            raise ValueError(f"{key} = {config[key]} does not divide {wrong} of block_out_channels = {channels}")
    if channels[0] // 2 <= config["freq_shift"]:
        raise ValueError(
            f"freq_shift = {config['freq_shift']} must be less than half of the {channels[0]} first channels"
        )
    check_size(config["sample_size"], len(channels))


def check_size(size: int | list[int] | None, levels: int) -> None:
    """Raise `ValueError` if an image of this size cannot be halved `levels - 1` times."""
    factor = 2 ** (levels - 1)
    for side in [size] if isinstance(size, int) else size or []:
        if side % factor:
            near = f"{side // factor * factor or factor} or {-(-side // factor) * factor}"
            raise ValueError(
                f"size {side} is not divisible by 2^(levels - 1) = {factor} for {levels} levels; make it {near}, or "
                "use fewer levels"
            )
