"""Which path computes the linear cross-entropy, in every situation a framework tells apart; `lb.explain` says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lossbridge as lb
from lossbridge.frameworks.framework import Choice, Path

H, C, N = 4, 7, 6
Called = Callable[..., Any]

# By framework and situation, the path; "blocks" in every other.
ALL_LOGITS = {
    ("numpy", "the weight of samples"),
    ("torch", "forward mode"),
    ("torch", "the weight of samples"),
    ("tensorflow", "forward mode"),
    ("tensorflow", "the weight of samples"),
}


@pytest.fixture
def taken(lib, monkeypatch) -> list[str]:
    """The names of the paths that ran."""
    found: list[str] = []
    choose = lib.framework.choose_linear

    def watched(call: Any, under: str = "") -> Choice:
        path = choose(call, under).path

        def losses(call: Any) -> Any:
            found.append(path.name)
            return path.losses(call)

        return Choice(Path(path.name, losses, "", ""))

    monkeypatch.setattr(lib.framework, "choose_linear", watched)
    return found


def arguments(lib) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    labels = lib.array(rng.integers(0, C, N).astype(np.int32))
    return {
        "labels": labels,
        "hidden": lib.array(rng.normal(size=(N, H))),
        "weight": lib.array(rng.normal(size=(C, H))),
    }


def in_forward_mode(lib, given: dict[str, Any]) -> None:
    def loss(hidden: Any) -> Any:
        return lb.linear_crossentropy(given["labels"], hidden, given["weight"])

    x = given["hidden"]
    if lib.b.name == "torch":
        from torch.autograd import forward_ad

        with forward_ad.dual_level():
            loss(forward_ad.make_dual(x, x.clone()))
    elif lib.b.name == "tensorflow":
        import tensorflow as tf

        with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)):
            loss(x)
    else:
        import jax

        jax.jvp(loss, (x,), (x,))


def situations(lib) -> dict[str, Called]:
    both = lb.value_and_grad(lb.linear_crossentropy, of=("hidden", "weight"))

    def of_samples(given: dict[str, Any]) -> None:
        ones = lib.array(np.ones(N))
        lib.b.value_and_grad(lambda w: lb.linear_crossentropy(**given, sample_weight=w), ones)

    found: dict[str, Called] = {
        "value": lambda given: lb.linear_crossentropy(**given),
        "gradients": lambda given: both(**given),
        "gradients of losses": lambda given: both(**given, reduction="none"),
        "forward mode": lambda given: in_forward_mode(lib, given),
        "the weight of samples": of_samples,
    }
    for name, compiler in lib.b.compilers().items():
        found[name] = lambda given, compiler=compiler: compiler(lambda given: lb.linear_crossentropy(**given))(given)
    if lib.b.name == "numpy":
        del found["forward mode"]  # which NumPy has not
    return found


def test_this_path_runs_and_no_other(lib, taken) -> None:
    for situation, call in situations(lib).items():
        taken.clear()
        call(arguments(lib))
        expected = "all logits" if (lib.b.name, situation) in ALL_LOGITS else "blocks"
        assert set(taken) == {expected}, situation


def test_explained(lib) -> None:
    given = arguments(lib)
    options = {"weight": given["weight"], "softcap": 3.0}
    for under in ("", *lib.b.compilers()):
        found = lb.explain(lb.linear_crossentropy, given["labels"], given["hidden"], under=under, **options)
        assert (found.framework, found.under, found.path) == (lib.b.name, under, "blocks")
        assert found.why_not == {}
