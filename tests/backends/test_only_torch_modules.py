"""lossbridge.torch: PyTorch's names against torch.nn and 40 exact digits, and what users do with a module."""

from __future__ import annotations

import copy
import doctest
import inspect
import io
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lossbridge as lb
import lossbridge.torch as lt
from lossbridge.tools.parity.cases import LOSSES

EXAMPLES = Path(__file__).parents[2] / "examples"
PYTORCH = ("CrossEntropyLoss", "NLLLoss", "KLDivLoss", "BCELoss", "BCEWithLogitsLoss")
INPUT_FIRST = (*PYTORCH, "LinearCrossEntropyLoss")  # which holds its layer: test_only_torch_linear_module.py
KERAS = {
    "CategoricalCrossentropy": "categorical_crossentropy",
    "SparseCategoricalCrossentropy": "sparse_categorical_crossentropy",
    "BinaryCrossentropy": "binary_crossentropy",
    "KLDivergence": "kl_divergence",
    "LogLoss": "log_loss",
    "DistillationLoss": "distillation_loss",
    "Divergence": "divergence",
    "CategoricalFocalCrossentropy": "categorical_focal_crossentropy",
    "BinaryFocalCrossentropy": "binary_focal_crossentropy",
}


# PyTorch's names: against torch.nn, and against the exact value.


