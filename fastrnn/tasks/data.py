"""MNIST and scikit-learn's digits as sequences of pixels, in raster order, one pixel a step."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastrnn.tasks import downloads
from fastrnn.training import reading
from fastrnn.training.errors import DataError

# MNIST's files and the MD5 of their unpacked content.
MNIST_FILES = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
# The size of the largest of them, unpacked. A packed file is smaller.
MNIST_LARGEST = 16 + 60_000 * 28 * 28
MNIST_VALIDATION = 5000  # images, the first ones of the training file
MNIST_THRESHOLD = 26  # grey value from which a binary pixel is 1: a tenth of 255
DIGITS_THRESHOLD = 8  # the same for scikit-learn's grey values, 0 to 16
# The same thresholds for the grey images that load() gives, 0 to 255.
THRESHOLDS = {"mnist": MNIST_THRESHOLD, "digits": DIGITS_THRESHOLD * 255 // 16}
_SIZES = {"mnist": (28, 28, 10), "digits": (8, 8, 10)}  # height, width, classes


@dataclass(frozen=True)
class Split:
    """N images of P pixels.

    Attributes:
        images: [N, P] uint8: 0 and 1 or, for grey ones, 0 to 255.
        labels: [N] int64.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ImageFormat:
    """What the images of a dataset are like; all that a model's shape depends on.

    Attributes:
        name: ``mnist`` or ``digits``.
        height: of an image, in pixels.
        width: of an image, in pixels; P = height * width.
        classes: how many labels there are.
        grey: whether the pixels are grey, not binary.
    """

    name: str
    height: int
    width: int
    classes: int
    grey: bool


def image_format(name: str, *, grey: bool) -> ImageFormat:
    """What the images of ``mnist`` or ``digits`` are like; the dataset need not be there.

    Raises:
        DataError: the name is another one.
    """
    if name not in _SIZES:
        raise DataError(f"unknown dataset {name!r}; choose {' or '.join(_SIZES)}")
    return ImageFormat(name, *_SIZES[name], grey)


@dataclass(frozen=True)
class Dataset(ImageFormat):
    """A dataset in three parts.

    Attributes:
        train: images to learn from.
        validation: images that select the best epoch.
        test: images that only the finished run is measured on.
    """

    train: Split
    validation: Split
    test: Split


def load(
    name: str, data_dir: Path | None = None, *, grey: bool = False, download: bool = False
) -> Dataset:
    """A dataset by name.

    Args:
        name: ``mnist``, ``digits``, or ``auto``: MNIST if its files are found, otherwise digits.
        data_dir: the folder that holds MNIST/raw, as torchvision lays it out, or one of these two
            folders; by default the environment variable FASTRNN_DATA, or ``data``.
        grey: keep grey values instead of binary pixels.
        download: fetch MNIST if it is missing. Nothing else uses the network.

    Raises:
        DataError: a file is missing or damaged.
    """
    if name == "digits":
        return _digits(grey)
    if name not in ("auto", "mnist"):
        raise DataError(f"unknown dataset {name!r}; choose auto, mnist or digits")
    root = data_dir or default_folder()
    try:
        raw = _raw_folder(root)
    except OSError as error:
        raise DataError(
            f"{root} cannot be read ({reading.reason(error)}); make it readable"
        ) from None
    if download and (raw is None or not all(_found(raw, name) for name in MNIST_FILES)):
        raw = raw_folder(root)
        downloads.fetch(raw, MNIST_FILES)
    if raw is None:
        if name == "auto":
            return _digits(grey)
        raise DataError(f"no MNIST in {root} (looked for MNIST/raw); {how_to_get_mnist(root)}")
    return _mnist(raw, grey)


def how_to_get_mnist(data_dir: Path | None = None) -> str:
    """One line: the command that fetches MNIST, into a folder as :func:`load` takes it."""
    where = f" --data-dir {shlex.quote(str(data_dir))}" if data_dir else ""
    return f"name its folder with --data-dir, or get it (11 MB): fastrnn download mnist{where}"


