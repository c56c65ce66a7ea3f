"""Clocks that time the parts of a call: the host's clock for CPUs, events for CUDA devices."""

import time
from typing import Any, Protocol

import torch

_FLUSH_BYTES = 256 << 20  # larger than any GPU's L2 cache


class Clock(Protocol):
    """Marks points in time, each clock in its own way, and measures the time between two."""

    shortest_sample: float  # seconds; several calls are timed together until they take this long
    cold_start: bool  # the first call may compile kernels, which takes far longer than running them

    def prepare(self) -> None:
        """Gets ready for a sample; called once before each."""

    def mark(self) -> Any:
        """Marks the present."""

    def seconds(self, start: Any, end: Any) -> float:
        """The time between two marks; waits until the device has reached the second one."""


class HostClock:
    """The clock of the host, ``time.perf_counter``."""

    shortest_sample = 5e-3  # the first call finds the other peer's data in the caches
    cold_start = False

    def prepare(self) -> None:
        """Does nothing."""

    def mark(self) -> float:
        """Marks the present."""
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        """The time between two marks."""
        return end - start


class DeviceClock:
    """CUDA events on the current stream.

    Each sample starts with cold caches. Clearing them also keeps the device busy while the host
    issues the first launches, so that the device's time is measured and not the host's.
    """

    shortest_sample = 0.0
    cold_start = True

    def __init__(self, device: torch.device) -> None:
        self._flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device)

    def prepare(self) -> None:
        """Evicts the device's L2 cache."""
        self._flush.zero_()

    def mark(self) -> torch.cuda.Event:
        """Marks the point at which the device has done all work issued so far."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """The device's time between two marks; waits for the second one."""
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def clock_for(device: torch.device) -> Clock:
    """The clock that measures work on ``device``."""
    return DeviceClock(device) if device.type == "cuda" else HostClock()
