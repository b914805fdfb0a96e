"""JAX's rows and rules: equal to the formulas, derivatives of any order and mode, and no arrays of classes stored."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import lossbridge as lb
from lossbridge import reference
from lossbridge.compat import torch as compat
from lossbridge.frameworks import jax_rows
from lossbridge.frameworks import on_jax as kernels
from lossbridge.native import rows
from lossbridge.request import COMMON, resolve
from lossbridge.spec import LOSSES, Names

SPARSE, DENSE, KL = "sparse_categorical_crossentropy", "categorical_crossentropy", "kl_divergence"
BINARY, LOGITS = "binary_crossentropy", {"from_logits": True}
CROSS_ENTROPIES = [
    (SPARSE, LOGITS),
    (SPARSE, {**LOGITS, "label_smoothing": 0.1}),
    (DENSE, LOGITS),
    ("log_loss", LOGITS),
]
CASES = [
    *CROSS_ENTROPIES,
    (KL, LOGITS),
    (KL, {}),
    ("distillation_loss", {"temperature": 2.0}),
    (BINARY, {**LOGITS, "pos_weight": 2.5}),
    (BINARY, {"label_smoothing": 0.1}),
    ("categorical_focal_crossentropy", LOGITS),
    ("binary_focal_crossentropy", LOGITS),
]


def name_of(case: object) -> str:
    return case if isinstance(case, str) else ",".join(case)


each = pytest.mark.parametrize(("loss", "options"), CASES, ids=name_of)
each_crossentropy = pytest.mark.parametrize(("loss", "options"), CROSS_ENTROPIES, ids=name_of)


def problem(loss: str, options: dict, n: int, v: int, seed: int = 0, dtype: str = "float32"):
    """(target, pred)."""
    rng = np.random.default_rng(seed)
    z, other = (jnp.asarray(x, dtype) for x in 3 * rng.normal(size=(2, n, v)))
    if loss in (SPARSE, "log_loss"):
        return jnp.asarray(rng.integers(0, v, n), "int32"), z
    if "binary" in loss:
        return jax.nn.sigmoid(other), z if "from_logits" in options else jax.nn.sigmoid(z)
    if loss == "distillation_loss" or (loss == KL and "from_logits" in options):
        return other, z
    return jax.nn.softmax(other), jax.nn.softmax(z) if loss == KL else z


def loss_of(loss: str, **options):
    return functools.partial(getattr(lb, loss), **options)


def by_formula(function, *arguments):
    """A call by the formula, as one program: eagerly XLA would compile each operation of it by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax_rows, "refuses", lambda r: "the formula is forced")
        patch.setattr(kernels, "_refuses_rule", lambda r: "it is forced")
        return jax.jit(lambda *arguments: function(*arguments))(*arguments)


@each
@pytest.mark.parametrize(("n", "v"), [(0, 3), (7, 2), (7, 3), (7, 33), (7, 1000)])
def test_equal_to_the_formula(loss, options, n, v) -> None:
    target, z = problem(loss, options, n, v)
    value_and_grad = jax.value_and_grad(lambda z: loss_of(loss, **options)(target, z))
    value, slope = value_and_grad(z)
    plain_value, plain_slope = by_formula(value_and_grad, z)
    np.testing.assert_allclose(value, plain_value, rtol=2e-6)
    np.testing.assert_allclose(slope, plain_slope, rtol=1e-5, atol=2e-7 / max(n, 1))


@pytest.mark.parametrize(("loss", "weights"), [(DENSE, "class_weight"), (BINARY, "pos_weight")])
def test_derivatives_for_weights(loss, weights) -> None:
    target, z = problem(loss, LOGITS, 7, 5)

    def function(z, weight):
        return loss_of(loss, **LOGITS)(target, z, **{weights: weight})

    weight = jnp.linspace(0.5, 2, 5)
    for derivative in (jax.grad(function, (0, 1)), jax.jacfwd(function, (0, 1)), jax.hessian(function, (0, 1))):
        found, wanted = jax.jit(derivative)(z, weight), by_formula(derivative, z, weight)
        for got, plain in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(got, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("loss", "options"), [*CROSS_ENTROPIES, (KL, LOGITS)], ids=name_of)
