"""What a run prints, and its summary."""

from __future__ import annotations

import contextlib
import json
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from fastrnn import backends
from fastrnn.training import distributed, interrupts
from fastrnn.training.checkpoints import Progress
from fastrnn.training.config import Config

COLUMNS = 80  # of the lines that commands print
LINE_SECONDS = 10.0  # between lines of progress where there is no terminal


class Show(Protocol):
    """Sets how much is done."""

    def __call__(self, done: float, text: str | None = None, note: str = "") -> None:
        """``text`` says what is being done, ``note`` what else to show."""


class Output:
    """What a command shows; in all processes but the first, nothing.

    Args:
        quiet: show nothing.
        stderr: print there.
        lasting: whether the command goes on if it cannot print, because its terminal was closed or
            its log's disk is full. A pipe that is closed early, as by ``head``, ends any command.
        level: -1 for results alone, 0 for notes and progress too, 1 for details.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        stderr: bool = False,
        lasting: bool = False,
        level: int = 0,
    ) -> None:
        from rich.console import Console

        self.lasting, self.level = lasting, level
        hidden = quiet or not distributed.first()
        self.console = Console(
            highlight=False, markup=False, emoji=False, quiet=hidden, stderr=stderr
        )

    @property
    def live(self) -> bool:
        """Whether :meth:`progress` keeps one line of a terminal up to date."""
        console = self.console
        if console.quiet or console.is_dumb_terminal or self.level < 0:
            return False
        return console.file.isatty()  # FORCE_COLOR makes any file a terminal for rich

    def print(self, text: str) -> None:
        """Prints a result, as it is."""
        try:
            self.console.print(text, soft_wrap=True)
        except OSError as error:
            if not self.lasting or isinstance(error, BrokenPipeError):
                raise
            self.console.quiet = True

    def note(self, text: str) -> None:
        """Prints what is good to know; not with -q."""
        if self.level >= 0:
            self.print(text)

    def detail(self, text: str) -> None:
        """Prints what only -v asks for."""
        if self.level > 0:
            self.print(text)

    def json(self, value: Any) -> None:
        """Prints a value as JSON on stdout, whatever the level."""
        if distributed.first():
            print(json.dumps(value, indent=2))

    def warn(self, text: str) -> None:
        """Prints a line on stderr."""
        if distributed.first():
            with contextlib.suppress(OSError):
                print(f"fastrnn: {text}", file=sys.stderr)

    @contextlib.contextmanager
    def progress(
        self, text: str, total: float, done: float = 0, unit: str = "images", *, lines: bool = True
    ) -> Iterator[Show]:
        """Shows how much is done, how fast, and the time left; yields the function that sets it.

        A terminal gets one line, which goes away at the end. Elsewhere, ``lines`` asks for a line
        every LINE_SECONDS.
        """
        first, started = done, time.monotonic()

        def pace(done: float) -> str:
            seconds = time.monotonic() - started
            if done <= first or seconds < 1:
                return ""
            rate = (done - first) / seconds
            left = duration((total - done) / rate)
            return f"{rate:,.{0 if rate >= 10 else 1}f} {unit}/s  {left} left"

        if not self.live:
            yield self._lines(text, total, unit, pace) if lines else _nothing
            return
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        facts = TextColumn("{task.fields[facts]}", markup=False)
        name = TextColumn("{task.description}", markup=False)
        bar = Bar(name, BarColumn(None), facts, console=self.console, transient=True, expand=True)
        with bar, interrupts.cleanup(lambda: self.console.show_cursor(True)):
            row = bar.add_task(text, total=total, facts="")
            bar.update(row, completed=done)

            def show(done: float, text: str | None = None, note: str = "") -> None:
                shown = "  ".join(filter(None, (note, pace(done))))
                bar.update(row, completed=done, description=text, facts=shown)

            yield show

    def _lines(self, text: str, total: float, unit: str, pace: Any) -> Show:
        """What prints a line of progress now and then."""
        printed = time.monotonic()

        def show(done: float, text: str | None = text, note: str = "") -> None:
            nonlocal printed
            if time.monotonic() - printed < LINE_SECONDS or done >= total:
                return
            printed = time.monotonic()
            parts = f"{text}  {done:,.0f} of {total:,.0f} {unit}", note, pace(done)
            self.note("  ".join(filter(None, parts)))

        return show


def _nothing(done: float, text: str | None = None, note: str = "") -> None:
    pass


def count(number: int, noun: str) -> str:
    """``1 image``, ``1,000 images``; for nouns that take an s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """A time that people read: ``9.5 s``, ``45 s``, ``3:07 min``, ``1:02 h``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}:{minutes:02} h"


def figure(name: str, value: float) -> str:
    """A metric's value as text: an accuracy in percent, a loss with four decimals."""
    return f"{value:.2%}" if "accuracy" in name else f"{value:.4f}"


