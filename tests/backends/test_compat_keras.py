"""lossbridge.compat.keras on every backend, beside Keras' own losses (of whichever backend Keras runs on here)."""

from __future__ import annotations

import doctest
import functools
import inspect
import json
import pickle
import subprocess
import sys

import keras
import numpy as np
import peers
import pytest
from keras.src.backend.common.masking import set_keras_mask

from lossbridge import reference
from lossbridge.compat import keras as compat

# What Keras has since 3.16.
NEW = "SparseCategoricalFocalCrossentropy"
SMOOTHS_LABELS = "label_smoothing" in inspect.signature(keras.losses.SparseCategoricalCrossentropy).parameters
CLASSES = [name for name in compat.__all__ if name[0].isupper()]
FUNCTIONS = [name for name in compat.__all__ if name[0].islower()]
OF_CLASS = {name: getattr(compat, name)().name for name in CLASSES}
ROWS, STEPS, C = 4, 3, 5
REDUCTIONS = ["sum_over_batch_size", "mean", "sum", "mean_with_sample_weight", "none", None]

classes = pytest.mark.parametrize("name", CLASSES)


def takes(name, option) -> bool:
    return option in inspect.signature(getattr(compat, name)).parameters


def problem(name, *, seed=0, shape=(ROWS, STEPS, C), axis=-1, from_logits=False):
    """y_true and y_pred in NumPy."""
    rng = np.random.default_rng(seed)
    z, z_true = 2 * rng.normal(size=(2, *shape))
    if "inary" in name:
        squash = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    else:
        squash = lambda x: np.exp(x) / np.exp(x).sum(axis, keepdims=True)  # noqa: E731
    labels = rng.integers(0, shape[axis], np.delete(shape, axis)).astype(np.int32)
    y_pred = (z if from_logits else squash(z)).astype(np.float32)
    return (labels if "parse" in name else squash(z_true).astype(np.float32)), y_pred


def changed_options(name):
    """Every argument of a constructor with a value that is not its default."""
    values = {
        "from_logits": True,
        "label_smoothing": 0.1,
        "axis": 1,
        "reduction": "sum",
        "name": "other",
        "dtype": "float16",
        "ignore_class": 2,
        "alpha": 0.4 if name == "BinaryFocalCrossentropy" else [0.1, 2.0, 3.0, 0.7, 1.0],
        "gamma": 1.5,
        "apply_class_balancing": True,
    }
    parameters = inspect.signature(getattr(compat, name)).parameters
    assert all(values[key] != parameter.default for key, parameter in parameters.items())
    return {key: values[key] for key in parameters}


def number(lib, x):
    return lib.b.to_numpy(x)


def of_keras(name, y_true, y_pred, sample_weight=None, mask=None, **options):
    """Keras' own class, in NumPy; where Keras is too old for it, the one of distributions."""
    if name == NEW and not hasattr(keras.losses, NEW):
        name, ignored = "CategoricalFocalCrossentropy", options.pop("ignore_class", None)
        axis, keepdims = options.get("axis", -1), np.ndim(y_true) == np.ndim(y_pred)
        y_true = (y_true[:, 0] if keepdims else y_true).astype(int)
        if ignored is not None:
            mask = (y_true != ignored) & (True if mask is None else mask)
        y_true = np.moveaxis(np.eye(np.shape(y_pred)[axis], dtype=np.float32)[y_true], -1, axis)
    if name == "SparseCategoricalCrossentropy" and not SMOOTHS_LABELS and options.get("label_smoothing") == 0:
        del options["label_smoothing"]
    if name == "SparseCategoricalCrossentropy" and not SMOOTHS_LABELS and "label_smoothing" in options:
        assert options.pop("ignore_class", None) is None
        name, y_true = "CategoricalCrossentropy", np.eye(np.shape(y_pred)[-1], dtype=np.float32)[y_true]
    y_pred = keras.ops.convert_to_tensor(y_pred)
    if mask is not None:
        set_keras_mask(y_pred, keras.ops.convert_to_tensor(mask))
    weight = None if sample_weight is None else keras.ops.convert_to_tensor(sample_weight)
    value = getattr(keras.losses, name)(**options)(keras.ops.convert_to_tensor(y_true), y_pred, weight)
    return keras.ops.convert_to_numpy(value)


def of_ours(lib, name, y_true, y_pred, sample_weight=None, mask=None, **options):
    arrays = [None if x is None else lib.array(x) for x in (y_true, y_pred, sample_weight)]
    mask = None if mask is None else lib.array(mask)
    return number(lib, getattr(compat, name)(**options)(*arrays, mask=mask))


# As in Keras.


