"""``python -m benchmarks.engines``: inference on a CPU beside other engines.

Runs torch.nn, torch.compile of it, onnxruntime, OpenVINO and jax.lax.scan beside fastrnn, plain and
frozen: one float32 layer, with initial states given and final states returned. Each engine has a
process of its own, and the others are stopped while one is timed: some keep their threads spinning
after a call. Results are compared with torch.nn in float64 first. An engine that is not installed
is named and left out:

    pip install -e ".[engines]"

With --json, a run that was stopped continues when it is started again. The exit status is 1 if an
engine's numbers are wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from fastrnn.examples import TOLERANCES

from . import engine_worker, report
from .cases import LAYERS, Case

SIZES = (  # B, T, I, H
    (1, 1, 64, 256), (1, 5, 64, 256), (1, 28, 28, 128), (1, 784, 1, 32), (1, 784, 1, 128),
    (1, 100, 64, 256), (1, 100, 512, 512), (8, 100, 80, 256), (32, 50, 128, 128),
    (64, 100, 256, 256), (64, 50, 512, 512), (16, 30, 1024, 1024), (200, 784, 1, 32),
    (200, 784, 1, 64), (200, 784, 1, 128),
)  # fmt: skip
OURS = ("fastrnn", "frozen")
SHORT = {"onnxruntime": "onnxrt"}  # headings
LONG, BEHIND = 28, 1.5  # frozen layers are to be ahead from so many steps on, and near it below
FOREIGN = 10  # times the tolerance for engines with approximations of their own
SHORTEST_SAMPLE = 5e-3  # seconds
MOST_ROUNDS = 50


class Worker:
    """The process of one engine, stopped except while it answers."""

    def __init__(self, engine: str, threads: int) -> None:
        command = [sys.executable, "-m", engine_worker.__name__, engine, str(threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        self._first = True

    def ask(self, command: str) -> dict[str, Any]:
        """The answer to a command."""
        assert self._process.stdin is not None
        if self._first:  # how the start went
            self._first = False
            if "failed" in (started := self._answer()):
                return started
        self._signal(signal.SIGCONT)
        try:
            print(command, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            return {"failed": "the process has ended"}
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            return {"failed": f"the process ended with status {self._process.wait()}"}
        self._signal(signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _signal(self, number: int) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def close(self) -> None:
        """Ends the process and those that it has started."""
        self._signal(signal.SIGKILL)
        with self._process:  # closes the pipes
            pass


def write_problem(case: Case, path: Path) -> None:
    """Writes a case's weights, input and exact results for the workers."""
    torch.manual_seed(0)
    layer = getattr(nn, case.cell)(case.input, case.hidden)
    x = torch.randn(case.steps, case.batch, case.input)
    state = torch.zeros(1, case.batch, case.hidden)
    arrays = {"x": x, "h0": state, **({"c0": state} if case.cell == "LSTM" else {})}
    names = ("w_ih", "w_hh", "b_ih", "b_hh")
    arrays |= dict(zip(names, (p.detach() for p in layer.parameters()), strict=True))
    with torch.no_grad():
        y, final = layer.double()(x.double())
    arrays |= {"y": y, "h_n": final} if case.cell == "GRU" else {"y": y}
    if case.cell == "LSTM":
        arrays |= {"h_n": final[0], "c_n": final[1]}
    exact = ("y", "h_n", "c_n")
    given: Any = {n: (t if n in exact else t.float()).numpy() for n, t in arrays.items()}
    np.savez(path, cell=case.cell, **given)


def measure(case: Case, workers: dict[str, Worker], budget: float) -> report.Row:
    """Compares the engines' numbers, then times in turn those that are right."""
    row: report.Row = {"case": case.key, "sizes": asdict(case), "wrong": [], "failed": {}}
    errors: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "problem.npz"
        write_problem(case, path)
        for engine, worker in workers.items():
            answer = worker.ask(f"problem {path}")
            if "failed" in answer:
                row["failed"][engine] = answer["failed"]
            else:
                errors[engine] = answer["error"]
    tolerance = TOLERANCES[case.dtype][0]
    for engine, error in errors.items():
        package = engine_worker.ENGINES[engine][0]
        if not error <= tolerance * (1 if package in ("torch", "fastrnn") else FOREIGN):
            row["wrong"].append(f"{engine}: relative error {error:.1e}")
    row["errors"] = errors
    timed = [e for e in errors if not any(wrong.startswith(f"{e}:") for wrong in row["wrong"])]
    samples: dict[str, list[float]] = {engine: [] for engine in timed}

    def sample() -> None:
        for engine in [*samples]:
            answer = workers[engine].ask(f"time {SHORTEST_SAMPLE}")
            if "seconds" in answer:
                samples[engine].append(answer["seconds"])
            else:
                row["failed"][engine] = answer["failed"]
                del samples[engine]

    sample()  # warms up, and says how long a round takes
    cost = sum(max(SHORTEST_SAMPLE, times.pop()) for times in samples.values())
    rounds = min(MOST_ROUNDS, max(3, int(budget / cost))) if samples else 0
    for _ in range(rounds):
        sample()
    row["seconds"] = {engine: median(times) for engine, times in samples.items()}
    row["rounds"] = rounds
    return row


