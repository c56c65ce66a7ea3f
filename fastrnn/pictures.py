"""Pictures of completed images, pixel for pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from fastrnn.plots import DPI

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Colours = tuple[tuple[float, float, float], tuple[float, float, float]]  # of pixels 0 and 1

KNOWN: Colours = ((0.05, 0.05, 0.06), (0.97, 0.97, 0.95))
PREDICTED: Colours = ((0.07, 0.17, 0.33), (0.55, 0.80, 1.0))
UNKNOWN: Colours = ((0.42, 0.45, 0.50), (0.42, 0.45, 0.50))
SIDE = 112  # of an image, in dots, at least; with the next two, about 12 columns fit a screen
GAP = 6  # between images
LEFT, TOP, TITLE = 150, 26, 40  # for captions, column titles and the picture's title


def completions(
    title: str,
    truth: Tensor,
    samples: Tensor,
    *,
    known: int,
    predicted: int,
    captions: list[str],
) -> Figure:
    """A row for each image: what is known of it, the whole of it, and its completions.

    Args:
        title: of the picture.
        truth: [N, height, width], 0 and 1.
        samples: [N, S, height, width]; ten of them are shown.
        known: pixels before the first predicted one.
        predicted: pixels that were predicted; what lies behind them stays unknown.
        captions: N texts for the left.
    """
    from matplotlib.figure import Figure

    samples = samples[:, :10]
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
        write(
            LEFT + column * across + width * scale / 2,
            TITLE + TOP / 2,
            name,
            fontsize=7,
            ha="center",
        )
    for row, caption in enumerate(captions):
        middle = TITLE + TOP + row * down + height * scale / 2
        write(LEFT - 2 * GAP, middle, caption, fontsize=7, ha="right")
    return figure


def coloured(images: Tensor, *parts: tuple[int | None, Colours]) -> np.ndarray:
    """RGB [N, height, width, 3] of images [N, height, width]; parts of colours up to a pixel."""
    flat = images.flatten(1).long().numpy()
    rgb = np.empty((*flat.shape, 3))
    first = 0
    for end, colours in parts:
        rgb[:, first:end] = np.asarray(colours)[flat[:, first:end]]
        first = end or 0
    return rgb.reshape(*images.shape, 3)
