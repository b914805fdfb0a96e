"""Keras models trained with lossbridge's losses, and saved; the process that compiles with torch stands apart."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from test_keras import CLASSES, OF_KERAS, C, problem

import lossbridge as lb
import lossbridge.keras as lk

ROWS, STEPS, FEATURES = 10, 4, 3
HERE = Path(__file__).parent


def run(program: str, *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=HERE, env=os.environ, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def model_of(*layers, optimizer=None, **compiled):
    """A model with weights that are always the same."""
    model = keras.Sequential(layers)
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    model.compile(optimizer or keras.optimizers.SGD(0.1), **compiled)
    return model


def fitted(loss, x, y, activation=None, **options):
    layers = [keras.Input(x.shape[1:]), keras.layers.Masking(0.0)] if x.ndim == 3 else [keras.Input(x.shape[1:])]
    model = model_of(*layers, keras.layers.Dense(C, activation), loss=loss)
    model.fit(x, y, batch_size=4, epochs=3, shuffle=False, verbose=0, **options)  # the last batch is smaller
    return model.get_weights()


def batch(name, steps=()):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(ROWS, *steps, FEATURES)).astype(np.float32)
    return x, problem(name, rng, from_logits=name != "KLDivergence", shape=(ROWS, *steps, C))[0]


# `tests` has every loss with a mask, and every option of one loss.
@pytest.mark.parametrize(
    ("name", "with_"),
    [
        pytest.param(name, with_, marks=[] if few else [pytest.mark.exhaustive])
        for name in OF_KERAS
        for with_ in ("nothing", "sample_weight", "class_weight", "mask")
        for few in [with_ == "mask" or name == "SparseCategoricalCrossentropy"]
    ],
)
def test_fit_reaches_keras_weights(name, with_) -> None:
    x, y = batch(name, (STEPS,) if with_ == "mask" else ())
    options = {}
    if with_ == "mask":
        x[np.arange(ROWS) % 3 == 0, 2:] = 0
    elif with_ == "sample_weight":
        options["sample_weight"] = np.random.default_rng(2).uniform(0.5, 2, ROWS)
    elif with_ == "class_weight":
        options["class_weight"] = {0: 2.0, 3: 0.5}
    if name == "KLDivergence":  # Keras' takes probabilities only
        made, options["activation"] = {}, "softmax"
    else:
        made = {"from_logits": True}
    ours = fitted(CLASSES[name](**made), x, y, **options)
    theirs = fitted(getattr(keras.losses, name)(**made), x, y, **options)
    for found, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)


def test_weights_masks_and_half_precision_together() -> None:
    """In mixed_float16, compiled: the reported loss is the function's on the model's own predictions."""
    rng = np.random.default_rng(3)
    words = rng.integers(1, 9, (ROWS, STEPS))
    words[::2, 2:] = 0
    y, weight = rng.integers(0, C, (ROWS, STEPS)), rng.uniform(0.5, 2, (ROWS, STEPS)).astype(np.float32)
    class_weight = np.arange(1, C + 1)
    model = model_of(
        keras.Input((STEPS,), dtype="int32"),
        keras.layers.Embedding(9, 8, mask_zero=True, dtype="mixed_float16"),
        keras.layers.Dense(C, dtype="mixed_float16"),
        loss=lk.SparseCategoricalCrossentropy(from_logits=True, class_weight=class_weight),
        weighted_metrics=[
            keras.metrics.MeanMetricWrapper(lk.SparseCategoricalCrossentropy(from_logits=True, reduction="none"))
        ],
        jit_compile=keras.backend.backend() != "torch",
    )
    reported = model.evaluate(words, y, sample_weight=weight, batch_size=ROWS, verbose=0)
    logits = model.predict(words, verbose=0)
    assert logits.dtype == np.float16
    options = {"from_logits": True, "sample_weight": weight, "mask": words != 0}
    loss = lb.sparse_categorical_crossentropy(y, logits, class_weight=class_weight, **options)
    metric = lb.sparse_categorical_crossentropy(y, logits, reduction="mean_with_sample_weight", **options)
    np.testing.assert_allclose(reported, [loss, metric], rtol=2e-3)  # half precision, once compiled and once not
    history = model.fit(words, y, sample_weight=weight, batch_size=4, epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]


def test_nan_targets_of_masked_steps_do_not_train() -> None:
    x, y = batch("CategoricalCrossentropy", (STEPS,))
    x[::2, 2:] = 0
    gone = np.where((x == 0).all(-1, keepdims=True), np.nan, y)
    loss = lk.CategoricalCrossentropy(from_logits=True)
    for found, expected in zip(fitted(loss, x, gone), fitted(loss, x, y), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_two_outputs_with_weights_of_their_own() -> None:
    x, y = batch("SparseCategoricalCrossentropy")
    inputs = keras.Input((FEATURES,))
    outputs = {"a": keras.layers.Dense(C, name="a")(inputs), "b": keras.layers.Dense(C, name="b")(inputs)}
    model = keras.Model(inputs, outputs)
    loss = {key: lk.SparseCategoricalCrossentropy(from_logits=True) for key in outputs}
    model.compile("sgd", loss=loss, loss_weights={"a": 1.0, "b": 2.0})
    weight = {"a": np.ones(ROWS, np.float32), "b": (y > 0).astype(np.float32)}
    logs = model.evaluate(x, {"a": y, "b": y}, sample_weight=weight, batch_size=ROWS, verbose=0, return_dict=True)
    predicted = model.predict(x, verbose=0)
    for key in outputs:
        expected = lb.sparse_categorical_crossentropy(y, predicted[key], from_logits=True, sample_weight=weight[key])
        assert logs[f"{key}_loss"] == pytest.approx(expected, rel=1e-5)
    assert logs["loss"] == pytest.approx(logs["a_loss"] + 2 * logs["b_loss"], rel=1e-5)


# Saturated layers: on TensorFlow Keras goes back to the logits behind a softmax or sigmoid, elsewhere it clips.

MODES = {
    "eager": {"run_eagerly": True, "jit_compile": False},
    "graph": {"jit_compile": False},
    "jit": {"jit_compile": True},
}
modes = pytest.mark.parametrize(
    "mode",
    # The process that compiles with torch stands apart.
    [mode for mode in MODES if mode != "jit" or keras.backend.backend() != "torch"],
)


def trained(loss, x, y, *layers, mode="graph", bias=40.0):
    """Weights and losses of a model that starts `bias` nats off: each layer's first output, or its only one."""
    model = model_of(keras.Input(x.shape[1:]), *layers, loss=loss, **MODES[mode])
    weights = model.get_weights()
    weights[-1][0] += bias
    model.set_weights(weights)
    history = model.fit(x, y, batch_size=5, epochs=3, shuffle=False, verbose=0).history["loss"]
    return model.get_weights(), history


