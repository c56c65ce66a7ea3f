"""Files of measured times: classes, merging, damage, and what cannot be read or written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastrnn import tables
from fastrnn.kernels import products
from fastrnn.tables import CallClass, Key, Result
from fastrnn.tuning import Call

KEY = Key("Some Device", "2.14.1", "oneDNN 3.12", "0.1.0")
KIND = CallClass("LSTM", "float32", 64, 16, 32, 1, True, False, False, 2)
RESULT = Result("cpu", {"cpu": 12.5, "torch": 50.0}, {"cuda": "failed"}, (17, 40, 1), "2026-11-28")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for the user's tables, and none that come with fastrnn."""
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tables, "PACKAGED", tmp_path / "packaged")
    return tmp_path / "cache"


def call(**changes: Any) -> Call:
    """A call on a CPU."""
    values = {
        "cell": "LSTM", "device": "cpu", "dtype": torch.float32, "steps": 40, "batch": 17,
        "input_size": 1, "hidden_size": 64, "training": True,
    }  # fmt: skip
    return Call(**{**values, **changes})


# ---- classes


@pytest.mark.parametrize(
    ("size", "least"), [(1, 1), (2, 2), (7, 7), (8, 8), (15, 8), (16, 16), (200, 128)]
)
def test_sizes_below_eight_have_a_class_each_and_others_one_per_power_of_two(
    size: int, least: int
) -> None:
    kind = tables.class_of(call(batch=size, steps=size, input_size=size))
    assert kind is not None or size == 1
    if kind is not None:
        assert (kind.batch, kind.steps, kind.input_size) == (least,) * 3


def test_long_sequences_and_large_batches_are_one_class_and_hidden_sizes_are_not() -> None:
    assert tables.class_of(call(steps=784)) == tables.class_of(call(steps=10_000))
    assert tables.class_of(call(batch=4096)) == tables.class_of(call(batch=99_999))
    assert tables.class_of(call(hidden_size=64)) != tables.class_of(call(hidden_size=65))


@pytest.mark.parametrize(
    "changes",
    [
        {"cell": "GRU"},
        {"dtype": torch.bfloat16},
        {"training": False},
        {"packed": True},
        {"projected": True},
        {"hidden_size": 63},
    ],
    ids=str,
)
def test_whatever_changes_the_time_is_a_class_of_its_own(changes: dict[str, Any]) -> None:
    assert tables.class_of(call(**changes)) != tables.class_of(call())


def test_threads_count_on_cpus_only(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append([tables.class_of(call(device=where)) for where in ("cpu", "cuda")])
    assert found[0][0] != found[1][0]
    assert found[0][1] == found[1][1]


def test_tf32_is_another_arithmetic_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "tf32", lambda: True)
    assert tables.arithmetic_of(call(device="cuda")) == "tf32"
    assert tables.arithmetic_of(call(device="cuda", dtype=torch.float16)) == "float16"
    assert tables.arithmetic_of(call()) == "float32"


def test_single_steps_on_cpus_have_a_class_in_one_op_only() -> None:
    assert tables.class_of(call(steps=1)) is None
    assert tables.class_of(call(steps=1, in_one_op=True)) is not None
    assert tables.class_of(call(steps=1, device="cuda")) is not None


def test_a_class_can_be_read() -> None:
    assert str(KIND) == "LSTM float32, B 16-31, T 32-63, I 1, H 64, training, 2 threads"
    largest = KIND._replace(steps=512, batch=4096, packed=True, threads=0, training=False)
    assert str(largest) == "LSTM float32, B >=4096, T >=512, I 1, H 64, inference, packed"


# ---- files


def test_what_is_saved_is_read_again() -> None:
    path = tables.save(KEY, {KIND: RESULT})
    assert tables.load(KEY) == {KIND: RESULT}
    assert [p.name for p in path.parent.glob("[!.]*")] == [KEY.file]


def test_a_file_says_device_versions_and_dates() -> None:
    content = json.loads(tables.save(KEY, {KIND: RESULT}).read_text())
    assert content["for"] == KEY._asdict()
    assert content["classes"][0]["date"] == "2026-11-28"


