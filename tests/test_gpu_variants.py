"""benchmarks.gpu_variants times the launches that a layer makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import gpu_variants
from fastrnn.kernels.contract import CELLS

STEPS, BATCH = 3, 5


def described(arguments: tuple[Any, ...]) -> list[Any]:
    """Arguments of a launch, with the dtype and shape of tensors in place of their values."""
    return [(a.dtype, a.shape) if isinstance(a, Tensor) else a for a in arguments]


@pytest.mark.parametrize(
    ("dtype", "hidden"),
    [
        (torch.float32, 32),
        (torch.float32, 64),
        (torch.bfloat16, 32),
        (torch.bfloat16, 64),
        (torch.bfloat16, 128),
    ],
    ids=lambda value: str(value).removeprefix("torch."),
)
@pytest.mark.parametrize("cell", CELLS)
def test_its_launches_are_a_layers(
    monkeypatch: pytest.MonkeyPatch, cell: str, dtype: torch.dtype, hidden: int
) -> None:
    from fastrnn.kernels.triton import launch, layer
    from fastrnn.kernels.triton.plans import Processor

    record, launches = CELLS[cell], list[Any]()
    monkeypatch.setattr(launch, "launch", lambda *given: launches.append(described(given)))
    monkeypatch.setattr(launch, "processor", lambda device: Processor(132))
    calls = gpu_variants.calls(cell, dtype, hidden, BATCH, STEPS, device="cpu")
    x = torch.zeros(STEPS * BATCH, 1, dtype=dtype)
    states = [x.new_zeros(BATCH, hidden)] * record.states
    biases = [x.new_zeros(record.gates * hidden)] * 2
    weights = [x.new_zeros(record.gates * hidden, size) for size in (1, hidden)]
    for plan in gpu_variants.plans(hidden, dtype):
        monkeypatch.setattr(launch, "choose_plan", lambda *_, plan=plan: plan)
        launches.clear()
        layer.forward(record, x, states, [*weights, *biases], None, False, False)
        y, _, saved = layer.forward(record, x, states, [*weights, *biases], None, False, True)
        layer.backward(
            record, y, states, x, states, weights, y, saved, None, False, False, True
        )  # fmt: skip
        wanted = list(launches)
        launches.clear()
        for way in ("inference", "forward", "backward"):
            calls[way](plan)
        assert launches == wanted
