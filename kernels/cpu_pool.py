"""Large result and scratch tensors on CPUs, in memory that is reused.

The first touch of fresh memory costs a page fault and the zeroing of the page. For the activations
that a training step saves, this takes as much time as the kernel itself. A training loop asks for
the same sizes in each step, so the memory of a large tensor is kept for later requests when the
last tensor or view that uses it is gone.

The pool holds at most an eighth of the machine's memory, or 1 GiB if that is more, in use and free
together; memory beyond that comes from torch and is freed at once. A free block that was not used
in the last 256 requests is freed too. :func:`clear` frees all free blocks, and
FASTRNN_CPU_POOL=0 in the environment switches the pool off.

The tensors are torch's own, so they can be resized, shared and pickled like any other.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_SMALLEST = 1 << 20  # bytes; the C library keeps smaller blocks itself
_IDLE_REQUESTS = 256


def _most() -> int:
    """The most bytes that the pool holds."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows
        memory = 0
    return max(1 << 30, memory // 8)


@dataclass
class _Block:
    storage: torch.UntypedStorage
    address: int
    size: int  # bytes
    request: int  # number of the last request that it served


class Pool:
    """Memory that is handed out as tensors, and is free again when the last view is gone.

    Args:
        users: counts the tensors that use a storage, plus one for the storage object itself.
        most: the most bytes that the pool holds.
    """

    def __init__(self, users: Callable[[torch.UntypedStorage], int], most: int) -> None:
        self._users = users
        self._most = most
        self._blocks: list[_Block] = []
        self._requests = 0
        self._lock = threading.Lock()

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised contiguous tensor."""
        size = math.prod(shape) * dtype.itemsize
        with self._lock:
            block = self._take(size)
            if block is None:
                return torch.empty(shape, dtype=dtype, device="cpu")
            # Still under the lock: once the tensor exists, it marks the block as in use.
            tensor = torch.empty(0, dtype=dtype, device="cpu")
            return tensor.set_(block.storage, 0, shape)  # type: ignore[call-overload]

    def clear(self) -> None:
        """Frees all memory that no tensor uses."""
        with self._lock:
            self._blocks = [block for block in self._blocks if not self._free(block)]

    @property
    def bytes(self) -> int:
        """How much memory the pool holds, in use and free."""
        return sum(block.size for block in self._blocks)

    def _take(self, size: int) -> _Block | None:
        """A free block of at least this size, or a new one; None if the pool would be too large."""
        self._requests += 1
        self._blocks = [
            block
            for block in self._blocks
            if self._ours(block) and not (self._idle(block) and self._free(block))
        ]
        free = [block for block in self._blocks if self._free(block)]
        fits = [block for block in free if size <= block.size <= 2 * size]
        if fits:
            block = min(fits, key=lambda block: block.size)
        else:
            free.sort(key=lambda block: block.request)  # the one that has waited longest first
            while free and self.bytes + size > self._most:
                self._blocks.remove(free.pop(0))
            if self.bytes + size > self._most:
                return None
            storage = torch.empty(size, dtype=torch.uint8, device="cpu").untyped_storage()
            block = _Block(storage, storage.data_ptr(), size, 0)
            self._blocks.append(block)
        block.request = self._requests
        return block

    def _idle(self, block: _Block) -> bool:
        return self._requests - block.request > _IDLE_REQUESTS

    def _free(self, block: _Block) -> bool:
        """Whether neither a tensor nor anybody else holds the storage."""
        # References: the block's and the argument of getrefcount.
        return self._users(block.storage) == 1 and sys.getrefcount(block.storage) == 2

    def _ours(self, block: _Block) -> bool:
        """Whether the memory is still what was handed out: not resized, not shared."""
        storage = block.storage
        return storage.data_ptr() == block.address and storage.nbytes() == block.size


_pool: Pool | None = None


def enable(users: Callable[[torch.UntypedStorage], int]) -> None:
    """Starts using the pool; without this, :func:`empty` is torch.empty.

    Args:
        users: see :class:`Pool`; torch has no public function for it.
    """
    global _pool  # noqa: PLW0603
    _pool = Pool(users, _most())


def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An uninitialised contiguous CPU tensor of `like`'s dtype, from the pool if it is large."""
    size = math.prod(shape) * like.dtype.itemsize
    fill = torch.are_deterministic_algorithms_enabled()  # then torch.empty fills what it returns
    off = os.environ.get("FASTRNN_CPU_POOL") == "0"
    if size < _SMALLEST or _pool is None or fill or off:
        return like.new_empty(shape)
    return _pool.empty(shape, like.dtype)


def clear() -> None:
    """Frees all memory of the pool that no tensor uses."""
    if _pool is not None:
        _pool.clear()
