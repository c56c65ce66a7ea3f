"""The CUDA kernels without a GPU: their own text, compiled for an emulated one."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from fastrnn.kernels import contract, cuda
from fastrnn.kernels import library as native
from tests.test_triton import (
    BRAIN,
    HALF,
    WHOLE,
    Case,
    compare,
    empty_batch,
    failures,
    named,
    non_finite,
    opcheck,
)

ROOT = Path(__file__).parents[1]
CLUSTERS, GRID, SMALL, SINGLE = range(4)  # the emulator's devices
NONE, BLOCK, CLUSTER, MANY = range(4)  # at which meetings nobody waits


class Plan(NamedTuple):
    """How the last layer was laid out: see kernels/csrc/cuda/plan.h."""

    grid: bool
    persistent: bool
    blocks: int
    tiles: int
    split: int
    passes: int
    row_tiles: int
    groups: int


class Emulator(NamedTuple):
    """Controls the emulated GPU, and reports what it ran."""

    use: Callable[[int, int], None]
    plan: Callable[[], Plan]


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """Compiles the kernels for an emulated GPU, and has kernels/cuda.py call those."""
    path = tmp_path_factory.mktemp("emulator") / "libfastrnn_cuda.so"
    sources = [ROOT / "tests/csrc_cuda/emulator.cpp", ROOT / "kernels/csrc/cuda/api.cpp"]
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-DFASTRNN_LEVEL=cuda"]
    subprocess.run(["g++", *flags, *sources, "-o", path], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "FOLDER", path.parent)
        cuda._load.cache_clear()
        library = cuda._library()

        def plan() -> Plan:
            facts = (ctypes.c_int64 * len(Plan._fields))()
            library.last_plan(facts)
            return Plan(*facts)

        yield Emulator(library.emulate, plan)
    cuda._load.cache_clear()


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """Without TF32, as torch's switch for recurrent layers says."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def _errors(emulator: Emulator, device: int, case: Case, fault: int = NONE) -> dict[str, float]:
    emulator.use(device, fault)
    try:
        return compare(case, "cpu", "cuda")
    finally:
        emulator.use(CLUSTERS, NONE)


CASES = [
    case
    for cell in ("lstm", "gru")
    for case in (
        Case(cell, WHOLE, 1, 1, 1, 1),
        Case(cell, WHOLE, 5, 3, 1, 31),
        Case(cell, WHOLE, 4, 3, 3, 5, packed=True, reverse=True),
        Case(cell, WHOLE, 3, 9, 28, 70, packed=True),
        Case(cell, WHOLE, 2, 3, 4, 130, reverse=True, bias=False),
        Case(cell, HALF, 5, 17, 5, 20, packed=True, reverse=True),
        Case(cell, BRAIN, 3, 9, 2, 132, packed=True),
        Case(cell, HALF, 4, 1, 1, 128, scale=100),
        Case(cell, HALF, 3, 10, 1, 133, packed=True),  # pairs of units with one left over
    )
]


@pytest.mark.parametrize("device", [CLUSTERS, GRID, SMALL, SINGLE])
@pytest.mark.parametrize("case", CASES, ids=named)
def test_results_and_gradients_are_those_of_torch_nn_in_float64(
    emulator: Emulator, case: Case, device: int
) -> None:
    assert not failures(case, _errors(emulator, device, case))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
