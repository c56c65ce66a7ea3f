"""What one step of the Triton kernels' time loop costs, read from machine code; needs no GPU.

Each kernel that a plan can lead to is compiled with Triton's own ptxas and disassembled with its
cuobjdump. The time loop is the longest backward branch. It holds two steps, so counts are halved.
The step kernels have other loops inside it: of them, every instruction in the code counts once.

    python -m benchmarks.step_costs            print all; fail if one is above step_costs.json
    python -m benchmarks.step_costs --write    write this Triton's part of that file instead

That file has a row of every case for the newest Triton. Older ones lay out the step kernels' data
differently; where that makes a tenth, the file has a row of theirs, too. A Triton's own rows have
to be met exactly; without one, all but registers may be a tenth more.

A lower bound, written down before anything was measured (H100, H200; cycles at about 1.75 GHz). A
step is one chain: h through shared memory, the product, the gates, and back. Steps cannot overlap.

| part of a forward step | vector, H 32 | vector, H 64 | tensor, H 64 | tensor, H 128 |
|---|---|---|---|---|
| store h, barrier, load h | 30 + 20 + 30 | 30 + 20 + 45 | 35 + 20 + 35 | 35 + 30 + 45 |
| product (32 FMAs a cycle, or an HMMA in 6.5, on each of 4 schedulers) | 40 | 130 | 110 | 420 |
| its end: shuffles, or the last HMMA | 50 | 25 | 33 | 33 |
| sigmoid, c, tanh, h | 160 | 160 | 170 | 190 |
| sum, cycles | 330 | 410 | 405 | 755 |
| sum, µs | 0.19 | 0.23 | 0.23 | 0.43 |

(vector: float32, one row, 2 special functions per activation; tensor: 8 rows, 16 bits, 1.)
A backward step has about 40 cycles of the gates on its chain, and moves four times as much through
shared memory: 0.15, 0.22, 0.2 and 0.5 µs. Programs on one SM add up their instructions: at 4 rows
per SM, vector H 32 issues 4 rows × 2 warps × 150 / 4 schedulers = 300, which is less than its
chain; H 64 issues 2 programs × 4 warps × 415 / 4 = 830, which is then the bound. Predicted forward
for T = 784, B = 200: 0.15 to 0.2 ms at H 32 and 64, 0.35 ms at H 128 in 16 bits. None of this is
measured.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine_code import disassemble, operation, time_loop
from fastrnn.kernels.contract import CELLS

TABLE = Path(__file__).with_name("step_costs.json")
STEPS_A_TURN = 2
SMS = 132
LANES: dict[int | str, int] = {"gfx942": 64, "gfx1100": 32}  # of AMD's GPUs; NVIDIA's: 32
_POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}


@dataclass(frozen=True)
class Case:
    """One kernel as compiled.

    Attributes:
        cell: lstm or gru.
        way: inference, forward (training) or backward of the whole-sequence kernels; cell_forward
            and cell_backward of the step kernels, or steps_forward and steps_backward, which run
            all steps in one launch; draw: the pixel kernel, in float32.
        dtype: of all tensors except the layout's.
        hidden: H.
        batch: B, on which the plan depends.
        features: input size; a wide input is projected before the kernel.
        packed: with a PackedSequence's layout.
        arch: compute capability times 10, or a key of LANES.
        tf32: the step kernels' float32 products use TF32.
        layers: of the pixel kernel's stack.
    """

    cell: str
    way: str
    dtype: torch.dtype
    hidden: int
    batch: int
    features: int = 1
    packed: bool = False
    arch: int | str = 90
    tf32: bool = False
    layers: int = 1

    @property
    def stepwise(self) -> bool:
        """Whether this is a step kernel."""
        return self.way.startswith(("cell_", "steps_"))

    @property
    def name(self) -> str:
        """The case's key in the table."""
        layout = "packed" if self.packed else "padded"
        dtype = "tf32" if self.tf32 else str(self.dtype).removeprefix("torch.")
        size = f"L={self.layers} " if self.layers > 1 else ""
        size += f"H={self.hidden} B={self.batch} I={self.features}"
        return f"{self.cell} {self.way} {dtype} {size} {layout} {self.arch}"


