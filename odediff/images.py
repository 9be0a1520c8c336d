"""A batch of images as one picture: pixel = round(255 (x - low) / (high - low)), clipped to 0..255."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    import torch

_GAP = 2
_GAP_GREY = 96  # told apart from the black and the white that MNIST-like images have at their borders
_COMFORTABLE_WIDTH = 600


def image_grid(
    x: torch.Tensor | NDArray[np.floating],
    *,
    range: tuple[float, float] | None = (-1.0, 1.0),
    columns: int | None = None,
    scale: int | None = None,
) -> Image.Image:
    """The images of a batch side by side, row by row, 2 pixels apart.

    x: (N, C, H, W), torch tensor or numpy array, C = 1 (grey) or 3 (RGB).
    range: the data values shown as black and as white; values beyond are clipped; None takes the batch's extremes.
    columns: images per row, 1 or more; by default the number that comes nearest to a square.
    scale: every data pixel becomes scale x scale; by default what brings the picture nearest to 600 pixels wide.
    ValueError: another shape, a range that is empty, columns or scale below 1, values that are not finite.
    """
    pixels = _to_bytes(_to_numpy(x), range)
    n, height, width, _ = pixels.shape
    for name, value in (("columns", columns), ("scale", scale)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    columns = min(n, columns) if columns else _near_square(n, height, width)
    scale = scale or max(1, round(_COMFORTABLE_WIDTH / (columns * width)))
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    return _paste(pixels, columns)


def save_images(
    x: torch.Tensor | NDArray[np.floating],
    path: str | os.PathLike[str],
    *,
    range: tuple[float, float] | None = (-1.0, 1.0),
    columns: int | None = None,
    scale: int | None = None,
) -> Path:
    """Write `image_grid(x, ...)` to a file, in the format that its name ends in; gives back the path.

    The file appears whole or not at all: a reader never meets half a picture.
    ValueError: as `image_grid`, or an ending that is no picture format. FileNotFoundError: the folder does not exist.
    """
    path = Path(path)
    picture_format = _format_of(path)
    picture = image_grid(x, range=range, columns=columns, scale=scale)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        picture.save(unfinished, format=picture_format)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def check_path(path: str | os.PathLike[str]) -> None:
    """Raise what `save_images` would raise for this path, before there are images to save."""
    _format_of(Path(path))


def _format_of(path: Path) -> str:
    """Pillow's name of the format; all that can be wrong with a path is found here, before any work."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}; create it first")
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder; name a file in it, such as {path / 'grid.png'}")
    Image.init()
    picture_format = Image.registered_extensions().get(path.suffix.lower())
    if picture_format not in Image.SAVE:
        raise ValueError(f"cannot write {path}: {path.suffix!r} is no picture format known here; use .png")
    return picture_format


def _to_numpy(x: torch.Tensor | NDArray[np.floating]) -> NDArray[np.float64]:
    if not isinstance(x, np.ndarray):
        x = x.detach().cpu().double().numpy()
    if x.ndim != 4 or x.shape[1] not in (1, 3) or 0 in x.shape:
        raise ValueError(f"images have shape (N, C, H, W) with C = 1 or 3 and no dimension of 0; got {tuple(x.shape)}")
    values: NDArray[np.float64] = x.astype(np.float64)
    bad = np.count_nonzero(~np.isfinite(values))
    if bad:
        raise ValueError(f"{bad} of {values.size} values are not finite (nan or inf), so there is no picture of them")
    return values


def _to_bytes(x: NDArray[np.float64], limits: tuple[float, float] | None) -> NDArray[np.uint8]:
    """(N, C, H, W) data values to (N, H, W, 3 or 1) bytes."""
    low, high = limits if limits is not None else (x.min(), max(x.max(), np.nextafter(x.min(), np.inf)))
    if not low < high:
        raise ValueError(f"range must be (low, high) with low < high, got {limits}")
    return np.rint(255.0 * np.clip((x - low) / (high - low), 0.0, 1.0)).astype(np.uint8).transpose(0, 2, 3, 1)


def _near_square(n: int, height: int, width: int) -> int:
    """The number of columns whose picture is nearest to square; on a tie fewer empty places, then the wider."""

    def badness(columns: int) -> tuple[float, int, int]:
        rows = -(-n // columns)
        return round(abs(math.log(columns * width / (rows * height))), 9), rows * columns - n, -columns

    return min(range(1, n + 1), key=badness)


def _paste(pixels: NDArray[np.uint8], columns: int) -> Image.Image:
    n, height, width, channels = pixels.shape
    rows = -(-n // columns)
    canvas = np.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, channels), _GAP_GREY, np.uint8)
    for i, tile in enumerate(pixels):
        top, left = (i // columns) * (height + _GAP), (i % columns) * (width + _GAP)
        canvas[top : top + height, left : left + width] = tile
    return Image.fromarray(canvas[:, :, 0] if channels == 1 else canvas)
