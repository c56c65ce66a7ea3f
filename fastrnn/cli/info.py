"""``fastrnn presets`` and ``fastrnn info``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastrnn.backends import Choice
    from fastrnn.config import Config


def presets() -> None:
    """List the named settings."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from fastrnn import tasks

    for name in tasks.NAMES:
        table = Table(title=name, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        # What one comes for; the others give way on a narrow terminal.
        table.add_column("preset", no_wrap=True)
        table.add_column("layers × H")
        for column in ("batch", "rate", "epochs"):
            table.add_column(column, justify="right")
        table.add_column("besides")
        for preset, c in tasks.get(name).presets.items():
            table.add_row(
                preset,
                f"{c.cell} {c.num_layers} × {c.hidden_size}",
                str(c.batch_size),
                f"{c.learning_rate:g}",
                str(c.epochs),
                ", ".join(_besides(c)),
            )
        Console(highlight=False).print(table)


def _besides(config: Config) -> Iterator[str]:
    """Settings that few presets change, where they are not the usual ones."""
    if config.pixels != "binary":
        yield f"{config.pixels} pixels"
    if config.input_dropout:
        yield f"{config.input_dropout:.0%} dropped"
    if config.initialisation != "torch":
        yield config.initialisation
    if config.schedule != "constant":
        yield config.schedule
    if config.warmup:
        yield f"warm-up {config.warmup:.0%}"
    if config.clip:
        yield f"clip {config.clip:g}"


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
