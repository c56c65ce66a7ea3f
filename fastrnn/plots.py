"""Pictures of a run. matplotlib loads here, on first use, and draws to files only."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from fastrnn import runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150


def save(figure: Figure, path: Path) -> None:
    """Writes a picture as PNG, atomically."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI)
    runs.write(path, content.getvalue())


def curves(history: Sequence[Mapping[str, float]]) -> Figure:
    """A panel for each figure that training and validation share, over the epochs."""
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


def confusion(counts: Tensor) -> Figure:
    """Counts [classes, classes] of true (rows) and predicted (columns) labels."""
    from matplotlib.figure import Figure

    classes = len(counts)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    figure = Figure(figsize=(5.6, 5.2), layout="constrained")
    panel = figure.subplots()
    panel.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    for true in range(classes):
        for predicted in range(classes):
            if count := int(counts[true, predicted]):
                shade = "white" if shares[true, predicted] > 0.5 else "black"
                panel.text(
                    predicted, true, str(count), ha="center", va="center", color=shade, fontsize=8
                )
    accuracy = counts.trace() / counts.sum()
    panel.set(
        xticks=range(classes),
        yticks=range(classes),
        xlabel="predicted",
        ylabel="true",
        title=f"test set: {accuracy:.2%} of {int(counts.sum()):,} right",
    )
    return figure


def loss_map(nats: Tensor) -> Figure:
    """Mean nats [height, width] of each pixel; the first one is not predicted and has none."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 4.6), layout="constrained")
    panel = figure.subplots()
    picture = panel.imshow(nats.numpy(), cmap="magma", vmin=0)
    figure.colorbar(picture, label="nats")
    panel.set(xticks=[], yticks=[], title=f"test set: {nats.sum():.2f} nats an image")
    return figure


def inpainted(truth: Tensor, hidden: Tensor, filled: Tensor) -> Figure:
    """Images [N, height, width]: above with their holes, below filled."""
    import numpy as np
    from matplotlib.figure import Figure

    unknown = (0.42, 0.45, 0.50)
    right = ((0.07, 0.17, 0.33), (0.55, 0.80, 1.0))  # of 0 and of 1
    wrong = ((0.45, 0.05, 0.05), (1.0, 0.45, 0.4))
    masked = np.repeat(truth.float().numpy()[..., None], 3, 3)
    result = masked.copy()
    masked[hidden.numpy()] = unknown
    hit = filled == truth
    for colours, which in ((right, hidden & hit), (wrong, hidden & ~hit)):
        for value, colour in enumerate(colours):
            result[(which & (filled == value)).numpy()] = colour
    figure = Figure(figsize=(1.1 * max(len(truth), 4), 2.8), layout="constrained")
    figure.suptitle("filled pixels: blue right, red wrong; dark 0, light 1", fontsize=9)
    panels = figure.subplots(2, len(truth), squeeze=False)
    for images, row, title in zip((masked, result), panels, ("hidden", "filled"), strict=True):
        for image, panel in zip(images, row, strict=True):
            panel.imshow(image)
            panel.set(xticks=[], yticks=[])
        row[0].set_ylabel(title)
    return figure
