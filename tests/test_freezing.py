"""Frozen layers: their numbers, their weights when those change, and what they refuse."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fastrnn
from fastrnn import freezing, inference
from fastrnn.kernels import cpu
from tests import oracle

LAYERS = [fastrnn.LSTM, fastrnn.GRU, nn.LSTM, nn.GRU]
BOTH = LAYERS[:2]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
BUILDS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "two layers": {"num_layers": 2},
    "both directions": {"bidirectional": True},
    "no bias": {"bias": False},
    "batch first": {"batch_first": True},
    "everything": {"num_layers": 3, "bidirectional": True, "batch_first": True, "bias": False},
}
INPUT, HIDDEN = 5, 19


def made(kind: type[nn.Module], dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A layer with weights of its own; INPUT and HIDDEN are its sizes unless others are given."""
    torch.manual_seed(0)
    sizes = options.pop("input_size", INPUT), options.pop("hidden_size", HIDDEN)
    return kind(*sizes, **options).to(dtype).eval()


def flat(results: Any) -> list[Tensor]:
    """The tensors that a layer returns."""
    if isinstance(results, PackedSequence):
        return [results.data]
    return [results] if isinstance(results, Tensor) else [t for r in results for t in flat(r)]


def ordinary(layer: Any, *given: Any) -> list[Tensor]:
    """What the layer returns unfrozen, from the same kernels."""
    twin = fastrnn.convert(fastrnn.thaw(copy.deepcopy(layer)))
    with torch.no_grad(), fastrnn.backend("cpu"):
        return flat(twin(*given))


@torch.no_grad()
def assert_equal(layer: Any, *given: Any) -> None:
    """Asserts that a frozen layer returns, bit for bit, what it would return unfrozen."""
    for got, expected in zip(flat(layer(*given)), ordinary(layer, *given), strict=True):
        assert got.shape == expected.shape
        assert got.stride() == expected.stride()
        assert torch.equal(got, expected)


# ---- numbers


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", BOTH)
def test_gives_the_numbers_of_the_layer(
    kind: type[nn.Module], dtype: torch.dtype, build: str, threads: int
) -> None:
    layer = fastrnn.freeze(made(kind, dtype, **BUILDS[build]))
    sets = layer.num_layers * (2 if layer.bidirectional else 1)
    with oracle.threads(threads):
        for steps, batch in ((1, 1), (7, 1), (4, 33)):
            x = torch.randn(*((batch, steps) if layer.batch_first else (steps, batch)), INPUT).to(
                dtype
            )
            h, c = torch.randn(2, sets, batch, HIDDEN).to(dtype)
            hx = (h, c) if layer.mode == "LSTM" else h
            assert_equal(layer, x)
            assert_equal(layer, x, hx)
            assert_equal(layer, x.transpose(0, 1).contiguous().transpose(0, 1))
        unbatched = torch.randn(6, INPUT).to(dtype)
        assert_equal(layer, unbatched)
        assert_equal(layer, unbatched[:1])
        packed = pack_sequence([unbatched[:k] for k in (2, 6, 1)], enforce_sorted=False)
        assert_equal(layer, packed)


@pytest.mark.parametrize("kind", LAYERS)
def test_agrees_with_torch_nn_in_float64(kind: type[nn.Module]) -> None:
    layer = made(kind, input_size=40, hidden_size=70, num_layers=2, bidirectional=True)
    exact = (nn.LSTM if layer.mode == "LSTM" else nn.GRU)(40, 70, 2, bidirectional=True).double()
    exact.load_state_dict(layer.state_dict())
    x = torch.randn(20, 9, 40)
    with torch.no_grad():
        for got, expected in zip(
            flat(fastrnn.freeze(layer)(x)), flat(exact(x.double())), strict=True
        ):
            assert oracle.error(got, expected) < 1e-6


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("batch_first", [False, True])
def test_large_outputs(kind: type[nn.Module], batch_first: bool) -> None:
    """From a mebibyte on, they lie in reused memory."""
    layer = fastrnn.freeze(made(kind, hidden_size=64, batch_first=batch_first))
    assert_equal(layer, torch.randn(70, 80, INPUT))
    sequences = [torch.randn(steps, INPUT) for steps in (300, 20, 4200)]
    assert_equal(layer, pack_sequence(sequences, enforce_sorted=False))


