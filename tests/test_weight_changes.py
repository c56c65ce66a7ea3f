"""Weights that change in place between a forward and a backward pass, as torch.nn allows it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import fastrnn
from tests import peers
from tests.peers import Setup

pytestmark = pytest.mark.usefixtures("one_thread")

ALL = [*peers.layers(), *peers.cells()]
Loss = Callable[[list[Tensor], Sequence[Tensor]], Tensor]  # of the results and the inputs


def ordinary(results: list[Tensor], inputs: Sequence[Tensor]) -> Tensor:
    return peers.loss(results)


def output_changed(results: list[Tensor], inputs: Sequence[Tensor]) -> Tensor:
    results[0].mul_(2)
    return peers.loss(results)


def penalty(results: list[Tensor], inputs: Sequence[Tensor]) -> Tensor:
    (slope,) = torch.autograd.grad(peers.loss(results), inputs[0], create_graph=True)
    return slope.square().sum()


def gradients(
    setup: Setup, module: Any, changed: str | None, by_input: bool, loss: Loss = ordinary
) -> list[Tensor]:
    """Gradients of a loss, if a parameter changes after the forward pass."""
    inputs = [t.requires_grad_(by_input) for t in setup.leaves()]
    parameters = dict(module.named_parameters())
    results = setup.call(module, *inputs)
    if changed is not None:
        with torch.no_grad():
            parameters[changed].add_(1)
    leaves = [*(inputs if by_input else ()), *parameters.values()]
    return list(torch.autograd.grad(loss(results, inputs), leaves, materialize_grads=True))


def check(setup: Setup, by_input: bool) -> None:
    """Whatever torch.nn allows must give the gradients of the forward pass that was."""
    wanted = gradients(setup, setup.pair()[0], None, by_input)
    for name, _ in setup.pair()[0].named_parameters():
        ours, theirs = (
            peers.outcome(functools.partial(gradients, setup, module, name, by_input))
            for module in setup.pair()
        )
        assert ours[1] in (None, theirs[1]), name
        if ours[1] is None:
            torch.testing.assert_close(ours[0], wanted, rtol=0, atol=0)


@pytest.mark.parametrize("by_input", [False, True], ids=["weights", "weights and inputs"])
@pytest.mark.parametrize("setup", ALL, ids=str)
def test_changes_are_allowed_as_in_torch(setup: Setup, by_input: bool) -> None:
    check(setup, by_input)


@pytest.mark.parametrize("by_input", [False, True], ids=["weights", "weights and inputs"])
@pytest.mark.parametrize("kind", ["reference", "cpu"])
@pytest.mark.parametrize("setup", peers.few_layers(), ids=str)
def test_with_a_forced_backend(setup: Setup, kind: str, by_input: bool) -> None:
    with fastrnn.backend(kind):
        check(setup, by_input)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_a_projected_layer() -> None:
    found = []
    for layer in peers.pair("LSTM", 4, 5, proj_size=3):
        x = torch.linspace(-1, 1, 72).view(6, 3, 4)
        loss = layer(x)[0].square().sum()
        with torch.no_grad():
            for name in ("weight_ih_l0", "bias_ih_l0", "bias_hh_l0"):
                layer.get_parameter(name).add_(1)
        found.append(torch.autograd.grad(loss, list(layer.parameters())))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("loss", [output_changed, penalty])
@pytest.mark.parametrize("setup", peers.few_layers(dtype=torch.float64), ids=str)
def test_a_layer_that_backward_runs_again_refuses_changes(setup: Setup, loss: Loss) -> None:
    wanted = gradients(setup, setup.pair()[1], None, True, loss)
    torch.testing.assert_close(gradients(setup, setup.pair()[0], None, True, loss), wanted)
    for name, _ in setup.pair()[0].named_parameters():
        run = functools.partial(gradients, setup, setup.pair()[0], name, True, loss)
        found, error = peers.outcome(run)
        assert error in (None, RuntimeError)
        if error is None:  # of several layers, only the last one ran again
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("bias", ["bias_ih_l0", "bias_hh_l0"])
@pytest.mark.parametrize("loss", [output_changed, penalty])
@pytest.mark.parametrize("name", peers.LAYERS)
def test_the_refusal_says_what_happened(name: str, loss: Loss, bias: str) -> None:
    setup = Setup(name, dtype=torch.float64)
    with (
        fastrnn.backend("cpu"),
        pytest.raises(RuntimeError, match=r"modified by an inplace operation.*run an LSTM or GRU"),
    ):
        gradients(setup, setup.pair()[0], bias, True, loss)
