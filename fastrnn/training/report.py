"""What a run prints, and its summary."""

from __future__ import annotations

import contextlib
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from fastrnn import backends
from fastrnn.training import distributed, interrupts
from fastrnn.training.checkpoints import Progress
from fastrnn.training.config import Config


class Output:
    """What a command shows; in all processes but the first, nothing.

    Args:
        quiet: show nothing.
        stderr: print there.
        lasting: whether the command goes on if it cannot print, because its terminal was closed or
            its log's disk is full. A pipe that is closed early, as by ``head``, ends any command.
    """

    def __init__(self, *, quiet: bool = False, stderr: bool = False, lasting: bool = False) -> None:
        from rich.console import Console

        self.lasting = lasting
        hidden = quiet or not distributed.first()
        self.console = Console(
            highlight=False, markup=False, emoji=False, quiet=hidden, stderr=stderr
        )

    def print(self, text: str) -> None:
        """Prints a line, as it is."""
        try:
            self.console.print(text, soft_wrap=True)
        except OSError as error:
            if not self.lasting or isinstance(error, BrokenPipeError):
                raise
            self.console.quiet = True

    def warn(self, text: str) -> None:
        """Prints a line on stderr."""
        if distributed.first():
            with contextlib.suppress(OSError):
                print(f"fastrnn: {text}", file=sys.stderr)

    @contextlib.contextmanager
    def progress(self, text: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
        """A progress bar on a terminal; yields the function that sets what is done."""
        from rich.progress import Progress as Bar

        console = self.console
        if console.quiet or console.is_dumb_terminal or not console.file.isatty():
            yield lambda done: None  # FORCE_COLOR makes any file a terminal for rich
            return
        bar = Bar(console=console, transient=True)
        with bar, interrupts.cleanup(lambda: console.show_cursor(True)):
            row = bar.add_task(text, total=total, completed=done)
            yield lambda done: bar.update(row, completed=done)


def epoch_line(row: Mapping[str, float], epochs: int) -> str:
    """A row of metrics.csv as a line to print."""
    metrics = "  ".join(
        f"{name.replace('_', ' ')} {value:.4f}"
        for name, value in row.items()
        if name.startswith(("train_", "validation_"))
    )
    speed = f"{row['images_per_second']:,.0f} images/s"
    return f"epoch {row['epoch']:.0f}/{epochs}  {metrics}  {speed}"


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
