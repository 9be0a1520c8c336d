"""Starting weights for training."""

import torch
from torch import nn

from .blocks import ResidualBlock, SelfAttention
from .unet import UNet


@torch.no_grad()
def zero_residuals(net: UNet) -> UNet:
    """Zero the last layer of every residual branch and of the network, in place: each branch starts as the identity.

    The network starts by answering 0. Returns `net`. Source: Ho et al. 2020, released code (`init_scale=0`).
    """
    last: list[nn.Module] = [net.conv_out]
    for module in net.modules():
        if isinstance(module, ResidualBlock):
            last.append(module.conv2)
        elif isinstance(module, SelfAttention):
            last.append(module.to_out[0])
    for layer in last:
        for parameter in layer.parameters():
            parameter.zero_()
    return net