def exact(name, x, target, weight, pos_weight, options):
    """From the textbook, in mpmath numbers: the loss, its gradient for x, and the size of what the gradient is made of.

    The last is the sum of the terms that the gradient is the difference of, an exponential counting as often as its
    argument is large: what one rounding of float32 is measured against.
    """
    mp = mpmath.mp
    mp.dps = 40
    number = np.vectorize(mpmath.mpf, otypes=[object])
    log, exp = np.vectorize(mpmath.log, otypes=[object]), np.vectorize(mpmath.exp, otypes=[object])
    zero = mpmath.mpf(0)
    x = number(x.astype(float))
    if name in ("CrossEntropyLoss", "NLLLoss"):
        classes = x.shape[1]
        w = number(np.ones(classes) if weight is None else weight.astype(float)).reshape(-1, *[1] * (x.ndim - 2))
        smoothing = mpmath.mpf(options.get("label_smoothing", 0.0))
        if target.dtype.kind == "i":
            kept = target != options["ignore_index"]
            one_hot = np.moveaxis(np.arange(classes) == np.where(kept, target, 0)[..., None], -1, 1) & kept[:, None]
            t = number(one_hot.astype(float))
            mass = (w * t).sum() if weight is not None else mpmath.mpf(int(kept.sum()))
            t = t * (1 - smoothing) + kept[:, None] * (smoothing / classes)
        else:
            t = number(target.astype(float)) * (1 - smoothing) + smoothing / classes
            mass = mpmath.mpf(x.size // classes)
        a = w * t
        if name == "NLLLoss":
            each, slope, size = -(a * x).sum(1), -a, a
        else:
            p = exp(x) / exp(x).sum(1, keepdims=True)
            mean = p * a.sum(1, keepdims=True)
            each, slope, size = -(a * log(p)).sum(1), mean - a, mean * (1 - log(p)) + a
    elif name == "KLDivLoss":
        t = number(target.astype(float))
        t, log_t = (exp(t), t) if options["log_target"] else (t, log(np.where(t == 0, mpmath.mpf(1), t)))
        each, slope, size = np.where(t == 0, zero, t * (log_t - x)), -t, t
        mass = mpmath.mpf(x.shape[0] if options["reduction"] == "batchmean" else x.size)
    else:
        t = number(target.astype(float))
        w = np.broadcast_to(number(np.ones(()) if weight is None else weight.astype(float)), x.shape)
        q = np.broadcast_to(number(np.ones(()) if pos_weight is None else pos_weight.astype(float)), x.shape)
        p = 1 / (1 + exp(-x)) if name == "BCEWithLogitsLoss" else x
        each = -w * (q * t * log(p) + (1 - t) * log(1 - p))
        chain = w * (p * (1 - p) if name == "BCEWithLogitsLoss" else 1)
        slope, size = chain * ((1 - t) / (1 - p) - q * t / p), chain * ((1 - t) / (1 - p) + q * t / p)
        mass = mpmath.mpf(x.size)
    if options["reduction"] == "none":
        return each, slope, size
    if options["reduction"] == "sum":
        mass = mpmath.mpf(1)
    return np.array(each.sum() / mass, object), slope / mass, size / mass


def assert_as_good(ours, theirs, truth, size=None) -> None:
    """Within 4 units in the last place (of `size`, else of the value itself) of PyTorch's, or as near to the truth."""
    ours, theirs = ours.detach().double().numpy(), theirs.detach().double().numpy()
    assert ours.shape == theirs.shape == truth.shape
    size = np.maximum(np.abs(ours), np.abs(theirs)) if size is None else size.astype(float)
    near = np.abs(ours - theirs) <= 4 * np.spacing(size.astype(np.float32))
    for index in np.argwhere(~near):
        i = tuple(index)
        error, theirs_error = abs(mpmath.mpf(ours[i]) - truth[i]), abs(mpmath.mpf(theirs[i]) - truth[i])
        assert error <= theirs_error, f"at {i}: {ours[i]!r}, PyTorch {theirs[i]!r}, exact {mpmath.nstr(truth[i], 12)}"


@st.composite
def problems(draw, name):
    """(input, target, constructor's arguments), all of them as NumPy arrays and Python values."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size, classes = draw(st.integers(1, 5)), draw(st.integers(2, 5))
    shape = (size, classes, *draw(st.sampled_from([(), (2,), (2, 1)])))
    labels_shape = (size, *shape[2:])
    scale = draw(st.sampled_from([0.01, 1.0, 10.0, 25.0]))
    x = rng.normal(size=shape) * scale

    def distribution(scale: float = 2.0) -> np.ndarray:
        p = np.exp(rng.normal(size=shape) * scale)
        return p / p.sum(1, keepdims=True)

    options = {"reduction": draw(st.sampled_from(["mean", "sum", "none"]))}
    if name in ("CrossEntropyLoss", "NLLLoss"):
        target = rng.integers(0, classes, labels_shape)
        options["ignore_index"] = draw(st.sampled_from([-100, 0, -1]))
        if options["ignore_index"] < 0 and draw(st.booleans()):
            target.flat[0] = options["ignore_index"]
        if name == "CrossEntropyLoss":
            options["label_smoothing"] = draw(st.sampled_from([0.0, 0.1, 1.0]))
            if options["ignore_index"] < 0 and draw(st.booleans()):
                target = distribution().astype(np.float32)
        else:
            x = np.log(distribution(scale=min(scale, 10.0)))
        weight = draw(st.sampled_from([None, (classes,)]))
        if target.dtype.kind == "i" and (target == options["ignore_index"]).all():
            target.flat[0] = 1  # a mean of nothing is tested on its own
    elif name == "KLDivLoss":
        options["reduction"] = draw(st.sampled_from(["mean", "sum", "none", "batchmean"]))
        options["log_target"] = draw(st.booleans())
        p = distribution()
        near = draw(st.sampled_from([None, 1e-3, 1e-6]))
        target = distribution() if near is None else p * (1 + near * rng.normal(size=shape))
        x = np.log(p)
        if options["log_target"]:
            target = np.log(target)
        elif draw(st.booleans()):
            target.flat[0] = 0
        target = target.astype(np.float32)
        weight = None
    else:
        if name == "BCELoss":
            x = 1 / (1 + np.exp(-x / 2))
            x = np.clip(x, 1e-6, 1 - 1e-6)
        target = rng.random(shape) if draw(st.booleans()) else rng.integers(0, 2, shape)
        target = target.astype(np.float32)
        weight = draw(st.sampled_from([None, shape, shape[1:], shape[2:]]))
    arguments = {}
    if weight is not None:
        arguments["weight"] = (rng.random(weight) + 0.1).astype(np.float32)
    if name == "BCEWithLogitsLoss" and draw(st.booleans()):
        arguments["pos_weight"] = (rng.random((classes, *[1] * (len(shape) - 2))) * 3).astype(np.float32)
    return x.astype(np.float32), target, options, arguments


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides the total loss")  # PyTorch, of its KLDivLoss
@pytest.mark.parametrize("name", PYTORCH)
@given(data=st.data())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_replaces_the_class_of_torch(name, data) -> None:
    x, target, options, arrays = data.draw(problems(name))
    arguments = options | {key: torch.tensor(value) for key, value in arrays.items()}
    results = []
    for module in (lt, nn):
        leaf = torch.tensor(x, requires_grad=True)
        value = getattr(module, name)(**arguments)(leaf, torch.tensor(target))
        value.sum().backward()
        results.append((value, leaf.grad))
    value, slope, size = exact(name, x, target, arrays.get("weight"), arrays.get("pos_weight"), options)
    assert_as_good(results[0][0], results[1][0], value)
    assert_as_good(results[0][1], results[1][1], slope, size)
    assert results[0][0].dtype == results[1][0].dtype


@pytest.mark.parametrize("name", PYTORCH)
def test_constructor_and_state_are_those_of_torch(name) -> None:
    ours, theirs = getattr(lt, name), getattr(nn, name)
    assert issubclass(ours, theirs)
    signatures = [dict(inspect.signature(cls.__init__).parameters) for cls in (ours, theirs)]
    added = [name for name, p in signatures[0].items() if p.kind is p.KEYWORD_ONLY]
    assert added == (["inplace_gradient"] if name == "CrossEntropyLoss" else [])
    for option in added:
        assert signatures[0].pop(option).default is False
    assert list(signatures[0]) == list(signatures[1])
    assert [p.default for p in signatures[0].values()] == [p.default for p in signatures[1].values()]
    if "weight" in signatures[0]:
        loss = ours(torch.tensor([1.0, 2.0]))
        assert loss.state_dict().keys() == theirs(torch.tensor([1.0, 2.0])).state_dict().keys()
        loss.load_state_dict(theirs(torch.tensor([3.0, 4.0])).state_dict())
        assert loss.weight.tolist() == [3, 4]


@pytest.mark.filterwarnings("ignore:size_average and reduce args")
def test_the_old_arguments_still_mean_the_same() -> None:
    assert lt.CrossEntropyLoss(None, False).reduction == nn.CrossEntropyLoss(None, False).reduction == "sum"
    assert lt.BCELoss(reduce=False).reduction == "none"


def test_what_pytorch_gets_wrong() -> None:
    """The docstrings' figures."""
    lead = torch.arange(8.0, 31.0)
    logits, target = torch.stack([lead, torch.zeros_like(lead)], 1), torch.zeros(len(lead), dtype=torch.int64)
    assert (nn.CrossEntropyLoss(reduction="none")(logits, target) == 0).sum() >= len(lead) // 2
    ours = lt.CrossEntropyLoss(reduction="none")(logits, target)
    torch.testing.assert_close(ours.double(), torch.log1p(torch.exp(-lead.double())), rtol=2e-6, atol=0)

    nothing = torch.tensor([-100, -100])
    assert nn.CrossEntropyLoss()(torch.zeros(2, 3), nothing).isnan()
    assert lt.CrossEntropyLoss()(torch.zeros(2, 3), nothing) == 0
    assert lt.NLLLoss(torch.zeros(3))(torch.zeros(2, 3), torch.tensor([0, 1])) == 0
    assert lt.KLDivLoss(reduction="batchmean")(torch.zeros(0, 3), torch.zeros(0, 3)) == 0
    scalar = torch.tensor(-0.3), torch.tensor(0.5)
    assert lt.KLDivLoss(reduction="batchmean")(*scalar) == torch.nn.KLDivLoss(reduction="batchmean")(*scalar)

    assert nn.BCEWithLogitsLoss()(torch.tensor([-20.0]), torch.tensor([0.0])) == 0
    assert f"{lt.BCEWithLogitsLoss()(torch.tensor([-20.0]), torch.tensor([0.0])):.7e}" == "2.0611537e-09"

    t = torch.tensor([0.0, 1.0], requires_grad=True)
    lt.KLDivLoss(reduction="sum")(torch.tensor([0.5, 0.5]).log(), t).backward()
    assert t.grad.isfinite().all()


def test_half_precision_is_summed_in_float32() -> None:
    logits = torch.zeros(1, 50_000).to(torch.bfloat16)
    logits[0, 0] = 2
    assert f"{nn.CrossEntropyLoss()(logits, torch.tensor([1])):.4f}" != f"{np.log(49_999 + np.exp(2)):.4f}"
    ours = lt.CrossEntropyLoss()(logits, torch.tensor([1]))
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours, np.log(49_999 + np.exp(2)), rtol=1e-6)
    ones = torch.full((70_000,), -1.0).half()
    assert lt.NLLLoss()(torch.stack([ones, ones], 1), torch.zeros(70_000, dtype=torch.int64)) == 1


