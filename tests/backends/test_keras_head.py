"""lossbridge.keras.LinearCrossentropyHead: the layer, its training beside Dense and a loss, and saving."""

from __future__ import annotations

import doctest
from typing import Any

import keras
import numpy as np
import pytest
from keras.src.backend.common.masking import set_keras_mask
from test_keras_fit import run

import lossbridge as lb
import lossbridge.keras as lk
from lossbridge.keras import linear_head

ROWS, STEPS, H, C = 6, 4, 3, 5
RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(ROWS, STEPS, H)).astype(np.float32)
LABELS = RNG.integers(0, C, (ROWS, STEPS)).astype(np.int32)
WEIGHTS = RNG.uniform(0.5, 2, (ROWS, STEPS)).astype(np.float32)
MASK = RNG.random((ROWS, STEPS)) < 0.7

# Every option of the loss with a value that is not its default.
OPTIONS = {
    "label_smoothing": 0.1,
    "ignore_class": 2,
    "class_weight": [0.1, 2, 3, 0.7, 1],
    "logit_scale": 0.5,
    "softcap": 2.0,
    "z_loss": 0.1,
    "normalizer": 7.0,
    "reduction": "mean_with_sample_weight",
    "memory": 64,
}
MADE = {
    "use_bias": False,
    "kernel_initializer": keras.initializers.RandomNormal(seed=1),
    "bias_initializer": "ones",
    "kernel_regularizer": keras.regularizers.L2(0.1),
    "bias_regularizer": "l1",
    "kernel_constraint": keras.constraints.NonNeg(),
    "bias_constraint": "non_neg",
}


def built(**options: Any) -> lk.LinearCrossentropyHead:
    """A head with weights that are always the same."""
    head = lk.LinearCrossentropyHead(C, **options)
    head.build((None, H))
    rng = np.random.default_rng(1)
    head.set_weights([rng.normal(size=w.shape) for w in head.get_weights()])
    return head


def added(head: lk.LinearCrossentropyHead, *arrays: Any, **more: Any) -> float:
    """The loss that a call adds."""
    head(*arrays, **more)
    (loss,) = head.losses
    return float(keras.ops.convert_to_numpy(loss))


def test_examples_in_docstrings() -> None:
    failed, tried = doctest.testmod(linear_head)
    assert tried > 0
    assert failed == 0


@pytest.mark.parametrize("options", [{}, *({name: value} for name, value in OPTIONS.items())], ids=str)
def test_the_loss_is_the_functions_and_that_of_the_logits(lib, options) -> None:
    head, hidden, labels, weight = built(**options), *map(lib.array, (HIDDEN, LABELS, WEIGHTS))
    found = added(head, hidden, labels, weight)
    kernel, bias = map(lib.array, head.get_weights())
    given = {"bias": bias, "classes_axis": 1, "sample_weight": weight}
    assert found == pytest.approx(
        float(lib.b.to_numpy(lb.linear_crossentropy(labels, hidden, kernel, **given, **options))), rel=1e-6
    )
    of_logits = {key: x for key, x in options.items() if key not in ("memory", "logit_scale", "softcap")}
    expected = lb.sparse_categorical_crossentropy(
        labels, head(hidden), from_logits=True, sample_weight=weight, **of_logits
    )
    assert found == pytest.approx(float(keras.ops.convert_to_numpy(expected)), rel=2e-6)
    if options and "memory" not in options:
        assert found != pytest.approx(added(built(), hidden, labels, weight), rel=1e-4)


def test_masks_given_and_attached(lib) -> None:
    hidden, labels, mask = map(lib.array, (HIDDEN, LABELS, MASK))
    expected = lb.sparse_categorical_crossentropy(labels, built()(hidden), from_logits=True, mask=mask)
    assert added(built(), hidden, labels, mask=mask) == pytest.approx(
        float(keras.ops.convert_to_numpy(expected)), rel=2e-6
    )
    attached = lib.array(np.where(MASK[..., None], HIDDEN, np.nan))
    set_keras_mask(attached, mask)
    assert added(built(), attached, labels) == pytest.approx(float(keras.ops.convert_to_numpy(expected)), rel=2e-6)


