"""Runs lose nothing: formats, checksums, locks, going on elsewhere, results before pictures."""

import csv
import errno
import fcntl
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastrnn import __version__
from fastrnn.tasks.pixel_prediction import TASK
from fastrnn.training import checkpoints, figures, files, locks
from fastrnn.training.runs import Run
from tests import command

PREDICTION = "pixel-prediction"
TINY = ["--dataset", "digits", "--hidden-size", 4, "--batch-size", 500, "--schedule", "constant"]
FORMAT_1 = Path(__file__).parent / "format_1"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run of two epochs; tests work on copies of it."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert command.run("train", PREDICTION, *TINY, "--epochs", 2, "--out", folder) == 0
    return folder


@pytest.fixture
def run(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "run"))


def _losses(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [float(row["train_loss"]) for row in csv.DictReader(file)]


def _content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _refused(result, *words):
    status, _, err = result
    assert (status, err.count("\n")) == (2, 1), err
    for word in words:
        assert word in err


class TestFormat:
    def test_every_file_says_its_format_and_what_wrote_it(self, fastrnn, run):
        assert fastrnn("complete", run, "--images", 2, "--samples", 2, "--out", "done")[0] == 0
        for path in (run / "config.json", run / "summary.json", Path("done/summary.json")):
            content = json.loads(path.read_text())
            assert (content["format"], content["fastrnn"]) == (2, __version__)
        for path in (run / "checkpoints").iterdir():
            content = path.read_bytes()
            header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
            assert header["__metadata__"]["format"] == "2"
            assert json.loads(header["__metadata__"]["fastrnn"]) == __version__

    def test_a_run_of_format_1_is_evaluated(self, fastrnn):
        status, out, err = fastrnn("evaluate", FORMAT_1 / "finished")
        wanted = json.loads((FORMAT_1 / "finished" / "summary.json").read_text())
        assert (status, err) == (0, "")
        assert float(out.split()[2].strip(",")) == pytest.approx(wanted["test_loss"], rel=1e-4)
        assert fastrnn("verify", FORMAT_1 / "finished")[0] == 0

    def test_a_run_of_format_1_is_resumed_to_its_end(self, fastrnn, tmp_path):
        shutil.copytree(FORMAT_1 / "stopped", tmp_path / "run")
        status, _, err = fastrnn("train", PREDICTION, "--resume", "run")
        assert status == 0, err
        wanted = json.loads((FORMAT_1 / "finished" / "summary.json").read_text())
        found = json.loads(Path("run/summary.json").read_text())
        assert found["test_loss"] == pytest.approx(wanted["test_loss"], rel=1e-4)
        assert fastrnn("verify", "run")[0] == 0

    @pytest.mark.parametrize("place", ["config.json", "best.safetensors"])
    def test_a_newer_format_is_refused_with_both_numbers(self, fastrnn, run, place, monkeypatch):
        if place == "config.json":
            content = json.loads((run / place).read_text())
            (run / place).write_text(json.dumps({**content, "format": 3, "fastrnn": "9.0"}))
        else:
            tensors, record = checkpoints.read(run / "checkpoints" / place)
            with monkeypatch.context() as patch:
                patch.setattr(files, "version", lambda: {"format": 3, "fastrnn": "9.0"})
                checkpoints.write(run / "checkpoints" / place, tensors, record)
        words = (place, "format 3, of fastrnn 9.0", "formats up to 2: update fastrnn")
        _refused(fastrnn("evaluate", run), *words)


class TestChecksums:
    def test_a_hundred_flipped_bits_are_noticed(self, fastrnn, whole, run):
        """Exempt are pictures, from which nothing is read, and changes of config.json that leave
        every setting as it is but those of the machine, on which no number depends.
        """
        draw = random.Random(5)
        paths = [p for p in sorted(run.rglob("*.*")) if p.suffix not in (".png", ".lock", "")]
        assert len(paths) == 6
        before = Run.open(whole).identity
        for number in range(102):
            path = paths[number % len(paths)]
            content = bytearray(path.read_bytes())
            good = bytes(content)
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            path.write_bytes(content)
            status, out, err = fastrnn("verify", run)
            said = out + err
            assert "Traceback" not in said
            if status == 0:
                assert path.name == "config.json"
                assert Run.open(run).identity == before
            else:
                assert path.name in said, said
            path.write_bytes(good)
        assert fastrnn("verify", run)[0] == 0

    @pytest.mark.parametrize("name", ["best", "last"])
    @pytest.mark.parametrize("kind", ["flip", "cut", "empty", "another run's", "NaN"])
    def test_damaged_weights_are_not_used(self, fastrnn, whole, run, tmp_path, name, kind):
        path = run / "checkpoints" / f"{name}.safetensors"
        good = path.read_bytes()
        if kind == "another run's":
            options = [*TINY, "--epochs", 2, "--seed", 1, "--out", "other"]
            assert fastrnn("train", PREDICTION, *options)[0] == 0
            shutil.copy(tmp_path / "other" / "checkpoints" / path.name, path)
        elif kind == "NaN":
            tensors, record = checkpoints.read(path)
            key = next(k for k in tensors if k.endswith("head.weight") and "optim" not in k)
            tensors[key].fill_(float("nan"))
            checkpoints.write(path, tensors, record)
        else:
            flipped = good[:-3] + bytes([good[-3] ^ 4]) + good[-2:]
            path.write_bytes({"flip": flipped, "cut": good[:-1], "empty": b""}[kind])
        (run / "summary.json").unlink()
        arguments = ["evaluate"] if name == "best" else ["train", PREDICTION, "--resume"]
        if (name, kind) != ("last", "NaN"):  # which the loop reports as a loss that is not finite
            words = ["another run"] if kind == "another run's" else ["is damaged"]
            _refused(fastrnn(*arguments, run), path.name, *words)

    def test_a_damaged_checkpoint_can_be_replaced_by_the_one_before(self, fastrnn, run, whole):
        (run / "summary.json").unlink()
        path = run / "checkpoints" / "last.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        _, _, err = fastrnn("train", PREDICTION, "--resume", run)
        offered = err.partition("go on from the checkpoint before it: ")[2].partition(";")[0]
        assert "best.safetensors is whole" in err
        subprocess.run(offered, shell=True, check=True)
        assert fastrnn("train", PREDICTION, "--resume", run)[0] == 0
        assert _losses(run) == _losses(whole)

    @pytest.mark.parametrize(
        ("setting", "value"),
        [("batch_size", 100), ("seed", 3), ("epochs", 9), ("cell", "LSTM"), ("hidden_size", 5)],
    )
    def test_an_edited_setting_is_named(self, fastrnn, run, setting, value):
        (run / "summary.json").unlink()
        content = json.loads((run / "config.json").read_text())
        old = content["settings"][setting]
        content["settings"][setting] = value
        (run / "config.json").write_text(json.dumps(content))
        before = _content(run)
        message = f"{setting} is {value!r}, but was {old!r}"
        _refused(fastrnn("train", PREDICTION, "--resume", run), "config.json", message)
        assert _content(run) == before

    def test_settings_of_the_machine_may_differ(self, fastrnn, run, capsys):
        (run / "summary.json").unlink()
        content = json.loads((run / "config.json").read_text())
        content["settings"].update(device="cuda:7", checkpoint_seconds=5.0, data_dir="/none")
        (run / "config.json").write_text(json.dumps(content))
        status, _, err = fastrnn("evaluate", run)
        assert status == 0
        assert "torch sees" in err
        assert fastrnn("train", PREDICTION, "--resume", run, "--device", "cpu")[0] == 0

    def test_a_result_s_file_that_has_changed_is_refused_as_input(self, fastrnn, run, tmp_path):
        options = ["--images", 5, "--holes", "pixel", "--out", "first"]
        assert fastrnn("inpaint", run, *options)[0] == 0
        path = tmp_path / "first" / "holes.npy"
        content = np.load(path)
        content[:, 0, np.argmax(content[0, 0] == 0)] = 1
        np.save(path, content)
        assert fastrnn("verify", "first")[0] == 1
        _refused(fastrnn("inpaint", run, "--holes", path), "holes.npy is damaged")


class TestResults:
    arguments = (
        ("complete", "--images", 2, "--samples", 2, "--out", "done"),
        ("inpaint", "--images", 2, "--out", "done"),
    )

    @pytest.mark.parametrize("arguments", arguments, ids=lambda a: a[0])
    def test_are_there_before_and_without_pictures(self, fastrnn, run, arguments, monkeypatch):
        def fail(figure, path):
            assert Path("done/summary.json").exists()
            raise ImportError("libfreetype is missing")

        monkeypatch.setattr(figures, "save", fail)
        status, out, err = fastrnn(arguments[0], run, *arguments[1:])
        assert status == 0
        assert "nats per image" in out
        assert "no picture done/" in err
        assert "libfreetype" in err
        assert fastrnn("verify", "done")[0] == 0

    def test_of_a_training_are_there_without_pictures(self, fastrnn, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        status, out, err = fastrnn("train", PREDICTION, *TINY, "--epochs", 1, "--out", "run")
        assert status == 0
        assert "test loss" in out
        assert "no picture run/curves.png" in err
        assert Path("run/summary.json").exists()

    def test_what_a_killed_process_left_is_removed_by_the_next(self, fastrnn, run):
        for name in (".done.tmp", ".other.tmp"):
            Path(name).mkdir()
            Path(name, locks.NAME).touch()
            Path(name, "means.csv").touch()
        options = ["--images", 2, "--samples", 2, "--out", "done"]
        assert fastrnn("complete", run, *options)[0] == 0
        assert sorted(p.name for p in Path().iterdir()) == ["done", "run"]

    def test_a_second_process_is_refused_at_once(self, fastrnn, run):
        (run / ".completions.tmp").mkdir()
        with locks.held(run / ".completions.tmp" / locks.NAME, AssertionError()):
            _refused(fastrnn("complete", run, "--images", 2), "another process is writing")
        assert fastrnn("complete", run, "--images", 2, "--samples", 2)[0] == 0


class TestPlaces:
    @pytest.mark.parametrize(
        "name", ["[bold]x[/]", "[/x]", "a b", b"r\xe9".decode(errors="surrogateescape")]
    )
    def test_a_path_is_used_and_printed_as_it_is(self, fastrnn, name):
        status, out, err = fastrnn("train", PREDICTION, *TINY, "--epochs", 1, "--out", name)
        assert status == 0, err
        if name.isascii():
            assert f"digits: {name}\n" in out
        assert fastrnn("evaluate", name)[0] == 0

    def test_a_link_is_followed_and_the_current_folder_refused(self, fastrnn, tmp_path):
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        (tmp_path / "dangling").symlink_to("later")
        for name in ("link", "dangling"):
            assert fastrnn("train", PREDICTION, *TINY, "--epochs", 1, "--out", name)[0] == 0
        assert (tmp_path / "later" / "summary.json").exists()
        os.chdir(tmp_path / "real" / "checkpoints")
        Path("empty").mkdir()
        os.chdir("empty")
        _refused(fastrnn("train", PREDICTION, *TINY, "--out", "."), "is the current folder")

    def test_runs_that_start_in_the_same_second_get_folders_of_their_own(
        self, fastrnn, monkeypatch
    ):
        monkeypatch.setattr("time.strftime", lambda _: "20260101-000000")
        for _ in range(3):
            assert fastrnn("train", PREDICTION, *TINY, "--epochs", 1)[0] == 0
        stem = f"{PREDICTION}-digits-20260101-000000"
        assert {p.name for p in Path("runs").iterdir()} == {stem, f"{stem}-2", f"{stem}-3"}

    @pytest.mark.parametrize("number", [errno.ENOLCK, errno.EBADF])
    def test_a_file_system_without_locks_is_none_the_worse(self, fastrnn, monkeypatch, number):
        def flock(descriptor, operation):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)
        assert fastrnn("train", PREDICTION, *TINY, "--epochs", 1, "--out", "run")[0] == 0

    def test_a_lock_is_of_a_file_open_for_writing(self, run, monkeypatch):
        """Network file systems refuse an exclusive lock of anything else."""
        modes = []

        def flock(descriptor, operation):
            modes.append(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE)

        monkeypatch.setattr(fcntl, "flock", flock)
        with Run.open(run).locked():
            assert modes == [os.O_RDWR]

    def test_a_run_that_is_replaced_while_it_trains_leaves_the_other_alone(
        self, fastrnn, run, monkeypatch
    ):
        measure, calls = TASK.measure, iter(range(1000))

        def replacing(_, *arguments):
            if next(calls) == 4:
                Path("new").rename("old")
                shutil.copytree(run, "new")
            return measure(*arguments)

        monkeypatch.setattr(type(TASK), "measure", replacing)
        result = fastrnn("train", PREDICTION, *TINY, "--epochs", 2, "--out", "new")
        _refused(result, "new has been moved or replaced")
        assert _content(Path("new")) == _content(run)


class TestGoingOn:
    def test_more_epochs_extend_a_finished_run(self, fastrnn, run, whole):
        moved = run.rename(run.with_name("moved"))
        status, _, err = fastrnn("train", PREDICTION, "--resume", moved, "--epochs", 3)
        assert status == 0, err
        options = [*TINY, "--epochs", 3, "--out", "three"]
        assert fastrnn("train", PREDICTION, *options)[0] == 0
        assert _losses(moved) == _losses(Path("three"))
        assert json.loads((moved / "summary.json").read_text())["epochs"] == 3
        assert fastrnn("verify", moved)[0] == 0

    def test_an_extension_that_was_killed_goes_on(self, fastrnn, run):
        Run.open(run).extend(3)
        assert not (run / "summary.json").exists()
        assert fastrnn("train", PREDICTION, "--resume", run)[0] == 0
        assert len(_losses(run)) == 3

    def test_fewer_epochs_are_refused(self, fastrnn, run):
        before = _content(run)
        result = fastrnn("train", PREDICTION, "--resume", run, "--epochs", 1)
        _refused(result, "--epochs is 1", "has 2 already")
        assert _content(run) == before

    @pytest.mark.parametrize("lost", ["checkpoints/last.safetensors", "checkpoints"])
    def test_a_checkpoint_that_is_gone_is_not_started_over(self, fastrnn, run, lost):
        (run / "summary.json").unlink()
        path = run / lost
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        before = _content(run)
        _refused(fastrnn("train", PREDICTION, "--resume", run), lost.split("/")[-1], "copy it back")
        assert _content(run) == before

    def test_another_number_of_threads_is_announced(self, fastrnn, run, monkeypatch):
        (run / "summary.json").unlink()
        threads = torch.get_num_threads()
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
        status, out, _ = fastrnn("train", PREDICTION, "--resume", run)
        assert status == 0
        assert f"threads: {threads + 1} now, {threads} before" in out

    def test_a_batch_in_parts_is_the_same_batch(self, fastrnn, whole):
        options = [*TINY, "--epochs", 2, "--accumulate", 3, "--out", "parts"]
        assert fastrnn("train", PREDICTION, *options)[0] == 0
        assert _losses(Path("parts")) == pytest.approx(_losses(whole), rel=1e-4)


def _start(*arguments, **environment):
    code = "import sys; sys.argv[0] = 'fastrnn'; from fastrnn.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


class TestSignals:
    def test_while_torch_is_imported_end_the_command_quietly(self):
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        started = [(number, _start("presets")) for number in numbers]
        for number, process in started:
            maps = Path(f"/proc/{process.pid}/maps")
            while "libtorch" not in maps.read_text():
                assert process.poll() is None
            process.send_signal(number)
        for number, process in started:
            assert process.communicate(timeout=60)[0] == ""
            assert process.returncode == 128 + number

    def test_leave_nothing_of_a_completion(self, run):
        before = sorted(p.name for p in run.iterdir())
        with _start("complete", run, "--images", 300, "--samples", 3000) as process:
            while not (run / ".completions.tmp").exists():
                assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            output = process.communicate(timeout=120)[0]
        assert (process.returncode, output) == (143, "")
        assert sorted(p.name for p in run.iterdir()) == before

    def test_an_output_that_is_closed_or_full(self, run):
        code = "import sys; from fastrnn.cli import main; main()"
        for arguments in (["presets"], ["evaluate", str(run)]):
            with Path("/dev/full").open("w") as full:
                done = subprocess.run(
                    [sys.executable, "-c", code, *arguments],
                    stdout=full, stderr=subprocess.PIPE, text=True, check=False,
                )  # fmt: skip
            assert (done.returncode, done.stderr.count("\n")) == (2, 1)
            assert "the output cannot be written (No space left on device)" in done.stderr
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [sys.executable, "-c", code, "presets"],
            stdout=write, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        os.close(write)
        assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batch-size", "1e2"], ["--batch-size", "1e2"]),
        (["--hidden-size", "16.5"], ["--hidden-size", "16.5"]),
        (["--num-layers", "2147483647"], ["--num-layers is 2147483647", "1 to 1000"]),
        (["--hidden-size", "2147483647"], ["there is not enough memory", "--hidden-size"]),
        (["--device", "cpu:5"], ["--device is 'cpu:5'"]),
        (["--epoch"], ["--epoch"]),
    ],
    ids=" ".join,
)
def test_a_wrong_option_is_refused_with_what_was_given(fastrnn, arguments, words):
    result = fastrnn("train", PREDICTION, "--dataset", "digits", *arguments, "--out", "run")
    _refused(result, *words)
    assert not list(Path().iterdir())
