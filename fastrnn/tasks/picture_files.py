"""Turns a user's pictures of digits into images like those of a dataset.

A picture may be a photograph, a scan or a drawing of one digit, dark on light or light on dark.
MNIST's images are digits that were scaled to fit into 20 x 20 pixels and shifted so that their
centre of mass is at the centre of 28 x 28 (http://yann.lecun.com/exdb/mnist). Those of the digits
were straightened and scaled to a height of 32, and to a width of about 22 unless they were narrow,
then averaged over blocks of 4 x 4 (https://archive.ics.uci.edu/dataset/80, and its images).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastrnn.tasks.data import ImageFormat
from fastrnn.training import reading
from fastrnn.training.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM")  # by Pillow's names; TIFF's reader writes to stderr
MOST_BYTES = 1 << 26
MOST_PIXELS = 50_000_000  # as the largest cameras of telephones have
LEAST_CONTRAST = 0.1  # between the lightest and the darkest pixel, as a share of white

_WORKED_ON = 1024  # pixels of a side; larger pictures are made smaller first
_BLOCKS = 160  # along a side of a digit


class _Style(NamedTuple):
    """How the digits of a dataset were scaled and placed.

    Attributes:
        fine: parts of a pixel in which a digit is scaled, before their mean becomes the pixel.
        height, width: pixels of the box that a digit is scaled to.
        narrow: share of its height below which a digit is so narrow that it keeps its proportions;
            others fill the box. 1 if all keep them, and the box bounds their longer side.
        centre: row and column of the centre of mass.
        stroke: pixels that strokes are wide at least; thinner ones are thickened.
        upright: whether slanted digits are straightened.
    """

    fine: int
    height: float
    width: float
    narrow: float
    centre: float
    stroke: float
    upright: bool

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Width and height, in parts, to which a digit is scaled."""
        share = self.fine * self.height / height
        if self.narrow == 1:
            share = min(share, self.fine * self.width / width)
        elif width > self.narrow * height:
            return round(self.fine * self.width), round(height * share)
        return max(1, round(width * share)), max(1, round(height * share))


_STYLES = {
    "mnist": _Style(8, 20, 20, narrow=1, centre=14, stroke=2, upright=False),
    "digits": _Style(4, 8, 5.5, narrow=0.35, centre=3.5, stroke=1.25, upright=True),
}


@dataclass(frozen=True)
class Picture:
    """A picture, and what was made of it.

    Attributes:
        image: [H, W] uint8, grey values of light ink on a dark ground.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        inverted: whether its ink was dark on light.
        scaled: whether it was scaled and centred; one of the dataset's own size is not.
    """

    image: np.ndarray
    width: int
    height: int
    inverted: bool
    scaled: bool


def read(path: Path, like: ImageFormat) -> Picture:
    """The digit in a picture.

    Args:
        path: of the file: PNG, JPEG, BMP, GIF or PPM, whatever its name. Its type and size
            are checked before its pixels are unpacked.
        like: what the dataset's images are like.

    Raises:
        DataError: the file is no such picture, too large, damaged, or shows nothing.
    """
    try:
        grey, (width, height) = _grey(path)
    except DataError:
        raise
    except Exception as error:  # Pillow raises whatever a bad file leads to
        raise DataError(
            f"{path} cannot be read as a picture ({_reason(error)}); expected {_expected()}"
        ) from None
    low, high = grey.min(), grey.max()
    if high - low < LEAST_CONTRAST:
        values = f"{low * 255:.0f} to {high * 255:.0f} of 255"
        raise DataError(f"{path} shows no digit: its grey values are all alike, {values}")
    edge = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    inverted = bool(np.median(edge) > (low + high) / 2)
    ink = 1 - grey if inverted else grey
    scaled = (height, width) != (like.height, like.width)
    image = _like_the_dataset(_without_ground(ink), like) if scaled else ink
    return Picture((image * 255).round().astype(np.uint8), width, height, inverted, scaled)


def _grey(path: Path) -> tuple[np.ndarray, tuple[int, int]]:
    """Grey values [h, w] float32 in 0 to 1 of a picture, made smaller if it is large; its size."""
    from PIL import Image, ImageOps

    with reading.opened(path, MOST_BYTES) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow: about sizes, which are checked here, and tags
        with Image.open(file, formats=FORMATS) as opened:
            size = opened.size
            if size[0] * size[1] > MOST_PIXELS:
                raise DataError(
                    f"{path} has {size[0]:,} × {size[1]:,} pixels; expected {MOST_PIXELS:,} or "
                    "fewer: make it smaller"
                )
            opened.draft("L", (_WORKED_ON, _WORKED_ON))  # JPEG unpacks no more than this needs
            image = ImageOps.exif_transpose(_eight_bits(opened))
            if image.size == size[::-1]:
                size = image.size
            if (times := max(image.size) // _WORKED_ON) > 1:
                image = image.reduce(times)
            grey = np.asarray(image.convert("L"), np.float32) / 255
            if image.mode == "RGBA":
                # Transparent is the ground: dark behind light ink, light behind dark ink.
                ink = np.asarray(image.getchannel("A"), np.float32) / 255
                light = (grey * ink).sum() > ink.sum() / 2
                grey = grey * ink + (0 if light else 1) * (1 - ink)
    return grey, size


def _eight_bits(image: Image.Image) -> Image.Image:
    """A picture in mode L, RGB or RGBA."""
    from PIL import Image

    if image.mode.startswith(("I", "F")):  # more bits per pixel
        values = np.asarray(image, np.float64)
        low, high = values.min(), values.max()
        if image.mode.startswith("I;16"):
            low, high = 0, 65535
        share = (values - low) / max(high - low, 1e-9)
        return Image.fromarray((share * 255).astype(np.uint8))
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _without_ground(ink: np.ndarray) -> np.ndarray:
    """The same picture with a ground of 0 and strokes of 1, however dark or light they were."""
    counts, edges = np.histogram(ink, 256)
    middles = (edges[:-1] + edges[1:]) / 2
    below = counts.cumsum()
    above = below[-1] - below
    sums = (counts * middles).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):  # Otsu's threshold between the two
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    threshold = edges[1:][np.nanargmax(between)]
    ground, stroke = np.median(ink[ink < threshold]), np.median(ink[ink >= threshold])
    return ((ink - ground) / (stroke - ground)).clip(0, 1)


