"""Which backend a call takes, given how it is made: eager, traced, transformed, under autocast.

:mod:`fastrnn.backends` chooses by device, dtype and sizes. This module also considers the classes
of the tensors, and whatever traces, transforms or intercepts the call.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from fastrnn import _compat, backends
from fastrnn._compat import is_tracing

VENDOR = backends.TORCH.name
_CPU = torch.device("cpu").type
WHERE_IT_RUNS = ""  # an op in a graph names no backend: the choice is made where the graph runs
_PLAIN = frozenset({Tensor, nn.Parameter})
_PLAIN_OR_NONE = _PLAIN | {type(None)}

# torch.jit.trace warns whenever Python reads a size. torch silences this for its own modules, and
# so do we, because our graphs take other sizes, too.
_Warning = torch.jit.TracerWarning  # type: ignore[attr-defined]
warnings.filterwarnings("ignore", category=_Warning, module=r"fastrnn\.")


def are_plain(tensors: Iterable[object]) -> bool:
    """Whether all of them are plain tensors, not of a class that may handle calls itself."""
    return _PLAIN.issuperset(map(type, tensors))


def are_plain_or_none(values: Iterable[object]) -> bool:
    """Whether all of them are plain tensors, or None."""
    return _PLAIN_OR_NONE.issuperset(map(type, values))


def is_direct() -> bool:
    """Whether nothing stands between a call and its kernels: no compiler, transform or mode."""
    return not in_graph() and not _compat.calls_are_intercepted()


def is_ordinary() -> bool:
    """Whether a call is direct, is not under autocast, and no backend is forced."""
    return (
        not torch.compiler.is_compiling()
        and _compat.is_undisturbed()
        and backends.forced_backend() is None
    )


def single_step_needs_choice(input: Tensor, ordinary: bool) -> bool:
    """Whether to choose a backend for a single step that no native op runs.

    Otherwise torch's path runs it: a single step has no weights to keep on chip, and on a CPU
    choosing would cost more than it could save.

    Args:
        input: of the step.
        ordinary: the result of :func:`is_ordinary`.
    """
    if ordinary:
        return not input.is_cpu
    return (
        not input.is_cpu
        or _compat.transforms_active()
        or backends.forced_backend() is not None
        or under_autocast(input)
        or in_graph()
    )


def leaves_projections_to_torch(input: Tensor) -> bool:
    """Whether torch runs layers with a projection: in graphs and under autocast.

    Graphs then hold torch's operator, and under autocast c_n keeps its dtype. A forced backend runs
    the layers itself.
    """
    return backends.forced_backend() is None and (in_graph() or under_autocast(input))


def in_graph() -> bool:
    """Whether the call is being compiled, exported or traced."""
    return torch.compiler.is_compiling() or is_tracing()


def under_autocast(input: Tensor) -> bool:
    """Whether torch.autocast is active for the input's device."""
    # The meta device has no autocast, and torch raises an error when asked about it.
    return not input.is_meta and torch.is_autocast_enabled(input.device.type)


def call_of(
    cell: str,
    input: Tensor,
    states: Sequence[Tensor],
    steps: int,
    batch: int,
    training: bool,
    transformed: bool = False,
    projected: bool = False,
    packed: bool = False,
    in_one_op: bool = False,
) -> backends.Call:
    """What the choice of a backend depends on."""
    device = input.device
    return backends.Call(
        cell=cell.upper(),
        device=device.type,
        dtype=input.dtype,
        steps=steps,
        batch=batch,
        input_size=input.shape[-1],
        hidden_size=states[-1].shape[-1],
        training=training,
        projected=projected,
        transformed=transformed,
        in_one_op=in_one_op,
        packed=packed,
        device_index=device.index,
    )


def backend_of(call: backends.Call, tensors: tuple[Tensor, ...], leave_open: bool) -> str:
    """The backend for input, states and weights; torch's for whatever only torch can run.

    With ``leave_open``, a graph leaves the choice to the machine on which it runs, even if this
    machine would choose torch's layer: the other one may have better kernels.
    """
    input = tensors[0]
    special = not torch.compiler.is_compiling() and not are_plain(tensors)
    if special and any(_knows_torch_alone(type(t)) for t in tensors):
        return VENDOR
    if input.layout != torch.strided:
        return VENDOR
    if input.numel() == 0 or any(_differs(t, input) for t in tensors):
        return VENDOR  # torch raises its own error, or returns its own empty result
    traced = in_graph()
    if traced and _onnx_export():
        return VENDOR  # ONNX has operators for torch's layers
    choice = backends.choose(call, measure=not traced and not special)
    if not traced or choice.reason == backends.FORCED:
        return choice.backend
    ours = choice.backend != VENDOR or (leave_open and backends.has_kernels(call))
    return WHERE_IT_RUNS if ours else VENDOR


