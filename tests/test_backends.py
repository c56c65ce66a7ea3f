"""The choice of backend: automatic, forced, explained; and life without the native library."""

import contextlib
import dataclasses
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fastrnn
from fastrnn import backends, inference, layer_ops, measured
from fastrnn.choice import explain
from fastrnn.kernels import cpu, library, reference
from fastrnn.kernels.contract import Cell, Forward
from tests.test_functional import python


def call(**changes: object) -> backends.Call:
    """A call that the native kernels take."""
    values = {
        "cell": "LSTM", "device": "cpu", "dtype": torch.float32, "steps": 784, "batch": 200,
        "input_size": 1, "hidden_size": 128, "training": False,
    }  # fmt: skip
    return backends.Call(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    inference.load_error()  # whose answer a process keeps
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    cpu._load.cache_clear()
    measured.forget()
    yield
    cpu._load.cache_clear()
    measured.forget()


# ---- the automatic choice


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "cpu"),
        ({"cell": "GRU", "training": True}, "cpu"),
        ({"dtype": torch.float64}, "cpu"),
        ({"dtype": torch.bfloat16, "hidden_size": 32}, "cpu"),
        ({"dtype": torch.float16}, "torch"),
        ({"steps": 1}, "torch"),
        ({"projected": True}, "torch"),
        ({"projected": True, "in_one_op": True}, "cpu"),
        ({"projected": True, "training": True, "hidden_size": 64}, "cpu"),
        ({"projected": True, "training": True, "hidden_size": 512}, "torch"),
        ({"projected": True, "transformed": True}, "torch"),
        ({"transformed": True}, "reference"),
        ({"device": "meta"}, "torch"),
    ],
    ids=str,
)
def test_automatic_choice(changes: dict[str, object], name: str) -> None:
    choice = backends.choose(call(**changes))
    assert choice.backend == name
    assert choice.reason


def test_explain_takes_what_a_user_knows() -> None:
    assert explain("GRU", batch=200, hidden_size=128).backend == "cpu"
    assert explain("LSTM", batch=2, hidden_size=512, proj_size=2).backend == "cpu"
    assert "float16" in explain("GRU", batch=2, hidden_size=4, dtype=torch.half).reason


@pytest.mark.usefixtures("projections_are_torchs")
def test_explain_knows_projections() -> None:
    assert "projected" in explain("LSTM", batch=2, hidden_size=512, proj_size=2).reason
    assert explain("LSTM", batch=2, hidden_size=512).backend == "cpu"


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_the_chosen_kernels_are_those_that_run(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    for name, kernels in (("reference", reference), ("cpu", cpu)):
        right = kernels.forward

        def forward(*args: Any, right: Any = right, name: str = name) -> object:
            ran.append(name)
            return right(*args)

        monkeypatch.setattr(kernels, "forward", forward)
    monkeypatch.setattr(layer_ops, "forward", lambda *args: None)  # a shorter way to the same
    layer, x = getattr(fastrnn, cell)(3, 5), torch.zeros(4, 2, 3)
    layer(x)
    with fastrnn.backend("reference"):
        layer(x)
    with fastrnn.backend("torch"):
        layer(x)
    layer(x[:1])
    assert ran == ["cpu", "reference", "cpu"]


# ---- forcing


def test_the_context_nests_and_is_undone_by_errors() -> None:
    assert backends.forced_backend() is None
    with fastrnn.backend("cpu"):
        with contextlib.suppress(KeyError), fastrnn.backend("reference"):
            assert backends.forced_backend() == "reference"
            raise KeyError
        assert backends.forced_backend() == "cpu"
    assert backends.forced_backend() is None


def test_the_context_is_the_threads_own() -> None:
    seen: list[str | None] = []
    with fastrnn.backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(backends.forced_backend()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    wanted = r"fastrnn.backend\(\): unknown backend 'cudnn'; choose one of cpu, triton, cuda, torch"
    with pytest.raises(ValueError, match=wanted), fastrnn.backend("cudnn"):
        pass


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("cpu", {"dtype": torch.float16}, "torch.float16 is not supported"),
        ("cpu", {"device": "cuda"}, "tensors are on cuda"),
        ("cpu", {"transformed": True}, "forward-mode gradients and functorch"),
        ("triton", {}, "tensors are on cpu"),
        ("cuda", {}, "tensors are on cpu"),
        ("cuda", {"device": "cuda", "dtype": torch.float64}, "torch.float64 is not supported"),
    ],
    ids=str,
)
def test_a_forced_backend_says_what_it_does_not_support(
    name: str, changes: dict[str, object], reason: str
) -> None:
    wanted = f"backend '{name}' cannot run this call: {reason}"
    with fastrnn.backend(name), pytest.raises(RuntimeError, match=wanted):
        backends.choose(call(**changes))


def test_a_forced_layer_raises_and_does_not_fall_back() -> None:
    layer = fastrnn.LSTM(3, 5).half()
    with fastrnn.backend("cpu"), pytest.raises(RuntimeError, match="float16"):
        layer(torch.zeros(4, 2, 3).half())


ENVIRONMENT = """
import torch, fastrnn
from fastrnn import backends
print(backends.forced_backend())
try:
    fastrnn.GRU(3, 5)(torch.zeros(4, 2, 3))
except ValueError as error:
    print(error)
with fastrnn.backend("torch"):
    print(backends.forced_backend())
"""


@pytest.mark.parametrize("value", ["", "reference", "nonsense"])
def test_the_environment_variable(value: str) -> None:
    first, *error, last = python(ENVIRONMENT, FASTRNN_BACKEND=value).splitlines()
    assert first == (value or "None")
    assert last == "torch"
    assert bool(error) == (value == "nonsense")
    assert not error or "FASTRNN_BACKEND: unknown backend 'nonsense'" in error[0]


