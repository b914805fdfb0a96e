"""The public losses: signature, docstring, pipeline. No maths, no framework names.

Every loss takes the same road, `evaluate`: find the backend, refuse what is wrong, replace what counts nothing,
compute per-sample values (formulas.py), weigh and reduce them (reduction.py).

These arguments mean the same in every loss:

axis            the axis that holds the classes; it is absent from the per-sample losses
epsilon         probabilities are clipped to [epsilon, 1 - epsilon]; 0 means exact; logits are never clipped
sample_weight   of the per-sample shape, or its leading axes, or one number; multiplies each loss
mask            of such a shape; where it is False or 0, the entry reaches neither value, gradient nor denominator
normalizer      the denominator of a mean, in place of the count (for accumulated gradients and data parallelism)
reduction       "sum_over_batch_size" or "mean" (divides by the number of unmasked entries), "sum", "none" or None
                (per-sample values), "mean_with_sample_weight" (divides by the sum of the weights)

Results are float64 for float64 predictions, else float32, in nats; gradients have the dtype of their input.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import numpy as np

from lossbridge import formulas, validation
from lossbridge.backend import Array, Backend, Shape, backend_of, kernels_of, shortcuts_of
from lossbridge.reduction import entries, neutralise, reduce
from lossbridge.validation import KERAS, Names

Reduction = Literal["sum_over_batch_size", "mean", "sum", "mean_with_sample_weight", "none"] | None
# (backend, target, pred, axis, **options, **arrays of the loss) -> per-sample losses
Formula = Callable[..., Array]


def categorical_crossentropy(
    y_true: Any,
    y_pred: Any,
    *,
    from_logits: bool = False,
    label_smoothing: float = 0.0,
    axis: int = -1,
    epsilon: float = 1e-7,
    class_weight: Any = None,
    sample_weight: Any = None,
    mask: Any = None,
    normalizer: Any = None,
    reduction: Reduction = "sum_over_batch_size",
) -> Any:
    """Cross-entropy of class distributions, Σ_c w_c t_c (−log p_c), in nats.

    Args:
        y_true: target distributions (one-hot or soft), of y_pred's shape.
        y_pred: probabilities, renormalised along `axis` and clipped to [epsilon, 1 − epsilon]; with `from_logits`,
            logits, whose softmax is exact and not clipped. Shape (…, C, …) with C ≥ 2 along `axis`.
        label_smoothing: s in [0, 1]; targets become t·(1 − s) + s/C.
        class_weight: (C,), the w_c. It changes no denominator but that of "mean_with_sample_weight", in which a sample
            counts Σ_c w_c t_c.
        axis, epsilon, sample_weight, mask, normalizer, reduction: see `lossbridge.losses`.

    Returns:
        A scalar; the shape of y_pred without `axis` for reduction "none".

    Raises:
        ValueError: shapes that do not fit, or an option outside its range.
        TypeError: arrays of two libraries, or of no real numbers.

    >>> round(float(categorical_crossentropy([[0, 1, 0], [0, 0, 1]], [[0.05, 0.95, 0], [0.1, 0.8, 0.1]])), 7)
    1.1769392

    Source: Shannon, A Mathematical Theory of Communication, 1948; conventions of keras.losses.CategoricalCrossentropy.
    """
    validation.options(reduction=reduction, normalizer=normalizer, epsilon=epsilon, label_smoothing=label_smoothing)
    validation.switches(from_logits=from_logits)

    return evaluate(
        formulas.categorical_crossentropy,
        y_true,
        y_pred,
        axis,
        sample_weight,
        mask,
        normalizer,
        reduction,
        options={"from_logits": from_logits, "label_smoothing": label_smoothing, "epsilon": epsilon},
        per_class={"class_weight": class_weight},
        mass=None if class_weight is None else partial(formulas.class_mass, label_smoothing=label_smoothing),
    )


def sparse_categorical_crossentropy(
    y_true: Any,
    y_pred: Any,
    *,
    from_logits: bool = False,
    label_smoothing: float = 0.0,
    axis: int = -1,
    epsilon: float = 1e-7,
    ignore_class: int | None = None,
    class_weight: Any = None,
    sample_weight: Any = None,
    mask: Any = None,
    normalizer: Any = None,
    reduction: Reduction = "sum_over_batch_size",
) -> Any:
    """Cross-entropy of integer class labels, w_y (−log p_y), in nats; equal to the dense loss on one-hot labels.

    Args:
        y_true: integer labels from 0 to C − 1, of y_pred's shape without `axis`.
        y_pred: probabilities or logits, as in `categorical_crossentropy`. Shape (…, C, …).
        label_smoothing: s in [0, 1]; no one-hot array is built for it.
        ignore_class: a label (often −1 or −100) whose entries are left out, as by `mask`.
        class_weight: (C,); as in `categorical_crossentropy`.
        axis, epsilon, sample_weight, mask, normalizer, reduction: see `lossbridge.losses`.

    Returns:
        A scalar; the shape of y_true for reduction "none".

    Raises:
        ValueError: shapes that do not fit, an option outside its range, or a label out of range whose value can be read
            on the host. Where labels are traced or on an accelerator, that sample's loss is NaN instead.
        TypeError: floating-point labels, arrays of two libraries, or of no real numbers.

    >>> round(float(sparse_categorical_crossentropy([1, 2], [[0.05, 0.95, 0], [0.1, 0.8, 0.1]])), 7)
    1.1769392

    Source: as `categorical_crossentropy`; conventions of keras.losses.SparseCategoricalCrossentropy.
    """
    validation.options(reduction=reduction, normalizer=normalizer, epsilon=epsilon, label_smoothing=label_smoothing)
    validation.switches(from_logits=from_logits)
    validation.ignored_class(ignore_class)

    return evaluate(
        formulas.sparse_categorical_crossentropy,
        y_true,
        y_pred,
        axis,
        sample_weight,
        mask,
        normalizer,
        reduction,
        labels=True,
        ignore_class=ignore_class,
        options={"from_logits": from_logits, "label_smoothing": label_smoothing, "epsilon": epsilon},
        per_class={"class_weight": class_weight},
        mass=None if class_weight is None else partial(formulas.sparse_class_mass, label_smoothing=label_smoothing),
    )


def binary_crossentropy(
    y_true: Any,
    y_pred: Any,
    *,
    from_logits: bool = False,
    label_smoothing: float = 0.0,
    axis: int = -1,
    epsilon: float = 1e-7,
    pos_weight: Any = None,
    sample_weight: Any = None,
    mask: Any = None,
    normalizer: Any = None,
    reduction: Reduction = "sum_over_batch_size",
) -> Any:
    """Cross-entropy of independent yes-or-no outcomes, −t log p − (1 − t) log(1 − p), averaged over `axis`, in nats.

    Args:
        y_true: targets in [0, 1], of y_pred's shape.
        y_pred: probabilities, clipped to [epsilon, 1 − epsilon]; with `from_logits`, logits, exact and not clipped
            (±∞ being the probabilities 1 and 0). Shape (…, C, …).
        label_smoothing: s in [0, 1]; targets become t·(1 − s) + s/2.
        pos_weight: one number, or (C,): multiplies the term of t.
        axis, epsilon, sample_weight, mask, normalizer, reduction: see `lossbridge.losses`. For one loss, weight or mask
            an element rather than a row, use `log_loss`.

    Returns:
        A scalar; the shape of y_pred without `axis` for reduction "none".

    Raises:
        ValueError: shapes that do not fit, or an option outside its range.
        TypeError: arrays of two libraries, or of no real numbers.

    >>> round(float(binary_crossentropy([[0.0], [1.0]], [[40.0], [40.0]], from_logits=True)), 7)
    20.0

    Source: conventions of keras.losses.BinaryCrossentropy; pos_weight of torch.nn.BCEWithLogitsLoss.
    """
    validation.options(reduction=reduction, normalizer=normalizer, epsilon=epsilon, label_smoothing=label_smoothing)
    validation.switches(from_logits=from_logits)

    return evaluate(
        formulas.binary_crossentropy,
        y_true,
        y_pred,
        axis,
        sample_weight,
        mask,
        normalizer,
        reduction,
        outcomes=1,
        options={"from_logits": from_logits, "label_smoothing": label_smoothing, "epsilon": epsilon},
        per_class={"pos_weight": pos_weight},
        scalar_per_class=True,
    )


def log_loss(
    y_true: Any,
    y_pred: Any,
    *,
    from_logits: bool = False,
    axis: int = -1,
    epsilon: float = 1e-7,
    sample_weight: Any = None,
    mask: Any = None,
    normalizer: Any = None,
    reduction: Reduction = "sum_over_batch_size",
) -> Any:
    """Negative log-likelihood of labels, in nats. Probabilities are clipped, never renormalised.

    Args:
        y_true: of y_pred's shape: the outcomes (0, 1 or between) of independent Bernoulli trials; or of y_pred's shape
            without `axis`: integer class labels.
        y_pred: probabilities, clipped to [epsilon, 1 − epsilon]; with `from_logits`, logits, exact and not clipped.
        axis: the axis of the classes; has no meaning for Bernoulli trials.
        epsilon, sample_weight, mask, normalizer, reduction: see `lossbridge.losses`.

    Returns:
        A scalar; the shape of y_true for reduction "none".

    Raises:
        ValueError: shapes that do not fit, an option outside its range, or a label out of range (as in
            `sparse_categorical_crossentropy`).
        TypeError: floating-point class labels, arrays of two libraries, or of no real numbers.

    >>> round(float(log_loss([1, 0, 1], [0.9, 0.2, 0.6])), 7)
    0.2797766

    Source: Bishop, Pattern Recognition and Machine Learning, 2006, §4.3; conventions of sklearn.metrics.log_loss.
    """
    validation.options(reduction=reduction, normalizer=normalizer, epsilon=epsilon)
    validation.switches(from_logits=from_logits)
    b = validation.common_backend(y_pred, "y_pred", {"y_true": y_true})
    rank_true = len(b.shape(validation.adopt(b, "y_true", y_true, y_pred)))
    bernoulli = rank_true == len(b.shape(validation.adopt(b, "y_pred", y_pred)))

    return evaluate(
        formulas.bernoulli_log_loss if bernoulli else formulas.label_log_loss,
        y_true,
        y_pred,
        axis,
        sample_weight,
        mask,
        normalizer,
        reduction,
        elementwise=bernoulli,
        labels=not bernoulli,
        options={"from_logits": from_logits, "epsilon": epsilon},
    )


def kl_divergence(
    y_true: Any,
    y_pred: Any,
    *,
    from_logits: bool = False,
    axis: int = -1,
    epsilon: float = 1e-7,
    sample_weight: Any = None,
    mask: Any = None,
    normalizer: Any = None,
    reduction: Reduction = "sum_over_batch_size",
) -> Any:
    """Kullback-Leibler divergence KL(y_true ‖ y_pred) = Σ_c t_c log(t_c / p_c), in nats.

    Args:
        y_true: target distributions, of y_pred's shape.
        y_pred: predicted distributions, of shape (…, C, …) with C ≥ 2 along `axis`. Both sides are clipped to
            [epsilon, 1] and not renormalised. With `from_logits` both sides are logits, exact and not clipped.
        axis, epsilon, sample_weight, mask, normalizer, reduction: see `lossbridge.losses`.

    Returns:
        A scalar; the shape of y_pred without `axis` for reduction "none". Nearly equal distributions keep their digits,
        equal ones give 0.

    Raises:
        ValueError: shapes that do not fit, or an option outside its range.
        TypeError: arrays of two libraries, or of no real numbers.

    >>> round(float(kl_divergence([[0.5, 0.5]], [[0.25, 0.75]])), 7)
    0.143841

    Source: Kullback and Leibler, On Information and Sufficiency, 1951; conventions of keras.losses.KLDivergence.
    """
    validation.options(reduction=reduction, normalizer=normalizer, epsilon=epsilon)
    validation.switches(from_logits=from_logits)

    return evaluate(
        formulas.kl_divergence,
        y_true,
        y_pred,
        axis,
        sample_weight,
        mask,
        normalizer,
        reduction,
        options={"from_logits": from_logits, "epsilon": epsilon},
    )


def distillation_loss(
    teacher_logits: Any,
    student_logits: Any,
    *,
    temperature: float = 1.0,
    axis: int = -1,
    sample_weight: Any = None,
    mask: Any = None,
    normalizer: Any = None,
    reduction: Reduction = "sum_over_batch_size",
) -> Any:
    """T² · KL(softmax(teacher/T) ‖ softmax(student/T)), in nats; T² keeps the gradient's size independent of T.

    Args:
        teacher_logits: logits, of the student's shape.
        student_logits: logits, of shape (…, C, …) with C ≥ 2 along `axis`.
        temperature: T > 0.
        axis, sample_weight, mask, normalizer, reduction: see `lossbridge.losses`.

    Returns:
        A scalar; the shape of student_logits without `axis` for reduction "none".

    Raises:
        ValueError: shapes that do not fit, or an option outside its range.
        TypeError: arrays of two libraries, or of no real numbers.

    >>> round(float(distillation_loss([[2.0, 0.0]], [[0.0, 2.0]], temperature=2.0)), 7)
    1.8484686

    Source: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015.
    """
    validation.options(reduction=reduction, normalizer=normalizer, temperature=temperature)

    return evaluate(
        formulas.distillation_loss,
        teacher_logits,
        student_logits,
        axis,
        sample_weight,
        mask,
        normalizer,
        reduction,
        options={"temperature": temperature},
        names=Names("teacher_logits", "student_logits"),
    )


def categorical_focal_crossentropy(
    y_true: Any,
    y_pred: Any,
    *,
    alpha: Any = 0.25,
    gamma: float = 2.0,
    from_logits: bool = False,
    label_smoothing: float = 0.0,
    axis: int = -1,
    epsilon: float = 1e-7,
    sample_weight: Any = None,
    mask: Any = None,
    normalizer: Any = None,
    reduction: Reduction = "sum_over_batch_size",
) -> Any:
    """Cross-entropy that looks away from easy examples, Σ_c α t_c (1 − p_c)^γ (−log p_c), in nats.

    Args:
        y_true: target distributions (one-hot or soft), of y_pred's shape.
        y_pred: probabilities, renormalised and clipped; with `from_logits`, logits, exact and not clipped.
            Shape (…, C, …) with C ≥ 2 along `axis`.
        alpha: one number, or (C,), a weight a class.
        gamma: γ ≥ 0; 0 leaves α times the cross-entropy.
        label_smoothing: s in [0, 1]; targets become t·(1 − s) + s/C.
        axis, epsilon, sample_weight, mask, normalizer, reduction: see `lossbridge.losses`.

    Returns:
        A scalar; the shape of y_pred without `axis` for reduction "none".

    Raises:
        ValueError: shapes that do not fit, or an option outside its range.
        TypeError: arrays of two libraries, or of no real numbers.

    >>> round(float(categorical_focal_crossentropy([[0, 1, 0], [0, 0, 1]], [[0.05, 0.95, 0], [0.1, 0.8, 0.1]])), 7)
    0.2331528

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017; keras.losses.CategoricalFocalCrossentropy.
    """
    validation.options(
        reduction=reduction, normalizer=normalizer, epsilon=epsilon, label_smoothing=label_smoothing, gamma=gamma
    )
    validation.switches(from_logits=from_logits)
    if alpha is None:
        raise TypeError("alpha is None; pass one number, or one a class")

    return evaluate(
        formulas.categorical_focal_crossentropy,
        y_true,
        y_pred,
        axis,
        sample_weight,
        mask,
        normalizer,
        reduction,
        options={
            "gamma": gamma,
            "from_logits": from_logits,
            "label_smoothing": label_smoothing,
            "epsilon": epsilon,
        },
        per_class={"alpha": alpha},
        scalar_per_class=True,
    )


def binary_focal_crossentropy(
    y_true: Any,
    y_pred: Any,
    *,
    apply_class_balancing: bool = False,
    alpha: float = 0.25,
    gamma: float = 2.0,
    from_logits: bool = False,
    label_smoothing: float = 0.0,
    axis: int = -1,
    epsilon: float = 1e-7,
    sample_weight: Any = None,
    mask: Any = None,
    normalizer: Any = None,
    reduction: Reduction = "sum_over_batch_size",
) -> Any:
    """Binary cross-entropy times (1 − p_t)^γ, p_t being the probability given to what is true; mean over `axis`, nats.

    Args:
        y_true: targets in [0, 1], of y_pred's shape.
        y_pred: probabilities, clipped in the logarithm (as in Keras, not in p_t); with `from_logits`, logits, exact and
            not clipped. Shape (…, C, …).
        apply_class_balancing: multiply by alpha where t = 1 and 1 − alpha where t = 0.
        alpha: that weight.
        gamma: γ ≥ 0.
        label_smoothing: s in [0, 1]; targets become t·(1 − s) + s/2.
        axis, epsilon, sample_weight, mask, normalizer, reduction: see `lossbridge.losses`.

    Returns:
        A scalar; the shape of y_pred without `axis` for reduction "none".

    Raises:
        ValueError: shapes that do not fit, or an option outside its range.
        TypeError: arrays of two libraries, or of no real numbers.

    >>> round(float(binary_focal_crossentropy([[1.0], [0.0]], [[0.9], [0.2]])), 7)
    0.0049897

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017; keras.losses.BinaryFocalCrossentropy.
    """
    validation.options(
        reduction=reduction, normalizer=normalizer, epsilon=epsilon, label_smoothing=label_smoothing, gamma=gamma
    )
    validation.switches(from_logits=from_logits, apply_class_balancing=apply_class_balancing)
    validation.fraction("alpha", alpha)

    return evaluate(
        formulas.binary_focal_crossentropy,
        y_true,
        y_pred,
        axis,
        sample_weight,
        mask,
        normalizer,
        reduction,
        outcomes=1,
        options={
            "apply_class_balancing": apply_class_balancing,
            "alpha": alpha,
            "gamma": gamma,
            "from_logits": from_logits,
            "label_smoothing": label_smoothing,
            "epsilon": epsilon,
        },
    )


def value_and_grad(loss: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """The loss, and its gradient with respect to the predictions, on every backend (NumPy too).

    Args:
        loss: a function of (y_true, y_pred, **options): a loss of lossbridge, or one built of them by arithmetic.

    Returns:
        A function of the same arguments that returns (value, gradient). The gradient has y_pred's shape and dtype
        (float32 for integers); where the value is no scalar, it is that of the sum of its entries.

    >>> value, gradient = value_and_grad(categorical_crossentropy)([[1.0, 0, 0]], [[0.7, 0.2, 0.1]])
    >>> [round(float(entry), 4) for entry in gradient[0]]
    [-0.4286, 1.0, 1.0]
    """

    @functools.wraps(loss)
    def evaluate(y_true: Any, y_pred: Any, **options: Any) -> tuple[Any, Any]:
        b = backend_of(y_pred)
        pred = validation.adopt(b, "y_pred", y_pred)
        if not validation.is_float(b.dtype(pred)):
            pred = b.cast(pred, "float32")
        return b.value_and_grad(lambda pred: loss(y_true, pred, **options), pred)

    return evaluate


def evaluate(
    formula: Formula,
    y_true: Any,
    y_pred: Any,
    axis: int,
    sample_weight: Any,
    mask: Any,
    normalizer: Any,
    reduction: Reduction,
    *,
    elementwise: bool = False,
    labels: bool = False,
    ignore_class: int | None = None,
    outcomes: int = 2,
    options: Mapping[str, Any] | None = None,
    per_class: Mapping[str, Any] | None = None,
    scalar_per_class: bool = False,
    mass: Callable[..., Array] | None = None,
    inplace_gradient: bool = False,
    names: Names = KERAS,
) -> Any:
    """The road of every loss, here and in `lossbridge.compat`.

    `elementwise`: every entry is a sample, and `axis` means nothing. `labels`: y_true holds class indices. `outcomes`:
    the smallest size of `axis`. `options` and `per_class`: what the formula takes by name, the latter arrays of shape
    (C,). `mass`: what a sample counts besides its weight under "mean_with_sample_weight"; it takes class_weight.
    `inplace_gradient`: a kernel may write the gradient over the predictions. `names`: of the first two arguments, for
    errors.
    """
    options, per_class = options or {}, per_class or {}
    if (
        sample_weight is mask is normalizer is None
        and not inplace_gradient
        and not any(x is not None for x in per_class.values())
    ):
        shortcut = shortcuts_of(backend_of(y_pred, names.pred)).get(formula.__name__)
        if shortcut is not None:
            loss = shortcut(y_true, y_pred, axis, ignore_class, reduction, **options)
            if loss is not None:
                return loss
    called = {name: names.class_weight if name == "class_weight" else name for name in per_class}
    others = {"sample_weight": sample_weight, "mask": mask, "normalizer": normalizer}
    others |= {called[name]: x for name, x in per_class.items()}
    b = validation.common_backend(y_pred, names.pred, {names.target: y_true, **others})
    pred = validation.adopt(b, names.pred, y_pred)
    target = validation.adopt(b, names.target, y_true, pred)
    shape = b.shape(pred)
    row = None if elementwise else validation.axis_of(b.shape(target), shape, axis, names, at_least=outcomes)
    sample_shape: Shape = shape if row is None else shape[:row] + shape[row + 1 :]
    if labels:
        validation.label_shape(b.shape(target), sample_shape, shape, axis, names)
        validation.label_dtype(b.dtype(target), names)
    else:
        validation.same_shape(b.shape(target), shape, names, labels_fit=outcomes > 1)
    target = validation.held_to(b, names.target, target, pred, row if labels else None)
    dtype = validation.compute_dtype(b.dtype(pred))

    def number(name: str, x: Any) -> Array:
        return b.cast(validation.adopt(b, name, x, pred), dtype)

    if sample_weight is not None:
        sample_weight = validation.per_sample(b, "sample_weight", number("sample_weight", sample_weight), pred, row)
    if mask is not None:
        mask = validation.per_sample(b, "mask", validation.adopt(b, "mask", mask, pred), pred, row)
    if normalizer is not None:
        normalizer = validation.scalar(b, "normalizer", number("normalizer", normalizer))
    vectors = {}
    for name, x in per_class.items():
        as_it_is = x is None or (scalar_per_class and isinstance(x, int | float))
        if not as_it_is:
            x = number(called[name], x)
            x = validation.per_class(b, called[name], x, pred, row, scalar_per_class, names)
        vectors[name] = x

    with b.quiet():
        # Wide enough that no label wraps round to a class; unsigned ones may turn negative, which is none either.
        index_dtype = "int64" if b.dtype(target) in ("int64", "uint64") else "int32"
        ignored = ignore_class
        if ignored is not None and not validation.representable(ignored, b.dtype(target)):
            ignored = None
        if labels:
            readable, classes = b.concrete(y_true), None if row is None else shape[row]
            all_classes = readable is not None and classes is not None and validation.all_in_range(readable, classes)
            if all_classes and ignored is not None and not 0 <= ignored < (classes or 0):
                ignored = None  # no label is it
            target = b.cast(target, index_dtype)
        counts = entries(b, sample_weight, mask, None if ignored is None else target != ignored)
        if labels:
            if not all_classes and readable is not None and classes is not None:
                _refuse_bad_labels(b, readable, classes, counts.kept, names)
            target = neutralise(b, target, counts.kept, None, 0)

        def plain(target: Array, pred: Array) -> Array:
            if not labels:
                target = neutralise(b, b.cast(target, dtype), counts.kept, row, 0.5)
            pred = neutralise(b, b.cast(pred, dtype), counts.kept, row, 0.5)
            return formula(b, target, pred, row, **options, **vectors)

        kernel = kernels_of(b).get(formula.__name__)
        if kernel is not None and inplace_gradient:
            kernel = partial(kernel, inplace_gradient=True)
        loss = None if kernel is None else kernel(plain, target, pred, row, counts.kept, **options, **vectors)
        if loss is None:
            loss = plain(target, pred)
        counted = None
        if mass is not None and reduction == "mean_with_sample_weight":
            target = target if labels else neutralise(b, b.cast(target, dtype), counts.kept, row, 0.5)
            counted = mass(b, target, pred, row, **vectors)
        return reduce(b, loss, counts, reduction=reduction, normalizer=normalizer, mass=counted)


def _refuse_bad_labels(b: Backend, labels: np.ndarray, classes: int, kept: Array | None, names: Names) -> None:
    """Where it can be read now what is left out of them."""
    keeping = None if kept is None else b.concrete(kept)
    if kept is None or keeping is not None:
        validation.labels_in_range(labels, classes, keeping, names)
