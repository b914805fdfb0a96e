"""lossbridge.keras: against Keras' own classes, and what Keras lacks. Training is in test_keras_fit.py."""

from __future__ import annotations

import doctest
import functools
import inspect

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from keras.src.backend.common.masking import set_keras_mask

import lossbridge as lb
import lossbridge.keras as lk
from lossbridge import reference
from lossbridge.compat.keras import SPARSE_FOCAL
from lossbridge.frameworks import FRAMEWORKS
from lossbridge.request import run

CLASSES = {name: getattr(lk, name) for name in lk.__all__ if issubclass(getattr(lk, name), keras.losses.Loss)}
OF_KERAS = [name for name in CLASSES if hasattr(keras.losses, name)]  # has a class of the same name
NEW = "SparseCategoricalFocalCrossentropy"  # of Keras since 3.16
FUNCTIONS = {name: CLASSES[name]()._loss.name for name in CLASSES}
ALL = pytest.mark.parametrize("name", CLASSES)

ROWS, STEPS, C = 4, 3, 5


def changed_options(name):
    """Every argument of a constructor with a value that is not its default."""
    values = {
        "from_logits": True,
        "label_smoothing": 0.1,
        "axis": 1,
        "reduction": "mean_with_sample_weight",
        "name": "other",
        "dtype": "float16",
        "epsilon": 1e-3,
        "class_weight": [0.1, 2, 3, 0.7, 1],
        "pos_weight": [0.1, 2, 3, 0.7, 1],
        "normalizer": 7.0,
        "ignore_class": 2,
        "temperature": 3.0,
        "alpha": 0.4 if name == "BinaryFocalCrossentropy" else [0.1, 2, 3, 0.7, 1],
        "gamma": 1.5,
        "apply_class_balancing": True,
        "kind": "jensen_shannon",
        "beta": 0.3,
        "scale": "divergence",
    }
    parameters = inspect.signature(CLASSES[name]).parameters
    assert all(values[key] != parameter.default for key, parameter in parameters.items())
    return {key: values[key] for key in parameters}


def problem(name, rng, from_logits=True, shape=(ROWS, C), axis=-1):
    """y_true and y_pred for a loss, in NumPy."""
    z, z_true = 3 * rng.normal(size=(2, *shape)).astype(np.float32)
    if name in ("DistillationLoss", "Divergence"):
        return z_true, z
    binary = "Binary" in name
    squash = (lambda x: 1 / (1 + np.exp(-x))) if binary else (lambda x: softmax(x, axis))
    y_pred = z if from_logits else squash(z)
    if name.startswith("Sparse") or name == "LogLoss":
        y_true = rng.integers(0, shape[axis], np.delete(shape, axis)).astype(np.int32)
    else:
        y_true = z_true if name == "KLDivergence" and from_logits else squash(z_true)
    return y_true, y_pred.astype(np.float32)


def softmax(z, axis):
    e = np.exp(z - z.max(axis, keepdims=True))
    return (e / e.sum(axis, keepdims=True)).astype(np.float32)


def value_and_grad(lib, loss, y_true, y_pred, sample_weight=None, mask=None, **more):
    def masked(pred):
        if mask is not None:
            set_keras_mask(pred, lib.array(mask))
        return loss(lib.array(y_true), pred, None if sample_weight is None else lib.array(sample_weight), **more)

    value, gradient = lib.b.value_and_grad(masked, lib.array(y_pred))
    return lib.b.to_numpy(value), lib.b.to_numpy(gradient)


# As in Keras.


@pytest.mark.parametrize("name", OF_KERAS)
def test_arguments_are_keras_own_in_its_order(name) -> None:
    def positional(cls):
        return [(p.name, p.default) for p in inspect.signature(cls).parameters.values() if p.kind != p.KEYWORD_ONLY]

    ours, theirs = positional(CLASSES[name]), positional(getattr(keras.losses, name))
    if name == "SparseCategoricalCrossentropy" and ("label_smoothing", 0.0) not in theirs:  # which Keras has since 3.16
        ours.remove(("label_smoothing", 0.0))
    assert ours == theirs


