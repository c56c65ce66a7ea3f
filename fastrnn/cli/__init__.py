"""``fastrnn``: arguments and printing; the work is done elsewhere.

This module imports without the packages of the extra ``[tasks]``, so that it can say which one is
missing.
"""

from __future__ import annotations

import io
import sys

# What the extra [tasks] installs, by the names that are imported.
TASKS_PACKAGES = ("matplotlib", "rich", "safetensors", "sklearn", "torchvision", "typer")


def main() -> None:
    """The console script. An error that the user can fix is one line on stderr, exit status 2."""
    from fastrnn.tasks.data import DataError
    from fastrnn.training.config import ConfigError
    from fastrnn.training.files import RunError

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # prints ? where the encoding has no ×
    try:
        from fastrnn.cli.app import app

        app(prog_name="fastrnn")
    except ModuleNotFoundError as error:
        if (package := (error.name or "").split(".")[0]) not in TASKS_PACKAGES:
            raise
        _fail(f"{package} is not installed; the tasks need it: pip install 'fastrnn[tasks]'")
    except (ConfigError, DataError, RunError, OSError) as error:
        _fail(str(error))
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        remedy = "make --hidden-size, --batch-size, --images or --samples smaller"
        _fail(f"there is not enough memory: {remedy}")
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(message: str) -> None:
    print(f"fastrnn: {message}", file=sys.stderr)
    sys.exit(2)


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; torch raises RuntimeErrors that differ in their message only."""
    words = ("can't allocate memory", "out of memory", "size calculation overflowed")
    return isinstance(error, MemoryError) or any(each in str(error) for each in words)
