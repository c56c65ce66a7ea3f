"""``fastrnn train | evaluate | presets | info``: arguments and printing; the work is elsewhere."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastrnn.backends import Choice
    from fastrnn.config import Config
    from fastrnn.data import Dataset
    from fastrnn.runs import Run
    from fastrnn.training import Task

app = typer.Typer(
    help="LSTM and GRU, faster than torch.nn's, and tasks to train with them.",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)

DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder that holds MNIST/raw, as torchvision lays it out.", show_default=False
    ),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Backend = Annotated[str | None, typer.Option(help="auto, cpu, triton, torch or reference.")]


def main() -> None:
    """The console script. What a user can mend gets one line on stderr and exit status 2."""
    from fastrnn.config import ConfigError
    from fastrnn.data import DataError
    from fastrnn.runs import RunError

    try:
        app()
    except (ConfigError, DataError, RunError, OSError) as error:
        print(f"fastrnn: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _version(wanted: bool) -> None:
    if wanted:
        import fastrnn

        print(f"fastrnn {fastrnn.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def train(
    task: Annotated[str, typer.Argument(help="What to train: classification.")],
    preset: Annotated[
        str | None, typer.Option(help="Named settings (fastrnn presets lists them).")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="mnist, digits (8×8, bundled), or auto: MNIST where it is found."),
    ] = None,
    data_dir: DataDir = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch MNIST if missing.")] = False,
    pixels: Annotated[str | None, typer.Option(help="binary or grey.")] = None,
    cell: Annotated[str | None, typer.Option(help="LSTM or GRU.")] = None,
    hidden_size: Annotated[int | None, typer.Option()] = None,
    num_layers: Annotated[int | None, typer.Option()] = None,
    initialisation: Annotated[
        str | None, typer.Option(help="torch, tensorflow, orthogonal or chrono.")
    ] = None,
    epochs: Annotated[int | None, typer.Option()] = None,
    batch_size: Annotated[int | None, typer.Option()] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of Adam; its peak.")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="constant, or cosine: down to 0 at the end.")
    ] = None,
    warmup: Annotated[
        float | None, typer.Option(help="Share of the steps in which the rate rises.")
    ] = None,
    clip: Annotated[
        float | None, typer.Option(help="Largest norm of the gradient; 0: no limit.")
    ] = None,
    input_dropout: Annotated[
        float | None, typer.Option(help="Share of the pixels that are set to 0 in training.")
    ] = None,
    device: Device = None,
    backend: Backend = None,
    seed: Annotated[int | None, typer.Option()] = None,
    checkpoint_seconds: Annotated[
        float | None, typer.Option(help="Time between checkpoints within an epoch.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; runs/TASK-PRESET-TIME if not given.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Continue this run, with its own settings.")
    ] = None,
) -> None:
    """Train a task. What no option sets comes from the preset."""
    from fastrnn import tasks
    from fastrnn.config import ConfigError

    given = {
        "dataset": dataset,
        "pixels": pixels,
        "cell": cell.upper() if cell else None,
        "hidden_size": hidden_size,
        "num_layers": num_layers,
        "initialisation": initialisation,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": lr,
        "schedule": schedule,
        "warmup": warmup,
        "clip": clip,
        "input_dropout": input_dropout,
        "device": device,
        "backend": backend,
        "seed": seed,
        "checkpoint_seconds": checkpoint_seconds,
    }
    given = {name: value for name, value in given.items() if value is not None}
    selected = tasks.get(task)
    if resume is None:
        _start(selected, preset, given, data_dir, out, download=download)
        return
    if extra := [*given, *(["preset"] if preset else []), *(["out"] if out else [])]:
        raise ConfigError(
            f"--resume takes every setting from {resume / 'config.json'}: drop {', '.join(extra)}"
        )
    _resume(selected, resume, data_dir, download=download)


def _start(
    task: Task,
    preset: str | None,
    given: dict[str, Any],
    data_dir: Path | None,
    out: Path | None,
    *,
    download: bool,
) -> None:
    """Trains in a new folder."""
    from fastrnn import training
    from fastrnn.config import Config, ConfigError
    from fastrnn.runs import Run

    if preset is not None and preset not in task.presets:
        raise ConfigError(f"{task.name} has no preset {preset!r}; it has {', '.join(task.presets)}")
    if data_dir is not None:
        given["data_dir"] = str(data_dir.absolute())
    if preset is None:
        preset = task.default_preset(training.load(Config(**given), download=download).name)
    wanted = dataclasses.replace(task.presets[preset], **given)
    data = training.load(wanted, download=download)
    config = training.pinned(wanted, data)
    if out is None:
        out = Path("runs") / f"{task.name}-{preset}-{time.strftime('%Y%m%d-%H%M%S')}"
    if wanted.dataset == "auto" and data.name == "digits":
        from fastrnn.data import how_to_get_mnist

        print(f"MNIST is not here, so the bundled 8×8 digits are used. {how_to_get_mnist()}")
    content = {"task": task.name, "preset": preset, "settings": dataclasses.asdict(config)}
    run = Run.create(out, content)
    _train(task, config, data, run)


def _resume(task: Task, folder: Path, data_dir: Path | None, *, download: bool) -> None:
    """Continues a run that was stopped."""
    from fastrnn import training
    from fastrnn.config import ConfigError

    run, stored, config = _open(folder, data_dir)
    if stored.name != task.name:
        raise ConfigError(
            f"{folder} is a run of {stored.name}, not of {task.name}: "
            f"fastrnn train {stored.name} --resume {folder}"
        )
    if run.finished:
        print(f"{folder} is finished: fastrnn evaluate {folder}")
        return
    _train(task, config, training.load(config, download=download), run)


def _open(folder: Path, data_dir: Path | None, **others: str | None) -> tuple[Run, Task, Config]:
    """A run, its task and its settings, with what may differ from the first start."""
    from fastrnn import tasks
    from fastrnn.config import Config, ConfigError
    from fastrnn.runs import Run, RunError

    run, content = Run.open(folder)
    task = tasks.get(content["task"])
    try:
        config = Config.from_json(content["settings"])
    except (ConfigError, KeyError, TypeError) as error:
        raise RunError(f"{folder / 'config.json'} is damaged ({error}): start a new run") from None
    given: dict[str, Any] = {k: value for k, value in others.items() if value is not None}
    if data_dir is not None:
        given["data_dir"] = str(data_dir.absolute())
    return run, task, dataclasses.replace(config, **given)


def _train(task: Task, config: Config, data: Dataset, run: Run) -> None:
    """Trains in a folder, to the end or until a signal."""
    from rich.console import Console

    from fastrnn import training

    console = Console(highlight=False)
    console.print(f"{task.name} on {data.name}: {run.folder}", soft_wrap=True)
    try:
        summary = training.train(task, config, data, run, console, shlex.join(sys.argv))
    except training.Interrupted as stop:
        print(f"{stop}; to continue: fastrnn train {task.name} --resume {run.folder}")
        raise typer.Exit(128 + stop.number) from None
    print(
        f"{_figures(summary, 'test_')} (the weights of epoch {summary['best_epoch']}, best on "
        f"validation)\n{summary['training_seconds']:.1f} s, "
        f"{summary['images_per_second']:,.0f} images/s, backend {summary['backend']}"
    )


def _figures(values: Mapping[str, Any], prefix: str) -> str:
    """``test accuracy 97.50 %, test loss 0.1000`` from the entries that begin so."""
    return ", ".join(
        f"{name.replace('_', ' ')} {f'{value:.2%}' if 'accuracy' in name else f'{value:.4f}'}"
        for name, value in values.items()
        if name.startswith(prefix)
    )


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    data_dir: DataDir = None,
    device: Device = None,
    backend: Backend = None,
) -> None:
    """Measure the weights of a run that were best on validation."""
    from fastrnn import checkpoints, training
    from fastrnn.config import ConfigError

    if split not in ("train", "validation", "test"):
        raise ConfigError(f"--split is {split!r}; expected train, validation or test")
    found, task, config = _open(run, data_dir, device=device, backend=backend)
    data = training.load(config)
    weights, _ = checkpoints.read(found.best)
    model = training.restored(task, config, data, weights)
    with training.forced(config):
        training.chosen_backend(model, config, data)
        figures = training.evaluate(task, model, getattr(data, split), config)
    print(_figures({f"{split}_{name}": value for name, value in figures.items()}, split))


@app.command()
def presets() -> None:
    """List the named settings."""
    from rich.console import Console
    from rich.table import Table

    from fastrnn import tasks

    for name in tasks.NAMES:
        table = Table(title=name, title_justify="left")
        for column in (
            "preset",
            "layers × H",
            "pixels",
            "batch",
            "rate",
            "schedule",
            "clip",
            "init",
            "epochs",
        ):
            table.add_column(column, justify="left" if column in ("preset", "init") else "right")
        for preset, c in tasks.get(name).presets.items():
            warmup = f", warm-up {c.warmup:.0%}" if c.warmup else ""
            table.add_row(
                preset,
                f"{c.cell} {c.num_layers} × {c.hidden_size}",
                c.pixels + (f", {c.input_dropout:.0%} dropped" if c.input_dropout else ""),
                str(c.batch_size),
                f"{c.learning_rate:g}",
                c.schedule + warmup,
                f"{c.clip:g}" if c.clip else "",
                c.initialisation,
                str(c.epochs),
            )
        Console(highlight=False).print(table)


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    explain: Annotated[
        str | None, typer.Option(help="LSTM or GRU: the backend that a call would take, and why.")
    ] = None,
    batch: Annotated[int, typer.Option(min=0)] = 200,
    hidden: Annotated[int, typer.Option(min=1)] = 128,
    input_size: Annotated[int, typer.Option("--input", min=1)] = 1,
    steps: Annotated[int, typer.Option(min=1)] = 784,
    dtype: Annotated[str, typer.Option(help="float32, float64, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option()] = "cpu",
    training: Annotated[bool, typer.Option(help="Whether gradients are asked for.")] = False,
) -> None:
    """Tell which backends are available, and which one a call would take."""
    from fastrnn import backends

    if explain is None:
        facts = backends.backend_info()
        print(json.dumps(facts, indent=2) if as_json else _described(facts))
        return
    choice = _explained(
        explain.upper(),
        dtype,
        batch=batch,
        hidden_size=hidden,
        input_size=input_size,
        steps=steps,
        device=device,
        training=training,
    )
    print(json.dumps(choice._asdict()) if as_json else f"{choice.backend}: {choice.reason}")


def _explained(cell: str, dtype: str, **call: Any) -> Choice:
    import torch

    from fastrnn import backends
    from fastrnn.config import ConfigError

    if cell not in ("LSTM", "GRU"):
        raise ConfigError(f"--explain is {cell!r}; expected LSTM or GRU")
    if dtype not in ("float32", "float64", "bfloat16", "float16"):
        raise ConfigError(f"--dtype is {dtype!r}; expected float32, float64, bfloat16 or float16")
    try:
        return backends.explain(cell, dtype=getattr(torch, dtype), **call)
    except (RuntimeError, ValueError) as error:  # no such device; the forced backend cannot
        raise ConfigError(str(error).splitlines()[0]) from None


def _described(facts: dict[str, Any]) -> str:
    """backend_info() as lines to read."""
    lines = [f"{name}: {value}" for name, value in facts.items() if name != "backends"]
    for name, backend in facts["backends"].items():
        state = "available" if backend["available"] else f"not available: {backend['reason']}"
        others = [f"{k} {v}" for k, v in backend.items() if k not in ("available", "reason")]
        lines.append(f"backend {name}: {', '.join([state, *others])}")
    return "\n".join(lines)