@ALL
def test_docstrings_have_an_example_and_a_source(name) -> None:
    assert ">>>" in CLASSES[name].__doc__
    assert "Source:" in CLASSES[name].__doc__


def test_examples_in_docstrings() -> None:
    failed, tried = doctest.testmod(lk)
    assert tried > len(CLASSES)
    assert failed == 0


@st.composite
def batches(draw):
    """(class, its options, y_true, y_pred, sample_weight, mask), within what Keras computes as documented."""
    name = draw(st.sampled_from(OF_KERAS))
    takes = inspect.signature(getattr(keras.losses, name)).parameters
    options = {"reduction": draw(st.sampled_from(["sum_over_batch_size", "sum", "mean_with_sample_weight", "none"]))}
    shapes = [((ROWS, C), -1), ((ROWS, STEPS, C), -1)]
    if "axis" in takes and not name.startswith("Sparse"):  # Keras has that for sparse labels on PyTorch only
        shapes.append(((ROWS, C, STEPS), 1))
    shape, options["axis"] = draw(st.sampled_from(shapes))
    axis = options["axis"] if "axis" in takes else options.pop("axis")
    if "from_logits" in takes:
        options["from_logits"] = draw(st.booleans())
    if "label_smoothing" in takes and axis == -1:  # along other axes Keras counts the wrong classes
        options["label_smoothing"] = draw(st.sampled_from([0.0, 0.1]))
    if "alpha" in takes:
        options |= {"alpha": draw(st.sampled_from([0.25, 0.6])), "gamma": draw(st.sampled_from([0.0, 1.0, 2.0]))}
    if "apply_class_balancing" in takes:
        options["apply_class_balancing"] = draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    y_true, y_pred = problem(name, rng, options.get("from_logits", False), shape, axis)
    if "ignore_class" in takes and draw(st.booleans()):
        options["ignore_class"] = int(draw(st.sampled_from([-1, 2])))
        y_true[0] = options["ignore_class"]
    per_sample = np.delete(shape, axis)
    weight = rng.uniform(0.5, 2, per_sample).astype(np.float32) if draw(st.booleans()) else None
    mask = rng.random(per_sample) < 0.7 if draw(st.booleans()) else None
    return name, options, y_true, y_pred, weight, mask


@seed(1)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=batches())
def test_equals_keras_or_is_nearer_the_exact_value(lib, batch) -> None:
    name, options, y_true, y_pred, weight, mask = batch
    ours = value_and_grad(lib, CLASSES[name](**options), y_true, y_pred, weight, mask)
    theirs = value_and_grad(lib, getattr(keras.losses, name)(**options), y_true, y_pred, weight, mask)
    function = "categorical_focal_crossentropy" if name == NEW else FUNCTIONS[name]
    if name == NEW:
        kept = y_true != options.pop("ignore_class", None)
        mask = kept if mask is None else kept & mask
        y_true = np.eye(C)[y_true]
    truth = getattr(reference, function)(
        y_true, y_pred, **options, sample_weight=weight, mask=mask, precision="float32"
    )
    for found, keras_found, exact in zip(ours, theirs, (truth.value, truth.gradient), strict=True):
        size = np.abs(exact) if exact is truth.value else np.abs(exact).max()
        # Focal losses multiply several rounded factors, whose derivatives partly cancel for soft targets.
        ulps = 8 if "Focal" in name and exact is truth.gradient else 4
        tolerance = ulps * np.spacing(size.astype(np.float32))
        error, keras_error = np.abs(found - exact), np.abs(keras_found - exact)
        good = (np.abs(found - keras_found) <= tolerance) | (error <= np.maximum(keras_error, tolerance))
        assert good.all(), f"{(error / tolerance).max()} tolerances off, Keras {(keras_error / tolerance).max()}"


