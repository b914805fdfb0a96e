"""Which path computes a call: for every form of every loss, in every situation that a framework's if-chain tells apart.

The table says what is expected; each cell is a test that this path ran and no other, and that `lb.explain` says so.
A kernel or path that is taken away, or that no cell takes, fails a test here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import lossbridge as lb
from lossbridge.compat import keras as compat_keras
from lossbridge.compat import optax as compat_optax
from lossbridge.compat import scipy as compat_scipy
from lossbridge.compat import sklearn as compat_sklearn
from lossbridge.compat import torch as compat_torch
from lossbridge.frameworks import FRAMEWORKS
from lossbridge.native import rows
from lossbridge.spec import LOSSES


@dataclass(frozen=True)
class Form:
    """A loss of one kind of target and predictions."""

    loss: str
    target: str
    logits: bool
    smoothed: bool = False
    kind: str = ""

    @property
    def name(self) -> str:
        kind = "logits" if self.logits else "probabilities"
        return ", ".join(filter(None, (self.loss, self.kind, self.target, kind, "smoothed" * self.smoothed)))

    @property
    def rule(self) -> Any:
        loss = LOSSES[self.loss]
        return (
            loss.kinds[self.kind]
            if self.kind
            else loss.rules["logits" if self.logits else "probabilities"][self.target]
        )

    @property
    def options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"label_smoothing": 0.1} if self.smoothed else {}
        if "from_logits" in LOSSES[self.loss].options:
            options["from_logits"] = self.logits
        return options | ({"kind": self.kind} if self.kind else {})


def forms() -> Iterator[Form]:
    """From the registry: a new loss is here because it exists."""
    for loss in LOSSES.values():
        for kind, rules in loss.rules.items():
            for target in rules:
                # "reverse" is the rule of "forward" with the sides exchanged, and so with the other's gradients.
                for of_loss in [x for x in loss.kinds if x != "reverse"] or [""]:
                    yield Form(loss.name, target, kind == "logits", kind=of_loss)
                if target == "labels" and "label_smoothing" in loss.options:
                    yield Form(loss.name, target, kind == "logits", smoothed=True)


FORMS = {form.name: form for form in forms()}


def arrays(form: Form, rows: int, classes: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    z, other = rng.normal(size=(2, rows, classes))
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (z, other))
    pred = (z if form.logits else p).astype(dtype)
    if form.target == "labels":
        return rng.integers(0, classes, rows), pred
    return {"distributions": q, "outcomes": q, "logits": other}[form.target].astype(dtype), pred


# Situations: the size and dtype of the arrays, and how the loss is called.

SMALL, LARGE = (32, 10), (700, 1000)


@dataclass(frozen=True)
class Situation:
    shape: tuple[int, int] = SMALL
    dtype: str = "float32"
    how: str = "eager"  # or a compiler's name, or what CALLS has
    under: str = ""  # for lb.explain, where it can be asked
    explained: bool = True


def by_rule(form: Form) -> str:
    return "rule" if form.rule.gradients else "formula"


# The rules that the native rows compute: written out, so that one that is taken away is missed. All that losses have.
IN_ROWS = (
    *("softmax of labels", "softmax of distributions", "probabilities of labels", "probabilities of distributions"),
    *("log loss of labels", "focal softmax", "focal probabilities"),
    *("Bernoulli of logits", "Bernoulli of probabilities"),
    *("focal Bernoulli of logits", "focal Bernoulli of probabilities"),
    *("divergence of logits", "divergence of probabilities"),
    *("Jensen-Shannon divergence of logits", "total variation of logits"),
)
# What else they compute is no loss, and is missed by tests/core/test_same_bits.py.
MASSES = "class weight of labels", "class weight of distributions"
ROWS_DIFFERENTIATE_THE_TARGET = (
    *("softmax of distributions", "Bernoulli of logits", "Bernoulli of probabilities"),
    *("divergence of logits", "divergence of probabilities"),
    *("Jensen-Shannon divergence of logits", "total variation of logits"),
)


def in_rows(form: Form, situation: str) -> bool:
    rules = ROWS_DIFFERENTIATE_THE_TARGET if situation == "target" else IN_ROWS
    return form.rule.name in rules and not rows.MISSING


def on_numpy(form: Form, situation: str) -> str:
    return "rows" if in_rows(form, situation) and situation != "weight" else by_rule(form)


def on_torch(form: Form, situation: str) -> str:
    if situation in ("functorch", "forward"):
        return "formula"
    return "rows" if in_rows(form, situation) and situation != "compile" else by_rule(form)


def on_tensorflow(form: Form, situation: str) -> str:
    if situation == "eager":
        return "numpy"
    if situation == "forward":
        return "formula"
    return "xla" if situation == "large function" and form.rule.gradients else by_rule(form)


def on_jax(form: Form, situation: str) -> str:
    """What is differentiated is known later: the rows' derivative for a target may be that of the formula."""
    return "rows" if in_rows(form, "eager") and situation != "explicit" else by_rule(form)


