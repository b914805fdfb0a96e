"""TensorFlow's paths: every registered case on each, sizes, derivatives, masks, threads."""

from __future__ import annotations

import functools
import threading

import numpy as np
import pytest
import tensorflow as tf

import lossbridge as lb
from lossbridge import reference
from lossbridge.frameworks import on_tensorflow as kernels
from lossbridge.frameworks import tensorflow_ops as b
from lossbridge.tools.parity.cases import Case, cases
from lossbridge.tools.parity.check import Runner, in_order

SPARSE = "sparse_categorical_crossentropy"
sparse = functools.partial(lb.sparse_categorical_crossentropy, from_logits=True)
PATHS = {"NumPy": None, "eager": None, "function": 10**9, "XLA": 0}


def on_path(path: str, monkeypatch, function):
    """`function` in eager mode, on the host or as on a GPU, or in a graph with or without XLA inside."""
    if path == "eager":
        monkeypatch.setattr(b, "on_host", lambda *arrays: False)
    if PATHS[path] is None:
        return function
    monkeypatch.setattr(kernels, "XLA_ELEMENTS", PATHS[path])
    return tf.function(function, autograph=False)


def problem(rows: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, classes, rows).astype(np.int32), (3 * rng.normal(size=(rows, classes))).astype(np.float32)


def forbid_the_formula(monkeypatch) -> None:
    def refuse(*arguments):
        raise AssertionError("the formula was used")

    monkeypatch.setattr(kernels, "by_formula", refuse)


def force_the_formula(monkeypatch) -> None:
    for refuses in ("_refuses_numpy", "_refuses_rule"):
        monkeypatch.setattr(kernels, refuses, lambda r: "it is forced")


@pytest.fixture(scope="module")
def runner() -> Runner:
    return Runner(kernels)


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in in_order(cases())
        if "focal" not in case.loss and case.dtype == "float32" and case.options.get("reduction") == "none"
    ],
    ids=lambda case: f"{case.loss}-{case.name}",
)
def test_cases_in_xla(case: Case, runner: Runner, monkeypatch) -> None:
    monkeypatch.setattr(kernels, "XLA_ELEMENTS", 0)
    monkeypatch.setattr(kernels, "XLA_BLOCK", 7)
    outcome = runner.run(case, "function")
    assert not outcome.fault, outcome.fault


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("classes", [2, 3, 31, 32, 33, 1000, 50257, 128256])
def test_sizes(path, classes, monkeypatch) -> None:
    for rows in (0, 1, 7) if classes <= 1000 else (2,):
        y, z = problem(rows, classes)
        exact = reference.sparse_categorical_crossentropy(y, z, from_logits=True, reduction="none")
        function = on_path(path, monkeypatch, lb.value_and_grad(functools.partial(sparse, reduction="none")))
        value, gradient = function(tf.constant(y), tf.constant(z))
        np.testing.assert_allclose(value, exact.value, rtol=1e-6)
        np.testing.assert_allclose(gradient, exact.gradient, rtol=2e-6, atol=1e-7)
        again, gradient_again = function(tf.constant(y), tf.constant(z))
        assert (again.numpy() == value.numpy()).all()
        assert (gradient_again.numpy() == gradient.numpy()).all()


@pytest.mark.parametrize("path", PATHS)
def test_no_formula_is_needed(path, monkeypatch) -> None:
    forbid_the_formula(monkeypatch)
    y, z = problem(4, 5)
    on_path(path, monkeypatch, lb.value_and_grad(sparse))(tf.constant(y), tf.constant(z))


@pytest.mark.parametrize("path", PATHS)
def test_bad_labels_and_dropped_rows(path, monkeypatch) -> None:
    y, z = problem(5, 4)
    y[1], y[3] = 9, -1
    z[2] = np.nan
    mask = np.array([True, True, False, False, True])
    function = on_path(
        path,
        monkeypatch,
        lambda y, z, m: lb.value_and_grad(functools.partial(sparse, mask=m, reduction="none"))(y, z),
    )
    if PATHS[path] is None:  # labels on the host are refused
        y[1] = 0
    value, gradient = (x.numpy() for x in function(tf.constant(y), tf.constant(z), tf.constant(mask)))
    assert np.isnan(value[1]) == (PATHS[path] is not None)
    assert np.isfinite(value[[0, 4]]).all()
    assert (value[[2, 3]] == 0).all()
    assert (gradient[[2, 3]] == 0).all()
    assert (gradient[[0, 4]] != 0).all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_second_derivatives(path, dtype, monkeypatch) -> None:
    y, z = problem(3, 4)
    direction = np.random.default_rng(1).normal(size=z.shape)

    def along(y, z):
        with tf.GradientTape() as outer:
            outer.watch(z)
            with tf.GradientTape() as inner:
                inner.watch(z)
                value = sparse(y, z, reduction="sum")
            slope = tf.reduce_sum(inner.gradient(value, z) * tf.constant(direction, z.dtype))
        return outer.gradient(slope, z)

    got = on_path(path, monkeypatch, along)(tf.constant(y), tf.constant(z, dtype))
    p = np.exp(z.astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    exact = p * direction - p * (p * direction).sum(-1, keepdims=True)
    np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-6)


