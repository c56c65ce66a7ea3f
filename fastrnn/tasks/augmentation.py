"""Random translations and slants of training images, in whole pixels."""

from __future__ import annotations

import torch
from torch import Tensor


def moves(count: int, shift: int, slant: int) -> Tensor:
    """Draws how to move images, with torch's global generator on the CPU.

    Args:
        count: B, the number of images.
        shift: largest distance down, up, left or right, in pixels.
        slant: largest distance that a slant moves the top row, in pixels.

    Returns:
        [3, B] int64: pixels down, pixels to the right, and pixels that a slant moves the top row
        to the right and the bottom row to the left.
    """
    return torch.stack([torch.randint(-most, most + 1, (count,)) for most in (shift, shift, slant)])


def moved(x: Tensor, moves: Tensor, height: int, width: int) -> Tensor:
    """Images whose rows have been moved; what comes in from outside is 0, what leaves is lost.

    Args:
        x: [P, B, 1], the images' pixels in raster order.
        moves: [3, B] as :func:`moves` draws them.
        height: of an image, in pixels.
        width: of an image, in pixels; P = height * width.

    Returns:
        [P, B, 1], of x's dtype.
    """
    down, right, slant = moves.to(x.device)
    row = torch.arange(height, device=x.device)[:, None, None]
    column = torch.arange(width, device=x.device)[:, None]
    lean = (slant * (1 - 2 * row / (height - 1))).round().long()  # [height, 1, B]
    from_row, from_column = row - down, column - right - lean
    inside = (from_row >= 0) & (from_row < height) & (from_column >= 0) & (from_column < width)
    source = (from_row * width + from_column) * inside
    pixels = x.squeeze(2).gather(0, source.flatten(0, 1))
    return (pixels * inside.flatten(0, 1)).unsqueeze(2)