@pytest.mark.parametrize("name", compat.__all__)
def test_arguments_are_keras_own(name) -> None:
    def arguments(x):
        return [(p.name, p.kind, p.default) for p in inspect.signature(x).parameters.values()]

    if not hasattr(keras.losses, name):
        assert name in (NEW, "sparse_categorical_focal_crossentropy")
        return
    ours = arguments(getattr(compat, name))
    if "sparse_categorical_crossentropy" in (name, OF_CLASS.get(name)) and not SMOOTHS_LABELS:
        ours = [argument for argument in ours if argument[0] != "label_smoothing"]
    assert ours == arguments(getattr(keras.losses, name))
    if name in CLASSES:
        ours, theirs = arguments(getattr(compat, name).__call__), arguments(getattr(keras.losses, name).__call__)
        assert ours[:-1] == theirs
        assert ours[-1] == ("mask", inspect.Parameter.KEYWORD_ONLY, None)
        assert arguments(getattr(compat, name).call) == arguments(getattr(keras.losses, name).call)


@classes
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weight", [None, (ROWS, STEPS), (ROWS, STEPS, 1), (ROWS, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_reductions_are_keras(lib, name, reduction, weight, masked) -> None:
    rng = np.random.default_rng(1)
    y_true, y_pred = problem(name)
    if weight is not None:
        weight = rng.uniform(0.5, 2, weight).astype(np.float32)
    mask = rng.random((ROWS, STEPS)) < 0.7 if masked else None
    found = of_ours(lib, name, y_true, y_pred, weight, mask, reduction=reduction)
    if weight is not None and weight.shape == (
        ROWS,
        1,
    ):  # Keras counts it once a row, on PyTorch it raises beside a mask
        weight = np.repeat(weight, STEPS, 1)
    expected = of_keras(name, y_true, y_pred, weight, mask, reduction=reduction)
    np.testing.assert_allclose(found, expected, rtol=2e-6)


@classes
@pytest.mark.parametrize("option", ["from_logits", "label_smoothing", "axis", "ignore_class", "alpha", "gamma", "both"])
def test_options_are_keras(lib, name, option) -> None:
    options = changed_options(name)
    if option == "both":
        options = {key: options[key] for key in ("alpha", "apply_class_balancing") if key in options}
    else:
        options = {option: options[option]} if option in options else {}
    axis = options.get("axis", -1)
    y_true, y_pred = problem(name, shape=(ROWS, C, STEPS) if axis == 1 else (ROWS, STEPS, C), axis=axis)
    found = of_ours(lib, name, y_true, y_pred, **options)
    if "Sparse" in name and axis == 1:  # in Keras on PyTorch alone
        y_pred = np.moveaxis(y_pred, 1, -1)
        options = {}
    np.testing.assert_allclose(found, of_keras(name, y_true, y_pred, **options), rtol=2e-6)


@classes
def test_ranks_are_aligned_as_keras_aligns_them(lib, name) -> None:
    y_true, y_pred = problem(name, shape=(ROWS, C))
    weight = np.random.default_rng(2).uniform(0.5, 2, (ROWS, 1)).astype(np.float32)
    cases = [(y_true, y_pred, weight), (y_true, y_pred, weight[:, 0])]
    if "Sparse" in name:
        cases.append((y_true[:, None], y_pred, weight))
        cases.append((y_true.astype(np.float32)[:, None], y_pred, weight))
    if "Binary" in name:
        column, vector = y_true[:, :1], y_pred[:, 0]
        cases += [(column, vector, weight), (vector, column, weight[:, 0])]
    if "Sparse" not in name:
        cube, other = problem(name, shape=(2, 3, C))
        cases += [(cube, other[..., None], None), (cube[..., None], other, None)]
    for case in cases:
        np.testing.assert_allclose(of_ours(lib, name, *case), of_keras(name, *case), rtol=2e-6)
        value, gradient = lib.b.value_and_grad(
            lambda p, t=case[0]: getattr(compat, name)()(lib.array(t), p), lib.array(case[1])
        )
        assert number(lib, gradient).shape == case[1].shape
        np.testing.assert_allclose(number(lib, value), of_keras(name, *case[:2]), rtol=2e-6)


def test_weights_of_one_column_leave_the_shape(lib) -> None:
    y_true, y_pred = problem("KLDivergence", shape=(ROWS, C))
    assert of_ours(lib, "KLDivergence", y_true, y_pred, np.ones((ROWS, 1)), reduction="none").shape == (ROWS,)


