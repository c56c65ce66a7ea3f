"""The ops: schemas, fakes and autograd pass torch's own checks, to the second derivative."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn
from fastrnn import ops  # noqa: F401  (registers torch.ops.fastrnn)
from tests import oracle

pytestmark = pytest.mark.usefixtures("one_thread")

LAYOUTS = {"padded": None, "packed": torch.tensor([3, 3, 2, 1])}
I, H = 3, 5  # noqa: E741

layouts = pytest.mark.parametrize("layout", LAYOUTS)
reversed_or_not = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
each_backend = pytest.mark.parametrize(
    "backend", sorted({name.partition(":")[0] for name in oracle.backends()})
)
cells = pytest.mark.parametrize("cell", ["lstm", "gru"])


def name(backend: str) -> str:
    """The op's backend argument: instruction sets are chosen elsewhere."""
    return backend.partition(":")[0]


def inputs(cell: str, layout: str, dtype: torch.dtype, bias: bool = True) -> list[Any]:
    """x, states, weights, biases and batch_sizes."""
    gates, states = (4, 2) if cell == "lstm" else (3, 1)
    rows = 12 if LAYOUTS[layout] is None else 9
    shapes = [(rows, I), *[(3, H)] * states, (gates * H, I), (gates * H, H), *[(gates * H,)] * 2]
    generator = torch.Generator().manual_seed(0)
    made: list[Tensor | None] = [
        (torch.rand(s, generator=generator) - 0.5).to(dtype).requires_grad_() for s in shapes
    ]
    if not bias:
        made[-2:] = [None, None]
    return [*made, LAYOUTS[layout]]


def backward_arguments(cell: str, given: list[Any], reverse: bool, backend: str) -> list[Any]:
    given = [t.detach() if isinstance(t, Tensor) else t for t in given]
    states = 2 if cell == "lstm" else 1
    outputs = getattr(torch.ops.fastrnn, cell)(*given, reverse, True, backend)
    grads = [torch.ones_like(t) for t in outputs[: 1 + states]]
    *tensors, _, _, batch_sizes = given
    return [*grads, *tensors, outputs[0], *outputs[1 + states :], batch_sizes, reverse]


# torch's check looks at .grad of the views it makes itself
opcheck_warns = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)