TABLE: dict[str, tuple[Callable[[Form, str], str], dict[str, Situation]]] = {
    "numpy": (
        on_numpy,
        {
            "eager": Situation(),
            "large": Situation(LARGE),
            "float64": Situation(dtype="float64"),
            "target": Situation(how="target", explained=False),
            "weight": Situation(how="weight", explained=False),
        },
    ),
    "torch": (
        on_torch,
        {
            "eager": Situation(),
            "large": Situation(LARGE),
            "float64": Situation(dtype="float64"),
            "target": Situation(how="target", explained=False),
            "compile": Situation(how="compile", under="compile"),
            "large compile": Situation(LARGE, how="compile", under="compile"),
            "functorch": Situation(how="functorch", explained=False),
            "forward": Situation(how="forward", explained=False),
        },
    ),
    "tensorflow": (
        on_tensorflow,
        {
            "eager": Situation(),
            "target": Situation(how="target", explained=False),
            "function": Situation(how="function", under="function"),
            "large function": Situation(LARGE, how="function", under="function"),
            "forward": Situation(how="forward", explained=False),
        },
    ),
    "jax": (
        on_jax,
        {
            "eager": Situation(),
            "jit": Situation(how="jit", under="jit"),
            "target": Situation(how="target", explained=False),
            "explicit": Situation(how="explicit"),
        },
    ),
}


# Watching.


@pytest.fixture
def taken(lib, monkeypatch) -> list[tuple[str, str]]:
    """The paths that ran, and their rules. Under torch.compile a plain list is what can be watched."""
    found: list[tuple[str, str]] = []
    framework = lib.framework

    def watched(name: str, function: Any) -> Any:
        def call(r: Any) -> Any:
            found.append((name, r.rule.name))
            return function(r)

        return None if function is None else call

    paths = {
        name: path._replace(losses=watched(name, path.losses), ratio=watched(name, path.ratio))
        for name, path in framework.PATHS.items()
    }
    monkeypatch.setattr(framework, "PATHS", paths)
    return found


def called(lib, form: Form, situation: Situation) -> None:
    """The loss and its gradient, in this situation."""
    target, pred = arrays(form, *situation.shape, situation.dtype)
    loss = functools.partial(getattr(lb, form.loss), **form.options)
    with lib.b.scope(situation.dtype, "cpu"):
        target = lib.array(target, "int32" if target.dtype.kind == "i" and lib.b.name != "torch" else None)
        if form.target != "labels":
            target = lib.array(np.asarray(target), situation.dtype)
        elif lib.b.name == "torch":
            target = lib.b.place(np.asarray(target), "int64", "cpu")
        pred = placed(lib.array(pred, situation.dtype), situation)
        if situation.how == "target":
            lib.b.value_and_grad(lambda t: loss(t, pred), target)
        elif situation.how == "weight":
            lib.b.value_and_grad(
                lambda w: loss(target, pred, sample_weight=w), lib.array(np.ones(len(pred)), "float32")
            )
        elif situation.how == "functorch":
            import torch

            torch.func.grad(lambda p: loss(target, p))(pred)
        elif situation.how == "forward":
            forward_mode(lib.b.name, lambda p: loss(target, p), pred)
        elif situation.how in ("eager", "explicit"):
            lb.value_and_grad(loss)(target, pred)
        else:
            lib.b.compilers()[situation.how](lb.value_and_grad(loss) if lib.b.name != "torch" else loss)(target, pred)


def placed(pred: Any, situation: Situation) -> Any:
    """In the situation "explicit", an array of JAX whose type says how it is split over devices."""
    if situation.how != "explicit":
        return pred
    import jax

    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    return jax.device_put(pred, jax.NamedSharding(mesh, jax.sharding.PartitionSpec("x")))


def forward_mode(framework: str, function: Callable[[Any], Any], x: Any) -> None:
    if framework == "torch":
        from torch.autograd import forward_ad

        with forward_ad.dual_level():
            function(forward_ad.make_dual(x, x.clone()))
    else:
        import tensorflow as tf

        with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)):
            function(x)


