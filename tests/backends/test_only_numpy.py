"""NumPy's own matters: the tape behind value_and_grad, silence, ml_dtypes, array-likes."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import lossbridge as lb
from lossbridge.frameworks import numpy_ops, on_numpy


def numeric(function, x, step=1e-6):
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        ahead, behind = x.copy(), x.copy()
        ahead[index] += step
        behind[index] -= step
        gradient[index] = (function(ahead) - function(behind)) / (2 * step)
    return gradient


PRIMITIVES = {
    "add": lambda x: x + x * 2.0 + 1.0,
    "subtract": lambda x: (1.0 - x) - x * np.arange(3.0),
    "divide": lambda x: (1.0 / x) / (x + 1.0),
    "negate": lambda x: -x * x,
    "exp": numpy_ops.exp,
    "expm1": numpy_ops.expm1,
    "log": numpy_ops.log,
    "log1p": numpy_ops.log1p,
    "power": lambda x: numpy_ops.power(x, 2.5),
    "abs": lambda x: numpy_ops.abs(x - 1.0),
    "where": lambda x: numpy_ops.where(x > 1.0, x * x, numpy_ops.where(x < 0.5, 0.0, -x)),
    "sum over an axis": lambda x: numpy_ops.sum(x, 0) * numpy_ops.sum(x, 1, keepdims=True),
    "take": lambda x: numpy_ops.take(x, np.array([0, 2]), 1) * 3.0,
    "expand, reshape, broadcast": lambda x: numpy_ops.broadcast_to(
        numpy_ops.expand_dims(numpy_ops.reshape(x, (3, 2)), 0), np.zeros((4, 3, 2))
    ),
    "used many times": lambda x: x * x * x + x * numpy_ops.exp(x) + x,
    "broadcast operand": lambda x: np.ones((5, 2, 3)) * x,
}


@pytest.mark.parametrize("name", PRIMITIVES)
def test_gradient_of_each_primitive(name) -> None:
    x = np.random.default_rng(0).uniform(0.2, 2, (2, 3))
    function = PRIMITIVES[name]
    weights = np.random.default_rng(1).uniform(0.5, 1.5, np.shape(function(x)))
    _, gradient = on_numpy.value_and_grad(lambda x: function(x) * weights, x)
    np.testing.assert_allclose(gradient, numeric(lambda x: (function(x) * weights).sum(), x), rtol=1e-7)


def test_losses_compose_by_arithmetic() -> None:
    t, p = np.eye(3), np.full((3, 3), 1 / 3)
    both = lambda t, p: 2 * lb.categorical_crossentropy(t, p) + lb.kl_divergence(t, p) / 3 - 1.0  # noqa: E731
    value, gradient = lb.value_and_grad(both)(t, p)
    assert value == both(t, p)
    parts = [lb.value_and_grad(loss)(t, p)[1] for loss in (lb.categorical_crossentropy, lb.kl_divergence)]
    np.testing.assert_allclose(gradient, 2 * parts[0] + parts[1] / 3)


def test_what_an_outer_call_alone_differentiates_has_no_gradient_here() -> None:
    labels, p = np.array([0, 1]), np.array([[0.25, 0.75], [0.5, 0.5]])
    found = []

    def outer(labels, p):
        found.append(on_numpy.value_and_grad(lambda q: lb.log_loss(labels, p), np.full(3, 0.5)))
        return lb.log_loss(labels, p)

    value, gradient = lb.value_and_grad(outer)(labels, p)
    assert found[0][0] == value
    np.testing.assert_array_equal(found[0][1], np.zeros(3))
    np.testing.assert_array_equal(gradient, lb.value_and_grad(lb.log_loss)(labels, p)[1])


def test_the_last_operation_has_the_argument_twice() -> None:
    value, gradient = lb.value_and_grad(lambda t, p: p * p)(None, np.array(3.0))
    assert (value, gradient) == (9, 6)


def test_a_loss_that_ignores_its_argument_has_gradient_zero() -> None:
    value, gradient = lb.value_and_grad(lambda t, p: np.float64(3))(None, np.ones(2))
    assert value == 3
    np.testing.assert_array_equal(gradient, 0)


def test_infinities_pass_without_warnings() -> None:
    """Warnings are errors in these tests."""
    p = np.array([[0.0, 1.0]])
    assert lb.categorical_crossentropy([[1, 0]], p, epsilon=0.0) == np.inf
    lb.value_and_grad(lb.categorical_crossentropy)([[1, 0]], p, epsilon=0.0)
    assert np.isnan(lb.categorical_crossentropy([[1, 0]], [[-np.inf, -np.inf]], from_logits=True))


def test_lists_and_scalars_give_float64() -> None:
    value = lb.log_loss([1, 0], [0.9, 0.2])
    assert isinstance(value, np.float64)
    assert lb.log_loss(1, 0.5) == pytest.approx(np.log(2))


def test_float32_gives_a_float32_scalar() -> None:
    assert isinstance(lb.log_loss(np.ones(2, np.float32), np.full(2, 0.5, np.float32)), np.float32)


def test_bfloat16_of_ml_dtypes() -> None:
    p = np.array([[0.25, 0.75]], ml_dtypes.bfloat16)
    value, gradient = lb.value_and_grad(lb.sparse_categorical_crossentropy)([1], p)
    assert value.dtype == np.float32
    assert gradient.dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize(
    "loss",
    [
        lambda t, p: np.mean(lb.log_loss(t, p, reduction="none")),
        lambda t, p: np.where(t > 0, lb.log_loss(t, p, reduction="none"), 0),
        lambda t, p: np.exp(lb.log_loss(t, p)),
        lambda t, p: (lb.log_loss(t, p), 1),
    ],
)
def test_what_the_tape_cannot_follow_is_refused(loss) -> None:
    with pytest.raises(TypeError):
        lb.value_and_grad(loss)(np.array([1.0, 0, 1]), np.array([0.9, 0.2, 0.4]))


def test_masked_results_are_scalars_too() -> None:
    value = lb.log_loss(np.ones(2, np.float32), np.full(2, 0.5, np.float32), mask=[True, False])
    assert isinstance(value, np.float32)


@pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="the oldest NumPy is tested without frameworks")
def test_departures_from_keras_on_numpy() -> None:
    """In a process of its own: here Keras runs on TensorFlow, because on NumPy it has no gradients."""
    table = Path(__file__).with_name("test_compat_deviations.py")
    arguments = ("-m", "pytest", "-q", table, "--backend", "numpy", "-k", "test_theirs and keras")
    environment = {**os.environ, "KERAS_BACKEND": "numpy"}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
