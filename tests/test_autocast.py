"""Under torch.autocast every layer and cell computes in autocast's dtype, whatever it is given.

torch.nn's own modules on CPUs vary with the length, the input's dtype and oneDNN. Here one rule
holds: tensors of floating-point dtypes other than float64 are cast to autocast's dtype, results
have that dtype, and gradients have the dtypes of the tensors they belong to.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn
from tests import oracle, peers
from tests.peers import Setup

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # torch.compile looks at .grad of inputs that are not leaves
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
SETUPS = [
    *peers.layers(),
    *peers.layers(layouts=["padded", "packed"], steps=1),
    *peers.layers(layouts=["padded"], steps=2),
    *(Setup(name, layout="unbatched", steps=steps) for name in peers.LAYERS for steps in (1, 4)),
    *peers.cells(),
]
FEW = [*peers.few_layers(), *(Setup(name, steps=1) for name in peers.LAYERS), *peers.cells()[::2]]
SHORT = [*FEW, Setup("LSTM", 2, True, "unsorted"), Setup("GRU", 1, False, "packed", 1)]
SHORT += [Setup("GRU", layout="unbatched")]
each_setup = pytest.mark.parametrize("setup", peers.some(SETUPS, SHORT))
a_few_setups = pytest.mark.parametrize("setup", FEW, ids=str)
compiled_setups = pytest.mark.parametrize("setup", peers.some(FEW, [FEW[0], FEW[6], FEW[8]]))
BACKENDS = [None, "torch", *oracle.backends()]


def forced(backend: str | None) -> contextlib.AbstractContextManager[None]:
    if backend is None or backend == "torch":
        return fastrnn.backend(backend) if backend else contextlib.nullcontext()
    return oracle.forced(backend)


def cpu_autocast(dtype: torch.dtype = BF16, **options: Any) -> torch.autocast:
    return torch.autocast("cpu", dtype, **options)


def dtypes(tensors: list[Tensor]) -> set[torch.dtype]:
    return {t.dtype for t in tensors}


@pytest.mark.parametrize("backend", BACKENDS)
@each_setup
def test_results_have_one_dtype_and_gradients_their_own(setup: Setup, backend: str | None) -> None:
    ours, theirs = setup.pair()
    leaves = setup.leaves()
    with forced(backend):
        with cpu_autocast():
            results = setup.call(ours, *leaves)
            without_states = setup.call(ours, leaves[0])
        assert dtypes([*results, *without_states]) == {BF16}
        parameters = [*leaves, *ours.parameters()]
        gradients = torch.autograd.grad(peers.loss([t.float() for t in results]), parameters)
    assert dtypes([*gradients]) == {F32}
    wanted = setup.call(theirs, *leaves)
    torch.testing.assert_close([t.float() for t in results], wanted, rtol=3e-2, atol=3e-2)
    expected = torch.autograd.grad(peers.loss(wanted), [*leaves, *theirs.parameters()])
    for a, b in zip(gradients, expected, strict=True):
        assert (a - b).norm() <= 5e-2 * b.norm() + 1e-3


@pytest.mark.parametrize("given", [BF16, F16], ids=str)
@each_setup
def test_input_and_states_of_other_dtypes_are_cast(setup: Setup, given: torch.dtype) -> None:
    module, _ = setup.pair()
    leaves = [t.detach().to(given).requires_grad_() for t in setup.leaves()]
    with cpu_autocast():
        results = setup.call(module, *leaves)
    assert dtypes(results) == {BF16}
    gradients = torch.autograd.grad(
        peers.loss([t.float() for t in results]), [*leaves, *module.parameters()]
    )
    assert dtypes([*gradients[: len(leaves)]]) == {given}
    assert dtypes([*gradients[len(leaves) :]]) == {F32}


@a_few_setups
def test_states_of_another_dtype_than_the_input(setup: Setup) -> None:
    module, _ = setup.pair()
    x, *states = (t.detach() for t in setup.leaves())
    with cpu_autocast():
        assert dtypes(setup.call(module, x, *(s.to(BF16) for s in states))) == {BF16}
        assert dtypes(setup.call(module, x.to(BF16), *states)) == {BF16}


@a_few_setups
def test_a_module_in_bfloat16(setup: Setup) -> None:
    module, _ = setup.pair()
    module.to(BF16)
    with cpu_autocast():
        results = setup.call(module, *setup.leaves())
    assert dtypes(results) == {BF16}
    gradients = torch.autograd.grad(peers.loss(results), list(module.parameters()))
    assert dtypes([*gradients]) == {BF16}


@each_setup
def test_float64_is_left_alone(setup: Setup) -> None:
    ours, theirs = setup.pair()
    leaves = [t.detach().double() for t in setup.leaves()]
    with cpu_autocast():
        results = setup.call(ours.double(), *leaves)
    assert dtypes(results) == {F64}
    torch.testing.assert_close(results, setup.call(theirs.double(), *leaves))


@each_setup
def test_a_nested_block_that_is_disabled(setup: Setup) -> None:
    ours, theirs = setup.pair()
    leaves = [t.detach() for t in setup.leaves()]
    with cpu_autocast():
        with cpu_autocast(enabled=False):
            results = setup.call(ours, *leaves)
        assert dtypes(setup.call(ours, *leaves)) == {BF16}
    torch.testing.assert_close(results, setup.call(theirs, *leaves))
    assert dtypes(setup.call(ours, *leaves)) == {F32}


@a_few_setups
def test_a_block_that_is_disabled_within_refuses_what_torch_refuses(setup: Setup) -> None:
    errors = []
    for module in setup.pair():
        leaves = [t.detach().to(BF16) for t in setup.leaves()]
        with cpu_autocast(), cpu_autocast(enabled=False):
            call = functools.partial(setup.call, module, *leaves)
            errors.append(peers.outcome(call)[1])
    assert errors[0] is not None
    assert errors[0] is errors[1]


@a_few_setups
def test_float16(setup: Setup) -> None:
    ours, theirs = setup.pair()
    leaves = [t.detach() for t in setup.leaves()]
    with cpu_autocast(F16):
        results = setup.call(ours, *leaves)
    assert dtypes(results) == {F16}
    wanted = setup.call(theirs, *leaves)
    torch.testing.assert_close([t.float() for t in results], wanted, rtol=1e-2, atol=1e-2)


@each_setup
def test_autocast_of_another_device_changes_nothing(setup: Setup) -> None:
    module, _ = setup.pair()
    x, *states = setup.leaves()
    torch.set_autocast_enabled("xpu", True)
    try:
        assert dtypes(setup.call(module, x, *states)) == {F32}
    finally:
        torch.set_autocast_enabled("xpu", False)


@pytest.mark.parametrize("name", peers.LAYERS)
def test_steps_and_sequences_mix(name: str) -> None:
    """A loop over single steps, and over pieces of two, gives what one call gives."""
    module, _ = peers.pair(name, 4, 5)
    x = torch.randn(6, 3, 4)
    with cpu_autocast(), torch.no_grad():
        whole, _ = module(x)
        for piece in (1, 2, 3):
            outputs, state = [], None
            for part in x.split(piece):
                y, state = module(part, state)
                outputs.append(y)
            torch.testing.assert_close(torch.cat(outputs), whole, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", peers.LAYERS)
def test_cells_and_layers_mix(name: str) -> None:
    layer, _ = peers.pair(name, 4, 5)
    cell = getattr(fastrnn, f"{name}Cell")(4, 5)
    cell.load_state_dict({key.removesuffix("_l0"): v for key, v in layer.state_dict().items()})
    x, outputs, state = torch.randn(6, 3, 4), [], None
    with cpu_autocast(), torch.no_grad():
        for row in x:
            state = cell(row, state)
            outputs.append(peers.tensors(state)[0])
        torch.testing.assert_close(torch.stack(outputs), layer(x)[0], rtol=2e-2, atol=2e-2)


class Model(nn.Module):
    """Autocast within the model, which also opens a block without it."""

    def __init__(self, library: Any, name: str) -> None:
        super().__init__()
        self.first = getattr(library, name)(4, 8, 2, bidirectional=True)
        self.second = getattr(library, name)(16, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        with cpu_autocast():
            y, _ = self.first(x)
            last, _ = self.second(y[-1:])
            with cpu_autocast(enabled=False):
                plain, _ = self.second(y.float())
            return y, last, plain, self.head(last)


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", peers.LAYERS)
def test_blocks_within_compiled_code(name: str, training: bool) -> None:
    torch.manual_seed(0)
    model, x = Model(fastrnn, name), torch.randn(5, 3, 4)
    compiled = peers.compiled(model, fullgraph=True)
    found = []
    for call in (compiled, model):
        with torch.set_grad_enabled(training):
            results = call(x)
        assert [t.dtype for t in results] == [BF16, BF16, F32, BF16]
        gradients: tuple[Tensor, ...] = ()
        if training:
            value = peers.loss([t.float() for t in results])
            gradients = torch.autograd.grad(value, list(model.parameters()))
            assert dtypes([*gradients]) == {F32}
        found.append((results, gradients))
    torch.testing.assert_close(*found, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@compiled_setups
def test_compiled_modules_under_autocast(setup: Setup, training: bool) -> None:
    module, _ = setup.pair()
    call = peers.compiled(module)
    leaves = setup.leaves()
    found = []
    for function in (call, module):
        with cpu_autocast(), torch.set_grad_enabled(training):
            results = setup.call(function, *leaves)
        assert dtypes(results) == {BF16}
        found.append(results)
    torch.testing.assert_close(*found, rtol=2e-2, atol=2e-2)
    without = setup.call(call, *leaves)  # compiled again without autocast
    assert dtypes(without) == {F32}


@pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights")
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("name", peers.LAYERS)
def test_exported_models_keep_their_blocks(name: str, steps: int) -> None:
    model, x = Model(fastrnn, name).eval(), torch.randn(steps, 3, 4)
    exported = torch.export.export(model, (x,)).module()
    results = exported(x)
    assert [t.dtype for t in results] == [BF16, BF16, F32, BF16]
    torch.testing.assert_close(results, model(x), rtol=2e-2, atol=2e-2)


TRANSFORMS: dict[str, Callable[[Any, Tensor], Any]] = {
    "vmap": lambda f, x: torch.vmap(f)(torch.stack([x, x])),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "grad": lambda f, x: torch.func.grad(lambda x: f(x).float().sum())(x),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", peers.LAYERS)
def test_transforms_under_autocast(name: str, steps: int, transform: str) -> None:
    ours, _ = peers.pair(name, 4, 5)
    x = torch.randn(steps, 2, 4)
    apply = TRANSFORMS[transform]
    wanted = apply(lambda x: ours(x)[0], x)
    seen = []
    with cpu_autocast():

        def call(x: Tensor) -> Tensor:
            results = peers.tensors(ours(x))
            seen.append(dtypes(results))
            return results[0]

        found = apply(call, x)
    assert seen == [{BF16}]
    torch.testing.assert_close(found.float(), wanted, rtol=3e-2, atol=3e-2)


def test_a_training_loop_with_a_gradient_scaler() -> None:
    module, _ = peers.pair("LSTM", 4, 8)
    optimiser = torch.optim.SGD(module.parameters(), 0.01)
    scaler = torch.amp.GradScaler("cpu")
    x, losses = torch.randn(6, 3, 4), []
    for _ in range(5):
        optimiser.zero_grad()
        with cpu_autocast():
            value = (module(x)[0] - 0.2).square().mean()
        scaler.scale(value).backward()
        scaler.step(optimiser)
        scaler.update()
        losses.append(float(value.detach()))
    assert losses[-1] < losses[0]
