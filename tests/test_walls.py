"""The walls of the design, read from the imports: who may know of whom.

1. The numpy side (choices, philox, schedule, spaces, grids, plans, trace, methods, analysis) never imports torch. Two
   doors lead out of analysis, both opened only in the call that needs them: `networks` for a `Model`, and matplotlib
   for a plot.
2. Executors know no methods: only the function `compiled`, for `sample` and `export`, turns a name into a plan. What
   runs exported files needs numpy and onnxruntime alone.
3. Kernels know tables and draws: of ours they import `philox` alone, and they alone import triton.
4. Training knows no sampling.
5. Tuning runs plans itself: it knows plans, methods and what evaluates a network, but neither `sample` nor training.
   What finds and judges its plans, `stored` and `identity`, knows plans alone; executors know neither.
6. No import cycles, and no public function shares its module's name.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import odediff

PACKAGE = Path(odediff.__file__).parent
NUMPY_SIDE = ("choices", "philox", "schedule", "spaces", "grids", "plans", "trace", "methods", "analysis")
NETWORKS = "odediff.analysis.networks"  # the torch side of analysis
EXECUTORS = ("step", "philox", "noise", "prediction", "running", "graph", "staged", "onnx", "kernels")


@dataclass(frozen=True)
class Import:
    """One imported module, and how it is imported."""

    target: str
    at_import_time: bool  # at module level: what decides whether a cycle can bite
    typing_only: bool  # under `if TYPE_CHECKING:`: never happens when the program runs
    within: str  # the outermost function or class around it, "" at module level


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> dict[str, ast.Module]:
    return {module_name(path): ast.parse(path.read_text(), str(path)) for path in sorted(PACKAGE.rglob("*.py"))}


SOURCES = sources()


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def resolve(node: ast.Import | ast.ImportFrom, module: str, known: dict[str, ast.Module]) -> list[str]:
    """The absolute modules that a statement imports; `from package import module` counts as the module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        is_package = any(name.startswith(module + ".") for name in known)
        parents = module.split(".")
        parents = parents[: len(parents) - node.level + is_package]
        base = ".".join([*parents, *filter(None, [node.module])])
    return [f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names]


def imports_of(module: str, known: dict[str, ast.Module]) -> Iterator[Import]:
    def walk(node: ast.AST, top: bool, typing_only: bool, within: str) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                yield from (Import(t, top, typing_only, within) for t in resolve(child, module, known))
            elif is_type_checking(child):
                yield from walk(child, top, True, within)
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                yield from walk(child, False, typing_only, within or getattr(child, "name", ""))
            else:
                yield from walk(child, top, typing_only, within or getattr(child, "name", ""))

    return walk(known[module], True, False, "")


def modules_of(*names: str) -> list[str]:
    """The modules that these parts of the library consist of, as far as they exist."""
    return [m for m in SOURCES if any(m == f"odediff.{n}" or m.startswith(f"odediff.{n}.") for n in names)]


def imported(modules: list[str], *, typing_too: bool = False) -> set[str]:
    return {i.target for m in modules for i in imports_of(m, SOURCES) if typing_too or not i.typing_only}


def reaches(targets: set[str], *names: str) -> set[str]:
    """Those targets that lie in one of the named parts."""
    return {t for t in targets if any(t == n or t.startswith(n + ".") for n in names)}


def loaded_after(code: str) -> set[str]:
    """The names in sys.modules after the code ran in a fresh interpreter."""
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    return set(run.stdout.split())


def numpy_side() -> list[str]:
    return [m for m in modules_of(*NUMPY_SIDE) if m != NETWORKS]


def test_the_numpy_side_imports_nothing_but_numpy_and_itself():
    modules = numpy_side()
    assert len(modules) >= len(NUMPY_SIDE)
    allowed = {"numpy", "__future__", *sys.stdlib_module_names}
    outside = {t for t in imported(modules) if t.split(".")[0] not in {*allowed, "odediff", "matplotlib"}}
    assert outside == set()
    house = {t for t in imported(modules) if t.split(".")[0] == "odediff"}
    assert house - set(modules) == {NETWORKS}
    typed = {t for t in imported(modules, typing_too=True) if t.split(".")[0] == "odediff"}
    assert typed - house <= {"odediff.model"}  # what `work_precision` measures besides a `Problem`


