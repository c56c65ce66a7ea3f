"""Metrics of a split, and a run's best weights in a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastrnn.training import checkpoints, distributed, reading
from fastrnn.training.config import Config
from fastrnn.training.errors import RunError
from fastrnn.training.interrupts import Signals
from fastrnn.training.runs import Run
from fastrnn.training.task import Split, Task

EVALUATION_BATCH = 1000


def restore_model(task: Task, config: Config, dataset: Any, run: Run) -> nn.Module:
    """The task's model with a run's best weights, on the run's device, in evaluation mode.

    Args:
        task: of the run.
        config: the run's settings.
        dataset: the task's data, or the part of it that its models depend on.
        run: must have finished its first epoch.

    Raises:
        ConfigError: the task has no model for these settings.
        RunError: the weights are missing or damaged, or belong to another model or run.
    """
    with torch.device("cpu"):  # whatever torch's defaults are in the user's program
        model = task.model(config, dataset).float()
    if not run.best.exists():
        why = "was finished: copy it back" if run.finished else "has not finished its first epoch"
        raise RunError(f"there is no {run.best}: the run {why}")
    weights, record = checkpoints.read(run.best, checkpoints.largest(model))
    run.check(run.best, record)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(f"{run.best} does not fit config.json: {reading.reason(error)}") from None
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise RunError(f"{run.best} is damaged ({name} holds NaN or infinity)")
    return model.to(config.device).eval()


def batches(task: Task, split: Split, config: Config) -> Iterator[tuple[Tensor, Tensor]]:
    """A whole split in order, in batches of inputs and targets as :meth:`Task.batch` makes them."""
    for rows in torch.arange(len(split)).split(EVALUATION_BATCH):
        yield task.batch(split, rows, config)


@torch.no_grad()
def evaluate(
    task: Task,
    model: nn.Module,
    split: Split,
    config: Config,
    signals: Signals | None = None,
    show: Callable[[int], None] = lambda done: None,
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
        show: told how many examples are done, after each batch.

    Raises:
        Interrupted: a signal arrived.
    """
    totals: dict[str, Tensor] = {}
    device = torch.device(config.device)
    model.eval()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        for rows in torch.arange(len(split)).split(EVALUATION_BATCH):
            if signals:
                signals.check()
            noise = task.noise(model, split, len(rows), config)
            places, weights = distributed.share(len(rows))
            x, labels = task.batch(split, rows[places], config)
            metrics = task.measure(model, x, labels, config, part(noise, places))
            add(totals, metrics, weights.to(device))
            show(int(rows[-1]) + 1)
    model.train()
    return means(totals, len(split))


def part(noise: tuple[Tensor, ...], places: Tensor) -> tuple[Tensor, ...]:
    """The random draws of some examples of a batch; see :meth:`Task.noise`."""
    return tuple(each[:, places.to(each.device)] for each in noise)


def add(totals: dict[str, Tensor], metrics: Mapping[str, Tensor], weights: Tensor) -> None:
    """Adds the sums of a batch's metrics, [B] each; in float64, so that long sums stay exact."""
    for name, values in metrics.items():
        total = (values.detach().double() * weights).sum()
        totals[name] = totals[name] + total if name in totals else total


def means(totals: Mapping[str, Tensor], examples: int) -> dict[str, float]:
    """Totals over all processes, divided by the number of examples."""
    return {k: total.item() / examples for k, total in distributed.sums(totals).items()}
