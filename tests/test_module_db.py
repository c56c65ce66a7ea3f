"""torch's own sample inputs and error inputs for the four modules, compared with torch.nn."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.testing._internal.common_modules import ModuleInfo, module_db
from torch.utils import _pytree as pytree

import fastrnn
from tests import peers

pytestmark = pytest.mark.usefixtures("one_thread", "both_libraries")

INFOS = [
    info for info in module_db if info.module_cls in (nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell)
]


def _id(info: Any) -> str:
    return info.formatted_name


def _samples(info: ModuleInfo, dtype: torch.dtype, training: bool) -> Iterator[Any]:
    torch.manual_seed(0)
    arguments = {"device": "cpu", "dtype": dtype, "requires_grad": True, "training": training}
    yield from info.module_inputs_func(info, **arguments)


def _results(module: nn.Module, given: Any) -> list[Tensor]:
    """All outputs, and the gradients of all inputs and parameters."""
    args, kwargs = copy.deepcopy((given.args, given.kwargs))
    outputs = pytree.tree_leaves(_opened(module(*args, **kwargs)))
    inputs = [t for t in pytree.tree_leaves(_opened((args, kwargs))) if isinstance(t, Tensor)]
    leaves = [t for t in (*inputs, *module.parameters()) if t.requires_grad]
    loss = torch.stack([t.sin().sum() for t in outputs]).sum()
    return [*outputs, *torch.autograd.grad(loss, leaves)]


def _opened(value: Any) -> Any:
    return pytree.tree_map(
        lambda v: v.data if isinstance(v, PackedSequence) else v,
        value,
        is_leaf=lambda v: isinstance(v, PackedSequence),
    )


def test_torch_has_inputs_for_all_four() -> None:
    assert {info.module_cls for info in INFOS} == {nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("forced", [None, "cpu", "reference"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("info", INFOS, ids=_id)
def test_sample_inputs(
    info: ModuleInfo, dtype: torch.dtype, training: bool, forced: str | None
) -> None:
    seen = 0
    for sample in _samples(info, dtype, training):
        made = sample.constructor_input
        wanted = info.module_cls(*made.args, **made.kwargs, dtype=dtype).train(training)
        ours = getattr(peers.library, info.module_cls.__name__)
        found = ours(*made.args, **made.kwargs, dtype=dtype).train(training)
        found.load_state_dict(wanted.state_dict())
        if forced is None:
            choice: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        else:
            choice = fastrnn.backend(forced)
        with choice:
            results = _results(found, sample.forward_input)
        torch.testing.assert_close(results, _results(wanted, sample.forward_input))
        seen += 1
    assert seen


def _raised(module_class: type[nn.Module], error: Any) -> tuple[type[BaseException], str]:
    given = error.module_error_input
    made, forward = given.constructor_input, given.forward_input
    with pytest.raises(error.error_type, match=error.error_regex) as raised:  # noqa: PT012
        module = module_class(*made.args, **made.kwargs)
        module(*forward.args, **forward.kwargs)
    return raised.type, str(raised.value)


@pytest.mark.parametrize("info", [info for info in INFOS if info.module_error_inputs_func], ids=_id)
def test_error_inputs(info: ModuleInfo) -> None:
    errors = info.module_error_inputs_func(
        info, device="cpu", dtype=torch.float32, requires_grad=False, training=False
    )
    ours = getattr(peers.library, info.module_cls.__name__)
    assert errors
    for error in errors:
        assert _raised(ours, error) == _raised(info.module_cls, error)
