"""Two replicas of tf.distribute.MirroredStrategy train as one device does, in a process with two logical devices."""

from __future__ import annotations

import keras
import pytest
from test_keras_fit import run

pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.distribute is TensorFlow's")

START = """
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras, numpy as np, lossbridge.keras as lk
from test_keras import C
from test_keras_fit import FEATURES, model_of

ROWS = 8
rng = np.random.default_rng(0)
x, y = rng.normal(size=(ROWS, FEATURES)).astype("float32"), rng.integers(0, C, ROWS)
kept = np.float32([1, 0, 0, 0, 1, 1, 1, 0])  # one entry of the first replica counts, three of the second
two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
one = tf.distribute.OneDeviceStrategy("CPU:0")


def model_in(strategy, loss):
    with strategy.scope():
        return model_of(keras.Input((FEATURES,)), keras.layers.Dense(C), loss=loss, jit_compile=False)


def close(ours, theirs):
    for found, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
"""

FIT = """
def fitted(strategy, loss, **options):
    model = model_in(strategy, loss)
    logs = model.fit(x, y, batch_size=ROWS, shuffle=False, epochs=2, verbose=0, **options).history["loss"]
    return *model.get_weights(), logs

for loss in (
    lk.SparseCategoricalCrossentropy(from_logits=True),
    lk.SparseCategoricalCrossentropy(from_logits=True, reduction="mean"),
    lk.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight"),
    lk.SparseCategoricalCrossentropy(from_logits=True, reduction="sum"),
    lk.SparseCategoricalCrossentropy(from_logits=True, normalizer=ROWS),
    lk.LogLoss(from_logits=True),
):
    close(fitted(two, loss), fitted(one, loss))
ours, theirs = (module.SparseCategoricalCrossentropy(from_logits=True) for module in (lk, keras.losses))
close(fitted(two, ours), fitted(two, theirs))

# Unequal numbers of entries that count: a mean of means is another step, a sum with weights 1 / count is the step.
by_weight = lk.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
expected = fitted(one, by_weight, sample_weight=kept)
total = lk.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
close(fitted(two, total, sample_weight=kept / kept.sum()), expected)
assert np.abs(fitted(two, by_weight, sample_weight=kept)[0] - expected[0]).max() > 1e-2
"""

LOOP = """
def stepped(strategy, loss, with_normalizer, weight):
    model = model_in(strategy, loss)

    @tf.function
    def step(x, y, weight):
        def replica(x, y, weight):
            context = tf.distribute.get_replica_context()
            counted = context.all_reduce("sum", tf.reduce_sum(weight))
            with tf.GradientTape() as tape:
                value = loss(y, model(x), weight, normalizer=counted if with_normalizer else None)
            weights = model.trainable_variables
            model.optimizer.apply_gradients(zip(tape.gradient(value, weights), weights))
            return value

        return strategy.reduce("sum", strategy.run(replica, (x, y, weight)), axis=None)

    batches = tf.data.Dataset.from_tensors((x, y, weight)).unbatch().batch(ROWS)
    for batch in strategy.experimental_distribute_dataset(batches):
        value = step(*batch)
    return *model.get_weights(), [float(value)]

loss = lk.SparseCategoricalCrossentropy(from_logits=True)
close(stepped(two, loss, False, np.ones_like(kept)), stepped(one, loss, False, np.ones_like(kept)))
expected = stepped(one, loss, True, kept)
close(stepped(two, loss, True, kept), expected)
by_weight = lk.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
close(stepped(one, by_weight, False, kept), expected)
"""

HEAD = """
def headed(strategy, **options):
    with strategy.scope():
        hidden, labels = keras.Input((FEATURES,)), keras.Input((), dtype="int32")
        weight = keras.Input(())
        model = keras.Model([hidden, labels, weight], lk.LinearCrossentropyHead(C, **options)(hidden, labels, weight))
        model.compile(keras.optimizers.SGD(0.1), jit_compile=False)
    model.set_weights([np.random.default_rng(0).normal(size=w.shape) for w in model.get_weights()])
    logs = model.fit([x, y, kept], batch_size=ROWS, shuffle=False, epochs=2, verbose=0).history["loss"]
    return *model.get_weights(), logs

for options in ({}, {"reduction": "sum"}, {"normalizer": ROWS}):
    close(headed(two, **options), headed(one, **options))
"""


@pytest.mark.parametrize("program", [FIT, LOOP, HEAD], ids=["fit", "loop", "head"])
def test_two_replicas_equal_one_device(program) -> None:
    run(START + program)
