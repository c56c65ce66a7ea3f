"""fastrnn's module and torch.nn's side by side, over the options that the tests vary."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

import fastrnn

LAYERS, CELLS = ("LSTM", "GRU"), ("LSTMCell", "GRUCell")
library: Any = fastrnn  # or tests.patched: see the fixture both_libraries
BATCH, INPUT, HIDDEN = 3, 4, 5
LENGTHS = {"packed": (1.0, 0.7, 0.3), "unsorted": (0.7, 1.0, 0.3)}  # of the steps


@dataclasses.dataclass(frozen=True)
class Setup:
    """A module, how it is built, and the form and length of its input."""

    name: str
    num_layers: int = 1
    bidirectional: bool = False
    layout: str = "padded"  # or batch_first, packed, unsorted, unbatched
    steps: int = 4
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        if self.is_cell:
            return "-".join([self.name, "batch" if self.layout == "padded" else "unbatched"])
        words = [self.name, f"layers{self.num_layers}", self.layout, f"T{self.steps}"]
        return "-".join(words + ["bidirectional"] * self.bidirectional)

    @property
    def is_cell(self) -> bool:
        return self.name in CELLS

    @property
    def states(self) -> int:
        """How many states there are: h, and c of an LSTM."""
        return 2 if self.name.startswith("LSTM") else 1

    def pair(self) -> tuple[Any, Any]:
        """fastrnn's and torch.nn's module with the same weights."""
        torch.manual_seed(0)
        kwargs: dict[str, Any] = {"dtype": self.dtype}
        if not self.is_cell:
            kwargs |= {
                "num_layers": self.num_layers,
                "bidirectional": self.bidirectional,
                "batch_first": self.layout == "batch_first",
            }
        return pair(self.name, INPUT, HIDDEN, **kwargs)

    def leaves(self) -> list[Tensor]:
        """Sequences [T, B, I] (cells: [B, I]) and the initial states, which need gradients."""
        generator = torch.Generator().manual_seed(1)
        rows = self.num_layers * (2 if self.bidirectional else 1)
        batch = () if self.layout == "unbatched" else (BATCH,)
        time = () if self.is_cell else (self.steps,)
        depth = () if self.is_cell else (rows,)
        shapes = [(*time, *batch, INPUT)] + [(*depth, *batch, HIDDEN)] * self.states
        return [
            torch.randn(s, generator=generator, dtype=torch.float64).to(self.dtype).requires_grad_()
            for s in shapes
        ]

    def call(self, module: Any, x: Tensor, *states: Tensor) -> list[Tensor]:
        """Output and final states, by name: see :attr:`result_names`."""
        given: Any = x
        if self.layout == "batch_first":
            given = x.transpose(0, 1)
        elif self.layout in LENGTHS:
            with torch.autocast("cpu", enabled=False):  # it refuses to join rows of float16
                given = self._packed(x)
        hx: Any = None
        if states:
            hx = states if self.states == 2 else states[0]
        return tensors(module(given, hx))

    def _packed(self, x: Tensor) -> PackedSequence:
        """What pack_sequence makes, which has no forward mode."""
        counts = [max(1, round(self.steps * part)) for part in LENGTHS[self.layout]]
        order = sorted(range(BATCH), key=lambda b: -counts[b])
        sizes = [sum(n > t for n in counts) for t in range(max(counts))]
        rows = [x[t, order[:n]] for t, n in enumerate(sizes)]
        indices: tuple[Tensor | None, Tensor | None] = (None, None)
        if self.layout == "unsorted":
            indices = (torch.tensor(order), torch.tensor(order).argsort())
        return PackedSequence(torch.cat(rows), torch.tensor(sizes), *indices)

    @property
    def result_names(self) -> list[str]:
        names = ["h_n", "c_n"][: self.states]
        return names if self.is_cell else ["y", *names]


def pair(name: str, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """fastrnn's and torch.nn's module with the same weights."""
    wanted = getattr(nn, name)(*args, **kwargs)
    found = getattr(library, name)(*args, **kwargs)
    found.load_state_dict(wanted.state_dict())
    return found, wanted


class _BySequence(nn.Module):
    """Makes torch.nn's layers run packed sequences one by one, padded, for functorch's sake."""

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:
        run: Any = super().forward
        if not isinstance(input, PackedSequence):
            return run(input, hx)
        data, sizes, _, _ = input
        starts = (sizes.cumsum(0) - sizes).tolist()
        orders, outputs, finals = [], [], []
        for b in range(int(sizes[0])):
            order = [
                start + b for start, size in zip(starts, sizes.tolist(), strict=True) if b < size
            ]
            own = pytree.tree_map(lambda state, b=b: state[:, b : b + 1], hx)
            y, final = run(data[order].unsqueeze(1), own)
            orders += order
            outputs.append(y.squeeze(1))
            finals.append(final)
        back = torch.tensor(orders).argsort()
        packed = PackedSequence(torch.cat(outputs)[back], sizes)
        return packed, pytree.tree_map(lambda *states: torch.cat(states, 1), *finals)


def by_sequence(module: nn.Module) -> nn.Module:
    """The module itself, made to run packed sequences (sorted ones) one by one."""
    kind = type(module)
    module.__class__ = type(kind.__name__, (_BySequence, kind), {})
    return module


def some(setups: Sequence[Setup], short: Sequence[Setup]) -> list[Any]:
    """Parameters for pytest: of the setups, only those in ``short`` run in the short suite."""
    return [
        pytest.param(s, id=str(s), marks=() if s in short else pytest.mark.long) for s in setups
    ]


def tensors(result: Any) -> list[Tensor]:
    """All tensors that a layer or a cell returns, in order."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, PackedSequence):
        return [result.data]
    return [tensor for part in result for tensor in tensors(part)]


