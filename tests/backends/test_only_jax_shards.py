"""The linear cross-entropy of classes split over four devices, inside jax.shard_map: that of one device."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from test_linear import INPUTS, OPTIONS, N, agree, eighths, expected, of_rows, problem
from test_only_jax_training import run_on_devices

import lossbridge as lb

P = jax.P
DEVICES, C = 4, 12
ARGUMENTS = problem(classes=C)
LABELS = ARGUMENTS["labels"]
BIAS, CLASS_WEIGHT = eighths(C, seed=4), np.linspace(0, 2, C).astype(np.float32)
SMOOTHED = {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 3.0}


def given(name: str) -> dict[str, Any]:
    """Options for twelve classes, without the bias."""
    found = {key: x for key, x in OPTIONS[name].items() if key != "bias"}
    return found | ({"class_weight": CLASS_WEIGHT} if "class_weight" in found else {})


AUTO, EXPLICIT = jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit


def mesh(kind: Any = AUTO) -> Any:
    return jax.make_mesh((DEVICES,), ("model",), axis_types=(kind,))


def over(function: Callable[..., Any], out: Any, classes_axis: int = 0, on: Any = None) -> Callable[..., Any]:
    """`function` of hidden states, weight and bias, split along the classes."""
    weight = P("model") if classes_axis == 0 else P(None, "model")
    found = jax.shard_map(function, mesh=on or mesh(), in_specs=(P(), weight, P("model")), out_specs=out)
    return jax.jit(found)


def loss(hidden: Any, weight: Any, bias: Any, **options: Any) -> Any:
    return lb.linear_crossentropy(LABELS, hidden, weight, **{"bias": bias, "group": "model", **options})


def arrays(dtype: str, classes_axis: int = 0) -> tuple[Any, ...]:
    weight = ARGUMENTS["weight"] if classes_axis == 0 else ARGUMENTS["weight"].T
    return tuple(jnp.asarray(x, dtype) for x in (ARGUMENTS["hidden"], weight, BIAS))


def against_the_reference(dtype: str, names: Any = OPTIONS) -> None:
    """Values and gradients, differentiated inside of shard_map and outside, in blocks and in one."""

    def both(f: Callable[..., Any]) -> Callable[..., Any]:
        def paired(*x: Any) -> Any:
            value = f(*x)
            return value.sum(), value

        return jax.value_and_grad(paired, (0, 1, 2), has_aux=True)

    for i, name in enumerate(names):
        options = given(name)
        exact, gradients = expected(ARGUMENTS, {**options, "bias": BIAS})
        axis, rows = i % 2, 5 if i % 3 else None
        memory = None if rows is None else of_rows(rows, C // DEVICES)
        call = functools.partial(loss, classes_axis=axis, memory=memory, **options)
        if i % 4 == 3:
            step = both(over(call, P(), axis))
        else:
            weight = P("model") if axis == 0 else P(None, "model")
            step = over(both(call), ((P(), P()), (P(), weight, P("model"))), axis)
        (_, value), found = step(*arrays(dtype, axis))
        gradients["weight"] = gradients["weight"].T if axis else gradients["weight"]
        found = dict(zip(INPUTS, (np.asarray(x, np.float64) for x in found), strict=True))
        agree((np.asarray(value), found), (exact, gradients), dtype, f"{name}, {axis}")


def test_values_and_gradients() -> None:
    run_on_devices(DEVICES, against_the_reference, "float32")


def halves(dtype: str) -> None:
    for half in ("bfloat16", "float16"):
        against_the_reference(half, ("plain", "all, mean"))


def derivatives(dtype: str) -> None:
    """Of both modes and orders; and for weights of samples and options."""
    for options in ({**SMOOTHED, "class_weight": CLASS_WEIGHT}, {"reduction": "none"}):
        check_grads(over(functools.partial(loss, **options), P()), arrays(dtype), order=2, modes=("fwd", "rev"))

    def of(weights: Any, scale: Any, cap: Any, smoothing: Any, class_weight: Any) -> Any:
        def call(hidden: Any, weight: Any, bias: Any) -> Any:
            more = {"logit_scale": scale, "softcap": cap, "label_smoothing": smoothing, "z_loss": scale}
            more |= {"sample_weight": weights, "class_weight": class_weight}
            return loss(hidden, weight, bias, reduction="mean_with_sample_weight", **more)

        return over(call, P())(*arrays(dtype))

    options = (jnp.linspace(0.5, 2, N), 0.7, 3.0, 0.1, jnp.linspace(0.5, 2, C))
    check_grads(of, options, order=1, modes=("fwd", "rev"))


def test_derivatives_of_both_modes_and_orders() -> None:
    run_on_devices(DEVICES, derivatives, "float64")


def test_halves() -> None:
    run_on_devices(DEVICES, halves, "float32")


def more(dtype: str) -> None:
    each_devices_part_of_hidden()
    what_else_is_returned()
    rows_over_one_axis_and_classes_over_another()
    other_meshes()
    collectives()
    without_all_logits()
    refused()
    labels_out_of_range()
    under_jit_alone()


def each_devices_part_of_hidden() -> None:
    def step(hidden: Any, weight: Any, bias: Any) -> Any:
        hidden = jax.lax.pcast(hidden, "model", to="varying")
        return jax.grad(loss)(hidden, weight, bias, **SMOOTHED)[None]

    parts = over(step, P("model"))(*arrays("float32"))
    exact = expected(ARGUMENTS, {"bias": BIAS, **SMOOTHED})[1]["hidden"]
    assert np.abs(parts[0] - exact).max() > 1e-3
    np.testing.assert_allclose(parts.sum(0), exact, rtol=0, atol=1e-6)


def what_else_is_returned() -> None:
    names = ("loss", "nll", "lse", "entropy", "z_loss", "prediction", "correct")
    hidden, weight, bias = arrays("float32")
    weight = weight.at[7:].set(weight[:5])  # of two equal largest logits the first is the prediction

    def squares(found: Any) -> tuple[Any, Any]:
        return sum((x**2).sum() for x in found if x.dtype == "float32"), found

    def both(on: Any) -> Any:
        return jax.value_and_grad(lambda *x: squares(on(*x)), (0, 1, 2), has_aux=True)(hidden, weight, bias)

    options = {"returns": names, "memory": 40, **SMOOTHED}
    split = both(over(lambda *x: tuple(loss(*x, **options)), (P(),) * len(names)))
    whole = both(lambda h, w, b: lb.linear_crossentropy(LABELS, h, w, bias=b, **options))
    for found, right in zip(jax.tree.leaves(split), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-5)


def rows_over_one_axis_and_classes_over_another() -> None:
    on = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AUTO,) * 2)
    arguments = problem((8,), classes=C)

    def step(labels: Any, hidden: Any, weight: Any) -> Any:
        def total(hidden: Any, weight: Any) -> Any:
            options = {"group": "model", "reduction": "sum", "memory": of_rows(2, C // 2), **SMOOTHED}
            return jax.lax.psum(lb.linear_crossentropy(labels, hidden, weight, **options), "data")

        return jax.value_and_grad(total, (0, 1))(hidden, weight)

    specs = {"in_specs": (P("data"), P("data"), P("model")), "out_specs": (P(), (P("data"), P("model")))}
    value, gradients = jax.jit(jax.shard_map(step, mesh=on, **specs))(*arguments.values())
    agree((value, dict(zip(INPUTS, gradients, strict=False))), expected(arguments, {**SMOOTHED, "reduction": "sum"}))


def other_meshes() -> None:
    """Whose types say how arrays are split; where the classes' axis alone is manual; of two axes for the classes."""
    arguments = problem((8,), classes=C)
    exact = expected(arguments, SMOOTHED)
    for kind, axes, manual in (
        (EXPLICIT, "model", {"data", "model"}),
        (AUTO, "model", {"model"}),
        (EXPLICIT, "model", {"model"}),
        (AUTO, ("data", "model"), {"data", "model"}),
    ):

        def step(labels: Any, hidden: Any, weight: Any, axes: Any = axes) -> Any:
            call = functools.partial(lb.linear_crossentropy, labels, group=axes, **SMOOTHED)
            return jax.value_and_grad(call, (0, 1))(hidden, weight)

        on = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind,) * 2)
        with jax.set_mesh(on):
            laid = (P("data") if len(manual) == 1 else P(),) * 2 + (P(axes),)
            placed = [
                jax.device_put(x, jax.NamedSharding(on, spec)) for x, spec in zip(arguments.values(), laid, strict=True)
            ]
            specs = {"in_specs": (P(), P(), P(axes)), "out_specs": (P(), (P(), P(axes)))}
            value, gradients = jax.jit(jax.shard_map(step, axis_names=manual, **specs))(*placed)
            found = {name: np.asarray(x) for name, x in zip(INPUTS, gradients, strict=False)}
            agree((value, found), exact, words=f"{kind}, {axes}, {manual}")


