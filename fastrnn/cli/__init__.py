"""``fastrnn``: arguments and printing; the work is elsewhere."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from fastrnn.cli.complete import complete
from fastrnn.cli.info import info, presets
from fastrnn.cli.inpaint import inpaint
from fastrnn.cli.train import evaluate, train

app = typer.Typer(
    help="LSTM and GRU, faster than torch.nn's, and tasks to train with them.",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)
for command in (train, evaluate, complete, inpaint, presets, info):
    app.command()(command)


def _version(wanted: bool) -> None:
    if wanted:
        import fastrnn

        print(f"fastrnn {fastrnn.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The console script. What a user can mend gets one line on stderr and exit status 2."""
    from fastrnn.config import ConfigError
    from fastrnn.data import DataError
    from fastrnn.runs import RunError

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # where there is no ×, a ? will do
    try:
        app()
    except (ConfigError, DataError, RunError, OSError) as error:
        print(f"fastrnn: {error}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        remedy = "make --hidden-size, --batch-size, --images or --samples smaller"
        print(f"fastrnn: memory is not enough: {remedy}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _out_of_memory(error: Exception) -> bool:
    """Whether memory was not enough, which torch tells by the message alone."""
    words = ("can't allocate memory", "out of memory", "size calculation overflowed")
    return isinstance(error, MemoryError) or any(each in str(error) for each in words)
