"""How a step runs in each framework: eager or compiled, with or without the gradient, waited for. No loss, no clock.

A step is what a user writes: in PyTorch autograd around the loss, of which torch.compile sees the forward; in JAX and
TensorFlow one function of value and gradient that is compiled as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lossbridge.backend import Backend
from lossbridge.tools.bench.cells import Cell
from lossbridge.tools.bench.contenders import Contender

EAGER = "eager"
Step = Callable[[Any, Any], tuple[Any, Any]]  # (target, pred) -> value, gradient or None


def ways(b: Backend, cell: Cell, contender: Contender) -> list[str]:
    """Eager first."""
    eager = [EAGER] if cell.ways != "compiled" else []
    return eager if cell.ways == "eager" or contender.eager_only else [*eager, *b.compilers()]


def step(b: Backend, contender: Contender, way: str, backward: bool) -> Step:
    """Make all steps of a cell before the first is called: PyTorch's compiler is reset for each."""
    compiler = (lambda function: function) if way == EAGER else b.compilers()[way]
    if backward:
        return _WITH_GRADIENT[b.name](contender, compiler)
    run = compiler(contender.loss)
    if b.name != "torch":
        return lambda target, pred: (run(target, pred), None)
    import torch

    def without_graph(target: Any, pred: Any) -> tuple[Any, Any]:
        with torch.no_grad():
            return run(target, pred), None

    return without_graph


def _numpy(contender: Contender, compiler: Any) -> Step:
    assert contender.with_gradient is not None
    return contender.with_gradient


def _torch(contender: Contender, compiler: Any) -> Step:
    import torch

    loss = compiler(contender.loss)

    def run(target: Any, pred: Any) -> tuple[Any, Any]:
        value = loss(target, pred)
        return value.detach(), torch.autograd.grad(value, pred)[0]

    return run


def _tensorflow(contender: Contender, compiler: Any) -> Step:
    import tensorflow as tf

    def run(target: Any, pred: Any) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            tape.watch(pred)
            value = contender.loss(target, pred)
        return value, tape.gradient(value, pred)

    return compiler(run)


def _jax(contender: Contender, compiler: Any) -> Step:
    import jax

    return compiler(jax.value_and_grad(contender.loss, argnums=1))


_WITH_GRADIENT: dict[str, Callable[[Contender, Any], Step]] = {
    "numpy": _numpy,
    "torch": _torch,
    "tensorflow": _tensorflow,
    "jax": _jax,
}


def leaf(b: Backend, pred: Any, backward: bool) -> Any:
    """Predictions as the step wants them."""
    return pred.requires_grad_(backward) if b.name == "torch" else pred


def fresh(contender: Contender, pred: Any) -> Any:
    """Predictions that the contender may overwrite; in PyTorch no leaf, as logits of a model are none."""
    return pred * 1 if contender.consumes else pred


def wait(b: Backend, result: Any, device: str) -> None:
    """Until the result is there."""
    if b.name == "jax":
        import jax

        jax.block_until_ready(result)
    elif device == "cuda" and b.name == "torch":
        import torch

        torch.cuda.synchronize()
    elif device == "cuda" and b.name == "tensorflow":
        import tensorflow as tf

        tf.test.experimental.sync_devices()


def planned_bytes(b: Backend, run: Step, target: Any, pred: Any) -> tuple[int, int] | None:
    """What XLA allots to a compiled function in JAX: temporaries, and results."""
    if b.name != "jax" or not hasattr(run, "lower"):
        return None
    analysis = run.lower(target, pred).compile().memory_analysis()
    return None if analysis is None else (int(analysis.temp_size_in_bytes), int(analysis.output_size_in_bytes))
