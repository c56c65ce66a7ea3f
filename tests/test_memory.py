"""The pool of large CPU tensors: memory is used again, never shared, and given back."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastrnn
from fastrnn import _compat
from fastrnn.kernels import cpu_pool
from tests import peers

pytestmark = pytest.mark.usefixtures("one_thread")

MIB = 1 << 20


@pytest.fixture
def pool() -> cpu_pool.Pool:
    """A pool of at most 64 MiB."""
    return cpu_pool.Pool(_compat.storage_users, 64 * MIB)


def block(pool: cpu_pool.Pool, mebibytes: int) -> Tensor:
    return pool.empty((mebibytes * MIB,), torch.uint8)


# ---- a block is used again when nothing uses it, and not before


def test_a_released_block_is_used_again(pool: cpu_pool.Pool) -> None:
    first = block(pool, 4)
    address = first.data_ptr()
    del first
    assert block(pool, 4).data_ptr() == address
    assert pool.bytes == 4 * MIB


def test_a_somewhat_smaller_tensor_uses_a_block_again(pool: cpu_pool.Pool) -> None:
    first = block(pool, 4)
    address = first.data_ptr()
    del first
    second = block(pool, 3)
    assert second.data_ptr() == address
    assert second.shape == (3 * MIB,)


def test_the_smallest_block_that_fits_is_used(pool: cpu_pool.Pool) -> None:
    tensors = [block(pool, size) for size in (8, 5, 6)]
    address = tensors[1].data_ptr()
    del tensors
    assert block(pool, 5).data_ptr() == address


def test_a_block_is_not_wasted_on_a_much_smaller_tensor(pool: cpu_pool.Pool) -> None:
    large = block(pool, 32)
    address = large.data_ptr()
    del large
    assert block(pool, 2).data_ptr() != address


def test_live_tensors_never_share_memory(pool: cpu_pool.Pool) -> None:
    tensors = [pool.empty((3, MIB), torch.float32).fill_(value) for value in range(4)]
    for value, tensor in enumerate(tensors):
        assert tensor.eq(value).all()


KEEPERS: dict[str, Callable[[Tensor], Any]] = {
    "a row": lambda t: t[1],
    "a view": lambda t: t.view(-1)[5:7],
    "a transposed view": Tensor.t,
    "a detached tensor": Tensor.detach,
    "its data": lambda t: t.data,
    "an alias": torch.ops.aten.alias.default,
    "its storage": Tensor.untyped_storage,
    "a numpy array": Tensor.numpy,
    "a numpy row": lambda t: t[0].numpy()[3:],
    "a buffer": lambda t: memoryview(t.numpy()),  # type: ignore[arg-type]
    "DLPack": Tensor.__dlpack__,
    "a tensor by DLPack": torch.utils.dlpack.from_dlpack,
    "a tensor set to it": lambda t: torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage()),
    "another dtype": lambda t: t.view(torch.float32),
    "a parameter": lambda t: torch.nn.Parameter(t.view(torch.float32)),
    "a state dict": lambda t: {"weight": t[:1]},
    "a graph": lambda t: (t.view(torch.float32) * torch.ones(1, requires_grad=True)).grad_fn,
}


@pytest.mark.parametrize("keeper", KEEPERS)
def test_whatever_keeps_the_memory_keeps_the_block(pool: cpu_pool.Pool, keeper: str) -> None:
    tensor = pool.empty((2, 2 * MIB), torch.uint8).fill_(0)
    address = tensor.data_ptr()
    kept = KEEPERS[keeper](tensor)
    del tensor
    gc.collect()
    others = [pool.empty((2, 2 * MIB), torch.uint8) for _ in range(3)]
    assert address not in [other.data_ptr() for other in others]
    del others, kept
    gc.collect()
    assert address in [t.data_ptr() for t in [block(pool, 4) for _ in range(4)]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_shape_and_dtype(pool: cpu_pool.Pool, dtype: torch.dtype) -> None:
    for _ in range(2):  # the second time from memory that was used
        tensor = pool.empty((512, 3, 512), dtype)
        assert tensor.shape == (512, 3, 512)
        assert tensor.dtype == dtype
        assert tensor.is_contiguous()
        assert tensor.storage_offset() == 0
        del tensor


# ---- how much the pool holds


def test_the_pool_holds_a_bounded_amount(pool: cpu_pool.Pool) -> None:
    tensors = [block(pool, 24) for _ in range(4)]
    assert pool.bytes == 48 * MIB
    assert len({t.data_ptr() for t in tensors}) == 4  # the others are torch's own
    del tensors
    assert pool.bytes == 48 * MIB


def test_a_tensor_beyond_the_bound_is_torchs_own(pool: cpu_pool.Pool) -> None:
    assert block(pool, 65).shape == (65 * MIB,)
    assert pool.bytes == 0


def test_blocks_that_no_longer_fit_make_room(pool: cpu_pool.Pool) -> None:
    small = [block(pool, 8) for _ in range(8)]
    del small
    large = block(pool, 48)
    assert pool.bytes <= 64 * MIB
    address = large.data_ptr()
    del large
    assert block(pool, 48).data_ptr() == address


def test_blocks_in_use_are_never_given_up_for_room(pool: cpu_pool.Pool) -> None:
    kept = [block(pool, 16).fill_(value) for value in range(4)]
    block(pool, 48).fill_(99)
    assert all(t.eq(value).all() for value, t in enumerate(kept))


def test_an_idle_block_is_given_back_after_256_requests(pool: cpu_pool.Pool) -> None:
    block(pool, 32)
    for _ in range(255):
        block(pool, 2)
    assert pool.bytes == 34 * MIB
    for _ in range(2):
        block(pool, 2)
    assert pool.bytes == 2 * MIB


def test_a_block_in_use_is_kept_however_long(pool: cpu_pool.Pool) -> None:
    kept = block(pool, 8).fill_(7)
    for _ in range(300):
        block(pool, 2)
    assert pool.bytes == 10 * MIB
    assert kept.eq(7).all()


def test_clear_gives_back_what_is_free(pool: cpu_pool.Pool) -> None:
    kept = block(pool, 4).fill_(3)
    block(pool, 8)
    pool.clear()
    assert pool.bytes == 4 * MIB
    assert kept.eq(3).all()
    del kept
    pool.clear()
    assert pool.bytes == 0


# ---- tensors that leave the pool

LEAVERS: dict[str, Callable[[Tensor], Any]] = {
    "storage without bytes": lambda t: t.untyped_storage().resize_(0),
    "larger storage": lambda t: t.untyped_storage().resize_(8 * MIB),
    "a larger tensor": lambda t: t.resize_(9 * MIB),
    "shared memory": Tensor.share_memory_,
}


@pytest.mark.parametrize("leaver", LEAVERS)
def test_a_tensor_whose_memory_changes_leaves_the_pool(pool: cpu_pool.Pool, leaver: str) -> None:
    tensor = block(pool, 4).fill_(5)
    LEAVERS[leaver](tensor)
    others = [block(pool, 4).fill_(6) for _ in range(3)]
    assert pool.bytes == 12 * MIB  # without the one that left
    assert tensor.untyped_storage().nbytes() == 0 or tensor[: 4 * MIB].eq(5).all()
    del tensor
    gc.collect()
    assert all(other.eq(6).all() for other in others)


def test_storage_that_grew_again_is_not_mixed_up(pool: cpu_pool.Pool) -> None:
    tensor = block(pool, 4)
    tensor.untyped_storage().resize_(0)
    tensor.untyped_storage().resize_(4 * MIB)
    tensor.fill_(1)
    others = [block(pool, 4).fill_(2) for _ in range(3)]
    assert tensor.eq(1).all()
    assert all(other.eq(2).all() for other in others)


def _saved(tensor: Tensor) -> Tensor:
    file = io.BytesIO()
    torch.save(tensor, file)
    file.seek(0)
    return torch.load(file)


COPIERS: dict[str, Callable[[Tensor], Tensor]] = {
    "pickle": lambda t: pickle.loads(pickle.dumps(t)),
    "torch.save": _saved,
    "deepcopy": copy.deepcopy,
    "clone": Tensor.clone,
}


@pytest.mark.parametrize("copier", COPIERS)
def test_copies_have_memory_of_their_own(pool: cpu_pool.Pool, copier: str) -> None:
    tensor = block(pool, 4).fill_(5)
    twin = COPIERS[copier](tensor)
    assert twin.data_ptr() != tensor.data_ptr()
    del tensor
    block(pool, 4).fill_(6)
    assert twin.eq(5).all()


@pytest.mark.parametrize("change", ["storage", "tensor"])
@pytest.mark.parametrize("steps", [5, 600], ids=["small", "large"])
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", peers.LAYERS)
def test_memory_of_results_is_resized(name: str, training: bool, steps: int, change: str) -> None:
    module, _ = peers.pair(name, 4, 128)
    with fastrnn.backend("cpu"), torch.set_grad_enabled(training):
        for result in peers.tensors(module(torch.randn(steps, 8, 4))):
            if change == "storage":
                result.untyped_storage().resize_(0)
            else:
                result.detach().resize_(steps + 1, 8, 256)
        again = module(torch.randn(steps, 8, 4))[0]
        assert again.isfinite().all()


@pytest.mark.parametrize("change", ["storage", "batch_first"])
def test_a_large_output_is_shared_and_pickled(change: str) -> None:
    module, _ = peers.pair("GRU", 4, 128, batch_first=change == "batch_first")
    with fastrnn.backend("cpu"), torch.no_grad():
        y = module(torch.randn(600, 8, 4))[0]
        wanted = y.clone()
        assert torch.equal(pickle.loads(pickle.dumps(y)), wanted)
        y.share_memory_()
        module(torch.randn(600, 8, 4))
        assert y.is_shared()
        assert torch.equal(y, wanted)


# ---- the pool of the process


@pytest.fixture
def no_pool() -> Any:
    """Nothing is left of other tests' blocks."""
    gc.collect()
    fastrnn.empty_cache()
    yield
    fastrnn.empty_cache()


