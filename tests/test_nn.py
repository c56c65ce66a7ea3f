"""The modules are drop-ins: whatever works with torch.nn's works with them, errors included."""

import contextlib
import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import fastrnn
from tests import patched, peers

pytestmark = pytest.mark.usefixtures("one_thread", "both_libraries")

LAYERS, CELLS = ("LSTM", "GRU"), ("LSTMCell", "GRUCell")
modules = pytest.mark.parametrize("name", [*LAYERS, *CELLS])
layers = pytest.mark.parametrize("name", LAYERS)
# tests/test_patching.py compiles torch.nn's modules under the patch, which makes no graph of them.
not_patched = pytest.mark.parametrize("both_libraries", [fastrnn], ids=["fastrnn"], indirect=True)


def pair(name: str, *args: Any, **kwargs: Any) -> tuple[nn.Module, nn.Module]:
    """fastrnn's and torch.nn's module with the same weights."""
    torch.manual_seed(0)
    wanted = getattr(nn, name)(*args, **kwargs)
    found = getattr(peers.library, name)(*args, **kwargs)
    found.load_state_dict(wanted.state_dict())
    return found, wanted


def sample(name: str) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(4, 3) if name in CELLS else torch.randn(6, 4, 3)


def output(result: Any) -> Tensor:
    """The first tensor of what a layer or a cell returns."""
    while not isinstance(result, Tensor):
        result = result[0]
    return result


# ---- construction, parameters and storage


@modules
def test_repr_parameters_and_initial_weights(name: str) -> None:
    made = []
    for library in (peers.library, nn):
        torch.manual_seed(3)
        made.append(getattr(library, name)(3, 5))
    found, wanted = made
    assert repr(found) == repr(wanted)
    for (a, p), (b, q) in zip(found.named_parameters(), wanted.named_parameters(), strict=True):
        assert a == b
        assert torch.equal(p, q)


@layers
def test_constructor_options(name: str) -> None:
    options = {"num_layers": 2, "bias": False, "batch_first": True, "dropout": 0.5}
    found, wanted = pair(name, 3, 5, bidirectional=True, dtype=torch.float64, **options)
    assert repr(found) == repr(wanted)
    assert {p.dtype for p in found.parameters()} == {torch.float64}


@modules
def test_state_dict_both_ways(name: str) -> None:
    found, wanted = pair(name, 3, 5)
    assert list(found.state_dict()) == list(wanted.state_dict())
    getattr(nn, name)(3, 5).load_state_dict(found.state_dict())


@modules
@pytest.mark.parametrize(
    "copier",
    [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m))],
    ids=["deepcopy", "copy", "pickle"],
)
def test_copies(name: str, copier: Callable[[nn.Module], nn.Module]) -> None:
    module, x = pair(name, 3, 5)[0], sample(name)
    module(x)
    duplicate = copier(module)
    assert type(duplicate) is type(module)
    torch.testing.assert_close(output(duplicate(x)), output(module(x)))


@modules
def test_torch_save_and_load(name: str) -> None:
    module, x, file = pair(name, 3, 5)[0], sample(name), io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    torch.testing.assert_close(output(loaded(x)), output(module(x)))


@modules
def test_moves_between_dtypes(name: str) -> None:
    found, wanted = (m.double() for m in pair(name, 3, 5))
    x = sample(name).double()
    torch.testing.assert_close(output(found(x)), output(wanted(x)))


@modules
def test_autocast_leaves_float64_alone(name: str) -> None:
    found, wanted = (m.double() for m in pair(name, 3, 5))
    x = sample(name).double()
    with torch.autocast("cpu"):
        torch.testing.assert_close(output(found(x)), output(wanted(x)))


def test_functional_gradients_of_a_projected_layer() -> None:
    found, wanted = (m.double() for m in pair("LSTM", 3, 5, proj_size=2))
    x = sample("LSTM").double()
    gradients = [torch.func.grad(lambda x, m=m: m(x)[0].sum())(x) for m in (found, wanted)]
    torch.testing.assert_close(*gradients)


@modules
def test_shapes_on_the_meta_device(name: str) -> None:
    found, wanted = (m.to("meta") for m in pair(name, 3, 5))
    x = sample(name).to("meta")
    assert output(found(x)).shape == output(wanted(x)).shape


# ---- what torch.nn.utils does to a module


