"""Opening a run for a command, and what commands print alike."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastrnn import tasks
from fastrnn.tasks.config import PixelConfig
from fastrnn.training.config import ConfigError
from fastrnn.training.files import RunError
from fastrnn.training.runs import Run

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from fastrnn.tasks.base import PixelTask
    from fastrnn.tasks.data import Dataset


def command_line() -> str:
    """What the user typed, for a summary."""
    return shlex.join(["fastrnn", *sys.argv[1:]])


def open_run(
    folder: Path, data_dir: Path | None, **others: str | None
) -> tuple[Run, PixelTask, PixelConfig]:
    """A run, its task, and its settings.

    Args:
        folder: of the run.
        data_dir: replaces the setting of the run if given.
        others: settings that do the same.

    Raises:
        ConfigError: the run's task is unknown, or a given setting is invalid.
        RunError: the folder holds no run, or its config.json is damaged.
    """
    run, content = Run.open(folder)
    task = tasks.get(content["task"])
    try:
        config = PixelConfig.from_json(content["settings"])
    except (ConfigError, KeyError, TypeError) as error:
        raise RunError(f"{folder / 'config.json'} is damaged ({error}): start a new run") from None
    given: dict[str, Any] = {k: value for k, value in others.items() if value is not None}
    if data_dir is not None:
        given["data_dir"] = str(data_dir.absolute())
    return run, task, dataclasses.replace(config, **given)


class Trained(NamedTuple):
    """The model of a run with its best weights, in evaluation mode, and what belongs to it."""

    task: PixelTask
    config: PixelConfig
    dataset: Dataset
    model: nn.Module


def open_trained(
    folder: Path, data_dir: Path | None, device: str | None, backend: str | None, *names: str
) -> Trained:
    """The trained model of a run of one of the tasks in ``names``, and its data.

    Raises:
        ConfigError: the forced backend cannot run the model.
        DataError: the dataset is missing or damaged.
        RunError: the folder holds no run of these tasks, or the run is damaged.
    """
    from fastrnn.training import checkpoints, evaluation

    run, task, config = open_run(folder, data_dir, device=device, backend=backend)
    if task.name not in names:
        raise RunError(f"{folder} is a run of {task.name}; expected {' or '.join(names)}")
    dataset = config.load_data()
    weights, _ = checkpoints.read(run.best)
    model = evaluation.restore_model(task, config, dataset, weights)
    with config.use_backend():
        task.choose_backend(model, config, dataset)
    return Trained(task, config, dataset, model)


def progress(text: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """A progress bar on stderr; yields the function that sets what is done."""
    from rich.console import Console

    from fastrnn.training import report

    return report.progress_bar(Console(stderr=True), text, total)


def described(metrics: Mapping[str, Any], prefix: str) -> str:
    """``test accuracy 97.50%, test loss 0.1000`` from the entries whose names start so."""
    return ", ".join(
        f"{name.replace('_', ' ')} {f'{value:.2%}' if 'accuracy' in name else f'{value:.4f}'}"
        for name, value in metrics.items()
        if name.startswith(prefix)
    )
