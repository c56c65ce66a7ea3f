"""``fastrnn runs`` and ``fastrnn compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastrnn.cli import options
from fastrnn.training.config import ConfigError, suggestion
from fastrnn.training.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastrnn.tasks.listing import Entry

SORTS = ("name", "model", "data", "epochs", "best", "time", "state")
NONE = "–"
PICTURE = Path("comparison.png")


def runs(
    folder: Annotated[Path, typer.Argument(help="Folder to look in, at any depth.")] = Path("runs"),
    sort: Annotated[
        str, typer.Option(help=f"Order within a task: {', '.join(SORTS[:-1])} or {SORTS[-1]}.")
    ] = SORTS[0],
    as_json: options.Json = False,
) -> None:
    """List runs: how far each one is, and its best figure."""
    from fastrnn.tasks import NAMES, listing
    from fastrnn.training import report

    if sort not in SORTS:
        raise ConfigError(
            f"--sort is {sort!r}; expected one of {', '.join(SORTS)}{suggestion(sort, SORTS)}"
        )
    if folder != Path("runs") and not folder.is_dir():
        raise RunError(f"{folder} {'is not a folder' if folder.exists() else 'does not exist'}")
    entries = sorted(map(listing.read, listing.find(folder)), key=lambda e: _key(e, sort))
    output = report.Output()
    if as_json:
        output.json([entry.facts() for entry in entries])
        return
    if not entries:
        output.print(f"There are no runs in {folder}. To make one: fastrnn train classification")
        return
    groups = [[entry for entry in entries if entry.task == name] for name in (*NAMES, "")]
    output.print("\n\n".join(_table(group, folder) for group in groups if group))


def _key(entry: Entry, sort: str) -> Any:
    """What the runs are sorted by; where that is equal, by name."""
    from fastrnn.tasks.listing import LOWER_IS_BETTER

    best = entry.best
    if best is not None and entry.best_by not in LOWER_IS_BETTER:
        best = -best
    keys = {
        "name": "",
        "model": entry.model,
        "data": entry.config.dataset if entry.config else "",
        "epochs": -len(entry.history),
        "best": (best is None, best or 0.0),
        "time": -entry.seconds,
        "state": entry.state,
    }
    return keys[sort], str(entry.folder)


def _table(entries: Sequence[Entry], folder: Path) -> str:
    """A table of the runs of one task; below it, what is damaged."""
    from fastrnn.cli import tables
    from fastrnn.training import report

    rows = []
    for entry in entries:
        name = entry.folder.relative_to(folder)
        best, config = entry.best, entry.config
        figure = NONE if best is None else report.figure(entry.best_by, best)
        rows.append(
            [
                f"  {entry.folder if name == Path() else name}",
                entry.model or NONE,
                config.dataset if config else NONE,
                f"{len(entry.history)}/{config.epochs}" if config else NONE,
                figure + ("*" if best is not None and not entry.summary else " "),
                report.duration(entry.seconds) if entry.history else NONE,
                entry.state,
            ]
        )
    task, metric = entries[0].task, entries[0].best_by.replace("_", " ")
    header = ["  run", "model", "data", "epochs", f"{metric} ", "time", "state"]
    parts = [f"{task}, best {metric} on the test set" if task else "of no task that can be read"]
    parts.append(tables.lines(header, rows, right=(3, 4, 5)))
    if any(row[4].endswith("*") for row in rows):
        parts.append("  * on the validation set; the test set is measured at the end")
    parts += [f"  damaged: {entry.reason}" for entry in entries if entry.reason]
    return "\n".join(parts)


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of two or more runs of one task.")],
    out: Annotated[
        Path, typer.Option(help=f"Picture of the curves, or a folder for {PICTURE}; overwritten.")
    ] = PICTURE,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Draw the curves of runs in one picture, and print what differs."""
    from fastrnn.tasks import listing, registry
    from fastrnn.training import figures

    if len(runs) < 2:
        raise ConfigError("compare needs two or more runs: fastrnn compare RUN RUN...")
    for folder in runs:
        if not folder.is_dir():
            raise RunError(f"{folder} {'is not a folder' if folder.exists() else 'does not exist'}")
    entries = [listing.read(folder) for folder in runs]
    for entry in entries:
        if entry.state == listing.DAMAGED:
            raise RunError(entry.reason)
    if len(names := {entry.task for entry in entries}) > 1:
        raise ConfigError(f"these are runs of {' and '.join(sorted(names))}; expected one task")
    output, _ = options.outputs(verbose, quiet, as_json=as_json)
    picture = out / PICTURE if out.is_dir() or not out.suffix else out
    name = entries[0].best_by
    curves = {str(entry.folder): entry.validation for entry in entries}
    task = registry.get(entries[0].task)
    drawn = figures.draw(
        lambda: figures.comparison(
            curves, name, task.units.get(name), name in listing.LOWER_IS_BETTER
        ),
        picture,
        output.warn,
    )
    settings, results = _differing(entries), [_results(entry) for entry in entries]
    if as_json:
        output.json(
            {
                "runs": [entry.facts() for entry in entries],
                "settings": settings,
                "results": results,
                "picture": str(picture) if drawn else None,
            }
        )
        return
    output.print(_compared(entries, settings, results))
    if drawn:
        output.note(f"\nvalidation {name.replace('_', ' ')} of each epoch: {picture}")


