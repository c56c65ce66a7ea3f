"""The rules: classes of calls in which torch.nn's own path is as fast or faster.

They decide where nothing was measured on the machine at hand, see :mod:`fastrnn.measured`.

An :class:`Entry` describes a class of calls as a box: a range for each size, a value for each other
property. No two boxes overlap, so at most one entry decides a call. The CPU entries were measured
on two cores of Zen 4 and of Zen 5 (AVX-512) with torch 2.14. Those for bfloat16 in pairs were
measured on Zen 5 alone. Measured on Zen 3 (AVX2) were the entries for fewer than 8 steps and for
projected layers, the batches for H >= 1024, and the numbers of rows below which fastrnn trains;
float64 and bfloat16 were timed less closely there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from fastrnn import _compat
from fastrnn.kernels import cpu


class Call(NamedTuple):
    """What the choice of a backend depends on."""

    cell: str  # "LSTM" or "GRU"
    device: str  # torch.device.type
    dtype: torch.dtype
    steps: int
    batch: int
    input_size: int
    hidden_size: int
    training: bool  # gradients will be asked for
    projected: bool = False  # proj_size > 0
    transformed: bool = False  # forward-mode gradients or a functorch transform is active
    in_one_op: bool = False  # without the cost of Python for each layer, or for its kernels
    packed: bool = False  # sequences of several lengths
    device_index: int | None = None  # torch.device.index


@dataclass(frozen=True)
class Range:
    """Sizes from ``least`` up to, but not including, ``end``; None is no bound."""

    least: int = 0
    end: int | None = None

    def __contains__(self, size: int) -> bool:
        return size >= self.least and (self.end is None or size < self.end)

    def __str__(self) -> str:
        if self.end is None:
            return f">={self.least}"
        return f"={self.least}" if self.end == self.least + 1 else f" {self.least}-{self.end - 1}"

    def overlaps(self, other: Range) -> bool:
        """Whether a size lies in both."""
        starts_before = other.end is None or self.least < other.end
        return starts_before and (self.end is None or other.least < self.end)


_ANY = Range()
_Kind = tuple[bool, str, torch.dtype, bool, bool, bool]  # the properties of a call but its sizes


def _kind(call: Call) -> _Kind:
    on_cpu = call.device == _CPU
    return (on_cpu, call.cell, call.dtype, call.training, call.in_one_op, call.projected)


@dataclass(frozen=True)
class Entry:
    """A class of calls for which torch.nn's path is chosen.

    Attributes:
        name: of the entry; part of the reason that ``fastrnn info --explain`` prints.
        because: why torch.nn's path is the faster one.
        on_cpu: whether tensors are on the CPU, or on another device.
        cell, dtype, training, in_one_op, projected, bfloat16, wide_vectors: None stands for any
            value; ``bfloat16`` is one of the results of :func:`bfloat16_products`,
            ``wide_vectors`` says whether torch uses AVX-512 on the processor.
        steps, batch, hidden_size: ranges of T, B and H.
    """

    name: str
    because: str
    on_cpu: bool = True
    cell: str | None = None
    dtype: torch.dtype | None = None
    training: bool | None = None
    in_one_op: bool | None = None
    projected: bool | None = False
    bfloat16: str | None = None
    wide_vectors: bool | None = None
    steps: Range = _ANY
    batch: Range = _ANY
    hidden_size: Range = _ANY

    @property
    def reason(self) -> str:
        """The reason for the choice, with the entry's name."""
        return f"{self.because} (table entry {self.name})"

    def holds(self, call: Call) -> bool:
        """Whether a call belongs to the class."""
        # Sizes come last: under torch.compile each comparison with one may become a guard.
        return (
            self.holds_kind(_kind(call))
            and (self.bfloat16 is None or self.bfloat16 == bfloat16_products())
            and self.wide_vectors in (None, _compat.uses_512_bit_vectors())
            and call.hidden_size in self.hidden_size
            and call.steps in self.steps
            and call.batch in self.batch
        )

    def holds_kind(self, kind: _Kind) -> bool:
        """Whether calls of a kind, of some size and on some processor, belong to the class."""
        on_cpu, cell, dtype, training, in_one_op, projected = kind
        return (
            self.on_cpu == on_cpu
            and self.cell in (None, cell)
            and self.dtype in (None, dtype)
            and self.training in (None, training)
            and self.in_one_op in (None, in_one_op)
            and self.projected in (None, projected)
        )

    def overlaps(self, other: Entry) -> bool:
        """Whether a call can belong to both classes."""
        sizes = ("steps", "batch", "hidden_size")
        texts = ("name", "because")
        choices = [f.name for f in dataclasses.fields(self) if f.name not in (*sizes, *texts)]
        pairs = [(getattr(self, name), getattr(other, name)) for name in choices]
        return all(a is None or b is None or a == b for a, b in pairs) and all(
            getattr(self, name).overlaps(getattr(other, name)) for name in sizes
        )