@modules
@pytest.mark.parametrize("utility", ["weight_norm", "spectral_norm", "prune"])
def test_reparametrised_weights(name: str, utility: str) -> None:
    weight = "weight_hh" if name in CELLS else "weight_hh_l0"
    results = []
    for module in pair(name, 3, 5):
        torch.manual_seed(5)
        if utility == "prune":
            prune.l1_unstructured(module, weight, amount=0.4)
        else:
            getattr(parametrizations, utility)(module, weight)
        y = output(module(sample(name)))
        results.append([y, *torch.autograd.grad(y.square().sum(), list(module.parameters()))])
    torch.testing.assert_close(*results)


@modules
def test_functional_call_with_other_weights(name: str) -> None:
    found, wanted = pair(name, 3, 5)
    other = {key: value * 2 for key, value in wanted.state_dict().items()}
    results = [torch.func.functional_call(m, other, (sample(name),)) for m in (found, wanted)]
    torch.testing.assert_close(*map(output, results))


@modules
def test_replaced_parameters_are_seen(name: str) -> None:
    found, x = pair(name, 3, 5)[0], sample(name)
    before = output(found(x))
    for key, value in list(found.named_parameters()):
        setattr(found, key, nn.Parameter(torch.zeros_like(value)))
    assert not output(found(x)).eq(before).any()


@layers
def test_a_list_of_weights_that_the_user_sets_is_used(name: str) -> None:
    modules, x, results = pair(name, 3, 5), sample(name), []
    for module in modules:
        layer: Any = module
        before = output(layer(x))
        layer._flat_weights = [weight * 0.5 for weight in layer._flat_weights]
        found = [output(layer(x)), output(layer(x))]
        layer.weight_hh_l0 = nn.Parameter(torch.ones_like(layer.weight_hh_l0))
        results.append([*found, output(layer(x))])
        assert not found[0].eq(before).any()
    torch.testing.assert_close(*results)


@modules
def test_hooks(name: str) -> None:
    results = []
    for module in pair(name, 3, 5):
        calls: list[str] = []
        module.register_forward_pre_hook(lambda *_, calls=calls: calls.append("before"))
        module.register_forward_hook(lambda *_, calls=calls: calls.append("after"))
        module.register_full_backward_hook(lambda *_, calls=calls: calls.append("backward"))
        next(module.parameters()).register_hook(lambda *_, calls=calls: calls.append("weight"))
        output(module(sample(name).requires_grad_())).sum().backward()
        results.append(calls)
    assert results[0] == results[1]


@modules
def test_an_optimiser_trains_alike(name: str) -> None:
    results = []
    for module in pair(name, 3, 5):
        optimiser = torch.optim.Adam(module.parameters(), 0.01)
        for _ in range(5):
            optimiser.zero_grad()
            output(module(sample(name))).square().sum().backward()
            optimiser.step()
        results.append(output(module(sample(name))))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@modules
def test_gradients_in_eval_mode(name: str) -> None:
    results = []
    for module in pair(name, 3, 5):
        y = output(module.eval()(sample(name)))
        results.append(torch.autograd.grad(y.sum(), list(module.parameters())))
    torch.testing.assert_close(*results)


@layers
def test_dropout_between_layers(name: str) -> None:
    found, wanted = pair(name, 3, 64, num_layers=3, dropout=0.5)
    x = sample(name)
    torch.testing.assert_close(output(found.eval()(x)), output(wanted.eval()(x)))
    found.train()
    assert not torch.equal(output(found(x)), output(found(x)))
    outputs = torch.stack([output(found(x)) for _ in range(200)])
    expected = torch.stack([output(wanted.train()(x)) for _ in range(200)])
    assert (outputs.mean(0) - expected.mean(0)).abs().max() < 0.1
    found.dropout = 1.0  # type: ignore[assignment]  # nothing reaches the last layer but its biases
    torch.testing.assert_close(output(found(x)), output(found(torch.zeros_like(x))))


# ---- derivatives of other kinds

# torch scripts its decompositions the first time that forward mode is used
forward_mode_warns = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")


@modules
def test_per_sample_gradients(name: str) -> None:
    results = []
    dimension = 0 if name in CELLS else 1
    for module in pair(name, 3, 5):
        weights: dict[str, Tensor] = dict(module.named_parameters())

        def loss(weights: dict[str, Tensor], x: Tensor, module: nn.Module = module) -> Tensor:
            return output(torch.func.functional_call(module, weights, (x,))).square().sum()

        x = sample(name)
        if module.__module__.startswith("fastrnn"):
            each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, dimension))(weights, x)
        else:  # torch.nn's layers have no batching rule
            rows = [torch.func.grad(loss)(weights, row) for row in x.unbind(dimension)]
            each = {key: torch.stack([row[key] for row in rows]) for key in weights}
        results.append(each)
    torch.testing.assert_close(*results)


