"""The networks that speed is measured on."""

from __future__ import annotations

from pathlib import Path

import torch

import odediff
from odediff.nn import UNet, unet_config

SEED = 20


def model_of(name: str) -> odediff.Model:
    """ "mnist" is bundled, "fashion" in bench/networks; random weights: "cifar", Ho et al. 2020 (35.7M), and "tiny"."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "mnist":
        return odediff.load(name, device=device)
    if name == "fashion":
        return odediff.load(Path(__file__).parent / "networks" / name, device=device)
    torch.manual_seed(SEED)
    small = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 8}
    small |= {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    more, shape = ({}, (3, 32, 32)) if name == "cifar" else (small, (1, 8, 8))
    net = UNet(**unet_config("l", in_channels=shape[0], sample_size=shape[1], **more)).to(device)
    return odediff.Model(net, schedule=odediff.schedule.linear(), prediction="v", shape=shape)
