"""Values and gradients on the card against the float64 reference: boundaries, the registry of cases eager and compiled.

No time is taken here, and no tolerance set: those are the registry's.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

import lossbridge
from gpu.job import Card, Job, Record, kernels_taken, torch_inputs, with_kernel
from lossbridge.frameworks import FRAMEWORKS
from lossbridge.request import run
from lossbridge.spec import LOSSES as RECORDS
from lossbridge.tools.parity import check
from lossbridge.tools.parity.cases import KERAS_EXAMPLE, LOSSES, Case, cases, round_to, usual_tolerance

REHEARSED = 15  # one case of so many


def judged(case: Case, outcome: check.Outcome) -> Record:
    return {
        "name": f"{case.loss}/{case.name}",
        "dtype": case.dtype,
        "shape": list(case.y_pred.shape),
        "mode": outcome.mode,
        "status": "fail" if outcome.fault else "pass",
        "value_ulp": outcome.value_ulp,
        "gradient_ulp": outcome.gradient_ulp,
        "value_relative": outcome.value_relative,
        "gradient_relative": outcome.gradient_relative,
        "fault": outcome.fault,
    }


# The registry.


def parity(card: Card) -> Iterator[Job]:
    """Every case, eager; those of float32 also in bfloat16 and float16."""
    runner = check.Runner(FRAMEWORKS["torch"](), card.device)

    def run(case: Case) -> Iterator[Record]:
        with kernels_taken(card.triton) as taken:
            outcome = runner.run(case, "eager")
        yield judged(case, outcome) | {"kernel": bool(taken.calls) if card.triton else None}

    found = [*cases(), *rounded("bfloat16"), *rounded("float16")]
    for case in found[:: REHEARSED if card.rehearsal else 1]:
        yield Job(f"{case.loss}/{case.name}", functools.partial(run, case), case.dtype, case.y_pred.shape)


def rounded(dtype: str) -> Iterator[Case]:
    """The float32 cases in another dtype; but not those whose gradient float16 cannot hold."""
    largest = float(np.finfo(np.float16).max) if dtype == "float16" else np.inf
    for case in cases():
        if case.dtype != "float32" or case is KERAS_EXAMPLE:  # whose tolerance is that of its very numbers
            continue
        y_true = case.y_true if case.y_true.dtype.kind in "iu" else round_to(case.y_true, dtype)
        made = dataclasses.replace(case, dtype=dtype, y_true=y_true, y_pred=round_to(case.y_pred, dtype))
        if not (np.abs(check.expected(made).gradient) > largest).any():
            yield made


def compiled(card: Card, framework: str = "torch", mode: str = "compile") -> Iterator[Job]:
    """Cases that share a compiled function are one job."""
    runner = check.Runner(FRAMEWORKS[framework](), card.device)

    def run(group: list[Case]) -> Iterator[Record]:
        for case in group:
            yield judged(case, runner.run(case, mode))

    for group in compiled_groups()[:: REHEARSED if card.rehearsal else 1]:
        name = f"{mode} of {group[0].loss}/{group[0].name}" + (f" and {len(group) - 1} more" if len(group) > 1 else "")
        yield Job(name, functools.partial(run, group), group[0].dtype, group[0].y_pred.shape)


def compiled_groups() -> list[list[Case]]:
    """Of every form of every loss the boundaries, then bfloat16, then a mask; logits before probabilities.

    The order matters, because there may be no time for all.
    """
    groups: dict[tuple[str, ...], list[Case]] = {}
    for case in cases():
        if 0 < case.y_pred.size <= 40:  # another size would be compiled once more
            groups.setdefault(check.compile_key(case), []).append(case)
    largest_first = sorted(groups.values(), key=len, reverse=True)

    def first_of_each_form(groups: list[list[Case]]) -> list[list[Case]]:
        found: dict[Any, list[Case]] = {}
        for group in groups:
            of = group[0]
            probabilities, labels = not of.options.get("from_logits", True), of.y_true.ndim < of.y_pred.ndim
            found.setdefault((probabilities, list(LOSSES).index(of.loss), labels), group)
        return [found[form] for form in sorted(found)]

    rounds = (
        [group for group in largest_first if group[0].dtype == "float32"],
        [group for group in largest_first if group[0].dtype == "bfloat16"],
        [group for group in largest_first if "mask" in group[0].options],
    )
    return [group for each in rounds for group in first_of_each_form(each)]


def eager_basics(card: Card, framework: str) -> Iterator[Job]:
    """The first case of each group of boundaries, not compiled."""
    runner = check.Runner(FRAMEWORKS[framework](), card.device)
    for group in compiled_groups()[:: REHEARSED if card.rehearsal else 1]:
        case = group[0]
        run = functools.partial(lambda case: [judged(case, runner.run(case, "eager"))], case)
        yield Job(f"{case.loss}/{case.name}", run, case.dtype, case.y_pred.shape)


# Boundaries: vocabularies about the sizes of warps, blocks and tiles; layouts, masks, padding, first and last class.

VOCABULARIES = (
    (1000, "float32"),
    (32_768, "bfloat16"),
    (50_257, "float32"),
    (128_256, "bfloat16"),
    (31, "bfloat16"),
    (33, "float32"),
    (1, "float32"),
)
AGAIN = ((1000, "float16"), (32_768, "float32"), (50_257, "bfloat16"), (128_256, "float32"))
LAYOUTS = ("contiguous", "offset", "transposed", "strided")


@dataclasses.dataclass(frozen=True)
class Form:
    """`target`: as in lossbridge.tools.bench.cells. `one_class`: whether rows of one class are taken."""

    name: str
    loss: str
    target: str
    options: Record
    one_class: bool = False


LOGITS = {"from_logits": True}
FORMS = (
    Form("labels", "sparse_categorical_crossentropy", "labels", LOGITS, one_class=True),
    Form("smoothed labels", "sparse_categorical_crossentropy", "labels", LOGITS | {"label_smoothing": 0.1}),
    Form("distributions", "categorical_crossentropy", "distributions", LOGITS, one_class=True),
    Form("weighted classes", "categorical_crossentropy", "distributions", LOGITS | {"class_weight": None}),
    Form("labels", "log_loss", "labels", LOGITS),
    Form("logits", "kl_divergence", "logits", LOGITS),
    Form("logits", "distillation_loss", "logits", {"temperature": 2.0}),
    Form("trials", "binary_crossentropy", "outcomes", LOGITS, one_class=True),
    Form("trials", "log_loss", "outcomes", LOGITS, one_class=True),
)
BEYOND_32_BITS = ("sparse_categorical_crossentropy", "kl_divergence", "binary_crossentropy")


def boundaries(card: Card) -> Iterator[Job]:
    yield from small_boundaries(card, VOCABULARIES)
    for form in FORMS:
        if card.huge and form.loss in BEYOND_32_BITS and "label_smoothing" not in form.options:
            yield huge(card, form)
    yield from small_boundaries(card, AGAIN)


def small_boundaries(card: Card, vocabularies: tuple[tuple[int, str], ...]) -> Iterator[Job]:
    for i, (classes, dtype) in enumerate(vocabularies):
        for k, form in enumerate(FORMS):
            if (classes == 1 and not form.one_class) or (card.rehearsal and classes > 1000):
                continue
            layout, label_dtype = LAYOUTS[(i + k) % 4], ("int64", "int32")[i % 2]
            name = f"{form.loss}/{form.name}, V = {classes}, {layout}"
            run = functools.partial(check_boundary, card, form, name, classes, dtype, layout, label_dtype)
            yield Job(name, run, dtype, (5, classes))


def boundary_case(form: Form, name: str, classes: int, dtype: str) -> Case:
    """Rows: the first class, the last, padding of −∞, one that is masked and holds NaN, a confident one."""
    rng = np.random.default_rng(classes)
    z, u = 3 * rng.normal(size=(2, 5, classes))
    labels = np.array([0, classes - 1, classes // 2, 0, classes // 3])
    z[4, labels[4]] += 20
    options: Record = {**form.options, "reduction": "none"}
    if "class_weight" in options:
        options["class_weight"] = rng.uniform(0.5, 2, classes).astype(np.float32)
    if form.target == "outcomes":
        u = np.where(rng.random(u.shape) < 0.5, u > 0, 1 / (1 + np.exp(-u)))
    elif form.target == "logits":
        u = z + 0.1 * u
    if classes > 1:
        padding = slice(classes - classes // 4, classes)
        z[2, padding] = -np.inf
        u[2, padding] = 0 if form.target == "outcomes" else -np.inf
        z[3], u[3], labels[3] = np.nan, np.nan, -7
        options |= {"mask": np.arange(5) != 3, "sample_weight": np.array([1, 2, 0.5, 3, 1], np.float32)}
    if form.target == "distributions":
        u = np.exp(u - u.max(1, keepdims=True))
        u /= u.sum(1, keepdims=True)
    y_true = labels.astype(np.int32) if form.target == "labels" else round_to(u, dtype)
    tolerance = usual_tolerance(form.loss, from_logits=True)
    return Case(name.split("/")[1], form.loss, y_true, round_to(z, dtype), options, dtype, tolerance)


def check_boundary(
    card: Card, form: Form, name: str, classes: int, dtype: str, layout: str, label_dtype: str
) -> Iterator[Record]:
    import torch

    b = FRAMEWORKS["torch"]()
    case = boundary_case(form, name, classes, dtype)
    arrays, static = check.placed(b, case, card.device)
    names = RECORDS[form.loss].names
    y_true, y_pred = arrays.pop(names.target), arrays.pop(names.pred)
    if form.target == "labels":
        y_true = y_true.to(getattr(torch, label_dtype))
    loss = getattr(lossbridge, form.loss)
    if classes == 1 and form.target in ("labels", "distributions"):
        record = RECORDS[form.loss]._replace(outcomes=1)  # the public function takes no softmax of one class
        loss = functools.partial(run, record)
    with kernels_taken(card.triton) as taken:
        value, gradient = lossbridge.value_and_grad(loss)(
            laid_out(y_true, layout), laid_out(y_pred, layout), **static, **arrays
        )
    dtypes = b.ops.dtype(value), b.ops.dtype(gradient)
    outcome = check.compare(case, "eager", b.to_numpy(value), [b.to_numpy(gradient)], dtypes, check.expected(case))
    yield with_kernel(judged(case, outcome), taken) if card.triton else judged(case, outcome)


def laid_out(x: Any, layout: str) -> Any:
    """The same numbers, otherwise in memory; what lies between them is no number, or no label."""
    if layout == "contiguous":
        return x
    if layout == "transposed":
        return x.T.contiguous().T if x.ndim == 2 else x
    nothing = float("nan") if x.is_floating_point() else -9
    if layout == "offset":
        view = x.new_full((*x.shape[:-1], x.shape[-1] + 3), nothing)[..., 3:]
    else:
        view = x.new_full([2 * size + 1 for size in x.shape], nothing)[(slice(1, None, 2),) * x.ndim]
    return view.copy_(x)


def huge(card: Card, form: Form) -> Job:
    """Arrays of more than 2³¹ elements, in bfloat16: rows at their ends, and about the 2³¹st."""
    limit, classes = (1 << 12, 61) if card.rehearsal else (1 << 31, 50_257)
    shape = (limit // classes + 2, classes)
    name = f"{form.loss}/{form.name}, more than {limit} elements"
    return Job(name, functools.partial(check_huge, card, form, name, shape), "bfloat16", shape)


def check_huge(card: Card, form: Form, name: str, shape: tuple[int, int]) -> Iterator[Record]:
    import torch

    b = FRAMEWORKS["torch"]()
    about = {"name": name, "dtype": "bfloat16", "shape": list(shape)}
    inputs = 1 if form.target == "labels" else 2
    needed = (inputs + 2) * shape[0] * shape[1] * 2  # the gradient, and as much for what the checks allot
    free = torch.cuda.mem_get_info()[0] if card.device == "cuda" else needed
    if free < needed:
        yield about | {"status": "skipped", "fault": f"needs {needed >> 30} GiB, and {free >> 30} GiB are free"}
        return
    target, pred = torch_inputs(card, form.target, shape, "bfloat16")
    options = form.options | {"reduction": "none"}
    with kernels_taken(card.triton) as taken:
        value, gradient = lossbridge.value_and_grad(getattr(lossbridge, form.loss))(target, pred, **options)
    some = [0, 1, shape[0] // 2, shape[0] - 2, shape[0] - 1]
    # Row by row: an index of several rows may itself count in 32 bits.
    y_true, y_pred, some_value, some_gradient = (
        b.to_numpy(torch.stack([x[row] for row in some])) for x in (target, pred, value, gradient)
    )
    case = Case(name, form.loss, y_true, y_pred, options, "bfloat16", usual_tolerance(form.loss, from_logits=True))
    dtypes = b.ops.dtype(value), b.ops.dtype(gradient)
    outcome = check.compare(case, "eager", some_value, [some_gradient], dtypes, check.expected(case))
    record = judged(case, outcome) | about
    yield with_kernel(record, taken) if card.triton else record