def cells(framework: str) -> Iterator[tuple[str, str, str]]:
    """Form, situation, expected path. PyTorch compiles only where a C++ compiler is."""
    expected, situations = TABLE[framework]
    compilers = FRAMEWORKS[framework]().compilers()
    for name, form in FORMS.items():
        for situation, how in situations.items():
            if how.under in ("", *compilers) and not (how.how == "target" and form.target == "labels"):
                yield name, situation, expected(form, situation)


def explained(lib, form: Form, situation: Situation) -> str:
    target, pred = arrays(form, *situation.shape, situation.dtype)
    with lib.b.scope(situation.dtype, "cpu"):
        target = lib.b.asarray(target) if form.target == "labels" else lib.array(target, situation.dtype)
        pred = placed(lib.array(pred, situation.dtype), situation)
        found = lb.explain(form.loss, target, pred, under=situation.under, **form.options)
    return found.path


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    framework = metafunc.config.getoption("--backend")
    if "cell" in metafunc.fixturenames:
        metafunc.parametrize("cell", list(cells(framework)), ids=lambda cell: f"{cell[0]}-{cell[1]}")


def test_this_path_runs_and_no_other(lib, taken, cell) -> None:
    name, situation, expected = cell
    form, how = FORMS[name], TABLE[lib.b.name][1][situation]
    called(lib, form, how)
    assert {path for path, _ in taken} == {expected}
    if how.explained:
        assert explained(lib, form, how) == expected


# Functions that are no losses of the registry: what stands before their predictions, and these.
FURTHER = {
    "topk_divergence": ("indices", "log_probs", "logits"),
    "token_log_probs": ("labels", "logits"),
    "entropy_from_logits": ("logits",),
}


@pytest.mark.parametrize("name", FURTHER)
def test_what_is_explained_of_further_functions_runs(lib, taken, name) -> None:
    logits = np.random.default_rng(0).normal(size=(4, 9)).astype(np.float32)
    arrays = {"logits": logits, "indices": np.tile([0, 2], (4, 1)), "labels": np.arange(4)}
    arrays["log_probs"] = np.log(np.full((4, 2), 0.25, np.float32))
    *before, pred = (lib.array(arrays[x], "int32" if arrays[x].dtype.kind == "i" else None) for x in FURTHER[name])

    def both(pred: Any) -> Any:
        return lib.b.value_and_grad(lambda pred: getattr(lb, name)(*before, pred), pred)

    for under, compiler in {"": lambda function: function, **lib.b.compilers()}.items():
        taken.clear()
        compiler(both)(pred)
        assert {path for path, _ in taken} == {lb.explain(name, *before, pred, under=under).path}, under


def test_no_path_is_left_out(lib) -> None:
    """Triton's, which needs a GPU or its interpreter, is in test_only_torch_triton.py."""
    expected = {path for _, _, path in cells(lib.b.name)}
    assert expected == set(lib.framework.PATHS) - {"triton"} - ({"rows"} if rows.MISSING else set())


# Kernels.


def kernels(framework: str) -> dict[str, tuple[Any, str]]:
    """Where each stands: what a test takes away, one at a time."""
    if rows.MISSING or "rows" not in {path for _, _, path in cells(framework)}:
        return {}
    return {f"rows: {name}": (rows, "RULES") for name in IN_ROWS}


def wrong_cells(lib) -> list[str]:
    """Where `lb.explain` does not say what the table says."""
    return [
        f"{name}, {situation}"
        for name, situation, expected in cells(lib.b.name)
        if (how := TABLE[lib.b.name][1][situation]).explained and explained(lib, FORMS[name], how) != expected
    ]


def test_a_kernel_that_is_taken_away_is_missed(lib, monkeypatch) -> None:
    assert set(rows.RULES) == {*IN_ROWS, *MASSES}
    assert not wrong_cells(lib)
    for kernel, (module, table) in kernels(lib.b.name).items():
        name = kernel.split(": ")[1]
        there = getattr(module, table)
        without = (
            {k: x for k, x in there.items() if k != name} if isinstance(there, dict) else tuple(set(there) - {name})
        )
        with monkeypatch.context() as patch:
            patch.setattr(module, table, without)
            assert wrong_cells(lib), f"nobody misses {kernel}"


