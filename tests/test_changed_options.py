"""Options of a layer that are set after its construction do what they do in torch.nn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastrnn
from tests import peers

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]

BUILT: dict[str, dict[str, Any]] = {
    "plain": {},
    "no biases": {"bias": False},
    "two directions": {"bidirectional": True},
    "two layers": {"num_layers": 2},
}
CHANGES: dict[str, tuple[str, Any]] = {
    "batch first": ("batch_first", True),
    "no biases": ("bias", False),
    "biases": ("bias", True),
    "one direction": ("bidirectional", False),
    "two directions": ("bidirectional", True),
    "one layer": ("num_layers", 1),
    "two layers": ("num_layers", 2),
    "another input size": ("input_size", 3),
    "a projection": ("proj_size", 3),
}
# torch.nn.LSTM then reads past the end of its weights.
UNDEFINED = [("LSTM", "two layers", "no biases"), ("LSTM", "two directions", "no biases")]


def changed(layer: Any, change: str, frozen: bool) -> Any:
    """A layer in evaluation mode, called once, and then changed."""
    layer.eval()
    if frozen:
        fastrnn.freeze(layer)
    with torch.no_grad():
        layer(torch.zeros(3, 3, 4))
    setattr(layer, *CHANGES[change])
    return layer


def results(layer: Any, grad: bool) -> list[Tensor]:
    """What a layer returns, and its gradients."""
    x = torch.linspace(-1, 1, 24).view(2, 3, 4)
    with torch.set_grad_enabled(grad):
        found = peers.tensors(layer(x))
    if not grad:
        return found
    weights = list(layer.parameters())
    slopes = torch.autograd.grad(peers.loss(found), weights, materialize_grads=True)
    return [*(t.detach() for t in found), *slopes]


@pytest.mark.parametrize("how", ["inference", "training", "frozen"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("built", BUILT)
@pytest.mark.parametrize("name", peers.LAYERS)
def test_a_change_has_torchs_results_and_errors(
    name: str, built: str, change: str, how: str
) -> None:
    if (name, built, change) in UNDEFINED:
        return
    ours, theirs = peers.pair(name, 4, 5, **BUILT[built])
    ours, theirs = changed(ours, change, how == "frozen"), changed(theirs, change, frozen=False)
    found, error = peers.outcome(lambda: results(ours, how == "training"))
    wanted, refused = peers.outcome(lambda: results(theirs, how == "training"))
    assert error == refused
    if error is None:
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("frozen", [False, True], ids=["ordinary", "frozen"])
@pytest.mark.parametrize("name", peers.LAYERS)
def test_another_hidden_size_is_refused(name: str, frozen: bool) -> None:
    """torch.nn.LSTM would read and write outside of its tensors."""
    layer = peers.pair(name, 4, 5)[0].eval()
    if frozen:
        fastrnn.freeze(layer)
    layer.hidden_size = 6
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"w_ih is .*; expected"):
        layer(torch.zeros(2, 3, 4))