def program(function: Callable[..., Any], out: Any) -> str:
    return over(function, out).lower(*arrays("float32")).compile().as_text()


def collectives() -> None:
    """Maxima and sums of a number a row, and one sum of hidden states' size."""

    def sizes(text: str) -> list[list[int]]:
        assert "all-gather" not in text
        found = re.findall(r"= (\(?f32.*?) all-reduce\(", text)
        return [
            [int(np.prod([int(n) for n in s.split(",") if n])) for s in re.findall(r"f32\[(.*?)\]", x)] for x in found
        ]

    of_hidden = [ARGUMENTS["hidden"].size]
    assert sizes(program(loss, P())) == [[N], [N, N]]
    outs = (P(), P("model"), P("model"))
    assert sizes(program(jax.grad(loss, (0, 1, 2)), outs)) == [[N], [N, N], of_hidden]
    *rows, last = sizes(program(jax.grad(functools.partial(loss, **SMOOTHED), (0, 1, 2)), outs))
    assert len(rows) <= 4
    assert {n for sums in rows for n in sums} == {N}
    assert last == of_hidden


def without_all_logits() -> None:
    """Of 2048 rows and 4096 classes a device's logits would take 8 MiB; a block takes 1."""
    for reduction in ("mean", "none"):

        def total(hidden: Any, weight: Any, labels: Any, reduction: str = reduction) -> Any:
            options = {"group": "model", "memory": 1 << 20, "reduction": reduction}
            return lb.linear_crossentropy(labels, hidden, weight, **options).sum()

        specs = {"in_specs": (P(), P("model"), P()), "out_specs": (P(), P("model"))}
        step = jax.jit(jax.shard_map(jax.grad(total, (0, 1)), mesh=mesh(), **specs))
        shapes = (jax.ShapeDtypeStruct((n, 8), "float32") for n in (2048, 4096))
        compiled = step.lower(*shapes, jax.ShapeDtypeStruct((2048,), "int32")).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 5 << 20


