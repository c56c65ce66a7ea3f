"""fastrnn predict: digits in picture files, and how they are made to look like the dataset's."""

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from fastrnn.tasks import data, picture_files
from fastrnn.training.errors import DataError
from tests import made_runs

FORMATS = {
    "mnist": data.image_format("mnist", grey=False),
    "digits": data.image_format("digits", grey=True),
}


def _drawing(scale=1.0, at=(60, 40), size=(300, 260), width=14):
    """A seven, light on dark, [h, w] uint8."""
    image = Image.new("L", size)
    corners = [(0, 0), (80, 0), (30, 120)]
    line = [(at[0] + scale * x, at[1] + scale * y) for x, y in corners]
    ImageDraw.Draw(image).line(line, 255, round(width * scale), joint="curve")
    return np.asarray(image)


def _saved(path, image, **options):
    Image.fromarray(image).save(path, **options)
    return path


def _differ(found, wanted):
    """Mean difference of two images, as a share of white."""
    return np.abs(found.astype(float) - wanted).mean() / 255


@pytest.fixture(params=FORMATS)
def like(request):
    """The images of each dataset."""
    return FORMATS[request.param]


class TestReading:
    def test_a_digit_fills_the_dataset_s_box(self, tmp_path):
        path = _saved(tmp_path / "a.png", _drawing())
        small = picture_files.read(path, FORMATS["mnist"]).image
        rows, columns = (np.flatnonzero((small > 100).any(axis)) for axis in (1, 0))
        assert small.shape == (28, 28)
        assert np.ptp(rows) + 1 == 20  # the longer side
        assert 12 <= np.ptp(columns) + 1 <= 16  # in proportion
        weights = small / small.sum()
        assert abs(weights.sum(1) @ np.arange(28) - 14) <= 0.5
        assert abs(weights.sum(0) @ np.arange(28) - 14) <= 0.5
        small = picture_files.read(path, FORMATS["digits"]).image
        assert small.shape == (8, 8)
        assert (small > 50).any(1).all()  # as high as the image

    @pytest.mark.parametrize(
        "changed",
        [
            lambda a: 255 - a,
            lambda a: _drawing(at=(160, 90)),
            lambda a: _drawing(1.6, (90, 30)),
            lambda a: np.pad(a, ((0, 400), (900, 0))),
            lambda a: (a * 0.3 + 60).astype(np.uint8),
            lambda a: 200 - (a * 0.5).astype(np.uint8),
            lambda a: np.stack([255 - a, 255 - a // 2, 230 - a // 4], 2),
            lambda a: np.stack([a * 0, a * 0, a * 0, a], 2),
            lambda a: np.stack([a * 0 + 255] * 3 + [a], 2),
            lambda a: a.astype(np.uint16) * 257,
            lambda a: a > 127,
        ],
        ids=[
            "dark on light",
            "elsewhere",
            "larger",
            "in a large picture",
            "faint",
            "faint and dark on light",
            "in colour",
            "black on transparent",
            "white on transparent",
            "16 bits",
            "1 bit",
        ],
    )
    def test_what_does_not_matter(self, tmp_path, like, changed):
        wanted = picture_files.read(_saved(tmp_path / "a.png", _drawing()), like).image
        found = picture_files.read(_saved(tmp_path / "b.png", changed(_drawing())), like).image
        assert _differ(found, wanted) < 0.03
        assert _differ(found[:, ::-1], wanted) > 0.06  # so much does another image differ

    @pytest.mark.parametrize("name", ["a.jpg", "a.bmp", "a.gif", "a.pgm", "a.txt"])
    def test_formats_whatever_the_name(self, tmp_path, like, name):
        wanted = picture_files.read(_saved(tmp_path / "a.png", _drawing()), like).image
        kind = {"a.txt": "PNG"}.get(name)
        found = picture_files.read(_saved(tmp_path / name, _drawing(), format=kind), like)
        assert _differ(found.image, wanted) < 0.03
        assert (found.width, found.height) == (300, 260)

    def test_a_photograph_that_was_held_sideways(self, tmp_path, like):
        wanted = picture_files.read(_saved(tmp_path / "a.png", _drawing()), like).image
        exif = Image.Exif()
        exif[0x0112] = 6  # turn it clockwise
        turned = np.rot90(_drawing()).copy()
        found = picture_files.read(_saved(tmp_path / "b.jpg", turned, exif=exif), like)
        assert _differ(found.image, wanted) < 0.03
        assert (found.width, found.height) == (300, 260)

    def test_thin_lines_are_thickened(self, tmp_path, like):
        path = _saved(tmp_path / "a.png", _drawing(1.8, (40, 20), width=1))
        small = picture_files.read(path, like).image
        assert small.max() > 180
        inked = (small >= data.THRESHOLDS[like.name]).sum()
        assert inked / like.height > 1.2

    def test_an_image_of_the_dataset_s_size_is_taken_as_it_is(self, tmp_path, like):
        image = np.zeros((like.height, like.width), np.uint8)
        image[1:4, 2] = [60, 255, 90]
        found = picture_files.read(_saved(tmp_path / "a.png", image), like)
        assert np.array_equal(found.image, image)
        assert not found.scaled
        found = picture_files.read(_saved(tmp_path / "b.png", 255 - image), like)
        assert np.array_equal(found.image, image)
        assert found.inverted

    def test_scikit_learn_s_digits_drawn_large_are_like_the_small_ones(self, tmp_path):
        test = data.load("digits", grey=True).test.images[:20].view(-1, 8, 8).numpy()
        differences = []
        for small in test:
            large = Image.fromarray(np.pad(small, 2)).resize((240, 240), Image.Resampling.BICUBIC)
            large.save(tmp_path / "a.png")
            found = picture_files.read(tmp_path / "a.png", FORMATS["digits"]).image
            differences.append([_differ(found, each) for each in test])
        own = np.diag(differences).mean()
        assert own < 0.6 * np.mean(differences)


def _png(width, height, content=b""):
    """A PNG file of this size whatever it holds."""

    def chunk(kind, value):
        checked = kind + value
        return struct.pack(">I", len(value)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), chunk(b"IDAT", content), chunk(b"IEND", b"")]
    )