def _soft(rows: int, classes: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(classes), rows)


DENSE = {
    "dense": (functools.partial(lb.categorical_crossentropy, from_logits=True, label_smoothing=0.1), _soft, problem),
    "KL of logits": (functools.partial(lb.kl_divergence, from_logits=True), problem, problem),
    "KL": (lb.kl_divergence, _soft, _soft),
    "distillation": (functools.partial(lb.distillation_loss, temperature=3.0), problem, problem),
    "trials": (functools.partial(lb.log_loss, from_logits=True), _soft, problem),
    "binary": (functools.partial(lb.binary_crossentropy, pos_weight=3.0, label_smoothing=0.1), _soft, _soft),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("both", [False, True], ids=["pred", "target and pred"])
def test_derivatives_are_those_of_the_formula(path, name, both, monkeypatch) -> None:
    loss, *makers = DENSE[name]
    sizes, mask = (7, 5), np.array([True, False, True, True, True, True, True])
    t, z = (make(*sizes, seed) for seed, make in enumerate(makers))
    t, z = (tf.constant(x[1] if isinstance(x, tuple) else x, tf.float64) for x in (t, z))
    if "log_loss" in str(loss):
        mask = np.tile(mask[:, None], (1, sizes[1]))
    directions = [tf.constant(x) for x in np.random.default_rng(5).normal(size=(2, *sizes))]

    def derivatives(t, z):
        watched = [t, z] if both else [z]
        with tf.GradientTape() as outer:
            outer.watch(watched)
            with tf.GradientTape() as inner:
                inner.watch(watched)
                value = loss(t, z, mask=mask, reduction="sum")
            first = inner.gradient(value, watched)
            along = tf.add_n([tf.reduce_sum(x * d) for x, d in zip(first, directions, strict=False)])
        return [value, *first, *outer.gradient(along, watched)]

    with monkeypatch.context() as patch:
        force_the_formula(patch)
        wanted = derivatives(t, z)
    monkeypatch.setattr(kernels, "XLA_BLOCK", 10)
    for got, exact in zip(on_path(path, monkeypatch, derivatives)(t, z), wanted, strict=True):
        np.testing.assert_allclose(got, exact, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("path", ["function", "XLA"])
@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("classes", [2, pytest.param(33, marks=pytest.mark.exhaustive), 1000, 50257])
def test_sizes_of_dense_losses(path, name, classes, monkeypatch) -> None:
    loss, *makers = DENSE[name]
    for rows in (0, 1, 7) if classes <= 1000 else (2,):
        t, z = (make(rows, classes, seed) for seed, make in enumerate(makers))
        t, z = (tf.constant(x[1] if isinstance(x, tuple) else x, tf.float32) for x in (t, z))
        both = lb.value_and_grad(functools.partial(loss, reduction="none"))
        exact, slope = both(tf.cast(t, tf.float64), tf.cast(z, tf.float64))
        value, gradient = on_path(path, monkeypatch, both)(t, z)
        np.testing.assert_allclose(value, exact, rtol=2e-6, atol=1e-7)
        np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=2e-7 * max(1.0, np.abs(slope).max(initial=0)))


@pytest.mark.parametrize("way", ["function", "jit_compile"])
@pytest.mark.parametrize("name", DENSE)
def test_one_trace_serves_every_batch(way, name) -> None:
    loss, *makers = DENSE[name]
    calls = []

    def counted(t, z):
        calls.append(1)
        return lb.value_and_grad(loss)(t, z)

    spec = tf.TensorSpec([None, 5], tf.float32)
    function = tf.function(counted, jit_compile=way == "jit_compile", input_signature=[spec, spec], autograph=False)
    for rows in (1, 7, 8):
        t, z = (make(rows, 5, seed) for seed, make in enumerate(makers))
        t, z = (tf.constant(x[1] if isinstance(x, tuple) else x, tf.float32) for x in (t, z))
        exact, slope = lb.value_and_grad(loss)(t, z)
        value, gradient = function(t, z)
        np.testing.assert_allclose(value, exact, rtol=2e-6)
        np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-7)
    assert len(calls) == 1


