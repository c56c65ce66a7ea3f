"""``fastrnn verify``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastrnn.cli import options

if TYPE_CHECKING:
    from collections.abc import Iterator


def verify(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a run, or one that complete or inpaint wrote.")
    ],
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Compare a folder's files with their checksums.

    Prints a line for each file that is damaged, missing or from another run; the exit status is
    then 1.
    """
    from fastrnn.training import files
    from fastrnn.training.errors import RunError

    if not folder.is_dir():
        raise RunError(f"{folder} is not a folder")
    is_run = (folder / "config.json").exists()
    if not is_run and not (folder / files.SUMMARY).exists():
        raise RunError(f"{folder} has neither a config.json nor a summary.json to compare with")
    found = list(_of_run(folder)) if is_run else []
    if (folder / files.SUMMARY).exists():
        found += files.damages(folder)
    output, _ = options.outputs(verbose, quiet, as_json=as_json)
    if as_json:
        output.json({"folder": str(folder), "whole": not found, "damages": found})
    else:
        for line in found:
            output.print(line)
        if not found:
            output.note(f"{folder} is whole")
    for path in _compared(folder):
        output.detail(f"compared: {path}")
    if found:
        raise typer.Exit(1)


def _compared(folder: Path) -> list[Path]:
    """The files that have been compared with a checksum, for -v."""
    from fastrnn.training import files
    from fastrnn.training.runs import Run

    run, summary = Run(folder), folder / files.SUMMARY
    listed: Any = None
    with contextlib.suppress(OSError, ValueError):
        listed = files.read_json(summary).get("files")
    found = {run.last, run.previous, run.best, folder / "metrics.csv", summary}
    found |= {folder / name for name in listed or ()}
    return sorted(path for path in found if path.exists())


def _of_run(folder: Path) -> Iterator[str]:
    """What is wrong with a run's settings and checkpoints, a line each."""
    from fastrnn.tasks import opening
    from fastrnn.training import checkpoints, files, reading
    from fastrnn.training.errors import RunError

    run, _, _ = opening.open_run(folder)
    history = None
    for path in (run.last, run.previous, run.best):
        if not path.exists():
            continue
        try:
            _, record = checkpoints.read(path)
            run.check(path, record)
        except RunError as error:
            yield str(error)
        else:
            if path == run.last:
                history = record.progress["history"]
    table = folder / "metrics.csv"
    if history and table.exists():
        wanted = files.csv_content(history)
        try:
            same = reading.read(table, len(wanted)) == wanted
        except OSError:
            same = False
        if not same:
            yield f"{table} is damaged, or older than {run.last.name}; --resume writes it again"
