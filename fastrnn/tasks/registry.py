"""The tasks by name. Each task's module defines it as ``TASK``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from fastrnn.training.config import ConfigError, suggestion

if TYPE_CHECKING:
    from fastrnn.tasks.base import PixelTask

NAMES = ("classification", "pixel-prediction", "inpainting")


def get(name: str) -> PixelTask:
    """The task of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in NAMES:
        close = suggestion(name, NAMES)
        raise ConfigError(f"unknown task {name!r}; the tasks are {', '.join(NAMES)}{close}")
    task: PixelTask = importlib.import_module(f".{name.replace('-', '_')}", __package__).TASK
    return task
