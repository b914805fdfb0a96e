"""Arrays that are not the framework's own: of other libraries, columns of pandas and polars, other byte orders, and
weights beyond float32's range.

Libraries that are not installed are represented by classes of their modules' and types' names.
"""

from __future__ import annotations

import re
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import lossbridge as lb
from lossbridge import reference
from lossbridge.spec import LOSSES
from lossbridge.tools.parity.cases import cases

P = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]], np.float32)
Y = np.array([0, 1, 1])


def stand_in(module: str, name: str, x: Any = P, **attributes: Any) -> Any:
    """An object of that name, which NumPy could read."""
    members = {"__array__": lambda self, *a, **k: np.asarray(x), "__len__": lambda self: len(x), **attributes}
    return type(name, (), {**members, "__module__": module})()


FOREIGN = {
    "paddle.Tensor": "pass y_pred.numpy(), and of bfloat16 y_pred.astype('float32').numpy()",
    "mlx.core.array": "pass numpy.array(y_pred), and of bfloat16 numpy.array(y_pred.astype(mlx.core.float32))",
    "cupy.ndarray": "pass cupy.asnumpy(y_pred)",
    "dask.array.core.Array": "pass y_pred.compute()",
    "tinygrad.tensor.Tensor": "pass y_pred.numpy()",
    "mindspore.common.tensor.Tensor": "pass y_pred.asnumpy()",
    "xarray.core.dataarray.DataArray": "pass y_pred.to_numpy()",
    "pyarrow.lib.DoubleArray": "pass y_pred.to_numpy(zero_copy_only=False)",
    "pandas.Index": "pass y_pred.to_numpy()",
    "polars.lazyframe.frame.LazyFrame": "pass y_pred.collect()",
    "scipy.sparse._csr.csr_matrix": "pass y_pred.toarray()",
    "somewhere.else_.Array": "pass numpy.asarray(y_pred)",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_an_array_of_another_library_is_refused_by_name(lib, name) -> None:
    module, _, kind = name.rpartition(".")
    foreign = stand_in(module, kind)
    words = f"{name}, which is no array of jax, numpy, tensorflow, torch, and would get no gradient; "
    with pytest.raises(TypeError, match=re.escape(f"y_pred is {words}{FOREIGN[name]}")):
        lb.sparse_categorical_crossentropy(Y, foreign)
    with pytest.raises(TypeError, match=re.escape(f"y_pred is {words}")):
        lb.value_and_grad(lb.sparse_categorical_crossentropy)(Y, foreign)
    others = ("y_true", "sample_weight", "mask", "class_weight", "normalizer")
    for other in others:
        options = {other: foreign} if other != "y_true" else {}
        with pytest.raises(TypeError, match=re.escape(f"{other} is {words}")):
            lb.sparse_categorical_crossentropy(foreign if other == "y_true" else Y, lib.array(P), **options)
    with pytest.raises(TypeError, match=re.escape(f"y_true[0] is {words}")):
        lb.sparse_categorical_crossentropy([foreign, foreign], lib.array(P))


@pytest.mark.parametrize(
    ("dtype", "error", "words"),
    [
        (np.longdouble, TypeError, "and losses are computed in float64 at most; convert it to float64"),
        (ml_dtypes.float8_e4m3fn, TypeError, "which losses do not read; convert it to float32 or bfloat16"),
        (np.complex64, TypeError, "whose numbers are not real; take the real part or the modulus"),
        ("M8[s]", TypeError, "which holds no real numbers; convert it to numbers"),
        ("U3", TypeError, "which holds no real numbers; convert it to numbers"),
        ("O", TypeError, "which may hold anything; convert it to numbers"),
    ],
)
def test_a_dtype_is_refused_for_its_true_reason(lib, dtype, error, words) -> None:
    if dtype is np.longdouble and np.longdouble is np.double:
        pytest.skip("here longdouble is float64")
    bad = np.ones((3, 3)).astype(dtype)
    name = "string" if dtype == "U3" and lib.b.name == "tensorflow" else bad.dtype.name
    with pytest.raises(error, match=re.escape(f"y_true has dtype {name}, {words}")):
        lb.categorical_crossentropy(bad, lib.array(P))
    with pytest.raises(error, match=re.escape(f"sample_weight has dtype {name}, {words}")):
        lb.categorical_crossentropy(np.eye(3), lib.array(P), sample_weight=bad[0])
    if lib.b.name == "numpy":
        with pytest.raises(error, match=re.escape(f"y_pred has dtype {name}, {words}")):
            lb.categorical_crossentropy(np.eye(3), bad)


def test_lists_are_refused_for_their_true_reason(lib) -> None:
    for bad, words in (
        ([["a", "b", "c"]] * 3, "y_true has dtype str"),
        ([[1, 0], [1]], "y_true cannot be made an array of numbers; pass rows of equal length"),
        ([[None] * 3] * 3, "y_true[0] is builtins.NoneType, which is no array of"),
    ):
        with pytest.raises((TypeError, ValueError), match=re.escape(words)):
            lb.categorical_crossentropy(bad, lib.array(P))


# Columns.


class Nullable:
    """The dtype of a nullable column of pandas."""

    numpy_dtype = np.dtype("float64")

    def __str__(self) -> str:
        return "Float64"


def column(x: Any, missing: int | None = None) -> Any:
    """A nullable Series, as pandas has it."""
    mask = np.arange(len(x)) == missing
    return stand_in(
        "pandas",
        "Series",
        np.array(list(x), object),
        dtype=Nullable(),
        isna=lambda self: mask,
        to_numpy=lambda self, dtype: np.array(x, dtype),
    )


def test_columns_are_converted_and_missing_values_are_named(lib) -> None:
    pred, weight = lib.array(P), np.array([1.0, 2.0, 4.0])
    expected = lib.value("sparse_categorical_crossentropy", Y, P, sample_weight=weight)
    found = lb.sparse_categorical_crossentropy(Y, pred, sample_weight=column(weight))
    np.testing.assert_array_equal(lib.b.to_numpy(found), expected)
    with pytest.raises(ValueError, match=r"^sample_weight misses a value at row 1, and what is missing is no number"):
        lb.sparse_categorical_crossentropy(Y, pred, sample_weight=column(weight, missing=1))


def series(library: str) -> Any:
    """What makes a column of numbers, of the dtypes that lack values too."""
    module = pytest.importorskip(library)
    return module, module.Series


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_columns_of_pandas_and_polars(lib, library) -> None:
    """Where they are installed."""
    module, make = series(library)
    pred = lib.array(P)
    nullable = {"dtype": "Int64"} if library == "pandas" else {}
    expected = lib.value_and_grad("sparse_categorical_crossentropy", Y, P)
    for labels in (make([0, 1, 1]), make([0, 1, 1], **nullable)):
        found = lb.value_and_grad(lb.sparse_categorical_crossentropy)(labels, pred)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(lib.b.to_numpy(one), other)
    with pytest.raises(ValueError, match=r"^y_true misses a value at row 1, "):
        lb.sparse_categorical_crossentropy(make([0, None, 1], **nullable), pred)
    with pytest.raises(TypeError, match=r"^y_true is a column of .*, which holds no real numbers"):
        lb.sparse_categorical_crossentropy(make(["a", "b", "c"]), pred)
    frame = module.DataFrame(np.eye(3)[Y])
    found = lb.categorical_crossentropy(frame, pred)
    np.testing.assert_array_equal(lib.b.to_numpy(found), lib.value("categorical_crossentropy", np.eye(3)[Y], P))
    if lib.b.name == "numpy":
        np.testing.assert_array_equal(lb.sparse_categorical_crossentropy(Y, module.DataFrame(P)), expected[0])


@pytest.mark.parametrize(("library", "make"), [("paddle", "to_tensor"), ("mlx.core", "array")])
def test_arrays_of_paddle_and_mlx(lib, library, make) -> None:
    """Where they are installed."""
    x = getattr(pytest.importorskip(library), make)(P)
    with pytest.raises(TypeError, match=f"y_pred is {library.partition('.')[0]}.*, which is no array of"):
        lb.sparse_categorical_crossentropy(Y, x)


# Byte orders.


def swapped(x: Any) -> Any:
    """The same numbers in the other byte order."""
    x = np.asarray(x)
    return x.astype(x.dtype.newbyteorder()) if x.dtype.kind in "fiu" and x.dtype.itemsize > 1 else x


CASES = {
    f"{case.loss}, {case.name}": case
    for case in cases()
    if case.dtype in ("float32", "float64") and case.name.startswith(("float", "mean by weight", "class and", "pos_"))
}
assert {case.loss for case in CASES.values()} == set(LOSSES)


@pytest.mark.parametrize("name", CASES)
def test_the_other_byte_order(lib, name) -> None:
    """Of targets, labels, weights, masks and what is one number a class; on NumPy of predictions too."""
    case = CASES[name]
    options = {key: x if np.ndim(x) == 0 else np.asarray(x) for key, x in case.options.items()}
    with lib.b.scope(case.dtype, "cpu"):
        pred = lib.b.place(case.y_pred, case.dtype, "cpu")
        loss = lb.value_and_grad(getattr(lb, case.loss))
        expected = [lib.b.to_numpy(x) for x in loss(case.y_true, pred, **options)]
        others = {key: x if np.ndim(x) == 0 else swapped(x) for key, x in options.items()}
        preds = [pred, swapped(case.y_pred)] if lib.b.name == "numpy" else [pred]
        for one in preds:
            for found, right in zip(loss(swapped(case.y_true), one, **others), expected, strict=True):
                np.testing.assert_array_equal(lib.b.to_numpy(found), right)


def test_labels_and_halves_of_the_other_byte_order(lib) -> None:
    expected = lib.value("sparse_categorical_crossentropy", Y, P)
    for dtype in (">i2", ">i4", ">i8", ">u2", "<i2", "<i4", "<i8", "<u2"):
        found = lb.sparse_categorical_crossentropy(Y.astype(dtype), lib.array(P))
        np.testing.assert_array_equal(lib.b.to_numpy(found), expected)
    with pytest.raises(ValueError, match="label 7 at index 2 is out of range"):
        lb.sparse_categorical_crossentropy(np.array([0, 1, 7], ">i4"), lib.array(P))
    half = P.astype(">f2")
    found = lb.categorical_crossentropy(half, lib.array(P))
    np.testing.assert_array_equal(
        lib.b.to_numpy(found), lib.b.to_numpy(lb.categorical_crossentropy(P.astype(np.float16), lib.array(P)))
    )


def test_predictions_of_the_other_byte_order_are_computed_in_their_precision() -> None:
    p = np.array([[0.3, 0.3, 0.4]])
    q = p + np.array([[1e-7, -1e-7, 0]])
    assert lb.kl_divergence(p.astype(">f8"), q.astype(">f8")) == lb.kl_divergence(p, q)
    value, gradient = lb.value_and_grad(lb.sparse_categorical_crossentropy)(
        [0], np.array([[1e39, 1e39]], ">f8"), from_logits=True
    )
    np.testing.assert_allclose(value, np.log(2), rtol=1e-15)
    np.testing.assert_array_equal(gradient, [[-0.5, 0.5]])


# Weights of float64, which a mean by weight divides by.

LOGITS = np.array([[1, 2, 3], [3, 2, 1], [1, 1, 2]], np.float32)
WEIGHTS = {
    "small": [1e-50, 1e-50, 2e-50],
    "smallest": [3e-300, 2e-300, 1e-300],
    "large": [1e50, 1e50, 3e50],
    "largest": [1e300, 3e300, 2e300],
    "far apart": [1e-50, 1e50, 1e50],
    "with zeros": [1e-45, 0, 3e-45],
    "usual": [1, 2, 5],
    "none": [0, 0, 0],
}


def by_weight(lib, weight: Any, labels: Any = Y, **options: Any) -> list[np.ndarray]:
    loss = lb.value_and_grad(lb.sparse_categorical_crossentropy)
    found = loss(
        labels,
        lib.array(LOGITS),
        from_logits=True,
        reduction="mean_with_sample_weight",
        sample_weight=weight,
        **options,
    )
    return [lib.b.to_numpy(x) for x in found]


def exact(weight: Any, labels: Any = Y, **options: Any) -> list[np.ndarray]:
    found = reference.sparse_categorical_crossentropy(
        labels, LOGITS, from_logits=True, reduction="mean_with_sample_weight", sample_weight=weight, **options
    )
    return [found.value, found.gradient]


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_mean_by_weight_does_not_depend_on_the_weights_unit(lib, name) -> None:
    weight = np.array(WEIGHTS[name], np.float64)
    for given in (weight, weight.tolist()):
        for found, right in zip(by_weight(lib, given), exact(weight), strict=True):
            np.testing.assert_allclose(found, right, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("reduction", ["mean", "mean_with_sample_weight"])
def test_weights_and_a_normalizer_in_any_unit(lib, reduction) -> None:
    """Weights, class weights and both, of which only float64 has the values."""
    weight, of_classes = np.array([1.0, 2.0, 5.0]), np.array([1.0, 2.0, 3.0])
    for unit, of_class in [
        (1, 1),
        (1e-50, 1),
        (1, 1e-50),
        (1e50, 1),
        (1, 1e300),
        (1e-50, 1e-60),
        (1e50, 1e60),
        (1e-40, 1),
    ]:
        given = {
            "sample_weight": unit * weight,
            "class_weight": of_class * of_classes,
            "normalizer": 8.0 * unit * of_class,
        }
        one = {"sample_weight": weight, "class_weight": of_classes, "normalizer": 8.0}
        right = reference.sparse_categorical_crossentropy(Y, LOGITS, from_logits=True, reduction=reduction, **one)
        loss = lb.value_and_grad(lb.sparse_categorical_crossentropy)
        found = loss(Y, lib.array(LOGITS), from_logits=True, reduction=reduction, **given)
        for x, expected in zip(found, (right.value, right.gradient), strict=True):
            np.testing.assert_allclose(lib.b.to_numpy(x), expected, rtol=1e-6, atol=1e-8)
    for normalizer in (0.0, -0.0):
        found = by_weight(lib, 1e-50 * weight, normalizer=normalizer)
        assert found[0] == 0
        assert not found[1].any()


def test_of_masked_weights_the_others_decide(lib) -> None:
    mask = np.array([True, True, False])
    for rest in (np.nan, np.inf, 1e300, 1e-300, 0.0):
        for unit in (1.0, 1e-50, 1e50):
            weight = np.array([unit, 2 * unit, rest])
            if unit != 1 and rest in (1e300, 1e-300):
                continue
            right = exact(np.array([1.0, 2.0, 0.0]))
            for found, expected in zip(by_weight(lib, weight, mask=mask), right, strict=True):
                np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
            ignored = by_weight(lib, weight, np.array([0, 1, -1]), ignore_class=-1)
            np.testing.assert_allclose(ignored[0], right[0], rtol=1e-6)


def test_class_weights_in_any_unit(lib) -> None:
    right = exact(None, class_weight=np.array([1.0, 2.0, 3.0]))
    for unit in (1e-50, 1e-300, 1e50, 1e300):
        for found, expected in zip(by_weight(lib, None, class_weight=unit * np.array([1.0, 2, 3])), right, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


def test_compiled_weights_of_float64(lib) -> None:
    """Whose values are not known when the program is made."""
    weight = np.array(WEIGHTS["far apart"])
    for compiler in lib.b.compilers().values():
        with lib.b.scope("float64", "cpu"):
            step = compiler(
                lambda labels, logits, weight: lb.sparse_categorical_crossentropy(
                    labels, logits, from_logits=True, sample_weight=weight, reduction="mean_with_sample_weight"
                )
            )
            labels, logits = lib.array(Y.astype(np.int32)), lib.array(LOGITS)
            found = step(labels, logits, lib.b.place(weight, "float64", "cpu"))
            np.testing.assert_allclose(lib.b.to_numpy(found), exact(weight)[0], rtol=1e-6)


def test_weights_that_float32_has_keep_every_bit(lib) -> None:
    weight = np.array([0.5, 3.0, 0.1], np.float64)
    for found, right in zip(by_weight(lib, weight), by_weight(lib, weight.astype(np.float32)), strict=True):
        np.testing.assert_array_equal(found, right)
