"""Mutants: one small fault at a time is planted into a copy of the package, and the tests should notice it.

    python tests/mutants.py lossbridge/maths/softmax.py lossbridge/reduction.py --number 20 --seed 1
    python tests/mutants.py lossbridge/frameworks/jax_ops.py --backend jax --tests test_numerics

Prints what was planted and which mutants live: each is a gap in the tests, or computes the same. Not part of CI,
because it takes minutes. The working tree is only read.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# What the tests import, but for the package: a forked process need not load it again.
import hypothesis  # noqa: F401
import mpmath  # noqa: F401
import numpy as np  # noqa: F401
import pytest

ROOT = Path(__file__).parent.parent
# The quickest first: a run ends with the first test that fails.
TESTS = tuple(
    f"test_{name}"
    for name in (
        *("rules", "cases", "numerics", "domains", "errors", "options"),
        *("which_gradients", "foreign_arrays", "only_numpy", "properties", "paths"),
    )
)
OTHER = {
    ast.Add: ast.Sub,
    ast.Mult: ast.Div,
    ast.BitAnd: ast.BitOr,
    ast.And: ast.Or,
    ast.Lt: ast.LtE,
    ast.Gt: ast.GtE,
    ast.Eq: ast.NotEq,
    ast.Is: ast.IsNot,
    ast.In: ast.NotIn,
}
OTHER |= {other: one for one, other in OTHER.items()} | {ast.Pow: ast.Mult}


class Mutant(NamedTuple):
    """A node, by the one that holds it, and what takes its place."""

    line: int
    parent: ast.AST
    field: str
    index: int | None
    old: ast.AST
    new: ast.AST

    def source(self, tree: ast.AST) -> str:
        self.put(self.new)
        try:
            return ast.unparse(ast.fix_missing_locations(tree))
        finally:
            self.put(self.old)

    def put(self, node: ast.AST) -> None:
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node

    def __str__(self) -> str:
        old, new = (" ".join(ast.unparse(x).split()) for x in (self.old, self.new))
        return f"line {self.line}: {old[:100]} → {new[:100]}"


def mutants(tree: ast.AST) -> Iterator[Mutant]:
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            if field in ("annotation", "returns", "decorator_list", "names"):
                continue
            for index, old in enumerate(value) if isinstance(value, list) else [(None, value)]:
                line = getattr(old, "lineno", 0)
                new = [] if isinstance(parent, ast.BinOp | ast.Call) and is_type(old) else faults(old)
                yield from (Mutant(line, parent, field, index, old, x) for x in new)


def is_type(node: object) -> bool:
    """`Array | None` outside an annotation."""
    return isinstance(node, ast.Constant) and node.value is None


def faults(node: object) -> Iterator[ast.AST]:
    match node:
        case ast.BinOp(left, op, right) if type(op) in OTHER:
            yield ast.BinOp(left, OTHER[type(op)](), right)
        case ast.BoolOp(op, values):
            yield ast.BoolOp(OTHER[type(op)](), values)
        case ast.Compare(left, [op], right) if type(op) in OTHER:
            yield ast.Compare(left, [OTHER[type(op)]()], right)
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield operand
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(int() | float() as value):
            yield ast.Constant(value + 1)
        case ast.keyword("axis", ast.Name() as value):
            yield ast.keyword("axis", ast.BinOp(value, ast.Sub(), ast.Constant(1)))
        case ast.IfExp(test, body, orelse):
            yield from (body, orelse)
        case ast.If(test, body, orelse) if not isinstance(test, ast.Constant):
            yield from (ast.If(ast.Constant(said), body, orelse) for said in (True, False))
        case ast.Call(ast.Attribute(attr="where"), [*_, one, other]):
            yield from (one, other)
        case ast.Call(_, args):
            given = [x for x in args if not (isinstance(x, ast.Name) and x.id == "ops") and not is_type(x)]
            yield from given[:1]


def run_tests(copy: Path, options: argparse.Namespace, native: str) -> int:
    """The exit status of pytest, in a forked process: 0 where every test passes, negative where the time was over."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.chdir(copy)
    os.environ |= {"PYTHONPATH": str(copy), "LOSSBRIDGE_NATIVE": native}
    sys.path.insert(0, str(copy))
    sys.dont_write_bytecode = True
    signal.alarm(options.timeout)
    log = os.open(copy / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    files = [f"tests/backends/{name}.py" for name in options.tests]
    # NumPy has no compiler, elsewhere one takes too long.
    quickly = (
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:randomly",
        "-k",
        "not compiled",
        "--assert",
        "plain",
        "--tb",
        "line",
    )
    status = 1
    try:
        status = pytest.main([*files, "--backend", options.backend, *quickly])
    finally:
        sys.stdout.flush()
        os._exit(status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--number", type=int, default=10, help="mutants of each file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", default="numpy")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="files of tests/backends")
    parser.add_argument("--native", nargs="+", default=("0", "1"), help="without the native rows, with them")
    parser.add_argument("--timeout", type=int, default=600, help="seconds for a run of the tests")
    options = parser.parse_args()
    fates = Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copy(ROOT / "pyproject.toml", copy)
        for name in ("lossbridge", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        compileall.compile_dir(folder, quiet=1)
        for path in options.files:
            file, source = copy / path, (ROOT / path).read_text(encoding="utf-8")
            for compiled in file.parent.glob(f"__pycache__/{file.stem}.*"):
                compiled.unlink()
            tree = ast.parse(source)
            found = list(mutants(tree))
            chosen = random.Random(f"{options.seed} {path}").sample(found, min(options.number, len(found)))
            for mutant in sorted(chosen, key=lambda x: x.line):
                file.write_text(mutant.source(tree), encoding="utf-8")
                ended = [run_tests(copy, options, native) for native in options.native]
                fate = "found" if any(x > 0 for x in ended) else "TIMEOUT" if any(ended) else "LIVES"
                fates[fate] += 1
                print(fate, path, mutant, flush=True)
            file.write_text(source, encoding="utf-8")
    print(f"{fates.total()} planted:", ", ".join(f"{count} {fate}" for fate, count in fates.items()))


if __name__ == "__main__":
    main()
