"""JAX's rules over blocks of a few rows, where a block of a small array would be all of it."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_only_jax_kernels import CASES, by_formula, each, loss_of, name_of, problem

import lossbridge as lb
from lossbridge import reference
from lossbridge.frameworks import on_jax as kernels


@pytest.fixture(scope="module", autouse=True)
def _small_blocks():
    """For the whole file: JAX keeps what it compiled with blocks of the usual size, and clearing that costs seconds."""
    jax.clear_caches()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "BLOCK", 64)
        yield
    jax.clear_caches()


@each
@pytest.mark.parametrize("shape", [(13, 33), (3, 100), (2, 3, 5, 7)])
def test_blocks_of_rows(loss, options, shape) -> None:
    """Of several rows, which do not divide their number, of one, of none; along axis 1 too."""
    target, z = (
        x if x.ndim == 1 else jnp.moveaxis(x.reshape(shape[:1] + shape[2:] + shape[1:2]), -1, 1)
        for x in problem(loss, options, math.prod(shape) // shape[1], shape[1])
    )
    target = target.reshape(shape[:1] + shape[2:]) if target.ndim == 1 else target
    options = {**options, "reduction": "none"} | ({} if loss == "log_loss" and target.ndim == z.ndim else {"axis": 1})
    function = loss_of(loss, **options)

    def both(target, z):
        return function(target, z), jax.grad(lambda z: function(target, z).sum())(z)

    losses, gradient = jax.jit(both)(target, z)
    plain_losses, plain_gradient = by_formula(both, target, z)
    np.testing.assert_allclose(losses, plain_losses, rtol=2e-6)
    np.testing.assert_allclose(gradient, plain_gradient, rtol=1e-5, atol=1e-6)
    batched = jax.jit(jax.vmap(function))(jnp.stack([target, target]), jnp.stack([z, z]))
    np.testing.assert_allclose(batched[1], losses, rtol=2e-6)


def test_no_digits_are_lost_in_blocks() -> None:
    """Rows 1e-5 apart; −∞ on one side and on both."""
    rng = np.random.default_rng(1)
    z = rng.normal(size=(40, 5)).astype(np.float32)
    z[:10, 0] = -np.inf
    near = (z + 1e-5 * rng.normal(size=z.shape)).astype(np.float32)
    near[10:20, 1] = -np.inf
    for teacher, student in ((z, near), (near, z)):
        exact = reference.kl_divergence(teacher, student, from_logits=True, reduction="none").value
        value = lb.kl_divergence(jnp.array(teacher), jnp.array(student), from_logits=True, reduction="none")
        np.testing.assert_allclose(value, exact, rtol=2e-6)


@pytest.mark.parametrize(
    ("loss", "options"), [case for case in CASES if "categorical_focal" not in case[0]], ids=name_of
)
def test_no_array_of_classes_is_stored(loss, options) -> None:
    target, z = problem(loss, options, 256, 1024)
    for function in (lambda t, z: loss_of(loss, **options)(t, z), jax.grad(loss_of(loss, **options), argnums=1)):
        memory = jax.jit(function).lower(target, z).compile().memory_analysis()
        assert memory.temp_size_in_bytes < z.nbytes / 20
