"""Every call that a diagnosis prints gives the number that it is printed for, in the library that it names."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from lossbridge.diagnosis.calls import texts
from lossbridge.diagnosis.canonical import Setting
from lossbridge.diagnosis.evaluate import Batch, scalars
from lossbridge.diagnosis.hypotheses import hypotheses
from lossbridge.diagnosis.reading import batch_of

RNG = np.random.default_rng(0)
N, C = 6, 4
LOGITS = (2 * RNG.normal(size=(N, C))).astype(np.float32)
P = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
LABELS = np.array([0, 3, 1, 2, 2, 0])
SOFT = RNG.dirichlet(np.ones(C), N).astype(np.float32)
WEIGHTS = {"class_weight": RNG.uniform(0.5, 2, C), "sample_weight": RNG.uniform(0.5, 2, N)}
BATCHES = {
    "labels": batch_of(LABELS, P, **WEIGHTS)[0],
    "labels, logits, some ignored": batch_of(np.where(LABELS == 1, -1, LABELS), LOGITS, ignore_class=-1)[0],
    "one-hot": batch_of(np.eye(C, dtype=np.float32)[LABELS], P)[0],
    "distributions": batch_of(SOFT, P, **WEIGHTS)[0],
    "distributions, logits": batch_of(SOFT, LOGITS)[0],
    "distributions, log-probabilities": batch_of(SOFT, np.log(P))[0],
    "outcomes": batch_of((SOFT[:, 0] > 0.3).astype(np.float32), P[:, 0])[0],
}


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
    for name in ("y_true", "y_pred", "class_weight", "sample_weight"):
        x = getattr(batch, name)
        if x is not None:
            known[name] = convert(x.astype(np.float32) if name.endswith("weight") else x)
    return known


@pytest.mark.parametrize("kind", BATCHES)
def test_calls(lib, kind) -> None:
    batch = BATCHES[kind]
    setting = Setting.of(batch, "scalar")
    conventions = [h.convention for h in hypotheses(setting)]
    values = scalars(batch, conventions)
    found: dict[str, dict[str, float]] = {library: {} for library in LIBRARIES.get(lib.b.name, ())}
    for c, value in zip(conventions, values, strict=True):
        if np.isfinite(value):
            for library, text in texts([c], [float(value)], batch, setting).items():
                found.get(library, {}).setdefault(text, float(value))
    for library, tried in found.items():
        known = names(library, batch)
        for text in sorted(tried)[:: max(1, len(tried) // 60)]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what the libraries say of rows that do not sum to 1, and of means
                value = float(eval(text, dict(known)))
            assert value == pytest.approx(tried[text], rel=3e-5, abs=3e-6), text
    assert sum(map(len, found.values())) > 20 or not found
