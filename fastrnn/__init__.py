"""fastrnn: torch.nn.LSTM and torch.nn.GRU, faster, by a one-word swap."""

from importlib.metadata import PackageNotFoundError, version

from fastrnn.backends import backend, backend_info
from fastrnn.nn import GRU, LSTM, GRUCell, LSTMCell, convert

try:
    __version__ = version("fastrnn")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "unknown"

__all__ = [
    "GRU",
    "LSTM",
    "GRUCell",
    "LSTMCell",
    "__version__",
    "backend",
    "backend_info",
    "convert",
]
