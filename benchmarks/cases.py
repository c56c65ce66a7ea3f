"""The measurements. A case is a layer or cell of one size in one mode, a grid a list of cases."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch

CELLS = ("LSTM", "GRU", "LSTMCell", "GRUCell")
MODES = ("inference", "training")
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        cell: one of CELLS.
        batch, steps, input, hidden: the sizes B, T, I and H.
        layers: as torch.nn's ``num_layers``.
        mode: one of MODES.
        dtype: one of DTYPES.
        device: as torch.device takes it.
        packed: whether the sequences differ in length; the longest has T steps.
    """

    cell: str
    batch: int
    steps: int
    input: int
    hidden: int
    layers: int = 1
    mode: str = "inference"
    dtype: str = "float32"
    device: str = "cpu"
    packed: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError if torch.nn cannot run the case."""
        for field, value, known in (
            ("cell", self.cell, CELLS),
            ("mode", self.mode, MODES),
            ("dtype", self.dtype, tuple(DTYPES)),
        ):
            if value not in known:
                raise ValueError(f"{field} is {value!r}; expected one of {', '.join(known)}")
        if min(self.batch, self.steps, self.input, self.hidden, self.layers) < 1:
            raise ValueError(f"sizes must be at least 1: {self}")
        if self.single_step and (self.steps, self.layers, self.packed) != (1, 1, False):
            raise ValueError(f"{self.cell} runs one step of one layer: {self}")

    @property
    def single_step(self) -> bool:
        """Whether the module is a cell, on [B, I], and not a layer, on [T, B, I]."""
        return self.cell.endswith("Cell")

    @property
    def lengths(self) -> list[int]:
        """The steps of each sequence; of packed ones, the last has the fewest, a B-th of T."""
        if not self.packed:
            return [self.steps] * self.batch
        return [self.steps - self.steps * b // self.batch for b in range(self.batch)]

    @property
    def training(self) -> bool:
        """Whether a call is a training step: clear the gradients, forward, backward."""
        return self.mode == "training"

    @property
    def forward_flops(self) -> int:
        """Floating-point operations of the matrix products in a forward pass."""
        gates = 4 if self.cell.startswith("LSTM") else 3
        inputs = self.input + (self.layers - 1) * self.hidden
        features = inputs + self.layers * self.hidden
        return 2 * sum(self.lengths) * gates * self.hidden * features

    @property
    def key(self) -> str:
        """The case in one readable line; no two cases have the same."""
        layers = f" L{self.layers}" if self.layers > 1 else ""
        packed = " packed" if self.packed else ""
        sizes = f"B{self.batch} T{self.steps} I{self.input} H{self.hidden}{layers}"
        return f"{self.cell} {self.mode} {sizes} {self.dtype} {self.device}{packed}"


def expand(
    *,
    cells: Sequence[str],
    batches: Sequence[int],
    shapes: Sequence[tuple[int, int | str]],
    hiddens: Sequence[int],
    modes: Sequence[str] = MODES,
    layers: int = 1,
    dtype: str = "float32",
    device: str = "cpu",
) -> Iterator[Case]:
    """Every combination of the arguments; a shape is (T, I), and an I of ``"H"`` stands for H."""
    for cell, mode, hidden, batch, (steps, inputs) in product(
        cells, modes, hiddens, batches, shapes
    ):
        width = hidden if inputs == "H" else int(inputs)
        yield Case(cell, batch, steps, width, hidden, layers, mode, dtype, device)


LAYERS = ("LSTM", "GRU")
GRIDS: dict[str, list[Case]] = {
    "narrow": [
        *expand(cells=LAYERS, batches=[200], shapes=[(784, 1)], hiddens=[32, 64, 128]),
        *expand(cells=LAYERS, batches=[1], shapes=[(784, 1)], hiddens=[32]),
    ],
    "full-cpu": [
        *expand(
            cells=LAYERS,
            batches=[1, 16, 64, 200],
            shapes=[(784, 1), (28, 28), (128, "H")],
            hiddens=[32, 128, 256, 512, 1024],
        )
    ],
    "cells": [*expand(cells=CELLS, batches=[1], shapes=[(1, 1), (1, "H")], hiddens=[32, 128])],
}


def grid(name: str, *, modes: Sequence[str], dtype: str, device: str) -> list[Case]:
    """The cases of the grid ``name`` in these modes.

    Cheap cases come first, so that a run that is stopped has measured as many as possible.
    """
    cases = [
        replace(case, dtype=dtype, device=device) for case in GRIDS[name] if case.mode in modes
    ]
    return sorted(cases, key=lambda case: case.forward_flops * (3 if case.training else 1))
