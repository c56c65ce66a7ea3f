"""``fastrnn``: arguments and printing; the work is done elsewhere.

This module imports without the packages of the extra ``[tasks]``, so that it can say which one is
missing.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
from typing import Any

# What the extra [tasks] installs, by the names that are imported.
TASKS_PACKAGES = ("PIL", "matplotlib", "rich", "safetensors", "sklearn", "torchvision", "typer")


def main() -> None:
    """The console script. An error that the user can fix is one line on stderr, exit status 2."""
    if sys.argv[1:2] == ["run"] and sys.argv[2:3] != ["--help"]:
        from fastrnn.cli import program

        program.main(sys.argv[2:])  # whose signals, output and errors are its own
    from fastrnn.training import distributed, interrupts
    from fastrnn.training.errors import RunError

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # prints ? where the encoding has no ×
    with interrupts.immediate():
        try:
            with distributed.group():
                status = _run()
        except RunError as error:
            status = _failed(str(error))
        try:
            sys.stdout.flush()
        except OSError as error:
            status = _output_failed(error)
    sys.exit(status)


def _run() -> int:
    """Runs the command that sys.argv asks for; its exit status."""
    from fastrnn.training.config import ConfigError
    from fastrnn.training.errors import DataError, RunError

    try:
        import typer

        from fastrnn.cli.app import app

        # Of click, or of the copy that newer versions of typer have.
        usage_error: Any = typer.BadParameter.__mro__[1]
        try:
            status = app(sys.argv[1:], prog_name="fastrnn", standalone_mode=False)
            return status or 0
        except usage_error as error:
            given = shlex.join(["fastrnn", *sys.argv[1:]])
            message = " ".join(error.format_message().split()).rstrip(".")
            message += "" if message.endswith("?") else ";"
            return _failed(f"{message} given: {given}; see --help")
    except ModuleNotFoundError as error:
        if (package := (error.name or "").split(".")[0]) not in TASKS_PACKAGES:
            raise
        return _failed(
            f"{package} is not installed; the tasks need it: pip install 'fastrnn[tasks]'"
        )
    except ConfigError as error:
        from fastrnn.cli.options import named_by_option

        return _failed(named_by_option(error))
    except (DataError, RunError) as error:
        return _failed(str(error))
    except OSError as error:
        if error.filename is None:
            return _output_failed(error)
        return _failed(f"{error.filename}: {error.strerror}")
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        remedy = "make --hidden-size, --batch-size, --images or --samples smaller"
        return _failed(f"there is not enough memory: {remedy}")


def _failed(message: str) -> int:
    with contextlib.suppress(OSError):
        print(f"fastrnn: {message}", file=sys.stderr)
    return 2


def _output_failed(error: OSError) -> int:
    """What to do if stdout cannot be written; that it was closed early, as by head, is no error."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return 1
    return _failed(f"the output cannot be written ({error.strerror})")


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; torch raises RuntimeErrors that differ in their message only."""
    words = ("can't allocate memory", "out of memory", "size calculation overflowed")
    return isinstance(error, MemoryError) or any(each in str(error) for each in words)
