"""Images with holes, generated from a seed or read from the user's file.

A file holds one array [2, N, P]: images whose hidden pixels are -1, and the same images whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastrnn.tasks import arrays
from fastrnn.training.errors import DataError

SIDES = {"pixel": 1, "square": 2}  # of a generated hole, in pixels, by kind
SPREAD = 3 / 28  # standard deviation of a hole's place, as a share of the image's side


@dataclass(frozen=True)
class Holes:
    """N images of P pixels with holes.

    Attributes:
        truth: [N, P] uint8 of 0 and 1.
        hidden: [N, P] bool.
    """

    truth: Tensor
    hidden: Tensor

    def __len__(self) -> int:
        return len(self.truth)

    def array(self) -> np.ndarray:
        """[2, N, P] int8, the content of a file."""
        truth = self.truth.to(torch.int8)
        return torch.stack([truth.masked_fill(self.hidden, -1), truth]).numpy()


def generate(truth: Tensor, height: int, width: int, kind: str, seed: int) -> Holes:
    """One hole per image, near the centre.

    Row and column of a hole's middle are drawn from a normal distribution around the image's
    middle, on MNIST N(13.5, 3); a hole that would cross the edge is moved inside.

    Args:
        truth: [N, P] uint8 of 0 and 1.
        height: of an image, in pixels.
        width: of an image, in pixels.
        kind: ``pixel``, or ``square``: 2 x 2.
        seed: of the places.
    """
    generator = torch.Generator().manual_seed(seed)
    size = SIDES[kind]
    corners = []
    for side in (height, width):
        middle = (side - 1) / 2 + SPREAD * side * torch.randn(len(truth), generator=generator)
        corners.append((middle - (size - 1) / 2).round().long().clamp(0, side - size))
    hidden = torch.zeros(len(truth), height, width, dtype=torch.bool)
    image = torch.arange(len(truth))
    for down in range(size):
        for right in range(size):
            hidden[image, corners[0] + down, corners[1] + right] = True
    return Holes(truth, hidden.flatten(1))


def read(path: Path, pixels: int) -> Holes:
    """The content of a .npy file, or of an .npz file with a single array.

    Args:
        path: of the file.
        pixels: P.

    Raises:
        DataError: the file cannot be read, or does not hold one array [2, N, P] of such images.
    """
    wanted = f"[2, N, {pixels}]: images with -1 in their holes, and the same images whole"
    found = arrays.read(path, (2, None, pixels), wanted)
    if found.dtype == np.uint8:  # which has no -1: it became 255
        found = found.astype(np.int16)
        found[found == 255] = -1
    masked, truth = found
    for values, allowed in ((masked, (-1, 0, 1)), (truth, (0, 1))):
        if (others := values[~np.isin(values, allowed)]).size:
            raise DataError(f"{path} holds {others[0]}; expected {wanted}, in 0 and 1")
    hidden = masked == -1
    for wrong, what in (
        (~hidden.any(1), "no hole"),
        (hidden.all(1), "nothing but holes"),
        (((masked != truth) & ~hidden).any(1), "known pixels that differ from the whole image's"),
    ):
        if wrong.any():
            raise DataError(f"{path}: image {wrong.argmax()} has {what}; expected {wanted}")
    return Holes(torch.from_numpy(truth.astype(np.uint8)), torch.from_numpy(hidden))


def binarised(grey: Tensor, threshold: float) -> Tensor:
    """Binary images from grey ones.

    Args:
        grey: uint8, 0 to 255.
        threshold: share of 255 from which a pixel is 1.

    Returns:
        uint8 of 0 and 1, of the same shape.
    """
    return (grey >= math.ceil(threshold * 255)).to(torch.uint8)
