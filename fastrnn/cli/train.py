"""``fastrnn train``."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastrnn.cli import options
from fastrnn.training.config import ConfigError

if TYPE_CHECKING:
    from fastrnn.tasks.base import PixelTask
    from fastrnn.tasks.config import PixelConfig
    from fastrnn.tasks.data import Dataset
    from fastrnn.training import report
    from fastrnn.training.runs import Run

# What may be given with --resume: what neither shapes the weights nor counts the steps, and more
# epochs.
RESUMED = ("epochs", "device", "backend", "checkpoint_seconds", "accumulate")


def train(
    task: Annotated[
        str | None, typer.Argument(help="classification, pixel-prediction or inpainting.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Named settings (fastrnn presets lists them).")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="mnist, digits (8×8, bundled), or auto: MNIST where it is found."),
    ] = None,
    data_dir: options.DataDir = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch MNIST if missing.")] = False,
    pixels: Annotated[str | None, typer.Option(help="binary or grey.")] = None,
    cell: Annotated[str | None, typer.Option(help="LSTM, GRU or GRU-reset-before.")] = None,
    hidden_size: Annotated[int | None, typer.Option(help="Units of each layer.")] = None,
    num_layers: Annotated[int | None, typer.Option(help="Recurrent layers.")] = None,
    initialisation: Annotated[
        str | None, typer.Option(help="torch, tensorflow, orthogonal or chrono.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training set.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of Adam, at its peak.")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="constant, or cosine: down to 0 at the end.")
    ] = None,
    warmup: Annotated[
        float | None, typer.Option(help="Share of the steps in which the rate rises.")
    ] = None,
    clip: Annotated[
        float | None, typer.Option(help="Largest norm of the gradient; 0: no limit.")
    ] = None,
    input_dropout: Annotated[
        float | None, typer.Option(help="Share of the pixels that are set to 0 in training.")
    ] = None,
    device: options.Device = None,
    backend: options.Backend = None,
    seed: Annotated[int | None, typer.Option(help="Seed of all random numbers.")] = None,
    checkpoint_seconds: Annotated[
        float | None,
        typer.Option(help="Seconds between checkpoints within an epoch; 60 if not given."),
    ] = None,
    accumulate: Annotated[
        int | None,
        typer.Option(
            help="Parts of a batch to work on one after the other, for batches that do not fit "
            "into memory; 1 if not given."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; runs/TASK-PRESET-TIME if not given.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Continue this run with its own settings; with --epochs, also a finished one."
        ),
    ] = None,
) -> None:
    """Train a task. Settings that no option gives come from the preset."""
    from fastrnn import tasks

    given = {
        "dataset": dataset,
        "pixels": pixels,
        "cell": None if cell is None else cell.upper(),
        "hidden_size": hidden_size,
        "num_layers": num_layers,
        "initialisation": initialisation,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": lr,
        "schedule": schedule,
        "warmup": warmup,
        "clip": clip,
        "input_dropout": input_dropout,
        "device": device,
        "backend": backend,
        "seed": seed,
        "checkpoint_seconds": checkpoint_seconds,
        "accumulate": accumulate,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if task is None:
        raise ConfigError(f"no task is given; the tasks are {', '.join(tasks.NAMES)}")
    selected = tasks.get(task)
    if resume is None:
        _start(selected, preset, given, data_dir, out, download=download)
        return
    extra = [name for name in given if name not in RESUMED]
    if extra := [*extra, *(["preset"] if preset else []), *(["out"] if out else [])]:
        raise ConfigError(
            f"--resume takes the settings of {resume / 'config.json'}: drop {', '.join(extra)}"
        )
    _resume(selected, resume, given, data_dir, download=download)


def _start(
    task: PixelTask,
    preset: str | None,
    given: dict[str, Any],
    data_dir: Path | None,
    out: Path | None,
    *,
    download: bool,
) -> None:
    """Trains in a new folder."""
    from fastrnn.tasks.config import PixelConfig
    from fastrnn.tasks.data import default_folder, how_to_get_mnist
    from fastrnn.training import distributed, loop, report
    from fastrnn.training.runs import Run

    if preset is not None and preset not in task.presets:
        raise ConfigError(f"{task.name} has no preset {preset!r}; it has {', '.join(task.presets)}")
    if data_dir is not None:
        given["data_dir"] = str(data_dir.absolute())
    output = report.Output(lasting=True)
    named = PixelConfig(**given)
    data = _load(named, download=download)
    preset = preset or task.default_preset(data.name)
    wanted = dataclasses.replace(task.presets[preset], **given)
    if wanted.grey != named.grey:
        data = _load(wanted, download=False)
    # A resumed run must find the same dataset and device, whatever has been installed since.
    config = dataclasses.replace(wanted, dataset=data.name).pinned()
    if data.name == "mnist":
        folder = Path(config.data_dir) if config.data_dir else default_folder()
        config = dataclasses.replace(config, data_dir=str(folder.absolute()))
    elif wanted.dataset == "auto":
        output.print(
            f"MNIST was not found, so the bundled 8×8 digits are used; {how_to_get_mnist()}"
        )
    loop.check(task, config, data)
    content = {"task": task.name, "preset": preset, "settings": dataclasses.asdict(config)}
    run = None
    if distributed.first():
        run = Run.create(out, content) if out else _create(f"{task.name}-{preset}", content)
    run = distributed.broadcast(run)
    assert run is not None
    _train(task, config, data, run, output)


def _create(name: str, content: dict[str, Any]) -> Run:
    """A new run in runs/, named after the time; runs that start in the same second are numbered."""
    from fastrnn.training.files import TakenError
    from fastrnn.training.runs import Run

    stem = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in itertools.count(2):
        folder = stem if number == 2 else stem.with_name(f"{stem.name}-{number - 1}")
        with contextlib.suppress(TakenError):
            return Run.create(folder, content)
    raise AssertionError


def _resume(
    task: PixelTask, folder: Path, given: dict[str, Any], data_dir: Path | None, *, download: bool
) -> None:
    """Continues a run that was stopped, or extends one."""
    from fastrnn.cli import runs
    from fastrnn.training import distributed, report

    epochs = given.pop("epochs", None)
    run, stored, config = runs.open_run(folder, data_dir, **given)
    if stored.name != task.name:
        raise ConfigError(
            f"{folder} is a run of {stored.name}, not of {task.name}: {_to_resume(stored, folder)}"
        )
    output = report.Output(lasting=True)
    if epochs is not None and epochs != config.epochs:
        if epochs < config.epochs:
            raise ConfigError(f"--epochs is {epochs}; {folder} has {config.epochs} already")
        config = dataclasses.replace(config, epochs=epochs)
        run = distributed.broadcast(run.extend(epochs) if distributed.first() else run)
    elif distributed.broadcast(run.finished):
        more = f"{_to_resume(task, folder)} --epochs N"
        output.print(
            f"{folder} is finished: fastrnn evaluate {shlex.quote(str(folder))}, or train it for "
            f"more epochs: {more}"
        )
        return
    _train(task, config, _load(config, download=download), run, output)


def _load(config: PixelConfig, *, download: bool) -> Dataset:
    """The dataset of these settings; of several processes, only the first downloads it."""
    from fastrnn.training import distributed

    data = config.load_data(download=download) if distributed.first() else None
    distributed.broadcast(None)  # the others wait
    return data or config.load_data()


def _to_resume(task: PixelTask, folder: Path) -> str:
    """The command that continues a run."""
    return f"fastrnn train {task.name} --resume {shlex.quote(str(folder))}"


def _train(
    task: PixelTask, config: PixelConfig, data: Dataset, run: Run, output: report.Output
) -> None:
    """Trains in a folder until the run's end or a signal."""
    from fastrnn.cli import runs
    from fastrnn.training import distributed, loop
    from fastrnn.training.interrupts import Interrupted

    several = f", {n} processes" if (n := distributed.size()) > 1 else ""
    output.print(f"{task.name} on {data.name}: {run.folder}{several}")
    placed = dataclasses.replace(config, device=distributed.device(config.device))
    try:
        summary = loop.train(task, placed, data, run, output, runs.command_line())
    except Interrupted as stop:
        output.print(f"{stop}; to continue: {_to_resume(task, run.folder)}")
        raise typer.Exit(128 + stop.number) from None
    output.print(
        f"{runs.described(summary, 'test_')} (the weights of epoch {summary['best_epoch']}, best "
        f"on validation)\n{summary['training_seconds']:.1f} s, "
        f"{summary['images_per_second']:,.0f} images/s, backend {summary['backend']}"
    )
