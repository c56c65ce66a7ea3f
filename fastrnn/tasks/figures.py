"""Figures of the tasks' results. matplotlib loads on first use and only writes files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Colour = tuple[float, float, float]  # red, green and blue, in [0, 1]
Colours = tuple[Colour, Colour]  # of pixels 0 and 1

HIDDEN: Colour = (0.42, 0.45, 0.50)
FILLED: Colours = ((0.07, 0.17, 0.33), (0.55, 0.80, 1.0))
WRONG: Colours = ((0.45, 0.05, 0.05), (1.0, 0.45, 0.4))


def confusion(counts: Tensor) -> Figure:
    """The confusion matrix.

    Args:
        counts: [classes, classes] int64 of true (rows) and predicted (columns) labels.
    """
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
    """The mean loss of each pixel.

    Args:
        nats: [height, width]; the first pixel is not predicted and has none.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 4.6), layout="constrained")
    panel = figure.subplots()
    picture = panel.imshow(nats.numpy(), cmap="magma", vmin=0)
    figure.colorbar(picture, label="nats")
    panel.set(xticks=[], yticks=[], title=f"test set: {nats.sum():.2f} nats per image")
    return figure


def inpainted(truth: Tensor, hidden: Tensor, filled: Tensor) -> Figure:
    """Images with their holes in the upper row, and filled in the lower row.

    Args:
        truth: [N, height, width] of 0 and 1.
        hidden: [N, height, width] bool.
        filled: as ``truth``.
    """
    from matplotlib.figure import Figure

    masked = np.repeat(truth.float().numpy()[..., None], 3, 3)
    result = masked.copy()
    masked[hidden.numpy()] = HIDDEN
    right = filled == truth
    for colours, which in ((FILLED, hidden & right), (WRONG, hidden & ~right)):
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
