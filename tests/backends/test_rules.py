"""The derivative rules, called directly: every case that they are of, and random rows, by the reference."""

from __future__ import annotations

import numpy as np
import pytest

from lossbridge import reference
from lossbridge.maths.ops import Rule
from lossbridge.spec import LOSSES
from lossbridge.tools.parity.cases import Case, Tolerance, cases

OF_SAMPLES = ("sample_weight", "mask", "normalizer", "ignore_class", "reduction")


def rule_of(case: Case) -> Rule:
    loss = LOSSES[case.loss]
    form = "logits" if case.options.get("from_logits", "probabilities" not in loss.rules) else "probabilities"
    if loss.kinds:
        return loss.kinds[case.options.get("kind", "forward")]
    found = loss.rules[form]
    labels = case.y_true.ndim < case.y_pred.ndim
    return next(rule for target, rule in found.items() if len(found) == 1 or (target == "labels") == labels)


CASES = [
    case
    for case in cases()
    if rule_of(case).gradients is not None
    and not set(OF_SAMPLES[:4]) & set(case.options)
    and case.dtype in ("float32", "float64")
    and 0 < case.y_pred.size < 10**4
    and not case.refused
    and case.options.get("kind") != "reverse"  # which exchanges the sides
    and not any(isinstance(option, np.generic) for option in case.options.values())  # which rules get as numbers
]


def taken(case: Case) -> dict[str, object]:
    """The options that the rule takes."""
    given = {**LOSSES[case.loss].options, **case.options}
    return {name: given[name] for name in rule_of(case).options if name in given}


def assert_right(lib, case: Case) -> None:
    b, ops, given = lib.b, lib.b.ops, {name: x for name, x in case.options.items() if name != "reduction"}
    exact = getattr(reference, case.loss)(
        case.y_true, case.y_pred, **given, reduction="none", precision=case.compute_dtype
    )
    rule = rule_of(case)
    unit = 2.0**-52 if case.dtype == "float64" else 2.0**-23
    axis = None if case.axis is None else case.axis % case.y_pred.ndim
    with b.scope(case.dtype, "cpu"), b.quiet():
        along = [-1 if i == axis else 1 for i in range(case.y_pred.ndim)]
        options = {
            name: b.place(x.reshape(along), case.dtype, "cpu") if isinstance(x, np.ndarray) else x
            for name, x in taken(case).items()
        }
        labels = case.y_true.ndim < case.y_pred.ndim
        target = b.place(case.y_true, "int32" if labels else case.dtype, "cpu")
        pred = b.place(case.y_pred, case.dtype, "cpu")
        value, residuals = rule.value(ops, target, pred, axis, **options)
        of_target, of_pred = rule.gradients(ops, target, pred, axis, residuals, (not labels, True), **options)
        if not labels:
            neither = rule.gradients(ops, target, pred, axis, residuals, (False, False), **options)
            assert neither == (None, None)
        value, of_pred = b.to_numpy(value).astype(np.float64), b.to_numpy(of_pred).astype(np.float64)
        of_target = None if labels else b.to_numpy(of_target).astype(np.float64)
    truth, finite = np.asarray(exact.value), np.isfinite(exact.value)
    np.testing.assert_array_equal(np.isnan(value), np.isnan(truth))
    np.testing.assert_array_equal(value[~finite], truth[~finite])
    value, judged = value[finite], truth[finite]
    if case.options.get("reduction") != "none" and value.size:  # what its tolerance is meant for
        value, judged = value.mean(), judged.mean()
    size = np.maximum(np.abs(judged), case.tolerance.scale)
    assert (np.abs(value - judged) <= case.tolerance.value * unit * size + 1e-37).all()
    rows = np.ones_like(case.y_pred, bool) & (finite if axis is None else np.expand_dims(finite, axis))
    # A gradient for the target is made of logarithms; XLA's log1p is off by 100 units in float64.
    of_both = ((of_pred, exact.gradient, 0.0, 1), (of_target, exact.target_gradient, truth, 4))
    for gradient, exact_gradient, least, factor in of_both[: 1 if labels else 2]:
        with np.errstate(invalid="ignore"):
            least = least if axis is None or np.ndim(least) == 0 else np.expand_dims(least, axis)
            largest = np.abs(exact_gradient).max(-1 if axis is None else axis, keepdims=True)
            allowed = factor * case.tolerance.gradient * unit * np.maximum(largest, np.abs(least))
            off = np.abs(gradient - exact_gradient) - allowed
            assert not ((off > 1e-37) & rows & np.isfinite(largest)).any()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.loss}-{case.name}")
def test_every_case(lib, case: Case) -> None:
    assert_right(lib, case)


KINDS = ["forward", "jensen_shannon", "total_variation"]


@pytest.mark.parametrize("loss", ["kl_divergence", "distillation_loss"])
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_divergences_of_rows_at_any_distance(lib, loss, spread) -> None:
    rng = np.random.default_rng(1)
    z = spread * rng.normal(size=(60, 33))
    x = z + np.logspace(-6, 2, 60)[:, None] * rng.normal(size=(60, 33))
    template = next(case for case in CASES if case.loss == loss and case.options.get("from_logits", True))
    options = {"from_logits": True} if loss == "kl_divergence" else {"temperature": 2.0}
    z, x = z.astype(np.float32), x.astype(np.float32)
    assert_right(lib, Case("any distance", loss, z, x, options | {"reduction": "none"}, "float32", template.tolerance))


@pytest.mark.parametrize("options", [{"kind": kind} for kind in KINDS], ids=KINDS)
def test_divergences_of_two_classes_that_share_a_row(lib, options) -> None:
    """Each has a half, and rounding may give both more."""
    rng = np.random.default_rng(3)
    z = rng.uniform(0.1, 20, (400, 1)) * rng.normal(size=(400, 4))
    halves = rng.normal(size=(400, 1)) + np.array([0, 0, -60, -90])
    of_xla = Tolerance(value=256, gradient=128)  # whose log1p of float64 is off by 100 units
    for name, y_true, y_pred in (("student", z, halves), ("teacher", halves, z)):
        options = options | {"reduction": "none"}
        assert_right(lib, Case(name, "divergence", y_true, y_pred, options, "float64", of_xla))


def test_divergences_of_probabilities_at_any_distance(lib) -> None:
    rng = np.random.default_rng(2)
    t = rng.dirichlet(np.full(33, 0.3), 60)
    p = t * np.exp(np.logspace(-6, 1, 60)[:, None] * rng.normal(size=(60, 33)))
    t, p = t.astype(np.float32), (p / p.sum(1, keepdims=True)).astype(np.float32)
    template = next(case for case in CASES if case.loss == "kl_divergence" and not case.options["from_logits"])
    assert_right(
        lib,
        Case(
            "any distance",
            "kl_divergence",
            t,
            p,
            {"from_logits": False, "reduction": "none"},
            "float32",
            template.tolerance,
        ),
    )
