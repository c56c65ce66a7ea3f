"""torch.func, forward mode and vmap through layers and cells, eager and compiled, of any length.

torch.nn's own layers have no forward mode and no batching rule, so that the references here are
reverse mode, twice where a tangent is wanted, and loops, all of torch.nn's and in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import (
    functional_call,
    grad,
    grad_and_value,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    stack_module_state,
    vjp,
    vmap,
)

import fastrnn
from tests import peers
from tests.peers import Setup

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # torch.compile looks at .grad of inputs that are not leaves
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    # torch scripts its decompositions the first time that forward mode is used
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),
    # and linearize folds constants of any module
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node"),
    # and torch.compile instantiates autograd functions to trace them
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]

F64: dict[str, Any] = {"dtype": torch.float64}
LAYERS = [
    *peers.layers(layouts=["padded", "batch_first", "packed"], **F64),
    *peers.layers(layouts=["padded"], steps=1, **F64),
    *(Setup(name, layout="unbatched", **F64) for name in peers.LAYERS),
]
CELLS = peers.cells(**F64)
EAGER = [*LAYERS, *CELLS]
COMPILED = [
    Setup("LSTM", 2, True, "batch_first", **F64),
    Setup("GRU", 2, True, "padded", **F64),
    Setup("GRU", 1, False, "packed", **F64),
    Setup("LSTM", 1, False, "batch_first", **F64),
    Setup("GRU", steps=1, **F64),
    CELLS[0],
]
SHORT = [
    Setup("LSTM", 2, True, "batch_first", **F64),
    Setup("GRU", 2, True, "padded", **F64),
    Setup("LSTM", 1, True, "packed", **F64),
    Setup("GRU", 1, False, "packed", **F64),
    Setup("LSTM", steps=1, **F64),
    Setup("GRU", layout="unbatched", **F64),
    CELLS[0],
    CELLS[-1],
]
SHORT_COMPILED = [s for s in COMPILED if s.num_layers == 1]
HOW: dict[str, Callable[[Any], Any]] = {"eager": lambda f: f, "compiled": peers.compiled}
each_setup = pytest.mark.parametrize("setup", peers.some(EAGER, SHORT))
eager_and_compiled = pytest.mark.parametrize(
    ("setup", "how"),
    [
        pytest.param(p.values[0], how, id=f"{p.id}-{how}", marks=p.marks)
        for how, setups, short in (("eager", EAGER, SHORT), ("compiled", COMPILED, SHORT_COMPILED))
        for p in peers.some(setups, short)
    ],
)


def given(setup: Setup) -> list[Tensor]:
    return [t.detach() for t in setup.leaves()]


def twins(setup: Setup) -> tuple[Any, Any]:
    """fastrnn's module, and torch.nn's with the same weights, which functorch can follow."""
    ours, theirs = setup.pair()
    return ours, peers.by_sequence(theirs)


def tangents(tensors: Sequence[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in tensors]


def of(setup: Setup, module: Any) -> Callable[..., tuple[Tensor, ...]]:
    """All results as a function of the input and the states."""
    return lambda *leaves: tuple(setup.call(module, *leaves))


def of_weights(setup: Setup, module: nn.Module) -> Callable[..., Tensor]:
    """A number as a function of a dictionary of parameters and of the input and the states."""

    def function(weights: dict[str, Tensor], *leaves: Tensor) -> Tensor:
        def call(*args: Any) -> Any:
            return functional_call(module, weights, args)

        return peers.loss(setup.call(call, *leaves))

    return function


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in module.named_parameters()}


def directional(function: Callable[..., Any], at: Sequence[Tensor], along: Sequence[Tensor]) -> Any:
    """What jvp gives, by reverse mode twice."""
    return torch.autograd.functional.jvp(function, tuple(at), tuple(along))


# ---- forward mode


@eager_and_compiled
def test_jvp(setup: Setup, how: str) -> None:
    ours, theirs = setup.pair()
    at = given(setup)
    along = tangents(at)
    found = HOW[how](lambda at, v: jvp(of(setup, ours), tuple(at), tuple(v)))(at, along)
    torch.testing.assert_close(found, directional(of(setup, theirs), at, along))
    assert all(tangent.norm() > 1e-3 for tangent in found[1])


@each_setup
def test_jvp_by_one_of_the_leaves(setup: Setup) -> None:
    ours, theirs = setup.pair()
    at = given(setup)
    for index, v in enumerate(tangents(at)):

        def alone(module: Any, leaf: Tensor, index: int = index) -> Any:
            return of(setup, module)(*at[:index], leaf, *at[index + 1 :])

        found = jvp(lambda leaf: alone(ours, leaf), (at[index],), (v,))
        wanted = directional(lambda leaf: alone(theirs, leaf), [at[index]], [v])
        torch.testing.assert_close(found, wanted)


@eager_and_compiled
def test_jvp_by_the_weights(setup: Setup, how: str) -> None:
    ours, theirs = setup.pair()
    leaves, names = given(setup), [name for name, _ in ours.named_parameters()]
    at = [p.detach() for p in ours.parameters()]

    def function(module: nn.Module) -> Callable[..., Tensor]:
        return lambda *values: of_weights(setup, module)(
            dict(zip(names, values, strict=True)), *leaves
        )

    along = tangents(at)
    found = HOW[how](lambda at, v: jvp(function(ours), tuple(at), tuple(v)))(at, along)
    torch.testing.assert_close(found, directional(function(theirs), at, along))


@each_setup
def test_dual_level(setup: Setup) -> None:
    ours, theirs = setup.pair()
    at = given(setup)
    along = tangents(at)
    values, wanted = directional(of(setup, theirs), at, along)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, v) for t, v in zip(at, along, strict=True)]
        results = [forward_ad.unpack_dual(t) for t in of(setup, ours)(*duals)]
        plain = of(setup, ours)(*at)  # which no tangent follows
        assert all(forward_ad.unpack_dual(t).tangent is None for t in plain)
    torch.testing.assert_close([r.primal for r in results], list(values))
    torch.testing.assert_close([r.tangent for r in results], list(wanted))


@each_setup
def test_forward_mode_of_weights_at_a_dual_level(setup: Setup) -> None:
    ours, theirs = setup.pair()
    leaves, weights = given(setup), weights_of(ours)
    along = dict(zip(weights, tangents(list(weights.values())), strict=True))
    with forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(w, along[name]) for name, w in weights.items()}
        value, tangent = forward_ad.unpack_dual(of_weights(setup, ours)(duals, *leaves))
    names = list(weights)
    wanted = directional(
        lambda *values: of_weights(setup, theirs)(dict(zip(names, values, strict=True)), *leaves),
        list(weights.values()),
        list(along.values()),
    )
    torch.testing.assert_close((value, tangent), wanted)


@pytest.mark.parametrize(
    "setup", [Setup("GRU", **F64), Setup("LSTM", steps=1, **F64), CELLS[0]], ids=str
)
def test_linearize(setup: Setup) -> None:
    ours, theirs = setup.pair()
    at = given(setup)
    along = tangents(at)
    values, push = linearize(of(setup, ours), *at)
    torch.testing.assert_close((values, push(*along)), directional(of(setup, theirs), at, along))


# ---- Jacobians and Hessians

JACOBIANS: dict[str, Any] = {"jacrev": jacrev, "jacfwd": jacfwd}


@pytest.mark.parametrize("jacobian", JACOBIANS)
@eager_and_compiled
def test_jacobians(setup: Setup, how: str, jacobian: str) -> None:
    ours, theirs = setup.pair()
    at = tuple(given(setup))
    numbers = tuple(range(len(at)))
    found = HOW[how](JACOBIANS[jacobian](of(setup, ours), argnums=numbers))(*at)
    wanted = torch.autograd.functional.jacobian(of(setup, theirs), at)
    torch.testing.assert_close(found, wanted)


@eager_and_compiled
def test_hessian(setup: Setup, how: str) -> None:
    ours, theirs = setup.pair()
    x, *states = given(setup)

    def function(module: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: peers.loss(setup.call(module, x, *states))

    found = HOW[how](hessian(function(ours)))(x)
    wanted = torch.autograd.functional.hessian(function(theirs), x)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("outer", JACOBIANS)
@pytest.mark.parametrize("inner", JACOBIANS)
@pytest.mark.parametrize(
    "setup", [Setup("GRU", **F64), Setup("LSTM", steps=1, **F64), CELLS[0]], ids=str
)
def test_hessians_of_each_mode_over_each(setup: Setup, inner: str, outer: str) -> None:
    ours, theirs = setup.pair()
    x = given(setup)[0]

    def function(module: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: peers.loss(setup.call(module, x))

    found = JACOBIANS[outer](JACOBIANS[inner](function(ours)))(x)
    torch.testing.assert_close(found, torch.autograd.functional.hessian(function(theirs), x))


# ---- reverse mode


@eager_and_compiled
def test_gradients_by_weights_and_leaves(setup: Setup, how: str) -> None:
    found = []
    leaves, numbers = given(setup), tuple(range(2 + setup.states))
    for index, module in enumerate(twins(setup)):
        function = grad_and_value(of_weights(setup, module), argnums=numbers)
        call = HOW[how](function) if index == 0 else function
        found.append(call(weights_of(module), *leaves))
    torch.testing.assert_close(*found)


@each_setup
def test_vjp(setup: Setup) -> None:
    found, at = [], given(setup)
    for module in twins(setup):
        results, pull = vjp(of(setup, module), *at)  # type: ignore[misc]
        found.append((results, pull(tuple(tangents(results))), pull(tuple(results))))
    torch.testing.assert_close(*found)


@eager_and_compiled
def test_gradient_penalty(setup: Setup, how: str) -> None:
    """The gradients, by the weights, of the squared slope by the input."""
    found = []
    x, *states = given(setup)
    for index, module in enumerate(twins(setup)):
        score = of_weights(setup, module)

        def penalty(
            weights: dict[str, Tensor], x: Tensor, score: Callable[..., Tensor] = score
        ) -> Tensor:
            return grad(score, argnums=1)(weights, x, *states).square().sum()

        call = HOW[how](grad_and_value(penalty)) if index == 0 else grad_and_value(penalty)
        found.append(call(weights_of(module), x))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("setup", COMPILED, ids=str)
def test_hessian_times_vector(setup: Setup) -> None:
    """Forward mode over reverse mode, by the weights."""
    ours, theirs = setup.pair()
    leaves, weights = given(setup), weights_of(ours)
    along = dict(zip(weights, tangents(list(weights.values())), strict=True))
    gradient = grad(lambda weights: of_weights(setup, ours)(weights, *leaves))
    found = jvp(gradient, (weights,), (along,))[1]
    parameters = dict(theirs.named_parameters())
    value = peers.loss(setup.call(theirs, *leaves))
    slopes = torch.autograd.grad(value, list(parameters.values()), create_graph=True)
    parts = [(s * v).sum() for s, v in zip(slopes, along.values(), strict=True)]
    product = torch.stack(parts).sum()
    wanted = torch.autograd.grad(product, list(parameters.values()))
    torch.testing.assert_close(list(found.values()), list(wanted))


# ---- vmap and ensembles


@eager_and_compiled
def test_vmap_over_inputs(setup: Setup, how: str) -> None:
    ours, theirs = setup.pair()
    sets = [[t + value for t in given(setup)] for value in range(3)]
    stacked = [torch.stack(parts) for parts in zip(*sets, strict=True)]
    found = HOW[how](vmap(of(setup, ours)))(*stacked)
    wanted = [torch.stack(r) for r in zip(*(of(setup, theirs)(*s) for s in sets), strict=True)]
    torch.testing.assert_close(list(found), wanted)


@each_setup
def test_vmap_over_one_of_the_leaves(setup: Setup) -> None:
    ours, theirs = setup.pair()
    leaves = given(setup)
    for index in range(len(leaves)):
        some = [leaves[index] + value for value in range(3)]
        dims = tuple(-1 if i == index else None for i in range(len(leaves)))
        stacked = [torch.stack(some, -1) if i == index else t for i, t in enumerate(leaves)]
        found = vmap(of(setup, ours), in_dims=dims, out_dims=1)(*stacked)
        each = [of(setup, theirs)(*leaves[:index], t, *leaves[index + 1 :]) for t in some]
        wanted = [torch.stack(results, 1) for results in zip(*each, strict=True)]
        torch.testing.assert_close(list(found), wanted)


@pytest.mark.parametrize("meta", [False, True], ids=["a base of numbers", "a base on meta"])
@eager_and_compiled
def test_ensembles(setup: Setup, how: str, meta: bool) -> None:
    pairs = []
    for _ in range(3):
        pairs.append(setup.pair())
        with torch.no_grad():
            for ours, theirs in zip(*(m.parameters() for m in pairs[-1]), strict=True):
                ours.copy_(theirs.mul_(len(pairs)))
    members = [ours for ours, _ in pairs]
    state = stack_module_state(members)
    base = copy.deepcopy(members[0])
    base = base.to("meta") if meta else base
    leaves = given(setup)

    def member(parameters: Any, buffers: Any, *leaves: Tensor) -> tuple[Tensor, ...]:
        def call(*args: Any) -> Any:
            return functional_call(base, (parameters, buffers), args)

        return tuple(setup.call(call, *leaves))

    def ensemble(*leaves: Tensor) -> tuple[Tensor, ...]:
        return vmap(member, in_dims=(0, 0, *[None] * len(leaves)))(*state, *leaves)

    call = HOW[how](ensemble)
    for given_ in (leaves, leaves[:1]):  # with and without initial states
        results = call(*given_)
        each = [setup.call(theirs, *given_) for _, theirs in pairs]
        torch.testing.assert_close(list(results), [torch.stack(r) for r in zip(*each, strict=True)])
    gradients = torch.autograd.grad(peers.loss([r[0] for r in results]), [*state[0].values()])
    wanted = torch.autograd.grad(peers.loss(each[0]), [*pairs[0][1].parameters()])
    torch.testing.assert_close([g[0] for g in gradients], list(wanted))


@each_setup
def test_ensembles_over_gradients(setup: Setup) -> None:
    members, others = zip(*(twins(setup) for _ in range(2)), strict=True)
    state, leaves = stack_module_state(members)[0], given(setup)
    stacked = {name: w.detach() for name, w in state.items()}
    dims = (0, *[None] * len(leaves))
    found = vmap(grad(of_weights(setup, members[0])), in_dims=dims)(stacked, *leaves)
    each = [grad(of_weights(setup, twin))(weights_of(twin), *leaves) for twin in others]
    wanted = {name: torch.stack([gradients[name] for gradients in each]) for name in found}
    torch.testing.assert_close(found, wanted)


SAMPLED = [s for s in EAGER if s.layout in ("padded", "batch_first")]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("setup", [SAMPLED[0], SAMPLED[7], Setup("GRU", steps=1, **F64)], ids=str)
def test_gradients_of_each_sample(setup: Setup, how: str) -> None:
    ours, theirs = setup.pair()
    x = setup.leaves()[0].detach()

    def of_one(module: nn.Module) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
        def function(weights: dict[str, Tensor], row: Tensor) -> Tensor:
            return functional_call(module, weights, (row,))[0].square().sum()

        return function

    found = HOW[how](vmap(grad(of_one(ours)), in_dims=(None, 1)))(weights_of(ours), x)
    each = [grad(of_one(theirs))(weights_of(theirs), row) for row in x.unbind(1)]
    torch.testing.assert_close(
        found, {name: torch.stack([g[name] for g in each]) for name in found}
    )


@pytest.mark.parametrize("randomness", ["different", "same"])
@pytest.mark.parametrize("name", peers.LAYERS)
def test_dropout_under_vmap(name: str, randomness: str) -> None:
    module = getattr(fastrnn, name)(4, 32, 2, dropout=0.5)
    x = torch.randn(4, 3, 4).expand(2, -1, -1, -1)
    first, second = vmap(lambda x: module(x)[0], randomness=randomness)(x)
    assert torch.equal(first, second) == (randomness == "same")
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(lambda x: module(x)[0])(x)


def test_nothing_of_a_transform_remains() -> None:
    module = fastrnn.GRU(4, 5)
    x = torch.randn(3, 2, 4)
    wanted = module(x)[0]
    jacrev(lambda x: module(x)[0])(x)
    with pytest.raises(ZeroDivisionError):
        vmap(lambda x: 1 // (x.dim() - 2))(x)
    with forward_ad.dual_level():
        module(forward_ad.make_dual(x, x))
    assert torch.equal(module(x)[0], wanted)


@pytest.mark.parametrize("name", peers.LAYERS)
def test_inductor(name: str) -> None:
    """Once per cell by torch.compile's default backend, which needs a C++ compiler."""
    setup = Setup(name, **F64)
    ours, theirs = setup.pair()
    x, *_ = given(setup)

    def tangent(x: Tensor) -> Tensor:
        return jvp(lambda x: ours(x)[0], (x,), (x,))[1]

    found = peers.compiled(tangent, backend="inductor")(x)
    wanted = directional(lambda x: theirs(x)[0], [x], [x])[1]
    torch.testing.assert_close(found, wanted)
