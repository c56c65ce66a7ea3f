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
from fastrnn.training.config import ConfigError, suggestion

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastrnn.tasks.base import PixelTask
    from fastrnn.tasks.config import PixelConfig
    from fastrnn.tasks.data import Dataset
    from fastrnn.training import report
    from fastrnn.training.runs import Run
    from fastrnn.training.tensorboard import Watch

PRESET = "the preset's"

# Settings that may be changed with --resume: more epochs, and those that affect neither the weights
# nor the number of steps.
RESUMED = ("epochs", "device", "backend", "checkpoint_seconds", "accumulate")


def _tasks() -> list[str]:
    """What a shell completes for the task."""
    from fastrnn.tasks import NAMES

    return list(NAMES)


def _presets() -> list[str]:
    """What a shell completes for --preset."""
    from fastrnn import tasks

    return sorted({preset for name in tasks.NAMES for preset in tasks.get(name).presets})


def train(
    task: Annotated[
        str | None,
        typer.Argument(
            help="classification, pixel-prediction or inpainting.", autocompletion=_tasks
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            autocompletion=_presets,
            help="Named settings (fastrnn presets lists them).",
            show_default="digits, or a quick one for MNIST",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="mnist, digits (8×8, bundled), or auto: MNIST where it is found.",
            show_default="auto",
        ),
    ] = None,
    data_dir: options.DataDir = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch MNIST if missing.")] = False,
    pixels: Annotated[str | None, typer.Option(help="binary or grey.", show_default=PRESET)] = None,
    cell: Annotated[
        str | None, typer.Option(help="LSTM, GRU or GRU-reset-before.", show_default=PRESET)
    ] = None,
    hidden_size: Annotated[
        int | None, typer.Option(help="Units of each layer.", show_default=PRESET)
    ] = None,
    num_layers: Annotated[
        int | None, typer.Option(help="Recurrent layers.", show_default=PRESET)
    ] = None,
    initialisation: Annotated[
        str | None,
        typer.Option(help="torch, tensorflow, orthogonal or chrono.", show_default=PRESET),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training set.", show_default=PRESET)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per step.", show_default=PRESET)
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Learning rate of Adam, at its peak.", show_default=PRESET),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(help="constant, or cosine: down to 0 at the end.", show_default=PRESET),
    ] = None,
    warmup: Annotated[
        float | None,
        typer.Option(
            help="Share of the steps, from 0 to 1, in which the rate rises.", show_default=PRESET
        ),
    ] = None,
    clip: Annotated[
        float | None,
        typer.Option(help="Largest norm of the gradient; 0: no limit.", show_default=PRESET),
    ] = None,
    input_dropout: Annotated[
        float | None,
        typer.Option(
            help="Share of the pixels, from 0 to 1, that are set to 0 in training.",
            show_default=PRESET,
        ),
    ] = None,
    shift: Annotated[
        int | None,
        typer.Option(
            help="Largest random shift of training images, in pixels.",
            show_default=PRESET,
        ),
    ] = None,
    slant: Annotated[
        int | None,
        typer.Option(
            help="Largest distance, in pixels, by which a random slant moves the top and bottom "
            "rows of training images.",
            show_default=PRESET,
        ),
    ] = None,
    device: options.Device = None,
    backend: options.Backend = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of all random numbers.", show_default="0")
    ] = None,
    checkpoint_seconds: Annotated[
        float | None,
        typer.Option(help="Seconds between checkpoints within an epoch.", show_default="60"),
    ] = None,
    accumulate: Annotated[
        int | None,
        typer.Option(
            help="Parts into which a batch is divided, for batches that do not fit into memory.",
            show_default="1",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="A new folder for the run.", show_default="runs/TASK-PRESET-TIME"),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Continue this run with its own settings; --epochs extends a finished one."
        ),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write curves to RUN/tensorboard as well.")
    ] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Train a model on a task, or continue a run.

    Settings without an option come from the preset. However a run was stopped, --resume continues
    it, and it ends with the same weights.
    """
    from fastrnn import tasks
    from fastrnn.training import files, report
    from fastrnn.training import tensorboard as board

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
        "shift": shift,
        "slant": slant,
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
    output = report.Output(lasting=True, stderr=as_json, level=verbose - quiet)
    if tensorboard:
        board.writer()  # raises an error before anything is written
    if resume is None:
        job = _start(selected, preset, given, data_dir, out, output, download=download)
        _train(selected, *job, output, tensorboard=tensorboard, as_json=as_json)
        return
    extra = [name for name in given if name not in RESUMED]
    if extra := [*extra, *(["preset"] if preset else []), *(["out"] if out else [])]:
        names = ", ".join(map(options.option_of, extra))
        raise ConfigError(f"--resume takes the settings of {resume / 'config.json'}: drop {names}")
    if resumed := _resume(selected, resume, given, data_dir, output, download=download):
        _train(selected, *resumed, output, tensorboard=tensorboard, as_json=as_json)
    elif as_json:
        output.json({"run": str(resume), **files.read_json(resume / files.SUMMARY)})


def _start(
    task: PixelTask,
    preset: str | None,
    given: dict[str, Any],
    data_dir: Path | None,
    out: Path | None,
    output: report.Output,
    *,
    download: bool,
) -> tuple[PixelConfig, Dataset, Run]:
    """The settings and data of a new run, and its folder."""
    from fastrnn.tasks.config import PixelConfig
    from fastrnn.tasks.data import default_folder, how_to_get_mnist
    from fastrnn.training import distributed, loop
    from fastrnn.training.runs import Run

    if preset is not None and preset not in task.presets:
        raise ConfigError(
            f"{task.name} has no preset {preset!r}; it has {', '.join(task.presets)}"
            f"{suggestion(preset, task.presets)}"
        )
    if data_dir is not None:
        given["data_dir"] = str(data_dir.absolute())
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
        output.note(
            f"MNIST was not found, so the bundled 8×8 digits are used;\n{how_to_get_mnist()}"
        )
    loop.check(task, config, data)
    content = {"task": task.name, "preset": preset, "settings": dataclasses.asdict(config)}
    run = None
    if distributed.first():
        run = Run.create(out, content) if out else _create(f"{task.name}-{preset}", content)
    run = distributed.broadcast(run)
    assert run is not None
    return config, data, run


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
    task: PixelTask,
    folder: Path,
    given: dict[str, Any],
    data_dir: Path | None,
    output: report.Output,
    *,
    download: bool,
) -> tuple[PixelConfig, Dataset, Run] | None:
    """The settings and data of a run that goes on, and its folder; None if it is finished."""
    from fastrnn.tasks import opening
    from fastrnn.training import distributed

    epochs = given.pop("epochs", None)
    run, stored, config = opening.open_run(folder, data_dir, **given)
    if stored.name != task.name:
        raise ConfigError(
            f"{folder} is a run of {stored.name}, not of {task.name}: {_to_resume(stored, folder)}"
        )
    if epochs is not None and epochs != config.epochs:
        if epochs < config.epochs:
            raise ConfigError(f"--epochs is {epochs}; {folder} has {config.epochs} already")
        config = dataclasses.replace(config, epochs=epochs)
        run = distributed.broadcast(run.extend(epochs) if distributed.first() else run)
    elif distributed.broadcast(run.finished):
        output.print(
            f"{folder} is finished. To evaluate it, or to train it for more epochs:\n"
            f"fastrnn evaluate {shlex.quote(str(folder))}\n"
            f"{_to_resume(task, folder)} --epochs N"
        )
        return None
    return config, _load(config, download=download), run


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
    task: PixelTask,
    config: PixelConfig,
    data: Dataset,
    run: Run,
    output: report.Output,
    *,
    tensorboard: bool,
    as_json: bool,
) -> None:
    """Trains in a folder until the run's end or a signal."""
    from fastrnn.cli import results
    from fastrnn.training import distributed, loop
    from fastrnn.training.interrupts import Interrupted
    from fastrnn.training.report import described, duration

    output.note(f"{task.name} on {data.name}: {run.folder}")
    if (several := distributed.size()) > 1:
        output.note(f"{several} processes")
    placed = dataclasses.replace(config, device=distributed.device(config.device))
    try:
        with _watched(run, output, wanted=tensorboard) as watch:
            summary = loop.train(task, placed, data, run, output, results.command_line(), watch)
    except Interrupted as stop:
        output.print(f"{stop}; to continue: {_to_resume(task, run.folder)}")
        raise typer.Exit(128 + stop.number) from None
    if as_json:
        output.json({"run": str(run.folder), **summary})
    else:
        output.print(described(summary, "test_"))
    output.note(
        f"weights of epoch {summary['best_epoch']}, the best on validation\n"
        f"{duration(summary['training_seconds'])}, {summary['images_per_second']:,.0f} images/s, "
        f"backend {summary['backend']}"
    )


@contextlib.contextmanager
def _watched(run: Run, output: report.Output, *, wanted: bool) -> Iterator[Watch | None]:
    """What writes curves for TensorBoard, if they are wanted or the run has some already."""
    from fastrnn.training import distributed
    from fastrnn.training import tensorboard as board

    if not distributed.first() or not (wanted or (run.folder / board.FOLDER).is_dir()):
        yield None
        return
    try:
        board.writer()
    except ConfigError as error:
        if wanted:
            raise
        output.warn(f"{run.folder / board.FOLDER} gets no more curves: {error}")
        yield None
        return
    with board.board(run.folder, output.warn) as watch:
        yield watch
