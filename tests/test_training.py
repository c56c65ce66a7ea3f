"""The training loop: settings, metrics, and runs that survive whatever stops them."""

import csv
import dataclasses
import errno
import itertools
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

from fastrnn import __version__
from fastrnn.tasks import data
from fastrnn.tasks import figures as task_figures
from fastrnn.tasks.classification import TASK
from fastrnn.tasks.config import PixelConfig
from fastrnn.training import checkpoints, evaluation, figures, interrupts, loop
from fastrnn.training.checkpoints import State
from fastrnn.training.config import ConfigError
from fastrnn.training.errors import RunError
from fastrnn.training.files import write
from fastrnn.training.report import Output
from fastrnn.training.runs import Run

TINY = PixelConfig(
    dataset="digits",
    device="cpu",
    hidden_size=5,
    epochs=3,
    batch_size=64,
    clip=1.0,
    input_dropout=0.1,
    shift=1,
    slant=2,
)


def _dataset(rows: int = 160) -> data.Dataset:
    """A few of the digits: three steps an epoch."""

    def some(split):
        return data.Split(split.images[:rows], split.labels[:rows])

    whole = data.load("digits", None)
    splits = {name: some(getattr(whole, name)) for name in ("train", "validation", "test")}
    return dataclasses.replace(whole, **splits)


@pytest.fixture(scope="module")
def dataset():
    return _dataset()


def _train(folder: Path, dataset: data.Dataset, config: PixelConfig = TINY, task=TASK) -> Run:
    """Starts a run, or continues it."""
    if folder.exists():
        run = Run.open(folder)
    else:
        run = Run.create(folder, {"task": task.name})
    loop.train(task, config, dataset, run, Output(quiet=True), "fastrnn train")
    return run


def _outcome(run: Run) -> dict[str, bytes]:
    """Every bit of a run's result: weights, optimiser, random state, best weights."""
    last, _ = checkpoints.read(run.last)
    best, _ = checkpoints.read(run.best)
    tensors = last | {f"best.safetensors {name}": tensor for name, tensor in best.items()}
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, dataset):
    return _train(tmp_path_factory.mktemp("runs") / "undisturbed", dataset)


class TestConfig:
    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"cell": "RNN"}, "cell is 'RNN'; expected one of LSTM, GRU"),
            ({"dataset": "cifar"}, "dataset is 'cifar'; expected one of auto, mnist, digits"),
            ({"hidden_size": 0}, "hidden_size is 0; expected a whole number, 1 to"),
            ({"epochs": 2.5}, "epochs is 2.5; expected a whole number, 1 to"),
            ({"batch_size": True}, "batch_size is True; expected a whole number, 1 to"),
            ({"learning_rate": math.nan}, "learning_rate is nan; expected a finite number, more"),
            ({"checkpoint_seconds": math.inf}, "checkpoint_seconds is inf; expected a finite"),
            ({"seed": 1 << 64}, "seed is 18446744073709551616; expected a whole number, 0 to"),
            ({"data_dir": 5}, "data_dir is 5; expected a path"),
            ({"warmup": 1.0}, r"warmup is 1.0; expected a finite number, in \[0, 1\)"),
            ({"clip": -1.0}, "clip is -1.0; expected a finite number, 0"),
            ({"shift": -1}, "shift is -1; expected a whole number, 0"),
            ({"slant": 0.5}, "slant is 0.5; expected a whole number, 0"),
            ({"backend": "fast"}, "backend is 'fast'; expected one of auto, cpu, "),
            ({"device": "tpu9"}, "device is 'tpu9'; expected auto, cpu, cuda"),
            ({"device": "meta"}, "device is 'meta'; expected auto, cpu, cuda"),
            ({"device": "cpu:5"}, "device is 'cpu:5'; expected auto, cpu, cuda"),
            (
                {"num_layers": 1_000_000},
                "num_layers is 1000000; expected a whole number, 1 to 1000",
            ),
        ],
        ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
    )
    def test_says_what_was_given_and_what_is_expected(self, setting, message):
        with pytest.raises(ConfigError, match=message):
            PixelConfig(**setting)

    def test_a_device_that_torch_does_not_see_is_refused_where_it_is_used(self):
        with pytest.raises(ConfigError, match="device is 'cuda:99', but torch sees"):
            PixelConfig(device="cuda:99").pinned()

    def test_survives_json(self):
        assert PixelConfig.from_json(dataclasses.asdict(TINY)) == TINY

    @pytest.mark.parametrize("name", ["accumulate", "shift", "slant"])
    def test_json_of_an_older_run_lacks_a_setting(self, name):
        values = dataclasses.asdict(TINY)
        del values[name]
        default = dataclasses.replace(TINY, **{name: getattr(PixelConfig(), name)})
        assert PixelConfig.from_json(values) == default

    def test_json_that_lacks_another_setting_is_refused(self):
        values = dataclasses.asdict(TINY)
        del values["seed"]
        with pytest.raises(ConfigError, match="unknown or missing settings: seed"):
            PixelConfig.from_json(values)

    @pytest.mark.parametrize("change", [{"colour": 1}, {"seed": None}])
    def test_json_with_other_settings_is_refused(self, change):
        with pytest.raises(ConfigError):
            PixelConfig.from_json(dataclasses.asdict(TINY) | change)

    def test_constant_rate(self):
        assert {PixelConfig(learning_rate=0.1).rate(step, 50) for step in range(50)} == {0.1}

    def test_cosine_rate_rises_to_its_peak_and_falls_to_nothing(self):
        config = PixelConfig(learning_rate=0.1, schedule="cosine", warmup=0.2)
        rates = [config.rate(step, 100) for step in range(100)]
        assert rates.index(max(rates)) == 20
        assert rates[20] == pytest.approx(0.1)
        assert rates[:21] == sorted(rates[:21])
        assert rates[20:] == sorted(rates[20:], reverse=True)
        assert 0 < rates[0] < 0.01
        assert 0 < rates[-1] < 1e-4


