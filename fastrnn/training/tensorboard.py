"""A run's curves for TensorBoard, in the folder ``tensorboard`` of the run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastrnn.training import reading
from fastrnn.training.config import ConfigError

FOLDER = "tensorboard"
EVENTS = "events.out.tfevents.*"
SPLITS = ("train", "validation")  # a folder each, so that TensorBoard draws both in one chart

Watch = Callable[[Sequence[Mapping[str, float]]], None]


def writer() -> Any:
    """The class SummaryWriter of torch.

    Raises:
        ConfigError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "tensorboard is not installed: pip install 'fastrnn[tensorboard]', or drop "
            "--tensorboard"
        ) from None
    return SummaryWriter


@contextlib.contextmanager
def board(run: Path, warn: Callable[[str], None]) -> Iterator[Watch]:
    """Yields a function that writes the rows of metrics.csv which it has not yet written.

    Its first call replaces what is there, so that a run which was resumed has one curve. If it
    cannot write, a warning says so once, and the training goes on.

    Args:
        run: the run's folder.
        warn: told why nothing can be written.

    Raises:
        ConfigError: tensorboard is not installed.
    """
    make = writer()
    writers: dict[str, Any] = {}
    written = 0
    start = 0.0
    failed = False

    def write(history: Sequence[Mapping[str, float]]) -> None:
        nonlocal start, written
        if not writers:
            start = time.time() - sum(row["seconds"] for row in history)
            for split in SPLITS:
                folder = run / FOLDER / split
                for path in folder.glob(EVENTS):
                    path.unlink()
                writers[split] = make(str(folder))
        for row in history[written:]:
            start += row["seconds"]
            for name, value in row.items():
                split, _, metric = name.partition("_")
                if split not in SPLITS:
                    split, metric = SPLITS[0], name
                if metric != "epoch":
                    writers[split].add_scalar(metric, value, int(row["epoch"]), walltime=start)
        written = len(history)
        for each in writers.values():
            each.flush()

    def watch(history: Sequence[Mapping[str, float]]) -> None:
        nonlocal failed
        if failed:
            return
        try:
            write(history)
        except Exception as error:
            failed = True
            warn(f"nothing more goes to {run / FOLDER} ({reading.reason(error)})")

    try:
        yield watch
    finally:
        for each in writers.values():
            with contextlib.suppress(Exception):
                each.close()