@pytest.mark.parametrize("v", [32768, 50257, 128256])
def test_many_classes(loss, options, v) -> None:
    target, z = problem(loss, options, 3, v)
    value_and_grad = jax.value_and_grad(lambda z: loss_of(loss, **options)(target, z))
    value, slope = jax.jit(value_and_grad)(z)
    plain_value, plain_slope = by_formula(value_and_grad, z)
    np.testing.assert_allclose(value, plain_value, rtol=3e-6)
    np.testing.assert_allclose(slope, plain_slope, rtol=1e-5, atol=1e-8)


@each
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves(loss, options, dtype) -> None:
    target, z = problem(loss, options, 7, 33, dtype=dtype)
    value_and_grad = jax.value_and_grad(lambda z: loss_of(loss, **options)(target, z))
    value, slope = value_and_grad(z)
    plain_value, plain_slope = by_formula(value_and_grad, z)
    assert value.dtype == "float32"
    assert slope.dtype == dtype
    np.testing.assert_allclose(value, plain_value, rtol=2e-6)
    np.testing.assert_allclose(np.float32(slope), np.float32(plain_slope), rtol=2e-2, atol=1e-7)


@each
def test_axis_1_transposed_and_sliced(loss, options) -> None:
    target, z = problem(loss, options, 12, 33)
    function = loss_of(loss, **options, reduction="none")
    expected = function(target, z)
    if target.ndim == 2:
        as_images = function(
            jnp.moveaxis(target.reshape(3, 4, 33), 2, 1), jnp.moveaxis(z.reshape(3, 4, 33), 2, 1), axis=1
        )
    else:
        as_images = function(target.reshape(3, 4), jnp.moveaxis(z.reshape(3, 4, 33), 2, 1), axis=1)
    np.testing.assert_allclose(as_images, expected.reshape(3, 4), rtol=2e-6)
    np.testing.assert_array_equal(function(target[1:7:2], z[1:7:2]), function(target, z)[1:7:2])


@each
def test_what_is_left_out_reaches_nothing(loss, options) -> None:
    target, z = problem(loss, options, 7, 5)
    mask = jnp.arange(7) % 2 == 0
    z = jnp.where(mask[:, None], z, jnp.array([jnp.nan, jnp.inf, -jnp.inf, 0, 1]))
    target = jnp.where(mask, target, -7) if target.ndim == 1 else jnp.where(mask[:, None], target, jnp.nan)
    function = loss_of(loss, **options, mask=mask)
    value_and_grad = jax.value_and_grad(lambda z: function(target, z))
    value, slope = jax.jit(value_and_grad)(z)
    assert (slope[~mask] == 0).all()
    np.testing.assert_allclose(value, by_formula(value_and_grad, z)[0], rtol=2e-6)
    assert np.isfinite(jax.jit(jax.hessian(lambda z: function(target, z)))(z)).all()


def test_labels_out_of_range_are_nan_where_traced() -> None:
    z = problem(SPARSE, LOGITS, 4, 5)[1]
    function = jax.jit(jax.value_and_grad(lambda z, y: loss_of(SPARSE, **LOGITS, reduction="none")(y, z).sum()))
    each_loss = jax.jit(lambda z, y: loss_of(SPARSE, **LOGITS, reduction="none")(y, z))(z, jnp.array([-1, 5, 4, 2**30]))
    np.testing.assert_array_equal(np.isnan(each_loss), [True, True, False, True])
    slope = function(z, jnp.array([-1, 5, 4, 2**30]))[1]
    assert np.isfinite(slope).all()
    assert (slope[jnp.array([0, 1, 3])] == 0).all()


