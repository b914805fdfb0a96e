"""The linear cross-entropy under what TensorFlow does to it: unknown sizes, tapes around graphs, second derivatives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from test_linear import BIAS, OPTIONS, C, H, agree, expected, of_rows, problem

import lossbridge as lb

ARRAYS = tuple(np.asarray(x, np.float64) for x in (problem()["hidden"], problem()["weight"], BIAS))
NAMES = ("hidden", "weight", "bias")


def loss(name: str, hidden: Any, weight: Any, bias: Any, labels: Any = None) -> Any:
    given = {key: x for key, x in OPTIONS[name].items() if key != "bias"}
    labels = problem()["labels"] if labels is None else labels
    return lb.linear_crossentropy(labels, hidden, weight, bias=bias, memory=of_rows(5, size=8), **given)


@pytest.mark.parametrize("name", ["plain", "none"])
@pytest.mark.parametrize("rows", [0, 1, 13])
def test_unknown_sizes(name, rows) -> None:
    spec = tf.TensorSpec([None, None, H], tf.float64), tf.TensorSpec([None, None], tf.int32)

    @tf.function(input_signature=[*spec, tf.TensorSpec([C, H], tf.float64)], autograph=False)
    def step(hidden: Any, labels: Any, weight: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([hidden, weight])
            value = loss(name, hidden, weight, None, labels)
        return value, tape.gradient(value, [hidden, weight])

    arguments = {**problem(), "labels": problem()["labels"][:rows], "hidden": problem()["hidden"][:rows]}
    value, gradients = step(ARRAYS[0][None, :rows], arguments["labels"][None], ARRAYS[1])
    exact = expected(arguments, OPTIONS[name])
    assert value.shape == ((1, rows) if name == "none" else ())
    found = {"hidden": gradients[0].numpy()[0], "weight": gradients[1].numpy()}
    agree((value.numpy().reshape(np.shape(exact[0])), found), exact, "float64")


@pytest.mark.parametrize("name", ["plain", "all, none"])
def test_a_tape_around_a_function(name) -> None:
    arrays = [tf.constant(x) for x in ARRAYS]
    with tf.GradientTape() as tape:
        tape.watch(arrays)
        value = tf.function(lambda *x: loss(name, *x), autograph=False)(*arrays)
    gradients = dict(zip(NAMES, (x.numpy() for x in tape.gradient(value, arrays)), strict=True))
    agree((value.numpy(), gradients), expected(problem(), {**OPTIONS[name], "bias": BIAS}), "float64")


@pytest.mark.parametrize("name", ["plain", "all, none"])
@pytest.mark.parametrize("wrap", [lambda f: f, tf.function], ids=["eager", "function"])
def test_second_derivatives(name, wrap) -> None:
    """The derivative of ⟨∇, v⟩ along a step against differences of gradients."""
    arrays = [tf.constant(x) for x in ARRAYS]
    steps = [tf.random.stateless_normal(x.shape, [0, i], dtype=tf.float64) for i, x in enumerate(arrays)]

    def gradients(*arrays: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(arrays)
            value = tf.reduce_sum(loss(name, *arrays) ** 2)
        return tape.gradient(value, list(arrays))

    @wrap
    def second(*arrays: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(arrays)
            along = tf.add_n([tf.reduce_sum(g * s) for g, s in zip(gradients(*arrays), steps, strict=True)])
        return tape.gradient(along, list(arrays))

    ahead, behind = (gradients(*(x + h * s for x, s in zip(arrays, steps, strict=True))) for h in (1e-6, -1e-6))
    for found, a, b in zip(second(*arrays), ahead, behind, strict=True):
        np.testing.assert_allclose(found, (a - b) / 2e-6, rtol=1e-4, atol=1e-6)


def test_forward_mode() -> None:
    arrays = [tf.constant(x) for x in ARRAYS]
    step = tf.cast(tf.reshape(tf.range(C * H), [C, H]), tf.float64)
    with tf.autodiff.ForwardAccumulator(arrays[1], step) as accumulator:
        value = loss("plain", *arrays)
    exact = expected(problem(), {"bias": BIAS})[1]["weight"].ravel() @ np.arange(C * H)
    np.testing.assert_allclose(accumulator.jvp(value), exact, rtol=1e-9)


def test_a_variable_in_keras_style_training() -> None:
    weight = tf.Variable(ARRAYS[1])

    @tf.function(autograph=False)
    def step() -> Any:
        with tf.GradientTape() as tape:
            value = loss("plain", tf.constant(ARRAYS[0]), weight, None)
        weight.assign_sub(tape.gradient(value, weight))
        return value

    losses = [float(step()) for _ in range(5)]
    assert losses == sorted(losses, reverse=True)
