"""Fresh buffers in huge pages: a hint to the system, which may not follow it. Knows no framework.

To touch a fresh buffer in pages of 4 KiB costs more than the arithmetic that fills it. NumPy advises its own; PyTorch
does so only with THP_MEM_ALLOC_ENABLE=1 in the environment.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

# In bytes, the least that is worth it: smaller buffers are mostly recycled memory, which has been touched.
LEAST = 1 << 24


def advise(address: int, size: int) -> None:
    """Advises a large buffer that nothing has touched yet; does nothing where the system has no such hint."""
    if _MADVISE is None:
        return
    # The system takes whole pages alone: those that lie in the buffer.
    start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (address + size) // mmap.PAGESIZE * mmap.PAGESIZE
    _MADVISE(start, end - start, mmap.MADV_HUGEPAGE)  # a refusal costs nothing but time


def _madvise() -> Any:
    if not hasattr(mmap, "MADV_HUGEPAGE"):  # not Linux, or an old kernel's headers
        return None
    found = getattr(ctypes.CDLL(None), "madvise", None)
    if found is not None:
        found.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return found


_MADVISE = _madvise()
