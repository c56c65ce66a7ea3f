"""Locks that end with the process that holds them, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

NAME = ".lock"
_TRIES = 3  # of taking a lock, for taken() may hold it for a moment


@contextlib.contextmanager
def held(path: Path, taken: Exception) -> Iterator[int]:
    """Holds the lock of a file, which is made if it is missing; yields its descriptor.

    The file is opened for writing, which network file systems demand for such a lock. Where the
    file system has no locks at all, the block runs without one.

    Args:
        path: of the lock.
        taken: what to raise if another process holds it.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            path.parent.mkdir()  # another process has just moved the folder to its place
            continue
        try:
            try:
                _lock(descriptor)
            except BlockingIOError:
                raise taken from None
            except OSError:
                pass
            if is_at(descriptor, path):
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _lock(descriptor: int) -> None:
    for _ in range(_TRIES - 1):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.02)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def taken(path: Path) -> bool:
    """Whether another process holds the lock of a file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one at this path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False