def _pipe(path):
    os.mkfifo(path)


def _large(path):
    with path.open("wb") as file:
        file.truncate(picture_files.MOST_BYTES + 1)


REFUSED = {
    "missing": (lambda path: None, "No such file"),
    "folder": (Path.mkdir, "it is a folder, not a file"),
    "named pipe": (_pipe, "it is a named pipe, not a file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "it is a device, not a file"),
    "empty": (Path.touch, "its type is another one"),
    "text": (lambda path: path.write_text("seven"), "its type is another one"),
    "PostScript": (
        lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        "its type is another one); expected PNG, JPEG, BMP, GIF or PPM",
    ),
    "large file": (_large, "67,108,865 bytes; at most 67,108,864"),
    "bomb": (
        lambda path: path.write_bytes(_png(60_000, 60_000, zlib.compress(bytes(10**6)))),
        "it has more than 50,000,000 pixels",
    ),
    "large": (
        lambda path: path.write_bytes(_png(10_000, 5_001)),
        "10,000 × 5,001 pixels; expected 50,000,000 or fewer",
    ),
    "bomb of text": (
        lambda path: path.write_bytes(b"P5 " + b"0" * 1000 + b"9 9 255\n"),
        "cannot be read as a picture",
    ),
    "cut": (lambda path: path.write_bytes(_png(99, 99)), "cannot be read as a picture"),
    "blank": (
        lambda path: _saved(path, np.full((99, 99), 250, np.uint8)),
        "shows no digit: its grey values are all alike, 250 to 250 of 255",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_picture_is_refused(tmp_path, name):
    make, message = REFUSED[name]
    path = tmp_path / "a.png"
    make(path)
    with pytest.raises(DataError) as error:
        picture_files.read(path, FORMATS["mnist"])
    assert message in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


class TestCommand:
    @pytest.fixture
    def seven(self, tmp_path):
        return _saved(tmp_path / "seven.png", 255 - _drawing())

    @pytest.mark.parametrize("dataset", FORMATS)
    def test_prints_the_label_and_what_it_saw(self, fastrnn, tmp_path, seven, dataset):
        run = made_runs.make(tmp_path / "run", "classification", dataset)
        status, out, err = fastrnn("predict", run, "seven.png", "seven.png")
        assert (status, err) == (0, "")
        like = FORMATS[dataset]
        lines = out.splitlines()
        assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]
        assert lines[0].startswith("seven.png: ")
        assert lines[1].startswith("  saw dark ink on light, 300 × 260; scaled to ")
        assert f"{like.width} × {like.height} binary pixels" in lines[1]
        drawn = lines[2 : len(lines) // 2]
        assert set("".join(drawn)) <= set(" ▄▀█")
        assert 4 <= len(drawn) <= like.height // 2
        assert max(map(len, lines)) <= 80

    def test_json_has_what_python_gives(self, fastrnn, tmp_path, seven):
        from fastrnn import tasks

        run = made_runs.make(tmp_path / "run", "classification", pixels="grey")
        status, out, _ = fastrnn("predict", run, seven, "--json")
        (found,) = json.loads(out)
        image = picture_files.read(seven, FORMATS["digits"]).image
        label, probabilities = tasks.load(run).predict(image)
        assert status == 0
        assert found["label"] == int(label)
        assert torch.allclose(torch.tensor(found["probabilities"]), probabilities)
        assert (found["image"], found["width"], found["height"]) == (str(seven), 300, 260)
        assert found["dark_on_light"]
        assert found["scaled"]

    def test_a_model_of_pixels_prints_nats(self, fastrnn, tmp_path, seven):
        run = made_runs.make(tmp_path / "run", "pixel-prediction")
        _, out, _ = fastrnn("predict", run, seven, "--json")
        nats = json.loads(out)[0]["nats"]
        status, out, _ = fastrnn("predict", run, seven)
        assert status == 0
        assert f"{nats:.2f} nats" in out

    @pytest.mark.parametrize(
        ("task", "image", "message"),
        [
            ("inpainting", "seven.png", "is a run of inpainting, which fills holes"),
            ("classification", "none.png", "none.png cannot be read as a picture (No such file"),
        ],
    )
    def test_refuses_in_one_line(self, fastrnn, tmp_path, seven, task, image, message):
        run = made_runs.make(tmp_path / "run", task)
        status, out, err = fastrnn("predict", run, "seven.png", image)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert message in err
