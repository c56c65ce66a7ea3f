"""The registers and memory that each kernel of the CUDA library uses, read from the library.

    python -m benchmarks.cuda_resources            print the table
    python -m benchmarks.cuda_resources --write    and store it in cuda_resources.json, with which
                                                   the tests compare later versions

A stack means spilled registers: no kernel has local arrays.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from pathlib import Path

from fastrnn.kernels.library import library_path

TABLE = Path(__file__).with_name("cuda_resources.json")
# Direction, cell, arithmetic, and whether blocks exchange states in global memory ("grid"), in a
# mangled name.
_KERNEL = re.compile(r"layer_kernelINS0_\d(\w+?)ENS0_\d(\w+?)ENS0_4MathI(.*)Lb(\d)EE")
_MATH = {"fLb0": "float32", "fLb1": "tf32", "8bfloat16": "bfloat16", "7float16": "float16"}


def read(library: Path) -> dict[str, dict[str, int]]:
    """Returns the resources of each kernel, by its name and architecture.

    These are registers and bytes of stack per thread, and bytes of static shared memory per block.
    The plan of a layer adds dynamic shared memory.
    """
    from triton import knobs

    command = [knobs.nvidia.cuobjdump.path, "-res-usage", library]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, dict[str, int]] = {}
    architecture = name = ""
    for line in text.splitlines():
        if match := re.search(r"arch = (\w+)", line):
            architecture = match[1]
        elif match := _KERNEL.search(line):
            way, cell, math, grid = match.groups()
            kind = next(kind for key, kind in _MATH.items() if key in math)
            place = "grid" if grid == "1" else "cluster"
            name = f"{cell.lower()} {way.lower()} {kind} {place} {architecture}"
        elif name and (match := re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", line)):
            facts = map(int, match.groups())
            found[name] = dict(zip(("registers", "stack", "shared"), facts, strict=True))
            name = ""
    return found


def main() -> None:
    """Prints the table, and stores it if requested."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    table = read(library_path("fastrnn_cuda"))
    for name, facts in table.items():
        print(f"{name:48} {facts['registers']:3} registers, {facts['stack']} bytes of stack")
    if write:
        TABLE.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