def held() -> int:
    assert cpu_pool._pool is not None
    return cpu_pool._pool.bytes


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", peers.LAYERS)
def test_a_loop_uses_the_same_memory(name: str, training: bool, no_pool: None) -> None:
    module, _ = peers.pair(name, 4, 64)
    sizes = []
    with fastrnn.backend("cpu"), torch.set_grad_enabled(training):
        for _ in range(5):
            y = module(torch.randn(300, 32, 4))[0]
            if training:
                y.square().sum().backward()
            del y
            sizes.append(held())
    assert sizes[0] > 0
    assert len(set(sizes[1:])) == 1


def test_empty_cache_gives_back_what_nobody_uses(no_pool: None) -> None:
    module, _ = peers.pair("LSTM", 4, 64)
    with fastrnn.backend("cpu"), torch.no_grad():
        kept = module(torch.randn(300, 32, 4))[0]
        wanted = kept.clone()
        module(torch.randn(600, 32, 4))
        before = held()
        fastrnn.empty_cache()
        assert kept.untyped_storage().nbytes() <= held() < before
        assert torch.equal(kept, wanted)
        del kept
        fastrnn.empty_cache()
        assert held() == 0


def test_a_graph_that_waits_for_backward_keeps_its_memory(no_pool: None) -> None:
    ours, theirs = peers.pair("GRU", 4, 64)
    x, found = torch.randn(300, 32, 4), []
    for module in (ours, theirs):
        with fastrnn.backend("cpu"):
            value = module(x)[0].square().mean()
            fastrnn.empty_cache()
            for _ in range(3):
                ours(x * 2)[0].zero_()
            found.append(torch.autograd.grad(value, list(module.parameters())))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)


