"""The settings of a run, checked when they are made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fastrnn import backends, reset_before


class ConfigError(ValueError):
    """A setting that cannot be; the message is one line: given, expected, remedy."""


@dataclass(frozen=True)
class Config:
    """Every setting of a run. A task that needs more of them extends this class."""

    dataset: str = "auto"
    data_dir: str | None = None
    pixels: str = "binary"
    cell: str = "GRU"
    hidden_size: int = 32
    num_layers: int = 1
    initialisation: str = "torch"
    epochs: int = 1
    batch_size: int = 200
    learning_rate: float = 1e-3  # its peak, where a schedule changes it
    schedule: str = "constant"
    warmup: float = 0.0  # share of all steps in which the rate rises from zero
    clip: float = 0.0  # largest norm of the gradient; 0: no limit
    input_dropout: float = 0.0  # share of the pixels that are set to 0 in training
    seed: int = 0
    device: str = "auto"
    backend: str = "auto"
    checkpoint_seconds: float = 60.0  # within an epoch; there is one at each epoch's end anyway

    def __post_init__(self) -> None:
        self._one_of("dataset", "auto", "mnist", "digits")
        self._one_of("pixels", "binary", "grey")
        self._one_of("cell", "LSTM", "GRU", reset_before.MODE)
        self._one_of("initialisation", "torch", "tensorflow", "orthogonal", "chrono")
        self._one_of("schedule", "constant", "cosine")
        self._one_of("backend", "auto", *backends.NAMES)
        for name in ("hidden_size", "num_layers", "epochs", "batch_size"):
            self._number(name, int, "1 to 2^31 - 1", lambda n: 1 <= n < 1 << 31)
        self._number("seed", int, "0 to 2^63 - 1", lambda n: 0 <= n < 1 << 63)
        for name in ("learning_rate", "checkpoint_seconds"):
            self._number(name, float, "more than 0", lambda n: n > 0)
        for name in ("warmup", "input_dropout"):
            self._number(name, float, "in [0, 1)", lambda n: 0 <= n < 1)
        self._number("clip", float, "0 (no limit) or more", lambda n: n >= 0)
        if not isinstance(self.data_dir, str | None):
            raise ConfigError(f"data_dir is {self.data_dir!r}; expected a folder's path")
        self._device()

    def _device(self) -> None:
        wrong = ConfigError(f"device is {self.device!r}; expected auto, cpu, cuda or cuda:N")
        try:
            device = torch.device("cpu" if self.device == "auto" else self.device)
        except (RuntimeError, TypeError):
            raise wrong from None
        if device.type not in ("cpu", "cuda"):
            raise wrong
        if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
            seen = f"only {count}" if count else "no GPU"
            raise ConfigError(f"device is {self.device!r}, but torch sees {seen}; use --device cpu")

    def _one_of(self, name: str, *choices: str) -> None:
        if (given := getattr(self, name)) not in choices:
            raise ConfigError(f"{name} is {given!r}; expected one of {', '.join(choices)}")

    def _number(self, name: str, kind: type, values: str, valid: Callable[[Any], bool]) -> None:
        given = getattr(self, name)
        kinds = (int, float) if kind is float else (int,)
        number = isinstance(given, kinds) and not isinstance(given, bool)
        if not number or not math.isfinite(given) or not valid(given):
            what = "a whole number" if kind is int else "a finite number"
            raise ConfigError(f"{name} is {given!r}; expected {what}, {values}")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Config:
        """The settings that config.json holds.

        Raises:
            ConfigError: a setting is unknown, missing or invalid.
        """
        names = {f.name for f in dataclasses.fields(cls)}
        if odd := sorted(names ^ set(values)):
            raise ConfigError(f"unknown or missing settings: {', '.join(odd)}")
        return cls(**values)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step: a linear rise, then constant or half a cosine down to 0."""
        warmup = round(self.warmup * steps)
        if step < warmup:
            return self.learning_rate * (step + 1) / (warmup + 1)
        if self.schedule == "constant":
            return self.learning_rate
        return (
            self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
        )
