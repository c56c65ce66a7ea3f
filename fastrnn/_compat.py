"""Every private name of torch that fastrnn uses, with the reason and what replaces it.

torch promises nothing about these names. ``tests/test_compat.py`` checks each one against the torch
that is installed and checks that no other module uses a private name; CI runs the layer's tests
with the oldest supported torch as well as the newest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.jit import _builtins as jit_builtins

_Function = TypeVar("_Function", bound=Callable[..., object])
_Module = TypeVar("_Module", bound=nn.Module)

# Attributes of torch.nn.RNNBase that fastrnn.nn reads or overrides, so that parameters, flattening
# and parametrisations behave exactly as in torch.nn. If one is removed: collect the weights by name
# ("weight_ih_l0", ...), as RNNBase.all_weights does.
RNN_BASE_NAMES = (
    "_flat_weights",  # the weights in the order that functional.lstm takes
    "_flat_weights_names",
    "_flat_weight_refs",  # weak references to the parameters behind _flat_weights
    "_init_flat_weights",  # collects them anew after a parameter was replaced
    "_update_flat_weights",  # does so if need be; parametrised weights are computed in it
)


def constant_in_graphs(function: _Function) -> _Function:
    """Makes torch.compile evaluate a function while it traces, and keep the result.

    The public torch.compiler.assume_constant_result does the same, but it imports Dynamo, which
    takes a second. If _dynamo_marked_constant is removed: use the public function.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def not_compiled(function: _Function) -> _Function:
    """Makes torch.compile ignore a function, and all that it calls, when they run eagerly.

    The public torch.compiler.disable does the same, but it imports Dynamo, and costs a microsecond
    a call. If set_code_exec_strategy is removed: use the public function.
    """
    frames = torch._C._dynamo.eval_frame
    skip = frames._FrameAction.SKIP
    code = function.__code__
    frames.set_code_exec_strategy(code, frames._FrameExecStrategy(skip, skip))
    return function


@constant_in_graphs
def transforms_active() -> bool:
    """Whether a functorch transform or a level of forward-mode differentiation is active.

    torch has no public test, and this one takes a fifth of a microsecond. If one of the two names
    is removed: call :func:`is_transformed` for each call.
    """
    functorch = torch._C._functorch.peek_interpreter_stack() is not None
    return functorch or forward_ad._current_level >= 0


def calls_are_intercepted() -> bool:
    """Whether a transform, forward-mode differentiation or a torch_dispatch mode sees each call."""
    return transforms_active() or has_dispatch_mode()


def has_dispatch_mode() -> bool:
    """Whether a torch_dispatch mode sees each call.

    torch has no public test. If _len_torch_dispatch_stack is removed: return True, and layers run
    one by one.
    """
    return torch._C._len_torch_dispatch_stack() > 0


def functions_are_watched() -> bool:
    """Whether a torch_function mode (torch.set_default_device is one) or a profiler sees each call.

    torch has no public tests. If one of the names goes: return True, and patched layers are called
    by way of torch's functions, which costs some microseconds.
    """
    return torch._C._len_torch_function_stack() > 0 or torch._C._autograd._profiler_enabled()


def is_batched_gradient(tensor: Tensor) -> bool:
    """Whether a gradient is one of torch.autograd.grad's with is_grads_batched.

    Such a gradient belongs to an older vmap than functorch's, which has no public test. If
    is_legacy_batchedtensor is removed: return True, and backward passes go through the dispatcher.
    """
    return torch._C._functorch.is_legacy_batchedtensor(tensor)


# Whether torch.jit.trace is running. The public torch.jit.is_tracing goes through two more Python
# functions, which is noticeable in a call of a single step. If _is_tracing is removed: use the
# public function.
is_tracing: Callable[[], bool] = torch._C._is_tracing


def is_undisturbed() -> bool:
    """Whether no trace, transform, forward-mode level, torch_dispatch mode or autocast is active.

    All are tested at once because even the shortest calls need the answer. The public test for
    autocast takes one device's name; if _is_any_autocast_enabled is removed: call
    torch.is_autocast_enabled for CPU and CUDA. For the other names see the functions above.
    """
    return not (
        torch._C._is_tracing()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch._C._is_any_autocast_enabled()
    )


def _overload(operator: str) -> Any:
    """An aten operator by name and overload, such as ``lstm.input``."""
    name, _, overload = operator.partition(".")
    return getattr(getattr(torch.ops.aten, name), overload)


def composite(operator: str) -> Callable[..., Any]:
    """Torch's own implementation of an aten operator, such as ``lstm.input``, for all devices.

    OpOverload.decompose() calls the decomposition in Python if there is one, which takes tens of
    microseconds more. If _op_dk is removed: call decompose().
    """
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return functools.partial(_overload(operator)._op_dk, key)


def traceable(operator: str) -> Callable[..., Any]:
    """What torch does for an aten operator in calls that something inspects.

    While torch.export and torch.compile trace, Python's dispatcher is active, and torch then uses
    the operator's decomposition in Python. If _dispatch_tls_is_dispatch_key_included is removed:
    always call decompose().
    """
    found, eager = _overload(operator), composite(operator)
    key = torch._C.DispatchKey.PythonDispatcher

    def run(*args: Any) -> Any:
        if torch._C._dispatch_tls_is_dispatch_key_included(key):
            return found.decompose(*args)
        return eager(*args)

    return run


def forget_dispatch(operator: str) -> None:
    """Makes Python's dispatcher look up an aten operator's kernels anew.

    torch.compile and torch.export use that dispatcher, which caches what it found for a key. If
    _dispatch_cache is removed: rely on torch's own invalidation.
    """
    _overload(operator)._dispatch_cache.clear()


