"""The recipes of CONTRIBUTING.md work: their code goes from the page into a copy of the package, which is run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
LOSS, FRAMEWORK = "brier_score", "toy"


def recipe(number: int) -> list[tuple[str, str]]:
    """The blocks of code of a recipe that name a file: the file, and what follows its name."""
    text = PAGE.split(f"\n### {number}. ")[1].split("\n### ")[0]
    blocks = re.findall(r"^```(?:python\n#|diff\n\+\+\+) (\S+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks
    return blocks


def apply(number: int, house: Path) -> None:
    for name, block in recipe(number):
        file = house / name
        if block.startswith('"""'):
            assert not file.exists(), f"{name} is there already"
            file.write_text(block, encoding="utf-8")
            continue
        text = file.read_text(encoding="utf-8")
        for hunk in block.split("@@\n"):
            lines = hunk.splitlines(keepends=True)
            old = "".join(line[1:] for line in lines if line[0] in " -")
            new = "".join(line[1:] for line in lines if line[0] in " +")
            assert text.count(f"\n{old}") == 1, f"recipe {number}, {name}: not found once:\n{old}"
            text = text.replace(f"\n{old}", f"\n{new}")
        file.write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """A copy of the package with the toy loss and the toy framework."""
    copy = tmp_path_factory.mktemp("house")
    for name in ("lossbridge", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    shutil.copy(Path(__file__).with_name("toy.py"), copy)
    apply(1, copy)
    apply(2, copy)
    return copy


@pytest.fixture(scope="module")
def larger_house(house, tmp_path_factory) -> Path:
    """With the kernels, the convention and its view besides."""
    copy = shutil.copytree(house, tmp_path_factory.mktemp("larger") / "house")
    for number in (3, 4, 5):
        apply(number, copy)
    return copy


def run(house: Path, *arguments: str) -> str:
    """What a Python says that knows the copy alone."""
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=house,
        env=os.environ | {"PYTHONPATH": str(house), "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def command(house: Path, *arguments: str) -> str:
    return run(house, "-m", "lossbridge", *arguments)


def test_parity_of_the_loss(house) -> None:
    kept = house / "parity.json"
    said = command(house, "parity", "--backend", "numpy", "--backend", FRAMEWORK, "--loss", LOSS, "--json", str(kept))
    assert "in full agreement: numpy, toy" in said
    for backend in json.loads(kept.read_text())["backends"]:
        cases = {outcome["case"] for outcome in backend["outcomes"]}
        assert {"float16", "bfloat16", "float32", "float64", "masked, NaN there", "V = 50 000", "digits"} <= cases
        assert {outcome["loss"] for outcome in backend["outcomes"]} == {LOSS}


def test_parity_of_the_framework(house) -> None:
    """Every loss agrees with the reference."""
    said = command(house, "parity", "--backend", FRAMEWORK)
    assert f"in full agreement: {FRAMEWORK}" in said


def test_vectors(house) -> None:
    assert "cases written" in command(house, "vectors", "--out", "v.json", "--loss", LOSS)
    assert {case["loss"] for case in json.loads((house / "v.json").read_text())["cases"]} == {LOSS}
    assert ", 0 wrong" in command(house, "vectors", "--check", "v.json")


def test_bench(house) -> None:
    command(house, "bench", "--quick", "--backend", "numpy", "--backend", FRAMEWORK, "--loss", LOSS, "--json", "b.json")
    backends = json.loads((house / "b.json").read_text())["backends"]
    assert [backend["backend"] for backend in backends] == ["numpy", FRAMEWORK]
    for backend in backends:
        assert {"", "data"} == {cell["cell"]["sweep"] for cell in backend["cells"]}
        for cell in backend["cells"]:
            (measured,) = cell["measurements"]
            assert measured["ms"] > 0
            assert measured["value_error"] < 1e-5
            assert measured["gradient_error"] < 1e-5


PROGRAM = """
import numpy as np
import toy
import lossbridge as lb
from lossbridge import reference

t, p = np.eye(3)[[0, 2]], np.array([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4]])
exact = reference.brier_score(t, p)
assert np.allclose(exact.value, (0.14 + 0.54) / 2)
value, gradient = lb.value_and_grad(lb.brier_score)(toy.array(t), toy.array(p))
assert type(value) is type(gradient) is toy.Array
assert np.allclose(value.data, exact.value)
assert np.allclose(gradient.data, exact.gradient)

found = lb.explain(lb.brier_score, toy.array(t), toy.array(p))
assert (found.framework, found.path) == ("toy", "formula")
assert found.why_not == {"rule": "no derivative rule is written for Brier score of probabilities"}
assert lb.explain(lb.kl_divergence, toy.array(t), toy.array(p)).path == "rule"
assert lb.explain(lb.brier_score, t, p).framework == "numpy"
"""


def test_value_gradient_and_explanation(house) -> None:
    run(house, "-c", PROGRAM)


def test_the_generated_tests_take_them_in(house) -> None:
    """The public surface with the loss, and which path computes what on the framework."""
    options = ("-q", "-p", "no:cacheprovider")
    run(house, "-m", "pytest", "tests/core/test_api.py", *options)
    said = run(house, "-m", "pytest", "tests/backends/test_paths.py", "--backend", FRAMEWORK, *options)
    assert "passed" in said


KERNELS = """
import numpy as np
import toy
import lossbridge as lb

t, p = np.eye(3)[[0, 2]], np.array([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4]])
assert lb.explain(lb.brier_score, toy.array(t), toy.array(p)).path == "kernel"
found = lb.explain(lb.categorical_crossentropy, toy.array(t), toy.array(p))
assert found.path == "formula"
assert list(found.why_not) == ["kernel", "rule"]
"""


def test_kernels(larger_house) -> None:
    run(larger_house, "-c", KERNELS)
    assert "in full agreement: toy" in command(larger_house, "parity", "--backend", FRAMEWORK, "--loss", LOSS)
    paths = ("tests/backends/test_paths.py", "-q", "-p", "no:cacheprovider")
    run(larger_house, "-m", "pytest", *paths, "--backend", "numpy", "-k", "brier")
    run(larger_house, "-m", "pytest", *paths, "--backend", FRAMEWORK, "-k", "brier or left")


VIEW = """
import doctest
import numpy as np
import lossbridge as lb
from lossbridge.compat import scipy

assert doctest.testmod(scipy) == (0, 5)
p = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])
assert "scipy.special.entr(y_pred)" in str(lb.diagnose(np.eye(3)[:2], p, scipy.entr(p), quantity="value"))
"""


def test_a_convention_and_its_view(larger_house) -> None:
    run(larger_house, "-c", VIEW)
    said = command(larger_house, "parity", "--backend", FRAMEWORK, "--peers", "--loss", "scipy.entr")
    assert f"in full agreement: {FRAMEWORK}" in said