@each
def test_equal_largest_logits(loss, options) -> None:
    """Whichever of them counts as the top."""
    target, z = problem(loss, options, 7, 33)
    z = jnp.round(z / 3)
    value_and_grad = jax.value_and_grad(lambda z: loss_of(loss, **options)(target, z))
    for got, plain in zip(value_and_grad(z), by_formula(value_and_grad, z), strict=True):
        np.testing.assert_allclose(got, plain, rtol=2e-6, atol=1e-8)


@each
def test_derivatives_of_the_second_order_in_every_mode(loss, options) -> None:
    with jax.enable_x64(True):
        target, z = problem(loss, options, 2, 4, dtype="float64")
        function = lambda z: loss_of(loss, **options)(target, z)  # noqa: E731
        modes = [outer(inner(function)) for outer in (jax.jacfwd, jax.jacrev) for inner in (jax.grad, jax.jacfwd)]
        hessians = jax.jit(lambda z: [hessian(z) for hessian in modes])(z)
        step = 1e-6 * jnp.eye(8).reshape(8, 2, 4)
        slope = jax.jit(jax.vmap(jax.grad(function)))
        numeric = (slope(z + step) - slope(z - step)) / 2e-6
        for hessian in hessians:
            np.testing.assert_allclose(hessian.reshape(8, 2, 4), numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("loss", "options"), [case for case in CASES if case[0] not in (SPARSE, "log_loss")], ids=name_of
)
def test_derivatives_of_both_arguments(loss, options) -> None:
    with jax.enable_x64(True):
        target, z = problem(loss, options, 2, 4, dtype="float64")
        function = loss_of(loss, **options)
        mixed = jax.jit(jax.jacfwd(jax.grad(function, argnums=0), argnums=1))(target, z)
        other = jax.jit(jax.jacrev(jax.grad(function, argnums=1), argnums=0))(target, z)
        np.testing.assert_allclose(mixed.reshape(8, 8), other.reshape(8, 8).T, rtol=1e-9, atol=1e-14)


@each
def test_repeatable_and_from_several_threads(loss, options) -> None:
    target, z = problem(loss, options, 7, 1000)
    step = jax.value_and_grad(lambda z: loss_of(loss, **options)(target, z))
    expected = step(z)
    with ThreadPoolExecutor(4) as pool:
        for value, slope in pool.map(step, [z] * 16):
            np.testing.assert_array_equal(value, expected[0])
            np.testing.assert_array_equal(slope, expected[1])


def test_without_rows_probabilities_and_too_many_classes_are_left_to_the_formula(monkeypatch) -> None:
    monkeypatch.setattr(jax_rows, "MISSING", "they are not built")

    def path(from_logits: bool) -> str:
        arrays = jnp.zeros(2, "int32"), jnp.full((2, 4), 0.25)
        request = resolve(LOSSES["log_loss"], *arrays, Names(), {**COMMON, "from_logits": from_logits})
        return kernels.choose(request).path.name

    assert path(from_logits=False) == "formula"
    assert path(from_logits=True) == "rule"
    monkeypatch.setattr(kernels, "MOST_CLASSES", 4)
    assert path(from_logits=True) == "formula"


def test_one_class_costs_nothing() -> None:
    """The losses refuse it, some of `compat` take it."""
    z = jnp.array([[3.0], [-2.0]])
    losses = compat.cross_entropy(z, jnp.zeros(2, "int32"), reduction="none")
    np.testing.assert_array_equal(losses, [0, 0])


