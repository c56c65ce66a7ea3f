"""A run's folder: what training writes, and how it survives being killed.

``docs/run-format.md`` describes every file. ``last.safetensors`` alone is the state, so one atomic
rename commits it. ``metrics.csv`` and ``best.safetensors`` are derived from it and written again
when a run resumes.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastrnn.training import checkpoints, files, locks, reading
from fastrnn.training.checkpoints import Record
from fastrnn.training.errors import RunError

# Settings that neither shape the weights nor count the steps; they may differ when a run goes on.
MACHINE = ("device", "backend", "data_dir", "checkpoint_seconds", "accumulate")
ENTRIES = {"task", "preset", "settings", "format", "fastrnn", "id", "extended_from"}


@dataclass(frozen=True)
class Run:
    """The folder of one training.

    Attributes:
        folder: where it is.
        content: of config.json.
    """

    folder: Path
    content: Mapping[str, Any] = field(default_factory=dict)

    @property
    def last(self) -> Path:
        """The whole state; see :mod:`fastrnn.training.checkpoints`."""
        return self.folder / "checkpoints" / "last.safetensors"

    @property
    def previous(self) -> Path:
        """The state before the last one, to fall back on if that gets damaged."""
        return self.folder / "checkpoints" / "previous.safetensors"

    @property
    def best(self) -> Path:
        """The weights of the epoch that was best on validation."""
        return self.folder / "checkpoints" / "best.safetensors"

    @property
    def finished(self) -> bool:
        """Whether the run reached its end."""
        return (self.folder / files.SUMMARY).exists()

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint of this run must agree with: all of config.json but the machine's."""
        settings = self.content.get("settings", {})
        return {
            **{k: v for k, v in self.content.items() if k not in ("settings", "extended_from")},
            "settings": {k: v for k, v in settings.items() if k not in MACHINE},
        }

    @classmethod
    def create(cls, folder: Path, content: Mapping[str, Any]) -> Run:
        """Makes a new folder, which appears with its config.json in one rename.

        Raises:
            TakenError: there is something at this place already.
            RunError: no folder can be made there.
        """
        content = {**files.version(), "id": secrets.token_hex(8), **content}
        with files.new_folder(folder, "choose another --out, or --resume it") as temporary:
            (temporary / "checkpoints").mkdir()
            files.write_json(temporary / "config.json", content)
        return cls(folder, content)

    @classmethod
    def open(cls, folder: Path) -> Run:
        """An existing run.

        Raises:
            RunError: the folder holds no run, or its config.json is damaged or too new.
        """
        path = folder / "config.json"
        try:
            content = files.read_json(path)
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(_no_run(folder)) from None
        except (OSError, ValueError) as error:
            raise RunError(
                f"{path} is damaged ({reading.reason(error)}): restore it from a copy, or start a "
                "new run"
            ) from None
        checkpoints.check_format(path, content)
        if not isinstance(content.get("task"), str):
            raise RunError(f"{path} is damaged (it names no task): start a new run")
        if others := sorted(content.keys() - ENTRIES):
            raise RunError(f"{path} is damaged (it has unknown entries: {', '.join(others)})")
        return cls(folder, content)

    @contextlib.contextmanager
    def locked(self) -> Iterator[int]:
        """Keeps other processes from training this run until the block, or the process, ends.

        What a killed process left unfinished is removed. Yields the lock's descriptor.

        Raises:
            RunError: another process is training it.
        """
        busy = f"{self.folder} is being trained by another process: wait for it, or stop it"
        try:
            with locks.held(self.folder / locks.NAME, RunError(busy)) as lock:
                for path in [*self.folder.glob(files.LEFT), *self.last.parent.glob(files.LEFT)]:
                    if path.is_file():
                        path.unlink()
                yield lock
        except PermissionError as error:
            raise RunError(f"{self.folder} cannot be written ({error.strerror})") from None

    def check_place(self, lock: int) -> None:
        """Raises RunError if the folder that :meth:`locked` locked is no longer at its place."""
        if not locks.is_at(lock, self.folder / locks.NAME):
            raise RunError(
                f"{self.folder} has been moved or replaced while it was trained: its last "
                "checkpoint is with it; --resume it at its new place"
            )

    def check(self, path: Path, record: Record) -> None:
        """Checks that a checkpoint belongs to this run and to its settings.

        Raises:
            RunError: it does not; the message names each setting that differs.
        """
        stored, own = record.identity, self.identity
        if stored is None:  # format 1 kept no settings with its checkpoints
            if "format" in own:
                raise RunError(f"{path} has no checksum: it is not of this run")
            return
        if stored.get("id") != own.get("id"):
            raise RunError(
                f"{path} belongs to another run, {stored.get('id')}; this one's config.json says "
                f"{own.get('id')}: copy the right file back"
            )
        pairs = {
            **{k: (stored.get(k), own.get(k)) for k in {*stored, *own} - {"settings"}},
            **{
                k: (stored["settings"].get(k), own["settings"].get(k))
                for k in {*stored["settings"], *own["settings"]}
            },
        }
        if pairs.get("epochs", (0,))[0] in self.content.get("extended_from", []):
            del pairs["epochs"]
        if differing := [f"{k} is {b!r}, but was {a!r}" for k, (a, b) in pairs.items() if a != b]:
            raise RunError(
                f"{self.folder / 'config.json'} has been changed or damaged: "
                f"{'; '.join(sorted(differing))} when {path.name} was written: change it back, or "
                "start a new run"
            )

    def check_unstarted(self) -> None:
        """Checks that a run without last checkpoint has not lost it.

        Raises:
            RunError: it has been trained, or its folder of checkpoints is missing.
        """
        if not self.last.parent.is_dir():
            raise RunError(
                f"there is no {self.last.parent}: copy it back or mount it, then resume the run"
            )
        learnt = [self.folder / "metrics.csv", self.best, self.previous]
        if found := [path.name for path in learnt if path.exists()]:
            raise RunError(
                f"{self.last} is missing, though the run has been trained (there is "
                f"{found[0]}): {self.still_usable()}"
            )

    def still_usable(self) -> str:
        """What to do without a last checkpoint; the end of an error's message."""
        other = "copy it back, or start a new run"
        if self._is_whole(self.previous):
            other = (
                "copy it back, or go on from the checkpoint before it: "
                f"{shlex.join(['mv', str(self.previous), str(self.last)])}"
            )
        if self._is_whole(self.best):
            other += f"; {self.best.name} is whole, so the run can be evaluated"
        return other

    def _is_whole(self, checkpoint: Path) -> bool:
        """Whether a checkpoint can be read and belongs to this run."""
        try:
            _, record = checkpoints.read(checkpoint)
            self.check(checkpoint, record)
        except RunError:
            return False
        return True

    def extend(self, epochs: int) -> Run:
        """This run with more epochs; a finished one becomes unfinished, and its results go.

        Raises:
            RunError: another process is training it, or it cannot be written.
        """
        settings = {**self.content["settings"], "epochs": epochs}
        earlier = [*self.content.get("extended_from", []), self.content["settings"]["epochs"]]
        content = {**self.content, "settings": settings, "extended_from": earlier}
        with self.locked():
            for path in [self.folder / files.SUMMARY, *self.folder.glob("*.png")]:
                path.unlink(missing_ok=True)
            files.write_json(self.folder / "config.json", content)
        return Run(self.folder, content)

    def keep_previous(self) -> None:
        """Makes the last checkpoint the previous one too; it stays where it is."""
        temporary = files.temporary_of(self.previous)
        with contextlib.suppress(OSError):  # a file system without links keeps no second one
            temporary.unlink(missing_ok=True)
            os.link(self.last, temporary)
            temporary.replace(self.previous)
            temporary.unlink(missing_ok=True)  # still there if both were the same file already

    def write_metrics(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Writes metrics.csv; all rows have the same columns."""
        files.write_csv(self.folder / "metrics.csv", rows)

    def summary(self) -> dict[str, Any]:
        """The content of summary.json."""
        return files.read_json(self.folder / files.SUMMARY)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json, which marks the run as finished."""
        names = ["metrics.csv", *(str(p.relative_to(self.folder)) for p in (self.last, self.best))]
        files.write_summary(self.folder, summary, names)


def _no_run(folder: Path) -> str:
    if not folder.exists():
        return f"{folder} does not exist"
    if not folder.is_dir():
        return f"{folder} is a file, not the folder of a run"
    return f"{folder} is not a run: there is no config.json in it"
