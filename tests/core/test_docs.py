"""Every example in the README and under docs/ runs as printed.

```python blocks are doctests. Those of one page share their names, in order, except that a block that imports a
framework starts a process of its own, in which the blocks after it go on (TensorFlow and torch.compile do not share
one).
"""

from __future__ import annotations

import doctest
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lossbridge.native import rows
from lossbridge.version import __version__

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FRAMEWORKS = re.compile(r"^\s*>>> (?:import|from) (torch|tensorflow|jax|keras)\b", re.MULTILINE)


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def runs(page: Path) -> list[tuple[str, str]]:
    """The page's examples, a process each: (its framework, its lines)."""
    found = [("numpy", "")]
    for block in blocks(page):
        if rows.MISSING and re.search("path:? rows", block):
            continue
        framework = FRAMEWORKS.search(block)
        if framework:
            found.append((framework[1], ""))
        found[-1] = (found[-1][0], found[-1][1] + block + "\n")
    return [run for run in found if run[1]]


def failures(source: str, name: str) -> int:
    test = doctest.DocTestParser().get_doctest(source, {}, name, name, 0)
    return doctest.DocTestRunner().run(test).failed


RUNS = [(f"{page.name}-{i}-{framework}", lines) for page in PAGES for i, (framework, lines) in enumerate(runs(page))]


@pytest.mark.parametrize("lines", [lines for _, lines in RUNS], ids=[name for name, _ in RUNS])
def test_examples(lines) -> None:
    program = "import sys; from test_docs import failures; sys.exit(failures(sys.stdin.read(), 'page') > 0)"
    result = subprocess.run(
        [sys.executable, "-c", program],
        input=lines,
        cwd=Path(__file__).parent,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_python_block_is_an_example() -> None:
    for page in PAGES:
        for block in blocks(page):
            assert ">>>" in block, f"{page.name}: a block without prompts is never run:\n{block}"


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize("name", ["make_conventions", "make_performance"])
def test_tables_are_what_their_source_says(name) -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    maker = importlib.import_module(name)
    page = maker.PAGE.read_text(encoding="utf-8")
    assert maker.filled(page) == page, f"run python docs/{name}.py"


def test_the_table_of_peers_is_the_tested_one() -> None:
    """Its figures of lossbridge stand in the tests of numerics."""
    tested = (ROOT / "tests" / "backends" / "test_numerics.py").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "differences.md").read_text(encoding="utf-8")
    for figure in (
        "1.1769392",
        "0.7297521",
        "1.3406128",
        "0.8043677",
        "2.9500506",
        "1.1062690",
        "0.7992960",
        "2.0611537e-9",
    ):
        assert figure in tested
        assert figure in page


def test_the_citation_names_this_version() -> None:
    citation = ROOT / "CITATION.cff"
    assert f"\nversion: {__version__}\n" in citation.read_text(encoding="utf-8")
