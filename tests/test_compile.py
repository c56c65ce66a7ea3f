"""Graphs: they do not compile again for other sizes, and inference keeps nothing for backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import fastrnn
from tests import peers
from tests.peers import Setup

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # torch.compile looks at .grad of inputs that are not leaves
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    # RNNBase renews its list of weights, as torch.nn's own modules do
    pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights"),
]

modules = pytest.mark.parametrize("name", [*peers.LAYERS, *peers.CELLS])
each_layer = pytest.mark.parametrize("name", peers.LAYERS)
training_or_not = pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])


class SixLayers(nn.Module):
    """Two modules of three layers, which hand their states on."""

    def __init__(self, library: Any, name: str, bidirectional: bool = False) -> None:
        super().__init__()
        width = 10 if bidirectional else 5
        make = getattr(library, name)
        self.first = make(4, 5, 3, bidirectional=bidirectional)
        self.second = make(width, 5, 3, bidirectional=bidirectional)

    def forward(self, x: Tensor) -> list[Tensor]:
        y, state = self.first(x)
        return peers.tensors(self.second(y, state))


def results_and_gradients(call: Any, model: nn.Module, x: Tensor, training: bool) -> list[Tensor]:
    with torch.set_grad_enabled(training):
        results: list[Tensor] = call(x)
    if not training:
        return results
    return [*results, *torch.autograd.grad(peers.loss(results), list(model.parameters()))]


@training_or_not
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one direction", "both directions"])
@each_layer
def test_six_layers_do_not_compile_again(name: str, bidirectional: bool, training: bool) -> None:
    torch.manual_seed(0)
    model = SixLayers(fastrnn, name, bidirectional)
    twin = SixLayers(nn, name, bidirectional)
    twin.load_state_dict(model.state_dict())
    compiled = peers.compiled(model, fullgraph=True)
    for steps, batch in ((6, 3), (7, 4)):  # the second size makes sizes dynamic
        results_and_gradients(compiled, model, torch.randn(steps, batch, 4), training)
    with peers.nothing_recompiles():
        for steps, batch in ((9, 5), (20, 5), (6, 3), (9, 2), (33, 11)):
            x = torch.randn(steps, batch, 4)
            found = results_and_gradients(compiled, model, x, training)
            torch.testing.assert_close(found, results_and_gradients(twin, twin, x, training))


@training_or_not
@pytest.mark.parametrize("layout", ["padded", "batch_first"])
@each_layer
def test_dynamic_layers_compile_once(name: str, layout: str, training: bool) -> None:
    setup = Setup(name, 2, layout=layout)
    module, peer = setup.pair()
    compiled = peers.compiled(module, fullgraph=True, dynamic=True)

    def call(x: Tensor) -> list[Tensor]:
        return peers.tensors(compiled(x))

    results_and_gradients(call, module, torch.randn(6, 3, 4), training)
    with peers.nothing_recompiles():
        for shape in ((7, 3, 4), (6, 5, 4), (12, 9, 4)):
            x = torch.randn(shape)
            torch.testing.assert_close(
                results_and_gradients(call, module, x, training),
                results_and_gradients(lambda x: peers.tensors(peer(x)), peer, x, training),
            )


@training_or_not
@pytest.mark.parametrize("name", peers.CELLS)
def test_a_loop_over_a_cell_does_not_compile_again(name: str, training: bool) -> None:
    module, peer = peers.pair(name, 4, 5)

    def loop(cell: nn.Module, x: Tensor) -> list[Tensor]:
        state = None
        for row in x.unbind(0):
            state = cell(row, state)
        return peers.tensors(state)

    compiled = peers.compiled(lambda x: loop(module, x), fullgraph=True, dynamic=True)
    results_and_gradients(compiled, module, torch.randn(3, 5, 4), training)
    with peers.nothing_recompiles():
        for batch in (6, 11):
            x = torch.randn(3, batch, 4)
            torch.testing.assert_close(
                results_and_gradients(compiled, module, x, training),
                results_and_gradients(lambda x: loop(peer, x), peer, x, training),
            )


@each_layer
def test_changed_weights_do_not_compile_again(name: str) -> None:
    module, peer = peers.pair(name, 4, 5)
    compiled, x = peers.compiled(module, fullgraph=True), torch.randn(6, 3, 4)
    optimiser = torch.optim.SGD([*module.parameters(), *peer.parameters()], 0.1)
    for step in range(3):
        values = [peers.loss(peers.tensors(call(x))) for call in (compiled, peer)]
        torch.testing.assert_close(*values)
        optimiser.zero_grad()
        sum(values).backward()  # type: ignore[union-attr]
        optimiser.step()
        if step == 0:
            torch.compiler.set_stance("fail_on_recompile")
    torch.compiler.set_stance("default")


@each_layer
def test_inductor_trains_six_layers(name: str) -> None:
    """By torch.compile's default backend, which needs a C++ compiler."""
    model = SixLayers(fastrnn, name)
    x = torch.randn(6, 3, 4)
    compiled = peers.compiled(model, backend="inductor", fullgraph=True)
    torch.testing.assert_close(
        results_and_gradients(compiled, model, x, True),
        results_and_gradients(model, model, x, True),
    )


