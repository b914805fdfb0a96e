"""What TensorFlow users do with a loss: tf.function with unknown sizes, XLA, nested tapes, variables."""

from __future__ import annotations

import functools
import sys

import numpy as np
import pytest
import tensorflow as tf
from problems import EDGES, PROBLEMS
from tensorflow.python.autograph.impl.api import is_autograph_artifact

import lossbridge as lb
from lossbridge import distillation, linear, reference, request, topk
from lossbridge.frameworks import tensorflow_ops as ops

problems = pytest.mark.parametrize(
    ("loss", "y_true", "y_pred", "options"), [p[1:] for p in PROBLEMS], ids=[p[0] for p in PROBLEMS]
)


@problems
@pytest.mark.parametrize("reduction", ["mean", "mean_with_sample_weight", "none"])
def test_unknown_sizes(loss, y_true, y_pred, options, reduction) -> None:
    exact = getattr(reference, loss)(y_true, y_pred, **options, reduction=reduction)
    evaluate = lb.value_and_grad(functools.partial(getattr(lb, loss), **options, reduction=reduction))
    unknown = [tf.TensorSpec([None] * x.ndim, x.dtype) for x in (y_true, y_pred)]
    value, gradient = tf.function(evaluate, input_signature=unknown)(y_true, y_pred)
    np.testing.assert_allclose(value, exact.value, rtol=1e-9)
    np.testing.assert_allclose(gradient, exact.gradient, rtol=1e-9, atol=1e-14)


@problems
def test_weights_masks_and_smoothing_of_unknown_sizes(loss, y_true, y_pred, options) -> None:
    if loss == "log_loss" and y_true.ndim == 2:
        weight, mask = np.full(y_true.shape, 2.0), np.arange(y_true.size).reshape(y_true.shape) % 2 == 0
    else:
        weight, mask = np.array([1.0, 2.0, 3.0]), np.array([True, False, True])
    if "categorical" in loss and "focal" not in loss:
        options = options | {"label_smoothing": 0.1, "class_weight": np.arange(5.0)}
    function = functools.partial(getattr(lb, loss), **options)
    exact = getattr(reference, loss)(y_true, y_pred, **options, sample_weight=weight, mask=mask)
    arrays = y_true, y_pred, weight, mask
    unknown = [tf.TensorSpec([None] * x.ndim, x.dtype) for x in arrays]
    for jit_compile in (False, True):
        compiled = tf.function(
            lambda t, p, w, m: function(t, p, sample_weight=w, mask=m), input_signature=unknown, jit_compile=jit_compile
        )
        np.testing.assert_allclose(compiled(*arrays), exact.value, rtol=1e-9)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize("classes", [2, 5])
def test_kept_classes_of_unknown_sizes(classes, dtype) -> None:
    """Whether other classes remain is seen when it runs."""
    log_probs = np.log([[0.5, 0.25], [0.7, 0.1]] if classes > 2 else [[0.4, 0.6], [0.3, 0.7 - 1e-9]])
    arrays = np.array([[0, 1], [1, 0]], dtype), log_probs, np.random.default_rng(0).normal(size=(2, classes))
    unknown = [tf.TensorSpec([None, None], x.dtype) for x in arrays]
    for jit_compile in (False, True):
        compiled = tf.function(lb.topk_divergence, input_signature=unknown, jit_compile=jit_compile)
        np.testing.assert_allclose(compiled(*arrays), reference.topk_divergence(*arrays).value, rtol=1e-9)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize(
    ("y_true", "y_pred", "options"),
    [
        ((4, 1), (4, 3), {}),
        ((1, 3), (4, 3), {}),
        ((4, 3), (1, 3), {}),
        ((2, 6), (3, 4), {}),
        ((4, 3), (4, 3), {"sample_weight": (1,)}),
        ((4, 3), (4, 3), {"mask": (3,)}),
        ((4, 3), (4, 3), {"class_weight": (1,)}),
    ],
)
def test_unknown_sizes_are_not_broadcast_either(y_true, y_pred, options, jit_compile) -> None:
    arrays = [np.ones(shape, np.float32) for shape in (y_true, y_pred, *options.values())]
    # A size of 1 that is known is no better.
    unknown = [tf.TensorSpec([1 if n == 1 else None for n in x.shape], x.dtype) for x in arrays]
    names = list(options)
    compiled = tf.function(
        lambda t, p, *rest: lb.categorical_crossentropy(t, p, **dict(zip(names, rest, strict=True))),
        input_signature=unknown,
        jit_compile=jit_compile,
    )
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError)):
        compiled(*arrays)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_labels_of_unknown_sizes_are_not_broadcast(count, jit_compile) -> None:
    compiled = tf.function(
        lambda y, p: lb.sparse_categorical_crossentropy(y, p),
        input_signature=[tf.TensorSpec([None], tf.int32), tf.TensorSpec([None, None])],
        jit_compile=jit_compile,
    )
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError)):
        compiled(np.zeros(count, np.int32), np.full((3, 4), 0.25, np.float32))


