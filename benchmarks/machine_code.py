"""Machine code of NVIDIA's GPUs, as Triton's own cuobjdump prints it; needs no GPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path


def disassemble(cubin: bytes) -> tuple[str, list[tuple[int, str]]]:
    """The resource report and the instructions with their addresses."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = [
            subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True)
            for option in ("-res-usage", "-sass")
        ]
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", text[1].stdout)
    return text[0].stdout, [(int(address, 16), code) for address, code in found]


def operation(code: str) -> str:
    """The name of an instruction, without its predicate and modifiers."""
    return re.sub(r"^@!?U?P\w+\s+", "", code).split()[0].split(".")[0]


def time_loop(instructions: list[tuple[int, str]]) -> list[str]:
    """The instructions of the longest loop."""
    loops = [
        (int(target[1], 16), address)
        for address, code in instructions
        if (target := re.search(r"\bBRA\b.*0x([0-9a-f]+)", code)) and int(target[1], 16) < address
    ]
    first, last = max(loops, key=lambda loop: loop[1] - loop[0])
    return [code for address, code in instructions if first <= address <= last]
