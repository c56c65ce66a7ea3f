"""Tests of the C++ without Python or torch: see tests/csrc."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from fastrnn.kernels import cpu

ROOT = Path(__file__).parents[1]


def build(folder: Path, options: Sequence[str], targets: Sequence[str]) -> None:
    configure = [
        *("cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"),
        "-DCMAKE_CXX_FLAGS_RELEASE=-O1",  # compiles in half the time
        *options,
    ]
    subprocess.run(configure, check=True, env={**os.environ, "FASTRNN_REQUIRE_NATIVE": "1"})
    subprocess.run(["cmake", "--build", folder, "--target", *targets], check=True)


def test_native_libraries_are_clean_under_address_and_undefined_sanitizers(tmp_path: Path) -> None:
    programs = ["fastrnn_check", "fastrnn_check_torch"]
    # AVX-512 takes half of the time to compile, in vain where the processor lacks it.
    levels = ";".join(level for level in cpu.info()["levels"] if level != "baseline")
    options = ["-DFASTRNN_SANITIZE=address,undefined", f"-DFASTRNN_LEVELS={levels}"]
    build(tmp_path, options, programs)
    for program in programs:
        subprocess.run([tmp_path / program], check=True)


def test_native_libraries_are_clean_under_the_thread_sanitizer(tmp_path: Path) -> None:
    programs = ["fastrnn_check_threads", "fastrnn_check_torch"]
    # What threads share does not depend on the instruction set.
    build(tmp_path, ["-DFASTRNN_SANITIZE=thread", "-DFASTRNN_LEVELS="], programs)
    for program in programs:
        subprocess.run([tmp_path / program], check=True)


def test_native_library_is_right_on_arm(tmp_path: Path) -> None:
    compiler, emulator = "aarch64-linux-gnu-g++", "qemu-aarch64"
    if not (shutil.which(compiler) and shutil.which(emulator)):
        reason = f"needs {compiler} and {emulator}: apt-get install g++-aarch64-linux-gnu qemu-user"
        if os.environ.get("FASTRNN_REQUIRE_NATIVE", "0") != "0":
            pytest.fail(reason)
        pytest.skip(reason)
    options = [
        *("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"),
        *(f"-DCMAKE_CXX_COMPILER={compiler}", "-DFASTRNN_CHECKS=ON"),
        "-DFASTRNN_CUDA_ARCHITECTURES=",
    ]
    build(tmp_path, options, ["fastrnn_check"])
    system = "/usr/aarch64-linux-gnu"
    thinning = "7"  # a full run takes two minutes
    subprocess.run([emulator, "-L", system, tmp_path / "fastrnn_check", thinning], check=True)
