"""Figures of the tasks' results. matplotlib loads on first use and only writes files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fastrnn.training.figures import WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

Colour = tuple[float, float, float]  # red, green and blue, in [0, 1]
Colours = tuple[Colour, Colour]  # of pixels 0 and 1

HIDDEN: Colour = (0.42, 0.45, 0.50)
FILLED: Colours = ((0.07, 0.17, 0.33), (0.55, 0.80, 1.0))
WRONG: Colours = ((0.70, 0.25, 0.0), (1.0, 0.62, 0.35))
CLOSE = 16  # pixels to each side that are drawn of larger images with small holes
CONFUSIONS, MISREAD = 5, 6  # in a confusion matrix: the worst confusions, and images of each


@dataclass(frozen=True)
class Confusion:
    """Test images of one class that were taken for another.

    Attributes:
        true: the class.
        predicted: the other one.
        count: how many there are.
        of: how many images of the class there are.
        images: [N, height, width] in [0, 1], some of them.
    """

    true: int
    predicted: int
    count: int
    of: int
    images: Tensor


def worst(images: Tensor, labels: Tensor, predicted: Tensor, classes: int) -> list[Confusion]:
    """The commonest confusions, up to CONFUSIONS, with up to MISREAD images each.

    Args:
        images: [N, height, width] in [0, 1].
        labels: [N] int64, the true classes.
        predicted: [N] int64.
        classes: how many there are.
    """
    pairs = labels * classes + predicted
    counts = torch.bincount(pairs[labels != predicted], minlength=classes * classes)
    found = []
    for pair in counts.sort(descending=True, stable=True).indices[:CONFUSIONS].tolist():
        if count := int(counts[pair]):
            chosen = images[(pairs == pair).nonzero()[:MISREAD, 0]]
            true, taken_for = divmod(pair, classes)
            of = int((labels == true).sum())
            found.append(Confusion(true, taken_for, count, of, chosen))
    return found


def confusion(counts: Tensor, confusions: Sequence[Confusion] = ()) -> Figure:
    """The confusion matrix, and beside it images of the worst confusions.

    Args:
        counts: [classes, classes] int64 of true (rows) and predicted (columns) labels.
        confusions: what to draw, in rows from the top.
    """
    from matplotlib.figure import Figure

    if confusions:
        figure = Figure(figsize=(WIDTH * 1.1, 3.9), layout="constrained")
        parts = figure.subfigures(1, 2, width_ratios=(1.1, 1), squeeze=False)[0]
        _matrix(parts[0].subplots(), counts)
        _misread(parts[1], confusions)
        return figure
    figure = Figure(figsize=(4.0, 3.9), layout="constrained")
    _matrix(figure.subplots(), counts)
    return figure


def _matrix(panel: Axes, counts: Tensor) -> None:
    classes = len(counts)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    # By its square root, so that rare confusions have a shade too.
    panel.imshow(shares.sqrt().numpy(), cmap="Blues", vmin=0, vmax=1)
    for true in range(classes):
        for predicted in range(classes):
            if count := int(counts[true, predicted]):
                shade = "white" if shares[true, predicted] > 0.4 else "black"
                panel.text(
                    predicted, true, str(count), ha="center", va="center", color=shade, fontsize=7
                )
    accuracy = counts.trace() / counts.sum()
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0)
    panel.set(
        xticks=range(classes),
        yticks=range(classes),
        xlabel="predicted digit",
        ylabel="true digit",
        title=f"test set: {accuracy:.2%} of {int(counts.sum()):,} right",
    )


def _misread(figure: SubFigure, confusions: Sequence[Confusion]) -> None:
    """A row for each confusion: what was taken for what, how often, and images."""
    figure.suptitle("worst confusions", x=0.02, ha="left", fontsize=10, weight="bold")
    panels = figure.subplots(CONFUSIONS, MISREAD, squeeze=False)
    for row in panels:
        for panel in row:
            panel.set_axis_off()
    for row, found in zip(panels, confusions, strict=False):
        for panel, image in zip(row, found.images, strict=False):
            panel.imshow(image.numpy(), cmap="gray_r", vmin=0, vmax=1)
        text = f"{found.true} taken for {found.predicted}, {found.count} of {found.of:,}"
        title = row[0].text(0, 1.08, text, fontsize=8, transform=row[0].transAxes)
        title.set_in_layout(False)  # or it would widen the first column


def loss_map(nats: Tensor) -> Figure:
    """The mean loss of each pixel.

    Args:
        nats: [height, width]; the first pixel is not predicted and has none.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 3.8), layout="constrained")
    panel = figure.subplots()
    picture = panel.imshow(nats.numpy(), cmap="magma", vmin=0)
    figure.colorbar(picture, label="mean loss, nats per pixel")
    panel.spines[:].set_visible(False)
    panel.set(
        title=f"test set: {nats.sum():.2f} nats per image",
        xlabel="column, pixels",
        ylabel="row, pixels",
    )
    return figure


def inpainted(truth: Tensor, hidden: Tensor, filled: Tensor) -> Figure:
    """Images before and after their holes were filled, and as they truly are, in three rows.

    Of large images with small holes, the surroundings of the holes are drawn.

    Args:
        truth: [N, height, width] of 0 and 1.
        hidden: [N, height, width] bool.
        filled: as ``truth``.
    """
    from matplotlib.figure import Figure

    truth, hidden, filled = _close_up(truth, hidden, filled)
    true = np.repeat(truth.float().numpy()[..., None], 3, 3)
    before, after = true.copy(), true.copy()
    before[hidden.numpy()] = HIDDEN
    right = filled == truth
    for colours, which in ((FILLED, hidden & right), (WRONG, hidden & ~right)):
        for value, colour in enumerate(colours):
            after[(which & (filled == value)).numpy()] = colour
    columns = max(len(truth), 4)
    side = WIDTH / (columns + 0.6)
    figure = Figure(figsize=(WIDTH, 3 * side + 0.35), layout="constrained")
    figure.suptitle("filled pixels: blue is right, orange is wrong", fontsize=9)
    panels = figure.subplots(3, len(truth), squeeze=False)
    rows = zip((before, after, true), panels, ("before", "after", "true"), strict=True)
    for images, row, title in rows:
        for image, panel in zip(images, row, strict=True):
            panel.imshow(image)
            panel.spines[:].set_visible(False)
            panel.set(xticks=[], yticks=[])
        row[0].set_ylabel(title)
    return figure


def _close_up(*images: Tensor) -> tuple[Tensor, ...]:
    """The CLOSE × CLOSE pixels around each hole; whole images if they or their holes are not small.

    Args:
        images: truth, hidden and filled, [N, height, width] each.
    """
    _, hidden, _ = images
    size = hidden.shape[1:]
    places = [each.nonzero() for each in hidden]
    extent = max(int((p.max(0).values - p.min(0).values).max()) for p in places)
    if min(size) <= CLOSE or extent >= CLOSE // 2:
        return images
    windows = []
    for place in places:
        middle = (place.max(0).values + place.min(0).values) // 2
        window = []
        for centre, side in zip(middle.tolist(), size, strict=True):
            start = min(max(centre - CLOSE // 2, 0), side - CLOSE)
            window.append(slice(start, start + CLOSE))
        windows.append(tuple(window))
    return tuple(
        torch.stack([image[window] for image, window in zip(each, windows, strict=True)])
        for each in images
    )