def cases() -> Iterator[Case]:
    """Every form, dtype and size that a plan can have; inference is training less its stores."""
    half, single = torch.bfloat16, torch.float32
    sizes = [(single, 32, 132), (single, 32, 500), (single, 64, 200), (single, 64, 500)]
    sizes += [(half, 32, 16), (half, 32, 500), (half, 64, 16), (half, 64, 500), (half, 128, 500)]
    sizes += [(single, 32, 2000), (half, 32, 2000), (half, 64, 2000), (half, 128, 2000)]
    sizes += [(half, 100, 200)]
    for cell in ("lstm", "gru"):
        for way in ("inference", "forward", "backward"):
            for dtype, hidden, batch in sizes:
                yield Case(cell, way, dtype, hidden, batch)
                if way != "inference":
                    yield Case(cell, way, dtype, hidden, batch, packed=True)
                if way == "backward" and hidden > 32 and batch <= 500:
                    yield Case(cell, way, dtype, hidden, batch, features=28)
                if way == "forward":
                    yield Case(cell, way, dtype, hidden, batch, features=4 if hidden <= 64 else 2)
                    yield Case(cell, way, dtype, hidden, batch, features=28)
            for dtype, hidden, batch in ((single, 64, 200), (half, 64, 500), (half, 128, 500)):
                yield Case(cell, way, dtype, hidden, batch, arch=80)
    for cell in ("lstm", "gru"):
        for way in ("inference", "backward"):
            for hidden in (32, 64):
                for arch in LANES:
                    yield Case(cell, way, single, hidden, 200, arch=arch)

    yield from step_cases()
    yield from pixel_cases()


def pixel_cases() -> Iterator[Case]:
    """Every plan of the pixel kernel; reading is drawing less a comparison and a store."""
    for cell in ("lstm", "gru"):
        for hidden, batch in ((32, 100), (32, 1000), (64, 100), (64, 1000)):
            yield Case(cell, "draw", torch.float32, hidden, batch)
        for arch in (80, 90, *LANES):
            yield Case(cell, "draw", torch.float32, 32, 1000, layers=3, arch=arch)


def step_cases() -> Iterator[Case]:
    """Every size that a plan of the step kernels can have."""
    half, single = torch.float16, torch.float32
    sizes = [(half, 256, 1, False), (half, 1024, 1, False), (half, 256, 3, False)]
    sizes += [(half, 512, 64, False), (half, 256, 200, False), (half, 1024, 500, False)]
    sizes += [(single, 256, 1, False), (single, 256, 64, False), (single, 512, 500, False)]
    sizes += [(single, 512, 64, True), (single, 256, 200, True), (single, 1024, 500, True)]
    for cell in ("lstm", "gru"):
        for dtype, hidden, batch, tf32 in sizes:
            for way in ("cell_forward", "cell_backward", "steps_forward", "steps_backward"):
                features = 28 if way.startswith("cell") else hidden
                yield Case(cell, way, dtype, hidden, batch, features, tf32=tf32)
        for way in ("cell_forward", "steps_forward", "steps_backward"):
            yield Case(cell, way, half, 512, 64, 28, arch=80)
            yield Case(cell, way, half, 512, 64, 28, packed=True)
            for amd in LANES:
                yield Case(cell, way, half, 512, 64, 28, arch=amd)


def plan(case: Case) -> Any:
    """The plan that is chosen for a case."""
    from fastrnn.kernels.triton.plans import Processor, choose_plan, choose_step_plan

    processor = Processor(SMS, LANES.get(case.arch, 32), isinstance(case.arch, int))
    if case.stepwise:
        return choose_step_plan(case.hidden, case.batch, case.dtype, processor, case.tf32)
    batch = case.batch if case.layers == 1 else 1
    way = {"backward": "backward", "draw": "pixels"}.get(case.way, "forward")
    return choose_plan(case.hidden, batch, case.dtype, processor, way)


def operand_reads(case: Case) -> int:
    """Reads of shared memory per step and thread, if it holds only h or the gates' gradients."""
    chosen = plan(case)
    exchanged = 1 if case.way != "backward" else 4 if case.cell == "lstm" else 3
    if chosen.split:  # 16 bytes per read
        return exchanged * chosen.rows * chosen.units // chosen.split // 4
    return exchanged * chosen.units // 32  # ldmatrix: 32 columns of 8 rows