class TestPlans:
    """Cases that a layer's size and the device's force into each form, and their results."""

    def run(self, emulator: Emulator, device: int, case: Case) -> Plan:
        """The backward pass's plan."""
        assert not failures(case, _errors(emulator, device, case))
        return emulator.plan()

    def test_sixteen_blocks_in_a_cluster(self, emulator: Emulator, cell: str) -> None:
        plan = self.run(emulator, CLUSTERS, Case(cell, BRAIN, 2, 3, 1, 500))
        assert (plan.grid, plan.blocks, plan.split) == (False, 16, 4)

    def test_warps_without_units(self, emulator: Emulator, cell: str) -> None:
        """Seven of sixteen, for which no other waits. In each group one warp is the slowest."""
        plan = self.run(emulator, CLUSTERS, Case(cell, WHOLE, 6, 40, 1, 70))
        assert (plan.grid, plan.blocks, plan.tiles, plan.split) == (False, 2, 8, 1)
        assert plan.groups == 10

    def test_groups_in_turn(self, emulator: Emulator, cell: str) -> None:
        """Two groups of three blocks each are on the device at once; they take the rest later."""
        case = Case(cell, WHOLE, 3, 50, 1, 130, packed=True)
        plan = self.run(emulator, SMALL, case)
        assert (plan.grid, plan.persistent, plan.blocks) == (True, True, 5)
        assert plan.groups * plan.row_tiles * 4 < case.batch

    def test_many_rows_a_group(self, emulator: Emulator, cell: str) -> None:
        plan = self.run(emulator, CLUSTERS, Case(cell, HALF, 2, 120, 1, 260, packed=True))
        assert (plan.grid, plan.blocks, plan.groups, plan.row_tiles) == (False, 9, 8, 2)

    def test_weights_read_again_in_each_step(self, emulator: Emulator, cell: str) -> None:
        plan = self.run(emulator, GRID, Case(cell, BRAIN, 2, 3, 1, 1028))
        assert (plan.grid, plan.persistent, plan.passes) == (True, True, 2)

    def test_weights_read_again_in_launches_of_a_step(self, emulator: Emulator, cell: str) -> None:
        plan = self.run(emulator, SINGLE, Case(cell, BRAIN, 2, 3, 1, 1028, reverse=True))
        assert (plan.grid, plan.persistent, plan.passes) == (True, False, 2)

    @pytest.mark.parametrize("hidden", [31, 70, 200])
    def test_tf32(self, emulator: Emulator, cell: str, hidden: int) -> None:
        for device in (CLUSTERS, GRID, SINGLE):
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
                errors = _errors(emulator, device, Case(cell, WHOLE, 4, 9, 2, hidden, packed=True))
            assert 1e-6 < errors["y"] < 1e-3
            assert max(errors.values()) < 3e-3


@pytest.mark.parametrize(
    ("fault", "device", "case"),
    [
        (BLOCK, CLUSTERS, Case("lstm", BRAIN, 4, 9, 1, 132)),  # a split's sums
        (BLOCK, CLUSTERS, Case("gru", WHOLE, 4, 9, 1, 31)),  # a block alone
        (CLUSTER, CLUSTERS, Case("gru", WHOLE, 4, 9, 1, 70)),
        (MANY, GRID, Case("lstm", WHOLE, 4, 9, 1, 70)),
    ],
    ids=["sums", "block", "cluster", "grid"],
)
def test_a_meeting_at_which_nobody_waits_shows(
    emulator: Emulator, fault: int, device: int, case: Case
) -> None:
    assert not failures(case, _errors(emulator, device, case))
    with pytest.raises(AssertionError):
        assert not failures(case, _errors(emulator, device, case, fault))


def test_nan_and_inf_stay_in_their_sequence(emulator: Emulator) -> None:
    assert all(non_finite("cpu", "cuda").values())


def test_an_empty_batch_gives_empty_results_and_zero_gradients(emulator: Emulator) -> None:
    shapes = empty_batch("cpu", "cuda")
    assert shapes[:3] == [(0, 3)] * 3
    assert shapes[-3:] == [(12, 2), (12, 3), (12,)]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_ops_pass_opcheck(emulator: Emulator) -> None:
    assert opcheck("cpu", "cuda")


def test_an_error_has_the_sizes_and_the_library_s_message(emulator: Emulator) -> None:
    x, h = torch.zeros(1, 1), torch.zeros(1, (1 << 20) + 1)
    weights = torch.zeros(3, 1), torch.zeros(3, 1)
    with pytest.raises(RuntimeError, match=r"forward on cpu: argument \(T 1, B 1, H 1048577, .*32"):
        cuda.forward(contract.GRU, x, (h,), (*weights, None, None), None, False, False)
