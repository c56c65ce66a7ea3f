"""``fastrnn presets`` and ``fastrnn info``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

import fastrnn
from fastrnn import backends
from fastrnn.tasks.config import PixelConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

DTYPES = ("float32", "float64", "bfloat16", "float16")


def presets() -> None:
    """List the presets of each task."""
    from fastrnn import tasks

    for name in tasks.NAMES:
        print(f"{name}:")
        presets = tasks.get(name).presets
        width = max(map(len, presets))
        for preset, c in presets.items():
            size = f"{c.cell} {c.num_layers} × {c.hidden_size}"
            steps = f"batch {c.batch_size:3}, rate {c.learning_rate:<6g}, {c.epochs:3} epochs"
            print(f"  {preset:{width}}  {size:12}  {', '.join([steps, *_others(c)])}")


def _others(config: PixelConfig) -> Iterator[str]:
    """The settings that have no column, where they differ from the defaults."""
    if config.pixels != "binary":
        yield f"{config.pixels} pixels"
    if config.input_dropout:
        yield f"{config.input_dropout:.0%} dropped"
    if config.initialisation != PixelConfig.initialisation:
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
        str | None,
        typer.Option(help="LSTM or GRU: print the backend that a call would use, and why."),
    ] = None,
    batch: Annotated[int, typer.Option(min=0, help="Batch size of the call.")] = 200,
    hidden: Annotated[int, typer.Option(min=1, help="Units of its layer.")] = 128,
    input_size: Annotated[int, typer.Option("--input", min=1, help="Features per step.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Length of its sequences.")] = 784,
    dtype: Annotated[str, typer.Option(help=f"{', '.join(DTYPES[:-1])} or {DTYPES[-1]}.")] = (
        DTYPES[0]
    ),
    device: Annotated[str, typer.Option(help="Device of its tensors.")] = "cpu",
    training: Annotated[bool, typer.Option(help="Whether it needs gradients.")] = False,
) -> None:
    """Show which backends are available, and which one a call would use."""
    if explain is None:
        facts = fastrnn.backend_info()
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


def _explained(cell: str, dtype: str, **call: Any) -> backends.Choice:
    import torch

    from fastrnn.training.config import ConfigError

    if cell not in ("LSTM", "GRU"):
        raise ConfigError(f"--explain is {cell!r}; expected LSTM or GRU")
    if dtype not in DTYPES:
        expected = f"{', '.join(DTYPES[:-1])} or {DTYPES[-1]}"
        raise ConfigError(f"--dtype is {dtype!r}; expected {expected}")
    try:
        return backends.explain(cell, dtype=getattr(torch, dtype), **call)
    except (RuntimeError, ValueError) as error:  # no such device; the forced backend cannot
        raise ConfigError(str(error).splitlines()[0]) from None


def _described(facts: dict[str, Any]) -> str:
    """The lines to print for :func:`fastrnn.backend_info`."""
    lines = [f"{name}: {value}" for name, value in facts.items() if name != "backends"]
    for name, backend in facts["backends"].items():
        state = "available" if backend["available"] else f"not available: {backend['reason']}"
        others = [f"{k} {v}" for k, v in backend.items() if k not in ("available", "reason")]
        lines.append(f"backend {name}: {', '.join([state, *others])}")
    return "\n".join(lines)
