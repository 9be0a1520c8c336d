"""Images from disk: npz, IDX, folders of pictures and mosaics of small ones, as one uint8 array."""

import glob
import gzip
import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
GREY, COLOUR = ("1", "L"), ("RGB", "P", "CMYK", "YCbCr")


def load_images(path: str | Path, *, key: str | None = None, tile: int | None = None, pad: int = 1) -> Pixels:
    """All images at `path` as uint8 (N, C, H, W), C = 1 or 3, contiguous.

    `path`: a `.npz` file (the array `key`; without it `x_train`, `images`, or the only one), an IDX file of bytes,
    plain or gzipped, a picture, a folder of pictures, or a pattern such as `cifar10/train_*.webp`. Pictures are PNG,
    JPEG or WebP, all of one size, in the order of their names. `tile`: each picture is a mosaic of square images with
    this side, row by row. `pad`: zeros around the images until both sides are multiples of it.

    Raises `FileNotFoundError` where there is nothing, `ValueError` for an absent key and for a file that cannot be read
    or holds something other than images of bytes; each names the file.
    """
    path = Path(path)
    if path.is_file() and path.suffix.lower() not in SUFFIXES:
        if tile is not None:
            raise ValueError(f"tile = {tile} cuts pictures, and {path} is not one of {', '.join(SUFFIXES)}")
        images = _from_array_file(path, key)
    else:
        if key is not None:
            raise ValueError(f"key = {key!r} chooses an array of an .npz file, and {path} is not one")
        images = _from_pictures(_pictures(path), tile)
    if not len(images):
        raise ValueError(f"{path} holds no images")
    return _padded(images, pad)


def load_labels(path: str | Path, key: str, count: int) -> Labels:
    """The array `key` of an .npz file as int64 (count,): the classes 0, 1, .. of `count` images.

    Raises `ValueError` for another kind of file, an absent key, and anything but one whole number from 0 an image.
    """
    path = Path(path)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"labels = {key!r} names an array of an .npz file, and {path} is not one")
    found = _npz_array(path, key)
    if found.dtype.kind not in "iu" or found.shape != (count,):
        raise ValueError(
            f"{path}: {key} holds {found.dtype} of shape {found.shape}; labels must be whole numbers, ({count},), one "
            "for each image"
        )
    labels = found.astype(np.int64)
    if labels.min() < 0:
        raise ValueError(f"{path}: {key} holds the label {labels.min()}; classes are 0, 1, ..")
    return labels


