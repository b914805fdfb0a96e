"""What `lb.explain` refuses, and what it says of a call; that it is true is in test_paths.py."""

from __future__ import annotations

import numpy as np
import pytest

import lossbridge as lb
from lossbridge import explanation
from lossbridge.compat import keras
from lossbridge.native import rows

P = np.full((2, 3), 1 / 3, np.float32)
T = np.eye(2, 3, dtype=np.float32)


def test_a_line_for_each_thing(monkeypatch) -> None:
    monkeypatch.setattr(rows, "MISSING", "the native rows are switched off by a test")
    found = lb.explain(lb.categorical_focal_crossentropy, T, P)
    assert (found.framework, found.under, found.path) == ("numpy", "", "formula")
    assert str(found).splitlines() == [
        "path: formula (numpy)",
        "value: the formula, over NumPy's operations",
        "gradient: automatic differentiation, by a tape of NumPy's operations",
        "not rows: the native rows are switched off by a test",
        "not rule: no derivative rule is written for focal probabilities",
    ]


def test_the_loss_by_its_name_or_with_its_gradient() -> None:
    expected = lb.explain(lb.kl_divergence, T, P)
    assert lb.explain("kl_divergence", T, P) == expected
    assert lb.explain(lb.value_and_grad(lb.kl_divergence), T, P) == expected


def log_loss() -> None:
    """Of another library, say."""


@pytest.mark.parametrize("loss", ["crossentropy", log_loss, keras.kl_divergence, 3])
def test_what_is_no_loss(loss) -> None:
    with pytest.raises(ValueError, match=r"is no loss of lossbridge\.losses; pass one of its functions, or a name: "):
        lb.explain(loss, T, P)


HIDDEN, WEIGHT, LABELS = np.ones((2, 4), np.float32), np.ones((3, 4), np.float32), np.array([0, 2])
FURTHER = {
    "linear_crossentropy": ({"labels": LABELS, "hidden": HIDDEN, "weight": WEIGHT}, "blocks"),
    "linear_token_log_probs": ({"labels": LABELS, "hidden": HIDDEN, "weight": WEIGHT}, "blocks"),
    "linear_distillation": (
        {"teacher_hidden": HIDDEN, "teacher_weight": WEIGHT, "student_hidden": HIDDEN, "student_weight": WEIGHT},
        "blocks",
    ),
    "topk_divergence": ({"indices": [[0], [1]], "log_probs": np.log(P[:, :1]), "student_logits": P}, "rows"),
    "token_log_probs": ({"labels": LABELS, "logits": P}, "rows"),
    "entropy_from_logits": ({"logits": P}, "rule"),
}


@pytest.mark.parametrize("name", FURTHER)
def test_every_loss_is_known_by_position_and_by_name(name) -> None:
    arguments, path = FURTHER[name]
    found = lb.explain(getattr(lb, name), *arguments.values())
    assert found == lb.explain(name, **arguments)
    assert found.path == ("rule" if path == "rows" and rows.MISSING else path)
    with pytest.raises(TypeError, match=f"{name} takes no gamma; leave it out"):
        lb.explain(name, **arguments, gamma=2.0)
    last = list(arguments)[-1]
    with pytest.raises(TypeError, match=f"{name} needs {last}; pass {last}="):
        lb.explain(name, *list(arguments.values())[:-1])
    with pytest.raises(TypeError, match=f"{name} takes .* by position; {len(arguments) + 1} arguments are given"):
        lb.explain(name, *arguments.values(), 3)


def test_every_function_with_a_loss_is_known() -> None:
    assert set(explanation.PREDICTIONS) == set(lb.__all__) - {"compare", "diagnose", "explain", "value_and_grad"}


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"from_logit": True}, TypeError, "log_loss takes no from_logit; leave it out"),
        ({"label_smoothing": 0.1}, TypeError, "log_loss takes no label_smoothing; leave it out"),
        ({"epsilon": 2.0}, ValueError, "epsilon is 2.0; pass a number in "),
        ({"under": "jit"}, ValueError, "under is 'jit'; numpy has these compilers: none"),
    ],
)
def test_options_are_refused_as_in_the_call(options, error, words) -> None:
    with pytest.raises(error, match=words):
        lb.explain(lb.log_loss, T, P, **options)


def test_the_linear_loss() -> None:
    hidden, weight = np.ones((2, 4), np.float32), np.ones((3, 4), np.float32)
    found = lb.explain(lb.linear_crossentropy, [0, 2], hidden, weight=weight, z_loss=1e-4)
    assert str(found).splitlines() == [
        "path: blocks (numpy)",
        "value: by the logits of a block of rows at a time, and the loss of logits",
        "gradient: computed with the value where the losses are summed, else by the logits of each block again",
    ]
    assert lb.explain("linear_crossentropy", [0, 2], hidden, weight=weight) == found
    assert lb.explain(lb.value_and_grad(lb.linear_crossentropy), [0, 2], hidden, weight=weight) == found


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, TypeError, "linear_crossentropy needs weight; pass weight="),
        ({"from_logits": True}, TypeError, "linear_crossentropy takes no from_logits; leave it out"),
        ({"weight": np.ones((4, 3))}, ValueError, "pass classes_axis=1"),
        ({"weight": np.ones((3, 4)), "under": "jit"}, ValueError, "numpy has these compilers: none"),
    ],
)
def test_the_linear_loss_is_refused_as_in_the_call(options, error, words) -> None:
    with pytest.raises(error, match=words):
        lb.explain(lb.linear_crossentropy, [0, 2], np.ones((2, 4)), **options)
