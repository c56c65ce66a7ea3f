"""MNIST and digits: what is read, how it is split, and what a damaged file says."""

import gzip
import hashlib
import http.server
import os
import shutil
import socket
import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torchvision.datasets import MNIST

from fastrnn.tasks import data, downloads
from fastrnn.training.errors import DataError

TRAIN, TEST = 5010, 20  # images of the imitation below; its validation set is the first 5,000


def _idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    return header + values.astype(np.uint8).tobytes()


@pytest.fixture(scope="module")
def contents() -> dict[str, bytes]:
    """Files in MNIST's format: small ones, of random pixels."""
    random = np.random.default_rng(0)
    return {
        name: _idx(
            random.integers(0, 256, (count, 28, 28))
            if "images" in name
            else random.integers(0, 10, count)
        )
        for name, count in zip(data.MNIST_FILES, (TRAIN, TRAIN, TEST, TEST), strict=True)
    }


@pytest.fixture
def folder(tmp_path: Path, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with MNIST/raw, its files packed."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    sums = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(data, "MNIST_FILES", sums)
    for name, content in contents.items():
        (raw / f"{name}.gz").write_bytes(gzip.compress(content, 1))
    return tmp_path


def test_split_and_threshold(folder: Path, contents: dict[str, bytes]) -> None:
    mnist = data.load("mnist", folder)
    assert [len(part) for part in (mnist.train, mnist.validation, mnist.test)] == [10, 5000, 20]
    raw = np.frombuffer(contents["train-images-idx3-ubyte"], np.uint8, offset=16)
    pixels = torch.from_numpy(raw.reshape(TRAIN, 784) >= 26).to(torch.uint8)
    assert mnist.validation.images.equal(pixels[:5000])
    assert mnist.train.images.equal(pixels[5000:])


def test_grey_values_are_kept(folder: Path) -> None:
    grey = data.load("mnist", folder, grey=True)
    assert grey.grey
    assert len(grey.test.images.unique()) > 200


@pytest.mark.parametrize("inner", [".", "MNIST", "MNIST/raw"])
def test_the_folder_may_be_any_of_torchvisions(folder: Path, inner: str) -> None:
    assert data.load("auto", folder / inner).name == "mnist"


def test_unpacked_files(folder: Path) -> None:
    for path in (folder / "MNIST" / "raw").iterdir():
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert data.load("mnist", folder).name == "mnist"


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _flip(path: Path) -> None:
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[-1] ^= 1
    path.write_bytes(gzip.compress(bytes(content), 1))


def _not_packed(path: Path) -> None:
    path.write_bytes(b"<html>404</html>")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _missing(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [_cut, _flip, _not_packed, _empty, _directory, _missing])
def test_a_damaged_file_is_named_with_the_remedy(folder: Path, damage) -> None:
    path = folder / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz"
    if damage is _cut:
        path = path.with_name("train-images-idx3-ubyte.gz")
    damage(path)
    before = sorted(folder.rglob("*"))
    with pytest.raises(DataError) as error:
        data.load("mnist", folder)
    message = str(error.value)
    assert path.stem in message
    assert f"fastrnn download mnist --data-dir {path.parent}" in message
    assert "\n" not in message
    assert sorted(folder.rglob("*")) == before


def test_auto_takes_digits_where_there_is_no_mnist(tmp_path: Path) -> None:
    digits = data.load("auto", tmp_path)
    assert (digits.name, digits.height, digits.width, digits.classes) == ("digits", 8, 8, 10)
    assert sum(len(part) for part in (digits.train, digits.validation, digits.test)) == 1797
    assert set(digits.train.images.unique().tolist()) == {0, 1}
    again = data.load("digits")
    assert again.test.images.equal(digits.test.images)


def test_mnist_that_is_not_there_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fastrnn download mnist"):
        data.load("mnist", tmp_path)


class _Mirror(http.server.BaseHTTPRequestHandler):
    """Serves the files in ``packed``; after ``most`` bytes of an answer, the connection ends."""

    packed: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str | None]] = []
    most: ClassVar[int] = 1 << 30

    def do_GET(self):
        content = self.packed.get(self.path.lstrip("/"))
        if content is None:
            self.send_error(404)
            return
        wanted = self.headers["Range"]
        self.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : start + self.most])

    def log_message(self, *_):
        pass