@pytest.mark.parametrize("shape", [(0, C), (0, STEPS, C)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@classes
def test_an_empty_batch(lib, name, reduction, shape) -> None:
    y_true, y_pred = problem(name, shape=shape)
    for weight in (None, np.ones(shape[:-1])):
        found = of_ours(lib, name, y_true, y_pred, weight, reduction=reduction)
        np.testing.assert_array_equal(found, np.zeros(shape[:-1] if reduction in ("none", None) else ()))


# A class and its function.


@classes
def test_a_class_is_its_function(lib, name) -> None:
    options = changed_options(name)
    for removed in ("reduction", "name", "dtype"):
        del options[removed]
    y_true, y_pred = map(lib.array, problem(name, shape=(ROWS, C, STEPS), axis=1, from_logits=True))
    function = functools.partial(getattr(compat, OF_CLASS[name]), **options)
    samples = function(y_true, y_pred)
    for loss in (getattr(compat, name)(**options, reduction=reduction) for reduction in ("none", None)):
        np.testing.assert_array_equal(number(lib, loss(y_true, y_pred)), number(lib, samples))
        np.testing.assert_array_equal(number(lib, loss.call(y_true, y_pred)), number(lib, samples))
    mean, count = getattr(compat, name)(**options)(y_true, y_pred), number(lib, samples).size
    if "Sparse" in name:
        count = (number(lib, y_true) != 2).sum()  # the function's ignored losses are 0, the mean leaves them out
    np.testing.assert_allclose(number(lib, mean), number(lib, samples).sum() / count, rtol=2e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_keras(lib, name) -> None:
    """Keras' own functions, of positional options."""
    values = {"from_logits": True, "label_smoothing": 0.1, "alpha": 0.4, "gamma": 3.0, "apply_class_balancing": True}
    parameters = list(inspect.signature(getattr(compat, name)).parameters.values())[2:]
    y_true, y_pred = problem(name, from_logits=takes(name, "from_logits"))
    for options in ([p.default for p in parameters], [values.get(p.name, p.default) for p in parameters]):
        logits = dict(zip([p.name for p in parameters], options, strict=True)).get("from_logits")
        pred = y_pred if logits or not takes(name, "from_logits") else problem(name)[1]
        if not hasattr(keras.losses, name) or (name == "sparse_categorical_crossentropy" and not SMOOTHS_LABELS):
            cls = next(cls for cls in CLASSES if OF_CLASS[cls] == name)
            named = dict(zip([p.name for p in parameters], options, strict=True))
            expected = of_keras(cls, y_true, pred, reduction="none", **named)
        else:
            expected = getattr(keras.losses, name)(*map(keras.ops.convert_to_tensor, (y_true, pred)), *options)
        found = getattr(compat, name)(lib.array(y_true), lib.array(pred), *options)
        assert lib.b.dtype(found) == "float32"
        np.testing.assert_allclose(number(lib, found), keras.ops.convert_to_numpy(expected), rtol=1e-5, atol=1e-7)


def test_sparse_labels_of_any_axis(lib) -> None:
    y_true, y_pred = problem("sparse", shape=(ROWS, C, STEPS), axis=1)
    dense = np.moveaxis(np.eye(C, dtype=np.float32)[y_true], -1, 1)
    expected = number(lib, compat.categorical_crossentropy(lib.array(dense), lib.array(y_pred), axis=1))
    for labels in (y_true, y_true[:, None], y_true.astype(np.float32)):
        found = compat.sparse_categorical_crossentropy(lib.array(labels), lib.array(y_pred), axis=1)
        np.testing.assert_allclose(number(lib, found), expected, rtol=2e-6)


# Masks, and what is left out.


@classes
def test_the_mask_that_keras_layers_attach(lib, name) -> None:
    y_true, y_pred = problem(name)
    mask = np.random.default_rng(3).random((ROWS, STEPS)) < 0.6
    y_pred[~mask] = np.nan
    expected = of_ours(lib, name, y_true, y_pred, mask=mask)
    assert np.isfinite(expected)
    if lib.b.name == "numpy":  # its arrays take no attributes
        return
    attached = lib.array(y_pred)
    set_keras_mask(attached, lib.array(mask))
    loss = getattr(compat, name)()
    assert number(lib, loss(lib.array(y_true), attached)) == expected
    one = np.zeros_like(mask)
    one[mask.nonzero()[0][0], mask.nonzero()[1][0]] = True
    given = loss(lib.array(y_true), attached, mask=lib.array(one))  # in place of the attached one
    assert number(lib, given) == of_ours(lib, name, y_true, y_pred, mask=one)


@pytest.mark.parametrize(
    ("name", "out"),
    [(name, out) for name in CLASSES for out in ("mask", "weight")] + [("SparseCategoricalCrossentropy", "ignored")],
)
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_counts_nothing_may_be_nan(lib, name, out, wrong) -> None:
    y_true, y_pred = problem(name, shape=(ROWS, C))
    kept = np.array([True, False, True, True])
    y_pred[1] = wrong
    options, weight, mask = {}, None, None
    if out == "ignored":
        y_true[1] = -1
        options = {"ignore_class": -1}
    elif out == "weight":
        weight = lib.array(kept.astype(np.float32))
    else:
        mask = lib.array(kept[:, None])
    loss = getattr(compat, name)(**options)
    value, gradient = lib.b.value_and_grad(lambda p: loss(lib.array(y_true), p, weight, mask=mask), lib.array(y_pred))
    few, slope = lib.b.value_and_grad(
        lambda p: getattr(compat, name)()(lib.array(y_true[kept]), p), lib.array(y_pred[kept])
    )
    share = 0.75 if out == "weight" else 1.0  # what weighs 0 is counted, what is masked is not
    np.testing.assert_allclose(number(lib, value), share * number(lib, few), rtol=2e-6)
    np.testing.assert_allclose(number(lib, gradient)[kept], share * number(lib, slope), rtol=2e-6, atol=2e-7)
    assert not number(lib, gradient)[1].any()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_all_ignored(lib, reduction) -> None:
    y_true, y_pred = problem("sparse", shape=(ROWS, C))
    loss = compat.SparseCategoricalCrossentropy(ignore_class=-1, reduction=reduction)
    value, gradient = lib.b.value_and_grad(lambda p: loss(lib.array(0 * y_true - 1), p), lib.array(y_pred))
    assert not number(lib, value).any()
    assert not number(lib, gradient).any()
    assert number(lib, value).shape == ((ROWS,) if reduction in ("none", None) else ())


@classes
def test_no_argument_is_changed(lib, name) -> None:
    arrays = [lib.array(x) for x in (*problem(name, shape=(ROWS, C)), np.random.default_rng(4).uniform(0.5, 2, ROWS))]
    mask = lib.array([True, False, True, True])
    before = [number(lib, x).copy() for x in (*arrays, mask)]
    loss = getattr(compat, name)()
    assert len({float(loss(*arrays, mask=mask)) for _ in range(3)}) == 1
    for x, was in zip((*arrays, mask), before, strict=True):
        np.testing.assert_array_equal(number(lib, x), was)


# Gradients, precision, compilation.


def slope(lib, name, y_true, y_pred, **options):
    function = getattr(compat, name)
    _, gradient = lib.b.value_and_grad(lambda p: function(lib.array(y_true), p, **options), lib.array(y_pred))
    return number(lib, gradient)


def test_gradients_at_the_boundaries(lib) -> None:
    low = np.float32([[1e-7]])  # the bound of clipping itself: that of the inside
    np.testing.assert_allclose(slope(lib, "binary_crossentropy", [[1.0]], low), [[-1e7]], rtol=1e-6)
    found = slope(lib, "categorical_crossentropy", [[1.0, 0.0]], np.float32([[1e-7, 1 - 1e-7]]))
    np.testing.assert_allclose(found, [[-1e7, 1]], rtol=1e-6)
    found = slope(lib, "categorical_crossentropy", [[1.0, 0, 0]], np.float32([[0.7, 0.2, 0.1]]))
    np.testing.assert_allclose(found, [[-0.3 / 0.7, 1, 1]], rtol=1e-6)
    assert not slope(lib, "categorical_crossentropy", [[1.0, 0]], np.float32([[0, 1]])).any()  # clipped
    logits = np.float32([[0, -np.inf]])
    assert not slope(lib, "categorical_crossentropy", [[1.0, 0]], logits, from_logits=True).any()
    for name in ("binary_focal_crossentropy", "categorical_focal_crossentropy"):
        certain = np.float32([[1, 0]])  # in Keras NaN
        assert np.isfinite(slope(lib, name, [[1.0, 0.0]], certain, gamma=0.5)).all()


@pytest.mark.parametrize(
    ("name", "options"),
    peers.to_compile(
        [
            (name, {"from_logits": True} if logits else {})
            for name in CLASSES
            for logits in (False, True)
            if not logits or takes(name, "from_logits")
        ]
    ),
)
def test_compiled_equals_eager(lib, name, options) -> None:
    y_true, y_pred = problem(name, from_logits="from_logits" in options)
    rng = np.random.default_rng(5)
    weight, mask = rng.uniform(0.5, 2, (ROWS, STEPS, 1)), rng.random((ROWS, STEPS)) < 0.7
    y_pred[~mask] = np.nan
    arrays = [lib.array(x) for x in (y_true, y_pred, weight, mask)]
    loss = getattr(compat, name)(**options)
    call = lambda t, p, w, m: loss(t, p, w, mask=m)  # noqa: E731
    expected = number(lib, call(*arrays))
    for compile in lib.b.compilers().values():
        np.testing.assert_allclose(number(lib, compile(call)(*arrays)), expected, rtol=1e-6)


def test_compiled_functions_and_attached_masks(lib) -> None:
    y_true, y_pred = map(lib.array, problem("sparse", shape=(ROWS, C, STEPS), axis=1))
    function = functools.partial(compat.sparse_categorical_crossentropy, ignore_class=2, axis=1)
    labels = lib.array(number(lib, y_true).astype(np.float32))
    masked = lib.array(number(lib, y_pred))
    if lib.b.name != "numpy":
        set_keras_mask(masked, lib.array(number(lib, y_true) != 2))
    loss = compat.SparseCategoricalCrossentropy(axis=1)
    for compile in lib.b.compilers().values():
        for t in (y_true, labels):
            found, expected = compile(function)(t, y_pred), function(t, y_pred)
            np.testing.assert_allclose(number(lib, found), number(lib, expected), rtol=1e-6)
        if lib.b.name == "torch":  # elsewhere tracers are new arrays, without the attribute
            found, expected = compile(loss)(y_true, masked), loss(y_true, masked)
            np.testing.assert_allclose(number(lib, found), number(lib, expected), rtol=1e-6)


@classes
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes(lib, name, dtype) -> None:
    """A function works in float64 for float64 alone, a class in its own dtype, which its result has as in Keras."""
    y_true, y_pred = problem(name, shape=(ROWS, C))
    compute = {"float64": "float64"}.get(dtype, "float32")
    with lib.b.scope(dtype, "cpu"):
        target, pred = lib.array(y_true), lib.array(y_pred, dtype)
        samples = getattr(compat, OF_CLASS[name])(target, pred)
        assert lib.b.dtype(samples) == compute
        assert lib.b.dtype(getattr(compat, name)().call(target, pred)) == compute
        value = getattr(compat, name)()(target, pred)
        assert lib.b.dtype(value) == "float32"
        loss = getattr(compat, name)(dtype=dtype)
        assert lib.b.dtype(loss(target, lib.array(y_pred, "float32"))) == dtype
        assert loss.dtype == dtype
        np.testing.assert_allclose(number(lib, value), number(lib, samples).mean(), rtol=1e-6)
        rounded = number(lib, loss(target, lib.array(y_pred, "float32"))).astype(np.float32)
        exact = lib.b.to_numpy(lib.b.place(number(lib, samples).mean(), dtype, "cpu"))
        np.testing.assert_allclose(rounded, exact, rtol={"float16": 1e-3, "bfloat16": 8e-3}.get(dtype, 1e-6))


@classes
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("reduction", ["none", "sum_over_batch_size"])
def test_results_have_the_dtype_of_keras(lib, name, dtype, reduction) -> None:
    y_true, y_pred = problem(name)
    options = {"dtype": dtype, "reduction": reduction}
    loss = getattr(compat, name)(**options)
    value, gradient = lib.b.value_and_grad(lambda p: loss(lib.array(y_true), p), lib.array(y_pred))
    assert lib.b.dtype(value) == dtype
    assert lib.b.dtype(gradient) == "float32"  # of its input, and with all its digits
    wide = getattr(compat, name)(reduction=reduction)
    _, exact = lib.b.value_and_grad(lambda p: wide(lib.array(y_true), p), lib.array(y_pred))
    np.testing.assert_allclose(number(lib, gradient), number(lib, exact), rtol=0.05, atol=0.02)
    if hasattr(keras.losses, name):
        own = getattr(keras.losses, name)(**options)(*map(keras.ops.convert_to_tensor, (y_true, y_pred)))
        assert keras.backend.standardize_dtype(own.dtype) == dtype


def test_float64_where_there_is_none(lib) -> None:
    """JAX has no float64 by default: the widest it has is taken, without a warning."""
    y_true, y_pred = map(lib.array, problem("kl"))
    found = compat.KLDivergence(dtype="float64")(y_true, y_pred)
    assert lib.b.dtype(found) == lib.b.widest(y_pred)


def test_labels_are_never_rounded(lib) -> None:
    logits = np.zeros((1, 300), np.float32)
    logits[0, 257] = 5
    exact = reference.sparse_categorical_crossentropy([257], logits, from_logits=True).value
    loss = compat.SparseCategoricalCrossentropy(from_logits=True, dtype="bfloat16")
    for label in (np.int32([257]), np.float32([257])):
        assert float(loss(lib.array(label), lib.array(logits))) == pytest.approx(exact, rel=4e-3)  # bfloat16's
        samples = loss.call(lib.array(label), lib.array(logits))
        assert float(samples[0]) == pytest.approx(exact, rel=1e-6)


def test_lists_and_numbers_are_taken(lib) -> None:
    y_true, y_pred = problem("categorical", shape=(ROWS, C))
    for name in ("categorical_crossentropy", "kl_divergence"):
        expected = getattr(compat, name)(lib.array(y_true), lib.array(y_pred))
        found = getattr(compat, name)(y_true.tolist(), lib.array(y_pred))
        np.testing.assert_array_equal(number(lib, found), number(lib, expected))
    loss = compat.CategoricalCrossentropy()
    twice = loss(y_true.tolist(), lib.array(y_pred), 2.0)
    assert float(twice) == pytest.approx(2 * float(loss(lib.array(y_true), lib.array(y_pred))))
    weighed = loss(y_true, lib.array(y_pred), [[2.0], [2.0], [2.0], [2.0]], mask=[True, True, True, True])
    assert float(weighed) == float(twice)


# Options.


@classes
@pytest.mark.parametrize("changed", [False, True])
def test_configs_are_interchangeable_with_keras(name, changed) -> None:
    options = changed_options(name) if changed else {}
    ours = getattr(compat, name)(**options)
    config = ours.get_config()
    # A Keras before 3.16 knows no label_smoothing of labels: a config leaves it out where it is 0.
    left_out = {"label_smoothing"} if name == "SparseCategoricalCrossentropy" and not changed else set()
    assert set(config) == set(inspect.signature(getattr(compat, name)).parameters) - left_out
    assert options.items() <= config.items()
    assert json.loads(json.dumps(config)) == config
    assert type(ours).from_config(config).get_config() == config

    if name == NEW and not hasattr(keras.losses, NEW):
        return
    if changed and name == "SparseCategoricalCrossentropy" and not SMOOTHS_LABELS:
        assert config.pop("label_smoothing") == options.pop("label_smoothing")
        ours = getattr(compat, name)(**options)
    theirs = getattr(keras.losses, name).from_config(config)
    assert (theirs.name, theirs.reduction, theirs.dtype) == (ours.name, ours.reduction, ours.dtype)
    defaults = dict.fromkeys(left_out if SMOOTHS_LABELS else (), 0.0)
    assert theirs._fn_kwargs == defaults | {k: x for k, x in config.items() if k not in ("name", "reduction", "dtype")}
    # Keras' own leave out dtype, and axis of the sparse one.
    theirs = getattr(keras.losses, name)(**options)
    kept = theirs.get_config()
    assert set(config) - set(kept) <= {"dtype", "axis"}
    assert type(ours).from_config(kept).get_config() == config | {
        key: x for key, x in getattr(compat, name)().get_config().items() if key not in kept
    }


def test_configs_hold_plain_numbers(lib) -> None:
    alpha = lib.array(np.float32([1, 2]))
    config = compat.CategoricalFocalCrossentropy(alpha=alpha, gamma=np.float32(0.5), axis=np.int64(0)).get_config()
    assert config["alpha"] == [1.0, 2.0]
    assert [type(config[key]) for key in ("alpha", "gamma", "axis")] == [list, float, int]


@classes
def test_pickle_and_repr(name) -> None:
    loss = getattr(compat, name)(**changed_options(name))
    assert pickle.loads(pickle.dumps(loss)).get_config() == loss.get_config()
    assert eval(repr(loss), vars(compat)).get_config() == loss.get_config()


def test_names_and_dtypes() -> None:
    assert compat.KLDivergence(name=None).name == keras.losses.KLDivergence(name=None).name == "kl_divergence"
    assert compat.KLDivergence().dtype == keras.losses.KLDivergence().dtype == "float32"
    for dtype in ("mixed_bfloat16", keras.DTypePolicy("mixed_bfloat16"), keras.DTypePolicy("bfloat16")):
        assert compat.KLDivergence(dtype=dtype).dtype == keras.losses.KLDivergence(dtype=dtype).dtype == "bfloat16"


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"reduction": "batchmean"}, ValueError, "'batchmean' is PyTorch's name; here it is 'sum_over_batch_size'"),
        ({"reduction": "average"}, ValueError, "unknown reduction 'average'; use one of"),
        ({"from_logits": 1}, TypeError, "from_logits is 1; pass True or False"),
        ({"label_smoothing": 2.0}, ValueError, "label_smoothing is 2.0; pass a number in"),
        ({"axis": None}, TypeError, "axis is NoneType; pass one integer"),
        ({"dtype": "int32"}, ValueError, "dtype is int32; pass 'float16', 'bfloat16', 'float32' or 'float64'"),
        ({"dtype": np.float32}, ValueError, "dtype is <class 'numpy.float32'>; pass 'float16'"),
        ({"alpha": None}, TypeError, "alpha is None; pass one number"),
        (
            {"alpha": {0: 1.0}},
            TypeError,
            "alpha is builtins.dict, which is no array of .*; pass an array, a list or a number",
        ),
        ({"gamma": -1.0}, ValueError, r"gamma is -1.0; pass a number in \[0, 1e15\]"),
    ],
)
def test_options_are_refused_when_a_loss_is_made(options, error, words) -> None:
    with pytest.raises(error, match=words):
        compat.CategoricalFocalCrossentropy(**options)