def test_a_rule_that_is_taken_away_is_missed(lib, monkeypatch) -> None:
    """A loss without its gradients would be differentiated by the framework, in silence."""
    from lossbridge import request

    situations = TABLE[lib.b.name][1]
    for name, situation, expected in cells(lib.b.name):
        form, how = FORMS[name], situations[situation]
        if (
            expected != "rule" or form.rule.gradients is None or not how.explained
        ):  # NumPy's kernels leave some rules nothing to do
            continue
        rule = form.rule._replace(gradients=None)
        with monkeypatch.context() as patch:
            patch.setattr(request, "rule_of", lambda loss, given, other_rank, form=form, rule=rule: (form.target, rule))
            assert explained(lib, form, how) != expected, f"{name}, {situation}"


# compat takes the paths of the direct call.


def compat_calls(lib, rows: int = 64, classes: int = 33) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """The call of another library's name, and the direct one."""
    y, z = arrays(FORMS["sparse_categorical_crossentropy, labels, logits"], rows, classes, "float32")
    t, p = arrays(FORMS["categorical_crossentropy, distributions, probabilities"], rows, classes, "float32")
    y = lib.b.place(y, "int64" if lib.b.name == "torch" else "int32", "cpu")
    z, t, p = (lib.array(x) for x in (z, t, p))

    def compat(function: Any, *arrays: Any, **options: Any) -> Callable[[], Any]:
        """Differentiated for the predictions: the first of optax and PyTorch, the second of the others."""
        first, second = arrays
        at_first = first is z or first is p
        call = (lambda x: function(x, second, **options)) if at_first else (lambda x: function(first, x, **options))
        return lambda: lib.b.value_and_grad(call, first if at_first else second)

    ours = functools.partial(lb.sparse_categorical_crossentropy, y, from_logits=True, reduction="none")
    dense = functools.partial(lb.categorical_crossentropy, t, from_logits=True, reduction="none")
    trials = functools.partial(lb.log_loss, t, from_logits=True, reduction="none")

    def direct(loss: Callable[[Any], Any], x: Any) -> Callable[[], Any]:
        return lambda: lib.b.value_and_grad(loss, x)

    return {
        "optax, labels": (compat(compat_optax.softmax_cross_entropy_with_integer_labels, z, y), direct(ours, z)),
        "optax, dense": (compat(compat_optax.softmax_cross_entropy, z, t), direct(dense, z)),
        "optax, sigmoid": (compat(compat_optax.sigmoid_binary_cross_entropy, z, t), direct(trials, z)),
        "torch, labels": (compat(compat_torch.cross_entropy, z, y, reduction="none"), direct(ours, z)),
        "torch, dense": (compat(compat_torch.cross_entropy, z, t, reduction="none"), direct(dense, z)),
        "torch, BCE": (
            compat(compat_torch.binary_cross_entropy_with_logits, z, t, reduction="none"),
            direct(trials, z),
        ),
        "keras, labels": (
            compat(compat_keras.sparse_categorical_crossentropy, y, z, from_logits=True),
            direct(ours, z),
        ),
        "keras, dense": (compat(compat_keras.categorical_crossentropy, t, z, from_logits=True), direct(dense, z)),
        "keras, KL": (
            compat(compat_keras.kl_divergence, t, p),
            direct(lambda p: lb.kl_divergence(t, p, reduction="none"), p),
        ),
        "sklearn, labels": (
            compat(functools.partial(compat_sklearn.log_loss, labels=range(classes)), y, p),
            direct(lambda p: lb.log_loss(y, p, epsilon=2.0**-23), p),
        ),
    }


@pytest.mark.parametrize(
    "name",
    [
        "optax, labels",
        "optax, dense",
        "optax, sigmoid",
        "torch, labels",
        "torch, dense",
        "torch, BCE",
        "keras, labels",
        "keras, dense",
        "keras, KL",
        "sklearn, labels",
    ],
)
def test_compat_takes_the_path_of_the_direct_call(lib, taken, name) -> None:
    other, direct = compat_calls(lib)[name]
    direct()
    expected = list(taken)
    assert expected
    taken.clear()
    other()
    assert taken == expected


@pytest.mark.parametrize("name", ["entropy", "rel_entr", "kl_div"])
def test_compat_scipy_has_formulas_alone(lib, taken, name) -> None:
    """No loss of lossbridge is equal to one of these."""
    _, p = arrays(FORMS["categorical_crossentropy, distributions, probabilities"], 64, 33, "float32")
    p = lib.array(p)
    lib.b.value_and_grad(lambda q: getattr(compat_scipy, name)(p, q), p)
    assert taken == [("formula", "relative entropy" if name == "entropy" else name)]
