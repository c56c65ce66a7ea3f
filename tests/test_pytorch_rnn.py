"""PyTorch's own tests of its recurrent modules, run on fastrnn's.

The wheel ships torch.testing._internal with the sample modules and inputs (common_modules:
module_db; ``test_module_db.py`` compares results over them) but not the tests that use them:
test/test_modules.py, test/test_nn.py (whose RNN tests are methods, with CUDA's beside them),
test/inductor, test/dynamo, test/functorch and test/jit. The wheel has no OpInfo for lstm and gru
either. Below are the checks of test_modules.py over module_db, the RNN checks of test_nn.py, and
those that test_ops_gradients.py makes of each OpInfo (gradcheck, gradgradcheck, forward mode,
batched) over the layers' options.
"""

from __future__ import annotations

import copy
import functools
import io
import itertools
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.testing._internal.common_modules import ModuleInfo, module_db
from torch.testing._internal.common_utils import freeze_rng_state, noncontiguous_like
from torch.utils import _pytree as pytree

from tests import peers
from tests.peers import Setup

pytestmark = [
    pytest.mark.usefixtures("one_thread", "both_libraries"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    # torch scripts its decompositions the first time that forward mode is used
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),
]

CLASSES = {nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell}
INFOS = [info for info in module_db if info.module_cls in CLASSES]
infos = pytest.mark.parametrize("info", INFOS, ids=lambda info: info.formatted_name)
modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def samples(
    info: ModuleInfo, training: bool, dtype: torch.dtype = torch.float64, grad: bool = True
) -> Iterator[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """fastrnn's modules with the arguments of a call."""
    torch.manual_seed(0)
    cls = getattr(peers.library, info.module_cls.__name__)
    given = {"device": "cpu", "dtype": dtype, "requires_grad": grad, "training": training}
    for sample in info.module_inputs_func(info, **given):
        made = sample.constructor_input
        module = cls(*made.args, **made.kwargs, dtype=dtype).train(training)
        yield module, sample.forward_input.args, sample.forward_input.kwargs


def leaves_of(value: Any) -> list[Tensor]:
    opened = pytree.tree_map(
        lambda v: v.data if isinstance(v, PackedSequence) else v,
        value,
        is_leaf=lambda v: isinstance(v, PackedSequence),
    )
    return [t for t in pytree.tree_leaves(opened) if isinstance(t, Tensor)]


# ---- test_modules.py


@modes
@infos
def test_forward_runs_and_repeats(info: ModuleInfo, training: bool) -> None:
    for module, args, kwargs in samples(info, training):
        with freeze_rng_state():
            first = leaves_of(module(*args, **kwargs))
        with freeze_rng_state():
            second = leaves_of(module(*args, **kwargs))
        torch.testing.assert_close(first, second, rtol=0, atol=0)
        assert isinstance(repr(module), str)
        assert str(module).startswith(info.module_cls.__name__)


@infos
def test_factory_kwargs(info: ModuleInfo) -> None:
    for module, *_ in samples(info, True, torch.float32):
        assert {p.dtype for p in module.parameters()} == {torch.float32}
    for sample in info.module_inputs_func(
        info, device="cpu", dtype=torch.float32, requires_grad=False, training=False
    ):
        made, cls = sample.constructor_input, getattr(peers.library, info.module_cls.__name__)
        for dtype in (torch.float64, torch.bfloat16):
            module = cls(*made.args, **made.kwargs, device="meta", dtype=dtype)
            assert {(p.dtype, p.device.type) for p in module.parameters()} == {(dtype, "meta")}
            emptied = module.to_empty(device="cpu")
            assert {p.device.type for p in emptied.parameters()} == {"cpu"}
        if info.module_cls in (nn.LSTM, nn.GRU):  # skip_init refuses torch.nn's, too
            continue
        skipped = nn.utils.skip_init(cls, *made.args, **made.kwargs)
        wanted = info.module_cls(*made.args, **made.kwargs)
        assert [p.shape for p in skipped.parameters()] == [p.shape for p in wanted.parameters()]


@modes
@infos
def test_pickle(info: ModuleInfo, training: bool) -> None:
    for module, args, kwargs in samples(info, training):
        with freeze_rng_state():
            wanted = leaves_of(module(*args, **kwargs))
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        for twin in (
            pickle.loads(pickle.dumps(module)),
            torch.load(file, weights_only=False),
            copy.deepcopy(module),
        ):
            with freeze_rng_state():
                found = leaves_of(twin(*args, **kwargs))
            torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@modes
@infos
def test_non_contiguous_tensors(info: ModuleInfo, training: bool) -> None:
    """Values and gradients are those of contiguous tensors, for each mixture of the two."""

    def apart(value: Any) -> Any:
        def of_tensor(t: Any) -> Any:
            if not isinstance(t, Tensor) or t.numel() < 2:
                return t
            with torch.no_grad():
                return noncontiguous_like(t).detach().requires_grad_(t.requires_grad)

        return pytree.tree_map(of_tensor, value)

    for module, args, kwargs in samples(info, training):
        if any(isinstance(a, PackedSequence) for a in args):
            continue

        def run(args: Any, kwargs: Any, module: Any = module) -> list[Tensor]:
            with freeze_rng_state():
                results = leaves_of(module(*args, **kwargs))
            given = [t for t in leaves_of((args, kwargs)) if t.requires_grad]
            return [
                *results,
                *torch.autograd.grad(peers.loss(results), [*given, *module.parameters()]),
            ]

        wanted = run(args, kwargs)
        for given in ((apart(args), kwargs), (args, apart(kwargs)), (apart(args), apart(kwargs))):
            torch.testing.assert_close(run(*given), wanted)
        with torch.no_grad():  # and of weights
            for name, parameter in list(module.named_parameters()):
                setattr(module, name, nn.Parameter(noncontiguous_like(parameter).detach()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.testing.assert_close(run(args, kwargs), wanted)


def _gradients(
    info: ModuleInfo, training: bool, check: Callable[..., bool], every: int = 1
) -> None:
    for module, args, kwargs in itertools.islice(samples(info, training), 0, None, every):
        if any(isinstance(a, PackedSequence) for a in args):
            continue
        flat, spec = pytree.tree_flatten((args, kwargs))
        places = [i for i, t in enumerate(flat) if isinstance(t, Tensor) and t.requires_grad]
        given = [flat[i] for i in places]
        names = [name for name, _ in module.named_parameters()]

        def function(
            *tensors: Tensor,
            module: Any = module,
            flat: list[Any] = flat,
            spec: Any = spec,
            places: list[int] = places,
            names: list[str] = names,
        ) -> tuple[Tensor, ...]:
            inputs, weights = tensors[: len(places)], tensors[len(places) :]
            filled = list(flat)
            for i, t in zip(places, inputs, strict=True):
                filled[i] = t
            a, k = pytree.tree_unflatten(filled, spec)
            with freeze_rng_state():
                results = torch.func.functional_call(
                    module, dict(zip(names, weights, strict=True)), a, k
                )
            return tuple(leaves_of(results))

        assert check(function, (*given, *module.parameters()))


fast_gradcheck = functools.partial(gradcheck, fast_mode=True)
fast_gradgradcheck = functools.partial(gradgradcheck, fast_mode=True)


@modes
@infos
def test_grad(info: ModuleInfo, training: bool) -> None:
    _gradients(info, training, fast_gradcheck)


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.long)])
@modes
@infos
def test_gradgrad(info: ModuleInfo, training: bool, every: int) -> None:
    _gradients(info, training, fast_gradgradcheck, every)


