"""What `linear_crossentropy(returns=…)` gives: values and gradients against float64, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lossbridge as lb
from lossbridge import linear

C, H, N = 11, 6, 13
FLOATS = ("nll", "lse", "entropy", "z_loss")
SCALE, CAP, Z = 0.5, 3.0, 0.1
MASK = np.arange(N) % 3 != 2


def eighths(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-16, 17, size=shape).astype(np.float32) / 8


LABELS = np.random.default_rng(3).integers(0, C, size=N).astype(np.int32)
HIDDEN, WEIGHT, BIAS = eighths(N, H, seed=1), eighths(C, H, seed=2), eighths(C, seed=4)
UPSTREAM = {name: np.random.default_rng(7 + i).normal(size=N).astype(np.float32) for i, name in enumerate(FLOATS)}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale, cap, z-loss": {"logit_scale": SCALE, "softcap": CAP, "z_loss": Z},
    "bias, mask": {"bias": BIAS, "mask": MASK},
    "smoothing, class weights": {"label_smoothing": 0.1, "class_weight": np.linspace(0, 2, C).astype(np.float32)},
    "classes along axis 1": {"classes_axis": 1},
    "weights, some 0": {"bias": BIAS, "sample_weight": np.where(MASK, 1.5, 0).astype(np.float32)},
}


def expected(options: dict[str, Any]) -> dict[str, np.ndarray]:
    """Every number of the rows, and the gradients of Σ upstream · number for hidden states, weight and bias."""
    x = (HIDDEN.astype(np.float64) @ WEIGHT.T + options.get("bias", 0)) * options.get("logit_scale", 1)
    cap = options.get("softcap")
    z = x if cap is None else cap * np.tanh(x / cap)
    slope = options.get("logit_scale", 1) * (1 if cap is None else 1 - np.tanh(x / cap) ** 2)
    lse = np.log(np.exp(z).sum(1))
    p = np.exp(z - lse[:, None])
    hit = np.arange(C) == LABELS[:, None]
    entropy = (p * (lse[:, None] - z)).sum(1)
    zeta = options.get("z_loss", 0)
    found = {"nll": lse - z[hit], "lse": lse, "entropy": entropy, "z_loss": zeta * lse**2}
    of_z = {
        "nll": p - hit,
        "lse": p,
        "entropy": p * ((p * z).sum(1, keepdims=True) - z),
        "z_loss": 2 * zeta * lse[:, None] * p,
    }
    counts = options.get("mask", np.ones(N, bool)) & (options.get("sample_weight", 1) != 0)
    slopes = sum(of_z[name] * (UPSTREAM[name] * counts)[:, None] for name in FLOATS) * slope
    prediction = z.argmax(1)
    found |= {"prediction": np.where(counts, prediction, -1), "correct": counts & (prediction == LABELS)}
    found |= {name: np.where(counts, found[name], 0) for name in FLOATS}
    return found | {"hidden": slopes @ WEIGHT, "weight": slopes.T @ HIDDEN, "bias": slopes.sum(0)}


def call(lib: Any, returns: Any, options: dict[str, Any], **more: Any) -> Any:
    given = {name: lib.array(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}
    weight = WEIGHT.T if options.get("classes_axis") else WEIGHT
    arrays = {"hidden": lib.array(HIDDEN), "weight": lib.array(np.ascontiguousarray(weight)), **given, **more}
    return lb.linear_crossentropy(lib.array(LABELS), returns=returns, **arrays)


def total(lib: Any, returned: Any) -> Any:
    """Σ upstream · number, of which the gradients are asked."""
    terms = [getattr(returned, name) * lib.array(UPSTREAM[name]) for name in FLOATS]
    return terms[0] + terms[1] + terms[2] + terms[3]  # value_and_grad sums the entries


@pytest.mark.parametrize("rows", [1, 5, 1 << 20])
@pytest.mark.parametrize("options", OPTIONS)
def test_values_and_gradients(lib, options, rows) -> None:
    given, right = OPTIONS[options], expected(OPTIONS[options])
    returned = call(lib, (*FLOATS, "prediction", "correct"), given, memory=rows * C * 4)
    for name in FLOATS:
        np.testing.assert_allclose(lib.b.to_numpy(getattr(returned, name)), right[name], rtol=1e-6, atol=1e-6)
    for name in ("prediction", "correct"):
        np.testing.assert_array_equal(lib.b.to_numpy(getattr(returned, name)), right[name])
    names = ("hidden", "weight", *(("bias",) if "bias" in given else ()))

    def of(labels: Any, **arrays: Any) -> Any:
        return total(lib, call(lib, FLOATS, given, memory=rows * C * 4, **arrays))

    weight = np.ascontiguousarray(WEIGHT.T) if given.get("classes_axis") else WEIGHT
    arrays = {name: lib.array({"hidden": HIDDEN, "weight": weight, "bias": BIAS}[name]) for name in names}
    _, gradients = lb.value_and_grad(of, of=names)(lib.array(LABELS), **arrays)
    for name, gradient in zip(names, gradients, strict=True):
        want = right[name].T if name == "weight" and given.get("classes_axis") else right[name]
        np.testing.assert_allclose(lib.b.to_numpy(gradient), want, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean_with_sample_weight", "sum", "none"])
def test_the_loss_is_that_without_returns(lib, reduction) -> None:
    given = {"bias": BIAS, "mask": MASK, "label_smoothing": 0.1, "z_loss": Z, "reduction": reduction}
    given["sample_weight"] = np.linspace(0, 2, N).astype(np.float32)
    given["class_weight"] = np.linspace(0, 2, C).astype(np.float32)

    def both(returns: Any) -> Any:
        def of(labels: Any, **arrays: Any) -> Any:
            found = call(lib, returns, given, memory=5 * C * 4, **arrays)
            return found if returns == "loss" else found.loss

        arrays = {"hidden": lib.array(HIDDEN), "weight": lib.array(WEIGHT)}
        value, gradients = lb.value_and_grad(of, of=("hidden", "weight"))(lib.array(LABELS), **arrays)
        return [lib.b.to_numpy(x) for x in (value, *gradients)]

    plain, beside, alone = (both(x) for x in ("loss", ("nll", "loss", "correct"), ["loss"]))
    for x, y, z in zip(plain, beside, alone, strict=True):
        np.testing.assert_allclose(y, x, rtol=2e-6, atol=1e-7)
        np.testing.assert_allclose(z, x, rtol=2e-6, atol=1e-7)


def test_compiled(lib) -> None:
    given = OPTIONS["scale, cap, z-loss"]
    right = expected(given)
    names = (*FLOATS, "correct")
    arrays = [lib.array(x) for x in (LABELS, HIDDEN, WEIGHT)]
    for wrap in lib.framework.compilers().values():
        returned = wrap(lambda *arrays: lb.linear_crossentropy(*arrays, returns=names, **given))(*arrays)
        assert returned._fields == names
        for name, x in returned._asdict().items():
            np.testing.assert_allclose(lib.b.to_numpy(x), right[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(0,), (3, 4), ()])
def test_shapes(lib, shape) -> None:
    labels, hidden = np.zeros(shape, np.int32), eighths(*shape, H, seed=1)
    returned = lb.linear_crossentropy(
        lib.array(labels), lib.array(hidden), lib.array(WEIGHT), returns=("loss", *FLOATS, "prediction", "correct")
    )
    assert lib.b.to_numpy(returned.loss).shape == ()
    for name, x in returned._asdict().items():
        assert name == "loss" or lib.b.to_numpy(x).shape == shape


@pytest.mark.parametrize("z_loss", [0.0, 1e-30])
def test_the_z_loss_of_large_logits(lib, z_loss) -> None:
    hidden = lib.array(np.array([[1e30, 0], [0, 1]], np.float32))
    arrays = lib.array(LABELS[:2]), hidden, lib.array(np.eye(C, 2, dtype=np.float32))
    returned = lb.linear_crossentropy(*arrays, returns=("z_loss",), z_loss=z_loss)
    lse = np.array([1e30, np.log(np.e + C - 1)])
    np.testing.assert_allclose(lib.b.to_numpy(returned.z_loss), z_loss * lse * lse, rtol=1e-6, atol=1e-36)


def test_half_precision_gives_float32(lib) -> None:
    arrays = {"hidden": lib.array(HIDDEN, "bfloat16"), "weight": lib.array(WEIGHT, "bfloat16")}
    returned = lb.linear_crossentropy(lib.array(LABELS), **arrays, returns=("loss", "lse", "entropy"))
    right = expected({})
    for name in ("lse", "entropy"):
        assert lib.framework.ops.dtype(getattr(returned, name)) == "float32"
        np.testing.assert_allclose(lib.b.to_numpy(getattr(returned, name)), right[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("returns", "words"),
    [
        ("lse", "returns is 'lse'; pass \"loss\", or a tuple of names"),
        ((), r"returns is \(\)"),
        (("loss", "logits"), "logits"),
        (("nll", "nll"), "twice"),
        (3, "returns is 3"),
    ],
)
def test_what_is_refused(lib, returns, words) -> None:
    with pytest.raises(ValueError, match=words) as error:
        call(lib, returns, {})
    assert "\n" not in str(error.value)


def test_several_values_are_not_differentiated(lib) -> None:
    arrays = {"hidden": lib.array(HIDDEN), "weight": lib.array(WEIGHT)}
    with pytest.raises(TypeError, match="returned 2 values"):
        lb.value_and_grad(lb.linear_crossentropy, of="hidden")(lib.array(LABELS), **arrays, returns=("loss", "lse"))


def test_explained(lib) -> None:
    arrays = lib.array(LABELS), lib.array(HIDDEN)
    explained = lb.explain(lb.linear_crossentropy, *arrays, weight=lib.array(WEIGHT), returns=("loss", "lse"))
    assert explained.path == "blocks"
    with pytest.raises(ValueError, match="logits"):
        lb.explain(lb.linear_crossentropy, *arrays, weight=lib.array(WEIGHT), returns=("logits",))


def test_named_tuples_of_the_same_names_are_of_one_type(lib) -> None:
    one, other = (call(lib, ("loss", "lse"), {}) for _ in range(2))
    assert type(one) is type(other)
    assert one._fields == ("loss", "lse")
    assert set(linear.RETURNS) == {"loss", *FLOATS, "correct", "prediction"}
