"""Memory of one training step: its peak, and what it keeps from forward to backward.

``python -m benchmarks.memory torch '{"cell": "LSTM", …}'`` prints the peak in bytes, measured in
this process. The count starts once the module and its input exist. On CPU it is the growth of the
resident set to its peak (Linux only), on CUDA the growth of what torch's allocator has handed out.
``--kept`` prints what autograd keeps instead. With ``--chunk STEPS`` the layer recomputes so many
steps at a time in backward.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .cases import Case
from .clocks import HostClock
from .measure import PEERS, Subject, build


class InChunks(nn.Module):
    """A layer that recomputes `steps` steps at a time in backward, as docs/layers.md shows."""

    def __init__(self, layer: nn.Module, steps: int) -> None:
        super().__init__()
        self.layer, self.steps = layer, steps

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The layer's outputs for x [T, B, I], and its last states."""
        outputs: list[Tensor] = []
        states: list[Tensor] = []
        for part in x.split(self.steps):
            y, *states = checkpoint(self._run, part, *states, use_reentrant=False)
            outputs.append(y)
        return torch.cat(outputs), tuple(states)

    def _run(self, x: Tensor, *states: Tensor) -> list[Tensor]:
        """Takes and returns the states one by one, so that hooks of saved tensors see them."""
        y, last = self.layer(x, states if len(states) > 1 else next(iter(states), None))
        return [y, *(last if isinstance(last, tuple) else (last,))]


def peak_memory(case: Case, peer: str, backend: str | None = None) -> int:
    """Bytes that one training step needs, measured in a new process.

    Args:
        case: what to run.
        peer: one of PEERS.
        backend: one of fastrnn's, to force it.
    """
    command = [sys.executable, "-m", __name__, peer, json.dumps(asdict(case))]
    environment = os.environ | ({"FASTRNN_BACKEND": backend} if backend else {})
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout)


def kept_for_backward(case: Case, peer: str, chunk: int | None = None) -> int:
    """Bytes that autograd keeps from forward to backward, without the parameters.

    What cuDNN needs for backward, its reserve space, is one of torch's tensors and counts.

    Args:
        case: what to run.
        peer: one of PEERS.
        chunk: recompute so many steps at a time.
    """
    subject = _build(case, peer, chunk)
    kept: dict[int, Tensor] = {}  # by address; held, so that no address is used again

    def keep(t: Tensor) -> Tensor:
        kept[t.data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        result = subject.module(subject.x)
    parameters = {p.data_ptr() for p in subject.parameters}
    del result
    return sum(t.nbytes for address, t in kept.items() if address not in parameters)


def _build(case: Case, peer: str, chunk: int | None) -> Subject:
    """A module and its input; it recomputes chunks of so many steps if `chunk` is given."""
    subject = build(case, peer)
    if chunk is not None:
        subject.module = InChunks(subject.module, chunk)
    return subject


def _growth(case: Case, peer: str, chunk: int | None = None) -> int:
    """Bytes that one training step adds to this process's memory at its peak."""
    # A tiny step first starts what starts on first use: thread pools, autograd's engine.
    small = replace(case, batch=1, steps=1)
    _build(small, peer, chunk).call(HostClock())
    subject = _build(case, peer, chunk)
    if case.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        subject.call(HostClock())
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the present
    before = _status("VmRSS")
    subject.call(HostClock())
    return _status("VmHWM") - before


def _status(field: str) -> int:
    """A size from /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def main() -> None:
    """Prints the bytes of a case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("case", type=json.loads, help="the fields of a Case, in JSON")
    parser.add_argument("--kept", action="store_true", help="what autograd keeps, not the peak")
    parser.add_argument("--chunk", type=int, help="steps to recompute at a time in backward")
    options = parser.parse_args()
    count = kept_for_backward if options.kept else _growth
    print(count(Case(**options.case), options.peer, options.chunk))


if __name__ == "__main__":
    main()