def test_options_of_one_loss_are_refused() -> None:
    with pytest.raises(TypeError, match="ignore_class is float; pass an integer label or None"):
        compat.SparseCategoricalCrossentropy(ignore_class=1.0)
    with pytest.raises(ValueError, match="alpha is 2; pass a number in"):
        compat.BinaryFocalCrossentropy(alpha=2)
    with pytest.raises(TypeError, match="Mine overrides call, which __call__ does not go through; override __call__"):
        type("Mine", (compat.KLDivergence,), {"call": lambda self, y_true, y_pred: y_pred})


# Arrays that do not fit.


def test_shapes_that_do_not_fit(lib) -> None:
    p = np.full((ROWS, C), 0.2, np.float32)
    with pytest.raises(ValueError, match=r"y_true has shape \(5,\) and y_pred \(4, 5\), and nothing is broadcast"):
        compat.kl_divergence(lib.array(p[0]), lib.array(p))
    with pytest.raises(ValueError, match=r"y_true has shape \(4,\) and y_pred \(4, 1\).*reshape one to the other"):
        compat.binary_crossentropy(lib.array(p[:, 0]), lib.array(p[:, :1]))
    with pytest.raises(ValueError, match="for integer class labels use sparse_categorical_crossentropy"):
        compat.CategoricalCrossentropy()(lib.array([1, 2, 3, 4]), lib.array(p))
    with pytest.raises(ValueError, match=r"sample_weight has shape \(5,\) and the per-sample losses \(4,\); give it"):
        compat.BinaryCrossentropy()(lib.array(p), lib.array(p), lib.array(p[0]))
    with pytest.raises(ValueError, match=r"mask has shape \(4, 5\) and the per-sample losses \(4,\); give it"):
        compat.BinaryCrossentropy()(lib.array(p), lib.array(p), mask=lib.array(p))
    with pytest.raises(ValueError, match="axis 2 is out of range"):
        compat.sparse_categorical_crossentropy(lib.array([1, 2, 3, 4]), lib.array(p), axis=2)


