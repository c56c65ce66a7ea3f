"""Fixtures that several test modules share."""

from collections.abc import Iterator

import pytest
import torch

from tests import oracle


@pytest.fixture
def poison() -> Iterator[None]:
    """New memory holds NaN, so that an element which a kernel does not write shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For many small operations: threads that wait for each other cost more than they save."""
    with oracle.threads(1):
        yield


@pytest.fixture(params=oracle.backends())
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Forces each CPU backend in turn, the native one at each instruction set."""
    with oracle.forced(request.param):
        yield request.param