def test_the_two_doors_of_the_numpy_side_open_lazily():
    found = {m: [i for i in imports_of(m, SOURCES) if not i.typing_only] for m in numpy_side()}
    to_torch = {(m, i.within, i.at_import_time) for m, known in found.items() for i in known if i.target == NETWORKS}
    assert to_torch == {("odediff.analysis.precision", "_runs", False)}
    plots = {(m, i.at_import_time) for m, known in found.items() for i in known if reaches({i.target}, "matplotlib")}
    assert plots == {("odediff.analysis.plotting", False)}


@pytest.mark.parametrize("name", NUMPY_SIDE)
def test_the_numpy_side_runs_without_torch(name):
    loaded = loaded_after(f"import odediff.{name}")
    assert f"odediff.{name}" in loaded
    assert reaches(loaded, "torch", "torchdiffeq", "PIL", "matplotlib") == set()


def test_compiling_a_plan_never_loads_torch():
    loaded = loaded_after("import odediff\nstr(odediff.plan('unipc_3', odediff.schedule.cosine(), nfe=9))")
    assert "odediff.methods" in loaded
    assert reaches(loaded, "torch") == set()


def test_executors_import_no_methods():
    modules = modules_of(*EXECUTORS)
    assert "odediff.step" in modules
    assert reaches(imported(modules, typing_too=True), "odediff.methods", "odediff.sampling") == set()


def test_kernels_import_triton_and_of_ours_only_draws():
    modules = modules_of("kernels")
    assert {"odediff.kernels.stage", "odediff.kernels.noise"} <= set(modules)
    outside = imported(modules) - set(modules) - {"odediff.philox"}
    assert {t.split(".")[0] for t in outside} - set(sys.stdlib_module_names) == {"numpy", "torch", "triton"}
    typed = imported(modules, typing_too=True) - imported(modules)
    assert typed == {"odediff.plans", "odediff.prediction"}
    others = [m for m in SOURCES if m not in modules]
    assert reaches(imported(others), "triton") == set()
    eager = {i.target for m in others for i in imports_of(m, SOURCES) if i.at_import_time and not i.typing_only}
    assert reaches(eager, "odediff.kernels") == set()


def test_in_sampling_only_the_front_door_reaches_methods():
    uses = [i for i in imports_of("odediff.sampling", SOURCES) if reaches({i.target}, "odediff.methods")]
    assert {i.within for i in uses} == {"compiled"}


RUNTIME = ("wire", "tensors", "protobuf", "metadata", "engines", "runtime", "loading", "targets", "serving")


def test_what_runs_exported_files_needs_neither_torch_nor_onnx():
    modules = ["odediff.onnx", *modules_of(*(f"onnx.{name}" for name in RUNTIME))]
    assert "odediff.onnx.loading" in modules
    found = [(m, i) for m in modules for i in imports_of(m, SOURCES) if not i.typing_only]
    assert (
        reaches({i.target for _, i in found if i.at_import_time}, "torch", "onnx", "onnxruntime", "odediff.model")
        == set()
    )
    assert {m for m, i in found if reaches({i.target}, "torch")} == {"odediff.onnx.runtime"}  # states that are tensors
    assert reaches({i.target for _, i in found}, "onnx", "odediff.model") == set()


def names_tested(tree: ast.AST, methods: set[str]) -> set[str]:
    """Method names that occur as literals in code; docstrings are not code."""
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef)
    prose = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, holders) and ast.get_docstring(node)}
    literals = (n for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in prose)
    return {n.value for n in literals if isinstance(n.value, str)} & methods


def test_executors_name_no_method():
    methods = set(odediff.METHODS)
    assert {"rk4", "euler", "ddim"} <= methods
    assert {m: found for m in modules_of(*EXECUTORS) if (found := names_tested(SOURCES[m], methods))} == {}


def test_sampling_names_methods_only_as_defaults_of_its_front_door():
    body = SOURCES["odediff.sampling"].body
    others = [node for node in body if getattr(node, "name", "") != "sample"]
    assert len(others) == len(body) - 1
    assert set().union(*(names_tested(node, set(odediff.METHODS)) for node in others)) == set()