def test_rows_on_several_devices_stay_there() -> None:
    """In a process of its own, whose host counts as two devices. Each computes its rows, and none gets all of them."""
    program = """
import jax, jax.numpy as jnp, numpy as np, lossbridge as lb
from lossbridge.native import rows
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

z = jax.random.normal(jax.random.key(0), (60, 100))
t = jax.nn.softmax(0.3 * z)
y = jnp.argmax(t, 1)
mesh = Mesh(np.array(jax.devices()), ("x",))
over, by_class = NamedSharding(mesh, P("x")), NamedSharding(mesh, P(None, "x"))
explicit = NamedSharding(jax.make_mesh((2,), ("x",), axis_types=(AxisType.Explicit,)), P("x"))
weights = jnp.linspace(0.5, 2, 100)

for loss, t, options in (
    (lb.categorical_crossentropy, t, {}),
    (lb.categorical_crossentropy, t, {"class_weight": weights}),
    (lb.kl_divergence, t, {}),
    (lb.sparse_categorical_crossentropy, y, {}),
):
    each = lambda t, z: loss(t, z, from_logits=True, reduction="none", **options)
    expected = each(t, z)
    step = jax.jit(jax.value_and_grad(lambda z, t: loss(t, z, from_logits=True, **options)))
    value, gradient = step(z, t)
    manual = jax.jit(jax.shard_map(each, mesh=mesh, in_specs=(P("x"), P("x")), out_specs=P("x")))
    np.testing.assert_allclose(manual(t, z), expected, rtol=1e-6)
    np.testing.assert_allclose(each(*jax.device_put((t, z), explicit)), expected, rtol=1e-6)
    placed = jax.device_put((z, t), over)
    program = step.lower(*placed).compile().as_text()
    assert "all-gather" not in program
    assert ("lossbridge_rows" in program) == (not rows.MISSING and not options)
    for where in (over, by_class):
        found = step(jax.device_put(z, where), jax.device_put(t, where if t.ndim == 2 else over))
        np.testing.assert_allclose(found[0], value, rtol=1e-6)
        np.testing.assert_allclose(found[1], gradient, rtol=1e-5, atol=1e-9)
"""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300, env=environment)


def test_a_batch_of_unknown_size_is_exported() -> None:
    shapes = jax.export.symbolic_args_specs((jnp.ones((6, 5)), jnp.ones((6, 5))), ("b, 5", "b, 5"))
    exported = jax.export.export(jax.jit(lb.kl_divergence))(*shapes)
    p, q = jnp.full((3, 5), 0.2), jax.nn.softmax(jnp.arange(15.0).reshape(3, 5))
    np.testing.assert_allclose(exported.call(p, q), lb.kl_divergence(p, q), rtol=1e-6)


