"""Gradients that the whole-sequence Triton kernel sums itself: of biases, and of W_ih.

    TRITON_INTERPRET=1 python -m tests.test_triton_sums       the interpreted kernels' sums, as JSON

`test_triton` compares the numbers with torch.nn's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastrnn.kernels.contract import CELLS
from tests.test_triton import BRAIN, HALF, TRITON, WHOLE, kernels

SIZES = ((WHOLE, 8), (WHOLE, 40), (HALF, 128))


def infinite_gradients() -> dict[str, list[bool]]:
    """Whether an infinite gradient of a short sequence's last state makes each sum infinite.

    A walk back begins with a step that this sequence does not have, where infinity times 0 is NaN.
    """
    results = {}
    for name, cell in CELLS.items():
        forward, backward = kernels(TRITON).forward, kernels(TRITON).backward
        for dtype, hidden in SIZES:
            torch.manual_seed(0)
            x, sizes = torch.randn(3, 1, dtype=dtype), torch.tensor([2, 1])
            states = [torch.randn(2, hidden, dtype=dtype) for _ in cell.state_names]
            rows = cell.gates * hidden
            weights = [torch.randn(rows, n, dtype=dtype) / 9 for n in (1, hidden)]
            y, _, saved = forward(cell, x, states, (*weights, None, None), sizes, False, True)
            d_final = [torch.ones_like(h) for h in states]
            d_final[0][1] = torch.inf
            given = (cell, torch.zeros_like(y), d_final, x, states, weights, y, saved, sizes)
            dw_ih, _, *db = backward(*given, False, False, False)[2]
            results[f"{name} {dtype} {hidden}"] = [bool(d.isinf().all()) for d in (dw_ih, *db)]
    return results


def test_interpreted_infinite_gradients_reach_the_sums_from_steps_of_their_sequence_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::RuntimeWarning", "-m", "tests.test_triton_sums"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == len(CELLS) * len(SIZES)
    assert all(all(sums) for sums in found.values()), found


@pytest.mark.parametrize(
    ("cell", "hidden", "batch", "dtype", "features", "sums"),
    [
        ("lstm", 32, 200, WHOLE, 1, (False, False)),
        ("lstm", 64, 200, WHOLE, 1, (True, True)),
        ("lstm", 64, 500, WHOLE, 1, (False, False)),  # two rows per program
        ("lstm", 64, 200, BRAIN, 1, (True, True)),
        ("lstm", 64, 200, BRAIN, 3, (True, False)),
        ("gru", 128, 200, BRAIN, 1, (True, True)),
        ("lstm", 128, 200, BRAIN, 1, (False, False)),
        ("gru", 64, 2000, HALF, 1, (False, False)),
    ],
)
def test_biases_and_one_feature_are_summed_where_registers_are_free(
    cell: str, hidden: int, batch: int, dtype: torch.dtype, features: int, sums: tuple[bool, bool]
) -> None:
    from fastrnn.kernels.triton.plans import Processor, choose_plan

    plan = choose_plan(hidden, batch, dtype, Processor(132), "backward")
    assert plan.sums(CELLS[cell], features) == sums


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(infinite_gradients()))
