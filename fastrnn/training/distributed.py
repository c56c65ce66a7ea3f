"""Training by several processes, which torchrun starts. A single process is a group of one.

Every process makes the same random draws for a whole batch and then works on its share of it. So
the numbers are those of one process, and a run can be resumed with a different number of processes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.utils.data import DistributedSampler

from fastrnn.training.errors import RunError

T = TypeVar("T")


def size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if _grouped() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _grouped() else 0


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


def first() -> bool:
    """Whether this process is the one that writes files and prints."""
    return rank() == 0


@contextlib.contextmanager
def group() -> Iterator[None]:
    """In the block, the processes that torchrun started work together.

    Raises:
        RunError: another process of the group has ended.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _grouped():
        yield
        return
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise RunError(
            f"process {rank()} of {size()} stops, because another one has ended: see its message "
            "above, or whether it was killed for want of memory; a training continues with --resume"
        ) from None
    finally:
        dist.destroy_process_group()


def device(wanted: str) -> str:
    """The device of this process: with several processes, each has a GPU of its own.

    Args:
        wanted: ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        RunError: there are fewer GPUs than processes on this machine, or all are to share one.
    """
    if size() == 1 or wanted == "cpu":
        return wanted
    if wanted != "cuda":
        raise RunError(f"the device is {wanted}, for {size()} processes: use --device cuda or cpu")
    local, gpus = int(os.environ.get("LOCAL_RANK", rank())), torch.cuda.device_count()
    if local >= gpus:
        raise RunError(f"process {local} of this machine has no GPU: torch sees {gpus}")
    torch.cuda.set_device(local)
    return f"cuda:{local}"


def share(count: int) -> tuple[Tensor, Tensor]:
    """Which of ``count`` examples are this process's, as torch's DistributedSampler deals them.

    The sampler repeats examples so that all shares have the same size; repeated ones get weight 0.

    Returns:
        Their places [N] int64, and their weights [N] float32.
    """
    if size() == 1:
        return torch.arange(count), torch.ones(count)
    sampler: DistributedSampler[int] = DistributedSampler(
        range(count),  # type: ignore[arg-type]  # of a dataset, only the length is used
        num_replicas=size(),
        rank=rank(),
        shuffle=False,
    )
    places = torch.tensor(list(sampler))
    dealt = rank() + size() * torch.arange(len(places))
    return places, (dealt < count).float()


def most(*values: int) -> list[int]:
    """The largest of each value over all processes."""
    if size() == 1:
        return list(values)
    tensor = torch.tensor(values)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.tolist()


def sums(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Float64 scalars, summed over all processes; the first process has all of the names."""
    if size() == 1:
        return dict(values)
    names = broadcast(list(values))
    zero = torch.zeros((), dtype=torch.float64)
    tensor = torch.stack([values.get(name, zero).cpu() for name in names] or [zero])
    dist.all_reduce(tensor)
    return dict(zip(names, tensor, strict=False))


def broadcast(value: T) -> T:
    """The first process's value; tensors in it are on the CPU."""
    if size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def collected(places: Tensor, parts: Sequence[Sequence[Tensor]], count: int) -> tuple[Tensor, ...]:
    """Results for ``count`` examples, from all processes, each at its place.

    Args:
        places: [N] int64, this process's examples.
        parts: their results, in consecutive parts; each has the same number of tensors.
        count: of all examples.
    """
    joined = tuple(torch.cat(part) for part in zip(*parts, strict=True))
    every: list[Any] = [None] * size()
    if size() == 1:
        every = [(places, joined)]
    else:
        dist.all_gather_object(every, (places, joined))
    whole = tuple(part.new_empty(count, *part.shape[1:]) for part in joined)
    for where, found in every:
        for target, values in zip(whole, found, strict=True):
            target[where] = values
    return whole
