"""The peak of memory that a call takes above what stands before it, results included, and how fast memory is copied."""

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

from lossbridge.backend import Backend

_SELF = Path("/proc/self")
Call = Callable[[], Any]


def extra_bytes(call: Call, b: Backend, device: str) -> int | None:
    """None where nothing tells: JAX on a GPU cannot start its peak anew."""
    gc.collect()
    if b.name == "tensorflow" and device in ("cpu", "cuda"):
        return _tensorflow(call, device)
    if device == "cpu":
        return _host(call)
    return _torch(call) if device == "cuda" and b.name == "torch" else None


def _host(call: Call) -> int | None:
    """The kernel's own high-water mark, which no short peak escapes; it counts in pages, to about 1 MiB."""
    _give_back()
    try:
        (_SELF / "clear_refs").write_text("5")
    except OSError:
        return _sampled(call)
    before = _status("VmRSS")
    result = call()
    peak = _status("VmHWM")
    del result
    return max(0, peak - before)


def _give_back() -> None:
    """Freed memory that the allocator keeps would hide what the next call takes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)


def _status(field: str) -> int:
    lines = (_SELF / "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _sampled(call: Call) -> int | None:
    """Where the mark cannot be reset: a thread that looks every half millisecond, and may miss a short peak."""
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
    """By its own allocator, which on a CPU keeps freed memory; what others allot there is seen from outside."""
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


def copy_bandwidth(b: Backend, device: str, size: int = 1 << 28, rounds: int = 9) -> float:
    """Bytes a second, read and written, of a copy into memory that is already there: the limit of everything else."""
    copy = _host_copy(size) if device == "cpu" else _device_copy(b, device, size)
    copy()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        copy()
        seconds.append(time.perf_counter() - start)
    return 2 * size / statistics.median(seconds)


def _host_copy(size: int) -> Call:
    """By one thread a core: one alone does not fill the memory's channels."""
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    cores = os.cpu_count() or 1
    parts = list(zip(np.array_split(target, cores), np.array_split(source, cores), strict=True))
    threads = ThreadPoolExecutor(cores)
    return lambda: list(threads.map(lambda part: np.copyto(*part), parts))


def _device_copy(b: Backend, device: str, size: int) -> Call:
    from lossbridge.tools.bench.steps import wait

    source = b.place(np.ones(size // 4, np.float32), "float32", device)
    if b.name == "torch":
        target = source.clone()
        return lambda: wait(b, target.copy_(source), device)
    if b.name == "jax":
        import jax.numpy as jnp

        return lambda: wait(b, jnp.copy(source), device)
    import tensorflow as tf

    return lambda: wait(b, tf.identity(source) + 0, device)
