"""Models that torch.onnx writes hold ONNX's own LSTM and GRU, as they do for torch.nn's layers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import onnx
import onnx.reference
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastrnn
from tests import oracle

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings(  # of torch.onnx and of what it uses, for torch.nn's layers too
        "ignore::DeprecationWarning",
        "ignore::FutureWarning",
        "ignore::UserWarning",
        "ignore::torch.jit.TracerWarning",
    ),
]
cells = pytest.mark.parametrize("name", ["LSTM", "GRU"])
DEEP = {"num_layers": 2, "bidirectional": True, "batch_first": True}


def layer_and_inputs(
    name: str, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[nn.Module, Tensor, list[Tensor]]:
    """A layer in eval mode, its input with T 6 and B 4, and its initial states."""
    torch.manual_seed(0)
    layer = getattr(fastrnn, name)(3, 5, dtype=dtype, **options).eval()
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    states = [torch.randn(rows, 4, 5, dtype=dtype) for _ in range(2 if name == "LSTM" else 1)]
    return layer, torch.randn(*((4, 6) if layer.batch_first else (6, 4)), 3, dtype=dtype), states


def as_hx(states: list[Tensor]) -> Any:
    return tuple(states) if len(states) == 2 else states[0]


def repeated(layer: Any, x: Tensor, states: list[Tensor], steps: int) -> list[Tensor]:
    """Inputs of a batch of 12 and of so many times more steps."""
    batch_axis = 0 if layer.batch_first else 1
    x = torch.cat([torch.cat([x] * 3, batch_axis)] * steps, 1 - batch_axis)
    return [x, *(torch.cat([s] * 3, 1) for s in states)]


def operators(path: Path) -> list[str]:
    """Of the recurrent layers; there are no others than ONNX's own."""
    model = onnx.load(path)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert not model.functions
    return [node.op_type for node in model.graph.node if node.op_type in ("LSTM", "GRU", "Scan")]


def check(layer: nn.Module, inputs: list[Tensor], found: Any) -> None:
    with torch.no_grad():
        y, final = layer(inputs[0], as_hx(inputs[1:]))
    wanted = [y, *(final if isinstance(final, tuple) else (final,))]
    forward = oracle.TOLERANCES[y.dtype][0]
    for result, tensor in zip(found, wanted, strict=True):
        assert oracle.error(torch.from_numpy(result), tensor) <= forward


@pytest.mark.parametrize(
    ("name", "options"),
    [("LSTM", {}), ("GRU", DEEP)],
    ids=["LSTM-plain", "GRU-deep"],
)
def test_dynamo_exporter_with_dynamic_batch(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    layer, x, states = layer_and_inputs(name, **options)
    batch = torch.export.Dim("batch")
    of_states: Any = [{1: batch} for _ in states]
    shapes = ({0 if options else 1: batch}, as_hx(of_states))
    path = tmp_path / "model.onnx"
    program = torch.onnx.export(
        layer, (x, as_hx(states)), dynamo=True, dynamic_shapes=shapes, verbose=False
    )
    assert program is not None
    program.save(path)
    assert operators(path) == [name] * (2 if options else 1)
    session = onnxruntime.InferenceSession(path)
    inputs = repeated(layer, x, states, steps=1)
    given = {i.name: t.numpy() for i, t in zip(session.get_inputs(), inputs, strict=True)}
    check(layer, inputs, session.run(None, given))


def export_by_trace(layer: Any, inputs: list[Tensor], path: Path) -> list[str]:
    """By the older exporter, with a dynamic batch and dynamic time; returns the inputs' names."""
    names = ["x", "h", "c"][: len(inputs)]
    batch_axis = 0 if layer.batch_first else 1
    axes = {name: {1: "batch"} for name in names[1:]}
    axes["x"] = {batch_axis: "batch", 1 - batch_axis: "time"}
    args = (inputs[0], as_hx(inputs[1:]))
    torch.onnx.export(layer, args, path, dynamo=False, input_names=names, dynamic_axes=axes)
    return names


@pytest.mark.parametrize("options", [{}, DEEP], ids=["plain", "deep"])
@cells
def test_trace_exporter_with_dynamic_batch_and_time(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    layer, x, states = layer_and_inputs(name, **options)
    path = tmp_path / "model.onnx"
    names = export_by_trace(layer, [x, *states], path)
    assert operators(path) == [name] * (2 if options else 1)
    session = onnxruntime.InferenceSession(path)
    inputs = repeated(layer, x, states, steps=2)
    given = {n: t.numpy() for n, t in zip(names, inputs, strict=True)}
    check(layer, inputs, session.run(None, given))


@cells
def test_float64_in_onnx_reference(name: str, tmp_path: Path) -> None:
    """onnxruntime has no LSTM and GRU in float64, so ONNX's own reference runs the model."""
    layer, x, states = layer_and_inputs(name, torch.float64)
    path = tmp_path / "model.onnx"
    names = export_by_trace(layer, [x, *states], path)
    assert operators(path) == [name]
    inputs = repeated(layer, x, states, steps=2)
    given = {n: t.numpy() for n, t in zip(names, inputs, strict=True)}
    check(layer, inputs, onnx.reference.ReferenceEvaluator(onnx.load(path)).run(None, given))


@cells
def test_without_initial_states(name: str, tmp_path: Path) -> None:
    layer, x, _ = layer_and_inputs(name)
    path = tmp_path / "model.onnx"
    axes = {"x": {1: "batch", 0: "time"}}
    torch.onnx.export(layer, (x,), path, dynamo=False, input_names=["x"], dynamic_axes=axes)
    inputs = repeated(layer, x, [], steps=2)
    y = onnxruntime.InferenceSession(path).run(None, {"x": inputs[0].numpy()})[0]
    with torch.no_grad():
        assert oracle.error(torch.from_numpy(y), layer(inputs[0])[0]) <= 1e-6


class _Packed(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.rnn = getattr(fastrnn, name)(3, 5)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return pad_packed_sequence(self.rnn(pack_padded_sequence(x, lengths))[0])[0]


@cells
def test_packed_input(name: str, tmp_path: Path) -> None:
    """The older exporter writes packed input; the newer one refuses it, as for torch.nn."""
    model, x = _Packed(name).eval(), torch.randn(6, 4, 3)
    lengths = torch.tensor([6, 5, 2, 1])
    path = tmp_path / "model.onnx"
    names = ["x", "lengths"]
    torch.onnx.export(model, (x, lengths), path, dynamo=False, input_names=names)
    assert operators(path) == [name]
    given = {"x": x.numpy(), "lengths": torch.tensor([6, 3, 3, 2]).numpy()}
    y = onnxruntime.InferenceSession(path).run(None, given)[0]
    with torch.no_grad():
        wanted = model(x, torch.tensor([6, 3, 3, 2]))
    assert oracle.error(torch.from_numpy(y), wanted) <= 1e-6


def test_projections_raise_what_torch_nn_raises(tmp_path: Path) -> None:
    """ONNX's LSTM has no projections."""
    layer = fastrnn.LSTM(3, 5, proj_size=2).eval()
    x = torch.randn(6, 4, 3)
    raised = []
    for module in (layer, fastrnn.revert(copy.deepcopy(layer))):
        with pytest.raises(torch.onnx.errors.SymbolicValueError, match="LSTM"):
            torch.onnx.export(module, (x,), tmp_path / "model.onnx", dynamo=False)
        raised.append(module)
    assert [type(module) for module in raised] == [fastrnn.LSTM, nn.LSTM]
