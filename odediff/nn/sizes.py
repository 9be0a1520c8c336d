"""Named sizes of the U-Net, from a third of a million parameters to sixty million."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .config import checked_config


@dataclass(frozen=True)
class Size:
    """What a name stands for: channels a level, layers a level, the levels (0 = full size) with attention, the rest."""

    channels: tuple[int, ...]
    layers: int
    attention: tuple[int, ...]
    more: dict[str, Any]

    def config(self, levels: int) -> dict[str, Any]:
        """Configuration keys of the first `levels` levels."""
        attends = [i in self.attention for i in range(levels)]
        return {
            "block_out_channels": list(self.channels[:levels]),
            "layers_per_block": self.layers,
            "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
            "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
            **self.more,
        }


# "l" is the network of Ho et al. 2020 for CIFAR-10, with the conventions of its own code. "s" keeps to 4 MB in float16:
# nearly even widths put its arithmetic where the strokes are, at full size; attention at half and a quarter is cheap.
_DDPM = {
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
SIZES: dict[str, Size] = {
    "xs": Size((24, 32, 32), 1, (2,), {"norm_num_groups": 8, "attention_head_dim": 16}),
    "s": Size((48, 64, 64), 2, (1, 2), {"norm_num_groups": 8, "attention_head_dim": 32, "time_embedding_dim": 128}),
    "m": Size((64, 128, 160), 2, (1, 2), {"attention_head_dim": 32}),
    "l": Size((128, 256, 256, 256), 2, (1,), _DDPM),
    "xl": Size((160, 320, 320, 320), 2, (1, 2), {"attention_head_dim": 64}),
}


def unet_config(size: str, *, in_channels: int, sample_size: int | Sequence[int], **overrides: Any) -> dict[str, Any]:
    """The configuration of a named size: `UNet(**unet_config("s", in_channels=1, sample_size=28))`.

    Parameters for 3 channels at 32x32 (and 1 at 28x28): xs 0.33M, s 1.9M, m 8.6M, l 35.7M (25.8M), xl 57.9M (42.4M).
    A size that cannot be halved often enough gets fewer levels: 28x28 has three (28, 14, 7) where 32x32 has four.

    `overrides` are configuration keys that win over the named ones, such as `dropout=0.1`. Raises `ValueError` for an
    unknown name, and what `UNet` raises for overrides.
    """
    if size not in SIZES:
        raise ValueError(f"unknown network size {size!r}; known: {', '.join(SIZES)}")
    named = SIZES[size]
    sides = [sample_size] if isinstance(sample_size, int) else list(sample_size)
    levels = len(named.channels)
    while levels > 1 and any(side % 2 ** (levels - 1) for side in sides):
        levels -= 1
    given = {"sample_size": sample_size, "in_channels": in_channels, "out_channels": in_channels}
    return checked_config({**given, **named.config(levels), **overrides})