def test_small_tensors_come_from_torch(no_pool: None) -> None:
    cpu_pool.empty((1000,), torch.empty(0))
    assert held() == 0
    assert cpu_pool.empty((MIB // 4,), torch.empty(0)).numel() * 4 == held()


@pytest.mark.parametrize("size", [1024, 4 * MIB])
def test_deterministic_mode_fills_new_tensors(size: int, poison: None) -> None:
    assert cpu_pool.empty((size,), torch.empty(0)).isnan().all()


def test_the_environment_switches_it_off(monkeypatch: pytest.MonkeyPatch, no_pool: None) -> None:
    monkeypatch.setenv("FASTRNN_CPU_POOL", "0")
    assert cpu_pool.empty((4 * MIB,), torch.empty(0)).shape == (4 * MIB,)
    module, _ = peers.pair("LSTM", 4, 64)
    with fastrnn.backend("cpu"):
        module(torch.randn(300, 32, 4))[0].sum().backward()
    assert held() == 0


RESIDENT = """
import gc, torch, fastrnn

def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmRSS"))

def run(batch):
    with torch.no_grad(), fastrnn.backend("cpu"):
        return layer(torch.randn(784, batch, 1))[0].nelement() * 4 / 2**20

layer = fastrnn.GRU(1, 32)
run(8)
before = resident()
large = run(1024)
print(large)
if {clear}:
    fastrnn.empty_cache()
else:
    for _ in range(300):
        run(16)
gc.collect()
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("clear", [True, False], ids=["empty_cache", "idle"])
def test_the_process_gives_memory_back(clear: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RESIDENT.replace("{clear}", str(clear))],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    output_mb, kept_mb = map(float, done.stdout.split())
    assert output_mb > 90
    assert kept_mb < output_mb / 2


# ---- threads


def test_threads_share_one_pool(pool: cpu_pool.Pool) -> None:
    wrong: list[int] = []

    def work(value: int) -> None:
        for _ in range(50):
            tensor = block(pool, 2).fill_(value)
            if not tensor.eq(value).all():
                wrong.append(value)

    in_threads(work)
    assert not wrong
    pool.clear()
    assert pool.bytes == 0


def test_threads_hand_tensors_to_each_other(pool: cpu_pool.Pool) -> None:
    handed: list[tuple[int, Tensor]] = []
    wrong: list[int] = []

    def work(value: int) -> None:
        for turn in range(30):
            handed.append((value, block(pool, 1).fill_(value)))
            if turn % 2:
                expected, tensor = handed.pop(0)
                if not tensor.eq(expected).all():
                    wrong.append(value)
            if turn % 10 == 0:
                pool.clear()

    in_threads(work)
    assert not wrong
    assert all(tensor.eq(value).all() for value, tensor in handed)


@pytest.mark.parametrize("name", peers.LAYERS)
def test_layers_in_threads_keep_their_memory_apart(name: str, no_pool: None) -> None:
    module, _ = peers.pair(name, 4, 64)
    inputs = [torch.randn(200, 32, 4) + value for value in range(4)]

    def gradient(x: Tensor) -> list[Tensor]:
        with fastrnn.backend("cpu"):
            y = module(x)[0]
            return [y.detach(), *torch.autograd.grad(y.square().mean(), [*module.parameters()])]

    wanted = [gradient(x) for x in inputs]
    found: dict[int, list[list[Tensor]]] = {value: [] for value in range(4)}
    in_threads(lambda value: found[value].extend(gradient(inputs[value]) for _ in range(5)))
    for value, results in found.items():
        for result in results:
            torch.testing.assert_close(result, wanted[value])


def in_threads(work: Callable[[int], Any]) -> None:
    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
