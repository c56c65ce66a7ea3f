"""What several commands share: options, the run that is opened, and a bar."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    from fastrnn.config import Config
    from fastrnn.data import Dataset
    from fastrnn.runs import Run
    from fastrnn.training import Task

DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder that holds MNIST/raw, as torchvision lays it out.", show_default=False
    ),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Backend = Annotated[str | None, typer.Option(help="auto, cpu, triton, cuda, torch or reference.")]


def command_line() -> str:
    """What was typed, for a summary."""
    return shlex.join(["fastrnn", *sys.argv[1:]])


def opened(folder: Path, data_dir: Path | None, **others: str | None) -> tuple[Run, Task, Config]:
    """A run, its task and its settings, with what may differ from the first start."""
    from fastrnn import tasks
    from fastrnn.config import Config, ConfigError
    from fastrnn.runs import Run, RunError

    run, content = Run.open(folder)
    task = tasks.get(content["task"])
    try:
        config = Config.from_json(content["settings"])
    except (ConfigError, KeyError, TypeError) as error:
        raise RunError(f"{folder / 'config.json'} is damaged ({error}): start a new run") from None
    given: dict[str, Any] = {k: value for k, value in others.items() if value is not None}
    if data_dir is not None:
        given["data_dir"] = str(data_dir.absolute())
    return run, task, dataclasses.replace(config, **given)


class Restored(NamedTuple):
    """A run's best weights in its model, ready to use, and what belongs to it."""

    task: Task
    config: Config
    dataset: Dataset
    model: nn.Module


def restored(
    folder: Path, data_dir: Path | None, device: str | None, backend: str | None, *names: str
) -> Restored:
    """The model of a run of one of these tasks, in evaluation mode, and its data.

    Raises:
        ConfigError: the backend that is forced cannot run the model.
        RunError: the run is of another task.
    """
    from fastrnn import checkpoints, training
    from fastrnn.runs import RunError

    run, task, config = opened(folder, data_dir, device=device, backend=backend)
    if task.name not in names:
        raise RunError(f"{folder} is a run of {task.name}; expected {' or '.join(names)}")
    dataset = training.load(config)
    weights, _ = checkpoints.read(run.best)
    model = training.restored(task, config, dataset, weights)
    with training.forced(config):
        training.chosen_backend(model, config, dataset)
    return Restored(task, config, dataset, model)


def check_images(images: int, dataset: Dataset) -> None:
    """Raises ConfigError if the test set has not so many."""
    from fastrnn.config import ConfigError

    most = len(dataset.test)
    if not 1 <= images <= most:
        raise ConfigError(f"--images is {images}; expected 1 to {most}, the test set")


def check_number(option: str, given: int, least: int, most: int = (1 << 63) - 1) -> None:
    """Raises ConfigError if an option's number is outside these."""
    from fastrnn.config import ConfigError

    if not least <= given <= most:
        raise ConfigError(f"{option} is {given}; expected {least} to {most}")


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, and the function that tells it how much is done."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)
