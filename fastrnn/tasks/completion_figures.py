"""Figures of completed images, drawn pixel by pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from fastrnn.tasks.figures import FILLED, HIDDEN, Colours
from fastrnn.training.figures import DPI

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KNOWN: Colours = ((0.05, 0.05, 0.06), (0.97, 0.97, 0.95))
PREDICTED: Colours = FILLED
UNKNOWN: Colours = (HIDDEN, HIDDEN)
SHOWN = 10  # samples per image
# Sizes in dots. With these, 12 columns fit a screen.
SIDE = 112  # of an image, at least
GAP = 6  # between images
LEFT, TOP, TITLE = 150, 26, 40  # space for captions, column titles and the figure's title


def completions(
    title: str,
    truth: Tensor,
    samples: Tensor,
    *,
    known: int,
    predicted: int,
    captions: list[str],
) -> Figure:
    """A row per image: the known pixels, the true image, and its completions.

    Args:
        title: of the figure.
        truth: [N, height, width] of 0 and 1.
        samples: [N, S, height, width] of 0 and 1; the first SHOWN are drawn.
        known: pixels before the first predicted one.
        predicted: pixels that were predicted; those after them are drawn as unknown.
        captions: N texts, to the left of the rows.
    """
    from matplotlib.figure import Figure

    samples = samples[:, :SHOWN]
    end = known + predicted
    columns = {
        "known": coloured(truth, (known, KNOWN), (None, UNKNOWN)),
        "true": coloured(truth, (known, KNOWN), (end, PREDICTED), (None, KNOWN)),
    }
    for k in range(samples.shape[1]):
        parts = ((known, KNOWN), (end, PREDICTED), (None, UNKNOWN))
        columns[f"sample {k + 1}"] = coloured(samples[:, k], *parts)
    height, width = truth.shape[1:]
    scale = -(-SIDE // max(height, width))
    across, down = width * scale + GAP, height * scale + GAP
    size = (LEFT + len(columns) * across, TITLE + TOP + len(truth) * down)
    figure = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI)
    canvas = np.ones((size[1], size[0], 3))
    for column, images in enumerate(columns.values()):
        for row, image in enumerate(images):
            x, y = LEFT + column * across, TITLE + TOP + row * down
            pixels = image.repeat(scale, 0).repeat(scale, 1)
            canvas[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
    figure.figimage(canvas)

    def write(x: float, y: float, text: str, **how: Any) -> None:  # in dots, from the upper left
        figure.text(x, size[1] - y, text, transform=None, va="center", **how)

    write(2 * GAP, TITLE / 2, title, fontsize=9, weight="bold")
    for column, name in enumerate(columns):
        middle = LEFT + column * across + width * scale / 2
        write(middle, TITLE + TOP / 2, name, fontsize=7, ha="center")
    for row, caption in enumerate(captions):
        middle = TITLE + TOP + row * down + height * scale / 2
        write(LEFT - 2 * GAP, middle, caption, fontsize=7, ha="right")
    return figure


def coloured(images: Tensor, *parts: tuple[int | None, Colours]) -> np.ndarray:
    """Colours images of 0 and 1, a range of pixels at a time.

    Args:
        images: [N, height, width].
        parts: ends of consecutive ranges in raster order, the last one None, and their colours.

    Returns:
        [N, height, width, 3] float64, red, green and blue in [0, 1].
    """
    flat = images.flatten(1).long().numpy()
    rgb = np.empty((*flat.shape, 3))
    start = 0
    for end, colours in parts:
        rgb[:, start:end] = np.asarray(colours)[flat[:, start:end]]
        start = end or 0
    return rgb.reshape(*images.shape, 3)
