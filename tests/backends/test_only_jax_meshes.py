"""Arrays laid over two devices, along the batch or the classes, on meshes with explicit and automatic axes."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from problems import PROBLEMS
from test_only_jax_training import run_on_two_devices

import lossbridge as lb
from lossbridge.native import rows
from lossbridge.spec import LOSSES, PER_CLASS


def every_loss_over_batch_or_classes(dtype: str) -> None:
    """Values and gradients, which lie as the predictions do, whether types say so (Explicit) or not (Auto)."""
    for kind in (jax.sharding.AxisType.Explicit, jax.sharding.AxisType.Auto):
        mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))
        for (words, loss, y_true, y_pred, given), more, split in itertools.product(
            PROBLEMS, (False, True), (("data",), (None, "data"))
        ):
            if more and kind == jax.sharding.AxisType.Auto:
                continue
            y_true, y_pred = even(y_true), even(y_pred)
            options, arrays = with_all_options(loss, y_true, y_pred, given) if more else (given, {})

            def step(t: Any, p: Any, arrays: Any, loss: str = loss, options: Any = options) -> Any:
                return lb.value_and_grad(getattr(lb, loss))(t, p, **options, **arrays)

            expected = step(jnp.asarray(y_true), jnp.asarray(y_pred), arrays)
            with jax.set_mesh(mesh):

                def place(x: Any, *spec: Any, mesh: Any = mesh) -> Any:
                    return jax.device_put(x, jax.NamedSharding(mesh, jax.P(*spec)))

                pred, target = place(y_pred, *split), place(y_true, *split[: y_true.ndim])
                laid = {
                    name: place(x, *(split[1:] if name in PER_CLASS else split[: x.ndim])) for name, x in arrays.items()
                }
                for run in (jax.jit(step), step) if kind == jax.sharding.AxisType.Explicit else (jax.jit(step),):
                    value, gradient = run(target, pred, laid)
                    for found, wanted in zip((value, gradient), expected, strict=True):
                        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-14, err_msg=f"{words}, {split}")
                    # Of the formula on an automatic mesh, XLA decides where the gradient lies.
                    if kind == jax.sharding.AxisType.Explicit or not rows.MISSING:
                        assert gradient.sharding.is_equivalent_to(pred.sharding, 2), words


def even(x: np.ndarray) -> np.ndarray:
    """With one more entry along each axis, so that two devices can share them."""
    return np.pad(x, [(0, 1)] * x.ndim, mode="wrap")


def with_all_options(loss: str, y_true: Any, y_pred: Any, given: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options that are numbers, and those that are arrays."""
    known = LOSSES[loss].options
    classes = {name: jnp.linspace(0.5, 0.9, y_pred.shape[1]) for name in PER_CLASS if name in known}
    if "apply_class_balancing" in known or loss == "log_loss":
        classes = {}
    samples = jax.eval_shape(functools.partial(getattr(lb, loss), **given, reduction="none"), y_true, y_pred).shape
    weight = jnp.linspace(0.5, 2, math.prod(samples)).reshape(samples)
    options = {"label_smoothing": 0.1} if "label_smoothing" in known else {}
    mean = {"reduction": "mean_with_sample_weight"}
    return {**given, **options, **mean}, {**classes, "sample_weight": weight, "mask": weight > 0.7}


def test_every_loss_over_batch_or_classes() -> None:
    run_on_two_devices(every_loss_over_batch_or_classes, "float64")


def the_example(dtype: str) -> None:
    mesh = jax.make_mesh((2,), ("d",))
    labels = jnp.array([0, 1])  # on every device
    for over in (jax.P(None, "d"), jax.P("d", None)):
        for from_logits in (True, False):
            with jax.set_mesh(mesh):
                x = jax.device_put(jnp.ones((2, 4)), jax.NamedSharding(mesh, over))

                def loss(x: Any, from_logits: bool = from_logits) -> Any:
                    return lb.sparse_categorical_crossentropy(labels, x, from_logits=from_logits)

                value, gradient = jax.value_and_grad(loss)(x)
            np.testing.assert_allclose(value, np.log(4), rtol=1e-6)
            assert gradient.sharding.spec == over


def test_labels_on_the_mesh_that_jax_makes() -> None:
    run_on_two_devices(the_example, "float32")
