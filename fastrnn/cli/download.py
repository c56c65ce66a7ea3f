"""``fastrnn download``."""

from __future__ import annotations

from typing import Annotated

import typer

from fastrnn.cli import options
from fastrnn.training.config import ConfigError


def download(
    dataset: Annotated[str, typer.Argument(help="mnist; nothing else has to be downloaded.")],
    data_dir: options.DataDir = None,
) -> None:
    """Fetch MNIST (11 MB) from torchvision's mirrors; a download that was stopped goes on."""
    from fastrnn.tasks import data, downloads
    from fastrnn.training import report

    if dataset != "mnist":
        raise ConfigError(f"the dataset is {dataset!r}; expected mnist")
    raw = data.raw_folder(data_dir or data.default_folder())
    output = report.Output(stderr=True)
    with output.progress("MNIST", downloads.BYTES) as show:
        new = downloads.fetch(raw, data.MNIST_FILES, show)
    print(f"MNIST {'is now' if new else 'was already'} in {raw}")
