"""The commands of ``fastrnn`` as one typer app."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from fastrnn import backends
from fastrnn.cli import program
from fastrnn.cli.complete import complete
from fastrnn.cli.demo import demo
from fastrnn.cli.download import download
from fastrnn.cli.evaluate import evaluate
from fastrnn.cli.info import info, presets
from fastrnn.cli.inpaint import inpaint
from fastrnn.cli.predict import predict
from fastrnn.cli.runs import compare, runs
from fastrnn.cli.train import train
from fastrnn.cli.tune import tune
from fastrnn.cli.verify import verify

OVERVIEW = """\
Faster LSTM and GRU layers than torch.nn's, and tasks to train them on:
  fastrnn train classification    learn to read digits, then: predict, demo
  fastrnn train pixel-prediction  learn to draw them, then: complete, demo
  fastrnn train inpainting        learn to fill holes, then: inpaint, demo
  fastrnn runs                    list what you have trained, then: compare
  fastrnn run SCRIPT              run your own program with the faster layers
  fastrnn info                    what is found here, and what is missing

Run this first (half a minute): fastrnn train classification --dataset digits
Help: fastrnn --help, and fastrnn COMMAND --help"""

EXIT_CODES = """\
Exit status: 0 if all went well; 1 if verify found damage, or after a bug; 2 for an error that you
can fix, which is one line on stderr; 128 + N after signal N, for example 130 after Ctrl-C. fastrnn
run exits with the program's own status."""

# The commands in the order of the help, each with its example.
COMMANDS: dict[Callable[..., Any], str] = {
    train: "fastrnn train classification --dataset digits --epochs 20 --out runs/mine",
    evaluate: "fastrnn evaluate runs/mine --split validation",
    complete: "fastrnn complete runs/pixels --images 20 --samples 5 --pixels 1,28",
    inpaint: "fastrnn inpaint runs/pixels --holes pixel --images 1000",
    predict: "fastrnn predict runs/mine seven.png",
    demo: "fastrnn demo runs/pixels --out page.html",
    runs: "fastrnn runs --sort best",
    compare: "fastrnn compare runs/first runs/second --out both.png",
    verify: "fastrnn verify runs/mine",
    download: "fastrnn download mnist --data-dir data",
    presets: "fastrnn presets --json",
    info: "fastrnn info --explain LSTM --hidden 256 --batch 1 --training",
    tune: "fastrnn tune 200x784x1x128 1x1x32x32 --cell LSTM",
}

app = typer.Typer(
    help="Faster LSTM and GRU layers than torch.nn's, and tasks to train with them.",
    epilog=EXIT_CODES,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain text, which a narrow terminal does not cut
)


def _example(line: str) -> str:
    """An epilog; the backspace keeps its lines as they are."""
    return f"\b\nExample:\n  {line}"


for command, example in COMMANDS.items():
    app.command(epilog=_example(example))(command)


@app.command(
    epilog=_example("fastrnn run -m my_package.training --epochs 3"),
    context_settings={
        "allow_extra_args": True,
        "allow_interspersed_args": False,
        "ignore_unknown_options": True,
    },
)
def run(
    context: typer.Context,
    script: Annotated[str, typer.Argument(help="The program; its own arguments follow.")] = "",
    module: Annotated[
        bool, typer.Option("-m", help="SCRIPT is a module's name, as for python -m.")
    ] = False,
) -> None:
    """Run a Python program with its torch.nn layers on fast kernels."""
    program.main([*["-m"] * module, *[script] * bool(script), *context.args])


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"fastrnn {backends.fastrnn_version()}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(OVERVIEW)
