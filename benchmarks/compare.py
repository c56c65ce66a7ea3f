"""``python -m benchmarks.compare``: times fastrnn's layers against torch.nn's.

Both run in turn in one process. Their results are compared first: where they disagree, no speed is
reported, and the exit status is 1. With --json, a run that was stopped continues when it is started
again.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

import fastrnn
from fastrnn.backends import BACKENDS

from . import heatmap, report
from .cases import CELLS, DTYPES, GRIDS, LAYERS, MODES, Case, expand, grid
from .measure import PEERS, Effort, backend_of, measure, sgemm_rate
from .memory import peak_memory


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line. Sizes take several values; every combination is measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=__doc__, formatter_class=_Help
    )
    case = parser.add_argument_group("cases")
    case.add_argument(
        "--grid", choices=GRIDS, help="these cases; cells, sizes and layers are ignored"
    )
    case.add_argument("--cells", nargs="+", choices=CELLS, default=LAYERS)
    case.add_argument("--hidden", nargs="+", type=int, default=[32, 64, 128])
    case.add_argument("--batch", nargs="+", type=int, default=[200])
    case.add_argument("--steps", nargs="+", type=int, default=[784])
    case.add_argument(
        "--input", nargs="+", type=_width, default=[1], help="sizes, or H for the hidden size"
    )
    case.add_argument("--layers", type=int, default=1)
    case.add_argument("--mode", nargs="+", choices=MODES, default=MODES)
    case.add_argument("--dtype", choices=DTYPES, default="float32")
    case.add_argument("--device", default="cpu")
    how = parser.add_argument_group("measuring")
    how.add_argument("--budget", type=float, default=2.0, help="seconds per case, roughly")
    how.add_argument("--rounds", type=int, default=3, help="at least this many, whatever they take")
    how.add_argument("--threads", type=int, help="for torch.set_num_threads")
    how.add_argument("--backend", choices=BACKENDS, help="force one of fastrnn's backends")
    how.add_argument(
        "--sgemm", action="store_true", help="report the share of a matrix product's rate"
    )
    how.add_argument(
        "--peak-memory", action="store_true", help="of a training step, in processes of their own"
    )
    how.add_argument("--json", type=Path, metavar="FILE", help="write results, or resume from them")
    how.add_argument(
        "--figure", type=Path, metavar="FILE", help="draw the ratios as a heat map, a PNG file"
    )
    return parser.parse_args(arguments)


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def _width(text: str) -> int | str:
    return text if text == "H" else int(text)


def cases_of(options: argparse.Namespace) -> list[Case]:
    """The cases that the command line selects."""
    if options.grid:
        return grid(options.grid, modes=options.mode, dtype=options.dtype, device=options.device)
    shapes = [(steps, width) for steps in options.steps for width in options.input]
    return list(
        expand(
            cells=options.cells,
            batches=options.batch,
            shapes=shapes,
            hiddens=options.hidden,
            modes=options.mode,
            layers=options.layers,
            dtype=options.dtype,
            device=options.device,
        )
    )


def run(case: Case, options: argparse.Namespace) -> report.Row:
    """Measures one case and returns its row of the report."""
    row: report.Row = {"case": case.key, "sizes": asdict(case), "backend": backend_of(case)}
    measured = measure(case, Effort(options.budget, options.rounds))
    row |= asdict(measured)
    if measured.fastrnn and options.sgemm:
        rate = sgemm_rate(case)
        row["sgemm flops"] = rate
        row["sgemm share"] = case.forward_flops / measured.fastrnn.forward / rate
    if measured.fastrnn and options.peak_memory and case.training:
        row["memory bytes"] = {peer: peak_memory(case, peer, options.backend) for peer in PEERS}
        row["memory ratio"] = row["memory bytes"]["torch"] / row["memory bytes"]["fastrnn"]
    return row


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparison; returns the exit status, 1 if any result was wrong."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    facts = report.environment(options.device) | {"backend": options.backend or "automatic"}
    try:
        cases = cases_of(options)
        results = report.ResultFile(options.json, facts)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    with fastrnn.backend(options.backend) if options.backend else contextlib.nullcontext():
        for number, case in enumerate(cases, 1):
            if case.key not in results.rows:
                results.add(run(case, options))
            print(f"[{number}/{len(cases)}] {report.line(results.rows[case.key])}", flush=True)
    rows = [results.rows[case.key] for case in cases]
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(report.table(rows))
    print(*report.means(rows), sep="\n")
    print(", ".join(f"{name} {fact}" for name, fact in facts.items()))
    failed = bool(options.figure) and heatmap.draw(rows, facts, options.figure)
    return int(failed or any(row["wrong"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
