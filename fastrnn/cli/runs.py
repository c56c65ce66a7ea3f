"""What commands print and write alike."""

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
def results(folder: Path) -> Iterator[Path | None]:
    """A new folder, as :func:`files.new_folder`; None in all processes but the first."""
    if not distributed.first():
        yield None
        return
    with files.new_folder(folder) as temporary:
        yield temporary
