"""The C++ example, built and run: its images are Python's."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

import odediff
from odediff import schedule

pytestmark = pytest.mark.slow

HEADER = "onnxruntime_cxx_api.h"
SYSTEM = [f"/usr{local}/include{below}" for local in ("", "/local") for below in ("", "/onnxruntime")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with include/ and lib/: ORT_HOME, or headers found here beside the Python package's library."""
    if missing := [tool for tool in ("cmake", "c++") if shutil.which(tool) is None]:
        pytest.skip(f"no {' and no '.join(missing)}")
    if given := os.environ.get("ORT_HOME"):
        return Path(given)
    places = [os.environ.get("ORT_INCLUDE", ""), *SYSTEM, *(f"{place}/core/session" for place in SYSTEM)]
    headers = next((Path(place) for place in places if place and (Path(place) / HEADER).is_file()), None)
    if headers is None:
        pytest.skip(f"no {HEADER} in ORT_HOME/include, in ORT_INCLUDE or in {SYSTEM[0]}; pip's onnxruntime has none")
    libraries = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    if not libraries:
        pytest.skip("no libonnxruntime.so in the installed onnxruntime package; set ORT_HOME to a release")
    version = int(re.findall(r"#define ORT_API_VERSION (\d+)", (headers / "onnxruntime_c_api.h").read_text())[0])
    if version > int(onnxruntime.__version__.split(".")[1]):
        pytest.skip(f"the headers are of version 1.{version}, newer than onnxruntime {onnxruntime.__version__}")
    made = tmp_path_factory.mktemp("onnxruntime")
    (made / "include").symlink_to(headers.resolve())
    (made / "lib").mkdir()
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (made / "lib" / name).symlink_to(libraries[-1])
    return made


@pytest.fixture(scope="module")
def program(home: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built with every warning an error."""
    build = tmp_path_factory.mktemp("build")
    configure = ["cmake", "-S", repository / "examples" / "cpp", "-B", build, f"-DORT_HOME={home}"]
    for command in ([*configure, "-DCMAKE_CXX_FLAGS=-Werror"], ["cmake", "--build", build]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return build / "sample"


class Net(nn.Module):
    def __init__(self, channels: int, classes: int | None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.table = None if classes is None else nn.Embedding(classes + 1, channels)

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        out = self.conv(x) * torch.cos(t)[:, None, None, None] + x
        return out if self.table is None else out + self.table(label)[:, :, None, None]


# channels, classes, range, how it is exported
FILES: dict[str, tuple[int, int | None, Any, dict[str, Any]]] = {
    "color": (3, None, (-1.0, 1.0), {"solver": "ab2", "nfe": 4}),
    "stochastic": (1, None, (-2.0, 3.0), {"solver": "ddpm", "nfe": 3}),
    "fixed": (1, 3, (-1.0, 1.0), {"solver": "euler", "nfe": 2, "batch": 2}),
    "unbounded": (1, None, None, {"solver": "euler", "nfe": 2}),
}


@pytest.fixture(scope="module")
def files(program: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Samplers of images 5 high and 6 wide."""
    folder = tmp_path_factory.mktemp("samplers")
    made = {}
    for name, (channels, classes, limits, options) in FILES.items():
        torch.manual_seed(0)
        shape = (channels, 5, 6)
        model = odediff.Model(
            Net(channels, classes), schedule=schedule.linear(), shape=shape, range=limits, num_classes=classes
        )
        made[name] = odediff.export(model, folder / f"{name}.onnx", **options).path
    return made


def run(program: Path, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *map(str, args)], capture_output=True, text=True)


def images(program: Path, folder: Path, file: Path, *args: object) -> np.ndarray:
    """The raw images of a run, (N, C, H, W)."""
    done = run(program, file, folder / "out.ppm", *args, "--raw", folder / "raw")
    assert done.returncode == 0, done.stderr
    return np.fromfile(folder / "raw", np.float32).reshape(-1, *odediff.onnx.load(file).shape)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_a_seed_draws_the_images_of_python(program, files, tmp_path, name, seed):
    got = images(program, tmp_path, files[name], 5, seed)
    want = odediff.onnx.load(files[name]).run(5, seed)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    assert np.ptp(want) > 0.5


