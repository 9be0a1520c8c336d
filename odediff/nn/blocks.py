"""The parts of the U-Net: time embedding, residual block, self-attention, resampling.

Attribute names are the parameter names of diffusers' `UNet2DModel`, so that a state dict of one loads into the other.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_PERIOD = 10_000.0


def sinusoid(t: Tensor, dim: int, *, freq_shift: float = 0.0, flip_sin_to_cos: bool = True) -> Tensor:
    """Sinusoidal embedding of a time, in float32 whatever the dtype of `t`.

    `emb = [cos(t w_k), sin(t w_k)]` with `w_k = 10000^(-k / (dim // 2 - freq_shift))`, `k = 0 .. dim // 2 - 1`; sines
    first unless `flip_sin_to_cos`. `t` is (N,), integer or real. Returns (N, dim); an odd `dim` ends in a zero.
    Source: Vaswani et al. 2017, section 3.5, as used by Ho et al. 2020, appendix B.
    """
    half = dim // 2
    k = torch.arange(half, dtype=torch.float32, device=t.device)
    angle = t.float()[:, None] * torch.exp(-math.log(MAX_PERIOD) / (half - freq_shift) * k)
    parts = [angle.cos(), angle.sin()] if flip_sin_to_cos else [angle.sin(), angle.cos()]
    return F.pad(torch.cat(parts, dim=1), (0, dim % 2))


class TimeEmbedding(nn.Module):
    """Two linear layers with an activation between: (N, dim_in) -> (N, dim_out)."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(dim_in, dim_out)
        self.linear_2 = nn.Linear(dim_out, dim_out)

    def forward(self, emb: Tensor) -> Tensor:
        out: Tensor = self.linear_2(F.silu(self.linear_1(emb)))
        return out


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions behind GroupNorm and an activation, the time added (or scaling) between them.

    `y = (skip(x) + conv2(drop(act(norm2(conv1(act(norm1 x)) + proj(act emb)))))) / rescale`; with `scale_shift`,
    `norm2(h) (1 + s) + b` where `(s, b) = proj(act emb)`. Source: Ho et al. 2020, appendix B; `scale_shift` is Dhariwal
    and Nichol 2021, section 3 ("AdaGN").
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        time_dim: int,
        groups: int,
        eps: float,
        act: type[nn.Module],
        dropout: float = 0.0,
        scale_shift: bool = False,
        rescale: float = 1.0,
    ) -> None:
        super().__init__()
        self.scale_shift, self.rescale = scale_shift, rescale
        self.norm1 = nn.GroupNorm(groups, channels_in, eps=eps)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_dim, (2 if scale_shift else 1) * channels_out)
        self.norm2 = nn.GroupNorm(groups, channels_out, eps=eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.nonlinearity = act()
        self.conv_shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(self.nonlinearity(self.norm1(x)))
        time = self.time_emb_proj(self.nonlinearity(emb))[:, :, None, None]
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + time)
        h = self.conv2(self.dropout(self.nonlinearity(h)))
        skip = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return _rescaled(skip + h, self.rescale)


class SelfAttention(nn.Module):
    """Multi-head self-attention over the pixels, with a residual connection.

    `y = (x + out(softmax(q k^T / sqrt(head_dim)) v)) / rescale`, `q, k, v` linear in `norm(x)`, `channels // head_dim`
    heads. Source: Ho et al. 2020, appendix B; several heads as in Dhariwal and Nichol 2021.
    """

    def __init__(
        self, channels: int, *, head_dim: int | None, groups: int | None, eps: float, rescale: float = 1.0
    ) -> None:
        super().__init__()
        head_dim = channels if head_dim is None else head_dim
        if head_dim > channels:
            raise ValueError(f"attention_head_dim = {head_dim} is more than the {channels} channels it splits")
        self.heads, self.rescale = channels // head_dim, rescale
        inner = self.heads * head_dim
        self.group_norm = None if groups is None else nn.GroupNorm(groups, channels, eps=eps)
        self.to_q = nn.Linear(channels, inner)
        self.to_k = nn.Linear(channels, inner)
        self.to_v = nn.Linear(channels, inner)
        self.to_out = nn.ModuleList([nn.Linear(inner, channels)])

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        h = x if self.group_norm is None else self.group_norm(x)
        h = h.flatten(2).transpose(1, 2)
        q, k, v = (
            part(h).view(n, height * width, self.heads, -1).transpose(1, 2)
            for part in (self.to_q, self.to_k, self.to_v)
        )
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        h = self.to_out[0](h).transpose(1, 2).reshape(n, channels, height, width)
        return _rescaled(x + h, self.rescale)


class Downsample(nn.Module):
    """Half the size by a 3x3 convolution of stride 2.

    `padding = 0` pads one pixel at the right and bottom only, which is what TensorFlow's "same" did in DDPM's own code.
    """

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)) if self.conv.padding == (0, 0) else x)
        return out


class Upsample(nn.Module):
    """Twice the size: each pixel repeated 2x2, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


def _rescaled(x: Tensor, scale: float) -> Tensor:
    return x if scale == 1 else x / scale