@pytest.mark.parametrize("p", [0.0, 1e-45, 1e-30, 1e-12, 1e-8, 1 - 2**-24, 1.0])
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_bce_at_its_bounds(p, t) -> None:
    """PyTorch's floor of −100 and steepest slope of 1e12; where it lets a true gradient vanish, ours stays."""
    leaf, target = torch.tensor([p], requires_grad=True), torch.tensor([t])
    (theirs,) = torch.autograd.grad(nn.BCELoss()(leaf, target), leaf)
    value = lt.BCELoss()(leaf, target)
    (ours,) = torch.autograd.grad(value, leaf)
    torch.testing.assert_close(value, nn.BCELoss()(leaf, target), rtol=1e-6, atol=2e-45)
    if t == 0 and p < 1e-12:
        assert ours == 1
    elif t == 1 and p == 1:
        assert ours == -1
    else:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2)


@pytest.mark.parametrize("name", PYTORCH)
def test_normalizer_is_the_denominator_of_a_mean(name) -> None:
    target = torch.tensor([0, 1]) if name in ("CrossEntropyLoss", "NLLLoss") else torch.tensor([[0.5, 0.5], [0.9, 0.1]])
    x = torch.tensor([[0.3, 0.7], [0.6, 0.4]])
    sum_ = getattr(lt, name)(reduction="sum")(x, target)
    assert getattr(lt, name)()(x, target, normalizer=10) == sum_ / 10
    assert getattr(lt, name)()(x, target, normalizer=torch.tensor(10)) == sum_ / 10
    with pytest.raises(ValueError, match="normalizer is the denominator of a mean"):
        getattr(lt, name)(reduction="sum")(x, target, normalizer=10)


