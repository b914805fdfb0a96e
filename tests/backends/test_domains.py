"""Targets lie in [0, 1], and so do Bernoulli probabilities; those of classes are not negative, and not all 0.

What lies outside is an error where it can be read, and NaN for its sample alone where it is traced.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

import lossbridge as lb
from lossbridge.spec import LOSSES

WRONG = {
    "fractions": (-1.0, 1.5, 255.0),
    "shares": (-3.0, 0.0),  # 0: the whole row
}
ROWS, CLASSES = 3, 4
RIGHT = np.full((ROWS, CLASSES), 0.25, np.float32)


class Wrong(NamedTuple):
    """A loss of one form, and the number that is put into the second row."""

    loss: str
    options: dict[str, Any]
    target: str
    where: str  # y_true or y_pred
    number: float
    words: str  # of the error


def wrongs() -> Iterator[Any]:
    for loss in LOSSES.values():
        for form, rules in loss.rules.items():
            options = {"from_logits": form == "logits"} if "from_logits" in loss.options else {}
            for target, rule in rules.items():
                for where, domain in zip(loss.names[:2], rule.domains, strict=True):
                    for number in WRONG.get(domain, ()):
                        about = "targets" if where == loss.names.target else "probabilities"
                        words = f"{about} (lie in|are not negative)"
                        if domain == "shares" and number == 0:
                            words = "is 0 for all outcomes at index 1, which is no distribution"
                        case = Wrong(loss.name, options, target, where, number, words)
                        yield pytest.param(case, id=f"{loss.name}-{rule.name}-{where}-{number}")


every_wrong = pytest.mark.parametrize("wrong", list(wrongs()))
# What is compiled takes long: one number of each kind.
one_of_each = pytest.mark.parametrize("wrong", [case for case in wrongs() if case.values[0].number in (1.5, -3.0)])


def arrays(lib, wrong: Wrong) -> tuple[Any, Any, tuple[np.ndarray, np.ndarray]]:
    """Target and predictions, and the samples that are right: 1 for each."""
    target, pred = RIGHT.copy(), RIGHT.copy()
    bad = target if wrong.where == LOSSES[wrong.loss].names.target else pred
    bad[1, 2 if wrong.number else slice(None)] = wrong.number
    right = np.ones((ROWS, CLASSES) if wrong.target in LOSSES[wrong.loss].elementwise else ROWS, bool)
    right[(1, 2) if right.ndim == 2 else 1] = False
    given = np.full(ROWS, 2, np.int32) if wrong.target == "labels" else target
    return lib.array(given), lib.array(pred), right


def the_loss(wrong: Wrong, **options: Any) -> Any:
    return functools.partial(getattr(lb, wrong.loss), **wrong.options, **options)


@every_wrong
def test_it_is_named_where_it_can_be_read(lib, wrong) -> None:
    target, pred, _ = arrays(lib, wrong)
    for reduction in ("none", "sum_over_batch_size", "sum", "mean_with_sample_weight"):
        with pytest.raises(ValueError, match=wrong.words) as caught:
            the_loss(wrong, reduction=reduction)(target, pred)
    assert str(caught.value).startswith(wrong.where)
    assert "\n" not in str(caught.value)
    if wrong.number:
        assert f"holds {wrong.number} at index (1, 2)" in str(caught.value)
    with pytest.raises(ValueError, match=wrong.words):
        lb.value_and_grad(the_loss(wrong))(target, pred)


@every_wrong
def test_it_is_named_beside_what_does_not_count(lib, wrong) -> None:
    target, pred, right = arrays(lib, wrong)
    counts = np.ones_like(right)
    counts[0] = False
    for options in ({"mask": lib.array(counts)}, {"sample_weight": lib.array(counts.astype(np.float32))}):
        with pytest.raises(ValueError, match=wrong.words) as caught:
            the_loss(wrong, **options)(target, pred)
        assert str(caught.value).startswith(wrong.where)


@one_of_each
def test_it_is_nan_where_it_is_traced(lib, wrong) -> None:
    target, pred, right = arrays(lib, wrong)
    healthy = (
        lib.b.to_numpy(the_loss(wrong, reduction="none")(target, lib.array(RIGHT))) if wrong.where == "y_pred" else None
    )
    for compiled in lib.b.compilers().values():
        losses = the_loss(wrong, reduction="none")
        function = compiled(lambda t, p, losses=losses: lib.b.value_and_grad(functools.partial(losses, t), p))
        values, gradient = (lib.b.to_numpy(x) for x in function(target, pred))
        assert np.isfinite(values).tolist() == right.tolist()
        assert np.isnan(values[~right]).all()
        assert np.isnan(gradient).any(1).tolist() == [False, True, False]
        if healthy is not None:
            np.testing.assert_array_max_ulp(values[right], healthy[right], 4)


@every_wrong
def test_it_does_not_count_where_its_sample_does_not(lib, wrong) -> None:
    target, pred, right = arrays(lib, wrong)
    masked = the_loss(wrong, mask=lib.array(right), reduction="none")
    weightless = the_loss(wrong, sample_weight=lib.array(right.astype(np.float32)), reduction="none")
    for loss in (masked, weightless):
        value, gradient = lb.value_and_grad(loss)(target, pred)
        assert np.isfinite(lib.b.to_numpy(value)).all()
        assert np.isfinite(lib.b.to_numpy(gradient)).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("loss", [name for name, loss in LOSSES.items() if "probabilities" in loss.rules])
def test_rounding_leaves_the_domain(lib, loss, dtype) -> None:
    """A sum of weights that should be 1 may be the next number, and 1 less it a little below 0."""
    unit = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    pred = lib.b.place(np.array([[1 + unit, -unit], [0.5, 0.5]]), dtype, "cpu")
    target = lib.b.place(np.array([[1 + unit, -unit], [0.5, 0.5]]), dtype, "cpu")
    if LOSSES[loss].targets == ("labels",):
        target = lib.array(np.array([0, 1], np.int32))
    value, gradient = lb.value_and_grad(getattr(lb, loss))(target, pred)
    assert np.isfinite(lib.b.to_numpy(value))
    assert np.isfinite(lib.b.to_numpy(gradient)).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int32"])
def test_every_dtype_is_read(lib, dtype) -> None:
    with lib.b.scope(dtype, "cpu"):
        target = lib.b.place(np.array([[0, 3], [1, 0]]), dtype, "cpu")
        pred = lib.b.place(np.zeros((2, 2)), "float32" if dtype == "int32" else dtype, "cpu")
        with pytest.raises(ValueError, match=r"y_true holds 3(\.0)? at index \(0, 1\), and targets lie in \[0, 1\]"):
            lb.categorical_crossentropy(target, pred, from_logits=True)


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ([[1.0, -1.0]], r"labels of -1 and 1 become 0 and 1 by \(y \+ 1\) / 2"),
        ([[0.0, 255.0]], "divide a mask of 0 and 255 by 255"),
        ([[0.0, 3.0]], "correct it, or leave its sample out with mask="),
    ],
)
def test_what_to_do(lib, target, hint) -> None:
    with pytest.raises(ValueError, match=hint):
        lb.binary_crossentropy(lib.array(target), lib.array([[0.3, 0.2]]))


def test_logits_without_from_logits(lib) -> None:
    logits = lib.array([[-3.0, 2.0], [0.5, 0.1]])
    for loss, target in (
        (lb.categorical_crossentropy, lib.array([[0.0, 1.0], [1.0, 0.0]])),
        (lb.sparse_categorical_crossentropy, lib.array(np.array([1, 0], np.int32))),
        (lb.binary_crossentropy, lib.array([[0.0, 1.0], [1.0, 0.0]])),
        (lb.log_loss, lib.array(np.array([0, 0], np.int32))),
    ):
        with pytest.raises(
            ValueError, match=r"y_pred holds -3.0 at index \(0, 0\), .*; for logits pass from_logits=True"
        ):
            loss(target, logits)


def test_nan_is_no_error(lib) -> None:
    target, pred = lib.array([[0.0, 1.0], [1.0, 0.0]]), lib.array([[0.3, 0.7], [np.nan, 0.5]])
    for loss in (lb.categorical_crossentropy, lb.binary_crossentropy, lb.kl_divergence):
        assert np.isnan(lib.b.to_numpy(loss(target, pred)))
        values = lib.b.to_numpy(loss(target, pred, reduction="none"))
        assert np.isnan(values).tolist() == [False, True]


def test_nan_counts_where_the_target_is_0(lib) -> None:
    target, pred = lib.array([[0.5, 0.5, 0.0]]), lib.array([[0.5, 0.5, np.nan]])
    for way in (lambda function: function, *lib.b.compilers().values()):
        divergence = way(functools.partial(lb.kl_divergence, epsilon=0))
        assert np.isnan(lib.b.to_numpy(divergence(target, pred)))


def test_nothing_is_looked_at_twice(lib, monkeypatch) -> None:
    """Arrays are read where the result is NaN, and not before."""
    from lossbridge import errors

    def looked(*_: Any) -> None:
        raise AssertionError("the arrays were read")

    monkeypatch.setattr(errors, "in_domain", looked)
    for loss in (lb.categorical_crossentropy, lb.binary_crossentropy, lb.kl_divergence):
        loss(lib.array(RIGHT), lib.array(RIGHT))
