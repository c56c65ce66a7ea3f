"""Which backend runs a call, and why.

| name | what | where |
|---|---|---|
| ``cpu`` | C++ kernels | CPU |
| ``triton`` | fused Triton kernels | NVIDIA GPUs |
| ``cuda`` | CUDA C++ kernels; any hidden size, no Triton needed | NVIDIA GPUs |
| ``torch`` | what torch.nn calls: oneDNN, cuDNN, ATen | anywhere |
| ``reference`` | eager steps | anywhere |

The choice is never to be slower than torch.nn: where its path wins, it is taken. The environment
variable FASTRNN_BACKEND (read when fastrnn is imported), or ``with fastrnn.backend(name):``, forces
one; a call that the forced backend does not support then raises. Under torch.compile the choice is
made when a graph is traced.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., object])
NAMES = ("cpu", "triton", "cuda", "torch", "reference")

# Looking at os.environ in each call would cost as much as a small step's other checks together.
_forced: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "backend", default=os.environ.get("FASTRNN_BACKEND") or None
)


class Call(NamedTuple):
    """What the choice depends on."""

    cell: str  # "LSTM" or "GRU"
    device: str  # torch.device.type
    dtype: torch.dtype
    steps: int
    batch: int
    input_size: int
    hidden_size: int
    training: bool  # gradients will be asked for
    projected: bool = False  # proj_size > 0
    transformed: bool = False  # forward-mode gradients or a functorch transform is active


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
    token = _forced.set(_checked(name, "fastrnn.backend()"))
    try:
        yield
    finally:
        _forced.reset(token)


def _checked(name: str, source: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{source}: unknown backend {name!r}; choose one of {', '.join(NAMES)}")
    return name


def _constant_in_graphs(function: Function) -> Function:
    """What torch.compiler.assume_constant_result does, but importing Dynamo takes a second."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@_constant_in_graphs
def forced_backend() -> str | None:
    """The backend that the context manager or, behind it, the environment asks for."""
    return _forced.get()


def choose(call: Call) -> Choice:
    """The backend for a call.

    Raises:
        RuntimeError: the forced backend does not support the call.
    """
    forced = forced_backend()
    if forced is not None:
        _checked(forced, "FASTRNN_BACKEND")
        if (reason := unsupported(forced, call)) is not None:
            raise RuntimeError(
                f"backend {forced!r} cannot run this call: {reason}. Leave the choice to fastrnn, "
                "or force another backend (FASTRNN_BACKEND, fastrnn.backend)"
            )
        return Choice(forced, "forced")
    if call.transformed and unsupported("reference", call) is None:
        return Choice("reference", "forward-mode gradients and functorch need differentiable steps")
    name = "cpu" if call.device == "cpu" else "triton"
    if (reason := unsupported(name, call)) is not None:
        return Choice("torch", f"{name}: {reason}")
    if (reason := _vendor_wins(call)) is not None:
        return Choice("torch", reason)
    return Choice(name, "the fastest measured for this shape")


def unsupported(name: str, call: Call) -> str | None:
    """Why a backend cannot run a call; None if it can."""
    if name == "torch":
        return None
    if call.projected:
        return "proj_size > 0 is not supported"
    if name == "reference":
        return None
    if call.transformed:
        return "forward-mode gradients and functorch transforms are not supported"
    limits = {"cpu": _cpu_unsupported, "triton": _triton_unsupported, "cuda": _cuda_unsupported}
    return limits[name](call)


def _cpu_unsupported(call: Call) -> str | None:
    if call.device != "cpu":
        return f"tensors are on {call.device}"
    if call.dtype not in (torch.float32, torch.float64, torch.bfloat16):
        return f"{call.dtype} is not supported (float32, float64 and bfloat16 are)"
    return native_load_error()


@_constant_in_graphs
def native_load_error() -> str | None:
    """Why the native CPU library cannot be used; None if it can."""
    from fastrnn.kernels import native

    return native.load_error()


def _triton_unsupported(call: Call) -> str | None:
    if call.device != "cuda":
        return f"tensors are on {call.device}"
    return triton_load_error() or _triton_limits(call.dtype)


