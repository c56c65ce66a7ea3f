"""patch_torch(): torch.nn's layers on fastrnn's kernels, and nothing else changed."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import fastrnn
from fastrnn import _compat, backends, functional, inference, layer_ops, patching

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.torch.jit"),  # deprecated
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes self.layer._flat_weights"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec"),  # torch 2.11's export
]

layers = pytest.mark.parametrize("name", ["LSTM", "GRU"])
OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False, "batch_first": True},
    {"num_layers": 2, "batch_first": True, "bidirectional": True},
]


@pytest.fixture(autouse=True)
def _torch_is_as_before() -> Iterator[None]:
    before = tables()
    yield
    assert not patching.is_patched()
    assert tables() == before


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cell of each call that fastrnn runs."""
    seen: list[str] = []
    run = functional.run_stack

    def counted(cell: str, *args: Any) -> Any:
        seen.append(cell)
        return run(cell, *args)

    monkeypatch.setattr(functional, "run_stack", counted)
    return seen


def tables() -> list[str]:
    """What the dispatcher calls for each operator and key, and what torch.nn calls."""
    dump = torch._C._dispatch_dump_table
    return [dump(f"aten::{o}") for o in patching.OPERATORS] + [str(vars(torch._VF))]


def layer(name: str, **options: Any) -> nn.RNNBase:
    torch.manual_seed(0)
    return getattr(nn, name)(5, 16, **options)


def data(packed: bool = False, dtype: torch.dtype | None = None) -> Any:
    torch.manual_seed(1)
    x = torch.randn(7, 3, 5, dtype=dtype)
    return pack_padded_sequence(x, torch.tensor([7, 4, 1])) if packed else x


def results(module: nn.Module, x: Any) -> list[Tensor]:
    """Output, states and gradients."""
    module.zero_grad()
    y, states = module(x)
    y = y.data if isinstance(y, PackedSequence) else y
    states = states if isinstance(states, tuple) else (states,)
    y.square().sum().backward()
    return [t.detach().clone() for t in (y, *states, *(p.grad for p in module.parameters()))]


