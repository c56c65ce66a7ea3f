"""Random calls of layers: the numbers are torch.nn's in float64, whatever the arguments.

Where few numbers are left of large sums, a dtype cannot keep to the tolerance; then the error is at
most twice torch.nn's own.

``pytest tests/test_random_calls.py --examples 100000`` tries more of them.
"""

from __future__ import annotations

import contextlib
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fastrnn
from tests import oracle

pytestmark = pytest.mark.usefixtures("one_thread")

CALLS = 2000
LAYOUTS = ("contiguous", "strided", "expanded", "packed", "unsorted")
# Small results of large sums are as wrong as the sums are, torch.nn's own in this dtype too: no
# tensor counts as smaller than this, root mean square.
FLOOR = {torch.float64: 0.1, torch.float32: 0.1, torch.bfloat16: 0.3}
sizes = st.sampled_from([1, 2, 3, 5, 8, 17, 33])


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    """The arguments of a call, and how it is made."""
    batch = draw(sizes)
    steps = draw(sizes)
    return {
        "cell": draw(st.sampled_from(oracle.CELLS)),
        "dtype": draw(st.sampled_from(list(FLOOR))),
        "backend": draw(st.sampled_from([None, "torch", *oracle.backends()])),
        "batch": batch,
        "features": draw(sizes),
        "hidden": draw(sizes),
        "layers": draw(st.integers(1, 3)),
        "bidirectional": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "layout": draw(st.sampled_from(LAYOUTS)),
        "lengths": draw(st.lists(st.integers(1, steps), min_size=batch, max_size=batch)),
        "states": draw(st.sampled_from([None, "contiguous", "strided"])),
        "grad": draw(st.booleans()),
        "seed": draw(st.integers(0, 1 << 30)),
    }


def modules(call: dict[str, Any]) -> tuple[nn.RNNBase, ...]:
    """Ours and torch.nn's in the call's dtype, and torch.nn's in float64, with the same weights."""
    made = []
    kinds = ((fastrnn, call["dtype"]), (nn, call["dtype"]), (nn, torch.float64))
    for library, dtype in kinds:
        made.append(
            getattr(library, call["cell"])(
                call["features"],
                call["hidden"],
                call["layers"],
                bias=call["bias"],
                batch_first=call["batch_first"],
                bidirectional=call["bidirectional"],
                dtype=dtype,
            )
        )
    for other in made[1:]:
        other.load_state_dict(made[0].state_dict())
    return tuple(made)


def given(call: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
    """Input rows [T, B, I] and states, in the call's dtype."""
    steps, batch = max(call["lengths"]), call["batch"]
    x = torch.randn(steps, batch, call["features"]).to(call["dtype"])
    if call["layout"] == "strided":
        x = x.repeat(1, 1, 2)[:, :, 1 : 1 + call["features"]]
    if call["layout"] == "expanded":
        x = x[:1].expand(steps, -1, -1)
    rows = call["layers"] * (2 if call["bidirectional"] else 1)
    count = 0 if call["states"] is None else 2 if call["cell"] == "LSTM" else 1
    states = [torch.randn(rows, batch, call["hidden"]).to(call["dtype"]) for _ in range(count)]
    if call["states"] == "strided":
        states = [s.transpose(1, 2).contiguous().transpose(1, 2) for s in states]
    return x, states


def run(call: dict[str, Any], module: nn.RNNBase, x: Tensor, states: list[Tensor]) -> list[Tensor]:
    """Output, final states and, if wanted, gradients of x, states and parameters."""
    leaves = [t.detach().requires_grad_(call["grad"]) for t in (x, *states)]
    rows, hx = leaves[0], tuple(leaves[1:])
    input: Any = rows.transpose(0, 1) if call["batch_first"] else rows
    if call["layout"] in ("packed", "unsorted"):
        lengths = call["lengths"]
        if call["layout"] == "packed":
            lengths = sorted(lengths, reverse=True)
        sequences = [rows[:n, b] for b, n in enumerate(lengths)]
        input = pack_sequence(sequences, enforce_sorted=call["layout"] == "packed")
    state: Any = (hx or None) if call["cell"] == "LSTM" else (hx[0] if hx else None)
    with torch.set_grad_enabled(call["grad"]):
        y, final = module(input, state)
    outputs = [y.data if isinstance(y, PackedSequence) else y]
    outputs += list(final) if call["cell"] == "LSTM" else [final]
    if not call["grad"]:
        return outputs
    cotangents = [torch.ones_like(t) for t in outputs]
    wanted = [*leaves, *module.parameters()]
    outputs += torch.autograd.grad(outputs, wanted, cotangents)
    return [t.detach() for t in outputs]


@pytest.mark.filterwarnings("ignore:.*non-contiguous")
def test_random_calls_give_the_numbers_of_torch_nn(pytestconfig: pytest.Config) -> None:
    done = []

    @hypothesis.settings(
        max_examples=pytestconfig.getoption("--examples") or CALLS,
        deadline=None,
        derandomize=True,
        database=None,
    )
    @hypothesis.given(calls())
    def check(call: dict[str, Any]) -> None:
        torch.manual_seed(call["seed"])
        ours, theirs, exact = modules(call)
        x, states = given(call)
        forced: Any = contextlib.nullcontext()
        if call["backend"] is not None:
            forced = oracle.forced(call["backend"])
        with forced:
            found = run(call, ours, x, states)
        wanted = run(call, exact, x.double(), [s.double() for s in states])
        forward, backward = oracle.TOLERANCES[call["dtype"]]
        outputs = 3 if call["cell"] == "LSTM" else 2
        peer: list[Tensor] = []
        for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
            assert a.shape == b.shape
            assert a.dtype == call["dtype"]
            scale = max(float(b.norm()), FLOOR[call["dtype"]] * b.numel() ** 0.5)
            error = float((a.double() - b).norm()) / scale
            if error > (forward if i < outputs else backward):
                peer = peer or run(call, theirs, x, states)
                own = float((peer[i].double() - b).norm()) / scale
                assert error <= 2 * own, (i, error, own)
        done.append(1)

    check()
    assert len(done) >= CALLS
