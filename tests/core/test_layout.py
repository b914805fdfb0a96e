"""The layout of the package: which module imports which, names of files, sizes of functions."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import lossbridge as lb

PACKAGE = Path(lb.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix("."): path
    for path in PACKAGE.rglob("*.py")
}


def imports_of(path: Path) -> set[str]:
    """The modules of ours that a file imports, at its top or inside its functions; "" is the package itself.

    `from lossbridge import request` imports `request`: that Python runs `lossbridge/__init__.py` first is no
    dependency of the code.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name.removeprefix("lossbridge.") in MODULES else str(node.module) for name in names}
    ours = {name.removeprefix("lossbridge").removeprefix(".") for name in found if name.split(".")[0] == "lossbridge"}
    assert ours <= set(MODULES), path
    return ours


GRAPH = {module: imports_of(path) for module, path in MODULES.items()}


def packages(modules: set[str]) -> set[str]:
    return {module.split(".")[0] for module in modules}


def test_there_is_no_circle_of_imports() -> None:
    TopologicalSorter(GRAPH).prepare()  # raises CycleError, which shows the circle


def test_a_circle_would_be_found() -> None:
    """Also one that stands inside a function, and one through the name of a package."""
    with pytest.raises(ValueError, match="cycle"):
        TopologicalSorter(GRAPH | {"maths.ops": {"losses"}}).prepare()
    assert "native.triton_kernels" in GRAPH["frameworks.on_torch"]  # which is imported inside functions
    assert "frameworks" in GRAPH["request"]


# What a package imports besides itself.
ALLOWED = {
    "maths": set(),
    "reference": set(),
    "conventions": set(),
    "version": set(),
    "spec": {"maths"},
    "errors": {"maths", "spec"},
    "reduction": {"maths", "spec"},
    "frameworks": {"maths", "spec", "reduction", "native"},
    "native": {"maths", "spec", "reduction", "frameworks"},
    "request": {"maths", "spec", "errors", "reduction", "frameworks"},
    "agreement": {"maths", "errors", "frameworks"},
    "linear": {"maths", "spec", "errors", "reduction", "request", "frameworks", "agreement"},
    "distillation": {"maths", "spec", "errors", "request", "frameworks", "linear"},
    "topk": {"maths", "spec", "errors", "reduction", "request"},
    "losses": {"spec", "errors", "reduction", "request", "linear", "distillation", "topk"},
    "explanation": {"maths", "spec", "request", "frameworks", "linear", "distillation", "topk", "losses"},
}


@pytest.mark.parametrize("package", ALLOWED)
def test_what_a_package_imports(package) -> None:
    modules = {module for module in MODULES if module.split(".")[0] == package}
    assert modules
    for module in modules:
        assert packages(GRAPH[module]) - {package} <= ALLOWED[package], module


def test_tools_are_imported_by_the_public_names_alone() -> None:
    users = {module for module, imported in GRAPH.items() if "tools" in packages(imported)}
    assert {user for user in users if not user.startswith("tools")} == {"", "__main__"}


def test_a_module_of_frameworks_imports_one_framework() -> None:
    """Who has PyTorch alone can run its modules."""
    theirs = {"jax", "tensorflow", "torch", "keras"}
    for module, path in MODULES.items():
        if not module.startswith(("frameworks.", "native.")):
            continue
        tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        names = {alias.name.split(".")[0] for node in tree if isinstance(node, ast.Import) for alias in node.names}
        assert len(names & theirs) <= 1, module


def test_file_names_are_unique() -> None:
    names = Counter(path.name for path in MODULES.values() if path.name != "__init__.py")
    assert not [name for name, count in names.items() if count > 1]


# Sizes.

MOST_LINES, MOST_PARAMETERS = 60, 8

# Whose parameters are their user's: public losses and classes, the commands, whose parameters are their options, and
# Triton's functions, which take a pointer or a number an argument.
PUBLIC = ("losses", "reference", "compat", "torch", "keras", "tools.diagnosis.diagnosis", "tools.cli")
ON_DEVICE = "native.triton_device"


def functions(module: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            yield f"{module}.{node.name}", node


def parameters(function: ast.FunctionDef) -> int:
    a = function.args
    named = [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs) if x.arg not in ("self", "cls")]
    return len(named) + (a.vararg is not None) + (a.kwarg is not None)


def is_public(module: str, function: ast.FunctionDef) -> bool:
    package = any(module == name or module.startswith(f"{name}.") for name in PUBLIC)
    return (package and (function.name == "__init__" or not function.name.startswith("_"))) or module == ON_DEVICE


@pytest.mark.parametrize("module", MODULES)
def test_functions_are_short_and_take_few_parameters(module) -> None:
    for name, function in functions(module):
        assert function.end_lineno is not None
        assert function.end_lineno - function.lineno + 1 <= MOST_LINES, name
        if not is_public(module, function):
            assert parameters(function) <= MOST_PARAMETERS, name