@infos
def test_train_and_eval_modes_differ_as_torch_says(info: ModuleInfo) -> None:
    for module, args, kwargs in samples(info, True):
        with freeze_rng_state():
            first = leaves_of(module.train()(*args, **kwargs))
        second = leaves_of(module.eval()(*args, **kwargs))
        if not getattr(module, "dropout", 0.0):
            torch.testing.assert_close(first, second)


@infos
def test_to_other_dtypes_keeps_parameters_or_swaps_them(info: ModuleInfo) -> None:
    for swap in (False, True):
        torch.__future__.set_swap_module_params_on_conversion(swap)
        try:
            for module, args, kwargs in samples(info, False, grad=False):
                if any(isinstance(a, PackedSequence) for a in args):
                    continue
                before = list(module.parameters())
                module.float()
                assert all(a is b for a, b in zip(before, module.parameters(), strict=True))
                a, k = pytree.tree_map(
                    lambda t: t.float() if isinstance(t, Tensor) else t, (args, kwargs)
                )
                assert {t.dtype for t in leaves_of(module(*a, **k))} == {torch.float32}
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)


# ---- test_nn.py

layers = pytest.mark.parametrize("name", peers.LAYERS)
cells = pytest.mark.parametrize("name", peers.CELLS)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@cells
def test_cell_steps_and_backward(name: str, bias: bool) -> None:
    cell = getattr(peers.library, name)(10, 20, bias=bias)
    x, state = torch.randn(3, 10), torch.randn(3, 20)
    hx: Any = (state, torch.randn(3, 20)) if name == "LSTMCell" else state
    for _ in range(6):
        hx = cell(x, hx)
    peers.loss(peers.tensors(hx)).backward()
    assert all(p.grad is not None for p in cell.parameters())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("value", [0, 0.25, 0.5, 0.75, 1, 1.0])