@classes
@pytest.mark.filterwarnings("ignore:.*num_classes > 1:SyntaxWarning", "ignore:You are using a softmax:UserWarning")
@pytest.mark.parametrize("from_logits", [False, True])
def test_one_class(lib, name, from_logits) -> None:
    options = {"from_logits": True} if from_logits and takes(name, "from_logits") else {}
    rng = np.random.default_rng(7)
    y_true, y_pred = rng.uniform(0.1, 0.9, (2, ROWS, STEPS, 1)).astype(np.float32)
    if "Sparse" in name:
        y_true = np.zeros((ROWS, STEPS), np.int32)
    loss = getattr(compat, name)(**options, reduction="none")
    value, gradient = lib.b.value_and_grad(lambda p: loss(lib.array(y_true), p), lib.array(y_pred))
    if "Sparse" not in name:  # Keras takes the axis of labels for it
        expected = of_keras(name, y_true, y_pred, reduction="none", **options)
        np.testing.assert_allclose(number(lib, value), expected, rtol=2e-6, atol=2e-7)
    if name == "KLDivergence":
        np.testing.assert_allclose(number(lib, gradient), -y_true / y_pred, rtol=2e-6)
    elif "Categorical" in name:  # its share is 1, whatever it is
        assert not number(lib, gradient).any()


