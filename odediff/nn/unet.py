"""The U-Net of Ho et al. 2020 (appendix B), parameter for parameter that of diffusers' `UNet2DModel`."""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Downsample, ResidualBlock, SelfAttention, TimeEmbedding, Upsample, sinusoid
from .config import ACTIVATIONS, check_size, checked_config


class _Level(nn.Module):
    """One resolution, down, middle or up: residual blocks, with attention behind each or without."""

    def __init__(
        self,
        resnets: list[ResidualBlock],
        attentions: list[SelfAttention],
        down: Downsample | None = None,
        up: Upsample | None = None,
    ) -> None:
        super().__init__()
        if attentions:
            self.attentions = nn.ModuleList(attentions)
        self.resnets = nn.ModuleList(resnets)
        if down is not None:
            self.downsamplers = nn.ModuleList([down])
        if up is not None:
            self.upsamplers = nn.ModuleList([up])

    def layer(self, i: int, x: Tensor, emb: Tensor) -> Tensor:
        """Residual block `i` and the attention behind it."""
        x = self.resnets[i](x, emb)
        return self.attentions[i](x) if hasattr(self, "attentions") else x


class _Down(_Level):
    def forward(self, x: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        for i in range(len(self.resnets)):
            x = self.layer(i, x, emb)
            skips.append(x)
        if hasattr(self, "downsamplers"):
            x = self.downsamplers[0](x)
            skips.append(x)
        return x


class _Middle(_Level):
    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        x = self.resnets[0](x, emb)
        if hasattr(self, "attentions"):
            x = self.attentions[0](x)
        out: Tensor = self.resnets[1](x, emb)
        return out


class _Up(_Level):
    def forward(self, x: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        for i in range(len(self.resnets)):
            x = self.layer(i, torch.cat([x, skips.pop()], dim=1), emb)
        return self.upsamplers[0](x) if hasattr(self, "upsamplers") else x


class UNet(nn.Module):
    """A network of image, time and, if it has a class embedding, label: `forward(x, t, label)`.

    The keywords are the configuration keys of diffusers' `UNet2DModel`, with its defaults; `.config` holds them all.
    `norm_num_groups` groups in every GroupNorm, `attention_head_dim` channels a head (None: one head). Checkpoints
    load both ways with `load_state_dict(..., strict=True)`. The label's embedding is added to the time's:
    `num_class_embeds` rows of a table, or `class_embed_type` "timestep" (embedded as a time is, by weights of its own)
    or "identity" (the label is the embedding).

    Raises `ValueError` for an unknown key or an unsupported value, before anything is built.
    """

    def __init__(self, **config: Any) -> None:
        super().__init__()
        c = self.config = checked_config(config)
        channels, layers = c["block_out_channels"], c["layers_per_block"]
        self._time_dim = c["time_embedding_dim"] or 4 * channels[0]
        self.conv_in = nn.Conv2d(c["in_channels"], channels[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(channels[0], self._time_dim)
        self.class_embedding = self._class_embedding()

        # What the way up will take off the stack: the input convolution, each layer, each downsampling.
        skips = [channels[0]]
        self.down_blocks = nn.ModuleList()
        for i, (before, now) in enumerate(pairwise([channels[0], *channels])):
            last = i == len(channels) - 1
            self.down_blocks.append(self._down(c["down_block_types"][i], before, now, last))
            skips += [now] * (layers if last else layers + 1)

        self.mid_block = self._middle(channels[-1]) if c["mid_block_type"] else None

        self.up_blocks = nn.ModuleList()
        for i, (before, now) in enumerate(pairwise([channels[-1], *reversed(channels)])):
            taken = [skips.pop() for _ in range(layers + 1)]
            inputs = [(now if j else before) + taken[j] for j in range(layers + 1)]
            self.up_blocks.append(self._up(c["up_block_types"][i], inputs, now, i == len(channels) - 1))

        self.conv_norm_out = nn.GroupNorm(c["norm_num_groups"], channels[0], eps=c["norm_eps"])
        self.conv_out = nn.Conv2d(channels[0], c["out_channels"], 3, padding=1)

    def _class_embedding(self) -> nn.Module | None:
        c = self.config
        if c["num_class_embeds"]:
            return nn.Embedding(c["num_class_embeds"], self._time_dim)
        if c["class_embed_type"] == "timestep":
            return TimeEmbedding(c["block_out_channels"][0], self._time_dim)
        return nn.Identity() if c["class_embed_type"] == "identity" else None

    def _resnet(self, channels_in: int, channels_out: int, rescale: float = 1.0) -> ResidualBlock:
        c = self.config
        return ResidualBlock(
            channels_in,
            channels_out,
            time_dim=self._time_dim,
            groups=c["norm_num_groups"],
            eps=c["norm_eps"],
            act=ACTIVATIONS[c["act_fn"]],
            dropout=c["dropout"],
            scale_shift=c["resnet_time_scale_shift"] == "scale_shift",
            rescale=rescale,
        )

    def _attention(self, channels: int, groups: int | None, rescale: float = 1.0) -> SelfAttention:
        c = self.config
        return SelfAttention(
            channels, head_dim=c["attention_head_dim"], groups=groups, eps=c["norm_eps"], rescale=rescale
        )

    def _attentions(self, block_type: str, channels: int, count: int) -> list[SelfAttention]:
        count = count if block_type.startswith("Attn") else 0
        return [self._attention(channels, self.config["norm_num_groups"]) for _ in range(count)]

    def _down(self, block_type: str, before: int, now: int, last: bool) -> _Down:
        count = self.config["layers_per_block"]
        resnets = [self._resnet(now if i else before, now) for i in range(count)]
        down = None if last else Downsample(now, self.config["downsample_padding"])
        return _Down(resnets, self._attentions(block_type, now, count), down=down)

    def _middle(self, channels: int) -> _Middle:
        c, rescale = self.config, float(self.config["mid_block_scale_factor"])
        groups = c["attn_norm_num_groups"]
        if groups is None and c["resnet_time_scale_shift"] == "default":
            groups = c["norm_num_groups"]
        attentions = [self._attention(channels, groups, rescale)] if c["add_attention"] else []
        return _Middle([self._resnet(channels, channels, rescale) for _ in range(2)], attentions)

    def _up(self, block_type: str, inputs: list[int], now: int, last: bool) -> _Up:
        resnets = [self._resnet(channels, now) for channels in inputs]
        return _Up(resnets, self._attentions(block_type, now, len(inputs)), up=None if last else Upsample(now))

    def forward(self, x: Tensor, t: Tensor | float, label: Tensor | None = None) -> Tensor:
        """The network's output at time `t`, of the shape of `x` but for `out_channels`.

        `x`: (N, in_channels, H, W), H and W divisible by 2^(levels - 1); `t`: a number, a 0-d tensor, or (N,), integer
        or real. `label`: (N,), a row of the table (int64) or, for "timestep", any number; (N, time dim) for "identity".
        Raises `ValueError` for a size that does not divide, a label missing, or given to a network without them.
        """
        check_size(list(x.shape[2:]), len(self.down_blocks))
        emb = self._embed(t, x)
        if self.class_embedding is not None or label is not None:
            emb = emb + self._embed_label(label)
        if self.config["center_input_sample"]:
            x = 2 * x - 1
        x = self.conv_in(x)
        skips = [x]
        for down in self.down_blocks:
            x = down(x, emb, skips)
        if self.mid_block is not None:
            x = self.mid_block(x, emb)
        for up in self.up_blocks:
            x = up(x, emb, skips)
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return out

    def _embed(self, t: Tensor | float, x: Tensor) -> Tensor:
        time = torch.as_tensor(t, device=x.device).expand(x.shape[0])
        out: Tensor = self.time_embedding(self._sinusoid(time))
        return out

    def _embed_label(self, label: Tensor | None) -> Tensor:
        if self.class_embedding is None:
            raise ValueError("label given to a network without class embedding; build it with num_class_embeds")
        if label is None:
            raise ValueError("label is missing: the network has a class embedding")
        if self.config["class_embed_type"] == "timestep":
            label = self._sinusoid(label)
        out: Tensor = self.class_embedding(label)
        return out.to(self.conv_in.weight.dtype)

    def _sinusoid(self, time: Tensor) -> Tensor:
        """Waves of a time or a label, (N, first channels), in the network's dtype."""
        c = self.config
        emb = sinusoid(
            time, c["block_out_channels"][0], freq_shift=c["freq_shift"], flip_sin_to_cos=c["flip_sin_to_cos"]
        )
        return emb.to(self.conv_in.weight.dtype)
