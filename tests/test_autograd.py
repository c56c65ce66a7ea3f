"""Gradients behave as torch.nn's: their memory, in-place changes, detaching, higher orders."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import fastrnn
from tests import peers
from tests.peers import Setup

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # torch.compile looks at .grad of inputs that are not leaves
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

ALL = [*peers.layers(), *peers.layers(layouts=["padded"], steps=1), *peers.cells()]
FEW = [*peers.few_layers(), *peers.cells()[::2]]
each_setup = pytest.mark.parametrize("setup", ALL, ids=str)
a_few_setups = pytest.mark.parametrize("setup", FEW, ids=str)


def eager_and_compiled(test: Any) -> Any:
    """Every setup eagerly, and a few of them compiled."""
    cases = [pytest.param(s, "eager", id=f"{s}-eager") for s in ALL]
    cases += [pytest.param(s, "compiled", id=f"{s}-compiled") for s in FEW]
    return pytest.mark.parametrize(("setup", "how"), cases)(test)


def both(setup: Setup, how: str) -> tuple[list[Any], Any, Any]:
    """Fresh leaves, and functions of (module, leaves) for ours and torch.nn's; ours is compiled."""
    ours, theirs = setup.pair()
    if how == "compiled":
        return [peers.compiled(ours), theirs], ours, theirs
    return [ours, theirs], ours, theirs


def occupied(tensor: Tensor) -> range:
    """The addresses of a tensor's first to last element."""
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return range(start, start + (last + 1) * tensor.element_size())


def assert_no_shared_memory(found: Sequence[Tensor]) -> None:
    for a, b in itertools.combinations([occupied(t) for t in found if t.numel()], 2):
        assert a.stop <= b.start or b.stop <= a.start


# ---- the memory of gradients and results


@eager_and_compiled
def test_gradients_are_tensors_of_their_own(setup: Setup, how: str) -> None:
    found = []
    callables, *modules = both(setup, how)
    for call, module in zip(callables, modules, strict=True):
        leaves = [*setup.leaves(), *module.parameters()]
        results = setup.call(call, *leaves[: 1 + setup.states])
        value = peers.loss(results)
        first = torch.autograd.grad(value, leaves, retain_graph=True)
        if module is modules[0]:
            apart = results if how == "eager" else []  # of a graph's, some may be views of others
            assert_no_shared_memory([*first, *apart, *leaves])
        for gradient in first:
            gradient.mul_(0.5)  # as code that clips or averages gradients does
        second = torch.autograd.grad(value, leaves)
        assert_no_shared_memory([*second, *first])
        for a, b in zip(first, second, strict=True):
            torch.testing.assert_close(a, b / 2)
        found.append(second)
    torch.testing.assert_close(*found)


@eager_and_compiled
def test_gradients_that_backward_leaves_behind_are_tensors_of_their_own(
    setup: Setup, how: str
) -> None:
    found = []
    callables, *modules = both(setup, how)
    for call, module in zip(callables, modules, strict=True):
        leaves = [*setup.leaves(), *module.parameters()]
        value = peers.loss(setup.call(call, *leaves[: 1 + setup.states]))
        value.backward(retain_graph=True)
        for leaf in leaves:
            assert leaf.grad is not None
            leaf.grad.mul_(0.5)
        value.backward()
        gradients = [leaf.grad for leaf in leaves]
        assert_no_shared_memory(gradients)
        found.append(gradients)
    torch.testing.assert_close(*found)


@each_setup
def test_results_are_tensors_of_their_own(setup: Setup) -> None:
    module, _ = setup.pair()
    with torch.no_grad():
        leaves = setup.leaves()
        given = [leaf.clone() for leaf in leaves]
        results = setup.call(module, *given)
        assert_no_shared_memory([*results, *given])
        for result in results:
            result.zero_()
        assert all(torch.equal(a, b) for a, b in zip(given, leaves, strict=True))


@each_setup
def test_gradients_without_initial_states(setup: Setup) -> None:
    found = []
    for module in setup.pair():
        leaves = [setup.leaves()[0], *module.parameters()]
        gradients = torch.autograd.grad(peers.loss(setup.call(module, leaves[0])), leaves)
        assert_no_shared_memory(gradients)
        found.append(gradients)
    torch.testing.assert_close(*found)