class TestRun:
    def test_leaves_a_folder_with_all_that_was_learnt(self, undisturbed):
        names = {str(p.relative_to(undisturbed.folder)) for p in undisturbed.folder.rglob("*.*")}
        assert names == {
            "config.json",
            "metrics.csv",
            "summary.json",
            "curves.png",
            "confusion.png",
            ".lock",
            "checkpoints/last.safetensors",
            "checkpoints/previous.safetensors",
            "checkpoints/best.safetensors",
        }

    def test_metrics_have_a_row_an_epoch(self, undisturbed):
        with (undisturbed.folder / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["epoch"] for row in rows] == ["1", "2", "3"]
        assert list(rows[0]) == [
            "epoch",
            "train_loss",
            "train_accuracy",
            "validation_loss",
            "validation_accuracy",
            "images_per_second",
            "seconds",
            "learning_rate",
        ]

    def test_test_figures_are_of_the_weights_best_on_validation(self, undisturbed, dataset):
        progress = checkpoints.read(undisturbed.last)[1].progress
        model = evaluation.restore_model(TASK, TINY, dataset, undisturbed)
        row = progress["history"][progress["best_epoch"] - 1]
        validation = evaluation.evaluate(TASK, model, dataset.validation, TINY)
        assert validation["loss"] == pytest.approx(row["validation_loss"])
        assert row["validation_accuracy"] == max(
            r["validation_accuracy"] for r in progress["history"]
        )
        test = evaluation.evaluate(TASK, model, dataset.test, TINY)
        assert undisturbed.summary()["test_loss"] == pytest.approx(test["loss"])

    def test_the_seed_decides_everything(self, tmp_path, dataset, undisturbed):
        assert _outcome(_train(tmp_path / "same", dataset)) == _outcome(undisturbed)
        other = _train(tmp_path / "other", dataset, dataclasses.replace(TINY, seed=1))
        assert _outcome(other) != _outcome(undisturbed)

    def test_the_loss_falls(self, tmp_path, dataset):
        config = dataclasses.replace(TINY, hidden_size=16, learning_rate=0.01, batch_size=16)
        config = dataclasses.replace(config, shift=0, slant=0)
        progress = checkpoints.read(_train(tmp_path / "run", dataset, config).last)[1].progress
        losses = [row["train_loss"] for row in progress["history"]]
        assert losses[-1] < losses[0] - 0.1

    def test_a_loss_that_is_no_number_stops_the_run(self, tmp_path, dataset):
        config = dataclasses.replace(TINY, learning_rate=1e30, clip=0.0)
        with pytest.raises(RunError, match=r"the loss became \w+ in epoch 1, .* a smaller --lr"):
            _train(tmp_path / "run", dataset, config)
        assert not (tmp_path / "run" / "summary.json").exists()

    def test_a_backend_that_cannot_run_the_model_is_refused(self, tmp_path, dataset):
        config = dataclasses.replace(TINY, backend="triton")
        with pytest.raises(ConfigError, match="'triton' cannot run this call"):
            _train(tmp_path / "run", dataset, config)