def test_forward_mode_and_jacobian() -> None:
    y, z = (tf.constant(x) for x in problem(3, 4))
    direction = tf.ones_like(z) * tf.constant([1.0, 2, 3, 4])
    with tf.autodiff.ForwardAccumulator(z, direction) as accumulator:
        value = sparse(y, z)
    _, gradient = lb.value_and_grad(sparse)(y, z)
    np.testing.assert_allclose(accumulator.jvp(value), tf.reduce_sum(gradient * direction), rtol=1e-5)
    with tf.GradientTape() as tape:
        tape.watch(z)
        losses = sparse(y, z, reduction="none")
    np.testing.assert_allclose(tf.reduce_sum(tape.jacobian(losses, z), axis=0) / 3, gradient, rtol=1e-5, atol=1e-7)


def test_class_weights_learn_too() -> None:
    y, z = (tf.constant(x) for x in problem(6, 4))
    weight = tf.Variable([1.0, 2.0, 0.0, 3.0])
    with tf.GradientTape() as tape:
        value = sparse(y, z, class_weight=weight, reduction="sum")
    got = tape.gradient(value, weight)
    costs = sparse(y, z, reduction="none")
    np.testing.assert_allclose(got, tf.math.unsorted_segment_sum(costs, y, 4), rtol=1e-6)


_WEIGHTS = np.linspace(0.5, 2, 6)
_WEIGHTED = {
    "labels": (sparse, {"class_weight": _WEIGHTS}),
    "smoothed labels": (functools.partial(sparse, label_smoothing=0.1), {"class_weight": _WEIGHTS}),
    "label probabilities": (lb.sparse_categorical_crossentropy, {"class_weight": _WEIGHTS}),
    "distributions": (functools.partial(lb.categorical_crossentropy, from_logits=True), {"class_weight": _WEIGHTS}),
    "probabilities": (lb.categorical_crossentropy, {"class_weight": _WEIGHTS}),
    "focal": (lb.categorical_focal_crossentropy, {"alpha": _WEIGHTS / 2}),
    "binary": (functools.partial(lb.binary_crossentropy, from_logits=True), {"pos_weight": _WEIGHTS}),
    "binary probabilities": (lb.binary_crossentropy, {"pos_weight": _WEIGHTS}),
}


_WITH_RULE = "labels", "smoothed labels", "distributions", "binary", "binary probabilities"


