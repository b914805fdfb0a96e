"""Time and memory of the linear cross-entropy beside the loss of all logits, forward and backward, on CPUs.

    python benchmarks/linear.py [--backend NAME] [--calls N]

Prints a table of ratios: CPU time and the peak above the inputs, ours over the peer's, medians of calls in turn, one
thread, 512 hidden units and 32768 classes. Each backend runs in a process of its own.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

HIDDEN, CLASSES = 512, 32768
BACKENDS = ("numpy", "torch", "jax", "tensorflow")


class Row(NamedTuple):
    """A case: ours and its peers, functions of (labels, hidden, weight) that return value and gradients."""

    backend: str
    words: str
    rows: int
    dtype: str
    ours: Callable[..., Any]
    peers: dict[str, Callable[..., Any]]


def _numpy() -> Iterator[Row]:
    import lossbridge as lb

    def textbook(labels: Any, hidden: Any, weight: Any) -> Any:
        z = hidden @ weight.T
        e = np.exp(z - z.max(1, keepdims=True))
        p = e / e.sum(1, keepdims=True)
        rows = np.arange(len(labels))
        value = -np.log(p[rows, labels]).mean()
        p[rows, labels] -= 1
        p /= len(labels)
        return value, p @ weight, p.T @ hidden

    both = lb.value_and_grad(lb.linear_crossentropy, of=("hidden", "weight"))

    def ours(labels: Any, hidden: Any, weight: Any) -> Any:
        value, gradients = both(labels, hidden, weight)
        return value, *gradients

    yield Row("numpy", "", 1024, "float32", ours, {"textbook": textbook})


def _torch() -> Iterator[Row]:
    import torch
    import torch.nn.functional as F

    import lossbridge as lb

    def stepped(loss: Callable[..., Any]) -> Callable[..., Any]:
        def step(labels: Any, hidden: Any, weight: Any) -> Any:
            hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
            value = loss(labels, hidden, weight)
            value.backward()
            return value, hidden.grad, weight.grad

        return step

    ours = stepped(lb.linear_crossentropy)
    plain = {"linear, F.cross_entropy": stepped(lambda t, h, w: F.cross_entropy(F.linear(h, w), t))}
    options = torch.nn.LinearCrossEntropyOptions()
    own = {"F.linear_cross_entropy": stepped(lambda t, h, w: F.linear_cross_entropy(h, w, t, options=options))}
    yield Row("torch", "eager", 4096, "float32", ours, plain)
    yield Row("torch", "eager", 1024, "float32", ours, {**plain, **own})
    yield Row("torch", "eager", 512, "bfloat16", ours, {**plain, **own})


def _jax() -> Iterator[Row]:
    import jax
    import jax.numpy as jnp
    import optax

    import lossbridge as lb

    def stepped(loss: Callable[..., Any]) -> Callable[..., Any]:
        step = jax.jit(jax.value_and_grad(loss, (1, 2)))

        def flat(*arrays: Any) -> Any:
            value, gradients = jax.block_until_ready(step(*arrays))
            return value, *gradients

        return flat

    def peer(labels: Any, hidden: Any, weight: Any) -> Any:
        z = jnp.matmul(hidden, weight.T, preferred_element_type="float32")
        return optax.softmax_cross_entropy_with_integer_labels(z, labels).mean()

    for rows, dtype in ((4096, "float32"), (1024, "bfloat16")):
        yield Row("jax", "jit", rows, dtype, stepped(lb.linear_crossentropy), {"matmul, optax": stepped(peer)})


def _tensorflow() -> Iterator[Row]:
    import tensorflow as tf

    import lossbridge as lb

    def stepped(loss: Callable[..., Any], **how: Any) -> Callable[..., Any]:
        @functools.partial(tf.function, autograph=False, **how)
        def step(labels: Any, hidden: Any, weight: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch([hidden, weight])
                value = loss(labels, hidden, weight)
            return value, *tape.gradient(value, [hidden, weight])

        return step

    def peer(labels: Any, hidden: Any, weight: Any) -> Any:
        z = tf.linalg.matmul(hidden, weight, transpose_b=True)
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, z))

    for words, how in (("function", {}), ("jit_compile", {"jit_compile": True})):
        ours = stepped(lb.linear_crossentropy, **how)
        yield Row("tensorflow", words, 4096, "float32", ours, {"matmul, tf.nn": stepped(peer, **how)})


ROWS = {"numpy": _numpy, "torch": _torch, "jax": _jax, "tensorflow": _tensorflow}


def measured(backend: str, calls: int) -> Iterator[str]:
    """The lines of a backend's table."""
    from lossbridge.frameworks import FRAMEWORKS
    from lossbridge.tools.bench import memory, thread_limits

    thread_limits.keep()
    b = FRAMEWORKS[backend]()
    rng = np.random.default_rng(0)
    for row in ROWS[backend]():
        labels = b.place(rng.integers(0, CLASSES, row.rows), "int64" if backend == "torch" else "int32", "cpu")
        hidden = b.place(rng.normal(size=(row.rows, HIDDEN)), row.dtype, "cpu")
        weight = b.place(rng.normal(size=(CLASSES, HIDDEN)) / HIDDEN**0.5, row.dtype, "cpu")
        arrays = labels, hidden, weight
        functions = {"ours": row.ours, **row.peers}
        found = {name: [b.to_numpy(x) for x in function(*arrays)] for name, function in functions.items()}
        tolerance = 1e-3 if row.dtype == "float32" else 5e-2
        for name in row.peers:
            for x, y in zip(found[name], found["ours"], strict=True):
                assert np.abs(x - y).max() <= tolerance * np.abs(y).max(), name
        found.clear()
        seconds: dict[str, list[float]] = {name: [] for name in functions}
        for _ in range(calls):
            for name, function in functions.items():
                start = time.process_time()
                function(*arrays)
                seconds[name].append(time.process_time() - start)
        peaks = {
            name: memory.extra_bytes(functools.partial(function, *arrays), b, "cpu")
            for name, function in functions.items()
        }
        for name in row.peers:
            ratio = statistics.median(seconds["ours"]) / statistics.median(seconds[name])
            mine, theirs = peaks["ours"], peaks[name]
            share = f"{mine / theirs:.3f}" if mine is not None and theirs else "–"
            size = "–" if mine is None else f"{mine / 2**20:.0f} MiB"
            yield f"| {row.backend} {row.words} | {row.rows} {row.dtype} | {name} | {ratio:.2f} | {share} | {size} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=BACKENDS, action="append")
    parser.add_argument("--calls", type=int, default=5, help="of each contender")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        for line in measured(arguments.backend[0], arguments.calls):
            print(line, flush=True)
        return
    from lossbridge.tools.bench import thread_limits

    print("| where | rows | peer | time | memory | of ours |\n|---|---|---|---|---|---|", flush=True)
    for backend in arguments.backend or BACKENDS:
        environment = {
            **os.environ,
            **thread_limits.environment(1),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "THP_MEM_ALLOC_ENABLE": "0",
        }
        command = [sys.executable, __file__, "--worker", "--backend", backend, "--calls", str(arguments.calls)]
        subprocess.run(command, env=environment, check=True)


if __name__ == "__main__":
    main()
