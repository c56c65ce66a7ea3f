"""``fastrnn train`` and ``fastrnn evaluate``."""

from __future__ import annotations

import dataclasses
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastrnn.cli.shared import Backend, DataDir, Device, command_line, opened, restored

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastrnn.config import Config
    from fastrnn.data import Dataset
    from fastrnn.runs import Run
    from fastrnn.training import Task


def train(
    task: Annotated[str, typer.Argument(help="classification, pixel-prediction or inpainting.")],
    preset: Annotated[
        str | None, typer.Option(help="Named settings (fastrnn presets lists them).")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="mnist, digits (8×8, bundled), or auto: MNIST where it is found."),
    ] = None,
    data_dir: DataDir = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch MNIST if missing.")] = False,
    pixels: Annotated[str | None, typer.Option(help="binary or grey.")] = None,
    cell: Annotated[str | None, typer.Option(help="LSTM, GRU or GRU-reset-before.")] = None,
    hidden_size: Annotated[int | None, typer.Option()] = None,
    num_layers: Annotated[int | None, typer.Option()] = None,
    initialisation: Annotated[
        str | None, typer.Option(help="torch, tensorflow, orthogonal or chrono.")
    ] = None,
    epochs: Annotated[int | None, typer.Option()] = None,
    batch_size: Annotated[int | None, typer.Option()] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of Adam; its peak.")] = None,
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
    device: Device = None,
    backend: Backend = None,
    seed: Annotated[int | None, typer.Option()] = None,
    checkpoint_seconds: Annotated[
        float | None, typer.Option(help="Time between checkpoints within an epoch.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; runs/TASK-PRESET-TIME if not given.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Continue this run, with its own settings.")
    ] = None,
) -> None:
    """Train a task. What no option sets comes from the preset."""
    from fastrnn import tasks
    from fastrnn.config import ConfigError

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
    task: Task,
    preset: str | None,
    given: dict[str, Any],
    data_dir: Path | None,
    out: Path | None,
    *,
    download: bool,
) -> None:
    """Trains in a new folder."""
    from fastrnn import training
    from fastrnn.config import Config, ConfigError
    from fastrnn.runs import Run

    if preset is not None and preset not in task.presets:
        raise ConfigError(f"{task.name} has no preset {preset!r}; it has {', '.join(task.presets)}")
    if data_dir is not None:
        given["data_dir"] = str(data_dir.absolute())
    if preset is None:
        preset = task.default_preset(training.load(Config(**given), download=download).name)
    wanted = dataclasses.replace(task.presets[preset], **given)
    data = training.load(wanted, download=download)
    config = training.pinned(wanted, data)
    if out is None:
        out = Path("runs") / f"{task.name}-{preset}-{time.strftime('%Y%m%d-%H%M%S')}"
    if wanted.dataset == "auto" and data.name == "digits":
        from fastrnn.data import how_to_get_mnist

        print(f"MNIST is not here, so the bundled 8×8 digits are used. {how_to_get_mnist()}")
    training.check(task, config, data)
    content = {"task": task.name, "preset": preset, "settings": dataclasses.asdict(config)}
    run = Run.create(out, content)
    _train(task, config, data, run)


def _resume(task: Task, folder: Path, data_dir: Path | None, *, download: bool) -> None:
    """Continues a run that was stopped."""
    from fastrnn import training
    from fastrnn.config import ConfigError

    run, stored, config = opened(folder, data_dir)
    if stored.name != task.name:
        raise ConfigError(
            f"{folder} is a run of {stored.name}, not of {task.name}: {_to_resume(stored, folder)}"
        )
    if run.finished:
        print(f"{folder} is finished: fastrnn evaluate {shlex.quote(str(folder))}")
        return
    _train(task, config, training.load(config, download=download), run)


def _to_resume(task: Task, folder: Path) -> str:
    """The command that continues a run."""
    return f"fastrnn train {task.name} --resume {shlex.quote(str(folder))}"


def _train(task: Task, config: Config, data: Dataset, run: Run) -> None:
    """Trains in a folder, to the end or until a signal."""
    from rich.console import Console

    from fastrnn import training
    from fastrnn.interrupts import Interrupted

    console = Console(highlight=False)
    console.print(f"{task.name} on {data.name}: {run.folder}", soft_wrap=True)
    try:
        summary = training.train(task, config, data, run, console, command_line())
    except Interrupted as stop:
        print(f"{stop}; to continue: {_to_resume(task, run.folder)}")
        raise typer.Exit(128 + stop.number) from None
    print(
        f"{_figures(summary, 'test_')} (the weights of epoch {summary['best_epoch']}, best on "
        f"validation)\n{summary['training_seconds']:.1f} s, "
        f"{summary['images_per_second']:,.0f} images/s, backend {summary['backend']}"
    )


def _figures(values: Mapping[str, Any], prefix: str) -> str:
    """``test accuracy 97.50 %, test loss 0.1000`` from the entries that begin so."""
    return ", ".join(
        f"{name.replace('_', ' ')} {f'{value:.2%}' if 'accuracy' in name else f'{value:.4f}'}"
        for name, value in values.items()
        if name.startswith(prefix)
    )


def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    data_dir: DataDir = None,
    device: Device = None,
    backend: Backend = None,
) -> None:
    """Measure the weights of a run that were best on validation."""
    from fastrnn import tasks, training
    from fastrnn.config import ConfigError

    if split not in ("train", "validation", "test"):
        raise ConfigError(f"--split is {split!r}; expected train, validation or test")
    task, config, data, model = restored(run, data_dir, device, backend, *tasks.NAMES)
    with training.forced(config):
        figures = training.evaluate(task, model, getattr(data, split), config)
    print(_figures({f"{split}_{name}": value for name, value in figures.items()}, split))
