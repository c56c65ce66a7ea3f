"""Progress: one live line in a terminal, plain lines elsewhere; and curves for TensorBoard."""

import io
import re
import sys
from types import SimpleNamespace

import pytest

from fastrnn.training import config, figures, loop, report, tensorboard
from tests import command

TINY = ["--dataset", "digits", "--hidden-size", "4", "--batch-size", "500", "--epochs", "2"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Each look at the clock is half a second later."""
    ticks = iter(range(1_000_000))
    monkeypatch.setattr(report, "time", SimpleNamespace(monotonic=lambda: next(ticks) / 2))


@pytest.fixture
def terminal(monkeypatch):
    """Makes stdout a terminal when it is called; pytest would take it back from a fixture."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")

    def start():
        stream = Terminal()
        monkeypatch.setattr(sys, "stdout", stream)
        return stream

    return start


def _drawn(text):
    """What a terminal shows, one after the other: without colours and movements of the cursor."""
    text = re.sub(r"\x1b\[[\d;]*m", "", text)
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "\r", text))


class TestProgress:
    def test_in_a_terminal_is_one_line(self, terminal, clock):
        stream = terminal()
        output = report.Output()
        assert output.live
        with output.progress("epoch 1/2", 100_000) as show:
            for done in (1000, 50_000, 99_000):
                show(done, note="loss 54.12  best 54.5714")
        lines = [line for line in _drawn(stream.getvalue()) if "loss" in line]
        assert lines
        assert all(len(line) <= 80 for line in lines)
        wanted = (
            r"epoch 1/2 +\S+ +loss 54.12  best 54.5714  [\d,]+ images/s  [\d.:]+ (s|min|h) left"
        )
        assert re.search(wanted, lines[-1])

    def test_elsewhere_is_a_line_now_and_then(self, clock, monkeypatch, capsys):
        monkeypatch.setattr(report, "LINE_SECONDS", 4)
        output = report.Output()
        assert not output.live
        with output.progress("in-painting", 1000) as show:
            for done in range(50, 1001, 50):
                show(done)
        lines = capsys.readouterr().out.splitlines()
        assert 2 <= len(lines) < 10
        assert re.fullmatch(r"in-painting  \d+ of 1,000 images  \d+ images/s  .* left", lines[0])

    def test_quiet_shows_none(self, terminal, clock):
        stream = terminal()
        with report.Output(level=-1).progress("epoch 1/2", 100) as show:
            show(50)
        assert stream.getvalue() == ""

    def test_of_a_training_is_live_in_a_terminal(self, terminal, clock, monkeypatch, tmp_path):
        monkeypatch.setattr(loop, "SHOW_SECONDS", 0)
        monkeypatch.setattr(figures, "draw", lambda make, path, warn: True)
        run, stream = tmp_path / "run", terminal()
        assert command.run("train", "classification", *TINY, "--out", run) == 0
        text = stream.getvalue()
        assert re.search(
            r"epoch 2/2 .*loss [\d.]+  best [\d.]+%  [\d,.]+ images/s  \S+ \w+ left", text
        )
        assert "validation accuracy" not in text  # a line per epoch is for logs, and for -v
        assert "test accuracy" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.9, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1:00 min"),
     (187, "3:07 min"), (3599.7, "1:00 h"), (3725, "1:02 h"), (360_000, "100:00 h")],
)  # fmt: skip
def test_times_are_what_people_read(seconds, text):
    assert report.duration(seconds) == text


def test_listed_items_are_never_divided():
    items = [f"item number {n}" for n in range(30)]
    text = report.joined(items, "start: ", "  ")
    assert max(map(len, text.splitlines())) <= report.COLUMNS
    assert text.replace("\n ", "") == "start: " + ", ".join(items)


@pytest.mark.parametrize("best_by", ["accuracy", "loss", "hidden_loss"])
def test_the_line_of_an_epoch_fits(best_by):
    row = {"epoch": 130, "train_loss": 543.21, f"validation_{best_by}": 0.9876}
    line = report.epoch_line(row | {"images_per_second": 123_456.7}, 130, best_by)
    assert line.startswith("epoch 130/130  loss 543.2100  validation ")
    assert line.endswith("  123,457 images/s")
    assert len(line) <= report.COLUMNS


def _scalars(folder):
    """What TensorBoard reads: steps and values by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


HISTORY = [
    {"epoch": n, "train_loss": 1 / n, "validation_loss": 2 / n, "seconds": 3.0,
     "images_per_second": 10.0, "learning_rate": 0.1}
    for n in (1, 2, 3)
]  # fmt: skip


class TestTensorBoard:
    def test_a_resumed_run_has_one_curve(self, tmp_path):
        with tensorboard.board(tmp_path, pytest.fail) as watch:
            watch(HISTORY[:1])
            watch(HISTORY[:2])
        with tensorboard.board(tmp_path, pytest.fail) as watch:
            watch(HISTORY[:2])  # what a resumed run begins with
            watch(HISTORY)
        train = _scalars(tmp_path / "tensorboard" / "train")
        assert train["loss"] == [(n, pytest.approx(1 / n)) for n in (1, 2, 3)]
        assert set(train) == {"loss", "seconds", "images_per_second", "learning_rate"}
        validation = _scalars(tmp_path / "tensorboard" / "validation")
        assert validation == {"loss": [(n, pytest.approx(2 / n)) for n in (1, 2, 3)]}

    def test_what_cannot_be_written_is_one_warning(self, tmp_path):
        (tmp_path / "tensorboard").write_text("a file")
        warnings: list[str] = []
        with tensorboard.board(tmp_path, warnings.append) as watch:
            watch(HISTORY[:1])
            watch(HISTORY[:2])
        assert len(warnings) == 1

    def test_a_training_writes_it_and_goes_on_with_it(self, fastrnn, tmp_path):
        options = ["--out", "run", "--tensorboard", "-q"]
        assert fastrnn("train", "classification", *TINY, *options)[0] == 0
        more = ["--resume", "run", "--epochs", "3", "-q"]
        assert fastrnn("train", "classification", *more)[0] == 0
        curve = _scalars(tmp_path / "run" / "tensorboard" / "validation")["accuracy"]
        assert [step for step, _ in curve] == [1, 2, 3]
        assert fastrnn("verify", "run")[0] == 0

    def test_without_the_package_nothing_is_begun(self, fastrnn, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        with pytest.raises(config.ConfigError):
            tensorboard.writer()
        status, _, err = fastrnn("train", "classification", *TINY, "--tensorboard")
        assert (status, err.count("\n")) == (2, 1)
        assert "pip install 'fastrnn[tensorboard]'" in err
        assert not list(tmp_path.iterdir())
