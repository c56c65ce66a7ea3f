"""The calls, with random numbers, that measurements run, and the check of their results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastrnn import backends, functional, tables
from fastrnn.backends import Call

_MOST_STEPS = 512
# B * T * H * (H + I) of a call that is timed, on CPUs and elsewhere; longer sequences are cut.
_MOST_WORK_ON_CPU, _MOST_WORK = 1 << 30, 1 << 34
_MANY_STEPS = 8  # sequences of up to this many steps are never cut
_CPU = torch.device("cpu").type

# ||found - wanted|| / ||wanted|| of outputs and states, and of gradients; see docs/correctness.md
TOLERANCES = {
    "float64": (1e-12, 1e-11),
    "float32": (1e-6, 1e-5),
    "tf32": (1e-3, 3e-3),
    "bfloat16": (1e-2, 2e-2),
    "float16": (2e-3, 5e-3),
}


@dataclass
class Example:
    """A layer's call with random numbers."""

    call: Call
    input: Tensor
    states: tuple[Tensor, ...]
    weights: list[Tensor]
    batch_sizes: Tensor | None
    d_results: list[Tensor] = field(default_factory=list)  # gradients of the results, in training

    def forward(self) -> tuple[Tensor, ...]:
        """Runs the layer as fastrnn's modules do; the output and the final states."""
        lstm = self.call.cell == "LSTM"
        results: tuple[Tensor, ...] = functional.run_stack(
            self.call.cell.lower(), self.input, self.states if lstm else self.states[0],
            self.weights, functional.StackOptions(), False, self.batch_sizes,
            torch.lstm if lstm else torch.gru,
        )  # fmt: skip
        return results

    def run(self) -> tuple[list[Tensor], list[Tensor]]:
        """The results and, in training, the gradients of all tensors."""
        results = self.forward()
        if not self.call.training:
            return list(results), []
        leaves = [self.input, *self.states, *self.weights]
        return list(results), list(torch.autograd.grad(results, leaves, self.d_results))

    def in_float64(self) -> Example:
        """The same call in float64."""

        def wide(tensor: Tensor) -> Tensor:
            return tensor.detach().double().requires_grad_(tensor.requires_grad)

        return Example(
            self.call._replace(dtype=torch.float64),
            wide(self.input),
            tuple(map(wide, self.states)),
            list(map(wide, self.weights)),
            self.batch_sizes,
            list(map(wide, self.d_results)),
        )


def shortened(call: Call) -> Call:
    """The call that is timed for a class: with fewer steps if that takes too long."""
    steps = min(call.steps, _MOST_STEPS)
    per_step = call.batch * call.hidden_size * (call.hidden_size + call.input_size)
    most = (_MOST_WORK_ON_CPU if call.device == _CPU else _MOST_WORK) // max(per_step, 1)
    while steps > _MANY_STEPS and steps > most:
        steps //= 2
    return call._replace(steps=steps)


def example_of(call: Call) -> Example:
    """A call with random numbers of these sizes."""
    device = tables.device_of(call)
    draw = torch.Generator(device).manual_seed(0)

    def uniform(bound: float, *shape: int) -> Tensor:
        values = torch.empty(shape, dtype=call.dtype, device=device)
        return values.uniform_(-bound, bound, generator=draw).requires_grad_(call.training)

    batch, hidden, bound = call.batch, call.hidden_size, call.hidden_size**-0.5
    lstm = call.cell == "LSTM"
    gates, count = (4 * hidden, 2) if lstm else (3 * hidden, 1)
    batch_sizes, shape = None, (call.steps, batch, call.input_size)
    if call.packed:  # the first sequence has all steps, each further one has fewer
        lengths = torch.tensor([1 + (call.steps - 1) * (batch - b) // batch for b in range(batch)])
        batch_sizes = (lengths > torch.arange(call.steps).unsqueeze(1)).sum(1)
        shape = (int(lengths.sum()), call.input_size)  # type: ignore[assignment]
    x = uniform(1.0, *shape)
    states = tuple([uniform(1.0, 1, batch, hidden) for _ in range(count)])
    shapes = ((gates, call.input_size), (gates, hidden), (gates,), (gates,))
    weights: list[Tensor] = [uniform(bound, *each) for each in shapes]
    if call.training:
        weights = [nn.Parameter(w.detach()) for w in weights]
    results = [(*shape[:-1], hidden), *[(1, batch, hidden)] * count]
    d_results = [uniform(1.0, *each).detach() for each in results] if call.training else []
    return Example(call, x, states, weights, batch_sizes, d_results)


def error_of(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest ||found - wanted|| / ||wanted|| of pairs of tensors; inf if one is NaN."""
    worst = 0.0
    for a, b in zip(found, wanted, strict=True):
        a, b = a.detach().double(), b.detach().double()
        error = float((a - b).norm() / b.norm().clamp_min(1e-300))
        worst = max(worst, error if error == error else float("inf"))
    return worst


def wrong_numbers(example: Example, found: Any, wanted: Any) -> str | None:
    """What is wrong with results and gradients; None if nothing is.

    Both torch.nn and a backend may err by the tolerance. If they differ by more, torch.nn in
    float64 decides, and torch.nn's own error counts in the backend's favour.

    Args:
        example: the call.
        found: results and gradients of the backend.
        wanted: those of torch.nn.
    """
    limits = TOLERANCES[tables.arithmetic_of(example.call)]
    if all(error_of(a, b) <= limit for a, b, limit in zip(found, wanted, limits, strict=True)):
        return None
    with backends.backend(backends.TORCH.name):
        exact = example.in_float64().run()
    for name, a, b, c, limit in zip(
        ("results", "gradients"), found, wanted, exact, limits, strict=True
    ):
        error, allowed = error_of(a, c), max(limit, 2 * error_of(b, c))
        if not error <= allowed:
            return f"{name} err by {error:.1e}, where {allowed:.1e} is allowed"
    return None
