"""torch.nn in float64 on CPU: what every backend's numbers are held against.

A case's weights and inputs are rounded to its dtype before torch.nn gets them in float64, so that
an error is the kernel's alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fastrnn
from fastrnn.backends import BACKENDS, TORCH
from fastrnn.kernels import cpu

# ||found - wanted|| / ||wanted||: of outputs and states, of gradients
TOLERANCES = {
    torch.float64: (1e-12, 1e-11),
    torch.float32: (1e-6, 1e-5),
    torch.bfloat16: (1e-2, 2e-2),
}
SEED = 40  # one with which torch.nn itself, in each dtype, meets the tolerances at H = 1
CELLS = ("LSTM", "GRU")
LAYOUTS = ("padded", "batch_first", "packed", "unsorted", "unbatched")


def backends() -> list[str]:
    """Every backend with kernels of ours that runs on CPUs, by its record.

    ``cpu:avx2`` is the native one at that instruction set.
    """
    names = []
    for name, record in BACKENDS.items():
        if record is TORCH or (record.devices and "cpu" not in record.devices):
            continue
        if record.load_error() is None:
            levels = record.facts().get("levels")
            names += [f"{name}:{level}" for level in levels] if levels else [name]
    return names


@contextlib.contextmanager
def forced(name: str) -> Iterator[None]:
    """Forces one of :func:`backends` within a block."""
    backend, _, level = name.partition(":")
    before = cpu.info().get("level")
    with fastrnn.backend(backend):
        if level:
            cpu.select_level(level)
        try:
            yield
        finally:
            if level:
                cpu.select_level(before)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Computes with so many threads within a block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclasses.dataclass(frozen=True)
class Case:
    """A module, its input's layout and size, and how its weights are scaled."""

    cell: str
    dtype: torch.dtype
    steps: int
    batch: int
    input_size: int
    hidden_size: int
    layout: str = "padded"
    layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    scale: float = 1.0  # times torch.nn's initial weights

    def __str__(self) -> str:
        size = f"T{self.steps}-B{self.batch}-I{self.input_size}-H{self.hidden_size}"
        words = [self.cell, str(self.dtype).removeprefix("torch."), size, self.layout]
        words += [f"layers{self.layers}"] * (self.layers > 1)
        words += ["bidirectional"] * self.bidirectional + ["no_bias"] * (not self.bias)
        return "-".join(words)


def pairwise(**factors: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Rows in which each two factors take each pair of their values at least once."""
    names, values = list(factors), [list(v) for v in factors.values()]
    columns = list(itertools.combinations(range(len(names)), 2))

    def pairs(row: Sequence[Any]) -> set[tuple[Any, ...]]:
        return {(a, b, row[a], row[b]) for a, b in columns}

    missing = {(a, b, u, v) for a, b in columns for u in values[a] for v in values[b]}
    draw = random.Random(0)
    while missing:
        a, b, u, v = min(missing, key=repr)
        rows = [[draw.choice(options) for options in values] for _ in range(50)]
        for row in rows:
            row[a], row[b] = u, v
        best = max(rows, key=lambda row: len(pairs(row) & missing))
        missing -= pairs(best)
        yield dict(zip(names, best, strict=True))


def module(case: Case, library: Any, dtype: torch.dtype) -> nn.RNNBase:
    """torch.nn's or fastrnn's module of a case, with weights that are the same for all."""
    made = getattr(library, case.cell)(
        case.input_size,
        case.hidden_size,
        case.layers,
        bias=case.bias,
        batch_first=case.layout == "batch_first",
        bidirectional=case.bidirectional,
        dtype=dtype,
    )
    generator = torch.Generator().manual_seed(SEED)
    bound = case.scale * case.hidden_size**-0.5
    with torch.no_grad():
        for p in made.parameters():
            values = torch.empty(p.shape, dtype=torch.float64)
            p.copy_(values.uniform_(-bound, bound, generator=generator).to(case.dtype))
    return made


def lengths(case: Case) -> list[int]:
    """Of a packed batch's sequences: the first is whole, some end early, some have one step."""
    spread = [1 + (case.steps - 1) * (case.batch - b) // case.batch for b in range(case.batch)]
    return random.Random(1).sample(spread, case.batch) if case.layout == "unsorted" else spread


def leaves(case: Case) -> list[Tensor]:
    """In float64, rounded to the case's dtype: the sequences [T, B, I] and the states."""
    generator = torch.Generator().manual_seed(SEED + 1)
    rows = case.layers * (2 if case.bidirectional else 1)
    shapes = [(case.steps, case.batch, case.input_size)]
    shapes += [(rows, case.batch, case.hidden_size)] * (2 if case.cell == "LSTM" else 1)
    return [
        torch.randn(s, generator=generator, dtype=torch.float64).to(case.dtype).double()
        for s in shapes
    ]


def run(case: Case, made: nn.RNNBase, dtype: torch.dtype) -> dict[str, Tensor]:
    """Output, states and, by a fixed random cotangent, every gradient, by name."""
    given = [t.to(dtype).requires_grad_() for t in leaves(case)]
    x, *states = given
    input: Any = x
    if case.layout == "batch_first":
        input = x.transpose(0, 1)
    elif case.layout == "unbatched":
        input, states = x.squeeze(1), [s.squeeze(1) for s in states]
    elif case.layout in ("packed", "unsorted"):
        sequences = [x[:n, b] for b, n in enumerate(lengths(case))]
        input = pack_sequence(sequences, enforce_sorted=case.layout == "packed")
    y, last = made(input, tuple(states) if case.cell == "LSTM" else states[0])
    outputs = {"y": y.data if isinstance(y, PackedSequence) else y}
    outputs |= zip(("h_n", "c_n"), last if case.cell == "LSTM" else (last,), strict=False)
    generator = torch.Generator().manual_seed(SEED + 2)
    cotangents = [
        torch.randn(t.shape, generator=generator, dtype=torch.float64).to(case.dtype).to(dtype)
        for t in outputs.values()
    ]
    names = ["x", "h_0", "c_0"][: len(given)] + [name for name, _ in made.named_parameters()]
    found = torch.autograd.grad(list(outputs.values()), [*given, *made.parameters()], cotangents)
    results = outputs | {f"d {name}": g for name, g in zip(names, found, strict=True)}
    return {name: t.detach() for name, t in results.items()}


@functools.cache
def wanted(case: Case) -> dict[str, Tensor]:
    """torch.nn's results in float64."""
    return run(case, module(case, nn, torch.float64), torch.float64)


def errors(case: Case) -> dict[str, float]:
    """fastrnn's error against the oracle, norm-wise, by name."""
    found = run(case, module(case, fastrnn, case.dtype), case.dtype)
    return {name: error(found[name], t) for name, t in wanted(case).items()}


def error(found: Tensor, wanted: Tensor) -> float:
    """||found - wanted|| / ||wanted||; NaN if an element of `found` is."""
    assert found.shape == wanted.shape
    norm, difference = wanted.double().norm(), (found.double() - wanted).norm()
    return float(difference / norm) if difference else 0.0


def failures(dtype: torch.dtype, errors: dict[str, float]) -> dict[str, float]:
    """The errors above the tolerance; NaN is above any."""
    forward, backward = TOLERANCES[dtype]
    return {
        name: value
        for name, value in errors.items()
        if not value <= (backward if name.startswith("d ") else forward)
    }