@pytest.mark.parametrize("name", OF_KERAS)
def test_ranks_are_aligned_as_keras_aligns_them(lib, name) -> None:
    rng = np.random.default_rng(2)
    y_true, y_pred = problem(name, rng, from_logits=False)
    weight = rng.uniform(0.5, 2, (ROWS, 1)).astype(np.float32)
    cases = [(y_true, y_pred, weight)]  # weights (N, 1) against losses (N,)
    if name.startswith("Sparse"):
        cases.append((y_true[:, None], y_pred, weight))
    if name.startswith("Binary"):
        column, vector = y_true[:, :1], y_pred[:, 0]
        cases += [(column, vector, weight), (vector, column, weight[:, 0])]
        cube = y_true.reshape(2, 2, C)
        cases += [(cube, y_pred.reshape(2, 2, C, 1), None), (cube[..., None], y_pred.reshape(2, 2, C), None)]
    for case in cases:
        ours = value_and_grad(lib, CLASSES[name](), *case)
        theirs = value_and_grad(lib, getattr(keras.losses, name)(), *case)
        for found, expected in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_nothing_else_is_broadcast(lib) -> None:
    p = np.full((ROWS, C), 0.5, np.float32)
    with pytest.raises(ValueError, match=r"y_true has shape \(4, 1\) and y_pred \(4, 5\)"):
        lk.BinaryCrossentropy()(lib.array(p[:, :1]), lib.array(p))
    with pytest.raises(ValueError, match="use sparse_categorical_crossentropy"):
        lk.CategoricalCrossentropy()(lib.array([1, 2, 3, 4]), lib.array(p))
    with pytest.raises(ValueError, match=r"sample_weight has shape \(5,\) and the per-sample losses \(4,\)"):
        lk.BinaryCrossentropy()(lib.array(p), lib.array(p), lib.array(p[0]))


def test_log_loss_takes_labels_and_outcomes(lib) -> None:
    p, t = np.float32([0.9, 0.2, 0.6]), np.float32([1, 0, 1])
    expected = lb.log_loss(t, p)
    for y_true, y_pred in [(t, p), (t[:, None], p), (t, p[:, None]), (t[:, None], p[:, None])]:
        for weight in (None, lib.array(np.ones(3)), lib.array(np.ones((3, 1)))):
            loss = lk.LogLoss()(lib.array(y_true), lib.array(y_pred), weight)
            np.testing.assert_allclose(lib.b.to_numpy(loss), expected, rtol=1e-6)
    rows = np.stack([1 - p, p], 1)
    for labels in (t.astype(np.int32), t.astype(np.int32)[:, None], t):
        np.testing.assert_allclose(
            lib.b.to_numpy(lk.LogLoss()(lib.array(labels), lib.array(rows))), expected, rtol=1e-6
        )


# Calls.


@ALL
def test_call_gives_per_sample_losses(lib, name) -> None:
    y_true, y_pred = map(lib.array, problem(name, np.random.default_rng(3), from_logits=False))
    per_sample = lib.b.to_numpy(CLASSES[name](normalizer=3).call(y_true, y_pred))
    assert per_sample.shape == (ROWS,)
    np.testing.assert_allclose(lib.b.to_numpy(CLASSES[name]()(y_true, y_pred)), per_sample.mean(), rtol=1e-5)


@ALL
def test_every_option_reaches_the_function(lib, name) -> None:
    """The class is the function with that option, and not without it."""
    rng = np.random.default_rng(4)
    for option, value in changed_options(name).items():
        if option in ("name", "dtype"):
            continue
        both = {"apply_class_balancing": True} if option == "alpha" and "Binary" in name else {}
        both |= {"kind": "jensen_shannon"} if option in ("beta", "scale") else {}
        y_true, y_pred = map(lib.array, problem(name, rng, from_logits=False, shape=(C, C, C)))  # any axis will do
        weight = lib.array(rng.uniform(0.5, 2, (C, C)))
        found = float(CLASSES[name](**both, **{option: value})(y_true, y_pred, weight))
        function = functools.partial(run, SPARSE_FOCAL) if name == NEW else getattr(lb, FUNCTIONS[name])
        assert found == float(function(y_true, y_pred, **both, **{option: value}, sample_weight=weight)), option
        assert found != float(CLASSES[name](**both)(y_true, y_pred, weight)), option


