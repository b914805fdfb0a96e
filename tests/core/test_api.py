"""The public surface."""

from __future__ import annotations

import doctest
import importlib
import inspect
import subprocess
import sys

import pytest

import lossbridge as lb
from lossbridge import information, reference
from lossbridge.native import rows
from lossbridge.tools.parity import cases


def test_import_brings_no_framework() -> None:
    program = "import sys, lossbridge, lossbridge.information; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "tensorflow", "jax", "keras", "typer", "rich", "matplotlib", "scipy", "ml_dtypes"} & set(
        loaded
    )


def test_all_is_exactly_the_public_surface() -> None:
    public = {name for name, x in vars(lb).items() if not name.startswith("_") and inspect.isfunction(x)}
    assert sorted({*public, "compare", "diagnose"}) == list(lb.__all__)  # these two are loaded when they are asked for
    assert set(lb.__all__) <= set(dir(lb))
    assert all(inspect.getdoc(getattr(lb, name)) for name in lb.__all__)


def test_every_loss_is_registered_and_has_a_reference() -> None:
    of_hidden = {"linear_crossentropy", "linear_distillation", "linear_token_log_probs"}
    losses = set(lb.__all__) - {
        "compare",
        "diagnose",
        "entropy_from_logits",
        "explain",
        "token_log_probs",
        "topk_divergence",
        "value_and_grad",
        *of_hidden,
    }
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


@pytest.mark.parametrize(
    "module",
    [
        *("", "losses", "information", "compat.torch"),
        pytest.param("explanation", marks=pytest.mark.skipif(bool(rows.MISSING), reason="its example takes the rows")),
        *("tools.comparison.comparison", "tools.diagnosis.diagnosis"),
    ],
)
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
