"""``fastrnn presets`` and ``fastrnn info``."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import textwrap
from importlib import metadata, util
from typing import TYPE_CHECKING, Annotated, Any

import typer

import fastrnn
from fastrnn import backends, measured, tables
from fastrnn.choice import explain
from fastrnn.cli import options, tune
from fastrnn.tasks.config import PixelConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# What is not needed and can be installed, and for what.
OPTIONAL = {"tensorboard": "train --tensorboard"}


def presets(as_json: options.Json = False) -> None:
    """List the presets of each task: settings to start from.

    Each line shows cell, layers × units, images per batch, peak learning rate, passes over the
    training set, and other settings that differ from the defaults.
    """
    from fastrnn import tasks

    if as_json:
        every = {
            name: {k: dataclasses.asdict(c) for k, c in tasks.get(name).presets.items()}
            for name in tasks.NAMES
        }
        print(json.dumps(every, indent=2))
        return
    for name in tasks.NAMES:
        print(f"{name}:")
        presets = tasks.get(name).presets
        width = max(map(len, presets))
        for preset, c in presets.items():
            size = f"{c.cell} {c.num_layers} × {c.hidden_size}"
            rate = f"rate {c.learning_rate:g},"
            epochs = f"{c.epochs:3} {'epoch' if c.epochs == 1 else 'epochs'}"
            steps = f"batch {c.batch_size:3}, {rate:12} {epochs}"
            text = f"{size:12}  {', '.join([steps, *_others(c)])}"
            print(_wrapped(text, f"  {preset:{width}}  ", width + 4))


def _wrapped(text: str, start: str, indent: int) -> str:
    """A text in lines of at most 80 columns, or of the terminal if it is narrower."""
    columns = min(80, shutil.get_terminal_size().columns)
    narrow = columns < 60
    if len(start + text) <= columns or narrow:
        return start + text
    return textwrap.fill(
        text,
        columns,
        initial_indent=start,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
        replace_whitespace=False,
    )


def _others(config: PixelConfig) -> Iterator[str]:
    """The settings that have no column, where they differ from the defaults."""
    if config.pixels != "binary":
        yield f"{config.pixels} pixels"
    if config.input_dropout:
        yield f"{config.input_dropout:.0%} dropped"
    if config.shift:
        yield f"shift {config.shift}"
    if config.slant:
        yield f"slant {config.slant}"
    if config.initialisation != PixelConfig.initialisation:
        yield config.initialisation
    if config.schedule != "constant":
        yield config.schedule
    if config.warmup:
        yield f"warm-up {config.warmup:.0%}"
    if config.clip:
        yield f"clip {config.clip:g}"


def info(
    size: Annotated[
        list[str] | None,
        typer.Argument(
            help="With --explain: BxTxIxH, for the options.", show_default="the options' sizes"
        ),
    ] = None,
    as_json: options.Json = False,
    explain: Annotated[
        str | None,
        typer.Option(help="LSTM or GRU: print the backend that a call would use, and why."),
    ] = None,
    batch: Annotated[int, typer.Option(min=0, help="Sequences in the call's batch.")] = 200,
    hidden: Annotated[int, typer.Option(min=1, help="Units of its layer.")] = 128,
    input_size: Annotated[int, typer.Option("--input", min=1, help="Features per step.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Steps of its sequences.")] = 784,
    dtype: Annotated[str, typer.Option(help=options.DTYPES_HELP)] = options.DTYPES[0],
    device: Annotated[str, typer.Option(help="Device of its tensors.")] = "cpu",
    training: Annotated[bool, typer.Option(help="Whether it needs gradients.")] = False,
    packed: Annotated[bool, typer.Option("--packed", help="Whether it is a packed batch.")] = False,
) -> None:
    """Show what is found here, and what to do about the rest.

    Backends, processor, GPUs, data and versions. With --explain: which backend a call of a layer
    would use; the options after it describe the call.
    """
    if size:
        batch, steps, input_size, hidden = _one_size(size, explain)
    if explain is None:
        facts = _facts()
        if as_json:
            print(json.dumps(facts, indent=2))
        else:
            print(_described(facts))
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
        packed=packed,
    )
    if as_json:
        print(json.dumps(choice._asdict()))
    else:
        print(_wrapped(choice.reason, f"{choice.backend}: ", 2))


def _one_size(texts: Sequence[str], explain: str | None) -> tune.Size:
    """The size that is given in place of the options.

    Raises:
        ConfigError: there are several, or nothing is to be explained.
    """
    from fastrnn.training.config import ConfigError

    sizes = tune.sizes_of(texts)
    if explain is None or len(sizes) > 1:
        given = " ".join(texts)
        raise ConfigError(f"given: info {given}; expected one size, and --explain LSTM or GRU")
    return sizes[0]


def _explained(cell: str, dtype: str, **call: Any) -> backends.Choice:
    import torch

    from fastrnn.training.config import ConfigError

    if cell not in ("LSTM", "GRU"):
        raise ConfigError(f"--explain is {cell!r}; expected LSTM or GRU")
    options.check_one_of("--dtype", dtype, options.DTYPES)
    try:
        return explain(cell, dtype=getattr(torch, dtype), **call)
    except (RuntimeError, ValueError) as error:  # no such device; the forced backend cannot
        raise ConfigError(str(error).splitlines()[0]) from None


def _facts() -> dict[str, Any]:
    """:func:`fastrnn.backend_info`, and what else a user may want to know of this machine."""
    return {
        **fastrnn.backend_info(),
        "python": platform.python_version(),
        "processor": tables.processor(),
        "processors": os.cpu_count() or 1,
        "gpus": _gpus(),
        "data": _data(),
        "measured": _measured(),
        "packages": {
            name: _version(name) for name in ("matplotlib", "safetensors", "typer", *OPTIONAL)
        },
    }


def _measured() -> dict[str, Any]:
    """The files of measured times of the devices that are here, and how many calls are in each."""
    import torch

    devices = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(len(_gpus())))]
    keys = {key for device in devices if (key := measured.table_of(device).key)}
    place = tables.folder()
    return {
        "folder": None if place is None else str(place),
        "classes": {key.device: len(tables.load(key)) for key in sorted(keys)},
        "switch": os.environ.get(measured.VARIABLE) or None,
    }


def _gpus() -> list[dict[str, Any]]:
    """The GPUs that torch sees."""
    import torch

    found = []
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        found.append({"name": facts.name, "memory_bytes": facts.total_memory})
    return found


def _data() -> dict[str, str | None]:
    """Where each dataset is; None where it is not."""
    from fastrnn.tasks import data
    from fastrnn.training.errors import DataError

    folder = data.default_folder()
    try:
        data.load("mnist")
        mnist = str(folder)
    except DataError:
        mnist = None
    bundled = util.find_spec("sklearn") is not None
    return {"mnist": mnist, "digits": "with scikit-learn" if bundled else None}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _described(facts: dict[str, Any]) -> str:
    """The lines to print for :func:`_facts`, each with what to do about what is missing."""
    from fastrnn.tasks import data
    from fastrnn.training import report

    def row(name: str, text: str) -> str:
        return _wrapped(text, f"{name}: ", 2)

    versions = [
        "python", *(name for name in ("torch", "cuda") if facts[name]), *facts["packages"]
    ]  # fmt: skip
    lines = [row("fastrnn", facts["fastrnn"])]
    known = {**facts, **facts["packages"]}
    lines.append(row("versions", ", ".join(f"{v} {known[v]}" for v in versions if known[v])))
    lines.append(
        row("processor", f"{facts['processor']}, {report.count(facts['processors'], 'core')}, "
            f"{report.count(facts['threads'], 'thread')} in use")
    )  # fmt: skip
    gpus = [f"{gpu['name']}, {gpu['memory_bytes'] / 2**30:.0f} GiB" for gpu in facts["gpus"]]
    none = "none that torch sees; a GPU needs a driver and torch's CUDA build"
    lines.append(row("GPUs", "; ".join(gpus) or none))
    for name, backend in facts["backends"].items():
        state = "available" if backend["available"] else f"not available: {backend['reason']}"
        others = [
            f"{k} {' '.join(v) if isinstance(v, list | tuple) else v}"
            for k, v in backend.items()
            if k not in ("available", "reason")
        ]
        lines.append(row(f"backend {name}", ", ".join([state, *others])))
    forced = facts["forced"] or "none, so each call gets the fastest (FASTRNN_BACKEND forces one)"
    lines.append(row("forced backend", forced))
    lines.append(row("measured times", _described_times(facts["measured"])))
    patched = "yes" if facts["patched"] else "no (fastrnn.patch_torch() does that)"
    lines.append(row("torch.nn patched", patched))
    folder = data.default_folder()
    mnist = facts["data"]["mnist"] or f"not in {folder}; fastrnn download mnist puts it there"
    lines.append(row("MNIST", mnist))
    digits = facts["data"]["digits"] or "missing: pip install 'fastrnn[tasks]'"
    lines.append(row("digits (8×8)", digits))
    lines += [
        row(name, f"not installed, for {use}: pip install 'fastrnn[{name}]'")
        for name, use in OPTIONAL.items()
        if not facts["packages"][name]
    ]
    return "\n".join(lines)


def _described_times(found: dict[str, Any]) -> str:
    counts = [f"{count} for {device}" for device, count in found["classes"].items() if count]
    text = f"{', '.join(counts)}, in {found['folder']}" if counts else "none (fastrnn tune)"
    return text + (f", {measured.VARIABLE}={found['switch']}" if found["switch"] else "")