@_constant_in_graphs
def triton_load_error() -> str | None:
    """Why the Triton kernels cannot be used on this machine's GPUs; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    if torch.version.hip is not None:
        lanes = torch.cuda.get_device_properties().warp_size
        return None if lanes == 64 else f"AMD GPUs of 64 lanes a wavefront are needed, not {lanes}"
    if (found := torch.cuda.get_device_capability()) < (8, 0):
        return f"compute capability 8.0 or newer is needed, not {found[0]}.{found[1]}"
    return None


@_constant_in_graphs
def _triton_limits(dtype: torch.dtype) -> str | None:
    from fastrnn.kernels import rnn_launch

    return rnn_launch.supports(dtype)


def _cuda_unsupported(call: Call) -> str | None:
    if call.device != "cuda":
        return f"tensors are on {call.device}"
    if call.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"{call.dtype} is not supported (float32, bfloat16 and float16 are)"
    return cuda_load_error()


@_constant_in_graphs
def cuda_load_error() -> str | None:
    """Why the native CUDA library cannot be used on this machine's GPUs; None if it can."""
    from fastrnn.kernels import native_cuda

    if (error := native_cuda.load_error()) is not None:
        return error
    if torch.version.hip is not None:
        return "AMD GPUs are Triton's"
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    return native_cuda.device_error()


# ---- the measured table: where torch.nn's own path is as fast or faster


def _vendor_wins(call: Call) -> str | None:
    """Measured on two cores of Zen 4 and of Zen 5 (AVX-512, bfloat16 products) with torch 2.14."""
    if call.device != "cpu":
        return "our GPU kernels have not been timed yet; force triton or cuda to use them"
    if call.steps == 1:
        return "one step: there is nothing to keep on chip"
    if call.dtype == torch.bfloat16 and _bfloat16_products():
        large = (128, 8) if call.cell == "LSTM" else (512, 32)
        if call.hidden_size >= large[0] and call.batch >= large[1]:
            return "oneDNN multiplies in bfloat16, twice as fast at this size"
    if call.batch < _few_rows(call):
        return "few rows for many weights: oneDNN reads them fewer times"
    return None


def _few_rows(call: Call) -> int:
    """Below how many rows the weights' way to the cores decides; 0 where it never does."""
    if call.cell != "LSTM" or call.dtype == torch.float64:
        return 0
    if call.hidden_size >= 1024:
        return 64 if call.steps < 64 else 16 if call.steps <= 128 and not call.training else 0
    return 32 if call.hidden_size >= 512 and call.steps < 64 and call.training else 0


@_constant_in_graphs
def _bfloat16_products() -> bool:
    """Whether this processor multiplies bfloat16 numbers in pairs (AVX512-BF16)."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return supported is not None and supported()


# ---- what is there


def backend_info() -> dict[str, Any]:
    """What is available, and what is not and why, as plain values, ready for JSON.

    Returns:
        Versions, threads, the forced backend, and ``backends``: by name, ``available`` and more.
    """
    from fastrnn import __version__
    from fastrnn.kernels import native, native_cuda

    error = native.load_error()
    cpu = {"available": error is None, **({"reason": error} if error else native.info())}
    missing = triton_load_error()
    triton = {"available": missing is None, **({"reason": missing} if missing else {})}
    useless = cuda_load_error()
    cuda = {"available": useless is None, **({"reason": useless} if useless else {})}
    cuda |= native_cuda.info()
    return {
        "fastrnn": __version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "forced": forced_backend(),
        "backends": {
            "cpu": cpu,
            "triton": triton,
            "cuda": cuda,
            "torch": {"available": True, "mkldnn": torch.backends.mkldnn.is_available()},
            "reference": {"available": True},
        },
    }


def explain(
    cell: str,
    *,
    batch: int,
    hidden_size: int,
    input_size: int = 1,
    steps: int = 784,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    training: bool = False,
    proj_size: int = 0,
) -> Choice:
    """The backend that a call of this shape would take, and why."""
    return choose(
        Call(
            cell=cell,
            device=torch.device(device).type,
            dtype=dtype,
            steps=steps,
            batch=batch,
            input_size=input_size,
            hidden_size=hidden_size,
            training=training,
            projected=proj_size > 0,
        )
    )
