"""The public losses: signature, docstring, and a request. No maths, and no framework.

These arguments mean the same in every loss:

axis            the axis that holds the classes; it is absent from the per-sample losses
epsilon         probabilities are clipped to [epsilon, 1 - epsilon]; 0 means exact; logits are never clipped
sample_weight   of the per-sample shape, or its leading axes, or one number; multiplies each loss
mask            of such a shape; where it is False or 0, the entry reaches neither value, gradient nor denominator
normalizer      the denominator of a mean, in place of the count, for accumulated gradients and data parallelism
reduction       "sum_over_batch_size" or "mean" (divides by the number of unmasked entries), "sum", "none" or None
                (per-sample values), "mean_with_sample_weight" (divides by the sum of the weights)

Of a linear layer whose classes are split over devices, each calls the loss with the weight and bias of its own. All
else is alike on all, `class_weight` has a number for every class, and the result is the same on all:

group           the devices: on PyTorch a torch.distributed.ProcessGroup, or none where the weight is a DTensor; on JAX
                the name of a mesh axis, inside jax.shard_map
classes         (start, stop), the classes of this rank's weight, on PyTorch; by default in the order of the ranks
reduce_hidden   whether hidden's gradient is added up over the group, in float32; False leaves that to the caller

What ranks disagree about is a ValueError on all of them; under torch.compile, torch.func and forward mode a group is a
NotImplementedError.

Options that are one number may be Python numbers, NumPy scalars, or arrays of shape (), also traced ones.

Results are float64 for float64 predictions, else float32, in nats; gradients have the dtype of their input.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from lossbridge import distillation, linear, topk
from lossbridge.errors import gradient_buffer, is_float
from lossbridge.reduction import reduce
from lossbridge.request import as_array, framework_of, left_by_autograph, run, without_target
from lossbridge.spec import ENTROPY, LOSSES, Kind, Reduction, Scale


def categorical_crossentropy(
    y_true: Any,
    y_pred: Any,
    *,
    from_logits: bool = False,
    label_smoothing: float = 0.0,
    axis: int = -1,
    epsilon: float = 1e-7,
    class_weight: Any = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
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
        class_weight: (C,), the w_c. In "mean_with_sample_weight" alone a sample counts Σ_c w_c t_c.
        logit_scale, softcap: with `from_logits`; z = logit_scale·x, then softcap·tanh(z / softcap). None: no cap.
        z_loss: ζ ≥ 0, with `from_logits`; ζ·lse² is added to each loss, lse = log Σ_c e^(z_c).
        axis, epsilon, sample_weight, mask, normalizer, reduction: see `lossbridge.losses`.

    Returns:
        A scalar; the shape of y_pred without `axis` for reduction "none".

    Raises:
        ValueError: shapes that do not fit, an option outside its range, or a number outside its domain that can be read
            on the host: a target outside [0, 1], a negative probability, or a row of them that is 0. Where it is traced
            or on an accelerator, that sample's loss is NaN instead.
        TypeError: arrays of two libraries, or of no real numbers.

    >>> round(float(categorical_crossentropy([[0, 1, 0], [0, 0, 1]], [[0.05, 0.95, 0], [0.1, 0.8, 0.1]])), 7)
    1.1769392

    Source: Shannon, A Mathematical Theory of Communication, 1948; conventions of keras.losses.CategoricalCrossentropy.
    """
    return run(
        LOSSES["categorical_crossentropy"],
        y_true,
        y_pred,
        from_logits=from_logits,
        label_smoothing=label_smoothing,
        axis=axis,
        epsilon=epsilon,
        class_weight=class_weight,
        logit_scale=logit_scale,
        softcap=softcap,
        z_loss=z_loss,
        sample_weight=sample_weight,
        mask=mask,
        normalizer=normalizer,
        reduction=reduction,
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
    logit_scale: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
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
        class_weight, logit_scale, softcap, z_loss: as in `categorical_crossentropy`.
        axis, epsilon, sample_weight, mask, normalizer, reduction: see `lossbridge.losses`.

    Returns:
        A scalar; the shape of y_true for reduction "none".

    Raises:
        ValueError: shapes that do not fit, an option outside its range, or a label out of range whose value can be read
            on the host. Where labels are traced or on an accelerator, that sample's loss is NaN instead. Likewise for
            negative probabilities, and rows of them that are 0.
        TypeError: floating-point labels, arrays of two libraries, or of no real numbers.

    >>> round(float(sparse_categorical_crossentropy([1, 2], [[0.05, 0.95, 0], [0.1, 0.8, 0.1]])), 7)
    1.1769392

    Source: as `categorical_crossentropy`; conventions of keras.losses.SparseCategoricalCrossentropy.
    """
    return run(
        LOSSES["sparse_categorical_crossentropy"],
        y_true,
        y_pred,
        from_logits=from_logits,
        label_smoothing=label_smoothing,
        axis=axis,
        epsilon=epsilon,
        ignore_class=ignore_class,
        class_weight=class_weight,
        logit_scale=logit_scale,
        softcap=softcap,
        z_loss=z_loss,
        sample_weight=sample_weight,
        mask=mask,
        normalizer=normalizer,
        reduction=reduction,
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
        ValueError: shapes that do not fit, an option outside its range, or a target or probability outside [0, 1] (as
            in `categorical_crossentropy`).
        TypeError: arrays of two libraries, or of no real numbers.

    >>> round(float(binary_crossentropy([[0.0], [1.0]], [[40.0], [40.0]], from_logits=True)), 7)
    20.0

    Source: conventions of keras.losses.BinaryCrossentropy; pos_weight of torch.nn.BCEWithLogitsLoss.
    """
    return run(
        LOSSES["binary_crossentropy"],
        y_true,
        y_pred,
        from_logits=from_logits,
        label_smoothing=label_smoothing,
        axis=axis,
        epsilon=epsilon,
        pos_weight=pos_weight,
        sample_weight=sample_weight,
        mask=mask,
        normalizer=normalizer,
        reduction=reduction,
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
        axis: the axis of the classes; ignored for Bernoulli trials.
        epsilon, sample_weight, mask, normalizer, reduction: see `lossbridge.losses`.

    Returns:
        A scalar; the shape of y_true for reduction "none".

    Raises:
        ValueError: shapes that do not fit, an option outside its range, a label out of range (as in
            `sparse_categorical_crossentropy`), or an outcome or probability outside [0, 1].
        TypeError: floating-point class labels, arrays of two libraries, or of no real numbers.

    >>> round(float(log_loss([1, 0, 1], [0.9, 0.2, 0.6])), 7)
    0.2797766

    Source: Bishop, Pattern Recognition and Machine Learning, 2006, §4.3; conventions of sklearn.metrics.log_loss.
    """
    return run(
        LOSSES["log_loss"],
        y_true,
        y_pred,
        from_logits=from_logits,
        axis=axis,
        epsilon=epsilon,
        sample_weight=sample_weight,
        mask=mask,
        normalizer=normalizer,
        reduction=reduction,
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
        A scalar; the shape of y_pred without `axis` for reduction "none". Accurate for nearly equal
        distributions; 0 for equal ones.

    Raises:
        ValueError: shapes that do not fit, an option outside its range, or a number outside its domain (as in
            `categorical_crossentropy`).
        TypeError: arrays of two libraries, or of no real numbers.

    >>> round(float(kl_divergence([[0.5, 0.5]], [[0.25, 0.75]])), 7)
    0.143841

    Source: Kullback and Leibler, On Information and Sufficiency, 1951; conventions of keras.losses.KLDivergence.
    """
    return run(
        LOSSES["kl_divergence"],
        y_true,
        y_pred,
        from_logits=from_logits,
        axis=axis,
        epsilon=epsilon,
        sample_weight=sample_weight,
        mask=mask,
        normalizer=normalizer,
        reduction=reduction,
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
    return run(
        LOSSES["distillation_loss"],
        teacher_logits,
        student_logits,
        temperature=temperature,
        axis=axis,
        sample_weight=sample_weight,
        mask=mask,
        normalizer=normalizer,
        reduction=reduction,
    )


def divergence(
    teacher_logits: Any,
    student_logits: Any,
    *,
    kind: Kind = "forward",
    beta: float = 0.5,
    scale: Scale = "mixture",
    temperature: float = 1.0,
    axis: int = -1,
    sample_weight: Any = None,
    mask: Any = None,
    normalizer: Any = None,
    reduction: Reduction = "sum_over_batch_size",
) -> Any:
    """A divergence of t = softmax(teacher/T) and p = softmax(student/T), times T², in nats; exact also for t near p.

    Args:
        teacher_logits: logits, of the student's shape.
        student_logits: logits, of shape (…, C, …) with C ≥ 2 along `axis`.
        kind: "forward", KL(t ‖ p) = Σ t log(t/p), which is `distillation_loss`; "reverse", KL(p ‖ t);
            "jensen_shannon", β KL(t ‖ m) + (1 − β) KL(p ‖ m) with m = β t + (1 − β) p; "total_variation", ½ Σ |t − p|.
        beta: β in [0, 1] of "jensen_shannon", the teacher's share of the mixture m.
        scale: "mixture", as above, which is 0 for β = 0 and for 1; or "divergence", divided by β (1 − β), which goes
            continuously to KL(t ‖ p) at β = 0 and to KL(p ‖ t) at 1, and has their values there.
        temperature: T > 0. T² multiplies every kind; it keeps the gradient's size independent of T.
        axis, sample_weight, mask, normalizer, reduction: see `lossbridge.losses`.

    Returns:
        A scalar; the shape of student_logits without `axis` for reduction "none". Never negative, and 0 for equal
        distributions. In "total_variation" the derivative of |t − p| is 0 where t = p.

    Raises:
        ValueError: shapes that do not fit, an option outside its range, or beta or scale for another kind.
        TypeError: arrays of two libraries, or of no real numbers.

    >>> round(float(divergence([[2.0, 0.0]], [[0.0, 2.0]], kind="jensen_shannon")), 7)
    0.3278133

    Source: Lin, Divergence Measures Based on the Shannon Entropy, 1991; Agarwal et al., On-Policy Distillation of
    Language Models, 2024.
    """
    return run(
        LOSSES["divergence"],
        teacher_logits,
        student_logits,
        kind=kind,
        beta=beta,
        scale=scale,
        temperature=temperature,
        axis=axis,
        sample_weight=sample_weight,
        mask=mask,
        normalizer=normalizer,
        reduction=reduction,
    )


def topk_divergence(
    indices: Any,
    log_probs: Any,
    student_logits: Any,
    *,
    tail: bool = True,
    axis: int = -1,
    sample_weight: Any = None,
    mask: Any = None,
    normalizer: Any = None,
    reduction: Reduction = "sum_over_batch_size",
) -> Any:
    """KL(t ‖ p) of the k classes of a teacher that were kept and a bucket of all others, in nats.

    Σ_k t_k log(t_k / p_k) + (1 − Σt) log((1 − Σt) / (1 − Σp)): at most the divergence of all classes, and equal to it
    where the teacher's and the student's probabilities of the others are proportional. Nothing is clamped: 1 − Σp is
    the sum of the others' exponentials.

    Args:
        indices: integer classes from 0 to V − 1, each at most once a row, of shape (…, k, …).
        log_probs: their log t, of the same shape.
        student_logits: of shape (…, V, …) with k ≤ V along `axis`. Where k = V there is no bucket.
        tail: False leaves the bucket out, and renormalises t and p over the k classes: KL(t/Σt ‖ p/Σp), for which
            log_probs may lack any constant. It is ≥ 0, and does not see how much p has outside of the k classes.
        axis, sample_weight, mask, normalizer, reduction: see `lossbridge.losses`.

    Returns:
        A scalar; the shape of student_logits without `axis` for reduction "none". For log_probs that were taken at a
        temperature T, pass student_logits / T, and multiply by T² for `distillation_loss`'s scale.

    Raises:
        ValueError: shapes that do not fit; an index out of range or twice in a row, or with `tail` probabilities that
            sum to more than 1 beyond rounding. Where they are traced or on an accelerator the row's loss is NaN.
        TypeError: indices that are no integers, arrays of two libraries, or of no real numbers.

    >>> import math
    >>> kept = [[math.log(0.75), math.log(0.125)]]
    >>> round(float(topk_divergence([[0, 2]], kept, [[0.0, 0.0, 0.0, 0.0]])), 7)
    0.564029

    Source: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015; the bucket is a coarser
    partition, whose divergence is smaller: Cover and Thomas, Elements of Information Theory, 2006, §2.7.
    """
    return topk.run(
        indices,
        log_probs,
        student_logits,
        tail,
        axis=axis,
        sample_weight=sample_weight,
        mask=mask,
        normalizer=normalizer,
        reduction=reduction,
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
    """Focal loss: down-weights examples that are already classified well. Σ_c α t_c (1 − p_c)^γ (−log p_c), in nats.

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
        ValueError: shapes that do not fit, an option outside its range, or a number outside its domain (as in
            `categorical_crossentropy`).
        TypeError: arrays of two libraries, or of no real numbers.

    >>> round(float(categorical_focal_crossentropy([[0, 1, 0], [0, 0, 1]], [[0.05, 0.95, 0], [0.1, 0.8, 0.1]])), 7)
    0.2331528

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017; keras.losses.CategoricalFocalCrossentropy.
    """
    return run(
        LOSSES["categorical_focal_crossentropy"],
        y_true,
        y_pred,
        alpha=alpha,
        gamma=gamma,
        from_logits=from_logits,
        label_smoothing=label_smoothing,
        axis=axis,
        epsilon=epsilon,
        sample_weight=sample_weight,
        mask=mask,
        normalizer=normalizer,
        reduction=reduction,
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
    """Binary cross-entropy times (1 − p_t)^γ, p_t = t·p + (1 − t)·(1 − p); mean over `axis`, in nats.

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
        ValueError: shapes that do not fit, an option outside its range, or a target or probability outside [0, 1] (as
            in `categorical_crossentropy`).
        TypeError: arrays of two libraries, or of no real numbers.

    >>> round(float(binary_focal_crossentropy([[1.0], [0.0]], [[0.9], [0.2]])), 7)
    0.0049897

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017; keras.losses.BinaryFocalCrossentropy.
    """
    return run(
        LOSSES["binary_focal_crossentropy"],
        y_true,
        y_pred,
        apply_class_balancing=apply_class_balancing,
        alpha=alpha,
        gamma=gamma,
        from_logits=from_logits,
        label_smoothing=label_smoothing,
        axis=axis,
        epsilon=epsilon,
        sample_weight=sample_weight,
        mask=mask,
        normalizer=normalizer,
        reduction=reduction,
    )


def linear_crossentropy(
    labels: Any,
    hidden: Any,
    weight: Any,
    *,
    bias: Any = None,
    classes_axis: int = 0,
    label_smoothing: float = 0.0,
    ignore_class: int | None = None,
    class_weight: Any = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    sample_weight: Any = None,
    mask: Any = None,
    normalizer: Any = None,
    reduction: Reduction = "sum_over_batch_size",
    returns: str | Sequence[str] = "loss",
    memory: int | None = None,
    group: Any = None,
    classes: tuple[int, int] | None = None,
    reduce_hidden: bool = True,
) -> Any:
    """Cross-entropy of the classes of a linear layer, z = W h + b, computed in blocks without all logits, in nats.

    Equal to `sparse_categorical_crossentropy(labels, hidden @ weight.T + bias, from_logits=True, …)`, value and
    gradients; of language models the logits would be the largest array of a training step.

    Args:
        labels: integer labels from 0 to C − 1, of hidden's shape without its last axis.
        hidden, bias: hidden states, of shape (…, H); and the bias, (C,).
        weight: of shape (C, H), as torch.nn.Linear has it; (H, C), as Keras' Dense and Flax, with classes_axis=1.
        label_smoothing, ignore_class, class_weight, logit_scale, softcap, z_loss, sample_weight, mask, normalizer,
            reduction: as in `sparse_categorical_crossentropy`.
        returns: "loss", or names for a named tuple: "loss" and, of every label, "nll" (−log p_y, without weights and
            smoothing), "lse" (log Σ_c e^(z_c)), "entropy" (Σ_c p_c (−log p_c)), "z_loss" (z_loss · lse²), "prediction"
            (the class of the largest logit) and "correct" (whether that is the label).
        memory: the bytes that the logits of a block may take. By default 32 MiB, but no fewer than 128 rows.
        group, classes, reduce_hidden: of classes split over devices, see `lossbridge.losses`.

    Returns:
        A scalar; the shape of labels for reduction "none". Logits and loss are float32 also for hidden states of half
        precision, and each gradient is rounded once. A named tuple where `returns` holds names, all floats of it
        differentiable; where a label does not count (a weight of 0 too), its numbers are 0, and its prediction is −1.

    Raises:
        ValueError: shapes that do not fit, an option outside its range, or a label out of range.
        TypeError: floating-point labels, integer hidden states, float64 beside other floats, arrays of two libraries.

    >>> hidden, weight = [[1.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
    >>> round(float(linear_crossentropy([0, 2], hidden, weight)), 7)
    0.8103092

    Source: Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models, 2024.
    """
    options = {"label_smoothing": label_smoothing, "ignore_class": ignore_class, "class_weight": class_weight}
    options |= {"logit_scale": logit_scale, "softcap": softcap, "z_loss": z_loss, "sample_weight": sample_weight}
    options |= {"mask": mask, "normalizer": normalizer, "reduction": reduction}
    layer, split = (weight, bias, classes_axis), (group, classes, reduce_hidden)
    return linear.run(labels, hidden, layer, memory, split, returns, **options)


def linear_distillation(
    teacher_hidden: Any,
    teacher_weight: Any,
    student_hidden: Any,
    student_weight: Any,
    *,
    teacher_bias: Any = None,
    student_bias: Any = None,
    classes_axis: int = 0,
    kind: Kind = "forward",
    beta: float = 0.5,
    scale: Scale = "mixture",
    temperature: float = 1.0,
    sample_weight: Any = None,
    mask: Any = None,
    normalizer: Any = None,
    reduction: Reduction = "sum_over_batch_size",
    memory: int | None = None,
) -> Any:
    """`divergence` of two linear layers over the same classes, computed in blocks without all logits, in nats.

    Equal to `divergence(teacher_hidden @ teacher_weight.T + teacher_bias, student_hidden @ student_weight.T +
    student_bias, …)`, value and gradients. Gradients for the student go block by block; where one is asked for the
    teacher, PyTorch, TensorFlow and NumPy go by all logits.

    Args:
        teacher_hidden: hidden states, of shape (…, H'); they may have another number of units than the student's.
        teacher_weight: of shape (C, H'), or (H', C), see `classes_axis`.
        student_hidden: of shape (…, H).
        student_weight: of shape (C, H), or (H, C).
        teacher_bias, student_bias: of shape (C,).
        classes_axis: the axis of both weights that holds the classes: 1 for Keras' Dense and Flax' Linear.
        kind, beta, scale, temperature: as in `divergence`.
        sample_weight, mask, normalizer, reduction: see `lossbridge.losses`.
        memory: the bytes that both sides' logits of a block may take. By default 32 MiB, but no fewer than 128 rows.

    Returns:
        A scalar; the shape of student_hidden without its last axis for reduction "none". Logits and loss are float32
        also for hidden states of half precision, and each gradient is rounded once.

    Raises:
        ValueError: shapes that do not fit, or an option as in `divergence`.
        TypeError: integer hidden states, float64 beside other floats of a side, arrays of two libraries.

    >>> hidden, weight = [[1.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
    >>> round(float(linear_distillation([[2.0], [0.0]], [[1.0], [0.0], [0.0]], hidden, weight)), 7)
    0.3148036

    Source: as `divergence`; blocks as in `linear_crossentropy`.
    """
    options = {"kind": kind, "beta": beta, "scale": scale, "temperature": temperature, "sample_weight": sample_weight}
    options |= {"mask": mask, "normalizer": normalizer, "reduction": reduction}
    teacher = teacher_hidden, teacher_weight, teacher_bias
    student = student_hidden, student_weight, student_bias
    return distillation.run(teacher, student, classes_axis, memory, **options)


def token_log_probs(
    labels: Any,
    logits: Any,
    *,
    axis: int = -1,
    ignore_class: int | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    mask: Any = None,
) -> Any:
    """log p_y of every label, in nats: what the ratios and divergences of reinforcement learning are made of.

    Args:
        labels: integer labels from 0 to C − 1, of logits' shape without `axis`.
        logits: of shape (…, C, …).
        axis, ignore_class, logit_scale, softcap, mask: as in `sparse_categorical_crossentropy`.

    Returns:
        An array of labels' shape, float32 also for logits of half precision; 0 where a label is ignored or masked.

    Raises:
        ValueError, TypeError: as `sparse_categorical_crossentropy`.

    >>> [round(float(x), 4) for x in token_log_probs([0, 1], [[2.0, 0.0], [0.0, 0.0]])]
    [-0.1269, -0.6931]

    Source: Schulman et al., Proximal Policy Optimization Algorithms, 2017; their ratio is e to a difference of these.
    """
    record = LOSSES["sparse_categorical_crossentropy"]
    options = {"axis": axis, "ignore_class": ignore_class, "logit_scale": logit_scale, "softcap": softcap, "mask": mask}
    names = record.names._replace(target="labels", pred="logits")
    options |= {"from_logits": True, "reduction": "none"}
    return -run(record, labels, logits, names=names, **{**record.options, **options})


def linear_token_log_probs(
    labels: Any,
    hidden: Any,
    weight: Any,
    *,
    bias: Any = None,
    classes_axis: int = 0,
    ignore_class: int | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    mask: Any = None,
    memory: int | None = None,
    group: Any = None,
    classes: tuple[int, int] | None = None,
    reduce_hidden: bool = True,
) -> Any:
    """log p_y of every label among the classes of a linear layer, computed in blocks without all logits, in nats.

    Args:
        labels, hidden, weight, bias, classes_axis, memory: as in `linear_crossentropy`.
        group, classes, reduce_hidden: of classes split over devices, see `lossbridge.losses`.
        ignore_class, logit_scale, softcap, mask: as in `token_log_probs`.

    Returns:
        An array of labels' shape; 0 where a label is ignored or masked.

    Raises:
        ValueError, TypeError: as `linear_crossentropy`.

    >>> [round(float(x), 4) for x in linear_token_log_probs([0, 1], [[2.0], [0.0]], [[1.0], [0.0]])]
    [-0.1269, -0.6931]

    Source: as `token_log_probs`.
    """
    return -linear.run(
        labels,
        hidden,
        (weight, bias, classes_axis),
        memory,
        (group, classes, reduce_hidden),
        ignore_class=ignore_class,
        logit_scale=logit_scale,
        softcap=softcap,
        mask=mask,
        reduction="none",
    )


def entropy_from_logits(
    logits: Any, *, axis: int = -1, logit_scale: float = 1.0, softcap: float | None = None, mask: Any = None
) -> Any:
    """Entropy of softmax(logits), Σ_c p_c (−log p_c), of every row, in nats.

    Args:
        logits: of shape (…, C, …).
        axis, logit_scale, softcap, mask: as in `sparse_categorical_crossentropy`.

    Returns:
        An array of logits' shape without `axis`, float32 also for logits of half precision; 0 where masked.

    Raises:
        ValueError: shapes that do not fit, or an option outside its range.
        TypeError: no array of real numbers.

    >>> [round(float(x), 4) for x in entropy_from_logits([[0.0, 0.0], [2.0, 0.0]])]
    [0.6931, 0.3653]

    Source: Shannon, A Mathematical Theory of Communication, 1948.
    """
    options = {"axis": axis, "logit_scale": logit_scale, "softcap": softcap, "mask": mask}
    return reduce(without_target(ENTROPY, logits, {**ENTROPY.options, **options, "reduction": "none"}))


def value_and_grad(loss: Callable[..., Any], of: str | tuple[str, ...] | None = None) -> Callable[..., tuple[Any, Any]]:
    """The loss, and its gradient with respect to the predictions or other arguments, on every backend (NumPy too).

    Args:
        loss: a function of (y_true, y_pred, …, **options): a loss of lossbridge, or a sum, product, … of them.
        of: the name of the argument that is differentiated, or a tuple of names, as ("hidden", "weight", "bias") of
            `linear_crossentropy`. By default the second argument.

    Returns:
        A function of the same arguments that returns (value, gradient). The gradient has the argument's shape and dtype
        (float32 for integers); where the value is no scalar, it is that of the sum of its entries. For a tuple of names
        it is a tuple. With `out=`, a NumPy array of that shape and dtype, the gradient for the second argument is
        written there and is what is returned: a training loop that keeps one such array allocates none. With
        `out=y_pred` it replaces the predictions; then the loss has to be one of lossbridge's functions itself.

    Raises:
        ValueError: an `out` that does not fit, or that shares memory with another argument.
        TypeError: `out` for arrays of another library; a name that the loss does not have, or was not given.

    >>> value, gradient = value_and_grad(categorical_crossentropy)([[1.0, 0, 0]], [[0.7, 0.2, 0.1]])
    >>> [round(float(entry), 4) for entry in gradient[0]]
    [-0.4286, 1.0, 1.0]
    """

    @functools.wraps(loss)
    def evaluate(*arguments: Any, out: Any = None, **options: Any) -> tuple[Any, Any]:
        if of is not None and out is not None:
            raise TypeError("out is for the gradient of the second argument; leave out `of`")
        if of is not None:
            return _of_named(loss, of, arguments, options)
        if len(arguments) < 2:
            for name in _positional(loss)[len(arguments) : 2]:
                arguments += (options.pop(name),) if name in options else ()
        if len(arguments) < 2:
            raise TypeError(f"value_and_grad differentiates the second of the loss' arguments; {len(arguments)} given")
        return _of_second(loss, *arguments, out=out, **options)

    return evaluate


@left_by_autograph
def _of_second(
    loss: Callable[..., Any], y_true: Any, y_pred: Any, *more: Any, out: Any, **options: Any
) -> tuple[Any, Any]:
    framework = framework_of(y_pred)
    pred = _differentiable(framework.ops, "y_pred", y_pred)

    def of_pred(pred: Any) -> Any:
        return _one(loss(y_true, pred, *more, **options))

    if out is None:
        return framework.value_and_grad(of_pred, pred)
    if framework.name != "numpy":
        raise TypeError(f"out is for gradients of NumPy arrays, and y_pred is of {framework.name}; leave it out")
    one_loss = getattr(loss, "__module__", "") == __name__
    others = {"y_true": y_true, **{f"argument {i}": x for i, x in enumerate(more, 3)}, **options}
    gradient_buffer(out, pred, others, may_be_pred=one_loss)
    on_numpy: Any = framework  # whose value_and_grad takes one argument more
    return on_numpy.value_and_grad(of_pred, pred, out)


@left_by_autograph
def _of_named(loss: Callable[..., Any], of: Any, arguments: tuple[Any, ...], options: Any) -> tuple[Any, Any]:
    """The value, and the gradients for the arguments of these names."""
    names = (of,) if isinstance(of, str) else of
    if not isinstance(names, tuple | list) or not names or not all(isinstance(name, str) for name in names):
        raise TypeError(f"of is {of!r}; pass a name, or a tuple of names, of arguments to differentiate")
    positional = _positional(loss)[: len(arguments)]
    given = {**dict(zip(positional, arguments, strict=False)), **options}
    for name in names:
        if given.get(name) is None:
            raise TypeError(f"of names {name!r}, which was not given; given: {', '.join(given)}")
        if names.count(name) > 1:
            raise TypeError(f"of names {name!r} twice; leave one out")
    framework = framework_of(given[names[0]], names[0])
    arrays = tuple(_differentiable(framework.ops, name, given[name]) for name in names)

    def of_arrays(arrays: tuple[Any, ...]) -> Any:
        now = {**given, **dict(zip(names, arrays, strict=True))}
        return _one(loss(*(now.pop(name) for name in positional), *arguments[len(positional) :], **now))

    value, gradients = framework.value_and_grad(of_arrays, arrays)
    return value, gradients[0] if isinstance(of, str) else tuple(gradients)


def _one(value: Any) -> Any:
    """The value of a loss, if it is one array."""
    if isinstance(value, tuple):
        names = getattr(value, "_fields", range(len(value)))
        raise TypeError(
            f"the loss returned {len(value)} values ({', '.join(map(str, names))}), and one is differentiated; pass a "
            "function that returns one of them, or their sum"
        )
    return value


def _positional(loss: Callable[..., Any]) -> list[str]:
    """The names of the parameters that take positional arguments."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, x in inspect.signature(loss).parameters.items() if x.kind in kinds]


def _differentiable(ops: Any, name: str, x: Any) -> Any:
    """`x` as an array of floats."""
    array = as_array(ops, name, x)
    return array if is_float(ops.dtype(array)) else ops.cast(array, "float32")
