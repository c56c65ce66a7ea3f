"""Compiled and exported models: one graph for all sizes, and files that run on other machines."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings(  # of torch's own, for torch.nn's layers too
        "ignore:The tensor attributes? self._flat_weights:UserWarning",
        "ignore::DeprecationWarning",
        "ignore::FutureWarning",
    ),
]
cells = pytest.mark.parametrize("name", ["LSTM", "GRU"])
AUTO = torch.export.Dim.AUTO


class Tagger(nn.Module):
    """A recurrent layer with a head, as models have it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.rnn = getattr(fastrnn, name)(3, 5, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.rnn(x)[0])
        return logits


def results(model: Any, x: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """The output and every gradient."""
    y = model(x)
    return [y, *torch.autograd.grad(y.square().sum(), parameters)]


@pytest.mark.parametrize(
    ("name", "mode"), [("LSTM", "default"), ("GRU", "default"), ("GRU", "reduce-overhead")]
)
def test_compile_modes_give_the_eager_numbers(name: str, mode: str) -> None:
    torch.compiler.reset()
    model, x = Tagger(name), torch.randn(4, 6, 3)
    compiled = torch.compile(model, mode=mode, fullgraph=True)
    parameters = list(model.parameters())
    torch.testing.assert_close(results(compiled, x, parameters), results(model, x, parameters))


@pytest.mark.parametrize("dynamic", [True, None], ids=["dynamic", "default"])
@cells
def test_other_steps_and_batches_do_not_compile_again(name: str, dynamic: bool | None) -> None:
    torch.compiler.reset()
    graphs = []

    def count(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model = Tagger(name)
    compiled = torch.compile(model, fullgraph=True, backend=count, dynamic=dynamic)
    # By default torch learns with the second size that an axis varies.
    for batch, steps in [(4, 6), (5, 7), (9, 6), (4, 30), (70, 12)]:
        x = torch.randn(batch, steps, 3)
        torch.testing.assert_close(compiled(x), model(x))
    assert len(graphs) == (1 if dynamic else 2)


@cells
def test_export_with_dynamic_sizes_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model, x = Tagger(name).eval(), torch.randn(4, 6, 3)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: AUTO, 1: AUTO},))
    names = {str(node.target) for node in exported.graph.nodes}
    assert f"fastrnn.{name.lower()}.default" in names
    torch.export.save(exported, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for batch, steps in [(4, 6), (9, 17)]:
        x = torch.randn(batch, steps, 3)
        torch.testing.assert_close(loaded(x), model(x))


RUN_ELSEWHERE = """
import pathlib, sys, torch, fastrnn
from fastrnn.kernels import library
library.FOLDER = pathlib.Path("/nowhere")  # a machine on which no native library was built
assert not fastrnn.backend_info()["backends"]["cpu"]["available"]
model, x, wanted = sys.argv[1:]
found = torch.export.load(model).module()(torch.load(x))
torch.testing.assert_close(found, torch.load(wanted))
"""


def test_an_exported_model_runs_where_no_native_library_is(tmp_path: Path) -> None:
    model, x = Tagger("LSTM").eval(), torch.randn(4, 6, 3)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "model.pt2")
    torch.save(x, tmp_path / "x.pt")
    with torch.no_grad():
        torch.save(model(x), tmp_path / "wanted.pt")
    files = [tmp_path / name for name in ("model.pt2", "x.pt", "wanted.pt")]
    command = [sys.executable, "-W", "ignore", "-c", RUN_ELSEWHERE, *map(str, files)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr


def test_aot_inductor_package(tmp_path: Path) -> None:
    model, x = Tagger("GRU").eval(), torch.randn(4, 6, 3)
    with torch.no_grad():
        exported = torch.export.export(model, (x,), dynamic_shapes=({0: AUTO, 1: AUTO},))
        path = torch._inductor.aoti_compile_and_package(
            exported, package_path=str(tmp_path / "model.pt2")
        )
        loaded = torch._inductor.aoti_load_package(path)
        for given in (x, torch.randn(9, 17, 3)):
            torch.testing.assert_close(loaded(given), model(given))


@cells
def test_compiled_transforms(name: str) -> None:
    torch.compiler.reset()
    layer, x = getattr(fastrnn, name)(3, 5), torch.randn(3, 3)
    many = torch.randn(4, 3, 3)

    def loss(x: Tensor) -> Tensor:
        y: Tensor = layer(x)[0]
        return y.square().sum()

    for function, given in (
        (torch.func.grad(loss), (x,)),
        (torch.func.vmap(torch.func.grad(loss)), (many,)),
        (lambda x, v: torch.func.jvp(loss, (x,), (v,))[1], (x, torch.ones_like(x))),
    ):
        compiled: Any = torch.compile(function, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*given), function(*given))


@pytest.mark.parametrize("module", [nn.LSTM, nn.GRU])
def test_compile_does_not_trace_torch_nn_itself(module: type[nn.Module]) -> None:
    """The reason why fastrnn's classes do not extend torch.nn.LSTM and GRU."""
    torch.compiler.reset()
    layer, x = module(3, 5), torch.randn(6, 4, 3)
    with pytest.raises(Exception, match="RNN, GRU, or LSTM"):
        torch.compile(layer, fullgraph=True, backend="eager")(x)
    converted = fastrnn.convert(copy.deepcopy(layer))
    torch.compile(converted, fullgraph=True, backend="eager")(x)
    assert not isinstance(converted, module)


def test_a_trace_warns_of_nothing_in_fastrnn() -> None:
    """torch silences such warnings of its own modules when it is imported."""
    code = """if True:
        import warnings, torch, fastrnn
        from torch.nn.utils.rnn import PackedSequence, pack_sequence

        class OnPacked(torch.nn.Module):
            def __init__(self, layer):
                super().__init__()
                self.layer = layer

            def forward(self, *parts):
                return self.layer(PackedSequence(*parts))[0].data

        packed = tuple(pack_sequence([torch.ones(4, 3), torch.ones(6, 3)], enforce_sorted=False))
        with warnings.catch_warnings(record=True) as caught:
            for name in ("LSTM", "GRU"):
                torch.jit.trace(getattr(fastrnn, name)(3, 5), torch.ones(6, 2, 3))
                torch.jit.trace(getattr(fastrnn, name + "Cell")(3, 5), torch.ones(2, 3))
                layer = getattr(fastrnn, name)(3, 5, bidirectional=True)
                torch.jit.trace(OnPacked(layer), packed)
        print([str(w) for w in caught if w.category is torch.jit.TracerWarning])
    """
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "[]\n", done.stdout + done.stderr
