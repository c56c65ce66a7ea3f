"""``convert()`` makes a model's torch.nn layers fastrnn's, and ``revert()`` undoes that."""

from __future__ import annotations

import logging
import warnings
from typing import TypeVar

from torch import nn
from torch.nn.utils import parametrize

from fastrnn.nn import GRU, LSTM, GRUCell, LSTMCell

_Module = TypeVar("_Module", bound=nn.Module)
_log = logging.getLogger("fastrnn")

_DROP_INS: dict[type[nn.Module], type[nn.Module]] = {
    kind.torch_class: kind for kind in (LSTM, GRU, LSTMCell, GRUCell)
}
_ORIGINALS = {kind: original for original, kind in _DROP_INS.items()}
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


def convert(model: _Module) -> _Module:
    """Makes every torch.nn.LSTM, GRU, LSTMCell and GRUCell in a model fastrnn's, in place.

    Only the class of each module changes. It stays the same object with the same parameters,
    parametrisations, hooks and training flag, and references to it (from optimisers, lists, shared
    submodules) stay valid. :func:`revert` undoes it.

    Recurrent modules of other classes are left alone, with a warning: a subclass may have its own
    forward method, and torch.nn.RNN has no counterpart here. The logger ``fastrnn`` reports at
    level INFO what was changed.

    Args:
        model: any module; it may itself be one of the four.

    Returns:
        The same model.
    """
    return _exchange(model, _DROP_INS, "convert")


def revert(model: _Module) -> _Module:
    """Undoes :func:`convert`: makes every layer and cell of fastrnn's torch.nn's, in place.

    Use it also before giving a model to a tool that looks for torch.nn's exact classes. See
    :func:`convert` for what is kept, left alone and reported.

    Args:
        model: any module; it may itself be one of the four.

    Returns:
        The same model.
    """
    return _exchange(model, _ORIGINALS, "revert")


def _exchange(
    model: _Module, classes: dict[type[nn.Module], type[nn.Module]], function: str
) -> _Module:
    changed, left = [], []
    for name, module in model.named_modules():
        # A parametrised module has its own class, which extends the module's original class.
        kind = type(module)
        base = kind.__bases__[0] if parametrize.is_parametrized(module) else kind
        where = f"{name or 'the model itself'} ({kind.__qualname__})"
        if base in classes:
            other = classes[base]
            module.__class__ = other if base is kind else _parametrised(kind, other)
            changed.append(where)
        elif isinstance(module, _RECURRENT) and base not in classes.values():
            left.append(where)
    _log.info("fastrnn.%s changed %d modules: %s", function, len(changed), ", ".join(changed))
    if left:
        warnings.warn(
            f"fastrnn.{function} left {', '.join(left)} alone: only torch.nn.LSTM, GRU, LSTMCell "
            "and GRUCell have counterparts, and a subclass may have its own forward method",
            stacklevel=3,
        )
    return model


def _parametrised(kind: type[nn.Module], base: type[nn.Module]) -> type[nn.Module]:
    """A parametrised module's class on top of another base; copies of the module share ``kind``."""
    members = {n: v for n, v in vars(kind).items() if n not in ("__dict__", "__weakref__")}
    members["__deepcopy__"] = kind.__deepcopy__  # type: ignore[attr-defined]  # its own or the base's
    return type(kind.__name__, (base,), members)
