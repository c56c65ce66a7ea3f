"""Opening the folder of a run: its settings, and its trained model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from fastrnn.tasks import registry
from fastrnn.tasks.base import PixelTask
from fastrnn.tasks.config import PixelConfig
from fastrnn.tasks.data import Dataset, ImageFormat
from fastrnn.training import distributed, evaluation, files, report
from fastrnn.training.config import ConfigError
from fastrnn.training.errors import RunError
from fastrnn.training.runs import Run


def print_warning(warning: str) -> None:
    """Prints a line on stderr."""
    report.Output().warn(warning)


def open_run(
    folder: Path,
    data_dir: Path | None = None,
    *,
    warn: Callable[[str], None] = print_warning,
    **others: str | None,
) -> tuple[Run, PixelTask, PixelConfig]:
    """A run, its task, and its settings.

    Args:
        folder: of the run.
        data_dir: replaces the setting of the run if given.
        warn: told if the run's device is not there; by default prints on stderr.
        others: settings that replace those of the run if given.

    Raises:
        ConfigError: a given setting is invalid.
        RunError: the folder holds no run of a task of ours, or its config.json is damaged.
    """
    run = distributed.broadcast(Run.open(folder) if distributed.first() else Run(folder))
    try:
        task = registry.get(run.content["task"])
    except ConfigError as error:
        raise RunError(f"{folder / 'config.json'} is of no task of ours: {error}") from None
    try:
        config = PixelConfig.from_json(run.content["settings"])
    except (ConfigError, KeyError, TypeError) as error:
        raise RunError(f"{folder / 'config.json'} is damaged ({error}): start a new run") from None
    given: dict[str, Any] = {k: value for k, value in others.items() if value is not None}
    if data_dir is not None:
        given["data_dir"] = str(data_dir.absolute())
    config = dataclasses.replace(config, **given)
    if "device" not in given and config.missing_device:
        warn(f"{config.missing_device}; the run goes on with what is there")
        config = dataclasses.replace(config, device="auto")
    return run, task, config.pinned()


class Trained(NamedTuple):
    """The model of a run with its best weights, in evaluation mode, and what belongs to it."""

    task: PixelTask
    config: PixelConfig
    dataset: Dataset
    model: nn.Module
    backend: str


def open_trained(
    folder: Path, data_dir: Path | None, device: str | None, backend: str | None, *names: str
) -> Trained:
    """The trained model of a run of one of the tasks in ``names``, and its data.

    Raises:
        ConfigError: the forced backend cannot run the model.
        DataError: the dataset is missing or damaged.
        RunError: the folder holds no run of these tasks, or the run is damaged.
    """
    run, task, config = open_run(folder, data_dir, device=device, backend=backend)
    check_task(folder, task, *names)
    dataset = config.load_data()
    config = dataclasses.replace(config, device=distributed.device(config.device))
    model = restored(run, task, config, dataset)
    with config.use_backend():
        backend = task.choose_backend(model, config, dataset).backend
    return Trained(task, config, dataset, model, backend)


def check_task(folder: Path, task: PixelTask, *names: str) -> None:
    """Raises RunError unless a run's task is one of those in ``names``."""
    if task.name not in names:
        raise RunError(f"{folder} is a run of {task.name}; expected {' or '.join(names)}")


def restored(
    run: Run,
    task: PixelTask,
    config: PixelConfig,
    images: ImageFormat,
    warn: Callable[[str], None] = print_warning,
) -> nn.Module:
    """A run's model with its best weights, on its device, in evaluation mode.

    Args:
        run: what :func:`open_run` gave.
        task, config: of the run.
        images: what they are like; a whole dataset will do.
        warn: told of each damaged file of a finished run that is not needed here.

    Raises:
        RunError: the weights are missing or damaged.
    """
    model = evaluation.restore_model(task, config, images, run)
    if run.finished:
        for damage in files.damages(run.folder):
            warn(f"{damage}; the best weights are whole and are used")
    return model
