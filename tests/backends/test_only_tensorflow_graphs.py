"""What TensorFlow users do around a loss: one example at a time, and checks that stop at any NaN or infinity."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from problems import PROBLEMS

import lossbridge as lb
import lossbridge.keras as lk
from lossbridge.spec import LOSSES

each = pytest.mark.parametrize(
    ("loss", "y_true", "y_pred", "given"), [p[1:] for p in PROBLEMS], ids=[p[0] for p in PROBLEMS]
)
# What a loss may be given besides, of three samples and five classes.
MORE = {
    "label_smoothing": 0.1,
    "class_weight": np.linspace(0.5, 2, 5),
    "pos_weight": np.linspace(0.5, 2, 5),
    "alpha": np.linspace(0.1, 0.9, 5),
    "ignore_class": 0,
}
OF_SAMPLES = {"sample_weight": [1.0, 0.0, 2.0], "mask": [True, True, False], "reduction": "mean_with_sample_weight"}


def with_options(loss: str, given: dict) -> dict:
    names = set(LOSSES[loss].options) - ({"alpha"} if loss == "binary_focal_crossentropy" else set())
    return {**given, **{name: x for name, x in MORE.items() if name in names}}


def arrays(y_true, y_pred, labels: str = "int32"):
    return tf.constant(y_true, labels if y_true.dtype.kind == "i" else "float32"), tf.constant(y_pred, "float32")


# Branches of tf.cond, whose gradient is taken where they are not in sight.


def differentiated_outside(function, x):
    branches = tf.function(
        lambda z: tf.cond(z[0, 0] > -99, lambda: function(z), lambda: 2 * function(z)), autograph=False
    )
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = branches(x)
    return value, tape.gradient(value, x)


def differentiated_in_a_branch(function, x):
    def inside():
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.cond(x[0, 0] > -99, lambda: function(x), lambda: 2 * function(x))
        return value, tape.gradient(value, x)

    return tf.function(lambda: tf.cond(x[0, 0] > -99, inside, inside), autograph=False)()


def differentiated_after_a_loop(function, x):
    def body(i, total):
        return i + 1, total + tf.cond(i < 9, lambda: function(x), lambda: 0.0)

    @functools.partial(tf.function, autograph=False)
    def step():
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.while_loop(lambda i, _: i < 1, body, (0, 0.0))[1]
        return value, tape.gradient(value, x)

    return step()


BRANCHES = [differentiated_outside, differentiated_in_a_branch, differentiated_after_a_loop]


@each
@pytest.mark.parametrize("branches", BRANCHES)
def test_losses_in_branches(loss, y_true, y_pred, given, branches) -> None:
    y, x = arrays(y_true, y_pred)
    expected, slope = lb.value_and_grad(getattr(lb, loss))(y, x, **given)
    value, gradient = branches(lambda z: getattr(lb, loss)(y, z, **given), x)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("branches", BRANCHES)
def test_linear_losses_in_branches(branches) -> None:
    rng = np.random.default_rng(0)
    x, weight = tf.constant(rng.normal(size=(6, 4)), tf.float32), tf.constant(rng.normal(size=(9, 4)), tf.float32)

    def function(x):
        return lb.linear_crossentropy(np.arange(6), x, weight, memory=200)

    with tf.GradientTape() as tape:
        tape.watch(x)
        expected = function(x)
    slope = tape.gradient(expected, x)
    value, gradient = branches(function, x)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-7)


# One example at a time.


@each
@pytest.mark.parametrize("labels", ["int32", "int64"])
def test_vectorized_map_and_map_fn_equal_the_batch(loss, y_true, y_pred, given, labels) -> None:
    if labels == "int64" and y_true.dtype.kind != "i":
        return  # the same test twice
    for options in (given, with_options(loss, given)):
        function = lb.value_and_grad(getattr(lb, loss))
        y, x = arrays(y_true, y_pred, labels)
        value, gradient = function(y, x, **options, reduction="sum")
        each_gradient = [function(a, b, **options, reduction="sum")[1] for a, b in zip(y, x, strict=True)]
        np.testing.assert_allclose(tf.stack(each_gradient), gradient, rtol=1e-5, atol=1e-7)

        def one(pair, function=function, options=options):
            return function(*pair, **options, reduction="sum")

        for found in (
            tf.vectorized_map(one, (y, x)),
            tf.map_fn(one, (y, x), fn_output_signature=(tf.float32, tf.float32)),
            tf.vectorized_map(lambda pair, one=one: one([z[None] for z in pair]), (y, x)),
        ):
            np.testing.assert_allclose(tf.reduce_sum(found[0]), value, rtol=1e-5)
            np.testing.assert_allclose(tf.reshape(found[1], x.shape), gradient, rtol=1e-5, atol=1e-7)


# Checks that stop at any NaN or infinity.


@pytest.fixture
def _check_numerics():
    tf.debugging.enable_check_numerics()
    yield
    tf.debugging.disable_check_numerics()


@each
@pytest.mark.parametrize("sizes", ["known", "unknown"])
@pytest.mark.usefixtures("_check_numerics")
def test_check_numerics_finds_nothing(loss, y_true, y_pred, given, sizes) -> None:
    y, x = arrays(y_true, y_pred)
    for options in (given, {**with_options(loss, given), **OF_SAMPLES}):

        def step(y, x, options=options):
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = getattr(lb, loss)(y, x, **options)
            return value, tape.gradient(value, x)

        signature = [tf.TensorSpec(z.shape if sizes == "known" else [None] * z.shape.rank, z.dtype) for z in (y, x)]
        compiled = tf.function(step, input_signature=signature, autograph=False)
        for got, wanted in zip(compiled(y, x), step(y, x), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("sizes", ["known", "unknown"])
def test_hidden_states_of_two_layers(sizes) -> None:
    """A graph may know the number of units by the weight alone."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in ((6, 7), (50, 7), (6, 4), (50, 4))]
    shapes = [x.shape if sizes == "known" or len(x) == 50 else [None, None] for x in arrays]
    signature = [tf.TensorSpec(shape, tf.float32) for shape in shapes]

    def step(teacher, teacher_weight, hidden, weight):
        with tf.GradientTape() as tape:
            tape.watch((hidden, weight))
            value = lb.linear_distillation(teacher, teacher_weight, hidden, weight)
        return value, *tape.gradient(value, (hidden, weight))

    compiled = tf.function(step, input_signature=signature, autograph=False)
    for got, wanted in zip(compiled(*arrays), step(*map(tf.constant, arrays)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("form", ["logits", "probabilities"])
@pytest.mark.parametrize("name", [name for name in lk.__all__ if issubclass(getattr(lk, name), keras.losses.Loss)])
@pytest.mark.usefixtures("_check_numerics")
def test_check_numerics_lets_keras_train(name, form) -> None:
    of_logits = name in ("DistillationLoss", "Divergence")
    if of_logits and form == "probabilities":
        return  # there is none
    rng = np.random.default_rng(0)
    y = rng.dirichlet(np.ones(3), 8).astype("float32")
    if name.startswith("Sparse") or name == "LogLoss":
        y = y.argmax(1)
    loss = getattr(lk, name)(**({"from_logits": form == "logits"} if not of_logits else {}))
    model = keras.Sequential([keras.layers.Dense(3, activation="softmax" if form == "probabilities" else None)])
    model.compile(optimizer="sgd", loss=loss)
    history = model.fit(rng.normal(size=(8, 4)).astype("float32"), y, epochs=1, batch_size=4, verbose=0)
    assert np.isfinite(history.history["loss"]).all()


@pytest.mark.usefixtures("_check_numerics")
def test_check_numerics_would_find_a_bad_label() -> None:
    """Its NaN is computed where it is due."""
    compiled = tf.function(lambda y: lb.sparse_categorical_crossentropy(y, tf.ones((2, 3)), from_logits=True))
    compiled(tf.constant([0, 1]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="NaN"):
        compiled(tf.constant([0, 3]))


# An unknown rank.

RANKLESS = "; say how many axes it has, as with tf.ensure_shape"


def refusal(loss, arguments: dict, name: str) -> str:
    """The one line that a call raises in which nothing is known of the shape of the argument `name`."""
    arguments = {key: x if x is None else tf.convert_to_tensor(x) for key, x in arguments.items()}

    @tf.autograph.experimental.do_not_convert
    def call(x: tf.Tensor) -> tf.Tensor:
        return loss(**{**arguments, name: x})

    with pytest.raises(ValueError, match=r"has an unknown rank") as raised:
        tf.function(call).get_concrete_function(tf.TensorSpec(None, arguments[name].dtype))
    return str(raised.value)


@each
def test_what_has_an_unknown_rank_is_named(loss, y_true, y_pred, given) -> None:
    y, x = arrays(y_true, y_pred)
    names = LOSSES[loss].names
    options = with_options(loss, given)
    per_class = [name for name in ("class_weight", "pos_weight", "alpha") if isinstance(options.get(name), np.ndarray)]
    options |= {name: tf.constant(options[name], "float32") for name in per_class}
    options |= {"sample_weight": tf.ones(3), "mask": tf.ones(3, tf.bool), "normalizer": tf.constant(2.0)}
    given_by_name = {names.target: y, names.pred: x, **options}
    for name in (names.target, names.pred, "sample_weight", "mask", "normalizer", *per_class):
        whole = {key: v for key, v in given_by_name.items() if isinstance(v, tf.Tensor)}
        rest = {key: v for key, v in given_by_name.items() if key not in whole}
        found = refusal(lambda rest=rest, **more: getattr(lb, loss)(**rest, **more), whole, name)
        assert found.startswith(f"{name} has an unknown rank{RANKLESS}")
        assert "\n" not in found


def test_what_has_an_unknown_rank_is_named_in_linear_losses_and_others() -> None:
    labels, hidden, weight = tf.zeros(3, tf.int32), tf.ones((3, 4)), tf.ones((5, 4))
    student = {"student_hidden": hidden, "student_weight": weight}
    teacher = {"teacher_hidden": hidden, "teacher_weight": weight}
    for loss, arguments in (
        (lb.linear_crossentropy, {"labels": labels, "hidden": hidden, "weight": weight, "bias": tf.ones(5)}),
        (lb.linear_token_log_probs, {"labels": labels, "hidden": hidden, "weight": weight}),
        (lb.linear_distillation, {**teacher, **student}),
        (lb.token_log_probs, {"labels": labels, "logits": hidden}),
        (lb.entropy_from_logits, {"logits": hidden}),
        (lb.topk_divergence, {"indices": labels[:, None], "log_probs": hidden[:, :1], "student_logits": hidden}),
    ):
        for name in arguments:
            found = refusal(loss, arguments, name)
            assert found.startswith(f"{name} has an unknown rank{RANKLESS}"), loss
            assert "\n" not in found
