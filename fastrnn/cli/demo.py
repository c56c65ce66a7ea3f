"""``fastrnn demo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastrnn.cli import options

if TYPE_CHECKING:
    from fastrnn.tasks.opening import Trained


def demo(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The file to write; one that is there is replaced.", show_default="RUN/demo.html"
        ),
    ] = None,
    data_dir: options.DataDir = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Write a web page for trying out a trained model.

    The page is one file, at most 2 MB, which opens in any browser and needs no network: the model
    runs in it.
    """
    from fastrnn import tasks
    from fastrnn.tasks import demo, opening
    from fastrnn.training import distributed, files, report
    from fastrnn.training.errors import RunError

    target = out or run / "demo.html"
    if target.is_dir():
        raise RunError(f"{target} is a folder; expected a file to write, as in page.html")
    found = opening.open_trained(run, data_dir, None, None, *tasks.NAMES)
    test = _measured(run, found)
    content = demo.page(found.task.name, found.model, found.config, found.dataset, test)
    if distributed.first():
        target.parent.mkdir(parents=True, exist_ok=True)
        files.write(target, content)
    output, _ = options.outputs(verbose, quiet, as_json=as_json)
    if as_json:
        output.json({"file": str(target), "bytes": len(content), "test": test})
    else:
        output.print(f"{target}: {len(content) / 1e6:.2f} MB, to open in a browser")
    named = {f"test_{name}": value for name, value in test.items()}
    output.detail(f"{found.task.name} on {found.dataset.name}, {report.described(named, 'test_')}")


def _measured(run: Path, found: Trained) -> dict[str, float]:
    """The metrics of the test set: those of a finished run's summary, or else measured now."""
    from fastrnn.training import evaluation, files

    try:
        summary = files.read_json(run / files.SUMMARY)
    except (OSError, ValueError):
        summary = {}
    prefix = "test_"
    test = {k.removeprefix(prefix): v for k, v in summary.items() if k.startswith(prefix)}
    if not test:
        with found.config.use_backend():
            test = evaluation.evaluate(found.task, found.model, found.dataset.test, found.config)
    return test