def ahead(row: report.Row) -> float | None:
    """The fastest other engine's time divided by the frozen layer's; None if one is lacking."""
    others = [seconds for engine, seconds in row["seconds"].items() if engine not in OURS]
    frozen = row["seconds"].get("frozen")
    return min(others) / frozen if others and frozen else None


def table(rows: Iterable[report.Row], engines: Sequence[str]) -> list[str]:
    """Lines of at most 80 columns: milliseconds of a call, and how far frozen layers are ahead."""
    headings = [SHORT.get(engine, engine) for engine in engines]
    widths = [max(6, len(heading)) for heading in headings]

    def line(name: str, cells: Iterable[str], last: str) -> str:
        columns = [f" {cell:>{width}}" for cell, width in zip(cells, widths, strict=True)]
        return "".join([f"{name:20}", *columns, f" {last:>5}"])

    lines = [line("B,T,I,H", headings, "ahead")]
    for row in rows:
        fields = ("cell", "batch", "steps", "input", "hidden")
        cell, *sizes = (str(row["sizes"][field]) for field in fields)
        ratio = ahead(row)
        cells = [_cell(row, engine) for engine in engines]
        lines.append(
            line(f"{cell} {','.join(sizes)}", cells, "" if ratio is None else f"{ratio:.2f}")
        )
    return lines


def _cell(row: report.Row, engine: str) -> str:
    """An engine's milliseconds in three digits, or why there are none."""
    if engine not in row["seconds"]:
        return "failed" if engine in row["failed"] else "wrong" if engine in row["errors"] else "-"
    value = row["seconds"][engine] * 1e3
    digits = next((d for least, d in ((100, 0), (10, 1), (1, 2), (0.1, 3)) if value >= least), 4)
    return f"{value:.{digits}f}"


def summary(rows: Iterable[report.Row]) -> list[str]:
    """How many rows frozen layers must win, and do."""
    ratios = [(row["sizes"]["steps"], ahead(row)) for row in rows]
    known = [(steps, ratio) for steps, ratio in ratios if ratio is not None]
    long = [ratio for steps, ratio in known if steps >= LONG]
    short = [ratio for steps, ratio in known if steps < LONG]
    won, near = sum(r >= 1 for r in long), sum(r >= 1 / BEHIND for r in short)
    return [
        f"T >= {LONG}: frozen is ahead of every engine in {won} of {len(long)} rows",
        f"T < {LONG}: at most {BEHIND} times the fastest in {near} of {len(short)} rows",
    ]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engines",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cells", nargs="+", choices=LAYERS, default=LAYERS)
    parser.add_argument(
        "--sizes", nargs="+", type=_sizes, default=SIZES, metavar="B,T,I,H",
        help="instead of the usual 15",
    )  # fmt: skip
    parser.add_argument(
        "--engines", nargs="+", choices=engine_worker.ENGINES, default=[*engine_worker.ENGINES]
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--budget", type=float, default=2.0, help="seconds per row, roughly")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write results, or resume")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table")
    return parser.parse_args(arguments)


def _sizes(text: str) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in text.split(","))
    if len(numbers) != 4:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form B,T,I,H")
    return numbers


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparison; returns the exit status."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # stopped workers must be ended
    torch.set_num_threads(options.threads)
    versions: dict[str, str] = {}
    for engine in options.engines:
        package = engine_worker.ENGINES[engine][0]
        try:
            versions[engine] = version(package)
        except PackageNotFoundError:
            print(f"{engine}: not run: there is no package {package}", flush=True)
    if not versions:
        raise SystemExit("no engine is left to run")
    facts = report.environment("cpu") | {"threads": options.threads, "engines": versions}
    try:
        results = report.ResultFile(options.json, facts)
        cases = [Case(cell, *sizes) for sizes in options.sizes for cell in options.cells]
    except ValueError as error:
        raise SystemExit(str(error)) from None
    workers: dict[str, Worker] = {}
    try:
        for number, case in enumerate(cases, 1):
            if case.key not in results.rows:
                workers = workers or {e: Worker(e, options.threads) for e in versions}
                results.add(measure(case, workers, options.budget))
            row = results.rows[case.key]
            notes = [*row["wrong"], *(f"{e}: {why}" for e, why in row["failed"].items())]
            print(f"[{number}/{len(cases)}] {case.key}", *notes, sep="; ", flush=True)
    finally:
        for worker in workers.values():
            worker.close()
    rows = [results.rows[case.key] for case in cases]
    text = [
        "ms of a call; ahead: the fastest other engine's time / frozen's",
        *table(rows, [*versions]),
        *summary(rows),
        ", ".join(f"{name} {fact}" for name, fact in facts.items() if name != "engines"),
        ", ".join(f"{name} {fact}" for name, fact in versions.items()),
    ]
    print(*text, sep="\n")
    if options.out:
        options.out.write_text("\n".join(text) + "\n")
    return int(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
