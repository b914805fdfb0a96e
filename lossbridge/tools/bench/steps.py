"""A step in each framework: eager or compiled, with or without the gradient. Holds neither losses nor clocks.

A step is what a user writes. In PyTorch torch.compile compiles the loss, and autograd runs around it; in JAX and
TensorFlow value and gradient are one function, which is compiled as a whole. In NumPy, and in a framework that is not
known here, it is lossbridge.value_and_grad. Arrays are arguments of what is compiled, options that are arrays by name.
The gradient of predictions that are a tuple is a tuple.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lossbridge.frameworks.framework import Framework
from lossbridge.tools.bench.cells import Cell
from lossbridge.tools.bench.contenders import Contender
from lossbridge.tools.bench.data_kinds import each

EAGER = "eager"
Step = Callable[..., tuple[Any, Any]]  # (target, pred, **arrays) -> value, gradient or None


def ways(b: Framework, cell: Cell, contender: Contender) -> list[str]:
    """In which ways the contender runs: eager first, then the backend's compilers."""
    eager = [EAGER] if cell.ways != "compiled" else []
    return eager if cell.ways == "eager" or contender.eager_only else [*eager, *b.compilers()]


def step(b: Framework, contender: Contender, way: str, backward: bool) -> Step:
    """Make all steps of a cell before calling the first: making one resets PyTorch's compiler."""
    compiler = (lambda function: function) if way == EAGER else b.compilers()[way]
    if backward:
        return _WITH_GRADIENT.get(b.name, _lossbridge)(contender, compiler)
    run = compiler(contender.loss)
    if b.name != "torch":
        return lambda target, pred, **arrays: (run(target, pred, **arrays), None)
    import torch

    def without_graph(target: Any, pred: Any, **arrays: Any) -> tuple[Any, Any]:
        with torch.no_grad():
            return run(target, pred, **arrays), None

    return without_graph


def _lossbridge(contender: Contender, compiler: Any) -> Step:
    assert contender.with_gradient is not None
    return compiler(contender.with_gradient)


def _torch(contender: Contender, compiler: Any) -> Step:
    import torch

    loss = compiler(contender.loss)

    def run(target: Any, pred: Any, **arrays: Any) -> tuple[Any, Any]:
        value = loss(target, pred, **arrays)
        gradients = torch.autograd.grad(value, pred)
        return value.detach(), gradients if isinstance(pred, tuple) else gradients[0]

    return run


def _tensorflow(contender: Contender, compiler: Any) -> Step:
    import tensorflow as tf

    def run(target: Any, pred: Any, **arrays: Any) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            tape.watch(pred)
            value = contender.loss(target, pred, **arrays)
        return value, tape.gradient(value, pred)

    return compiler(run)


def _jax(contender: Contender, compiler: Any) -> Step:
    import jax

    return compiler(jax.value_and_grad(contender.loss, argnums=1))


_WITH_GRADIENT: dict[str, Callable[[Contender, Any], Step]] = {
    "torch": _torch,
    "tensorflow": _tensorflow,
    "jax": _jax,
}


def leaf(b: Framework, pred: Any, backward: bool) -> Any:
    """Predictions that the step can differentiate with respect to."""
    return each(lambda x: x.requires_grad_(backward), pred) if b.name == "torch" else pred


def wait(b: Framework, result: Any, device: str) -> None:
    """Returns when the result has been computed."""
    if b.name == "jax":
        import jax

        jax.block_until_ready(result)
    elif b.name == "torch":
        if device == "cuda":
            import torch

            torch.cuda.synchronize()
    elif b.name == "tensorflow":
        if device == "cuda":
            import tensorflow as tf

            tf.test.experimental.sync_devices()
    elif b.name != "numpy":  # it may be lazy: what is read has been computed
        if isinstance(result, tuple):
            for x in result:
                wait(b, x, device)
        elif result is not None:
            b.to_numpy(result)


def planned_bytes(b: Framework, run: Step, *arguments: Any, **arrays: Any) -> tuple[int, int] | None:
    """Bytes that XLA plans for a function compiled by JAX: temporaries, and results."""
    if b.name != "jax" or not hasattr(run, "lower"):
        return None
    analysis = run.lower(*arguments, **arrays).compile().memory_analysis()
    return None if analysis is None else (int(analysis.temp_size_in_bytes), int(analysis.output_size_in_bytes))
