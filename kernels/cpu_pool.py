"""Large result and scratch tensors on CPU, in memory that is used again.

The first touch of fresh memory costs a page fault and the zeroing of the page: for the activations
that a training step saves, as much time as the kernel itself. A training loop asks for the same
sizes again at each step, so large blocks that are no longer used are kept for the next request: up
to an eighth of the machine's memory, or 1 GiB if that is more, and in all at most a quarter more
than was ever in use at once. FASTRNN_CPU_POOL=0 switches the pool off.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import os
import threading
import weakref

import torch
from torch import Tensor

_SMALLEST = 1 << 20  # bytes; the C library keeps smaller blocks itself
_PAGE = 2 << 20  # a large page


def _most_free() -> int:
    """Bytes of free blocks that are kept at most."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows
        memory = 0
    return max(1 << 30, memory // 8)


_MOST_FREE = _most_free()


class Pool:
    """Blocks of private memory, handed out as tensors and taken back when the last view is gone."""

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []  # the one released last stands last
        self._used_bytes = 0
        self._peak_bytes = 0
        self._lock = threading.RLock()  # a finaliser may run inside any of the methods

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised contiguous tensor."""
        count = math.prod(shape)
        size = count * dtype.itemsize
        block = self._take(-(-size // _PAGE) * _PAGE)
        view = (ctypes.c_char * size).from_buffer(block)
        weakref.finalize(view, self._give_back, block).atexit = False
        # The tensor keeps the view alive, the view the block.
        return torch.frombuffer(view, dtype=dtype, count=count).view(shape)

    def _take(self, size: int) -> mmap.mmap:
        with self._lock:
            fits = [i for i, block in enumerate(self._free) if size <= len(block) <= 2 * size]
            if fits:
                block = self._free.pop(min(fits, key=lambda i: len(self._free[i])))
            else:
                self._shrink(self._peak_bytes * 5 // 4 - self._used_bytes - size)
                block = _map(size)
            self._used_bytes += len(block)
            self._peak_bytes = max(self._peak_bytes, self._used_bytes)
            return block

    def _give_back(self, block: mmap.mmap) -> None:
        with self._lock:
            self._used_bytes -= len(block)
            self._free.append(block)
            self._shrink(_MOST_FREE)

    def _shrink(self, most_bytes: int) -> None:
        """Unmaps the blocks released longest ago until the free ones are at most `most_bytes`."""
        while self._free and sum(map(len, self._free)) > most_bytes:
            del self._free[0]


def _map(size: int) -> mmap.mmap:
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return mmap.mmap(-1, size)
    # Private, so that a forked worker's writes stay its own.
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel built without large pages
            block.madvise(mmap.MADV_HUGEPAGE)
    return block


_pool = Pool()


def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An uninitialised contiguous CPU tensor of `like`'s dtype, from the pool if it is large."""
    size = math.prod(shape) * like.dtype.itemsize
    fill = torch.are_deterministic_algorithms_enabled()  # then torch.empty fills what it returns
    if size < _SMALLEST or fill or os.environ.get("FASTRNN_CPU_POOL") == "0":
        return like.new_empty(shape)
    return _pool.empty(shape, like.dtype)
