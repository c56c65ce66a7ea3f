"""Every private name of torch that fastrnn uses is in one module, and is there in this torch."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import fastrnn
from fastrnn import _compat
from fastrnn.kernels import contract

PACKAGE = Path(fastrnn.__file__).parent
FOLDERS = (PACKAGE, Path(contract.__file__).parent)  # which lies elsewhere in a checkout
SOURCES = sorted({path for folder in FOLDERS for path in folder.rglob("*.py")})
# torch._C, torch.cpu._is_…, from torch._higher_order_ops import …, forward_ad._current_level
PRIVATE = re.compile(
    r"\btorch(\.\w+)*\._[a-z]\w*|from torch[\w.]* import _|\bforward_ad\._|_dynamo_"
)


@pytest.mark.parametrize(
    "path",
    [p for p in SOURCES if p.name != "_compat.py"],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_no_other_module_uses_a_private_name_of_torch(path: Path) -> None:
    code = [line.partition("#")[0] for line in path.read_text().splitlines()]
    assert [line for line in code if PRIVATE.search(line)] == []


def test_a_layer_has_the_private_attributes_of_rnn_base() -> None:
    layer = nn.GRU(2, 3)
    for name in _compat.RNN_BASE_NAMES:
        assert hasattr(layer, name), name


def test_no_private_attribute_of_rnn_base_is_used_that_is_not_listed() -> None:
    private = {name for name in dir(nn.RNNBase(*("GRU", 2, 3))) if re.match(r"_[a-z]", name)}
    of_module = {name for name in dir(nn.Module()) if re.match(r"_[a-z]", name)}
    used = set(re.findall(r"self\.(_[a-z]\w*)", (PACKAGE / "nn.py").read_text()))
    own = {name for cls in (fastrnn.GRU, fastrnn.LSTMCell) for name in _own_names(cls)}
    assert used & (private | of_module) <= set(_compat.RNN_BASE_NAMES) | own


def _own_names(cls: type) -> set[str]:
    return {name for base in cls.__mro__ if base.__module__ == "fastrnn.nn" for name in vars(base)}


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by torch itself
def test_transforms_are_noticed() -> None:
    x = torch.ones(3)
    seen: list[bool] = []

    def look(*tensors: torch.Tensor) -> torch.Tensor:
        seen.extend([_compat.transforms_active(), _compat.is_transformed([x, *tensors])])
        return tensors[0].sum()

    look(x)
    assert seen == [False] * 2
    torch.vmap(look)(x)
    torch.func.grad(look)(x)
    with forward_ad.dual_level():
        look(forward_ad.make_dual(x, x))
        assert not _compat.is_transformed([x])
    look(x)
    assert seen == [False] * 2 + [True] * 6 + [False] * 2


def test_a_constant_function_is_evaluated_once_for_a_graph() -> None:
    calls = []

    @_compat.constant_in_graphs
    def constant() -> int:
        calls.append(1)
        return 3

    compiled = torch.compile(lambda x: x * constant(), fullgraph=True, backend="eager")
    for _ in range(3):
        assert compiled(torch.ones(2)).eq(3).all()
    assert len(calls) == 1


def test_bfloat16_pairs_are_what_the_processor_reports() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("reads /proc/cpuinfo")
    assert _compat.multiplies_bfloat16_in_pairs() == ("avx512_bf16" in cpuinfo.read_text().split())


def test_bfloat16_tiles_are_what_the_processor_reports() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("reads /proc/cpuinfo")
    assert _compat.multiplies_bfloat16_in_tiles() == ("amx_tile" in cpuinfo.read_text().split())


def test_wide_vectors_are_what_the_processor_has() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists() or "ATEN_CPU_CAPABILITY" in os.environ:
        pytest.skip("compares with /proc/cpuinfo")
    assert _compat.uses_512_bit_vectors() == ("avx512f" in cpuinfo.read_text().split())


def test_own_parameters_are_those_of_the_module_itself() -> None:
    cell = nn.LSTMCell(2, 3)
    assert _compat.own_parameters(cell)["weight_ih"] is cell.weight_ih
    nn.utils.parametrizations.weight_norm(cell, "weight_hh")
    assert "weight_hh" not in _compat.own_parameters(cell)


def test_changes_in_place_are_noticed() -> None:
    y = torch.ones(3, requires_grad=True) * 2
    changes = _compat.InPlaceChanges(y)
    assert not changes
    y[1:].mul_(3)
    assert changes
    assert y.tolist() == [2, 6, 6]


def test_versions_count_changes_in_place() -> None:
    parameter = nn.Parameter(torch.ones(4))
    alias = parameter.detach()
    before = _compat.versions([alias])
    with torch.no_grad():
        parameter[1:].add_(1)
    assert _compat.versions([alias]) != before


def test_users_of_a_storage_are_its_tensors() -> None:
    tensor = torch.ones(4)
    storage = tensor.untyped_storage()
    views = [tensor[i:] for i in range(3)]
    assert _compat.storage_users(storage) == 5
    del views, tensor
    assert _compat.storage_users(storage) == 1


def test_forward_hooks_are_noticed() -> None:
    def hook(*_: object) -> None: ...

    module, every = nn.Linear(2, 3), nn.modules.module
    for register in (
        module.register_forward_hook,
        module.register_forward_pre_hook,
        every.register_module_forward_hook,
        every.register_module_forward_pre_hook,
    ):
        assert not _compat.has_forward_hooks(module)
        with register(hook):
            assert _compat.has_forward_hooks(module)
    assert not _compat.has_forward_hooks(module)


def test_a_variant_differs_in_its_attributes_only() -> None:
    module = nn.Linear(2, 3)
    module.compile(backend="eager")
    variant = _compat.variant(module, bias=None)
    assert variant.weight is module.weight
    assert torch.equal(variant(torch.eye(2)), module.weight.t())
    assert not torch.equal(module(torch.eye(2)), module.weight.t())


def test_modes_and_transforms_are_noticed_in_one_question() -> None:
    assert not _compat.calls_are_intercepted()
    assert not _compat.has_dispatch_mode()
    with FlopCounterMode(display=False):
        assert _compat.calls_are_intercepted()
        assert _compat.has_dispatch_mode()
    with forward_ad.dual_level():
        assert _compat.calls_are_intercepted()


@pytest.mark.filterwarnings("ignore:.torch.jit")  # deprecated
def test_tracing_is_noticed() -> None:
    seen = []

    def function(x: Tensor) -> Tensor:
        seen.append(_compat.is_tracing())
        return 2 * x

    function(torch.ones(1))
    torch.jit.trace(function, torch.ones(1))
    assert seen[:2] == [False, True]


def test_batched_gradients_are_noticed() -> None:
    seen = []

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> Tensor:
            seen.append(_compat.is_batched_gradient(dy))
            return 2 * dy

    x = torch.ones(3, requires_grad=True)
    y = Double.apply(x)
    y.sum().backward(retain_graph=True)
    torch.autograd.grad(y, x, torch.ones(2, 3), is_grads_batched=True)
    assert seen == [False, True]


def test_torchs_library_can_be_found() -> None:
    assert hasattr(ctypes.CDLL(_compat.extension_path()), "aoti_torch_get_data_ptr")


@pytest.mark.parametrize("find", [_compat.composite, _compat.traceable])
def test_torchs_own_implementation_is_reached(find: Callable[[str], Callable[..., Any]]) -> None:
    layer, x, h = nn.GRU(2, 3), torch.randn(4, 1, 2), torch.zeros(1, 1, 3)
    own = find("gru.input")
    y, _ = own(x, h, list(layer.parameters()), True, 1, 0.0, False, False, False)
    assert torch.equal(y, layer(x)[0])


def test_kernels_are_seen_and_removed() -> None:
    assert not _compat.has_kernel("gru.input", "AutogradCPU")
    library = torch.library.Library("aten", "IMPL")
    library.impl("gru.input", lambda *args: None, "AutogradCPU")
    assert _compat.has_kernel("gru.input", "AutogradCPU")
    _compat.remove_kernels(library)
    assert not _compat.has_kernel("gru.input", "AutogradCPU")


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_the_function_that_torchs_layers_call_can_be_replaced() -> None:
    called = []

    def function(*args: Any) -> Any:
        called.append(args)
        return _compat.layer_function("gru")(*args)

    kept.append(function)
    layer = nn.GRU(2, 3)
    _compat.replace_layer_function("gru", function)
    try:
        assert _compat.layer_function_is_replaced("gru")
        layer(torch.randn(4, 1, 2))
        torch.jit.script(nn.Sequential(layer))
    finally:
        _compat.restore_layer_function("gru")
    layer(torch.randn(4, 1, 2))
    assert len(called) == 1
    assert not _compat.layer_function_is_replaced("gru")


kept: list[Any] = []  # torch.jit.script knows functions by their addresses


def test_a_function_can_be_kept_from_the_compiler() -> None:
    """tests/test_patching.py shows what that is good for."""

    def function() -> None:
        pass

    assert _compat.not_compiled(function) is function


@pytest.mark.filterwarnings("ignore:.torch.jit")  # deprecated
def test_what_disturbs_a_call_is_noticed() -> None:
    seen = []

    def note(x: torch.Tensor) -> torch.Tensor:
        seen.append(_compat.is_undisturbed())
        return x

    x = torch.ones(2)
    assert _compat.is_undisturbed()
    with torch.autocast("cpu", torch.bfloat16):
        note(x)
        with torch.autocast("cpu", enabled=False):
            assert _compat.is_undisturbed()
    with forward_ad.dual_level():
        note(x)
    with FlopCounterMode(display=False):
        note(x)
    torch.func.vmap(note)(x)
    torch.jit.trace(note, x, check_trace=False)
    assert seen == [False] * 5
    assert _compat.is_undisturbed()


def test_what_watches_functions_is_noticed() -> None:
    assert not _compat.functions_are_watched()
    with torch.device("cpu"):
        assert _compat.functions_are_watched()
    with profile(activities=[ProfilerActivity.CPU], acc_events=True):
        assert _compat.functions_are_watched()
    assert not _compat.functions_are_watched()


def test_kernels_are_looked_up_anew() -> None:
    operator = torch.ops.aten.gru.input
    operator._dispatch_cache[torch._C.DispatchKey.CPU] = torch._C.DispatchKey.Undefined
    _compat.forget_dispatch("gru.input")
    assert not operator._dispatch_cache