def _differing(entries: Sequence[Entry]) -> dict[str, list[Any]]:
    """The settings in which runs differ, each with the runs' values."""
    import dataclasses

    settings = [
        {"preset": entry.preset, **(dataclasses.asdict(entry.config) if entry.config else {})}
        for entry in entries
    ]
    every = {name: [each[name] for each in settings] for name in settings[0]}
    return {name: values for name, values in every.items() if len(set(map(str, values))) > 1}


def _results(entry: Entry) -> dict[str, Any]:
    """What a run has reached, by name."""
    found: dict[str, Any] = {
        "state": entry.state,
        "epochs done": len(entry.history),
        "best epoch": entry.best_epoch or None,
    }
    if entry.best_epoch:
        row = entry.history[entry.best_epoch - 1]
        found |= {k.replace("_", " "): v for k, v in row.items() if k.startswith("validation_")}
    tested = {k: v for k, v in entry.summary.items() if k.startswith("test_")}
    found |= {k.replace("_", " "): v for k, v in tested.items()}
    found["parameters"] = entry.summary.get("parameters")
    found["training seconds"] = entry.seconds
    speed = [row["images_per_second"] for row in entry.history if "images_per_second" in row]
    found["images per second"] = sum(speed) / len(speed) if speed else None
    found["backend"] = entry.summary.get("backend")
    return found


def _compared(
    entries: Sequence[Entry], settings: dict[str, list[Any]], results: Sequence[dict[str, Any]]
) -> str:
    """The table of what differs, in as many parts as it takes to fit the width."""
    from fastrnn.cli import tables
    from fastrnn.training.report import COLUMNS

    letters = [_letters(number) for number in range(len(entries))]
    names = list(dict.fromkeys(name for result in results for name in result))
    rows = [[name.replace("_", " "), *map(_text, values)] for name, values in settings.items()] + [
        [name, *(_text(result.get(name), name) for result in results)] for name in names
    ]
    first = max(len(row[0]) for row in rows)
    parts = ["\n".join(f"{k}  {entry.folder}" for k, entry in zip(letters, entries, strict=True))]
    start = 0
    while start < len(entries):
        end, width = start, first
        while end < len(entries):
            width += tables.GAP + max(len(row[end + 1]) for row in rows)
            if width > COLUMNS and end > start:
                break
            end += 1
        shown = [[row[0], *row[start + 1 : end + 1]] for row in rows]
        right = tuple(range(1, end - start + 1))
        parts.append(tables.lines(["", *letters[start:end]], shown, right))
        start = end
    return "\n\n".join(parts)


def _letters(number: int) -> str:
    """A to Z, then AA, AB and so on."""
    first, last = divmod(number, 26)
    return (_letters(first - 1) if first else "") + chr(ord("A") + last)


def _text(value: Any, name: str = "") -> str:
    """A setting or, if it has a name, a result."""
    from fastrnn.training import report

    if value is None:
        return NONE
    if name == "training seconds":
        return report.duration(value)
    if name == "images per second" or (name and isinstance(value, int)):
        return f"{value:,.0f}"
    if name and isinstance(value, float):
        return report.figure(name, value)
    return f"{value:g}" if isinstance(value, float) else str(value)
