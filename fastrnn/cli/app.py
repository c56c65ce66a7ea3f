"""The commands of ``fastrnn`` as one typer app."""

from __future__ import annotations

from typing import Annotated

import typer

from fastrnn import backends
from fastrnn.cli import program
from fastrnn.cli.complete import complete
from fastrnn.cli.download import download
from fastrnn.cli.evaluate import evaluate
from fastrnn.cli.info import info, presets
from fastrnn.cli.inpaint import inpaint
from fastrnn.cli.train import train
from fastrnn.cli.verify import verify

app = typer.Typer(
    help="Faster LSTM and GRU layers than torch.nn's, and tasks to train with them.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain text, which a narrow terminal does not cut
)
for command in (train, evaluate, complete, inpaint, verify, download, presets, info):
    app.command()(command)


@app.command(
    context_settings={
        "allow_extra_args": True,
        "allow_interspersed_args": False,
        "ignore_unknown_options": True,
    }
)
def run(
    context: typer.Context,
    script: Annotated[str, typer.Argument(help="The program; its own arguments follow.")] = "",
    module: Annotated[
        bool, typer.Option("-m", help="SCRIPT is a module's name, as for python -m.")
    ] = False,
) -> None:
    """Run a Python program whose torch.nn layers use fastrnn's kernels."""
    program.main([*["-m"] * module, *[script] * bool(script), *context.args])


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"fastrnn {backends.fastrnn_version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass
