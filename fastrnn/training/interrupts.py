"""SIGINT and SIGTERM, held back until the run's state is consistent."""

from __future__ import annotations

import signal
from types import FrameType


class Interrupted(Exception):
    """The user or the system asked the run to stop; its state has been saved.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Signals:
    """A context that holds SIGINT and SIGTERM back until :meth:`check` is called.

    A second signal acts at once.
    """

    def __enter__(self) -> Signals:
        self._received = 0
        self._previous = {
            number: signal.signal(number, self._receive)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        self.__exit__()

    def check(self) -> None:
        """Call where the state is consistent.

        Raises:
            Interrupted: a signal has arrived.
        """
        if self._received:
            raise Interrupted(self._received)