def layers(
    names: Sequence[str] = LAYERS,
    layouts: Sequence[str] = ("padded", "batch_first", "packed", "unsorted"),
    **options: Any,
) -> list[Setup]:
    """Setups of one and two layers in one and both directions, in each layout."""
    return [
        Setup(name, num_layers, bidirectional, layout, **options)
        for name in names
        for num_layers in (1, 2)
        for bidirectional in (False, True)
        for layout in layouts
    ]


def few_layers(**options: Any) -> list[Setup]:
    """A few setups with each option, for what takes a second each."""
    return [
        Setup(name, *rest, **options)
        for name in LAYERS
        for rest in (
            (1, False, "padded"),
            (2, False, "batch_first"),
            (1, True, "packed"),
            (2, True, "batch_first"),
        )
    ]


def cells(**options: Any) -> list[Setup]:
    """Setups of both cells, with and without a batch."""
    return [
        Setup(name, layout=layout, **options)
        for name in CELLS
        for layout in ("padded", "unbatched")
    ]


def loss(results: Sequence[Tensor]) -> Tensor:
    """A number that depends on each element of the results, and on each differently."""
    parts = [
        (t * torch.linspace(0.5, 2, t.numel(), dtype=t.dtype).view(t.shape)).square().sum()
        for t in results
    ]
    return torch.stack(parts).sum()


def compiled(function: Callable[..., Any], backend: str = "aot_eager", **options: Any) -> Any:
    """The function behind torch.compile, with nothing left of earlier ones."""
    torch.compiler.reset()
    return torch.compile(function, backend=backend, **options)


def outcome(call: Callable[[], Any]) -> tuple[Any, type[BaseException] | None]:
    """What a call returns, and the type of what it raises."""
    try:
        return call(), None
    except Exception as error:
        return None, type(error)


@contextlib.contextmanager
def nothing_recompiles() -> Iterator[None]:
    """A call that would compile anything within the block raises an error."""
    torch.compiler.set_stance("fail_on_recompile")
    try:
        yield
    finally:
        torch.compiler.set_stance("default")