@each_setup
def test_gradients_by_some_of_the_leaves(setup: Setup) -> None:
    found: list[list[Tensor]] = []
    for module in setup.pair():
        everything = setup.leaves()
        found.append([])
        for wanted in range(1 + setup.states):
            module.requires_grad_(False)
            leaves = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(everything)]
            results = setup.call(module, *leaves)
            found[-1] += torch.autograd.grad(peers.loss(results), [leaves[wanted]])
    torch.testing.assert_close(*found)


@each_setup
def test_results_that_need_no_gradient(setup: Setup) -> None:
    module, _ = setup.pair()
    module.requires_grad_(False)
    leaves = [t.detach() for t in setup.leaves()]
    assert not any(t.requires_grad for t in setup.call(module, *leaves))
    module.requires_grad_(True)
    assert all(t.requires_grad for t in setup.call(module, *leaves))
    with torch.no_grad():
        assert not any(t.requires_grad for t in setup.call(module, *leaves))
    with torch.inference_mode():
        assert all(t.is_inference() for t in setup.call(module, *leaves))


# ---- detaching in place

VIEWS = ("unbatched",)  # whose results are views of a batch's, of torch.nn's too

MODES: dict[str, Callable[[], Any]] = {
    "training": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
}


@pytest.mark.parametrize("mode", MODES)
@each_setup
def test_results_are_detached_in_place(setup: Setup, mode: str) -> None:
    module, peer = setup.pair()
    for index, _ in enumerate(setup.result_names):
        with MODES[mode]():
            result = setup.call(module, *setup.leaves())[index]
            theirs = setup.call(peer, *setup.leaves())[index]
            _, refused = peers.outcome(theirs.detach_)
            if refused is not None:  # a view: with the batch first, or without a batch
                continue
            value = result.clone()
            assert result.detach_() is result
        assert not result.requires_grad
        assert result.grad_fn is None
        assert torch.equal(result, value)


@eager_and_compiled
def test_truncated_back_propagation(setup: Setup, how: str) -> None:
    found = []
    callables, *modules = both(setup, how)
    for call, module in zip(callables, modules, strict=True):
        x, *states = (t.detach() for t in setup.leaves())
        for piece in range(3):
            results = setup.call(call, x + piece, *states)
            peers.loss(results).backward()
            states = results[-setup.states :]
            for state in states:
                if setup.layout not in VIEWS:
                    state.detach_()
            states = [state.detach() for state in states]
        found.append([p.grad for p in module.parameters()] + states)
    torch.testing.assert_close(*found)


# ---- results that are changed in place before the backward pass

CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "relu_": torch.relu_,
    "masked_fill_": lambda t: t.masked_fill_(t < 0.05, 0.0),
    "first row zero": lambda t: t.__setitem__(0, 0.0),
    "a view scaled": lambda t: t[..., 1:].mul_(2),
    "a transposed view": lambda t: t.transpose(0, -1).add_(1),
    "all zero": torch.zero_,
}
HOOKS: dict[str, Callable[[], Any]] = {
    "save_on_cpu": save_on_cpu,
    "saved_tensors_hooks": lambda: saved_tensors_hooks(Tensor.clone, Tensor.clone),
}
Change = Callable[[list[Tensor]], Any]


def in_place(change: str, index: int, fresh: bool) -> Change:
    """Changes one of the results in place, or a copy of it if ``fresh``."""

    def apply(results: list[Tensor]) -> list[Tensor]:
        if fresh:
            results = [t.clone() for t in results]
        CHANGES[change](results[index])
        return results

    return apply


def gradients_twice(setup: Setup, call: Any, module: nn.Module, change: Change) -> list[Tensor]:
    """Gradients of all leaves from one backward pass, and from another through the same graph."""
    leaves = [*setup.leaves(), *module.parameters()]
    value = peers.loss(change(setup.call(call, *leaves[: 1 + setup.states])))
    return [
        gradient
        for again in (True, False)
        for gradient in torch.autograd.grad(
            value, leaves, retain_graph=again, allow_unused=True, materialize_grads=True
        )
    ]


def check_change(setup: Setup, how: str, change: str) -> None:
    """Changes each result in turn; torch.nn and a copy of the result are the reference."""
    callables, ours, theirs = both(setup, how)
    for index, name in enumerate(setup.result_names):
        wanted = gradients_twice(setup, theirs, theirs, in_place(change, index, fresh=True))
        apply = in_place(change, index, fresh=False)
        _, refused = peers.outcome(lambda: gradients_twice(setup, theirs, theirs, apply))  # noqa: B023
        found, error = peers.outcome(lambda: gradients_twice(setup, callables[0], ours, apply))  # noqa: B023
        assert error in (None, refused), (name, error)
        if error is None:
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("change", CHANGES)
@each_setup
def test_results_changed_in_place(setup: Setup, change: str) -> None:
    check_change(setup, "eager", change)