def weighted_problem(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Of six classes along the middle axis."""
    rng = np.random.default_rng(0)
    target, p = rng.dirichlet(np.ones(6), (2, 5, 3)).swapaxes(2, 3).astype(np.float32)
    pred = 3 * p if "from_logits" in str(_WEIGHTED[name][0]) else p
    return (p.argmax(1).astype(np.int32) if "label" in name else target), pred


def without_keywords(function):
    """Those of a partial function tf.function would pass as tensors."""
    return lambda y, z: function(y, z)


@pytest.mark.parametrize("path", ["function", "XLA"])
@pytest.mark.parametrize("name", _WITH_RULE)
def test_constant_weights_of_classes_take_the_rule(name, path, monkeypatch) -> None:
    loss, options = _WEIGHTED[name]
    loss = functools.partial(loss, axis=1)
    y, z = (tf.constant(x) for x in weighted_problem(name))
    value, gradient = lb.value_and_grad(functools.partial(loss, **options))(y, z)
    monkeypatch.setattr(kernels, "XLA_BLOCK", 40)
    for given in (options, {key: x.tolist() for key, x in options.items()}):
        with monkeypatch.context() as patch:
            forbid_the_formula(patch)
            found = on_path(path, patch, without_keywords(lb.value_and_grad(functools.partial(loss, **given))))(y, z)
        np.testing.assert_allclose(found[0], value, rtol=1e-6)
        np.testing.assert_allclose(found[1], gradient, rtol=2e-6, atol=1e-8)


@pytest.mark.parametrize("name", _WEIGHTED)
def test_weights_of_classes_that_are_tensors_are_differentiated(name) -> None:
    """Variables, tensors from outside, and constants of the graph: the loss is linear in them, but for what follows."""
    loss, options = _WEIGHTED[name]
    y, z = (tf.constant(x) for x in weighted_problem(name))
    ((option, weights),) = options.items()
    direction = np.linspace(-1, 1, 6)
    loss = functools.partial(loss, y, z, axis=1, reduction="sum")
    expected = (loss(**{option: weights + 0.1 * direction}) - loss(**{option: weights})) / 0.1

    def gradient(weights):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            value = loss(**{option: weights})
        return tape.gradient(value, weights)

    given = tf.constant(weights, tf.float32)
    variable = tf.Variable(given)
    for function in (
        lambda: gradient(given),
        lambda: gradient(variable),
        lambda: gradient(tf.constant(weights, tf.float32)),
        lambda: tf.gradients(loss(**{option: variable + 0}), variable)[0],
        lambda: (lambda x: tf.gradients(loss(**{option: x}), x)[0])(tf.constant(weights, tf.float32)),
    ):
        np.testing.assert_allclose(np.sum(tf.function(function)() * direction), expected, rtol=2e-4)


def test_gradients_twice_and_within_functions() -> None:
    y, z = (tf.constant(x) for x in problem(3, 4))
    _, exact = lb.value_and_grad(sparse)(y, z)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(z)
        value = sparse(y, z)

    def gradient():
        return tape.gradient(value, z)

    for again in (gradient, gradient, tf.function(gradient)):
        np.testing.assert_allclose(again(), exact, rtol=1e-6, atol=1e-8)


def test_targets_are_differentiated_only_where_they_are_floating() -> None:
    one_hot, z = tf.constant(np.eye(3, dtype=np.int32)), tf.constant(problem(3, 3)[1])
    _, gradient = lb.value_and_grad(functools.partial(lb.categorical_crossentropy, from_logits=True))(one_hot, z)
    _, exact = lb.value_and_grad(sparse)(tf.range(3), z)
    np.testing.assert_allclose(gradient, exact, rtol=1e-5, atol=1e-7)


def test_threads() -> None:
    y, z = (tf.constant(x) for x in problem(8, 5))
    found = []
    threads = [threading.Thread(target=lambda: found.append(lb.value_and_grad(sparse)(y, z))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len({(float(value), gradient.numpy().tobytes()) for value, gradient in found}) == 1


@pytest.mark.parametrize("way", ["function", "jit_compile"])
def test_a_tape_around_what_is_compiled(way, monkeypatch) -> None:
    monkeypatch.setattr(kernels, "XLA_ELEMENTS", 0)
    monkeypatch.setattr(kernels, "XLA_BLOCK", 10)
    y, z = (tf.constant(x) for x in problem(5, 5))
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = tf.function(sparse, jit_compile=way == "jit_compile", autograph=False)(y, z)
    exact, slope = lb.value_and_grad(sparse)(y, z)
    np.testing.assert_allclose(value, exact, rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(value, z), slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("path", ["function", "XLA"])
def test_a_saved_model_trains(path, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(kernels, "XLA_ELEMENTS", PATHS[path])
    monkeypatch.setattr(kernels, "XLA_BLOCK", 10)
    y, z = (tf.constant(x) for x in problem(5, 5))
    module = tf.Module()
    module.loss = tf.function(
        sparse, input_signature=[tf.TensorSpec(y.shape, y.dtype), tf.TensorSpec(z.shape, z.dtype)], autograph=False
    )
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = loaded.loss(y, z)
    exact, slope = lb.value_and_grad(sparse)(y, z)
    np.testing.assert_allclose(value, exact, rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(value, z), slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loss", ["categorical_crossentropy", "kl_divergence", SPARSE])
def test_gradients_through_a_branch(loss, monkeypatch) -> None:
    monkeypatch.setattr(kernels, "XLA_ELEMENTS", 0)
    y, z = problem(5, 6)
    target = tf.constant(y) if loss == SPARSE else tf.nn.softmax(tf.constant(z[::-1]))
    function = functools.partial(getattr(lb, loss), from_logits=True)

    @functools.partial(tf.function, autograph=False)
    def step(target, z):
        with tf.GradientTape() as tape:
            tape.watch(z)
            value = tf.cond(z[0, 0] > -99, lambda: function(target, z), lambda: tf.zeros([]))
        return tape.gradient(value, z)

    expected = lb.value_and_grad(function)(target, tf.constant(z))[1]
    np.testing.assert_allclose(step(target, tf.constant(z)), expected, rtol=1e-5, atol=1e-8)


def test_infinite_losses_pass_without_warnings() -> None:
    ones = tf.constant([1.0, 1.0])
    assert lb.log_loss(ones, tf.constant([-np.inf, -3e38]), from_logits=True) == np.inf
    assert np.isnan(lb.log_loss(tf.constant([1.0, np.nan]), 0 * ones, epsilon=0.0, reduction="sum"))
