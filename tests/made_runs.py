"""Runs whose weights are random: made in milliseconds, for tests of what uses a run."""

import dataclasses
from pathlib import Path

import torch

from fastrnn import tasks
from fastrnn.tasks import data
from fastrnn.tasks.config import PixelConfig
from fastrnn.training import checkpoints
from fastrnn.training.runs import Run


def make(folder: Path, task: str, dataset: str = "digits", **settings) -> Path:
    """A run that has best weights and nothing else; by default 5 units on binary pixels."""
    config = PixelConfig(**{"dataset": dataset, "device": "cpu", "hidden_size": 5, **settings})
    content = {"task": task, "preset": "none", "settings": dataclasses.asdict(config)}
    run = Run.create(folder, content)
    torch.manual_seed(0)
    model = tasks.get(task).model(config, data.image_format(dataset, grey=config.grey))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)  # far from 0, so that errors show
    checkpoints.write(run.best, model.state_dict(), checkpoints.Record(identity=run.identity))
    return folder