def test_labels_as_keras_takes_them(lib) -> None:
    hidden = lib.array(HIDDEN)
    expected = added(built(), hidden, lib.array(LABELS))
    assert added(built(), hidden, lib.array(LABELS[..., None])) == expected
    assert added(built(), hidden, lib.array(LABELS.astype(np.float32))) == expected
    assert added(built(), hidden, lib.array(LABELS), lib.array(np.ones((ROWS, 1)))) == expected


def models(**options: Any) -> tuple[keras.Model, keras.Model]:
    """A model that trains, of words, labels and weights; and one of words alone, which gives logits."""
    keras.utils.set_random_seed(0)
    words, labels = keras.Input((STEPS,), dtype="int32"), keras.Input((STEPS,), dtype="int32")
    weights = keras.Input((STEPS,))
    embedding, head = keras.layers.Embedding(C, H, mask_zero=True), lk.LinearCrossentropyHead(C, **options)
    hidden = embedding(words)
    return keras.Model([words, labels, weights], head(hidden, labels, weights)), keras.Model(words, head(hidden))


def words_of(seed: int) -> np.ndarray:
    words = np.random.default_rng(seed).integers(1, C, (ROWS, STEPS))
    words[::2, 2:] = 0
    return words


FIT = {"batch_size": 4, "epochs": 3, "shuffle": False, "verbose": 0}  # the last batch is smaller


@pytest.mark.parametrize(
    ("reduction", "dtype"),
    [
        *[(reduction, "float32") for reduction in ("sum_over_batch_size", "mean_with_sample_weight", "sum")],
        ("sum_over_batch_size", "mixed_bfloat16"),
    ],
)
def test_fit_reaches_the_weights_of_dense_and_a_loss(reduction, dtype) -> None:
    words, options = words_of(2), {"class_weight": [1, 2, 3, 4, 5], "label_smoothing": 0.1, "reduction": reduction}
    model, with_logits = models(dtype=dtype, **options)
    plain = keras.Sequential(
        [
            keras.Input((STEPS,), dtype="int32"),
            keras.layers.Embedding(C, H, mask_zero=True),
            keras.layers.Dense(C, dtype=dtype),
        ]
    )
    plain.set_weights(model.get_weights())
    model.compile(keras.optimizers.SGD(0.1))
    plain.compile(keras.optimizers.SGD(0.1), loss=lk.SparseCategoricalCrossentropy(from_logits=True, **options))
    ours = model.fit([words, LABELS, WEIGHTS], **FIT).history["loss"]
    theirs = plain.fit(words, LABELS, sample_weight=WEIGHTS, **FIT).history["loss"]
    rounding = 2e-6 if dtype == "float32" else 1e-2  # Dense rounds its logits
    np.testing.assert_allclose(ours, theirs, rtol=rounding)
    for found, expected in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=rounding, atol=rounding)
    logits = with_logits.predict(words, verbose=0)
    assert logits.dtype == keras.dtype_policies.get(dtype).compute_dtype
    np.testing.assert_allclose(
        np.float32(logits), np.float32(plain.predict(words, verbose=0)), rtol=0.05, atol=rounding
    )
    found = model.evaluate([words, LABELS, WEIGHTS], batch_size=ROWS, verbose=0)
    expected = plain.evaluate(words, LABELS, sample_weight=WEIGHTS, batch_size=ROWS, verbose=0)
    assert found == pytest.approx(expected, rel=rounding)


def test_a_trained_model_in_float16_predicts() -> None:
    words = words_of(2)
    model, with_logits = models(dtype="mixed_float16")
    model.compile(keras.optimizers.Adam(0.1))
    ones = np.ones_like(WEIGHTS)
    history = model.fit([words, (words + 1) % C, ones], epochs=20, batch_size=ROWS, verbose=0).history["loss"]
    assert history[-1] < history[0] / 2
    hits = with_logits.predict(words, verbose=0).argmax(-1) == (words + 1) % C
    assert hits[words != 0].all()