@pytest.mark.parametrize("kind", BOTH)
def test_streaming_gives_the_numbers_of_the_sequence(kind: type[nn.Module]) -> None:
    layer = fastrnn.freeze(made(kind, num_layers=2))
    x = torch.randn(12, 1, INPUT)
    with torch.inference_mode():
        expected, final = layer(x)
        state = None
        for t in range(12):
            y, new = layer(x[t : t + 1], state)
            assert torch.equal(y, expected[t : t + 1])
            if state is not None:
                assert all(map(torch.equal, flat(layer(x[t : t + 1], state)), flat((y, new))))
            state = new
        assert all(map(torch.equal, flat(state), flat(final)))


def test_default_states_are_zero_at_each_call() -> None:
    layer = fastrnn.freeze(made(fastrnn.LSTM))
    with torch.no_grad():
        for batch in (1, 3, 1):
            x = torch.randn(1, batch, INPUT)
            first = flat(layer(x))
            for result in flat(layer(x)):
                result.fill_(9.0)  # nobody else's memory
            assert all(map(torch.equal, flat(layer(x)), first))


def test_a_model_with_layers_of_all_kinds() -> None:
    class Model(nn.Module):
        first: Any
        second: Any

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.GRU(INPUT, HIDDEN), fastrnn.LSTM(HIDDEN, HIDDEN)
            self.again = self.first
            self.head = nn.Linear(HIDDEN, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.second(self.first(x)[0])[0])

    model = Model().eval()
    twin = copy.deepcopy(model)
    assert fastrnn.freeze(model) is model
    assert type(model.first) is freezing.FrozenGRU
    assert type(model.second) is freezing.FrozenLSTM
    assert model.again is model.first
    x = torch.randn(9, 2, INPUT)
    with torch.no_grad():
        torch.testing.assert_close(model(x), twin(x))
        assert fastrnn.freeze(model) is model  # again: nothing to do
        torch.testing.assert_close(model(x), twin(x))
    assert fastrnn.thaw(model) is model
    assert type(model.first) is fastrnn.GRU
    assert {type(p) for p in model.parameters()} == {nn.Parameter}
    model(x).sum().backward()
    assert model.first.weight_hh_l0.grad is not None


