"""MNIST and digits: what is read, how it is split, and what a damaged file says."""

import gzip
import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fastrnn.tasks import data

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
    with pytest.raises(data.DataError) as error:
        data.load("mnist", folder)
    message = str(error.value)
    assert path.stem in message
    assert f"--download --data-dir {path.parent}" in message
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
    with pytest.raises(data.DataError, match="--download"):
        data.load("mnist", tmp_path)


@pytest.mark.parametrize("inner", [".", "MNIST", "MNIST/raw"])
def test_a_download_fills_the_folder_that_lacks_a_file(
    folder: Path, inner: str, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = folder / "MNIST" / "raw" / "train-labels-idx1-ubyte.gz"
    lost.unlink()

    def fetch(url: str, download_root: str, filename: str, md5: str) -> None:
        name = filename.removesuffix(".gz")
        (Path(download_root) / name).write_bytes(contents[name])

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fetch)
    assert len(data.load("mnist", folder / inner, download=True).train) == TRAIN - 5000
    assert lost.with_suffix("").exists()


def test_a_failed_download_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*args: str, **kwargs: str) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fetch)
    with pytest.raises(data.DataError, match=r"^[^\n]*no network[^\n]*by hand$") as error:
        data.load("mnist", tmp_path / "MNIST" / "raw", download=True)
    assert f"into {tmp_path / 'MNIST' / 'raw'} by hand" in str(error.value)


def test_a_folder_that_cannot_be_searched_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", deny)  # chmod does not stop root, whom CI may run as
    with pytest.raises(data.DataError, match="make it readable"):
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
