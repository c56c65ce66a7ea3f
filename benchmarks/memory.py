"""Peak memory of one training step, measured in a process of its own.

``python -m benchmarks.memory torch '{"cell": "LSTM", …}'`` prints bytes. The count starts once the
module and its input exist. On CPU it is the growth of the resident set to its peak (Linux only), on
CUDA the growth of what torch's allocator has handed out.
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
    peer, case = sys.argv[1:]
    if peer not in PEERS:
        raise SystemExit(f"unknown peer {peer!r}; expected one of {', '.join(PEERS)}")
    print(_growth(Case(**json.loads(case)), peer))
