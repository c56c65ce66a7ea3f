"""Images with holes: where they are made, and what a file of the user's may hold."""

import io
import os
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from fastrnn.tasks import holes
from fastrnn.training.errors import DataError

TRUTH = (torch.arange(5000 * 9) % 2).view(5000, 9).to(torch.uint8)


class TestGenerated:
    @pytest.mark.parametrize(("kind", "side"), holes.SIDES.items())
    def test_one_square_in_each_image(self, kind, side):
        made = holes.generate(TRUTH, 3, 3, kind, seed=0)
        assert torch.equal(made.truth, TRUTH)
        hidden = made.hidden.view(-1, 3, 3)
        for lines in (hidden.any(1), hidden.any(2)):  # columns, rows
            assert lines.sum(1).eq(side).all()
            assert (lines[:, :-1] & lines[:, 1:]).sum(1).eq(side - 1).all()  # neighbours
        assert hidden.sum((1, 2)).eq(side**2).all()
        assert len(hidden.flatten(1).unique(dim=0)) == (4 - side) ** 2  # everywhere

    @pytest.mark.parametrize(("kind", "side"), holes.SIDES.items())
    def test_places_are_normal_around_the_centre(self, kind, side):
        made = holes.generate(torch.zeros(20000, 784, dtype=torch.uint8), 28, 28, kind, seed=0)
        hidden = made.hidden.view(-1, 28, 28)
        for lines in (hidden.any(1), hidden.any(2)):
            middle = lines.double().argmax(1).double() + (side - 1) / 2
            assert middle.mean().item() == pytest.approx(13.5, abs=0.1)
            assert middle.std().item() == pytest.approx(3, abs=0.1)

    def test_the_seed_chooses_the_places(self):
        first, again, other = (holes.generate(TRUTH, 3, 3, "square", seed) for seed in (1, 1, 2))
        assert torch.equal(first.hidden, again.hidden)
        assert not torch.equal(first.hidden, other.hidden)


def _array(kind=np.int8):
    truth = np.array([[1, 0, 1, 1], [0, 0, 1, 0]])
    masked = np.where([[0, 1, 0, 0], [1, 0, 0, 1]], -1, truth)
    return np.stack([masked, truth]).astype(kind)


def _changed(place, value):
    array = _array(np.float64)
    array[place] = value
    return array


def _as_uint8(array):
    return array.astype(np.uint8)  # -1 becomes 255


def _header(shape):
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        content, {"descr": "|i1", "fortran_order": False, "shape": shape}
    )
    return content.getvalue()


