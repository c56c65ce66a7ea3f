"""The commands that complete and in-paint images with finished runs."""

import csv
import json
import shutil

import numpy as np
import pytest
from matplotlib import image

from fastrnn.tasks import data, holes
from tests import command

TINY = ["--dataset", "digits", "--hidden-size", "8", "--epochs", "2", "--batch-size", "200"]
PREDICTION, INPAINTING = "pixel-prediction", "inpainting"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs of the three tasks, by name."""
    folder = tmp_path_factory.mktemp("runs")
    for task in ("classification", PREDICTION, INPAINTING):
        assert command.run("train", task, *TINY, "--out", folder / task) == 0
    return folder


def _rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _opens(pictures):
    return all(image.imread(path).std() > 0 for path in pictures)


class TestComplete:
    arguments = ("--images", 14, "--samples", 3, "--out", "done")

    def test_writes_arrays_tables_and_pictures(self, fastrnn, runs, tmp_path):
        status, out, err = fastrnn("complete", runs / PREDICTION, *self.arguments)
        assert status == 0, err
        assert "14 images × 3 samples" in out
        done = tmp_path / "done"
        assert [row["pixels"] for row in _rows(done / "means.csv")] == ["1", "4", "8", "22"]
        rows = {int(row["row"]) for row in _rows(done / "images.csv")}
        with np.load(done / "completions.npz") as arrays:
            assert rows == set(arrays["rows"].tolist())
            assert np.array_equal(arrays["images"], data.load("digits").test.images[arrays["rows"]])
            assert arrays["samples"].shape == (14, 3, 64)
            assert arrays["logits"].shape == (14, 3, 22)
        sets = {f"{which}/{n}.png" for which in ("fail", "good", "var") for n in (1, 4, 8, 22)}
        found = {str(path.relative_to(done)) for path in done.rglob("*.png")}
        assert sets < found
        assert _opens(done.rglob("*.png"))

    def test_prints_one_image_one_sample_and_one_pixel(self, fastrnn, runs):
        options = ["--images", 1, "--samples", 1, "--pixels", "1,4", "--out", "done"]
        status, out, _ = fastrnn("complete", runs / PREDICTION, *options)
        assert status == 0
        assert "1 image × 1 sample in" in out
        assert "\n   1 pixel:  true " in out
        assert "\n   4 pixels: true " in out

    def test_again_gives_the_same_and_another_seed_does_not(self, fastrnn, runs, tmp_path):
        samples = []
        for name, seed in (("a", 5), ("b", 5), ("c", 6)):
            options = ["--images", 3, "--samples", 2, "--seed", seed, "--out", name]
            assert fastrnn("complete", runs / PREDICTION, *options)[0] == 0
            with np.load(tmp_path / name / "completions.npz") as arrays:
                samples.append(arrays["samples"])
        assert np.array_equal(samples[0], samples[1])
        assert not np.array_equal(samples[0], samples[2])


class TestInpaint:
    @pytest.mark.parametrize("task", [PREDICTION, INPAINTING])
    @pytest.mark.parametrize(("kind", "count"), [("pixel", 1), ("square", 4)])
    def test_generated_holes(self, fastrnn, runs, tmp_path, task, kind, count):
        options = ["--holes", kind, "--images", 40, "--out", "done"]
        status, out, err = fastrnn("inpaint", runs / task, *options)
        assert status == 0, err
        done = tmp_path / "done"
        summary = json.loads((done / "summary.json").read_text())
        assert f"all right {summary['exact_accuracy']:.2%}" in out
        assert (summary["task"], summary["images"]) == (task, 40)
        rows = _rows(done / "images.csv")
        assert {row["holes"] for row in rows} == {str(count)}
        right = sum(row["right"] == str(count) for row in rows) / 40
        assert summary["exact_accuracy"] == pytest.approx(right)
        assert _opens(done.glob("*.png"))

    @pytest.mark.parametrize("task", [PREDICTION, INPAINTING])
    def test_a_file_s_holes_are_those_that_made_it(self, fastrnn, runs, tmp_path, task):
        first = ["--holes", "square", "--images", 20, "--seed", 3, "--out", "first"]
        assert fastrnn("inpaint", runs / task, *first)[0] == 0
        second = ["--holes", "first/holes.npy", "--out", "second"]
        assert fastrnn("inpaint", runs / task, *second)[0] == 0
        with (
            np.load(tmp_path / "first" / "inpainted.npz") as a,
            np.load(tmp_path / "second" / "inpainted.npz") as b,
        ):
            assert all(np.array_equal(a[name], b[name]) for name in a.files)

    def test_more_holes_than_the_beam_is_wide(self, fastrnn, runs, tmp_path):
        truth = data.load("digits").test.images[:5]
        hidden = np.zeros((5, 64), bool)
        hidden[:, 20:32] = True
        made = holes.Holes(truth, truth.new_tensor(hidden).bool())
        np.save(tmp_path / "many.npy", made.array())
        nats = []
        for width in (1, 8, 4096):
            options = ["--holes", "many.npy", "--width", width, "--out", f"{width}"]
            assert fastrnn("inpaint", runs / PREDICTION, *options)[0] == 0
            summary = json.loads((tmp_path / str(width) / "summary.json").read_text())
            nats.append(summary["inpainted_nats"])
        assert nats[0] >= nats[1] >= nats[2]  # none is likelier than the best of all
        assert summary["true_nats"] >= nats[2]

    def test_another_threshold_gives_other_images(self, fastrnn, runs, tmp_path):
        truths = []
        for name, options in (("a", []), ("b", ["--threshold", 0.9])):
            arguments = ["--images", 20, *options, "--out", name]
            assert fastrnn("inpaint", runs / INPAINTING, *arguments)[0] == 0
            with np.load(tmp_path / name / "inpainted.npz") as arrays:
                truths.append(arrays["truth"])
        assert truths[1].sum() < truths[0].sum()


class TestErrors:
    """One line on stderr that says what to do, exit status 2, nothing written."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["complete", INPAINTING], "is a run of inpainting; expected pixel-prediction"),
            (["complete", "none"], "none does not exist"),
            (["complete", PREDICTION, "--pixels", "0,4"], "--pixels is '0,4'; expected different"),
            (["complete", PREDICTION, "--pixels", "64"], "whole numbers from 1 to 63"),
            (["complete", PREDICTION, "--images", "999"], "--images is 999; expected 1 to "),
            (["complete", PREDICTION, "--samples", "0"], "--samples is 0; expected 1"),
            (["complete", PREDICTION, "--seed", "-1"], "--seed is -1; expected 0"),
            (
                ["complete", PREDICTION, "--samples", str(10**12)],
                "there is not enough memory",
            ),
            (["complete", PREDICTION, "--backend", "cuda"], "backend 'cuda' cannot run this call"),
            (["inpaint", INPAINTING, "--backend", "cuda"], "backend 'cuda' cannot run this call"),
            (["inpaint", "classification"], "expected pixel-prediction or inpainting"),
            (["inpaint", PREDICTION, "--images", "0"], "--images is 0; expected 1 to "),
            (["inpaint", PREDICTION, "--width", "0"], "--width is 0; expected 1"),
            (["inpaint", PREDICTION, "--seed", "-1"], "--seed is -1; expected 0"),
            (["inpaint", PREDICTION, "--threshold", "0"], "--threshold is 0.0; expected more"),
            (
                ["inpaint", PREDICTION, "--holes", "none.npy"],
                "expected pixel, square or a file",
            ),
            (
                ["inpaint", PREDICTION, "--holes", "none.npy", "--images", "3"],
                "--images, --threshold and --seed are for generated holes",
            ),
            (
                ["inpaint", PREDICTION, "--holes", "none.npy", "--seed", "0"],
                "--images, --threshold and --seed are for generated holes",
            ),
            (["inpaint", INPAINTING, "--width", "8"], "--width is for a run of pixel-prediction"),
        ],
        ids=lambda v: " ".join(v) if isinstance(v, list) else "",
    )
    def test_of_the_user(self, fastrnn, runs, tmp_path, arguments, message):
        command, run, *options = arguments
        run = runs / run if (runs / run).exists() else run
        status, _, err = fastrnn(command, run, *options)
        assert (status, err.count("\n")) == (2, 1)
        assert message in err
        assert not list(tmp_path.iterdir())
        assert not list(runs.glob("*/completions")) + list(runs.glob("*/inpainted*"))

    @pytest.mark.parametrize("command", ["complete", "inpaint"])
    def test_a_cut_checkpoint(self, fastrnn, runs, tmp_path, command):
        shutil.copytree(runs / PREDICTION, tmp_path / "run")
        best = tmp_path / "run" / "checkpoints" / "best.safetensors"
        best.write_bytes(best.read_bytes()[:-1])
        status, _, err = fastrnn(command, "run", "--images", 3, "--out", "done")
        assert (status, err.count("\n")) == (2, 1)
        assert "best.safetensors is damaged" in err
        assert not (tmp_path / "done").exists()

    @pytest.mark.parametrize("command", ["complete", "inpaint"])
    def test_a_folder_in_use_is_kept(self, fastrnn, runs, tmp_path, command):
        (tmp_path / "done").mkdir()
        (tmp_path / "done" / "notes").write_text("mine")
        status, _, err = fastrnn(command, runs / PREDICTION, "--images", 3, "--out", "done")
        assert (status, err.count("\n")) == (2, 1)
        assert "done exists and is not empty: choose another --out" in err
        assert [path.name for path in tmp_path.rglob("*")] == ["done", "notes"]