def test_training_imports_neither_plans_nor_sampling():
    modules = modules_of("training", "nn")
    assert modules_of("training")
    assert modules_of("nn")
    parts = ("plans", "trace", "methods", "step", "philox", "noise", "sampling", "adaptive", "cli")
    assert reaches(imported(modules, typing_too=True), *(f"odediff.{part}" for part in parts)) == set()


def test_tuning_knows_plans_and_methods_but_neither_sampling_nor_training():
    modules = modules_of("tuning")
    assert {"odediff.tuning.front", "odediff.tuning.student"} <= set(modules)
    known = reaches(imported(modules), "odediff") - set(modules)
    assert {"odediff.plans", "odediff.methods", "odediff.prediction", "odediff.running"} <= known
    parts = ("sampling", "adaptive", "exporting", "kernels", "graph", "training", "nn", "cli")
    assert reaches(known, *(f"odediff.{part}" for part in parts)) == set()
    others = imported([m for m in SOURCES if m not in modules and not m.startswith("odediff.cli")], typing_too=True)
    assert reaches(others, "odediff.tuning") <= {"odediff.tuning"}


def test_stored_plans_and_identities_know_plans_alone():
    assert reaches(imported(modules_of("stored", "identity")), "odediff") == {"odediff.plans"}
    assert reaches(imported(modules_of(*EXECUTORS)), "odediff.stored", "odediff.identity", "odediff.tuning") == set()


def test_sampling_loads_no_tuning():
    assert reaches(loaded_after("import odediff.sampling"), "odediff.tuning", "odediff.methods") == set()


def test_loading_training_loads_no_sampling():
    loaded = loaded_after("import odediff.training")
    assert "odediff.training" in loaded
    assert reaches(loaded, *(f"odediff.{part}" for part in ("methods", "step", "sampling", "adaptive", "cli"))) == set()


def test_nothing_below_the_commands_imports_them():
    below = [m for m in SOURCES if not m.startswith(("odediff.cli", "odediff.__main__"))]
    assert reaches(imported(below), "odediff.cli") == set()


def cycle_in(graph: dict[str, set[str]]) -> list[str]:
    """One cycle of a directed graph as its list of nodes, [] if there is none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return path[path.index(node) :]
        if node in done:
            return []
        found = next((c for target in sorted(graph.get(node, ())) if (c := visit(target, [*path, node]))), [])
        done.add(node)
        return found

    return next((c for node in sorted(graph) if (c := visit(node, []))), [])


def test_there_are_no_import_cycles_not_even_lazy_ones():
    edges = {m: {i.target for i in imports_of(m, SOURCES) if not i.typing_only} & set(SOURCES) - {m} for m in SOURCES}
    assert sum(map(len, edges.values())) > len(SOURCES) / 2
    assert cycle_in(edges) == []


def test_no_public_name_shares_its_modules_name():
    modules = {m.removeprefix("odediff.") for m in SOURCES if m.count(".") == 1}
    functions = {n for n in odediff.__all__ if not isinstance(getattr(odediff, n), type(ast))}
    assert len(functions) > 5
    assert functions & modules == set()
    clashes = {
        m: node.name
        for m in SOURCES
        for node in SOURCES[m].body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == m.rsplit(".", 1)[-1]
    }
    assert clashes == {}


def test_the_reader_sees_every_kind_of_import():
    known = {
        "odediff": ast.parse(""),
        "odediff.a": ast.parse(""),
        "odediff.pack": ast.parse("from . import inner\nfrom ..a import x"),
        "odediff.pack.inner": ast.parse(
            "import numpy as np\n"
            "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    import torch\n"
            "def f():\n    from odediff import a\n"
            "class C:\n    import json\n    def g(self):\n        from ..a import y\n"
        ),
    }
    assert [i.target for i in imports_of("odediff.pack", known)] == ["odediff.pack.inner", "odediff.a"]
    assert list(imports_of("odediff.pack.inner", known)) == [
        Import("numpy", True, False, ""),
        Import("typing", True, False, ""),
        Import("torch", True, True, ""),
        Import("odediff.a", False, False, "f"),
        Import("json", True, False, "C"),
        Import("odediff.a", False, False, "C"),
    ]


def test_the_cycle_finder_finds_one():
    assert cycle_in({"a": {"b", "c"}, "b": {"d"}, "c": set(), "d": {"b"}}) == ["b", "d"]
    assert cycle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
