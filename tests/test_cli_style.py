"""One style for all commands: 80 columns, help with examples, -v and -q, JSON, suggestions."""

import contextlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

from fastrnn.cli.app import COMMANDS, app
from fastrnn.tasks import NAMES, downloads
from fastrnn.training import figures, report
from fastrnn.training.report import COLUMNS
from tests import command

GROUP: Any = typer.main.get_command(app)
TINY = ["--dataset", "digits", "--hidden-size", "4", "--epochs", "1", "--batch-size", "500"]
OUTPUTS = [
    "",
    "runs",
    "runs --sort best",
    "compare runs/classification runs/again",
    "verify runs/classification",
    "presets",
    "info",
    "info --explain LSTM --hidden 256 --training",
    *(f"evaluate runs/{task} --split validation" for task in NAMES),
    "complete runs/pixel-prediction --images 3 --samples 2 --out completed",
    "inpaint runs/inpainting --images 3 --out filled",
]
# Commands that print results alone, or another program's output, have no -q and no -v.
RESULTS_ALONE = {"runs", "presets", "info", "run"}


def _lines_fit(text):
    """No line is wider than a terminal, but for a path, which cannot be divided."""
    long = [line for line in text.splitlines() if len(line) > COLUMNS and len(line.split()) > 1]
    assert not long


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a run of each task, and another of classification."""
    return tmp_path_factory.mktemp("style")


@pytest.fixture(scope="module")
def printed(folder):
    """What training these runs has printed, by run."""
    texts = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(figures, "draw", _not_drawn)
        for task, name, *options in (
            ("classification", "classification"),
            ("classification", "again", "--lr", "0.5", "--quiet"),
            ("pixel-prediction", "pixel-prediction"),
            ("inpainting", "inpainting", "-v"),
        ):
            with contextlib.redirect_stdout(io.StringIO()) as text:
                assert command.run("train", task, *TINY, *options, "--out", f"runs/{name}") == 0
            texts[name] = text.getvalue()
    return texts


def _not_drawn(make, path, warn):
    """In the place of figures.draw, for other tests look at pictures."""
    return True


@pytest.fixture
def narrow(fastrnn, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    monkeypatch.setattr(figures, "draw", _not_drawn)
    return fastrnn


class TestHelp:
    def test_lists_each_command_uncut_and_the_exit_statuses(self, narrow):
        status, out, _ = narrow("--help")
        assert status == 0
        _lines_fit(out)
        assert "..." not in out.partition("Commands:")[2]
        assert all(re.search(rf"^  {name} +\w", out, re.MULTILINE) for name in GROUP.commands)
        assert "Exit status: 0 if all went well; 1 if" in out

    @pytest.mark.parametrize("name", GROUP.commands)
    def test_of_a_command_fits_and_has_an_example(self, narrow, name):
        status, out, _ = narrow(name, "--help")
        assert status == 0
        _lines_fit(out)
        assert f"\n  Example:\n    fastrnn {name} " in out

    @pytest.mark.parametrize("name", GROUP.commands)
    def test_says_the_default_of_each_option_that_takes_a_value(self, name):
        context = typer.Context(GROUP.commands[name], info_name=name)
        for option in GROUP.commands[name].params:
            record = option.get_help_record(context)
            if option.param_type_name != "option" or option.is_flag or record is None:
                continue
            assert re.search(r"[A-Za-z]{4}", record[1]), f"{record[0]} is not explained"
            if option.name not in ("resume", "explain"):  # nothing happens without these
                assert "[default: " in record[1], f"{record[0]} has no default"

    @pytest.mark.parametrize("example", COMMANDS.values())
    def test_each_example_is_a_valid_command(self, example):
        _, name, *arguments = example.split()
        GROUP.commands[name].make_context(name, arguments)  # raises an error otherwise


class TestOptions:
    @pytest.mark.parametrize("name", GROUP.commands)
    def test_of_what_is_printed_are_those_of_all_commands(self, name):
        options = {each for param in GROUP.commands[name].params for each in param.opts}
        assert ("--json" in options) == (name != "run")
        assert ({"-q", "--quiet"} <= options) == (name not in RESULTS_ALONE)
        assert ({"-v", "--verbose"} <= options) == (name not in RESULTS_ALONE)


class TestOutput:
    @pytest.mark.parametrize("line", OUTPUTS)
    def test_fits(self, narrow, printed, folder, monkeypatch, line):
        monkeypatch.chdir(folder)
        status, out, err = narrow(*line.split())
        assert (status, err) == (0, "")
        assert out
        _lines_fit(out)

    @pytest.mark.parametrize("name", [*NAMES, "again"])
    def test_of_training_fits(self, printed, name):
        assert "test loss" in printed[name]
        _lines_fit(printed[name])

    def test_quiet_is_the_result_alone_and_verbose_is_more(self, printed):
        assert re.fullmatch(r"test loss \d\.\d{4}, test accuracy \d+\.\d\d%\n", printed["again"])
        assert "learning rate" not in printed["classification"]
        assert re.search(r"\n  train loss .*learning rate \d", printed["inpainting"], re.DOTALL)

    @pytest.mark.parametrize(
        ("line", "detail"),
        [
            (
                "evaluate runs/classification",
                r"300 images of digits, [\d.]+ s, [\d,]+ images/s, GRU 1 × 4, device cpu, "
                r"backend \w+",
            ),
            (
                "complete runs/pixel-prediction --images 3 --samples 2 --out completed",
                "3 images of digits, .* GRU 1 × 4, ",
            ),
            ("inpaint runs/inpainting --images 3 --out filled", "3 images of digits, .* backend"),
            ("predict runs/classification seven.png", r" 0 [\d.]+%, 1 [\d.]+%.* 9 [\d.]+%"),
            ("verify runs/classification", "compared: runs/classification/checkpoints/best.safe"),
            ("demo runs/classification --out page.html", r"digits, test loss \d.\d+, test acc"),
        ],
        ids=lambda v: v.partition(" ")[0],
    )
    def test_quiet_verbose_and_neither(self, narrow, printed, folder, tmp_path, line, detail):
        (tmp_path / "runs").symlink_to(folder / "runs")
        Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save("seven.png")
        found = []
        for option in ("-v", "-q"):
            shutil.rmtree("completed", ignore_errors=True)
            shutil.rmtree("filled", ignore_errors=True)
            status, out, err = narrow(*line.split(), option)
            assert (status, err) == (0, "")
            _lines_fit(out)
            found.append(out)
        verbose, quiet = found
        # The faster the machine, the more digits a line has, and the sooner it is wrapped.
        assert re.search(detail, re.sub(r"\n *", " ", verbose))
        assert not re.search(detail, quiet, re.DOTALL)
        assert len(quiet.splitlines()) < len(verbose.splitlines())

    def test_evaluation_shows_its_progress(self, narrow, printed, folder, monkeypatch):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(report, "LINE_SECONDS", 0)
        arguments = ["evaluate", "runs/classification", "--split", "train"]
        _, out, err = narrow(*arguments)
        assert re.match(r"evaluating  1,000 of 1,347 images", err)
        assert out.startswith("train loss")
        assert narrow(*arguments, "-q")[1:] == (out, "")

    def test_completion_shows_the_progress_of_its_pictures(
        self, narrow, printed, folder, monkeypatch, tmp_path
    ):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(report, "LINE_SECONDS", 0)
        arguments = ["complete", "runs/pixel-prediction", "--images", "3", "--samples", "2"]
        _, _, err = narrow(*arguments, "--out", tmp_path / "shown")
        numbers = re.findall(r"^drawing  (\d+) of 13 pictures", err, re.MULTILINE)
        assert numbers == [str(number) for number in range(1, 13)]
        assert narrow(*arguments, "--out", tmp_path / "quiet", "-q")[2] == ""

    def test_json_of_a_training_is_its_summary(self, narrow, printed, folder, tmp_path):
        new = narrow("train", "inpainting", *TINY, "--out", "mine", "--json")
        finished = narrow("train", "inpainting", "--resume", "mine", "--json")
        summary = json.loads((tmp_path / "mine" / "summary.json").read_text())
        for status, out, err in (new, finished):
            assert status == 0
            assert json.loads(out)["run"] == "mine"
            assert json.loads(out)["test_loss"] == summary["test_loss"]
            assert err
        assert "epoch 1/1" in new[2]
        assert "mine is finished" in finished[2]

    def test_without_arguments_says_in_ten_lines_what_to_run_first(self, narrow):
        status, out, _ = narrow()
        assert (status, len(out.splitlines())) == (0, 10)
        (first,) = re.findall(r"Run this first.*: fastrnn (.*)", out)
        name, *arguments = first.split()
        GROUP.commands[name].make_context(name, arguments)

    @pytest.mark.parametrize(
        ("line", "keys"),
        [
            ("evaluate runs/classification", {"run", "split", "test_loss", "test_accuracy"}),
            (
                "complete runs/pixel-prediction --images 3 --samples 2 --out completed",
                {"folder", "images", "samples", "means"},
            ),
            (
                "inpaint runs/inpainting --images 3 --out filled",
                {"folder", "exact_accuracy", "pixel_accuracy", "true_nats"},
            ),
            ("verify runs/classification", {"folder", "whole", "damages"}),
            ("demo runs/classification --out page.html", {"file", "bytes", "test"}),
            ("download mnist --data-dir mnist", {"folder", "downloaded"}),
            ("presets", set(NAMES)),
            ("info", {"backends", "processor", "gpus", "data", "packages"}),
            ("compare runs/classification runs/again", {"runs", "settings", "results"}),
        ],
        ids=lambda v: v if isinstance(v, str) else "",
    )
    def test_as_json_is_one_value_on_stdout(
        self, narrow, printed, folder, monkeypatch, tmp_path, line, keys
    ):
        monkeypatch.setattr(downloads, "fetch", lambda *_: True)
        (tmp_path / "runs").symlink_to(folder / "runs")
        status, out, _ = narrow(*line.split(), "--json")
        assert status == 0
        assert json.loads(out).keys() >= keys


class TestMistakes:
    @pytest.mark.parametrize(
        ("line", "meant"),
        [
            ("trian classification", "Did you mean 'train'?"),  # codespell:ignore
            ("train clasification", "did you mean classification?"),  # codespell:ignore
            ("train classification --preset gru-31", "did you mean gru-32?"),
            ("train classification --dataset minst", "did you mean mnist?"),
            ("train classification --hiden-size 3", "--hidden-size"),
            ("runs --sort bets", "did you mean best?"),
            ("download minst", "did you mean mnist?"),
            ("info --explain GRU --dtype flaot32", "did you mean float32?"),
        ],
    )
    def test_a_mistyped_name_gets_a_suggestion_on_one_line(self, narrow, line, meant):
        status, out, err = narrow(*line.split())
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert meant in err

    def test_what_is_like_nothing_gets_none(self, narrow):
        assert "did you mean" not in narrow("train", "sorting")[2]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("fastrnn ver", ["verify"]),
        ("fastrnn train pix", ["pixel-prediction"]),
        ("fastrnn train classification --preset best-g", ["best-gru-128", "best-gru-3x32"]),
    ],
)
def test_a_shell_completes_commands_tasks_and_presets(narrow, monkeypatch, words, wanted):
    monkeypatch.setenv("_FASTRNN_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    status, out, err = narrow()
    assert (status, err) == (0, "")
    assert set(out.split()) >= set(wanted)


def test_each_command_is_described(narrow):
    """docs/command-line.md names every command."""
    text = (Path(__file__).parents[1] / "docs" / "command-line.md").read_text()
    assert all(f"`fastrnn {name}" in text for name in GROUP.commands)