@pytest.mark.parametrize("name", ["color", "fixed"])
def test_noise_from_a_file(program, files, tmp_path, name):
    sampler = odediff.onnx.load(files[name])
    noise = np.random.default_rng(0).standard_normal((5, *sampler.shape), np.float32)
    noise.tofile(tmp_path / "noise")
    got = images(program, tmp_path, files[name], 5, "--noise", tmp_path / "noise", "--threads", 1)
    np.testing.assert_allclose(got, sampler.run(noise=noise), rtol=0, atol=1e-5)


def test_noise_of_the_rows_from_a_file(program, files, tmp_path):
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((4, 1, 5, 6), np.float32)
    rows = rng.standard_normal((2, 4, 1, 5, 6), np.float32)
    (tmp_path / "noise").write_bytes(noise.tobytes() + rows.tobytes())
    got = images(program, tmp_path, files["stochastic"], 4, "--noise", tmp_path / "noise")
    session = onnxruntime.InferenceSession(files["stochastic"])
    want = session.run(["images"], {"noise": noise, "row_noise": rows})[0]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_a_label_picks_the_class(program, files, tmp_path):
    sampler = odediff.onnx.load(files["fixed"])
    made = {label: images(program, tmp_path, files["fixed"], 3, 7, "--label", label) for label in (0, 2)}
    for label, got in made.items():
        np.testing.assert_allclose(got, sampler.run(3, 7, label=label), rtol=0, atol=1e-5)
    assert np.abs(made[0] - made[2]).max() > 1e-2


@pytest.mark.parametrize(("name", "mode"), [("color", "RGB"), ("stochastic", "L"), ("unbounded", "L")])
def test_the_picture_is_a_grid_of_the_images(program, files, tmp_path, name, mode):
    got = images(program, tmp_path, files[name], 5, 3)
    low, high = FILES[name][2] or (got.min(), got.max())
    levels = np.rint(255 * (np.clip(got, low, high) - low) / (high - low)).transpose(0, 2, 3, 1)
    want = np.zeros((6, 5, 6, got.shape[1]))
    want[:5] = levels
    want = want.reshape(2, 3, 5, 6, -1).swapaxes(1, 2).reshape(10, 18, -1)
    with Image.open(tmp_path / "out.ppm") as picture:
        assert picture.mode == mode
        pixels = np.asarray(picture).reshape(10, 18, -1).astype(np.float64)
    assert np.abs(pixels - want).max() <= 1
    assert np.ptp(pixels) > 50


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("color", ["0"], "N = 0 must be a whole number in 1 .. 1048576"),
        ("color", ["2", "-1"], "SEED = -1 must be a whole number"),
        ("color", ["2", "1.5"], "SEED = 1.5 must be"),
        ("color", ["2", "0", "--fast", "1"], "unknown option --fast"),
        ("color", ["2", "0", "--raw"], "--raw needs a value"),
        ("color", ["2", "0", "--label", "1"], "takes no label"),
        ("fixed", ["2", "0", "--label", "4"], "label = 4 is none of the model's classes"),
        ("color", ["2", "--noise", "nowhere"], "cannot read nowhere"),
        ("color", ["2", "--noise", __file__], "bytes, expected 720"),
        ("color", ["1", "2", "3"], "usage: sample MODEL.onnx OUT.ppm"),
    ],
)
def test_bad_input_ends_with_one_line(program, files, tmp_path, name, args, message):
    done = run(program, files[name], tmp_path / "out.ppm", *args)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out.ppm").exists()


def test_other_files_are_refused(program, files, tmp_path):
    (tmp_path / "text.onnx").write_text("no model")
    assert "error: " in run(program, tmp_path / "text.onnx", tmp_path / "out.ppm").stderr
    model = odediff.Model(Net(1, None), schedule=schedule.linear(), shape=(1, 5, 6))
    network = odediff.export(model, tmp_path / "net.onnx").path
    assert "is no sampler" in run(program, network, tmp_path / "out.ppm").stderr
