"""Turns a user's images, in arrays of any shape and dtype, into the pixels that a model reads."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastrnn.tasks.data import THRESHOLDS, ImageFormat

_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


def read(images: Any, like: ImageFormat) -> tuple[Tensor, torch.Size]:
    """The pixels of images, light ink on a dark ground, in raster order.

    Args:
        images: [..., H, W] or [..., P]: a tensor, a NumPy array, a Pillow image, or nested lists.
            bool: ink or none. Integers: grey values from 0 to 255, or binary ones if none is above
            1. Floats: grey values from 0 to 1.
        like: their height and width, and whether the model reads grey or binary pixels. Grey images
            become binary by the threshold of the training data: a grey value of 26 or more on
            MNIST, of 127 or more on the digits.

    Returns:
        [N, P] on the images' device: for grey pixels float32 from 0 to 1, for binary ones uint8 of
        0 and 1; and the shape of the dimensions that were flattened to N.

    Raises:
        TypeError: the images are not of these types.
        ValueError: their shape or a value is another one.
    """
    given = _tensor(images)
    flat, leading = _flat(given, like, "images")
    if flat.dtype == torch.bool:
        return flat.to(torch.float32 if like.grey else torch.uint8), leading
    if flat.is_floating_point():
        _check_range(flat, 1)
        if like.grey:
            return flat.float(), leading
        grey = flat.mul(255).round()
    else:
        top = _check_range(flat, 255)
        if top <= 1:
            return flat.to(torch.float32 if like.grey else torch.uint8), leading
        if like.grey:
            return flat.float() / 255, leading
        grey = flat
    return (grey >= THRESHOLDS[like.name]).to(torch.uint8), leading


def read_mask(hidden: Any, leading: torch.Size, like: ImageFormat) -> Tensor:
    """Which pixels of images are hidden, [N, P] bool.

    Args:
        hidden: bool, [..., H, W] or [..., P]; dimensions before these may be missing or 1.
        leading: the images' dimensions before these.
        like: their height and width.

    Raises:
        TypeError: the mask is not bool.
        ValueError: it does not fit the images.
    """
    given = _tensor(hidden)
    if given.dtype != torch.bool:
        raise TypeError(f"hidden: {given.dtype} given; expected bool, True where a pixel is hidden")
    flat, own = _flat(given, like, "hidden")
    pixels = flat.shape[1]
    try:
        return flat.view(*own, pixels).expand(*leading, pixels).reshape(-1, pixels)
    except RuntimeError:
        raise ValueError(
            f"hidden: shape {list(given.shape)} given, which does not fit images of leading shape "
            f"{list(leading)}"
        ) from None


def _tensor(values: Any) -> Tensor:
    if isinstance(values, Tensor):
        found = values.detach()
    else:
        array = np.array(values, order="C")  # a copy: torch wants memory that may be written
        if array.dtype.kind not in "biuf":
            raise TypeError(f"an array of {array.dtype} given; expected bool, integers or floats")
        found = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    if found.is_complex() or found.is_quantized:
        raise TypeError(f"{found.dtype} given; expected bool, integers or floats")
    # torch has hardly any operation for unsigned integers of more than 8 bits.
    return found.long() if found.dtype in _UNSIGNED else found


def _flat(given: Tensor, like: ImageFormat, name: str) -> tuple[Tensor, torch.Size]:
    """[N, P], and the shape of the dimensions that became N."""
    pixels = like.height * like.width
    if given.shape[-2:] == (like.height, like.width):
        leading = given.shape[:-2]
    elif given.shape[-1:] == (pixels,):
        leading = given.shape[:-1]
    else:
        raise ValueError(
            f"{name}: shape {list(given.shape)} given; expected [..., {like.height}, {like.width}] "
            f"or [..., {pixels}], as the images of {like.name}"
        )
    return given.reshape(math.prod(leading), pixels), leading


def _check_range(values: Tensor, top: int) -> float:
    """The largest value; raises ValueError unless all lie in 0 to ``top``."""
    if not values.numel():
        return 0
    low, high = values.min().item(), values.max().item()
    if not (low >= 0 and high <= top):  # also NaN
        kind = "floats" if values.is_floating_point() else "integers"
        remedy = ": divide by the value of white" if values.is_floating_point() else ""
        raise ValueError(
            f"images: {kind} from {low:g} to {high:g} given; expected 0 to {top}{remedy}"
        )
    return high