@pytest.mark.parametrize("change", ["relu_", "a view scaled"])
@pytest.mark.parametrize("hooks", HOOKS)
@each_setup
def test_results_changed_in_place_under_hooks_of_saved_tensors(
    setup: Setup, hooks: str, change: str
) -> None:
    with HOOKS[hooks]():
        check_change(setup, "eager", change)


def all_at_once(results: list[Tensor]) -> list[Tensor]:
    for result in results:
        result.relu_()
    return results


@each_setup
def test_every_result_changed_in_place(setup: Setup) -> None:
    ours, theirs = setup.pair()
    wanted = gradients_twice(setup, theirs, theirs, lambda results: [t.relu() for t in results])
    _, refused = peers.outcome(lambda: gradients_twice(setup, theirs, theirs, all_at_once))
    found, error = peers.outcome(lambda: gradients_twice(setup, ours, ours, all_at_once))
    assert error in (None, refused)
    if error is None:
        torch.testing.assert_close(found, wanted)


class Inside(nn.Module):
    """A layer whose output is changed in place in the same module."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Any, hx: Any = None) -> Any:
        result = self.layer(x, hx)
        first = peers.tensors(result)[0]
        first.relu_()
        return result


@pytest.mark.parametrize("relu", [False, True], ids=["as it is", "changed in place"])
@each_setup
def test_checkpointed_layers(setup: Setup, relu: bool) -> None:
    ours, theirs = setup.pair()

    def run(module: nn.Module, recompute: bool) -> list[Tensor]:
        leaves = [*setup.leaves(), *module.parameters()]

        def part(*given: Tensor) -> list[Tensor]:
            results = setup.call(module, *given)
            if relu and recompute:
                results[0].relu_()
            elif relu:
                results[0] = results[0].relu()
            return results

        given = leaves[: 1 + setup.states]
        results = checkpoint(part, *given, use_reentrant=False) if recompute else part(*given)
        return list(torch.autograd.grad(peers.loss(results), leaves))

    found, error = peers.outcome(lambda: run(ours, True))
    _, refused = peers.outcome(lambda: run(theirs, True))
    assert error in (None, refused)
    if error is None:
        torch.testing.assert_close(found, run(theirs, False))


@each_setup
def test_inputs_changed_after_the_call_are_noticed(setup: Setup) -> None:
    for index in range(1 + setup.states):
        errors = []
        for module in setup.pair():
            given = [t.detach().clone() for t in setup.leaves()]
            value = peers.loss(setup.call(module, *given))
            given[index].mul_(2)
            errors.append(peers.outcome(value.backward)[1])
        assert errors[0] in (RuntimeError, errors[1])


# ---- higher orders


def penalty(setup: Setup, module: nn.Module, leaves: Sequence[Tensor]) -> Tensor:
    """The squared norm of a loss's gradients by the input and the states."""
    given = leaves[: 1 + setup.states]
    value = peers.loss(setup.call(module, *given))
    slopes = torch.autograd.grad(value, given, create_graph=True)
    return torch.stack([slope.square().sum() for slope in slopes]).sum()


double = [
    *peers.layers(dtype=torch.float64),
    *peers.layers(layouts=["padded"], steps=1, dtype=torch.float64),
    *peers.cells(dtype=torch.float64),
]


@pytest.mark.parametrize("setup", double, ids=str)
def test_gradient_penalty(setup: Setup) -> None:
    found = []
    for module in setup.pair():
        leaves = [*setup.leaves(), *module.parameters()]
        value = penalty(setup, module, leaves)
        value.backward()
        found.append([value, *(leaf.grad for leaf in leaves)])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("setup", double, ids=str)
