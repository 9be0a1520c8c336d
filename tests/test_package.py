"""The package as a user gets it: public names, the cost of importing it, the wheel, a bare checkout, the README."""

import ast
import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import types
from pathlib import Path
from typing import Any

import pytest

import odediff

PUBLIC = {
    "BudgetExceeded",
    "METHODS",
    "Model",
    "Plan",
    "Sampler",
    "__version__",
    "analysis",
    "cite",
    "export",
    "load",
    "onnx",
    "plan",
    "sample",
    "save_images",
    "schedule",
    "solve",
    "tune",
}

# A user's first lines, with the bundled model.
FIRST_LINES = """
import odediff, pathlib, sys
print(odediff.__file__)
x = odediff.sample(odediff.load("mnist"), solver="rk4", nfe=10, n=2, seed=0)
odediff.save_images(x, "grid.png")
print(tuple(x.shape), float(x.min()), float(x.max()), float(x.std()))
"""


# The modules that a piece of code brings in, one a line.
BEFORE = "import sys; before = set(sys.modules)"
NEWLY = r"print(*set(sys.modules) - before, sep='\n')"


def python(
    *arguments: str, executable: str | Path = sys.executable, cwd: Path | None = None, path: str = ""
) -> list[str]:
    """The lines that a fresh interpreter prints, with PYTHONPATH set to `path` and warnings as errors."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path:
        environment["PYTHONPATH"] = path
    command = [str(executable), "-W", "error", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


# An editable install's finder lends the kernel that it built to any checkout: here a checkout stands for itself.
ALONE = "import sys\nsys.meta_path[:] = [f for f in sys.meta_path if not f.__module__.startswith('__editable__')]\n"


def info(**how: Any) -> list[str]:
    return python("-c", f"{ALONE}from odediff.cli import main\nmain(['info'])", **how)


def has_compiler() -> bool:
    """Whether what built this Python is here to build an extension."""
    command = shlex.split(sysconfig.get_config_var("CC") or "cc")
    return shutil.which(command[0]) is not None and Path(sysconfig.get_path("include"), "Python.h").is_file()


COMPILED = f"odediff/_row{sysconfig.get_config_var('EXT_SUFFIX')}"
KERNEL = "rows on a CPU   one C kernel, "
ATEN = "rows on a CPU   aten; an installation with a C compiler at hand builds the kernel, which is quicker"


def check_first_lines(lines: list[str], home: Path, folder: Path) -> None:
    file, numbers = lines
    assert Path(file) == home / "odediff" / "__init__.py"
    assert numbers.startswith("(2, 1, 28, 28) ")
    low, high, spread = map(float, numbers.split(") ")[1].split())
    assert -1 <= low < -0.9
    assert 0.5 < high <= 1
    assert spread > 0.2
    assert (folder / "grid.png").stat().st_size > 500


def test_the_exported_names_are_these_and_no_others():
    assert set(odediff.__all__) == PUBLIC
    assert len(odediff.__all__) == len(PUBLIC)
    assert set(dir(odediff)) >= PUBLIC


def test_every_exported_name_is_there_and_is_what_type_checkers_see():
    tree = ast.parse(Path(odediff.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname: (node.module, alias.name) for node in block.body for alias in node.names}
    assert set(seen) | {"__version__"} == PUBLIC
    for name, (module, original) in seen.items():
        assert name == original
        value = getattr(odediff, name)
        source = sys.modules[f"{module}.{name}" if isinstance(value, types.ModuleType) else module]
        assert value is (source if isinstance(value, types.ModuleType) else getattr(source, name))


def test_a_name_that_is_not_exported_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'odediff' has no attribute 'smaple'"):
        _ = odediff.smaple
    with pytest.raises(ImportError, match="smaple"):
        exec("from odediff import smaple")


def test_importing_odediff_imports_next_to_nothing():
    lines = python("-c", f"{BEFORE}; import odediff; {NEWLY}")
    third_party = {name.split(".")[0] for name in lines} - set(sys.stdlib_module_names)
    assert third_party == {"odediff"}
    assert {name for name in lines if name.startswith("odediff")} == {"odediff"}


def test_sampling_adds_to_torch_only_what_it_needs():
    lines = python("-c", f"import torch, torchdiffeq; {BEFORE}; import odediff; odediff.sample, odediff.load; {NEWLY}")
    third_party = {name.split(".")[0] for name in lines} - set(sys.stdlib_module_names)
    assert third_party - {"odediff", "tqdm", "safetensors"} == set()
    assert {"odediff.sampling", "odediff.methods"} & set(lines) == {"odediff.sampling"}


def test_the_public_names_load_nothing_slow_beyond_torch():
    """torchdiffeq brings scipy.integrate, which takes longer than all of ours: it waits until a solver needs it."""
    lines = python("-c", f"import torch; {BEFORE}; from odediff import *; {NEWLY}")
    assert "odediff.adaptive" in lines
    assert {name.split(".")[0] for name in lines} & {"torchdiffeq", "scipy", "diffusers", "matplotlib"} == set()


def test_star_import_brings_the_public_names():
    lines = python("-c", "from odediff import *; print(sample.__name__, schedule.__name__, sorted(METHODS)[0])")
    assert lines == ["sample odediff.schedule ab2"]


def test_the_version_is_the_installed_one():
    assert re.fullmatch(r"\d+\.\d+\.\d+", odediff.__version__)
    try:
        installed = importlib.metadata.version("odediff")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("odediff runs from a bare checkout here")
    assert installed == odediff.__version__


def tracked_copy(repository: Path, target: Path) -> Path:
    """The files that a commit of the working tree would hold, and no others: no caches, no virtual environment."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (repository / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(repository / name, target / name)
    return target


