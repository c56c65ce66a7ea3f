"""Memory of one training step: its peak, and what it keeps from forward to backward.

``python -m benchmarks.memory torch '{"cell": "LSTM", …}'`` prints the peak in bytes, measured in
this process. The count starts once the module and its input exist. On CPU it is the growth of the
resident set to its peak (Linux only), on CUDA the growth of what torch's allocator has handed out.
``--kept`` in front prints what autograd keeps instead.
"""

import ctypes
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from .cases import Case
from .clocks import HostClock
from .measure import PEERS, build


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


def kept_for_backward(case: Case, peer: str) -> int:
    """Bytes that autograd keeps from forward to backward, without the parameters.

    What cuDNN needs for backward, its reserve space, is one of torch's tensors and counts.
    """
    subject = build(case, peer)
    kept: dict[int, torch.Tensor] = {}  # by address; held, so that no address is used again

    def keep(t: torch.Tensor) -> torch.Tensor:
        kept[t.data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        result = subject.module(subject.x)
    parameters = {p.data_ptr() for p in subject.parameters}
    del result
    return sum(t.nbytes for address, t in kept.items() if address not in parameters)


def _growth(case: Case, peer: str) -> int:
    """Bytes that one training step adds to this process's memory at its peak."""
    # A tiny step first starts what starts on first use: thread pools, autograd's engine.
    small = replace(case, batch=1, steps=1)
    build(small, peer).call(HostClock())
    subject = build(case, peer)
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


if __name__ == "__main__":
    *option, peer, case = sys.argv[1:]
    if option not in ([], ["--kept"]):
        raise SystemExit(f"unknown option {option[0]!r}; expected --kept")
    if peer not in PEERS:
        raise SystemExit(f"unknown peer {peer!r}; expected one of {', '.join(PEERS)}")
    print((kept_for_backward if option == ["--kept"] else _growth)(Case(**json.loads(case)), peer))
