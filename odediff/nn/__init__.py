"""The network: the U-Net of DDPM, with diffusers' parameter names and configuration keys."""

from .init import zero_residuals
from .sizes import SIZES, unet_config
from .unet import UNet

__all__ = ["SIZES", "UNet", "unet_config", "zero_residuals"]
