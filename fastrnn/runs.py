"""A run's folder: what a training leaves on disk, and how it survives being killed.

::

    config.json                   the task, the preset and every setting
    metrics.csv                   one row an epoch
    checkpoints/last.safetensors  everything a run needs to go on: weights, optimiser, random state,
                                  position, metrics so far, and the best weights
    checkpoints/best.safetensors  the weights that were best on validation, as a plain state_dict
    summary.json                  the result; there only when the run is finished
    curves.png, ...               pictures

``last.safetensors`` alone is the state, so one atomic rename commits it; ``metrics.csv`` and
``best.safetensors`` are derived from it and written again when a run goes on.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


class RunError(Exception):
    """A run's folder cannot be used; the message is one line that says why and what to do."""


def write(path: Path, content: bytes) -> None:
    """Replaces a file; whenever the process dies, either the old or the new one is there, whole.

    Raises:
        RunError: it cannot be written; the old one is there still.
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
            f"{path} cannot be written ({error.strerror}): mend that, then start the command again"
        ) from None
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # makes the rename itself durable
    finally:
        os.close(folder)


def write_csv(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Writes a table with a header; all rows have the same columns."""
    text = io.StringIO()
    table = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    table.writeheader()
    table.writerows({k: f"{v:.6g}" for k, v in row.items()} for row in rows)
    write(path, text.getvalue().encode())


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON value, indented."""
    write(path, (json.dumps(value, indent=2) + "\n").encode())


def write_arrays(path: Path, **arrays: Any) -> None:
    """Writes an .npz file, compressed; arrays are NumPy's or tensors on the CPU."""
    content = io.BytesIO()
    plain: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    np.savez_compressed(content, **plain)
    write(path, content.getvalue())


@contextlib.contextmanager
def new_folder(folder: Path, remedy: str = "choose another --out") -> Iterator[Path]:
    """A folder to fill, which appears in its place in one rename when the block ends.

    Raises:
        RunError: there is something at this place already, or no folder can be made there; the
            remedy ends the message.
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


@dataclass(frozen=True)
class Run:
    """The folder of one training."""

    folder: Path

    @property
    def last(self) -> Path:
        """The whole state: :mod:`fastrnn.checkpoints`."""
        return self.folder / "checkpoints" / "last.safetensors"

    @property
    def best(self) -> Path:
        """The weights that were best on validation."""
        return self.folder / "checkpoints" / "best.safetensors"

    @property
    def finished(self) -> bool:
        """Whether the run reached its end."""
        return (self.folder / "summary.json").exists()

    @classmethod
    def create(cls, folder: Path, config: Mapping[str, Any]) -> Run:
        """Makes a new folder, which appears with its config.json in one rename.

        Raises:
            RunError: there is something at this place already.
        """
        with new_folder(folder, "choose another --out, or --resume it") as temporary:
            (temporary / "checkpoints").mkdir()
            write_json(temporary / "config.json", config)
        return cls(folder)

    @classmethod
    def open(cls, folder: Path) -> tuple[Run, dict[str, Any]]:
        """An existing run and the content of its config.json.

        Raises:
            RunError: the folder holds no run, or its config.json is damaged.
        """
        path = folder / "config.json"
        try:
            config = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(f"{folder} is not a run: there is no config.json in it") from None
        except (ValueError, RecursionError) as error:
            raise RunError(f"{path} is damaged ({error}): start a new run") from None
        if not isinstance(config, dict) or not isinstance(config.get("task"), str):
            raise RunError(f"{path} is damaged (it names no task): start a new run")
        return cls(folder), config

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps the run for this process, until the block or the process ends.

        Raises:
            RunError: another process has it.
        """
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"{self.folder} is being trained by another process: wait for it, or stop it"
                ) from None
            yield
        finally:
            os.close(folder)

    def write_metrics(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Writes metrics.csv; all rows have the same columns."""
        write_csv(self.folder / "metrics.csv", rows)

    def summary(self) -> dict[str, Any]:
        """What summary.json holds."""
        return json.loads((self.folder / "summary.json").read_bytes())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json, which marks the run as finished."""
        write_json(self.folder / "summary.json", summary)
