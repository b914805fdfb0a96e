"""NumPy's path `rows`: what it hands to the native rows, beside the formulas and the reference.

Without the rows the same holds of the formulas. The rows' own digits are in tests/core/test_native_rows.py.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest

import lossbridge as lb
from lossbridge import errors, reference
from lossbridge.frameworks import numpy_ops
from lossbridge.native import rows as native

needs_rows = pytest.mark.skipif(bool(native.MISSING), reason=native.MISSING or "they are there")

LOSSES = {
    "labels, logits": ("sparse_categorical_crossentropy", {"from_logits": True}),
    "labels, probabilities": ("sparse_categorical_crossentropy", {}),
    "labels, smoothed": ("sparse_categorical_crossentropy", {"from_logits": True, "label_smoothing": 0.1}),
    "dense, logits": ("categorical_crossentropy", {"from_logits": True}),
    "dense, smoothed": ("categorical_crossentropy", {"from_logits": True, "label_smoothing": 0.1}),
    "dense, probabilities": ("categorical_crossentropy", {}),
    "log loss, logits": ("log_loss", {"from_logits": True}),
    "log loss, probabilities": ("log_loss", {}),
    "KL, logits": ("kl_divergence", {"from_logits": True}),
    "KL, probabilities": ("kl_divergence", {}),
    "distillation": ("distillation_loss", {"temperature": 2.0}),
    "binary, logits": ("binary_crossentropy", {"from_logits": True}),
    "binary, probabilities": ("binary_crossentropy", {}),
    "focal": ("categorical_focal_crossentropy", {"from_logits": True}),
    "focal, cubic": ("categorical_focal_crossentropy", {"from_logits": True, "gamma": 3.0, "alpha": 1.0}),
    "focal, probabilities": ("categorical_focal_crossentropy", {}),
    "binary focal": ("binary_focal_crossentropy", {"from_logits": True}),
    "binary focal, balanced": (
        "binary_focal_crossentropy",
        {"from_logits": True, "apply_class_balancing": True, "gamma": 1.0, "label_smoothing": 0.1},
    ),
    "binary focal, probabilities": ("binary_focal_crossentropy", {}),
}


def softmax(z, axis=-1):
    e = np.exp(z - z.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def problem(kind, shape, axis=-1, dtype=np.float32, seed=0):
    """The loss, its arguments and options."""
    loss, options = LOSSES[kind]
    rng = np.random.default_rng(seed)
    z, other = rng.normal(size=(2, *shape))
    logits = options.get("from_logits") or loss == "distillation_loss"
    y_pred = (z if logits else softmax(z, axis)).astype(dtype)
    if kind.startswith("l"):
        y_true = rng.integers(0, shape[axis], np.delete(np.array(shape), axis))
    else:
        both_logits = logits and (loss in ("kl_divergence", "distillation_loss"))
        y_true = (other if both_logits else softmax(other, axis)).astype(dtype)
    return loss, y_true, y_pred, {**options, "axis": axis}


def run(loss, y_true, y_pred, **options):
    return lb.value_and_grad(getattr(lb, loss))(y_true, y_pred, **options)


def by_formula(monkeypatch, loss, y_true, y_pred, **options):
    with monkeypatch.context() as patch:
        patch.setattr(native, "MISSING", "the native rows are switched off by a test")
        return run(loss, y_true, y_pred, **options)


def agree(got, exact, relative=4e-6) -> None:
    """Values relatively, gradients relative to the largest entry."""
    np.testing.assert_allclose(got[0], exact[0], rtol=relative, atol=relative * 1e-2)
    assert got[1].shape == exact[1].shape
    largest = np.abs(exact[1], dtype=np.float64).max(initial=1e-37)
    np.testing.assert_allclose(got[1].astype(np.float64), exact[1].astype(np.float64), rtol=0, atol=relative * largest)


@pytest.mark.parametrize("rows", [0, 1, 7])
@pytest.mark.parametrize(
    ("kind", "classes"),
    # One class is no distribution.
    [(kind, n) for kind in LOSSES for n in (1, 2, 3, 31, 32, 33, 1000) if n > 1 or kind.startswith("binary")],
)
def test_shapes(kind, rows, classes) -> None:
    loss, y_true, y_pred, options = problem(kind, (rows, classes))
    options["reduction"] = "none"
    exact = getattr(reference, loss)(y_true, y_pred, **options)
    agree(run(loss, y_true, y_pred, **options), (exact.value, exact.gradient))


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("form", ["transposed", "columns", "rows", "expanded", "image", "image, transposed"])
def test_strides(kind, form) -> None:
    image = form.startswith("image")
    loss, y_true, y_pred, options = problem(kind, (2, 4, 3, 2) if image else (8, 12), axis=1)
    plain = run(loss, y_true.copy(), y_pred.copy(), **options)

    def strided(x):
        if form.endswith("transposed"):
            return x.T.copy().T
        if form == "columns":
            return np.repeat(x, 2, axis=-1)[..., ::2]
        if form == "rows":
            return np.concatenate([x, x])[len(x) - 1 :: -1][::-1]
        return x

    if form == "expanded":
        y_pred = np.broadcast_to(y_pred[:1], y_pred.shape)
        plain = run(loss, y_true, y_pred.copy(), **options)
    agree(run(loss, strided(y_true), strided(y_pred), **options), plain, 1e-6)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("axis", [0, 1])
def test_dtypes_and_axes_agree_with_the_formula(monkeypatch, kind, dtype, axis) -> None:
    loss, y_true, y_pred, options = problem(kind, (6, 9), axis, dtype)
    got = run(loss, y_true, y_pred, **options)
    assert got[1].dtype == dtype
    digits = {np.float16: 1e-3, ml_dtypes.bfloat16: 8e-3, np.float64: 1e-14}[dtype]
    agree(got, by_formula(monkeypatch, loss, y_true, y_pred, **options), digits)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_weights_masks_and_denominators(monkeypatch, kind, dtype) -> None:
    loss, y_true, y_pred, options = problem(kind, (6, 9), 1, dtype)
    weight = np.arange(6.0)
    mask = weight != 4
    for of_rows in ({"sample_weight": weight}, {"reduction": "sum"}, {"mask": mask, "normalizer": 7}, {"mask": mask}):
        got = run(loss, y_true, y_pred, **options, **of_rows)
        exact = by_formula(monkeypatch, loss, y_true, y_pred, **options, **of_rows)
        agree(got, exact, 1e-3 if dtype == np.float16 else 4e-6)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("lead", [0, 8, 30])
def test_class_weights_of_labels(monkeypatch, label_smoothing, lead) -> None:
    loss, labels, z, options = problem("labels, logits", (12, 5))
    z[np.arange(12), labels] += lead
    for weight in ([1.0, 0.5, 2, 3, 0], [0, 0, 1, 0, 0]):
        options |= {"label_smoothing": label_smoothing, "class_weight": np.array(weight), "reduction": "none"}
        agree(run(loss, labels, z, **options), by_formula(monkeypatch, loss, labels, z, **options))


@pytest.mark.parametrize("kind", LOSSES)
def test_rows_of_infinities_and_nan_are_the_formulas(monkeypatch, kind) -> None:
    loss, y_true, y_pred, options = problem(kind, (9, 5))
    y_pred[0, 1], y_pred[1, 2], y_pred[2, 3], y_pred[3] = np.nan, np.inf, -np.inf, -np.inf
    y_pred[4, :2] = np.inf
    for i in (5, 6, 7):
        y_pred[i, i - 5] = np.inf if i == 6 else -np.inf
    options["reduction"] = "none"
    monkeypatch.setattr(errors, "in_domain", lambda *_: None)  # as where they cannot be read
    got, exact = run(loss, y_true, y_pred, **options), by_formula(monkeypatch, loss, y_true, y_pred, **options)
    np.testing.assert_allclose(got[0], exact[0], rtol=4e-6)
    finite = np.isfinite(exact[0])
    np.testing.assert_allclose(got[1][finite], exact[1][finite], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", LOSSES)
def test_what_is_dropped_reaches_nothing(monkeypatch, kind) -> None:
    loss, y_true, y_pred, options = problem(kind, (8, 12))
    mask = np.arange(8) % 3 > 0
    y_pred[~mask] = np.nan
    y_pred[0] = np.inf
    exact = run(loss, y_true[mask], y_pred[mask], **options)
    value, gradient = run(loss, y_true, y_pred, mask=mask, **options)
    agree((value, gradient[mask]), exact, 1e-6)
    np.testing.assert_array_equal(gradient[~mask], 0)


@pytest.mark.parametrize("kind", LOSSES)
def test_something_else_flows_back(kind) -> None:
    """The rows are called again with it, and half precision is rounded once."""
    loss, y_true, y_pred, options = problem(kind, (6, 9), 1, np.float16)
    weight = np.arange(1.0, 7)
    _, gradient = run(loss, y_true, y_pred, sample_weight=weight * 3, reduction="sum", **options)
    of_sum = lb.value_and_grad(
        lambda t, p: 3.0 * getattr(lb, loss)(t, p, sample_weight=weight, reduction="sum", **options)
    )
    np.testing.assert_array_equal(of_sum(y_true, y_pred)[1], gradient)
    of_each = lb.value_and_grad(lambda t, p: getattr(lb, loss)(t, p, reduction="none", **options) * (weight * 3))
    np.testing.assert_array_equal(of_each(y_true, y_pred)[1], gradient)


@needs_rows
@pytest.mark.parametrize("kind", LOSSES)
def test_to_the_bit_whatever_the_threads(kind, monkeypatch) -> None:
    """Also called from several threads at once, and from within a pool as large as the calls."""
    loss, y_true, y_pred, options = problem(kind, (300, 257))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one = run(loss, y_true, y_pred, **options)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with ThreadPoolExecutor(4) as pool:
        many = list(pool.map(lambda _: run(loss, y_true, y_pred, **options), range(8)))
    for value, gradient in many:
        assert value == one[0]
        np.testing.assert_array_equal(gradient, one[1])


@needs_rows
@pytest.mark.parametrize(("said", "threads"), [("3", 3), ("2,1", 2), ("0", None), ("many", None), ("", None)])
def test_omp_num_threads_is_respected(said, threads, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(native, "run", lambda call: asked.append(call.threads))
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    lb.log_loss(np.zeros((256, 256)), np.zeros((256, 256)))
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert asked == [threads or native.threads()]


@pytest.mark.parametrize("kind", ["labels, logits", "dense, logits", "KL, logits", "labels, probabilities"])
@pytest.mark.parametrize("classes", [32768, 50257, 128256])
def test_long_rows(kind, classes) -> None:
    loss, y_true, y_pred, options = problem(kind, (3, classes))
    exact = getattr(reference, loss)(y_true, y_pred, **options)
    agree(run(loss, y_true, y_pred, **options), (exact.value, exact.gradient))


def test_many_trials(monkeypatch) -> None:
    rng = np.random.default_rng(1)
    t, x = rng.integers(0, 2, 300_000), rng.normal(size=300_000).astype(np.float32)
    for options, y_pred in (({"from_logits": True}, x), ({}, 1 / (1 + np.exp(-x)))):
        agree(run("log_loss", t, y_pred, **options), by_formula(monkeypatch, "log_loss", t, y_pred, **options), 1e-6)


@pytest.mark.parametrize("distance", [1e-1, 1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("confident", [0, 25])
@pytest.mark.parametrize("classes", [3, 5000])
def test_divergence_of_close_rows(distance, confident, classes) -> None:
    rng = np.random.default_rng(2)
    z = rng.normal(size=(6, classes))
    z[:, 1] += confident
    t, z = z.astype(np.float32), (z + distance * rng.normal(size=z.shape)).astype(np.float32)
    got = run("kl_divergence", t, z, from_logits=True, reduction="none")
    exact = reference.kl_divergence(
        t.astype(np.longdouble), z.astype(np.longdouble), from_logits=True, reduction="none"
    )
    np.testing.assert_allclose(got[0], exact.value, rtol=1e-4 if distance == 1e-7 else 4e-6)
    largest = np.abs(exact.gradient).max(-1, keepdims=True)
    allowed = 5 * 2.0**-24 * (np.abs(exact.gradient) + softmax(t.astype(np.longdouble)))
    assert (np.abs(got[1] - exact.gradient) <= np.maximum(allowed, 4e-6 * largest)).all()


@needs_rows
def test_memory_is_the_gradient_and_does_not_grow() -> None:
    """64 MiB of logits: the gradient, and nothing with `out`."""
    code = """
