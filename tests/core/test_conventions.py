"""The registry of conventions, and what the diagnosis computes of them: against 50 digits."""

from __future__ import annotations

import inspect
import math
from dataclasses import fields, replace
from typing import get_args

import numpy as np
import pytest
from exact import Problem

from lossbridge.conventions import PEERS, Convention, Cost
from lossbridge.tools.diagnosis.batch import Batch
from lossbridge.tools.diagnosis.canonical import Setting, canonical
from lossbridge.tools.diagnosis.evaluate import arrays, as_read, scalars, scale
from lossbridge.tools.diagnosis.hypotheses import changes, hypotheses, presets
from lossbridge.tools.diagnosis.probes import probes
from lossbridge.tools.diagnosis.reading import batch_of
from lossbridge.tools.parity import peers

N, C = 5, 4
RNG = np.random.default_rng(0)
LOGITS = (3 * RNG.normal(size=(N, C))).astype(np.float32)
P = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
P[0, 1], P[1, 2] = 1e-9, 0
SOFT = RNG.dirichlet(np.ones(C), N).astype(np.float32)
LABELS = np.array([0, 3, 1, -1, 2])
WEIGHTS = {"class_weight": RNG.random(C) + 0.5, "sample_weight": np.array([0.5, 1, 0, 2, 1])}
MASK = np.array([True, True, False, True, True])

BATCHES = {
    "labels": batch_of(LABELS, P, **WEIGHTS, ignore_class=-1)[0],
    "labels, logits": batch_of(LABELS, LOGITS, **WEIGHTS, ignore_class=-1)[0],
    "distributions": batch_of(SOFT, P, **WEIGHTS, mask=MASK)[0],
    "distributions, logits": batch_of(SOFT, LOGITS)[0],
    "teacher and student": batch_of(np.roll(LOGITS, 1, axis=0), LOGITS)[0],
    "distributions, float64": batch_of(SOFT, P.astype(np.float64))[0],
    "one-hot": batch_of(np.eye(C)[LABELS % C], P)[0],
    "outcomes": batch_of([1.0, 0, 0, 1, 1], P[:, 0], mask=MASK)[0],
    "images": batch_of(SOFT[:4].reshape(2, 2, C), P[:4].reshape(2, 2, C))[0],
}
every_batch = pytest.mark.parametrize("batch", BATCHES.values(), ids=list(BATCHES))


def exact(c: Convention, batch: Batch) -> Problem:
    y_true, kept = batch.y_true, batch.mask
    if batch.labels:
        kept = y_true != batch.ignored
        y_true = np.eye(C)[np.where(kept, y_true, 0)] * kept[..., None]
    pred = as_read(c, batch).y_pred
    return Problem(
        c,
        y_true,
        batch.y_pred,
        class_weight=batch.class_weight,
        sample_weight=batch.sample_weight,
        kept=kept,
        dtype="float64" if pred.dtype == np.float64 and c.dtype != "float32" else "float32",
    )


def some(batch: Batch, quantity: str = "scalar", every: int = 5, **given: float) -> list[Convention]:
    """Of the hypotheses, those that exact arithmetic knows."""
    found = [h.convention for h in hypotheses(Setting.of(batch, quantity, finite=False, given=given))]
    return [c for c in found if c.dtype in ("exact", "float32")][::every]


OF_LOGITS = {"z_loss": 0.02, "softcap": 5.0, "logit_scale": 2.0}
capped = pytest.mark.parametrize("kind", ["labels, logits", "distributions, logits"])


def some_capped(kind: str, quantity: str, every: int) -> list[Convention]:
    """With a z-loss or a softcap, and with both."""
    found = [c for c in some(BATCHES[kind], quantity, 1, **OF_LOGITS) if c.z_loss or c.softcap]
    assert any(c.z_loss and c.softcap for c in found)
    assert any(c.z_loss and c.temperature == 0.5 for c in found)
    return found[::every]


def tolerance(c: Convention) -> float:
    """The logarithm of a logarithm near 0 loses digits."""
    return 1e-4 if c.logarithm == "twice" else 1e-11


@every_batch
def test_numbers(batch) -> None:
    conventions = some(batch)
    assert len(conventions) > 100
    for c, value in zip(conventions, scalars(batch, conventions), strict=True):
        truth = float(exact(c, batch).value()[()])
        assert value == pytest.approx(truth, rel=tolerance(c), abs=1e-13, nan_ok=True), c


@capped
def test_numbers_of_capped_logits_and_z_losses(kind) -> None:
    batch, conventions = BATCHES[kind], some_capped(kind, "scalar", 3)
    for c, value in zip(conventions, scalars(batch, conventions), strict=True):
        truth = float(exact(c, batch).value()[()])
        assert value == pytest.approx(truth, rel=tolerance(c), abs=1e-13, nan_ok=True), c


