"""The public surface, and the direction of imports."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import lossbridge as lb
from lossbridge import information, reference
from lossbridge.tools.parity import cases

PACKAGE = Path(lb.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}

# A module imports modules of a lower level only; equal ones only inside a package.
LEVELS = {
    "backends": 0,
    "reference": 0,
    "version": 0,
    "backend": 1,
    "conventions": 1,
    "formulas": 2,
    "reduction": 2,
    "validation": 3,
    "kernels": 4,
    "losses": 5,
    "information": 5,
    "__init__": 10,
    "compat": 7,
    "torch": 8,
    "keras": 8,
    "tools": 9,
    "__main__": 11,
}


def imports_of(path: Path, *, at_top: bool = False) -> set[str]:
    """The names of lossbridge's modules that a file imports, "" being the package itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if at_top else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    names = {name.removeprefix("lossbridge").removeprefix(".") for name in found if name.split(".")[0] == "lossbridge"}
    return {name for name in names if name in MODULES or name == ""}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downwards(module) -> None:
    top = module.split(".")[0]
    # backend.py loads backends and kernels inside functions.
    for name in imports_of(MODULES[module], at_top=module == "backend"):
        imported = name.split(".")[0] or "__init__"
        # `from lossbridge import formulas` also reads the package itself, which is no dependency of the code.
        if imported in (top, "__init__"):
            continue
        assert LEVELS[imported] < LEVELS[top], f"{module} imports {name}"


def test_backends_import_nothing_of_ours_and_are_loaded_inside_functions() -> None:
    for module, path in MODULES.items():
        if module.startswith("backends"):
            assert not imports_of(path), module
    assert not imports_of(MODULES["reference"])
    at_top = imports_of(MODULES["backend"], at_top=True)
    assert not {name for name in at_top if name.startswith(("backends", "kernels"))}


def test_import_brings_no_framework() -> None:
    program = "import sys, lossbridge, lossbridge.information; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "tensorflow", "jax", "keras", "typer", "rich", "matplotlib", "scipy", "ml_dtypes"} & set(
        loaded
    )


def test_all_is_exactly_the_public_surface() -> None:
    public = {name for name, x in vars(lb).items() if not name.startswith("_") and inspect.isfunction(x)}
    assert sorted({*public, "diagnose"}) == list(lb.__all__)  # diagnose is loaded when it is asked for
    assert set(lb.__all__) <= set(dir(lb))
    assert all(inspect.getdoc(getattr(lb, name)) for name in lb.__all__)


def test_every_loss_is_registered_and_has_a_reference() -> None:
    losses = set(lb.__all__) - {"diagnose", "value_and_grad"}
    assert set(cases.LOSSES) == losses
    assert {case.loss for case in cases.cases()} == losses
    for loss in losses:
        options = set(inspect.signature(getattr(lb, loss)).parameters) - {"teacher_logits", "student_logits"}
        known = set(inspect.signature(getattr(reference, loss)).parameters)
        assert options <= known, loss


def test_arguments_after_the_arrays_are_keywords() -> None:
    for loss in cases.LOSSES:
        kinds = [p.kind for p in inspect.signature(getattr(lb, loss)).parameters.values()]
        assert kinds[:2] == [inspect.Parameter.POSITIONAL_OR_KEYWORD] * 2
        assert set(kinds[2:]) == {inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize("module", ["", "losses", "information", "compat.torch", "tools.diagnosis.diagnosis"])
def test_examples_in_docstrings(module) -> None:
    failed, tried = doctest.testmod(importlib.import_module(f"lossbridge.{module}".rstrip(".")))
    assert tried > 0
    assert failed == 0


def test_public_docstrings_have_an_example_and_a_source() -> None:
    for function in (*(getattr(lb, loss) for loss in cases.LOSSES), information.entropy, information.cross_entropy):
        assert ">>>" in function.__doc__
        assert "Source:" in function.__doc__


def test_cases_are_plain_data_within_their_dtype() -> None:
    for case in cases.cases():
        for x in (case.y_true, case.y_pred):
            if x.dtype.kind == "f":
                rounded = cases.round_to(x, case.dtype)
                assert ((rounded == x) | (x != x)).all(), case