# Both families.

CONSTRUCTORS = {
    "CrossEntropyLoss": lambda: lt.CrossEntropyLoss(torch.tensor([1.0, 2.0, 5.0]), label_smoothing=0.1),
    "CrossEntropyLoss of probabilities": lambda: lt.CrossEntropyLoss(torch.tensor([1.0, 2.0, 5.0])),
    "LinearCrossEntropyLoss": lambda: lt.LinearCrossEntropyLoss(
        3, 3, bias=True, weight=torch.tensor([1.0, 2.0, 5.0]), ignore_index=-100
    ),
    "NLLLoss": lambda: lt.NLLLoss(torch.tensor([1.0, 2.0, 5.0])),
    "KLDivLoss": lambda: lt.KLDivLoss(reduction="batchmean"),
    "BCELoss": lambda: lt.BCELoss(torch.tensor([1.0, 2.0, 5.0])),
    "BCEWithLogitsLoss": lambda: lt.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 5.0])),
    "CategoricalCrossentropy": lambda: lt.CategoricalCrossentropy(class_weight=[1.0, 2.0, 5.0]),
    "SparseCategoricalCrossentropy": lambda: lt.SparseCategoricalCrossentropy(True, class_weight=[1.0, 2.0, 5.0]),
    "BinaryCrossentropy": lambda: lt.BinaryCrossentropy(pos_weight=[1.0, 2.0, 5.0]),
    "KLDivergence": lambda: lt.KLDivergence(epsilon=1e-3),
    "LogLoss": lambda: lt.LogLoss(epsilon=1e-3),
    "DistillationLoss": lambda: lt.DistillationLoss(2.0),
    "Divergence": lambda: lt.Divergence("jensen_shannon", beta=0.25),
    "CategoricalFocalCrossentropy": lambda: lt.CategoricalFocalCrossentropy([0.1, 0.2, 0.7]),
    "BinaryFocalCrossentropy": lambda: lt.BinaryFocalCrossentropy(gamma=1.0),
}
INTEGER_TARGETS = ("CrossEntropyLoss", "LinearCrossEntropyLoss", "NLLLoss", "SparseCategoricalCrossentropy")


def arguments(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """In the order of the class; predictions are probabilities, which are fit for logits too."""
    generator = torch.Generator().manual_seed(0)
    pred = torch.softmax(torch.randn(4, 3, generator=generator), -1)
    target = torch.tensor([0, 2, 1, 1]) if name in INTEGER_TARGETS else torch.softmax(pred.roll(1, 0) * 3, -1)
    return (pred, target) if name.split()[0] in INPUT_FIRST else (target, pred)


every_class = pytest.mark.parametrize("name", CONSTRUCTORS)


def test_examples_in_docstrings() -> None:
    failed, tried = doctest.testmod(lt)
    assert tried > len(CONSTRUCTORS)
    assert failed == 0


def test_every_class_is_here() -> None:
    assert {name.split()[0] for name in CONSTRUCTORS} == {name for name in lt.__all__ if name != "causal_lm_loss"}
    assert set(KERAS.values()) == set(LOSSES)


@pytest.mark.parametrize(("name", "function"), KERAS.items())
def test_keras_names_have_every_option_of_the_function(name, function) -> None:
    at_the_call = ["sample_weight", "mask", "normalizer"]
    takes = inspect.signature(getattr(lb, function)).parameters
    has = inspect.signature(getattr(lt, name)).parameters
    assert set(has) == set(list(takes)[2:]) - set(at_the_call)
    assert {key: p.default for key, p in has.items()} == {key: takes[key].default for key in has}
    assert list(inspect.signature(getattr(lt, name).forward).parameters)[3:] == at_the_call


@pytest.mark.parametrize(("name", "function"), KERAS.items())
def test_keras_names_are_the_functions(name, function) -> None:
    loss, (target, pred) = CONSTRUCTORS[name](), arguments(name)
    options = {key: getattr(loss, key) for key in inspect.signature(type(loss)).parameters}
    weights = (4, 3) if name == "LogLoss" else (4,)
    at_the_call = {"sample_weight": torch.rand(weights), "mask": torch.ones(weights) > 0, "normalizer": 7}
    torch.testing.assert_close(
        loss(target, pred, **at_the_call), getattr(lb, function)(target, pred, **options, **at_the_call)
    )


@every_class
def test_pickled_copied_and_moved(name) -> None:
    loss, pair = CONSTRUCTORS[name](), arguments(name)
    expected = loss(*pair)
    assert torch.equal(pickle.loads(pickle.dumps(loss))(*pair), expected)
    assert torch.equal(copy.deepcopy(loss)(*pair), expected)
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    other = CONSTRUCTORS[name]()
    for buffer in other.buffers():
        buffer.zero_()
    other.load_state_dict(torch.load(file))
    assert torch.equal(other(*pair), expected)
    assert all(buffer.device.type == "meta" for buffer in loss.to("meta").buffers())
    on_meta = loss(*(x.to("meta") for x in pair))
    assert on_meta.shape == ()
    assert on_meta.device.type == "meta"


def test_repr_tells_what_was_set() -> None:
    assert repr(lt.CrossEntropyLoss()) == "CrossEntropyLoss(reduction='mean')"
    shown = repr(CONSTRUCTORS["CrossEntropyLoss"]())
    assert shown == "CrossEntropyLoss(weight=tensor of shape (3,), reduction='mean', label_smoothing=0.1)"
    assert repr(lt.DistillationLoss(2.0)) == "DistillationLoss(temperature=2.0, reduction='sum_over_batch_size')"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name.split()[0] in INPUT_FIRST else [pytest.mark.exhaustive])
        for name in CONSTRUCTORS  # Keras' names are the functions, which test_cases.py compiles
    ],
)
def test_compiled(name) -> None:
    loss, pair = CONSTRUCTORS[name](), arguments(name)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(loss, fullgraph=True)(*pair), loss(*pair))


