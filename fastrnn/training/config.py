"""The settings that the training loop needs; a task extends them with its own."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch

from fastrnn import backends

ConfigT = TypeVar("ConfigT", bound="Config")


class ConfigError(ValueError):
    """An invalid setting; the message is one line: what was given, what was expected, the fix.

    Attributes:
        setting: the name of the setting, if the message begins with it; otherwise empty.
    """

    def __init__(self, message: str, setting: str = "") -> None:
        super().__init__(message)
        self.setting = setting


def suggestion(given: object, names: Iterable[str]) -> str:
    """``; did you mean NAME?`` if a name resembles what was given, otherwise an empty string."""
    close = difflib.get_close_matches(str(given), list(names), 1)
    return f"; did you mean {close[0]}?" if close else ""


@dataclass(frozen=True)
class Config:
    """The loop's settings, checked on construction. A task's settings extend this class.

    Attributes:
        epochs: passes over the training set.
        batch_size: examples per step.
        learning_rate: Adam's; its peak where the schedule changes it.
        schedule: ``constant``, or ``cosine``: half a cosine down to 0 at the last step.
        warmup: share of all steps in which the rate rises linearly, in [0, 1).
        clip: largest norm of the gradient; 0 for no limit.
        seed: of the initial weights, the shuffles and every other random draw.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        backend: a backend to force, or ``auto``.
        checkpoint_seconds: time between checkpoints within an epoch; each epoch also ends with one.
        accumulate: parts that a step works on one after the other, so that large batches fit into
            memory; the step is the same but for rounding.

    Raises:
        ConfigError: a setting is invalid.
    """

    epochs: int = 1
    batch_size: int = 200
    learning_rate: float = 1e-3
    schedule: str = "constant"
    warmup: float = 0.0
    clip: float = 0.0
    seed: int = 0
    device: str = "auto"
    backend: str = "auto"
    checkpoint_seconds: float = 60.0
    accumulate: int = 1

    added: ClassVar[frozenset[str]] = frozenset({"accumulate"})  # settings that older runs lack

    def __post_init__(self) -> None:
        self._one_of("schedule", "constant", "cosine")
        self._one_of("backend", "auto", *backends.BACKENDS)
        self._sizes("epochs", "batch_size", "accumulate")
        self._number("seed", int, "0 to 2^63 - 1", lambda n: 0 <= n < 1 << 63)
        for name in ("learning_rate", "checkpoint_seconds"):
            self._number(name, float, "more than 0", lambda n: n > 0)
        self._shares("warmup")
        self._number("clip", float, "0 (no limit) or more", lambda n: n >= 0)
        self._device()

    def _device(self) -> None:
        given = self.device
        if not isinstance(given, str) or not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", given):
            raise ConfigError(f"device is {given!r}; expected auto, cpu, cuda or cuda:N", "device")

    @property
    def missing_device(self) -> str | None:
        """What to say if torch does not see the device of these settings; else None."""
        count = torch.cuda.device_count()
        if self.device in ("auto", "cpu") or int(self.device.partition(":")[2] or 0) < count:
            return None
        found = f"only {count}" if count else "no GPU"
        return f"device is {self.device!r}, but torch sees {found}"

    def _one_of(self, name: str, *choices: str) -> None:
        if (given := getattr(self, name)) not in choices:
            close = suggestion(given, choices)
            expected = f"expected one of {', '.join(choices)}{close}"
            raise ConfigError(f"{name} is {given!r}; {expected}", name)

    def _sizes(self, *names: str) -> None:
        for name in names:
            self._number(name, int, "1 to 2^31 - 1", lambda n: 1 <= n < 1 << 31)

    def _shares(self, *names: str) -> None:
        for name in names:
            self._number(name, float, "in [0, 1)", lambda n: 0 <= n < 1)

    def _number(self, name: str, kind: type, values: str, valid: Callable[[Any], bool]) -> None:
        given = getattr(self, name)
        kinds = (int, float) if kind is float else (int,)
        is_number = isinstance(given, kinds) and not isinstance(given, bool)
        if not is_number or not _is_finite(given) or not valid(given):
            expected = "a whole number" if kind is int else "a finite number"
            raise ConfigError(f"{name} is {given!r}; expected {expected}, {values}", name)

    @classmethod
    def from_json(cls: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
        """The settings stored in a config.json; settings that older runs lack get their defaults.

        Raises:
            ConfigError: a setting is unknown, missing or invalid.
        """
        names = {f.name for f in dataclasses.fields(cls)}
        if unmatched := sorted((names ^ set(values)) - (cls.added - set(values))):
            raise ConfigError(f"unknown or missing settings: {', '.join(unmatched)}")
        return cls(**values)

    def pinned(self: ConfigT) -> ConfigT:
        """These settings with the device found instead of ``auto``; a resumed run uses it too.

        Raises:
            ConfigError: torch does not see the device.
        """
        if self.missing_device:
            raise ConfigError(f"{self.missing_device}; use --device cpu", "device")
        if self.device != "auto":
            return self
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return dataclasses.replace(self, device=device)

    def use_backend(self) -> contextlib.AbstractContextManager[None]:
        """A context that forces the backend of these settings; with ``auto`` it does nothing."""
        if self.backend == "auto":
            return contextlib.nullcontext()
        return backends.backend(self.backend)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step: a linear rise, then constant or half a cosine down to 0.

        Args:
            step: the step, counted from 0 over all epochs.
            steps: how many there are in all epochs.
        """
        warmup = round(self.warmup * steps)
        if step < warmup:
            return self.learning_rate * (step + 1) / (warmup + 1)
        if self.schedule == "constant":
            return self.learning_rate
        return (
            self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
        )


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number of hundreds of digits
        return False