def test_a_mask_that_nobody_gave(lib) -> None:
    p = lib.array(np.full((ROWS, STEPS, 1), 0.5))
    if lib.b.name == "numpy":  # its arrays take no attributes
        return
    set_keras_mask(p, lib.array(np.ones((ROWS, STEPS), bool)))
    words = r"the mask that Keras' layers attached to y_pred has shape \(4, 3\) and the per-sample losses \(4,\)"
    with pytest.raises(ValueError, match=words):
        compat.BinaryCrossentropy()(lib.array(np.ones((ROWS, STEPS))), p)
    assert float(compat.BinaryCrossentropy()(lib.array(np.ones((ROWS, STEPS, 1))), p)) == pytest.approx(np.log(2))


def test_smoothed_labels(lib) -> None:
    """As Keras 3.16 has them."""
    logits = lib.array(np.float32([[2, 1, 0.1], [0.5, 2.5, 0], [1, 1, 3]]))
    loss = compat.SparseCategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    assert float(loss(lib.array([0, 1, 1]), logits)) == pytest.approx(1.0111029, rel=1e-6)
    samples = compat.sparse_categorical_crossentropy(lib.array([0, 1, 1]), logits, True, label_smoothing=0.1)
    assert number(lib, samples).mean() == pytest.approx(1.0111029, rel=1e-6)