@forward_mode_warns
@modules
def test_forward_mode(name: str) -> None:
    found, wanted = pair(name, 3, 5, dtype=torch.float64)
    x, v = sample(name).double(), torch.linspace(-1, 1, sample(name).numel()).double()
    v = v.view_as(x)
    y, tangent, *_ = torch.func.jvp(lambda x: output(found(x)), (x,), (v,))
    step = 1e-6
    numeric = (output(wanted(x + step * v)) - output(wanted(x - step * v))) / (2 * step)
    torch.testing.assert_close(y, output(wanted(x)))
    torch.testing.assert_close(tangent, numeric, rtol=1e-6, atol=1e-8)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, v)
        unpacked = torch.autograd.forward_ad.unpack_dual(output(found(dual)))
    torch.testing.assert_close(unpacked.tangent, tangent)


@forward_mode_warns
@modules
@pytest.mark.parametrize("jacobian", [torch.func.jacrev, torch.func.jacfwd])
def test_jacobians(name: str, jacobian: Any) -> None:
    found, wanted = pair(name, 3, 5, dtype=torch.float64)
    x = sample(name).double()
    torch.testing.assert_close(
        jacobian(lambda x: output(found(x)))(x),
        torch.autograd.functional.jacobian(lambda x: output(wanted(x)), x),
    )


@modules
def test_autocast_to_bfloat16(name: str) -> None:
    found, wanted = pair(name, 3, 5)
    x = sample(name).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        results = found(x)
    y = output(results)
    # As on GPUs. On CPUs torch.nn's GRU and cells return float32, and still do under the patch.
    torchs = peers.library is patched and name != "LSTM"
    assert y.dtype == (torch.float32 if torchs else torch.bfloat16)
    torch.testing.assert_close(y.float(), output(wanted(x)), rtol=2e-2, atol=2e-2)
    y.sum().backward()
    assert x.grad is not None
    assert {p.grad.dtype for p in found.parameters() if p.grad is not None} == {torch.float32}


# ---- compilation


@not_patched
@modules
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_to_one_graph(name: str, training: bool, dynamic: bool) -> None:
    torch.compiler.reset()
    module = pair(name, 3, 5)[0]
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    x = sample(name)
    for given in (x, torch.cat([x, x]), x[:3]):
        with torch.set_grad_enabled(training):
            found, wanted = output(compiled(given)), output(module(given))
        torch.testing.assert_close(found, wanted)
        if training:
            parameters = list(module.parameters())
            torch.testing.assert_close(
                torch.autograd.grad(found.square().sum(), parameters),
                torch.autograd.grad(wanted.square().sum(), parameters),
            )


@not_patched
@layers
def test_compiles_with_packed_input(name: str) -> None:
    torch.compiler.reset()
    module = pair(name, 3, 5)[0]
    packed = pack_padded_sequence(sample(name), torch.tensor([6, 5, 2, 1]))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(output(compiled(packed)), output(module(packed)))


# RNNBase renews its list of weights, as torch.nn's own modules do
@pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights")
@modules
def test_exports(name: str) -> None:
    module, x = pair(name, 3, 5)[0].eval(), sample(name)
    exported = torch.export.export(module, (x,))
    torch.testing.assert_close(output(exported.module()(x)), output(module(x)))


# torch.jit is deprecated
@pytest.mark.filterwarnings(
    "ignore:`torch.jit:FutureWarning",
    "ignore:`torch.jit:DeprecationWarning",
    "ignore::torch.jit.TracerWarning",
)
@pytest.mark.parametrize("gradients", [True, False], ids=["gradients", "no gradients"])
@modules
def test_traces(name: str, gradients: bool) -> None:
    module, x = pair(name, 3, 5)[0].eval(), sample(name)
    with torch.set_grad_enabled(gradients):
        traced = torch.jit.trace(module, (x,))
    for other in (torch.cat([x, x]), torch.cat([x, x], -2)):
        torch.testing.assert_close(output(traced(other)), output(module(other)))


