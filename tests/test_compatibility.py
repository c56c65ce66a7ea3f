"""docs/compatibility.md: each row names tests that exist. tests/test_docs.py runs its example."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastrnn

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/compatibility.md").read_text()
NOT_SHOWN = {"CUDA graphs"}


def rows() -> list[tuple[str, list[str]]]:
    """Each row's first column and the tests in its last one."""
    cells = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("| ")]
    return [(row[0].strip(), re.findall(r"`([^`]+)`", row[-1])) for row in cells[1:]]


def names_in(path: str) -> set[str]:
    """The test functions of a file; Class::test for those in a class."""
    found = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            methods = [m.name for m in node.body if isinstance(m, ast.FunctionDef)]
            found |= {f"{node.name}::{method}" for method in methods}
    return found


@pytest.mark.parametrize(("feature", "tests"), rows(), ids=[row[0] for row in rows()])
def test_every_row_names_tests_that_exist(feature: str, tests: list[str]) -> None:
    assert bool(tests) != (feature in NOT_SHOWN)
    for test in tests:
        path, _, name = test.partition("::")
        assert name.rpartition("::")[2].startswith("test_")
        assert name in names_in(path), f"{test} is not there"


class _Own(nn.LSTM):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return x * self.hidden_size


def test_what_the_page_says_about_classes() -> None:
    assert not isinstance(fastrnn.LSTM(3, 5), nn.LSTM)
    assert isinstance(fastrnn.LSTM(3, 5), nn.RNNBase)
    assert isinstance(fastrnn.LSTMCell(3, 5), nn.RNNCellBase)
    torch.compiler.reset()
    for layer in (nn.LSTM(3, 5), _Own(3, 5)):
        with pytest.raises(Exception, match="Dynamo does not support RNN, GRU, or LSTM"):
            torch.compile(layer, fullgraph=True, backend="eager")(torch.zeros(2, 1, 3))
