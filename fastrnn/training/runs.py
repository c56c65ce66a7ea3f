"""A run's folder: what training writes, and how it survives being killed.

::

    config.json                   the task, the preset and every setting
    metrics.csv                   one row per epoch
    checkpoints/last.safetensors  everything a run needs to resume: weights, optimiser, random
                                  state, position, metrics so far, and the best weights
    checkpoints/best.safetensors  the weights of the epoch best on validation, a plain state_dict
    summary.json                  the result; exists only when the run is finished
    curves.png, ...               figures

``last.safetensors`` alone is the state, so one atomic rename commits it. ``metrics.csv`` and
``best.safetensors`` are derived from it and written again when a run resumes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastrnn.training import files
from fastrnn.training.files import RunError


@dataclass(frozen=True)
class Run:
    """The folder of one training."""

    folder: Path

    @property
    def last(self) -> Path:
        """The whole state; see :mod:`fastrnn.training.checkpoints`."""
        return self.folder / "checkpoints" / "last.safetensors"

    @property
    def best(self) -> Path:
        """The weights of the epoch that was best on validation."""
        return self.folder / "checkpoints" / "best.safetensors"

    @property
    def finished(self) -> bool:
        """Whether the run reached its end."""
        return (self.folder / "summary.json").exists()

    @classmethod
    def create(cls, folder: Path, config: Mapping[str, Any]) -> Run:
        """Makes a new folder, which appears with its config.json in one rename.

        Raises:
            RunError: there is something at this place already, or no folder can be made there.
        """
        with files.new_folder(folder, "choose another --out, or --resume it") as temporary:
            (temporary / "checkpoints").mkdir()
            files.write_json(temporary / "config.json", config)
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
        """Keeps other processes from training this run until the block, or the process, ends.

        Raises:
            RunError: another process is training it.
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
        files.write_csv(self.folder / "metrics.csv", rows)

    def summary(self) -> dict[str, Any]:
        """The content of summary.json."""
        return json.loads((self.folder / "summary.json").read_bytes())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json, which marks the run as finished."""
        files.write_json(self.folder / "summary.json", summary)
