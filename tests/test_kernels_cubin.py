"""The kernels compiled for sm_80 and sm_90 without a GPU: what they read and write, what they spill, how they round.

    bytes an element = read:  4 (x) + h w (out) + 4 (K - 1) (earlier d)
                       write: 4 (x) + 4 (d, if K > 1) + h w (the network's next input, if it does not read x itself)

w is the width of the network's dtype, h = 2 where it is guided, else 1. Registers and local memory are as ptxas left
them in the cubin; loads and stores are counted in PTX, where one of 4 elements is one of a thread.
"""

import itertools
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from kernel_modules import load, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import odediff
from odediff import schedule

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
WIDTHS = {"fp32": 4, "fp16": 2, "bf16": 2}
PER_THREAD = 4
DEEPEST_WITH_NOISE = 4  # sa_solver
STAGE = load("cuda").stage


class Form(NamedTuple):
    """A kernel that plans use: depth, the network's dtype, limits, guidance, noise, and whether an input is written."""

    K: int
    dtype: str
    limited: bool
    guided: bool
    noise: bool
    feeds: bool

    @property
    def read(self) -> int:
        return 4 + (1 + self.guided) * WIDTHS[self.dtype] + 4 * (self.K - 1)

    @property
    def written(self) -> int:
        return 4 + 4 * (self.K > 1) + self.feeds * (1 + self.guided) * WIDTHS[self.dtype]


def forms() -> list[Form]:
    """All: an input is written but for a float32 network that is not guided, where it may or may not be."""
    flags = list(itertools.product([False, True], repeat=3))
    every = [Form(K, dtype, *f, True) for K in range(1, 6) for dtype in WIDTHS for f in flags]
    every += [form._replace(feeds=False) for form in every if form.dtype == "fp32" and not form.guided]
    return [form for form in every if not (form.noise and form.K > DEEPEST_WITH_NOISE)]


FORMS = forms()
CORE = [  # every K, dtype and flag, each flag with and without each other
    Form(1, "fp32", False, False, False, False),
    Form(2, "fp16", True, True, False, True),
    Form(3, "fp32", True, False, False, False),
    Form(4, "bf16", False, True, True, True),
    Form(5, "bf16", True, False, False, True),
    Form(3, "fp16", False, False, True, True),
    Form(1, "fp32", True, True, True, True),
]


@pytest.fixture(autouse=True, scope="module")
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path_factory.mktemp("triton"))
        yield


@cache
def compiled(form: Form, arch: int, **types: str) -> Any:
    """advance_row. types: "i64" for numel from 2^31 on, "odd" where 16 does not divide it, "1" where channels = 1."""
    network = f"*{form.dtype}"
    signature = {
        "x_ptr": "*fp32",
        "out_ptr": network,
        "ring_ptr": "*fp32" if form.K > 1 else "constexpr",
        "in_ptr": network if form.feeds else "constexpr",
        "table_ptr": "*fp32",
        "row_ptr": "*i32",
        "streams_ptr": "*i32" if form.noise else "constexpr",
        "numel": types.get("numel", "i32").replace("odd", "i32"),
        "size": "i32",
        "channels": "constexpr" if types.get("channels") == "1" else "i32",
        **dict.fromkeys(("K", "LIMITED", "GUIDED", "BLOCK"), "constexpr"),
    }
    values: dict[str, Any] = {"channels": 1, "K": form.K, "LIMITED": form.limited, "GUIDED": form.guided}
    values["BLOCK"] = STAGE.BLOCK
    names = list(signature)
    constants = {(names.index(n),): values.get(n) for n, kind in signature.items() if kind == "constexpr"}
    whole = {n for n, kind in signature.items() if kind.startswith("*")} | {"numel"}
    whole -= {"numel"} if types.get("numel") == "odd" else set()
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in whole}
    source = ASTSource(STAGE.advance_row, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=STAGE.OPTIONS)


def tool(name: str, cubin: bytes, path: Path, *options: str) -> str:
    path.write_bytes(cubin)
    done = subprocess.run([TOOLS / name, *options, path], capture_output=True, text=True, check=True)
    return done.stdout


def resources(cubin: bytes, path: Path) -> dict[str, int]:
    """REG, STACK, LOCAL and SHARED of the kernel."""
    found = re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", tool("cuobjdump", cubin, path, "-res-usage"))
    assert {name for name, _ in found} == {"REG", "STACK", "LOCAL", "SHARED"}
    return {name: int(value) for name, value in found}


