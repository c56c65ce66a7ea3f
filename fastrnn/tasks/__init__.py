"""The tasks on images of digits, and the models that were trained on them.

``load`` opens a run::

    from fastrnn import tasks

    model = tasks.load("runs/digits")
    labels, probabilities = model.predict(images)
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

from fastrnn.tasks.registry import NAMES, get

if TYPE_CHECKING:
    import torch

    from fastrnn.tasks.trained import TrainedModel

__all__ = ["NAMES", "get", "load"]


def load(run: str | os.PathLike[str], *, device: str | torch.device | None = None) -> TrainedModel:
    """The trained model of a run: what ``fastrnn train`` wrote, from its folder.

    Neither the dataset nor the machine that trained the model is needed. fastrnn chooses the
    backend of each call; ``with fastrnn.backend(name):`` forces one.

    Args:
        run: the run's folder. It has to have finished its first epoch; the weights are those of
            the epoch that was best on the validation set.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``; the device that trained the run if not
            given, or the CPU, with a warning, if that device is not there.

    Raises:
        RunError: the folder holds no run, or its files are missing or damaged.
        ConfigError: torch does not see the device.
    """
    from fastrnn.tasks import trained

    return trained.load(run, device, lambda text: warnings.warn(text, stacklevel=5))