def close(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


# ---- numbers


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
@pytest.mark.parametrize(
    ("name", "projection"),
    [("LSTM", {}), ("GRU", {}), ("LSTM", {"proj_size": 3})],
    ids=["LSTM", "GRU", "projected LSTM"],
)
def test_the_same_numbers_and_afterwards_the_same_bits(
    name: str,
    projection: dict[str, Any],
    options: dict[str, Any],
    packed: bool,
    calls: list[str],
) -> None:
    module, x = layer(name, **projection, **options), data(packed)
    before = results(module, x)
    with torch.no_grad():
        inference = module(x)
    with fastrnn.patch_torch():
        close(results(module, x), before)
        with torch.no_grad():
            close(module(x), inference)
        with torch.inference_mode():
            close(module(x), inference)
    assert calls == [name.lower()] * 3
    assert all(map(torch.equal, results(module, x), before))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell"])
def test_cells(name: str, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    run, ours = inference.run, []

    def noted(*args: Any) -> Any:
        ours.append(run(*args))
        return ours[-1]

    monkeypatch.setattr(inference, "run", noted)
    cell, x = getattr(nn, name)(5, 16, bias), torch.randn(3, 5)
    wanted = cell(x)
    with fastrnn.patch_torch():
        for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
            with mode():
                found = cell(x)
            close(found, wanted)
        assert [states is None for states in ours] == [True, False, False]
        with pytest.raises(RuntimeError, match="input"):
            cell(torch.randn(3, 6))


@pytest.mark.usefixtures("projections_are_torchs")
def test_a_projected_layer_that_torch_trains_faster_stays_torchs(calls: list[str]) -> None:
    torch.manual_seed(0)
    module, x = layer("LSTM", proj_size=3), data()
    before = results(module, x)
    with fastrnn.patch_torch():
        assert all(map(torch.equal, results(module, x), before))
    assert not calls


@layers
def test_dropout_between_layers_draws_the_same_numbers(name: str) -> None:
    module, x = layer(name, num_layers=3, dropout=0.5), data()
    found = []
    for patch in (contextlib.nullcontext, fastrnn.patch_torch):
        with patch():
            torch.manual_seed(5)
            found.append(results(module, x))
    close(*found)


@layers
def test_programs_run_on_our_kernels(name: str, calls: list[str]) -> None:
    module, x = First(layer(name, batch_first=True)).eval(), data()
    wanted = module(x)
    programs: list[Callable[[Tensor], Tensor]] = []
    programs += [torch.jit.script(module), torch.jit.trace(module, (x,))]
    file = io.BytesIO()
    torch.jit.save(programs[0], file)
    file.seek(0)
    programs += [torch.jit.load(file), torch.export.export(module, (x,)).module()]
    with fastrnn.patch_torch():
        for number, program in enumerate(programs, start=1):
            for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
                with mode():
                    close(program(x), wanted)
            assert len(calls) == 3 * number


class First(nn.Module):
    """A layer's output alone."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


# ---- the patch itself


def test_importing_patches_nothing() -> None:
    script = (
        "import torch\n"
        "dump = lambda: [torch._C._dispatch_dump_table(f'aten::{o}') for o in"
        " ('lstm.input', 'lstm.data', 'gru.input', 'gru.data')] + [str(vars(torch._VF))]\n"
        "before = dump()\n"
        "import fastrnn\n"
        "assert dump() == before and not fastrnn.backend_info()['patched']\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_patches_nest_and_one_undoing_too_many_does_nothing() -> None:
    before = tables()
    with fastrnn.patch_torch():
        fastrnn.patch_torch()
        fastrnn.unpatch_torch()
        assert fastrnn.backend_info()["patched"]
        assert tables() != before
    assert tables() == before
    fastrnn.unpatch_torch()
    assert not fastrnn.backend_info()["patched"]


def test_an_exception_undoes_the_patch() -> None:
    with pytest.raises(KeyError), fastrnn.patch_torch():
        raise KeyError
    assert not patching.is_patched()


def test_the_log_says_once_what_was_replaced(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fastrnn"), fastrnn.patch_torch(), fastrnn.patch_torch():
        layer("GRU")(data())
    (record,) = caplog.records
    assert "aten::lstm.input" in record.getMessage()


def test_another_library_with_such_kernels_is_named_and_left_alone() -> None:
    before = tables()
    other = torch.library.Library("aten", "IMPL")
    other.impl("gru.input", lambda *args: None, "AutogradCPU")
    try:
        with pytest.raises(
            RuntimeError, match=r"something else .* aten::gru.input \(AutogradCPU\)"
        ):
            fastrnn.patch_torch()
        assert not patching.is_patched()
    finally:
        _compat.remove_kernels(other)
    assert tables() == before


def test_another_replacement_of_torchs_function_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._VF, "lstm", torch.lstm, raising=False)
    with pytest.raises(RuntimeError, match=r"torch\._VF\.lstm"):
        fastrnn.patch_torch()
    monkeypatch.undo()
    vars(torch._VF).pop("lstm", None)


def test_threads_may_call_while_torch_is_patched_and_restored() -> None:
    module, x = layer("GRU", num_layers=2), data()
    wanted, stop, wrong = module(x)[0].detach(), threading.Event(), []

    def work() -> None:
        while not stop.is_set():
            with torch.no_grad():
                found = module(x)[0]
            if not torch.allclose(found, wanted, rtol=1e-5, atol=1e-6):
                wrong.append(found)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        with fastrnn.patch_torch():
            close(module(x)[0], wanted)
        assert not patching.is_patched()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    # What the kernels' removal waited for is over.
    with fastrnn.patch_torch():
        pass


# ---- what looks into the layers sees torch's


class Names(TorchDispatchMode):
    """The operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@layers
def test_modes_that_watch_operators_see_torchs(name: str, calls: list[str]) -> None:
    module, x, seen = layer(name), data(), []
    for patch in (contextlib.nullcontext, fastrnn.patch_torch):
        with patch(), torch.no_grad(), Names() as mode:
            module(x)
        seen.append(mode.seen)
    assert seen[0] == seen[1]
    assert seen[0]
    assert not calls


class Functions(TorchFunctionMode):
    """The functions that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["LSTM", "GRU", "LSTMCell", "GRUCell"])
def test_modes_that_watch_functions_see_torchs(name: str, calls: list[str]) -> None:
    module, seen = layer(name), []
    x = data()[0] if "Cell" in name else data()
    for patch in (contextlib.nullcontext, fastrnn.patch_torch):
        with patch(), torch.no_grad(), Functions() as mode:
            module(x)
        seen.append(mode.seen)
    assert seen[0] == seen[1]
    assert {"lstm", "gru", "lstm_cell", "gru_cell"} & set(seen[0])
    assert calls == [name.lower()] * ("Cell" not in name)  # in spite of the mode


@layers
def test_a_profile_shows_torchs_operator(name: str, calls: list[str]) -> None:
    module = layer(name)
    with (
        fastrnn.patch_torch(),
        profile(activities=[ProfilerActivity.CPU], acc_events=True) as found,
    ):
        module(data())
    assert f"aten::{name.lower()}" in {event.name for event in found.events() or ()}
    assert calls == [name.lower()]


@layers
def test_an_exported_graph_is_torchs(name: str, calls: list[str]) -> None:
    module, x, graphs = First(layer(name)).eval(), data(), []
    for patch in (contextlib.nullcontext, fastrnn.patch_torch):
        with patch():
            program = torch.export.export(module, (x,))
            graphs.append([str(n.target) for n in program.graph.nodes])
            graphs.append([str(n.target) for n in program.run_decompositions().graph.nodes])
    assert graphs[:2] == graphs[2:]
    assert not calls


@layers
def test_fake_and_meta_tensors(name: str, calls: list[str]) -> None:
    with fastrnn.patch_torch(), torch._subclasses.FakeTensorMode() as mode:
        fake = layer(name)(mode.from_tensor(torch.empty(7, 3, 5)))[0]
    assert fake.shape == (7, 3, 16)
    with fastrnn.patch_torch():
        assert layer(name, device="meta")(data().to("meta"))[0].shape == (7, 3, 16)
    assert not calls


@layers
def test_compiled_models_leave_the_layers_out_of_their_graphs(name: str) -> None:
    module, x = First(layer(name)), data()
    wanted = results(Tupled(module), x)
    torch._dynamo.reset()
    with fastrnn.patch_torch():
        compiled = torch.compile(module, backend="aot_eager")
        close(results(Tupled(compiled), x), wanted)
        close(results(Tupled(compiled), x), wanted)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("name", "projection"),
    [("LSTM", {}), ("GRU", {}), ("LSTM", {"proj_size": 3})],
    ids=["LSTM", "GRU", "projected LSTM"],
)
def test_a_compiled_training_step_runs_backward_as_it_is(
    name: str, projection: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x, traced = layer(name, **projection), data(), []
    backward = layer_ops.backward

    def noting(*args: Any, **kwargs: Any) -> Any:
        traced.append(torch.compiler.is_compiling())
        return backward(*args, **kwargs)

    monkeypatch.setattr(layer_ops, "backward", noting)

    def step() -> None:
        module(x)[0].square().sum().backward()

    torch._dynamo.reset()
    with fastrnn.patch_torch(), fastrnn.backend("cpu"):
        torch.compile(step, backend="aot_eager")()
    torch._dynamo.reset()
    assert traced == [False]


@layers
def test_layers_in_a_compiled_graph(name: str) -> None:
    module, x = First(layer(name)), data()
    wanted = module(x).detach()
    torch._dynamo.reset()
    with fastrnn.patch_torch(), torch._dynamo.config.patch(allow_rnn=True), torch.no_grad():
        close(torch.compile(module, backend="aot_eager", fullgraph=True)(x), wanted)
    torch._dynamo.reset()


class Tupled(nn.Module):
    """A module's output, as a layer returns it."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[()]]:
        return self.module(x), ()


# ---- errors are torch's own


@pytest.mark.parametrize(
    "wrong",
    [
        lambda f, x, h, w: f(x[:, :, :4], h, w, True, 1, 0.0, False, False, False),
        lambda f, x, h, w: f(x[0], h, w, True, 1, 0.0, False, False, False),
        lambda f, x, h, w: f(x, h[:, :2], w, True, 1, 0.0, False, False, False),
        lambda f, x, h, w: f(x, h, w[:2], True, 1, 0.0, False, False, False),
        lambda f, x, h, w: f(x, h, w, True, 2, 0.0, False, False, False),
        lambda f, x, h, w: f(x.double(), h, w, True, 1, 0.0, False, False, False),
        lambda f, x, h, w: f(x, None, w, True, 1, 0.0, False, False, False),
        lambda f, x, h, w: f(x, h, w),
        lambda f, x, h, w: f(x, h, None, True, 1, 0.0, False, False, False),
        lambda f, x, h, w: f(x, torch.tensor([3, 2]), h, w, True, 1, 0.0, False, False),
    ],
)
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_errors_are_torchs_own(wrong: Callable[..., Any], grad: bool) -> None:
    module, x, h = layer("GRU"), data(), torch.zeros(1, 3, 16)
    raised = []
    for patch in (contextlib.nullcontext, fastrnn.patch_torch):
        with patch(), torch.set_grad_enabled(grad), pytest.raises(Exception) as error:  # noqa: PT011
            wrong(torch._VF.gru, x, h, module._flat_weights)
        raised.append((error.type, str(error.value)))
    assert raised[0] == raised[1]


# ---- it composes


@layers
@pytest.mark.parametrize("backend", ["cpu", "reference", "torch"])
def test_a_forced_backend_is_used(name: str, backend: str) -> None:
    module, x = layer(name), data()
    wanted = results(module, x)
    with fastrnn.patch_torch(), fastrnn.backend(backend):
        found = results(module, x)
    close(found, wanted)
    assert all(map(torch.equal, found, wanted)) == (backend == "torch")


@layers
def test_autocast_keeps_torchs_dtypes(name: str) -> None:
    module, x = layer(name), data()
    with fastrnn.patch_torch(), torch.autocast("cpu", torch.bfloat16):
        y, states = module(x)
    wanted = torch.bfloat16 if name == "LSTM" else torch.float32
    assert {t.dtype for t in (y, *states)} == {wanted}
    torch.testing.assert_close(y.float(), module(x)[0], rtol=0.05, atol=0.02)


@layers
def test_transforms(name: str) -> None:
    module, x = layer(name).double(), data(dtype=torch.float64)
    weights: dict[str, Tensor] = dict(module.named_parameters())
    batch = torch.randn(2, 7, 3, 5, dtype=torch.float64)

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(module, weights, (x,))[0].square().sum()

    v, step = torch.randn_like(x), 1e-6
    slope = (module(x + step * v)[0] - module(x - step * v)[0]) / (2 * step)
    wanted = [torch.func.grad(loss)(weights, x) for x in batch]
    with fastrnn.patch_torch():
        each = torch.vmap(torch.func.grad(loss), (None, 0))(weights, batch)
        for index, gradients in enumerate(wanted):
            close({n: g[index] for n, g in each.items()}, gradients)
        for mode in (torch.enable_grad, torch.no_grad):
            with mode():
                tangent = torch.func.jvp(lambda x: module(x)[0], (x,), (v,))[1]
            torch.testing.assert_close(tangent, slope.detach(), rtol=1e-5, atol=1e-7)
        assert torch.autograd.gradgradcheck(lambda x: module(x)[0], x[:2, :1].requires_grad_())


@layers
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_and_copies(name: str, reentrant: bool) -> None:
    module, x = layer(name), data().requires_grad_()
    wanted = results(module, x)
    checkpoint = torch.utils.checkpoint.checkpoint
    with fastrnn.patch_torch():
        twin = copy.deepcopy(module)
        found = results(
            Tupled(First(Called(lambda x: checkpoint(twin, x, use_reentrant=reentrant), twin))), x
        )
    close([found[0], *found[1:]], [wanted[0], *wanted[-len(found) + 1 :]])


class Called(nn.Module):
    """A function of a module as a module."""

    def __init__(self, function: Callable[..., Any], module: nn.Module) -> None:
        super().__init__()
        self.function, self.module = function, module

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def test_a_changed_choice_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = layer("GRU"), data()
    with fastrnn.patch_torch():
        results(module, x)
        patching.forget_choices()
        choose = backends.choose
        monkeypatch.setattr(
            backends, "choose", lambda *args: choose(*args)._replace(backend=backends.TORCH.name)
        )
        patching.forget_choices()
        found = results(module, x)
    patching.forget_choices()
    assert all(map(torch.equal, found, results(module, x)))


def test_what_compiles_under_the_patch_compiles_after_it() -> None:
    layer, x = fastrnn.GRU(3, 4), torch.randn(1, 2, 3)  # one step, which graphs leave to torch

    def compiled() -> torch.Tensor:
        torch.compiler.reset()
        with torch.autocast("cpu", torch.bfloat16):
            return torch.compile(layer, backend="aot_eager", fullgraph=True)(x)[0]

    with fastrnn.patch_torch():
        under = compiled()
    with warnings.catch_warnings():  # of a kernel that is missing
        warnings.simplefilter("error")
        after = compiled()
        after.sum().backward()
    torch.testing.assert_close(after, under)
