"""Which path computes a call, and why not a faster one, in words. Computes no loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lossbridge import linear, losses
from lossbridge.frameworks import linear_blocks
from lossbridge.frameworks.framework import Choice, Framework
from lossbridge.maths.ops import Array
from lossbridge.request import COMMON, framework_of, resolve
from lossbridge.spec import LOSSES, Loss, Request


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


def explain(
    loss: Callable[..., Any] | str, y_true: Any, y_pred: Any, *, under: str = "", **options: Any
) -> Explanation:
    """Which path computes `loss(y_true, y_pred, **options)` and its gradient for y_pred, and why not a faster one.

    Nothing is computed, but the arguments are resolved and refused as in the call itself.

    Args:
        loss: a function of `lossbridge`, or its name. For a module or a function of `lossbridge.compat` pass the
            function of `lossbridge` that it stands for.
        y_true, y_pred, options: as the loss takes them; of `linear_crossentropy` labels, hidden, and weight= too.
        under: the compiler that the call is made under: "compile" on PyTorch, "function" or "jit_compile" on
            TensorFlow, "jit" on JAX. Without it the call is made as things are now.

    Returns:
        An `Explanation`, with `path`, `value`, `gradient` and `why_not`; printed, a line for each.

    Raises:
        ValueError: an unknown loss or compiler, and what the loss itself raises.
        TypeError: an unknown option, and what the loss itself raises.

    >>> import lossbridge as lb
    >>> print(lb.explain(lb.log_loss, [1, 0], [[0.3, 0.7], [0.6, 0.4]]))
    path: rows (numpy)
    value: native rows, which compute the ratio in one pass
    gradient: written in the same pass
    """
    if loss == "linear_crossentropy" or (callable(loss) and inspect.unwrap(loss) is losses.linear_crossentropy):
        return _of_linear(y_true, y_pred, under, options)
    record = _record(loss)
    unknown = [option for option in options if option not in COMMON and option not in record.options]
    if unknown:
        raise TypeError(f"{record.name} takes no {unknown[0]}; leave it out")
    framework = framework_of(y_pred, record.names.pred)
    _check_compiler(framework, under)

    def request(y_true: Array, y_pred: Array) -> Request:
        return resolve(record, y_true, y_pred, record.names, {**COMMON, **record.options, **options})

    return _explanation(framework, under, framework.chosen(request, y_true, y_pred, under))


def _of_linear(labels: Any, hidden: Any, under: str, given: Mapping[str, Any]) -> Explanation:
    known = inspect.signature(losses.linear_crossentropy).parameters
    unknown = [option for option in given if option not in known]
    if unknown:
        raise TypeError(f"linear_crossentropy takes no {unknown[0]}; leave it out")
    if "weight" not in given:
        raise TypeError("linear_crossentropy needs a weight; pass weight=")
    framework = framework_of(hidden, "hidden")
    _check_compiler(framework, under)
    options = {name: p.default for name, p in known.items() if p.kind is p.KEYWORD_ONLY} | dict(given)
    linear.names_of(options["returns"])
    layer = options.pop("weight"), options.pop("bias"), options.pop("classes_axis")
    split = options.pop("group"), options.pop("classes"), options.pop("reduce_hidden")
    call, _ = linear.resolve(
        labels, hidden, layer, options.pop("memory"), {**COMMON, **linear_blocks.OF.options, **options}, split
    )
    return _explanation(call.request.framework, under, call.request.framework.choose_linear(call, under))


def _check_compiler(framework: Framework, under: str) -> None:
    compilers = framework.compilers()
    if under and under not in compilers:
        known = ", ".join(repr(name) for name in compilers) or "none"
        raise ValueError(f"under is {under!r}; {framework.name} has these compilers: {known}")


def _explanation(framework: Framework, under: str, choice: Choice) -> Explanation:
    path = choice.path
    return Explanation(framework.name, under, path.name, path.value_words, path.gradient_words, dict(choice.why_not))


def _record(loss: Callable[..., Any] | str) -> Loss:
    function = inspect.unwrap(loss) if callable(loss) else loss  # of value_and_grad(loss), the loss
    for name, record in LOSSES.items():
        if loss == name or function is getattr(losses, name):
            return record
    known = f"pass one of its functions, or a name: {', '.join(LOSSES)}, linear_crossentropy"
    if inspect.isfunction(function) and function.__module__ == losses.__name__:
        raise ValueError(f"explain does not know {function.__name__}; {known}")
    raise ValueError(f"{loss!r} is no function of lossbridge.losses; {known}")
