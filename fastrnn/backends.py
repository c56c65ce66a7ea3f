"""The backends, one record each, and the choice of the backend that runs a call.

The aim is never to be slower than torch.nn. So torch.nn's path runs a call if it won a measurement
on this machine (:mod:`fastrnn.measured`) or, where nothing was measured, if a rule says that it
wins (:mod:`fastrnn.tuning`). The environment variable FASTRNN_BACKEND (read when fastrnn is
imported), or ``with fastrnn.backend(name):``, forces a backend; a call that it does not support
then raises an error. Under torch.compile the choice is made when a graph is traced.

To add a backend, write a module that follows :mod:`fastrnn.kernels.contract` and add a record.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch

from fastrnn import _compat, measured, tuning
from fastrnn.kernels import cpu_pool
from fastrnn.kernels.contract import CELLS, KernelModule
from fastrnn.tables import fastrnn_version as fastrnn_version  # noqa: PLC0414  (for callers, too)
from fastrnn.tuning import Call as Call  # noqa: PLC0414


def _nothing_missing() -> str | None:
    return None


@dataclass(frozen=True)
class Backend:
    """What is known about a backend.

    Attributes:
        name: what ``fastrnn.backend`` takes.
        summary: one line for users.
        where: the devices, for users.
        module: the name, below fastrnn.kernels, of the module that follows the contract.
        devices: torch.device types that it runs on; None for any.
        dtypes: that it computes in; None for any.
        automatic: whether the choice considers it before torch's path.
        transforms: whether forward-mode gradients and functorch transforms pass through it.
        pixel_loop: the name, below fastrnn.kernels, of the module with its loop over pixels; None
            without one.
        stacks: whether it has an op for whole stacks of layers; see :mod:`fastrnn.inference`.
        load_error: why it cannot be used on this machine; returns None if it can.
        facts: returns more about it for :func:`fastrnn.backend_info`, as values for JSON.
    """

    name: str
    summary: str
    where: str
    module: str
    devices: tuple[str, ...] | None = None
    dtypes: tuple[torch.dtype, ...] | None = None
    automatic: bool = False
    transforms: bool = False
    pixel_loop: str | None = None
    stacks: bool = False
    load_error: Callable[[], str | None] = _nothing_missing
    facts: Callable[[], Mapping[str, Any]] = field(default=dict)

    def unsupported(self, call: Call) -> str | None:
        """Why this backend cannot run a call; None if it can."""
        if call.transformed and not self.transforms:
            return "forward-mode gradients and functorch transforms are not supported"
        return self.unsupported_device(call) or self.unsupported_dtype(call) or self.load_error()

    def unsupported_device(self, call: Call) -> str | None:
        """Why this backend cannot take tensors of a call's device; None if it can."""
        known = self.devices is None or call.device in self.devices
        return None if known else f"tensors are on {call.device}"

    def unsupported_dtype(self, call: Call) -> str | None:
        """Why this backend cannot take tensors of a call's dtype; None if it can."""
        if self.dtypes is None or call.dtype in self.dtypes:
            return None
        return f"{call.dtype} is not supported ({_listed(self.dtypes)})"

    def kernels(self) -> KernelModule:
        """The module that follows the contract; loaded on first use."""
        return cast(KernelModule, _kernel_module(self.module))


def _listed(dtypes: Sequence[torch.dtype]) -> str:
    """``float32 is``, or ``float32, float64 and bfloat16 are``."""
    *names, last = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    return f"{', '.join(names)} and {last} are" if names else f"{last} is"


@functools.cache
def _kernel_module(name: str) -> Any:
    return importlib.import_module(f"fastrnn.kernels.{name}")


def _function_of(module: str, name: str) -> Callable[[], Any]:
    """A function, without arguments, of a module in fastrnn.kernels that is loaded on first use.

    torch.compile evaluates it while tracing.
    """

    @_compat.constant_in_graphs
    def function() -> Any:
        return getattr(_kernel_module(module), name)()

    return function


_CPU = torch.device("cpu")
_16_BITS = (torch.bfloat16, torch.float16)