def saturated(name):
    """Features, and targets of which the first class is always wrong."""
    rng = np.random.default_rng(6)
    x, labels = rng.normal(size=(ROWS, FEATURES)).astype(np.float32), rng.integers(1, C, ROWS)
    return x, labels if name.startswith("Sparse") else np.eye(C, dtype=np.float32)[labels]


def assert_trained_alike(ours, theirs) -> None:
    for found, expected in zip(ours[0], theirs[0], strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=2e-6)


def learns(losses) -> bool:
    return losses[0] > losses[1] > losses[2]


def activation_of(name):
    return "sigmoid" if name.startswith("Binary") else "softmax"


@modes
@pytest.mark.parametrize("name", OF_KERAS)
def test_saturated_layers_reach_keras_weights(name, mode) -> None:
    x, y = saturated(name)
    both = [
        trained(getattr(module, name)(), x, y, keras.layers.Dense(C, activation_of(name)), mode=mode)
        for module in (lk, keras.losses)
    ]
    assert_trained_alike(*both)
    if keras.backend.backend() == "tensorflow" and name in (
        "CategoricalCrossentropy",
        "SparseCategoricalCrossentropy",
        "BinaryCrossentropy",
        "BinaryFocalCrossentropy",
    ):
        assert learns(both[0][1])
        assert both[0][1][0] > 30 / (1 if activation_of(name) == "softmax" else C)  # of 40 nats, and not of 16


def softmax_of_the_framework(z):
    if keras.backend.backend() != "tensorflow":
        return keras.ops.softmax(z)
    import tensorflow as tf

    return tf.nn.softmax(z)  # in a graph Keras sees the operation, eager nothing