import resource, numpy as np, lossbridge as lb
z = np.zeros((512, 32768), np.float32); z[:, 0] = 1
y = np.zeros(512, int)
buffer = np.ones_like(z)
step = lb.value_and_grad(lb.sparse_categorical_crossentropy)
step(y[:1], z[:1], from_logits=True)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
step(y, z, from_logits=True, out=buffer)
into = peak()
step(y, z, from_logits=True)
once = peak()
for _ in range(9): step(y, z, from_logits=True)
print(into - before, once - into, peak() - once)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    into, once, more = map(float, done.stdout.split())
    assert into < 4
    assert once < 64 + 4
    assert more < 4


@needs_rows
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_after_a_fork() -> None:
    code = """
import os, numpy as np, lossbridge as lb
z, y = np.zeros((500, 1000), np.float32), np.zeros(500, int)
first = lb.sparse_categorical_crossentropy(y, z, from_logits=True)
child = os.fork()
if child == 0:
    os._exit(int(lb.sparse_categorical_crossentropy(y, z, from_logits=True) != first))
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60, env=environment)


# The gradient's array.


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_out(kind, dtype) -> None:
    """A buffer, and the predictions themselves."""
    loss, y_true, y_pred, options = problem(kind, (7, 40), 1, dtype)
    value, gradient = run(loss, y_true, y_pred, **options)
    for buffer in (np.full_like(y_pred, 3), y_pred):
        again, written = run(loss, y_true, y_pred, out=buffer, **options)
        assert written is buffer
        assert again == value
        np.testing.assert_array_equal(buffer, gradient)


def test_out_of_several_losses() -> None:
    """The first may take it, the others must not."""
    _, y_true, y_pred, _ = problem("dense, logits", (7, 40))
    one = functools.partial(lb.categorical_crossentropy, from_logits=True)
    both = lb.value_and_grad(lambda t, p: 2.0 * one(t, p) + one(t, p, reduction="sum") - one(t, p))
    buffer = np.empty_like(y_pred)
    assert both(y_true, y_pred, out=buffer)[1] is buffer
    np.testing.assert_array_equal(buffer, both(y_true, y_pred)[1])


@pytest.mark.parametrize(
    ("out", "words"),
    [
        (lambda y, z: [0.0], "out is list; pass a C-contiguous, writable array of shape (3, 4) and dtype float32"),
        (lambda y, z: z[:2].copy(), "out has shape (2, 4) and dtype float32; pass"),
        (lambda y, z: z.astype(float), "out has shape (3, 4) and dtype float64; pass"),
        (lambda y, z: np.asfortranarray(z), "out is not C-contiguous; pass"),
        (lambda y, z: read_only(z), "out is read-only; pass"),
        (lambda y, z: y, "out shares memory with y_true; pass another array"),
        (lambda y, z: z.base.reshape(-1)[1:13].reshape(3, 4), "out overlaps y_pred; pass y_pred itself, or another"),
    ],
)
def test_a_wrong_out_is_refused(out, words) -> None:
    y, z = np.full((3, 4), 0.25, np.float32), np.full((4, 4), 0.25, np.float32)[:3]
    with pytest.raises((ValueError, TypeError)) as error:
        lb.value_and_grad(lb.categorical_crossentropy)(y, z, out=out(y, z))
    assert str(error.value).startswith(words)


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def test_predictions_that_are_read_again_are_not_overwritten() -> None:
    y, z = np.full((3, 4), 0.25), np.full((3, 4), 0.25)
    twice = lb.value_and_grad(lambda t, p: lb.categorical_crossentropy(t, p) * 2)
    with pytest.raises(ValueError, match="out shares memory with y_pred, which this loss may read again"):
        twice(y, z, out=z)


@pytest.mark.parametrize("kind", LOSSES)
def test_the_gradient_can_be_written_to(kind) -> None:
    loss, y_true, y_pred, options = problem(kind, (4, 6))
    kept = y_pred.copy()
    _, gradient = run(loss, y_true, y_pred, **options)
    gradient += 1
    np.testing.assert_array_equal(y_pred, kept)


def test_a_gradient_of_one_number_can_be_written_to() -> None:
    _, gradient = lb.value_and_grad(lambda t, p: numpy_ops.sum(p))(None, np.ones((3, 2)))
    gradient += 1
    np.testing.assert_array_equal(gradient, 2)


@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", "categorical_crossentropy", "kl_divergence"])
def test_an_axis_of_size_0_behind_the_classes(loss) -> None:
    y_pred = np.zeros((4, 33, 0), np.float32)
    y_true = np.zeros((4, 0), np.int64) if loss.startswith("sparse") else y_pred
    value, gradient = lb.value_and_grad(getattr(lb, loss))(y_true, y_pred, from_logits=True, axis=1, reduction="none")
    assert (value.shape, gradient.shape) == ((4, 0), (4, 33, 0))


def test_labels_of_another_byte_order() -> None:
    x = np.zeros((1, 10), np.float32)
    with pytest.raises(ValueError, match="label 16777216 at index 0 is out of range"):
        lb.sparse_categorical_crossentropy(np.array([16777216], ">i4"), x, from_logits=True)
    value = lb.sparse_categorical_crossentropy(np.array([7], ">i4"), x, from_logits=True)
    assert value == np.float32(np.log(10))