# In the order in which the choice considers them.
BACKENDS: dict[str, Backend] = {
    record.name: record
    for record in (
        Backend(
            name="cpu",
            summary="C++, compiled for three instruction sets and chosen at run time",
            where="CPU",
            module="cpu",
            devices=("cpu",),
            dtypes=(torch.float32, torch.float64, torch.bfloat16),
            automatic=True,
            pixel_loop="cpu_pixels",
            stacks=True,
            load_error=_function_of("cpu", "load_error"),
            facts=_function_of("cpu", "info"),
        ),
        Backend(
            name="triton",
            summary="fused Triton kernels for whole sequences and for single steps",
            where="NVIDIA and AMD GPUs",
            module="triton.layer",
            devices=("cuda",),
            dtypes=(torch.float32, *_16_BITS),
            automatic=True,
            pixel_loop="triton.pixels",
            load_error=_function_of("triton", "load_error"),
        ),
        Backend(
            name="cuda",
            summary="CUDA C++: weights kept on chip by a block, a cluster of up to 16, or the grid",
            where="NVIDIA GPUs",
            module="cuda",
            devices=("cuda",),
            dtypes=(torch.float32, *_16_BITS),
            load_error=_function_of("cuda", "device_error"),
            facts=_function_of("cuda", "info"),
        ),
        Backend(
            name="torch",
            summary="what torch.nn itself calls: oneDNN, cuDNN, ATen",
            where="anywhere",
            module="vendor",
            transforms=True,
            facts=lambda: {"mkldnn": torch.backends.mkldnn.is_available()},
        ),
        Backend(
            name="reference",
            summary="eager steps, forward and backward, which the tests compare with",
            where="anywhere",
            module="reference",
            transforms=True,
        ),
    )
}
TORCH, REFERENCE = list(BACKENDS.values())[-2:]

# Looking at os.environ in each call would cost as much as all other checks of a small step.
_forced: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "backend", default=os.environ.get("FASTRNN_BACKEND") or None
)


def empty_cache() -> None:
    """Frees the memory that fastrnn keeps for the results of later calls on CPUs.

    fastrnn keeps at most an eighth of the machine's memory, or 1 GiB if that is more.
    """
    cpu_pool.clear()


cpu_pool.enable(_compat.storage_users)

FORCED = "forced"  # the reason for the choice of a forced backend