def refused() -> None:
    hidden, weight, bias = arrays("float32")
    on = {"mesh": mesh(), "out_specs": P()}
    split, words = P("model"), "weight is alike along the mesh axis 'model', and group= takes shards"
    for specs, options, right in (
        ((P(), split, split), {"group": "data"}, "group is 'data', and no mesh axis of this name is at work"),
        ((P(), split, split), {"classes": (0, 3)}, "on JAX the devices hold equally many classes"),
        (
            (P(), split, split),
            {"reduce_hidden": False},
            "on JAX the type of hidden says whether its gradient is added up",
        ),
        ((P(), split, P()), {}, r"bias has shape \(12,\) and weight \(3, 6\)"),
        ((P(), P(), P()), {}, words),
        ((P(), split, split), {"class_weight": jnp.ones(3)}, r"class_weight has shape \(3,\)"),
    ):
        with pytest.raises(ValueError, match=right) as raised:
            jax.shard_map(functools.partial(loss, **options), in_specs=specs, **on)(hidden, weight, bias)
        assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=words):
        jax.shard_map(loss, in_specs=(P(), split, split), check_vma=False, **on)(hidden, weight, bias)
    with pytest.raises(ValueError, match="labels, weights of samples, mask or normalizer differ along the mesh axis"):
        jax.shard_map(lambda y, *x: lb.linear_crossentropy(y, *x, group="model"), in_specs=(split, P(), split), **on)(
            np.tile(LABELS, DEVICES), hidden, weight
        )
    with pytest.raises(ValueError, match="group is 'model', and no mesh axis"):
        loss(hidden, weight, bias)


def labels_out_of_range() -> None:
    def losses(labels: Any, hidden: Any, weight: Any) -> Any:
        return lb.linear_crossentropy(labels, hidden, weight, group="model", reduction="none")

    specs = {"in_specs": (P(), P(), P("model")), "out_specs": P()}
    hidden, weight, _ = arrays("float32")
    found = jax.shard_map(losses, mesh=mesh(), **specs)(jnp.asarray(LABELS).at[2].set(C), hidden, weight)
    assert np.isnan(found).tolist() == [i == 2 for i in range(N)]


def under_jit_alone() -> None:
    """Nothing has to be said: what XLA compiles gathers no weight, on either kind of mesh; nor logits, but for the
    native rows, which on CPUs take whole rows."""
    from lossbridge.native import rows

    for kind, with_rows in ((EXPLICIT, True), (AUTO, True), (AUTO, False)):
        on, missing = mesh(kind), rows.MISSING
        rows.MISSING = missing if with_rows else "as on other devices"
        jax.clear_caches()  # of programs with rows
        with jax.set_mesh(on):
            hidden, weight, _ = arrays("float32")
            hidden = jax.device_put(hidden, jax.NamedSharding(on, P()))
            weight = jax.device_put(weight, jax.NamedSharding(on, P("model")))
            step = jax.jit(jax.value_and_grad(lambda h, w: lb.linear_crossentropy(LABELS, h, w), (0, 1)))
            value, gradients = step(hidden, weight)
            agree((value, dict(zip(INPUTS, gradients, strict=False))), expected(ARGUMENTS, {}))
            assert gradients[1].sharding.is_equivalent_to(weight.sharding, 2)
            text = step.lower(hidden, weight).compile().as_text()
            gathered = re.findall(r"= \(?(\w+\[.*?\]).* all-gather\(", text)
            assert set(gathered) <= ({f"f32[{N},{C}]"} if kind == AUTO and with_rows else set()), kind
        rows.MISSING = missing


def test_what_is_split_and_what_is_refused() -> None:
    run_on_devices(DEVICES, more, "float32")


def test_explained() -> None:
    found = []

    def step(hidden: Any, weight: Any) -> Any:
        found.append(lb.explain(lb.linear_crossentropy, LABELS, hidden, weight=weight, group="model"))
        return hidden

    on = jax.make_mesh((1,), ("model",), axis_types=(AUTO,))
    specs = {"in_specs": (P(), P("model")), "out_specs": P()}
    jax.shard_map(step, mesh=on, **specs)(*arrays("float32")[:2])
    assert found[0].path == "blocks of a shard"
    assert found[0].value.endswith("; maxima and sums over the classes are joined over the devices")
