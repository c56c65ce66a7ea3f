"""The table behind the choice: every entry is reachable, no two overlap, and reasons name them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fastrnn import _compat, backends, measured, tuning
from fastrnn.choice import explain
from fastrnn.kernels import cpu
from fastrnn.tuning import TABLE, Call, Entry, Range

entries = pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry.name)


def smallest_call(entry: Entry, **changes: Any) -> Call:
    """The smallest call in an entry's class."""
    values = {
        "cell": entry.cell or "GRU",
        "device": "cpu" if entry.on_cpu else "cuda",
        "dtype": entry.dtype or torch.float32,
        "steps": max(1, entry.steps.least),
        "batch": max(1, entry.batch.least),
        "input_size": 1,
        "hidden_size": max(1, entry.hidden_size.least),
        "training": bool(entry.training),
        "in_one_op": bool(entry.in_one_op),
        "projected": bool(entry.projected),
    }
    return Call(**{**values, **changes})


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch, entry: Entry) -> Iterator[None]:
    """A processor of the entry's kind, with kernels for every device."""
    measured.forget()
    monkeypatch.setattr(tuning, "bfloat16_products", lambda: entry.bfloat16 or "floats")
    monkeypatch.setattr(_compat, "uses_512_bit_vectors", lambda: bool(entry.wide_vectors))
    monkeypatch.setattr(backends, "unsupported", lambda name, call: None)
    yield
    measured.forget()


@entries
@pytest.mark.usefixtures("processor")
def test_every_entry_is_reachable_and_named_in_the_reason(entry: Entry) -> None:
    choice = backends.choose(smallest_call(entry))
    assert choice.backend == backends.TORCH.name
    assert entry.because in choice.reason
    assert f"(table entry {entry.name})" in choice.reason


@entries
@pytest.mark.usefixtures("processor")
def test_an_entry_ends_where_its_ranges_end(entry: Entry) -> None:
    assert entry.holds(smallest_call(entry))
    for name in ("steps", "batch", "hidden_size"):
        sizes: Range = getattr(entry, name)
        outside = [sizes.least - 1] if sizes.least else []
        outside += [sizes.end] if sizes.end is not None else []
        for size in outside:
            assert not entry.holds(smallest_call(entry, **{name: size}))
        if sizes.end is not None:
            assert entry.holds(smallest_call(entry, **{name: sizes.end - 1}))


@pytest.mark.parametrize(
    ("a", "b"),
    list(itertools.combinations(TABLE, 2)),
    ids=lambda entry: entry.name,
)
def test_no_two_entries_overlap(a: Entry, b: Entry) -> None:
    assert not a.overlaps(b)
    assert not b.overlaps(a)


def test_an_overlap_would_be_noticed() -> None:
    for entry in TABLE:
        assert entry.overlaps(entry)
    assert Entry("a", "", steps=Range(1, 5)).overlaps(Entry("b", "", steps=Range(4)))
    assert not Entry("a", "", steps=Range(1, 5)).overlaps(Entry("b", "", steps=Range(5)))
    assert not Entry("a", "", cell="LSTM").overlaps(Entry("b", "", cell="GRU"))


def test_names_are_unique() -> None:
    assert len({entry.name for entry in TABLE}) == len(TABLE)


def test_a_call_of_no_entry_is_ours_and_the_reason_says_so() -> None:
    choice = explain("GRU", batch=200, hidden_size=128)
    assert choice == ("cpu", "no entry of the table says that torch.nn is faster")


@pytest.mark.parametrize(
    ("tiles", "pairs", "ours", "expected"),
    [
        (False, False, False, "floats"),
        (False, True, True, "pairs"),
        (False, True, False, "vendor"),  # our library was built without such instructions
        (True, True, True, "vendor"),
    ],
)
def test_how_bfloat16_numbers_are_multiplied(
    monkeypatch: pytest.MonkeyPatch, tiles: bool, pairs: bool, ours: bool, expected: str
) -> None:
    monkeypatch.setattr(_compat, "multiplies_bfloat16_in_tiles", lambda: tiles)
    monkeypatch.setattr(_compat, "multiplies_bfloat16_in_pairs", lambda: pairs)
    monkeypatch.setattr(cpu, "multiplies_pairs", lambda: ours)
    assert tuning.bfloat16_products() == expected