def has_kernel(operator: str, key: str) -> bool:
    """Whether an aten operator has a kernel of its own for a dispatch key.

    torch has no public test. If _dispatch_has_kernel_for_dispatch_key is removed: return False, and
    whoever replaces an operator last wins.
    """
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{operator}", key)


def layer_function(name: str) -> Callable[..., Any]:
    """What torch.nn's modules call in eager mode: ``lstm`` or ``gru``.

    They look it up in torch._VF, which takes it from torch._C._VariableFunctions. If that is
    removed: use torch.lstm and torch.gru, which are the same.
    """
    return getattr(torch._C._VariableFunctions, name)


def replace_layer_function(name: str, function: Callable[..., Any]) -> None:
    """Makes torch.nn's modules call something else in eager mode.

    torch.jit.script recognises torch's function by its identity, so the new one is added to its
    table of builtins. If torch._VF or that table is removed: do nothing, and the operators' kernels
    see these calls too.

    Args:
        name: see :func:`layer_function`.
        function: what they call; it must live as long as the process.
    """
    setattr(torch._VF, name, function)
    if (function, f"aten::{name}") not in jit_builtins._builtin_ops:
        jit_builtins._builtin_ops.append((function, f"aten::{name}"))
    if jit_builtins._builtin_table is not None:
        jit_builtins._builtin_table[id(function)] = f"aten::{name}"


def restore_layer_function(name: str) -> None:
    """Undoes :func:`replace_layer_function`."""
    delattr(torch._VF, name)


def layer_function_is_replaced(name: str) -> bool:
    """Whether torch.nn's modules call something other than torch's function in eager mode."""
    return name in vars(torch._VF)


def remove_kernels(library: torch.library.Library) -> None:
    """Removes the kernels that a library holds.

    torch removes them when the library object dies, which a reference elsewhere would delay. If
    _destroy is removed: rely on that.
    """
    library._destroy()


def extension_path() -> str:
    """The file of torch's extension module, which depends on libtorch_cpu.

    If torch._C is removed: look for libtorch_cpu in the folder lib beside torch/__init__.py.
    """
    return torch._C.__file__


def is_transformed(tensors: Sequence[Tensor]) -> bool:
    """Whether a functorch transform or forward-mode differentiation tracks one of the tensors.

    functorch has no public test for its tensors. If is_functorch_wrapped_tensor is removed:
    register a vmap rule for the ops instead. The public forward_ad.unpack_dual costs microseconds
    per tensor, so forward_ad._current_level is read first: it is negative outside of forward mode.
    If that is removed: call unpack_dual on every tensor.
    """
    if any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in tensors):
        return True
    level = forward_ad._current_level
    return level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)


@constant_in_graphs
def multiplies_bfloat16_in_pairs() -> bool:
    """Whether this processor has AVX512-BF16; False where torch cannot say.

    torch has no public test. If _is_avx512_bf16_supported is removed: read the flags in
    /proc/cpuinfo.
    """
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return supported is not None and supported()


@constant_in_graphs
def multiplies_bfloat16_in_tiles() -> bool:
    """Whether this processor has AMX; False where torch cannot say.

    torch has no public test. If _is_amx_tile_supported is removed: read the flags in /proc/cpuinfo.
    """
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return supported is not None and supported()


@constant_in_graphs
def uses_512_bit_vectors() -> bool:
    """Whether torch uses AVX-512 on this processor.

    get_cpu_capability is public; it is called here because graphs must not contain the call.
    """
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """A module's own parameters by name, without those that are parametrised or pruned.

    Module.__getattr__ costs as much per weight as a small step, so Module._parameters is read
    instead. If that is removed: use getattr.
    """
    return module._parameters


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether a call of a module runs forward hooks: its own, or those of all modules.

    torch has no public test. If one of these names is removed: return True, so that modules are
    always called.
    """
    every = nn.modules.module
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or every._global_forward_hooks
        or every._global_forward_pre_hooks
    )


def variant(module: _Module, **attributes: object) -> _Module:
    """A module that shares everything with another, including hooks, except these attributes.

    Module.compile() stores a compiled call of the other module in Module._compiled_call_impl, which
    is left out here. If that is removed: leave out whatever takes its place.
    """
    new = type(module).__new__(type(module))
    vars(new).update(vars(module), **attributes)
    vars(new).pop("_compiled_call_impl", None)
    return new


class InPlaceChanges:
    """Notices changes of a tensor's values in place, without keeping its graph.

    autograd would refuse a saved output that was changed, where torch.nn's GRU allows it. A
    detached tensor shares the version counter, Tensor._version, which torch's notes on autograd
    describe but which has no public name; a view would keep the graph alive. If _version is
    removed: save the output itself and let autograd refuse.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._counter = tensor.detach()
        self._version = self._counter._version

    def __bool__(self) -> bool:
        return self._counter._version != self._version


def versions(tensors: Iterable[Tensor]) -> list[int]:
    """How often the values of each tensor were changed in place.

    Tensor._version has no public name; see :class:`InPlaceChanges`. If it is removed: frozen layers
    must compare their parameters with copies.
    """
    return [tensor._version for tensor in tensors]


def storage_users(storage: torch.UntypedStorage) -> int:
    """How many tensors use a storage, plus one for the object given.

    torch has no public function. If _storage_Use_Count is removed: return 2, and no memory is
    reused.
    """
    return torch._C._storage_Use_Count(storage._cdata)