def described(metrics: Mapping[str, Any], prefix: str) -> str:
    """``test accuracy 97.50%, test loss 0.1000`` from the entries whose names start so."""
    return joined(
        f"{name.replace('_', ' ')} {figure(name, value)}"
        for name, value in metrics.items()
        if name.startswith(prefix)
    )


def joined(items: Iterable[str], start: str = "", indent: str = "") -> str:
    """Items with commas between them, in lines of at most COLUMNS columns.

    Args:
        items: what to list; none is divided.
        start: how the first line begins.
        indent: how the others do.
    """
    lines, items = [start], list(items)
    for number, item in enumerate(items):
        item += "," if number < len(items) - 1 else ""
        space = " " if lines[-1].strip() and not lines[-1].endswith(" ") else ""
        if lines[-1].strip() and len(lines[-1]) + len(space) + len(item) > COLUMNS:
            lines.append(indent)
            space = ""
        lines[-1] += space + item
    return "\n".join(lines)


def epoch_line(row: Mapping[str, float], epochs: int, best_by: str) -> str:
    """A row of metrics.csv as a line to print.

    Args:
        row: of the epoch that has just ended.
        epochs: how many there are to be.
        best_by: the metric that selects the best epoch on validation.
    """
    name = best_by.replace("_", " ")
    return (
        f"epoch {row['epoch']:.0f}/{epochs}  loss {row['train_loss']:.4f}  "
        f"validation {name} {figure(best_by, row[f'validation_{best_by}'])}  "
        f"{row['images_per_second']:,.0f} images/s"
    )


def epoch_details(row: Mapping[str, float]) -> str:
    """All metrics of an epoch and its learning rate, to print below :func:`epoch_line`."""
    items = [
        f"{name.replace('_', ' ')} {figure(name, value)}"
        for name, value in row.items()
        if name.startswith(("train_", "validation_"))
    ]
    return joined([*items, f"learning rate {row['learning_rate']:.3g}"], "  ", "  ")


def summary(
    config: Config,
    progress: Progress,
    test: Mapping[str, float],
    model: nn.Module,
    *,
    examples: int,
    backend: str,
    command: str,
) -> dict[str, Any]:
    """The content of summary.json.

    Args:
        config: the run's settings.
        progress: of the finished run.
        test: metrics of the test set.
        model: whose parameters are counted.
        examples: in the training set.
        backend: the name of the one that trained the model.
        command: what the user typed.
    """
    seconds = sum(row["seconds"] for row in progress.history)
    return {
        **{f"test_{name}": value for name, value in test.items()},
        "best_epoch": progress.best_epoch,
        "epochs": config.epochs,
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_seconds": seconds,
        "images_per_second": examples * config.epochs / seconds,
        "backend": backend,
        "device": config.device,
        "threads": torch.get_num_threads(),
        "processes": distributed.size(),
        "versions": {
            "fastrnn": backends.fastrnn_version(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "command": command,
    }
