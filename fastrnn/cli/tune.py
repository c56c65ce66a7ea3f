"""``fastrnn tune``: measures ahead which backend runs a call."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from fastrnn import backends, measured, tables
from fastrnn.cli import options
from fastrnn.training.config import ConfigError

if TYPE_CHECKING:
    import torch

CELLS = ("LSTM", "GRU")
# B, T and I of the calls that are measured without sizes; I is H where it is 0.
_COMMON = ((1, 1, 0), (1, 64, 0), (16, 128, 0), (64, 128, 0), (200, 784, 1))
_COMMON_HIDDEN = (32, 64, 128, 256, 512)
_MOST = 1 << 31


class Size(NamedTuple):
    """B, T, I and H of a call."""

    batch: int
    steps: int
    input_size: int
    hidden_size: int

    def __str__(self) -> str:
        return "x".join(map(str, self))


def sizes_of(texts: Sequence[str]) -> list[Size]:
    """Sizes as a user gives them: ``200x784x1x128``, or the four numbers one by one.

    Raises:
        ConfigError: they are given in another form.
    """
    words = " ".join(texts)
    numbers = re.split(r"[x×\s]+", words.strip())
    if not all(re.fullmatch(r"[1-9][0-9]{0,9}", number) for number in numbers):
        raise ConfigError(f"the size is {words!r}; expected BxTxIxH, as in 200x784x1x128")
    values = [int(number) for number in numbers]
    alike = all(len(re.split("[x×]", text)) in (1, 4) for text in texts)
    if len(values) % 4 or not alike or max(values) >= _MOST:
        raise ConfigError(f"the size is {words!r}; expected B, T, I and H, as in 200x784x1x128")
    return [Size(*values[i : i + 4]) for i in range(0, len(values), 4)]


def checked_device(name: str) -> torch.device:
    """The device of this name, with a GPU's number.

    Raises:
        ConfigError: there is none, or it is one on which all is torch.nn's.
    """
    import torch

    from fastrnn.training import report

    if name == "auto":
        name = torch.device("cuda" if torch.cuda.is_available() else "cpu").type
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", name):
        raise ConfigError(f"--device is {name!r}; expected auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == torch.device("cpu").type:
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = device.index or 0
    if index >= count:
        raise ConfigError(f"--device is {name!r}; torch sees {report.count(count, 'GPU')}")
    return torch.device(device.type, index)


def tune(
    sizes: Annotated[
        list[str] | None,
        typer.Argument(
            help="Calls as BxTxIxH: batch, steps, features, units.",
            show_default="25 common ones",
        ),
    ] = None,
    cell: Annotated[str, typer.Option(help="LSTM, GRU or both.")] = "both",
    mode: Annotated[str, typer.Option(help="inference, training or both.")] = "both",
    dtype: Annotated[str, typer.Option(help=options.DTYPES_HELP)] = options.DTYPES[0],
    packed: Annotated[bool, typer.Option("--packed", help="Packed sequences.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Measure which backend is the fastest, for later calls to use.

    A file for this device and these versions keeps the times of all backends whose numbers are
    right. Programs read it when they start, and use it for calls of about the same sizes.
    """
    from fastrnn import measuring
    from fastrnn.training import report

    output, bar = options.outputs(verbose, quiet, as_json=as_json)
    where = checked_device(device)
    calls = _calls(sizes, cell, mode, dtype, packed, where)
    table = measured.use(where)
    if table.key is None:
        raise ConfigError(f"--device is {device!r}, which cannot be measured")
    if not as_json:
        output.note(report.joined([f"measuring on {table.key.device}", *_context(where)]))
    found: list[tuple[backends.Call, tables.Result | None]] = []
    started = time.monotonic()
    with bar.progress("measuring", len(calls), unit="calls") as show:
        for call in calls:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found.append((call, measuring.measure(call, table)))
            for warning in caught:
                bar.warn(str(warning.message).removeprefix("fastrnn: "))
            bar.detail(_details(*found[-1]))
            show(len(found))
    seconds = time.monotonic() - started
    results = {tables.class_of(call): result for call, result in found if result is not None}
    new: Any = {kind: result for kind, result in results.items() if kind is not None}
    if as_json:
        rows = [_as_json(call, result) for call, result in found]
        file = str(tables.save(table.key, new)) if new else None
        output.json({"for": table.key._asdict(), "file": file, "calls": rows})
        return
    output.print(_table(found))
    if new:
        path = tables.save(table.key, new)
        output.note(
            f"{report.count(len(calls), 'call')} in {report.duration(seconds)}, kept in:\n{path}"
        )


