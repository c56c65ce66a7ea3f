"""Whatever the ops and exported programs are fed, the worst outcome is an exception.

The calls run in a process of their own, so that a crash is seen. ``--examples N`` tries more.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CALLS = 2000
SCRIPT = Path(__file__).with_name("wrong_calls.py")


@pytest.mark.parametrize("what", ["ops", "programs"])
def test_wrong_calls_raise(what: str, pytestconfig: pytest.Config) -> None:
    count = pytestconfig.getoption("--examples") or CALLS
    done = subprocess.run(
        [sys.executable, "-W", "ignore", SCRIPT, what, str(count)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    raised, right = map(int, done.stdout.split()[-2:])
    assert raised + right >= CALLS
    assert raised >= 0.6 * CALLS  # the rest were right after all, and gave the right numbers
