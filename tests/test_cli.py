"""The command line: what it prints, what it writes, and how it fails."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from fastrnn import __version__, backend_info, cli
from fastrnn.tasks.classification import TASK
from fastrnn.training import checkpoints
from tests import command

TINY = ["--dataset", "digits", "--hidden-size", "4", "--epochs", "2", "--batch-size", "200"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that reached its end."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert command.run("train", "classification", *TINY, "--out", folder) == 0
    return folder


def _weights(folder):
    """The bits of a run's last and best weights."""
    last, _ = checkpoints.read(folder / "checkpoints" / "last.safetensors")
    best, _ = checkpoints.read(folder / "checkpoints" / "best.safetensors")
    return {name: t.numpy().tobytes() for name, t in [*last.items(), *best.items()]}


class TestTrain:
    def test_with_nothing_else_learns_the_bundled_digits(self, fastrnn, tmp_path):
        status, out, err = fastrnn("train", "classification", "--dataset", "digits")
        assert status == 0, err
        (folder,) = (tmp_path / "runs").iterdir()
        assert folder.name.startswith("classification-digits-")
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["test_accuracy"] >= 0.95
        assert f"test accuracy {summary['test_accuracy']:.2%}" in out

    def test_without_mnist_says_how_to_get_it(self, fastrnn, tmp_path):
        status, out, _ = fastrnn(
            "train", "classification", *TINY[2:], "--data-dir", tmp_path / "no"
        )
        assert status == 0
        assert "MNIST" in out

    def test_writes_settings_and_summary(self, finished):
        config = json.loads((finished / "config.json").read_text())
        assert (config["task"], config["preset"]) == ("classification", "digits")
        assert config["settings"]["hidden_size"] == 4
        names = "dataset data_dir pixels cell hidden_size num_layers initialisation input_dropout "
        names += "shift slant "
        names += "epochs batch_size learning_rate schedule warmup clip seed device backend "
        names += "checkpoint_seconds accumulate"
        assert set(config["settings"]) == set(names.split())  # else older runs do not open
        summary = json.loads((finished / "summary.json").read_text())
        assert set(summary) >= {"test_accuracy", "test_loss", "training_seconds", "backend"}
        assert summary["versions"]["torch"] == torch.__version__
        assert summary["command"].startswith("fastrnn train classification --dataset digits")

    def test_flags_win_over_the_preset(self, fastrnn, tmp_path):
        preset = ["--preset", "lstm-32", *TINY, "--lr", "0.01", "--cell", "gru", "--clip", "0.5"]
        assert fastrnn("train", "classification", *preset, "--out", tmp_path / "run")[0] == 0
        settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
        assert settings["learning_rate"] == 0.01
        assert (settings["cell"], settings["clip"], settings["batch_size"]) == ("GRU", 0.5, 200)


