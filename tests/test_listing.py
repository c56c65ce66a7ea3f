"""``fastrnn runs`` and ``fastrnn compare``: where runs stand, in which order, and what differs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from matplotlib import image

from fastrnn.tasks import listing
from fastrnn.training import locks
from fastrnn.training.report import COLUMNS
from tests import command

TINY = ["--dataset", "digits", "--hidden-size", "4", "--batch-size", "500"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two finished runs."""
    folder = tmp_path_factory.mktemp("runs")
    for name, epochs, rate in (("a", 1, 0.001), ("b", 2, 0.05)):
        options = ["--epochs", epochs, "--lr", rate, "--out", folder / name, "-q"]
        assert command.run("train", "classification", *TINY, *options) == 0
    return folder


@pytest.fixture
def runs(trained, tmp_path, fastrnn):
    """The finished runs, and what has become of copies of them."""
    folder = tmp_path / "runs"
    shutil.copytree(trained, folder)
    stopped = shutil.copytree(folder / "b", folder / "stopped")
    (stopped / "summary.json").unlink()
    for name in ("summary.json", "checkpoints/best.safetensors", "config.json"):
        damaged = shutil.copytree(folder / "a", folder / f"without {name.replace('/', ' ')}")
        (damaged / name).write_text("{}")
    lost = shutil.copytree(stopped, folder / "lost")
    (lost / "checkpoints" / "last.safetensors").unlink()
    (folder / "other").mkdir()
    (folder / "other" / "config.json").write_text('{"model_type": "gpt2"}')
    return folder


def _states(folder):
    return {path.name: listing.read(path).state for path in listing.find(folder)}


class TestStates:
    def test_of_each_run(self, runs):
        damaged = {p.name for p in runs.glob("without *")} | {"lost"}
        assert len(damaged) == 4
        wanted = {"a": "finished", "b": "finished", "stopped": "stopped"}
        assert _states(runs) == wanted | dict.fromkeys(damaged, "damaged")

    def test_links_are_followed_but_not_in_circles(self, runs, tmp_path):
        (tmp_path / "links").mkdir()
        (tmp_path / "links" / "a").symlink_to(runs / "a")
        (tmp_path / "links" / "again").symlink_to(tmp_path / "links")
        assert _states(tmp_path / "links") == {"a": "finished"}

    def test_one_whose_lock_is_held_is_running(self, runs):
        with locks.held(runs / "stopped" / locks.NAME, AssertionError()):
            assert _states(runs)["stopped"] == "running"
        assert _states(runs)["stopped"] == "stopped"

    def test_looking_at_a_lock_keeps_nobody_from_taking_it(self, runs):
        with locks.held(runs / "stopped" / locks.NAME, AssertionError()):
            pass
        assert not locks.taken(runs / "stopped" / locks.NAME)

    def test_reading_changes_nothing(self, runs):
        before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
        _states(runs)
        assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before

    def test_format_1_can_be_read(self):
        folder = Path(__file__).parent / "format_1"
        assert _states(folder) == {"finished": "finished", "stopped": "stopped"}


class TestRuns:
    def test_a_row_has_the_best_figure(self, fastrnn, runs):
        status, out, err = fastrnn("runs")
        assert (status, err) == (0, "")
        rows = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
        summary = json.loads((runs / "b" / "summary.json").read_text())
        assert f" {summary['test_accuracy']:.2%} " in rows["b"]
        best = max(row["validation_accuracy"] for row in listing.read(runs / "stopped").history)
        assert f" {best:.2%}* " in rows["stopped"]
        assert "2/2" in rows["stopped"]
        assert "without summary.json" in out
        assert "last.safetensors is missing" in out

    @pytest.mark.parametrize(
        ("sort", "first"), [("best", "b"), ("time", "b"), ("name", "a"), ("epochs", "b")]
    )
    def test_can_be_sorted(self, fastrnn, trained, monkeypatch, sort, first):
        monkeypatch.chdir(trained)
        entries = json.loads(fastrnn("runs", ".", "--sort", sort, "--json")[1])
        figures = [listing.read(trained / entry["run"]) for entry in entries]
        keys: dict[str, list[Any]] = {
            "best": [-(entry.best or 0) for entry in figures],
            "time": [-entry.seconds for entry in figures],
            "name": [entry.folder.name for entry in figures],
            "epochs": [-len(entry.history) for entry in figures],
        }
        assert keys[sort] == sorted(keys[sort])
        assert len(entries) == 2
        if sort in ("name", "epochs"):
            assert entries[0]["run"] == first

    def test_long_names_do_not_widen_the_table(self, fastrnn, runs):
        name = "classification-best-gru-128-20261127-234512-with-a-longer-name"
        (runs / "a").rename(runs / name)
        out = fastrnn("runs")[1]
        assert f"  {name}\n" in out
        table = out.partition("damaged:")[0]
        assert max(map(len, table.splitlines())) <= COLUMNS

    def test_none_is_no_error_but_no_folder_is(self, fastrnn, tmp_path):
        status, out, _ = fastrnn("runs")
        assert status == 0
        assert "no runs in runs" in out
        assert fastrnn("runs", "nowhere")[0] == 2


class TestCompare:
    def test_prints_what_differs_and_draws_the_curves(self, fastrnn, runs, tmp_path):
        status, out, err = fastrnn("compare", "runs/a", "runs/b", "--out", "both.png")
        assert (status, err) == (0, "")
        rows = {line[:20].strip(): line[20:].split() for line in out.splitlines()}
        assert rows["learning rate"] == ["0.001", "0.05"]
        assert rows["epochs"] == ["1", "2"]
        assert "hidden size" not in rows
        tested = [json.loads((runs / n / "summary.json").read_text()) for n in "ab"]
        assert rows["test accuracy"] == [f"{each['test_accuracy']:.2%}" for each in tested]
        assert image.imread(tmp_path / "both.png").std() > 0

    def test_a_folder_gets_the_picture(self, fastrnn, runs, tmp_path):
        (tmp_path / "pictures").mkdir()
        assert fastrnn("compare", "runs/a", "runs/b", "--out", "pictures")[0] == 0
        assert (tmp_path / "pictures" / "comparison.png").exists()

    def test_many_runs_fit_the_width(self, fastrnn, runs):
        for number in range(12):
            (runs / f"copy{number}").symlink_to(runs / "b")
        names = [f"runs/copy{number}" for number in range(12)]
        status, out, _ = fastrnn("compare", *names)
        assert status == 0
        assert max(map(len, out.splitlines())) <= COLUMNS
        assert " L\n" in out  # the twelfth column's letter

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (["a"], "needs two or more runs"),
            (["a", "nowhere"], "does not exist"),
            (["a", "without config.json"], "is damaged"),
        ],
    )
    def test_what_cannot_be_compared(self, fastrnn, runs, names, message):
        status, _, err = fastrnn("compare", *(f"runs/{name}" for name in names))
        assert (status, err.count("\n")) == (2, 1)
        assert message in err