@pytest.fixture
def mirror(contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Mirror]]:
    """A mirror on this machine that torchvision's list of mirrors and checksums names."""

    class Mirror(_Mirror):
        packed: ClassVar = {
            f"{name}.gz": gzip.compress(c, 1, mtime=0) for name, c in contents.items()
        }
        asked: ClassVar[list[str | None]] = []

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sums = [(name, hashlib.md5(content).hexdigest()) for name, content in Mirror.packed.items()]
    monkeypatch.setattr(MNIST, "resources", sums)
    monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    yield Mirror
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("inner", [".", "MNIST", "MNIST/raw"])
def test_a_download_fills_the_folder_that_lacks_a_file(folder: Path, inner: str, mirror) -> None:
    lost = folder / "MNIST" / "raw" / "train-labels-idx1-ubyte.gz"
    lost.unlink()
    assert len(data.load("mnist", folder / inner, download=True).train) == TRAIN - 5000
    assert lost.exists()
    assert mirror.asked == [None]  # the others were there


def test_a_download_that_broke_off_goes_on_where_it_stopped(folder: Path, mirror) -> None:
    raw = folder / "MNIST" / "raw"
    (raw / "t10k-images-idx3-ubyte.gz").unlink()
    mirror.most = 5000
    with pytest.raises(DataError, match=r"ended after 5000 of .* goes on where it stopped"):
        downloads.fetch(raw, data.MNIST_FILES)
    with pytest.raises(DataError, match="t10k-images"):
        data.load("mnist", folder)
    mirror.most = 1 << 30
    assert downloads.fetch(raw, data.MNIST_FILES)
    assert mirror.asked == [None, "bytes=5000-"]
    assert len(data.load("mnist", folder).test) == TEST
    assert not list(raw.glob(".*"))


def test_a_download_with_the_wrong_content_is_not_kept(folder: Path, mirror) -> None:
    raw = folder / "MNIST" / "raw"
    (raw / "t10k-labels-idx1-ubyte.gz").unlink()
    mirror.packed["t10k-labels-idx1-ubyte.gz"] = b"<html>log in</html>"
    with pytest.raises(DataError, match="its MD5 differs"):
        downloads.fetch(raw, data.MNIST_FILES)
    assert not [path for path in raw.iterdir() if "t10k-labels" in path.name]


def test_a_damaged_file_is_downloaded_again(folder: Path, mirror) -> None:
    _flip(folder / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz")
    assert downloads.fetch(folder / "MNIST" / "raw", data.MNIST_FILES)
    assert len(data.load("mnist", folder).test) == TEST
    assert not downloads.fetch(folder / "MNIST" / "raw", data.MNIST_FILES)


def test_a_file_that_cannot_be_unpacked_is_downloaded_again(folder: Path, mirror) -> None:
    path = folder / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz"
    content = path.read_bytes()
    path.write_bytes(gzip.compress(b"")[:10] + b"\xff" * len(content))
    with pytest.raises(zlib.error):
        gzip.decompress(path.read_bytes())
    assert downloads.fetch(path.parent, data.MNIST_FILES)
    assert path.read_bytes() == mirror.packed[path.name]


def test_a_failed_download_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:  # bound, and nobody listens
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{closed.getsockname()[1]}/"])
        with pytest.raises(DataError, match=r"^[^\n]*refused[^\n]*by hand$") as error:
            data.load("mnist", tmp_path / "MNIST" / "raw", download=True)
    assert f"into {tmp_path / 'MNIST' / 'raw'} by hand" in str(error.value)


def _bomb(path: Path) -> None:
    path.write_bytes(gzip.compress(bytes(1 << 24)) * 8)  # 128 MiB in 130 kB


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("hostile", [_bomb, _pipe, _device])
def test_what_is_no_file_or_far_too_large_is_refused_at_once(folder: Path, hostile) -> None:
    path = folder / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    hostile(path)
    tracemalloc.start()
    with pytest.raises(DataError, match="train-images"):
        data.load("mnist", folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * data.MNIST_LARGEST


def test_a_folder_that_cannot_be_searched_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", deny)  # chmod does not stop root, whom CI may run as
    with pytest.raises(DataError, match="make it readable"):
        data.load("auto", tmp_path)


def test_a_sequence_is_the_image_in_raster_order() -> None:
    images = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0]], dtype=torch.uint8)
    x = data.sequences(images, grey=False)
    assert x.shape == (4, 2, 1)
    assert x[:, 0, 0].tolist() == [0, 1, 1, 0]
    assert data.sequences(images * 255, grey=True).equal(x)


def test_the_real_mnist(tmp_path: Path) -> None:
    source = os.environ.get("FASTRNN_DATA")
    if source is None:
        pytest.skip("FASTRNN_DATA does not name the folder of the real files")
    shutil.copytree(source, tmp_path / "copy")
    mnist = data.load("mnist", tmp_path / "copy")
    parts = (mnist.train, mnist.validation, mnist.test)
    assert [len(part) for part in parts] == [55_000, 5_000, 10_000]
    assert mnist.test.labels[:4].tolist() == [7, 2, 1, 0]
    assert 0.1 < mnist.train.images.float().mean() < 0.2
