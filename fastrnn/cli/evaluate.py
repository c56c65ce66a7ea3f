"""``fastrnn evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastrnn.cli import options


def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    data_dir: options.DataDir = None,
    device: options.Device = None,
    backend: options.Backend = None,
) -> None:
    """Measure the weights of a run's best epoch on a split of the data."""
    from fastrnn import tasks
    from fastrnn.cli import runs
    from fastrnn.training import evaluation, report
    from fastrnn.training.config import ConfigError

    if split not in ("train", "validation", "test"):
        raise ConfigError(f"--split is {split!r}; expected train, validation or test")
    task, config, data, model = runs.open_trained(run, data_dir, device, backend, *tasks.NAMES)
    with config.use_backend():
        metrics = evaluation.evaluate(task, model, getattr(data, split), config)
    text = runs.described({f"{split}_{name}": value for name, value in metrics.items()}, split)
    report.Output().print(text)
