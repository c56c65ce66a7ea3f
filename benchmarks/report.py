"""Where results go: a JSON file, from which a stopped run resumes, and a table of ratios."""

import datetime
import json
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import torch
from rich.table import Table

import fastrnn

Row = dict[str, Any]  # one case's results, as in the JSON file


def environment(device: str) -> dict[str, Any]:
    """What a time depends on apart from the case: machine, threads, versions, commit."""
    return {
        "device": _device_name(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fastrnn": fastrnn.__version__,  # "unknown" in a tree that is not installed, see gpu.sh
        "commit": _commit() or "unknown",
    }


def _commit() -> str:
    """The repository's commit; empty if there is no repository or no git."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(
            describe, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return found.stdout.strip()


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (cpuinfo.read_text().splitlines() if cpuinfo.exists() else [])
        if line.startswith("model name")
    ]
    return (
        f"{names[0] if names else platform.processor()} ({torch.backends.cpu.get_cpu_capability()})"
    )


class ResultFile:
    """The rows measured so far, by case; written after each one, so that a killed run resumes."""

    def __init__(self, path: Path | None, facts: dict[str, Any]) -> None:
        """Reads ``path`` if it exists; None keeps the rows in memory only.

        Raises:
            ValueError: the file was measured under other ``facts``.
        """
        self._path = path
        self._facts = facts
        self.rows: dict[str, Row] = {}
        if path is None or not path.exists():
            return
        stored = json.loads(path.read_text())
        changed = [name for name, fact in facts.items() if stored["environment"].get(name) != fact]
        if changed:
            raise ValueError(
                f"{path} was measured with another {', '.join(changed)}, so new results cannot "
                "be added to it: remove it or name another file"
            )
        self.rows = {row["case"]: row for row in stored["results"]}

    def add(self, row: Row) -> None:
        """Adds the results of one case and writes the file."""
        self.rows[row["case"]] = row
        if self._path is None:
            return
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        content = {"environment": {**self._facts, "date": now}, "results": [*self.rows.values()]}
        unfinished = self._path.with_name(self._path.name + ".part")
        unfinished.write_text(json.dumps(content, indent=1) + "\n")
        unfinished.replace(self._path)


def ratio(row: Row, part: str = "total") -> float | None:
    """torch.nn's time divided by fastrnn's; None if there is none to report."""
    if row["wrong"] or not row["fastrnn"][part]:
        return None
    return float(row["torch"][part] / row["fastrnn"][part])


def line(row: Row) -> str:
    """The result of one case in one line."""
    if row["wrong"]:
        return f"{row['case']}: WRONG: {', '.join(row['wrong'])}"
    ours, theirs = (row[peer]["total"] * 1e3 for peer in ("fastrnn", "torch"))
    return f"{row['case']}: {theirs / ours:.2f} ({theirs:.4g} ms / {ours:.4g} ms, {row['backend']})"


def table(rows: Iterable[Row]) -> Table:
    """A line per case; a wrong result shows what is wrong instead of times."""
    rows = list(rows)
    shown = Table("case", "backend", title="torch.nn / fastrnn, medians")
    extras = [name for name in ("sgemm share", "memory ratio") if any(name in row for row in rows)]
    for heading in ("torch ms", "fastrnn ms", "forward", "backward", "ratio", *extras):
        shown.add_column(heading, justify="right")
    for row in rows:
        if row["wrong"]:
            shown.add_row(row["case"], row["backend"], "[red]WRONG[/]", ", ".join(row["wrong"]))
            continue
        times = [f"{row[peer]['total'] * 1e3:.4g}" for peer in ("torch", "fastrnn")]
        ratios = [ratio(row, part) for part in ("forward", "backward", "total")]
        values = [*ratios, *(row.get(name) for name in extras)]
        shown.add_row(row["case"], row["backend"], *times, *map(_number, values))
    return shown


def means(rows: Iterable[Row]) -> list[str]:
    """A line on the ratios of each cell and mode, and one on all of them."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        if (value := ratio(row)) is not None:
            cell, mode, *_ = row["case"].split()
            for name in (f"{cell} {mode}", "all"):
                groups.setdefault(name, []).append(value)
    return [
        f"{name}: geometric mean {geometric_mean(values):.2f}, least {min(values):.2f}, "
        f"of {len(values)}"
        for name, values in sorted(groups.items(), key=lambda group: group[0] == "all")
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
