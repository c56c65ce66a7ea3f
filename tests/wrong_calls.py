"""Calls the ops, or exported and traced programs, with wrong arguments: see test_wrong_calls.py.

Prints how many calls raised an exception and how many gave right numbers after all. Anything else
ends the process with a status other than 0.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fastrnn
from fastrnn import backends
from fastrnn.kernels.contract import CELLS, Cell

T, B, I, H = 4, 3, 2, 5  # noqa: E741
RAISED = (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError)
DTYPES = [torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.complex64]
SIZES = [
    torch.tensor([3, 3, 2, 1]),
    torch.tensor([1, 2, 3, 3]),
    torch.tensor([3, 3, 3, 0]),
    torch.tensor([3, 3, 2, -1]),
    torch.tensor([3, 3, 2]),
    torch.tensor([9]),
    torch.tensor([3, 1 << 40]),
    torch.tensor([], dtype=torch.int64),
    torch.tensor([[3, 3, 2, 1]]),
    torch.tensor([3, 3, 2, 1], dtype=torch.int32),
    torch.tensor([3.0, 3.0, 2.0, 1.0]),
    torch.tensor([3, 3, 2, 1], device="meta"),
    None,
]


def freed(t: Tensor) -> Tensor:
    """A tensor whose memory was given back, as FSDP does."""
    t = t.clone()
    t.untyped_storage().resize_(0)
    return t


def wrong(rng: random.Random, t: Tensor | None) -> Any:
    """Something else in a tensor's place; some of it is right."""
    if not isinstance(t, Tensor):
        t = torch.randn(4 * H)
    if t.is_sparse or not (t.is_meta or t.data_ptr()):
        return t  # wrong enough
    changes: list[Callable[[Tensor], Any]] = [
        lambda t: t.to(rng.choice(DTYPES)),
        lambda t: t.to("meta"),
        lambda t: t[: rng.randrange(len(t))] if t.dim() else t,
        lambda t: torch.cat([t, t]) if t.dim() else t,
        lambda t: t[..., : rng.randrange(t.shape[-1])] if t.dim() else t,
        lambda t: t.unsqueeze(rng.randrange(t.dim() + 1)),
        lambda t: t.flatten(),
        lambda t: t.sum(),
        lambda t: t.t() if t.dim() == 2 else t.flip(0),
        lambda t: t.repeat_interleave(2, -1)[..., ::2] if t.dim() else t,  # right, with strides
        lambda t: t[:1].expand(t.shape) if t.dim() else t,  # right, with a stride of 0
        lambda t: t.new_zeros(1).expand(1 << 12, 1 << 12),
        lambda t: t.to_sparse(),
        freed,
        lambda t: None,
        lambda t: "a string",
        lambda t: [t],
    ]
    try:
        return rng.choice(changes)(t)
    except RuntimeError:  # too large, or a change that an earlier one rules out
        return None


def arguments(cell: Cell, packed: bool, rank: int) -> list[Any]:
    """Of a right forward call, up to batch_sizes."""
    sizes = SIZES[0] if packed else None
    x = (
        torch.randn(9, I)
        if packed
        else torch.randn(T, B, I)
        if rank == 3
        else torch.randn(T * B, I)
    )
    states = [torch.randn(B, H) for _ in cell.state_names]
    width = cell.gates * H
    weights = [torch.randn(width, I), torch.randn(width, H), torch.randn(width), torch.randn(width)]
    return [x, *states, *weights, sizes]


def backward_arguments(cell: Cell, given: list[Any], reverse: bool) -> list[Any]:
    """Of a right backward call, up to batch_sizes."""
    op = getattr(torch.ops.fastrnn, cell.name)
    y, *rest = op(*given, reverse, True, backends.REFERENCE.name)
    n = cell.states
    x, *others = given[:-1]
    states, weights = others[:n], others[n : n + 2]
    d_final = [torch.randn(B, H) for _ in states]
    dy = torch.randn_like(y)
    return [dy, *d_final, x, *states, *weights, y, *rest[n:], given[-1]]


def agree(found: Any, wanted: Any) -> bool:
    """Whether two results are the same numbers, to rounding."""
    return all(
        a.shape == b.shape
        and torch.allclose(a.double(), b.double(), rtol=2e-2, atol=2e-2, equal_nan=True)
        for a, b in zip(found, wanted, strict=True)
    )


def try_op(rng: random.Random) -> bool:
    """One call of an op; whether it raised."""
    cell = rng.choice(list(CELLS.values()))
    given = arguments(cell, *rng.choice([(True, 2), (False, 2), (False, 3)]))
    reverse, backward = rng.random() < 0.5, rng.random() < 0.5
    if backward:
        given = backward_arguments(cell, given, reverse)
    for _ in range(rng.choice([1, 1, 2])):
        place = rng.randrange(len(given))
        if place == len(given) - 1:
            given[place] = rng.choice(SIZES)
        else:
            given[place] = wrong(rng, given[place])
    flag: Any = rng.choice([True, False, True, False, "yes", None])
    name: Any = rng.choice(["", *backends.BACKENDS, "nonsense", None])
    op = getattr(torch.ops.fastrnn, f"{cell.name}_backward" if backward else cell.name)
    batch_first = rng.random() < 0.2
    try:
        found = op(*given, reverse, flag, name, batch_first)
    except RAISED:
        return True
    if any(t.is_meta for t in found):
        return False
    wanted = op(*given, reverse, flag, backends.REFERENCE.name, batch_first)
    assert agree(found[: 1 + cell.states], wanted[: 1 + cell.states]), (op, name, given)
    return False


def programs() -> list[tuple[Any, Any, list[Tensor]]]:
    """Exported and traced layers, the layers themselves, and their right arguments."""
    made = []
    for cell in ("LSTM", "GRU"):
        layer = getattr(fastrnn, cell)(I, H, 2, bidirectional=True).eval()
        x, h = torch.randn(T, B, I), torch.randn(4, B, H)
        hx: Any = (h, h.clone()) if cell == "LSTM" else h
        exported = torch.export.export(layer, (x, hx)).module()
        traced = torch.jit.trace(layer, (x, hx), check_trace=False)
        made += [(program, layer, [x, h]) for program in (exported, traced)]
    return made


def try_program(rng: random.Random, made: list[tuple[Any, Any, list[Tensor]]]) -> bool:
    """One call of a program; whether it raised."""
    program, layer, given = rng.choice(made)
    given = list(given)
    place = rng.randrange(2)
    given[place] = wrong(rng, given[place])
    x, h = given
    hx = (h, h) if layer.mode == "LSTM" else h
    try:
        y = program(x, hx)[0]
    except (*RAISED, AssertionError, AttributeError):  # a program's own guards raise these
        return True
    if not y.is_meta and y.numel():
        h = h.reshape(4, B, H)  # a graph does not see an axis of length 1 too many
        with torch.no_grad():
            assert agree([y], [layer(x, (h, h) if layer.mode == "LSTM" else h)[0]]), given
    return False


def main() -> None:
    """Runs calls of ops or programs, and prints what came of them."""
    what, count = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = random.Random(0)
    made = programs() if what == "programs" else []
    raised = 0
    for _ in range(count):
        raised += try_program(rng, made) if made else try_op(rng)
    print(raised, count - raised)


if __name__ == "__main__":
    main()
