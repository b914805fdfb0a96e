"""The cases: every loss with its options, dtypes, shapes and boundaries, as plain data.

The tests, the parity command and the vectors read them. Inputs and tolerances are here; expected values come from the
reference, and nothing here depends on a backend. A new loss gets its cases from its record in lossbridge.spec.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lossbridge.request import COMMON
from lossbridge.spec import LOSSES as RECORDS
from lossbridge.spec import Target
from lossbridge.tools.parity import digits

Array = np.ndarray
DTYPES = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class Tolerance:
    """The largest error allowed, in units in the last place (ULP).

    `value`: ULP of the compute dtype, at max(|exact value|, scale). For a probability p near 1, −log p has the absolute
    error of p's rounding, which is 1 ULP of 1: hence scale 1 there. `gradient`: ULP of the gradient's dtype, at the
    row's largest entry. 16 ULP of float32 are a relative error between 1e-6 and 2e-6.
    """

    value: float = 8
    gradient: float = 16
    scale: float = 0.0


@dataclass(frozen=True)
class Case:
    """One call loss(y_true, y_pred, **options). Arrays hold values that `dtype` represents; labels are int32."""

    name: str
    loss: str
    y_true: Array
    y_pred: Array
    options: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    tolerance: Tolerance = Tolerance()
    refused: bool = False  # an error where values can be read, NaN where not

    @property
    def compute_dtype(self) -> str:
        return "float64" if self.dtype == "float64" else "float32"

    @property
    def axis(self) -> int | None:
        """The axis of the classes; None where every entry is a sample of its own."""
        record = RECORDS.get(self.loss)  # the linear loss has none
        elementwise = record is not None and record.elementwise and self.y_true.ndim == self.y_pred.ndim
        return None if elementwise else int(self.options.get("axis", -1))


# What each loss takes as y_true.
LOSSES: dict[str, tuple[Target, ...]] = {name: record.targets for name, record in RECORDS.items()}

# y_true and y_pred hold the same kind of numbers.
DIVERGENCES = tuple(name for name, targets in LOSSES.items() if "logits" in targets)

# Options of `divergence` under which its boundaries are computed.
KINDS: dict[str, dict[str, Any]] = {
    "reverse": {"kind": "reverse"},
    "Jensen-Shannon": {"kind": "jensen_shannon"},
    "Jensen-Shannon near forward": {"kind": "jensen_shannon", "beta": 1e-6, "scale": "divergence"},
    "Jensen-Shannon near reverse": {"kind": "jensen_shannon", "beta": 0.9, "scale": "divergence"},
    "total variation": {"kind": "total_variation"},
}

KERAS_EXAMPLE = Case(
    "Keras example",
    "categorical_crossentropy",
    np.array([[0, 1, 0], [0, 0, 1]], np.float32),
    np.array([[0.05, 0.95, 0], [0.1, 0.8, 0.1]], np.float32),
    tolerance=Tolerance(value=0.5),  # 1.1769392, correctly rounded
)


@functools.cache
def cases() -> tuple[Case, ...]:
    """All cases, the Keras example first."""
    found = (KERAS_EXAMPLE, *(case for loss in LOSSES for case in _cases_of(loss)))
    names = [f"{case.loss}/{case.name}" for case in found]
    assert len(set(names)) == len(names), sorted(name for name in names if names.count(name) > 1)
    return found


def options_of(loss: str) -> frozenset[str]:
    """The names of a loss's keyword-only parameters."""
    return frozenset({*RECORDS[loss].options, *COMMON})