def early_loads(case: Case) -> int:
    """Reads of global memory per step and thread, if only its rows and its offset are read."""
    chosen = plan(case)
    # A thread's two units are one word, or read the same features; not if some units are padding.
    words, features = (
        chosen.rows if chosen.split else chosen.rows // (4 if pairs else 2)
        for pairs in (case.hidden % 2 == 0, case.hidden == chosen.units)
    )
    if case.way == "backward":  # four gates, dy, and the state before; x if its weights are summed
        _, weights = chosen.sums(CELLS[case.cell], case.features)
        return 6 * words + weights * features + case.packed
    if chosen.narrow(case.features):
        return case.features * features + case.packed
    return (4 if case.cell == "lstm" else 3) * words + case.packed


def cache_key(steps: int, batch: int, shift: int) -> str:
    """The key of a GRU's forward kernel in Triton's cache, for tensors `shift` elements off."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import compute_cache_key, create_function_from_signature

    from fastrnn.kernels.triton.plans import Processor, choose_plan
    from fastrnn.kernels.triton.sequence import forward_kernel as kernel

    backend = make_backend(GPUTarget("cuda", 90, 32))
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    chosen = choose_plan(32, 17, torch.float32, Processor(SMS))
    x, w_ih, w_hh, b_ih, b_hh, h0, y, h_n, gates = (torch.empty(16)[shift:] for _ in range(9))
    tensors = (x, w_ih, w_hh, b_ih, b_hh, h0, None, y, h_n, None, gates, None, None, None)
    values = (*tensors, steps, batch, 0, 1, 32, chosen, False, False)
    _, specialization, options = binder(*values, **chosen.options, debug=False)
    return str(compute_cache_key({}, specialization, options))


def triton_version() -> str:
    """Triton's version."""
    import triton

    return str(triton.__version__)


def tables() -> dict[str, dict[str, dict[str, float]]]:
    """What each case costs, by the version of Triton, newest last: it alone has every case."""
    parts: dict[str, dict[str, dict[str, float]]] = json.loads(TABLE.read_text())
    return parts


def grown(case: Case, found: dict[str, float]) -> dict[str, tuple[float, float]]:
    """What a case costs more of than the table allows the Triton at hand: (kept, found)."""
    parts = tables()
    if kept := parts.get(triton_version(), {}).get(case.name):
        return {k: (kept[k], v) for k, v in found.items() if v > kept[k]}
    return _differing(list(parts.values())[-1][case.name], found)


def _differing(kept: dict[str, float], found: dict[str, float]) -> dict[str, tuple[float, float]]:
    """What another Triton, which allocates and schedules differently, takes too much of."""
    free = ("registers", "stack")
    return {k: (kept[k], v) for k, v in found.items() if k not in free and v > kept[k] * 1.1}


def _order(version: str) -> list[int]:
    """A version's first three numbers."""
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def _constants(case: Case) -> dict[str, Any]:
    """A kernel's compile-time arguments, and None for those that the case does without."""
    chosen, gru = plan(case), case.cell == "gru"
    absent = [] if case.packed else ["offsets", "lengths"]
    values: dict[str, Any] = {"P": chosen, "REVERSE": False, "LSTM": not gru}
    narrow = chosen.narrow(case.features)
    if case.stepwise:
        values |= {"PROJECTED": not narrow, "NARROW": narrow}
        absent += ["arrived"] if case.way.startswith("cell") else []
        absent += ["h_n", "cells", "dh_n"] if gru else []
    else:
        if case.way == "backward":
            biases, weights = chosen.sums(CELLS[case.cell], case.features)
            absent += ["totals"] * (not biases) + ["x"] * (not weights)
        values |= {"H": case.hidden, "IN": case.features if narrow else 0, "LAYERS": case.layers}
        absent += ["gates", "cells"] if case.way == "inference" else []
        absent += ["c0", "c_n", "cells", "dc_n", "dc0", "c"] if gru else []
    return values | dict.fromkeys(absent)