# ---- what is kept for backward


def nodes(graph: torch.fx.GraphModule) -> list[torch.fx.Node]:
    """The nodes of a graph, and of those within it, that run our ops forward."""
    ops = {torch.ops.fastrnn.lstm.default, torch.ops.fastrnn.gru.default}
    return [
        node
        for module in graph.modules()
        if isinstance(module, torch.fx.GraphModule)
        for node in module.graph.nodes
        if node.target in ops
    ]


def saves(node: torch.fx.Node) -> bool:
    """The argument ``save`` of an op's node."""
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    position = names.index("save")
    found = node.args[position] if position < len(node.args) else node.kwargs["save"]
    assert isinstance(found, bool)
    return found


@training_or_not
@pytest.mark.parametrize("gradients", [False, True], ids=["no_grad", "gradients"])
@pytest.mark.parametrize("setup", peers.few_layers(), ids=str)
def test_only_a_model_in_training_mode_exports_what_backward_needs(
    setup: Setup, gradients: bool, training: bool
) -> None:
    module, _ = setup.pair()
    module.train(training)
    x = torch.randn(4, 3, 4)
    with torch.set_grad_enabled(gradients):
        program = torch.export.export(module, (x,))
    found = nodes(program.graph_module)
    assert len(found) == setup.num_layers * (2 if setup.bidirectional else 1)
    assert {saves(node) for node in found} == {training}
    torch.testing.assert_close(peers.tensors(program.module()(x)), peers.tensors(module(x)))


@pytest.mark.parametrize("setup", peers.few_layers(), ids=str)
def test_backward_through_a_program_for_inference_runs_the_layers_again(setup: Setup) -> None:
    module, _ = setup.pair()
    x = torch.randn(4, 3, 4)
    program = torch.export.export(module.eval(), (x,)).module()
    found = []
    for call in (program, module):
        leaf = x.clone().requires_grad_()
        results = peers.tensors(call(leaf))
        parameters = dict(call.named_parameters())
        names = [name for name, _ in module.named_parameters()]
        leaves = [leaf, *(parameters[name] for name in names)]
        found.append(torch.autograd.grad(peers.loss(results), leaves))
    torch.testing.assert_close(*found)


@training_or_not
@pytest.mark.parametrize("setup", peers.few_layers(), ids=str)
def test_eager_inference_keeps_nothing(setup: Setup, training: bool) -> None:
    """Only a call that needs gradients does, as in torch.nn: in eval mode, too."""
    module, _ = setup.pair()
    module.train(training)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        leaves = [t.detach() for t in setup.leaves()]
        with torch.no_grad():
            setup.call(module, *leaves)
        assert not kept
        setup.call(module, *leaves)
        assert kept