class TestErrors:
    """One line on stderr that says what to do, exit status 2, nothing written."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["train", "sorting"], "unknown task 'sorting'; the tasks are classification"),
            (
                ["train", "classification", "--preset", "gru-31"],
                "no preset 'gru-31'; it has lstm-32",
            ),
            (
                ["train", "classification", *TINY, "--shift", "4"],
                "--shift is 4; expected 0 to 3 for images of 8 × 8 pixels",
            ),
            (
                ["train", "classification", "--epochs", "0"],
                "--epochs is 0; expected a whole number",
            ),
            (["train", "classification", "--lr", "0"], "--lr is 0.0; expected a finite number"),
            (
                ["train", "classification", "--num-layers", "9" * 400],
                "; expected a whole number, 1",
            ),
            (
                ["train", "classification", "--backend", "fast"],
                "--backend is 'fast'; expected one of",
            ),
            (["train", "classification", "--dataset", "mnist", "--data-dir", "no"], "MNIST"),
            (["train", "classification", "--resume", "no"], "no does not exist"),
            (["train", "classification", "--cell", ""], "--cell is ''; expected one of"),
            (
                ["train", "classification", *TINY, "--device", "cpu", "--backend", "cuda"],
                "backend 'cuda' cannot run this call",
            ),
            (
                ["train", "classification", *TINY, "--hidden-size", "2147483647"],
                "there is not enough memory: a model of 1 layer of 2,147,483,647 units needs",
            ),
            (
                ["train", "pixel-prediction", *TINY, "--pixels", "grey"],
                "predicts binary pixels, not grey ones: drop --pixels",
            ),
            (["train", "classification", *TINY, "--out", "/proc/run"], "/proc/run cannot be made"),
            (["evaluate", "no"], "no does not exist"),
            (["info", "--explain", "RNN"], "--explain is 'RNN'; expected LSTM or GRU"),
            (
                ["info", "--explain", "GRU", "--dtype", "int8"],
                "--dtype is 'int8'; expected float32",
            ),
        ],
        ids=lambda v: " ".join(v) if isinstance(v, list) else "",
    )
    def test_of_the_user(self, fastrnn, tmp_path, arguments, message):
        status, _, err = fastrnn(*arguments)
        assert (status, err.count("\n")) == (2, 1)
        assert message in err
        assert not list(tmp_path.iterdir())

    def test_a_folder_in_use_is_kept(self, fastrnn, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "notes").write_text("mine")
        status, _, err = fastrnn("train", "classification", *TINY, "--out", tmp_path / "run")
        assert (status, err.count("\n")) == (2, 1)
        assert "exists and is not empty" in err
        assert [p.name for p in (tmp_path / "run").iterdir()] == ["notes"]

    def test_resume_takes_no_other_settings(self, fastrnn, finished):
        arguments = ["--resume", finished, "--batch-size", "9"]
        status, _, err = fastrnn("train", "classification", *arguments)
        assert (status, err.count("\n")) == (2, 1)
        assert "drop --batch-size" in err

    def test_what_to_run_instead_can_be_pasted(self, fastrnn, tmp_path, finished):
        (tmp_path / "a run").symlink_to(finished)
        for task, instead in (("classification", "evaluate"), ("inpainting", "train class")):
            _, out, err = fastrnn("train", task, "--resume", tmp_path / "a run")
            assert f"fastrnn {instead}" in out + err
            assert f" '{tmp_path / 'a run'}'" in out + err

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ('{"task": "sorting"}', "unknown task 'sorting'"),
            ('{"task": "classification"}', "config.json is damaged ('settings')"),
            ('{"task": "classification", "settings": {"seed": 1}}', "unknown or missing settings"),
            ('{"task": "classific', "config.json is damaged"),
        ],
        ids=["another task", "no settings", "other settings", "cut"],
    )
    @pytest.mark.parametrize("command", [["evaluate"], ["train", "classification", "--resume"]])
    def test_a_run_with_other_settings(self, fastrnn, tmp_path, command, config, message):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "config.json").write_text(config)
        status, _, err = fastrnn(*command, tmp_path / "run")
        assert (status, err.count("\n")) == (2, 1)
        assert message in err

    def test_a_cut_checkpoint(self, fastrnn, tmp_path, finished):
        for name in ("config.json", "checkpoints/last.safetensors", "checkpoints/best.safetensors"):
            copy = tmp_path / "run" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            content = (finished / name).read_bytes()
            copy.write_bytes(content if name == "config.json" else content[:-1])
        for arguments in (["evaluate"], ["train", "classification", "--resume"]):
            status, _, err = fastrnn(*arguments, tmp_path / "run")
            assert (status, err.count("\n")) == (2, 1)
            assert "safetensors is damaged" in err


class TestResume:
    def test_of_a_finished_run_says_so(self, fastrnn, finished):
        before = _weights(finished)
        status, out, _ = fastrnn("train", "classification", "--resume", finished)
        assert status == 0
        assert "is finished" in out
        assert _weights(finished) == before

    def test_after_ctrl_c(self, fastrnn, tmp_path, finished, monkeypatch):
        measure, calls = TASK.measure, iter(range(1000))

        def interrupted(*arguments):
            if next(calls) == 3:
                signal.raise_signal(signal.SIGINT)
            return measure(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(type(TASK), "measure", lambda _, *arguments: interrupted(*arguments))
            status, out, _ = fastrnn("train", "classification", *TINY, "--out", tmp_path / "run")
        assert status == 130
        assert f"fastrnn train classification --resume {tmp_path / 'run'}" in out
        assert fastrnn("train", "classification", "--resume", tmp_path / "run")[0] == 0
        assert _weights(tmp_path / "run") == _weights(finished)

    def test_after_sigkill_at_random_moments_ends_in_the_same_bits(self, tmp_path):
        settings = [*TINY, "--epochs", "40", "--checkpoint-seconds", "0.001"]
        with _process("train", "classification", *settings, "--out", tmp_path / "whole") as whole:
            assert whole.wait(200) == 0, whole.stdout.read()

        moments = random.Random(time.time_ns())
        arguments = [*settings, "--out", tmp_path / "run"]
        for _ in range(3):
            with _process("train", "classification", *arguments) as killed:
                lines = iter(killed.stdout.readline, "")
                assert any(line.startswith("epoch") for line in lines), "ended before an epoch"
                time.sleep(moments.uniform(0, 0.3))
                killed.kill()
            arguments = ["--resume", tmp_path / "run"]
        with _process("train", "classification", *arguments) as last:
            assert last.wait(200) == 0, last.stdout.read()
        assert _weights(tmp_path / "run") == _weights(tmp_path / "whole")


def _process(*arguments):
    """A command in a process of its own, with stdout and stderr as one pipe of lines."""
    return subprocess.Popen(
        [sys.executable, "-uc", "from fastrnn.cli import main; main()", *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


class TestWithoutTheExtra:
    """fastrnn[tasks] is not installed: one line says what is missing and how to get it."""

    @pytest.mark.parametrize(
        ("package", "arguments"),
        [
            ("typer", ["--version"]),
            ("rich", ["train", "classification", "--dataset", "digits"]),
            ("safetensors", ["evaluate", "run"]),
            ("sklearn", ["train", "classification", "--dataset", "digits"]),
        ],
    )
    def test_a_missing_package_is_named_with_the_remedy(self, tmp_path, package, arguments):
        code = f"import sys; sys.modules[{package!r}] = None; from fastrnn.cli import main; main()"
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        message = f"{package} is not installed; the tasks need it: pip install 'fastrnn[tasks]'"
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr == f"fastrnn: {message}\n"

    def test_another_missing_module_is_a_bug_and_raises(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "fastrnn.cli.app", None)
        with pytest.raises(ModuleNotFoundError):
            cli.main()


class TestEvaluate:
    def test_repeats_the_summary(self, fastrnn, finished):
        status, out, _ = fastrnn("evaluate", finished)
        summary = json.loads((finished / "summary.json").read_text())
        assert status == 0
        assert f"test accuracy {summary['test_accuracy']:.2%}" in out
        assert f"test loss {summary['test_loss']:.4f}" in out

    def test_measures_any_split_on_any_backend(self, fastrnn, finished):
        arguments = [finished, "--split", "validation"]
        native = fastrnn("evaluate", *arguments)
        assert native[0] == 0
        assert "validation accuracy" in native[1]
        assert fastrnn("evaluate", *arguments, "--backend", "reference") == native

    def test_writes_nothing(self, fastrnn, finished):
        before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
        fastrnn("evaluate", finished)
        assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


class TestInfo:
    @pytest.mark.parametrize("columns", ["80", "200"])
    def test_lists_every_preset(self, fastrnn, monkeypatch, columns):
        monkeypatch.setenv("COLUMNS", columns)
        status, out, _ = fastrnn("presets")
        assert status == 0
        assert all(name in out for name in TASK.presets)
        assert re.search(" 1 epoch$", out, re.MULTILINE)

    def test_an_output_that_has_no_unicode_is_no_failure(self):
        code = "import sys; sys.argv = ['fastrnn', 'presets']; from fastrnn.cli import main; main()"
        environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
        result = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (result.returncode, result.stderr) == (0, "")
        assert "GRU 3 ? 32" in result.stdout

    def test_json_is_backend_info_and_more(self, fastrnn):
        status, out, _ = fastrnn("info", "--json")
        assert status == 0
        facts = json.loads(out)
        assert facts == facts | backend_info()
        assert set(facts) >= {"processor", "gpus", "data", "packages"}

    def test_names_each_backend(self, fastrnn):
        status, out, _ = fastrnn("info")
        assert status == 0
        assert all(f"backend {name}: " in out for name in backend_info()["backends"])

    def test_explains_a_choice(self, fastrnn):
        forced = ["--explain", "gru", "--batch", 3, "--hidden", 5, "--steps", 7, "--training"]
        status, out, _ = fastrnn("info", *forced)
        assert status == 0
        assert out.split(":")[0] in backend_info()["backends"]

    def test_python_m_does_the_same(self):
        result = subprocess.run(
            [sys.executable, "-m", "fastrnn", "--version"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stdout == f"fastrnn {__version__}\n"

    def test_version(self, fastrnn):
        assert fastrnn("--version") == (0, f"fastrnn {__version__}\n", "")

    def test_help_loads_no_heavy_library(self):
        code = (
            "import sys; sys.argv = ['fastrnn', 'train', '--help']\n"
            "from fastrnn.cli import main\n"
            "try: main()\n"
            "except SystemExit: print({'matplotlib', 'sklearn', 'torchvision'} & set(sys.modules))"
        )
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert "--preset" in result.stdout
        assert result.stdout.rstrip().endswith("set()")
