"""Every call that a diagnosis prints gives the number that it is printed for, in the library that it names."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lossbridge.conventions import Convention
from lossbridge.tools.diagnosis.batch import Batch, Quantity
from lossbridge.tools.diagnosis.calls import as_rows, texts
from lossbridge.tools.diagnosis.canonical import MIXTURES, Setting
from lossbridge.tools.diagnosis.evaluate import whole
from lossbridge.tools.diagnosis.hypotheses import hypotheses
from lossbridge.tools.diagnosis.reading import batch_of

RNG = np.random.default_rng(0)
N, C = 6, 4
LOGITS = (2 * RNG.normal(size=(N, C))).astype(np.float32)
P = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
LABELS = np.array([0, 3, 1, 2, 2, 0])
SOFT = RNG.dirichlet(np.ones(C), N).astype(np.float32)
WEIGHTS = {"class_weight": RNG.uniform(0.5, 2, C), "sample_weight": RNG.uniform(0.5, 2, N)}
SEQUENCES = (2 * RNG.normal(size=(2, 3, C))).astype(np.float32)
MASK = np.array([True, True, False, True, False, True])
# Of probability 0 and 1, on the target and off it, and the logits that say so.
CERTAIN = P.copy()
CERTAIN[0], CERTAIN[1, 0], CERTAIN[3] = np.eye(C)[0], 0, np.eye(C)[1]
INFINITE = np.where(np.arange(C) == (LABELS[:, None] + 1) % C, -np.inf, LOGITS).astype(np.float32)
BATCHES = {
    "labels": batch_of(LABELS, P, **WEIGHTS)[0],
    "labels, logits, some ignored": batch_of(np.where(LABELS == 1, -1, LABELS), LOGITS, ignore_class=-1)[0],
    "labels, a class ignored": batch_of(LABELS, LOGITS, ignore_class=2)[0],
    "labels, a class missing": batch_of(LABELS[:3], P[:3])[0],
    "labels of images": batch_of(LABELS.reshape(2, 3), SEQUENCES.swapaxes(1, 2))[0],
    "labels of sequences": batch_of(LABELS.reshape(2, 3), SEQUENCES, sample_weight=[1.0, 2.0])[0],
    "one-hot": batch_of(np.eye(C, dtype=np.float32)[LABELS], P)[0],
    "one-hot integers": batch_of(np.eye(C, dtype=int)[LABELS], P)[0],
    "distributions": batch_of(SOFT, P, **WEIGHTS)[0],
    "distributions, halves": batch_of(SOFT, P.astype(np.float16))[0],
    "distributions, logits": batch_of(SOFT, LOGITS)[0],
    "teacher and student": batch_of(LOGITS[::-1].copy(), LOGITS, sample_weight=WEIGHTS["sample_weight"])[0],
    "distributions, log-probabilities": batch_of(SOFT, np.log(P))[0],
    "distributions of sequences": batch_of(SOFT.reshape(2, 3, C), SEQUENCES)[0],
    "outcomes": batch_of((SOFT[:, 0] > 0.3).astype(np.float32), P[:, 0])[0],
    "labels, certain": batch_of(LABELS, CERTAIN)[0],
    "labels, −∞": batch_of(LABELS, INFINITE)[0],
    "labels of −100": batch_of(np.where(LABELS == 1, -100, LABELS), LOGITS)[0],
    "labels, a mask": batch_of(LABELS, LOGITS, mask=MASK)[0],
    "labels, one row": batch_of(LABELS[:1], P[:1])[0],
    "labels, halves": batch_of(LABELS, P.astype(np.float16))[0],
    "one-hot, certain": batch_of(np.eye(C, dtype=np.float32)[LABELS], CERTAIN)[0],
    "one-hot, −∞": batch_of(np.eye(C, dtype=np.float32)[LABELS], INFINITE)[0],
    "distributions, certain": batch_of(SOFT, CERTAIN)[0],
    "distributions, one row": batch_of(SOFT[:1], P[:1])[0],
    "outcomes (N, C)": batch_of((SOFT > 0.3).astype(np.float32), 1 / (1 + np.exp(-LOGITS)))[0],
    "outcomes (N, C), logits": batch_of((SOFT > 0.3).astype(np.float32), LOGITS)[0],
    "outcomes, certain": batch_of((SOFT[:, 0] > 0.3).astype(np.float32), np.where(MASK, P[:, 0], 1.0))[0],
    "outcomes, weights": batch_of((SOFT[:, 0] > 0.3) * np.float32(1), P[:, 0], sample_weight=np.arange(1.0, 7))[0],
    "outcomes, a column": batch_of((SOFT[:, 0] > 0.3).astype(np.float32), P[:, :1])[0],
}
ARRAYS: list[tuple[str, Quantity]] = [
    ("labels", "samples"),
    ("labels, logits, some ignored", "samples"),
    ("labels of sequences", "samples"),
    ("distributions", "samples"),
    ("distributions, logits", "elements"),
    ("teacher and student", "samples"),
    ("distributions, logits", "gradient"),
    ("outcomes", "samples"),
]


# Options of logits, which lossbridge has, and others take by what is written around their arguments.
OF_LOGITS = {"softcap": 3.0, "z_loss": 1e-2, "logit_scale": 2.0}


# Whose calls are made in which process. Keras' own on TensorFlow does not renormalise the probabilities of labels.
LIBRARIES = {"numpy": ("lossbridge", "sklearn", "scipy"), "torch": ("torch", "keras"), "jax": ("optax", "keras")}


def names(library: str, batch: Batch) -> dict[str, Any]:
    """What a text of the library's may speak of."""
    modules = {
        "lossbridge": ("scipy.special", "lossbridge as lb"),
        "sklearn": ("scipy.special", "sklearn.metrics", "lossbridge.compat.sklearn"),
        "scipy": ("scipy.special", "scipy.stats"),
        "torch": ("torch", "torch.nn.functional as F"),
        "keras": ("keras",),
        "optax": ("jax", "jax.numpy as jnp", "optax"),
    }[library]
    known: dict[str, Any] = {}
    exec("\n".join(f"import {module}" for module in ("math", "numpy as np", *modules)), known)
    convert: Any = {
        "torch": lambda x: known["torch"].as_tensor(x),
        "keras": lambda x: known["keras"].ops.convert_to_tensor(x),
        "optax": lambda x: known["jnp"].asarray(x),
    }.get(library, lambda x: x)
    known["mask"] = MASK
    for name in ("y_true", "y_pred", "class_weight", "sample_weight"):
        x = getattr(batch, name)
        if x is not None:
            known[name] = convert(x.astype(np.float32) if name.endswith("weight") else x)
    return known