@every_class
def test_exported_and_vmapped(name) -> None:
    loss, pair = CONSTRUCTORS[name](), arguments(name)
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(loss, pair, dynamic_shapes=({0: batch}, {0: batch}))
    for part in (pair, [x[:3] for x in pair]):
        torch.testing.assert_close(exported.module()(*part), loss(*part))
    each = torch.vmap(lambda a, b: loss(a[None], b[None]))(*pair)
    assert each.shape == (4,)
    at = 0 if name.split()[0] in INPUT_FIRST else 1
    slope = torch.func.grad(loss, argnums=at)(*pair)
    leaves = [x.clone().requires_grad_() if i == at else x for i, x in enumerate(pair)]
    loss(*leaves).backward()
    torch.testing.assert_close(slope, leaves[at].grad)


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "KLDivLoss", "BCEWithLogitsLoss", "CategoricalCrossentropy"])
def test_new_normalizers_and_sizes_do_not_compile_anew(name) -> None:
    """torch.compile gives up after 8 versions of one function."""
    loss, pair = CONSTRUCTORS[name](), arguments(name)
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    for n in range(2, 14):
        part = [x.repeat_interleave(4, 0)[:n] for x in pair]
        torch.testing.assert_close(compiled(*part, normalizer=n), loss(*part, normalizer=n))
        torch.testing.assert_close(compiled(*part), loss(*part))


def test_compiles_where_the_size_depends_on_data() -> None:
    loss, (x, t) = lt.BCEWithLogitsLoss(), arguments("BCEWithLogitsLoss")
    torch.compiler.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(lambda x, t, m: loss(x[m], t[m]), fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x, t, t > 0.3), loss(x[t > 0.3], t[t > 0.3]))


def test_one_class_is_certain() -> None:
    x, target = torch.randn(3, 1, generator=torch.Generator().manual_seed(0)), torch.zeros(3, dtype=torch.int64)
    assert lt.CrossEntropyLoss()(x, target) == nn.CrossEntropyLoss()(x, target) == 0
    assert lt.CrossEntropyLoss()(x, torch.ones(3, 1)) == 0
    torch.testing.assert_close(lt.NLLLoss()(x, target), nn.NLLLoss()(x, target))


def test_certain_classes_and_weights_of_zero() -> None:
    """Where PyTorch multiplies an infinity by 0."""
    inf = float("inf")
    x, target = torch.tensor([[-inf, -0.5]], requires_grad=True), torch.tensor([0])
    value = lt.NLLLoss(torch.tensor([0.0, 1.0]), reduction="sum")(x, target)
    (slope,) = torch.autograd.grad(value, x)
    assert value == 0
    assert slope.isfinite().all()
    value = lt.KLDivLoss(reduction="sum")(x, torch.tensor([[0.0, 1.0]]))
    (slope,) = torch.autograd.grad(value, x)
    assert (value, slope.tolist()) == (0.5, [[0, -1]])
    assert lt.KLDivLoss(reduction="sum", log_target=True)(x, torch.tensor([[-inf, 0.0]])) == 0.5


def test_bad_labels_are_nan_where_they_cannot_be_read() -> None:
    torch.compiler.reset()
    x = torch.zeros(3, 2)
    for loss in (lt.NLLLoss(reduction="none"), lt.CrossEntropyLoss(reduction="none")):
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        assert compiled(x, torch.tensor([0, 2, -1])).isnan().tolist() == [False, True, True]


def test_a_weight_that_learns() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0, 5.0]))
    x, target = arguments("CrossEntropyLoss")
    for value in (
        lt.CrossEntropyLoss(weight)(x, target),
        lt.LinearCrossEntropyLoss(3, 3, weight=weight)(x, target),
        lt.SparseCategoricalCrossentropy(class_weight=weight)(target, x),
    ):
        (slope,) = torch.autograd.grad(value, weight)
        assert slope.abs().sum() > 0


