"""Images from every format, the order of the batches, and errors that name the file."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from odediff.training import load_images
from odediff.training.batches import Batches, data_fingerprint
from odediff.training.data import load_labels

CPU = torch.device("cpu")


def _random(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def _idx(values: NDArray[np.uint8], kind: int = 0x08) -> bytes:
    return bytes([0, 0, kind, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()


def test_npz_by_key_and_by_default(tmp_path: Path) -> None:
    grey, colour, test = _random(5, 6, 7), _random(4, 3, 6, 5), _random(3, 6, 7)
    path = tmp_path / "data.npz"
    np.savez(path, x_train=grey, x_test=test, labels=np.arange(5))
    assert np.array_equal(load_images(path), grey[:, None])
    assert np.array_equal(load_images(path, key="x_test"), test[:, None])
    np.savez_compressed(path, images=colour, more=grey)
    assert np.array_equal(load_images(path), colour)
    np.savez(path, anything=colour.transpose(0, 2, 3, 1))
    loaded = load_images(str(path))
    assert np.array_equal(loaded, colour) and loaded.flags.c_contiguous


def test_idx_plain_and_gzipped(tmp_path: Path) -> None:
    images = _random(5, 4, 6)
    plain, packed = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-images-idx3-ubyte.gz"
    plain.write_bytes(_idx(images))
    packed.write_bytes(gzip.compress(_idx(images)))
    for path in (plain, packed):
        assert np.array_equal(load_images(path), images[:, None])


@pytest.mark.parametrize("suffix", ["png", "webp", "jpeg"])
def test_folder_of_pictures_in_the_order_of_their_names(tmp_path: Path, suffix: str) -> None:
    images = np.repeat(np.array([200, 30, 120], dtype=np.uint8), 8 * 10 * 3).reshape(3, 8, 10, 3)
    for name, image in zip("cab", images, strict=True):
        Image.fromarray(image).save(tmp_path / f"{name}.{suffix}", lossless=True)
    (tmp_path / "notes.txt").write_text("not a picture")
    loaded = load_images(tmp_path)
    assert loaded.shape == (3, 3, 8, 10)
    assert np.abs(loaded.astype(int) - images[[1, 2, 0]].transpose(0, 3, 1, 2)).max() <= (2 if suffix == "jpeg" else 0)


def test_grey_pictures_have_one_channel_and_three_beside_coloured_ones(tmp_path: Path) -> None:
    grey, colour = _random(4, 6), _random(4, 6, 3)
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert np.array_equal(load_images(tmp_path), grey[None, None])
    Image.fromarray(colour).save(tmp_path / "b.png")
    assert np.array_equal(load_images(tmp_path), np.stack([np.stack([grey] * 3), colour.transpose(2, 0, 1)]))


def test_mosaics_are_cut_row_by_row(tmp_path: Path) -> None:
    images = _random(2 * 12, 4, 4, 3)
    for i, part in enumerate(images.reshape(2, 3, 4, 4, 4, 3)):
        mosaic = part.transpose(0, 2, 1, 3, 4).reshape(12, 16, 3)
        Image.fromarray(mosaic).save(tmp_path / f"train_{i:02}.webp", lossless=True)
    Image.fromarray(_random(4, 4, 3)).save(tmp_path / "test_00.webp", lossless=True)
    want = images.transpose(0, 3, 1, 2)
    assert np.array_equal(load_images(tmp_path / "train_*.webp", tile=4), want)
    assert np.array_equal(load_images(tmp_path / "train_01.webp", tile=4), want[12:])


def test_padding_is_zero_and_centred(tmp_path: Path) -> None:
    images = 1 + _random(2, 5, 8) // 2
    np.savez(tmp_path / "x.npz", images=images)
    padded = load_images(tmp_path / "x.npz", pad=4)
    assert padded.shape == (2, 1, 8, 8)
    assert np.array_equal(padded[:, 0, 1:6], images)
    assert padded.sum(dtype=int) == images.sum(dtype=int)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz does not exist"):
        load_images(tmp_path / "nowhere.npz")
    with pytest.raises(FileNotFoundError, match=r"holds none of \*\.png"):
        load_images(tmp_path)
    np.savez(tmp_path / "x.npz", a=_random(1, 4, 4), b=_random(1, 4, 4))
    with pytest.raises(ValueError, match=r"x\.npz has no array 'c'; it holds \['a', 'b'\]"):
        load_images(tmp_path / "x.npz", key="c")
    with pytest.raises(ValueError, match=r"x\.npz holds \['a', 'b'\]: choose one with key="):
        load_images(tmp_path / "x.npz")


@pytest.mark.parametrize("name", ["x.npz", "x.idx.gz", "x.idx", "x.png"])
def test_a_truncated_file_is_named(tmp_path: Path, name: str) -> None:
    path, images = tmp_path / name, _random(20, 16, 16)
    if name == "x.npz":
        np.savez_compressed(path, images=images)
    elif name == "x.png":
        Image.fromarray(images[0]).save(path)
    else:
        path.write_bytes(gzip.compress(_idx(images)) if name.endswith("gz") else _idx(images))
    whole = path.read_bytes()
    for size in (len(whole) // 2, 10):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            load_images(path)


def test_a_spoiled_array_inside_a_whole_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, images=_random(20, 16, 16))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"x\.npz cannot be read as \.npz"):
        load_images(path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.zeros((2, 4, 4), np.float32), "holds float32 of shape"),
        (np.zeros((2, 4, 4, 2), np.uint8), r"holds shape \(2, 4, 4, 2\)"),
        (np.zeros((16,), np.uint8), r"holds shape \(16,\)"),
        (np.zeros((0, 4, 4), np.uint8), "holds no images"),
        (np.array([{"a": 1}]), r"cannot be read as \.npz"),
    ],
)
def test_arrays_that_are_no_images_are_refused(tmp_path: Path, values: NDArray[np.generic], said: str) -> None:
    np.savez(tmp_path / "x.npz", images=values)
    with pytest.raises(ValueError, match=said):
        load_images(tmp_path / "x.npz")


def test_other_bad_input_is_refused(tmp_path: Path) -> None:
    (tmp_path / "floats").write_bytes(_idx(_random(2, 4, 4), kind=0x0D))
    with pytest.raises(ValueError, match="holds IDX type 0x0d"):
        load_images(tmp_path / "floats")
    with pytest.raises(ValueError, match="key = 'a' chooses an array"):
        load_images(tmp_path / "floats", key="a")
    (tmp_path / "page.html").write_text("<html>")
    with pytest.raises(ValueError, match=r"page\.html is neither"):
        load_images(tmp_path / "page.html")

    Image.fromarray(_random(4, 6)).save(tmp_path / "a.png")
    Image.fromarray(_random(4, 4)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"b\.png is 4x4, a\.png 6x4"):
        load_images(tmp_path)
    with pytest.raises(ValueError, match="tile = 4 does not divide the 6x4"):
        load_images(tmp_path / "a.png", tile=4)
    with pytest.raises(ValueError, match="tile = 4 cuts pictures"):
        load_images(tmp_path / "floats", tile=4)
    Image.fromarray(_random(4, 4, 4)).save(tmp_path / "c.png")
    with pytest.raises(ValueError, match=r"c\.png has mode RGBA"):
        load_images(tmp_path / "c.png")


def test_batches_run_through_the_data_in_a_new_order_each_pass() -> None:
    images = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    batches = Batches(images, 4, seed=3, flip=False, device=CPU)
    drawn = torch.cat([batches.indices(step) for step in range(15)]).reshape(6, 10)
    assert all(sorted(row) == list(range(10)) for row in drawn.tolist())
    assert len({tuple(row) for row in drawn.tolist()}) == 6
    # The order is a function of seed and step, not of what was asked before.
    again = Batches(images, 4, seed=3, flip=False, device=CPU)
    assert torch.equal(again.indices(7), batches.indices(7))
    assert not torch.equal(Batches(images, 4, seed=4, flip=False, device=CPU).indices(7), batches.indices(7))
    assert len(Batches(images, 25, seed=3, flip=False, device=CPU).indices(1)) == 25


def test_batches_are_scaled_to_one_and_flipped_half_the_time() -> None:
    images = np.tile(np.array([[0, 51], [204, 255]], dtype=np.uint8), (400, 1, 1, 1))
    plain = Batches(images, 400, seed=0, flip=False, device=CPU)(0)
    assert plain.dtype == torch.float32
    torch.testing.assert_close(plain[0, 0], torch.tensor([[-1.0, -0.6], [0.6, 1.0]]))
    torch.manual_seed(0)
    flipped = Batches(images, 400, seed=0, flip=True, device=CPU)(0)
    mirrored = torch.tensor([torch.equal(x, plain[0].flip(-1)) for x in flipped])
    assert all(torch.equal(x, plain[0]) for x in flipped[~mirrored])
    assert 150 < int(mirrored.sum()) < 250


def test_fingerprint_tells_data_apart() -> None:
    images = _random(3, 1, 4, 4)
    other = images.copy()
    other[1, 0, 2, 2] ^= 1
    assert data_fingerprint(images) == data_fingerprint(images.copy())
    assert data_fingerprint(images) != data_fingerprint(other)
    assert data_fingerprint(images) != data_fingerprint(images.reshape(3, 1, 2, 8))


def test_labels_by_key(tmp_path: Path) -> None:
    labels = np.array([2, 0, 1, 1, 9], dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x_train=_random(5, 4, 4), y=labels, real=labels / 2, low=labels.astype(int) - 1)
    got = load_labels(tmp_path / "x.npz", "y", 5)
    assert got.dtype == np.int64 and got.tolist() == [2, 0, 1, 1, 9]
    for key, count, said in (
        ("z", 5, r"x\.npz has no array 'z'"),
        ("y", 6, r"y holds uint8 of shape \(5,\); labels must be whole numbers, \(6,\), one for each image"),
        ("real", 5, "real holds float64 of shape"),
        ("low", 5, "low holds the label -1; classes are 0, 1, .."),
    ):
        with pytest.raises(ValueError, match=said):
            load_labels(tmp_path / "x.npz", key, count)
    Image.fromarray(_random(4, 4)).save(tmp_path / "a.png")
    for path in (tmp_path, tmp_path / "a.png"):
        with pytest.raises(ValueError, match=r"labels = 'y' names an array of an \.npz file, and .* is not one"):
            load_labels(path, "y", 5)


def _labelled(seed: int = 3, dropout: float = 0.25) -> Batches:
    images, labels = np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1), np.arange(40) // 4
    return Batches(images, 16, seed=seed, flip=True, device=CPU, labels=labels, num_classes=10, label_dropout=dropout)


def test_labels_stay_with_their_images_through_every_pass() -> None:
    batches = _labelled(dropout=0.0)
    for step in range(10):  # 40 / 16 is no whole number: batches cross the ends of passes
        images, labels = ((batches(step) + 1) * 127.5).round().flatten().long(), batches.labels(step)
        assert labels is not None and labels.dtype == torch.int64
        assert torch.equal(labels, images // 4)
    assert Batches(np.zeros((4, 1, 1, 1), np.uint8), 2, seed=0, flip=False, device=CPU).labels(0) is None


def test_labels_are_dropped_at_random_by_seed_and_step_alone() -> None:
    dropped, whole = _labelled(), _labelled(dropout=0.0)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    drawn = torch.stack([dropped.labels(step) for step in range(400)])  # type: ignore[misc]
    assert torch.equal(torch.get_rng_state(), state)  # the noise of training is not touched
    null = drawn == 10
    kept = torch.stack([whole.labels(step) for step in range(400)])  # type: ignore[misc]
    assert torch.equal(drawn[~null], kept[~null])
    assert abs(float(null.double().mean()) - 0.25) < 4 * (0.25 * 0.75 / null.numel()) ** 0.5
    assert abs(float(null.double().std(0).mean()) - (0.25 * 0.75) ** 0.5) < 0.02  # each place, independent of the step
    assert torch.equal(_labelled().labels(123), drawn[123])  # type: ignore[arg-type]
    assert not torch.equal(_labelled(seed=4).labels(123) == 10, null[123])  # type: ignore[arg-type]


def test_labels_are_part_of_the_fingerprint() -> None:
    images, labels = _random(3, 1, 4, 4), np.array([0, 1, 2])
    plain, with_labels = data_fingerprint(images), data_fingerprint(images, labels)
    assert set(plain) == {"shape", "crc32"} and plain.items() < with_labels.items()  # as before there were labels
    assert with_labels != data_fingerprint(images, labels[::-1]) and with_labels == data_fingerprint(images, labels)
