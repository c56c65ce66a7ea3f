"""The measured choice: who wins, what is rejected, and when a measurement is taken."""

from __future__ import annotations

import json
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

import fastrnn
from fastrnn import (
    backends,
    examples,
    inference,
    layer_ops,
    measured,
    measuring,
    patching,
    tables,
)
from fastrnn.backends import Call, Choice
from fastrnn.choice import explain
from tests.machines import Machine, call, replaced

TIMES = {"triton": 2e-3, "cuda": 3e-3, "torch": 5e-3}


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine with one GPU and two backends of ours, both faster than torch.nn."""
    with replaced(Machine(dict(TIMES)), tmp_path / "cache") as machine:
        yield machine


def choose(**changes: Any) -> Choice:
    """The choice for a call in eager code."""
    return backends.choose(call(**changes), measure=True)


def saved(tmp_path: Path) -> list[dict[str, Any]]:
    """The classes in the one file that was written."""
    (path,) = (tmp_path / "cache").glob("tuning-*.json")
    return list(json.loads(path.read_text())["classes"])


# ---- who wins


@pytest.mark.parametrize(
    ("triton", "cuda", "torchs", "winner"),
    [
        (2e-3, 3e-3, 5e-3, "triton"),
        (3e-3, 2e-3, 5e-3, "cuda"),
        (6e-3, 7e-3, 5e-3, "torch"),
        (5e-3, 5e-3, 5e-3, "torch"),
        (4.95e-3, 6e-3, 5e-3, "torch"),
        (4.8e-3, 6e-3, 5e-3, "triton"),
    ],
    ids=["triton", "cuda", "torch", "a tie is torch's", "so is almost one", "clearly faster"],
)
def test_the_fastest_backend_wins(
    machine: Machine, triton: float, cuda: float, torchs: float, winner: str
) -> None:
    machine.seconds = {"triton": triton, "cuda": cuda, "torch": torchs}
    assert choose().backend == winner
    assert machine.measurements == 1


def test_the_median_counts_and_not_one_slow_call(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, calls = machine.clock, []

    def clock(run: Any, times: int) -> float:
        seconds = right(run, times)
        if machine.ran[-1] == "triton":
            calls.append(seconds)
            return seconds * (100 if len(calls) == 3 else 1)
        return seconds

    monkeypatch.setattr(machine, "clock", clock)
    assert choose().backend == "triton"
    assert len(calls) > 3


def test_the_reason_gives_the_times(machine: Machine) -> None:
    reason = choose().reason
    assert "at B 17, T 40, I 1: triton 2 ms, cuda 3 ms, torch 5 ms" in reason
    assert reason.startswith("measured on 20")


def test_a_class_shares_its_result_and_another_does_not(machine: Machine) -> None:
    assert choose().backend == "triton"
    assert choose(batch=31, steps=63).backend == "triton"
    assert machine.measurements == 1
    machine.seconds["triton"] = 1.0
    assert choose(batch=32).backend == "cuda"
    assert machine.measurements == 2


def test_the_file_is_used_by_the_next_process(machine: Machine, tmp_path: Path) -> None:
    choose()
    (entry,) = saved(tmp_path)
    assert entry["backend"] == "triton"
    assert entry["microseconds"] == {"triton": 2000.0, "cuda": 3000.0, "torch": 5000.0}
    measured.reset()
    machine.ran.clear()
    assert choose().backend == "triton"
    assert not machine.ran


def test_timing_is_bounded(machine: Machine) -> None:
    choose()
    assert machine.timed <= 1.5 * measuring.BUDGET
    machine.seconds = {"triton": 1.0, "cuda": 40.0, "torch": 0.9}
    machine.timed = 0.0
    machine.ran.clear()
    assert choose(cell="GRU").backend == "torch"
    assert machine.ran.count("cuda") == 3  # its numbers, and one timing: it is hopeless
    assert machine.timed < 50


def test_a_backend_that_is_not_there_any_more_is_not_chosen(machine: Machine) -> None:
    assert choose().backend == "triton"
    del machine.seconds["triton"]
    assert choose().backend == "torch"


# ---- numbers


def test_a_wrong_backend_is_never_chosen_and_reported_once(
    machine: Machine, tmp_path: Path
) -> None:
    machine.errors["triton"] = 0.1
    with pytest.warns(RuntimeWarning, match="report this as a bug") as caught:
        assert choose().backend == "cuda"
    (warning,) = caught
    message = str(warning.message)
    assert "backend 'triton' gave wrong numbers" in message
    assert "results err by 1.0e-01, where 2.0e-03 is allowed" in message
    assert "LSTM float16, B 16-31, T 32-63, I 1, H 64, training" in message
    assert "Fake GPU, 2.14, cuDNN 9, 0.1" in message
    assert "triton" not in saved(tmp_path)[0]["microseconds"]
    assert "wrong numbers" in saved(tmp_path)[0]["rejected"]["triton"]
    assert choose(hidden_size=65).backend == "cuda"  # warns of nothing: errors would fail the test
    measured.reset()
    assert choose().backend == "cuda"


@pytest.mark.parametrize("error", [float("nan"), float("inf")])
def test_no_number_is_a_wrong_number(machine: Machine, error: float) -> None:
    machine.errors["triton"] = error
    with pytest.warns(RuntimeWarning, match="wrong numbers"):
        assert choose().backend == "cuda"


def test_wrong_gradients_are_noticed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.errors["triton"] = 0.004  # allowed for gradients of float16, not for results
    with pytest.warns(RuntimeWarning, match="results err by 4.0e-03"):
        choose()
    monkeypatch.setitem(examples.TOLERANCES, "float16", (1.0, 2e-3))
    monkeypatch.setattr(measuring, "_warned", set())
    with pytest.warns(RuntimeWarning, match="gradients err by 4.0e-03"):
        choose(cell="GRU")


def test_an_error_of_torchs_own_is_not_held_against_a_backend(machine: Machine) -> None:
    machine.errors["torch"] = 0.004
    assert choose().backend == "triton"
    machine.errors["triton"] = 0.007
    assert choose(cell="GRU").backend == "triton"
    machine.errors["triton"] = 0.009
    with pytest.warns(RuntimeWarning, match="where 8.0e-03 is allowed"):
        assert choose(hidden_size=65).backend == "cuda"


# ---- failures


@pytest.mark.parametrize("moment", ["raises", "raises_when_timed"])
@pytest.mark.parametrize(
    "error",
    [RuntimeError("triton: compilation failed\nmore"), ValueError("launch failed")],
    ids=["compile", "launch"],
)
def test_a_backend_that_fails_is_removed_with_one_warning(
    machine: Machine, tmp_path: Path, moment: str, error: Exception
) -> None:
    getattr(machine, moment)["triton"] = error
    first = str(error).splitlines()[0]
    with pytest.warns(RuntimeWarning, match=f"'triton' failed and is not used .*{first}") as caught:
        assert choose().backend == "cuda"
    assert len(caught) == 1
    assert "more" not in str(caught[0].message)
    assert saved(tmp_path)[0]["rejected"] == {
        "triton": f"failed with {type(error).__name__}: {first}"
    }
    assert choose(cell="GRU").backend == "cuda"  # is measured, and warns no more


def test_a_lack_of_memory_is_not_remembered_by_the_next_process(
    machine: Machine, tmp_path: Path
) -> None:
    machine.raises["triton"] = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
    with pytest.warns(RuntimeWarning, match="OutOfMemoryError: CUDA out of memory"):
        assert choose().backend == "cuda"
    assert choose().backend == "cuda"
    assert not (tmp_path / "cache").exists()
    machine.raises.clear()
    measured.reset()
    assert choose().backend == "triton"


@pytest.mark.parametrize("how", ["dead", "endless"])
def test_a_backend_that_makes_the_device_unusable_is_not_tried_again(
    machine: Machine, how: str
) -> None:
    if how == "dead":
        machine.dead = True
        machine.raises["triton"] = RuntimeError("CUDA error: an illegal memory access")
    else:
        machine.endless = "triton"
    with pytest.warns(
        RuntimeWarning, match="restart this program, because it can no longer use the device"
    ):
        assert choose().backend == "torch"
    assert "cuda" not in machine.ran  # nothing more can run in this process
    machine.dead, machine.endless = False, None
    machine.ran.clear()
    measured.reset()  # the next process
    assert choose().backend == "cuda"
    assert choose(cell="GRU").backend == "cuda"
    assert "triton" not in machine.ran


@pytest.mark.parametrize("moment", ["raises", "raises_when_timed"])
def test_if_torchs_own_path_fails_the_rules_decide(
    machine: Machine, tmp_path: Path, moment: str
) -> None:
    getattr(machine, moment)["torch"] = RuntimeError("no")
    assert choose() == backends.choose(call())
    assert choose().backend == "torch"
    assert machine.measurements == 1
    assert not (tmp_path / "cache").exists()


def test_if_all_backends_fail_torchs_own_path_is_chosen(machine: Machine) -> None:
    machine.raises.update(triton=RuntimeError("a"), cuda=RuntimeError("b"))
    with pytest.warns(RuntimeWarning, match="failed"):
        choice = choose()
    assert choice.backend == "torch"
    assert "triton: failed with RuntimeError: a; cuda: failed" in choice.reason


def test_without_a_backend_that_could_run_it_nothing_is_measured(machine: Machine) -> None:
    machine.seconds = {"torch": 5e-3}
    choose()
    choose()
    assert not machine.ran


# ---- when


def test_a_class_is_measured_once_by_several_threads(machine: Machine) -> None:
    machine.models = ["Fake GPU"] * 2
    right = machine.clock

    def slow(run: Any, times: int) -> float:
        time.sleep(0.001)
        return right(run, times)

    machine.clock = slow  # type: ignore[method-assign]
    threads = [
        threading.Thread(target=choose, kwargs={"device_index": i % 2, "hidden_size": 64 + i // 4})
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert machine.measurements == 2
    assert choose().backend == "triton"


def test_two_models_have_a_table_and_a_file_each(machine: Machine, tmp_path: Path) -> None:
    machine.models = ["Fake GPU", "Other GPU"]
    assert choose(device_index=0).backend == "triton"
    machine.seconds["cuda"] = 1e-3
    assert choose(device_index=1).backend == "cuda"
    assert choose(device_index=0).backend == "triton"
    assert machine.measurements == 2
    assert len(list((tmp_path / "cache").glob("tuning-*.json"))) == 2


def test_two_devices_of_a_model_share_a_table(machine: Machine) -> None:
    machine.models = ["Fake GPU"] * 2
    assert choose(device_index=0).backend == choose(device_index=1).backend == "triton"
    assert machine.measurements == 1


def test_what_another_process_has_written_meanwhile_is_kept(
    machine: Machine, tmp_path: Path
) -> None:
    choose()
    (entry,) = saved(tmp_path)
    kind = tables.CallClass(**entry["class"])._replace(cell="GRU")
    result = tables.Result("torch", {"torch": 1.0})
    tables.save(machine.key_of(torch.device("cuda")), {kind: result})
    choose(hidden_size=65)
    assert len(saved(tmp_path)) == 3


def test_nothing_is_measured_while_a_graph_is_captured(machine: Machine) -> None:
    machine.capturing = True
    assert choose().backend == "torch"
    assert not machine.ran
    machine.capturing = False
    assert choose().backend == "triton"


def test_a_question_measures_nothing(machine: Machine) -> None:
    assert backends.choose(call()).backend == "torch"
    explain("LSTM", batch=17, hidden_size=64, device="cuda", dtype=torch.float16)
    assert not machine.ran
    choose()
    choice = explain(
        "LSTM", batch=17, hidden_size=64, steps=40, device="cuda", dtype=torch.float16,
        training=True,
    )  # fmt: skip
    assert choice.backend == "triton"


def test_a_forced_backend_is_used_and_nothing_is_measured(machine: Machine) -> None:
    with fastrnn.backend("cuda"):
        assert choose().backend == "cuda"
    assert not machine.ran


@pytest.mark.parametrize(
    ("mode", "device", "measures", "uses"),
    [
        ("", "cuda", True, True),
        ("on", "cuda", True, True),
        ("off", "cuda", False, False),
        ("", "cpu", False, True),
        ("on", "cpu", True, True),
        (" ON ", "cpu", True, True),
        ("off", "cpu", False, False),
    ],
)
def test_the_switch(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    device: str,
    measures: bool,
    uses: bool,
) -> None:
    monkeypatch.setenv("FASTRNN_TUNING", mode)
    machine.seconds["cpu"] = 1e-3
    changes = {"device": device, "device_index": 0 if device == "cuda" else None}
    choose(**changes)
    assert bool(machine.ran) == measures
    (tables.folder() / "x").parent.mkdir(exist_ok=True)  # type: ignore[operator]
    kind = tables.class_of(call(**changes))
    assert kind is not None
    result = tables.Result("torch", {"torch": 1.0}, {}, (1, 1, 1), "2026-11-28")
    tables.save(machine.key_of(torch.device("cuda")), {kind: result})
    measured.reset()
    assert choose(**changes).reason.startswith("measured on 2026-11-28") == uses


def test_another_value_of_the_switch_is_reported_and_counts_as_unset(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTRNN_TUNING", "maybe")
    with pytest.warns(RuntimeWarning, match="FASTRNN_TUNING is 'maybe'; expected on or off"):
        assert choose().backend == "triton"


@pytest.mark.parametrize("where", ["damaged", "unwritable"])
def test_a_table_that_cannot_be_used_is_as_if_absent(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    if where == "damaged":
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / machine.key_of(torch.device("cuda")).file).write_text("{")
    else:
        (tmp_path / "cache").write_text("a file is in the folder's place")
    assert choose().backend == "triton"
    assert choose().backend == "triton"
    assert machine.measurements == 1


def test_if_no_thread_can_be_started_the_rules_decide(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", full)
    assert choose().backend == "torch"


# ---- on this processor


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Call]]:
    """CPUs measure, too; what would be measured is listed instead."""
    calls: list[Call] = []
    monkeypatch.setenv("FASTRNN_TUNING", "on")
    monkeypatch.setattr(measured, "measure_class", lambda call, table: calls.append(call))
    measured.reset()
    yield calls
    monkeypatch.undo()
    measured.reset()


class Jvp(nn.Module):
    """A layer in forward mode."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> Any:
        with forward_ad.dual_level():
            return self.layer(forward_ad.make_dual(x, torch.ones_like(x)))


