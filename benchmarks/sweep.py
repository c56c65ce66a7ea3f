"""``python -m benchmarks.sweep``: times fastrnn's layers against torch.nn's at random shapes.

Both run in turn in one process, and the least times count, so that other processes disturb a ratio
little. Numbers are checked first. A shape at which fastrnn is slower is measured again, each time
for longer. The exit status is 1 if results differ or if a shape remains below the bar.
"""

import argparse
import contextlib
import datetime
import math
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import geometric_mean, median

import torch

import fastrnn
from fastrnn.backends import BACKENDS

from . import report
from .cases import LAYERS, MODES, Case
from .clocks import HostClock
from .measure import BAR, Times, backend_of, build, check, least_in_turn, no_garbage_collection

RANGES = ((1, 256), (1, 800), (1, 1024), (8, 1024))  # of B, T, I and H
CALLS = 3  # of one peer in a row, if short; the first finds the other peer's data in the caches


@dataclass(frozen=True)
class Shape:
    """A case and the number of threads that run it."""

    case: Case
    threads: int

    @property
    def key(self) -> str:
        """The shape in one readable line."""
        return f"{self.case.key} {self.threads} thread{'s' if self.threads > 1 else ''}"


def draw(seed: int, shapes: int, bfloat16: int, most_flops: float) -> Iterator[Shape]:
    """Random shapes: sizes log-uniform in RANGES, all else uniform; the last ones in bfloat16.

    Args:
        seed: equal seeds draw equal shapes.
        shapes: how many.
        bfloat16: how many of them are in bfloat16; the others are in float32.
        most_flops: of a call; larger shapes are drawn again.
    """
    generator = random.Random(seed)
    for number in range(shapes):
        dtype = "bfloat16" if number >= shapes - bfloat16 else "float32"
        while True:
            batch, steps, inputs, hidden = (
                round(math.exp(generator.uniform(*map(math.log, ends)))) for ends in RANGES
            )
            case = Case(
                generator.choice(LAYERS),
                *(batch, steps, inputs, hidden),
                mode=generator.choice(MODES),
                dtype=dtype,
                packed=generator.random() < 0.5,
            )
            threads = generator.choice((1, 2))
            if case.forward_flops * (3 if case.training else 1) <= most_flops:
                yield Shape(case, threads)
                break


def measure(shape: Shape, budget: float, tries: int) -> report.Row:
    """One shape's row of the report; see :func:`least_in_turn`."""
    torch.set_num_threads(shape.threads)
    row: report.Row = {
        "case": shape.key,
        "sizes": asdict(shape.case),
        "threads": shape.threads,
        "backend": backend_of(shape.case),
        "wrong": (),
    }
    theirs, ours = build(shape.case, "torch"), build(shape.case, "fastrnn")
    clock = HostClock()
    with no_garbage_collection():
        first, row["wrong"] = check(shape.case, theirs, ours, clock)
        if row["wrong"]:
            return row
        calls = CALLS if sum(times.total for times in first) < budget / CALLS else 1
        *least, number = least_in_turn(
            lambda: min(theirs.call(clock)[0].total for _ in range(calls)),
            lambda: min(ours.call(clock)[0].total for _ in range(calls)),
            budget=budget,
            tries=tries,
            rounds=2,
        )
    for peer, seconds in zip(("torch", "fastrnn"), least, strict=True):
        row[peer] = asdict(Times(forward=math.nan, backward=math.nan, total=seconds))
    row["tries"] = number
    return row


def summary(rows: Sequence[report.Row]) -> list[str]:
    """What the ratios of all rows amount to, the lowest first."""
    ratios = sorted(
        (value, row["case"]) for row in rows if (value := report.ratio(row)) is not None
    )
    wrong = [row["case"] for row in rows if row["wrong"]]
    if not ratios:
        return [f"{len(wrong)} wrong"]
    values = [value for value, _ in ratios]
    below = [f"  {value:.2f} {case}" for value, case in ratios if value < BAR]
    return [
        *(f"wrong: {case}" for case in wrong),
        f"below {BAR}: {len(below)} of {len(rows)}",
        *below,
        f"lowest {values[0]:.2f} ({ratios[0][1]}), median {median(values):.2f}, "
        f"geometric mean {geometric_mean(values):.2f}",
    ]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweep",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shapes", type=int, default=300)
    parser.add_argument("--bfloat16", type=int, help="shapes in bfloat16; by default a fifth")
    parser.add_argument("--budget", type=float, default=0.3, help="seconds per shape and try")
    parser.add_argument("--tries", type=int, default=5, help="at a shape below the bar")
    parser.add_argument("--gflop", type=float, default=10, help="of a call at most")
    parser.add_argument("--backend", choices=BACKENDS, help="force one of fastrnn's backends")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write results, or resume")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the sweep; returns the exit status."""
    options = parse(arguments)
    bfloat16 = options.shapes // 5 if options.bfloat16 is None else options.bfloat16
    facts = report.environment("cpu") | {"backend": options.backend or "automatic"}
    del facts["threads"]  # each shape has its own
    shapes = list(draw(options.seed, options.shapes, bfloat16, options.gflop * 1e9))
    try:
        results = report.ResultFile(options.json, facts)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    with fastrnn.backend(options.backend) if options.backend else contextlib.nullcontext():
        for number, shape in enumerate(shapes, 1):
            if shape.key not in results.rows:
                results.add(measure(shape, options.budget, options.tries))
            print(f"[{number}/{len(shapes)}] {report.line(results.rows[shape.key])}", flush=True)
    rows = [results.rows[shape.key] for shape in shapes]
    print(*summary(rows), sep="\n")
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    print(", ".join(f"{name} {fact}" for name, fact in {**facts, "date": today}.items()))
    return int(any(row["wrong"] or (report.ratio(row) or 0) < BAR for row in rows))


if __name__ == "__main__":
    sys.exit(main())
