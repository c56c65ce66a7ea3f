"""How the kernels' work is divided among a GPU's threads: plans, and the tables they come from.

A `Plan` is for the kernels that run a whole sequence in one program (`sequence`, `pixels`). A
program runs a few sequences from their first step to their last. Its recurrent weights stay in
registers; only h (forward) or the gates' gradients (backward) go through shared memory, once per
step. Everything that a step computes has one layout [unit, row], `Plan.state`, where a row is a
sequence. There are two forms:

- vector: `split` lanes share a unit. Each multiplies its own columns of W_hh by h in a chain of
  float32 FMAs; log2(split) shuffles add up the parts. Every row costs its own FMAs, so this form
  is for few rows.
- tensor: W_hh is the tensor cores' first operand (16 units × 16 columns), h^T the second (8 rows).
  Putting the weights first needs 8 rows instead of 16, and leaves the sums of all gates of a unit
  in registers of the same thread, so that nothing is exchanged before the next step. A thread has
  rows k and k + 8 of a tile of 16: they hold neighbouring units (`arithmetic.unit_at`), which are
  one word in memory. A program of 4 sequences has each of them in two of the 8 rows, which are the
  same thread's: everything but the product and its operand is computed and stored once.

A `StepPlan` is for the kernels in which all programs compute a step together (`steps`).
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch

from fastrnn.kernels.contract import Cell

from .language import INTERPRETED, gl

_HALF = (torch.float16, torch.bfloat16)


class Processor(NamedTuple):
    """The properties of a GPU that plans depend on.

    Attributes:
        multiprocessors: how many it has.
        lanes: threads per warp: 32, or 64 on AMD's data-centre GPUs.
        nvidia: whether NVIDIA made it, so that it has the tensor form and PTX; otherwise AMD.
    """

    multiprocessors: int
    lanes: int = 32
    nvidia: bool = True


def launch_options(warps: int, free: bool) -> dict[str, int]:
    """Triton's options of a launch; `free`: with up to 255 registers per thread."""
    return {"num_warps": warps} | ({"maxnreg": 255} if free else {})


