"""Training steps written by hand in NumPy: lossbridge's gradient for the logits, and the chain rule from there.

Every loss is in it by the registry, with logits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lossbridge as lb
from lossbridge.tools.parity.cases import LOSSES, Case, cases, options_of

BATCHES = [
    case
    for case in cases()
    if case.dtype == "float64" and case.y_pred.shape == (8, 5) and case.options.get("from_logits", True)
]
assert {case.loss for case in BATCHES} == set(LOSSES)
every_loss = pytest.mark.parametrize("case", BATCHES, ids=[f"{case.loss}, {case.name}" for case in BATCHES])

Network = dict[str, np.ndarray]
MASK = np.array([1, 1, 1, 0, 0, 1, 0, 0], bool)  # three count in the first half, one in the second
WEIGHT = np.array([0.5, 3.0, 0.0, 1.0, 2.0, 0.25, 1.5, 1.0])


def batch(dtype: str = "float64") -> tuple[np.ndarray, Network]:
    rng = np.random.default_rng(0)
    x, w1, b1, w2, b2 = (rng.normal(size=shape).astype(dtype) for shape in [(8, 4), (4, 6), (6,), (6, 5), (5,)])
    return x, {"w1": w1, "b1": b1, "w2": w2, "b2": b2}


def forward(network: Network, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    hidden = np.tanh(x @ network["w1"] + network["b1"])
    return hidden, hidden @ network["w2"] + network["b2"]


def loss_and_gradients(
    case: Case, network: Network, x: np.ndarray, y_true: np.ndarray, **options: Any
) -> tuple[Any, Network]:
    hidden, logits = forward(network, x)
    loss, d_logits = lb.value_and_grad(getattr(lb, case.loss))(y_true, logits, **case.options, **options)
    d_hidden = (d_logits @ network["w2"].T) * (1 - hidden**2)
    return loss, {
        "w1": x.T @ d_hidden,
        "b1": d_hidden.sum(axis=0),
        "w2": hidden.T @ d_logits,
        "b2": d_logits.sum(axis=0),
    }


def per_sample(case: Case, rows: np.ndarray) -> np.ndarray:
    """`rows`, one an entry of the per-sample losses."""
    shape = getattr(lb, case.loss)(case.y_true, case.y_pred, reduction="none", **case.options).shape
    return np.broadcast_to(rows.reshape(-1, *[1] * (len(shape) - 1)), shape)


@every_loss
def test_gradients_of_every_parameter_are_the_central_differences(case) -> None:
    x, network = batch()
    options = {"mask": MASK, "sample_weight": WEIGHT}
    _, gradients = loss_and_gradients(case, network, x, case.y_true, **options)
    step = 1e-6
    for name, parameter in network.items():
        numeric = np.zeros_like(parameter)
        for index in np.ndindex(parameter.shape):
            for sign in (1, -1):
                moved = parameter.copy()
                moved[index] += sign * step
                _, logits = forward(network | {name: moved}, x)
                loss = getattr(lb, case.loss)(case.y_true, logits, **case.options, **options)
                numeric[index] += sign * loss / (2 * step)
        np.testing.assert_allclose(gradients[name], numeric, rtol=1e-6, atol=1e-8)


@every_loss
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_steps_lower_the_loss(case, dtype) -> None:
    x, network = batch(dtype)
    y_true = case.y_true if case.y_true.dtype.kind == "i" else case.y_true.astype(dtype)
    losses = []
    for _ in range(50):
        loss, gradients = loss_and_gradients(case, network, x, y_true)
        network = {name: network[name] - 0.1 * gradients[name] for name in network}
        losses.append(loss)
    assert all(array.dtype == dtype for array in [*losses, *gradients.values(), *network.values()])
    assert np.all(np.diff(losses) < 0)
    assert losses[-1] < 0.8 * losses[0]


@every_loss
@pytest.mark.parametrize("reduction", ["mean", "mean_with_sample_weight"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_accumulated_gradients_equal_those_of_the_whole_batch(case, reduction, dtype) -> None:
    x, network = batch(dtype)
    mask, weight = per_sample(case, MASK), per_sample(case, WEIGHT)
    y_true = case.y_true if case.y_true.dtype.kind == "i" else case.y_true.astype(dtype)

    def parts(normalizer: Any) -> list[Any]:
        return [
            loss_and_gradients(
                case,
                network,
                x[rows],
                y_true[rows],
                mask=mask[rows],
                sample_weight=weight[rows],
                reduction=reduction,
                normalizer=normalizer,
            )
            for rows in (slice(0, 4), slice(4, 8))
        ]

    options = {"mask": mask, "sample_weight": weight, "reduction": reduction}
    whole, gradients = loss_and_gradients(case, network, x, y_true, **options)
    (first, d_first), (second, d_second) = parts(mask.sum() if reduction == "mean" else (mask * weight).sum())
    close = {"rtol": 0, "atol": 2e-6 if dtype == "float32" else 2e-15}
    np.testing.assert_allclose(first + second, whole, **close)
    for name in gradients:
        np.testing.assert_allclose(d_first[name] + d_second[name], gradients[name], **close)
    (first, _), (second, _) = parts(None)
    assert abs((first + second) / 2 - whole) > 1e-3


@every_loss
def test_a_step_changes_nothing_of_the_caller(case) -> None:
    x, network = batch()
    given = {"y_true": case.y_true.copy(), "x": x, "mask": MASK.copy(), "sample_weight": WEIGHT.copy(), **network}
    per_class = {name for name in ("class_weight", "pos_weight", "alpha") if name in options_of(case.loss)}
    per_class -= {"alpha"} if case.loss == "binary_focal_crossentropy" else set()  # one number there
    given |= {name: np.linspace(0.5, 1.5, 5) for name in per_class}
    before = {name: array.copy() for name, array in given.items()}
    options = {name: given[name] for name in ("mask", "sample_weight", *per_class)}
    for writable in (True, False):
        for array in given.values():
            array.flags.writeable = writable
        loss_and_gradients(case, network, x, given["y_true"], **options)
        for name, array in given.items():
            np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_the_gradient_is_the_caller_s_own() -> None:
    """It may be written into: it is neither read-only nor a view of an argument."""
    y_true, logits = np.eye(5)[:3], np.ones((3, 5))
    _, gradient = lb.value_and_grad(lb.categorical_crossentropy)(y_true, logits, from_logits=True)
    gradient *= 0
    np.testing.assert_array_equal(logits, 1)
    np.testing.assert_array_equal(y_true, np.eye(5)[:3])


@pytest.mark.parametrize("case", BATCHES[:1])
def test_nothing_that_counts_gives_a_step_of_zero(case) -> None:
    x, network = batch()
    loss, gradients = loss_and_gradients(case, network, x, case.y_true, mask=np.zeros(8, bool))
    assert loss == 0
    assert not any(gradient.any() for gradient in gradients.values())