def test_threads_share_a_layer() -> None:
    layer = fastrnn.freeze(made(fastrnn.LSTM, num_layers=2))
    inputs = [torch.randn(5, batch, INPUT) for batch in (1, 2, 3, 4)] * 10
    expected = [ordinary(layer, x)[0] for x in inputs]

    def call(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return layer(x)[0]

    with ThreadPoolExecutor(4) as pool:
        assert all(map(torch.equal, pool.map(call, inputs), expected))


# ---- weights that change


def _load(layer: Any, **options: Any) -> None:
    layer.load_state_dict({n: t * 2 for n, t in layer.state_dict().items()}, **options)


def _step(layer: Any) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def _replace(layer: Any) -> None:
    layer.weight_hh_l0 = nn.Parameter(torch.randn_like(layer.weight_hh_l0))


def _assign(layer: Any, times: int) -> None:
    for _ in range(times):  # the second time, memory of the first may be used again
        layer.weight_hh_l0.data = torch.randn(layer.weight_hh_l0.shape)


@torch.inference_mode()
def _in_inference_mode(layer: Any) -> None:
    layer.bias_hh_l0.add_(1)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "in place": lambda layer: nn.init.normal_(layer.weight_hh_l0),
    "in place, in inference mode": _in_inference_mode,
    "data": lambda layer: layer.weight_hh_l0.data.mul_(2),
    "an element of data": lambda layer: layer.weight_ih_l0.data[0].fill_(0.5),
    "data of a bias": lambda layer: layer.bias_ih_l0.data.add_(1),
    "detached": lambda layer: layer.weight_hh_l0.detach().mul_(2),
    "view": lambda layer: layer.weight_hh_l0.detach().view(-1)[3:4].mul_(2),
    "data assigned": lambda layer: _assign(layer, 1),
    "data assigned twice": lambda layer: _assign(layer, 2),
    "load_state_dict": _load,
    "load_state_dict, assign": lambda layer: _load(layer, assign=True),
    "values of state_dict": lambda layer: layer.state_dict()["weight_hh_l0"].mul_(2),
    "optimizer": _step,
    "new parameter": _replace,
    "to float64": lambda layer: layer.double(),
    "to bfloat16": lambda layer: layer.to(torch.bfloat16),
    "reset": lambda layer: layer.reset_parameters(),
    "apply": lambda layer: layer._apply(lambda t: t * 2),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", BOTH)
def test_changed_weights_are_packed_again(kind: type[nn.Module], change: str) -> None:
    layer = fastrnn.freeze(made(kind))
    x = torch.randn(3, 2, INPUT)
    with torch.no_grad():
        before = layer(x)[0].double()
        for _ in range(2):
            CHANGES[change](layer)
            after = x.to(layer.weight_hh_l0.dtype)
            assert_equal(layer, after)
        assert not torch.equal(layer(after)[0].double(), before)


def test_a_parameter_from_before_the_freeze_changes_the_layer() -> None:
    layer = made(fastrnn.GRU)
    parameters = list(layer.parameters())
    fastrnn.freeze(layer)
    assert all(a is b for a, b in zip(parameters, layer.parameters(), strict=True))
    x = torch.randn(3, 2, INPUT)
    with torch.no_grad():
        layer(x)
        parameters[1].data.zero_()
        assert_equal(layer, x)


def test_weights_are_packed_once() -> None:
    layer = fastrnn.freeze(made(fastrnn.LSTM))
    packed = layer._packed
    with torch.inference_mode():
        layer(torch.randn(3, 2, INPUT))
        layer(pack_sequence([torch.randn(3, INPUT)]))
        assert layer._packed is packed
        layer.bias_hh_l0.data.add_(1)
        layer(torch.randn(3, 2, INPUT))
        assert layer._packed is not packed


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        layer = fastrnn.freeze(made(fastrnn.LSTM))
        x = torch.randn(3, 2, INPUT)
        before = layer(x)[0]
        layer.weight_hh_l0.data.mul_(2)
        assert not torch.equal(layer(x)[0], before)
    assert_equal(layer, torch.randn(3, 2, INPUT))


# ---- copies and files


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies_have_weights_of_their_own(kind: type[nn.Module], way: str) -> None:
    layer = fastrnn.freeze(made(kind))
    x = torch.randn(3, 2, INPUT)
    with torch.no_grad():
        expected = layer(x)[0]
    if way == "deepcopy":
        twin = copy.deepcopy(layer)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(layer))
    else:
        file = io.BytesIO()
        torch.save(layer, file)
        twin = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    assert type(twin) is type(layer)
    with torch.no_grad():
        assert torch.equal(twin(x)[0], expected)
        twin.weight_hh_l0.data.mul_(2)
        assert not torch.equal(twin(x)[0], expected)
        assert torch.equal(layer(x)[0], expected)


@pytest.mark.parametrize("kind", BOTH)
def test_state_dict_is_that_of_torch_nn(kind: type[nn.Module]) -> None:
    layer = made(kind, num_layers=2)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    fastrnn.freeze(layer)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    after = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    assert list(after) == list(before)
    assert {type(tensor) for tensor in after.values()} == {Tensor}
    assert all(torch.equal(after[name], before[name]) for name in before)
    (nn.LSTM if layer.mode == "LSTM" else nn.GRU)(INPUT, HIDDEN, 2).load_state_dict(after)


# ---- what is refused