# Of a loss and options: layers that keep the logits in Keras' sight, or hide them.
OUTPUTS = {
    "Activation": ("CategoricalCrossentropy", {}, lambda: [keras.layers.Dense(C), keras.layers.Activation("softmax")]),
    "Softmax": ("SparseCategoricalCrossentropy", {}, lambda: [keras.layers.Dense(C), keras.layers.Softmax()]),
    "the framework's softmax": (
        "CategoricalCrossentropy",
        {},
        lambda: [keras.layers.Dense(C), keras.layers.Lambda(softmax_of_the_framework)],
    ),
    "scaled": (
        "CategoricalCrossentropy",
        {},
        lambda: [keras.layers.Dense(C, "softmax"), keras.layers.Lambda(lambda p: 1.0 * p)],
    ),
    "float16": ("BinaryCrossentropy", {}, lambda: [keras.layers.Dense(C, "sigmoid", dtype="mixed_float16")]),
    "smoothing": ("CategoricalCrossentropy", {"label_smoothing": 0.1}, lambda: [keras.layers.Dense(C, "softmax")]),
    "ignored class": ("SparseCategoricalCrossentropy", {"ignore_class": 2}, lambda: [keras.layers.Dense(C, "softmax")]),
    "from_logits": ("CategoricalCrossentropy", {"from_logits": True}, lambda: [keras.layers.Dense(C, "softmax")]),
    "sigmoid from_logits": (
        "BinaryFocalCrossentropy",
        {"from_logits": True},
        lambda: [keras.layers.Dense(C, "sigmoid")],
    ),
    "another activation": ("CategoricalCrossentropy", {}, lambda: [keras.layers.Dense(C, "sigmoid")]),
    "one unit": ("BinaryCrossentropy", {}, lambda: [keras.layers.Dense(1, "sigmoid")]),
}


@pytest.mark.filterwarnings("ignore:.*from_logits=True")
@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_keras_weights_of_every_output(output, mode) -> None:
    name, options, layers = OUTPUTS[output]
    x, y = saturated(name)
    if output == "one unit":
        y = y[:, 0]  # (N,) beside (N, 1): y_true gets the axis, and y_pred stays as the sigmoid made it
    assert_trained_alike(
        *(trained(getattr(m, name)(**options), x, y, *layers(), mode=mode) for m in (lk, keras.losses))
    )


def test_logits_behind_a_softmax(lib) -> None:
    """Value and gradient are those of the logits on TensorFlow, and clipped on the other backends."""
    logits, target = np.float32([[40, 0]]), np.float32([[0, 1]])

    def of_softmax(**options):
        def loss(z):
            return lk.CategoricalCrossentropy(**options)(lib.array(target), keras.activations.softmax(z))

        return [lib.b.to_numpy(x) for x in lib.b.value_and_grad(loss, lib.array(logits))]

    value, gradient = of_softmax()
    if lib.b.name != "tensorflow":
        assert value == pytest.approx(-np.log(1e-7))
        assert not gradient.any()
        return
    assert value == 40
    np.testing.assert_array_equal(gradient, [[1, -1]])
    value, gradient = of_softmax(epsilon=1e-3)  # which the caller asked for
    assert value == pytest.approx(-np.log(1e-3))
    assert not gradient.any()
    with pytest.warns(UserWarning, match="from_logits=True, and y_pred is the output of a softmax or sigmoid"):
        assert of_softmax(from_logits=True)[0] == 40


# Gradient accumulation.


def test_accumulated_gradients_equal_those_of_the_whole_batch(lib) -> None:
    y_true, y_pred = problem("SparseCategoricalCrossentropy", np.random.default_rng(4), shape=(ROWS, C))
    y_true[[0, 5, 6]] = -1
    loss = lk.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    counted = int((y_true != -1).sum())

    def gradient(rows, **more):
        _, found = lib.b.value_and_grad(lambda p: loss(lib.array(y_true[rows]), p, **more), lib.array(y_pred[rows]))
        return lib.b.to_numpy(found)

    parts = [gradient(rows, normalizer=counted) for rows in (slice(0, 1), slice(1, 10))]
    np.testing.assert_allclose(np.concatenate(parts), gradient(slice(0, 10)), rtol=1e-6)


