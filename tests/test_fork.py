"""A process that has used threads forks, and the child computes the same and ends."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")

PROGRAM = """
import os, sys, torch, fastrnn

kind, threads, again, backend = sys.argv[1:]

def run(module, x):
    x = x.clone().requires_grad_()
    state, y = None, x
    if kind.endswith("Cell"):
        for row in x:
            state = module(row, state)
        results = state if isinstance(state, tuple) else (state,)
    else:
        y, state = module(x)
        results = [y, *(state if isinstance(state, tuple) else (state,))]
    value = torch.stack([t.square().sum() for t in results]).sum()
    return [*results, *torch.autograd.grad(value, [x, *module.parameters()])]

def same(found, wanted):
    return all(torch.allclose(a, b, atol=1e-4, rtol=1e-4) for a, b in zip(found, wanted))

def forked(work):
    if (child := os.fork()) == 0:
        os._exit(0 if work() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

torch.manual_seed(0)
torch.set_num_threads(2)
module, x = getattr(fastrnn, kind)(8, 64), torch.randn(20, 16, 8)
choice = fastrnn.backend(backend) if backend else torch.enable_grad()
with choice:
    wanted = run(module, x)

    def child():
        if int(threads):
            torch.set_num_threads(int(threads))
        right = all(same(run(module, x), wanted) for _ in range(2))
        return right and (not int(again) or forked(lambda: same(run(module, x), wanted)) == 0)

    print([forked(child) for _ in range(2)], same(run(module, x), wanted))
"""


@pytest.mark.parametrize("backend", ["", "cpu"], ids=["chosen", "cpu"])
@pytest.mark.parametrize(
    ("threads", "again"),
    [(0, 0), (1, 1), (2, 0)],
    ids=["threads as before", "one thread, forks again", "two threads"],
)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_child_computes_the_same_and_ends(
    kind: str, threads: int, again: int, backend: str
) -> None:
    assert children(kind, threads, again, backend) == "[0, 0] True"


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell"])
def test_a_child_steps_through_cells(kind: str) -> None:
    assert children(kind, 1, 0, "") == "[0, 0] True"


def children(*arguments: object) -> str:
    """What the program prints; the time limit ends a child that hangs together with it."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
