"""The native ops for layers in training give the bits of the same kernels called from Python."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastrnn
from fastrnn import inference, layer_ops, ops
from fastrnn.kernels.contract import CELLS, Cell

T, B, I, H = 5, 3, 4, 7  # noqa: E741  (torch's own letters)
BATCH_SIZES = torch.tensor([3, 3, 2, 1])
cells = pytest.mark.parametrize("cell", CELLS.values(), ids=lambda cell: cell.name)
dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16], ids=lambda dtype: str(dtype)[6:]
)


@pytest.fixture(autouse=True)
def _ready() -> None:
    assert inference.load_error() is None


def inputs(cell: Cell, form: str, dtype: torch.dtype) -> tuple[Tensor, list[Tensor], Any, bool]:
    """x, the states and weights, batch_sizes, and whether x is batch-first."""
    torch.manual_seed(0)
    rows: dict[str, tuple[int, ...]] = {
        "packed": (int(BATCH_SIZES.sum()),), "batch first": (B, T), "step": (B,)
    }  # fmt: skip
    x = torch.randn(*rows.get(form, (T, B)), I).to(dtype)
    state = (B, H) if form in ("step", "flat states") else (1, B, H)
    shapes: list[tuple[int, ...]] = [
        *[state] * cell.states,
        (cell.gates * H, I),
        (cell.gates * H, H),
    ]
    shapes += [(cell.gates * H,)] * 2
    tensors = [torch.randn(shape).to(dtype) for shape in shapes]
    return x, tensors, BATCH_SIZES if form == "packed" else None, form == "batch first"


def from_python(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> Any:
    """What a call gives without the native ops."""
    with monkeypatch.context() as without:
        without.setattr(layer_ops, "forward", lambda *args: None)
        without.setattr(layer_ops, "backward", lambda *args: None)
        return run()


@cells
@dtypes
@pytest.mark.parametrize("form", ["padded", "batch first", "packed", "step", "flat states"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_bits_are_those_of_the_kernels(
    cell: Cell, dtype: torch.dtype, form: str, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, tensors, batch_sizes, batch_first = inputs(cell, form, dtype)
    given: list[Tensor | None] = [*tensors] if bias else [*tensors[:-2], None, None]
    n = cell.states
    for reverse in (False, True):
        forward = functools.partial(
            ops.FORWARD_KERNELS[cell.name],
            x,
            *given,
            batch_sizes,
            reverse,
            True,
            "cpu",
            batch_first,
        )
        assert layer_ops.forward(cell, "cpu", x, given, batch_sizes, reverse, batch_first)
        y, *others = found = forward()
        same(found, from_python(monkeypatch, forward))
        # dy as of y.sum(): without memory of its own.
        grads = [y.new_ones(()).expand_as(y), *(torch.randn_like(t) for t in tensors[:n])]
        for which in itertools.product((True, False), repeat=1 + n):
            backward = functools.partial(
                ops.BACKWARD_KERNELS[cell.name],
                *(grad if there else None for grad, there in zip(grads, which, strict=True)),
                *(x, *tensors[: n + 2], y, *others[n:]),
                *(batch_sizes, reverse, which[-1], "cpu", batch_first),
            )
            same(backward(), from_python(monkeypatch, backward))
            _, *everything = backward()
            _, *fewer = backward(need_d_states=False)
            assert fewer[:n] == [None] * n
            same(tuple(fewer[n:]), tuple(everything[n:]))


def same(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
        assert torch.equal(a, b)


@cells
def test_arguments_that_do_not_fit_are_left_to_the_ops_checks(cell: Cell) -> None:
    x, tensors, _, _ = inputs(cell, "padded", torch.float32)
    forward = ops.FORWARD_KERNELS[cell.name]
    for place, tensor in enumerate(tensors):
        for bad in (tensor[..., :-1], tensor.double(), tensor.unsqueeze(0), tensor.to("meta")):
            changed = [*tensors[:place], bad, *tensors[place + 1 :]]
            assert layer_ops.forward(cell, "cpu", x, changed, None, False, False) is None
            with pytest.raises(RuntimeError, match=f"fastrnn::{cell.name}: "):
                forward(x, *changed, None, False, True, "cpu")
    for bad in (x[:, :-1], x[..., :-1], x.half(), x[0, 0]):
        assert layer_ops.forward(cell, "cpu", bad, tensors, None, False, False) is None
        with pytest.raises(RuntimeError):
            forward(bad, *tensors, None, False, True, "cpu")


@cells
def test_other_backends_and_large_results_are_left_to_python(cell: Cell) -> None:
    x, tensors, _, _ = inputs(cell, "padded", torch.float32)
    for backend in ("reference", "torch", ""):
        assert layer_ops.forward(cell, backend, x, tensors, None, False, False) is None
    large = torch.randn(1 << 14, B, I)  # whose gates take more than 1 MiB
    assert layer_ops.forward(cell, "cpu", large, tensors, None, False, False) is None


def recorded(monkeypatch: pytest.MonkeyPatch, name: str) -> list[tuple[Any, ...]]:
    """The arguments of the calls of a function of layer_ops, as they come."""
    calls = []
    right = getattr(layer_ops, name)

    def noted(*args: Any) -> list[Tensor] | None:
        calls.append(args)
        return right(*args)

    monkeypatch.setattr(layer_ops, name, noted)
    return calls


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_a_training_step_of_one_time_step_is_ours(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded(monkeypatch, "forward")
    getattr(fastrnn, name)(I, H)(torch.randn(1, B, I))[0].sum().backward()
    assert [backend for _, backend, *_ in calls] == ["cpu"]


@cells
@pytest.mark.parametrize("wanted", [(), (0,), (-1,)], ids=["none", "h", "last"])
def test_gradients_of_the_states_are_computed_where_they_are_wanted(
    cell: Cell, wanted: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded(monkeypatch, "backward")
    states = tuple(torch.randn(1, B, H) for _ in range(cell.states))
    for place in wanted:
        states[place].requires_grad_()
    layer = getattr(fastrnn, cell.name.upper())(I, H)
    hx = states if cell.states > 1 else states[0]
    layer(torch.randn(T, B, I), hx)[0].sum().backward()
    assert [need_d_states for *_, need_d_states in calls] == [bool(wanted)]
    given = {id(state) for state in states if state.grad is not None}
    assert given == {id(states[place]) for place in wanted}
