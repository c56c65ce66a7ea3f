"""SHA-256 sums that files carry inside themselves, or that a summary lists for others."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

FIELD = "sha256"  # the entry of a file's JSON that holds its own sum
BLANK = "0" * 64  # what stands there while the sum is computed
_BLOCK = 1 << 20


def sealed(content: bytes) -> bytes:
    """Content with its one BLANK replaced by the sum of the content."""
    assert content.count(BLANK.encode()) == 1
    return content.replace(BLANK.encode(), hashlib.sha256(content).hexdigest().encode())


def is_whole(content: bytes, own: object) -> bool:
    """Whether content is what :func:`sealed` made of it.

    Args:
        content: all of it.
        own: the sum that it holds.
    """
    if not isinstance(own, str) or len(own) != len(BLANK):
        return False
    blank = content.replace(own.encode(), BLANK.encode(), 1)
    return hashlib.sha256(blank).hexdigest() == own


def of_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The sums of files in a folder, by name; those that do not exist are left out."""
    return {name: _of(folder / name) for name in names if (folder / name).is_file()}


def differing(folder: Path, listed: Mapping[str, str]) -> list[str]:
    """The names of listed files that are missing or have another sum, each with the reason."""
    found = []
    for name, wanted in listed.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{path} is missing")
        elif _of(path) != wanted:
            found.append(f"{path} is damaged, or of another time (its SHA-256 differs)")
    return found


def _of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
