"""Reads an array from a user's file, after checking the file's header."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.lib import format as npy

from fastrnn.training import checksums, files, reading
from fastrnn.training.errors import DataError

MOST = 1 << 30  # bytes of an array
_MOST_HEADER = 1 << 14
_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read(path: Path, shape: Sequence[int | None], wanted: str) -> np.ndarray:
    """The numbers in a .npy file, or in an .npz file with a single array.

    Args:
        path: of the file. If a summary.json of ours beside it lists it, its checksum must be right.
        shape: of the array; None for an axis of any length from 1 on.
        wanted: what is expected, for the error's message.

    Raises:
        DataError: the file is none, or does not hold one array of numbers of this shape.
    """
    try:
        with reading.opened(path, MOST) as file:
            packed = file.read(2) == b"PK"
            if not packed:
                size = path.stat().st_size

                def again() -> IO[bytes]:
                    file.seek(0)
                    return file

                found = _array(path, again, size, shape, wanted)
            else:
                with zipfile.ZipFile(file) as archive:
                    found = _member(path, archive, shape, wanted)
    except DataError:
        raise
    except Exception as error:  # numpy's reader and zipfile raise whatever a bad file leads to
        raise DataError(
            f"{path} cannot be read as one array ({reading.reason(error)}); expected .npy or .npz"
        ) from None
    if damages := checksums.differing(path.parent, _listed(path)):
        raise DataError(f"{damages[0]}: write it again")
    return found


def _member(
    path: Path, archive: zipfile.ZipFile, shape: Sequence[int | None], wanted: str
) -> np.ndarray:
    """The only array of an .npz file."""
    names = [name for name in archive.namelist() if name.endswith(".npy")]
    if len(names) != 1:
        what = f"{len(names)} arrays" if names else "no array"
        raise DataError(f"{path} holds {what}; expected one, in .npy or .npz")
    size = archive.getinfo(names[0]).file_size
    return _array(path, lambda: archive.open(names[0]), size, shape, wanted)


def _array(
    path: Path,
    opened: Callable[[], IO[bytes]],
    size: int,
    shape: Sequence[int | None],
    wanted: str,
) -> np.ndarray:
    """Reads an array by numpy's reader, if its header promises what is wanted.

    Args:
        path: for the error's message.
        opened: opens the array's bytes from their beginning.
        size: how many there are.
        shape: as :func:`read`.
        wanted: as :func:`read`.
    """
    file = opened()
    version = npy.read_magic(file)
    if version not in _READERS:
        raise ValueError(f"its version is {version}")
    given, _, dtype = cast(Any, _READERS[version])(file, max_header_size=_MOST_HEADER)
    right = len(given) == len(shape) and all(
        length == expected if expected is not None else length > 0
        for length, expected in zip(given, shape, strict=True)
    )
    if not right:
        raise DataError(f"{path} has shape {list(given)}; expected {wanted}")
    if dtype.kind not in "biuf":
        kind = "objects" if dtype.hasobject else dtype
        raise DataError(f"{path} holds {kind}; expected numbers, {wanted}")
    promised = dtype.itemsize
    for length in given:
        promised *= length
    if promised > min(size, MOST):
        raise ValueError(f"its header promises {promised:,} bytes, and it has {size:,}")
    return npy.read_array(opened(), allow_pickle=False, max_header_size=_MOST_HEADER)


def _listed(path: Path) -> dict[str, str]:
    """The checksum of this file in the summary.json beside it, by its name; empty if none."""
    try:
        found = files.read_json(path.parent / files.SUMMARY)["files"]
        return {path.name: found[path.name]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
