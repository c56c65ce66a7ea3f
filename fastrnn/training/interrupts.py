"""SIGINT, SIGTERM and SIGHUP: immediate, except where a training holds them back."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from fastrnn._signals import NUMBERS
from fastrnn.training import distributed

_cleanups: list[Callable[[], object]] = []
_postponing = 0  # how many blocks of postponed() are open
_arrived = 0  # the number of a signal that waits for their end


class Interrupted(Exception):
    """The user or the system asked the run to stop; its state has been saved.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


@contextlib.contextmanager
def immediate() -> Iterator[None]:
    """In the block, a signal ends the process after the actions that :func:`cleanup` registered.

    The exit status is 128 plus the signal's number. No exception is raised, because a signal can
    arrive in code that prints or swallows exceptions.
    """
    with _handled(_end):
        yield


@contextlib.contextmanager
def cleanup(action: Callable[[], object]) -> Iterator[None]:
    """In the block, a signal that ends the process calls ``action`` first."""
    _cleanups.append(action)
    try:
        yield
    finally:
        _cleanups.remove(action)


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """In the block, which must be short, a signal that ends the process waits for the block's end.

    Use it for code that creates something and registers its :func:`cleanup`.
    """
    global _postponing  # noqa: PLW0603
    _postponing += 1
    try:
        yield
    finally:
        _postponing -= 1
        if _arrived and not _postponing:
            _end(_arrived, None)


def _end(number: int, frame: FrameType | None) -> None:
    global _arrived  # noqa: PLW0603
    if _postponing:
        _arrived = number
        return
    for action in reversed(_cleanups):
        with contextlib.suppress(Exception):
            action()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(128 + number)


@contextlib.contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Sets a handler for each of the signals that is not ignored, as SIGHUP is under nohup."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    previous = {number: signal.getsignal(number) for number in NUMBERS}
    taken = [number for number, old in previous.items() if old != signal.SIG_IGN]
    for number in taken:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, previous[number])


class Signals:
    """A context that holds signals back until :meth:`check` is called.

    A second signal acts at once, unless several processes train together: torchrun passes on a
    signal that its processes have already received from the terminal.

    Attributes:
        received: the number of a signal that has arrived, or 0.
    """

    received = 0

    def __enter__(self) -> Signals:
        self._context = contextlib.ExitStack()
        self._context.enter_context(_handled(self._receive))
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if distributed.size() == 1:
            self._context.close()

    def check(self) -> None:
        """Call where the state is consistent, in every process at the same place.

        Raises:
            Interrupted: a signal has arrived, in this process or in another one.
        """
        (number,) = distributed.most(self.received)
        if number:
            raise Interrupted(number)