CONTEXTS: dict[str, Callable[[nn.Module, torch.Tensor], Any]] = {
    "torch.compile": lambda layer, x: torch.compile(layer, backend="eager")(x),
    "torch.export": lambda layer, x: torch.export.export(layer, (x,)),
    "torch.jit.trace": lambda layer, x: torch.jit.trace(layer, (x,), check_trace=False),
    "make_fx": lambda layer, x: make_fx(layer)(x),
    "vmap": lambda layer, x: torch.func.vmap(layer)(x[None]),
    "forward mode": lambda layer, x: Jvp(layer)(x),
}


@pytest.mark.filterwarnings("ignore")  # tracing warns of much
@pytest.mark.parametrize("context", CONTEXTS)
def test_only_calls_in_eager_code_are_measured(context: str, on: list[Call]) -> None:
    layer, x = fastrnn.LSTM(3, 5), torch.randn(4, 2, 3)
    CONTEXTS[context](layer, x)
    assert not on
    layer(x)
    assert [(c.cell, c.steps, c.batch, c.training) for c in on] == [("LSTM", 4, 2, True)]
    layer(x)
    assert len(on) == 1


def test_layers_packed_sequences_cells_and_patched_layers_are_measured(on: list[Call]) -> None:
    x = torch.randn(4, 2, 3)
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([4, 3]))
    with torch.no_grad():
        fastrnn.GRU(3, 5)(x)
        fastrnn.GRU(3, 5)(packed)
        fastrnn.LSTMCell(3, 5)(x[0])
    with fastrnn.patch_torch():
        nn.GRU(3, 6)(x)
        with torch.autocast("cpu", torch.bfloat16):
            fastrnn.LSTM(3, 5)(x)
    found = [(c.cell, c.hidden_size, c.steps, c.packed, c.training, c.dtype) for c in on]
    assert found == [
        ("GRU", 5, 4, False, False, torch.float32),
        ("GRU", 5, 4, True, False, torch.float32),
        ("LSTM", 5, 1, False, False, torch.float32),
        ("GRU", 6, 4, False, True, torch.float32),
        ("LSTM", 5, 4, False, True, torch.bfloat16),
    ]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Real measurements on this processor, and short ones."""
    monkeypatch.setenv("FASTRNN_TUNING", "on")
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(measuring, "BUDGET", 0.0)
    monkeypatch.setattr(measuring, "_SAMPLE", 0.0)
    measured.reset()
    yield tmp_path
    monkeypatch.undo()
    measured.reset()


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_this_processor_is_measured(
    quick: Path, cell: str, training: bool, packed: bool, dtype: torch.dtype
) -> None:
    layer, x = getattr(fastrnn, cell)(3, 16, dtype=dtype), torch.randn(12, 9, 3, dtype=dtype)
    given: Any = x
    if packed:
        lengths = torch.arange(12, 3, -1)
        given = nn.utils.rnn.pack_padded_sequence(x, lengths)
    with torch.set_grad_enabled(training):
        layer(given)
    (entry,) = saved(quick)
    assert set(entry["microseconds"]) == {"cpu", "torch"}
    assert entry["rejected"] == {}
    assert (entry["class"]["training"], entry["class"]["packed"]) == (training, packed)
    assert entry["class"]["arithmetic"] == str(dtype).removeprefix("torch.")


def test_the_callers_state_does_not_matter_and_stays(quick: Path) -> None:
    layer, x = fastrnn.LSTM(3, 16), torch.randn(12, 9, 3)
    before, seen = torch.get_rng_state(), []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        seen.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    kept = len(seen)
    assert len(saved(quick)) == 1
    seen.clear()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    assert len(seen) == kept
    assert torch.equal(before, torch.get_rng_state())
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        layer(x)
    assert [entry["class"]["arithmetic"] for entry in saved(quick)] == ["bfloat16", "float32"]


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_the_result_decides_what_runs(
    quick: Path, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = fastrnn.GRU(3, 16), torch.randn(12, 9, 3)
    seconds = {"cpu": 2.0, "torch": 1.0}

    def clock(run: Any, times: int) -> float:
        run()
        (verdict,) = next(iter(measured._by_key.values())).verdicts.values()
        return seconds[verdict[0]]

    monkeypatch.setattr(measuring, "clock_for", lambda device: clock)
    ran: list[str] = []
    vendor = torch.gru

    def gru(*args: Any) -> Any:
        ran.append("torch")
        return vendor(*args)

    monkeypatch.setattr(torch, "gru", gru)

    def runs_torch() -> bool:
        ran.clear()
        with torch.set_grad_enabled(training):
            layer(x)
        return bool(ran)

    runs_torch()
    assert runs_torch()
    seconds["cpu"] = 0.5
    tables.folder().joinpath(*[p.name for p in tables.folder().glob("t*")]).unlink()  # type: ignore[union-attr]
    measured.reset()
    runs_torch()
    assert not runs_torch()


def test_wrong_numbers_of_this_processors_kernels_are_reported(
    quick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels: Any = backends.BACKENDS["cpu"].kernels()
    right = kernels.forward

    def wrong(*args: Any) -> Any:
        y, *others = right(*args)
        return (1.001 * y, *others)

    layer, x = fastrnn.LSTM(3, 16), torch.randn(12, 9, 3)
    monkeypatch.setattr(kernels, "forward", wrong)
    monkeypatch.setattr(layer_ops, "forward", lambda *args: None)  # a shorter way to the same
    monkeypatch.setattr(measuring, "_warned", set())
    with pytest.warns(RuntimeWarning, match="backend 'cpu' gave wrong numbers"):
        found, _ = layer(x)
    with fastrnn.backend("torch"):
        assert torch.equal(found, layer(x)[0])
    (entry,) = saved(quick)
    assert entry["backend"] == "torch"
    assert entry["rejected"].keys() == {"cpu"}


def test_a_measurement_leaves_no_choice_of_its_own_behind(quick: Path) -> None:
    layer, x = fastrnn.LSTM(3, 16), torch.randn(784, 9, 3)  # is timed with 512 steps
    with torch.no_grad():
        layer(x)
    (table,) = measured._by_key.values()
    assert len(table.verdicts) == 1
    assert not any("being measured" in reason for _, reason in table.verdicts.values())
    assert saved(quick)[0]["size"] == [9, 512, 3]


def test_long_calls_are_timed_with_fewer_steps() -> None:
    large = call(device="cpu", device_index=None, batch=256, hidden_size=1024, steps=784)
    assert examples.shortened(large).steps == 8
    assert examples.shortened(large._replace(steps=3)).steps == 3
    assert examples.shortened(large._replace(device="cuda")).steps == 32
    assert examples.shortened(call(steps=784)).steps == 512


def test_a_fork_during_a_measurement_leaves_nothing_of_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose()
    (table,) = measured._by_key.values()
    (kind,) = table.results
    held = threading.Lock()
    monkeypatch.setattr(measuring, "_lock", held)
    with held, table.trial(kind) as switch:
        switch("cuda")
        measuring._after_fork()  # in the child
        assert not measuring._lock.locked()
        assert choose().backend == "triton"


def test_those_who_keep_choices_are_told_of_changes() -> None:
    assert {inference.forget_choices, patching.forget_choices} <= set(measured.listeners)


def test_without_a_table_nothing_is_found_out_about_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def asked(device: torch.device) -> tables.Key:
        raise AssertionError("this takes milliseconds")

    monkeypatch.setattr(tables, "key_of", asked)
    measured.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert measured.lookup(call(device="cpu", device_index=None)) is None
    measured.reset()
