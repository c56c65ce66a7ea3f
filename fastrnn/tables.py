"""Tables of measured times: classes of calls, and one small JSON file per device and versions.

A file holds what was measured on one device model with one version of torch, of the library behind
it and of fastrnn. It is written under a temporary name and renamed, so nobody reads half of it. A
file that is damaged, unreadable or for another key counts as absent.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import platform
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from fastrnn.kernels import cpu, products
from fastrnn.tuning import Call

FORMAT = 1
PACKAGED = Path(__file__).with_name("measured")  # files of the same form that come with fastrnn
_PREFIX = "tuning-"
_MOST_BYTES = 1 << 24  # of a file
_EXACT_BELOW = 8  # larger B, T and I share a class, from one power of two to the next
_MOST_STEPS, _MOST_BATCH = 512, 4096  # from here up, all sizes are one class
_LOCK_SECONDS = 1.0  # how long to wait for another process that is writing the same file
_CPU = torch.device("cpu").type


@functools.cache
def fastrnn_version() -> str:
    """The version of fastrnn that is installed; ``unknown`` for a source tree that is not."""
    from importlib.metadata import PackageNotFoundError, version  # loads slowly

    try:
        return version("fastrnn")
    except PackageNotFoundError:
        return "unknown"


def device_of(call: Call) -> torch.device:
    """The device that a call is made on."""
    index = call.device_index
    return torch.device(call.device) if index is None else torch.device(call.device, index)


# ---- classes of calls


class CallClass(NamedTuple):
    """Calls that share a measurement. B, T and I stand for the smallest size in the class."""

    cell: str
    arithmetic: str  # the dtype's name, or tf32
    hidden_size: int
    batch: int
    steps: int
    input_size: int
    training: bool
    packed: bool
    projected: bool
    threads: int  # on CPUs; otherwise 0

    def __str__(self) -> str:
        words = [f"{self.cell} {self.arithmetic}"]
        words += [f"B {_span(self.batch, _MOST_BATCH)}", f"T {_span(self.steps, _MOST_STEPS)}"]
        words += [f"I {_span(self.input_size)}", f"H {self.hidden_size}"]
        words.append("training" if self.training else "inference")
        words += ["packed"] * self.packed + ["projected"] * self.projected
        words += [f"{self.threads} thread{'s' * (self.threads > 1)}"] * bool(self.threads)
        return ", ".join(words)


def _floor(size: int) -> int:
    """The smallest size in the class of a size."""
    return size if size < _EXACT_BELOW else 1 << (size.bit_length() - 1)


def _span(least: int, most: int | None = None) -> str:
    if least < _EXACT_BELOW:
        return str(least)
    return f">={least}" if least == most else f"{least}-{2 * least - 1}"


@functools.cache
def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def arithmetic_of(call: Call) -> str:
    """How a call's numbers are multiplied: its dtype's name, or ``tf32``."""
    if call.dtype == torch.float32 and call.device != _CPU and products.tf32():
        return "tf32"
    return _name(call.dtype)


def class_of(call: Call) -> CallClass | None:
    """The class of a call; None for calls that are never measured."""
    on_cpu = call.device == _CPU
    if on_cpu and call.steps == 1 and not call.in_one_op:
        return None  # finding the class would cost more than it could save
    return CallClass(
        call.cell,
        arithmetic_of(call),
        call.hidden_size,
        min(_floor(call.batch), _MOST_BATCH),
        min(_floor(call.steps), _MOST_STEPS),
        _floor(call.input_size),
        call.training,
        bool(call.packed),
        call.projected,
        torch.get_num_threads() if on_cpu else 0,
    )


class Result(NamedTuple):
    """What was measured for a class.

    Attributes:
        backend: the chosen one.
        microseconds: median times of the backends whose numbers agreed with torch.nn's.
        rejected: why other backends cannot be chosen, by name.
        size: B, T and I of the call that was timed.
        date: of the measurement, in UTC.
    """

    backend: str
    microseconds: Mapping[str, float]
    rejected: Mapping[str, str] = MappingProxyType({})
    size: tuple[int, int, int] = (0, 0, 0)
    date: str = ""

    @property
    def reason(self) -> str:
        """The times behind the choice, and what was rejected."""
        times = sorted(self.microseconds.items(), key=lambda item: item[1])
        text = ", ".join(f"{name} {readable(us)}" for name, us in times)
        batch, steps, features = self.size
        text = f"measured on {self.date} at B {batch}, T {steps}, I {features}: {text}"
        return "; ".join([text, *(f"{name}: {why}" for name, why in self.rejected.items())])


def readable(microseconds: float) -> str:
    """A time with its unit."""
    if microseconds < 1e3:
        return f"{microseconds:.3g} µs"
    return f"{microseconds / 1e3:.3g} ms" if microseconds < 1e6 else f"{microseconds / 1e6:.3g} s"


Results = dict[CallClass, Result]


# ---- what a file is for


class Key(NamedTuple):
    """What a table is valid for; see :func:`key_of`."""

    device: str
    torch: str
    library: str
    fastrnn: str

    @property
    def file(self) -> str:
        """The name of its file."""
        words = [self.device, f"torch {self.torch}", self.library, f"fastrnn {self.fastrnn}"]
        slug = re.sub(r"[^a-z0-9.]+", "-", " ".join(words).lower()).strip("-.")
        return f"{_PREFIX}{slug[:200]}.json"


def key_of(device: torch.device) -> Key:
    """What a table for a device is valid for: its model, and the versions of what runs on it."""
    if device.type == _CPU:
        found = re.search(r"MKL-DNN v([\w.]+)", torch.__config__.show())
        library = f"oneDNN {found[1]}" if found else "no oneDNN"
        model = f"{processor()} {cpu.info().get('level', '')}".strip()
    else:
        model = torch.cuda.get_device_properties(device).name
        kind = "ROCm" if torch.version.hip else "CUDA"
        version = torch.version.hip or torch.version.cuda
        library = f"{kind} {version} cuDNN {torch.backends.cudnn.version()}"
    return Key(model, torch.__version__, library, fastrnn_version())


@functools.cache
def processor() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open(errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def folder() -> Path | None:
    """Where the user's tables are; None if there is no such place.

    FASTRNN_CACHE_DIR names it; otherwise it is ``fastrnn`` in the platform's folder for caches.
    """
    if named := os.environ.get("FASTRNN_CACHE_DIR"):
        return Path(named)
    try:
        if sys.platform == "win32":
            return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local", "fastrnn")
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "fastrnn"
        given = Path(os.environ.get("XDG_CACHE_HOME") or "")
        return (given if given.is_absolute() else Path.home() / ".cache") / "fastrnn"
    except RuntimeError:  # there is no home
        return None


def any_files() -> bool:
    """Whether there is a table for any device; this takes no look at the device."""
    for place in (PACKAGED, folder()):
        with contextlib.suppress(OSError):
            if place is not None and any(n.startswith(_PREFIX) for n in os.listdir(place)):  # noqa: PTH208
                return True
    return False


# ---- reading and writing


def load(key: Key) -> Results:
    """What was measured for a key; the user's results take precedence over packaged ones."""
    return {kind: r for path in _paths(key) for kind, r in _read(path, key)[0].items()}