@ALL
def test_normalizer_of_the_call_wins(lib, name) -> None:
    y_true, y_pred = map(lib.array, problem(name, np.random.default_rng(5), from_logits=False))
    total = float(CLASSES[name](reduction="sum")(y_true, y_pred))
    loss = CLASSES[name](normalizer=8)
    assert float(loss(y_true, y_pred)) == pytest.approx(total / 8)
    assert float(loss(y_true, y_pred, normalizer=10)) == pytest.approx(total / 10)
    assert float(loss(y_true, y_pred, normalizer=lib.array(np.float32(16)))) == pytest.approx(total / 16)


@pytest.mark.filterwarnings("ignore:Converting a tensor")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_predictions_are_cast_to_the_dtype_of_the_loss(lib, dtype) -> None:
    y_true, y_pred = problem("SparseCategoricalCrossentropy", np.random.default_rng(6))
    loss = lk.SparseCategoricalCrossentropy(from_logits=True, dtype=dtype)
    found = lib.b.to_numpy(loss(lib.array(y_true), lib.array(y_pred)))
    rounded = lib.b.to_numpy(lib.b.cast(lib.b.cast(lib.array(y_pred), dtype), "float32"))
    exact = reference.sparse_categorical_crossentropy(y_true, rounded, from_logits=True).value
    np.testing.assert_allclose(found, exact, rtol=1e-6)
    assert found.dtype == np.float32


def test_large_labels_are_never_rounded(lib) -> None:
    """257 is no bfloat16; Keras casts labels to the dtype of the loss."""
    logits = np.zeros((1, 300), np.float32)
    logits[0, 257] = 5
    loss = lk.SparseCategoricalCrossentropy(from_logits=True, dtype="bfloat16")
    found = float(loss(lib.array([257]), lib.array(logits)))
    exact = reference.sparse_categorical_crossentropy([257], logits, from_logits=True).value
    assert found == pytest.approx(exact, rel=1e-5)


def test_float_labels_count_as_integers(lib) -> None:
    y_true, y_pred = problem("SparseCategoricalCrossentropy", np.random.default_rng(7))
    loss = lk.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    assert float(loss(lib.array(y_true.astype(np.float32)), lib.array(y_pred))) == float(
        loss(lib.array(y_true), lib.array(y_pred))
    )
    with pytest.raises(ValueError, match="y_true holds fractions"):
        loss(lib.array([0.5, 1, 2, 3]), lib.array(y_pred))
    for compile in lib.b.compilers().values():
        if lib.b.name != "torch":  # TensorFlow may have come into the process, and torch.compile would abort
            labels = lib.array(np.float32([0.5, 1, 2, 3]))
            assert np.isnan(lib.b.to_numpy(compile(lambda y, p: loss(y, p))(labels, lib.array(y_pred))))


@ALL
def test_no_argument_is_changed(lib, name) -> None:
    rng = np.random.default_rng(8)
    arrays = [lib.array(x) for x in (*problem(name, rng, from_logits=False), rng.uniform(0.5, 2, ROWS))]
    before = [lib.b.to_numpy(x).copy() for x in arrays]
    set_keras_mask(arrays[1], lib.array([True, False, True, True]))
    first = float(CLASSES[name]()(*arrays))
    assert float(CLASSES[name]()(*arrays)) == first
    for x, was in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(lib.b.to_numpy(x), was)


@ALL
@pytest.mark.parametrize("out", ["mask", "weight"])
def test_what_counts_nothing_may_be_nan(lib, name, out) -> None:
    y_true, y_pred = problem(name, np.random.default_rng(9), from_logits=False)
    y_pred[1] = np.nan
    kept = np.array([True, False, True, True])
    mask, weight = (kept, None) if out == "mask" else (None, kept.astype(np.float32))
    value, gradient = value_and_grad(lib, CLASSES[name](), y_true, y_pred, weight, mask)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert not gradient[1].any()


