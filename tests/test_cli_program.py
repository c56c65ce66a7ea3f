"""``fastrnn run``: a program runs as by Python itself, and torch is patched."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """\
import atexit, pickle, sys

class Kept:
    pass

print(sys.argv, __name__, __file__, sys.path[0])
if sys.argv[-1] == "patched":
    assert sys.modules["fastrnn"].backend_info()["patched"]
assert type(pickle.loads(pickle.dumps(Kept()))) is Kept
atexit.register(lambda: print("bye", Kept.__name__))

def fail():
    raise ValueError("the program's own")

if "fail" in sys.argv:
    fail()
if "leave" in sys.argv:
    sys.exit(7)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").touch()
    (tmp_path / "package/__main__.py").write_text(PROGRAM)
    (tmp_path / "broken.py").write_text("x = (\n")
    return tmp_path


def call(folder: Path, *command: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        "program.py a --help -m",
        "program.py fail",
        "program.py leave",
        "broken.py",
        "package b",
        "-m package leave",
    ],
)
def test_a_program_runs_as_by_python(folder: Path, arguments: str) -> None:
    wanted = call(folder, *arguments.split())
    status, out, err = call(folder, "-m", "fastrnn", "run", *arguments.split(), "patched")
    assert status == wanted[0]
    out = out.replace(f"['{folder}/package'", "['package'")  # runpy makes argv[0] absolute
    assert out.replace(", 'patched'", "") == wanted[1]
    assert err == wanted[2]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ("", 2, "expected a script, or -m and a module"),
        ("--unknown program.py", 2, "expected a script, or -m and a module"),
        ("nowhere.py", 2, "can't open file 'nowhere.py'"),
        ("-m nowhere", 1, "No module named nowhere"),
    ],
)
def test_what_cannot_run_is_one_line(
    folder: Path, arguments: str, status: int, message: str
) -> None:
    found = call(folder, "-m", "fastrnn", "run", *arguments.split())
    assert found[:2] == (status, "")
    assert found[2].startswith("fastrnn: run: ")
    assert message in found[2]
    assert found[2].count("\n") == 1
