"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


class RunError(Exception):
    """A run's folder or file cannot be used; the message is one line: the reason and the fix."""


def write(path: Path, content: bytes) -> None:
    """Replaces a file; if the process dies, either the old or the new file is there, whole.

    Raises:
        RunError: it cannot be written; the old file is still there.
    """
    temporary = path.with_name(f".{path.name}.tmp")
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
            f"{path} cannot be written ({error.strerror}): fix that, then start the command again"
        ) from None
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # makes the rename itself durable
    finally:
        os.close(folder)


def write_csv(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Writes a table with a header; all rows have the same columns.

    Raises:
        RunError: it cannot be written.
    """
    text = io.StringIO()
    table = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    table.writeheader()
    table.writerows({k: f"{v:.6g}" for k, v in row.items()} for row in rows)
    write(path, text.getvalue().encode())


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


@contextlib.contextmanager
def new_folder(folder: Path, remedy: str = "choose another --out") -> Iterator[Path]:
    """Yields a temporary folder to fill; when the block ends, one rename moves it to its place.

    Args:
        folder: its place; an empty folder there is replaced.
        remedy: the end of an error's message.

    Raises:
        RunError: there is something at this place already, or no folder can be made there.
    """
    taken = RunError(f"{folder} exists and is not empty: {remedy}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise taken
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    except OSError as error:
        raise RunError(f"{folder} cannot be made ({error.strerror}): {remedy}") from None
    try:
        yield temporary
        try:
            temporary.rename(folder)  # replaces an empty folder, and refuses any other
        except OSError:
            raise taken from None
    except BaseException:
        shutil.rmtree(temporary)
        raise
