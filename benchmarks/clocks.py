"""Clocks that time parts of a call: the host's for CPU, device events for CUDA."""

import time
from typing import Any, Protocol

import torch

_FLUSH_BYTES = 256 << 20  # more than any GPU's second-level cache


class Clock(Protocol):
    """Marks points in time; what a mark is belongs to the clock."""

    shortest_sample: float  # seconds; shorter calls are timed several at once
    cold_start: bool  # a first call may compile and load for far longer than it runs

    def prepare(self) -> None:
        """Called once before each sample."""

    def mark(self) -> Any:
        """The present."""

    def seconds(self, start: Any, end: Any) -> float:
        """The time between two marks; waits for the device where there is one."""


class HostClock:
    """time.perf_counter."""

    shortest_sample = 5e-3  # so that a first call, cold after the other side's, counts little
    cold_start = False

    def prepare(self) -> None:
        """Nothing to prepare."""

    def mark(self) -> float:
        """The present."""
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        """The time between two marks."""
        return end - start


class DeviceClock:
    """CUDA events on the current stream; each sample starts with cold caches.

    Clearing the cache also keeps the device busy while the host issues the first launches, so that
    device time is measured and not the host's.
    """

    shortest_sample = 0.0
    cold_start = True

    def __init__(self, device: torch.device) -> None:
        self._flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device)

    def prepare(self) -> None:
        """Evict the caches."""
        self._flush.zero_()

    def mark(self) -> torch.cuda.Event:
        """The point that the device reaches after all that was issued so far."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """The device's time between two marks."""
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def clock_for(device: torch.device) -> Clock:
    """The clock that tells the time of work on ``device``."""
    return DeviceClock(device) if device.type == "cuda" else HostClock()
