"""Which cache lines the Triton kernels prefetch, computed by Triton's interpreter.

    TRITON_INTERPRET=1 python tests/test_triton_prefetch.py      how the lines differ, as JSON

The variable has to be set before Triton is imported, so the test runs this file as a process of its
own.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import triton.language as tl

AHEAD = 8


def lines_kernel(
    wide, dy, states, found, B, steps,
    WIDTH: tl.constexpr, OTHERS: tl.constexpr,
    BACKWARDS: tl.constexpr, H: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Writes the addresses that a walk prefetches in each turn to found [program, turn, thread]."""
    first = tl.program_id(0).to(tl.int64) * P.rows
    others = (dy, states) if OTHERS else ()
    lines, distance, limit = cache_lines(wide, WIDTH, others, first, B, steps, BACKWARDS, H, P)
    found += tl.program_id(0) * (steps // 2) * (P.lanes * P.warps)
    for step in range(0, steps - 1, 2):
        at = found + step // 2 * (P.lanes * P.warps) + tl.arange(0, P.lanes * P.warps)
        tl.store(at, tl.where(step < limit, lines, 0))
        lines += distance


def wanted(
    arrays: Sequence[torch.Tensor], steps: int, batch: int, rows: int, backwards: bool
) -> Iterator[int]:
    """The first address of each line that the steps from AHEAD on read, program by program."""
    for step, first in itertools.product(range(AHEAD, steps), range(0, batch, rows)):
        time = steps - 1 - step if backwards else step
        for array in arrays:
            block = array.view(steps, batch, -1)[time, first : first + rows]
            size = block.numel() * block.element_size()
            yield from range(block.data_ptr(), block.data_ptr() + size, 128)


def differences() -> dict[str, list[int]]:
    """Of each case, the lines that are missing and those that are too many, in bytes."""
    from fastrnn.kernels.triton.language import gluon
    from fastrnn.kernels.triton.plans import Processor, choose_plan

    kernel = gluon.jit(lines_kernel)
    results = {}
    sizes = itertools.product(
        ((5, 1), (32, 17), (64, 30), (100, 23), (128, 2)), (torch.float32, torch.bfloat16),
        (9, 12), (False, True), (1, 132), ("forward", "backward"),
    )  # fmt: skip
    for (hidden, batch), dtype, steps, backwards, sms, way in sizes:
        if dtype == torch.float32 and hidden > 64:
            continue
        plan = choose_plan(hidden, batch, dtype, Processor(sms), way)
        back, width = way == "backward", 4 if way == "backward" else 3
        arrays = [torch.empty(steps * batch, n * hidden, dtype=dtype) for n in (width, 1, 1)]
        programs = -(-batch // plan.rows)
        found = torch.zeros(programs, steps // 2, plan.lanes * plan.warps, dtype=torch.int64)
        kernel[(programs,)](*arrays, found, batch, steps, width, back, backwards, hidden, plan)
        prefetched = sorted(address for address in found.flatten().tolist() if address)
        read = arrays if back else arrays[:1]
        lines = sorted(wanted(read, steps, batch, plan.rows, backwards))
        name = f"{way}, H {hidden}, B {batch}, T {steps}, {dtype}, {backwards}, {sms} SMs"
        start = arrays[0].data_ptr()
        results[name] = (
            [] if prefetched == lines else [a - start for a in set(prefetched) ^ set(lines)] or [0]
        )
    return results


def test_every_line_that_a_later_step_reads_is_prefetched_once_and_no_other() -> None:
    script = Path(__file__)
    done = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(script.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 128
    assert not {name: lines for name, lines in found.items() if lines}


if __name__ == "__main__":
    from fastrnn.kernels.triton.prefetch import cache_lines

    print(json.dumps(differences()))
