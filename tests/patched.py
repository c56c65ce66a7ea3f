"""torch.nn's four modules, made to run each of their calls under fastrnn.patch_torch()."""

from typing import Any

from torch import nn

import fastrnn


class _Patched(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with fastrnn.patch_torch():
            return super().forward(*args, **kwargs)


class LSTM(_Patched, nn.LSTM):
    pass


class GRU(_Patched, nn.GRU):
    pass


class LSTMCell(_Patched, nn.LSTMCell):
    pass


class GRUCell(_Patched, nn.GRUCell):
    pass