def moved(ptx: str, what: str) -> int:
    """Bytes an element of "ld" or "st" of more than one element at a time: the others are of the table."""
    found = re.findall(rf"\b{what}\.global(?:\.\w+)*\.v(\d)\.b(\d+)", ptx)
    return sum(int(n) * int(bits) // 8 for n, bits in found) // PER_THREAD


def check(form: Form, arch: int, tmp_path: Path) -> None:
    kernel = compiled(form, arch)
    ptx, used = kernel.asm["ptx"], resources(kernel.asm["cubin"], tmp_path / "kernel.cubin")
    assert (moved(ptx, "ld"), moved(ptx, "st")) == (form.read, form.written), form
    assert used["STACK"] == used["LOCAL"] == 0, (form, used)  # nothing spilled
    assert used["SHARED"] == 0 and "bar.sync" not in ptx, form  # no element changes its thread
    assert used["REG"] <= (96 if form.noise else 64), (form, used)  # 5 or 8 blocks of 128 threads on an SM's 65536
    assert "fma" not in ptx, form
    assert len(re.findall(r"\b(?:min|max)\.NaN\.f32\b", ptx)) == 2 * PER_THREAD * form.limited, form
    if form.noise:
        rounded = set(re.findall(r"\b(?:add|sub|mul|div|sqrt|cvt)[.\w]*f64\b", ptx))
        assert all(".rn." in op or op.startswith("cvt.rn") for op in rounded), rounded
        assert {"div.rn.f64", "sqrt.rn.f64", "mul.rn.f64", "add.rn.f64"} <= rounded
    if form.feeds and form.dtype != "fp32":
        narrow = {"fp16": "f16", "bf16": "bf16"}[form.dtype]
        assert re.search(rf"cvt\.rn\.{narrow}(x2)?\.f32", ptx), form


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("form", CORE, ids=lambda form: "-".join(map(str, form)))
def test_a_kernel_moves_the_formulas_bytes_and_spills_nothing(form: Form, arch: int, tmp_path: Path) -> None:
    assert form in FORMS
    check(form, arch, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("K", [1, 2, 3, 4, 5])
def test_so_does_every_kernel_that_plans_use(K: int, arch: int, tmp_path: Path) -> None:
    for form in FORMS:
        if form.K == K and form not in CORE:
            check(form, arch, tmp_path)


def test_no_method_with_noise_is_deeper() -> None:
    found = {(p.depth, p.stochastic) for p in (plan(name) for name in odediff.METHODS) if p.depth <= 5}
    assert {depth for depth, noise in found if noise} <= set(range(1, DEEPEST_WITH_NOISE + 1))
    assert {depth for depth, _ in found} == {1, 2, 3, 4, 5}


def plan(name: str) -> odediff.Plan:
    return odediff.plan(name, schedule.linear(), 13)


@pytest.mark.parametrize("arch", [80, 90])
def test_the_machine_code_loads_and_stores_what_ptx_says(arch: int, tmp_path: Path) -> None:
    """SASS of one form with everything: vector accesses by width, and no local memory."""
    form = CORE[3]
    sass = tool("cuobjdump", compiled(form, arch).asm["cubin"], tmp_path / "kernel.cubin", "-sass")
    for what, want in (("LDG", form.read), ("STG", form.written)):
        bits = map(int, re.findall(rf"\b{what}\.E\.(64|128)\b", sass))
        assert sum(bits) // 8 // PER_THREAD == want
    assert not re.search(r"\b(LDL|STL)\b", sass)


@pytest.mark.parametrize("types", [{"numel": "i64"}, {"numel": "odd"}, {"channels": "1"}], ids=str)
def test_what_a_launch_specializes_on_changes_no_bytes(types: dict[str, str], tmp_path: Path) -> None:
    """Large tensors, tensors of odd size, one element at a time, and contiguous ones: one kernel each, no spills."""
    form = CORE[3]
    kernel = compiled(form, 90, **types)
    ptx, used = kernel.asm["ptx"], resources(kernel.asm["cubin"], tmp_path / "kernel.cubin")
    assert used["STACK"] == used["LOCAL"] == 0
    if types.get("numel") != "odd":
        assert (moved(ptx, "ld"), moved(ptx, "st")) == (form.read, form.written)
    if types.get("numel") == "i64":
        assert re.search(r"setp\.\w+\.s64", ptx)  # the bound is compared in 64 bits


@pytest.mark.parametrize("numel", ["i32", "i64"])
def test_no_offset_of_an_element_has_32_bits(numel: str) -> None:
    """In Triton's IR: offsets are int64, but for constants, the table's, and a number of elements that is below 2^31.

    One number is cut to 32 bits: where in a sample a program begins.
    """
    ir = compiled(CORE[3], 90, numel=numel).asm["ttir"]
    vectors = re.findall(r"tt\.addptr %\w+, (%\w+) : tensor<\d+x!tt\.ptr<\w+>>, tensor<\d+x(i\d+)>", ir)
    assert {kind for offset, kind in vectors if not offset.startswith("%cst")} == {"i64"}
    assert len(vectors) == 1 + 2 + CORE[3].K + 2 + 4  # x, two halves read, the ring, two halves written, the streams
    scalars = re.findall(r"tt\.addptr (%\w+), (%\w+) : !tt\.ptr<\w+>, (i\d+)", ir)
    assert {kind for base, _, kind in scalars if base == "%ring_ptr"} == {"i64"}
    assert {kind for base, offset, kind in scalars if base in ("%out_ptr", "%in_ptr")} == {numel}
    assert re.findall(r"arith\.trunci .* : (\w+) to (\w+)", ir) == [("i64", "i32")]


@pytest.mark.parametrize("time", ["*fp32", "*i64"])
@pytest.mark.parametrize("arch", [80, 90])
def test_the_row_is_raised_after_every_thread_has_read_it(arch: int, time: str) -> None:
    signature = {"row_ptr": "*i32", "t_ptr": time, "times_ptr": time, "rows": "i32", "n": "i32", "BLOCK": "constexpr"}
    source = ASTSource(STAGE.next_row, signature, {(5,): 128})
    ptx = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": 1}).asm["ptx"]
    barrier = max(ptx.rfind("bar.sync"), ptx.rfind("bar.warp.sync"))
    assert ptx.index("ld.global") < barrier < ptx.rindex("st.global")
    assert "ld.global" not in ptx[barrier:]


def test_other_batches_and_budgets_compile_nothing_anew() -> None:
    """What a launch looks at beyond types: whether channels is 1, and whether 16 divides the number of elements."""
    looked_at = {p.name for p in STAGE.advance_row.params if not (p.is_constexpr or p.do_not_specialize)}
    assert {name for name in looked_at if not name.endswith("_ptr")} == {"numel", "channels"}
    looked_at = {p.name for p in STAGE.next_row.params if not (p.is_constexpr or p.do_not_specialize)}
    assert looked_at == {"row_ptr", "t_ptr", "times_ptr"}
