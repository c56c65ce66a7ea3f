"""convert() and revert() undo each other exactly, whatever was done to the model before."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import fastrnn

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("LSTM", "GRU", "LSTMCell", "GRUCell")
CHANGES: dict[str, Callable[[nn.Module, str], Any]] = {
    "nothing": lambda module, weight: None,
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "pruning": lambda module, weight: prune.l1_unstructured(module, weight, amount=0.4),
    "frozen weight": lambda module, weight: getattr(module, weight).requires_grad_(False),
}


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    """How a model is built: its module, the module's arguments, and what is done to it."""
    name = draw(st.sampled_from(NAMES))
    arguments: dict[str, Any] = {"bias": draw(st.booleans())}
    if name in ("LSTM", "GRU"):
        arguments |= {
            "num_layers": draw(st.integers(1, 3)),
            "batch_first": draw(st.booleans()),
            "bidirectional": draw(st.booleans()),
        }
        if arguments["num_layers"] > 1:
            arguments["dropout"] = draw(st.sampled_from([0.0, 0.5]))
    if name == "LSTM":
        arguments["proj_size"] = draw(st.sampled_from([0, 2]))
    return {
        "name": name,
        "arguments": arguments,
        "dtype": draw(st.sampled_from([torch.float32, torch.float64])),
        "change": draw(st.sampled_from(list(CHANGES))),
        "hook": draw(st.booleans()),
        "training": draw(st.booleans()),
        "shared": draw(st.booleans()),
        "root": draw(st.booleans()),
    }


def build(library: Any, option: dict[str, Any]) -> nn.Module:
    module = getattr(library, option["name"])(3, 5, **option["arguments"], dtype=option["dtype"])
    weight = "weight_hh" if option["name"].endswith("Cell") else "weight_hh_l0"
    CHANGES[option["change"]](module, weight)
    if option["hook"]:
        module.register_forward_hook(lambda *_: None)
        module.register_full_backward_hook(lambda *_: None)
    module.train(option["training"])
    if option["root"]:
        return module
    model = nn.ModuleDict({"own": module, "other": nn.Linear(2, 2)})
    if option["shared"]:
        model["again"] = module
    return model


def results(model: nn.Module, option: dict[str, Any]) -> list[Tensor]:
    """The output and every gradient."""
    torch.manual_seed(1)
    module: Any = model if option["root"] else model["own"]  # type: ignore[index]
    cell = option["name"].endswith("Cell")
    x = torch.randn(*([4] if cell else [6, 4]), 3, dtype=option["dtype"], requires_grad=True)
    y = module(x)
    while not isinstance(y, Tensor):
        y = y[0]
    wanted = [p for p in module.parameters() if p.requires_grad]
    return [y, *torch.autograd.grad(y.square().sum(), [x, *wanted])]


def described(model: nn.Module) -> list[Any]:
    """Everything that a round trip must keep; tensors by identity."""
    found: list[Any] = [repr(model), [(name, id(p)) for name, p in model.named_parameters()]]
    found.append([(name, id(b)) for name, b in model.named_buffers()])
    for name, module in model.named_modules(remove_duplicate=False):
        derived = ("_flat_weights", "_flat_weight_refs")
        state = {key: value for key, value in vars(module).items() if key not in derived}
        kind = type(module)
        found.append((name, id(module), kind.__name__, kind.__bases__, sorted(state)))
        found.append((module.training, dict(module._forward_hooks), dict(module._backward_hooks)))
    return found


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_a_round_trip_keeps_everything() -> None:
    @hypothesis.settings(max_examples=100, deadline=None, derandomize=True, database=None)
    @hypothesis.given(options(), st.booleans())
    def check(option: dict[str, Any], ours: bool) -> None:
        there, back = fastrnn.convert, fastrnn.revert
        if ours:
            there, back = back, there
        torch.manual_seed(0)
        model = build(fastrnn if ours else nn, option)
        before, expected = described(model), results(model, option)
        if option["change"] == "spectral_norm" and option["training"]:
            model.eval()  # each forward pass in training changes what it estimates
            before, expected = described(model), results(model, option)
        assert there(model) is model
        changed = model if option["root"] else model["own"]  # type: ignore[index]
        assert isinstance(changed, getattr(nn if ours else fastrnn, option["name"]))
        if not option["training"] or not option["arguments"].get("dropout"):
            other = results(model, option)
            tolerance = 1e-11 if option["dtype"] == torch.float64 else 1e-4
            torch.testing.assert_close(other, expected, rtol=tolerance, atol=tolerance)
        assert back(model) is model
        assert described(model) == before
        for found, wanted in zip(results(model, option), expected, strict=True):
            assert torch.equal(found, wanted)

    check()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("library", [nn, fastrnn], ids=["torch.nn", "fastrnn"])
def test_a_copy_of_a_parametrised_module_is_converted_alone(library: Any, name: str) -> None:
    module = getattr(library, name)(3, 5)
    weight = "weight_hh" if name.endswith("Cell") else "weight_hh_l0"
    parametrizations.weight_norm(module, weight)
    duplicate = copy.deepcopy(module)
    exchange = fastrnn.convert if library is nn else fastrnn.revert
    exchange(duplicate)
    assert isinstance(module, getattr(library, name))
    assert not isinstance(duplicate, getattr(library, name))
    x = torch.randn(4, 3) if name.endswith("Cell") else torch.randn(6, 4, 3)
    torch.testing.assert_close(copy.deepcopy(duplicate)(x), module(x))


def test_a_checkpoint_of_either_library_loads_into_the_other() -> None:
    model = nn.Sequential(nn.LSTM(3, 5, 2, bidirectional=True))
    kept = copy.deepcopy(model.state_dict())
    fastrnn.convert(model).load_state_dict(kept)
    assert list(model.state_dict()) == list(kept)
    fastrnn.revert(model).load_state_dict(kept)
    assert type(model[0]) is nn.LSTM


def test_what_was_changed_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.ModuleDict({"encoder": nn.LSTM(3, 5), "head": nn.Linear(5, 2)})
    with caplog.at_level(logging.INFO, logger="fastrnn"):
        fastrnn.convert(model)
        fastrnn.revert(model)
    assert caplog.messages == [
        "fastrnn.convert changed 1 modules: encoder (LSTM)",
        "fastrnn.revert changed 1 modules: encoder (LSTM)",
    ]
