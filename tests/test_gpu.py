"""The kernels on a GPU: their numbers, graphs, streams and devices, and large offsets."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fastrnn.kernels.contract import GRU
from tests.test_triton import (
    HALF,
    TOLERANCE,
    TRITON,
    WHOLE,
    Case,
    cases,
    compare,
    failures,
    kernels,
    named,
    non_finite,
    opcheck,
    pixel_loops,
)


def gpu_cases() -> Iterator[Case]:
    """The interpreter's cases, and real sizes, which only a GPU runs in reasonable time."""
    yield from cases()
    for cell in ("lstm", "gru"):
        for dtype in TOLERANCE:
            for hidden in (1, 5, 31, 32, 64, 257) if dtype == WHOLE else (5, 32, 100, 128, 257):
                for batch in (1, 3, 17, 200):
                    for packed in (False, True):
                        yield Case(cell, dtype, 33, batch, 3, hidden, packed, reverse=batch == 3)
                if hidden <= 128:
                    yield Case(cell, dtype, 784, 500, 1, hidden)
                yield Case(cell, dtype, 28, 64, 28, hidden, reverse=True)
                yield Case(cell, dtype, 1, 17, 28, hidden)
            for batch in (1, 4, 64, 200):
                yield Case(cell, dtype, 128, batch, 512, 512, packed=batch == 64)


GPU = torch.cuda.is_available()
each_library = pytest.mark.parametrize("module", [TRITON, "cuda"])

if GPU:  # not collected elsewhere
    # Without it, torch warns under poisoned() at each product that cuBLAS may not be deterministic.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

    @pytest.fixture(autouse=True)
    def exact_float32() -> Iterator[None]:
        """Without TF32, as torch's switch for recurrent layers says."""
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield

    @pytest.mark.gpu
    @each_library
    def test_tf32_is_used_if_torch_allows_it_and_is_near_enough(module: str) -> None:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
            # At a size that Triton multiplies on tensor cores; a smaller layer's sums are exact.
            errors = compare(Case("lstm", WHOLE, 28, 64, 28, 257), "cuda", module)
        assert 1e-6 < errors["y"] < 1e-3
        assert max(errors.values()) < 3e-3

    @pytest.mark.gpu
    @each_library
    @pytest.mark.parametrize("case", list(gpu_cases()), ids=named)
    def test_gpu_results_and_gradients_are_those_of_torch_nn_in_float64(
        case: Case, module: str
    ) -> None:
        assert not failures(case, compare(case, "cuda", module))

    @pytest.mark.gpu
    @each_library
    def test_gpu_nan_and_inf_stay_in_their_sequence(module: str) -> None:
        assert all(non_finite("cuda", module).values())

    @pytest.mark.gpu
    def test_gpu_pixels_are_those_of_eager_steps() -> None:
        assert all(pixel_loops("cuda").values())

    @pytest.mark.gpu
    @pytest.mark.parametrize("backend", ["triton", "cuda"])
    def test_gpu_ops_pass_opcheck(backend: str) -> None:
        assert opcheck("cuda", backend)

    def layer(batch: int, steps: int, hidden: int = 32) -> tuple[Tensor, ...]:
        x, h = torch.randn(steps * batch, 1), torch.randn(batch, hidden)
        weights = [torch.randn(3 * hidden, n) / hidden for n in (1, hidden)]
        return tuple(t.cuda() for t in (x, h, *weights))

    def run(module: str, x: Tensor, h: Tensor, *weights: Tensor) -> Tensor:
        return kernels(module).forward(GRU, x, (h,), (*weights, None, None), None, False, False)[0]

    @pytest.mark.gpu
    @pytest.mark.parametrize("persistent", [True, False])
    def test_steps_in_one_launch_and_in_many_give_the_same(
        persistent: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from fastrnn.kernels.triton import launch, plans

        def choose(*sizes: Any) -> plans.StepPlan:
            return dataclasses.replace(plans.choose_step_plan(*sizes), persistent=persistent)

        monkeypatch.setattr(launch, "choose_step_plan", choose)
        for cell in ("lstm", "gru"):
            for case in (Case(cell, WHOLE, 200, 64, 1, 257), Case(cell, HALF, 200, 30, 40, 512)):
                assert not failures(case, compare(case, "cuda"))

    @pytest.mark.gpu
    @each_library
    @pytest.mark.parametrize("hidden", [32, 256, 2048])
    def test_a_graph_replays_on_another_stream_with_new_input(hidden: int, module: str) -> None:
        given = layer(64, 20, hidden)
        run(module, *given)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = run(module, *given)
        given[0].normal_()
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            graph.replay()
            torch.cuda.current_stream().synchronize()
        assert torch.equal(y, run(module, *given))

    @pytest.mark.gpu
    @each_library
    def test_the_last_device_works_while_the_first_is_current(module: str) -> None:
        last = torch.device("cuda", torch.cuda.device_count() - 1)
        given = [t.to(last) for t in layer(3, 5)]
        with torch.cuda.device(0):
            y = run(module, *given)
        assert y.device == last
        assert y.isfinite().all()

    @pytest.mark.gpu
    def test_new_steps_and_batches_compile_nothing() -> None:
        from fastrnn.kernels.triton.sequence import forward_kernel

        def compiled() -> int:
            return sum(len(cache[0]) for cache in forward_kernel.device_caches.values())

        run(TRITON, *layer(3, 5))
        before = compiled()
        for batch, steps in ((1, 1), (16, 16), (17, 784), (128, 2)):
            run(TRITON, *layer(batch, steps))
        assert compiled() == before

    @pytest.mark.gpu
    @each_library
    def test_rows_past_two_to_the_31st_element_are_right(module: str) -> None:
        hidden, batch, steps = 128, 1000, 17_000
        if torch.cuda.mem_get_info()[0] < 8 << 30:
            pytest.skip("needs 8 GB of GPU memory")
        x, h, *weights = (t.half() for t in layer(batch, 1, hidden))
        x = torch.randn(steps * batch, 1, device="cuda", dtype=torch.half)
        y = run(module, x, h, *weights)
        assert y.numel() > 1 << 31
        start = y[-4 * batch : -3 * batch].contiguous()
        tail = run(module, x[-3 * batch :], start, *weights)
        torch.testing.assert_close(y[-3 * batch :], tail, rtol=0, atol=5e-3)
