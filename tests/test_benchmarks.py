"""benchmarks.compare reports no speed for wrong results, and a killed run resumes."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import compare, heatmap, import_time, measure, report, sweep
from benchmarks.cases import DTYPES, GRIDS, Case
from benchmarks.memory import kept_for_backward, peak_memory
from tests import oracle

ROOT = Path(__file__).parents[1]
TINY = ["--cells", "GRU", "--hidden", "4", "--batch", "2", "--steps", "3", "--budget", "0.01"]


class Mutant(nn.GRU):
    """torch's GRU, whose outputs are made wrong by a thousandth."""

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, h_n = super().__call__(x)
        return 1.001 * y, h_n


def test_full_grid_has_each_combination_once() -> None:
    keys = [case.key for case in GRIDS["full-cpu"]]
    assert len(keys) == len(set(keys)) == 2 * 5 * 4 * 3 * 2


@pytest.mark.parametrize(
    ("case", "products"),
    [
        (Case("LSTM", 2, 3, 5, 7), 2 * 3 * 4 * 7 * (5 + 7)),
        (Case("GRU", 2, 3, 5, 7, layers=2), 2 * 3 * 3 * 7 * (5 + 7 + 7 + 7)),
        (Case("GRUCell", 2, 1, 5, 7), 2 * 3 * 7 * (5 + 7)),
    ],
    ids=["lstm", "two layers", "cell"],
)
def test_forward_flops_count_each_product_twice(case: Case, products: int) -> None:
    assert case.forward_flops == 2 * products


@pytest.mark.parametrize(
    "change", [{"cell": "RNN"}, {"hidden": 0}, {"cell": "GRUCell", "steps": 2}]
)
def test_impossible_case_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="|".join(map(str, change.values()))):
        replace(Case("GRU", 1, 1, 1, 1), **change)