@opcheck_warns
@each_backend
@layouts
@reversed_or_not
@pytest.mark.parametrize("save", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
@cells
def test_opcheck(
    cell: str, bias: bool, save: bool, reverse: bool, layout: str, backend: str
) -> None:
    given = inputs(cell, layout, torch.float32, bias)
    if not save:
        given = [t.detach() if isinstance(t, Tensor) else t for t in given]
    op = getattr(torch.ops.fastrnn, cell).default
    torch.library.opcheck(op, (*given, reverse, save, name(backend)))


@opcheck_warns
@each_backend
@layouts
@pytest.mark.parametrize("need_dx", [False, True], ids=["no_dx", "dx"])
@pytest.mark.parametrize("has_dy", [False, True], ids=["no_dy", "dy"])
@cells
def test_opcheck_backward(
    cell: str, has_dy: bool, need_dx: bool, layout: str, backend: str
) -> None:
    given = inputs(cell, layout, torch.float32)
    arguments = backward_arguments(cell, given, False, name(backend))
    if not has_dy:
        arguments[0] = None
    op = getattr(torch.ops.fastrnn, f"{cell}_backward").default
    torch.library.opcheck(op, (*arguments, need_dx, name(backend)))


def outputs_of(
    cell: str, sizes: Tensor | None, reverse: bool, backend: str
) -> Callable[..., tuple[Tensor, ...]]:
    """The op's differentiable results as a function of x, states, weights and biases."""

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        results = getattr(torch.ops.fastrnn, cell)(*tensors, sizes, reverse, True, name(backend))
        return tuple(results[: 3 if cell == "lstm" else 2])

    return function


@layouts
@reversed_or_not
@cells
def test_gradcheck(cell: str, reverse: bool, layout: str, backend: str) -> None:
    *tensors, sizes = inputs(cell, layout, torch.float64)
    assert torch.autograd.gradcheck(
        outputs_of(cell, sizes, reverse, backend), tensors, fast_mode=True
    )


@layouts
@cells
def test_gradgradcheck(cell: str, layout: str, backend: str) -> None:
    *tensors, sizes = inputs(cell, layout, torch.float64)
    function = outputs_of(cell, sizes, False, backend)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


@cells
def test_gradients_of_some_inputs_only(cell: str, backend: str) -> None:
    *tensors, sizes = inputs(cell, "padded", torch.float64)
    function = outputs_of(cell, sizes, False, backend)
    everything = torch.autograd.grad(function(*tensors)[0].sum(), tensors, allow_unused=True)
    for i, wanted in enumerate(everything):
        alone = [t.detach().requires_grad_(i == j) for j, t in enumerate(tensors)]
        (found,) = torch.autograd.grad(function(*alone)[0].sum(), [alone[i]])
        torch.testing.assert_close(found, wanted)


@cells
def test_gradients_through_one_state_only(cell: str, backend: str) -> None:
    *tensors, sizes = inputs(cell, "packed", torch.float64)
    for i in range(3 if cell == "lstm" else 2):
        found, wanted = (
            torch.autograd.grad(outputs_of(cell, sizes, True, b)(*tensors)[i].sum(), tensors)
            for b in (backend, "reference")
        )
        torch.testing.assert_close(found, wanted)


@cells
def test_a_second_backward_finds_the_same(cell: str, backend: str) -> None:
    *tensors, sizes = inputs(cell, "padded", torch.float32)
    y = outputs_of(cell, sizes, False, backend)(*tensors)[0].square().sum()
    first = torch.autograd.grad(y, tensors, retain_graph=True)
    second = torch.autograd.grad(y, tensors)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@layouts
@cells
def test_no_argument_is_written_to(cell: str, layout: str, backend: str) -> None:
    given = inputs(cell, layout, torch.float32)
    arguments = [*backward_arguments(cell, given, False, name(backend)), True, name(backend)]
    before = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
    getattr(torch.ops.fastrnn, f"{cell}_backward")(*arguments)
    for a, b in zip(arguments, before, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


@cells
def test_a_changed_saved_tensor_is_noticed(cell: str, backend: str) -> None:
    *tensors, sizes = inputs(cell, "padded", torch.float32)
    y = outputs_of(cell, sizes, False, backend)(*tensors)[0]
    with torch.no_grad():
        tensors[0].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@cells
@layouts
def test_backward_without_saved_activations_runs_the_layer_again(
    cell: str, layout: str, backend: str
) -> None:
    *tensors, sizes = inputs(cell, layout, torch.float32)
    op = getattr(torch.ops.fastrnn, cell)
    gradients = []
    for save in (False, True):
        y = op(*tensors, sizes, True, save, name(backend))[0]
        gradients.append(torch.autograd.grad(y.square().sum(), tensors))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("cell", oracle.CELLS)
def test_double_backward_is_that_of_torch(cell: str, packed: bool, backend: str) -> None:
    layout = "packed" if packed else "padded"
    case = oracle.Case(cell, torch.float64, 4, 3, I, H, layout, bidirectional=True)
    results = []
    for library in (fastrnn, nn):
        made = oracle.module(case, library, torch.float64)
        x = oracle.leaves(case)[0].requires_grad_()
        given: Any = x
        if packed:
            given = nn.utils.rnn.pack_padded_sequence(x, torch.tensor(oracle.lengths(case)))
        y = made(given)[0]
        loss = (y.data if packed else y).square().sum()
        leaves = [x, *made.parameters()]
        gradients = torch.autograd.grad(loss, leaves, create_graph=True)
        penalty = torch.stack([g.square().sum() for g in gradients]).sum()
        results.append(torch.autograd.grad(penalty, leaves))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)