@capped
@pytest.mark.parametrize("quantity", ["samples", "gradient"])
def test_samples_and_gradients_of_capped_logits_and_z_losses(kind, quantity) -> None:
    batch = BATCHES[kind]
    for c in some_capped(kind, quantity, 11):
        if c.swapped or c.logarithm == "twice":
            continue
        value = arrays(batch, c, quantity, slice(None)) * scale(c, batch, quantity)
        problem, sign = exact(replace(c, outcome="loss"), batch), -1 if c.outcome == "negated" else 1
        truth = problem.gradient()[0] if quantity == "gradient" else problem.value(quantity)
        np.testing.assert_allclose(value, sign * truth.astype(float), rtol=1e-9, atol=1e-12, err_msg=str(c))


@pytest.mark.parametrize("kind", ["distributions", "distributions, logits", "one-hot"])
@pytest.mark.parametrize("quantity", ["scalar", "samples", "elements", "gradient"])
def test_jensen_shannon_divergences_at_a_beta(kind, quantity) -> None:
    batch = BATCHES[kind]
    if quantity == "gradient":
        batch = replace(batch, y_pred=np.where(batch.y_pred == 0, np.float32(0.01), batch.y_pred))
    found = [c for c in some(batch, quantity, 1, beta=0.3) if c.beta != 0.5]
    assert {(c.scale, c.crossed) for c in found} == {("mixture", False), ("divergence", False), ("mixture", True)}
    for c in found[::5]:
        if c.swapped or (quantity == "elements" and (c.sample_weight or c.left_out == "removed")):
            continue
        problem, sign = exact(replace(c, outcome="loss"), batch), -1 if c.outcome == "negated" else 1
        if quantity == "scalar":
            value, truth, sign = scalars(batch, [c])[0], exact(c, batch).value()[()], 1
        else:
            value = arrays(batch, c, quantity, slice(None)) * scale(c, batch, quantity)
            truth = problem.gradient()[0] if quantity == "gradient" else problem.value(quantity)
        if quantity == "elements":
            truth = truth * exact(replace(c, divisor="one"), batch).factor("scalar")
        truth = np.asarray(truth).astype(float)
        defined = np.isfinite(truth)
        np.testing.assert_allclose(
            np.asarray(value)[defined], sign * truth[defined], rtol=1e-9, atol=1e-12, err_msg=str(c)
        )


def test_mixtures_are_merged_with_their_mirror_images() -> None:
    batch = BATCHES["teacher and student"]
    setting = Setting.of(batch, "scalar")
    plain = Convention("jensen-shannon", activation="softmax", target_activation="softmax", swapped=True, beta=0.3)
    for c in (plain, replace(plain, scale="divergence"), replace(plain, crossed=True)):
        same = canonical(c, setting)
        assert same is not None
        assert (same.swapped, same.beta) == (False, 0.7)
        assert scalars(batch, [c])[0] == pytest.approx(scalars(batch, [same])[0], rel=1e-12)


@pytest.mark.parametrize("kind", [kind for kind in BATCHES if "logits" not in kind and "student" not in kind])
def test_only_logits_are_capped(kind) -> None:
    """And only logits have a log-sum-exp: of probabilities, outcomes and elements these are no options."""
    for quantity in ("scalar", "elements"):
        found = some(BATCHES[kind], quantity, 1, z_loss=0.02, softcap=5.0)
        assert all(c.activation == "softmax" for c in found if c.z_loss or c.softcap)
    elements = some(BATCHES["distributions, logits"], "elements", 1, z_loss=0.02)
    assert not any(c.z_loss for c in elements)


@every_batch
@pytest.mark.parametrize("quantity", ["samples", "elements"])
def test_values_a_sample_and_an_element(batch, quantity) -> None:
    for c in some(batch, quantity, every=11):
        if quantity == "elements" and (c.class_weight or c.sample_weight or c.left_out == "removed"):
            c = replace(c, class_weight=False, sample_weight=False, left_out="kept")
        value = arrays(batch, c, quantity, slice(None)) * scale(c, batch, quantity)
        truth = exact(replace(c, outcome="loss"), batch).value(quantity) * (-1 if c.outcome == "negated" else 1)
        if quantity == "elements":
            truth = truth * exact(replace(c, divisor="one"), batch).factor("scalar")
        np.testing.assert_allclose(value, truth.astype(float), rtol=tolerance(c), atol=1e-13, err_msg=str(c))