def test_mean_metric(lib) -> None:
    """Over batches, of weights and masks: Σ l·w·m / Σ w·m, where a mean of the loss object's means would be wrong."""
    rng = np.random.default_rng(10)
    metric = keras.metrics.MeanMetricWrapper(lk.SparseCategoricalCrossentropy(from_logits=True, reduction="none"))
    total = count = 0.0
    for rows in (4, 7, 1):
        y_true, y_pred = problem("SparseCategoricalCrossentropy", rng, shape=(rows, STEPS, C))
        weight, mask = rng.uniform(0.5, 2, (rows, STEPS)).astype(np.float32), rng.random((rows, STEPS)) < 0.7
        per_sample = lb.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True, reduction="none")
        total, count = total + (per_sample * weight * mask).sum(), count + (weight * mask).sum()
        y_pred[~mask] = np.nan
        y_pred = lib.array(y_pred)
        set_keras_mask(y_pred, lib.array(mask))
        metric.update_state(lib.array(y_true), y_pred, lib.array(weight))
    assert float(metric.result()) == pytest.approx(total / count, rel=1e-5)


# Options.


@ALL
@pytest.mark.parametrize("changed", [False, True])
def test_config_keeps_every_argument(name, changed) -> None:
    options = changed_options(name) if changed else {}
    loss = CLASSES[name](**options)
    config = loss.get_config()
    assert set(config) == set(inspect.signature(CLASSES[name]).parameters)
    assert options.items() <= config.items()
    assert type(loss).from_config(config).get_config() == config


def test_config_holds_plain_numbers(lib) -> None:
    loss = lk.CategoricalCrossentropy(
        epsilon=np.float32(0.1), class_weight=lib.array(np.float32([1, 2])), normalizer=np.int64(3)
    )
    config = loss.get_config()
    assert config["class_weight"] == [1.0, 2.0]
    assert [type(config[key]) for key in ("epsilon", "class_weight", "normalizer")] == [float, list, int]


OPTIONS = [
    (
        {"reduction": "batchmean"},
        ValueError,
        "reduction 'batchmean' is PyTorch's name; here it is 'sum_over_batch_size'",
    ),
    ({"reduction": "elementwise_mean"}, ValueError, "PyTorch's name"),
    ({"from_logits": 1}, TypeError, "from_logits is 1; pass True or False"),
    ({"epsilon": 0.5}, ValueError, "epsilon is 0.5"),
    ({"label_smoothing": 2.0}, ValueError, "label_smoothing is 2.0"),
    ({"axis": 1.0}, TypeError, "axis is float; pass one integer"),
    ({"normalizer": 0}, ValueError, "normalizer is 0; pass a number above 0"),
    ({"normalizer": [1.0]}, TypeError, "normalizer is list; pass a number here, or an array in each call"),
    ({"normalizer": 2, "reduction": "sum"}, ValueError, "normalizer is the denominator of a mean"),
    (
        {"class_weight": {0: 1.0, 1: 2.0}},
        TypeError,
        "class_weight is a dict, as fit.* takes it; here give one number a",
    ),
    ({"class_weight": 2.0}, ValueError, "class_weight is 2.0; give it one number a class"),
    ({"class_weight": [[1.0]]}, ValueError, r"class_weight has shape \(1, 1\)"),
    ({"class_weight": ["a"]}, TypeError, "class_weight is list of no numbers"),
    ({"class_weight": ["1", "2"]}, TypeError, "class_weight is list of no numbers"),
    ({"class_weight": [1.0, float("nan")]}, ValueError, "class_weight holds nan"),
    ({"dtype": "int32"}, ValueError, "dtype is int32; a loss computes in"),
]


@pytest.mark.parametrize(("options", "error", "words"), OPTIONS)
def test_options_are_refused_when_the_loss_is_made(options, error, words) -> None:
    with pytest.raises(error, match=words):
        lk.CategoricalCrossentropy(**options)


def test_options_of_one_loss_are_refused_when_it_is_made() -> None:
    with pytest.raises(TypeError, match="ignore_class is float"):
        lk.SparseCategoricalCrossentropy(ignore_class=1.0)
    with pytest.raises(ValueError, match="temperature is 0"):
        lk.DistillationLoss(temperature=0)
    with pytest.raises(ValueError, match="alpha is 2"):
        lk.BinaryFocalCrossentropy(alpha=2)
    with pytest.raises(TypeError, match="alpha is a dict"):
        lk.CategoricalFocalCrossentropy(alpha={0: 1.0})
    with pytest.raises(TypeError, match="alpha is None"):
        lk.CategoricalFocalCrossentropy(alpha=None)


