"""Training steps as JAX users write them: Flax, Equinox, optax, accumulated gradients, two devices.

Every loss is in it by the registry. What needs two devices is a function `…_on_two_devices`, and runs in a process of
its own, because JAX takes the number of devices once.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import lossbridge as lb
from lossbridge.tools.parity.cases import LOSSES, cases

DTYPES = ("float32", "float64")
BATCHES = [case for case in cases() if case.dtype == "float64" and case.y_pred.shape == (8, 5)]
assert {case.loss for case in BATCHES} == set(LOSSES)

# Sums of few terms in another order: relative to the largest entry, a few units in the last place.
TOLERANCE = {"float32": 1e-6, "float64": 2e-15}
MASK = np.array([1, 1, 1, 1, 0, 0, 1, 0], bool)  # four count in the first half, one in the second


def assert_equal(actual: Any, expected: Any, dtype: str, words: str = "") -> None:
    """Of trees of arrays."""
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == dtype, words
        scale = TOLERANCE[dtype] * max(1, np.abs(e).max())
        np.testing.assert_allclose(a, e, rtol=0, atol=scale, err_msg=words)


def assert_differs(actual: Any, expected: Any) -> None:
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    assert max(float(np.abs(a - e).max()) for a, e in pairs) > 1e-2


# Models: the parameters, and a function of (parameters, x) that gives logits.


class Net(nnx.Module):
    def __init__(self, dtype: str = "float32") -> None:
        rngs = nnx.Rngs(0)
        self.hidden = nnx.Linear(4, 16, param_dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(16, 5, param_dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(nnx.relu(self.hidden(x)))


def flax_model(dtype: str) -> tuple[Any, Callable[..., jax.Array]]:
    graph, params = nnx.split(Net(dtype))
    return params, lambda params, x: nnx.merge(graph, params)(x)


def equinox_model(dtype: str) -> tuple[Any, Callable[..., jax.Array]]:
    net = eqx.nn.MLP(4, 5, width_size=16, depth=1, dtype=dtype, key=jax.random.key(0))
    params, rest = eqx.partition(net, eqx.is_inexact_array)
    return params, lambda params, x: jax.vmap(eqx.combine(params, rest))(x)


MODELS = {"flax": flax_model, "equinox": equinox_model}


def batch(dtype: str, n: int = 8) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(n, 4)), dtype), jnp.asarray(rng.integers(0, 5, n), "int32")


def loss_of(model: str, dtype: str) -> tuple[Any, Callable[..., jax.Array]]:
    """The parameters, and the loss of (parameters, x, labels, **options)."""
    params, logits = MODELS[model](dtype)

    def loss(params: Any, x: jax.Array, labels: jax.Array, **options: Any) -> jax.Array:
        return lb.sparse_categorical_crossentropy(
            labels, logits(params, x), from_logits=True, ignore_class=-100, **options
        )

    return params, loss


SGD = optax.sgd(0.5, momentum=0.9)


@jax.jit
def updated(params: Any, gradients: Any) -> Any:
    updates, _ = SGD.update(gradients, SGD.init(params), params)
    return optax.apply_updates(params, updates)


@pytest.fixture(params=DTYPES)
def dtype(request) -> Any:
    with jax.enable_x64(request.param == "float64"):
        yield request.param


# The same steps as with optax's own loss.


def bridge_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return lb.sparse_categorical_crossentropy(labels, logits, from_logits=True)


def optax_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def flax_steps(loss: Callable[..., jax.Array], x: jax.Array, labels: jax.Array) -> tuple[list[float], Any]:
    model = Net()
    optimizer = nnx.Optimizer(model, SGD, wrt=nnx.Param)

    @nnx.jit
    def step(model: Net, optimizer: nnx.Optimizer, x: jax.Array, labels: jax.Array) -> jax.Array:
        value, gradients = nnx.value_and_grad(lambda model: loss(model(x), labels))(model)
        optimizer.update(model, gradients)
        return value

    values = [float(step(model, optimizer, x, labels)) for _ in range(5)]
    return values, nnx.state(model, nnx.Param)


def equinox_steps(loss: Callable[..., jax.Array], x: jax.Array, labels: jax.Array) -> tuple[list[float], Any]:
    net = eqx.nn.MLP(4, 5, width_size=16, depth=1, key=jax.random.key(0))

    @eqx.filter_jit
    def step(net: Any, state: Any, x: jax.Array, labels: jax.Array) -> tuple[Any, Any, jax.Array]:
        value, gradients = eqx.filter_value_and_grad(lambda net: loss(jax.vmap(net)(x), labels))(net)
        updates, state = SGD.update(gradients, state, eqx.filter(net, eqx.is_inexact_array))
        return eqx.apply_updates(net, updates), state, value

    values, state = [], SGD.init(eqx.filter(net, eqx.is_inexact_array))
    for _ in range(5):
        net, state, value = step(net, state, x, labels)
        values.append(float(value))
    return values, eqx.filter(net, eqx.is_inexact_array)


@pytest.mark.parametrize("steps", [flax_steps, equinox_steps])
def test_steps_equal_those_with_optax_own_loss(steps) -> None:
    ours, our_params = steps(bridge_loss, *batch("float32", 64))
    theirs, their_params = steps(optax_loss, *batch("float32", 64))
    assert ours[-1] < ours[0] - 0.1
    np.testing.assert_allclose(ours, theirs, rtol=2e-6)
    assert_equal(our_params, their_params, "float32")


@pytest.mark.parametrize("jit", [nnx.jit, eqx.filter_jit])
def test_debug_nans_names_the_bad_label(jit) -> None:
    """Compiled, the loss is NaN and the gradient that of the other samples."""
    x, labels = batch("float32")
    params, loss = loss_of("flax", "float32")
    step = jit(jax.value_and_grad(loss))
    wrong = labels.at[3].set(5)
    value, gradients = step(params, x, wrong)
    assert np.isnan(value)
    expected = jax.jit(jax.grad(loss))(params, x, labels.at[3].set(-100), normalizer=8)
    assert_equal(gradients, expected, "float32")
    with jax.debug_nans(True), pytest.raises(ValueError, match="label 5 at index 3 is out of range"):
        step(params, x, wrong)


# Accumulated gradients.


def micro_batches(dtype: str) -> tuple[jax.Array, jax.Array]:
    """Four of eight samples, of which 8, 5, 1 and 0 count."""
    x, labels = batch(dtype, 32)
    counts = jnp.array([8, 5, 1, 0])
    return x.reshape(4, 8, 4), jnp.where(jnp.arange(8) < counts[:, None], labels.reshape(4, 8), -100)


@pytest.mark.parametrize("model", MODELS)
def test_a_scan_over_micro_batches_equals_the_whole_batch(model, dtype) -> None:
    x, labels = micro_batches(dtype)
    params, loss = loss_of(model, dtype)

    @jax.jit
    def accumulated(params: Any, normalizer: jax.Array | None) -> Any:
        def add(sums: Any, micro: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, jax.value_and_grad(loss)(params, *micro, normalizer=normalizer)), None

        zeros = jax.tree.map(jnp.zeros_like, (jnp.zeros((), dtype), params))
        value, gradients = jax.lax.scan(add, zeros, (x, labels))[0]
        return value, gradients

    whole, gradients = jax.jit(jax.value_and_grad(loss))(params, x.reshape(32, 4), labels.reshape(32))
    value, sums = accumulated(params, (labels != -100).sum())
    assert_equal((value, updated(params, sums)), (whole, updated(params, gradients)), dtype)
    naive = jax.tree.map(lambda total: total / 4, accumulated(params, None))
    assert_differs(naive, (whole, gradients))


@pytest.mark.parametrize("averages", [True, False])
def test_multi_steps_equal_the_whole_batch(averages, dtype) -> None:
    x, labels = micro_batches(dtype)
    params, loss = loss_of("equinox", dtype)
    total = (labels != -100).sum()
    gradient = jax.jit(jax.grad(loss))
    steps = optax.MultiSteps(SGD, every_k_schedule=4, use_grad_mean=averages, accumulator_dtype=dtype)

    def after(normalizer: jax.Array | None) -> Any:
        state, moved = steps.init(params), params
        for micro in zip(x, labels, strict=True):
            gradients = gradient(moved, *micro, normalizer=normalizer)
            updates, state = steps.update(gradients, state, moved)
            moved = optax.apply_updates(moved, updates)
        return moved

    whole = updated(params, gradient(params, x.reshape(32, 4), labels.reshape(32)))
    assert_equal(after(total / 4 if averages else total), whole, dtype)
    assert_differs(after(None), whole)


# Transformations around a step.


def test_donated_parameters(dtype) -> None:
    x, labels = batch(dtype)
    params, loss = loss_of("equinox", dtype)
    params = jax.tree.map(jnp.copy, params)

    def step(params: Any, x: jax.Array, labels: jax.Array) -> tuple[Any, jax.Array]:
        value, gradients = jax.value_and_grad(loss)(params, x, labels)
        return updated(params, gradients), value

    expected = jax.jit(step)(params, x, labels)
    actual = jax.jit(step, donate_argnums=0)(params, x, labels)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(params))
    assert_equal(actual, expected, dtype)


@pytest.mark.parametrize("model", MODELS)
def test_gradients_of_single_samples_add_up(model, dtype) -> None:
    x, labels = batch(dtype)
    labels = jnp.where(MASK, labels, -100)
    params, loss = loss_of(model, dtype)
    each = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0, 0)))(params, x[:, None], labels[:, None])
    mean = jax.tree.map(lambda gradient: gradient.sum(0) / MASK.sum(), each)
    assert_equal(mean, jax.jit(jax.grad(loss))(params, x, labels), dtype)


# Two devices.


def run_on_two_devices(function: Callable[[str], None], dtype: str) -> None:
    run_on_devices(2, function, dtype)


def run_on_devices(count: int, function: Callable[[str], None], dtype: str) -> None:
    here, package = Path(__file__).parent, Path(lb.__file__).parents[1]
    program = (
        "import jax\n"
        f"jax.config.update('jax_num_cpu_devices', {count})\n"
        f"jax.config.update('jax_enable_x64', {dtype == 'float64'})\n"
        f"import {function.__module__} as tests\n"
        f"tests.{function.__name__}({dtype!r})\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(package)])},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr


def shard_map(function: Callable[..., Any], params: int, arrays: int) -> Callable[..., Any]:
    """`function` of so many replicated arguments, then so many split along their first axis."""
    assert len(jax.devices()) == 2
    whole, split = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("data")
    mesh = jax.sharding.Mesh(jax.devices(), ("data",))
    specs = (whole,) * params + (split,) * arrays
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=whole))


def placed(kind: jax.sharding.AxisType, *arrays: Any) -> Any:
    """Halves of `arrays` on each device. A loss of them needs no normalizer: it is the compiler that divides the work.

    `kind`: whether the types of the arrays say so too.
    """
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))
    return jax.device_put(arrays, jax.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))


def a_step_on_two_devices(dtype: str) -> None:
    x, labels = batch(dtype)
    labels = jnp.where(MASK, labels, -100)
    for model in MODELS:
        params, loss = loss_of(model, dtype)

        def step(params: Any, x: jax.Array, labels: jax.Array, loss: Any = loss) -> Any:
            total = jax.lax.psum((labels != -100).sum(), "data")
            varying = jax.lax.pcast(params, "data", to="varying")
            part = jax.value_and_grad(loss)(varying, x, labels, normalizer=total)
            value, gradients = jax.lax.psum(part, "data")
            return value, updated(params, gradients)

        def naive(params: Any, x: jax.Array, labels: jax.Array, loss: Any = loss) -> Any:
            varying = jax.lax.pcast(params, "data", to="varying")
            value, gradients = jax.lax.pmean(jax.value_and_grad(loss)(varying, x, labels), "data")
            return value, updated(params, gradients)

        value, gradients = jax.jit(jax.value_and_grad(loss))(params, x, labels)
        whole = value, updated(params, gradients)
        assert_equal(shard_map(step, 1, 2)(params, x, labels), whole, dtype, model)
        assert_differs(shard_map(naive, 1, 2)(params, x, labels), whole)

        value, gradients = jax.jit(jax.value_and_grad(loss))(params, *placed(jax.sharding.AxisType.Auto, x, labels))
        assert_equal((value, updated(params, gradients)), whole, dtype, model)


def every_loss_on_two_devices(dtype: str) -> None:
    """A scale takes the place of the model; the mask is of the per-sample shape."""
    for case in BATCHES:
        words = f"{case.loss}/{case.name}"
        y_true = jnp.asarray(case.y_true, None if case.y_true.dtype.kind == "i" else dtype)
        y_pred = jnp.asarray(case.y_pred, dtype)
        scale = jnp.asarray(0.9, dtype)

        def loss(scale: Any, t: Any, p: Any, m: Any, n: Any = None, case: Any = case) -> Any:
            return getattr(lb, case.loss)(t, scale * p, mask=m, normalizer=n, **case.options)

        def sharded(scale: Any, t: Any, p: Any, m: Any, loss: Any = loss) -> Any:
            scale = jax.lax.pcast(scale, "data", to="varying")
            part = jax.value_and_grad(loss)(scale, t, p, m, jax.lax.psum(m.sum(), "data"))
            return jax.lax.psum(part, "data"), jax.lax.pmean(loss(scale, t, p, m), "data")

        per_sample = jax.eval_shape(functools.partial(getattr(lb, case.loss), reduction="none"), y_true, y_pred).shape
        mask = np.broadcast_to(MASK.reshape(-1, *[1] * (len(per_sample) - 1)), per_sample)
        arrays = (y_true, y_pred, mask)
        whole = jax.jit(jax.value_and_grad(loss))(scale, *arrays)
        summed, naive = shard_map(sharded, 1, 3)(scale, *arrays)
        assert_equal(summed, whole, dtype, words)
        assert abs(naive - whole[0]) > 1e-3, words
        on_two = placed(jax.sharding.AxisType.Explicit, *arrays)
        assert_equal(jax.jit(jax.value_and_grad(loss))(scale, *on_two), whole, dtype, words)


@pytest.mark.parametrize(
    ("check", "dtype"),
    [
        (a_step_on_two_devices, "float32"),
        pytest.param(a_step_on_two_devices, "float64", marks=pytest.mark.exhaustive),
        (every_loss_on_two_devices, "float64"),
    ],
)
def test_two_devices_equal_one(check, dtype) -> None:
    run_on_two_devices(check, dtype)
