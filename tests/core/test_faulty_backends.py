"""Every test has been seen to fail: adapters with one deliberate fault each, which parity must report.

The fault is put into the worker process by a sitecustomize module, which Python imports at its start.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lossbridge
from lossbridge.native import rows

PACKAGE = str(Path(lossbridge.__file__).parents[1])  # for sitecustomize, which runs before the working directory counts

# What is wrong with NumPy's adapter; the losses that show it; a word of the report.
FAULTS = {
    "value": ("right = b.log1p; b.log1p = lambda x: right(x) * (1 + 3e-6)", "value"),
    "gradient": (
        "right = b.Variable.__neg__; b.Variable.__neg__ = lambda x: b.record(-x.value, (x, lambda g: g))",
        "gradient",
    ),
    "reduction": ("b.count = lambda c: b.np.int64(c.size)", "value"),
    "mask": ("right = b.cast; b.cast = lambda x, t: b.np.ones_like(x) if t == 'bool' else right(x, t)", "value nan"),
    "dtype": ("right = b.sum; b.sum = lambda x, *a, **k: b.cast(right(x, *a, **k), 'float64')", "float64"),
    "shape": ("right = b.sum; b.sum = lambda x, axis=None, keepdims=False: right(x, axis, True)", ""),
    "crash": ("import os; b.take = lambda *a: (print('out of paper', file=sys.stderr, flush=True), os._exit(9))", ""),
    "hang": ("import time; b.take = lambda *a: time.sleep(600)", ""),
}


IN_ROWS = (
    "import lossbridge.native.rows as r; run = r.run; r.run = lambda c: run(c._replace(upstream=1.001 * c.upstream))"
)


def parity(
    tmp_path: Path, fault: str, *arguments: str, native: str = "0"
) -> tuple[subprocess.CompletedProcess[str], dict]:
    """Without the native rows, which would hide what is wrong with NumPy's operations."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nimport lossbridge.frameworks.numpy_ops as b\n{fault}\n")
    kept = tmp_path / "parity.json"
    result = subprocess.run(
        [sys.executable, "-m", "lossbridge", "parity", "--backend", "numpy", "--json", str(kept), *arguments],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(tmp_path), PACKAGE]), "COLUMNS": "160", "LOSSBRIDGE_NATIVE": native},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return result, json.loads(kept.read_text())["backends"][0]


@pytest.mark.parametrize("kind", ["value", "gradient", "reduction", "mask", "dtype", "shape"])
def test_parity_reports_each_kind_of_fault(tmp_path, kind) -> None:
    fault, words = FAULTS[kind]
    # One loss: of others, sums that keep their axes would be broadcast to gigabytes.
    result, report = parity(tmp_path, fault, "--loss", "categorical_crossentropy")
    assert result.returncode == 1
    faults = [outcome for outcome in report["outcomes"] if outcome["fault"]]
    assert faults
    assert any(words in outcome["fault"] for outcome in faults)
    assert "wrong" in result.stdout
    assert "in full agreement: none" in result.stdout


@pytest.mark.skipif(bool(rows.MISSING), reason=rows.MISSING)
def test_parity_reports_a_fault_in_the_native_rows(tmp_path) -> None:
    result, report = parity(tmp_path, IN_ROWS, "--loss", "kl_divergence", native="1")
    assert result.returncode == 1
    assert any("gradient" in outcome["fault"] for outcome in report["outcomes"] if outcome["fault"])


def test_parity_reports_a_fault_in_the_gradient_of_a_weight(tmp_path) -> None:
    fault = (
        "import lossbridge.frameworks.numpy_linear as n; right = n._add_product; "
        "n._add_product = lambda total, x, y: right(total, x, 1.001 * y)"
    )
    result, report = parity(tmp_path, fault, "--loss", "linear_crossentropy")
    assert result.returncode == 1
    assert any("gradient of weight" in outcome["fault"] for outcome in report["outcomes"])


@pytest.mark.parametrize(
    "kind", ["value", *(pytest.param(kind, marks=pytest.mark.exhaustive) for kind in ("gradient", "reduction"))]
)
def test_peers_report_it_too(tmp_path, kind) -> None:
    """By functions that are losses of lossbridge, and by one that is a formula of its own."""
    functions = ("torch.cross_entropy", "sklearn", "optax.poly_loss_cross_entropy")
    result, report = parity(tmp_path, FAULTS[kind][0], "--peers", *(x for name in functions for x in ("--loss", name)))
    assert result.returncode == 1
    assert any(outcome["fault"] for outcome in report["outcomes"])


def test_parity_without_a_fault_agrees(tmp_path) -> None:
    result, report = parity(tmp_path, "pass")
    assert result.returncode == 0, result.stdout
    assert not any(outcome["fault"] for outcome in report["outcomes"])
    assert "1.1769392" in result.stdout
    assert "in full agreement: numpy" in result.stdout


def test_a_crash_is_reported_with_its_last_words(tmp_path) -> None:
    result, report = parity(tmp_path, FAULTS["crash"][0], "--loss", "sparse_categorical_crossentropy")
    assert result.returncode == 1
    assert report["status"] == "crashed"
    assert "out of paper" in result.stdout
    assert "exit status 9" in result.stdout


def test_a_hang_is_stopped_and_reported(tmp_path) -> None:
    result, report = parity(tmp_path, FAULTS["hang"][0], "--loss", "sparse_categorical_crossentropy", "--timeout", "5")
    assert result.returncode == 1
    assert report["status"] == "hung"
    assert "silent for 5 s in: sparse_categorical_crossentropy" in result.stdout
