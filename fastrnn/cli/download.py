"""``fastrnn download``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastrnn.cli import options
from fastrnn.training.config import ConfigError, suggestion


def download(
    dataset: Annotated[str, typer.Argument(help="mnist; nothing else has to be downloaded.")],
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder to put MNIST/raw in.", show_default="$FASTRNN_DATA or data"),
    ] = None,
    quiet: options.Quiet = False,
) -> None:
    """Fetch MNIST (11 MB); a download that was stopped goes on."""
    from fastrnn.tasks import data, downloads
    from fastrnn.training import report

    if dataset != "mnist":
        close = suggestion(dataset, ["mnist"])
        raise ConfigError(f"the dataset is {dataset!r}; expected mnist{close}")
    raw = data.raw_folder(data_dir or data.default_folder())
    bar = report.Output(stderr=True, level=-quiet)
    with bar.progress("MNIST", downloads.BYTES / 1e6, unit="MB") as show:
        new = downloads.fetch(raw, data.MNIST_FILES, lambda done: show(done / 1e6))
    print(f"MNIST {'is now' if new else 'was already'} in {raw}")
