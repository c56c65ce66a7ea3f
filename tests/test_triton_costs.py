"""Compiled without a GPU: no spills, no weights read in the time loop, no step more expensive."""

from __future__ import annotations

import pytest
import torch

from benchmarks import step_costs
from benchmarks.step_costs import Case

HALF, WHOLE = torch.bfloat16, torch.float32
TABLES = step_costs.tables()
NEWEST = list(TABLES)[-1]

# A few to compile here; `python -m benchmarks.step_costs` compiles all that the table holds.
COMPILED = [
    Case("lstm", "inference", WHOLE, 32, 132),
    Case("lstm", "forward", WHOLE, 32, 132),
    Case("lstm", "backward", WHOLE, 32, 132),
    Case("lstm", "forward", WHOLE, 64, 200),
    Case("lstm", "forward", HALF, 64, 500),
    Case("lstm", "backward", HALF, 128, 500, packed=True),
    Case("gru", "forward", WHOLE, 64, 500),
    Case("gru", "backward", HALF, 64, 500),
    Case("lstm", "forward", HALF, 128, 500, arch=80),
    Case("gru", "backward", WHOLE, 64, 200, arch="gfx942"),
    Case("lstm", "backward", WHOLE, 64, 200, arch="gfx1100"),
    Case("lstm", "cell_forward", torch.float16, 512, 64, 28),
    Case("gru", "steps_backward", torch.float16, 1024, 500, 1024),
    Case("lstm", "steps_forward", torch.float16, 512, 64, 28, arch="gfx942"),
    Case("gru", "draw", WHOLE, 32, 1000, layers=3),
]
LAYERS = [case for case in step_costs.cases() if not case.stepwise and case.way != "draw"]
SHARED = 99 * 1024  # what a program may take on sm_86, the least of all
LIMIT = {32: 160, 64: 280}  # instructions per step


@pytest.mark.parametrize("case", COMPILED, ids=lambda case: case.name)
def test_a_step_costs_no_more_than_the_table_says(case: Case) -> None:
    assert not step_costs.grown(case, step_costs.cost(case))


def test_a_triton_meets_its_own_row_or_may_take_a_tenth_more_but_more_registers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = COMPILED[0]
    kept = TABLES[NEWEST][case.name]
    more = {name: number * 1.09 for name, number in kept.items()} | {"registers": 255}
    monkeypatch.setattr(step_costs, "triton_version", lambda: NEWEST)
    assert not step_costs.grown(case, kept)
    assert set(step_costs.grown(case, more)) == {name for name in more if more[name] > kept[name]}
    monkeypatch.setattr(step_costs, "triton_version", lambda: "3.7.1")
    assert not step_costs.grown(case, more)
    assert set(step_costs.grown(case, more | {"barriers": 2.0})) == {"barriers"}
    assert set(step_costs.grown(case, more | {"spills": 2})) == {"spills"}


def test_the_table_holds_every_case_and_of_the_oldest_triton_what_differs() -> None:
    assert list(TABLES) == ["3.6.0", NEWEST]
    assert set(TABLES[NEWEST]) == {case.name for case in step_costs.cases()}
    assert set(TABLES["3.6.0"]) <= {case.name for case in step_costs.step_cases()}


@pytest.mark.parametrize("version", TABLES)
@pytest.mark.parametrize("case", list(step_costs.step_cases()), ids=lambda case: case.name)
def test_the_table_has_step_kernels_that_fit_on_any_gpu(case: Case, version: str) -> None:
    row = TABLES[version].get(case.name, TABLES[NEWEST][case.name])
    plan = step_costs.plan(case)
    assert not plan.dot or plan.depth >= 16  # the least that Triton 3.6 multiplies
    # Exact products, of which two programs share a multiprocessor: one number goes to memory.
    exact = case.dtype == torch.float32 and not case.tf32
    assert row["spills"] <= (2 if exact and not plan.free else 0)
    assert row.get("shared", 0) <= SHARED


@pytest.mark.parametrize("case", list(step_costs.pixel_cases()), ids=lambda case: case.name)
def test_the_table_has_one_barrier_a_pixel_and_layer_and_no_spills(case: Case) -> None:
    row = TABLES[NEWEST][case.name]
    assert row["spills"] == 0
    if isinstance(case.arch, int):
        assert row["barriers"] == case.layers
        assert row["loads"] == step_costs.plan(case).rows


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_the_table_has_no_spills_one_barrier_a_step_and_no_weights_in_the_loop(case: Case) -> None:
    row = TABLES[NEWEST][case.name]
    assert row["spills"] == 0
    if not isinstance(case.arch, int):
        return
    assert row["barriers"] == 1
    assert row["shared"] <= SHARED
    assert row["shared_reads"] <= step_costs.operand_reads(case)
    assert row["loads"] <= step_costs.early_loads(case)
    wide = not step_costs.plan(case).narrow(case.features)
    prefetches = not case.packed and (case.way == "backward" or wide)
    assert row["cache_controls"] == (1 if prefetches else 0) / step_costs.STEPS_A_TURN
    rows = 1 if row["mma"] else step_costs.plan(case).rows
    ways = 2 if case.way == "backward" else 1
    if case.features == 1 and case.hidden in LIMIT:
        assert row["instructions"] / rows <= LIMIT[case.hidden] * ways


def test_other_steps_and_batches_and_addresses_have_the_same_key() -> None:
    keys = {
        step_costs.cache_key(steps, batch, shift)
        for steps, batch, shift in ((1, 1, 0), (784, 16, 0), (2, 17, 1), (1 << 20, 500, 3))
    }
    assert len(keys) == 1
