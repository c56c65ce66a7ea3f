"""Takes the measurements behind the choice: checks every backend's numbers, then times it.

A measurement runs in its own thread, so that the caller's state does not affect it: autocast,
gradient modes, hooks on saved tensors, a forced backend and torch's modes all belong to a thread.
The caller waits. torch.nn's own path is timed like the others, in turn with them, and wins a tie.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import statistics
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from fastrnn import backends, measured, tables
from fastrnn.backends import Call
from fastrnn.choice import VENDOR
from fastrnn.examples import Example, example_of, shortened, wrong_numbers
from fastrnn.measured import Table
from fastrnn.tables import Result

BUDGET = 0.3  # seconds of timing for a class, not counting compilation and checking the numbers
TIE = 0.98  # a backend of ours must take less than this share of torch.nn's time
_SAMPLE = 1e-3  # seconds that one timing should take at least; short calls are repeated
_LEAST_ROUNDS, _MOST_ROUNDS, _MOST_REPEATS = 3, 25, 200
_MOST_SECONDS = 10.0  # for a GPU to finish a call, not counting compilation
_HOPELESS = 4  # a backend this many times as slow as torch.nn is timed only once


Clock = Callable[[Callable[[], object], int], float]

_log = logging.getLogger("fastrnn")
_CPU = torch.device("cpu").type
_lock = threading.Lock()  # one measurement at a time
_warned: set[tuple[str, str]] = set()  # a backend and what was wrong with it


# ---- time


def clock_for(device: torch.device) -> Clock:
    """A function that times calls on a device: the seconds per call of several in a row."""
    return _processor_seconds if device.type == _CPU else _gpu_seconds


def _processor_seconds(run: Callable[[], object], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - start) / times


def _gpu_seconds(run: Callable[[], object], times: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / times


def fastest(times: dict[str, float]) -> str:
    """The fastest backend; torch.nn's path unless another is clearly faster."""
    name = min(times, key=lambda each: times[each])
    return name if times[name] < TIE * times[VENDOR] else VENDOR


# ---- a measurement


class _FailedError(Exception):
    """torch.nn's own path failed, so there is nothing to compare with."""


class Measurement:
    """One class of calls being measured.

    Args:
        call: of the class.
        table: of the device.
        clock: see :func:`clock_for`.
    """

    def __init__(self, call: Call, table: Table, clock: Clock) -> None:
        self.table, self.clock = table, clock
        self.call = shortened(call)
        self.rejected: dict[str, str] = {}
        self.lasting = True  # whether the result holds for other processes too
        self.removed: dict[str, str] = {}  # backends after which the device was unusable
        self.messages: list[str] = []  # warnings, which the caller's thread issues

    def candidates(self) -> list[str]:
        """The backends that could run the call, other than torch.nn's path."""
        return [
            name
            for name in backends.BACKENDS
            if name not in (VENDOR, backends.REFERENCE.name, *self.table.removed)
            and backends.unsupported(name, self.call) is None
        ]

    def run(self) -> Result | None:
        """The result; None if no other backend can run the call, or torch.nn's path fails."""
        names = self.candidates()
        if not names:
            return None
        try:
            example = example_of(self.call)
            with backends.backend(VENDOR):
                wanted = example.run()
        except Exception as error:
            _log.debug("not measured, because torch.nn's path fails: %s", error)
            return None
        agreeing = []
        for name in names:
            if self._agrees(name, example, wanted):
                agreeing.append(name)
            if self.removed:
                return None  # nothing more can be run on this device
        del wanted
        try:
            times = self._times(agreeing, example)
        except _FailedError as error:
            _log.debug("not measured, because torch.nn's path fails: %s", error)
            return None
        microseconds = {name: float(f"{seconds * 1e6:.4g}") for name, seconds in times.items()}
        size = (self.call.batch, self.call.steps, self.call.input_size)
        date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        return Result(fastest(times), microseconds, self.rejected, size, date)

    def _agrees(self, name: str, example: Example, wanted: Any) -> bool:
        """Whether a backend runs the call and its numbers are right."""
        try:
            with backends.backend(name):
                found = example.run()
            wait_for(self.call)
            wrong = wrong_numbers(example, found, wanted)
        except Exception as error:
            self._failed(name, error)
            return False
        if wrong is None:
            return True
        self.rejected[name] = f"wrong numbers, {wrong}"
        self._warn(
            name, "wrong",
            f"fastrnn: backend {name!r} gave wrong numbers and is not used for such calls: "
            f"{wrong}. Please report this as a bug in fastrnn, with this: {self._described()}",
        )  # fmt: skip
        return False

    def _failed(self, name: str, error: Exception) -> None:
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            self.lasting = False  # another process may have more
        self.rejected[name] = f"failed with {type(error).__name__}: {first}"
        remedy = "torch.nn's or another backend runs them"
        if isinstance(error, TimeoutError) or not self._device_works():
            self.removed[name] = self.table.removed[name] = self.rejected[name]
            remedy = "restart this program, because it can no longer use the device"
        self._warn(
            name, "failed",
            f"fastrnn: backend {name!r} failed and is not used for such calls; {remedy}: "
            f"{self.rejected[name]} ({self._described()})",
        )  # fmt: skip

    def _device_works(self) -> bool:
        """Whether an error left the device usable; some CUDA errors make it unusable."""
        try:
            if self.call.device != _CPU:
                torch.cuda.synchronize(self.call.device_index)
        except Exception:
            return False
        return True

    def _warn(self, name: str, what: str, message: str) -> None:
        if (name, what) not in _warned:
            _warned.add((name, what))
            self.messages.append(message)

    def _described(self) -> str:
        key = self.table.key
        return f"{tables.class_of(self.call)}; {', '.join(key) if key else self.call.device}"

    def _times(self, names: list[str], example: Example) -> dict[str, float]:
        """The median time of torch.nn's path and of each backend, in seconds."""
        kind = tables.class_of(self.call)
        assert kind is not None
        run = example.run if self.call.training else example.forward
        samples: dict[str, list[float]] = {}
        with self.table.trial(kind) as switch, torch.set_grad_enabled(self.call.training):

            def seconds(name: str, times: int) -> float | None:
                try:
                    switch(name)
                    run()  # not timed: it makes the choice anew, which calls rarely do
                    return self.clock(run, times)
                except Exception as error:
                    if name == VENDOR:
                        raise _FailedError(str(error)) from error
                    self._failed(name, error)
                    samples.pop(name, None)
                    return None

            for name in (VENDOR, *names):
                if (first := seconds(name, 1)) is not None:
                    samples[name] = [first]
            first_of = {name: values[0] for name, values in samples.items()}
            spent = 2 * sum(first_of.values())
            racing = [n for n in samples if first_of[n] <= _HOPELESS * first_of[VENDOR]]
            repeats = {
                n: min(_MOST_REPEATS, 1 + int(_SAMPLE / max(first_of[n], 1e-9))) for n in racing
            }
            rounds = 0
            while len(racing) > 1 and rounds < _MOST_ROUNDS:
                if rounds >= _LEAST_ROUNDS and spent >= BUDGET:
                    break
                for name in racing if rounds % 2 else racing[::-1]:
                    if name in samples and (took := seconds(name, repeats[name])) is not None:
                        samples[name].append(took)
                        spent += (1 + repeats[name]) * took
                rounds += 1
        return {n: statistics.median(values[1:] or values) for n, values in samples.items()}