def load_removed(key: Key) -> dict[str, str]:
    """The backends that are not to be tried on a device, with the reason; see :func:`save`."""
    return {name: why for path in _paths(key) for name, why in _read(path, key)[1].items()}


def _paths(key: Key) -> list[Path]:
    """The files for a key, the user's last, so that its entries replace packaged ones."""
    return [place / key.file for place in (PACKAGED, folder()) if place is not None]


def _read(path: Path, key: Key) -> tuple[Results, dict[str, str]]:
    """A file's results and removed backends; none if it is missing, damaged, or for another key."""
    import json

    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return {}, {}
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT or Key(**content["for"]) != key:
            return {}, {}
        removed = {str(name): str(why) for name, why in content["removed"].items()}
        return dict(map(_parsed, content["classes"])), removed
    except _UNREADABLE:
        return {}, {}


_UNREADABLE = (
    OSError, ValueError, OverflowError, LookupError, TypeError, AttributeError, RecursionError,
)  # fmt: skip
_TYPES = [str, str, int, int, int, int, bool, bool, bool, int]  # of a CallClass's fields


def _parsed(entry: Any) -> tuple[CallClass, Result]:
    """A class and its result from a file.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: the entry is damaged.
    """
    values = entry["class"]
    if [type(values[name]) for name in CallClass._fields] != _TYPES:
        raise TypeError("class")
    times = {str(name): float(us) for name, us in entry["microseconds"].items()}
    rejected = {str(name): str(why) for name, why in entry["rejected"].items()}
    if entry["backend"] not in times or not all(0 < us < float("inf") for us in times.values()):
        raise ValueError("times")
    batch, steps, features = map(int, entry["size"])
    result = Result(entry["backend"], times, rejected, (batch, steps, features), str(entry["date"]))
    return CallClass(**values), result


def save(key: Key, new: Results, removed: Mapping[str, str] | None = None) -> Path:
    """Adds results to the user's file, and keeps what other processes have written there.

    Args:
        key: of the file.
        new: what was measured.
        removed: backends that are not to be tried again on this device, with the reason.

    Returns:
        The file.

    Raises:
        OSError: it cannot be written; the old file is still there.
    """
    import json

    place = folder()
    if place is None:
        raise OSError(errno.ENOENT, "not found; set FASTRNN_CACHE_DIR", "the folder for caches")
    place.mkdir(parents=True, exist_ok=True)
    path = place / key.file
    with _locked(place / f".{key.file}.lock"):
        old, gone = _read(path, key)
        results = {**old, **new}
        content = {
            "format": FORMAT,
            "for": key._asdict(),
            "removed": {**gone, **(removed or {})},
            "classes": [
                {
                    "class": kind._asdict(),
                    "backend": result.backend,
                    "microseconds": dict(result.microseconds),
                    "rejected": dict(result.rejected),
                    "size": list(result.size),
                    "date": result.date,
                }
                for kind, result in sorted(results.items())
            ],
        }
        mark = f"{os.getpid()}-{threading.get_ident()}"
        temporary = place / f".{key.file[:150]}.{mark}.tmp"
        try:
            temporary.write_text(json.dumps(content, indent=1))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits for other writers, but not for long: a stopped process must not stop this one."""
    try:
        import fcntl
    except ImportError:  # Windows: if two write at once, only the last one's results are kept
        yield
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.005)
                    continue
            except OSError:  # this file system has no locks
                pass
            break
        yield
    finally:
        os.close(descriptor)