@pytest.fixture(scope="module")
def checkout(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tracked_copy(repository, tmp_path_factory.mktemp("checkout"))


@pytest.mark.slow
def test_a_bare_checkout_on_pythonpath_samples(checkout, tmp_path):
    check_first_lines(python("-c", FIRST_LINES, cwd=tmp_path, path=str(checkout)), checkout, tmp_path)
    lines = info(cwd=tmp_path, path=str(checkout))
    assert "bundled models  mnist, mnist_conditional" in lines and lines[-1] == ATEN


@pytest.fixture(scope="module")
def built(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution, which is built from the checkout."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(checkout)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def clean(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new virtual environment that holds the wheel, and borrows this one's packages below it."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    executable = folder / "bin" / "python"
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(executable),
        "install",
        "--no-deps",
        "--no-index",
        str(built),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    # A path in a .pth file is searched last, and .pth files in there, such as an editable odediff's, are not read.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return executable


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_its_data_and_nothing_else(built, checkout):
    listed = subprocess.run([sys.executable, "-m", "zipfile", "-l", str(built)], capture_output=True, text=True)
    names = {line.split()[0] for line in listed.stdout.splitlines()[1:]}
    want = {str(path.relative_to(checkout)) for path in (checkout / "odediff").rglob("*") if path.is_file()}
    want = {name for name in want if not name.endswith(".pyc")}
    want |= {COMPILED} if has_compiler() else set()
    assert {name for name in names if ".dist-info/" not in name} == want
    assert {"odediff/py.typed", "odediff/models/mnist/model.json", "odediff/models/mnist/model.safetensors"} <= want
    assert any(name.endswith("/LICENSE") for name in names)


@pytest.mark.slow
def test_the_installed_wheel_samples_away_from_the_repository(clean, tmp_path):
    (site,) = clean.parents[1].glob("lib/python3*/site-packages")
    check_first_lines(python("-c", FIRST_LINES, executable=clean, cwd=tmp_path), site, tmp_path)


@pytest.mark.slow
def test_the_installed_wheel_says_what_runs_its_rows(clean, tmp_path):
    assert info(executable=clean, cwd=tmp_path)[-1].startswith(KERNEL if has_compiler() else ATEN)


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="no C compiler, or no headers of Python's")
def test_an_editable_install_builds_the_kernel_in_place_and_without_a_compiler_installs_all_else(
    checkout, clean, tmp_path, monkeypatch
):
    source = shutil.copytree(checkout, tmp_path / "source")
    command = ["-m", "pip", "--python", str(clean), "install", "--no-deps", "--no-index", "--no-build-isolation"]
    for compiler, said in ((shutil.which("false"), ATEN), (None, KERNEL)):
        if compiler:
            monkeypatch.setenv("CC", compiler)
        else:
            monkeypatch.delenv("CC", raising=False)
        python(*command, "--force-reinstall", "--target", str(tmp_path / said[16:18]), "-e", str(source))
        assert (source / COMPILED).is_file() == (said == KERNEL)
        assert info(cwd=tmp_path, path=str(source))[-1].startswith(said)
    assert not (source / "build").exists()


@pytest.mark.slow
def test_the_installed_command_draws_a_picture(clean, tmp_path):
    command = [str(clean.parent / "odediff"), "sample", "--n", "4", "--nfe", "6", "--out", "four.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert re.search(r"^evaluations +6$", done.stdout, re.MULTILINE)
    assert (tmp_path / "four.png").is_file()
    assert "UserWarning" not in done.stderr


def python_blocks(text: str) -> str:
    """The Python blocks of a Markdown text as one program; all other lines are empty, so that line numbers stay."""
    lines, inside = [], False
    for line in text.splitlines():
        fence = line.startswith("```")
        lines.append(line if inside and not fence else "")
        inside = line.rstrip() == "```python" if fence else inside
    return "\n".join(lines) + "\n"


def test_blocks_keep_their_line_numbers():
    text = "a\n```python\nx = 1\n```\n```sh\nls\n```\n```python\ny = 2\n```\nb\n"
    assert python_blocks(text) == "\n\nx = 1\n\n\n\n\n\ny = 2\n\n\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "holds"),
    [
        ("README.md", "odediff.sample("),
        ("docs/analysis.md", "analysis.stability("),
        ("docs/deploy.md", "odediff.onnx.triton_repository("),
    ],
)
def test_the_python_of_a_page_runs(page, holds, repository, tmp_path):
    program = python_blocks((repository / page).read_text())
    assert holds in program
    script = tmp_path / "page.py"
    script.write_text(program)
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
