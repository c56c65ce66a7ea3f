"""``python -m benchmarks.import_time``: what ``import fastrnn`` costs on top of ``import torch``.

Each round starts a fresh process, imports torch, and times the import of fastrnn after it. The exit
status is 1 if the median is above the bar.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from statistics import median

BAR = 40.0  # milliseconds
SCRIPT = """
import time
import torch
start = time.perf_counter()
import fastrnn
print(time.perf_counter() - start)
"""


def milliseconds() -> float:
    """The time of ``import fastrnn`` in a new process that has imported torch."""
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], check=True, stdout=subprocess.PIPE, text=True
    )
    return float(run.stdout) * 1e3


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints the median; returns the exit status, 1 if it is above the bar."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.import_time", description=__doc__)
    parser.add_argument("--rounds", type=int, default=11, help="processes to start (default: 11)")
    rounds = max(1, parser.parse_args(arguments).rounds)
    milliseconds()  # fills the disk's cache and writes bytecode
    times = [milliseconds() for _ in range(rounds)]
    print(
        f"import fastrnn after import torch: {median(times):.1f} ms, median of {rounds} "
        f"({min(times):.1f} to {max(times):.1f}); at most {BAR:.0f} ms allowed"
    )
    return int(median(times) > BAR)


if __name__ == "__main__":
    raise SystemExit(main())