# ---- what is there


def test_backend_info_is_ready_for_json() -> None:
    info = json.loads(json.dumps(fastrnn.backend_info()))
    assert set(info["backends"]) == set(backends.BACKENDS)
    assert info["threads"] == torch.get_num_threads()
    assert info["forced"] is None
    cpu = info["backends"]["cpu"]
    assert cpu["available"]
    assert cpu["level"] in cpu["levels"]
    for backend in info["backends"].values():
        assert backend["available"] or backend["reason"]


def test_an_unknown_instruction_set_is_refused() -> None:
    before = cpu.info()["level"]
    with pytest.raises(ValueError, match="instruction set 'sse9' is not available here"):
        cpu.select_level("sse9")
    assert cpu.info()["level"] == before


@pytest.mark.usefixtures("no_library")
def test_without_the_native_library_all_works_and_it_is_said() -> None:
    cpu = fastrnn.backend_info()["backends"]["cpu"]
    assert not cpu["available"]
    assert "install a C++17 compiler and reinstall fastrnn" in cpu["reason"]
    choice = backends.choose(call())
    assert choice.backend == "torch"
    assert "not built" in choice.reason
    x = torch.randn(4, 2, 3)
    for name in ("LSTM", "GRU"):
        wanted = getattr(nn, name)(3, 5)
        found = getattr(fastrnn, name)(3, 5)
        found.load_state_dict(wanted.state_dict())
        torch.testing.assert_close(found(x)[0], wanted(x)[0])
    with fastrnn.backend("cpu"), pytest.raises(RuntimeError, match="not built"):
        found(x)


def test_what_the_build_said_is_repeated(no_library: None, tmp_path: Path) -> None:
    (tmp_path / "build.json").write_text('{"fastrnn_cpu": {"built": false, "reason": "no g++"}}')
    assert (cpu.load_error() or "").endswith("the build said: no g++")


def test_a_library_that_does_not_load_is_reported(
    no_library: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "libfastrnn_cpu.so").write_bytes(b"no library")
    error = cpu.load_error()
    assert error is not None
    assert "does not load" in error
    assert "reinstall fastrnn" in error


def test_a_library_of_another_version_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "ABI_VERSION", 999)
    cpu._load.cache_clear()
    error = cpu.load_error()
    monkeypatch.undo()
    cpu._load.cache_clear()
    assert error is not None
    assert "this fastrnn needs 999" in error


# ---- adding a backend: one record and one module


class FakeKernels:
    """A kernel module: the reference's, with an output twice as large."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def forward(self, cell: Cell, *args: Any) -> Forward:
        self.calls.append(cell.name)
        y, final, saved = reference.forward(cell, *args)
        return 2 * y, final, saved

    backward = staticmethod(reference.backward)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernels]:
    """A backend called fake, for float32 on CPUs; all that it takes is a record and a module."""
    kernels = FakeKernels()
    monkeypatch.setitem(sys.modules, "fastrnn.kernels.fake", kernels)
    record = backends.Backend(
        name="fake",
        summary="twice as large",
        where="CPU",
        module="fake",
        devices=("cpu",),
        dtypes=(torch.float32,),
        facts=lambda: {"factor": 2},
    )
    monkeypatch.setitem(backends.BACKENDS, "fake", record)
    backends._kernel_module.cache_clear()
    measured.forget()
    yield kernels
    backends._kernel_module.cache_clear()
    measured.forget()


def test_a_new_backend_is_listed(fake: FakeKernels) -> None:
    assert fastrnn.backend_info()["backends"]["fake"] == {"available": True, "factor": 2}
    with pytest.raises(ValueError, match=r"choose one of cpu, .*reference, fake"):
        backends.checked_name("nonsense", "x")


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_a_new_backend_is_used_where_it_is_forced(fake: FakeKernels, cell: str) -> None:
    layer, x = getattr(fastrnn, cell)(3, 5), torch.randn(4, 2, 3)
    with fastrnn.backend("reference"):
        wanted = layer(x)[0]
    with fastrnn.backend("fake"):
        found = layer(x)[0]
        found.sum().backward()
    assert fake.calls == [cell.lower()]
    torch.testing.assert_close(found, 2 * wanted)
    assert layer.weight_hh_l0.grad is not None


def test_a_new_backend_is_refused_with_its_reason(fake: FakeKernels) -> None:
    for changes, reason in (
        ({"dtype": torch.float64}, r"torch.float64 is not supported \(float32 is\)"),
        ({"device": "cuda"}, "tensors are on cuda"),
    ):
        wanted = f"backend 'fake' cannot run this call: {reason}"
        with fastrnn.backend("fake"), pytest.raises(RuntimeError, match=wanted):
            backends.choose(call(**changes))
    assert not fake.calls


def test_a_new_automatic_backend_is_chosen_in_the_records_order(
    fake: FakeKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    automatic = dataclasses.replace(backends.BACKENDS["fake"], automatic=True)
    monkeypatch.setitem(backends.BACKENDS, "fake", automatic)
    assert backends.choose(call()).backend == "cpu"
    broken = dataclasses.replace(backends.BACKENDS["cpu"], load_error=lambda: "broken")
    monkeypatch.setitem(backends.BACKENDS, "cpu", broken)
    measured.forget()
    assert backends.choose(call()).backend == "fake"
    choice = backends.choose(call(dtype=torch.float64))
    assert choice.backend == "torch"
    assert choice.reason.startswith("fake: torch.float64 is not supported")