class OnPacked(nn.Module):
    """A layer on the parts of a packed sequence, because a trace takes only tensors."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *parts: Tensor) -> list[Tensor]:
        return peers.tensors(self.layer(PackedSequence(*parts)))


@pytest.mark.filterwarnings(
    "ignore:`torch.jit:FutureWarning",
    "ignore:`torch.jit:DeprecationWarning",
    "ignore::torch.jit.TracerWarning",
)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@layers
def test_traces_of_packed_sequences_take_another_batch(name: str, options: dict[str, Any]) -> None:
    layer = OnPacked(pair(name, 3, 5, **options)[0]).eval()
    few, many = (
        pack_sequence([torch.randn(n, 3) for n in lengths], enforce_sorted=False)
        for lengths in ([4, 6, 2], [1, 8, 3, 4, 4])
    )
    traced = torch.jit.trace(layer, tuple(few))
    torch.testing.assert_close(traced(*many), layer(*many))


# ---- errors


BAD_LAYER_CALLS: dict[str, Callable[[Any, bool], Any]] = {
    "input 1-D": lambda m, pair: m(torch.zeros(3)),
    "input 4-D": lambda m, pair: m(torch.zeros(1, 1, 1, 3)),
    "input too wide": lambda m, pair: m(torch.zeros(6, 4, 7)),
    "unbatched input too wide": lambda m, pair: m(torch.zeros(6, 7)),
    "input float64": lambda m, pair: m(torch.zeros(6, 4, 3).double()),
    "input integer": lambda m, pair: m(torch.zeros(6, 4, 3).long()),
    "no steps": lambda m, pair: m(torch.zeros(0, 4, 3)),
    "hx 2-D for a batch": lambda m, pair: m(torch.zeros(6, 4, 3), states(pair, 1, 5)),
    "hx 3-D for no batch": lambda m, pair: m(torch.zeros(6, 3), states(pair, 1, 1, 5)),
    "hx of another width": lambda m, pair: m(torch.zeros(6, 4, 3), states(pair, 1, 4, 6)),
    "hx of another batch": lambda m, pair: m(torch.zeros(6, 4, 3), states(pair, 1, 2, 5)),
    "hx of more layers": lambda m, pair: m(torch.zeros(6, 4, 3), states(pair, 2, 4, 5)),
    "hx float64": lambda m, pair: m(
        torch.zeros(6, 4, 3), torch.utils._pytree.tree_map(Tensor.double, states(pair, 1, 4, 5))
    ),
    "packed input too wide": lambda m, pair: m(
        pack_padded_sequence(torch.zeros(6, 4, 7), torch.tensor([6, 4, 2, 1]))
    ),
    "packed input and hx of another batch": lambda m, pair: m(
        pack_padded_sequence(torch.zeros(6, 4, 3), torch.tensor([6, 4, 2, 1])),
        states(pair, 1, 2, 5),
    ),
}
BAD_CELL_CALLS: dict[str, Callable[[Any, bool], Any]] = {
    "input 3-D": lambda m, pair: m(torch.zeros(1, 1, 3)),
    "input 0-D": lambda m, pair: m(torch.zeros(())),
    "input too wide": lambda m, pair: m(torch.zeros(4, 7)),
    "input float64": lambda m, pair: m(torch.zeros(4, 3).double()),
    "hx 3-D": lambda m, pair: m(torch.zeros(4, 3), states(pair, 1, 4, 5)),
    "hx of another width": lambda m, pair: m(torch.zeros(4, 3), states(pair, 4, 6)),
    "hx of another batch": lambda m, pair: m(torch.zeros(4, 3), states(pair, 2, 5)),
}
BAD_ARGUMENTS: dict[str, Any] = {
    "hidden_size 0": ((3, 0), {}),
    "hidden_size a float": ((3, 5.0), {}),
    "num_layers 0": ((3, 5, 0), {}),
    "dropout 2": ((3, 5), {"dropout": 2.0}),
    "dropout a string": ((3, 5), {"dropout": "0.1"}),
    "proj_size": ((3, 5), {"proj_size": 7}),
    "proj_size negative": ((3, 5), {"proj_size": -1}),
    "unknown keyword": ((3, 5), {"colour": 1}),
}


def states(two: bool, *shape: int) -> Any:
    state = torch.zeros(shape)
    return (state, state) if two else state


def forcing(backend: str | None) -> contextlib.AbstractContextManager[None]:
    return fastrnn.backend(backend) if backend else contextlib.nullcontext()


def raised(call: Callable[[], Any]) -> tuple[type[BaseException], str]:
    with pytest.raises(Exception) as error:  # noqa: PT011
        call()
    return error.type, str(error.value)


@pytest.mark.parametrize("bad", BAD_LAYER_CALLS)
@pytest.mark.parametrize("backend", [None, "cpu", "reference"])
@layers
def test_bad_calls_of_a_layer(name: str, bad: str, backend: str | None) -> None:
    found, wanted = pair(name, 3, 5)
    call, two = BAD_LAYER_CALLS[bad], name == "LSTM"
    expected = raised(lambda: call(wanted, two))
    with forcing(backend):
        error = raised(lambda: call(found, two))
    if two and bad.startswith("packed"):  # torch.nn.LSTM leaves these to whatever fails first
        assert error[0] == expected[0]
        assert "Expected" in error[1] or peers.library is patched
    else:
        assert error == expected


@pytest.mark.parametrize("bad", BAD_CELL_CALLS)
@pytest.mark.parametrize("backend", [None, "cpu", "reference"])
@pytest.mark.parametrize("name", CELLS)
def test_bad_calls_of_a_cell(name: str, bad: str, backend: str | None) -> None:
    found, wanted = pair(name, 3, 5)
    call, two = BAD_CELL_CALLS[bad], name == "LSTMCell"
    expected = raised(lambda: call(wanted, two))
    with forcing(backend):
        assert raised(lambda: call(found, two)) == expected


@pytest.mark.parametrize("bad", BAD_ARGUMENTS)
@layers
def test_bad_constructor_arguments(name: str, bad: str) -> None:
    args, kwargs = BAD_ARGUMENTS[bad]
    expected = raised(lambda: getattr(nn, name)(*args, **kwargs))
    assert raised(lambda: getattr(fastrnn, name)(*args, **kwargs)) == expected


@layers
def test_dropout_with_one_layer_warns_as_torch_does(name: str) -> None:
    with pytest.warns(UserWarning, match="dropout option adds dropout"):
        getattr(fastrnn, name)(3, 5, dropout=0.5)


# ---- convert()


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 5, 2, bidirectional=True)
        self.stack = nn.Sequential(nn.GRU(10, 4))
        self.shared = self.lstm
        self.cells = nn.ModuleList([nn.LSTMCell(3, 5), nn.GRUCell(3, 5)])

    def forward(self, x: Tensor) -> Tensor:
        return self.stack(self.lstm(x)[0])[0]


def test_convert_swaps_nested_and_shared_modules_and_keeps_the_results() -> None:
    model, x = _Model(), sample("LSTM")
    before, parameters = model(x), list(model.parameters())
    assert fastrnn.convert(model) is model
    assert isinstance(model.lstm, fastrnn.LSTM)
    assert model.shared is model.lstm
    assert [type(m) for m in model.stack] == [fastrnn.GRU]
    assert [type(m) for m in model.cells] == [fastrnn.LSTMCell, fastrnn.GRUCell]
    assert all(p is q for p, q in zip(parameters, model.parameters(), strict=True))
    torch.testing.assert_close(model(x), before)


@modules
def test_convert_of_the_root(name: str) -> None:
    wanted = getattr(nn, name)(3, 5)
    expected = output(wanted(sample(name)))
    converted: nn.Module = fastrnn.convert(wanted)
    assert type(converted) is getattr(fastrnn, name)
    torch.testing.assert_close(output(converted(sample(name))), expected)


def test_convert_leaves_subclasses_and_others_alone() -> None:
    class Own(nn.LSTM):
        pass

    model = nn.ModuleList([Own(3, 5), nn.RNN(3, 5), nn.Linear(3, 5)])
    for function in (fastrnn.convert, fastrnn.revert):
        with pytest.warns(UserWarning, match=r"left 0 \(.*Own\), 1 \(RNN\) alone") as caught:
            function(model)
        assert caught[0].filename == __file__
        assert [type(m) for m in model] == [Own, nn.RNN, nn.Linear]


def test_convert_twice_changes_nothing() -> None:
    model = fastrnn.convert(fastrnn.convert(_Model()))
    assert isinstance(model.lstm, fastrnn.LSTM)


def test_an_optimiser_made_before_convert_still_trains() -> None:
    results = []
    for convert in (fastrnn.convert, lambda model: model):
        torch.manual_seed(0)
        model = _Model()
        optimiser = torch.optim.SGD(model.parameters(), 0.1)
        convert(model)
        model(sample("LSTM")).square().sum().backward()
        optimiser.step()
        results.append(model(sample("LSTM")))
    torch.testing.assert_close(*results)


@modules
def test_convert_of_a_parametrised_module(name: str) -> None:
    weight = "weight_hh" if name in CELLS else "weight_hh_l0"
    module = getattr(nn, name)(3, 5)
    parametrizations.weight_norm(module, weight)
    expected = output(module(sample(name)))
    fastrnn.convert(module)
    torch.testing.assert_close(output(module(sample(name))), expected)
