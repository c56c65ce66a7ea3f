"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn import backends
from fastrnn.training import checksums, interrupts, locks, reading
from fastrnn.training.errors import RunError

FORMAT = 2  # of the folders that this version writes; see docs/run-format.md
MOST_JSON = 1 << 26  # bytes of a JSON file
MOST_DIGITS = 300  # of a whole number in it, so that a float can hold it
SUMMARY = "summary.json"
LEFT = ".*.tmp"  # what killed processes may leave; see temporary_of


class TakenError(RunError):
    """There is something at a new folder's place already."""


def version() -> dict[str, Any]:
    """The entries by which a file says what wrote it."""
    return {"format": FORMAT, "fastrnn": backends.fastrnn_version()}


def temporary_of(path: Path) -> Path:
    """Where a file or folder is made before it is moved to its place; LEFT matches it."""
    return path.with_name(f".{path.name}.tmp")


def write(path: Path, content: bytes) -> None:
    """Replaces a file; if the process dies, either the old or the new file is there, whole.

    Raises:
        RunError: it cannot be written; the old file is still there.
    """
    if path.exists() and not path.is_file() and not path.is_dir():  # the rename would replace it
        raise RunError(f"{path} is a device or a pipe; expected the name of a file")
    temporary = temporary_of(path)
    with interrupts.cleanup(lambda: temporary.unlink(missing_ok=True)):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise RunError(
                f"{path} cannot be written ({error.strerror}): fix that, then start the command "
                "again"
            ) from None
    with contextlib.suppress(OSError):  # some network file systems have no such call
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # makes the rename itself durable
        finally:
            os.close(folder)


def csv_content(rows: Sequence[Mapping[str, float]]) -> bytes:
    """A table with a header; all rows have the same columns."""
    text = io.StringIO()
    table = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    table.writeheader()
    table.writerows({k: f"{v:.6g}" for k, v in row.items()} for row in rows)
    return text.getvalue().encode()


def write_csv(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Writes a table as :func:`csv_content` makes it.

    Raises:
        RunError: it cannot be written.
    """
    write(path, csv_content(rows))


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON value, indented.

    Raises:
        RunError: it cannot be written.
    """
    write(path, (json.dumps(value, indent=2) + "\n").encode())


def write_arrays(path: Path, **arrays: Any) -> None:
    """Writes a compressed .npz file of NumPy arrays or CPU tensors.

    Raises:
        RunError: it cannot be written.
    """
    content = io.BytesIO()
    plain: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    np.savez_compressed(content, **plain)
    write(path, content.getvalue())


def write_summary(folder: Path, facts: Mapping[str, Any], names: Iterable[str]) -> None:
    """Writes a folder's summary.json, with the sums of files beside it and with its own.

    Raises:
        RunError: it cannot be written.
    """
    value = {
        **version(),
        checksums.FIELD: checksums.BLANK,
        **facts,
        "files": checksums.of_files(folder, names),
    }
    content = (json.dumps(value, indent=2) + "\n").encode()
    write(folder / SUMMARY, checksums.sealed(content))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something else.
    """
    return _parsed(reading.read(path, MOST_JSON))


def _parsed(content: bytes) -> dict[str, Any]:
    """The object in JSON text; raises ValueError if it holds something else."""
    try:
        value = json.loads(content, parse_int=_integer)
    except RecursionError as error:
        raise ValueError(error) from None
    if not isinstance(value, dict):
        raise ValueError("it holds no JSON object")
    return value


def _integer(digits: str) -> int:
    """A whole number that a float can hold."""
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def damages(folder: Path) -> list[str]:
    """What is wrong with a folder's summary.json and the files that it lists; a line each.

    A summary without sums, of format 1, is taken as it is.
    """
    path = folder / SUMMARY
    try:
        content = reading.read(path, MOST_JSON)
        value = _parsed(content)
    except (OSError, ValueError) as error:
        return [f"{path} is damaged ({reading.reason(error)})"]
    if "training_seconds" in value and not value.keys() & {"format", checksums.FIELD, "files"}:
        return []
    if not checksums.is_whole(content, value.get(checksums.FIELD)):
        return [f"{path} is damaged (its SHA-256 differs)"]
    return checksums.differing(folder, value.get("files", {}))


@contextlib.contextmanager
def new_folder(folder: Path, remedy: str = "choose another --out") -> Iterator[Path]:
    """Yields a temporary folder to fill; when the block ends, one rename moves it to its place.

    Args:
        folder: its place; an empty folder there is replaced.
        remedy: the end of an error's message.

    Raises:
        TakenError: there is something at this place already, or another process is filling it.
        RunError: no folder can be made there.
    """
    place = _place(folder, remedy)
    temporary = temporary_of(place)
    busy = TakenError(f"another process is writing {folder}: wait for it, or {remedy}")

    def remove() -> None:
        shutil.rmtree(temporary, ignore_errors=True)

    with contextlib.ExitStack() as stack:
        with interrupts.postponed():
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                _sweep(place.parent)
                temporary.mkdir(exist_ok=True)
            except OSError as error:
                raise RunError(f"{folder} cannot be made ({error.strerror}): {remedy}") from None
            stack.enter_context(locks.held(temporary / locks.NAME, busy))
            stack.enter_context(interrupts.cleanup(remove))
        try:
            _place(folder, remedy)  # again: another process may just have filled it
            yield temporary
            _move(temporary, place, folder, remedy)
            (place / locks.NAME).unlink(missing_ok=True)
        except BaseException:
            remove()
            raise


def _place(folder: Path, remedy: str) -> Path:
    """Where a new folder goes: for a link, to what it points at."""
    place = Path(os.path.realpath(folder))
    try:
        if not place.exists():
            return place
        if not place.is_dir():
            raise TakenError(f"{folder} is a file: {remedy}")
        if any(place.iterdir()):
            raise TakenError(f"{folder} exists and is not empty: {remedy}")
        if place.samefile(Path()):
            raise TakenError(
                f"{folder} is the current folder, which cannot be replaced: name a new one in it"
            )
    except OSError as error:
        raise RunError(f"{folder} cannot be used ({error.strerror}): {remedy}") from None
    return place


def _move(temporary: Path, place: Path, folder: Path, remedy: str) -> None:
    try:
        temporary.rename(place)  # replaces an empty folder, and refuses any other
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise TakenError(f"{folder} exists and is not empty: {remedy}") from None
        raise RunError(f"{folder} cannot be replaced ({error.strerror}): {remedy}") from None


def _sweep(folder: Path) -> None:
    """Removes temporary folders that killed processes have left."""
    for path in folder.glob(LEFT):
        if not (path / locks.NAME).is_file():
            continue
        with contextlib.suppress(BlockingIOError), locks.held(path / locks.NAME, BlockingIOError()):
            shutil.rmtree(path, ignore_errors=True)
