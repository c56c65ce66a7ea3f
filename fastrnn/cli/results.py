"""Where commands put their results: a new folder, and the command line in its summary."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from fastrnn.training import distributed, files


def command_line() -> str:
    """What the user typed, for a summary."""
    return shlex.join(["fastrnn", *sys.argv[1:]])


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path | None]:
    """Yields a new folder to fill, see :func:`files.new_folder`; None in all processes but one."""
    if not distributed.first():
        yield None
        return
    with files.new_folder(folder) as temporary:
        yield temporary
