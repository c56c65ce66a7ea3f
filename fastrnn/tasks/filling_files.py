"""The folder that an in-painting writes."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn.tasks.figures import inpainted
from fastrnn.tasks.filling import Inpainted, metrics
from fastrnn.tasks.holes import Holes
from fastrnn.training import figures, files

PICTURED = 8  # images in a figure


def write(folder: Path, holes: Holes, found: Inpainted, facts: Mapping[str, Any]) -> None:
    """Fills a folder with arrays, a table and summary.json, which lists their checksums.

    ::

        holes.npy                  [2, N, P] int8: images with -1 in their holes, and whole
        inpainted.npz              truth, hidden, inpainted, nats, true_nats
        images.csv                 hidden pixels, how many are right, and nats, by image

    Args:
        folder: exists and is empty.
        holes: what was filled.
        found: the filled images.
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
    names = ["holes.npy", "inpainted.npz", "images.csv"]
    files.write_summary(folder, {**facts, **metrics(holes, found)}, names)


def draw(
    folder: Path,
    holes: Holes,
    found: Inpainted,
    shape: tuple[int, int],
    warn: Callable[[str], None],
) -> None:
    """Adds right.png and wrong.png: some of the images that are all right, and of the others.

    Args:
        folder: what :func:`write` has filled, at its place.
        holes, found: as :func:`write`.
        shape: height and width of an image.
        warn: told of each picture that cannot be made.
    """
    wrong = (found.pixels != holes.truth).any(1)
    for name, chosen in (("right", ~wrong), ("wrong", wrong)):
        if len(rows := chosen.nonzero()[:PICTURED, 0]):
            parts = (holes.truth, holes.hidden, found.pixels)
            images = [part[rows].view(-1, *shape) for part in parts]
            figures.draw(partial(inpainted, *images), folder / f"{name}.png", warn)
