"""What JAX users do with a loss: jit, grad of any order and mode, vmap, and all of them at once."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from problems import EDGES, PROBLEMS

import lossbridge as lb
from lossbridge.spec import LOSSES as RECORDS

problems = pytest.mark.parametrize(
    ("loss", "y_true", "y_pred", "options"), [p[1:] for p in PROBLEMS], ids=[p[0] for p in PROBLEMS]
)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@problems
def test_check_grads_to_order_2_in_both_modes(loss, y_true, y_pred, options) -> None:
    function = functools.partial(getattr(lb, loss), **options)
    if y_true.dtype.kind == "i":
        check_grads(functools.partial(function, y_true), (jnp.asarray(y_pred),), order=2, eps=1e-4)
    else:
        check_grads(function, (jnp.asarray(y_true), jnp.asarray(y_pred)), order=2, eps=1e-4)


@problems
def test_vmap_jacfwd_and_jit_equal_the_batch(loss, y_true, y_pred, options) -> None:
    target, pred = jnp.asarray(y_true), jnp.asarray(y_pred)
    function = functools.partial(getattr(lb, loss), **options, reduction="sum")
    slope = jax.jit(jax.grad(function, argnums=1))(target, pred)
    each = jax.jit(jax.vmap(function))(target, pred)
    np.testing.assert_allclose(each.sum(), function(target, pred), rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(jax.grad(function, argnums=1))(target, pred), slope, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(jax.jacfwd(function, argnums=1)(target, pred), slope, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("loss", ["categorical_crossentropy", "sparse_categorical_crossentropy"])
def test_hessian_at_the_edges(loss) -> None:
    """Of softmax cross-entropy: diag(p) − p pᵀ, whatever the target."""
    target = jnp.eye(3) if loss == "categorical_crossentropy" else jnp.arange(3)
    hessian = jax.jit(jax.hessian(lambda z, t: getattr(lb, loss)(t, z, from_logits=True)))
    for t, z in zip(target, jnp.asarray(EDGES), strict=True):
        p = jax.nn.softmax(z)
        np.testing.assert_allclose(hessian(z, t), jnp.diag(p) - jnp.outer(p, p), rtol=1e-9, atol=1e-15)


def test_gradient_at_the_bound_of_clipping() -> None:
    """jnp.clip gives one half of it."""
    slope = jax.grad(lambda p: lb.log_loss(jnp.ones(1), p, epsilon=0.25))(jnp.array([0.25]))
    np.testing.assert_allclose(slope, [-4.0])


def test_python_and_numpy_targets_inside_jit() -> None:
    step = jax.jit(lambda p: lb.sparse_categorical_crossentropy([0, 1], p, class_weight=np.array([1.0, 2.0])))
    np.testing.assert_allclose(step(jnp.full((2, 2), 0.5)), 1.5 * np.log(2), rtol=1e-12)
    with pytest.raises(ValueError, match="label 2 at index 1"):  # concrete even here
        jax.jit(lambda p: lb.sparse_categorical_crossentropy([0, 2], p))(jnp.full((2, 2), 0.5))


@problems
def test_debuggers_find_nothing(loss, y_true, y_pred, options) -> None:
    """jax_debug_nans and jax_debug_infs, on values and both derivatives, with a sample that does not count."""
    loss_of = functools.partial(getattr(lb, loss), jnp.asarray(y_true), **options)
    known = {"label_smoothing": 0.1, "class_weight": jnp.linspace(0.5, 2, 5), "ignore_class": 0, "pos_weight": 2.0}
    more = {name: x for name, x in known.items() if name in RECORDS[loss].options}
    weighted = functools.partial(loss_of, **more, sample_weight=jnp.array([1.0, 0.0, 2.0]))
    with jax.debug_nans(True), jax.debug_infs(True):
        for function in (loss_of, weighted):
            eager = jax.value_and_grad(function)(jnp.asarray(y_pred))
            compiled = jax.jit(jax.value_and_grad(function))(jnp.asarray(y_pred))
            for found, wanted in zip(compiled, eager, strict=True):
                np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-15)
            assert np.isfinite(jax.jit(jax.hessian(function))(jnp.asarray(y_pred))).all()
