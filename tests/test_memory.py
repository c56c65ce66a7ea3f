"""The pool of large CPU tensors: memory is used again, never shared, and never hoarded."""

import gc
import threading

import pytest
import torch
from torch import Tensor

from fastrnn.kernels import cpu_pool

MIB = 1 << 20


@pytest.fixture
def pool() -> cpu_pool.Pool:
    return cpu_pool.Pool()


def test_a_released_block_is_used_again(pool: cpu_pool.Pool) -> None:
    first = pool.empty((4 * MIB,), torch.uint8)
    address = first.data_ptr()
    del first
    assert pool.empty((4 * MIB,), torch.uint8).data_ptr() == address


def test_live_tensors_never_share_memory(pool: cpu_pool.Pool) -> None:
    tensors = [pool.empty((3, MIB), torch.float32).fill_(value) for value in range(4)]
    for value, tensor in enumerate(tensors):
        assert tensor.eq(value).all()


def test_a_view_keeps_its_block(pool: cpu_pool.Pool) -> None:
    row = pool.empty((2, 2 * MIB), torch.uint8).fill_(7)[1]
    gc.collect()
    pool.empty((2, 2 * MIB), torch.uint8).zero_()
    assert row.eq(7).all()


def test_the_pool_maps_little_more_than_was_in_use_at_once(pool: cpu_pool.Pool) -> None:
    for mebibytes in (8, 2, 16, 4, 32, 6, 64):
        pool.empty((mebibytes * MIB,), torch.uint8)
        mapped = pool._used_bytes + sum(map(len, pool._free))
        assert mapped <= 1.25 * pool._peak_bytes
    assert pool._peak_bytes == 64 * MIB


def test_the_pool_keeps_a_bounded_amount(
    pool: cpu_pool.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_pool, "_MOST_FREE", 8 * MIB)
    tensors = [pool.empty((4 * MIB,), torch.uint8) for _ in range(4)]
    del tensors
    assert sum(map(len, pool._free)) == 8 * MIB


def test_a_block_is_not_wasted_on_a_much_smaller_tensor(pool: cpu_pool.Pool) -> None:
    large = pool.empty((64 * MIB,), torch.uint8)
    del large
    pool.empty((2 * MIB,), torch.uint8)
    assert max(map(len, pool._free)) == 64 * MIB


def test_shape_dtype_and_storage_are_those_of_torch_empty() -> None:
    like = torch.empty(0, dtype=torch.bfloat16)
    tensor = cpu_pool.empty((1024, 1024), like)
    assert tensor.shape == (1024, 1024)
    assert tensor.dtype == torch.bfloat16
    assert tensor.is_contiguous()
    assert tensor.storage_offset() == 0


@pytest.mark.parametrize("size", [1024, 4 * MIB])
def test_deterministic_mode_fills_new_tensors(size: int) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        assert cpu_pool.empty((size,), torch.empty(0)).isnan().all()
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_environment_switches_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTRNN_CPU_POOL", "0")
    assert cpu_pool.empty((4 * MIB,), torch.empty(0)).untyped_storage().resizable()


def test_threads_share_one_pool(pool: cpu_pool.Pool) -> None:
    wrong: list[Tensor] = []

    def work(value: int) -> None:
        for _ in range(50):
            tensor = pool.empty((2 * MIB,), torch.uint8).fill_(value)
            if not tensor.eq(value).all():
                wrong.append(tensor)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert pool._used_bytes == 0
