"""Lists runs, with the state and the best figure of each."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastrnn.tasks import registry
from fastrnn.tasks.config import PixelConfig
from fastrnn.training import checkpoints, files, locks, reading
from fastrnn.training.config import ConfigError
from fastrnn.training.errors import DataError, RunError
from fastrnn.training.runs import Run

RUNNING, STOPPED, FINISHED, DAMAGED = "running", "stopped", "finished", "damaged"
LOWER_IS_BETTER = ("loss", "hidden_loss")  # of the metrics that select the best epoch


@dataclass(frozen=True)
class Entry:
    """A run, as far as it can be read.

    Attributes:
        folder: of the run.
        state: RUNNING, STOPPED, FINISHED or DAMAGED.
        reason: what is damaged; else empty.
        task: its name; empty if it cannot be read.
        preset: the one that it was started with.
        config: its settings; None if they cannot be read.
        history: the rows of metrics.csv.
        summary: the content of summary.json; empty before the run is finished.
    """

    folder: Path
    state: str
    reason: str = ""
    task: str = ""
    preset: str = ""
    config: PixelConfig | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    summary: Mapping[str, Any] = field(default_factory=dict)

    @property
    def best_by(self) -> str:
        """The metric that selects the best epoch on validation; empty if the task is unknown."""
        return registry.get(self.task).best_by if self.task else ""

    @property
    def validation(self) -> list[float]:
        """The metric that selects the best epoch, after each epoch."""
        return [row[f"validation_{self.best_by}"] for row in self.history]

    @property
    def best_epoch(self) -> int:
        """The epoch that was best on validation, counted from 1; 0 if there is none."""
        if not (values := self.validation):
            return 0
        return 1 + values.index((min if self.best_by in LOWER_IS_BETTER else max)(values))

    @property
    def best(self) -> float | None:
        """The best figure: on the test set if the run is finished, else on validation."""
        if (name := f"test_{self.best_by}") in self.summary:
            return float(self.summary[name])
        return self.validation[self.best_epoch - 1] if self.history else None

    @property
    def seconds(self) -> float:
        """Time that the training took, so far."""
        return sum(row["seconds"] for row in self.history)

    @property
    def model(self) -> str:
        """Cell, layers and units, as in ``GRU 3×32``."""
        if self.config is None:
            return ""
        return f"{self.config.cell} {self.config.num_layers}×{self.config.hidden_size}"

    def facts(self) -> dict[str, Any]:
        """The entry as plain values, ready for JSON."""
        config = self.config
        return {
            "run": str(self.folder),
            "task": self.task or None,
            "preset": self.preset or None,
            "model": self.model or None,
            "dataset": config.dataset if config else None,
            "epochs": config.epochs if config else None,
            "epochs_done": len(self.history),
            "best": self.best,
            "best_metric": self.best_by or None,
            "best_on": "test" if self.summary else "validation",
            "seconds": self.seconds,
            "state": self.state,
            "reason": self.reason or None,
        }


def find(folder: Path) -> Iterator[Path]:
    """The folders of runs in a folder: itself, or any below it, in order; links are followed."""
    seen = set()
    for name, below, names in os.walk(folder, followlinks=True):
        place = Path(name)
        if (real := os.path.realpath(place)) in seen:  # a link to a folder above, or a second one
            below.clear()
            continue
        seen.add(real)
        below.sort()
        if "config.json" in names and ("checkpoints" in below or _is_ours(place)):
            below.clear()
            yield place
        below[:] = [each for each in below if not each.startswith(".")]


def _is_ours(folder: Path) -> bool:
    """Whether a config.json is of a run, and not some other program's."""
    try:
        return {"task", "settings"} <= files.read_json(folder / "config.json").keys()
    except (OSError, ValueError):
        return False


def read(folder: Path) -> Entry:
    """A run, however damaged it is."""
    facts: dict[str, Any] = {}
    try:
        run = Run.open(folder)
        task = registry.get(run.content["task"])
        facts |= {"task": task.name, "preset": str(run.content.get("preset", ""))}
        facts["config"] = PixelConfig.from_json(run.content["settings"])
        facts["history"] = _history(folder / "metrics.csv", f"validation_{task.best_by}")
        if locks.taken(folder / locks.NAME):
            return Entry(folder, RUNNING, **facts)
        if run.finished:
            if damages := files.damages(folder):
                raise RunError("; ".join(damages))
            facts["summary"] = run.summary()
            return Entry(folder, FINISHED, **facts)
        if run.last.exists():
            run.check(run.last, checkpoints.read(run.last)[1])
        else:
            run.check_unstarted()
    except (RunError, DataError, ConfigError, KeyError, TypeError, OSError) as error:
        reason = f"no {error} in config.json" if isinstance(error, KeyError) else str(error)
        return Entry(folder, DAMAGED, reason, **facts)
    return Entry(folder, STOPPED, **facts)


def _history(path: Path, needed: str) -> list[dict[str, float]]:
    """The rows of metrics.csv; none before the first epoch has ended.

    Raises:
        RunError: it is damaged.
    """
    if not path.exists():
        return []
    try:
        text = reading.read(path, files.MOST_JSON).decode()
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(io.StringIO(text))]
        if any(not row.keys() >= {needed, "seconds"} for row in rows):
            raise ValueError(f"it has no {needed}")
    except (OSError, TypeError, ValueError, csv.Error) as error:
        raise RunError(f"{path} is damaged ({reading.reason(error)})") from None
    return rows