def test_gradients_are_tensors() -> None:
    """Not IndexedSlices, which tf.gather gives for one sample."""
    _, gradient = lb.value_and_grad(lb.log_loss)(tf.constant(1), tf.constant([0.2, 0.8]))
    np.testing.assert_allclose(gradient.numpy(), [0, -1.25], rtol=1e-6)


@problems
def test_nested_tapes(loss, y_true, y_pred, options) -> None:
    """The second derivative along a direction, against central differences of the closed-form gradient."""
    rng = np.random.default_rng(0)
    direction = rng.normal(size=y_pred.shape)
    closed_form = getattr(reference, loss)
    step = 1e-5
    ahead, behind = (closed_form(y_true, y_pred + s * step * direction, **options).gradient for s in (1, -1))
    x = tf.constant(y_pred)
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            value = getattr(lb, loss)(tf.constant(y_true), x, **options)
        along = tf.reduce_sum(inner.gradient(value, x) * direction)
    np.testing.assert_allclose(outer.gradient(along, x), (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("loss", ["categorical_crossentropy", "sparse_categorical_crossentropy"])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_hessian_at_the_edges(loss, jit_compile) -> None:
    """Of softmax cross-entropy: diag(p) − p pᵀ, whatever the target."""

    @tf.function(jit_compile=jit_compile)
    def hessian(t, z):
        with tf.GradientTape(persistent=True) as outer:
            outer.watch(z)
            with tf.GradientTape() as inner:
                inner.watch(z)
                value = getattr(lb, loss)(t, z, from_logits=True)
            slope = inner.gradient(value, z)
            entries = [slope[i] for i in range(3)]
        return tf.stack([outer.gradient(entry, z) for entry in entries])

    target = np.eye(3) if loss == "categorical_crossentropy" else np.arange(3)
    for t, z in zip(target, EDGES, strict=True):
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        got = hessian(tf.constant(t), tf.constant(z))
        np.testing.assert_allclose(got, np.diag(p) - np.outer(p, p), rtol=1e-9, atol=1e-15)


def test_variables_are_arrays() -> None:
    target, pred = tf.Variable(tf.eye(3)), tf.Variable(tf.fill((3, 3), 1 / 3))
    with tf.GradientTape() as tape:
        loss = lb.categorical_crossentropy(target, pred)
    np.testing.assert_allclose(loss, np.log(3), rtol=1e-6)
    assert tape.gradient(loss, pred) is not None
    _, gradient = lb.value_and_grad(lb.categorical_crossentropy)(target, pred)
    np.testing.assert_allclose(gradient, tape_gradient(target, pred), rtol=1e-6)


def tape_gradient(target, pred):
    with tf.GradientTape() as tape:
        loss = lb.categorical_crossentropy(target, pred)
    return tape.gradient(loss, pred)


def test_no_retracing_for_new_sizes() -> None:
    traces = []

    @tf.function(reduce_retracing=True)
    def step(y, z):
        traces.append(1)
        return lb.sparse_categorical_crossentropy(y, z, from_logits=True)

    for n in (3, 4, 5, 6, 7):
        step(tf.zeros(n, tf.int32), tf.zeros((n, 4)))
    assert len(traces) <= 2


# The private interfaces that lossbridge.frameworks.tensorflow_ops marks: the positive answer of each. What a new
# release of TensorFlow renames or leaves empty fails here; else it would be a slower path that nobody sees.


def test_private_eager_tensor() -> None:
    assert type(tf.constant(1.0)) in ops.TYPES


def test_private_records_of_a_tape() -> None:
    x = tf.constant(3.0)
    assert not ops.is_recorded([x])
    with tf.GradientTape() as tape:
        tape.watch(x)
        assert ops.is_recorded([x])
        value = tf.constant(9.0)  # of which the tape knows nothing, until it is told
        ops.record_operation("square", [value], [x], lambda upstream: [2 * 3.0 * upstream])
    assert tape.gradient(value, x) == 6


def test_private_forward_mode() -> None:
    x = tf.constant(3.0)
    assert not ops.in_forward_mode(x)
    with tf.autodiff.ForwardAccumulator(x, tf.constant(1.0)):
        assert ops.in_forward_mode(x)


def test_private_branch_of_a_condition() -> None:
    answers = {}

    @tf.function
    def ask(x):
        answers["outside"] = ops.in_branch_of_cond()

        def branch():
            answers["inside"] = ops.in_branch_of_cond()
            return x

        return tf.cond(x > 0, branch, lambda: -x)

    ask(tf.constant(1.0))
    assert answers == {"outside": False, "inside": True}


def test_private_rules_of_autograph(monkeypatch) -> None:
    callers, as_array = set(), request.as_array

    def spy(*arguments):
        callers.add(sys._getframe(1).f_code.co_filename)
        return as_array(*arguments)

    monkeypatch.setattr(request, "as_array", spy)
    for loss in (lb.categorical_crossentropy, lb.value_and_grad(lb.categorical_crossentropy)):
        tf.function(lambda y, z, loss=loss: loss(y, z))(tf.eye(3), tf.eye(3))
    assert callers == {request.__file__}  # and no file of AutoGraph's
    for function in (request.run, linear.run, topk.run, distillation.run):
        assert is_autograph_artifact(function)  # so also before TensorFlow's part of lossbridge is imported


def test_autograph_rewrites_the_users_loss_inside_value_and_grad() -> None:
    def loss(y, z):
        if tf.reduce_sum(z) > 0:
            return lb.categorical_crossentropy(y, z, from_logits=True)
        else:
            return 2 * lb.categorical_crossentropy(y, z, from_logits=True)

    y, z = tf.eye(3), tf.constant(np.random.default_rng(0).normal(1, 1, (3, 3)), tf.float32)
    for of in (None, "z", ("z",)):
        for function in (lb.value_and_grad(loss, of), lambda y, z, of=of: lb.value_and_grad(loss, of)(y, z)):
            for x, times in ((z, 1), (-z, 2)):
                value, gradient = tf.function(function)(y, x)
                exact, exact_gradient = lb.value_and_grad(lb.categorical_crossentropy)(y, x, from_logits=True)
                np.testing.assert_allclose(value, times * exact, rtol=1e-6)
                np.testing.assert_allclose(tf.reshape(gradient, [3, 3]), times * exact_gradient, rtol=1e-6)


def test_autograph_keeps_its_options_and_the_users_exceptions_inside_value_and_grad() -> None:
    class OfUser(Exception):
        def __init__(self, one, another) -> None: ...

    def asserting(y, z):
        assert tf.reduce_sum(z) > 0
        return lb.categorical_crossentropy(y, z)

    def raising(y, z):
        raise OfUser(1, 2)

    def wrong(y, z):
        return lb.categorical_crossentropy(y, z, axis=7)

    @tf.function(experimental_autograph_options=tf.autograph.experimental.Feature.ASSERT_STATEMENTS)
    def step(y, z):
        return lb.value_and_grad(asserting)(y, z)

    @tf.function
    def caught(y, z):
        for loss in (raising, wrong):
            try:
                lb.value_and_grad(loss)(y, z)
            except (OfUser, ValueError) as error:
                errors.append(error)
        return z

    errors = []
    step(tf.eye(3), tf.eye(3))
    caught(tf.eye(3), tf.eye(3))
    assert isinstance(errors[0], OfUser)
    assert str(errors[1]).startswith("axis 7 is out of range")
