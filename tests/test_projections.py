"""LSTM layers with a projection, on kernels of their own and on those of layers without one."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn import functional, inference, layer_ops
from fastrnn.examples import TOLERANCES
from tests import peers

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights"),
]

STEPS, BATCH, INPUT, HIDDEN, SIZE = 9, 3, 4, 7, 5
OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": False},
    {"bidirectional": True},
    {"num_layers": 2},
    {"num_layers": 2, "bidirectional": True, "bias": False},
]
LAYOUTS = ("padded", "batch_first", "packed", "unsorted", "unbatched")
forced = pytest.mark.parametrize("backend", ["cpu", "folded", "reference"], indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a backend; "folded" is the CPU's, run as a layer without a projection."""
    if request.param != "folded":
        return str(request.param)
    monkeypatch.setattr(layer_ops, "runs", lambda *_: False)
    return "cpu"


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The passes of training that run on kernels with a projection, as they run."""
    found: list[str] = []

    def noted(name: str) -> Any:
        run = getattr(layer_ops, name)

        def note(*args: Any, **options: Any) -> Any:
            results = run(*args, **options)
            projected = len(args) > 7 if name == "forward" else "projected" in options
            found.extend([name] * (projected and results is not None))
            return results

        return note

    for name in ("forward", "backward"):
        monkeypatch.setattr(layer_ops, name, noted(name))
    return found


def pair(dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Any, Any]:
    """fastrnn's and torch.nn's layer with the same weights."""
    torch.manual_seed(0)
    return peers.pair("LSTM", INPUT, HIDDEN, proj_size=SIZE, dtype=dtype, **options)


def data(layout: str = "padded", dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(1)
    x = torch.randn(STEPS, BATCH, INPUT, dtype=dtype)
    if layout == "batch_first":
        return x.transpose(0, 1).contiguous()
    if layout == "unbatched":
        return x[:, 0]
    if layout in ("packed", "unsorted"):
        lengths = torch.tensor([STEPS, 4, 1] if layout == "packed" else [4, STEPS, 1])
        return pack_padded_sequence(x, lengths, enforce_sorted=layout == "packed")
    return x


def initial(layer: Any, layout: str = "padded") -> tuple[Tensor, Tensor]:
    sets = layer.num_layers * (1 + layer.bidirectional)
    states = (
        torch.randn(sets, BATCH, SIZE, dtype=torch.float64, requires_grad=True),
        torch.randn(sets, BATCH, HIDDEN, dtype=torch.float64, requires_grad=True),
    )
    return (states[0][:, 0], states[1][:, 0]) if layout == "unbatched" else states


def results(layer: Any, x: Any, hx: Any = None) -> list[Tensor]:
    """Output, states and gradients."""
    found = peers.tensors(layer(x, hx))
    inputs = [*layer.parameters(), *(t for t in hx or () if t.requires_grad)]
    return [*found, *torch.autograd.grad(peers.loss(found), inputs)]


@pytest.mark.parametrize("given", [False, True], ids=["zero", "states"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
@forced
def test_numbers_and_gradients(
    backend: str, options: dict[str, Any], layout: str, given: bool
) -> None:
    ours, theirs = pair(batch_first=layout == "batch_first", **options)
    x, hx = data(layout), initial(ours, layout) if given else None
    wanted = results(theirs, x, hx)
    with fastrnn.backend(backend):
        torch.testing.assert_close(results(ours, x, hx), wanted)
        with torch.no_grad():
            found = peers.tensors(ours(x, hx))
    torch.testing.assert_close(found, wanted[:3])


@pytest.mark.parametrize("given", [False, True], ids=["zero", "states"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
def test_inference_in_one_op(
    options: dict[str, Any], layout: str, given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran, run = [], inference.run

    def noted(*args: Any) -> Any:
        ran.append(run(*args))
        return ran[-1]

    monkeypatch.setattr(inference, "run", noted)
    ours, theirs = pair(batch_first=layout == "batch_first", **options)
    x, hx = data(layout), initial(ours, layout) if given else None
    with torch.no_grad():
        torch.testing.assert_close(ours(x, hx), theirs(x, hx))
    assert ran[0] is not None


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize(("steps", "hidden", "size"), [(40, 33, 8), (2, 300, 150), (1, 130, 3)])
def test_rounding_in_inference(dtype: str, steps: int, hidden: int, size: int) -> None:
    torch.manual_seed(0)
    layer = fastrnn.LSTM(INPUT, hidden, proj_size=size, dtype=getattr(torch, dtype))
    x = torch.randn(steps, 10, INPUT).to(getattr(torch, dtype))
    with torch.no_grad():
        found, wanted = layer(x)[0].double(), copy.deepcopy(layer).double()(x.double())[0]
    assert (found - wanted).norm() <= TOLERANCES[dtype][0] * wanted.norm()


def test_a_row_keeps_its_bits_in_every_batch() -> None:
    layer = fastrnn.LSTM(INPUT, 70, proj_size=20)
    for steps in (1, 12):  # weights read in place, and packed
        x = torch.randn(steps, 40, INPUT)
        with torch.no_grad():
            y = layer(x)[0]
            assert all(torch.equal(layer(x[:, [b]])[0], y[:, [b]]) for b in range(40))


def test_states_of_zeros_get_gradients() -> None:
    ours, theirs = pair()
    hx = tuple(torch.zeros_like(t, requires_grad=True) for t in initial(ours))
    with fastrnn.backend("cpu"):
        torch.testing.assert_close(results(ours, data(), hx), results(theirs, data(), hx))


def test_one_row_of_states_is_not_taken_for_zeros() -> None:
    ours, theirs = pair()
    h0 = torch.zeros(1, BATCH, SIZE, dtype=torch.float64)
    h0[0, -1, -1] = 0.5
    hx = (h0, torch.zeros(1, BATCH, HIDDEN, dtype=torch.float64))
    with fastrnn.backend("cpu"), torch.no_grad():
        torch.testing.assert_close(ours(data(), hx), theirs(data(), hx))


def test_training_runs_on_kernels_of_its_own(passes: list[str]) -> None:
    ours, theirs = pair(num_layers=2, bidirectional=True)
    torch.testing.assert_close(results(ours, data()), results(theirs, data()))
    assert passes == ["forward"] * 4 + ["backward"] * 4


@pytest.mark.parametrize("which", [[0], [1], [2], [0, 2], [1, 2]], ids=str)
def test_gradients_of_some_results(which: list[int], passes: list[str]) -> None:
    found = []
    for layer in pair():
        x, (h0, c0) = data().requires_grad_(), initial(layer)
        given = peers.tensors(layer(x, (h0.detach(), c0)))
        loss = peers.loss([given[i] for i in which])
        found.append(torch.autograd.grad(loss, [x, c0, *layer.parameters()]))
    torch.testing.assert_close(*found)
    assert passes == ["forward", "backward"]


def test_the_output_may_be_changed_in_place() -> None:
    found = []
    for layer in pair():
        y = layer(data())[0]
        y.mul_(2)
        found.append(torch.autograd.grad(y.square().sum(), [*layer.parameters()]))
    torch.testing.assert_close(*found)


def test_many_gradients_at_once() -> None:
    found = []
    for layer in pair():
        y = layer(data())[0]
        grads = torch.stack([torch.ones_like(y), y.detach()])
        found.append(torch.autograd.grad(y, [*layer.parameters()], grads, is_grads_batched=True))
    torch.testing.assert_close(*found)


def test_sizes_that_the_kernels_do_not_take(
    passes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.fastrnn, "layer", SimpleNamespace(default=lambda *_: []))
    ours, theirs = pair()
    with fastrnn.backend("cpu"):
        torch.testing.assert_close(results(ours, data()), results(theirs, data()))
    assert not passes


def test_results_of_more_than_a_megabyte(passes: list[str]) -> None:
    ours, theirs = peers.pair("LSTM", 3, 70, proj_size=40, dtype=torch.float64)
    x = torch.randn(40, 30, 3, dtype=torch.float64)
    torch.testing.assert_close(results(ours, x), results(theirs, x))
    assert passes == ["forward", "backward"]


@pytest.mark.parametrize("kind", ["cpu", "reference"])
def test_second_derivatives(kind: str) -> None:
    ours, theirs = pair()
    found = []
    for layer in (ours, theirs):
        x = data()[:3].requires_grad_()
        with fastrnn.backend(kind if layer is ours else "torch"):
            (first,) = torch.autograd.grad(layer(x)[0].square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), [x, *layer.parameters()]))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rounding(dtype: torch.dtype) -> None:
    """As close to float64 as the tolerances allow layers without a projection to be."""
    ours, _ = pair(dtype)
    exact = copy.deepcopy(ours).double()
    x = data(dtype=dtype)
    with fastrnn.backend("cpu"):
        found, wanted = results(ours, x), results(exact, x.double())
    outputs, gradients = TOLERANCES[str(dtype).removeprefix("torch.")]
    for number, (a, b) in enumerate(zip(found, wanted, strict=True)):
        error = (a.double() - b).norm() / b.norm()
        assert error <= (outputs if number < 3 else gradients)


def test_dropout_between_layers_draws_torchs_numbers() -> None:
    found = []
    for layer in pair(num_layers=3, dropout=0.5):
        torch.manual_seed(2)
        with fastrnn.backend("cpu" if isinstance(layer, fastrnn.LSTM) else "torch"):
            found.append(results(layer, data()))
    torch.testing.assert_close(*found)


def test_autocast_leaves_torchs_dtypes() -> None:
    ours, theirs = pair(torch.float32)
    x = data(dtype=torch.float32)
    with torch.autocast("cpu"):
        found, wanted = (layer(x) for layer in (ours, theirs))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("h0", (1, BATCH, SIZE - 1)),
        ("h0", (1, BATCH + 1, SIZE)),
        ("w_hh", (4 * HIDDEN, SIZE + 1)),
        ("w_hr", (SIZE, HIDDEN + 1)),
    ],
)
def test_sizes_that_do_not_fit_are_named(name: str, shape: tuple[int, ...]) -> None:
    layer, x = fastrnn.LSTM(INPUT, HIDDEN, proj_size=SIZE), data(dtype=torch.float32)
    weights = dict(zip(("w_ih", "w_hh", "b_ih", "b_hh", "w_hr"), layer.parameters(), strict=True))
    tensors = weights | {"h0": torch.zeros(1, BATCH, SIZE)} | {name: torch.zeros(shape)}
    h0, c0 = tensors.pop("h0"), torch.zeros(1, BATCH, HIDDEN)
    wanted = "h0|w_hh" if name == "h0" else name  # a narrower h0 reads like wider weights
    with fastrnn.backend("cpu"), pytest.raises(RuntimeError, match=f"projected LSTM: ({wanted})"):
        functional.lstm(x, (h0, c0), [*tensors.values()], proj_size=SIZE)


def test_graphs_hold_torchs_own_operator() -> None:
    """No machine's choice; a graph may run anywhere."""
    ours, theirs = pair(torch.float32)
    x = data(dtype=torch.float32)
    for layer in (ours, theirs):
        exported = torch.export.export(layer.eval(), (x,))
        assert "fastrnn" not in exported.graph_module.code
        torch.testing.assert_close(exported.module()(x), theirs(x))
