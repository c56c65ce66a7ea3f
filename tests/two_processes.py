"""Trains a model in two processes, in several ways: see test_distributed.py.

Run as ``python -m tests.two_processes RANK FOLDER``. Prints each way that gave the right weights.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as states
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_module, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import fastrnn

WORLD = 2


class Model(nn.Module):
    """Two recurrent layers, of which the first has two directions, and a head."""

    def __init__(self, library: Any = fastrnn) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = library.LSTM(3, 8, 2, bidirectional=True)
        self.gru = library.GRU(16, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.gru(self.lstm(x)[0])[0])
        return logits


def batch() -> Tensor:
    """[T, B, I], of which each process reads its part of B."""
    return torch.randn(7, 4 * WORLD, 3, generator=torch.Generator().manual_seed(1))


def train(model: nn.Module, x: Tensor) -> None:
    """Three steps; the loss is a mean, so that the mean over processes is that of the whole."""
    optimiser = torch.optim.AdamW(model.parameters(), 0.01)
    for _ in range(3):
        optimiser.zero_grad()
        model(x).square().mean().backward()
        optimiser.step()


def trained_in_one_process() -> dict[str, Tensor]:
    """The weights after the same steps of torch.nn's layers on the whole batch."""
    model = Model(nn)
    train(model, batch())
    return model.state_dict()


def check(found: dict[str, Any]) -> None:
    """Compares weights with those of one process."""
    torch.testing.assert_close(dict(found), dict(trained_in_one_process()), rtol=1e-3, atol=1e-5)


def ddp(part: Tensor, folder: Path) -> None:
    """DistributedDataParallel."""
    model = Model()
    train(DistributedDataParallel(model), part)
    check(model.state_dict())


def sharded(part: Tensor) -> Model:
    """A model of which each layer is an FSDP2 unit, trained."""
    model = Model()
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in (model.lstm, model.gru, model):
        fully_shard(layer, mesh=mesh)
    train(model, part)
    return model


def fsdp(part: Tensor, folder: Path) -> None:
    """FSDP2: fully_shard."""
    model = sharded(part)
    whole = states.StateDictOptions(full_state_dict=True)
    check(states.get_model_state_dict(model, options=whole))


def checkpoint(part: Tensor, folder: Path) -> None:
    """Shards are saved by torch.distributed.checkpoint and loaded into a whole torch.nn model."""
    model = sharded(part)
    save({"model": states.get_model_state_dict(model)}, checkpoint_id=folder / "saved")
    again = Model()
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in (again.lstm, again.gru, again):
        fully_shard(layer, mesh=mesh)
    loaded = states.get_model_state_dict(again)
    load({"model": loaded}, checkpoint_id=folder / "saved")
    states.set_model_state_dict(again, loaded)
    x = batch()
    torch.testing.assert_close(again(x), model(x))


def dtensor(part: Tensor, folder: Path) -> None:
    """Weights on every process and a batch in shards, all of them DTensors."""
    mesh = init_device_mesh("cpu", (WORLD,))
    model: Any = distribute_module(Model().double(), mesh)
    train(model, distribute_tensor(batch().double(), mesh, [Shard(1)]))
    check({name: weight.full_tensor().float() for name, weight in model.named_parameters()})


WAYS = (ddp, fsdp, checkpoint, dtensor)


def main() -> None:
    """Joins the other process and tries each of the above."""
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    address = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=WORLD)
    part = batch().chunk(WORLD, 1)[rank]
    for way in WAYS:
        try:
            way(part, folder)
            print(way.__name__)
        except AssertionError:  # wrong numbers; the other process goes on too
            traceback.print_exc()
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