class Choice(NamedTuple):
    """A backend's name and why it was chosen."""

    backend: str
    reason: str


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Forces a backend within a block, in this thread or task: ``with fastrnn.backend("torch"):``.

    Raises:
        ValueError: there is no backend of this name.
    """
    token = _forced.set(checked_name(name, "fastrnn.backend()"))
    try:
        yield
    finally:
        _forced.reset(token)


def checked_name(name: str, source: str) -> str:
    """Returns the name if a backend has it; ``source`` begins the error message otherwise.

    Raises:
        ValueError: there is no backend of this name.
    """
    if name not in BACKENDS:
        raise ValueError(f"{source}: unknown backend {name!r}; choose one of {', '.join(BACKENDS)}")
    return name


@_compat.constant_in_graphs
def forced_backend() -> str | None:
    """The backend forced by the context manager or, outside of one, by the environment."""
    return _forced.get()


def choose(call: Call, measure: bool = False) -> Choice:
    """The backend for a call.

    Args:
        call: the call to run.
        measure: whether the call may be measured first, as calls in eager code may.

    Raises:
        RuntimeError: the forced backend does not support the call.
        ValueError: FASTRNN_BACKEND names no backend.
    """
    forced = forced_backend()
    if forced is not None:
        checked_name(forced, "FASTRNN_BACKEND")
        if (reason := unsupported(forced, call)) is not None:
            raise RuntimeError(
                f"backend {forced!r} cannot run this call: {reason}. Leave the choice to fastrnn, "
                "or force another backend (FASTRNN_BACKEND, fastrnn.backend)"
            )
        return Choice(forced, FORCED)
    return _choose_freely(call, measure)


def _choose_freely(call: Call, measure: bool) -> Choice:
    if call.device != _CPU.type or torch.compiler.is_compiling() or not measured.is_settled(call):
        return _chosen_anew(call, measure)
    try:
        return _settled(call, torch.get_num_threads())
    except TypeError:  # symbolic sizes, as fake tensors have, are not hashable
        return _chosen_anew(call, False)


@functools.lru_cache(4096)
def _settled(call: Call, threads: int) -> Choice:
    return _chosen_anew(call, False)


measured.listeners.append(_settled.cache_clear)


def _chosen_anew(call: Call, measure: bool) -> Choice:
    if call.transformed and not call.projected and unsupported(REFERENCE.name, call) is None:
        reason = "forward-mode gradients and functorch need differentiable steps"
        return Choice(REFERENCE.name, reason)
    if not call.projected and not torch.compiler.is_compiling():
        found = measured.lookup(call, measure)
        if found is not None and found[0] in BACKENDS and unsupported(found[0], call) is None:
            return Choice(*found)
    reason = f"fastrnn has no kernels for tensors on {call.device}"
    for record in BACKENDS.values():
        if not record.automatic or call.device not in (record.devices or ()):
            continue
        if (missing := unsupported(record.name, call)) is None:
            entry = tuning.entry_for(call)
            if entry is not None:
                return Choice(TORCH.name, entry.reason)
            return Choice(record.name, "no entry of the table says that torch.nn is faster")
        reason = f"{record.name}: {missing}"
    return Choice(TORCH.name, reason)


def unsupported(name: str, call: Call) -> str | None:
    """Why a backend cannot run a call; None if it can."""
    return BACKENDS[name].unsupported(call)


def has_kernels(call: Call) -> bool:
    """Whether our kernels could run a call on some machine, even if not on this one."""
    return not call.projected and any(
        record.automatic
        and record.unsupported_device(call) is None
        and record.unsupported_dtype(call) is None
        for record in BACKENDS.values()
    )


def runs_in_one_op(call: Call) -> bool:
    """Whether a stack of layers should run in one op if no backend is forced."""
    return BACKENDS[_choose_freely(call._replace(in_one_op=True), True).backend].stacks


def kernels_for(name: str, call: Call) -> KernelModule:
    """The kernels that run an op's call.

    Args:
        name: of the backend; empty for what this machine chooses.
        call: the op's; ``training`` says that results for backward are kept.

    Raises:
        RuntimeError: the backend does not support the call.
        ValueError: there is no backend of this name.
    """
    if not name:
        return _chosen_kernels(call)
    record = BACKENDS[checked_name(name, "fastrnn op")]
    reason = record.unsupported_dtype(call)
    if reason is None and (elsewhere := record.unsupported_device(call)) is not None:
        # Without a GPU, the tests interpret or emulate GPU kernels, which then take CPU tensors.
        emulated = torch.device(call.device) == _CPU and not torch.cuda.is_available()
        reason = None if emulated else elsewhere
    if reason is not None:
        raise RuntimeError(f"backend {name!r} cannot run this op: {reason}")
    return record.kernels()


def _chosen_kernels(call: Call) -> KernelModule:
    choice = choose(call).backend
    if choice == TORCH.name and call.training:  # torch does not hand out what its backward needs
        for record in BACKENDS.values():
            if record.automatic and unsupported(record.name, call) is None:
                return record.kernels()
        return REFERENCE.kernels()
    return BACKENDS[choice].kernels()


def pixel_loop(call: Call, layers: int) -> Callable[..., torch.Tensor] | None:
    """The function that reads or draws a whole sequence of pixels; None if there is none.

    This is the ``run`` of a backend's :class:`~fastrnn.kernels.contract.PixelLoop`, with its first
    argument, the cell, filled in. Without one, the caller steps through the model's own layers.

    Args:
        call: a call of the first layer; all layers have the same H.
        layers: of the model.
    """
    forced = forced_backend()
    cell = CELLS.get(call.cell.lower())
    if cell is None or (forced is None and tuning.UNTIMED.holds(call)):
        return None
    for record in BACKENDS.values():
        if record.pixel_loop is None or (record.name != forced if forced else not record.automatic):
            continue
        if unsupported(record.name, call) is None:
            loop = _kernel_module(record.pixel_loop)
            if call.dtype in loop.DTYPES and loop.fits(call.hidden_size, layers):
                return functools.partial(loop.run, cell)
    return None
