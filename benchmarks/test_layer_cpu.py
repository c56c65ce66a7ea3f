"""pytest-benchmark cases of the layers on CPU: ``pytest benchmarks``.

They follow one peer over time (``--benchmark-autosave``, ``--benchmark-compare``). To compare peers
with each other, use :mod:`benchmarks.compare`, which runs them in turn.
"""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from .cases import LAYERS, MODES, Case, expand
from .clocks import HostClock
from .measure import PEERS, build

CASES = [
    *expand(cells=LAYERS, modes=MODES, batches=[200], shapes=[(784, 1)], hiddens=[32, 128]),
    *expand(cells=LAYERS, modes=MODES, batches=[1], shapes=[(784, 1)], hiddens=[32]),
    *expand(cells=LAYERS, modes=MODES, batches=[32], shapes=[(28, 28)], hiddens=[256]),
]


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key.replace(" ", "-"))
def test_layer(benchmark: BenchmarkFixture, case: Case, peer: str) -> None:
    benchmark.group = case.key
    benchmark(build(case, peer).call, HostClock())