def test_accumulation_in_fit_by_weights() -> None:
    """Keras averages k gradients: a sum with weights k / (entries that the k batches count) gives the whole batch's."""
    x, y = batch("SparseCategoricalCrossentropy")
    kept = np.ones(ROWS, np.float32)
    kept[[0, 1, 2, 6]] = 0  # two of the first five count, four of the second
    steps = 2

    def after_one_step(loss, weight, batch_size, **optimizer):
        layers = keras.Input((FEATURES,)), keras.layers.Dense(C)
        model = model_of(*layers, loss=loss, optimizer=keras.optimizers.SGD(0.1, **optimizer))
        logs = model.fit(x, y, sample_weight=weight, batch_size=batch_size, shuffle=False, verbose=0)
        return model.get_weights(), logs.history["loss"][0]

    total = lk.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
    whole, value = after_one_step(total, kept / kept.sum(), ROWS)
    found, reported = after_one_step(total, steps * kept / kept.sum(), ROWS // 2, gradient_accumulation_steps=steps)
    by_mean, _ = after_one_step(
        lk.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight"),
        kept,
        ROWS // 2,
        gradient_accumulation_steps=steps,
    )
    np.testing.assert_allclose(found[0], whole[0], rtol=1e-6)
    assert reported == pytest.approx(value, rel=1e-6)
    assert np.abs(by_mean[0] - whole[0]).max() > 1e-2  # the mean of means is another step


# Processes of their own: saving on any backend imports TensorFlow, which torch.compile does not survive.

COMPILED = """
import sys, keras, numpy as np, lossbridge.keras as lk
from test_keras_fit import assert_trained_alike, batch, model_of, saturated, trained, C, FEATURES
x, y = batch("SparseCategoricalCrossentropy")
weights = []
for jit in (True, False):
    loss = lk.SparseCategoricalCrossentropy(from_logits=True, class_weight=np.arange(1, C + 1), ignore_class=2)
    model = model_of(keras.Input((FEATURES,)), keras.layers.Dense(C), loss=loss, jit_compile=jit)
    model.fit(x, y, sample_weight=np.linspace(0.5, 2, len(x)), batch_size=5, epochs=2, shuffle=False, verbose=0)
    weights.append(model.get_weights()[0])
np.testing.assert_allclose(*weights, rtol=1e-5)
name = "SparseCategoricalCrossentropy"
x, y = saturated(name)
both = [
    trained(getattr(module, name)(), x, y, keras.layers.Dense(C, "softmax"), mode="jit")
    for module in (lk, keras.losses)
]
assert_trained_alike(*both)
assert keras.backend.backend() == "tensorflow" or "tensorflow" not in sys.modules
"""


def test_compiled_fit_equals_eager() -> None:
    run(COMPILED)


SAVE = """
import sys, keras, numpy as np
from test_keras import CLASSES, changed_options, problem, C
from test_keras_fit import model_of, report, FEATURES
for name, cls in CLASSES.items():
    options = changed_options(name)
    metric = keras.metrics.MeanMetricWrapper(cls(**options | {"reduction": "none", "normalizer": None}))
    layers = keras.Input((FEATURES,)), keras.layers.Dense(C)
    model = model_of(*layers, loss=cls(**options), weighted_metrics=[metric])
    model.save(f"{sys.argv[1]}/{name}.keras")
    report(name, model)
"""

LOAD = """
import sys, keras
from test_keras import CLASSES
from test_keras_fit import report
for name in CLASSES:
    report(name, keras.saving.load_model(f"{sys.argv[1]}/{name}.keras"))
"""


def report(name, model) -> None:
    """A line of what its loss gives, to the bit, and of how the model keeps it."""
    rng = np.random.default_rng(5)
    y_true, y_pred = problem(name, rng, shape=(6, C))
    value = float(model.loss(y_true, y_pred, rng.uniform(0.5, 2, 6)))
    evaluated = model.evaluate(rng.normal(size=(6, FEATURES)), y_true, sample_weight=np.ones(6), verbose=0)
    print("REPORT", value.hex(), *(float(x).hex() for x in evaluated), model.loss.get_config())


def test_saved_and_loaded_in_a_fresh_process_to_the_bit(tmp_path) -> None:
    saved, loaded = (
        [line for line in run(program, str(tmp_path)).splitlines() if line.startswith("REPORT")]
        for program in (SAVE, LOAD)
    )
    assert len(saved) == len(CLASSES)
    assert loaded == saved