def test_logits_behind_tensorflows_softmax(lib) -> None:
    """As Keras on TensorFlow; elsewhere what an activation attaches is not read, as in Keras there."""
    if lib.b.name == "numpy":
        return
    for name, squash in {
        "categorical_crossentropy": keras.activations.softmax,
        "sparse_categorical_crossentropy": keras.activations.softmax,
        "categorical_focal_crossentropy": keras.activations.softmax,
        "binary_crossentropy": keras.activations.sigmoid,
        "binary_focal_crossentropy": keras.activations.sigmoid,
    }.items():
        y_true = lib.array([1] if "sparse" in name else np.float32([[0, 1]]))
        p = squash(lib.array(np.float32([[40, -40]])))
        found = getattr(compat, name)(y_true, p)
        expected = getattr(keras.losses, name)(y_true, p)
        np.testing.assert_allclose(number(lib, found), number(lib, expected), rtol=2e-6)


def test_what_is_no_array(lib) -> None:
    p = lib.array(np.full((ROWS, C), 0.2))
    with pytest.raises(TypeError, match=r"y_true is builtins.NoneType, which is no array"):
        compat.KLDivergence()(None, p)
    with pytest.raises(TypeError, match=r"sample_weight is builtins.object, which is no array.*; pass an array"):
        compat.KLDivergence()(p, p, object())
    with pytest.raises(TypeError, match=r"mask has dtype str.*, which holds no real numbers"):
        compat.KLDivergence()(p, p, mask="all")
    with pytest.raises(TypeError, match="axis is str; pass one integer"):
        compat.sparse_categorical_crossentropy([1], [[0.5, 0.5]], axis="last")