# --- whole sequences ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Plan:
    """The form and size of a program that runs whole sequences; a compile-time constant.

    Attributes:
        units: hidden size, padded to 32, 64 or 128 (vector: to 32 or 64).
        rows: sequences per program: a power of two; 4 or more for the tensor form.
        split: lanes that share a unit (vector form); 0 selects the tensor form.
        warps: warps per program; vector: units * split // lanes, tensor: units // 16.
        math: `exact` (float32 accuracy), `fast` (for 16 bits: a tanh is one instruction) or
            `portable` (no PTX: for AMD GPUs and the interpreter).
        lanes: threads per warp.
        free: whether a thread may use as many registers as there are. Otherwise the compiler
            saves registers for more programs on a multiprocessor than a small batch has, and makes
            the chain of a step longer for it.
    """

    units: int
    rows: int
    split: int
    warps: int
    math: str
    lanes: int = 32
    free: bool = False

    @property
    def options(self) -> dict[str, int]:
        """Triton's options of a launch."""
        return launch_options(self.warps, self.free)

    @property
    def early(self) -> bool:
        """Whether a step exchanges its results through shared memory, and reads them there, first.

        It writes to memory after that, while it waits. The operands of two rows would take too many
        registers, and those of the tensor form are 16-bit pairs, which would be taken apart and put
        together again.
        """
        return self.split > 0 and self.rows == 1

    def narrow(self, input_size: int) -> bool:
        """Whether a step projects an input of this size itself; its weights take registers."""
        return input_size <= (4 if self.units <= 64 else 2)

    def sums(self, cell: Cell, input_size: int) -> tuple[bool, bool]:
        """Whether backward sums the gradients of the biases itself, and those of W_ih.

        Each saves a pass over the gates' gradients after the kernel, and takes registers. Next to
        an LSTM's weights of 128 units there are none. Up to 32 units, a step is so short that the
        instructions may cost as much as the passes: an estimate could not tell.
        """
        biases = self.free and (self.units == 64 or (self.units == 128 and cell.gates == 3))
        return biases, biases and input_size == 1

    @property
    def slope(self) -> float:
        """Factor by which `sigmoid` needs its argument multiplied: `x * slope + a` is one FMA."""
        return 0.5 if self.math == "fast" else -1.4426950408889634

    @property
    def product(self) -> Any:
        """Layout [unit, column, row] of the vector form: 4 columns make one 16-byte read of h."""
        lanes = [self.lanes // self.split, self.split, 1]
        return gl.BlockedLayout([1, 4, self.rows], lanes, [self.warps, 1, 1], [1, 0, 2])

    @property
    def columns(self) -> int:
        """Columns of the tensor cores' second operand: with four rows, each row twice."""
        return max(self.rows, 8)

    @property
    def mma(self) -> Any:
        """Layout [unit, column] of the tensor cores' sums."""
        return gl.NVMMADistributedLayout([2, 0], [self.warps, 1], [16, 8])

    @property
    def state(self) -> Any:
        """Layout [unit, row] of everything that a step computes."""
        if self.split:
            return gl.SliceLayout(1, self.product)
        if self.rows >= 8:
            return self.mma
        return self._linear([[8, 0]], [[0, 1], [0, 2], [1, 0], [2, 0], [4, 0]])

    @property
    def memory(self) -> Any:
        """Layout [unit, row] for global memory; each thread has the same elements as in `state`."""
        if self.split:
            return self.state
        if self.rows < 8:
            return self._linear([[1, 0]], [[0, 1], [0, 2], [2, 0], [4, 0], [8, 0]])
        own = [[1, 0], [0, 1], *([0, 8 << i] for i in range((self.rows // 8).bit_length() - 1))]
        return self._linear(own, [[0, 2], [0, 4], [2, 0], [4, 0], [8, 0]])

    def _linear(self, own: list[list[int]], lanes: list[list[int]]) -> Any:
        """A layout [unit, row] of the tensor form: 16 units per warp."""
        warps = [[16 << i, 0] for i in range(self.warps.bit_length() - 1)]
        return gl.DistributedLinearLayout(own, lanes, warps, [], [self.units, self.rows])

    @property
    def weight(self) -> Any:
        """Layout [unit, column] of one gate's weights."""
        if self.split:
            return gl.SliceLayout(2, self.product)
        return gl.DotOperandLayout(0, self.mma, 2)

    @property
    def operand(self) -> Any:
        """Layout [column, row] of h as the product reads it."""
        if self.split:
            return gl.SliceLayout(0, self.product)
        return gl.DotOperandLayout(1, self.mma, 2)

    @property
    def shared(self) -> Any:
        """Layout of h in shared memory: columns contiguous; swizzled for the tensor cores."""
        vector = self.split > 0
        return gl.SwizzledSharedLayout(1 if vector else 8, 1, 1 if vector else 8, [0, 1])


def fits_on_chip(hidden_size: int, dtype: torch.dtype, processor: Processor) -> bool:
    """Whether the registers of a multiprocessor, 64 Ki words, hold the recurrent weights."""
    return hidden_size <= (128 if dtype in _HALF and processor.nvidia else 64)


def choose_plan(
    hidden_size: int, batch: int, dtype: torch.dtype, processor: Processor, way: str = "forward"
) -> Plan:
    """The plan of a call. It comes from a table, so that nothing is timed at a first call.

    | hidden | dtype | batch | form | rows | lanes per unit | warps |
    |---|---|---|---|---|---|---|
    | ≤ 32, not forward | float32 | ≤ 2 × SMs | vector | 1 | 4 | 4 |
    | ≤ 32, backward | 16 bits | ≤ 4 × SMs | vector | 1 | 1 | 1 |
    | ≤ 32, otherwise | float32; 16 bits: ≤ 4 × SMs | any | vector | 1 | 2 | 2 |
    | ≤ 64 | float32; 16 bits: ≤ SMs | ≤ 2 × SMs | vector | 1 | 2 | 4 |
    | | | more | vector | 2 | 2 | 4 |
    | ≤ 128, otherwise | 16 bits | ≤ 4 × SMs | tensor | 4 | – | hidden / 16 |
    | | | more | tensor | 8 | – | hidden / 16 |

    A vector program's time grows with its rows; a tensor program takes the same time for 1 to 4
    rows, and less than twice that for 8. So a small batch takes the vector form. Fewer lanes per
    unit are fewer instructions in all, more are a shorter chain; an estimate from the machine code
    decided between them. With two rows per program, the whole batch is on the chip at once where a
    multiprocessor (SM) has room for only two programs. AMD GPUs have the vector form only, with
    twice the lanes per unit.

    Up to 4 × SMs sequences, `Plan.free` holds, except with two rows and for pixels.

    Args:
        hidden_size: H; `fits_on_chip` holds.
        batch: B.
        dtype: of all tensors.
        processor: the GPU.
        way: the kernel: forward, backward or pixels.
    """
    sms, lanes, nvidia = processor
    units = next(u for u in (32, 64, 128) if hidden_size <= u)
    half = dtype in _HALF
    portable = INTERPRETED or not nvidia
    math = "portable" if portable else "fast" if half else "exact"
    free = way != "pixels" and nvidia and batch <= 4 * sms
    crowded = batch > (4 if units == 32 else 1) * sms
    if half and nvidia and (units == 128 or crowded):
        rows = 4 if batch <= 4 * sms else 8
        return Plan(units, rows, 0, units // 16, math, lanes, free)
    few = batch <= 2 * sms
    rows = 1 if units == 32 or few else 2
    split = 2
    if units == 32 and way == "backward" and half and nvidia:
        split = 1
    elif units == 32 and way != "forward" and few:
        split = 4
    split *= 1 if nvidia else 2
    return Plan(units, rows, split, units * split // lanes, math, lanes, free and rows == 1)


# --- steps ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """What a program of a step computes; a compile-time constant.

    Attributes:
        rows: sequences per program: a power of two; 16 or more if `dot`.
        units: hidden units per program: a power of two; 16 or more if `dot`.
        depth: columns of x or h that are multiplied at once.
        dot: multiply by `tl.dot`: on tensor cores, or in exact float32 as tiles of FMAs. Otherwise
            each thread sums up its columns.
        precision: of float32 products: `ieee` or `tf32`.
        warps: warps per program.
        persistent: run all steps in one launch, with a barrier after each.
        free: whether a thread may use as many registers as there are: a multiprocessor has one
            program at most. Otherwise the compiler saves registers for a second one, and may keep
            a number in memory for it.
    """

    rows: int
    units: int
    depth: int
    dot: bool
    precision: str
    warps: int
    persistent: bool
    free: bool

    @property
    def options(self) -> dict[str, int]:
        """Triton's options of a launch."""
        return launch_options(self.warps, self.free)

    def narrow(self, input_size: int) -> bool:
        """Whether a step projects an input of this size itself.

        The columns of a wider one would lengthen each step: one product for all steps is faster.
        """
        return input_size <= 32


# Rows, units, depth and warps of a program whose tiles and sums fit in its registers, smallest
# first, for each arithmetic. AMD GPUs take the smallest.
_STEP_SIZES = {
    "half": [(16, 16, 128, 4), (16, 32, 64, 4), (32, 64, 64, 8)],
    "tf32": [(16, 16, 32, 4), (16, 32, 32, 4), (32, 64, 32, 8)],
    "ieee": [(16, 32, 16, 8), (32, 32, 16, 8)],
}


def choose_step_plan(
    hidden_size: int, batch: int, dtype: torch.dtype, processor: Processor, tf32: bool = False
) -> StepPlan:
    """The plan of a step: the smallest programs of which all run at once.

    Up to 4 rows take the vector form, in which every program has all rows. More rows take one of
    `_STEP_SIZES`. If even the largest size makes more programs than there are multiprocessors, the
    plan is that size, with one launch per step.

    Args:
        hidden_size: H.
        batch: B.
        dtype: of all tensors.
        processor: the GPU.
        tf32: whether float32 products may use TF32.
    """
    sms, lanes, nvidia = processor
    precision = "tf32" if tf32 and dtype == torch.float32 else "ieee"
    if batch <= 4:
        rows = 1 << (batch - 1).bit_length()
        sizes = [(rows, units, min(256, 1024 // (rows * units)), 4) for units in (4, 8, 16)]
    else:
        sizes = _STEP_SIZES[precision if dtype == torch.float32 else "half"]
        if not nvidia:  # 32 lanes have half the registers for the smallest operands
            rows, units, depth, warps = sizes[0]
            sizes = [(rows, units, min(depth, 128 if lanes == 64 else 32), warps)]

    def programs(rows: int, units: int) -> int:
        return -(-batch // rows) * -(-hidden_size // units)

    rows, units, depth, warps = next((s for s in sizes if programs(*s[:2]) <= sms), sizes[-1])
    persistent = programs(rows, units) <= (1 if INTERPRETED else sms)
    free = nvidia and programs(rows, units) <= sms
    return StepPlan(rows, units, depth, batch > 4, precision, warps, persistent, free)