def test_training_mode_is_refused() -> None:
    layer = made(fastrnn.GRU)
    with pytest.raises(ValueError, match=r"training mode; call model.eval\(\)"):
        fastrnn.freeze(layer.train())
    fastrnn.freeze(layer.eval()).train()
    with pytest.raises(RuntimeError, match="training mode"), torch.no_grad():
        layer(torch.randn(3, 2, INPUT))


def test_gradients_are_refused() -> None:
    layer = fastrnn.freeze(made(fastrnn.LSTM))
    x = torch.randn(3, 2, INPUT)
    for given in (x, pack_sequence([x[:, 0]])):
        with pytest.raises(RuntimeError, match="needs gradients"):
            layer(given)
    layer.requires_grad_(False)
    assert torch.equal(layer(x)[0], ordinary(layer, x)[0])
    with pytest.raises(RuntimeError, match="needs gradients"):
        layer(x.requires_grad_())


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (fastrnn.LSTM(INPUT, HIDDEN, proj_size=3), "proj_size"),
        (fastrnn.GRU(INPUT, HIDDEN, dtype=torch.float16), "weight_ih_l0 is of torch.float16"),
        (nn.LSTM(INPUT, HIDDEN, device="meta"), "is on meta; frozen layers run on CPUs"),
    ],
    ids=["projection", "float16", "device"],
)
def test_a_layer_that_cannot_be_frozen_leaves_the_model_as_it_was(
    layer: nn.Module, message: str
) -> None:
    model = nn.Sequential(fastrnn.GRU(INPUT, HIDDEN), layer).eval()
    with pytest.raises(ValueError, match=rf"cannot freeze 1 \({type(layer).__name__}\).*{message}"):
        fastrnn.freeze(model)
    assert type(model[0]) is fastrnn.GRU
    assert {type(p) for p in model.parameters()} == {nn.Parameter}


def test_others_are_left_alone_and_named() -> None:
    class Own(nn.LSTM):
        pass

    normed = parametrizations.weight_norm(nn.GRU(INPUT, HIDDEN), "weight_hh_l0")
    model = nn.ModuleList(
        [nn.RNN(INPUT, HIDDEN), Own(INPUT, HIDDEN), normed, nn.LSTMCell(INPUT, HIDDEN)]
    ).eval()
    with pytest.warns(UserWarning, match=r"left 0 \(RNN\), 1 .*, 2 \(ParametrizedGRU\) alone"):
        fastrnn.freeze(model)
    assert [type(m).__name__ for m in model] == ["RNN", "Own", "ParametrizedGRU", "LSTMCell"]


def test_what_a_frozen_layer_can_no_longer_run() -> None:
    x = torch.randn(3, 2, INPUT)
    layer = fastrnn.freeze(made(fastrnn.LSTM))
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"float16.*fastrnn.thaw"):
        layer.half()(x.half())
    layer = fastrnn.freeze(made(fastrnn.LSTM))
    with torch.no_grad(), pytest.raises(RuntimeError, match="is on meta"):
        layer.to("meta")(x)
    layer = fastrnn.freeze(made(fastrnn.LSTM))
    prune.l1_unstructured(layer, "weight_hh_l0", 0.5)
    with torch.no_grad(), pytest.raises(RuntimeError, match="parametrised or pruned"):
        layer(x)


@pytest.mark.parametrize("kind", BOTH)
def test_errors_are_those_of_the_layer(kind: type[nn.Module]) -> None:
    layer = made(kind)
    frozen = fastrnn.freeze(copy.deepcopy(layer))
    h = torch.zeros(1, 2, HIDDEN)
    states = (h, h[:, :1]) if kind is fastrnn.LSTM else h[:, :1]
    wrong: list[tuple[Any, ...]] = [
        (torch.randn(3, 2, INPUT + 1),),
        (torch.randn(3, 2, INPUT).double(),),
        (torch.randn(1, 3, 2, INPUT),),
        (torch.randn(3, 2, INPUT), states),
        (pack_sequence([torch.randn(3, INPUT + 1)]),),
    ]
    for given in wrong:
        with torch.no_grad(), pytest.raises(Exception) as expected:  # noqa: PT011
            layer(*given)
        with torch.no_grad(), pytest.raises(expected.type) as got:
            frozen(*given)
        assert str(got.value) == str(expected.value)


