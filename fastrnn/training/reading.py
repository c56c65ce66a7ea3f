"""Opening files that a user names, if they are regular files and not too large to be right."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def opened(path: Path, most: int) -> BinaryIO:
    """Opens a regular file of at most so many bytes; never waits.

    Raises:
        OSError: it is something else, or larger, or cannot be opened; :func:`reason` says which.
    """
    _check_kind(path.stat().st_mode)  # before it is opened, for that can act on a device
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        _check_kind(found.st_mode)
        if found.st_size > most:
            raise OSError(
                errno.EFBIG, f"it has {found.st_size:,} bytes; at most {most:,} can be right"
            )
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read(path: Path, most: int) -> bytes:
    """The content of a regular file of at most so many bytes.

    Raises:
        OSError: as :func:`opened`.
    """
    with opened(path, most) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(size + 1)  # a read of so many bytes allocates them all
    if len(content) != size:
        raise OSError(errno.EFBIG, f"it has {size:,} bytes and gives {len(content):,}")
    return content


def reason(error: Exception) -> str:
    """What went wrong, without the error's number and path, on one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())


def _check_kind(mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "no file")
        raise OSError(errno.EINVAL, f"it is {kind}, not a file")