def _like_the_dataset(ink: np.ndarray, like: ImageFormat) -> np.ndarray:
    """The digit scaled and placed as the dataset's were; [H, W] in 0 to 1."""
    from PIL import Image

    style = _STYLES[like.name]
    digit = _coarser(_cropped(ink))
    wanted = style.stroke / style.height * max(digit.shape)
    if (grow := round((wanted - _stroke_width(digit > 0.5)) / 2)) > 0:
        digit = _thickened(digit, grow)
    digit = _cropped(_upright(digit) if style.upright else digit)
    size = style.size(*digit.shape)
    scaled = np.asarray(_image(digit).resize(size, Image.Resampling.BICUBIC), np.float32) / 255
    fine = style.fine
    margins = [(-length % fine // 2, (-length % fine + 1) // 2) for length in scaled.shape]
    parts = np.pad(scaled, margins)
    height, width = (length // fine for length in parts.shape)
    small = parts.reshape(height, fine, width, fine).mean((1, 3))
    image = np.zeros((like.height, like.width), np.float32)
    top, left = (
        int(np.clip(round(style.centre - centre), 0, room - length))
        for room, length, centre in zip(image.shape, small.shape, _centre(small), strict=True)
    )
    image[top : top + height, left : left + width] = small
    return image


def _image(ink: np.ndarray) -> Image.Image:
    from PIL import Image

    return Image.fromarray((ink * 255).round().astype(np.uint8))


def _cropped(ink: np.ndarray) -> np.ndarray:
    """The rectangle that is inked."""
    rows, columns = (np.flatnonzero((ink > 0.5).any(axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _coarser(digit: np.ndarray) -> np.ndarray:
    """The largest values of blocks, at most _BLOCKS along a side, so that no thin line fades."""
    side = math.ceil(max(digit.shape) / _BLOCKS)
    padded = np.pad(digit, [(0, -length % side) for length in digit.shape])
    height, width = (length // side for length in padded.shape)
    return padded.reshape(height, side, width, side).max((1, 3))


def _upright(digit: np.ndarray) -> np.ndarray:
    """The digit sheared so that row and column are uncorrelated over its ink."""
    from PIL import Image

    row, column = _centre(digit)
    down, right = np.arange(len(digit)) - row, np.arange(digit.shape[1]) - column
    slant = float(down @ digit @ right / (down**2 @ digit.sum(1) + 1e-9))
    margin = int(abs(slant) * len(digit)) + 1
    image = _image(np.pad(digit, margin))
    shear = (1, slant, -slant * (row + margin), 0, 1, 0)
    straight = image.transform(image.size, Image.Transform.AFFINE, shear, Image.Resampling.BILINEAR)
    return np.asarray(straight, np.float32) / 255


def _stroke_width(inked: np.ndarray) -> float:
    """Twice the area of what is inked divided by the length of its edge."""
    margin = np.pad(inked, 1)
    inside = margin[:-2, 1:-1] & margin[2:, 1:-1] & margin[1:-1, :-2] & margin[1:-1, 2:]
    return float(2 * inked.sum() / (inked & ~inside).sum())


def _thickened(digit: np.ndarray, grow: int) -> np.ndarray:
    """Strokes with so many more pixels on each of their sides."""
    from PIL import ImageFilter

    grown = _image(np.pad(digit, grow)).filter(ImageFilter.MaxFilter(2 * grow + 1))
    return np.asarray(grown, np.float32) / 255


def _centre(image: np.ndarray) -> tuple[float, float]:
    """Row and column of the centre of mass."""
    weights = image / image.sum()
    row, column = (weights.sum(axis) @ np.arange(image.shape[1 - axis]) for axis in (1, 0))
    return float(row), float(column)


def _reason(error: Exception) -> str:
    """What went wrong, in plain words where Pillow has none."""
    text = reading.reason(error)
    if text.startswith("cannot identify"):
        return "its type is another one"
    if type(error).__name__ == "DecompressionBombError":
        return f"it has more than {MOST_PIXELS:,} pixels"
    return text


def _expected() -> str:
    return f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
