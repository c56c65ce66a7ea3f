"""Opening a run for a command, and what commands print alike."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastrnn import tasks
from fastrnn.tasks.config import PixelConfig
from fastrnn.training import distributed, files, report
from fastrnn.training.config import ConfigError
from fastrnn.training.errors import RunError
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
    run = distributed.broadcast(Run.open(folder) if distributed.first() else Run(folder))
    try:
        task = tasks.get(run.content["task"])
    except ConfigError as error:
        raise RunError(f"{folder / 'config.json'} is of no task of ours: {error}") from None
    older = "format" not in run.content
    try:
        config = PixelConfig.from_json(run.content["settings"], older=older)
    except (ConfigError, KeyError, TypeError) as error:
        raise RunError(f"{folder / 'config.json'} is damaged ({error}): start a new run") from None
    given: dict[str, Any] = {k: value for k, value in others.items() if value is not None}
    if data_dir is not None:
        given["data_dir"] = str(data_dir.absolute())
    config = dataclasses.replace(config, **given)
    if "device" not in given and config.missing_device:
        report.Output().warn(f"{config.missing_device}; the run goes on with what is there")
        config = dataclasses.replace(config, device="auto")
    return run, task, config.pinned()


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
    from fastrnn.training import evaluation

    run, task, config = open_run(folder, data_dir, device=device, backend=backend)
    if task.name not in names:
        raise RunError(f"{folder} is a run of {task.name}; expected {' or '.join(names)}")
    dataset = config.load_data()
    config = dataclasses.replace(config, device=distributed.device(config.device))
    model = evaluation.restore_model(task, config, dataset, run)
    if run.finished:
        for damage in files.damages(run.folder):
            report.Output().warn(f"{damage}; the best weights are whole and are used")
    with config.use_backend():
        task.choose_backend(model, config, dataset)
    return Trained(task, config, dataset, model)


def progress(text: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """A progress bar on stderr; yields the function that sets what is done."""
    return report.Output(stderr=True).progress(text, total)


@contextlib.contextmanager
def results(folder: Path) -> Iterator[Path | None]:
    """A new folder, as :func:`files.new_folder`; None in all processes but the first."""
    if not distributed.first():
        yield None
        return
    with files.new_folder(folder) as temporary:
        yield temporary


def described(metrics: Mapping[str, Any], prefix: str) -> str:
    """``test accuracy 97.50%, test loss 0.1000`` from the entries whose names start so."""
    return ", ".join(
        f"{name.replace('_', ' ')} {f'{value:.2%}' if 'accuracy' in name else f'{value:.4f}'}"
        for name, value in metrics.items()
        if name.startswith(prefix)
    )