@every_batch
def test_gradients(batch) -> None:
    batch = replace(batch, y_pred=np.where(batch.y_pred == 0, np.float32(0.01), batch.y_pred))  # no slope at a bound
    for c in some(batch, "gradient", every=23):
        if c.swapped or c.logarithm == "twice" or (batch.y_pred.ndim == 1 and c.activation == "softmax"):
            continue
        value = arrays(batch, c, "gradient", slice(None)) * scale(c, batch, "gradient")
        truth = exact(c, batch).gradient()[0].astype(float) * (-1 if c.outcome == "negated" else 1)
        defined = np.isfinite(truth)  # no logarithm of less than 0, nor infinite loss
        np.testing.assert_allclose(value[defined], truth[defined], rtol=1e-9, atol=1e-12, err_msg=str(c))


@every_batch
def test_the_canonical_form_gives_the_same_number(batch) -> None:
    """On the batch, and on the probes: nothing is merged that data can tell apart."""
    setting = Setting.of(batch, "scalar", finite=False)
    pairs = {}
    for preset in presets(setting):
        variant = preset.convention
        for change in changes(setting):
            c = replace(variant, **change.values)
            c = replace(c, epsilon=setting.machine_epsilon) if c.epsilon == "machine" else c
            same = canonical(c, setting)
            c = c if same is None else replace(c, undefined=same.undefined)  # of which probes of 0 and 1 see more
            if same is not None and same != c and (change.costs is None or variant.cost in change.costs):
                pairs[c] = same
    for data in (batch, *probes(batch)):
        given, found = scalars(data, list(pairs)), scalars(data, list(pairs.values()))
        for old, new, a, b in zip(pairs, pairs.values(), given, found, strict=True):
            assert a == pytest.approx(b, rel=1e-6, abs=1e-12, nan_ok=True), f"{old}\n{new}"


# The registry itself.


@pytest.mark.parametrize("peer", [p for p in PEERS if p.library != "lossbridge"], ids=lambda p: p.name)
def test_functions_and_options_exist_here(peer) -> None:
    ours = peers.our_function(peer.library, peer.function)
    parameters = list(inspect.signature(ours).parameters)
    for call in peers.calls(peer):
        taken = list(inspect.signature(ours.__call__).parameters) if peer.is_class else []
        assert set(call.options) <= {*parameters, *taken}, call.name


def test_every_field_of_a_convention_is_changed_by_something() -> None:
    batch = batch_of(LABELS, P, **WEIGHTS, ignore_class=-1)[0]
    given = {"temperature": 2.0, "pos_weight": 3.0, "z_loss": 1e-3, "softcap": 20.0, "beta": 0.3}
    settings = [Setting.of(batch, "scalar", finite=False, given=given), Setting.of(BATCHES["images"], "scalar")]
    tried = {name for setting in settings for change in changes(setting) for name in change.values}
    by_solving = {"rows", "offset"}  # test_diagnosis_kinds.py
    of_peers = {"weighted"}
    assert tried | by_solving | of_peers == {f.name for f in fields(Convention)}
    costs = {peer.convention.cost for peer in PEERS} | {c.values.get("cost") for c in changes(settings[1])}
    assert costs - {None} == set(get_args(Cost))


def test_known_figures() -> None:
    """numerics.md §2, under "today": what is a convention is reproduced."""
    p = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
    y, w = np.array([0, 1, 1]), np.array([1.0, 2, 5])
    plain = batch_of(y, p)[0]
    weighted = batch_of(y, p, class_weight=w)[0]
    samples = batch_of(y, p, sample_weight=w)[0]
    ce = Convention()
    expected = [
        (plain, ce, 0.7297521),
        (plain, replace(ce, base=2.0), 1.05281),
        (plain, replace(ce, outcome="perplexity"), 2.0745663),
        (weighted, replace(ce, class_weight=True, divisor="weights"), 0.8043677),
        (weighted, replace(ce, class_weight=True), 1.3406128),
        (samples, replace(ce, sample_weight=True), 2.9500505),
        (samples, replace(ce, sample_weight=True, divisor="weights"), 1.1062690),
        (plain, replace(ce, label_smoothing=0.1), 0.7992960),
        (plain, replace(ce, label_smoothing=0.1, smoothing_over="K-1"), 0.8340678),
    ]
    for batch, c, figure in expected:
        assert scalars(batch, [c])[0] == pytest.approx(figure, rel=1e-6), c
    gradient = arrays(batch_of([0], p[:1])[0], replace(ce, renormalise="predictions"), "gradient", slice(None))
    np.testing.assert_allclose(gradient, [[-0.3 / 0.7, 1, 1]], rtol=1e-12)
    gradient = arrays(batch_of([0], np.log(p[:1]))[0], replace(ce, activation="exp"), "gradient", slice(None))
    assert not gradient[0, 1:].any()
    assert math.isclose(gradient[0, 0], -1)