@_compat.constant_in_graphs
def bfloat16_products() -> str:
    """How bfloat16 numbers are multiplied on this processor.

    Returns:
        "pairs" or "floats" if torch and our kernels multiply them alike, two at a time or as
        float32; "vendor" if torch uses instructions that our kernels lack: the tiles of AMX or,
        where an old compiler built our library, pairs.
    """
    ours = cpu.multiplies_pairs()
    if _compat.multiplies_bfloat16_in_tiles():
        return "vendor"
    if _compat.multiplies_bfloat16_in_pairs() and not ours:
        return "vendor"
    return "pairs" if ours else "floats"


def beats_packed_weights(dtype: torch.dtype, hidden_size: int) -> bool:
    """Whether torch.nn's path is faster than our kernels with weights that are packed already."""
    wide = dtype == torch.bfloat16 and hidden_size >= _WIDE.least
    return wide and bfloat16_products() == "vendor"


_CPU = torch.device("cpu").type
_WIDE = Range(128)  # hidden sizes
_ONE, _SEVERAL = Range(1, 2), Range(2)  # steps
# Why torch trains faster over few steps, with many rows (_PRODUCT) or very few (_VECTOR).
_PRODUCT = "nearly all of the work is a matrix product, at which torch is faster"
_VECTOR = "torch.nn writes the gradients of the weights as fast as memory takes them"


def _entry(
    because: str,
    cell: str | None,
    dtype: torch.dtype,
    training: bool,
    hidden_size: Range,
    steps: Range,
    batch: Range,
    wide_vectors: bool | None = None,
) -> Entry:
    """An entry for CPUs, named after its class; arguments are those of :class:`Entry`."""
    name = f"{cell or 'LSTM, GRU'}, {str(dtype).removeprefix('torch.')}, H{hidden_size}, T{steps}"
    name += "" if batch == _ANY else f", B{batch}"
    name += ", training" if training else ", inference"
    name += ", AVX-512" if wide_vectors else ""
    return Entry(
        name,
        because,
        cell=cell,
        dtype=dtype,
        training=training,
        in_one_op=True if steps == _ONE else None,  # the entry T=1 covers calls that are not
        bfloat16="floats" if dtype == torch.bfloat16 else None,
        wide_vectors=wide_vectors,
        steps=steps,
        batch=batch,
        hidden_size=hidden_size,
    )


def _large_weights() -> Iterator[Entry]:
    """LSTMs with large weights and several rows, with AVX-512; ours never lost in float64."""
    because = "large weights: oneDNN re-reads them less often"
    single, half = torch.float32, torch.bfloat16
    large, huge = Range(512, 1024), Range(1024)
    # fastrnn runs shorter sequences, whose weights it reads in place, and every class without
    # AVX-512. float16 has no entry: our CPU kernels do not support it, so the table is never
    # consulted.
    classes = (
        (single, False, huge, Range(9, 64), Range(12, 64)),
        (single, True, huge, Range(9, 64), Range(12, 64)),
        (single, True, large, Range(8, 64), Range(8, 32)),
        (half, False, huge, Range(9, 64), Range(12, 64)),
        (half, True, huge, Range(9, 64), Range(12, 64)),
        (half, True, large, Range(8, 64), Range(8, 32)),
    )
    for dtype, training, hidden_size, steps, batch in classes:
        yield _entry(because, "LSTM", dtype, training, hidden_size, steps, batch, wide_vectors=True)


