"""fastrnn: torch.nn.LSTM and torch.nn.GRU, faster, by a one-word swap."""

from fastrnn import _signals as _signals  # first, because the imports below take seconds
from fastrnn import measured as _measured
from fastrnn.backends import backend, empty_cache, fastrnn_version
from fastrnn.conversion import convert, revert
from fastrnn.freezing import freeze, thaw
from fastrnn.info import backend_info
from fastrnn.nn import GRU, LSTM, GRUCell, LSTMCell
from fastrnn.patching import patch_torch, unpatch_torch

__all__ = [
    "GRU",
    "LSTM",
    "GRUCell",
    "LSTMCell",
    "__version__",
    "backend",
    "backend_info",
    "convert",
    "empty_cache",
    "freeze",
    "patch_torch",
    "revert",
    "thaw",
    "unpatch_torch",
]


def _measure(call: _measured.Call, table: _measured.Table) -> None:
    from fastrnn import measuring  # rarely needed

    measuring.measure(call, table)


_measured.measure_class = _measure


def __getattr__(name: str) -> str:
    if name == "__version__":  # read on demand: it takes longer than anything else here
        return fastrnn_version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
