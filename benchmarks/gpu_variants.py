"""Time the Triton kernels under every plan on a GPU, to check and tune the tables of plans.

    python -m benchmarks.gpu_variants --json FILE      device time of each plan, in µs per step
    python -m benchmarks.gpu_variants --steps ...      the same of layers too large to stay on chip
    python -m benchmarks.gpu_variants --smoke          each form once, small, for compute-sanitizer

Times are those of the kernels alone, without the products around them, replayed from a CUDA graph;
the median of 20.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16)


def plans(hidden: int, dtype: torch.dtype) -> Iterator[Any]:
    """Every plan that can keep a hidden size on chip."""
    from fastrnn.kernels.triton.plans import Plan

    units = next(u for u in (32, 64, 128) if hidden <= u)
    if units < 128:
        math = "exact" if dtype == torch.float32 else "fast"
        for split in {32: (1, 2, 4), 64: (2, 4)}[units]:
            for rows in (1, 2):
                warps = units * split // 32
                yield Plan(units, rows, split, warps, math, free=rows == 1)
    if dtype != torch.float32:
        for rows in (4, 8):
            yield Plan(units, rows, 0, units // 16, "fast", free=True)


def calls(
    cell: str, dtype: torch.dtype, hidden: int, batch: int, steps: int, device: str = "cuda"
) -> dict[str, Callable[[Any], None]]:
    """A kernel's launch for each of inference, forward and backward, given a plan."""
    from fastrnn.kernels.contract import CELLS
    from fastrnn.kernels.triton.launch import launch
    from fastrnn.kernels.triton.sequence import backward_kernel, forward_kernel

    lstm, gates = cell == "lstm", CELLS[cell].gates

    def new(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype) * 0.3

    n = steps * batch
    x, w_ih, w_hh = new(n, 1), new(gates * hidden, 1), new(gates * hidden, hidden)
    b_ih, b_hh = new(gates * hidden), new(gates * hidden)
    y, saved, dgates = new(n, hidden), new(n, 4 * hidden), new(n, 4 * hidden)
    h0, h_n, dh_n, dh0 = (new(batch, hidden) for _ in range(4))
    c0, c_n, dc_n, dc0 = (new(batch, hidden) if lstm else None for _ in range(4))
    dy, cells = new(n, hidden), new(n, hidden) if lstm else None
    size = (None, None, steps, batch)

    def forward(kept: tuple[Tensor | None, ...], plan: Any) -> None:
        tensors = (x, w_ih, w_hh, b_ih, b_hh, h0, c0, y, h_n, c_n, *kept)
        tail = (*size, 0, 1, hidden, plan, lstm, False)
        launch(forward_kernel, plan, batch, x.device, *tensors, *tail)

    def backward(plan: Any) -> None:
        before = (c0, cells) if lstm else (h0, y)
        biases, weights = plan.sums(CELLS[cell], x.shape[1])
        sums = (-(-batch // plan.rows), 4 + (gates if weights else 0), hidden)
        totals = x.new_empty(sums, dtype=torch.float32) if biases else None
        given = (x if weights else None, totals)
        tensors = (dy, dh_n, dc_n, w_hh, *before, saved, dgates, dh0, dc0, *given)
        tail = (*size, 0, hidden, plan, lstm, False)
        launch(backward_kernel, plan, batch, x.device, *tensors, *tail)

    return {
        "inference": lambda plan: forward((None, None), plan),
        "forward": lambda plan: forward((saved, cells), plan),
        "backward": backward,
    }


def seconds(call: Callable[[], object]) -> float:
    """Device time of a call."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    times = []
    for _ in range(20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def measure() -> Iterator[dict[str, Any]]:
    """Every plan at the sizes that lead to different ones; the chosen one is marked."""
    from fastrnn.kernels.triton.launch import processor
    from fastrnn.kernels.triton.plans import choose_plan

    device = processor(torch.device("cuda", 0))
    steps = 784
    for cell in ("lstm", "gru"):
        for dtype in DTYPES:
            for hidden in (32, 64) if dtype == torch.float32 else (32, 64, 128):
                for batch in (16, 200, 500, 2000):
                    for way, call in calls(cell, dtype, hidden, batch, steps).items():
                        chosen = choose_plan(hidden, batch, dtype, device, way)
                        for plan in plans(hidden, dtype):
                            row: dict[str, Any] = {"cell": cell, "way": way, "hidden": hidden}
                            row |= {"dtype": str(dtype)}
                            row |= {"batch": batch, "plan": str(plan), "chosen": plan == chosen}
                            try:
                                row["us_a_step"] = (
                                    1e6 * seconds(functools.partial(call, plan)) / steps
                                )
                            except Exception as error:  # most likely too many registers
                                row["error"] = str(error)[:200]
                            yield row


def measure_steps() -> Iterator[dict[str, Any]]:
    """Whole layers in steps, in one launch each and all in one, with every size of program."""
    from unittest import mock

    from fastrnn.kernels.contract import CELLS
    from fastrnn.kernels.products import tf32
    from fastrnn.kernels.triton import launch, layer
    from fastrnn.kernels.triton.plans import Processor, choose_step_plan

    steps = 128
    for cell, hidden, batch, dtype in itertools.product(
        ("lstm", "gru"), (256, 1024), (1, 16, 64, 200), DTYPES
    ):
        record = CELLS[cell]
        width = record.gates * hidden
        shapes: list[tuple[int, ...]] = [(steps * batch, hidden)]
        shapes += [(batch, hidden)] * record.states
        shapes += [(width, hidden)] * 2 + [(width,)] * 2
        x, *given = [torch.randn(s, device="cuda", dtype=dtype) * 0.1 for s in shapes]
        states, weights = given[: record.states], given[record.states :]
        processors = [launch.processor(x.device), Processor(1), Processor(9999)]
        chosen, *sizes = [
            choose_step_plan(hidden, batch, dtype, device, tf32()) for device in processors
        ]
        call = functools.partial(layer.forward, record, x, states, weights, None, False, True)
        for plan in {
            dataclasses.replace(p, persistent=o) for p in (*sizes, chosen) for o in (True, False)
        }:
            row: dict[str, Any] = {"cell": cell, "way": "forward", "hidden": hidden}
            row |= {"dtype": str(dtype), "batch": batch}
            row |= {"plan": str(plan), "chosen": plan == chosen}
            with mock.patch.object(launch, "choose_step_plan", lambda *_, plan=plan: plan):
                try:
                    row["us_a_step"] = 1e6 * seconds(call) / steps
                except Exception as error:  # more programs than run at once
                    row["error"] = str(error)[:200]
            yield row


def smoke() -> None:
    """Runs each form and direction of both GPU backends once, small enough for a sanitizer."""
    import fastrnn
    from fastrnn.backends import BACKENDS

    for cell in ("lstm", "gru"):
        for dtype in DTYPES:
            for hidden in (20, 64) if dtype == torch.float32 else (20, 128):
                for call in calls(cell, dtype, hidden, 3, 5).values():
                    for plan in plans(hidden, dtype):
                        if plan.rows in (2, 8) and plan.split in (0, 2):
                            call(plan)
    ours = [r.name for r in BACKENDS.values() if "cuda" in (r.devices or ())]
    sizes = ((20, 4), (257, 1), (257, 4), (1100, 4))
    for backend, (hidden, steps), dtype in itertools.product(ours, sizes, DTYPES):
        layer = fastrnn.LSTM(5, hidden, device="cuda", dtype=dtype)
        with fastrnn.backend(backend):
            layer(torch.randn(steps, 6, 5, device="cuda", dtype=dtype))[0].sum().backward()
    torch.cuda.synchronize()
    print("smoke: done")


def main() -> None:
    """Measure, print the best plan next to the chosen one, and keep all in a file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    if arguments.smoke:
        smoke()
        return
    rows: list[dict[str, Any]] = []
    best: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in measure_steps() if arguments.steps else measure():
        rows.append(row)
        key = tuple(row[k] for k in ("cell", "way", "dtype", "hidden", "batch"))
        best.setdefault(key, []).append(row)
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=1))
    for key, group in best.items():
        timed = sorted((r for r in group if "us_a_step" in r), key=lambda r: r["us_a_step"])
        chosen = next((r["us_a_step"] for r in timed if r["chosen"]), float("nan"))
        if timed:
            print(*key, f"chosen {chosen:.3f} µs a step, best", end=" ")
            print(f"{timed[0]['us_a_step']:.3f}", timed[0]["plan"])


if __name__ == "__main__":
    main()
