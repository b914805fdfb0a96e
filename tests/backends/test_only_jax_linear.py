"""The linear cross-entropy under what JAX does to it: derivatives of both modes and orders, batches, memory."""

from __future__ import annotations

from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from test_linear import BIAS, OPTIONS, C, agree, expected, of_rows, problem
from test_only_jax_training import run_on_two_devices

import lossbridge as lb
from lossbridge.native import rows

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
    """Of 2048 rows and 4096 classes they would take 32 MiB; a block takes 1, and a little more by the formula."""

    def total(hidden: Any, weight: Any, labels: Any) -> Any:
        return lb.linear_crossentropy(labels, hidden, weight, memory=1 << 20, reduction=reduction).sum()

    shapes = (jax.ShapeDtypeStruct((n, 8), "float32") for n in (2048, 4096))
    step = jax.jit(jax.grad(total, (0, 1))).lower(*shapes, jax.ShapeDtypeStruct((2048,), "int32")).compile()
    assert step.memory_analysis().temp_size_in_bytes < (6 if rows.MISSING else 5) << 20


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


def on_meshes(dtype: str) -> None:
    """Rows or classes laid over two devices, whether types say so (Explicit) or not (Auto), under jit and without."""
    arguments = problem((8,), classes=6)
    labels, hidden, weight = (arguments[name] for name in ("labels", "hidden", "weight"))
    exact = expected(arguments, {"label_smoothing": 0.1})
    of = ("hidden", "weight")

    def step(labels: Any, hidden: Any, weight: Any) -> Any:
        return lb.value_and_grad(lb.linear_crossentropy, of=of)(labels, hidden, weight, label_smoothing=0.1)

    rows, classes = ("data",), (None,)
    for kind in (jax.sharding.AxisType.Explicit, jax.sharding.AxisType.Auto):
        mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))
        for laid_rows, laid_classes in ((rows, classes), (classes, rows), (classes, classes)):
            with jax.set_mesh(mesh):
                laid = [
                    jax.device_put(x, jax.NamedSharding(mesh, jax.P(*spec)))
                    for x, spec in ((labels, laid_rows), (hidden, laid_rows), (weight, laid_classes))
                ]
                for run in (step, jax.jit(step)):
                    value, gradients = run(*laid)
                    found = {name: np.asarray(x) for name, x in zip(of, gradients, strict=True)}
                    agree((value, found), exact, dtype, f"{kind}, {laid_rows}, {laid_classes}")


def test_rows_or_classes_over_two_devices() -> None:
    run_on_two_devices(on_meshes, "float32")


def test_exported_with_any_number_of_rows() -> None:
    hidden, weight, _ = map(jnp.float32, ARRAYS)
    (rows,) = jax.export.symbolic_shape("n")
    shapes = jax.ShapeDtypeStruct((rows, hidden.shape[1]), "float32"), jax.ShapeDtypeStruct((rows,), "int32")
    exported = jax.export.export(jax.jit(lambda h, y: lb.linear_crossentropy(y, h, weight)))(*shapes)
    found = exported.call(hidden, problem()["labels"])
    np.testing.assert_allclose(found, expected(problem(), {})[0], rtol=1e-6)
