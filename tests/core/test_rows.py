"""The native rows without a framework: the sum, threads, processes and instruction sets. tests/fuzz holds the rest."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lossbridge.maths import bernoulli, softmax
from lossbridge.native import rows

pytestmark = pytest.mark.skipif(bool(rows.MISSING), reason=rows.MISSING)

SETS = ("baseline", "avx2", "avx512", "neon")
INTEGERS = {np.dtype(np.int32): rows.DTYPES["int32"], np.dtype(np.int64): rows.DTYPES["int64"]}


def compute(rule: str, target, pred, *, elementwise=False, threads=1, losses=True, **options):
    """The result, the losses and the gradient of an array (…, classes)."""
    classes = pred.shape[-1]
    real = np.float64 if pred.dtype == np.float64 else np.float32
    count = pred.size if elementwise else pred.size // classes
    each = np.full(count, 7, real) if losses else None
    result, gradient = np.full(1, 7, real), np.full_like(pred, 7)
    addresses = {name: x.ctypes.data if isinstance(x, np.ndarray) else x for name, x in options.items()}
    rows.run(
        rows.Call(
            rows.RULES[rule],
            rows.DTYPES[pred.dtype.name],
            INTEGERS.get(target.dtype, rows.DTYPES[pred.dtype.name]),
            elementwise,
            pred.size // classes,
            classes,
            1,
            pred.ctypes.data,
            target.ctypes.data,
            losses=0 if each is None else each.ctypes.data,
            result=result.ctypes.data,
            gradient=gradient.ctypes.data,
            threads=threads,
            **addresses,
        )
    )
    return result[0], each, gradient


def labels_and_logits(n: int, classes: int, dtype=np.float32, spread=3.0):
    rng = np.random.default_rng(n * classes)
    return rng.integers(0, classes, n), (spread * rng.normal(size=(n, classes))).astype(dtype)


LABELS, ELEMENTS = softmax.LABELS.name, bernoulli.LOGITS.name


# The sum.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 7, 1000, 20_000])
@pytest.mark.parametrize("stored", [True, False])
def test_the_sum_is_rounded_once(n, dtype, stored) -> None:
    labels, logits = labels_and_logits(n, 4, dtype, 30)
    total, losses, _ = compute(LABELS, labels, logits, divides=rows.GIVEN, losses=True)
    if not stored:
        total = compute(LABELS, labels, logits, divides=rows.GIVEN, losses=False)[0]
    assert total == dtype(math.fsum(losses.tolist()))


def test_the_sum_of_entries_is_that_of_their_losses() -> None:
    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=(30, 1001)), rng.random((30, 1001))
    total, losses, gradient = compute(ELEMENTS, target, logits, elementwise=True, divides=rows.COUNTED)
    assert abs(total - math.fsum(losses.tolist()) / losses.size) <= np.spacing(total)
    again = compute(ELEMENTS, target, logits, elementwise=True, divides=rows.COUNTED, losses=False)
    assert (again[0], again[2].tobytes()) == (total, gradient.tobytes())


def test_divisors_reach_the_gradient() -> None:
    labels, logits = labels_and_logits(9, 5, np.float64)
    weight, counted = np.arange(9.0) % 4, np.arange(9, dtype=np.uint8) % 3
    some = {"weight": weight, "counted": counted}
    total, losses, plain = compute(LABELS, labels, logits, divides=rows.GIVEN, **some)
    assert not losses[(counted == 0) | (weight == 0)].any()
    divisors = {rows.COUNTED: (counted != 0).sum(), rows.WEIGHTS: weight[counted != 0].sum(), rows.GIVEN: 8.0}
    for divides, divisor in divisors.items():
        mean, _, gradient = compute(LABELS, labels, logits, divides=divides, divisor=8.0, **some)
        assert mean == total / divisor
        np.testing.assert_allclose(gradient, plain / divisor, rtol=1e-15)


@pytest.mark.parametrize("divides", [rows.COUNTED, rows.WEIGHTS, rows.GIVEN])
def test_a_divisor_of_zero_gives_zero(divides) -> None:
    labels, logits = labels_and_logits(3, 5)
    none = {"counted": np.zeros(3, np.uint8), "weight": np.zeros(3, np.float32)}
    mean, _, gradient = compute(LABELS, labels, logits, divides=divides, divisor=0.0, **none)
    assert mean == 0
    assert not gradient.any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({5: math.inf}, math.inf),
        ({5: math.inf, 6: math.inf, 7000: math.inf}, math.inf),
        ({5: -math.inf}, -math.inf),
        ({5: math.inf, 9000: -math.inf}, math.nan),
        ({5: math.nan}, math.nan),
    ],
)
def test_infinities_and_nans_survive_the_compensation(weights, expected, dtype) -> None:
    labels, logits = labels_and_logits(10_000, 3, dtype)
    weight = np.ones(10_000, dtype)
    weight[list(weights)] = list(weights.values())
    found = compute(LABELS, labels, logits, weight=weight, divides=rows.GIVEN)[0]
    np.testing.assert_equal(found, dtype(expected))


def test_without_samples_there_is_no_loss() -> None:
    labels, logits = labels_and_logits(0, 3)
    assert compute(LABELS, labels, logits, divides=rows.COUNTED)[0] == 0


# Threads.


def large(threads: int) -> bytes:
    labels, logits = labels_and_logits(3000, 100)
    total, losses, gradient = compute(LABELS, labels, logits, divides=rows.COUNTED, threads=threads)
    return total.tobytes() + losses.tobytes() + gradient.tobytes()


def test_any_number_of_threads_gives_the_same_bits() -> None:
    assert len({large(threads) for threads in (-1, 0, 1, 2, 3, 8, 10_000)}) == 1


def test_callers_at_once() -> None:
    expected = large(1)
    with ThreadPoolExecutor(4) as pool:
        assert all(found == expected for found in pool.map(large, [3] * 40))


def process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python of its own that knows this file."""
    setup = f"import sys; sys.path[:0] = {sys.path!r}\nfrom tests.core.test_rows import *\n"
    return subprocess.run(
        [sys.executable, "-c", setup + textwrap.dedent(code)],
        env=os.environ | environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )


def python(code: str, **environment: str) -> str:
    result = process(code, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@needs_fork
def test_a_child_that_is_forked_while_threads_work() -> None:
    python("""
        import threading
        expected, stop = large(1), threading.Event()
        def work():
            while not stop.is_set():
                assert large(3) == expected
        busy = [threading.Thread(target=work) for _ in range(2)]
        for thread in busy: thread.start()
        for _ in range(10):
            child = os.fork()
            if child == 0:
                os._exit(large(3) != expected)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        for thread in busy: thread.join()
        assert large(3) == expected
    """)


def test_the_interpreter_ends_while_a_thread_works() -> None:
    python("""
        import threading
        def work():
            while True: large(3)
        threading.Thread(target=work, daemon=True).start()
        large(3)
    """)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process as Linux does")
def test_without_memory_for_more_threads_fewer_do_it() -> None:
    python("""
        import resource
        labels, logits = labels_and_logits(40_000, 100)
        gradient = np.empty_like(logits)
        def run(threads):
            rows.run(rows.Call(0, 0, 5, False, 40_000, 100, 1, logits.ctypes.data, labels.ctypes.data,
                               gradient=gradient.ctypes.data, threads=threads))
            return hash(gradient.tobytes())
        expected = run(2)
        pages = int(open("/proc/self/statm").read().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, [pages * resource.getpagesize() + (20 << 20)] * 2)
        assert run(100) == expected
    """)


# Instruction sets.


def digests() -> str:
    """A line a rule and dtype, of two shapes."""
    lines = []
    rng = np.random.default_rng(1)
    for rule, dtype, classes in itertools.product(rows.RULES, (np.float16, np.float32, np.float64), (10, 1000)):
        pred = rng.random((100, classes)).astype(dtype)
        pred[:9] = 0.75  # hardly any bits
        takes_labels = rows.RULES[rule] in (0, 2, 4, 13)
        target = rng.integers(0, classes, 100) if takes_labels else rng.random((100, classes)).astype(dtype)
        found = [
            compute(rule, target, pred, epsilon=1e-3, gamma=2.0, temperature=2.0, divides=rows.COUNTED, threads=threads)
            for threads in (1, 2, 3)
        ]
        bits = {b"".join(x.tobytes() for x in one) for one in found}
        assert len(bits) == 1, rule
        lines.append(f"{rule} {pred.dtype} {classes} {bits.pop().hex()}")
    return "\n".join(lines)


def test_every_instruction_set_gives_the_same_bits() -> None:
    code = "print(rows._rows.instruction_set()); print(digests())"
    results = {name: process(code, LOSSBRIDGE_INSTRUCTION_SET=name) for name in SETS}
    found = {name: result.stdout.split("\n", 1) for name, result in results.items() if result.returncode == 0}
    assert rows._rows.instruction_set() in found
    assert all(used == name for name, (used, _) in found.items())
    assert len({printed for _, printed in found.values()}) == 1
    refused = [result.stderr for name, result in results.items() if name not in found]
    assert all("which this processor and this build have" in words for words in refused)


def test_an_unknown_instruction_set_is_an_error_in_one_line() -> None:
    last = process("", LOSSBRIDGE_INSTRUCTION_SET="sse").stderr.splitlines()[-1]
    assert last.startswith("ImportError: LOSSBRIDGE_INSTRUCTION_SET=sse is none of ")


def test_they_can_be_switched_off() -> None:
    switched_off = "the native rows are switched off by LOSSBRIDGE_NATIVE=0"
    assert python("print(rows.status())", LOSSBRIDGE_NATIVE="0") == f"{switched_off}\n"


# The module.


def test_what_is_no_call_is_refused() -> None:
    arguments = len(rows.Call._fields)
    with pytest.raises(TypeError, match=f"{arguments} arguments, not 1"):
        rows._rows.run(1)
    with pytest.raises(TypeError):
        rows._rows.run(*"a" * arguments)


def test_advice_changes_nothing() -> None:
    x = np.ones(5_000_000)
    rows.advise(x.ctypes.data, x.nbytes)
    assert x.all()