def test_a_class_that_overrides_call_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Mine overrides call.*subclass keras.losses.Loss"):
        type("Mine", (lk.KLDivergence,), {"call": lambda self, y_true, y_pred: y_pred})


def test_class_weights_of_the_wrong_length(lib) -> None:
    y_true, y_pred = problem("CategoricalCrossentropy", np.random.default_rng(11), from_logits=False)
    with pytest.raises(ValueError, match=r"class_weight has shape \(2,\), and axis 1 of y_pred, of shape \(4, 5\)"):
        lk.CategoricalCrossentropy(class_weight=[1, 2])(lib.array(y_true), lib.array(y_pred))


# Arrays.


def test_what_is_no_array() -> None:
    loss, p = lk.CategoricalCrossentropy(), np.eye(2, dtype=np.float32)
    for arrays, name in ((None, p), "y_true"), ((p, None), "y_pred"):
        with pytest.raises(TypeError, match=f"{name} is None; pass an array"):
            loss(*arrays)
    with pytest.raises(TypeError, match=r"y_true is a symbolic KerasTensor; call the loss inside a Layer"):
        loss(keras.Input((2,)), keras.Input((2,)))


def test_swapped_arguments(lib) -> None:
    y_true, y_pred = problem("SparseCategoricalCrossentropy", np.random.default_rng(12))
    with pytest.raises(TypeError, match=r"y_pred has dtype int32.*were the arguments swapped"):
        lk.SparseCategoricalCrossentropy()(lib.array(y_pred), lib.array(y_true))
    if lib.b.name == "torch":
        y_true, y_pred = map(lib.array, problem("CategoricalCrossentropy", np.random.default_rng(13)))
        with pytest.raises(ValueError, match="y_true requires a gradient and y_pred does not; swap them"):
            lk.CategoricalCrossentropy()(y_pred.requires_grad_(), y_true)


def test_arrays_of_another_library(lib) -> None:
    other = "jax" if lib.b.name == "torch" else "torch"
    foreign = FRAMEWORKS[other]().place(np.full((2, 2), 0.5), "float32", "cpu")
    own = f"lossbridge.{'torch.CategoricalCrossentropy' if other == 'torch' else 'categorical_crossentropy'}"
    words = f"y_pred is of {other}, and Keras runs on {lib.b.name}; set KERAS_BACKEND={other} .* use {own}"
    with pytest.raises(TypeError, match=words):
        lk.CategoricalCrossentropy()(np.eye(2), foreign)
    with pytest.raises(TypeError, match=f"y_true is of {other} and y_pred of {lib.b.name}"):
        lk.CategoricalCrossentropy()(foreign, lib.array(np.full((2, 2), 0.5)))


def test_lists_numbers_and_variables_are_taken(lib) -> None:
    y_true, y_pred = [[0, 1, 0], [0, 0, 1]], [[0.05, 0.95, 0.0], [0.1, 0.8, 0.1]]
    loss = lk.CategoricalCrossentropy()
    expected = pytest.approx(1.1769392, rel=1e-6)
    assert float(loss(y_true, y_pred)) == expected
    assert float(loss(np.array(y_true), np.array(y_pred), 1.0)) == expected
    for pred in (keras.Variable(y_pred), np.float32(y_pred)):  # a target that could learn is no sign of a swap
        assert lib.b.to_numpy(loss(keras.Variable(np.float32(y_true)), pred)) == expected
    assert float(loss(y_true, y_pred, [[3.0], [3.0]])) == pytest.approx(3 * 1.1769392, rel=1e-6)


def test_errors_name_what_leaves_a_sample_out_here() -> None:
    # The classes take no mask=.
    with pytest.raises(ValueError, match=r"leave it out with ignore_class= or sample_weight 0$"):
        lk.SparseCategoricalCrossentropy(from_logits=True)([0, 3], np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match=r"leave its sample out with sample_weight 0$"):
        lk.BinaryCrossentropy(from_logits=True)(np.float32([[0], [3]]), np.zeros((2, 1), np.float32))
