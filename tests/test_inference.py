"""Inference in one op: the numbers and strides of torch.nn, what it declines, and no leaks."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import fastrnn
from fastrnn import backends, inference
from fastrnn.kernels import stack
from tests import oracle, peers
from tests.peers import Setup

pytestmark = pytest.mark.usefixtures("one_thread")

SETUPS = [
    *(setup for steps in (1, 4) for setup in peers.layers(steps=steps)),
    *(Setup(name, layout="unbatched") for name in peers.LAYERS),
    *peers.cells(),
]
DTYPES = list(oracle.TOLERANCES)


class Watch(threading.local):
    """How many calls ran in one op."""

    ran = 0


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    seen = Watch()
    function = inference.run

    def counted(*args: Any) -> Any:
        results = function(*args)
        seen.ran += results is not None
        return results

    monkeypatch.setattr(inference, "run", counted)
    inference.forget_choices()
    yield seen
    inference.forget_choices()


def test_the_ops_are_there() -> None:
    assert inference.load_error() is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("setup", SETUPS, ids=str)
def test_numbers_and_strides(setup: Setup, dtype: torch.dtype, watch: Watch) -> None:
    ours, theirs = setup.pair()
    twin = setup.pair()[1].to(dtype)
    leaves = [t.detach().to(dtype) for t in setup.leaves()]
    exact = theirs.to(dtype).double()
    with torch.inference_mode():
        for given in (leaves, leaves[:1]):
            found = setup.call(ours.to(dtype), *given)
            wanted = setup.call(exact, *(t.double() for t in given))
            likes = setup.call(twin, *given)
            tolerance = oracle.TOLERANCES[dtype][0]
            for a, b, like in zip(found, wanted, likes, strict=True):
                assert a.dtype == dtype
                assert a.stride() == like.stride()
                assert (a.double() - b).norm() <= 2 * tolerance * max(b.norm(), 1.0)
    assert watch.ran == 2


@pytest.mark.parametrize("setup", [SETUPS[3], SETUPS[8], SETUPS[-4], SETUPS[-1]], ids=str)
def test_strided_and_expanded_arguments(setup: Setup, watch: Watch) -> None:
    ours, theirs = setup.pair()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.set_(parameter.detach().repeat(2, *[1] * (parameter.dim() - 1))[::2])
        theirs.load_state_dict(ours.state_dict())
        leaves = [
            torch.stack([t.detach(), t.detach()], -1)[..., 0] if i else t.detach()[:1].expand_as(t)
            for i, t in enumerate(setup.leaves())
        ]
        torch.testing.assert_close(setup.call(ours, *leaves), setup.call(theirs, *leaves))
    assert watch.ran == 1


def wrong_calls() -> dict[str, tuple[Any, ...]]:
    """Arguments of the ops that do not fit."""
    module = fastrnn.LSTM(4, 5)
    x, h = torch.randn(3, 2, 4), torch.zeros(1, 2, 5)
    w: list[Tensor] = [p.detach() for p in module.parameters()]
    good = stack.options(False, True, False, False, 1)
    half = [t.half() for t in w]
    return {
        "one state": (x, [h], w, good),
        "three states": (x, [h, h, h], w, good),
        "no states": (x, [], w, good),
        "state of another batch": (x, [h, torch.zeros(1, 3, 5)], w, good),
        "state of another dtype": (x, [h, h.double()], w, good),
        "state of a cell": (x, [h[0], h[0]], w, good),
        "a cell with states of a layer": (x[0], [h, h], w, good),
        "a missing bias": (x, [h, h], w[:3], good),
        "weights of two layers": (x, [h, h], w, stack.options(False, True, False, False, 2)),
        "weights without biases": (x, [h, h], w, stack.options(False, False, False, False, 1)),
        "another cell": (x, [h], w, stack.options(True, True, False, False, 1)),
        "no layers": (x, [h, h], w, stack.options(False, True, False, False, 0)),
        "a negative number of layers": (x, [h, h], w, -16),
        "a wide input": (torch.randn(3, 2, 7), [h, h], w, good),
        "an empty input": (x[:0], [h, h], w, good),
        "an empty batch": (x[:, :0], [h[:, :0], h[:, :0]], w, good),
        "a vector": (x[0, 0], [h, h], w, good),
        "four axes": (x[None], [h, h], w, good),
        "16 bits": (x.half(), [h.half(), h.half()], half, good),
        "integers": (x.long(), [h, h], w, good),
        "complex numbers": (x.to(torch.complex64), [h, h], w, good),
        "a sparse input": (x.to_sparse(), [h, h], w, good),
        "a freed input": (_freed(x.clone()), [h, h], w, good),
    }


def _freed(tensor: Tensor) -> Tensor:
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.mark.parametrize("what", wrong_calls())
def test_a_call_that_does_not_fit_is_declined(what: str) -> None:
    assert torch.ops.fastrnn.stack.default(*wrong_calls()[what]) == []


@pytest.mark.parametrize(
    "sizes",
    [[2, 2, 1], [1, 2, 3], [3, 3], [3, 0, 3], [-1, 7], [6], [1 << 62, 6 - (1 << 62)], []],
    ids=str,
)
def test_batch_sizes_that_do_not_fit_are_declined(sizes: list[int]) -> None:
    _, [h, _], w, options = wrong_calls()["state of another batch"]
    given = torch.tensor(sizes, dtype=torch.int64)
    op = torch.ops.fastrnn.packed_stack.default
    assert op(torch.randn(6, 4), given, [h, h], w, options) == []
    assert op(torch.randn(6, 4), torch.tensor([2, 2, 2]).int(), [h, h], w, options) == []
    assert len(op(torch.randn(6, 4), torch.tensor([2, 2, 2]), [h, h], w, options)) == 3


@pytest.mark.parametrize("setup", [SETUPS[1], SETUPS[6], SETUPS[-4]], ids=str)
def test_calls_that_need_more_are_left_to_others(setup: Setup, watch: Watch) -> None:
    module, _ = setup.pair()
    leaves = setup.leaves()
    setup.call(module, *leaves)
    with torch.no_grad():
        for context in (torch.autocast("cpu", torch.bfloat16), fastrnn.backend("torch")):
            with context:
                setup.call(module, *leaves)
        torch.func.vmap(lambda x: setup.call(module, x)[0])(torch.stack([leaves[0]] * 2))
        assert watch.ran == 0
        setup.call(module, *leaves)
    assert watch.ran == 1


@pytest.mark.parametrize("setup", [SETUPS[3], SETUPS[-1]], ids=str)
def test_nothing_is_kept_of_a_call(setup: Setup) -> None:
    module, _ = setup.pair()

    def call() -> list[weakref.ref[Tensor]]:
        leaves = [t.detach().clone() for t in setup.leaves()]
        results = setup.call(module, *leaves)
        assert [t._version for t in results] == [0] * len(results)
        return [weakref.ref(t) for t in (*leaves, *results)]

    with torch.inference_mode(False), torch.no_grad():
        seen = call()
    gc.collect()
    assert not any(ref() is not None for ref in seen)


def test_threads_may_call_at_once() -> None:
    module, _ = peers.pair("GRU", 4, 5, 2, bidirectional=True)
    inputs = [torch.randn(3 + i, 2, 4) for i in range(4)]
    with torch.no_grad():
        wanted = [module(x)[0] for x in inputs]
    failures: list[int] = []

    def work(index: int) -> None:
        with torch.no_grad():
            results = [module(inputs[index])[0] for _ in range(200)]
        failures.extend(index for y in results if not torch.equal(y, wanted[index]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_layers_run_one_by_one_without_the_library() -> None:
    code = (
        "import torch, fastrnn; from fastrnn import inference\n"
        "torch.manual_seed(0); m = fastrnn.GRU(4, 5, 2); x = torch.ones(3, 2, 4)\n"
        "with torch.no_grad(): print(m(x)[0].double().sum().item())\n"
        "print(inference.load_error())"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **extra},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.splitlines()
        for extra in ({}, {"FASTRNN_STACK": "0"})
    ]
    assert float(found[0][0]) == pytest.approx(float(found[1][0]), rel=1e-6)
    assert found[0][1] == "None"
    assert "FASTRNN_STACK" in found[1][1]


def test_a_choice_is_made_once_and_anew_when_it_is_forgotten(
    monkeypatch: pytest.MonkeyPatch, watch: Watch
) -> None:
    asked: list[Any] = []
    answer = False

    def runs_in_one_op(call: Any) -> bool:
        asked.append(call)
        return answer

    monkeypatch.setattr(backends, "runs_in_one_op", runs_in_one_op)
    module, x = fastrnn.GRU(4, 5), torch.randn(3, 2, 4)
    with torch.no_grad():
        wanted = [module(x)[0] for _ in range(2)]
        assert (len(asked), watch.ran) == (1, 0)
        answer = True
        module(x)
        assert (len(asked), watch.ran) == (1, 0)
        inference.forget_choices()
        found = [module(x)[0] for _ in range(2)]
    assert (len(asked), watch.ran) == (2, 2)
    torch.testing.assert_close(found, wanted)
    assert asked[0] == asked[1]
    assert asked[0][:8] == ("GRU", "cpu", torch.float32, 3, 2, 4, 5, False)
