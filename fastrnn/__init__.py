"""fastrnn: torch.nn.LSTM and torch.nn.GRU, faster, by a one-word swap."""

from fastrnn.backends import VERSION as __version__
from fastrnn.backends import backend, backend_info
from fastrnn.nn import GRU, LSTM, GRUCell, LSTMCell, convert

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
