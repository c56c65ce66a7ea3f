"""torchrun with two processes on this machine."""

import os
import socket
import subprocess
import sys


def start(*command: object) -> "subprocess.Popen[str]":
    """Starts ``python COMMAND`` twice; stdout and stderr of all as one pipe of lines."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    address = ["--master-addr=127.0.0.1", f"--master-port={port}", "--no-python"]
    return subprocess.Popen(
        [*torchrun, *address, sys.executable, *map(str, command)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
