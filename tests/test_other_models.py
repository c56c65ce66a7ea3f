"""Models of other packages under patch_torch(): the same numbers, from our kernels.

These are the packages of benchmarks.other_models that install in seconds and whose calls are ours.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastrnn
from benchmarks import other_models
from fastrnn import functional
from fastrnn.examples import TOLERANCES

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=["openunmix", "sb3-contrib"])
def subject(request: pytest.FixtureRequest) -> other_models.Subject:
    torch.manual_seed(0)
    return other_models.MODELS[request.param]()


@pytest.mark.parametrize("name", other_models.RUNS)
def test_numbers_are_the_same_and_from_our_kernel(
    subject: other_models.Subject, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of two results may be off by the tolerance."""
    run, _ = other_models.RUNS[name]
    subject.model.train(name == "training")
    tolerance = 2 * TOLERANCES["float32"][name == "training"]
    assert other_models.difference(subject, run) <= tolerance
    kernel, calls = functional.run_stack, []

    def counted(*args: Any) -> Any:
        calls.append(torch.is_grad_enabled())
        return kernel(*args)

    monkeypatch.setattr(functional, "run_stack", counted)
    with fastrnn.backend("cpu"):  # an error if this backend cannot run a call
        assert other_models.difference(subject, run) <= tolerance
    assert calls
    assert set(calls) == {name == "training"}
