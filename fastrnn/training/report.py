"""What a run prints, and its summary."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fastrnn import backends
from fastrnn.training.checkpoints import Progress
from fastrnn.training.config import Config

if TYPE_CHECKING:
    from rich.console import Console


@contextlib.contextmanager
def progress_bar(
    console: Console, text: str, total: int, done: int = 0
) -> Iterator[Callable[[int], None]]:
    """A progress bar, if the console is a terminal; yields the function that sets what is done."""
    from rich.progress import Progress as Bar

    with Bar(console=console, transient=True, disable=not console.is_terminal) as bar:
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
        "versions": {
            "fastrnn": backends.fastrnn_version(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "command": command,
    }