def test_labels_that_are_none(lib) -> None:
    p = lib.array(np.full((2, C), 0.2))
    loss = compat.sparse_categorical_crossentropy
    for labels in (np.int32([1, -1]), np.float32([1, -1])):
        with pytest.raises(ValueError, match=r"label -1 at index 1 is out of range: there are 5 classes, 0 to 4"):
            loss(lib.array(labels), p)
    for label in (3e9, np.inf, np.nan):
        with pytest.raises(ValueError, match="at index 1 is out of range: there are 5 classes"):
            loss(lib.array(np.float32([1, label])), p)
    with pytest.raises(ValueError, match=r"y_true holds fractions \(.* at index .*\), and class labels are integers"):
        loss(lib.array(np.float32([1, 0.5])), p)
    with pytest.raises(TypeError, match="y_true has dtype float16, and class labels are integers; convert them"):
        loss(lib.array(np.float16([1, 2])), p)
    for compile in lib.b.compilers().values():
        for labels in (np.int32([1, -1]), np.int32([1, C]), *(np.float32([1, x]) for x in (0.5, -1, C, 3e9, np.nan))):
            found = number(lib, compile(lambda t, p: loss(t, p))(lib.array(labels), p))
            assert np.isfinite(found).tolist() == [True, False]


# Documentation.


def test_examples_in_docstrings() -> None:
    failed, tried = doctest.testmod(compat)
    assert tried >= len(compat.__all__)
    assert failed == 0
    for name in compat.__all__:
        assert ">>>" in getattr(compat, name).__doc__
        assert "Source:" in getattr(compat, name).__doc__
        assert f"keras.losses.{name}" in getattr(compat, name).__doc__


def test_figures_in_docstrings(lib) -> None:
    def value(name, y_true, y_pred, **options):
        y_true = np.array(y_true, np.int32 if "parse" in name else np.float32)
        return float(getattr(compat, name)(lib.array(y_true), lib.array(np.float32(y_pred)), **options)[0])

    logits = {"from_logits": True}
    assert value("categorical_crossentropy", [[1, 0]], [[20, 0]], **logits) == pytest.approx(2.0612e-9, rel=1e-4)
    assert value("binary_crossentropy", [[0]], [[-20]], **logits) == pytest.approx(2.0612e-9, rel=1e-4)
    assert value("binary_crossentropy", [[0]], [[40]], **logits) == 40
    assert value("binary_focal_crossentropy", [[0]], [[40]], **logits) == 40
    assert value("categorical_focal_crossentropy", [[0, 1]], [[30, 0]], **logits) == 30 / 4
    near = value("kl_divergence", [[0.2, 0.3, 0.5]], [[0.2001, 0.2999, 0.5]])
    assert near == pytest.approx(5.66e-8, rel=1e-3)
    assert value("sparse_categorical_crossentropy", [0], [[3, 1]]) == pytest.approx(-np.log(0.75))
    half = np.float16([[1.0]])
    found = number(lib, compat.binary_crossentropy(lib.array(half), lib.array(half)))
    np.testing.assert_allclose(found, [1.1920929e-7], rtol=1e-6)


def test_it_needs_no_framework() -> None:
    program = "import sys, lossbridge.compat.keras; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"keras", "torch", "tensorflow", "jax"} & set(loaded)
