"""The Triton kernels' numbers against torch.nn in float64, interpreted on any CPU.

    TRITON_INTERPRET=1 python tests/test_triton.py        every interpreted case's errors, as JSON

The variable has to be set before Triton is imported, so the tests of the interpreted kernels run
this file as a process of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from fastrnn.kernels.contract import CELLS

TOLERANCE = {  # of outputs and states, of gradients
    torch.float32: (1e-6, 1e-5),
    torch.bfloat16: (1e-2, 2e-2),
    torch.float16: (2e-3, 5e-3),
}
WHOLE, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16
TRITON = "triton.layer"  # of fastrnn.kernels


@dataclasses.dataclass(frozen=True)
class Case:
    """One comparison.

    `sms`, how many multiprocessors the GPU has, selects the plan: 0 takes the tensor form where it
    exists. One step, sizes too large for one multiprocessor, and `stepwise` take the step kernels.
    Interpreted, these run all steps in one launch only where a single program computes everything.
    """

    cell: str
    dtype: torch.dtype
    steps: int
    batch: int
    features: int
    hidden: int
    packed: bool = False
    reverse: bool = False
    bias: bool = True
    scale: float = 1.0  # of the weights: 100 saturates every gate
    sms: int = 132
    stepwise: bool = False

    @property
    def name(self) -> str:
        size = f"T{self.steps}-B{self.batch}-I{self.features}-H{self.hidden}"
        words = [self.cell, str(self.dtype).removeprefix("torch."), size]
        words += ["packed"] * self.packed + ["reverse"] * self.reverse
        words += ["no_bias"] * (not self.bias) + ["saturated"] * (self.scale > 1)
        words += [f"sms{self.sms}"] * (self.sms != 132) + ["stepwise"] * self.stepwise
        return "-".join(words)


def cases() -> Iterator[Case]:
    """Every form, layout, direction and odd size at least once; small, for the interpreter."""
    for cell in ("lstm", "gru"):
        yield Case(cell, WHOLE, 1, 1, 1, 1)
        yield Case(cell, WHOLE, 5, 3, 1, 63)
        yield Case(cell, WHOLE, 4, 3, 3, 5, packed=True, reverse=True)
        yield Case(cell, WHOLE, 3, 3, 28, 32, packed=True, sms=1)
        yield Case(cell, WHOLE, 3, 2, 1, 7, sms=0)
        yield Case(cell, WHOLE, 2, 3, 1, 33, reverse=True, bias=False, sms=1)
        yield Case(cell, WHOLE, 4, 1, 1, 32, scale=100)
        yield Case(cell, HALF, 3, 2, 1, 20)
        yield Case(cell, HALF, 33, 17, 3, 32, packed=True, sms=0)
        yield Case(cell, BRAIN, 6, 17, 1, 64, reverse=True, sms=0)
        yield Case(cell, HALF, 5, 3, 28, 100, packed=True, reverse=True)
        yield Case(cell, BRAIN, 5, 9, 28, 33, packed=True, reverse=True, sms=3)
        yield Case(cell, BRAIN, 4, 9, 1, 128, bias=False, sms=0)
        yield Case(cell, HALF, 4, 3, 1, 128, scale=100)
        yield Case(cell, WHOLE, 4, 3, 1, 40, packed=True, reverse=True)
        yield Case(cell, BRAIN, 5, 9, 1, 50, packed=True, sms=3)
        yield Case(cell, HALF, 3, 2, 1, 128, reverse=True, bias=False)
        yield from step_cases(cell)


def step_cases(cell: str) -> Iterator[Case]:
    """One step; several, in one launch each or all in one; by one program or several."""
    yield Case(cell, WHOLE, 1, 3, 5, 9)
    yield Case(cell, HALF, 1, 17, 40, 33, bias=False)
    yield Case(cell, WHOLE, 3, 5, 40, 66, packed=True, reverse=True)
    yield Case(cell, BRAIN, 3, 17, 1, 130, packed=True, sms=1)
    yield Case(cell, WHOLE, 4, 3, 3, 15, packed=True, sms=1, stepwise=True)
    yield Case(cell, HALF, 5, 9, 33, 30, reverse=True, sms=1, stepwise=True)
    yield Case(cell, WHOLE, 3, 1, 1, 20, scale=100, stepwise=True)


def error(found: Tensor, wanted: Tensor) -> float:
    """||found - wanted|| / ||wanted||; NaN unless every element was written."""
    wanted = wanted.detach().cpu()
    difference = (found.double().cpu() - wanted).norm()
    return float(difference / wanted.norm().clamp_min(1e-300)) if difference else 0.0


def _round(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t.to(dtype).double()


def _make(case: Case) -> tuple[torch.nn.RNNBase, Tensor, list[Tensor], Tensor | None]:
    """A module of torch.nn in float64, its input's rows, initial states and batch sizes."""
    generator = torch.Generator().manual_seed(0)
    module = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[case.cell](
        case.features, case.hidden, bias=case.bias, bidirectional=case.reverse, dtype=torch.float64
    )
    bound = case.scale * case.hidden**-0.5
    for p in module.parameters():
        p.data.uniform_(-bound, bound, generator=generator)
        p.data = _round(p.data, case.dtype)
    x = torch.randn(case.steps, case.batch, case.features, generator=generator).double()
    shape = (case.batch, case.hidden)
    states = [torch.randn(shape, generator=generator) / 2 for _ in range(2)]
    states = states[: 2 if case.cell == "lstm" else 1]
    batch_sizes = None
    rows = x.flatten(0, 1)
    if case.packed:
        lengths = torch.randint(1, case.steps + 1, (case.batch,), generator=generator)
        lengths[0] = case.steps
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths.sort(descending=True)[0])
        rows, batch_sizes = packed.data, packed.batch_sizes
    return module, _round(rows, case.dtype), [_round(s, case.dtype) for s in states], batch_sizes


