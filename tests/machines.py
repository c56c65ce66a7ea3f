"""GPUs that are not there: devices, clock and backends, for tests of the measured choice."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastrnn import backends, measured, measuring, tables
from fastrnn.backends import Call
from fastrnn.tables import Key


@dataclasses.dataclass
class Machine:
    """A machine with GPUs.

    Attributes:
        seconds: per call, by backend; those that it lists can run a call.
        errors: how far a backend's numbers are off, as a share of them.
        raises: what a backend raises, in place of running.
        raises_when_timed: the same, but not in the check of its numbers.
        models: of its GPUs.
        ran: the backends of all calls.
        timed: seconds that the clock has counted.
        capturing: whether a CUDA graph is being captured.
        dead: whether an error has made the device unusable.
        endless: a backend whose calls do not end.
    """

    seconds: dict[str, float]
    errors: dict[str, float] = dataclasses.field(default_factory=dict)
    raises: dict[str, Exception] = dataclasses.field(default_factory=dict)
    raises_when_timed: dict[str, Exception] = dataclasses.field(default_factory=dict)
    models: list[str] = dataclasses.field(default_factory=lambda: ["Fake GPU"])
    ran: list[str] = dataclasses.field(default_factory=list)
    timed: float = 0.0
    capturing: bool = False
    dead: bool = False
    endless: str | None = None

    def clock(self, run: Any, times: int) -> float:
        """What the backend that runs takes."""
        run()
        self.timed += self.seconds[self.ran[-1]] * times
        return self.seconds[self.ran[-1]]

    def unsupported(self, name: str, call: Call) -> str | None:
        """In the place of backends.unsupported."""
        return None if name in self.seconds else f"{name} is not there"

    def key_of(self, device: torch.device) -> Key:
        """In the place of tables.key_of."""
        return Key(self.models[device.index or 0], "2.14", "cuDNN 9", "0.1")

    def synchronize(self, device: int | None) -> None:
        """In the place of torch.cuda.synchronize."""
        if self.dead:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def wait_for(self, call: Call) -> None:
        """In the place of measuring.wait_for."""
        if self.ran[-1] == self.endless:
            raise TimeoutError("the device is not done after 10 seconds")

    @property
    def measurements(self) -> int:
        """How many times something was timed; torch.nn's path is the first in each."""
        return self.ran.count("start")


@dataclasses.dataclass
class Example:
    """In the place of fastrnn.examples.Example: one number and its gradient."""

    machine: Machine
    call: Call
    exact: bool = False

    def run(self) -> tuple[list[Tensor], list[Tensor]]:
        """Results and gradients of the backend that is chosen."""
        forced = backends.forced_backend()
        name = backends.choose(self.call).backend
        self.machine.ran.append(name)
        for raised in (self.machine.raises, {} if forced else self.machine.raises_when_timed):
            if name in raised:
                raise raised[name]
        error = 0.0 if self.exact else self.machine.errors.get(name, 0.0)
        values = [torch.full((3,), 1 + error, dtype=torch.float64)]
        return values, values if self.call.training else []

    def forward(self) -> list[Tensor]:
        """The results alone."""
        return self.run()[0]

    def in_float64(self) -> Example:
        """The call without torch.nn's own errors."""
        return dataclasses.replace(self, exact=True)


def call(**changes: Any) -> Call:
    """A call on a GPU."""
    values = {
        "cell": "LSTM", "device": "cuda", "dtype": torch.float16, "steps": 40, "batch": 17,
        "input_size": 1, "hidden_size": 64, "training": True, "device_index": 0,
    }  # fmt: skip
    return Call(**{**values, **changes})


@contextlib.contextmanager
def replaced(machine: Machine, folder: Path) -> Iterator[Machine]:
    """Puts a machine in the place of this one, with its tables in a folder."""

    def example_of(call: Call) -> Example:
        machine.ran.append("start")
        return Example(machine, call)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTRNN_CACHE_DIR", str(folder))
        patch.setattr(tables, "key_of", machine.key_of)
        patch.setattr(backends, "unsupported", machine.unsupported)
        patch.setattr(measuring, "example_of", example_of)
        patch.setattr(measuring, "clock_for", lambda device: machine.clock)
        patch.setattr(measuring, "stream_of", lambda call: None)
        patch.setattr(measuring, "wait_for", machine.wait_for)
        patch.setattr(measuring, "_warned", set())
        patch.setattr(torch.cuda, "synchronize", machine.synchronize)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: machine.capturing)
        measured.reset()
        yield machine
    measured.reset()