@every_class
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(name, dtype) -> None:
    """The layers compute in half precision, the loss does not."""
    loss, pair = CONSTRUCTORS[name](), arguments(name)
    at = 0 if name.split()[0] in INPUT_FIRST else 1
    layer = nn.Linear(3, 3)
    with torch.autocast("cpu", dtype=dtype):
        pred = torch.softmax(layer(pair[at]), -1).to(dtype)
        got = loss(*(pred if i == at else x for i, x in enumerate(pair)))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, loss(*(pred.float() if i == at else x for i, x in enumerate(pair))))
    got.backward()
    assert layer.weight.grad.isfinite().all()


@every_class
def test_nothing_of_the_callers_is_changed(name) -> None:
    loss, pair = CONSTRUCTORS[name](), arguments(name)
    before = [x.clone() for x in (*pair, *loss.buffers())]
    loss(*pair)
    loss(*pair)
    for x, was in zip((*pair, *loss.buffers()), before, strict=True):
        assert torch.equal(x, was)


@every_class
@pytest.mark.parametrize("steps", [[1, 3], [2, 1, 1]])
def test_accumulated_step_equals_that_of_the_full_batch(name, steps) -> None:
    loss, pair = CONSTRUCTORS[name]().double(), arguments(name)
    at = 0 if name.split()[0] in INPUT_FIRST else 1
    if name in INTEGER_TARGETS:
        ignored = getattr(loss, "ignore_index", -100)
        loss.ignore_class = ignored
        pair = tuple(torch.tensor([ignored, 2, 1, ignored]) if i != at else x for i, x in enumerate(pair))
    leaf = pair[at].clone().double().requires_grad_()
    pair = [leaf if i == at else x for i, x in enumerate(pair)]
    full = loss(*pair)
    (expected,) = torch.autograd.grad(full, leaf)
    reduction, loss.reduction = loss.reduction, "sum"
    total = float((loss(*pair) / full).detach())  # what the mean of all divides by
    loss.reduction = reduction
    for part in zip(*(x.split(steps) for x in pair), strict=True):
        loss(*part, normalizer=total).backward()
    torch.testing.assert_close(leaf.grad, expected)


# Misuse.


@every_class
def test_swapped_arguments(name) -> None:
    loss, (first, second) = CONSTRUCTORS[name](), arguments(name)
    at = 0 if name.split()[0] in INPUT_FIRST else 1
    target, pred = (first, second)[1 - at], (first, second)[at].clone().requires_grad_()
    swapped = (target, pred) if at == 0 else (pred, target)
    if name == "KLDivLoss":  # KL(q ‖ p) is fitted for q
        loss(*swapped).backward()
        return
    words = "dtype int64, and logits and probabilities are" if name in INTEGER_TARGETS else "the arguments are swapped"
    with pytest.raises((TypeError, ValueError), match=words):
        loss(*swapped)
    if name not in INTEGER_TARGETS:
        with torch.no_grad():
            loss(*swapped)  # nothing learns
        loss(*(x.clone().requires_grad_() for x in swapped))  # both may


@every_class
def test_integer_predictions(name) -> None:
    loss, pair = CONSTRUCTORS[name](), arguments(name)
    at = 0 if name.split()[0] in INPUT_FIRST else 1
    with pytest.raises(TypeError, match=r"int64.*floating-point"):
        loss(*(x.long() if i == at else x for i, x in enumerate(pair)))


