"""``fastrnn tune`` and ``fastrnn info --explain``: sizes, times, files, and mistakes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastrnn import backends, measured, measuring, tables
from fastrnn.cli import tune
from fastrnn.training.report import COLUMNS
from tests.machines import Machine, call, replaced

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A machine with two GPUs of different models, which torch sees."""
    seconds = {"triton": 2e-3, "cuda": 3e-3, "torch": 5e-3}
    models = ["Fake GPU", "Other GPU"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with replaced(Machine(seconds, models=models), tmp_path / "cache") as machine:
        yield machine


@pytest.fixture
def processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """This processor, measured briefly; the folder of its tables."""
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(measuring, "BUDGET", 0.0)
    monkeypatch.setattr(measuring, "_SAMPLE", 0.0)
    measured.reset()
    yield tmp_path / "cache"
    monkeypatch.undo()
    measured.reset()


def test_all_backends_are_timed_and_the_file_is_named(machine: Machine, fastrnn: Command) -> None:
    status, out, err = fastrnn("tune", "17x40x1x64", "--dtype", "float16", "--cell", "lstm")
    assert (status, err) == (0, "")
    first, header, *rows, last, path = out.splitlines()
    assert first == "measuring on Fake GPU"
    assert header.split() == ["call,", "BxTxIxH", "mode", "triton", "cuda", "torch", "chosen"]
    assert [" ".join(row.split()) for row in rows] == [
        "LSTM 17x40x1x64 inference 2 ms 3 ms 5 ms triton",
        "LSTM 17x40x1x64 training 2 ms 3 ms 5 ms triton",
    ]
    assert last.startswith("2 calls in ")
    assert Path(path).is_file()
    assert max(map(len, out.splitlines()[:-1])) <= COLUMNS
    measured.reset()
    machine.ran.clear()
    assert backends.choose(call(), measure=True).backend == "triton"
    assert not machine.ran


def test_what_is_known_already_is_measured_again(machine: Machine, fastrnn: Command) -> None:
    arguments = ("tune", "17x40x1x64", "--cell", "gru", "--mode", "training", "--quiet")
    assert "triton" in fastrnn(*arguments)[1]
    machine.seconds["cuda"] = 1e-3
    assert fastrnn(*arguments)[1].split()[-1] == "cuda"
    assert machine.measurements == 2


def test_another_gpu_is_measured_for_itself(machine: Machine, fastrnn: Command) -> None:
    arguments = ("tune", "17x40x1x64", "--json", "--device")
    names = [json.loads(fastrnn(*arguments, f"cuda:{i}")[1])["for"]["device"] for i in (0, 1)]
    assert names == ["Fake GPU", "Other GPU"]


def test_what_is_rejected_is_said(machine: Machine, fastrnn: Command) -> None:
    machine.errors["triton"] = 0.1
    machine.raises["cuda"] = RuntimeError("no launch")
    status, out, err = fastrnn("tune", "17x40x1x64", "--dtype", "float16", "--mode", "inference")
    assert status == 0
    assert [row.split()[3:] for row in out.splitlines()[2:4]] == [
        ["wrong", "failed", "5", "ms", "torch"]
    ] * 2
    first, second = err.splitlines()
    assert first.startswith("fastrnn: backend 'triton' gave wrong numbers")
    assert second.startswith("fastrnn: backend 'cuda' failed")


def test_verbose_prints_the_times_of_each_call_before_the_next_is_measured(
    machine: Machine,
    fastrnn: Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measure, printed = measuring.measure, []

    def watched(*args: Any) -> Any:
        printed.append(capsys.readouterr().err)
        return measure(*args)

    monkeypatch.setattr(measuring, "measure", watched)
    machine.raises["cuda"] = RuntimeError("no launch")
    status, out, err = fastrnn("tune", "17x40x1x64", "--cell", "lstm", "--verbose")
    warning = "fastrnn: backend 'cuda' failed and is not used for such calls; "
    before, first = printed
    assert (status, before) == (0, "")
    assert first.startswith(warning)
    assert first.splitlines()[1:] == [
        "LSTM 17x40x1x64 inference: triton 2 ms, torch 5 ms; chosen: triton",
        "  cuda failed with RuntimeError: no launch",
    ]
    assert err.splitlines()[0] == (
        "LSTM 17x40x1x64 training: triton 2 ms, torch 5 ms; chosen: triton"
    )
    assert "  failed  " in out
    monkeypatch.setattr(measuring, "measure", measure)
    assert fastrnn("tune", "17x40x1x64", "--cell", "lstm")[2] == ""


def test_as_json(machine: Machine, fastrnn: Command) -> None:
    status, out, _ = fastrnn("tune", "2x3x4x5", "--cell", "GRU", "--mode", "training", "--json")
    found = json.loads(out)
    assert status == 0
    assert Path(found["file"]).is_file()
    assert found["calls"] == [
        {
            "cell": "GRU", "batch": 2, "steps": 3, "input_size": 4, "hidden_size": 5,
            "training": True, "backend": "triton",
            "microseconds": {"triton": 2000.0, "cuda": 3000.0, "torch": 5000.0}, "rejected": {},
        }
    ]  # fmt: skip


def test_without_sizes_common_ones_are_measured(machine: Machine, fastrnn: Command) -> None:
    found = json.loads(fastrnn("tune", "--json")[1])["calls"]
    assert len(found) == 2 * 2 * 25
    sizes = {tuple(row[k] for k in tune.Size._fields) for row in found}
    assert {(200, 784, 1, 128), (1, 1, 512, 512)} <= sizes


def test_this_processor_is_measured_and_explained(processor: Path, fastrnn: Command) -> None:
    assert "no entry of the table" in fastrnn("info", "--explain", "GRU", 2, 3, 1, 16)[1]
    status, out, _ = fastrnn("tune", "2x3x1x16", "--device", "cpu", "--cell", "GRU")
    assert status == 0
    assert out.count("\nGRU 2x3x1x16 ") == 2
    assert len(list(processor.glob("tuning-*.json"))) == 1
    for packed in ([], ["--packed"]):
        out = fastrnn("info", "--explain", "GRU", "2x3x1x16", *packed)[1]
        assert ("measured on 20" in out) != bool(packed)
    facts = json.loads(fastrnn("info", "--json")[1])["measured"]
    assert list(facts["classes"].values()) == [2]
    assert facts["folder"] == str(processor)
    out = fastrnn("info")[1]
    assert "measured times: 2 for " in out


def test_what_only_torch_can_run_is_not_timed(processor: Path, fastrnn: Command) -> None:
    status, out, _ = fastrnn("tune", "2x3x1x16", "--device", "cpu", "--dtype", "float16", "-q")
    assert status == 0
    assert {tuple(row.split()[3:]) for row in out.splitlines()[1:]} == {("-", "torch")}
    assert not processor.exists()


def test_the_switch_is_shown(
    processor: Path, fastrnn: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTRNN_TUNING", "off")
    assert "measured times: none (fastrnn tune), FASTRNN_TUNING=off" in fastrnn("info")[1]


@pytest.mark.parametrize(
    ("texts", "sizes"),
    [
        (["200x784x1x128"], [(200, 784, 1, 128)]),
        (["200×784×1×128"], [(200, 784, 1, 128)]),
        (["1", "2", "3", "4"], [(1, 2, 3, 4)]),
        (["1x2x3x4", "5x6x7x8"], [(1, 2, 3, 4), (5, 6, 7, 8)]),
    ],
)
def test_sizes_can_be_given_in_two_forms(texts: list[str], sizes: list[Any]) -> None:
    assert tune.sizes_of(texts) == sizes


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("tune 1x2x3", "the size is '1x2x3'; expected B, T, I and H"),
        ("tune 1x2 3x4", "the size is '1x2 3x4'; expected B, T, I and H"),
        ("tune 1x2x3x0", "the size is '1x2x3x0'; expected BxTxIxH"),
        ("tune big", "the size is 'big'; expected BxTxIxH"),
        ("tune 1x2x3x9999999999", "expected B, T, I and H"),
        ("tune 1x2x3x4 --cell RNN", "--cell is 'RNN'; expected lstm, gru or both"),
        ("tune 1x2x3x4 --mode both,", "--mode is 'both,'; expected inference, training or both"),
        ("tune 1x2x3x4 --dtype int8", "--dtype is 'int8'; expected float32,"),
        ("tune 1x2x3x4 --device gpu", "--device is 'gpu'; expected auto, cpu, cuda or cuda:N"),
        ("tune 1x2x3x4 --device cuda:7", "--device is 'cuda:7'; torch sees 0 GPUs"),
        ("info 1x2x3x4", "given: info 1x2x3x4; expected one size, and --explain LSTM or GRU"),
        ("info --explain GRU 1 2", "the size is '1 2'; expected B, T, I and H"),
    ],
)
def test_a_mistake_is_one_line(fastrnn: Command, line: str, wanted: str) -> None:
    status, out, err = fastrnn(*line.split())
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert wanted in err


def test_a_file_that_cannot_be_written_is_reported_after_the_times(
    machine: Machine, fastrnn: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTRNN_CACHE_DIR", os.devnull)
    status, out, err = fastrnn("tune", "2x3x4x5", "-q")
    assert (status, err.count("\n")) == (2, 1)
    assert os.devnull in err
    assert "triton" in out
    monkeypatch.setattr(tables, "folder", lambda: None)
    status, _, err = fastrnn("tune", "2x3x4x5", "-q")
    assert (status, err) == (
        2, "fastrnn: the folder for caches: not found; set FASTRNN_CACHE_DIR\n",
    )  # fmt: skip
