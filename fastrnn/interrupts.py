"""Being asked to stop: signals that wait until the state is whole."""

from __future__ import annotations

import signal
from types import FrameType


class Interrupted(Exception):
    """The user, or the system, asked the run to stop; its state is on disk."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Signals:
    """Keeps SIGINT and SIGTERM until the loop reaches a place where its state is whole.

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
        """Raises Interrupted if a signal has come."""
        if self._received:
            raise Interrupted(self._received)
