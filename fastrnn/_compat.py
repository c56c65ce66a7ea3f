"""Every private name of torch that fastrnn uses, with the reason and what replaces it.

torch promises nothing about these names. ``tests/test_compat.py`` checks each one against the torch
that is installed and checks that no other module uses a private name; CI runs the layer's tests
with the oldest supported torch as well as the newest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

_Function = TypeVar("_Function", bound=Callable[..., object])

# Attributes of torch.nn.RNNBase that fastrnn.nn reads or overrides, so that parameters, flattening
# and parametrisations behave exactly as in torch.nn. If one goes: collect the weights by name
# ("weight_ih_l0", ...), as RNNBase.all_weights does.
RNN_BASE_NAMES = (
    "_flat_weights",  # the weights in the order that functional.lstm takes
    "_flat_weights_names",
    "_flat_weight_refs",  # weak references to the parameters behind _flat_weights
    "_update_flat_weights",  # refreshes _flat_weights after a parameter was replaced
    "_weights_have_changed",  # overridden: torch's version is slow for a small call
)


def is_transformed(tensors: Sequence[Tensor]) -> bool:
    """Whether a functorch transform or forward-mode differentiation follows one of the tensors.

    functorch has no public test for its tensors. If is_functorch_wrapped_tensor goes: register a
    vmap rule for the ops instead. The public forward_ad.unpack_dual costs microseconds per tensor,
    so forward_ad._current_level is read first: it is negative outside of forward mode. If that
    goes: call unpack_dual on every tensor.
    """
    if any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in tensors):
        return True
    level = forward_ad._current_level
    return level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def constant_in_graphs(function: _Function) -> _Function:
    """Makes torch.compile evaluate a function while it traces, and keep the result.

    The public torch.compiler.assume_constant_result does the same, but it imports Dynamo, which
    takes a second. If _dynamo_marked_constant goes: use the public function.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_in_graphs
def multiplies_bfloat16_in_pairs() -> bool:
    """Whether this processor has AVX512-BF16; False where torch cannot say.

    torch has no public test. If _is_avx512_bf16_supported goes: read the flags in /proc/cpuinfo.
    """
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return supported is not None and supported()


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """A module's own parameters by name; those that are parametrised or pruned are not among them.

    Module.__getattr__ costs as much per weight as a small step, so Module._parameters is read
    instead. If that goes: use getattr.
    """
    return module._parameters
