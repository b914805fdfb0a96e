"""JAX's attachment of the rules and of the ratio: what does not count, in every derivative."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossbridge as lb

LABELS = jnp.arange(6) % 5
PRED = jax.random.normal(jax.random.key(0), (6, 5))
WEIGHT = jnp.array([1.0, 0, 3, 1, 2, 1])
MASK = jnp.array([True, True, True, True, False, True])
COUNTS = MASK & (WEIGHT != 0)
CLASS_WEIGHT = jnp.array([1.0, 2, 1, 3, 1])


def loss(labels, pred, weight, mask, **options):
    given = {"sample_weight": weight, "mask": mask, "class_weight": CLASS_WEIGHT, "from_logits": True}
    return lb.sparse_categorical_crossentropy(labels, pred, **given, **options)


@pytest.mark.parametrize("reduction", ["none", "mean", "mean_with_sample_weight", "sum"])
def test_derivatives_of_what_counts(reduction) -> None:
    """A NaN that is left out reaches none of any order; the others are those of the rows that count."""
    options = {"reduction": reduction, **({"normalizer": 5.0} if reduction == "mean" else {})}

    def derivatives(labels, pred, weight, mask):
        def total(pred):
            return jnp.sum(loss(labels, pred, weight, mask, **options))

        return [jax.grad(total)(pred), jax.grad(lambda x: jnp.sum(jax.grad(total)(x) ** 2))(pred)]

    dirty = jnp.where(COUNTS[:, None], PRED, jnp.nan)
    found = jax.jit(derivatives)(LABELS, dirty, WEIGHT, MASK)
    expected = jax.jit(lambda *x: derivatives(*x, None))(LABELS[COUNTS], PRED[COUNTS], WEIGHT[COUNTS])
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x[COUNTS], y, rtol=1e-5, atol=1e-6)
        assert not x[~COUNTS].any()


@pytest.mark.parametrize("reduction", ["none", "mean", "mean_with_sample_weight", "sum"])
def test_a_weight_of_0_has_no_derivative(reduction) -> None:
    """As on every framework: what does not count is selected away, and changes nothing."""

    def total(weight):
        return jnp.sum(loss(LABELS, PRED, weight, MASK, reduction=reduction))

    for found in (jax.grad(total)(WEIGHT), jax.jacfwd(total)(WEIGHT), jax.jit(jax.grad(total))(WEIGHT)):
        assert found[COUNTS].any()
        assert found[~MASK] == 0
        if reduction != "mean_with_sample_weight":  # whose denominator counts class weights too
            assert not found[~COUNTS].any()


def test_weights_and_masks_of_whole_rows() -> None:
    labels, pred = jnp.arange(12).reshape(4, 3) % 5, jax.random.normal(jax.random.key(1), (4, 3, 5))
    weight, mask = jnp.array([1.0, 2, 0, 3]), jnp.array([True, False, True, True])
    for short in ({"sample_weight": weight[:, None]}, {"mask": mask[:, None]}):
        full = {name: jnp.broadcast_to(x, (4, 3)) for name, x in short.items()}
        for reduction in ("mean", "mean_with_sample_weight"):

            def step(pred, given, reduction=reduction):
                return lb.sparse_categorical_crossentropy(labels, pred, from_logits=True, reduction=reduction, **given)

            found, expected = (jax.jit(jax.value_and_grad(step))(pred, given) for given in (short, full))
            for x, y in zip(found, expected, strict=True):
                np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("rows", [0, 6])
def test_a_sum_and_a_mean(rows) -> None:
    """Without weights: of nothing 0, of rows what the losses themselves give."""
    labels, pred = LABELS[:rows], PRED[:rows]

    def step(pred, reduction):
        found = lb.sparse_categorical_crossentropy(labels, pred, from_logits=True, reduction=reduction)
        return jnp.sum(found)

    _, of_losses = jax.value_and_grad(step)(pred, "none")
    for reduction, divisor in (("sum", 1), ("mean", max(1, rows))):
        value, gradient = jax.value_and_grad(step)(pred, reduction)
        np.testing.assert_allclose(value, step(pred, "none") / divisor, rtol=1e-6)
        np.testing.assert_allclose(gradient, of_losses / divisor, rtol=1e-6, atol=1e-8)


def test_the_derivative_of_shares_and_a_normalizer() -> None:
    """The ratio over its denominator, and the derivative of its gradient along it."""

    def ratio(normalizer, pred):
        return loss(LABELS, pred, WEIGHT, MASK, reduction="mean", normalizer=normalizer)

    value = ratio(4.0, PRED)
    np.testing.assert_allclose(jax.grad(ratio)(4.0, PRED), -value / 4, rtol=1e-6)
    gradient = jax.grad(ratio, 1)
    along = jax.jvp(lambda n: gradient(n, PRED), (4.0,), (1.0,))[1]
    np.testing.assert_allclose(along, -gradient(4.0, PRED) / 4, rtol=1e-5, atol=1e-7)