def test_penalty_of_an_output_changed_in_place(setup: Setup) -> None:
    def run(module: nn.Module, change: Callable[[Tensor], Tensor]) -> list[Tensor]:
        leaves = [*setup.leaves(), *module.parameters()]
        output, *_ = setup.call(module, *leaves[: 1 + setup.states])
        value = peers.loss([change(output)])
        slopes = torch.autograd.grad(value, leaves, create_graph=True, materialize_grads=True)
        total = torch.stack([slope.square().sum() for slope in slopes]).sum()
        return list(torch.autograd.grad(total, leaves, materialize_grads=True))

    ours, theirs = setup.pair()
    wanted = run(theirs, torch.relu)
    _, refused = peers.outcome(lambda: run(theirs, torch.relu_))
    found, error = peers.outcome(lambda: run(ours, torch.relu_))
    assert error in (None, refused)
    if error is None:
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("setup", [s for s in double if s.num_layers == 1], ids=str)
def test_third_derivatives(setup: Setup) -> None:
    found = []
    for module in setup.pair():
        x = setup.leaves()[0]
        value = peers.loss(setup.call(module, x)[:1])
        for _ in range(2):
            (slope,) = torch.autograd.grad(value, x, create_graph=True)
            value = slope.square().sum()
        found.append(torch.autograd.grad(value, [x, *module.parameters()], materialize_grads=True))
    torch.testing.assert_close(*found)


@a_few_setups
def test_create_graph_and_then_no_second_backward(setup: Setup) -> None:
    found = []
    for module in setup.pair():
        leaves = [*setup.leaves(), *module.parameters()]
        value = peers.loss(setup.call(module, *leaves[: 1 + setup.states]))
        found.append(torch.autograd.grad(value, leaves, create_graph=True))
    torch.testing.assert_close(*found)
    assert_no_shared_memory(found[0])


@a_few_setups
def test_compiled_code_has_no_double_backward_as_of_any_layer(setup: Setup) -> None:
    module, _ = setup.pair()
    x = setup.leaves()[0]
    call = peers.compiled(module)
    (slope,) = torch.autograd.grad(peers.loss(setup.call(call, x)), x, create_graph=True)
    with pytest.raises(RuntimeError, match="aot_autograd does not currently support double"):
        slope.sum().backward()


# ---- around the graph


@each_setup
def test_hooks_of_results_see_and_replace_gradients(setup: Setup) -> None:
    found = []
    for module in setup.pair():
        seen: dict[int, Tensor] = {}
        results = setup.call(module, *setup.leaves())
        for index, result in enumerate(results):
            result.register_hook(lambda g, i=index, seen=seen: (seen.update({i: g}), g * 2)[1])
        gradients = torch.autograd.grad(peers.loss(results), list(module.parameters()))
        found.append([*gradients, *(seen[index] for index in range(len(results)))])
    torch.testing.assert_close(*found)


@each_setup
def test_retained_gradients_of_results(setup: Setup) -> None:
    found = []
    for module in setup.pair():
        results = setup.call(module, *setup.leaves())
        for result in results:
            result.retain_grad()
        peers.loss(results).backward()
        found.append([result.grad for result in results])
    torch.testing.assert_close(*found)


@each_setup
def test_a_second_backward_needs_retain_graph(setup: Setup) -> None:
    for module in setup.pair():
        value = peers.loss(setup.call(module, *setup.leaves()))
        value.backward()
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            value.backward()


@each_setup
def test_batched_cotangents(setup: Setup) -> None:
    """is_grads_batched runs the backward pass under vmap."""
    found = []
    for module in setup.pair():
        leaves = [*setup.leaves(), *module.parameters()]
        results = setup.call(module, *leaves[: 1 + setup.states])
        torch.manual_seed(2)
        cotangents = [torch.randn(3, *t.shape) for t in results]
        call = lambda r=results, v=leaves, c=cotangents: torch.autograd.grad(  # noqa: E731
            r, v, c, is_grads_batched=True
        )
        found.append(peers.outcome(call))
    (ours, error), (theirs, refused) = found
    assert error in (None, refused)
    if refused is None:
        torch.testing.assert_close(ours, theirs)


def test_gradients_reach_a_chain_of_layers() -> None:
    found = []
    for library in (fastrnn, nn):
        torch.manual_seed(0)
        stack = [library.LSTM(4, 5), library.GRU(5, 6, bidirectional=True), library.LSTM(12, 3)]
        x = torch.randn(4, 3, 4, requires_grad=True)
        y: Tensor = x
        state: Any = ()
        for layer in stack:
            y, state = layer(y)
            y = y.relu_() if isinstance(layer, fastrnn.GRU | nn.GRU) else y
        parameters = [p for layer in stack for p in layer.parameters()]
        found.append(torch.autograd.grad(peers.loss([y, *state]), [x, *parameters]))
    torch.testing.assert_close(*found)
