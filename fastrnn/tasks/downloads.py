"""Fetching MNIST from torchvision's mirrors; an interrupted download resumes where it stopped."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import os
import ssl
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

from fastrnn.training import files, reading
from fastrnn.training.errors import DataError, RunError

BYTES = 11_594_722  # of the four files, packed
TIMEOUT_S = 20  # without a byte
_NETWORK = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
)
_BLOCK = 1 << 16
_LARGEST = 1 << 26  # bytes of a file


Show = Callable[[int], None]  # how many bytes of all files are there


def fetch(raw: Path, sums: Mapping[str, str], show: Show = lambda done: None) -> bool:
    """Downloads those of MNIST's files that are missing or damaged.

    Args:
        raw: their folder; it is made if it is missing.
        sums: names of the files and the MD5 of their unpacked content.
        show: called with the number of bytes that have been downloaded.

    Returns:
        Whether anything was missing.

    Raises:
        DataError: a file is on none of the mirrors, or cannot be written.
    """
    from torchvision.datasets import MNIST

    missing = [name for name, md5 in sums.items() if not _is_whole(raw, name, md5)]
    try:
        raw.mkdir(parents=True, exist_ok=True)
        before = 0
        for name in missing:
            path = raw / f"{name}.gz"
            packed_md5 = dict(MNIST.resources)[path.name]

            def show_all(done: int, before: int = before) -> None:
                show(before + done)

            _fetch_one(path, packed_md5, MNIST.mirrors, show_all)
            before += path.stat().st_size
    except (OSError, RunError) as error:
        raise DataError(f"{raw} cannot be written ({reading.reason(error)})") from None
    return bool(missing)


def _is_whole(raw: Path, name: str, md5: str) -> bool:
    for path in (raw / name, raw / f"{name}.gz"):
        with contextlib.suppress(OSError):
            return md5_of(unpacked(path, _LARGEST)) == md5  # only the first that there is is read
    return False


def unpacked(path: Path, most: int) -> bytes:
    """The content of a file, compressed or not; of a longer one, ``most`` + 1 bytes.

    Raises:
        OSError: it cannot be read or unpacked.
    """
    try:
        with reading.opened(path, most) as file:
            return (gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file).read(most + 1)
    except (EOFError, zlib.error) as error:
        raise OSError(str(error)) from None


def _fetch_one(path: Path, md5: str, mirrors: list[str], show: Show) -> None:
    """Downloads a file, of this MD5, from the first mirror that has it."""
    part = path.with_name(f".{path.name}.part")
    reasons = []
    for mirror in mirrors:
        url = mirror + path.name
        try:
            _continue(url, part, show)
        except _NETWORK as error:
            why = error.reason if isinstance(error, urllib.error.URLError) else error
            reasons.append(f"{url}: {' '.join(str(why).split()) or type(error).__name__}")
            continue
        if md5_of(content := part.read_bytes()) == md5:
            path.with_suffix("").unlink(missing_ok=True)  # a damaged unpacked one
            files.write(path, content)
            part.unlink()
            return
        part.unlink()
        reasons.append(f"{url}: not the right file, its MD5 differs")
    raise DataError(
        f"{path.name} could not be downloaded ({'; '.join(reasons)}): try again, which goes on "
        f"where it stopped, or put MNIST's four files into {path.parent} by hand"
    )


def _continue(url: str, part: Path, show: Show) -> None:
    """Downloads the rest of a file of which ``part`` is the beginning."""
    done = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left to send
            return
        raise
    with response:
        if response.status != 206:  # the whole file, not the rest
            done = 0
        total = done + int(response.headers.get("Content-Length") or 0)
        with part.open("ab" if done else "wb") as file:
            for block in _blocks(response):
                file.write(block)
                done += len(block)
                show(done)
                if done > _LARGEST:
                    raise urllib.error.URLError("it does not end")
            file.flush()
            os.fsync(file.fileno())
        if done < total:
            raise urllib.error.URLError(f"the connection ended after {done} of {total} bytes")


def _blocks(response: IO[bytes]) -> Iterator[bytes]:
    while block := response.read(_BLOCK):
        yield block


def md5_of(content: bytes) -> str:
    """The MD5 by which MNIST's mirrors describe their files."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