def test_the_op_refuses_other_weights() -> None:
    layer = fastrnn.freeze(made(fastrnn.GRU))
    packed = layer._packed
    x, states = torch.randn(3, 2, INPUT), [torch.randn(1, 2, HIDDEN)]
    op = torch.ops.fastrnn.frozen_stack.default
    room = torch.empty(3, 2, HIDDEN)
    assert len(op(x, states, packed.weights, [], packed.options)) == 2
    assert len(op(x, states, packed.weights, [room], packed.options)) == 1
    assert torch.equal(room, ordinary(layer, x, states[0])[0])
    zeros = torch.zeros_like(packed.weights)
    for weights, output in (
        (zeros, []),
        (packed.weights[64:], []),
        (packed.weights[:-64], []),
        (packed.weights.int(), []),
        (packed.weights, [room.double()]),
        (packed.weights, [room[:2]]),
        (packed.weights, [room, room]),
    ):
        assert op(x, states, weights, output, packed.options) == []


# ---- where something else has to see the call


@pytest.mark.filterwarnings(
    "ignore:`torch.jit:FutureWarning",
    "ignore:`torch.jit:DeprecationWarning",
    "ignore::torch.jit.TracerWarning",
)
def test_calls_that_something_looks_into_are_right() -> None:
    layer = fastrnn.freeze(made(fastrnn.LSTM))
    x = torch.randn(3, 2, INPUT)
    (expected, *_) = ordinary(layer, x)
    with torch.no_grad():
        traced = torch.jit.trace(lambda x: layer(x)[0], x)
        torch.testing.assert_close(traced(2 * x), layer(2 * x)[0])
        batched = torch.func.vmap(lambda x: layer(x)[0])(torch.stack([x, x]))
        torch.testing.assert_close(batched[1], expected)
        with fastrnn.backend("torch"):
            torch.testing.assert_close(layer(x)[0], expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x)[0].dtype == torch.bfloat16


def test_compiled_models_call_the_layer_outside_of_the_graph() -> None:
    model = nn.Sequential(nn.Linear(INPUT, INPUT), fastrnn.freeze(made(fastrnn.GRU)))
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(3, 2, INPUT)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(compiled(x)[0], model(x)[0])
            next(model[1].parameters()).data.mul_(2)


def test_another_instruction_set() -> None:
    """Weights are packed for one instruction set."""
    info = cpu.info()
    layer = fastrnn.freeze(made(fastrnn.LSTM))
    x = torch.randn(3, 2, INPUT)
    try:
        for level in info["levels"]:
            cpu.select_level(level)
            assert_equal(layer, x)
            # In float32, the kernels of both levels of AVX-512 are the same.
            assert layer._packed.level.split("_")[0] == level.split("_")[0]
    finally:
        cpu.select_level(info["level"])


def test_without_the_library_of_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "load_error", lambda: "not built")
    layer = fastrnn.freeze(made(fastrnn.LSTM, num_layers=2))
    assert layer._packed.weights is None
    x = torch.randn(3, 2, INPUT)
    assert_equal(layer, x)
    layer.weight_hh_l0.data.mul_(2)
    assert_equal(layer, x)


@pytest.mark.parametrize("names", [["bias_hh_l0"], None], ids=["one weight", "all weights"])
@pytest.mark.parametrize("kind", BOTH)
@torch.no_grad()
def test_functional_call_with_other_weights(kind: type[nn.Module], names: list[str] | None) -> None:
    layer, peer = fastrnn.freeze(made(kind)), made(kind)
    x = torch.randn(3, 2, INPUT)
    others = {
        name: torch.randn_like(layer.get_parameter(name))
        for name in names or dict(layer.named_parameters())
    }
    for _ in range(2):
        found, wanted = (torch.func.functional_call(m, others, (x,)) for m in (layer, peer))
        torch.testing.assert_close(found, wanted)
        others["bias_hh_l0"].add_(1)
    assert_equal(layer, x)