def _padded(images: Pixels, multiple: int) -> Pixels:
    more = [-side % multiple for side in images.shape[2:]]
    if not any(more):
        return np.ascontiguousarray(images)
    around = [(0, 0), (0, 0), *((m // 2, m - m // 2) for m in more)]
    return np.pad(images, around)


def _from_array_file(path: Path, key: str | None) -> Pixels:
    with path.open("rb") as file:
        magic = file.read(2)
    if magic == b"PK":
        return _nchw(_npz_array(path, key), path)
    if magic in (b"\x1f\x8b", b"\0\0"):
        if key is not None:
            raise ValueError(f"key = {key!r} chooses an array of an .npz file, and {path} is IDX")
        return _nchw(_idx_array(path, gzipped=magic == b"\x1f\x8b"), path)
    raise ValueError(f"{path} is neither .npz, IDX (plain or gzipped) nor one of {', '.join(SUFFIXES)}")


@contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """Whatever a reader makes of a spoiled file becomes a `ValueError` that names it."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as {kind}: {error}") from None


def _npz_array(path: Path, key: str | None) -> NDArray[np.generic]:
    # numpy leaves a file that it opened itself open when it turns out to be cut short.
    with path.open("rb") as raw:
        with _reading(path, ".npz"):
            file = np.load(raw, allow_pickle=False)
        with file:
            name = _array_name(path, file.files, key)
            with _reading(path, ".npz"):
                found: NDArray[np.generic] = file[name]
    return found


def _array_name(path: Path, names: list[str], key: str | None) -> str:
    if key is None:
        usual = [name for name in ("x_train", "images") if name in names] or (names if len(names) == 1 else [])
        if not usual:
            raise ValueError(f"{path} holds {names}: choose one with key=")
        return usual[0]
    if key not in names:
        raise ValueError(f"{path} has no array {key!r}; it holds {names}")
    return key


def _idx_array(path: Path, *, gzipped: bool) -> NDArray[np.generic]:
    """LeCun's format: two zero bytes, a type byte, the number of axes, big-endian uint32 sizes, the values."""
    with _reading(path, "gzip"):
        raw = gzip.decompress(path.read_bytes()) if gzipped else path.read_bytes()
    if len(raw) < 4 or raw[:2] != b"\0\0" or len(raw) < 4 + 4 * raw[3]:
        raise ValueError(f"{path} is no IDX file: its header is cut short or wrong")
    if raw[2] != 0x08:
        raise ValueError(f"{path} holds IDX type 0x{raw[2]:02x}; only unsigned bytes (0x08) are images")
    shape = tuple(int(n) for n in np.frombuffer(raw, ">u4", raw[3], 4))
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if len(values) != math.prod(shape):
        raise ValueError(f"{path} announces {shape}, {math.prod(shape)} bytes, and holds {len(values)}")
    return values.reshape(shape)


def _nchw(values: NDArray[np.generic], path: Path) -> Pixels:
    if values.dtype != np.uint8:
        raise ValueError(f"{path} holds {values.dtype} of shape {values.shape}; images must be uint8, 0 to 255")
    pixels = values.astype(np.uint8, copy=False)
    if pixels.ndim == 3:
        return pixels[:, None]
    if pixels.ndim == 4 and pixels.shape[1] in (1, 3):
        return pixels
    if pixels.ndim == 4 and pixels.shape[3] in (1, 3):
        return pixels.transpose(0, 3, 1, 2)
    raise ValueError(
        f"{path} holds shape {values.shape}; wanted (N, H, W), (N, C, H, W) or (N, H, W, C) with C = 1 or 3"
    )


def _pictures(path: Path) -> list[Path]:
    if path.is_dir():
        found = [p for p in path.iterdir() if p.suffix.lower() in SUFFIXES]
    else:
        found = [path] if path.is_file() else [Path(p) for p in glob.glob(str(path))]
    if not found:
        what = f"holds none of *{', *'.join(SUFFIXES)}" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {what}")
    return sorted(found)


def _from_pictures(files: list[Path], tile: int | None) -> Pixels:
    pictures = [_picture(file) for file in files]
    for file, picture in zip(files, pictures, strict=True):
        if picture.shape[1:] != pictures[0].shape[1:]:
            height, width = picture.shape[1:]
            first_height, first_width = pictures[0].shape[1:]
            raise ValueError(
                f"{file} is {width}x{height}, {files[0].name} {first_width}x{first_height}: make all images one size"
            )
    channels = max(len(picture) for picture in pictures)
    images = np.stack([np.broadcast_to(picture, (channels, *picture.shape[1:])) for picture in pictures])
    return images if tile is None else _tiles(images, tile, files[0])


def _tiles(mosaics: Pixels, tile: int, file: Path) -> Pixels:
    n, channels, height, width = mosaics.shape
    if tile < 1 or height % tile or width % tile:
        raise ValueError(f"tile = {tile} does not divide the {width}x{height} pixels of {file}")
    cut = mosaics.reshape(n, channels, height // tile, tile, width // tile, tile)
    return cut.transpose(0, 2, 4, 1, 3, 5).reshape(-1, channels, tile, tile)


def _picture(file: Path) -> Pixels:
    """One picture as (C, H, W)."""
    with _reading(file, "a picture"), Image.open(file) as image:
        mode = image.mode
        pixels = np.asarray(image.convert("L" if mode in GREY else "RGB"))
    if mode not in GREY + COLOUR:
        raise ValueError(f"{file} has mode {mode}; convert it to 8-bit grey or RGB without transparency")
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