def test_an_exported_program_needs_no_rows() -> None:
    """Who loads it may not have them."""
    target, z = problem(SPARSE, LOGITS, 4, 5)
    step = jax.jit(jax.value_and_grad(lambda z, y: loss_of(SPARSE, **LOGITS)(y, z)))
    exported = jax.export.export(step, platforms=("cpu", "tpu"))(z, target)
    assert "@lossbridge_rows" not in exported.mlir_module()
    for got, wanted in zip(exported.call(z, target), step(z, target), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_no_digits_are_lost() -> None:
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


# The rows.

with_rows = pytest.mark.skipif(bool(rows.MISSING), reason=rows.MISSING or "they are there")


def test_xla_has_the_rows() -> None:
    assert jax_rows.MISSING == rows.MISSING


def test_xla_declares_its_structs_as_we_do() -> None:
    """We declare them ourselves, so that nothing of jaxlib is needed to build."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if not compiler:
        pytest.skip("there is no C++ compiler")
    folders = [f"-I{folder}" for folder in (jax.ffi.include_dir(), Path(lb.__file__).parent / "native" / "rows")]
    source = Path(__file__).parent / "xla_layout.cpp"
    subprocess.run([compiler, "-std=c++17", "-fsyntax-only", *folders, source], check=True, timeout=120)


@with_rows
def test_xla_is_told_what_is_wrong_with_a_call() -> None:
    z = jnp.zeros((2, 3))
    call = jax.ffi.ffi_call(jax_rows.TARGET, jax.ShapeDtypeStruct((2,), "float32"))
    numbers = np.zeros(10)
    for arrays, integers, words in (
        ((z, z), np.zeros(3, int), "another version"),
        ((z, z), np.array([1, 1, 0, 0, 1, 2, 1]), "other buffers"),
        ((z > 0, z), np.array([1, 1, 0, 0, 1, 0, 1]), "no rows for these arrays"),
    ):
        with pytest.raises(jax.errors.JaxRuntimeError, match=words):
            jax.block_until_ready(call(*arrays, integers=integers, numbers=numbers))


@with_rows
@each
def test_no_array_of_classes_is_stored(loss, options) -> None:
    """Besides the gradient, which is the result."""
    target, z = problem(loss, options, 256, 1024)
    for function in (lambda t, z: loss_of(loss, **options)(t, z), jax.grad(loss_of(loss, **options), argnums=1)):
        memory = jax.jit(function).lower(target, z).compile().memory_analysis()
        assert memory.temp_size_in_bytes < z.nbytes / 20


@with_rows
@each
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradient_is_the_same_whether_its_upstream_was_expected_or_not(loss, options, dtype) -> None:
    """By a power of two, so that the factor rounds nothing."""
    target, z = problem(loss, options, 7, 33, dtype=dtype)
    function = loss_of(loss, **options)
    expected = jax.jit(jax.grad(lambda z: function(target, z)))(z)
    larger = jax.jit(jax.grad(lambda z: 4 * function(target, z)))(z)
    by_hand = jax.jit(jax.grad(lambda z: loss_of(loss, **options, reduction="none")(target, z).mean()))(z)
    eager = jax.grad(lambda z: function(target, z))(z)
    for gradient in (larger / 4, by_hand, eager):
        np.testing.assert_array_equal(np.float32(gradient), np.float32(expected))


@with_rows
def test_two_gradients_of_one_forward_pass() -> None:
    """The second finds what the first call wrote for another upstream."""
    target, z = problem(SPARSE, LOGITS, 7, 5)

    @jax.jit
    def both(z):
        value, pullback = jax.vjp(lambda z: loss_of(SPARSE, **LOGITS)(target, z), z)
        return [pullback(jnp.full_like(value, factor))[0] for factor in (1, 2, 1)]

    one, two, again = both(z)
    np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(2 * one, two)


@with_rows
@each
def test_one_call_for_all_of_a_batch(loss, options) -> None:
    target, z = problem(loss, options, 6, 5)
    target, z = target.reshape(2, 3, *target.shape[1:]), z.reshape(2, 3, 5)
    step = jax.value_and_grad(loss_of(loss, **options), argnums=1)
    for axes in ((0, 0), (0, None), (None, 0)):
        arguments = [x if axis == 0 else x[0] for x, axis in zip((target, z), axes, strict=True)]
        batched = jax.jit(jax.vmap(step, axes))
        assert "while" not in batched.lower(*arguments).as_text()
        for got, wanted in zip(
            batched(*arguments),
            zip(*(step(target[i if axes[0] == 0 else 0], z[i if axes[1] == 0 else 0]) for i in range(2)), strict=True),
            strict=True,
        ):
            np.testing.assert_allclose(got, jnp.stack(wanted), rtol=1e-6)


@with_rows
def test_a_batch_of_weights() -> None:
    target, z = problem(DENSE, LOGITS, 6, 5)
    weights = jnp.linspace(0.5, 2, 10).reshape(2, 5)
    step = jax.grad(lambda z, w: loss_of(DENSE, **LOGITS)(target, z, class_weight=w))
    found = jax.jit(jax.vmap(step, (None, 0)))(z, weights)
    np.testing.assert_allclose(found, jnp.stack([step(z, w) for w in weights]), rtol=1e-6)


@with_rows
def test_checkpoint_donation_and_checks_for_nan() -> None:
    target, z = problem(SPARSE, LOGITS, 7, 5)
    function = lambda z: loss_of(SPARSE, **LOGITS)(target, z)  # noqa: E731
    expected = jax.grad(function)(z)
    np.testing.assert_array_equal(jax.jit(jax.grad(jax.checkpoint(function)))(z), expected)
    with jax.debug_nans(True), jax.debug_infs(True):
        np.testing.assert_array_equal(jax.jit(jax.grad(function), donate_argnums=0)(z + 0), expected)
        np.testing.assert_allclose(jax.jvp(function, (z,), (z,))[1], jnp.sum(expected * z), rtol=1e-5)
