"""How many floating-point operations the ops take, for torch.utils.flop_counter.FlopCounterMode.

As for torch.nn's layers, only matrix products count: two operations for each multiplication.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch

from fastrnn.kernels.contract import CELLS, Cell

_COUNTER = "torch.utils.flop_counter"


def _forward(cell: Cell) -> Any:
    def count(x: Sequence[int], *args: Any, out_shape: Any = None, **_: Any) -> int:
        rows, (w_ih, w_hh) = _rows(x), args[cell.states : cell.states + 2]
        return 2 * rows * (w_ih[0] * w_ih[1] + w_hh[0] * w_hh[1])

    return count


def _backward(cell: Cell) -> Any:
    """Counts the products for the gradients of both weights, of h and, if wanted, of x."""
    n = cell.states

    def count(*args: Any, out_shape: Any = None, **_: Any) -> int:
        x, (w_ih, w_hh) = args[1 + n], args[2 + 2 * n : 4 + 2 * n]
        need_dx = args[2 + 2 * n + 3 + len(cell.saved_widths) + 2]
        products = (2 if need_dx else 1) * w_ih[0] * w_ih[1] + 2 * w_hh[0] * w_hh[1]
        return 2 * _rows(x) * products

    return count


def _rows(x: Sequence[int]) -> int:
    """N of x [N, I] or of a padded batch."""
    return x[0] if len(x) == 2 else x[0] * x[1]


def _register(module: ModuleType) -> None:
    for cell in CELLS.values():
        module.register_flop_formula(getattr(torch.ops.fastrnn, cell.name))(_forward(cell))
        backward = getattr(torch.ops.fastrnn, f"{cell.name}_backward")
        module.register_flop_formula(backward)(_backward(cell))


class _WhenImported(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Registers the formulas once the counter is imported; importing it takes 0.3 s."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _register(module)


def register() -> None:
    """Makes FlopCounterMode count fastrnn's ops."""
    if _COUNTER in sys.modules:
        _register(sys.modules[_COUNTER])
    else:
        sys.meta_path.insert(0, _WhenImported())