def test_config() -> None:
    layer = {"name": "other", "dtype": "mixed_bfloat16", "trainable": False}
    head = lk.LinearCrossentropyHead(C, **MADE, **OPTIONS, **layer)
    again = lk.LinearCrossentropyHead.from_config(head.get_config())
    assert again.get_config() == head.get_config()
    assert again.get_config() | OPTIONS == again.get_config()
    assert (again.name, again.compute_dtype, again.trainable, again.use_bias) == ("other", "bfloat16", False, False)
    assert type(again.kernel_constraint) is keras.constraints.NonNeg
    head.build((None, H))
    assert head.bias is None
    assert head.kernel.constraint is head.kernel_constraint
    head.trainable = True
    assert len(head.losses) == 1  # of the regularizer


# Processes of their own: saving on any backend imports TensorFlow, which torch.compile does not survive.

SAVE = """
import sys, keras, numpy as np
from test_keras_head import LABELS, OPTIONS, WEIGHTS, models, report, words_of
model, with_logits = models(**OPTIONS)
model.compile("sgd")
model.fit([words_of(2), LABELS, WEIGHTS], verbose=0)
for name, each in (("model", model), ("logits", with_logits)):
    each.save(f"{sys.argv[1]}/{name}.keras")
report(model, with_logits)
"""

LOAD = """
import sys, keras, numpy as np, lossbridge.keras
from test_keras_head import report
model, with_logits = (keras.saving.load_model(f"{sys.argv[1]}/{name}.keras") for name in ("model", "logits"))
report(model, with_logits)
"""


def report(model: keras.Model, with_logits: keras.Model) -> None:
    """A line of what the two give, to the bit."""
    value = model.evaluate([words_of(2), LABELS, WEIGHTS], verbose=0)
    print(float(value).hex(), *(float(z).hex() for z in with_logits.predict(words_of(2), verbose=0)[0, 0]))


def test_saved_and_loaded_in_a_fresh_process_to_the_bit(tmp_path) -> None:
    saved, loaded = (run(program, str(tmp_path)).splitlines()[-1] for program in (SAVE, LOAD))
    assert loaded == saved


COMPILED = """
import numpy as np, keras
from test_keras_head import FIT, LABELS, WEIGHTS, models, words_of
found = []
for jit in (True, False):
    model, _ = models(label_smoothing=0.1)
    model.compile(keras.optimizers.SGD(0.1), jit_compile=jit)
    model.fit([words_of(2), LABELS, WEIGHTS], **FIT)
    found.append(model.get_weights())
for ours, theirs in zip(*found, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
"""


def test_compiled_fit_equals_eager() -> None:
    run(COMPILED)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: lk.LinearCrossentropyHead(0), "units is 0; pass the number of classes"),
        (lambda: lk.LinearCrossentropyHead(C, use_bias="yes"), "use_bias is 'yes'; pass True or False"),
        (lambda: lk.LinearCrossentropyHead(C, reduction="none"), "a layer adds one number to the loss"),
        (lambda: lk.LinearCrossentropyHead(C, reduction=None), "a layer adds one number to the loss"),
        (lambda: lk.LinearCrossentropyHead(C, memory=0), "memory is 0; pass the bytes"),
        (lambda: lk.LinearCrossentropyHead(C, softcap=0.0), "softcap is 0.0"),
        (lambda: lk.LinearCrossentropyHead(C, class_weight={0: 1.0}), r"class_weight is a dict, as fit"),
        (lambda: lk.LinearCrossentropyHead(C, normalizer=-1.0), "normalizer is -1.0"),
        (lambda: lk.LinearCrossentropyHead(C, dtype="int32"), "dtype is int32"),
        (lambda: built()(HIDDEN, LABELS[:, :2]), r"labels has shape \(6, 2\) and hidden \(6, 4, 3\)"),
        (lambda: built()(HIDDEN, LABELS + C), "label .* is out of range: there are 5 classes"),
        (lambda: built()(HIDDEN, LABELS + 0.5), "labels holds fractions"),
    ],
)
def test_errors(make, words) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        make()
