"""The peak memory of a call, above what is allocated before it and including its result; and the speed of a copy."""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lossbridge.frameworks.framework import Framework
from lossbridge.tools.bench import thread_limits

_SELF = Path("/proc/self")
Call = Callable[[], Any]


def extra_bytes(call: Call, b: Framework, device: str) -> int | None:
    """None where it cannot be measured: JAX on a GPU does not reset its peak; others than the three are not known."""
    gc.collect()
    if b.name == "tensorflow" and device in ("cpu", "cuda"):
        return _tensorflow(call, device)
    if device == "cpu":
        return _host(call)
    return _torch(call) if device == "cuda" and b.name == "torch" else None


def _host(call: Call) -> int | None:
    """The kernel's high-water mark, which misses no short peak. Its resolution is about 1 MiB."""
    _trim()
    try:
        (_SELF / "clear_refs").write_text("5")
    except OSError:
        return _sampled(call)
    before = _status("VmRSS")
    result = call()
    peak = _status("VmHWM")
    del result
    return max(0, peak - before)


def _trim() -> None:
    """Returns freed memory to the system: the next call would reuse it, and its peak would not show."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)


def _status(field: str) -> int:
    lines = (_SELF / "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _sampled(call: Call) -> int | None:
    """Where the mark cannot be reset: a thread samples every half millisecond, and may miss a short peak."""
    if not (_SELF / "statm").exists():
        return None
    page, done = os.sysconf("SC_PAGE_SIZE"), threading.Event()

    def resident() -> int:
        return int((_SELF / "statm").read_text().split()[1]) * page

    before = peak = resident()

    def look() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, resident())
            time.sleep(5e-4)

    watcher = threading.Thread(target=look)
    watcher.start()
    result = call()
    peak = max(peak, resident())
    done.set()
    watcher.join()
    del result
    return peak - before


def _torch(call: Call) -> int:
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    del result
    return int(peak - before)


def _tensorflow(call: Call, device: str) -> int:
    """TensorFlow's allocator keeps freed memory, so its own statistics are read; on a CPU also the process's peak."""
    import tensorflow as tf

    name = {"cpu": "CPU:0", "cuda": "GPU:0"}[device]
    tf.config.experimental.reset_memory_stats(name)
    before = tf.config.experimental.get_memory_info(name)["current"]
    if device == "cpu":
        outside = _host(call) or 0
    else:
        outside, result = 0, call()
        tf.test.experimental.sync_devices()
        del result
    return max(outside, int(tf.config.experimental.get_memory_info(name)["peak"] - before))


def copy_bandwidth(b: Framework, device: str, size: int = 1 << 28, rounds: int = 9) -> float:
    """Bytes per second, read and written, of a copy into allocated memory: no loss can be faster than this.

    0 on a device of a framework that is not known here.
    """
    copy = _host_copy(size) if device == "cpu" else _device_copy(b, device, size)
    if copy is None:
        return 0.0
    copy()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        copy()
        seconds.append(time.perf_counter() - start)
    return 2 * size / statistics.median(seconds)


def _host_copy(size: int) -> Call:
    """One thread a core: a single one does not use the full bandwidth."""
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    cores = thread_limits.cores()
    parts = list(zip(np.array_split(target, cores), np.array_split(source, cores), strict=True))
    threads = ThreadPoolExecutor(cores)
    return lambda: list(threads.map(lambda part: np.copyto(*part), parts))


def _device_copy(b: Framework, device: str, size: int) -> Call | None:
    from lossbridge.tools.bench.steps import wait

    if b.name not in ("torch", "tensorflow", "jax"):
        return None
    source = b.place(np.ones(size // 4, np.float32), "float32", device)
    if b.name == "torch":
        target = source.clone()
        return lambda: wait(b, target.copy_(source), device)
    if b.name == "jax":
        import jax.numpy as jnp

        return lambda: wait(b, jnp.copy(source), device)
    import tensorflow as tf

    return lambda: wait(b, tf.identity(source) + 0, device)
