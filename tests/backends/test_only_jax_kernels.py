"""The kernels of JAX: equal to the formulas, derivatives of any order and mode, and no arrays of classes stored."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossbridge as lb
from lossbridge.kernels import jax as kernels

SPARSE, DENSE = "sparse_categorical_crossentropy", "categorical_crossentropy"
CASES = [(SPARSE, {}), (DENSE, {}), (DENSE, {"label_smoothing": 0.1}), ("log_loss", {})]
each = pytest.mark.parametrize(("loss", "options"), CASES, ids=lambda x: x if isinstance(x, str) else ",".join(x))


def problem(loss: str, n: int, v: int, seed: int = 0, dtype: str = "float32") -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    z = jnp.asarray(3 * rng.normal(size=(n, v)), dtype)
    if loss == DENSE:
        return jax.nn.softmax(jnp.asarray(3 * rng.normal(size=(n, v)), dtype)), z
    return jnp.asarray(rng.integers(0, v, n), "int32"), z


def loss_of(loss: str, **options):
    return functools.partial(getattr(lb, loss), from_logits=True, **options)


@pytest.fixture
def without(monkeypatch):
    """A call without the kernels: their limit is lowered, so that all of them decline."""

    def call(function, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "MOST_CLASSES", 0)
            return function(*arguments)

    return call


@each
@pytest.mark.parametrize("v", [2, 3, 31, 32, 33, 1000])
@pytest.mark.parametrize("n", [0, 7])
def test_equal_to_the_formula(without, loss, options, n, v) -> None:
    target, z = problem(loss, n, v)
    value_and_grad = jax.value_and_grad(lambda z: loss_of(loss, **options)(target, z))
    value, slope = value_and_grad(z)
    plain_value, plain_slope = without(value_and_grad, z)
    np.testing.assert_allclose(value, plain_value, rtol=2e-6)
    np.testing.assert_allclose(slope, plain_slope, rtol=1e-5, atol=2e-7 / max(n, 1))


@each
@pytest.mark.parametrize("v", [32768, 50257, 128256])
def test_many_classes(without, loss, options, v) -> None:
    target, z = problem(loss, 3, v)
    value_and_grad = jax.jit(jax.value_and_grad(lambda z: loss_of(loss, **options)(target, z)))
    value, slope = value_and_grad(z)
    jax.clear_caches()
    plain_value, plain_slope = without(value_and_grad, z)
    np.testing.assert_allclose(value, plain_value, rtol=3e-6)
    np.testing.assert_allclose(slope, plain_slope, rtol=1e-5, atol=1e-8)


@each
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves(without, loss, options, dtype) -> None:
    target, z = problem(loss, 7, 33, dtype=dtype)
    value_and_grad = jax.value_and_grad(lambda z: loss_of(loss, **options)(target, z))
    value, slope = value_and_grad(z)
    plain_value, plain_slope = without(value_and_grad, z)
    assert value.dtype == "float32"
    assert slope.dtype == dtype
    np.testing.assert_allclose(value, plain_value, rtol=2e-6)
    np.testing.assert_allclose(np.float32(slope), np.float32(plain_slope), rtol=2e-2, atol=1e-7)


@each
def test_axis_1_transposed_and_sliced(loss, options) -> None:
    target, z = problem(loss, 12, 33)
    function = loss_of(loss, **options, reduction="none")
    expected = function(target, z)
    if loss == DENSE:
        as_images = function(
            jnp.moveaxis(target.reshape(3, 4, 33), 2, 1), jnp.moveaxis(z.reshape(3, 4, 33), 2, 1), axis=1
        )
    else:
        as_images = function(target.reshape(3, 4), jnp.moveaxis(z.reshape(3, 4, 33), 2, 1), axis=1)
    np.testing.assert_allclose(as_images, expected.reshape(3, 4), rtol=2e-6)
    np.testing.assert_array_equal(function(target[1:7:2], z[1:7:2]), function(target, z)[1:7:2])


@each
def test_what_is_left_out_reaches_nothing(without, loss, options) -> None:
    target, z = problem(loss, 7, 5)
    mask = jnp.arange(7) % 2 == 0
    z = jnp.where(mask[:, None], z, jnp.array([jnp.nan, jnp.inf, -jnp.inf, 0, 1]))
    target = jnp.where(mask, target, -7) if loss != DENSE else jnp.where(mask[:, None], target, jnp.nan)
    function = loss_of(loss, **options, mask=mask)
    value_and_grad = jax.jit(jax.value_and_grad(lambda z: function(target, z)))
    value, slope = value_and_grad(z)
    assert (slope[~mask] == 0).all()
    jax.clear_caches()
    np.testing.assert_allclose(value, without(value_and_grad, z)[0], rtol=2e-6)
    assert np.isfinite(jax.hessian(lambda z: function(target, z))(z)).all()


def test_labels_out_of_range_are_nan_where_traced() -> None:
    z = problem(SPARSE, 4, 5)[1]
    function = jax.jit(jax.value_and_grad(lambda z, y: loss_of(SPARSE, reduction="none")(y, z).sum()))
    each_loss = jax.jit(lambda z, y: loss_of(SPARSE, reduction="none")(y, z))(z, jnp.array([-1, 5, 4, 2**30]))
    np.testing.assert_array_equal(np.isnan(each_loss), [True, True, False, True])
    slope = function(z, jnp.array([-1, 5, 4, 2**30]))[1]
    assert np.isfinite(slope).all()
    assert (slope[jnp.array([0, 1, 3])] == 0).all()


@each
def test_equal_largest_logits(without, loss, options) -> None:
    """Whichever of them counts as the top."""
    target = problem(loss, 7, 33)[0]
    z = jnp.round(problem(loss, 7, 33)[1] / 3)
    value_and_grad = jax.value_and_grad(lambda z: loss_of(loss, **options)(target, z))
    for got, plain in zip(value_and_grad(z), without(value_and_grad, z), strict=True):
        np.testing.assert_allclose(got, plain, rtol=2e-6, atol=1e-8)


@each
def test_derivatives_of_the_second_order_in_every_mode(loss, options) -> None:
    with jax.enable_x64(True):
        target, z = problem(loss, 2, 4, dtype="float64")
        function = lambda z: loss_of(loss, **options)(target, z)  # noqa: E731
        hessians = [outer(inner(function))(z) for outer in (jax.jacfwd, jax.jacrev) for inner in (jax.grad, jax.jacfwd)]
        step = 1e-6 * jnp.eye(8).reshape(8, 2, 4)
        slope = jax.jit(jax.vmap(jax.grad(function)))
        numeric = (slope(z + step) - slope(z - step)) / 2e-6
        for hessian in hessians:
            np.testing.assert_allclose(hessian.reshape(8, 2, 4), numeric, rtol=1e-6, atol=1e-8)


def test_derivatives_of_both_arguments() -> None:
    with jax.enable_x64(True):
        target, z = problem(DENSE, 2, 4, dtype="float64")
        function = loss_of(DENSE)
        mixed = jax.jacfwd(jax.grad(function, argnums=0), argnums=1)(target, z)
        other = jax.jacrev(jax.grad(function, argnums=1), argnums=0)(target, z)
        np.testing.assert_allclose(mixed.reshape(8, 8), other.reshape(8, 8).T, rtol=1e-9, atol=1e-14)


@each
def test_no_array_of_classes_is_stored(loss, options) -> None:
    target, z = problem(loss, 64, 4096)
    step = jax.jit(jax.value_and_grad(lambda z: loss_of(loss, **options)(target, z)))
    memory = step.lower(z).compile().memory_analysis()
    assert memory.temp_size_in_bytes < z.nbytes / 100


@each
def test_repeatable_and_from_several_threads(loss, options) -> None:
    target, z = problem(loss, 7, 1000)
    step = jax.value_and_grad(lambda z: loss_of(loss, **options)(target, z))
    expected = step(z)
    with ThreadPoolExecutor(4) as pool:
        for value, slope in pool.map(step, [z] * 16):
            np.testing.assert_array_equal(value, expected[0])
            np.testing.assert_array_equal(slope, expected[1])


def test_probabilities_and_too_many_classes_are_left_to_the_formula(monkeypatch) -> None:
    p = jnp.full((2, 4), 0.25)
    call = functools.partial(kernels.label_log_loss, None, jnp.zeros(2, "int32"), p, 1, None, epsilon=0.0)
    assert call(from_logits=False) is None
    assert call(from_logits=True) is not None
    monkeypatch.setattr(kernels, "MOST_CLASSES", 4)
    assert call(from_logits=True) is None


def test_one_class_costs_nothing() -> None:
    """The losses refuse it, some of `compat` take it."""
    z = jnp.array([[3.0], [-2.0]])
    losses = kernels.label_log_loss(None, jnp.zeros(2, "int32"), z, 1, None, from_logits=True, epsilon=0.0)
    np.testing.assert_array_equal(losses, [0, 0])