def test_removed_backends_are_kept_by_later_saves() -> None:
    tables.save(KEY, {}, {"triton": "does not end"})
    tables.save(KEY, {KIND: RESULT})
    assert tables.load_removed(KEY) == {"triton": "does not end"}
    assert tables.load(KEY) == {KIND: RESULT}


def test_a_second_save_adds_and_replaces() -> None:
    other, faster = KIND._replace(cell="GRU"), RESULT._replace(backend="torch")
    tables.save(KEY, {KIND: RESULT})
    tables.save(KEY, {other: RESULT})
    tables.save(KEY, {KIND: faster})
    assert tables.load(KEY) == {KIND: faster, other: RESULT}


def test_the_users_results_come_before_those_in_the_package(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = KIND._replace(cell="GRU")
    with monkeypatch.context() as patch:
        patch.setenv("FASTRNN_CACHE_DIR", str(tables.PACKAGED))
        tables.save(KEY, {KIND: RESULT, other: RESULT})
    mine = RESULT._replace(date="2026-11-29")
    tables.save(KEY, {KIND: mine})
    assert tables.load(KEY) == {KIND: mine, other: RESULT}


@pytest.mark.parametrize("field", Key._fields)
def test_another_device_or_version_has_another_file(field: str) -> None:
    tables.save(KEY, {KIND: RESULT})
    assert tables.load(KEY._replace(**{field: "9.9"})) == {}


def test_a_file_for_something_else_is_stale_whatever_its_name() -> None:
    stale = KEY._replace(fastrnn="0.0.9")
    tables.save(stale, {KIND: RESULT}).rename(tables.folder() / KEY.file)  # type: ignore[operator]
    assert tables.load(KEY) == {}


def _entry(**changes: Any) -> Callable[[Any], Any]:
    def change(content: Any) -> Any:
        content["classes"][0].update(changes)
        return content

    return change


DAMAGE: dict[str, Callable[[Any], Any]] = {
    "another format": lambda content: {**content, "format": 99},
    "a list": lambda content: [content],
    "a number": lambda content: 3,
    "removed is a list": lambda content: {**content, "removed": ["triton"]},
    "no classes": lambda content: {"format": 1, "for": content["for"]},
    "classes are a number": lambda content: {**content, "classes": 3},
    "an entry is a text": lambda content: {**content, "classes": ["x"]},
    "more versions": lambda content: {**content, "for": {**content["for"], "x": "1"}},
    "a size is a text": _entry(**{"class": {**KIND._asdict(), "batch": "16"}}),
    "a flag is a number": _entry(**{"class": {**KIND._asdict(), "training": 1}}),
    "a size is missing": _entry(**{"class": {"cell": "LSTM"}}),
    "one size too many": _entry(**{"class": {**KIND._asdict(), "more": 1}}),
    "no time for the choice": _entry(backend="triton"),
    "no times": _entry(microseconds={}),
    "an endless time": _entry(microseconds={"cpu": 10**400, "torch": 1}),
    "a time is not a number": _entry(microseconds={"cpu": float("nan"), "torch": 1.0}),
    "a time is negative": _entry(microseconds={"cpu": -1.0, "torch": 1.0}),
    "a time is a text": _entry(microseconds={"cpu": "fast", "torch": 1.0}),
    "times are a list": _entry(microseconds=[1.0]),
    "the size is short": _entry(size=[1]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_with_the_wrong_content_is_as_if_absent(damage: str) -> None:
    path = tables.save(KEY, {KIND: RESULT})
    path.write_text(json.dumps(DAMAGE[damage](json.loads(path.read_text()))))
    assert tables.load(KEY) == {}
    tables.save(KEY, {KIND: RESULT})
    assert tables.load(KEY) == {KIND: RESULT}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\x00\xff\xfe", b"[" * 100_000, b"null", b'{"format": 1}'],
    ids=["empty", "cut", "binary", "deep", "null", "short"],
)
def test_a_damaged_file_is_as_if_absent(content: bytes) -> None:
    path = tables.save(KEY, {KIND: RESULT})
    path.write_bytes(content)
    assert tables.load(KEY) == {}


def test_each_length_of_a_cut_file_is_as_if_absent() -> None:
    path = tables.save(KEY, {KIND: RESULT})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert tables.load(KEY) == {}


def test_what_is_no_file_or_too_large_is_as_if_absent(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir()
    path = folder / KEY.file
    path.mkdir()
    assert tables.load(KEY) == {}
    path.rmdir()
    os.mkfifo(path)  # to open it would wait for a writer
    assert tables.load(KEY) == {}
    path.unlink()
    tables.save(KEY, {KIND: RESULT})
    monkeypatch.setattr(tables, "_MOST_BYTES", 10)
    assert tables.load(KEY) == {}


def test_what_cannot_be_written_raises_and_leaves_the_old_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables.save(KEY, {KIND: RESULT})
    before = sorted(folder.iterdir())

    def full(self: Path, text: str) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        tables.save(KEY, {KIND._replace(cell="GRU"): RESULT})
    assert tables.load(KEY) == {KIND: RESULT}
    assert sorted(folder.iterdir()) == before
    monkeypatch.setenv("FASTRNN_CACHE_DIR", os.devnull)
    with pytest.raises(OSError, match=os.devnull):
        tables.save(KEY, {KIND: RESULT})
    assert tables.load(KEY) == {}


WRITER = """
import sys
from fastrnn import tables
from tests.test_tables import KEY, KIND, RESULT
for size in range(int(sys.argv[1]), 60, 2):
    tables.save(KEY, {KIND._replace(hidden_size=1 + size): RESULT})
    assert KIND._replace(hidden_size=1 + size) in tables.load(KEY)
"""


def test_two_processes_that_write_at_once_lose_nothing(folder: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(first)], cwd=Path(__file__).parents[1])
        for first in (0, 1)
    ]
    while any(writer.poll() is None for writer in writers):
        path = folder / KEY.file
        if path.exists():
            assert tables.load(KEY), "a reader saw half of a file"
    assert [writer.returncode for writer in writers] == [0, 0]
    assert {kind.hidden_size for kind in tables.load(KEY)} == set(range(1, 61))
    assert not list(folder.glob(".*.tmp"))


def test_a_writer_that_is_stopped_does_not_stop_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_LOCK_SECONDS", 0.0)
    folder.mkdir()
    with tables._locked(folder / f".{KEY.file}.lock"):
        tables.save(KEY, {KIND: RESULT})
    assert tables.load(KEY) == {KIND: RESULT}


# ---- where they are


@pytest.mark.parametrize(
    ("platform", "environment", "wanted"),
    [
        ("linux", {"XDG_CACHE_HOME": "/caches"}, "/caches/fastrnn"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/fastrnn"),
        ("linux", {}, "/home/me/.cache/fastrnn"),
        ("darwin", {}, "/home/me/Library/Caches/fastrnn"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/fastrnn"),
        ("linux", {"FASTRNN_CACHE_DIR": "/mine", "XDG_CACHE_HOME": "/caches"}, "/mine"),
    ],
)
def test_the_folder_is_the_platforms(
    monkeypatch: pytest.MonkeyPatch, platform: str, environment: dict[str, str], wanted: str
) -> None:
    for name in ("FASTRNN_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert tables.folder() == Path(wanted)


def test_without_a_home_there_is_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("FASTRNN_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    assert tables.folder() is None
    assert tables.load(KEY) == {}
    assert not tables.any_files()
    with pytest.raises(OSError, match="FASTRNN_CACHE_DIR"):
        tables.save(KEY, {KIND: RESULT})


def test_the_key_of_this_processor_names_its_versions() -> None:
    key = tables.key_of(torch.device("cpu"))
    assert key.torch == torch.__version__
    assert key.fastrnn == tables.fastrnn_version()
    assert tables.processor() in key.device
    assert key.file.endswith(".json")
    assert "/" not in KEY._replace(device="a/b\\c:d").file
