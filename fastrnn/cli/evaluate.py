"""``fastrnn evaluate``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from fastrnn.cli import options


def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    split: Annotated[str, typer.Option(help="Images: train, validation or test.")] = "test",
    data_dir: options.DataDir = None,
    device: options.Device = None,
    backend: options.Backend = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Measure a run's best weights on a split of the data.

    These are the weights of the epoch that was best on the validation set. Losses are in nats per
    image, or per hidden pixel.
    """
    from fastrnn import tasks
    from fastrnn.tasks import opening
    from fastrnn.training import evaluation, report
    from fastrnn.training.config import ConfigError, suggestion

    if split not in ("train", "validation", "test"):
        close = suggestion(split, ("train", "validation", "test"))
        raise ConfigError(f"--split is {split!r}; expected train, validation or test{close}")
    found = opening.open_trained(run, data_dir, device, backend, *tasks.NAMES)
    images, start = getattr(found.dataset, split), time.perf_counter()
    output, bar = options.outputs(verbose, quiet, as_json=as_json)
    with bar.progress("evaluating", len(images)) as show, found.config.use_backend():
        metrics = evaluation.evaluate(found.task, found.model, images, found.config, show=show)
    named = {f"{split}_{name}": value for name, value in metrics.items()}
    if as_json:
        output.json({"run": str(run), "split": split, **named})
    else:
        output.print(report.described(named, split))
    output.detail(options.on_what(found, len(images), time.perf_counter() - start))