@layers
def test_dropout_of_equal_values(name: str, value: float, training: bool) -> None:
    """The layers' units do not mix: each value between them is either dropped or scaled."""
    layer = getattr(peers.library, name)(10, 1000, 2, bias=False, dropout=value).train(training)
    with torch.no_grad():
        layer.weight_ih_l0.fill_(0.05)
        layer.weight_ih_l1.copy_(torch.eye(1000).repeat(len(layer.weight_ih_l1) // 1000, 1))
        output, _ = layer(torch.ones(1, 1, 10))
    seen = output.mul(1e4).round().unique()
    kept = (output != output.min()).double().mean().item()
    if not training or value == 0 or value == 1:
        assert len(seen) == 1
    else:
        assert len(seen) == 2
        assert abs(kept - (1 - value)) < 0.07


@layers
def test_dropout_states_of_the_generator(name: str) -> None:
    layer = getattr(peers.library, name)(100, 100, 2, dropout=0.5, bidirectional=True).train()
    x = torch.rand(3, 1, 100)
    torch.manual_seed(7)
    first = [layer(x)[0] for _ in range(2)]
    torch.manual_seed(7)
    second = [layer(x)[0] for _ in range(2)]
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], first[1])


@layers
def test_change_of_dropout(name: str) -> None:
    layer = getattr(peers.library, name)(20, 20, 2, dropout=0.5).train()
    x = torch.rand(3, 4, 20)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.dropout = 0.0
    assert torch.equal(layer(x)[0], layer(x)[0])
    layer.dropout = 1.0
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@layers
def test_initial_state_of_zeros(
    name: str, bias: bool, num_layers: int, bidirectional: bool
) -> None:
    layer = getattr(peers.library, name)(10, 10, num_layers, bias, bidirectional=bidirectional)
    x, zeros = torch.randn(3, 2, 10), torch.zeros(num_layers * (1 + bidirectional), 2, 10)
    hx: Any = (zeros, zeros) if name == "LSTM" else zeros
    torch.testing.assert_close(layer(x), layer(x, hx), rtol=0, atol=0)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("proj_size", [1, 3])
def test_projections(proj_size: int, num_layers: int, bidirectional: bool) -> None:
    ours, theirs = peers.pair(
        "LSTM", 4, 5, num_layers, bidirectional=bidirectional, proj_size=proj_size
    )
    x, rows = torch.randn(6, 3, 4), num_layers * (1 + bidirectional)
    hx = (torch.randn(rows, 3, proj_size), torch.randn(rows, 3, 5))
    found = []
    for module in (ours, theirs):
        results = peers.tensors(module(x, hx))
        found.append([*results, *torch.autograd.grad(peers.loss(results), [*module.parameters()])])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@layers
def test_variable_lengths_equal_sequences_one_by_one(
    name: str, batch_first: bool, bidirectional: bool
) -> None:
    torch.manual_seed(0)
    layer = getattr(peers.library, name)(
        3, 4, 2, batch_first=batch_first, bidirectional=bidirectional, dtype=torch.float64
    )
    lengths = [7, 5, 5, 2, 1, 1]
    x = torch.randn(6, 7, 3, dtype=torch.float64)
    given = x if batch_first else x.transpose(0, 1)
    packed = pack_padded_sequence(given, torch.tensor(lengths), batch_first=batch_first)
    output, state = layer(packed)
    padded, counts = pad_packed_sequence(output, batch_first=True)
    assert counts.tolist() == lengths
    for row, length in enumerate(lengths):
        y, last = layer(x[row, :length])
        torch.testing.assert_close(padded[row, :length], y)
        assert not padded[row, length:].any()
        for a, b in zip(peers.tensors(state), peers.tensors(last), strict=True):
            torch.testing.assert_close(a[:, row], b)


@pytest.mark.parametrize("enforce_sorted", [True, False])
@layers
def test_packed_equals_padded_for_equal_lengths(name: str, enforce_sorted: bool) -> None:
    layer = getattr(peers.library, name)(3, 4, 2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(5, 3, 3, dtype=torch.float64)
    packed = pack_padded_sequence(x, torch.tensor([5, 5, 5]), enforce_sorted=enforce_sorted)
    output, state = layer(packed)
    y, last = layer(x)
    torch.testing.assert_close(pad_packed_sequence(output)[0], y)
    torch.testing.assert_close(peers.tensors(state), peers.tensors(last))


@layers
def test_a_sequence_in_pieces_equals_the_whole(name: str) -> None:
    layer = getattr(peers.library, name)(3, 4, 2, dtype=torch.float64)
    x = torch.randn(9, 2, 3, dtype=torch.float64)
    whole, last = layer(x)
    state, outputs = None, []
    for piece in x.split(4):
        y, state = layer(piece, state)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs), whole)
    torch.testing.assert_close(peers.tensors(state), peers.tensors(last))