def test_compare_writes_times_of_both_peers_and_their_environment(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    assert compare.main([*TINY, "--input", "1", "H", "--sgemm", "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    assert {"device", "torch", "fastrnn", "commit", "date", "threads"} <= set(
        written["environment"]
    )
    assert len(written["results"]) == 2 * 2  # inputs × modes
    for row in written["results"]:
        assert row["wrong"] == []
        assert row["rounds"] >= 3
        assert row["sgemm share"] > 0
        training = row["sizes"]["mode"] == "training"
        for peer in ("torch", "fastrnn"):
            assert row[peer]["forward"] > 0
            assert (row[peer]["backward"] > 0) == training


def test_wrong_result_has_no_speed_and_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(measure.PEERS, "fastrnn", SimpleNamespace(GRU=Mutant))
    file = tmp_path / "results.json"
    assert compare.main([*TINY, "--json", str(file)]) == 1
    for row in json.loads(file.read_text())["results"]:
        assert any(text.startswith("output 0") for text in row["wrong"])
        assert row["torch"] is row["fastrnn"] is None
    assert "WRONG" in capsys.readouterr().out


def test_run_resumes_from_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arguments = [*TINY, "--mode", "inference", "--json", str(tmp_path / "results.json")]
    assert compare.main(arguments) == 0
    monkeypatch.setattr(compare, "measure", None)  # a call would fail
    assert compare.main(arguments) == 0


def test_results_of_different_environments_are_not_mixed(tmp_path: Path) -> None:
    arguments = [*TINY, "--mode", "inference", "--json", str(tmp_path / "results.json")]
    assert compare.main(arguments) == 0
    with pytest.raises(SystemExit, match="another backend"):
        compare.main([*arguments, "--backend", "reference"])


def test_environment_is_reported_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert report.environment("cpu")["commit"] == "unknown"


def test_sweep_draws_equal_shapes_for_equal_seeds() -> None:
    first, again, other = (list(sweep.draw(seed, 60, 12, 1e9)) for seed in (0, 0, 1))
    assert first == again != other
    assert [shape.case.dtype for shape in first].count("bfloat16") == 12
    assert {shape.threads for shape in first} == {1, 2}
    assert {shape.case.packed for shape in first} == {False, True}


def test_sweep_fails_if_fastrnn_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(measure.PEERS, "fastrnn", SimpleNamespace(GRU=Mutant, LSTM=nn.LSTM))
    with oracle.threads(1):
        assert sweep.main(["--shapes", "6", "--gflop", "0.001", "--budget", "0.01"]) == 1
    output = capsys.readouterr().out
    assert "wrong: GRU" in output
    assert "wrong: LSTM" not in output
    assert "lowest" in output


def test_nan_counts_as_wrong() -> None:
    error = measure.relative_error(torch.tensor([torch.nan]), torch.ones(1))
    assert not error <= 1


@pytest.mark.parametrize(("times", "status"), [([30, 39, 90], 0), ([30, 41, 42], 1)])
def test_import_time_fails_if_the_median_is_above_the_bar(
    monkeypatch: pytest.MonkeyPatch, times: list[float], status: int
) -> None:
    each = iter([500.0, *times])  # the first one warms up
    monkeypatch.setattr(import_time, "milliseconds", lambda: next(each))
    assert import_time.main(["--rounds", "3"]) == status


def test_import_time_is_measured_in_a_fresh_process() -> None:
    assert import_time.milliseconds() > 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self")
def test_peak_memory_holds_at_least_the_saved_gates() -> None:
    case = Case("LSTM", batch=64, steps=256, input=1, hidden=64, mode="training")
    saved_gates = 64 * 256 * 4 * 64 * 4
    assert peak_memory(case, "fastrnn") >= saved_gates


@pytest.mark.parametrize(("cell", "numbers"), [("LSTM", 6), ("GRU", 5)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_backward_is_given_the_numbers_that_the_documentation_counts(
    cell: str, numbers: int, dtype: str
) -> None:
    case = Case(cell, batch=64, steps=100, input=1, hidden=64, mode="training", dtype=dtype)
    count = kept_for_backward(case, "fastrnn") // DTYPES[dtype].itemsize
    rest = count - numbers * 64 * 100 * 64
    assert 0 <= rest <= 64 * 100 + 2 * 64 * 64  # the input, and the states before the first step


@pytest.mark.parametrize(("cell", "states"), [("LSTM", 2), ("GRU", 1)])
def test_chunks_keep_the_input_and_the_states_before_each(cell: str, states: int) -> None:
    case = Case(cell, batch=64, steps=100, input=1, hidden=64, mode="training")
    bytes_kept = kept_for_backward(case, "fastrnn", chunk=28)
    assert bytes_kept == 4 * (64 * 100 + 3 * states * 64 * 64)  # the first of 4 chunks has none


def test_pytest_benchmark_cases_run() -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "benchmarks",
        "--benchmark-disable",
        "-q",
        "-k",
        "T28",
    ]
    subprocess.run(command, check=True, cwd=ROOT)


def _row(hidden: int, torch_s: float, wrong: tuple[str, ...] = (), mode: str = "training") -> Any:
    sizes = {"cell": "GRU", "mode": mode, "steps": 28, "input": 28, "batch": 1, "hidden": hidden}
    case = f"GRU {mode} B1 T28 I28 H{hidden}"
    times = {"torch": {"total": torch_s}, "fastrnn": {"total": 1.0}}
    return {"case": case, "sizes": sizes, "wrong": wrong, **times}


def test_a_heat_map_frames_the_losses_and_leaves_out_wrong_results() -> None:
    rows = [_row(32, 2.5), _row(64, 0.8), _row(128, 0.999), _row(256, 9.0, ("y",))]
    facts = {"device": "a machine", "threads": 2, "torch": "2.14"}
    (panel,) = heatmap.heatmap(rows, facts).axes
    assert [text.get_text() for text in panel.texts] == ["2.50", "0.80", "1.00"]
    (frame,) = panel.patches
    assert frame.get_extents().intervalx == pytest.approx(
        panel.transData.transform([(0.54, 0), (1.46, 0)])[:, 0]
    )  # around the second column
    assert panel.get_title() == "GRU training"


def test_a_heat_map_is_drawn_with_the_comparison_and_from_its_file(tmp_path: Path) -> None:
    results, picture = tmp_path / "results.json", tmp_path / "ratios.png"
    options = [*TINY, "--mode", "inference", "--json", str(results)]
    assert compare.main([*options, "--figure", str(picture)]) == 0
    first = picture.read_bytes()
    picture.unlink()
    assert heatmap.main([str(results), str(picture)]) == 0
    assert picture.read_bytes() == first
    assert heatmap.main([str(results), str(tmp_path / "no" / "folder" / "ratios.png")]) == 1
