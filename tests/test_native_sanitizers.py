"""Tests of the C++ without Python or torch, under sanitizers: see tests/csrc."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_native_library_is_clean_under_sanitizers(tmp_path: Path) -> None:
    configure = [
        *("cmake", "-S", str(ROOT), "-B", str(tmp_path), "-G", "Ninja"),
        "-DFASTRNN_SANITIZE=address,undefined",
        "-DCMAKE_CXX_FLAGS_RELEASE=-O1",  # compiles in half the time
    ]
    subprocess.run(configure, check=True, env={**os.environ, "FASTRNN_REQUIRE_NATIVE": "1"})
    subprocess.run(["cmake", "--build", tmp_path], check=True)
    subprocess.run([tmp_path / "fastrnn_check"], check=True)