@pytest.mark.parametrize("name", [*peers.LAYERS, *peers.CELLS])
def test_retain_variables(name: str) -> None:
    module = getattr(peers.library, name)(10, 20, dtype=torch.float64)
    x = torch.randn(3, 10, dtype=torch.float64, requires_grad=True)
    value = peers.loss(peers.tensors(module(x)))
    value.backward(retain_graph=True)
    assert x.grad is not None
    once = x.grad.clone()
    value.backward(retain_graph=True)
    torch.testing.assert_close(x.grad, 2 * once)
    value.backward()
    torch.testing.assert_close(x.grad, 3 * once)


@layers
def test_weights_shared_between_modules(name: str) -> None:
    first, second = (getattr(peers.library, name)(4, 4) for _ in range(2))
    for key, _ in list(first.named_parameters()):
        setattr(second, key, getattr(first, key))
    x = torch.randn(5, 3, 4)
    second(first(x)[0])[0].sum().backward()
    assert all(p.grad is not None for p in first.parameters())
    with torch.no_grad():
        first.weight_hh_l0.zero_()
        first.weight_ih_l0.zero_()
    assert torch.equal(first(x)[0], second(torch.randn(5, 3, 4))[0])


@layers
def test_flatten_parameters_and_all_weights(name: str) -> None:
    ours, theirs = peers.pair(name, 3, 4, 2, bidirectional=True)
    ours.flatten_parameters()
    assert len(ours.all_weights) == len(theirs.all_weights) == 4
    assert all(
        a is b for a, b in zip(itertools.chain(*ours.all_weights), ours.parameters(), strict=True)
    )


@pytest.mark.parametrize("name", [*peers.LAYERS, *peers.CELLS])
def test_reset_parameters(name: str) -> None:
    made = peers.pair(name, 3, 4)
    for module in made:
        torch.manual_seed(5)
        module.reset_parameters()
    for a, b in zip(*(m.parameters() for m in made), strict=True):
        assert torch.equal(a, b)


# ---- test_ops_gradients.py's checks, over the layers' options

F64: dict[str, Any] = {"dtype": torch.float64}
OPTIONS = [
    *peers.layers(layouts=["padded", "batch_first", "packed"], **F64, steps=3),
    *peers.layers(layouts=["padded"], **F64, steps=1),
    *(Setup(name, layout="unbatched", **F64, steps=2) for name in peers.LAYERS),
    *peers.cells(**F64),
]
SHORT = [*OPTIONS[1:-4:5], *OPTIONS[-4::3]]
each_option = pytest.mark.parametrize("setup", peers.some(OPTIONS, SHORT))
few_options = pytest.mark.parametrize("setup", peers.some(OPTIONS[::5], OPTIONS[::10]))


def functional(setup: Setup) -> tuple[Callable[..., tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """The module as a function of its input, its states and its weights; and all of these."""
    module, _ = setup.pair()
    names = [name for name, _ in module.named_parameters()]
    count = 1 + setup.states

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        weights = dict(zip(names, tensors[count:], strict=True))

        def call(*args: Any) -> Any:
            return torch.func.functional_call(module, weights, args)

        return tuple(setup.call(call, *tensors[:count]))

    return function, (*setup.leaves(), *module.parameters())


@each_option
def test_gradcheck(setup: Setup) -> None:
    assert gradcheck(*functional(setup), fast_mode=True, check_undefined_grad=True)


@each_option
def test_gradgradcheck(setup: Setup) -> None:
    assert gradgradcheck(*functional(setup), fast_mode=True)


@each_option
def test_forward_mode_gradcheck(setup: Setup) -> None:
    assert gradcheck(
        *functional(setup),
        fast_mode=True,
        check_forward_ad=True,
        check_backward_ad=False,
        check_undefined_grad=False,
    )


@each_option
def test_batched_gradcheck(setup: Setup) -> None:
    assert gradcheck(*functional(setup), fast_mode=True, check_batched_grad=True)


@few_options
def test_batched_forward_mode_gradcheck(setup: Setup) -> None:
    assert gradcheck(
        *functional(setup),
        fast_mode=True,
        check_forward_ad=True,
        check_backward_ad=False,
        check_batched_forward_grad=True,
        check_undefined_grad=False,
    )


@few_options
def test_forward_over_reverse_gradgradcheck(setup: Setup) -> None:
    assert gradgradcheck(
        *functional(setup),
        fast_mode=True,
        check_fwd_over_rev=True,
        check_rev_over_rev=False,
        check_undefined_grad=False,
    )


@pytest.mark.parametrize(
    "setup", [Setup("LSTM", **F64, steps=2), Setup("GRU", 1, True, **F64, steps=2)], ids=str
)
def test_gradcheck_of_every_element(setup: Setup) -> None:
    assert gradcheck(*functional(setup), check_batched_grad=True)
