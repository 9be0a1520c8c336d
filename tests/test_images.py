"""`save_images` and `image_grid`: pixels worked out by hand, and the errors that name what is wrong."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from odediff.images import check_path, image_grid, save_images


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture)


def test_values_are_rounded_not_truncated_and_clipped_at_both_ends():
    x = np.array([-1.0, 1.0, 0.0, -5.0, 7.0, 0.996, -1 + 2 * 0.4 / 255, -1 + 2 * 0.6 / 255]).reshape(1, 1, 1, 8)
    # 0 -> 127.5 rounds to even; 0.996 -> 254.49
    assert pixels(image_grid(x, scale=1)).tolist() == [[0, 255, 128, 0, 255, 254, 0, 1]]


@pytest.mark.parametrize("limits", [(0.0, 1.0), (-1.0, 1.0), (10.0, 265.0)])
def test_every_byte_survives_the_trip_through_any_range(limits):
    low, high = limits
    x = (low + (high - low) * np.arange(256) / 255).reshape(1, 1, 16, 16)
    assert pixels(image_grid(x, range=limits, scale=1)).ravel().tolist() == list(range(256))


def test_range_none_takes_the_extremes_of_the_batch():
    x = np.array([[-3.0, 5.0, 1.0]]).reshape(1, 1, 1, 3)
    assert pixels(image_grid(x, range=None, scale=1)).tolist() == [[0, 255, 128]]
    assert pixels(image_grid(np.full((1, 1, 1, 2), 7.0), range=None, scale=1)).tolist() == [[0, 0]]


def test_images_run_row_by_row_with_two_pixels_between_and_none_around():
    x = np.stack([np.full((1, 2, 3), value) for value in (0.0, 0.2, 0.4, 0.6, 0.8)])
    grid = pixels(image_grid(x, range=(0, 1), columns=3, scale=1))
    assert grid.shape == (2 + 2 + 2, 3 + 2 + 3 + 2 + 3)
    gap = grid[2, 0]
    assert 0 < gap < 255
    for i, byte in enumerate((0, 51, 102, 153, 204)):
        top, left = 4 * (i // 3), 5 * (i % 3)
        assert (grid[top : top + 2, left : left + 3] == byte).all()
    assert (grid[:, 3:5] == gap).all() and (grid[2:4] == gap).all()
    assert (grid[4:, 10:] == gap).all(), "the place that is left over stays empty"


def test_colour_channels_keep_their_order():
    x = np.zeros((1, 3, 1, 2))
    x[0, :, 0, 0] = (1.0, 0.2, 0.0)
    picture = image_grid(x, range=(0, 1), scale=1)
    assert picture.mode == "RGB"
    assert pixels(picture)[0].tolist() == [[255, 51, 0], [0, 0, 0]]


def test_scale_repeats_pixels_and_leaves_the_gap_two_wide():
    x = np.array([[[[0.0, 1.0]]], [[[1.0, 0.0]]]])
    grid = pixels(image_grid(x, range=(0, 1), columns=2, scale=3))
    assert grid.shape == (3, 6 + 2 + 6)
    assert grid[1].tolist() == [0] * 3 + [255] * 3 + [grid[0, 6]] * 2 + [255] * 3 + [0] * 3


@pytest.mark.parametrize(
    ("n", "side", "shape"),
    [
        (64, 28, (8 * 84 + 14, 8 * 84 + 14)),  # 600 / 224 = 2.7: three times as large
        (16, 32, (4 * 160 + 6, 4 * 160 + 6)),
        (1, 28, (588, 588)),
        (4, 512, (1026, 1026)),  # large images are not scaled down
        (12, 32, None),
    ],
)
def test_a_grid_is_nearly_square_and_comfortably_wide(n, side, shape):
    grid = pixels(image_grid(np.zeros((n, 1, side, side))))
    if shape:
        assert grid.shape == shape
    height, width = grid.shape
    assert 0.7 < width / height < 1.4
    assert width >= 450


@pytest.mark.parametrize(
    ("n", "columns", "rows"), [(2, 2, 1), (3, 2, 2), (5, 3, 2), (10, 4, 3), (12, 4, 3), (16, 4, 4)]
)
def test_a_tie_goes_to_the_wider_grid(n, columns, rows):
    height, width = pixels(image_grid(np.zeros((n, 1, 8, 8)), scale=1)).shape
    assert ((width + 2) / 10, (height + 2) / 10) == (columns, rows)


def test_more_columns_than_images_is_one_row():
    assert pixels(image_grid(np.zeros((2, 1, 4, 4)), columns=9, scale=1)).shape == (4, 10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8])
def test_tensors_of_any_dtype_and_with_gradients(dtype):
    x = torch.tensor([0.0, 1.0, 1.0, 0.0]).reshape(1, 1, 2, 2).to(dtype)
    if dtype.is_floating_point:
        x = x.requires_grad_()
    assert pixels(image_grid(x, range=(0, 1), scale=1)).tolist() == [[0, 255], [255, 0]]


def test_the_file_holds_the_grid_and_nothing_else_is_left_in_the_folder(tmp_path):
    x = np.random.default_rng(0).uniform(-1, 1, (5, 3, 8, 8))
    path = save_images(x, tmp_path / "grid.PNG", columns=2)
    assert path == tmp_path / "grid.PNG"
    assert (pixels(Image.open(path)) == pixels(image_grid(x, columns=2))).all()
    assert os.listdir(tmp_path) == ["grid.PNG"]


def test_the_final_name_is_only_ever_renamed_onto(tmp_path, monkeypatch):
    written = []
    save = Image.Image.save
    monkeypatch.setattr(Image.Image, "save", lambda self, to, **more: written.append(to) or save(self, to, **more))
    save_images(np.zeros((1, 1, 2, 2)), tmp_path / "grid.png")
    assert len(written) == 1
    assert written[0].parent == tmp_path
    assert written[0].name != "grid.png"


def test_a_failed_write_leaves_the_old_picture_and_no_remains(tmp_path, monkeypatch):
    path = save_images(np.zeros((1, 1, 2, 2)), str(tmp_path / "grid.png"))
    before = path.read_bytes()

    def full_disk(self, target, **_):
        target.write_bytes(b"half a pic")
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_images(np.ones((1, 1, 2, 2)), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["grid.png"]


def test_values_that_are_not_finite_are_counted():
    x = torch.zeros(2, 1, 2, 2)
    x[0, 0, 0, 0], x[1, 0, 1, 1], x[1, 0, 0, 0] = float("nan"), float("inf"), -float("inf")
    with pytest.raises(ValueError, match="3 of 8 values are not finite"):
        image_grid(x)


@pytest.mark.parametrize("shape", [(28, 28), (1, 28, 28), (2, 4, 8, 8), (2, 2, 8, 8), (0, 1, 8, 8), (1, 1, 0, 8)])
def test_other_shapes_are_named(shape):
    with pytest.raises(ValueError, match=rf"got \({shape[0]}, "):
        image_grid(np.zeros(shape))


@pytest.mark.parametrize("arguments", [{"columns": 0}, {"scale": -1}, {"range": (1.0, 1.0)}, {"range": (1.0, -1.0)}])
def test_arguments_out_of_their_range_are_named(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=name):
        image_grid(np.zeros((1, 1, 2, 2)), **arguments)


def test_a_path_that_cannot_be_written_is_refused_with_its_remedy(tmp_path):
    missing = tmp_path / "no" / "grid.png"
    for refuse in (check_path, lambda path: save_images(np.zeros((1, 1, 2, 2)), path)):
        with pytest.raises(FileNotFoundError, match=f"no folder {missing.parent}"):
            refuse(missing)
        with pytest.raises(ValueError, match=r"'\.txt' is no picture format known here; use \.png"):
            refuse(tmp_path / "grid.txt")
        with pytest.raises(ValueError, match="it is a folder"):
            refuse(tmp_path)
    assert os.listdir(tmp_path) == []
