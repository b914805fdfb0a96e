"""The divergence of a teacher's kept classes: against exact arithmetic, at the boundaries, and what is refused."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

import lossbridge as lb
from lossbridge import reference

V, K, ROWS = 9, 3, 4
_RNG = np.random.default_rng(3)
_ABSENT = np.where(np.arange(V) % 4 == 1, -np.inf, 0.0)
_NOISE, _OTHER = _RNG.normal(size=(2, ROWS, V))
# Logits of teacher and student.
PAIRS = {
    "random": (_NOISE, _OTHER),
    "near": (_NOISE, _NOISE + 1e-4 * _OTHER),
    "equal": (_NOISE, _NOISE),
    "confident": (25 * np.eye(ROWS, V) + _NOISE, 20 * np.eye(ROWS, V) + _OTHER),
    "confidently wrong": (30 * np.eye(ROWS, V), 30 * np.eye(ROWS, V, 2)),
    "large": (1e4 + _NOISE, -1e4 + _OTHER),
    "absent classes": (_NOISE + _ABSENT, _OTHER + _ABSENT),
}


def kept(teacher: np.ndarray, k: int = K) -> tuple[np.ndarray, np.ndarray]:
    """The k largest of each row, and their log-probabilities."""
    indices = np.argsort(-teacher, axis=-1)[:, :k].astype(np.int32)
    with mpmath.workdps(50):
        log_probs = [
            [float(mpmath.mpf(row[i]) - mpmath.log(mpmath.fsum(map(mpmath.exp, row)))) for i in places]
            for row, places in zip(teacher.astype(float).tolist(), indices, strict=True)
        ]
    return indices, np.array(log_probs)


def exact(indices, log_probs, logits, tail=True):
    """The losses, and their gradients for log_probs and logits."""
    losses, of_teacher, of_student = [], np.zeros(log_probs.shape), np.zeros(logits.shape)
    with mpmath.workdps(60):
        for row, (places, logs, z) in enumerate(zip(indices, log_probs, logits, strict=True)):
            t = [mpmath.exp(mpmath.mpf(float(x))) for x in logs]
            e = [mpmath.exp(mpmath.mpf(float(x))) for x in z]
            p = [e[i] / mpmath.fsum(e) for i in places]
            left, others = 1 - mpmath.fsum(t), mpmath.fsum(e[i] for i in range(V) if i not in places) / mpmath.fsum(e)
            if not tail:
                t, p, left = [x / mpmath.fsum(t) for x in t], [x / mpmath.fsum(p) for x in p], mpmath.mpf(0)
            ratio = [mpmath.log(x / y) if x else mpmath.mpf(0) for x, y in zip(t, p, strict=True)]
            of_left = mpmath.log(left / others) if left > 0 and tail else mpmath.mpf(0)
            loss = mpmath.fsum(x * y for x, y in zip(t, ratio, strict=True)) + max(left, 0) * of_left
            losses.append(float(loss))
            of_teacher[row] = [float(x * (y - (of_left if tail else loss))) for x, y in zip(t, ratio, strict=True)]
            if tail:
                of_student[row] = [float(x / mpmath.fsum(e) * (1 - max(left, 0) / others)) for x in e]
            of_student[row, places] = [float(y - x) for x, y in zip(t, p, strict=True)]
    return np.array(losses), of_teacher, of_student


def found(lib, *arrays, dtype="float32", **options):
    """The losses and both gradients."""
    indices, log_probs, logits = arrays
    indices, log_probs, logits = lib.array(indices), lib.array(log_probs, dtype), lib.array(logits, dtype)
    both = lb.value_and_grad(lb.topk_divergence, of=("log_probs", "student_logits"))
    value, slopes = both(indices, log_probs, logits, **{"reduction": "none", **options})
    return lib.b.to_numpy(value), *(lib.b.to_numpy(x) for x in slopes)


@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("name", PAIRS)
def test_values_and_gradients(lib, name, tail) -> None:
    teacher, student = (x.astype(np.float32) for x in PAIRS[name])
    indices, log_probs = kept(teacher)
    log_probs = np.minimum(log_probs, 0).astype(np.float32)
    value, of_teacher, of_student = exact(indices, log_probs, student, tail)
    got, *slopes = found(lib, indices, log_probs, student, tail=tail)
    # What the classes leave has the rounding of their sum, 1: as if log_probs were off in their last digit.
    rounding = 3e-7 * np.abs(of_teacher).sum(-1) + 1e-13
    assert np.all(np.abs(got - value) <= 4e-6 * value + rounding)
    for slope, wanted, size in ((slopes[0], of_teacher, value), (slopes[1], of_student, 0 * value)):
        largest = np.maximum(np.abs(wanted).max(-1), size)[:, None]
        assert np.all(np.abs(slope - wanted) <= 2e-5 * largest + 4e-7)
    if tail:
        np.testing.assert_allclose(slopes[1].sum(-1), 0, atol=4e-7 * np.abs(slopes[1]).max() + 1e-13)
    judged = reference.topk_divergence(indices, log_probs, student, tail=tail, reduction="none")
    np.testing.assert_allclose(judged.value, value, rtol=1e-7, atol=1e-15)
    np.testing.assert_allclose(judged.gradient, of_student, rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(judged.target_gradient, of_teacher, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("large", [1e5, 1e30, np.inf])
def test_without_the_bucket_the_other_classes_do_not_matter(lib, large) -> None:
    indices, log_probs = kept(_NOISE)
    value, *slopes = found(lib, indices, log_probs, _OTHER, tail=False)
    logits = _OTHER.copy()
    others = np.argsort(-_NOISE, axis=-1)[:, -1:]
    np.put_along_axis(logits, others, large, -1)
    got, *others_slopes = found(lib, indices, log_probs, logits, tail=False)
    np.testing.assert_array_equal(got, value)
    for slope, wanted in zip(others_slopes, slopes, strict=True):
        np.testing.assert_array_equal(slope, wanted)


def test_with_all_classes_it_is_the_divergence(lib) -> None:
    teacher, student = _NOISE, _OTHER
    indices, log_probs = kept(teacher, V)
    whole = lib.value("distillation_loss", teacher, student, reduction="none")
    np.testing.assert_allclose(found(lib, indices, log_probs, student)[0], whole, rtol=2e-6)
    coarse = found(lib, *(x[:, :K] for x in (indices, log_probs)), student)[0]
    assert np.all((coarse >= 0) & (coarse <= whole))


def test_one_class(lib) -> None:
    """All of it, none of it, and renormalised."""
    indices, logits = np.array([[1], [1]], np.int32), np.array([[0.0, 2.0, 1.0]] * 2)
    log_probs = np.array([[0.0], [-np.inf]])
    p = np.exp(logits[0]) / np.exp(logits[0]).sum()
    value, of_teacher, of_student = found(lib, indices, log_probs, logits)
    np.testing.assert_allclose(value, [-np.log(p[1]), -np.log(1 - p[1])], rtol=1e-6)
    np.testing.assert_allclose(of_student[0], p - [0, 1, 0], rtol=1e-6)
    assert np.isfinite(of_teacher).all()
    np.testing.assert_array_equal(found(lib, indices[:1], log_probs[:1], logits[:1], tail=False)[0], [0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes(lib, dtype) -> None:
    indices, log_probs = kept(_NOISE)
    with lib.b.scope(dtype, "cpu"):
        log_probs, logits = (lib.b.to_numpy(lib.array(x, dtype)) for x in (log_probs, _OTHER))
        value, _, of_student = found(lib, indices, log_probs, logits, dtype=dtype)
        wanted, _, slope = exact(indices, log_probs, logits)
        assert value.dtype == ("float64" if dtype == "float64" else "float32")
        np.testing.assert_allclose(value, wanted, rtol=1e-12 if dtype == "float64" else 2e-6)
        step = {"float16": 2.0**-10, "bfloat16": 2.0**-8}.get(dtype, 1e-13)
        np.testing.assert_allclose(of_student, slope, rtol=0, atol=step * np.abs(slope).max())


def test_masks_weights_and_another_axis(lib) -> None:
    """What is masked may hold anything."""
    indices, log_probs = kept(_NOISE)
    value, _, slope = exact(indices, log_probs, _OTHER)
    logits = _OTHER.copy()
    indices[1], log_probs[1], logits[1] = 77, np.nan, np.inf
    mask, weight = np.arange(ROWS) != 1, np.array([1, 7, 2, 0.5])
    options = {"mask": lib.array(mask), "sample_weight": lib.array(weight), "reduction": "mean", "axis": 0}
    got, of_teacher, of_student = found(lib, indices.T, log_probs.T, logits.T, **options)
    np.testing.assert_allclose(got, (value * weight)[mask].sum() / 3, rtol=2e-6)
    wanted = np.where(mask[:, None], slope * weight[:, None] / 3, 0)
    np.testing.assert_allclose(of_student.T, wanted, rtol=2e-5, atol=1e-8)
    assert np.isfinite(of_teacher).all()


def test_compiled_and_traced(lib) -> None:
    """A row that is refused eagerly is NaN there."""
    indices, log_probs = kept(_NOISE)
    value, _, slope = exact(indices, log_probs, _OTHER)
    indices[0, 0], indices[1, 0] = V, indices[1, 1]
    log_probs[2] = 0.0
    arrays = lib.array(indices), lib.array(log_probs), lib.array(_OTHER)
    for compiler in lib.b.compilers().values():
        loss = compiler(lambda *arrays: lb.topk_divergence(*arrays, reduction="none"))
        got = lib.b.to_numpy(loss(*arrays))
        assert np.isnan(got[:3]).all()
        np.testing.assert_allclose(got[3], value[3], rtol=2e-6)

        good, logits = [lib.array(x) for x in kept(_NOISE)], lib.array(_OTHER)
        loss = compiler(lb.topk_divergence)
        of_student = lib.b.value_and_grad(lambda z, loss=loss, good=good: loss(*good, z), logits)[1]
        np.testing.assert_allclose(lib.b.to_numpy(of_student), slope / ROWS, rtol=2e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (
            {"indices": [[0, 9, 1]]},
            ValueError,
            "indices at index 0, sorted, are 0, 1, 9, and there are 9 classes, 0 to 8",
        ),
        ({"indices": [[0, -1, 1]]}, ValueError, "sorted, are -1, 0, 1, and there are 9 classes"),
        ({"indices": [[0, 2, 2]]}, ValueError, "sorted, are 0, 2, 2, and one stands there twice; correct them"),
        ({"indices": [[0.0, 1.0, 2.0]]}, TypeError, "indices has dtype float.*, and indices of classes are integers"),
        (
            {"indices": [0, 1, 2]},
            ValueError,
            r"indices has shape \(3,\), log_probs \(1, 3\) and student_logits \(1, 9\)",
        ),
        ({"log_probs": [[-1.0, -1.0]]}, ValueError, r"log_probs \(1, 2\)"),
        (
            {"log_probs": [[-0.5, -1.0, -2.0]]},
            ValueError,
            "the probabilities of log_probs at index 0 sum to 1.10975; pass",
        ),
        ({"student_logits": [[0.0, 1.0]]}, ValueError, "3 classes are kept of 2; keep at least 1"),
        ({"axis": 2}, ValueError, "axis 2 is out of range"),
        ({"tail": 1}, TypeError, "tail is 1; pass True or False"),
    ],
)
def test_what_is_refused(lib, changes, error, words) -> None:
    given = {"indices": [[0, 1, 2]], "log_probs": [[-1.0, -2.0, -3.0]], "student_logits": [[0.0] * V]} | changes
    arrays = [lib.array(np.array(given.pop(name))) for name in ("indices", "log_probs", "student_logits")]
    with pytest.raises(error, match=words):
        lb.topk_divergence(*arrays, **given)
