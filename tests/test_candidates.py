"""The candidate kernels of bench/candidates: right in Triton's interpreter, and compiled for sm_80 and sm_90."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from kernel_modules import PLACES, triton
from test_kernels_cubin import moved, resources
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

FOLDER = Path(__file__).parent.parent / "bench" / "candidates"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
CODES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def candidate(name: str, place: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_{place}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = place == "interpreter"
        spec.loader.exec_module(module)
    return module


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """What a kernel does not write is NaN."""
    empty = torch.empty_like
    if "interpreter" in request.node.name:  # tl.sum was imported as the compiler's
        tl = triton.language
        monkeypatch.setattr(tl, "sum", lambda x, axis: tl.reduce(x, axis, tl.standard._sum_combine))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: empty(*a, **k).fill_(torch.nan))


def tensor(place: str, *shape: int, seed: int = 0, last: bool = False) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    return x.to("cpu" if place == "interpreter" else "cuda")


def check(got: Tensor, want: Tensor, like: Tensor, unit: float) -> None:
    """Within one unit in the last place of the dtype, and laid out as `like`."""
    assert got.dtype == want.dtype and got.stride() == like.stride()
    torch.testing.assert_close(got, want, rtol=unit, atol=unit / 4)


SHAPES = [  # N, C, H, W, groups: channels a group that are a power of 2 or not, pixels in part of a tile or several
    (2, 64, 5, 7, 32),
    (1, 12, 3, 3, 4),
    (3, 40, 9, 33, 5),
    (2, 8, 1, 1, 1),
    (1, 384, 13, 11, 32),
    (2, 128, 16, 16, 32),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "channels", "height", "width", "groups"), SHAPES)
def test_group_norm_and_silu(
    place: str, dtype: torch.dtype, n: int, channels: int, height: int, width: int, groups: int
) -> None:
    module = candidate("group_norm_silu", place)
    x = tensor(place, n, channels, height, width, last=True).to(dtype) * 3 + 1
    weight, bias = tensor(place, channels, seed=1).to(dtype), tensor(place, channels, seed=2).to(dtype)
    want = module.reference(x.double(), groups, weight.double(), bias.double())
    cut = 2 if dtype == torch.bfloat16 and place == "interpreter" else 1  # where the interpreter cuts off bits
    unit = max(torch.finfo(dtype).eps * cut, 2e-6)
    check(module.group_norm_silu(x, groups, weight, bias), want.to(dtype), x, unit)
    check(module.reference(x, groups, weight, bias), want.to(dtype), x, unit)


def test_a_large_mean_costs_no_digits(place: str) -> None:
    """Where the mean is 1000 times the spread, the mean of squares less the square of the mean has lost them."""
    module = candidate("group_norm_silu", place)
    x = tensor(place, 2, 32, 24, 24, last=True) + 1000
    one, none = torch.ones(32, device=x.device), torch.zeros(32, device=x.device)
    want = module.reference(x.double(), 8, one.double(), none.double()).float()
    got = module.group_norm_silu(x, 8, one, none)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-4)  # a unit of x is 6e-5


def test_what_group_norm_refuses() -> None:
    module = candidate("group_norm_silu", "interpreter")
    x, w = tensor("interpreter", 2, 6, 4, 4), torch.ones(6)
    with pytest.raises(ValueError, match="expected channels last"):
        module.group_norm_silu(x, 3, w, w)
    with pytest.raises(ValueError, match="groups = 4 does not divide 6"):
        module.group_norm_silu(x.contiguous(memory_format=torch.channels_last), 4, w, w)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("shape", [(3, 3, 5, 7), (2, 3, 20, 20), (5, 2, 1, 3), (1, 4, 32, 32)], ids=str)
def test_noised_image_and_target(place: str, dtype: torch.dtype, last: bool, shape: tuple[int, ...]) -> None:
    module = candidate("q_sample", place)
    x0, eps = (tensor(place, *shape, seed=seed, last=last) for seed in (1, 2))
    table = tensor(place, shape[0], 5, seed=3)
    want = module.reference(x0.double(), eps.double(), table.double(), torch.float64)
    unit = max(torch.finfo(dtype).eps * (2 if dtype == torch.bfloat16 and place == "interpreter" else 1), 1e-6)
    for made in (module.q_sample(x0, eps, table, dtype), module.reference(x0, eps, table, dtype)):
        check(made[0], want[0].to(dtype), x0, unit)
        check(made[1], want[1].float(), x0, 1e-6)


def test_the_reference_is_what_training_does(monkeypatch: pytest.MonkeyPatch) -> None:
    import odediff
    from odediff.training.losses import DenoisingLoss

    module = candidate("q_sample", "interpreter")
    loss = DenoisingLoss(odediff.schedule.linear(), prediction="v")
    x0, eps = tensor("interpreter", 3, 2, 4, 4, seed=1), tensor("interpreter", 3, 2, 4, 4, seed=2)
    t, table = loss.draw(3)
    monkeypatch.setattr(loss, "draw", lambda n: (t, table))
    monkeypatch.setattr(torch, "randn_like", lambda x: eps)
    fed: list[Tensor] = []
    found = loss(lambda x, _: fed.append(x) or torch.zeros_like(x), x0)
    x, target = module.reference(x0, eps, table)
    torch.testing.assert_close(x, fed[0], rtol=0, atol=0)
    torch.testing.assert_close((table[:, 4].view(-1, 1, 1, 1) * target.square()).mean(), found)


def test_what_q_sample_refuses() -> None:
    module = candidate("q_sample", "interpreter")
    x, table = torch.zeros(2, 3, 4, 4), torch.zeros(2, 5)
    for bad in (
        (x, x.contiguous(memory_format=torch.channels_last), table),
        (x, x, table[:1]),
        (x, x, table[:, :3]),
        (x, x[:1], table),
    ):
        with pytest.raises(ValueError, match="must be"):
            module.q_sample(*bad)


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path_factory.mktemp("triton"))
        yield


def compiled(kernel: Any, signature: dict[str, str], constants: dict[str, Any], options: Any, arch: int) -> Any:
    signature = signature | dict.fromkeys(constants, "constexpr")
    names = list(signature)
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n, k in signature.items() if k.startswith("*")}
    attributes |= {(names.index(n),): [["tt.divisibility", 16]] for n in ("numel",) if n in names}
    source = ASTSource(kernel, signature, {(names.index(n),): value for n, value in constants.items()}, attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_q_sample_moves_its_bytes(own_cache: None, dtype: torch.dtype, arch: int, tmp_path: Path) -> None:
    module = candidate("q_sample", "cuda")
    pointers = ["x0_ptr", "eps_ptr", "table_ptr", "x_ptr", "target_ptr"]
    signature = dict.fromkeys(pointers, "*fp32") | {"x_ptr": f"*{CODES[dtype]}", "numel": "i32", "size": "i32"}
    made = compiled(module.noised, signature, {"COLUMNS": 5, "BLOCK": module.BLOCK}, module.OPTIONS, arch)
    used = resources(made.asm["cubin"], tmp_path / "kernel.cubin")
    assert used["STACK"] == used["LOCAL"] == 0 and used["REG"] <= 64, used
    each = module.BLOCK // 128  # elements of a thread, of which `moved` takes there to be 4
    assert moved(made.asm["ptx"], "ld") * 4 // each == 8
    assert moved(made.asm["ptx"], "st") * 4 // each == 4 + dtype.itemsize


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [128, 384], ids=str)
def test_group_norm_compiles_and_spills_nothing(
    own_cache: None, channels: int, dtype: torch.dtype, arch: int, tmp_path: Path
) -> None:
    module = candidate("group_norm_silu", "cuda")
    pointers = dict.fromkeys(["x_ptr", "y_ptr", "weight_ptr", "bias_ptr"], f"*{CODES[dtype]}")
    signature = pointers | {"pixels": "i32", "eps": "fp32"}
    made = compiled(module.norm_silu, signature, module.sizes(channels, 32), module.OPTIONS, arch)
    used = resources(made.asm["cubin"], tmp_path / "kernel.cubin")
    assert used["STACK"] == used["LOCAL"] == 0 and used["REG"] <= 128, used
    if channels == 128:  # rows of 32 channels: 8 bytes a thread or more at a time
        assert moved(made.asm["ptx"], "ld") > 0 and moved(made.asm["ptx"], "st") > 0
