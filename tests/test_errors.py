"""Wrong calls of the modules raise the same type of exception as torch.nn's; right ones, none.

``test_nn.py`` compares messages too, for the mistakes that people make; here are all kinds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fastrnn
from tests import oracle, peers

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Casting complex values to real"),
]

T, B, I, H = 6, 3, 4, 5  # noqa: E741
z = torch.zeros
Call = Callable[[Any, Callable[..., Any]], Any]


def packed(*lengths: int, width: int = I, dtype: torch.dtype = torch.float32) -> PackedSequence:
    return pack_sequence([z(n, width, dtype=dtype) for n in lengths], enforce_sorted=False)


def by_hand(data: Tensor, sizes: list[int], *indices: Any) -> PackedSequence:
    return PackedSequence(data, torch.tensor(sizes), *indices)


# A call gets a module of width I and H, and s, which makes zero states of a shape: a tensor, or a
# tuple of two for an LSTM.
LAYER_CALLS: dict[str, Call] = {
    # inputs
    "no input": lambda m, s: m(),
    "input None": lambda m, s: m(None),
    "input a list": lambda m, s: m([[0.0] * I] * T),
    "input a tuple": lambda m, s: m((z(T, B, I), z(T, B, I))),
    "input a number": lambda m, s: m(1.0),
    "input a numpy array": lambda m, s: m(z(T, B, I).numpy()),
    "input 0-D": lambda m, s: m(z(())),
    "input 1-D": lambda m, s: m(z(I)),
    "input 4-D": lambda m, s: m(z(1, T, B, I)),
    "input 5-D": lambda m, s: m(z(1, 1, T, B, I)),
    "input too wide": lambda m, s: m(z(T, B, I + 1)),
    "input too narrow": lambda m, s: m(z(T, B, I - 1)),
    "input without features": lambda m, s: m(z(T, B, 0)),
    "unbatched input too wide": lambda m, s: m(z(T, I + 1)),
    "no steps": lambda m, s: m(z(0, B, I)),
    "no steps, with states": lambda m, s: m(z(0, B, I), s(1, B, H)),
    "no steps, unbatched": lambda m, s: m(z(0, I)),
    "no sequences": lambda m, s: m(z(T, 0, I)),
    "no sequences, with states": lambda m, s: m(z(T, 0, I), s(1, 0, H)),
    "no steps and no sequences": lambda m, s: m(z(0, 0, I)),
    "one step without sequences": lambda m, s: m(z(1, 0, I)),
    "input float64": lambda m, s: m(z(T, B, I).double()),
    "input float16": lambda m, s: m(z(T, B, I).half()),
    "input bfloat16": lambda m, s: m(z(T, B, I).bfloat16()),
    "input int64": lambda m, s: m(z(T, B, I).long()),
    "input uint8": lambda m, s: m(z(T, B, I).byte()),
    "input bool": lambda m, s: m(z(T, B, I).bool()),
    "input complex": lambda m, s: m(z(T, B, I).to(torch.complex64)),
    "one step float64": lambda m, s: m(z(1, B, I).double()),
    "one step int64": lambda m, s: m(z(1, B, I).long()),
    "input on meta": lambda m, s: m(z(T, B, I, device="meta")),
    "input sparse": lambda m, s: m(z(T, B, I).to_sparse()),
    # states
    "states of more layers": lambda m, s: m(z(T, B, I), s(2, B, H)),
    "states of no layer": lambda m, s: m(z(T, B, I), s(0, B, H)),
    "states of another batch": lambda m, s: m(z(T, B, I), s(1, B + 1, H)),
    "states of a batch of one": lambda m, s: m(z(T, B, I), s(1, 1, H)),
    "states of another width": lambda m, s: m(z(T, B, I), s(1, B, H + 1)),
    "states batch first": lambda m, s: m(z(T, B, I), s(B, 1, H)),
    "states 1-D": lambda m, s: m(z(T, B, I), s(H)),
    "states 2-D": lambda m, s: m(z(T, B, I), s(B, H)),
    "states 4-D": lambda m, s: m(z(T, B, I), s(1, 1, B, H)),
    "states 0-D": lambda m, s: m(z(T, B, I), s()),
    "states 3-D, unbatched input": lambda m, s: m(z(T, I), s(1, 1, H)),
    "states 1-D, unbatched input": lambda m, s: m(z(T, I), s(H)),
    "states of another width, unbatched": lambda m, s: m(z(T, I), s(1, H + 1)),
    "states of more layers, unbatched": lambda m, s: m(z(T, I), s(2, H)),
    "states float64": lambda m, s: m(z(T, B, I), s(1, B, H, dtype=torch.float64)),
    "states int64": lambda m, s: m(z(T, B, I), s(1, B, H, dtype=torch.int64)),
    "states bfloat16": lambda m, s: m(z(T, B, I), s(1, B, H, dtype=torch.bfloat16)),
    "states on meta": lambda m, s: m(z(T, B, I), s(1, B, H, device="meta")),
    "one step, states float64": lambda m, s: m(z(1, B, I), s(1, B, H, dtype=torch.float64)),
    "one step, states of another batch": lambda m, s: m(z(1, B, I), s(1, B + 1, H)),
    "states a number": lambda m, s: m(z(T, B, I), 0.0),
    "states a string": lambda m, s: m(z(T, B, I), "zeros"),
    "states a number, True": lambda m, s: m(z(T, B, I), True),
    "states an empty tuple": lambda m, s: m(z(T, B, I), ()),
    "states an empty list": lambda m, s: m(z(T, B, I), []),
    "states a list of one": lambda m, s: m(z(T, B, I), [z(1, B, H)]),
    "states a list of two": lambda m, s: m(z(T, B, I), [z(1, B, H), z(1, B, H)]),
    "states a tuple of two": lambda m, s: m(z(T, B, I), (z(1, B, H), z(1, B, H))),
    "states a tuple of three": lambda m, s: m(z(T, B, I), (z(1, B, H),) * 3),
    "states a tensor": lambda m, s: m(z(T, B, I), z(1, B, H)),
    "states a tensor of two": lambda m, s: m(z(T, B, I), z(2, 1, B, H)),
    "states with None": lambda m, s: m(z(T, B, I), (z(1, B, H), None)),
    "states None and a tensor": lambda m, s: m(z(T, B, I), (None, z(1, B, H))),
    "states both None": lambda m, s: m(z(T, B, I), (None, None)),
    "states a dict": lambda m, s: m(z(T, B, I), {"h": z(1, B, H), "c": z(1, B, H)}),
    "states numbers": lambda m, s: m(z(T, B, I), (0.0, 0.0)),
    "states a numpy array": lambda m, s: m(z(T, B, I), z(1, B, H).numpy()),
    "states a packed sequence": lambda m, s: m(z(T, B, I), packed(3, 2, 1, width=H)),
    "c of another batch": lambda m, s: m(z(T, B, I), (z(1, B, H), z(1, B + 1, H))),
    "c of another width": lambda m, s: m(z(T, B, I), (z(1, B, H), z(1, B, H + 1))),
    "c of another dtype": lambda m, s: m(z(T, B, I), (z(1, B, H), z(1, B, H).double())),
    "c 2-D": lambda m, s: m(z(T, B, I), (z(1, B, H), z(B, H))),
    "unknown keyword": lambda m, s: m(z(T, B, I), colour=1),
    "states by a wrong keyword": lambda m, s: m(z(T, B, I), h_0=s(1, B, H)),
    "too many arguments": lambda m, s: m(z(T, B, I), s(1, B, H), 1),
    "states twice": lambda m, s: m(z(T, B, I), s(1, B, H), hx=s(1, B, H)),
    # packed sequences
    "packed too wide": lambda m, s: m(packed(3, 2, width=I + 1)),
    "packed 3-D": lambda m, s: m(pack_sequence([z(3, 2, I), z(2, 2, I)])),
    "packed 1-D": lambda m, s: m(pack_sequence([z(3), z(2)])),
    "packed float64": lambda m, s: m(packed(3, 2, dtype=torch.float64)),
    "packed int64": lambda m, s: m(packed(3, 2, dtype=torch.int64)),
    "packed, states of another batch": lambda m, s: m(packed(3, 2), s(1, 3, H)),
    "packed, states of another width": lambda m, s: m(packed(3, 2), s(1, 2, H + 1)),
    "packed, states of more layers": lambda m, s: m(packed(3, 2), s(2, 2, H)),
    "packed, states 1-D": lambda m, s: m(packed(3, 2), s(H)),
    "packed, states float64": lambda m, s: m(packed(3, 2), s(1, 2, H, dtype=torch.float64)),
    "packed, states a list": lambda m, s: m(packed(3, 2), [z(1, 2, H)] * 2),
    "packed, states an empty tuple": lambda m, s: m(packed(3, 2), ()),
    "packed, states with None": lambda m, s: m(packed(3, 2), (z(1, 2, H), None)),
    "packed, unsorted, states of another batch": lambda m, s: m(packed(2, 3), s(1, 1, H)),
    "packed, unsorted, states of a larger batch": lambda m, s: m(packed(2, 3), s(1, 4, H)),
    "a packed sequence in a tuple": lambda m, s: m((packed(3, 2),)),
    "packed by hand, too few rows": lambda m, s: m(by_hand(z(4, I), [2, 2, 1])),
    "packed by hand, no steps": lambda m, s: m(by_hand(z(0, I), [])),
    "packed by hand, sizes that grow": lambda m, s: m(by_hand(z(5, I), [1, 2, 2])),
    "packed by hand, negative size": lambda m, s: m(by_hand(z(3, I), [2, 2, -1])),
}
# What torch.nn answers by accident, and we with a RuntimeError that names the mistake: a packed
# sequence made by hand whose sizes do not fit, which torch.nn computes without a part of it, and
# 2-D states for torch.nn.LSTM's packed input, where it fails with an IndexError.
DEVIATIONS: dict[str, Call] = {
    "packed by hand, too many rows": lambda m, s: m(by_hand(z(6, I), [2, 2, 1])),
    "packed by hand, size 0": lambda m, s: m(by_hand(z(4, I), [2, 2, 0])),
    "packed, states 2-D": lambda m, s: m(packed(3, 2), s(2, H)),
}
CELL_CALLS: dict[str, Call] = {
    "no input": lambda m, s: m(),
    "input None": lambda m, s: m(None),
    "input a list": lambda m, s: m([[0.0] * I] * B),
    "input a number": lambda m, s: m(1.0),
    "input a packed sequence": lambda m, s: m(packed(3, 2)),
    "input 0-D": lambda m, s: m(z(())),
    "input 3-D": lambda m, s: m(z(1, B, I)),
    "input 4-D": lambda m, s: m(z(1, 1, B, I)),
    "input too wide": lambda m, s: m(z(B, I + 1)),
    "input without features": lambda m, s: m(z(B, 0)),
    "unbatched input too wide": lambda m, s: m(z(I + 1)),
    "no rows": lambda m, s: m(z(0, I)),
    "no rows, with states": lambda m, s: m(z(0, I), s(0, H)),
    "no rows, states of a batch": lambda m, s: m(z(0, I), s(B, H)),
    "input float64": lambda m, s: m(z(B, I).double()),
    "input float16": lambda m, s: m(z(B, I).half()),
    "input bfloat16": lambda m, s: m(z(B, I).bfloat16()),
    "input int64": lambda m, s: m(z(B, I).long()),
    "input bool": lambda m, s: m(z(B, I).bool()),
    "input complex": lambda m, s: m(z(B, I).to(torch.complex64)),
    "input on meta": lambda m, s: m(z(B, I, device="meta")),
    "input sparse": lambda m, s: m(z(B, I).to_sparse()),
    "states of another batch": lambda m, s: m(z(B, I), s(B + 1, H)),
    "states of a batch of one": lambda m, s: m(z(B, I), s(1, H)),
    "states of another width": lambda m, s: m(z(B, I), s(B, H + 1)),
    "states 0-D": lambda m, s: m(z(B, I), s()),
    "states 1-D": lambda m, s: m(z(B, I), s(H)),
    "states 3-D": lambda m, s: m(z(B, I), s(1, B, H)),
    "states 4-D": lambda m, s: m(z(B, I), s(1, 1, B, H)),
    "states 2-D, unbatched input": lambda m, s: m(z(I), s(B, H)),
    "states of one row, unbatched input": lambda m, s: m(z(I), s(1, H)),
    "states of another width, unbatched": lambda m, s: m(z(I), s(H + 1)),
    "states float64": lambda m, s: m(z(B, I), s(B, H, dtype=torch.float64)),
    "states int64": lambda m, s: m(z(B, I), s(B, H, dtype=torch.int64)),
    "states bfloat16": lambda m, s: m(z(B, I), s(B, H, dtype=torch.bfloat16)),
    "states on meta": lambda m, s: m(z(B, I), s(B, H, device="meta")),
    "states a number": lambda m, s: m(z(B, I), 0.0),
    "states a string": lambda m, s: m(z(B, I), "zeros"),
    "states an empty tuple": lambda m, s: m(z(B, I), ()),
    "states a list of one": lambda m, s: m(z(B, I), [z(B, H)]),
    "states a list of two": lambda m, s: m(z(B, I), [z(B, H)] * 2),
    "states a tuple of two": lambda m, s: m(z(B, I), (z(B, H), z(B, H))),
    "states a tuple of three": lambda m, s: m(z(B, I), (z(B, H),) * 3),
    "states a tensor": lambda m, s: m(z(B, I), z(B, H)),
    "states a tensor of two": lambda m, s: m(z(B, I), z(2, B, H)),
    "states with None": lambda m, s: m(z(B, I), (z(B, H), None)),
    "states both None": lambda m, s: m(z(B, I), (None, None)),
    "states a dict": lambda m, s: m(z(B, I), {"h": z(B, H), "c": z(B, H)}),
    "states numbers": lambda m, s: m(z(B, I), (0.0, 0.0)),
    "c of another batch": lambda m, s: m(z(B, I), (z(B, H), z(B + 1, H))),
    "c of another width": lambda m, s: m(z(B, I), (z(B, H), z(B, H + 1))),
    "c of another dtype": lambda m, s: m(z(B, I), (z(B, H), z(B, H).double())),
    "unknown keyword": lambda m, s: m(z(B, I), colour=1),
    "too many arguments": lambda m, s: m(z(B, I), s(B, H), 1),
}
CONSTRUCTORS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "no sizes": ((), {}),
    "one size": ((I,), {}),
    "input_size negative": ((-1, H), {}),
    "input_size a float": ((4.0, H), {}),
    "input_size a string": (("4", H), {}),
    "input_size None": ((None, H), {}),
    "hidden_size 0": ((I, 0), {}),
    "hidden_size negative": ((I, -1), {}),
    "hidden_size a float": ((I, 5.0), {}),
    "hidden_size a string": ((I, "5"), {}),
    "a positional too many": ((I, H, 1, True, False, 0.0, False, 0, None, None, 1), {}),
    "unknown keyword": ((I, H), {"colour": 1}),
    "dtype int64": ((I, H), {"dtype": torch.int64}),
    "dtype a string": ((I, H), {"dtype": "float32"}),
    "device unknown": ((I, H), {"device": "nowhere"}),
}
LAYER_CONSTRUCTORS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "num_layers 0": ((I, H, 0), {}),
    "num_layers negative": ((I, H, -1), {}),
    "num_layers a float": ((I, H, 2.0), {}),
    "num_layers a string": ((I, H, "2"), {}),
    "dropout 2": ((I, H, 2), {"dropout": 2}),
    "dropout negative": ((I, H, 2), {"dropout": -0.1}),
    "dropout True": ((I, H, 2), {"dropout": True}),
    "dropout a string": ((I, H, 2), {"dropout": "0.1"}),
    "dropout None": ((I, H, 2), {"dropout": None}),
    "proj_size": ((I, H), {"proj_size": 2}),
    "proj_size too large": ((I, H), {"proj_size": H}),
    "proj_size negative": ((I, H), {"proj_size": -1}),
    "proj_size a string": ((I, H), {"proj_size": "2"}),
    "mode": (("LSTM", I, H), {}),
    "nonlinearity": ((I, H), {"nonlinearity": "relu"}),
}


def zero_states(name: str) -> Callable[..., Any]:
    def make(*shape: int, **options: Any) -> Any:
        state = torch.zeros(shape, **options)
        return (state, state.clone()) if name.startswith("LSTM") else state

    return make


def compare(name: str, call: Call, **options: Any) -> None:
    """Both raise the same type, or return results of the same shapes and numbers."""
    torch.manual_seed(0)
    ours, theirs = peers.pair(name, I, H, **options)
    states = zero_states(name)
    wanted, expected = peers.outcome(lambda: peers.tensors(call(theirs, states)))
    found, error = peers.outcome(lambda: peers.tensors(call(ours, states)))
    assert error is expected
    if error is None:
        assert [t.shape for t in found] == [t.shape for t in wanted]
        if not any(t.is_meta for t in wanted):
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("bad", LAYER_CALLS)
@pytest.mark.parametrize("name", peers.LAYERS)
def test_calls_of_a_layer(name: str, bad: str) -> None:
    compare(name, LAYER_CALLS[bad])


@pytest.mark.parametrize("bad", LAYER_CALLS)
@pytest.mark.parametrize("name", peers.LAYERS)
def test_calls_of_a_stack_with_the_batch_first(name: str, bad: str) -> None:
    compare(name, LAYER_CALLS[bad], num_layers=2, bidirectional=True, batch_first=True)


@pytest.mark.parametrize("bad", LAYER_CALLS)
def test_calls_of_a_projected_layer(bad: str) -> None:
    compare("LSTM", LAYER_CALLS[bad], proj_size=2)


@pytest.mark.parametrize("bad", DEVIATIONS)
@pytest.mark.parametrize("name", peers.LAYERS)
def test_calls_that_torch_answers_by_accident(name: str, bad: str) -> None:
    with pytest.raises(RuntimeError, match=r"do not fit|Expected hidden|Expected .*size"):
        DEVIATIONS[bad](getattr(fastrnn, name)(I, H), zero_states(name))


@pytest.mark.parametrize("bad", CELL_CALLS)
@pytest.mark.parametrize("name", peers.CELLS)
def test_calls_of_a_cell(name: str, bad: str) -> None:
    compare(name, CELL_CALLS[bad])


@pytest.mark.parametrize("backend", oracle.backends())
@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *((name, bad) for name in peers.LAYERS for bad in LAYER_CALLS),
        *((name, bad) for name in peers.CELLS for bad in CELL_CALLS),
    ],
)
def test_calls_with_a_backend_forced(name: str, bad: str, backend: str) -> None:
    """A backend that cannot run the call refuses it with a RuntimeError; torch.nn may run it."""
    call = (CELL_CALLS if name in peers.CELLS else LAYER_CALLS)[bad]
    ours, theirs = peers.pair(name, I, H)
    states = zero_states(name)
    wanted, expected = peers.outcome(lambda: peers.tensors(call(theirs, states)))
    with oracle.forced(backend):
        found, error = peers.outcome(lambda: peers.tensors(call(ours, states)))
    assert error in (expected, RuntimeError)
    if error is None and not any(t.is_meta for t in wanted):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("bad", [*CONSTRUCTORS, *LAYER_CONSTRUCTORS])
@pytest.mark.parametrize("name", [*peers.LAYERS, *peers.CELLS])
def test_constructors(name: str, bad: str) -> None:
    args, kwargs = {**CONSTRUCTORS, **LAYER_CONSTRUCTORS}[bad]
    outcomes = [
        peers.outcome(lambda lib=library: getattr(lib, name)(*args, **kwargs))  # type: ignore[misc]
        for library in (fastrnn, torch.nn)
    ]
    (module, error), (_, expected) = outcomes
    assert error is expected
    assert error is not None or isinstance(module, torch.nn.Module)


@pytest.mark.parametrize("name", [*peers.LAYERS, *peers.CELLS])
def test_weights_of_another_dtype_or_shape(name: str) -> None:
    suffix = "" if name in peers.CELLS else "_l0"
    x = z(B, I) if name in peers.CELLS else z(T, B, I)
    for key, value in (
        (f"bias_hh{suffix}", z(9 * H)),
        (f"weight_ih{suffix}", "double"),
        (f"weight_hh{suffix}", "bfloat16"),
        (f"bias_hh{suffix}", "half"),
    ):
        errors = []
        for module in peers.pair(name, I, H):
            new = value if isinstance(value, Tensor) else getattr(getattr(module, key), value)()
            setattr(module, key, torch.nn.Parameter(new.detach()))
            errors.append(peers.outcome(lambda m=module: m(x))[1])  # type: ignore[misc]
        assert errors[0] is errors[1], key


@pytest.mark.parametrize("name", [*peers.LAYERS, *peers.CELLS])
def test_a_weight_that_is_gone(name: str) -> None:
    x = z(B, I) if name in peers.CELLS else z(T, B, I)
    for key in list(getattr(fastrnn, name)(I, H).state_dict()):
        errors = []
        for module in peers.pair(name, I, H):
            delattr(module, key)
            errors.append(peers.outcome(lambda m=module: m(x))[1])  # type: ignore[misc]
        assert errors[0] is errors[1], key


BACKWARDS: dict[str, Callable[[list[Tensor]], Any]] = {
    "not a number": lambda r: r[0].backward(),
    "a gradient of another shape": lambda r: r[0].backward(z(2)),
    "a gradient of another dtype": lambda r: r[0].backward(torch.ones_like(r[0]).double()),
    "by what it does not depend on": lambda r: torch.autograd.grad(
        r[0].sum(), z(1).requires_grad_()
    ),
    "a leaf made of a result": lambda r: r[0].requires_grad_(False),
}


@pytest.mark.parametrize("bad", BACKWARDS)
@pytest.mark.parametrize("setup", [*peers.few_layers(), *peers.cells()], ids=str)
def test_backward(setup: peers.Setup, bad: str) -> None:
    errors = [
        peers.outcome(lambda m=module: BACKWARDS[bad](setup.call(m, *setup.leaves())))[1]  # type: ignore[misc]
        for module in setup.pair()
    ]
    assert errors[0] is errors[1]
