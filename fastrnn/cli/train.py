"""``fastrnn train``."""

from __future__ import annotations

import dataclasses
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
    from fastrnn.training.runs import Run


def train(
    task: Annotated[str, typer.Argument(help="classification, pixel-prediction or inpainting.")],
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
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; runs/TASK-PRESET-TIME if not given.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Continue this run, with its own settings.")
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
    }
    given = {name: value for name, value in given.items() if value is not None}
    selected = tasks.get(task)
    if resume is None:
        _start(selected, preset, given, data_dir, out, download=download)
        return
    if extra := [*given, *(["preset"] if preset else []), *(["out"] if out else [])]:
        raise ConfigError(
            f"--resume takes every setting from {resume / 'config.json'}: drop {', '.join(extra)}"
        )
    _resume(selected, resume, data_dir, download=download)


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
    from fastrnn.training import loop
    from fastrnn.training.runs import Run

    if preset is not None and preset not in task.presets:
        raise ConfigError(f"{task.name} has no preset {preset!r}; it has {', '.join(task.presets)}")
    if data_dir is not None:
        given["data_dir"] = str(data_dir.absolute())
    if preset is None:
        preset = task.default_preset(PixelConfig(**given).load_data(download=download).name)
    wanted = dataclasses.replace(task.presets[preset], **given)
    data = wanted.load_data(download=download)
    # A resumed run must find the same dataset and device, whatever has been installed since.
    config = dataclasses.replace(wanted, dataset=data.name).pinned()
    if out is None:
        out = Path("runs") / f"{task.name}-{preset}-{time.strftime('%Y%m%d-%H%M%S')}"
    if wanted.dataset == "auto" and data.name == "digits":
        from fastrnn.tasks.data import how_to_get_mnist

        print(f"MNIST was not found, so the bundled 8×8 digits are used; {how_to_get_mnist()}")
    loop.check(task, config, data)
    content = {"task": task.name, "preset": preset, "settings": dataclasses.asdict(config)}
    run = Run.create(out, content)
    _train(task, config, data, run)


def _resume(task: PixelTask, folder: Path, data_dir: Path | None, *, download: bool) -> None:
    """Continues a run that was stopped."""
    from fastrnn.cli import runs

    run, stored, config = runs.open_run(folder, data_dir)
    if stored.name != task.name:
        raise ConfigError(
            f"{folder} is a run of {stored.name}, not of {task.name}: {_to_resume(stored, folder)}"
        )
    if run.finished:
        print(f"{folder} is finished: fastrnn evaluate {shlex.quote(str(folder))}")
        return
    _train(task, config, config.load_data(download=download), run)


def _to_resume(task: PixelTask, folder: Path) -> str:
    """The command that continues a run."""
    return f"fastrnn train {task.name} --resume {shlex.quote(str(folder))}"


def _train(task: PixelTask, config: PixelConfig, data: Dataset, run: Run) -> None:
    """Trains in a folder until the run's end or a signal."""
    from rich.console import Console

    from fastrnn.cli import runs
    from fastrnn.training import loop
    from fastrnn.training.interrupts import Interrupted

    console = Console(highlight=False)
    console.print(f"{task.name} on {data.name}: {run.folder}", soft_wrap=True)
    try:
        summary = loop.train(task, config, data, run, console, runs.command_line())
    except Interrupted as stop:
        print(f"{stop}; to continue: {_to_resume(task, run.folder)}")
        raise typer.Exit(128 + stop.number) from None
    print(
        f"{runs.described(summary, 'test_')} (the weights of epoch {summary['best_epoch']}, best "
        f"on validation)\n{summary['training_seconds']:.1f} s, "
        f"{summary['images_per_second']:,.0f} images/s, backend {summary['backend']}"
    )
