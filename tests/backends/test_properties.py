"""Laws that hold for any input, tried on random ones."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from lossbridge.spec import LOSSES

CLASSES, ROWS = 5, 6  # one shape, so that compiling backends compile once

# JAX compiles each new operation: the first examples are slow, and no test may depend on time.
tried = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def batches(draw, losses=tuple(LOSSES), from_logits=None):
    """(loss, y_true, y_pred, options): any loss, of any form of targets and predictions that it takes."""
    loss = LOSSES[draw(st.sampled_from(losses))]
    form = "logits" if from_logits else draw(st.sampled_from(sorted(loss.rules)))
    target = draw(st.sampled_from(sorted(loss.rules[form])))
    options = {"from_logits": form == "logits"} if "from_logits" in loss.options else {}
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    z, z_true = (draw(st.sampled_from([0.1, 1.0, 5.0])) * rng.normal(size=(2, ROWS, CLASSES))).astype(np.float32)
    p, t = (1 / (1 + np.exp(-x)) if target == "outcomes" else softmax(x) for x in (z, z_true))
    labels = rng.integers(0, CLASSES, ROWS).astype(np.int32)
    y_true = {"labels": labels, "logits": z_true}.get(target, t)
    return loss.name, y_true, z if form == "logits" else p, options


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def close(a, b, relative=2e-5, absolute=2e-6):
    np.testing.assert_allclose(a, b, rtol=relative, atol=absolute)


def per_sample(y_true, y_pred):
    return y_true.shape == y_pred.shape


@seed(1)
@tried
@given(batch=batches(), data=st.data())
def test_permuting_samples(lib, batch, data):
    loss, y_true, y_pred, options = batch
    order = np.array(data.draw(st.permutations(range(ROWS))))
    value, gradient = lib.value_and_grad(loss, y_true, y_pred, **options, reduction="none")
    moved, moved_gradient = lib.value_and_grad(loss, y_true[order], y_pred[order], **options, reduction="none")
    close(moved, value[order])
    close(moved_gradient, gradient[order])


@seed(2)
@tried
@given(batch=batches(), data=st.data())
def test_permuting_classes(lib, batch, data):
    loss, y_true, y_pred, options = batch
    order = np.array(data.draw(st.permutations(range(CLASSES))))
    moved_true = y_true[:, order] if y_true.ndim == 2 else np.argsort(order)[y_true].astype(np.int32)
    value, gradient = lib.value_and_grad(loss, y_true, y_pred, **options)
    moved, moved_gradient = lib.value_and_grad(loss, moved_true, y_pred[:, order].copy(), **options)
    close(moved, value)
    close(moved_gradient, gradient[:, order])


@seed(3)
@tried
@given(batch=batches(), data=st.data())
def test_masking_equals_slicing(lib, batch, data):
    loss, y_true, y_pred, options = batch
    rows = np.array(data.draw(st.lists(st.booleans(), min_size=ROWS, max_size=ROWS)))
    elementwise = loss == "log_loss" and y_true.ndim == 2
    mask = np.repeat(rows[:, None], CLASSES, 1) if elementwise else rows
    value, gradient = lib.value_and_grad(loss, y_true, y_pred, **options, mask=mask)
    sliced, sliced_gradient = lib.value_and_grad(loss, y_true[rows], y_pred[rows], **options)
    close(value, sliced)
    close(gradient[rows], sliced_gradient)
    assert not gradient[~rows].any()


@seed(4)
@tried
@given(batch=batches())
def test_weight_two_equals_a_repeated_row(lib, batch):
    loss, y_true, y_pred, options = batch
    weight = np.array([2, 1, 1, 1, 1, 1], np.float32)
    if loss == "log_loss" and y_true.ndim == 2:
        weight = np.repeat(weight[:, None], CLASSES, 1)
    options |= {"reduction": "mean_with_sample_weight"}
    twice = np.array([0, *range(ROWS)])
    value = lib.value(loss, y_true, y_pred, **options, sample_weight=weight)
    close(value, lib.value(loss, y_true[twice], y_pred[twice], **options))


SOFTMAX_LOSSES = tuple(name for name, loss in LOSSES.items() if "logits" in loss.rules and "binary" not in name)
ACTIVATED_LOSSES = tuple(name for name, loss in LOSSES.items() if "from_logits" in loss.options)


@seed(5)
@tried
@given(batch=batches(SOFTMAX_LOSSES, from_logits=True), offset=st.sampled_from([-64.0, -1.0, 0.5, 64.0]))
def test_adding_a_constant_to_the_logits(lib, batch, offset):
    loss, y_true, y_pred, options = batch
    if loss == "log_loss" and y_true.ndim == 2:
        return  # Bernoulli trials have no common constant
    y_pred = np.round(y_pred * 64) / 64  # so that the sum is exact
    close(lib.value(loss, y_true, y_pred + np.float32(offset), **options), lib.value(loss, y_true, y_pred, **options))


@seed(6)
@tried
@given(batch=batches())
def test_sum_is_mean_times_count(lib, batch):
    loss, y_true, y_pred, options = batch
    count = y_true.size if loss == "log_loss" else ROWS
    mean, slope = lib.value_and_grad(loss, y_true, y_pred, **options)
    total, total_slope = lib.value_and_grad(loss, y_true, y_pred, **options, reduction="sum")
    close(total, mean * count)
    close(total_slope, slope * count)


@seed(7)
@tried
@given(batch=batches(ACTIVATED_LOSSES, from_logits=True))
def test_from_logits_equals_activation_first(lib, batch):
    loss, y_true, logits, _ = batch
    logits = np.clip(logits, -4, 4)
    binary = "binary" in loss or (loss == "log_loss" and y_true.ndim == 2)
    activation = (lambda z: 1 / (1 + np.exp(-z))) if binary else softmax
    if loss == "kl_divergence":
        y_true = np.clip(y_true, -4, 4)
    probable = activation(y_true) if loss == "kl_divergence" else y_true
    value = lib.value(loss, y_true, logits, from_logits=True)
    close(value, lib.value(loss, probable, activation(logits), from_logits=False), relative=1e-4)


@seed(8)
@tried
@given(batch=batches(("kl_divergence", "distillation_loss"), from_logits=True))
def test_divergences_are_not_negative(lib, batch):
    loss, y_true, y_pred, options = batch
    assert (lib.value(loss, y_true, y_pred, **options, reduction="none") >= 0).all()


@seed(9)
@tried
@given(rows=st.integers(0, 2**32 - 1))
def test_crossentropy_is_log_loss_on_labels(lib, rows):
    rng = np.random.default_rng(rows)
    p = softmax(rng.normal(size=(ROWS, CLASSES))).astype(np.float32)
    y = rng.integers(0, CLASSES, ROWS).astype(np.int32)
    value = lib.value("log_loss", y, p, reduction="none")
    close(value, lib.value("categorical_crossentropy", np.eye(CLASSES, dtype=np.float32)[y], p, reduction="none"))
    close(value, lib.value("sparse_categorical_crossentropy", y, p, reduction="none"))


@seed(10)
@tried
@given(rows=st.integers(0, 2**32 - 1))
def test_crossentropy_and_kl_have_one_gradient(lib, rows):
    """From logits; and from probabilities where neither renormalises nor clips: log loss, elementwise −t/p."""
    rng = np.random.default_rng(rows)
    z, z_true = rng.normal(size=(2, ROWS, CLASSES)).astype(np.float32)
    slope = lib.grad("categorical_crossentropy", softmax(z_true), z, from_logits=True)
    close(lib.grad("kl_divergence", z_true, z, from_logits=True), slope)
    t, p = softmax(z_true), softmax(z)
    divergence = lib.grad("kl_divergence", t, p, epsilon=0.0)
    # Renormalising adds the same number, Σt/Σp, to every class.
    crossentropy = lib.grad("categorical_crossentropy", t, p, epsilon=0.0)
    close(crossentropy - divergence, np.full_like(p, 1 / ROWS), absolute=1e-5)