def stream_of(call: Call) -> Any:
    """The stream on which the caller's work is queued; None on a CPU."""
    return None if call.device == _CPU else torch.cuda.current_stream(call.device_index)


def wait_for(call: Call) -> None:
    """Waits until a call's device has done its work.

    Raises:
        TimeoutError: it is not done after 10 seconds.
    """
    if call.device == _CPU:
        return
    event, deadline = torch.cuda.Event(), time.monotonic() + _MOST_SECONDS
    event.record()
    while not event.query():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the device is not done after {_MOST_SECONDS:.0f} seconds")
        time.sleep(1e-4)


def measure(call: Call, table: Table) -> Result | None:
    """Measures the class of a call, and adds the result to the table and to the user's file.

    Args:
        call: its sizes are timed, with fewer steps if it is long.
        table: of the call's device.

    Returns:
        The result; None if there was nothing to measure.

    Warns:
        RuntimeWarning: a backend failed or gave wrong numbers; once per backend.
    """
    kind = tables.class_of(call)
    if kind is None:
        return None
    found: list[Result] = []
    messages: list[str] = []
    stream = stream_of(call)

    def work() -> None:
        context: Any = contextlib.nullcontext() if stream is None else torch.cuda.stream(stream)
        with _lock, context:
            measurement = Measurement(call, table, clock_for(tables.device_of(call)))
            try:
                if stream is not None:
                    stream.synchronize()  # finishes the caller's work before timing
                result = measurement.run()
                if result is not None:
                    found.append(result)
                    table.add({kind: result})
                new = {kind: result} if result is not None and measurement.lasting else {}
                if new or measurement.removed:
                    _save(table, new, measurement.removed)
            except Exception as error:  # whatever it is, the rules can still decide
                _log.debug("not measured: %s", error, exc_info=True)
            messages.extend(measurement.messages)

    try:
        thread = threading.Thread(target=work, name="fastrnn-measuring", daemon=True)
        thread.start()
    except RuntimeError:  # no more threads, or the interpreter is ending
        return None
    thread.join()
    for message in messages:
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return found[0] if found else None


def _save(table: Table, new: tables.Results, removed: dict[str, str]) -> None:
    if table.key is None:
        return
    try:
        tables.save(table.key, new, removed)
    except OSError as error:
        _log.debug("the measured times cannot be kept: %s", error)


def _after_fork() -> None:
    """Frees the lock in a forked child, where no thread would finish a running measurement."""
    global _lock  # noqa: PLW0603
    if _lock.locked():
        _lock = threading.Lock()
        measured.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