class TestFile:
    @pytest.mark.parametrize("kind", [np.int8, np.int64, np.float32])
    @pytest.mark.parametrize("name", ["holes.npy", "holes.npz"])
    def test_is_read(self, tmp_path, kind, name):
        (np.save if name.endswith("npy") else np.savez)(tmp_path / name, _array(kind))
        found = holes.read(tmp_path / name, 4)
        assert found.truth.tolist() == [[1, 0, 1, 1], [0, 0, 1, 0]]
        assert found.hidden.tolist() == [[False, True, False, False], [True, False, False, True]]
        assert np.array_equal(found.array(), _array())

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (_array()[:, :, :3], r"has shape \[2, 2, 3\]; expected \[2, N, 4\]"),
            (_array()[0], r"has shape \[2, 4\]"),
            (_array()[:, :0], r"has shape \[2, 0, 4\]"),
            (_array().astype(str), "holds <U"),
            (_array().astype(object), "holds objects; expected numbers"),
            (_changed((0, 0, 0), 2), "holds 2.0; expected"),
            (_changed((1, 0, 0), -1), "holds -1.0; expected"),
            (_changed((1, 0, 0), 0.5), "holds 0.5; expected"),
            (_changed((0, 1, 1), np.nan), "holds nan; expected"),
            (_changed((0, 1), [0, 0, 1, 0]), "image 1 has no hole"),
            (_changed((0, 0), -1), "image 0 has nothing but holes"),
            (_changed((0, 0, 3), 0), "image 0 has known pixels that differ"),
        ],
        ids=lambda v: v if isinstance(v, str) else "",
    )
    def test_others_are_refused(self, tmp_path, array, message):
        np.save(tmp_path / "holes.npy", array, allow_pickle=True)
        with pytest.raises(DataError, match=message):
            holes.read(tmp_path / "holes.npy", 4)

    @pytest.mark.parametrize("content", [None, b"", b"-1 0 1\n", b"PK\x03\x04 cut", b"\x93NUMPY"])
    def test_what_is_no_array_is_refused(self, tmp_path, content):
        if content is not None:
            (tmp_path / "holes.npy").write_bytes(content)
        with pytest.raises(DataError, match=r"holes.npy cannot be read as one array"):
            holes.read(tmp_path / "holes.npy", 4)

    def test_two_arrays_are_refused(self, tmp_path):
        np.savez(tmp_path / "holes.npz", _array(), _array())
        with pytest.raises(DataError, match="holds 2 arrays; expected one"):
            holes.read(tmp_path / "holes.npz", 4)

    def test_an_archive_of_something_else_is_refused(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "holes.npz", "w") as archive:
            archive.writestr("notes.txt", "-1 0 1")
        with pytest.raises(DataError, match="holds no array; expected one"):
            holes.read(tmp_path / "holes.npz", 4)

    @pytest.mark.parametrize(
        "change",
        [np.asfortranarray, lambda a: a.astype(">i4"), lambda a: a.astype("<f2"), _as_uint8],
        ids=["Fortran order", "big-endian", "float16", "uint8, with 255 for -1"],
    )
    def test_of_an_unusual_kind_is_as_good(self, tmp_path, change):
        np.save(tmp_path / "holes.npy", change(_array()))
        assert np.array_equal(holes.read(tmp_path / "holes.npy", 4).array(), _array())

    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize(
        "header",
        [
            "{'descr': '|i1', 'fortran_order': False, 'shape': (2, 3, 4)",
            "{'descr': '|i1', 'fortran_order': False, 'shape': (2, 99999999999, 4)}",
            "{'descr': '|i1', 'fortran_order': False, 'shape': (2, -3, 4)}",
            "{'descr': '|V9999999999', 'fortran_order': False, 'shape': (2, 3, 4)}",
            "{[]: 1}",
            "array",
            "(" * 5000,
        ],
        ids=lambda text: text[:12] + text[-12:],
    )
    def test_a_header_that_is_odd_or_promises_too_much_is_refused(self, tmp_path, header, packed):
        content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header.encode()
        path = tmp_path / ("holes.npz" if packed else "holes.npy")
        if packed:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("a.npy", content + b"\n" + bytes(24))
        else:
            path.write_bytes(content + b"\n" + bytes(24))
        with pytest.raises(DataError, match=r"^[^\n]*holes.np[^\n]*$"):
            holes.read(path, 4)

    def test_an_archive_that_unpacks_to_much_is_refused_by_its_header(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "holes.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.npy", _header((2, 1 << 24, 5)) + bytes(1 << 24))
        tracemalloc.start()
        with pytest.raises(DataError, match=r"has shape \[2, 16777216, 5\]"):
            holes.read(tmp_path / "holes.npz", 4)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 22

    @pytest.mark.parametrize("kind", ["a named pipe", "a folder", "a device"])
    def test_what_is_no_file_is_refused_for_what_it_is(self, tmp_path, kind):
        path = tmp_path / "holes.npy"
        {
            "a named pipe": lambda: os.mkfifo(path),
            "a folder": path.mkdir,
            "a device": lambda: path.symlink_to("/dev/zero"),
        }[kind]()
        with pytest.raises(DataError, match=f"it is {kind}, not a file"):
            holes.read(path, 4)

    def test_a_damaged_archive_is_refused(self, tmp_path):
        np.savez_compressed(tmp_path / "holes.npz", np.tile(_array(), (1, 200, 1)))
        content = bytearray((tmp_path / "holes.npz").read_bytes())
        content[50:90] = b"\xff" * 40
        (tmp_path / "holes.npz").write_bytes(content)
        with pytest.raises(DataError, match="cannot be read as one array"):
            holes.read(tmp_path / "holes.npz", 4)


def test_binarised_from_a_share_of_white_on():
    grey = torch.tensor([[0, 25, 26, 76, 77, 255]], dtype=torch.uint8)
    assert holes.binarised(grey, 0.1).tolist() == [[0, 0, 1, 1, 1, 1]]
    assert holes.binarised(grey, 0.3).tolist() == [[0, 0, 0, 0, 1, 1]]
    assert holes.binarised(grey, 1.0).tolist() == [[0, 0, 0, 0, 0, 1]]
