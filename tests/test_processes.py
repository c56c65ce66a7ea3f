"""The command line in two processes that torchrun starts: the numbers, files and ends of one."""

import csv
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch.distributed

from fastrnn.tasks import NAMES
from tests import command, torchrun

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch was built without torch.distributed"
)

# The last batch of an epoch has 47 images, which two processes cannot share evenly. With the rate
# of the presets, differences of rounding would grow to more than a thousandth.
OPTIONS = "--dataset digits --batch-size 100 --epochs 6 --input-dropout 0.1 --shift 1 --lr 0.005"
SETTINGS = OPTIONS.split()
COMMANDS = {
    "complete": ["pixel-prediction", "--images", "21", "--samples", "3", "--out", "completed"],
    "inpaint": ["inpainting", "--images", "21", "--out", "filled"],
}
MAIN = "import sys; from fastrnn.cli import main; main()"
SCRIPT = """
import sys
from fastrnn.cli import main
from fastrnn.training import distributed
with distributed.group():  # starting takes longer than all that follows
    for arguments in {commands!r}:
        sys.argv = ["fastrnn", *arguments]
        try:
            main()
        except SystemExit as end:
            assert not end.code, end.code
"""


def _rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What two processes make and print: runs, figures, and the results of COMMANDS."""
    folder = tmp_path_factory.mktemp("both")
    commands = [["train", task, *SETTINGS, "--out", str(folder / task)] for task in NAMES]
    commands += [["evaluate", str(folder / task)] for task in NAMES]
    for name, (task, *options, _, out) in COMMANDS.items():
        commands.append([name, str(folder / task), *options, "--out", str(folder / out)])
    with torchrun.start("-c", SCRIPT.format(commands=commands)) as job:
        output = job.communicate(timeout=300)[0]
    assert job.returncode == 0, output
    return folder, output


@pytest.mark.parametrize("task", NAMES)
def test_losses_are_those_of_one_process(both, tmp_path, task):
    assert command.run("train", task, *SETTINGS, "--out", tmp_path / "one") == 0
    for number, (a, b) in enumerate(
        zip(_rows(both[0] / task), _rows(tmp_path / "one"), strict=True)
    ):
        for name in ("train_loss", "validation_loss"):
            assert a[name] == pytest.approx(b[name], rel=1e-3 if number else 1e-4)


def test_a_line_is_printed_once_and_the_files_are_one_run(both, fastrnn):
    folder, output = both
    assert output.count("epoch 1/6") == len(NAMES)
    assert output.count("nats per image") == 4 + 1  # four lengths, and the filled holes
    for path in folder.iterdir():
        assert fastrnn("verify", path)[0] == 0
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize("task", NAMES)
def test_evaluation_is_that_of_one_process(both, fastrnn, task):
    folder, output = both
    assert fastrnn("evaluate", folder / task)[1] in output


@pytest.mark.parametrize("name", COMMANDS)
def test_images_are_those_of_one_process(both, fastrnn, name):
    folder, _ = both
    task, *options, _, out = COMMANDS[name]
    assert fastrnn(name, folder / task, *options, "--out", out)[0] == 0
    (path,) = Path(out).glob("*.npz")
    with np.load(path) as one, np.load(folder / out / path.name) as two:
        assert set(one.files) == set(two.files)
        for array in one.files:
            np.testing.assert_allclose(one[array], two[array], rtol=1e-4, atol=1e-5)


LONG = ["--dataset", "digits", "--hidden-size", "32", "--batch-size", "50", "--epochs", "30"]


def _epoch(job):
    """Waits for the first epoch's line."""
    lines = iter(job.stdout.readline, "")
    assert any(line.startswith("epoch 1/") for line in lines)


def test_a_stopped_run_goes_on_in_one_process(fastrnn, tmp_path):
    # At the preset's rate, steps are so large that rounding errors grow a thousandfold an epoch.
    options = [*LONG, "--epochs", "8", "--lr", "3e-3", "--checkpoint-seconds", "0.01"]
    with torchrun.start("-c", MAIN, "train", "pixel-prediction", *options, "--out", "run") as job:
        _epoch(job)
        os.kill(_workers(job)[1], signal.SIGTERM)  # not the one that writes
        output = job.communicate(timeout=120)[0]
    assert "stopped by SIGTERM; to continue: fastrnn train pixel-prediction --resume run" in output
    assert len(_rows(tmp_path / "run")) < 8
    status, out, err = fastrnn("train", "pixel-prediction", "--resume", "run")
    assert status == 0, err
    assert "processes: 1 now, 2 before" in out
    assert fastrnn("train", "pixel-prediction", *options, "--out", "one")[0] == 0
    for a, b in zip(_rows(tmp_path / "run"), _rows(tmp_path / "one"), strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-3)
    test = [json.loads(Path(p, "summary.json").read_text())["test_loss"] for p in ("run", "one")]
    assert test[0] == pytest.approx(test[1], rel=1e-3)


def _workers(job):
    path = Path(f"/proc/{job.pid}/task/{job.pid}/children")
    return [int(number) for number in path.read_text().split()]


def test_a_killed_worker_ends_the_job_with_a_message_and_the_run_goes_on(fastrnn, tmp_path):
    with torchrun.start("-c", MAIN, "train", "classification", *LONG, "--out", "run") as job:
        _epoch(job)
        workers = _workers(job)
        started = time.monotonic()
        os.kill(workers[1], signal.SIGKILL)
        output = job.communicate(timeout=90)[0]
    assert time.monotonic() - started < 60
    assert job.returncode != 0
    assert "fastrnn: process 0 of 2 stops, because another one has ended" in output
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert len(_rows(tmp_path / "run")) < 30
    assert fastrnn("train", "classification", "--resume", "run", "--epochs", 31)[0] == 0
    assert [row["epoch"] for row in _rows(tmp_path / "run")] == list(range(1, 32))


def test_an_error_of_one_process_ends_all_with_its_reason(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes").touch()
    options = ["train", "classification", *LONG, "--out", tmp_path / "run"]
    with torchrun.start("-c", MAIN, *options) as job:
        output = job.communicate(timeout=90)[0]
    assert job.returncode != 0
    assert "run exists and is not empty" in output
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes"]
