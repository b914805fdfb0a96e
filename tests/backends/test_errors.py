"""What is refused, in one line that says what is wrong, what was found and what to do; before any computation."""

from __future__ import annotations

import re

import numpy as np
import pytest

import lossbridge as lb
from lossbridge import information
from lossbridge.spec import LOSSES as RECORDS
from lossbridge.tools.parity.cases import LOSSES as TARGETS

P = np.full((4, 3), 1 / 3, np.float32)
T = np.eye(4, 3, dtype=np.float32)
Y = np.zeros(4, np.int32)


def refused(error, match, call, *arguments, **options) -> None:
    with pytest.raises(error, match=match) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300


OF_LABELS = [name for name, targets in TARGETS.items() if targets == ("labels",)]
DENSE = [name for name in TARGETS if name not in OF_LABELS]
LOSSES = [*DENSE, *OF_LABELS]


@pytest.mark.parametrize("loss", DENSE)
def test_shapes_that_differ(lib, loss) -> None:
    refused(ValueError, r"\(4, 3\).*\(4, 2\)", getattr(lb, loss), lib.array(T), lib.array(P[:, :2]))
    refused(ValueError, r"\(3, 3\).*\(4, 3\)", getattr(lb, loss), lib.array(T[:3]), lib.array(P))


def test_a_column_against_a_row(lib) -> None:
    labels = lib.array(np.zeros(4, np.int32))
    for loss in (lb.log_loss, lb.sparse_categorical_crossentropy):
        refused(ValueError, r"\(4, 1\).*\(4,\).*equal shapes", loss, labels, lib.array(np.zeros((4, 1), np.float32)))
    row, column = lib.array(np.zeros(4, np.float32)), lib.array(np.zeros((4, 1), np.float32))
    for loss in (lb.binary_crossentropy, lb.binary_focal_crossentropy):
        refused(ValueError, r"\(4,\).*\(4, 1\).*\[\.\.\., 0\]", loss, row, column)
        refused(ValueError, r"\(4, 1\).*\(4,\).*\[\.\.\., 0\]", loss, column, row)
    refused(ValueError, r"\(4, 1\).*\(4,\).*y_true\[\.\.\., 0\]", lb.log_loss, column, row)


def test_labels_where_distributions_are_wanted(lib) -> None:
    refused(ValueError, "sparse_categorical_crossentropy", lb.categorical_crossentropy, lib.array(Y), lib.array(P))
    refused(ValueError, "categorical_crossentropy", lb.sparse_categorical_crossentropy, lib.array(T), lib.array(P))
    with_axis = lib.array(np.zeros((4, 1), np.int32))
    refused(ValueError, r"y_true\[\.\.\., 0\]", lb.sparse_categorical_crossentropy, with_axis, lib.array(P))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("axis", [2, -3, 17])
def test_axis_out_of_range(lib, loss, axis) -> None:
    target = Y if loss in ("log_loss", "sparse_categorical_crossentropy") else T
    refused(
        ValueError,
        rf"axis {axis} is out of range.*\(4, 3\)",
        getattr(lb, loss),
        lib.array(target),
        lib.array(P),
        axis=axis,
    )


@pytest.mark.parametrize("loss", [name for name in LOSSES if "binary" not in name])
def test_axis_of_size_one(lib, loss) -> None:
    column = lib.array(np.zeros((4, 1), np.float32))
    target = lib.array(Y) if loss in ("log_loss", "sparse_categorical_crossentropy") else column
    refused(ValueError, r"size 1.*\(4, 1\)", getattr(lb, loss), target, column)


@pytest.mark.parametrize("labels", [[0, 1, 3, 2], [0, -1, 2, 2]])
@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", "log_loss"])
def test_labels_out_of_range(lib, loss, labels) -> None:
    bad = next(i for i, label in enumerate(labels) if not 0 <= label < 3)
    for y in (lib.array(np.array(labels, np.int32)), labels, np.array(labels, np.int64)):
        refused(ValueError, rf"label {labels[bad]} at index {bad} .*3 classes", getattr(lb, loss), y, lib.array(P))


@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", "log_loss"])
def test_floating_point_labels(lib, loss) -> None:
    refused(TypeError, "float32.*integers", getattr(lb, loss), lib.array(Y.astype(np.float32)), lib.array(P))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bad", [np.full((4, 3), 1j), np.full((4, 3), "a"), np.full((4, 3), None), [[1, 2], [3]]])
def test_arrays_of_no_real_numbers(loss, bad) -> None:
    target = Y if loss in OF_LABELS else T
    names = RECORDS[loss].names
    refused((TypeError, ValueError), names.pred, getattr(lb, loss), target, bad)
    refused((TypeError, ValueError), names.target, getattr(lb, loss), bad, P)


def test_complex_arrays_of_the_backend(lib) -> None:
    bad = lib.b.asarray(np.full((4, 3), 1j, np.complex64))
    refused(TypeError, "y_pred has dtype complex64", lb.categorical_crossentropy, lib.array(T), bad)


def test_things_that_are_no_arrays() -> None:
    refused(TypeError, "no array of", lb.categorical_crossentropy, T, object())
    refused(TypeError, "y_true is builtins.dict.*no array of", lb.categorical_crossentropy, {"a": 1}, P)