@pytest.mark.parametrize(("kind", "quantity"), [*((kind, "scalar") for kind in BATCHES), *ARRAYS])
@pytest.mark.parametrize("every", [9, pytest.param(3, marks=pytest.mark.exhaustive)])
def test_calls(lib, kind: str, quantity: Quantity, every: int) -> None:
    batch = BATCHES[kind]
    setting = Setting.of(batch, quantity)
    if lib.b.name not in LIBRARIES:
        pytest.skip("Keras' calls are made on PyTorch and JAX")
    candidates = [h.convention for h in hypotheses(setting)]
    found = found_calls(
        lib, batch, setting, candidates[::every] if quantity == "scalar" else candidates[: 600 // every]
    )
    a_mean = (lib.b.name, kind, quantity) == ("numpy", "outcomes", "samples")  # is what such losses give of outcomes
    if not a_mean:
        assert sum(map(len, found.values())) >= (30 if quantity == "scalar" else 12) // every


@pytest.mark.parametrize("kind", ["labels, logits, some ignored", "labels, −∞", "distributions, logits", "one-hot, −∞"])
def test_calls_with_options_of_logits(lib, kind: str) -> None:
    batch = BATCHES[kind]
    setting = Setting.of(batch, "scalar", given=OF_LOGITS)
    if lib.b.name not in LIBRARIES:
        pytest.skip("Keras' calls are made on PyTorch and JAX")
    conventions = [h.convention for h in hypotheses(setting)]
    capped = [c for c in conventions if c.softcap and not c.z_loss]
    added = [c for c in conventions if c.z_loss]
    found = found_calls(lib, batch, setting, capped[::5])
    assert any(found.values())
    # A z-loss is an option of lossbridge's alone.
    found = found_calls(lib, batch, setting, added[::5])
    assert {library for library, calls in found.items() if calls} <= {"lossbridge"}
    assert found.get("lossbridge") or lib.b.name != "numpy"


@pytest.mark.parametrize("kind", ["teacher and student", "distributions", "distributions, certain", "one-hot, certain"])
def test_calls_of_divergences(lib, kind: str) -> None:
    """Of Jensen–Shannon's and of the total variation lossbridge's alone, which are given logits, so sums of 1."""
    batch = BATCHES[kind]
    setting = Setting.of(batch, "scalar", given={"beta": 0.3, "temperature": 2.0})
    if lib.b.name != "numpy":
        pytest.skip("lossbridge's calls are made on NumPy")
    conventions = [h.convention for h in hypotheses(setting) if h.convention.cost in MIXTURES]
    found = found_calls(lib, batch, setting, conventions[::2])["lossbridge"]
    assert all("lb.divergence(" in text for text in found)
    kinds = {text.split("kind='")[1].split("'")[0] for text in found}
    assert kinds == {"jensen_shannon"} | (set() if kind == "distributions, certain" else {"total_variation"})
    assert any("beta=0.3, scale='divergence'" in text for text in found)
    assert any("temperature=2.0" in text for text in found) is (kind == "teacher and student")


def found_calls(lib, batch: Batch, setting: Setting, conventions: list[Convention]) -> dict[str, dict[str, Any]]:
    """By library the calls that are printed, each of which is made."""
    quantity = setting.quantity
    found: dict[str, dict[str, Any]] = {library: {} for library in LIBRARIES[lib.b.name]}
    for c in conventions:
        exact = replace(c, dtype="exact") if c.dtype == batch.half else c  # calls are made in float32
        value = whole(batch, exact, "scalar" if quantity == "gradient" else quantity)
        if np.isfinite(value).all():
            for library, text in texts([c], batch, setting).items():
                found.get(library, {}).setdefault(text, value)
    for library, tried in found.items():
        known = names(library, as_rows(batch)[0])
        if library == "keras" and batch.mask is not None:
            continue  # a tensor of JAX is not indexed by an array of NumPy, as which the text is read
        for text in sorted(tried)[:: max(1, len(tried) // 60)]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what the libraries say of rows that do not sum to 1, and of means
                value = np.asarray(eval(text, dict(known)))
            np.testing.assert_allclose(value.ravel(), tried[text].ravel(), rtol=3e-5, atol=3e-6, err_msg=text)
    return found
