"""The choice by measurements: which of them are in use, and when to take more.

The environment variable FASTRNN_TUNING, read at the first call on a device, says what may happen:

- unset: existing tables are used. On GPUs, a class of calls that the table lacks is measured
  when it first occurs in eager code.
- ``on``: CPUs measure too.
- ``off``: no table is used and nothing is measured.

Where nothing was measured, the rules in :mod:`fastrnn.tuning` decide.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fastrnn import _compat, tables
from fastrnn.tables import CallClass, Key, Results
from fastrnn.tuning import Call as Call  # noqa: PLC0414  (for callers, too)

VARIABLE = "FASTRNN_TUNING"
_CPU = torch.device("cpu").type
_GPU = torch.device("cuda").type


class Table:
    """What this process knows about a device model.

    Attributes:
        key: what the table is valid for; None for a device that is never measured.
        results: by class.
        verdicts: the backend for each class and the reason, which calls look up.
        measures: whether missing classes are measured.
        tried: classes whose measurement has begun in this process.
        removed: backends that are not tried again on this device, with the reason.
    """

    def __init__(self, key: Key | None = None, removed: dict[str, str] | None = None) -> None:
        self.key, self.measures = key, False
        self.results: Results = {}
        self.verdicts: dict[CallClass, tuple[str, str]] = {}
        self.tried: dict[CallClass, object] = {}
        self.removed = removed or {}

    def add(self, results: Results) -> None:
        """Adds results; later calls use them."""
        self.results.update(results)
        self.verdicts.update({kind: (r.backend, r.reason) for kind, r in results.items()})
        forget()

    @contextlib.contextmanager
    def trial(self, kind: CallClass) -> Iterator[Callable[[str], None]]:
        """Yields a function that makes calls of a class run on a backend, until the block ends."""
        before = self.verdicts.get(kind)

        def switch(backend: str) -> None:
            self.verdicts[kind] = (backend, "it is being measured")
            forget()

        try:
            yield switch
        finally:
            if before is None:
                self.verdicts.pop(kind, None)
            else:
                self.verdicts[kind] = before
            forget()


_by_device: dict[tuple[str, int | None], Table] = {}
_by_key: dict[Key, Table] = {}  # two devices of a model share a table

# Takes a measurement and adds its result, if any, to the table; set by fastrnn/__init__.py.
measure_class: Callable[[Call, Table], None] | None = None
# Called when a choice may have changed.
listeners: list[Callable[[], None]] = []


def forget() -> None:
    """Notifies everything that caches choices that some may have changed."""
    for listener in listeners:
        listener()


def reset() -> None:
    """Forgets all tables; the next call reads FASTRNN_TUNING and the files again."""
    _by_device.clear()
    _by_key.clear()
    forget()


def lookup(call: Call, measure: bool = False) -> tuple[str, str] | None:
    """The backend that was measured to be the fastest for a call, and the times behind it.

    Args:
        call: the call to look up.
        measure: whether the call may be measured, as calls in eager code may.

    Returns:
        None if nothing was measured; the rules then decide.
    """
    table = _by_device.get((call.device, call.device_index))
    if table is None:
        table = _opened(call)
    measure = measure and table.measures
    if not measure and not table.verdicts:
        return None
    kind = tables.class_of(call)
    if kind is None:
        return None
    found = table.verdicts.get(kind)
    if found is None and measure and measure_class is not None and _claimed(call, kind, table):
        measure_class(call, table)
        found = table.verdicts.get(kind)
    return found


def is_settled(call: Call) -> bool:
    """Whether :func:`lookup` will measure no call like this one, on its device."""
    table = _by_device.get((call.device, call.device_index))
    return table is not None and not table.measures


def _claimed(call: Call, kind: CallClass, table: Table) -> bool:
    """Whether this thread should measure a class now; no class is measured twice in a process."""
    if (
        kind in table.tried
        or call.transformed
        or torch.compiler.is_compiling()
        or _compat.is_tracing()
        or _compat.calls_are_intercepted()
        or (call.device == _GPU and torch.cuda.is_current_stream_capturing())
    ):
        return False
    mine = object()
    return table.tried.setdefault(kind, mine) is mine  # of several threads, one gets in


def _opened(call: Call) -> Table:
    """The table of a call's device, read from its file if there is one."""
    mode = _mode()
    on_cpu = call.device == _CPU
    measures = mode == "on" or (mode == "" and not on_cpu)
    if call.device not in (_CPU, _GPU) or mode == "off" or not (measures or tables.any_files()):
        table = Table()  # skips looking up the versions, which takes milliseconds
    else:
        table = table_of(tables.device_of(call))
        table.measures = measures
    return _by_device.setdefault((call.device, call.device_index), table)


def table_of(device: torch.device) -> Table:
    """The table of a device; an empty one if the device cannot be identified."""
    try:
        key = tables.key_of(device)
    except (RuntimeError, AssertionError):  # torch without CUDA, or no such device
        return Table()
    if key not in _by_key:
        table = Table(key, removed=tables.load_removed(key))
        table.add(tables.load(key))
        _by_key.setdefault(key, table)
    return _by_key[key]


def use(device: torch.device) -> Table:
    """The table of a device, for measuring on purpose; calls use it whatever FASTRNN_TUNING is."""
    index: Any = device.index
    if index is None and device.type == _GPU:
        index = torch.cuda.current_device()
    table = table_of(device)
    _by_device[device.type, index] = table
    return table


def _mode() -> str:
    """``on``, ``off``, or an empty string for neither."""
    mode = os.environ.get(VARIABLE, "").strip().lower()
    if mode not in ("", "on", "off"):
        warnings.warn(
            f"{VARIABLE} is {mode!r}; expected on or off, so it counts as unset",
            RuntimeWarning,
            stacklevel=2,
        )
        return ""
    return mode