@every_class
def test_no_tensor(name) -> None:
    loss, pair = CONSTRUCTORS[name](), arguments(name)
    with pytest.raises(TypeError, match=rf"lossbridge.torch.{name.split()[0]} takes torch tensors.*numpy.ndarray"):
        loss(*(x.numpy() for x in pair))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: lt.CrossEntropyLoss(reduction="sum_over_batch_size"), "Keras' name; here it is 'mean'"),
        (lambda: lt.CrossEntropyLoss(reduction="batchmean"), "KLDivLoss' name; here it is 'mean'"),
        *[(lambda name=name: getattr(lt, name)(reduction=None), "Keras' name; here it is 'none'") for name in PYTORCH],
        (lambda: lt.BCELoss(reduction="elementwise_mean"), "old PyTorch's name; here it is 'mean'"),
        (lambda: lt.KLDivLoss(log_target="yes"), "log_target is 'yes'; pass True or False"),
        (lambda: lt.CrossEntropyLoss(ignore_index="pad"), "ignore_index is str; pass an integer"),
        (lambda: lt.SparseCategoricalCrossentropy(ignore_class=0.5), "ignore_class is float; pass an integer"),
        (lambda: lt.CategoricalCrossentropy(from_logits="yes"), "from_logits is 'yes'; pass True or False"),
        (lambda: lt.CategoricalCrossentropy(axis="last"), "axis is str; pass one integer"),
        (lambda: lt.CategoricalCrossentropy(epsilon=2.0), "epsilon is 2.0"),
        (lambda: lt.DistillationLoss(0.0), "temperature is 0.0"),
        (lambda: lt.BinaryFocalCrossentropy(gamma=-1.0), "gamma is -1.0"),
        (lambda: lt.BinaryFocalCrossentropy(alpha=2.0), "alpha is 2.0; pass a number in"),
        (lambda: lt.CategoricalFocalCrossentropy(None), "alpha is None"),
        (lambda: lt.CategoricalCrossentropy(class_weight={0: 1.0}), "class_weight is dict of no numbers"),
        (lambda: lt.CrossEntropyLoss(ignore_index=0)(torch.zeros(1, 3), torch.ones(1, 3)), "ignore_index=0 is for"),
        (lambda: lt.CrossEntropyLoss()(torch.zeros(4, 3), torch.ones(4)), "classes are integers; convert them"),
        (lambda: lt.CrossEntropyLoss()(torch.zeros(4, 5, 3), torch.ones(4, 5).long()), r"input.movedim\(-1, 1\)"),
        (lambda: lt.BCELoss()(torch.tensor([0.5, -0.5]), torch.ones(2)), "input holds -0.5 at index 1"),
        (lambda: lt.BCELoss()(torch.ones(2), torch.tensor([0.5, -1.0])), "target holds -1.0 at index 1"),
        (lambda: lt.BCELoss(torch.ones(1, 2))(torch.zeros(2), torch.ones(2)), "does not broadcast to input's"),
        (lambda: lt.causal_lm_loss(torch.zeros(1, 3, 5), None), "labels is None"),
        (
            lambda: lt.causal_lm_loss(torch.zeros(1, 3, 5), torch.zeros(1, 3).long(), bias=torch.zeros(5)),
            "bias is of the head that hidden= goes through",
        ),
        (lambda: lt.causal_lm_loss(labels=torch.zeros(1, 3).long()), "pass outputs, which hold the logits; or hidden="),
        (lambda: lt.causal_lm_loss(labels=None, hidden=torch.zeros(1, 3, 5)), "hidden= and weight=, without outputs"),
        (
            lambda: lt.causal_lm_loss(
                labels=torch.zeros(1, 3).long(), hidden=torch.zeros(1, 3, 5), weight=torch.zeros(5, 7)
            ),
            "hidden has shape .* and weight .*pass classes_axis=1",
        ),
        (lambda: lt.causal_lm_loss(torch.zeros(1, 3, 5).long(), torch.zeros(1, 3).long()), "outputs has dtype int64"),
        (lambda: lt.causal_lm_loss(torch.zeros(1, 3, 5), [[1, 2, 3]]), "labels is builtins.list; pass a tensor of"),
        (lambda: lt.causal_lm_loss({"loss": 1}, torch.zeros(1, 3).long()), "outputs is builtins.dict; pass logits"),
        (lambda: lt.causal_lm_loss(3, torch.zeros(1, 3).long()), "outputs is builtins.int; pass logits"),
        (
            lambda: lt.causal_lm_loss(labels=torch.zeros(1, 3).long(), hidden=[[[0.0]]] * 3, weight=torch.zeros(5, 1)),
            "hidden is builtins.list; pass a tensor",
        ),
        (lambda: lt.KLDivLoss(reduction="average"), "unknown reduction 'average'.*'batchmean'"),
        (lambda: lt.KLDivergence("batchmean"), "PyTorch's name; here it is 'sum_over_batch_size'"),
        (lambda: lt.CategoricalCrossentropy(label_smoothing=1.5), "label_smoothing is 1.5"),
        (lambda: lt.CrossEntropyLoss(label_smoothing=1.5), "label_smoothing is 1.5"),
        (lambda: lt.CrossEntropyLoss(torch.ones(2))(torch.zeros(1, 3), torch.tensor([0])), "weight has shape \\(2,\\)"),
        (lambda: lt.CrossEntropyLoss(ignore_index=1)(torch.zeros(1, 3), torch.ones(1, 3)), "ignore_index=1 is for"),
        (lambda: lt.CrossEntropyLoss()(torch.zeros(1, 3), torch.tensor([3])), "label 3 at index 0.*ignore_index="),
        (lambda: lt.BCELoss(torch.ones(2))(torch.zeros(2, 3), torch.ones(2, 3)), "does not broadcast to input's"),
        (lambda: lt.BCELoss()(torch.tensor([0.5, 1.5]), torch.ones(2)), "input holds 1.5 at index 1.*BCEWithLogits"),
        (lambda: lt.BCELoss()(torch.zeros(4, 1), torch.ones(4)), "nothing is broadcast"),
        (lambda: lt.CrossEntropyLoss()(torch.zeros(2, 3), torch.zeros(2, 3).long()), "convert them, or pass classes"),
        (lambda: lt.NLLLoss()(torch.zeros(2, 3), torch.zeros(2, 3)), "target has shape"),
    ],
)
def test_errors(call, words) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        call()


