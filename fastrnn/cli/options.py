"""Options that several commands have, and checks of their values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from fastrnn import backends
from fastrnn.training.config import ConfigError, suggestion

if TYPE_CHECKING:
    from fastrnn.tasks.data import Dataset
    from fastrnn.tasks.opening import Trained
    from fastrnn.training import report

*_OTHERS, _LAST = ("auto", *backends.BACKENDS)
DTYPES = ("float32", "float64", "bfloat16", "float16")  # of layers
DTYPES_HELP = f"{', '.join(DTYPES[:-1])} or {DTYPES[-1]}."

Backend = Annotated[
    str | None,
    typer.Option(
        help=f"Backend to force: {', '.join(_OTHERS)} or {_LAST}.",
        show_default="the run's; auto for a new one",
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder that holds MNIST/raw, as torchvision lays it out.",
        show_default="the run's; $FASTRNN_DATA or data for a new one",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="Device: auto, cpu, cuda or cuda:N.", show_default="the run's; auto for a new one"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print results only: no progress, no notes.")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print details too.")]


class Outputs(NamedTuple):
    """Where a command prints.

    Attributes:
        result: what it has found; with --json, what else is said about it goes to stderr.
        bar: its progress.
    """

    result: report.Output
    bar: report.Output


def outputs(verbose: bool, quiet: bool, *, as_json: bool = False) -> Outputs:
    """The places for what a command prints, at the level that -v and -q ask for."""
    from fastrnn.training import report

    level = verbose - quiet
    return Outputs(
        report.Output(level=level, stderr=as_json), report.Output(level=level, stderr=True)
    )


def on_what(found: Trained, images: int, seconds: float) -> str:
    """What -v says about a model's work on images."""
    from fastrnn.training import report

    return report.joined(
        [
            f"{report.count(images, 'image')} of {found.dataset.name}",
            report.duration(seconds),
            f"{images / seconds:,.0f} images/s",
            f"{found.config.cell} {found.config.num_layers} × {found.config.hidden_size}",
            f"device {found.config.device}",
            f"backend {found.backend}",
        ]
    )


def option_of(setting: str) -> str:
    """The option that sets one of a run's settings."""
    return "--lr" if setting == "learning_rate" else f"--{setting.replace('_', '-')}"


def named_by_option(error: ConfigError) -> str:
    """An error's message, which names the option instead of the setting."""
    message = str(error)
    if not error.setting:
        return message
    return option_of(error.setting) + message.removeprefix(error.setting)


def check_images(images: int, dataset: Dataset) -> None:
    """Checks that the test set has so many images.

    Raises:
        ConfigError: it has fewer, or the number is below 1.
    """
    most = len(dataset.test)
    if not 1 <= images <= most:
        raise ConfigError(f"--images is {images}; expected 1 to {most}, the size of the test set")


def check_one_of(option: str, given: str, names: Sequence[str], typed: str | None = None) -> None:
    """Checks that an option's value is one of a few names.

    Args:
        option: for the message.
        given: the value.
        names: that there are.
        typed: what the user has typed, if that is not ``given``.

    Raises:
        ConfigError: it is none of them.
    """
    if given not in names:
        expected = f"{', '.join(names[:-1])} or {names[-1]}"
        close = suggestion(given, names)
        raise ConfigError(f"{option} is {typed or given!r}; expected {expected}{close}")


def check_number(option: str, given: int, least: int, most: int = (1 << 63) - 1) -> None:
    """Checks an option's number.

    Raises:
        ConfigError: it is not from ``least`` to ``most``.
    """
    if not least <= given <= most:
        raise ConfigError(f"{option} is {given}; expected {least} to {most}")