def _compile(case: Case) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    way = "backward" if case.way.endswith("backward") else "forward"
    if case.way == "draw":
        module, name = "pixels", "pixel_kernel"
    else:
        module, name = "steps" if case.stepwise else "sequence", f"{way}_kernel"
    kernel = getattr(importlib.import_module(f"fastrnn.kernels.triton.{module}"), name)
    known = _constants(case)
    constants = {name: known[name] for name in kernel.arg_names if name in known}
    types = dict.fromkeys(("T", "B", "skew", "begin", "end", "I", "H"), "i32")
    types["totals"] = "*fp32"
    types |= {"offsets": "*i64", "lengths": "*i32", "arrived": "*i32", "pixels": "*u8"}
    types |= dict.fromkeys(("old", "new"), "*fp32") if case.way.startswith("steps") else {}
    signature = {
        name: "constexpr" if name in constants else types.get(name, _POINTERS[case.dtype])
        for name in kernel.arg_names
    }
    nvidia = isinstance(case.arch, int)
    target = GPUTarget("cuda" if nvidia else "hip", case.arch, LANES.get(case.arch, 32))
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(signature.items())
        if case.stepwise and (kind[0] == "*" or (name == "H" and case.hidden % 16 == 0))
    }
    form = ASTSource if case.stepwise else GluonASTSource
    source = form(kernel, signature, constants, aligned)
    return triton.compile(source, target=target, options=constants["P"].options)


def cost(case: Case) -> dict[str, float]:
    """A kernel's registers and memory, and the instructions of one of its steps, per thread."""
    compiled = _compile(case)
    if not isinstance(case.arch, int):
        text = compiled.asm["amdgcn"]
        spilled = re.search(r"\.vgpr_spill_count:\s+(\d+)", text)
        registers = re.search(r"\.vgpr_count:\s+(\d+)", text)
        assert spilled is not None
        assert registers is not None
        return {"registers": int(registers[1]), "spills": int(spilled[1])}
    report, instructions = disassemble(compiled.asm["cubin"])
    resources = re.search(r"REG:(\d+) STACK:(\d+)", report)
    assert resources is not None
    everywhere = collections.Counter(operation(code) for _, code in instructions)
    stepwise = case.stepwise
    body = [code for _, code in instructions] if stepwise else time_loop(instructions)
    steps = 1 if stepwise else STEPS_A_TURN
    loop = collections.Counter(operation(code) for code in body)
    groups = {
        "barriers": ["BAR"],
        "shared_reads": ["LDS", "LDSM"],
        "shared_writes": ["STS", "STSM"],
        "shuffles": ["SHFL"],
        "special": ["MUFU"],
        "fma": ["FFMA"],
        "mma": ["HMMA", "HGMMA"],
        "loads": ["LDG", "LDGSTS"],
        "stores": ["STG"],
        "cache_controls": ["CCTL"],
        "local": ["LDL", "STL"],
    }
    return {
        "registers": int(resources[1]),
        "spills": everywhere["LDL"] + everywhere["STL"],
        "stack": int(resources[2]),
        "shared": compiled.metadata.shared,
        "instructions": len(body) / steps,
        **{key: sum(loop[op] for op in ops) / steps for key, ops in groups.items()},
    }


def write(rows: dict[str, dict[str, float]]) -> None:
    """Writes the part of the Triton at hand; an older one's holds only what differs."""
    parts, version = tables(), triton_version()
    newest = max([*parts, version], key=_order)
    if version != newest:
        rows = {name: row for name, row in rows.items() if _differing(parts[newest][name], row)}
    texts = []
    for of, part in sorted((parts | {version: rows}).items(), key=lambda item: _order(item[0])):
        lines = ",\n".join(f"    {json.dumps(k)}: {json.dumps(row)}" for k, row in part.items())
        texts.append(f"  {json.dumps(of)}: {{\n{lines}\n  }}")
    TABLE.write_text("{\n" + ",\n".join(texts) + "\n}\n")


def main() -> int:
    """Compile every case, and print what it costs; compare that with the table or write it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--write", action="store_true", help=f"write a part of {TABLE.name}")
    arguments = parser.parse_args()
    part: dict[str, Any] = {}
    failed = 0
    for case in cases():
        part[case.name] = cost(case)
        print(case.name, json.dumps(part[case.name]), flush=True)
        if not arguments.write and (more := grown(case, part[case.name])):
            print(f"more than in {TABLE.name}: {more}", flush=True)
            failed = 1
    if arguments.write:
        write(part)
    return failed


if __name__ == "__main__":
    sys.exit(main())