_BFLOAT16 = Entry(
    "LSTM, bfloat16, H>=128, B>=8",
    "oneDNN multiplies bfloat16 with instructions that our kernels lack",
    cell="LSTM",
    dtype=torch.bfloat16,
    bfloat16="vendor",
    steps=_SEVERAL,
    batch=Range(8),
    hidden_size=_WIDE,
)


def _in_pairs() -> Iterator[Entry]:
    """Few steps of many rows, for which our kernels read the weights in place."""
    for least, steps in ((256, _ONE), (512, Range(2, 3)), (768, Range(3, 4)), (1024, Range(4, 5))):
        hidden_size, batch = Range(least), Range(64)
        yield Entry(
            f"bfloat16, H{hidden_size}, T{steps}, B{batch}, in pairs",
            _PRODUCT,
            dtype=torch.bfloat16,
            in_one_op=True if steps == _ONE else None,
            bfloat16="pairs",
            steps=steps,
            batch=batch,
            hidden_size=hidden_size,
        )


UNTIMED = Entry(
    "GPU",
    "our GPU kernels have not been timed yet; force a backend of ours to use them",
    on_cpu=False,
    projected=None,
)


def _short_trainings() -> Iterator[Entry]:
    """Training over a few time steps with large weights and many rows, or very few."""
    single, double = torch.float32, torch.float64
    classes = (
        (_PRODUCT, "GRU", single, Range(288), _ONE, Range(160)),
        (_PRODUCT, "GRU", single, Range(384), Range(2, 3), Range(192)),
        (_PRODUCT, None, double, Range(512), _ONE, Range(128)),
        (_VECTOR, "LSTM", double, Range(192), _ONE, Range(0, 2)),
        (_PRODUCT, None, double, Range(1024), Range(2, 8), Range(128)),
    )
    for because, cell, dtype, hidden_size, steps, batch in classes:
        yield _entry(because, cell, dtype, True, hidden_size, steps, batch)


def _projections() -> Iterator[Entry]:
    """LSTMs with a projection whose call does not run in one op."""
    classes = (
        (False, _ANY, _ANY),
        (True, Range(0, 96), Range(0, 3)),
        (True, Range(96, 192), Range(0, 16)),
        (True, Range(192, 288), Range(0, 40)),
        (True, Range(288), _ANY),
    )
    for training, hidden_size, steps in classes:
        sizes = (("H", hidden_size), ("T", steps))
        words = [f"{size}{range}" for size, range in sizes if range != _ANY]
        words.append("training" if training else "inference")
        yield Entry(
            ", ".join(["projected LSTM", *words]),
            "our recurrent weights are larger than torch's, and are computed in each call",
            cell="LSTM",
            training=training,
            in_one_op=False,
            projected=True,
            steps=steps,
            hidden_size=hidden_size,
        )


TABLE: tuple[Entry, ...] = (
    UNTIMED,
    Entry("T=1", "one step: no weights to keep on chip", in_one_op=False, steps=_ONE),
    _BFLOAT16,
    dataclasses.replace(
        _BFLOAT16,
        name="bfloat16, T=1, H>=128, B>=8, in one op",
        cell=None,
        in_one_op=True,
        steps=_ONE,
    ),
    dataclasses.replace(
        _BFLOAT16,
        name="GRU, bfloat16, H>=512, B>=32",
        cell="GRU",
        batch=Range(32),
        hidden_size=Range(512),
    ),
    *_in_pairs(),
    *_large_weights(),
    *_short_trainings(),
    *_projections(),
)


_by_kind: dict[_Kind, tuple[Entry, ...]] = {}  # the entries that may hold calls of a kind


def entry_for(call: Call) -> Entry | None:
    """The entry by which torch.nn's path runs a call; None if there is none."""
    entries = TABLE
    if not torch.compiler.is_compiling():  # testing every entry would take half of the choice
        kind = _kind(call)
        if kind not in _by_kind:
            _by_kind[kind] = tuple(entry for entry in TABLE if entry.holds_kind(kind))
        entries = _by_kind[kind]
    for entry in entries:
        if entry.holds(call):
            return entry
    return None