def default_folder() -> Path:
    """Where MNIST is looked for: the environment variable FASTRNN_DATA, or ``data``."""
    return Path(os.environ.get("FASTRNN_DATA") or "data")


def sequences(images: Tensor, grey: bool) -> Tensor:
    """Images [B, P] uint8 as sequences [P, B, 1] float32: 0 and 1, or grey values in [0, 1]."""
    x = images.t().contiguous().unsqueeze(2).float()
    return x / 255 if grey else x


def _digits(grey: bool) -> Dataset:
    """scikit-learn's 1,797 digits of 8 x 8 pixels; the split is stratified and always the same."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    rest, test = train_test_split(
        np.arange(len(bunch.target)), test_size=300, random_state=0, stratify=bunch.target
    )
    train, validation = train_test_split(
        rest, test_size=150, random_state=0, stratify=bunch.target[rest]
    )
    values = bunch.data * 255 / 16 if grey else bunch.data >= DIGITS_THRESHOLD
    images = torch.from_numpy(values.astype(np.uint8))
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    parts = [Split(images[rows], labels[rows]) for rows in (train, validation, test)]
    return Dataset("digits", *_SIZES["digits"], grey, *parts)


def _mnist(raw: Path, grey: bool) -> Dataset:
    arrays = [torch.from_numpy(_read(raw, name).copy()) for name in MNIST_FILES]
    images, labels, test_images, test_labels = arrays
    parts = []
    for pixels, classes in (
        (images[MNIST_VALIDATION:], labels[MNIST_VALIDATION:]),
        (images[:MNIST_VALIDATION], labels[:MNIST_VALIDATION]),
        (test_images, test_labels),
    ):
        flat = pixels.flatten(1)
        flat = flat if grey else (flat >= MNIST_THRESHOLD).to(torch.uint8)
        parts.append(Split(flat, classes.to(torch.int64)))
    return Dataset("mnist", *_SIZES["mnist"], grey, *parts)


def _raw_folder(root: Path) -> Path | None:
    """The first folder that holds at least one of MNIST's files; None if there is none."""
    for folder in (root / "MNIST" / "raw", root / "raw", root):
        if any(_found(folder, name) for name in MNIST_FILES):
            return folder
    return None


def _found(raw: Path, name: str) -> Path | None:
    return next((p for p in (raw / name, raw / f"{name}.gz") if p.exists()), None)


def _read(raw: Path, name: str) -> np.ndarray:
    """The array in one of MNIST's files, compressed or not: [N, 28, 28] or [N], uint8."""
    path = _found(raw, name)
    if path is None:
        raise DataError(f"{raw / name}(.gz) is missing; {how_to_get_mnist(raw)}")
    try:
        content = downloads.unpacked(path, MNIST_LARGEST)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({reading.reason(error)}); {_again(raw)}") from None
    if len(content) > MNIST_LARGEST:
        raise DataError(f"{path} is not MNIST's: it is larger; {_again(raw)}")
    if downloads.md5_of(content) != MNIST_FILES[name]:
        raise DataError(
            f"{path} is damaged, or not MNIST's ({len(content)} bytes, wrong MD5); {_again(raw)}"
        )
    # IDX: two zero bytes, the type, the number of axes, each axis's length, then the values.
    axes = content[3]
    shape = np.frombuffer(content, ">u4", axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _again(raw: Path) -> str:
    return f"delete it, then {how_to_get_mnist(raw)}"


def raw_folder(folder: Path) -> Path:
    """Where MNIST's files go in a folder that :func:`load` takes."""
    root = folder.absolute()
    if root.parts[-2:] == ("MNIST", "raw"):
        root = root.parent
    if root.name == "MNIST":
        root = root.parent
    return root / "MNIST" / "raw"