def _oracle(
    case: Case, module: torch.nn.RNNBase, x: Tensor, states: list[Tensor], sizes: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs [y, states] and the leaves [x, states, weights, biases] they depend on."""
    x = x.clone().requires_grad_()
    states = [s.clone().requires_grad_() for s in states]
    given = x.view(case.steps, case.batch, -1) if sizes is None else x
    pads = [torch.zeros_like(s) for s in states]
    first = [
        torch.stack([p, s] if case.reverse else [s]) for p, s in zip(pads, states, strict=True)
    ]
    wrapped = given if sizes is None else torch.nn.utils.rnn.PackedSequence(given, sizes)
    y, last = module(wrapped, tuple(first) if case.cell == "lstm" else first[0])
    y = y.flatten(0, 1) if sizes is None else y.data
    last = [h[-1] for h in (last if case.cell == "lstm" else [last])]
    weights = [p for n, p in module.named_parameters() if n.endswith("_reverse") == case.reverse]
    return [y[:, -case.hidden :], *last], [x, *states, *weights]


@contextlib.contextmanager
def planned(case: Case) -> Iterator[None]:
    """Plans as for a GPU of the case's multiprocessors; if `stepwise`, as if no weights fit."""
    from fastrnn.kernels.triton import launch
    from fastrnn.kernels.triton.plans import Processor

    changed: dict[str, Any] = {}
    if case.sms != Case.sms:
        changed["processor"] = lambda device: Processor(case.sms)
    if case.stepwise:
        changed["fits_on_chip"] = lambda *sizes: False
    with mock.patch.multiple(launch, **changed) if changed else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Fills what torch.empty returns with NaN, so that an element that nobody writes shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def kernels(name: str) -> Any:
    """A module of fastrnn.kernels that offers what `KernelModule` says."""
    return importlib.import_module(f"fastrnn.kernels.{name}")


def compare(case: Case, device: str, module: str = TRITON) -> dict[str, float]:
    """Every output's and gradient's error, by name."""
    layer, rows, first, sizes = _make(case)
    wanted, leaves = _oracle(case, layer, rows, first, sizes)
    torch.manual_seed(0)
    seeds = [_round(torch.randn_like(w), case.dtype) for w in wanted]
    gradients = torch.autograd.grad(wanted, leaves, seeds)

    def give(t: Tensor) -> Tensor:
        return t.detach().to(device, case.dtype).contiguous()

    x, *states = [give(t) for t in leaves[: 1 + len(first)]]
    weights = [give(p) for p in leaves[1 + len(first) :]] + [None] * (0 if case.bias else 2)
    names = ["y", "h_n", "c_n"][: len(wanted)]
    cell, (dy, *d_final) = CELLS[case.cell], map(give, seeds)
    forward, backward = kernels(module).forward, kernels(module).backward
    with planned(case), poisoned():
        y, final, saved = forward(cell, x, states, weights, sizes, case.reverse, True)
        plain_y, plain_final, _ = forward(cell, x, states, weights, sizes, case.reverse, False)
        dx, d_states, d_weights = backward(
            cell, dy, d_final, x, states, weights[:2], y, saved, sizes, case.reverse, True, True
        )
    found, plain = (y, *final), (plain_y, *plain_final)
    assert not any(t.isnan().any() for t in saved)
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    errors = {n: error(f, w) for n, f, w in zip(names, found, wanted, strict=True)}
    labels = [*["dx", "dh0", "dc0"][: 1 + len(first)], "dw_ih", "dw_hh", "db_ih", "db_hh"]
    pairs = zip(labels, (dx, *d_states, *d_weights), gradients, strict=False)
    return errors | {n: error(f, w) for n, f, w in pairs}


def failures(case: Case, errors: dict[str, float]) -> dict[str, float]:
    """The errors above the tolerance; NaN is above any.

    Weights that saturate the gates amplify any rounding, torch.nn's own too: the gradients only
    have to be numbers.
    """
    forward, backward = TOLERANCE[case.dtype] if case.scale == 1 else (0.1, torch.inf)
    return {
        name: value
        for name, value in errors.items()
        if not value <= (backward if name.startswith("d") else forward)
    }


def non_finite(device: str, module: str = TRITON) -> dict[str, bool]:
    """Whether NaN and infinity reach the sequence they are in, from their step on, and no other."""
    results = {}
    for name, cell in CELLS.items():
        forward = kernels(module).forward
        for dtype, hidden in ((WHOLE, 8), (HALF, 128), (BRAIN, 130)):
            layer, rows, first, _ = _make(Case(name, dtype, 3, 3, 1, hidden))
            x, *states = (t.detach().to(device, dtype) for t in (rows, *first))
            weights = [p.detach().to(device, dtype) for p in layer.parameters()]
            x[4] = torch.nan  # step 1, sequence 1
            y = forward(cell, x, states, weights, None, False, False)[0]
            y = y.view(3, 3, hidden).isnan()
            spread = bool(y[1:, 1].all() and not y[0].any() and not y[:, ::2].any())
            x[4] = torch.inf
            y = forward(cell, x, states, weights, None, False, False)[0]
            results[f"{name} {dtype}"] = spread and not bool(y.isnan().any())
    return results


def empty_batch(device: str, module: str = TRITON) -> list[tuple[int, ...]]:
    """Shapes of an LSTM's results and gradients for no sequence at all."""
    forward, backward = kernels(module).forward, kernels(module).backward
    cell = CELLS["lstm"]
    x, h = torch.empty(0, 2, device=device), torch.empty(0, 3, device=device)
    w = [torch.zeros(12, n, device=device) for n in (2, 3)]
    y, final, saved = forward(cell, x, (h, h), (*w, None, None), None, False, True)
    given = (cell, y, final, x, (h, h), w, y, saved)
    dx, d_states, d_weights = backward(*given, None, False, True, True)
    return [tuple(t.shape) for t in (y, *final, *saved, dx, *d_states, *d_weights)]


def opcheck(device: str, backend: str = "triton") -> bool:
    """torch's own check of the ops: schema, fake kernels' shapes and strides, autograd."""
    importlib.import_module("fastrnn.ops")
    torch.manual_seed(0)
    for cell, gates in (("lstm", 4), ("gru", 3)):
        for sizes in (None, torch.tensor([3, 2])):  # a step, and a sequence
            tensors = [torch.randn(3 if sizes is None else 5, 2)]
            tensors += [torch.randn(3, 4) for _ in range(2 if cell == "lstm" else 1)]
            tensors += [torch.randn(gates * 4, n) for n in (2, 4)] + [torch.randn(gates * 4)] * 2
            given = [t.to(device).requires_grad_() for t in tensors]
            op = getattr(torch.ops.fastrnn, cell).default
            torch.library.opcheck(op, (*given, sizes, sizes is not None, True, backend))
    return True


def pixel_loops(device: str) -> dict[str, bool]:
    """Whether the kernel draws the pixels that eager steps draw, and reads with their results."""
    from fastrnn import backends
    from fastrnn.kernels.triton.pixels import run
    from fastrnn.tasks import pixels
    from fastrnn.tasks.models import PixelModel

    results = {}
    for cell, hidden, layers in (("LSTM", 33, 1), ("GRU", 20, 1), ("LSTM", 5, 2), ("GRU", 3, 3)):
        generator = torch.Generator().manual_seed(0)
        model = PixelModel(cell, hidden, layers)
        for p in model.parameters():
            p.data = torch.randn(p.shape, generator=generator) / 3
        images = torch.randint(0, 2, (2, 2), generator=generator).byte().to(device)
        uniforms = torch.rand(2, 1, 3, generator=generator).to(device)
        lengths = torch.tensor([2, 1], device=device)
        found = []
        for loop in (None, functools.partial(run, CELLS[cell.lower()])):
            with mock.patch.object(backends, "pixel_loop", lambda *_, loop=loop: loop):
                drawn, logits = pixels.sample(model.to(device), images, 3, uniforms)
                read, state = pixels.advance(model, images, lengths=lengths)
            found.append((drawn.float(), logits, read, state.h, state.logit, state.log_likelihood))
        close = [torch.allclose(a, b, atol=1e-5) for a, b in zip(*found, strict=True)]
        results[f"{cell} {layers} x {hidden}"] = all(close)
    return results


CASES = list(cases())


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    """What this file reports from a process in which Triton interprets."""
    script = Path(__file__)
    done = subprocess.run(
        [sys.executable, "-W", "ignore::RuntimeWarning", script],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(script.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def named(case: Case) -> str:
    return case.name


@pytest.mark.parametrize("case", CASES, ids=named)
def test_interpreted_results_and_gradients_are_those_of_torch_nn_in_float64(
    case: Case, interpreted: dict[str, Any]
) -> None:
    assert not failures(case, interpreted["cases"][case.name])


@pytest.mark.parametrize("cell", CELLS)
def test_interpreted_cases_reach_every_form_of_a_whole_sequence(cell: str) -> None:
    from fastrnn.kernels.triton.plans import Processor, choose_plan, fits_on_chip

    def forms(sms: int, hidden: int, batch: int, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
        if fits_on_chip(hidden, dtype, Processor(sms)):
            for way in ("forward", "backward"):
                plan = choose_plan(hidden, batch, dtype, Processor(sms), way)
                yield way, plan.units, plan.rows, plan.split, plan.free

    sizes = itertools.product((32, 64, 128), (1, 132, 264, 528, 2000), (WHOLE, HALF))
    every = {form for size in sizes for form in forms(132, *size)}
    walks = [c for c in CASES if c.cell == cell and c.steps > 1 and not c.stepwise]
    reached = {form for c in walks for form in forms(c.sms, c.hidden, c.batch, c.dtype)}
    assert not every - reached


def test_interpreted_nan_and_inf_stay_in_their_sequence(interpreted: dict[str, Any]) -> None:
    assert all(interpreted["non_finite"].values()), interpreted["non_finite"]


def test_interpreted_pixels_are_those_of_eager_steps(interpreted: dict[str, Any]) -> None:
    assert all(interpreted["pixel_loops"].values()), interpreted["pixel_loops"]


def test_interpreted_empty_batch_gives_empty_results_and_zero_gradients(
    interpreted: dict[str, Any],
) -> None:
    assert interpreted["empty_batch"][:3] == [[0, 3]] * 3
    assert interpreted["empty_batch"][-3:] == [[12, 2], [12, 3], [12]]


def test_interpreted_ops_pass_opcheck(interpreted: dict[str, Any]) -> None:
    assert interpreted["opcheck"]


def test_tensors_that_start_between_words_are_copied() -> None:
    from fastrnn.kernels.triton import launch

    halves = torch.arange(9, dtype=HALF)
    aligned, shifted = launch.word_aligned(halves[2:], halves[1:])
    assert aligned.data_ptr() == halves[2:].data_ptr()
    assert shifted.data_ptr() % 4 == 0
    assert torch.equal(shifted, halves[1:])


def test_the_comparison_catches_a_result_that_is_off_by_a_thousandth() -> None:
    case = CASES[0]
    right = torch.randn(100, dtype=torch.float64)
    assert failures(case, {"y": error(right * 1.001, right)})
    assert failures(case, {"y": error(right * torch.nan, right)})


if __name__ == "__main__":
    torch.set_num_threads(1)
    report = {
        "cases": {case.name: compare(case, "cpu") for case in CASES},
        "non_finite": non_finite("cpu"),
        "empty_batch": empty_batch("cpu"),
        "opcheck": opcheck("cpu"),
        "pixel_loops": pixel_loops("cpu"),
    }
    print(json.dumps(report))
