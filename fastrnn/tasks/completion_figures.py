"""Figures of completed images, drawn pixel by pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastrnn.tasks.figures import FILLED, HIDDEN, Colours
from fastrnn.training.figures import DPI

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KNOWN: Colours = ((0.05, 0.05, 0.06), (0.97, 0.97, 0.95))
PREDICTED: Colours = FILLED
UNKNOWN: Colours = (HIDDEN, HIDDEN)
SHOWN = 6  # samples per image
# Sizes in dots. With these, 8 columns fill a page.
SIDE = 84  # of an image, at least
GAP = 8  # between images
LEFT, TOP, TITLE = 150, 30, 64  # space for captions, column titles and the figure's title
KEY = "black and white: given;  grey: hidden;  blue: the hidden part, as it was and as drawn"


def ranks(nats: Tensor) -> Tensor:
    """The samples to show, from the likeliest to the least likely of all: [N, SHOWN or fewer].

    Args:
        nats: [N, S], negative log-likelihoods.
    """
    count = nats.shape[1]
    steps = torch.linspace(0, count - 1, min(SHOWN, count)).round().long()
    return nats.sort(dim=1, stable=True).indices[:, steps]


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
        samples: [N, S, height, width] of 0 and 1, the likeliest first.
        known: pixels before the first predicted one.
        predicted: pixels that were predicted; those after them are drawn as unknown.
        captions: N texts, to the left of the rows.
    """
    from matplotlib.figure import Figure

    end = known + predicted
    columns = {
        "known": coloured(truth, (known, KNOWN), (None, UNKNOWN)),
        "true": coloured(truth, (known, KNOWN), (end, PREDICTED), (None, KNOWN)),
    }
    last = samples.shape[1] - 1
    for k in range(last + 1):
        parts = ((known, KNOWN), (end, PREDICTED), (None, UNKNOWN))
        name = {0: "likeliest", last: "least likely"}.get(k, "…" if last else "")
        columns[f"{name}#{k}"] = coloured(samples[:, k], *parts)
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

    write(2 * GAP, TITLE / 4, title, fontsize=9, weight="bold")
    write(2 * GAP, TITLE * 3 / 4, KEY, fontsize=7)
    for column, name in enumerate(columns):
        middle = LEFT + column * across + width * scale / 2
        write(middle, TITLE + TOP / 2, name.partition("#")[0], fontsize=7, ha="center")
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
