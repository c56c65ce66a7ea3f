"""Ends the command ``fastrnn`` without a traceback if a signal arrives during its imports.

Importing the package as a library changes no signal handler.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _is_command() -> bool:
    program = sys.argv[0] if sys.argv else ""
    return Path(program).name == "fastrnn" or (program == "-m" and "fastrnn" in sys.orig_argv)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


if _is_command():
    for number in NUMBERS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as SIGHUP is under nohup
            signal.signal(number, _end)