def round_to(x: Array, dtype: str) -> Array:
    """Rounds to the nearest numbers of `dtype`. The result is float64 for float64, else float32."""
    if dtype == "float64":
        return x.astype(np.float64)
    if dtype == "bfloat16":
        bits = x.astype(np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
        return np.where(np.isnan(x), np.float32(np.nan), rounded.astype(np.uint32).view(np.float32))
    with np.errstate(over="ignore"):
        return x.astype(dtype).astype(np.float32)


def usual_tolerance(loss: str, from_logits: bool) -> Tolerance:
    """The default. It is doubled for focal losses and divergences, which multiply several rounded factors."""
    factor = 2 if "gamma" in options_of(loss) or loss in DIVERGENCES else 1
    return Tolerance(8 * factor, 16 * factor, scale=0.0 if from_logits else 1.0)


# The parts of a loss's cases.


def _softmax(x: Array, axis: int = -1) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def _inputs(target: Target, from_logits: bool, shape: tuple[int, ...], axis: int, seed: int) -> tuple[Array, Array]:
    """Random (y_true, y_pred) in float64."""
    rng = np.random.default_rng(seed)
    z, z_true = rng.normal(size=(2, *shape))
    sigmoid = target == "outcomes"
    y_pred = z if from_logits else (1 / (1 + np.exp(-z)) if sigmoid else _softmax(z, axis))
    if target == "labels":
        sample_shape = np.delete(np.array(shape), axis)
        return rng.integers(0, shape[axis], size=sample_shape).astype(np.int32), y_pred
    if sigmoid:
        # One outcome in four is soft.
        hard = (z_true > 0).astype(float)
        return np.where(rng.random(shape) < 0.25, rng.random(shape), hard), y_pred
    return z_true if target == "logits" else _softmax(z_true, axis), y_pred


def _case(
    loss: str,
    target: Target,
    name: str,
    *,
    from_logits: bool,
    dtype: str = "float32",
    shape: tuple[int, ...] = (8, 5),
    seed: int = 0,
    **options: Any,
) -> Case:
    y_true, y_pred = _inputs(target, from_logits, shape, options.get("axis", -1), seed)
    if target != "labels":
        y_true = round_to(y_true, dtype)
    return _given(loss, name, y_true, round_to(y_pred, dtype), from_logits, dtype, **options)


def _given(
    loss: str,
    name: str,
    y_true: Array,
    y_pred: Array,
    from_logits: bool,
    dtype: str = "float32",
    tolerance: Tolerance | None = None,
    **options: Any,
) -> Case:
    if "from_logits" in options_of(loss):
        options["from_logits"] = from_logits
        name = f"{name}, {'logits' if from_logits else 'probabilities'}"
    if RECORDS[loss].elementwise and y_true.ndim == y_pred.ndim:
        name = f"{name}, trials"
    if tolerance is None:
        tolerance = usual_tolerance(loss, from_logits)
    float_dtype = np.float64 if dtype == "float64" else np.float32
    y_true = np.asarray(y_true, np.int32 if y_true.dtype.kind in "iu" else float_dtype)
    return Case(name, loss, y_true, np.asarray(y_pred, float_dtype), options, dtype, tolerance)


def _cases_of(loss: str) -> Iterator[Case]:
    logits_too = "logits" in RECORDS[loss].rules
    for target, from_logits in _forms(loss):
        case = functools.partial(_case, loss, target, from_logits=from_logits)
        for dtype in DTYPES:
            yield case(dtype, dtype=dtype, seed=1)
        yield from _options(loss, case)
        # Shapes and weights do not depend on the form of y_pred.
        if from_logits or not logits_too or loss == KERAS_EXAMPLE.loss:
            yield from _shapes(case, target)
            yield from _weights(case, loss, target)
        yield from _boundaries(loss, target, from_logits)
        yield from _outside(loss, target, from_logits)
        if from_logits:
            yield _of_large_weight(loss, target)
    yield from _digits(loss)


def _forms(loss: str) -> Iterator[tuple[Target, bool]]:
    """What a loss takes as y_true, and whether y_pred holds logits then."""
    for target in LOSSES[loss]:
        for form, rules in sorted(RECORDS[loss].rules.items(), reverse=True):  # probabilities first
            if target in rules:
                yield target, form == "logits"


def _shapes(case: Any, target: Target) -> Iterator[Case]:
    yield case("empty batch", shape=(0, 5))
    yield case("images, axis 1", shape=(2, 4, 3, 2), axis=1, seed=2)
    yield case("one sample", shape=(5,) if target != "labels" else (1, 5), reduction="none", seed=4)
    yield case("1000 classes", shape=(4, 1000), reduction="none", seed=5)
    yield case("V = 50 000", shape=(1, 50_000), reduction="none", seed=6)
    yield case("sum", reduction="sum", seed=7)
    yield case("nothing behind axis 1", shape=(2, 3, 0), axis=1)


def _options(loss: str, case: Any) -> Iterator[Case]:
    names = options_of(loss)
    if "label_smoothing" in names:
        yield case("smoothing 0.1", label_smoothing=0.1, seed=9)
        yield case("smoothing in an array", label_smoothing=np.float32(0.1), seed=9)
    if "class_weight" in names:
        weights = np.array([0.5, 1, 2, 0, 3], np.float32)
        yield case("class weights", class_weight=weights, seed=11)
        yield case(
            "class and sample weights, smoothing, mean by weight",
            class_weight=weights,
            sample_weight=np.arange(8, dtype=np.float32),
            label_smoothing=0.5,
            reduction="mean_with_sample_weight",
            seed=13,
        )
        mask = np.arange(8) % 3 > 0
        yield case(
            "class weights, mask, mean by weight",
            class_weight=weights,
            mask=mask,
            reduction="mean_with_sample_weight",
            seed=10,
        )
    if "z_loss" in names and case.keywords["from_logits"]:
        yield case("z-loss", z_loss=0.1, seed=8)
        yield case("scaled and capped", logit_scale=1.7, softcap=1.5, seed=8)
        yield case(
            "scaled, capped, z-loss, class weights, smoothing",
            logit_scale=0.5,
            softcap=2.0,
            z_loss=0.3,
            class_weight=np.array([0.5, 1, 2, 0, 3], np.float32),
            label_smoothing=0.2,
            seed=8,
        )
        yield case("z-loss and cap in arrays", z_loss=np.float32(0.1), softcap=np.float32(2), seed=8)
    if "pos_weight" in names:
        yield case("pos_weight", pos_weight=2.5, seed=14)
        yield case("pos_weight per column", pos_weight=np.array([0, 1, 2, 3, 0.5], np.float32), seed=15)
    if "gamma" in names:
        for gamma in (0.0, 0.5):
            yield case(f"gamma {gamma:g}", gamma=gamma, seed=16)
        yield case("gamma in an array", gamma=np.float32(1.5), seed=16)
    if "apply_class_balancing" in names:
        yield case("class balancing", apply_class_balancing=True, alpha=0.3, seed=17)
    elif "alpha" in names:
        yield case("alpha per class", alpha=np.array([0.1, 0.2, 0.3, 0.4, 0.5], np.float32), seed=18)
    if "temperature" in names:
        yield from _of_distillation(case, "kind" in names)
    if "ignore_class" in names:
        ignoring = case("ignored labels", ignore_class=-1, seed=20)
        ignoring.y_true[::3] = -1
        yield ignoring
        yield case("an ignored class", ignore_class=2, seed=20)
        everything = case("all labels ignored", ignore_class=-1, seed=20)
        everything.y_true[:] = -1
        yield everything


def _of_distillation(case: Any, of_kinds: bool) -> Iterator[Case]:
    for temperature in (0.5, 4.0):
        yield case(f"temperature {temperature:g}", temperature=temperature, seed=19)
    yield case("temperature in an array", temperature=np.float32(3), seed=19)
    if not of_kinds:
        return
    for kind, given in KINDS.items():
        yield case(kind, **given, seed=19)
        yield case(f"{kind}, temperature 3", **given, temperature=3.0, seed=19)
        yield case(f"{kind}, float16", **given, dtype="float16", seed=19)
        if "beta" not in given:  # XLA's log1p of float64 is off by 100 units
            yield case(f"{kind}, float64", **given, dtype="float64", seed=19, tolerance=Tolerance(16, 128))
    mixed = {"kind": "jensen_shannon", "scale": "divergence"}
    for beta in (0.0, 1 - 1e-6, 1.0):
        yield case(f"β = {beta!r}", **mixed, beta=beta, seed=19)
    yield case("β in an array", **mixed, beta=np.float32(0.25), seed=19)


def _weights(case: Any, loss: str, target: Target) -> Iterator[Case]:
    """Weights, masks and denominators, with NaN and infinities in entries that do not count."""
    per_entry = target in RECORDS[loss].elementwise
    shape = (8, 5) if per_entry else (8,)
    rng = np.random.default_rng(21)
    weight = np.where(rng.random(shape) < 0.3, 0, rng.uniform(0.1, 3, shape)).astype(np.float32)
    mask = rng.random(shape) < 0.7

    def with_nan(case: Case, dropped: Array) -> Case:
        y_pred = case.y_pred.copy()
        y_pred[dropped] = np.nan if per_entry else np.array([np.nan, np.inf, -np.inf, 0, 1])
        y_true = case.y_true.copy()
        y_true[dropped] = -7 if target == "labels" else np.nan
        return replace(case, y_true=y_true, y_pred=y_pred)

    nothing, everything = np.zeros(shape, bool), np.ones(shape, bool)
    yield with_nan(case("zero weights, NaN there", sample_weight=weight, seed=22), weight == 0)
    yield with_nan(case("masked, NaN there", mask=mask, seed=23), ~mask)
    yield with_nan(case("all masked", mask=nothing, seed=26), everything)
    both = {"sample_weight": weight, "mask": mask}
    yield with_nan(case("mean by weight", **both, reduction="mean_with_sample_weight", seed=24), ~mask | (weight == 0))
    no_weight = {"sample_weight": 0 * weight, "mask": everything}
    yield case("no weight at all", **no_weight, reduction="mean_with_sample_weight", seed=28)
    yield with_nan(case("normalizer", **both, normalizer=np.float32(10), seed=25), ~mask)


# Boundaries: all of shape (8, 5), so that they share compiled functions.

_ROWS = np.arange(8)
_LABELS = np.array([0, 1, 2, 3, 4, 0, 1, 2])


def _one_hot() -> Array:
    return np.eye(5)[_LABELS]


def _boundary_logits() -> Iterator[tuple[str, Array]]:
    rng = np.random.default_rng(30)
    noise = rng.normal(size=(8, 5))
    yield "logits of ±80", rng.choice([-80.0, 80.0], size=(8, 5))
    yield "logits + 10⁴", round_to(1e4 + rng.normal(size=(8, 5)), "float32")
    yield "logits of 1e30", 1e30 * noise
    confident = 0.1 * noise
    confident[_ROWS, _LABELS] = confident.max(-1) + np.array([8, 10, 13, 16, 20, 24, 27, 30])
    yield "confident rows", confident
    wrong = 0.1 * noise
    wrong[_ROWS, (_LABELS + 1) % 5] += np.linspace(8, 30, 8)
    yield "confidently wrong rows", wrong
    yield "equal logits", np.zeros((8, 5))
    off = noise.copy()
    off[_ROWS, (_LABELS + 2) % 5] = -np.inf
    yield "−∞ off the target", off
    on = noise.copy()
    on[_ROWS, _LABELS] = -np.inf
    yield "−∞ on the target", on
    undefined = noise.copy()
    undefined[0] = -np.inf
    undefined[1, 0] = np.inf
    undefined[2, 0] = np.nan
    yield "rows without a softmax", undefined


def _boundary_probabilities(loss: str) -> Iterator[tuple[str, Array, dict[str, float]]]:
    """(name, probabilities, options). Without the option ε, only those where it is not what matters."""
    for name, p, epsilon in _probabilities_at_epsilon():
        if epsilon == 1e-7:  # the default
            yield name, p, {}
        elif "epsilon" in options_of(loss):
            yield name, p, {"epsilon": epsilon}


def _probabilities_at_epsilon() -> Iterator[tuple[str, Array, float]]:
    """(name, probabilities, ε)."""
    rng = np.random.default_rng(31)
    certain = _one_hot()
    yield "p = 1 on the target", certain, 1e-7
    yield "p = 1 on the target, ε = 0", certain, 0.0
    yield "p = 0 on the target", np.eye(5)[(_LABELS + 1) % 5], 1e-7
    yield "p = 0 on the target, ε = 0", np.eye(5)[(_LABELS + 1) % 5], 0.0
    some = _softmax(rng.normal(size=(8, 5)))
    some[_ROWS, (_LABELS + 2) % 5] = 0
    yield "p = 0 off the target, ε = 0", some / some.sum(-1, keepdims=True), 0.0
    yield "not normalised", 2 * some + 0.1, 1e-7
    for epsilon in (1e-7, 1e-3):
        at = np.full((8, 5), 0.25)
        at[_ROWS, _LABELS] = np.float32(epsilon)
        yield f"p = ε = {epsilon:g}", at, epsilon
        near = np.full((8, 5), 0.25)
        near[_ROWS, _LABELS] = np.nextafter(np.float32(epsilon), [0, 1, 0, 1, 0, 1, 0, 1], dtype=np.float32)
        yield f"p next to ε = {epsilon:g}", near, epsilon


def _boundaries(loss: str, target: Target, from_logits: bool) -> Iterator[Case]:
    def given(name: str, y_true: Array, y_pred: Array, **options: Any) -> Case:
        return _given(loss, name, y_true, y_pred, from_logits, **options, reduction="none")

    if loss in DIVERGENCES:
        for kind, options in (KINDS if "kind" in options_of(loss) else {"": {}}).items():

            def of_kind(name: str, *sides: Array, more: Any = (kind, options), **others: Any) -> Case:
                return given(f"{name}, {more[0]}" if more[0] else name, sides[0], sides[1], **more[1], **others)

            yield from _divergence_boundaries(loss, of_kind, from_logits)
        if from_logits:
            return
    y_true = _LABELS if target == "labels" else _one_hot()
    if from_logits:
        for name, logits in _boundary_logits():
            yield given(name, y_true, logits)
            if "softcap" in options_of(loss):
                yield given(f"capped, z-loss, {name}", y_true, logits, softcap=5.0, z_loss=0.01)
    else:
        for name, p, options in _boundary_probabilities(loss):
            yield given(name, y_true, np.minimum(p, 1) if target == "outcomes" else p, **options)
    if target == "outcomes":
        yield from _outcome_boundaries(given, from_logits)
    elif target == "distributions" and from_logits:
        soft = _softmax(np.random.default_rng(32).normal(size=(8, 5)))
        yield given("soft targets, confident rows", soft, 20 * _one_hot())


def _of_large_weight(loss: str, target: Target) -> Case:
    """Slopes that float16 lacks before they are multiplied by the weight, and has after."""
    logits = 18 * (_one_hot() - 1)
    y_true = {"labels": _LABELS, "logits": logits + 2 * (logits < 0)}.get(target, _one_hot())
    weight = np.float32(65536)
    return _given(loss, "small slopes of weight 65536", y_true, logits, True, "float16", sample_weight=weight)


def _outside(loss: str, target: Target, from_logits: bool) -> Iterator[Case]:
    """One sample lies outside the domain of its target or its predictions."""
    rule = RECORDS[loss].rules["logits" if from_logits else "probabilities"][target]
    y_true = _LABELS if target == "labels" else _one_hot()
    y_pred = _softmax(np.random.default_rng(34).normal(size=(8, 5)))

    def given(name: str, row: Array | int | None = None, entries: Array | float | None = None) -> Case:
        t, p = y_true.copy(), y_pred.copy()
        if row is not None:
            t[2] = row
        if entries is not None:
            p[2] = entries
        return replace(_given(loss, name, t, p, from_logits, reduction="none"), refused=True)

    if target == "labels":
        yield given("label beyond the classes", row=5)
        yield given("label below 0", row=-1)
    if rule.domains[0] == "fractions":
        yield given("target of 255", row=np.array([0, 0, 255.0, 0, 0]))
        yield given("target of -1", row=np.array([-1, -1, 1.0, -1, -1]))
    if rule.domains[1] != "anywhere":
        yield given("logits without from_logits", entries=np.array([-3.0, 2, -0.5, 1, 0]))
    if rule.domains[1] == "shares":
        yield given("probabilities all 0", entries=0.0)


def _outcome_boundaries(given: Callable[..., Case], from_logits: bool) -> Iterator[Case]:
    outcomes = np.tile([0.0, 1.0, 0.0, 1.0, 0.5], (8, 1))
    if from_logits:
        yield given("large logits", outcomes, np.outer(np.linspace(-40, 40, 8), [1, 1, 0.1, 0.1, 1]))
        yield given("infinite logits", outcomes, np.tile([-np.inf, np.inf, np.inf, -np.inf, 0], (8, 1)))
    else:
        yield given("p of 0 and 1", outcomes, np.tile([0.0, 1.0, 1.0, 0.0, 0.5], (8, 1)))


def _divergence_boundaries(loss: str, given: Callable[..., Case], from_logits: bool) -> Iterator[Case]:
    rng = np.random.default_rng(33)
    z = rng.normal(size=(8, 5))
    step = rng.normal(size=(8, 5))
    form = (lambda x: x) if from_logits else _softmax
    for distance in (1e-2, 1e-3, 1e-4, 1e-5):
        yield given(f"rows {distance:g} apart", form(z), form(z + distance * step))
    yield given("equal rows", form(z), form(z), tolerance=Tolerance(value=0.0))
    yield given("far rows", form(3 * z), form(3 * step))
    if from_logits:
        leads = np.array([[12, 1e5], [60, 61], [10, 11], [16, 16.1], [18, 19], [25, 24], [40, 80], [3, 2.9]])
        teacher, student = (lead[:, np.newaxis] * _one_hot() for lead in leads.T)
        yield given("both lead", teacher, student)
        yield given("each side nearly lacks the other's classes", 20 * z, 20 * step)
        if loss == "distillation_loss":
            yield given("near rows at 100, temperature 3", 100 + z, 100 + z + 1e-3 * step, temperature=3.0)
        for name, logits in _boundary_logits():
            yield given(name, z, logits)
            yield given(f"both sides: {name}", logits, np.roll(logits, 1, axis=0))
        both = np.where(_one_hot() > 0, -np.inf, z)
        yield given("−∞ on both sides", both, both + 1e-3 * step)
    else:
        for name, p, options in _boundary_probabilities(loss):
            if name != "not normalised":
                yield given(f"soft t, {name}", form(z), p, **options)
                yield given(f"t = 0, {name}", _one_hot(), p, **options)


def _digits(loss: str) -> Iterator[Case]:
    """The predictions of a trained classifier on 1797 images."""
    labels, logits, other_logits = digits.load()
    p, other_p, one_hot = (x.astype(np.float32) for x in (_softmax(logits), _softmax(other_logits), np.eye(10)[labels]))
    distributions = other_p if loss in DIVERGENCES else one_hot
    y_true = {"labels": labels, "outcomes": one_hot, "logits": other_logits, "distributions": distributions}
    for target, from_logits in _forms(loss):
        yield _given(loss, "digits", y_true[target], logits if from_logits else p, from_logits)
