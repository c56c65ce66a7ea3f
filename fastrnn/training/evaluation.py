"""Metrics of a split, and a run's best weights in a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from fastrnn.training import checkpoints
from fastrnn.training.config import Config
from fastrnn.training.files import RunError
from fastrnn.training.interrupts import Signals
from fastrnn.training.task import Dataset, Split, Task

EVALUATION_BATCH = 1000


def restore_model(
    task: Task, config: Config, dataset: Dataset, weights: Mapping[str, Tensor]
) -> nn.Module:
    """The task's model with the given weights, on the run's device, in evaluation mode.

    Raises:
        ConfigError: the task has no model for these settings.
        RunError: the weights belong to another model.
    """
    model = task.model(config, dataset)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(
            f"the weights do not fit config.json: {checkpoints.one_line(error)}"
        ) from None
    return model.to(config.device).eval()


def batches(task: Task, split: Split, config: Config) -> Iterator[tuple[Tensor, Tensor]]:
    """A whole split in order, in batches of inputs and targets as :meth:`Task.batch` makes them."""
    for rows in torch.arange(len(split)).split(EVALUATION_BATCH):
        yield task.batch(split, rows, config)


@torch.no_grad()
def evaluate(
    task: Task, model: nn.Module, split: Split, config: Config, signals: Signals | None = None
) -> dict[str, float]:
    """Means of the task's metrics over a split.

    Tasks that draw random numbers get the same ones in each evaluation; torch's global generators
    keep their state.

    Args:
        task: defines the metrics.
        model: on the run's device; it is left in training mode.
        split: the examples.
        config: the run's settings.
        signals: checked before each batch.

    Raises:
        Interrupted: a signal arrived.
    """
    totals: dict[str, Tensor] = {}
    device = torch.device(config.device)
    model.eval()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        for x, labels in batches(task, split, config):
            if signals:
                signals.check()
            add(totals, task.measure(model, x, labels, config))
    model.train()
    return means(totals, len(split))


def add(totals: dict[str, Tensor], metrics: Mapping[str, Tensor]) -> None:
    """Adds the sums of a batch's metrics, [B] each; in float64, so that long sums stay exact."""
    for name, values in metrics.items():
        total = values.detach().double().sum()
        totals[name] = totals[name] + total if name in totals else total


def means(totals: Mapping[str, Tensor], examples: int) -> dict[str, float]:
    """Totals divided by the number of examples."""
    return {name: total.item() / examples for name, total in totals.items()}
