"""Figures of any run. matplotlib loads on first use and only writes files."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastrnn.training import files, reading

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, atomically.

    Raises:
        RunError: the file cannot be written.
    """
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI)
    files.write(path, content.getvalue())


def draw(make: Callable[[], Figure], path: Path, warn: Callable[[str], None]) -> None:
    """Makes a figure and writes it; whatever fails is a warning, for no result depends on it."""
    # That its cache cannot be written costs time alone.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        path.parent.mkdir(exist_ok=True)
        save(make(), path)
    except Exception as error:
        warn(f"no picture {path} ({type(error).__name__}: {reading.reason(error)})")


def curves(history: Sequence[Mapping[str, float]]) -> Figure:
    """A panel per metric that training and validation share, over the epochs.

    Args:
        history: the rows of metrics.csv.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = [key.removeprefix("train_") for key in history[0] if key.startswith("train_")]
    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(4.8 * len(names), 3.6), layout="constrained")
    for panel, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for split in ("train", "validation"):
            values = [row[f"{split}_{name}"] for row in history]
            panel.plot(epochs, values, label=split, marker="." if len(epochs) < 50 else None)
        panel.set(xlabel="epoch", title=name.replace("_", " "))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False)
    return figure
