"""Every kernel module follows kernels/contract.py, in its signatures and in its results."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastrnn import backends
from fastrnn.kernels.contract import CELLS, Cell, KernelModule, PixelLoop

LAYERS = {name: b for name, b in backends.BACKENDS.items() if b.module is not None}
LOOPS = {name: b for name, b in backends.BACKENDS.items() if b.pixel_loop is not None}
RUNS_HERE = [name for name, b in LAYERS.items() if b.load_error() is None]
T, B, I, H = 4, 3, 2, 5  # noqa: E741
LAYOUTS = {"padded": None, "packed": torch.tensor([3, 3, 2, 1])}

each_cell = pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
each_layout = pytest.mark.parametrize("sizes", LAYOUTS.values(), ids=LAYOUTS)
each_backend = pytest.mark.parametrize("name", RUNS_HERE)


def parameters(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """Name, annotation and default of each parameter but self."""
    given = inspect.signature(function).parameters.values()
    return [(p.name, p.annotation, p.default) for p in given if p.name != "self"]


@pytest.mark.parametrize("method", ["forward", "backward"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_kernel_module_has_the_contracts_signatures(name: str, method: str) -> None:
    function = getattr(LAYERS[name].kernels(), method)
    wanted = getattr(KernelModule, method)
    assert parameters(function) == parameters(wanted)
    assert inspect.signature(function).return_annotation == (
        inspect.signature(wanted).return_annotation
    )


@pytest.mark.parametrize("method", ["fits", "run"])
@pytest.mark.parametrize("name", LOOPS)
def test_a_pixel_loop_has_the_contracts_signatures(name: str, method: str) -> None:
    loop = importlib.import_module(f"fastrnn.kernels.{LOOPS[name].pixel_loop}")
    assert parameters(getattr(loop, method)) == parameters(getattr(PixelLoop, method))
    assert set(loop.DTYPES) <= set(LOOPS[name].dtypes or ())


def arguments(cell: Cell, sizes: Tensor | None) -> dict[str, Any]:
    """Of a forward call."""
    torch.manual_seed(0)
    rows = T * B if sizes is None else int(sizes.sum())
    width = cell.gates * H
    return {
        "cell": cell,
        "x": torch.randn(rows, I),
        "states": [torch.randn(B, H) for _ in cell.state_names],
        "weights": [
            torch.randn(width, I), torch.randn(width, H), torch.randn(width), torch.randn(width)
        ],
        "batch_sizes": sizes,
        "reverse": False,
    }  # fmt: skip


def shapes(tensors: Any) -> list[tuple[int, ...]]:
    return [tuple(t.shape) for t in tensors]


@each_cell
@each_layout
@each_backend
def test_results_have_the_contracts_form(name: str, sizes: Tensor | None, cell: Cell) -> None:
    kernels, given = LAYERS[name].kernels(), arguments(cell, sizes)
    copies = {k: torch.cat([t.flatten() for t in given[k]]) for k in ("states", "weights")}
    n, width = len(given["x"]), cell.gates * H
    y, final, saved = kernels.forward(**given, save=True)
    assert shapes([y]) == [(n, H)]
    assert shapes(final) == [(B, H)] * cell.states
    assert shapes(saved) == [(n, k * H) for k in cell.saved_widths]

    plain, last, nothing = kernels.forward(**given, save=False)
    assert shapes(nothing) == [(0,)] * len(cell.saved_widths)
    for a, b in zip((plain, *last), (y, *final), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)

    again = {**given, "weights": given["weights"][:2], "y": y, "saved": saved}
    again["d_final"] = [torch.randn(B, H) for _ in final]
    dx, d_states, d_weights = kernels.backward(**again, dy=None, need_dx=True, need_d_states=True)
    assert shapes([dx]) == [(n, I)]
    assert shapes(d_states) == [(B, H)] * cell.states
    assert shapes(d_weights) == [(width, I), (width, H), *[(width,)] * cell.bias_gradients]

    for need_d_states in (True, False):
        zeros = kernels.backward(
            **again, dy=torch.zeros_like(y), need_dx=False, need_d_states=need_d_states
        )
        assert shapes([zeros[0]]) == [(0,)]
        assert len(zeros[1]) == (cell.states if need_d_states else 0)
        found = (*(d_states if need_d_states else ()), *d_weights)
        torch.testing.assert_close(found, (*zeros[1], *zeros[2]))

    results = [y, *final, *saved, dx, *d_states, *d_weights]
    assert all(isinstance(group, tuple) for group in (final, saved, d_states, d_weights))
    assert all(t.is_contiguous() and t.dtype == torch.float32 for t in results)
    assert len({t.data_ptr() for t in results}) == len(results)
    for key, copy in copies.items():
        assert torch.equal(torch.cat([t.flatten() for t in given[key]]), copy)


@each_cell
@each_layout
@each_backend
def test_every_module_gives_the_references_numbers(
    name: str, sizes: Tensor | None, cell: Cell
) -> None:
    results = []
    for kernels in (LAYERS[name].kernels(), backends.REFERENCE.kernels()):
        given = arguments(cell, sizes)
        y, final, saved = kernels.forward(**given, save=True)
        again = {**given, "weights": given["weights"][:2], "y": y, "saved": saved}
        grads = kernels.backward(
            **again, dy=torch.ones_like(y), d_final=[torch.ones(B, H) for _ in final],
            need_dx=True, need_d_states=True,
        )  # fmt: skip
        results.append([y, *final, *saved, grads[0], *grads[1], *grads[2]])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
