"""Which path computes a call, and why not a faster one, in words. Computes no loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lossbridge import distillation, linear, losses, topk
from lossbridge.frameworks.framework import Choice, Framework
from lossbridge.frameworks.linear_blocks import OF, Linear
from lossbridge.maths.ops import Array
from lossbridge.request import COMMON, framework_of, resolve, without_target
from lossbridge.spec import ENTROPY, LOSSES, Loss, Names, Request


class Explanation(NamedTuple):
    """What `explain` found. As a text, one line for each thing."""

    framework: str
    under: str  # the compiler, or "" for an eager call
    path: str  # the name of the path, by which tests know it
    value: str
    gradient: str
    why_not: Mapping[str, str]  # of each faster path, why it does not take this call

    def __str__(self) -> str:
        under = f", under {self.under}" if self.under else ""
        lines = [
            f"path: {self.path} ({self.framework}{under})",
            f"value: {self.value}",
            f"gradient: {self.gradient}",
            *(f"not {path}: {reason}" for path, reason in self.why_not.items()),
        ]
        return "\n".join(lines)


def explain(loss: Callable[..., Any] | str, *arguments: Any, under: str = "", **options: Any) -> Explanation:
    """Which path computes `loss(*arguments, **options)` and its gradient for the predictions, and why not a faster one.

    No loss is computed, but the arguments are resolved and refused as in the call itself.

    Args:
        loss: a function of `lossbridge`, or its name. For a module or a function of `lossbridge.compat` pass the
            function of `lossbridge` that it stands for.
        arguments, options: as the loss takes them.
        under: the compiler that the call is made under: "compile" on PyTorch, "function" or "jit_compile" on
            TensorFlow, "jit" on JAX. Without it the call is made as things are now.

    Returns:
        An `Explanation`, with `path`, `value`, `gradient` and `why_not`; printed, a line for each.

    Raises:
        ValueError: an unknown loss or compiler, and what the loss itself raises.
        TypeError: an argument that is unknown or missing, and what the loss itself raises.

    >>> import lossbridge as lb
    >>> print(lb.explain(lb.log_loss, [1, 0], [[0.3, 0.7], [0.6, 0.4]]))
    path: rows (numpy)
    value: native rows, which compute the ratio in one pass
    gradient: written in the same pass
    """
    name = _name(loss)
    given = _by_name(name, arguments, options)
    framework = framework_of(given[PREDICTIONS[name]], PREDICTIONS[name])
    compilers = framework.compilers()
    if under and under not in compilers:
        known = ", ".join(repr(compiler) for compiler in compilers) or "none"
        raise ValueError(f"under is {under!r}; {framework.name} has these compilers: {known}")
    path, why_not = _choice(name, given, framework, under)
    return Explanation(framework.name, under, path.name, path.value_words, path.gradient_words, dict(why_not))


_LABELS = LOSSES["sparse_categorical_crossentropy"]
# The functions that `explain` knows, and of each the argument that holds the predictions.
PREDICTIONS: Mapping[str, str] = {
    **{name: record.names.pred for name, record in LOSSES.items()},
    "topk_divergence": "student_logits",
    "token_log_probs": "logits",
    "entropy_from_logits": "logits",
    "linear_crossentropy": "hidden",
    "linear_token_log_probs": "hidden",
    "linear_distillation": "student_hidden",
}


def _name(loss: Callable[..., Any] | str) -> str:
    function = inspect.unwrap(loss) if callable(loss) else loss  # of value_and_grad(loss), the loss
    for name in PREDICTIONS:
        if loss == name or function is getattr(losses, name):
            return name
    known = ", ".join(PREDICTIONS)
    raise ValueError(f"{loss!r} is no loss of lossbridge.losses; pass one of its functions, or a name: {known}")


def _by_name(name: str, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of the function of that name, those too that were not given."""
    known = inspect.signature(getattr(losses, name)).parameters
    positional = [x for x, parameter in known.items() if parameter.default is parameter.empty]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise TypeError(f"{name} takes no {unknown[0]}; leave it out")
    if len(arguments) > len(positional):
        raise TypeError(f"{name} takes {', '.join(positional)} by position; {len(arguments)} arguments are given")
    given = {**dict(zip(positional, arguments, strict=False)), **options}
    for option in positional:
        if option not in given:
            raise TypeError(f"{name} needs {option}; pass {option}=")
    return {x: given.get(x, parameter.default) for x, parameter in known.items()}


def _choice(name: str, given: dict[str, Any], framework: Framework, under: str) -> Choice:
    """As the function of that name makes its request."""
    if name.startswith("linear_"):
        call = _of_distillation(given) if name == "linear_distillation" else _of_layer(given)
        return call.request.framework.choose_linear(call, under)
    if name == "topk_divergence":
        indices, tail = given.pop("indices"), given.pop("tail")
        return framework.chosen(
            lambda target, pred: topk.resolve(indices, target, pred, tail, given),
            given.pop("log_probs"),
            given.pop("student_logits"),
            under,
        )
    if name == "entropy_from_logits":
        logits, given = given.pop("logits"), {**ENTROPY.options, **given, "reduction": "none"}
        return framework.chosen(lambda _, pred: without_target(ENTROPY, pred, given), logits, logits, under)
    if name == "token_log_probs":
        given = {**_LABELS.options, **given, "from_logits": True, "reduction": "none"}
        return _of_logits(_LABELS, _LABELS.names._replace(target="labels", pred="logits"), given, framework, under)
    return _of_logits(LOSSES[name], LOSSES[name].names, given, framework, under)


def _of_logits(record: Loss, names: Names, given: dict[str, Any], framework: Framework, under: str) -> Choice:
    y_true, y_pred = given.pop(names.target), given.pop(names.pred)

    def request(y_true: Array, y_pred: Array) -> Request:
        return resolve(record, y_true, y_pred, names, {**COMMON, **given})

    return framework.chosen(request, y_true, y_pred, under)


def _of_layer(given: dict[str, Any]) -> Linear:
    linear.names_of(given.get("returns", "loss"))
    labels, hidden = given.pop("labels"), given.pop("hidden")
    layer = given.pop("weight"), given.pop("bias"), given.pop("classes_axis")
    split = given.pop("group"), given.pop("classes"), given.pop("reduce_hidden")
    memory, given = given.pop("memory"), {**COMMON, **OF.options, "reduction": "none", **given}
    return linear.resolve(labels, hidden, layer, memory, given, split)[0]


def _of_distillation(given: dict[str, Any]) -> Linear:
    teacher, student = (
        (given.pop(f"{side}_hidden"), given.pop(f"{side}_weight"), given.pop(f"{side}_bias"))
        for side in ("teacher", "student")
    )
    layout = given.pop("classes_axis"), given.pop("memory")
    return distillation.resolve(teacher, student, layout, {**COMMON, **given})[0]
