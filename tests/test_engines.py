"""benchmarks.engines: wrong numbers have no time, missing engines are named, runs resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import engine_worker, engines, report
from benchmarks.cases import Case

TINY = ["--sizes", "2,3,4,5", "--budget", "0.01", "--threads", "1"]


def row(steps: int = 28, **seconds: float) -> report.Row:
    """A row with these times."""
    sizes = {"cell": "GRU", "batch": 1, "steps": steps, "input": 2, "hidden": 3}
    errors = dict.fromkeys(seconds, 0.0)
    return {"case": f"{steps}", "sizes": sizes, "seconds": seconds, "errors": errors,
            "failed": {}, "wrong": []}  # fmt: skip


def test_the_usual_rows() -> None:
    assert len(engines.SIZES) == len(set(engines.SIZES)) == 15


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "fastrnn", "frozen"])
def test_an_engine_computes_the_layer(engine: str, cell: str, tmp_path: Path) -> None:
    path = tmp_path / "problem.npz"
    engines.write_problem(Case(cell, 2, 3, 4, 5), path)
    commands = iter([f"problem {path}", "time 0.001"])
    started, checked, timed = engine_worker.answers(engine, 1, commands)
    assert started == {}
    assert checked["error"] < 1e-5
    assert 0 < timed["seconds"] < 1


def test_a_wrong_engine_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "problem.npz"
    engines.write_problem(Case("LSTM", 2, 3, 4, 5), path)

    def wrong(problem: engine_worker.Problem) -> engine_worker.Call:
        results = engine_worker.run_torch(problem)()
        return lambda: [np.asarray(result) * 1.001 for result in results]

    monkeypatch.setitem(engine_worker.ENGINES, "jax", ("torch", wrong))
    _, checked = engine_worker.answers("jax", 1, iter([f"problem {path}"]))
    assert checked["error"] == pytest.approx(1e-3, rel=0.1)


def test_engines_that_are_missing_or_fail_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(engine_worker.ENGINES, "jax", ("no_such_package", engine_worker.run_jax))
    (answer,) = engine_worker.answers("jax", 1, iter([]))
    assert "no_such_package" in answer["failed"]
    _, failed = engine_worker.answers("torch", 1, iter(["problem /no/such/file"]))
    assert "FileNotFoundError" in failed["failed"]
    with pytest.raises(SystemExit, match="no engine"):
        engines.main([*TINY, "--engines", "jax"])
    assert "jax: not run: there is no package no_such_package" in capsys.readouterr().out


def test_a_run_writes_json_and_a_table_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = tmp_path / "engines.json", tmp_path / "engines.txt"
    names = ["torch", "frozen"]
    command = [*TINY, "--engines", *names, "--json", str(file), "--out", str(out)]
    assert engines.main(command) == 0
    stored = json.loads(file.read_text())
    assert stored["environment"].keys() >= {"device", "threads", "commit", "date", "torch"}
    assert stored["environment"]["engines"].keys() == set(names)
    assert [result["sizes"]["cell"] for result in stored["results"]] == ["LSTM", "GRU"]
    for result in stored["results"]:
        assert result["seconds"].keys() == set(names)
        assert not result["wrong"]
    assert out.read_text() in capsys.readouterr().out

    def refuse(*_: Any) -> report.Row:
        raise AssertionError("measured again")

    monkeypatch.setattr(engines, "measure", refuse)
    assert engines.main(command) == 0


def test_wrong_numbers_have_no_time() -> None:
    class Wrong:
        def ask(self, command: str) -> dict[str, Any]:
            return {"error": 1e-4} if command.startswith("problem") else {"seconds": 1.0}

    class Right(Wrong):
        def ask(self, command: str) -> dict[str, Any]:
            return {"error": 1e-7} if command.startswith("problem") else {"seconds": 2.0}

    workers: Any = {"jax": Wrong(), "torch": Right(), "frozen": Wrong()}
    measured = engines.measure(Case("GRU", 1, 2, 3, 4), workers, 0.0)
    assert measured["seconds"] == {"torch": 2.0}
    assert [wrong.split(":")[0] for wrong in measured["wrong"]] == ["jax", "frozen"]
    (_, line) = engines.table([measured], ["torch", "jax", "openvino"])
    assert line.split() == ["GRU", "1,2,3,4", "2000", "wrong", "-"]


def test_the_table_has_80_columns() -> None:
    seconds = dict.fromkeys(engine_worker.ENGINES, 12.3456)
    big = row(steps=30, **seconds)
    big["sizes"] |= {"batch": 16, "input": 1024, "hidden": 1024, "cell": "LSTM"}
    lines = engines.table([big, row(torch=0.002, frozen=1e-5)], [*engine_worker.ENGINES])
    assert {len(line) for line in lines} <= set(range(81))
    assert lines[2].split()[-1] == "200.00"


def test_the_summary_counts_the_rows_that_count() -> None:
    rows = [
        row(28, torch=2.0, frozen=1.0), row(784, torch=1.0, frozen=1.1),
        row(1, torch=1.0, frozen=1.4), row(5, torch=1.0, frozen=1.6),
        row(5, torch=1.0),
    ]  # fmt: skip
    long, short = engines.summary(rows)
    assert long.endswith("in 1 of 2 rows")
    assert short.endswith("in 1 of 2 rows")
