"""lstm() and gru() on plain tensors: sizes that do not fit, threads, processes and memory."""

import os
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn
from fastrnn import functional
from tests import oracle

cells = pytest.mark.parametrize("cell", ["lstm", "gru"])


def arguments(cell: str, hidden: int = 5) -> list[Tensor | None]:
    """x, states, weights, biases and batch_sizes of an op."""
    gates, states = (4, 2) if cell == "lstm" else (3, 1)
    shapes = [(15, 3), *[(3, hidden)] * states, (gates * hidden, 3), (gates * hidden, hidden)]
    return [torch.rand(s) for s in (*shapes, *[(gates * hidden,)] * 2)] + [None]


@cells
def test_plain_tensors(cell: str, backend: str) -> None:
    module = getattr(nn, cell.upper())(3, 5, 2, bidirectional=True)
    x, h = torch.randn(6, 4, 3), torch.randn(4, 4, 5)
    hx: Any = (h, h + 1) if cell == "lstm" else h
    output, *finals = getattr(functional, cell)(
        x, hx, list(module.parameters()), num_layers=2, bidirectional=True
    )
    wanted, last = module(x, hx)
    torch.testing.assert_close(output, wanted)
    torch.testing.assert_close(finals, list(last) if cell == "lstm" else [last])


@cells
def test_an_op_refuses_sizes_that_do_not_fit(cell: str, backend: str) -> None:
    op, name = getattr(torch.ops.fastrnn, cell), backend.partition(":")[0]
    right = arguments(cell)
    op(*right, False, True, name)
    for i, tensor in enumerate(right[:-1]):
        assert tensor is not None
        for wrong in (tensor[:-1], torch.cat([tensor, tensor])):
            given = [*right[:i], wrong, *right[i + 1 :]]
            if i == 0 and len(wrong) % 3 == 0:
                continue  # more steps
            with pytest.raises(RuntimeError, match=f"fastrnn::{cell}"):
                op(*given, False, True, name)


@pytest.mark.parametrize("sizes", [[3] * 4, [3] * 6, [4, 4, 4, 3], [2] * 7 + [1]], ids=str)
@cells
def test_an_op_refuses_batch_sizes_that_do_not_fit(
    cell: str, sizes: list[int], backend: str
) -> None:
    given = [*arguments(cell)[:-1], torch.tensor(sizes)]
    with pytest.raises(RuntimeError, match=f"fastrnn::{cell}"):
        getattr(torch.ops.fastrnn, cell)(*given, False, True, backend.partition(":")[0])


@cells
def test_four_python_threads_at_once(cell: str) -> None:
    case = oracle.Case(cell.upper(), torch.float32, 33, 17, 3, 128, layout="packed")
    wanted = oracle.wanted(case)
    failures: list[Any] = []

    def work() -> None:
        for _ in range(5):
            with fastrnn.backend("cpu"):
                found = oracle.errors(case)
            failures.append(oracle.failures(torch.float32, found))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wanted
    assert failures == [{}] * 20


def python(program: str, **environment: str) -> str:
    """What a Python process of its own prints."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


FORK = """
import os, torch, fastrnn
torch.set_num_threads(2)
layer, x = fastrnn.LSTM(3, 64), torch.randn(50, 40, 3)
with fastrnn.backend("cpu"):
    wanted = layer(x)[0]
    wanted.sum().backward()
    if (child := os.fork()) == 0:
        torch.set_num_threads(1)  # as a DataLoader's workers do
        y = layer(x)[0]
        y.sum().backward()
        os._exit(0 if torch.allclose(y, wanted, atol=1e-6) else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    assert torch.allclose(layer(x)[0], wanted, atol=1e-6)
"""


def test_a_forked_process_computes_the_same() -> None:
    assert python(FORK) == "0"


SHARED_POOL = """
import torch, fastrnn
with fastrnn.backend("cpu"):
    fastrnn.GRU(3, 64)(torch.randn(50, 40, 3))
with open("/proc/self/maps") as maps:
    print(len({line.split()[-1] for line in maps if "libgomp" in line}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_pool_of_threads_is_shared_with_torch() -> None:
    assert python(SHARED_POOL) == "1"


IMPORT = """
import time, torch
start = time.perf_counter()
import fastrnn
print(time.perf_counter() - start)
"""


def test_the_import_adds_little_to_that_of_torch() -> None:
    assert min(float(python(IMPORT)) for _ in range(3)) < 0.3  # seconds