@pytest.mark.parametrize("setup", peers.few_layers(), ids=str)
def test_a_compiled_graph_keeps_what_backward_needs_if_it_needs_it(setup: Setup) -> None:
    module, _ = setup.pair()
    seen: list[set[bool]] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        seen.append({saves(node) for node in nodes(graph)})
        return graph.forward

    torch.compiler.reset()
    compiled: Any = torch.compile(module, backend=backend, fullgraph=True)
    leaves = [t.detach() for t in setup.leaves()]
    with torch.no_grad():
        setup.call(compiled, *leaves)
    setup.call(compiled, *leaves)
    assert seen == [{False}, {True}]


# torch.jit is deprecated; a traced layer's batch is the size that it is called with
@pytest.mark.filterwarnings(
    "ignore:`torch.jit:FutureWarning",
    "ignore:`torch.jit:DeprecationWarning",
    "ignore::torch.jit.TracerWarning",
)
@pytest.mark.parametrize("setup", peers.few_layers(), ids=str)
def test_backward_through_a_trace_for_inference(setup: Setup) -> None:
    module, _ = setup.pair()
    x = torch.randn(4, 3, 4)
    traced = torch.jit.trace(module.eval(), (x,))
    found = []
    for call in (traced, module):
        leaf = x.clone().requires_grad_()
        found.append(torch.autograd.grad(peers.loss(peers.tensors(call(leaf))), leaf))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@modules
def test_exports_with_dynamic_sizes(name: str, strict: bool) -> None:
    module, peer = peers.pair(name, 4, 5)
    batch, steps = torch.export.Dim("batch", min=2), torch.export.Dim("steps", min=2)
    cell = name in peers.CELLS
    shapes = {0: batch} if cell else {0: steps, 1: batch}
    x = torch.randn((3, 4) if cell else (6, 3, 4))
    program = torch.export.export(
        module.eval(), (x,), dynamic_shapes=(shapes,), strict=strict
    ).module()
    for shape in ((5, 4), (8, 4)) if cell else ((2, 3, 4), (9, 5, 4)):
        x = torch.randn(shape)
        torch.testing.assert_close(peers.tensors(program(x)), peers.tensors(peer(x)))


# ---- results


@pytest.mark.parametrize("setup", peers.few_layers(), ids=str)
def test_results_of_a_compiled_module_change_in_place(setup: Setup) -> None:
    ours, theirs = setup.pair()
    compiled = peers.compiled(ours)
    leaves = [t.detach() for t in setup.leaves()]
    for index in range(len(setup.result_names)):
        setup.call(compiled, *leaves)[index].detach_()
        found = []
        for call, module in ((compiled, ours), (theirs, theirs)):
            results = setup.call(call, *leaves)
            if call is compiled:
                results[index].mul_(2)
            else:
                results[index] = results[index] * 2
            found.append(torch.autograd.grad(peers.loss(results), list(module.parameters())))
        torch.testing.assert_close(*found)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one direction", "both directions"])
@each_layer
def test_a_graph_of_symbolic_sizes_runs_other_sizes(name: str, bidirectional: bool) -> None:
    """As tools make them that do not go through torch.compile or torch.export."""
    layer = getattr(fastrnn, name)(3, 5, 2, bidirectional=bidirectional)
    weights = dict(layer.named_parameters())

    def call(weights: dict[str, Tensor], x: Tensor) -> list[Tensor]:
        return peers.tensors(torch.func.functional_call(layer, weights, (x,)))

    with torch.no_grad():
        graph = make_fx(call, tracing_mode="symbolic")(weights, torch.randn(6, 4, 3))
        x = torch.randn(6, 7, 3)
        torch.testing.assert_close(graph(weights, x), call(weights, x))
