"""The tasks. Each module of this package holds one, as ``TASK``."""

from __future__ import annotations

import importlib

from fastrnn.config import ConfigError
from fastrnn.training import Task

NAMES = ("classification", "pixel-prediction", "inpainting")


def get(name: str) -> Task:
    """The task of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in NAMES:
        raise ConfigError(f"unknown task {name!r}; the tasks are {', '.join(NAMES)}")
    task: Task = importlib.import_module(f"fastrnn.tasks.{name.replace('-', '_')}").TASK
    return task
