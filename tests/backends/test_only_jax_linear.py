"""The linear cross-entropy under what JAX does to it: derivatives of both modes and orders, batches, memory."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from test_linear import BIAS, OPTIONS, C, agree, expected, of_rows, problem

import lossbridge as lb

ARRAYS = tuple(np.asarray(x, np.float64) for x in (problem()["hidden"], problem()["weight"], BIAS))


def loss(name: str, hidden: Any, weight: Any, bias: Any) -> Any:
    given = {key: x for key, x in OPTIONS[name].items() if key != "bias"}
    return lb.linear_crossentropy(problem()["labels"], hidden, weight, bias=bias, memory=of_rows(5, size=8), **given)


@pytest.mark.parametrize("name", ["plain", "all, mean by weight", "all, none"])
def test_derivatives_of_both_modes_and_orders(name) -> None:
    with jax.enable_x64(True):
        check_grads(lambda *x: loss(name, *x), tuple(map(jnp.asarray, ARRAYS)), order=2, modes=("fwd", "rev"))


def test_a_frozen_head_costs_no_gradient() -> None:
    """The program of hidden states' gradients has one matrix product of the weight's size less."""

    def products(argnums: tuple[int, ...]) -> int:
        step = jax.jit(jax.grad(lambda *x: loss("plain", *x), argnums))
        return step.lower(*map(jnp.float32, ARRAYS)).as_text().count("dot_general")

    assert products((0,)) == products((0, 1)) - 1


def test_batches_and_checkpoints() -> None:
    with jax.enable_x64(True):
        hidden, weight, bias = map(jnp.asarray, ARRAYS)
        biases = jnp.stack([bias, bias + 1])
        each = jax.vmap(lambda b: loss("all, mean", hidden, weight, b))(biases)
        np.testing.assert_allclose(each[1], loss("all, mean", hidden, weight, bias + 1), rtol=1e-12)
        kept = jax.grad(jax.checkpoint(lambda w: loss("plain", hidden, w, bias)))(weight)
        np.testing.assert_allclose(kept, expected(problem(), {"bias": BIAS})[1]["weight"], rtol=0, atol=1e-13)


def test_weights_and_options_that_are_differentiated() -> None:
    with jax.enable_x64(True):
        hidden, weight, bias = map(jnp.asarray, ARRAYS)

        def of(weights: Any, scale: Any, cap: Any, z_loss: Any) -> Any:
            options = {"logit_scale": scale, "softcap": cap, "z_loss": z_loss, "reduction": "mean_with_sample_weight"}
            return lb.linear_crossentropy(
                problem()["labels"],
                hidden,
                weight,
                bias=bias,
                sample_weight=weights,
                memory=of_rows(5, size=8),
                **options,
            )

        check_grads(jax.jit(of), (jnp.linspace(0.5, 2, 13), 0.7, 3.0, 0.1), order=1, modes=("fwd", "rev"))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_without_all_logits(reduction) -> None:
    """Of 2048 rows and 4096 classes they would take 32 MiB; a block takes 1."""

    def total(hidden: Any, weight: Any, labels: Any) -> Any:
        return lb.linear_crossentropy(labels, hidden, weight, memory=1 << 20, reduction=reduction).sum()

    shapes = (jax.ShapeDtypeStruct((n, 8), "float32") for n in (2048, 4096))
    step = jax.jit(jax.grad(total, (0, 1))).lower(*shapes, jax.ShapeDtypeStruct((2048,), "int32")).compile()
    assert step.memory_analysis().temp_size_in_bytes < 5 << 20


def test_labels_out_of_range_are_nan_alone() -> None:
    labels = jnp.asarray(problem()["labels"]).at[2].set(C)
    hidden, weight, _ = map(jnp.float32, ARRAYS)
    losses = jax.jit(lambda y: lb.linear_crossentropy(y, hidden, weight, reduction="none"))(labels)
    assert np.isnan(losses).tolist() == [i == 2 for i in range(13)]


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_split_over_devices(reduction) -> None:
    """Rows on each device, the head on all: the value and the head's gradient are sums over the devices."""
    hidden, weight, _ = map(jnp.float32, ARRAYS)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()

    def step(weight: Any, hidden: Any, labels: Any) -> Any:
        def total(weight: Any) -> Any:
            return lb.linear_crossentropy(labels, hidden, weight, reduction=reduction, memory=of_rows(5)).sum()

        value, gradient = jax.value_and_grad(total)(weight)
        return jax.lax.psum(value, "data"), gradient

    specs = (whole, split, split)
    value, gradient = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=(whole, whole)))(
        weight, hidden, problem()["labels"]
    )
    exact = expected(problem(), {"reduction": "sum"})
    agree((value, {"weight": gradient}), exact)