def test_none_and_masked_arrays(lib) -> None:
    refused(TypeError, "y_true is None; pass an array", lb.categorical_crossentropy, None, lib.array(P))
    refused(TypeError, "y_pred is .*NoneType", lb.categorical_crossentropy, T, None)
    masked = np.ma.masked_array(T, mask=T)
    refused(TypeError, "y_true is a NumPy masked array.*mask=", lb.categorical_crossentropy, masked, lib.array(P))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"reduction": "average"}, ValueError, "unknown reduction 'average'.*'mean'"),
        ({"reduction": 3}, ValueError, "unknown reduction 3"),
        ({"reduction": "batchmean"}, ValueError, "batchmean.*PyTorch.s name.*sum_over_batch_size"),
        ({"reduction": "sum", "normalizer": 3}, ValueError, "normalizer.*'sum'"),
        ({"reduction": "none", "normalizer": 3}, ValueError, "normalizer.*'none'"),
        ({"reduction": None, "normalizer": 3}, ValueError, "normalizer.*None"),
        ({"normalizer": [1.0, 2.0]}, ValueError, r"normalizer has shape \(2,\)"),
        ({"sample_weight": [1.0, 2.0, 3.0]}, ValueError, r"sample_weight has shape \(3,\).*\(4"),
        ({"sample_weight": [1.0]}, ValueError, r"sample_weight has shape \(1,\).*\(4"),
        ({"mask": np.ones((4, 3, 1), bool)}, ValueError, r"mask has shape \(4, 3, 1\).*\(4"),
        ({"sample_weight": np.ones((2, 4))}, ValueError, r"sample_weight has shape \(2, 4\).*\(4"),
        ({"sample_weight": "heavy"}, TypeError, "sample_weight"),
    ],
)
def test_options_of_every_loss(lib, loss, options, error, match) -> None:
    target = Y if loss in OF_LABELS else T
    refused(error, match, getattr(lb, loss), lib.array(target), lib.array(P), **options)


@pytest.mark.parametrize(
    ("option", "bad"),
    [
        ("epsilon", -1e-9),
        ("epsilon", 0.5),
        ("epsilon", float("nan")),
        ("epsilon", "small"),
        ("label_smoothing", -0.1),
        ("label_smoothing", 1.1),
        ("temperature", 0.0),
        ("temperature", -1.0),
        ("temperature", float("inf")),
        ("gamma", -1.0),
        ("class_weight", [1.0, 2.0]),
        ("class_weight", 2.0),
        ("pos_weight", [1.0, 2.0]),
        ("alpha", [1.0, 2.0]),
        ("alpha", None),
        ("alpha", "x"),
        ("alpha", np.ones((3, 1))),
        ("alpha", np.ones((2, 4, 3))),
        ("from_logits", "False"),
        ("from_logits", 1),
        ("apply_class_balancing", None),
        ("ignore_class", 0.5),
        ("axis", 0.5),
        ("axis", None),
    ],
)
def test_options_of_some_losses(lib, option, bad) -> None:
    import inspect

    takers = [name for name in LOSSES if option in inspect.signature(getattr(lb, name)).parameters]
    assert takers
    for loss in takers:
        target = Y if loss in ("sparse_categorical_crossentropy", "log_loss") else T
        call = getattr(lb, loss)
        refused((ValueError, TypeError), option, call, lib.array(target), lib.array(P), **{option: bad})


def test_arrays_of_two_frameworks(lib, monkeypatch) -> None:
    """A second framework is simulated: two real ones do not fit into one process."""
    from lossbridge import request

    class Foreign:
        pass

    class ForeignBackend:
        name = "mlx"

    monkeypatch.setitem(request._framework_of_type, Foreign, ForeignBackend())
    refused(
        TypeError, rf"y_true is of mlx and y_pred of {lib.b.name}", lb.categorical_crossentropy, Foreign(), lib.array(P)
    )
    for name in ("sample_weight", "mask", "normalizer", "class_weight"):
        refused(
            TypeError, f"{name} is of mlx", lb.categorical_crossentropy, lib.array(T), lib.array(P), **{name: Foreign()}
        )
    if lib.b.name != "numpy":
        refused(
            TypeError, f"y_true is of {lib.b.name} and y_pred of numpy", lb.categorical_crossentropy, lib.array(T), P
        )


def test_errors_name_the_arguments_of_distillation(lib) -> None:
    refused(ValueError, r"teacher_logits.*student_logits", lb.distillation_loss, lib.array(T), lib.array(P[:, :2]))
    refused(TypeError, "student_logits has dtype complex64", lb.distillation_loss, T, P.astype(np.complex64))
    refused(ValueError, "axis 7.*student_logits", lb.distillation_loss, lib.array(T), lib.array(P), axis=7)


def test_entropies(lib) -> None:
    refused(ValueError, r"\(4, 3\).*\(4, 2\)", information.cross_entropy, lib.array(P), lib.array(P[:, :2]))
    refused(ValueError, "base is 1", information.entropy, lib.array(P), base=1)
    refused(ValueError, "base is -2", information.entropy, lib.array(P), base=-2)
    refused(ValueError, "axis 5", information.entropy, lib.array(P), axis=5)


@pytest.mark.parametrize(
    ("target", "pred", "words"),
    [
        ((3, 1), (3,), "y_true has shape (3, 1) and y_pred (3,) with its classes along axis -1"),
        ((2, 2), (2,), "y_true has shape (2, 2) and y_pred (2,) with its classes along axis -1"),
        ((2, 2), (), "axis -1 is out of range: y_pred has shape ()"),
    ],
)
def test_log_loss_of_targets_with_more_axes(lib, target, pred, words) -> None:
    y_true, y_pred = lib.b.place(np.zeros(target, np.int32), "int32", "cpu"), lib.array(np.full(pred, 0.5, np.float32))
    refused(ValueError, re.escape(words), lb.log_loss, y_true, y_pred)
