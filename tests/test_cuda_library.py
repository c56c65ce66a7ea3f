"""The compiled CUDA library, checked without a GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import fastrnn
from benchmarks import cuda_resources
from fastrnn.kernels import cuda
from fastrnn.kernels.library import library_path

ROOT = Path(__file__).parents[1]


class TestBuilt:
    path = library_path("fastrnn_cuda")

    @pytest.fixture(autouse=True)
    def built(self) -> None:
        if shutil.which("nvcc") is None:
            pytest.skip("the library is compiled with nvcc, which is missing")
        assert self.path.exists(), cuda.load_error()

    def test_no_kernel_spills(self) -> None:
        found = cuda_resources.read(self.path)
        kept = json.loads(cuda_resources.TABLE.read_text())
        assert found.keys() == kept.keys()
        assert (
            len(kept) == 2 * 2 * 4 * 2 * 3
        )  # cells, directions, kinds of arithmetic, exchanges, GPUs
        # On Blackwell, which was never measured, a kernel spills a few bytes.
        spills = {name: facts["stack"] for name, facts in found.items() if facts["stack"]}
        assert all(name.endswith(" sm_100") for name in spills)
        assert all(stack <= kept[name]["stack"] for name, stack in spills.items())

    def test_loads_without_a_driver_and_reports_why_it_cannot_run(self) -> None:
        info = fastrnn.backend_info()["backends"]["cuda"]
        assert info["path"] == str(self.path)
        assert info["architectures"] == "sm_80 sm_90a sm_100 compute_100"
        assert info["available"] == (info.get("reason") is None)
        if not torch.cuda.is_available():
            assert info["reason"] == "torch finds no GPU"
            assert cuda.device_error() is not None

    def test_a_call_that_it_cannot_run_says_why(self) -> None:
        with fastrnn.backend("cuda"), pytest.raises(RuntimeError, match="tensors are on cpu"):
            fastrnn.LSTM(2, 3)(torch.zeros(4, 1, 2))


def test_an_install_without_nvcc_succeeds_and_says_so(tmp_path: Path) -> None:
    """Also with FASTRNN_REQUIRE_NATIVE, which requires only what the machine can build."""
    configure = ["cmake", "-S", str(ROOT), "-B", str(tmp_path), "-DCMAKE_CUDA_COMPILER=NOTFOUND"]
    environment = {**os.environ, "FASTRNN_REQUIRE_NATIVE": "1"}
    done = subprocess.run(configure, env=environment, capture_output=True, text=True, check=True)
    said = [line for line in (done.stdout + done.stderr).splitlines() if "fastrnn_cuda" in line]
    assert len(said) == 1
    assert "is not built: no working nvcc found" in said[0]
    facts = json.loads((tmp_path / "build.json").read_text())
    assert facts["fastrnn_cuda"]["built"] is False
