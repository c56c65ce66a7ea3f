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
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Fetch MNIST (11 MB), or resume an interrupted download."""
    from fastrnn.tasks import data, downloads

    if dataset != "mnist":
        close = suggestion(dataset, ["mnist"])
        raise ConfigError(f"the dataset is {dataset!r}; expected mnist{close}")
    raw = data.raw_folder(data_dir or data.default_folder())
    output, bar = options.outputs(verbose, quiet, as_json=as_json)
    with bar.progress("MNIST", downloads.BYTES / 1e6, unit="MB") as show:
        new = downloads.fetch(raw, data.MNIST_FILES, lambda done: show(done / 1e6))
    if as_json:
        output.json({"folder": str(raw), "downloaded": new})
    else:
        output.print(f"MNIST {'is now' if new else 'was already'} in {raw}")
    for name, md5 in data.MNIST_FILES.items():
        output.detail(f"{name}, unpacked: MD5 {md5}")
