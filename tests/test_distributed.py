"""Two processes train a model on CPUs and end with the weights of one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed
from torch import nn
from torch.distributed.checkpoint.state_dict_loader import load

from tests import two_processes

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch was built without torch.distributed"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both processes of tests/two_processes.py leave their checkpoint and their reports."""
    folder = tmp_path_factory.mktemp("two_processes")
    command = [sys.executable, "-W", "ignore", "-m", "tests.two_processes"]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(folder)],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(two_processes.WORLD)
    ]
    for rank, process in enumerate(processes):
        report, errors = process.communicate(timeout=300)
        (folder / f"report{rank}").write_text(report + errors)
    return folder


def assert_done(folder: Path, way: str) -> None:
    for rank in range(two_processes.WORLD):
        report = (folder / f"report{rank}").read_text()
        assert way in report.splitlines(), report


def test_distributed_data_parallel(folder: Path) -> None:
    assert_done(folder, "ddp")


def test_fully_shard(folder: Path) -> None:
    assert_done(folder, "fsdp")


def test_dtensor(folder: Path) -> None:
    assert_done(folder, "dtensor")


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, about loading in one process
def test_distributed_checkpoint(folder: Path) -> None:
    """Shards are loaded into shards, and into torch.nn's whole layers in a single process."""
    assert_done(folder, "checkpoint")
    weights = two_processes.Model(nn).state_dict()
    load({"model": weights}, checkpoint_id=folder / "saved", no_dist=True)
    two_processes.check(weights)
