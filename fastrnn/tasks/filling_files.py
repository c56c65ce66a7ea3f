"""The folder that an in-painting writes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn.tasks.figures import inpainted
from fastrnn.tasks.filling import Inpainted, metrics
from fastrnn.tasks.holes import Holes
from fastrnn.training import figures, files

PICTURED = 12  # images in a figure


def write(
    folder: Path, holes: Holes, found: Inpainted, shape: tuple[int, int], facts: Mapping[str, Any]
) -> None:
    """Fills a folder with arrays, a table, figures and summary.json.

    ::

        holes.npy                  [2, N, P] int8: images with -1 in their holes, and whole
        inpainted.npz              truth, hidden, inpainted, nats, true_nats
        images.csv                 hidden pixels, how many are right, and nats, by image
        right.png wrong.png        some of the images that are all right, and of the others

    Args:
        folder: exists and is empty.
        holes: what was filled.
        found: the filled images.
        shape: height and width of an image.
        facts: more entries of summary.json.

    Raises:
        RunError: a file cannot be written.
    """
    content = io.BytesIO()
    np.save(content, holes.array())
    files.write(folder / "holes.npy", content.getvalue())
    files.write_arrays(
        folder / "inpainted.npz",
        truth=holes.truth,
        hidden=holes.hidden,
        inpainted=found.pixels,
        nats=found.nats,
        true_nats=found.true_nats,
    )
    wrong = (found.pixels != holes.truth).sum(1)
    hidden = holes.hidden.sum(1)
    files.write_csv(
        folder / "images.csv",
        [
            {
                "image": image,
                "holes": int(hidden[image]),
                "right": int(hidden[image] - wrong[image]),
                "nats": found.nats[image].item(),
                "true_nats": found.true_nats[image].item(),
            }
            for image in range(len(holes))
        ],
    )
    for name, chosen in (("right", wrong == 0), ("wrong", wrong > 0)):
        if len(rows := chosen.nonzero()[:PICTURED, 0]):
            parts = (holes.truth, holes.hidden, found.pixels)
            figure = inpainted(*(part[rows].view(-1, *shape) for part in parts))
            figures.save(figure, folder / f"{name}.png")
    files.write_json(folder / "summary.json", {**facts, **metrics(holes, found)})
