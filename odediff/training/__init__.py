"""Training: DDPM Algorithm 1, from images on disk to a `Model` with averaged weights."""

from .config import TrainConfig
from .data import load_images
from .loop import train
from .losses import WEIGHTINGS, DenoisingLoss

__all__ = ["WEIGHTINGS", "DenoisingLoss", "TrainConfig", "load_images", "train"]
