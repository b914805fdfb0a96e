"""Measures the figures of lossbridge/conventions/further.py again, each library in an environment of its own.

    python benchmarks/measure_conventions.py                          # all of them: hours, and GB of downloads
    python benchmarks/measure_conventions.py --library river --library statsmodels
    python benchmarks/measure_conventions.py --library timm --newest  # has a later release changed its rule?

An environment lies in a temporary folder, and goes after use; with `--envs` it is kept there and used again. Files in
benchmarks/conventions, one a library, give the calls of the registry their names; they are run with the environment's
Python. The exit status is 0 if no figure changed, 1 if one did or a library could not be measured, 2 on bad usage.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from lossbridge import conventions
from lossbridge.conventions import FURTHER
from lossbridge.conventions.further import VERSIONS
from lossbridge.conventions.further_rules import RULES

SNIPPETS = Path(__file__).with_name("conventions")
EXAMPLES = Path(conventions.__file__).parent  # of whose modules the snippets import `examples` alone
SAME = 1e-6  # relative, of figures of float32


@dataclass(frozen=True)
class Environment:
    """What is installed for a library: its package in the registry's version, and others."""

    package: str
    others: tuple[str, ...] = ()
    # Installed like the package without what they depend on, which is GB; `others` name what the losses need.
    bare: tuple[str, ...] | None = None
    python: str = "python3"  # found on the PATH


_TORCH = "torch==2.13.0"
_TORCHVISION = "torchvision==0.29.1"  # of another build of torch: imported without its operators, which no loss needs
_IMAGES = (_TORCH, "numpy", "pillow", "pyyaml", "huggingface_hub", "safetensors", "tqdm")
_FASTAI = (
    *("fastcore", "fasttransform", "plum-dispatch", "cloudpickle", "fastprogress", "fastdownload", "packaging"),
    *("pandas", "scipy", "matplotlib", "scikit-learn", "requests"),
)

ENVIRONMENTS = {
    "tf1": Environment("tensorflow"),
    "paddle": Environment("paddlepaddle"),
    "mlx": Environment("mlx[cpu]"),
    "mindspore": Environment("mindspore"),
    "tinygrad": Environment("tinygrad", ("numpy",)),
    "onnx": Environment("onnxruntime", ("onnx==1.23.2",)),
    "onnx_reference": Environment("onnx"),
    "thinc": Environment("thinc"),
    "chainer": Environment("chainer", ("numpy<1.24", "setuptools<60"), python="python3.8"),
    "mxnet": Environment("mxnet", ("numpy<1.24",), python="python3.8"),
    "timm": Environment("timm", _IMAGES, (_TORCHVISION,)),
    "torchvision": Environment("torchvision", _IMAGES, ()),
    "monai": Environment("monai", (_TORCH, "numpy"), ()),
    "kornia": Environment("kornia", (_TORCH, "kornia_rs", "packaging"), ()),
    "smp": Environment("segmentation-models-pytorch", _IMAGES, (_TORCHVISION, "timm==1.0.31")),
    "fastai": Environment("fastai", (*_IMAGES, *_FASTAI), (_TORCHVISION,)),
    "torchmetrics": Environment("torchmetrics", (_TORCH,)),
    "ignite": Environment("pytorch-ignite", (_TORCH,)),
    "xgboost": Environment("xgboost-cpu", python="python3.12"),
    "lightgbm": Environment("lightgbm"),
    "catboost": Environment("catboost"),
    "river": Environment("river"),
    "statsmodels": Environment("statsmodels"),
    "vowpalwabbit": Environment("vowpalwabbit", ("numpy",)),
}


@dataclass(frozen=True)
class Measured:
    """What the registry says of one call, and what the library says now: a number, or its error."""

    function: str
    call: str
    figure: float
    now: float | str

    @property
    def changed(self) -> bool:
        return isinstance(self.now, str) or not math.isclose(self.now, self.figure, rel_tol=SAME)


def python_of(name: str, folder: Path, newest: bool) -> Path:
    """The Python of the library's environment, which is made where there is none. pip's error goes to its user."""
    python = folder / name / "bin" / "python"
    if python.exists():
        return python
    e = ENVIRONMENTS[name]
    package = e.package if newest else f"{e.package}=={VERSIONS[name]}"
    subprocess.run([e.python, "-m", "venv", str(folder / name)], check=True)
    steps = [[package, *e.others]] if e.bare is None else [list(e.others), ["--no-deps", package, *e.bare]]
    for step in steps:
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *step], check=True)
    return python


def asked(name: str, python: Path) -> tuple[str, list[Measured]]:
    """The version that is installed, and what each call of the registry gives there."""
    seen = [(p.function, one.call, one.figure) for p in FURTHER if p.library == name for one in p.seen]
    seen += [("a further rule", rule.call, rule.figure) for rule in RULES if rule.library == name]
    # Of our own modules the environment's Python finds `examples` alone: it may be too old for the others.
    surroundings = {**os.environ, "PYTHONPATH": str(EXAMPLES), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [str(python), str(SNIPPETS / f"of_{name}.py")],
        input=json.dumps([call for _, call, _ in seen]),
        env=surroundings,
        capture_output=True,
        text=True,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    if not lines:
        raise RuntimeError(f"{name}: {done.stderr.strip() or 'no answer'}")
    answers = dict(lines)
    died = f"no answer: {done.stderr.strip()[-200:]}"
    return answers["version"], [Measured(*one, answers.get(one[1], died)) for one in seen]


def unchanged(name: str, folder: Path, newest: bool) -> bool:
    """Prints a table; whether the library was measured, and nothing changed."""
    console = Console(width=160, markup=False)
    try:
        version, found = asked(name, python_of(name, folder, newest))
    except (OSError, subprocess.CalledProcessError, RuntimeError) as error:
        console.print(f"{name}: not measured: {error}")
        return False
    table = Table("function", "call", "registry", "measured", "", title=f"{name} {version}")
    for one in found:
        now = one.now if isinstance(one.now, str) else f"{one.now:.9g}"
        table.add_row(one.function, one.call, f"{one.figure:.9g}", now, "changed" if one.changed else "same")
    console.print(table)
    return not any(one.changed for one in found)


def main(
    library: Annotated[list[str] | None, typer.Option(help="The ones to measure; all by default.")] = None,
    envs: Annotated[Path | None, typer.Option(help="A folder for the environments, which are kept in it.")] = None,
    newest: Annotated[bool, typer.Option("--newest", help="The newest release in place of the pinned one.")] = False,
) -> None:
    names = library or list(ENVIRONMENTS)
    unknown = [name for name in names if name not in ENVIRONMENTS]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]} is none of {', '.join(ENVIRONMENTS)}")
    same = []
    for name in names:
        with tempfile.TemporaryDirectory() as temporary:
            same.append(unchanged(name, envs or Path(temporary), newest))
    raise typer.Exit(0 if all(same) else 1)


if __name__ == "__main__":
    typer.run(main)
