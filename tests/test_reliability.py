"""A small version of ``python -m benchmarks.reliability``: nothing is lost."""

import pytest

from benchmarks import reliability

SHORT = {"cuts": 24, "full-disk": 1, "inputs": 200, "two-writers": 1}
LONG = {name: few if name == "soak" else many for name, (_, many, few) in
        reliability.EXPERIMENTS.items()}  # fmt: skip


@pytest.mark.parametrize("name", SHORT)
def test_nothing_is_lost(name, capsys):
    assert reliability.main([name, "--count", str(SHORT[name])]) == 0, capsys.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize("name", LONG)
def test_nothing_is_lost_in_many_tries(name, capsys):
    assert reliability.main([name, "--count", str(LONG[name])]) == 0, capsys.readouterr().err
