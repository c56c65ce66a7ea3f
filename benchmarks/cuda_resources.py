"""What each kernel of the CUDA library takes of a multiprocessor, read from the library itself.

    python -m benchmarks.cuda_resources            print the table
    python -m benchmarks.cuda_resources --write    and keep it in cuda_resources.json, which tests
                                                   hold every later version to

A stack is what registers were spilled to: no kernel has an array of its own there.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from pathlib import Path

from fastrnn.kernels.library import library_path

TABLE = Path(__file__).with_name("cuda_resources.json")
# Way, cell, arithmetic, and whether blocks meet on the grid, in a mangled name.
_KERNEL = re.compile(r"layer_kernelINS0_\d(\w+?)ENS0_\d(\w+?)ENS0_4MathI(.*)Lb(\d)EE")
_MATH = {"fLb0": "float32", "fLb1": "tf32", "8bfloat16": "bfloat16", "7float16": "float16"}


def read(library: Path) -> dict[str, dict[str, int]]:
    """What each kernel takes, by its name and architecture.

    Registers and bytes of stack of a thread; bytes of shared memory of a block, to which a layer's
    plan adds its own.
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
    """Prints the table, and keeps it if asked to."""
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