def test_bce_outside_its_range_is_nan_where_it_cannot_be_read() -> None:
    torch.compiler.reset()
    compiled = torch.compile(lt.BCELoss(reduction="none"), fullgraph=True)
    assert compiled(torch.tensor([0.5, 1.5, -0.5]), torch.ones(3)).isnan().tolist() == [False, True, True]


@pytest.mark.parametrize(
    "keras_backend", ["torch", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("tensorflow", "jax"))]
)
def test_keras_refuses_a_module(keras_backend) -> None:
    """In a process of its own: Keras runs on one backend."""
    program = f"""
import os, sys
os.environ |= {{"KERAS_BACKEND": {keras_backend!r}, "TF_CPP_MIN_LOG_LEVEL": "3"}}
import numpy as np, keras, lossbridge.torch as lt
for loss, twin in ((lt.CategoricalCrossentropy(), "lossbridge.keras.CategoricalCrossentropy"),
                   (lt.CrossEntropyLoss(), "a loss of lossbridge.keras")):
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
    model.compile("sgd", loss)
    try:
        model.fit(np.ones((2, 3)), np.ones((2, 2)), verbose=0)
    except TypeError as error:
        assert f"use {{twin}}" in str(error), error
    else:
        sys.exit("no error")
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


# Language models, and data parallelism.


def test_causal_lm_loss() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    labels[0, 3:] = -100
    expected = nn.functional.cross_entropy(logits[:, :-1].reshape(-1, 7), labels[:, 1:].reshape(-1))

    class Output:
        def __init__(self) -> None:
            self.logits = logits

    for outputs in (logits, {"logits": logits}, (logits, None), Output()):
        torch.testing.assert_close(lt.causal_lm_loss(outputs, labels), expected)
    # Trainer counts over the accumulated micro-batches, and passes a tensor.
    for count in (torch.tensor(12), torch.tensor([12]), torch.tensor([12, 12])):  # the last two: several devices
        torch.testing.assert_close(lt.causal_lm_loss(logits, labels, count), expected * 6 / 12)
    parts = [lt.causal_lm_loss(logits[i : i + 1], labels[i : i + 1], num_items_in_batch=6) for i in (0, 1)]
    torch.testing.assert_close(sum(parts), expected)


def test_causal_lm_loss_of_unsigned_labels_and_of_no_tokens() -> None:
    logits, labels = (
        torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)),
        torch.arange(10).reshape(2, 5) % 7,
    )
    torch.testing.assert_close(lt.causal_lm_loss(logits, labels.to(torch.uint8)), lt.causal_lm_loss(logits, labels))
    assert lt.causal_lm_loss(logits[:, :0], labels[:, :0]) == 0


@pytest.mark.parametrize("options", [{}, {"softcap": 3.0, "logit_scale": 0.5}])
def test_causal_lm_loss_of_hidden_states(options) -> None:
    """That of the logits which the head would make, with the gradients for hidden states and head."""
    torch.manual_seed(0)
    hidden, head = torch.randn(2, 5, 4, requires_grad=True), nn.Linear(4, 7)
    labels = torch.randint(7, (2, 5))
    labels[0, 3:] = -100
    inputs = (hidden, head.weight, head.bias)
    for count in (None, 12, torch.tensor([12, 12])):
        given = {"num_items_in_batch": count, **options}
        expected = lt.causal_lm_loss(head(hidden), labels, **given)
        found = lt.causal_lm_loss(labels=labels, hidden=hidden, weight=head.weight, bias=head.bias, **given)
        torch.testing.assert_close(found, expected)
        for ours, theirs in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
            torch.testing.assert_close(ours, theirs)


def printed_by_two_processes(example: str) -> list[str]:
    """By those that torchrun would start, without its agent, and over the loopback interface alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        place["GLOO_SOCKET_IFNAME"] = "lo"
    command = [sys.executable, str(EXAMPLES / example)]
    processes = [
        subprocess.Popen(
            command,
            env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors for _, errors in said)
    return [output for output, _ in said]


def numbers_at_the_ends(output: str) -> list[float]:
    return [float(line.split()[-1]) for line in output.splitlines()]


def test_data_parallel_over_two_processes() -> None:
    right, wrong = numbers_at_the_ends(printed_by_two_processes("torch_data_parallel.py")[0])
    assert right < 1e-12
    assert wrong > 0.1


def test_the_vocabulary_split_over_two_processes() -> None:
    for output in printed_by_two_processes("torch_split_vocabulary.py"):
        differences = numbers_at_the_ends(output)
        assert len(differences) == 3
        assert max(differences) < 1e-12
