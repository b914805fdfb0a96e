"""The entropy of logits: values and gradients against exact arithmetic, at the boundaries, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import lossbridge as lb

_RNG = np.random.default_rng(7)
LOGITS = {
    "random": _RNG.normal(size=(6, 9)),
    "nearly uniform": 1e-6 * _RNG.normal(size=(6, 9)),
    "confident": 40 * np.eye(6, 9) + 0.1 * _RNG.normal(size=(6, 9)),
    "large": 1e4 + _RNG.normal(size=(6, 9)),
    "uniform": np.zeros((6, 9)),
    "absent classes": np.where(_RNG.random((6, 9)) < 0.4, -np.inf, _RNG.normal(size=(6, 9))),
    "one class": np.where(np.eye(6, 9) > 0, 1.0, -np.inf),
}


def exact(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    z = z.astype(np.float64)
    with np.errstate(all="ignore"):
        d = z - z.max(-1, keepdims=True)
        e = np.exp(d)
        p = e / e.sum(-1, keepdims=True)
        others = np.where(np.arange(9) == z.argmax(-1)[:, None], 0, e).sum(-1, keepdims=True)
        nll = np.log1p(others) - d
        d = np.where(p == 0, 0, d)
        return np.where(p == 0, 0, p * nll).sum(-1), p * ((p * d).sum(-1, keepdims=True) - d)


@pytest.mark.parametrize("name", LOGITS)
def test_values_and_gradients(lib, name) -> None:
    z = LOGITS[name].astype(np.float32)
    value, gradient = lib.b.value_and_grad(lb.entropy_from_logits, lib.array(z))
    wanted, slope = exact(z)
    np.testing.assert_allclose(lib.b.to_numpy(value), wanted, rtol=1e-6, atol=0)
    largest = np.abs(slope).max(-1, keepdims=True)
    assert np.all(np.abs(lib.b.to_numpy(gradient) - slope) <= 2e-6 * largest + 1e-38)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes(lib, dtype) -> None:
    with lib.b.scope(dtype, "cpu"):
        z = lib.array(np.asarray(LOGITS["random"]), dtype)
        value, gradient = lib.b.value_and_grad(lb.entropy_from_logits, z)
        wanted, slope = exact(lib.b.to_numpy(z))
        step = {"float16": 2.0**-10, "bfloat16": 2.0**-8}.get(dtype, 1e-14)
        np.testing.assert_allclose(lib.b.to_numpy(value), wanted, rtol=1e-14 if dtype == "float64" else 1e-6)
        np.testing.assert_allclose(lib.b.to_numpy(gradient), slope, rtol=0, atol=step * np.abs(slope).max())


def test_compiled_along_another_axis_and_masked(lib) -> None:
    z = LOGITS["random"].astype(np.float32).T
    wanted, slope = exact(z.T)
    mask = np.arange(6) != 2
    counted = lib.array(mask)

    def both(x):
        return lib.b.value_and_grad(lambda x: lb.entropy_from_logits(x, axis=0, mask=counted), x)

    for compiler in [lambda f: f, *lib.b.compilers().values()]:
        value, gradient = compiler(both)(lib.array(z))
        np.testing.assert_allclose(lib.b.to_numpy(value), np.where(mask, wanted, 0), rtol=2e-6)
        np.testing.assert_allclose(lib.b.to_numpy(gradient), np.where(mask, slope.T, 0), rtol=0, atol=1e-6)


def test_the_cap(lib) -> None:
    z = LOGITS["random"].astype(np.float32)
    value = lb.entropy_from_logits(lib.array(z), logit_scale=2.0, softcap=1.5)
    wanted, _ = exact(1.5 * np.tanh(2 * z.astype(np.float64) / 1.5))
    np.testing.assert_allclose(lib.b.to_numpy(value), wanted, rtol=1e-6)


def test_what_is_refused(lib) -> None:
    assert not lib.b.to_numpy(lb.entropy_from_logits(lib.array(np.zeros((3, 1), np.float32)))).any()
    with pytest.raises(ValueError, match="axis 2 is out of range: logits has shape"):
        lb.entropy_from_logits(lib.array(np.zeros((3, 2), np.float32)), axis=2)
    with pytest.raises(ValueError, match=r"^logits has shape \(3, 0\), and no class along axis 1; name another axis"):
        lb.entropy_from_logits(lib.array(np.zeros((3, 0), np.float32)))
    with pytest.raises(TypeError, match=r"^logits is "):
        lb.entropy_from_logits(None)