def is_transformed(tensors: tuple[Tensor, ...]) -> bool:
    """Whether a transform tracks the call's tensors; torch.compile cannot inspect them."""
    compiling = torch.compiler.is_compiling()
    return _compat.transforms_active() and (compiling or _compat.is_transformed(tensors))


@functools.cache
def _overrides_functions(kind: type[Tensor]) -> bool:
    """Whether a class of tensors handles torch's functions itself, as ExpandedWeight does."""
    function = getattr(kind.__torch_function__, "__func__", None)
    return function not in (None, getattr(Tensor.__torch_function__, "__func__", None))


def _knows_torch_alone(kind: type[Tensor]) -> bool:
    """Whether a class of tensors answers to torch's functions or operators, not to ours.

    Those that wrap tensors, as DTensor does, have the methods by which torch.compile unwraps them;
    fake tensors, which know our operators, have not.
    """
    return _overrides_functions(kind) or hasattr(kind, "__tensor_flatten__")


def _differs(tensor: Tensor, input: Tensor) -> bool:
    if input.is_cpu:  # the usual case, without creating device objects
        return tensor.dtype != input.dtype or not tensor.is_cpu
    return tensor.dtype != input.dtype or tensor.device != input.device


def needs_gradients(tensors: Sequence[Tensor]) -> bool:
    """Whether autograd tracks a call with these tensors."""
    if not torch.is_grad_enabled():
        return False
    # Classes that handle torch's functions may not answer requires_grad. torch.compile sees none.
    ask_all = torch.compiler.is_compiling()
    return any(t.requires_grad for t in tensors if ask_all or not _overrides_functions(type(t)))


def trains(weights: Sequence[object]) -> bool:
    """Whether the weights certainly need gradients; if not, ask :func:`needs_gradients`."""
    first = weights[0] if weights else None
    return torch.is_grad_enabled() and type(first) is nn.Parameter and first.requires_grad


def saves(training: bool, tensors: Sequence[Tensor]) -> bool:
    """Whether the ops keep what backward needs.

    An exported or traced graph is taken to be for inference unless the module is in training mode;
    its backward pass, if there ever is one, runs the layers again. torch.jit.trace also traces a
    second time without gradients, and expects the same graph.
    """
    if _exported_or_traced():
        return training and any(t.requires_grad for t in tensors)
    return needs_gradients(tensors)


@_compat.constant_in_graphs  # torch 2.11's compiler assumes that both are true
def _exported_or_traced() -> bool:
    return torch.compiler.is_exporting() or is_tracing()


@_compat.constant_in_graphs
def _onnx_export() -> bool:
    # torch.onnx takes long to import; if an export is running, it has been imported.
    return "torch.onnx" in sys.modules and torch.onnx.is_in_onnx_export()


def explain(
    cell: str,
    *,
    batch: int,
    hidden_size: int,
    input_size: int = 1,
    steps: int = 784,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    training: bool = False,
    proj_size: int = 0,
    packed: bool = False,
) -> backends.Choice:
    """The backend that a call of this size would take, and why.

    Args:
        cell: ``LSTM`` or ``GRU``.
        batch, hidden_size, input_size, steps, proj_size: B, H, I, T and the projection's size.
        dtype: of all tensors.
        device: of all tensors.
        training: whether gradients will be asked for.
        packed: whether the input is a packed sequence.

    Raises:
        RuntimeError: the forced backend does not support the call.
    """
    where = torch.device(device)
    return backends.choose(
        backends.Call(
            cell=cell,
            device=where.type,
            dtype=dtype,
            steps=steps,
            batch=batch,
            input_size=input_size,
            hidden_size=hidden_size,
            training=training,
            projected=proj_size > 0,
            in_one_op=where.type == _CPU,
            packed=packed,
            device_index=where.index,
        )
    )