def _calls(
    sizes: Sequence[str] | None,
    cell: str,
    mode: str,
    dtype: str,
    packed: bool,
    device: torch.device,
) -> list[backends.Call]:
    """What is to be measured.

    Raises:
        ConfigError: an option has a wrong value.
    """
    import torch

    cells = {each.lower(): [each] for each in CELLS} | {"both": list(CELLS)}
    modes = {"inference": [False], "training": [True], "both": [False, True]}
    options.check_one_of("--cell", cell.lower(), tuple(cells), cell)
    options.check_one_of("--mode", mode, tuple(modes))
    options.check_one_of("--dtype", dtype, options.DTYPES)
    if sizes:
        wanted = sizes_of(sizes)
    else:
        wanted = [Size(b, t, i or h, h) for h in _COMMON_HIDDEN for b, t, i in _COMMON]
    on_cpu = device.type == torch.device("cpu").type
    return [
        backends.Call(
            cell=name,
            device=device.type,
            dtype=getattr(torch, dtype),
            training=training,
            in_one_op=on_cpu,
            packed=packed,
            device_index=device.index,
            **size._asdict(),
        )
        for name in cells[cell.lower()]
        for size in wanted
        for training in modes[mode]
    ]


def _context(device: torch.device) -> list[str]:
    import torch

    if device.type != torch.device("cpu").type:
        return []
    threads = torch.get_num_threads()
    return [f"{threads} thread{'s' * (threads > 1)}"]


def _words(call: backends.Call) -> tuple[str, str]:
    size = Size(call.batch, call.steps, call.input_size, call.hidden_size)
    return f"{call.cell} {size}", "training" if call.training else "inference"


def _details(call: backends.Call, result: tables.Result | None) -> str:
    """What -v prints when a call was measured: the median times, fastest first, and failures."""
    from fastrnn.training import report

    start = " ".join(_words(call)) + ":"
    if result is None:
        return f"{start} not measured; torch.nn's code runs it"
    times = sorted(result.microseconds.items(), key=lambda item: item[1])
    medians = [f"{name} {tables.readable(time)}" for name, time in times]
    medians[-1] += f"; chosen: {result.backend}"
    failures = [f"  {name} {why}" for name, why in result.rejected.items()]
    return "\n".join([report.joined(medians, start, "  "), *failures])


def _table(found: Sequence[tuple[backends.Call, tables.Result | None]]) -> str:
    """The times as a table; a dash stands for a backend that cannot run a call."""
    from fastrnn.cli import tables as text

    names = [
        name
        for name in backends.BACKENDS
        if any(result and name in (*result.microseconds, *result.rejected) for _, result in found)
    ] or [backends.TORCH.name]
    rows = []
    for call, result in found:
        times = {} if result is None else result.microseconds
        rejected = {} if result is None else result.rejected
        cells = [
            tables.readable(times[name]) if name in times
            else rejected[name].partition(" ")[0] if name in rejected else "-"
            for name in names
        ]  # fmt: skip
        chosen = backends.TORCH.name if result is None else result.backend
        rows.append([*_words(call), *cells, chosen])
    right = range(2, 2 + len(names))
    return text.lines(["call, BxTxIxH", "mode", *names, "chosen"], rows, list(right))


def _as_json(call: backends.Call, result: tables.Result | None) -> dict[str, Any]:
    return {
        "cell": call.cell,
        "batch": call.batch,
        "steps": call.steps,
        "input_size": call.input_size,
        "hidden_size": call.hidden_size,
        "training": call.training,
        "backend": backends.TORCH.name if result is None else result.backend,
        "microseconds": {} if result is None else dict(result.microseconds),
        "rejected": {} if result is None else dict(result.rejected),
    }