class TestEvaluate:
    def test_leaves_random_state_and_training_mode_alone(self, dataset):
        model = TASK.model(TINY, dataset).train()
        before = torch.get_rng_state()
        evaluation.evaluate(TASK, model, dataset.test, TINY)
        assert torch.equal(torch.get_rng_state(), before)
        assert model.training

    def test_is_the_mean_over_images_whatever_the_batches(self, dataset, monkeypatch):
        model = TASK.model(TINY, dataset)
        whole = evaluation.evaluate(TASK, model, dataset.test, TINY)
        monkeypatch.setattr(evaluation, "EVALUATION_BATCH", 7)
        assert evaluation.evaluate(TASK, model, dataset.test, TINY) == pytest.approx(whole)


class TestFolder:
    def test_appears_with_its_settings(self, tmp_path):
        Run.create(tmp_path / "deep" / "run", {"task": "classification"})
        content = Run.open(tmp_path / "deep" / "run").content
        assert content["task"] == "classification"
        assert (content["format"], content["fastrnn"]) == (2, __version__)

    def test_may_be_an_empty_one(self, tmp_path):
        assert Run.create(tmp_path, {"task": "classification"}).folder == tmp_path

    def test_is_never_overwritten(self, tmp_path):
        (tmp_path / "thesis.tex").touch()
        with pytest.raises(RunError, match="exists and is not empty"):
            Run.create(tmp_path, {})
        assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]

    @pytest.mark.parametrize(
        "content", ["", '{"task": "cl', "[]", "{}", "\xff", f'{{"format": {"9" * 400}}}']
    )
    def test_with_a_damaged_config_is_refused(self, tmp_path, content):
        (tmp_path / "config.json").write_text(content, "latin-1")
        with pytest.raises(RunError, match=r"config\.json is damaged"):
            Run.open(tmp_path)

    def test_without_config_is_no_run(self, tmp_path):
        with pytest.raises(RunError, match=r"is not a run: there is no config\.json"):
            Run.open(tmp_path)

    def test_a_write_that_fails_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = tmp_path / "metrics.csv"
        write(path, b"old")

        def full(_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"metrics\.csv cannot be written \(No space left"):
            write(path, b"new")
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]

    def test_where_none_can_be_made_is_refused(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(RunError, match=r"run cannot be made \(.*\): choose another --out"):
            Run.create(tmp_path / "file" / "run", {})


class TestCheckpoint:
    @pytest.mark.parametrize("size", [0, 5, 100, -1], ids=["empty", "head", "index", "last byte"])
    def test_that_is_cut_is_refused(self, tmp_path, undisturbed, dataset, size):
        path = tmp_path / "last.safetensors"
        path.write_bytes(undisturbed.last.read_bytes()[:size])
        with pytest.raises(RunError, match=r"last\.safetensors is damaged"):
            State(TASK.model(TINY, dataset)).load(path)

    def test_of_another_model_is_refused(self, undisturbed, dataset):
        other = TASK.model(dataclasses.replace(TINY, hidden_size=6), dataset)
        with pytest.raises(RunError, match=r"does not fit config\.json") as error:
            State(other).load(undisturbed.last)
        assert "\n" not in str(error.value)

    def test_of_weights_alone_is_refused(self, undisturbed, dataset):
        with pytest.raises(RunError, match=r"does not fit config\.json"):
            State(TASK.model(TINY, dataset)).load(undisturbed.best)

    def test_that_is_a_folder_is_refused(self, tmp_path, dataset):
        with pytest.raises(RunError, match="is damaged"):
            State(TASK.model(TINY, dataset)).load(tmp_path)

    def test_that_is_not_there_is_said_to_be_missing(self, tmp_path, dataset):
        with pytest.raises(RunError, match=r"there is no .*last\.safetensors"):
            State(TASK.model(TINY, dataset)).load(tmp_path / "last.safetensors")


class _Stopping:
    """The classification task, with a signal in the middle of a step."""

    def __init__(self, at: int, number: signal.Signals) -> None:
        self.at, self.number, self.calls = at, number, 0

    def __getattr__(self, name):
        return getattr(TASK, name)

    def measure(self, *arguments):
        self.calls += 1
        if self.calls == self.at:
            signal.raise_signal(self.number)
        return TASK.measure(*arguments)


class TestResume:
    @pytest.mark.parametrize(
        "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name
    )
    @pytest.mark.parametrize("call", [1, 2, 4, 9, 13], ids=lambda n: f"call {n}")
    def test_after_a_signal_goes_on_bit_for_bit(self, tmp_path, dataset, undisturbed, call, number):
        """An epoch has three steps and a validation (call 4); call 13 is in the final test."""
        with pytest.raises(interrupts.Interrupted, match=number.name):
            _train(tmp_path / "run", dataset, task=_Stopping(call, number))
        assert _outcome(_train(tmp_path / "run", dataset)) == _outcome(undisturbed)

    def test_after_sigkill_at_any_file_operation_goes_on_bit_for_bit(self, tmp_path):
        """Runs the end of this file as a script, for its fork() needs a process of one thread."""
        script = [sys.executable, __file__, str(tmp_path)]
        result = subprocess.run(script, capture_output=True, text=True, check=False, timeout=120)
        assert result.returncode == 0, result.stderr
        files = 1 + 4 + 2 * 3 + 3  # settings; a checkpoint each step; an epoch's three; the end's
        assert int(result.stdout) >= 3 * files


def test_the_order_is_a_function_of_seed_and_epoch():
    order = loop.shuffled(100, 1, 2)
    assert order.sort().values.equal(torch.arange(100))
    assert order.equal(loop.shuffled(100, 1, 2))
    assert not order.equal(loop.shuffled(100, 1, 3))
    assert not order.equal(loop.shuffled(100, 2, 2))


def test_a_run_is_trained_once_at_a_time(tmp_path, dataset):
    run = Run.create(tmp_path / "run", {"task": TASK.name})
    with run.locked(), pytest.raises(RunError, match="is being trained by another process"):
        _train(run.folder, dataset)
    assert not run.last.exists()
    assert _train(run.folder, dataset).last.exists()


def _in_child(*work) -> int:
    """Calls functions in a forked process; its exit status, negative for a signal."""
    if (child := os.fork()) == 0:
        for function in work:
            function()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _die_at(operation: int, folder: Path) -> None:
    """Has the process kill itself before the given one of its file operations in a folder."""
    left = operation

    def count(event, arguments):
        nonlocal left
        if event in ("open", "os.mkdir", "os.rename") and str(arguments[0]).startswith(str(folder)):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def _kill_at_every_file_operation(folder: Path) -> int:
    """Kills a run at its first file operation and resumes it; then at its second; and so on.

    Returns how many operations there are.
    """
    torch.set_num_threads(1)
    dataset = _dataset(100)
    config = dataclasses.replace(TINY, epochs=2, checkpoint_seconds=1e-9)  # at each step
    expected = _outcome(_train(folder / "whole", dataset, config))
    for operation in itertools.count(1):
        run = folder / f"{operation:02}"

        def train(run=run):
            _train(run, dataset, config)

        status = _in_child(lambda at=operation: _die_at(at, folder), train)
        if status == 0:
            return operation - 1
        assert status == -signal.SIGKILL
        assert _in_child(train) == 0, f"not resumed after operation {operation}"
        assert _outcome(Run(run)) == expected, f"other weights after operation {operation}"
        assert not list(run.rglob("*.tmp")), f"left behind after operation {operation}"
    raise AssertionError


if __name__ == "__main__":
    # Drawing would be most of the time.
    saved = mock.Mock(side_effect=lambda figure, path: write(path, b"drawn"))
    with (
        mock.patch.multiple(figures, save=saved, curves=mock.Mock()),
        mock.patch.object(task_figures, "confusion"),
    ):
        print(_kill_at_every_file_operation(Path(sys.argv[1])))
