"""What is installed: the wheel's content, the library's symbols, installs without a compiler."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ELF libraries")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked; made from a copy so that no build output gets in."""
    folder = tmp_path_factory.mktemp("sdist")
    tree = folder / "tree"
    ignored = shutil.ignore_patterns(".*", "build", "_native", "runs", "data", "__pycache__")
    shutil.copytree(ROOT, tree, ignore=ignored)
    build = "from scikit_build_core.setuptools.build_meta import build_sdist; build_sdist('..')"
    subprocess.run([sys.executable, "-c", build], check=True, cwd=tree)
    with tarfile.open(folder / f"fastrnn-{version('fastrnn')}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / f"fastrnn-{version('fastrnn')}"


@pytest.fixture(scope="module")
def wheel(unpacked: Path) -> Path:
    """The wheel built from the source distribution; object files stay in the build folder by it.

    If FASTRNN_WHEEL_FOLDER names a folder, the wheel is also left there, for others to install.
    """
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(unpacked)]
    environment = {**os.environ, "FASTRNN_REQUIRE_NATIVE": "1"}
    command = [sys.executable, "-m", "pip", "wheel", *options, str(unpacked)]
    subprocess.run(command, check=True, env=environment)
    (path,) = unpacked.glob("*.whl")
    if folder := os.environ.get("FASTRNN_WHEEL_FOLDER"):
        shutil.copy(path, folder)
    return path


def test_wheel_holds_the_packages_and_the_library_and_nothing_else(wheel: Path) -> None:
    sources = {
        f"{package}/{file.relative_to(folder).as_posix()}"
        for package, folder in (
            ("fastrnn", ROOT / "fastrnn"),
            ("fastrnn/kernels", ROOT / "kernels"),
        )
        for file in folder.rglob("*.py")
    }
    libraries = {"fastrnn_cpu", "fastrnn_torch"}
    if shutil.which("nvcc"):
        libraries.add("fastrnn_cuda")
    native = {f"fastrnn/kernels/_native/lib{library}.so" for library in libraries}
    names = zipfile.ZipFile(wheel).namelist()
    packaged = {name for name in names if ".dist-info/" not in name}
    others = {"fastrnn/kernels/_native/build.json", "fastrnn/py.typed"}
    page = {file.relative_to(ROOT).as_posix() for file in (ROOT / "fastrnn/tasks/page").iterdir()}
    assert packaged == sources | native | others | page


def test_wheel_serves_every_python(wheel: Path) -> None:
    assert re.fullmatch(r"fastrnn-[\d.]+-py3-none-\w+\.whl", wheel.name)


def test_source_distribution_holds_the_sources_of_the_library(unpacked: Path) -> None:
    for folder in ("kernels/csrc", "tests/csrc", "tests/csrc_cuda"):
        packed = {file.name for file in (unpacked / folder).rglob("*.*")}
        assert packed == {file.name for file in (ROOT / folder).rglob("*.*")}


@linux_only
def test_libraries_export_their_interface_only(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    for library in tmp_path.glob("fastrnn/kernels/_native/*.so"):
        symbols = _symbols("--dynamic", "--defined-only", library)
        assert symbols
        assert [name for _, name in symbols if not name.startswith("fastrnn_")] == []


@linux_only
def test_instruction_sets_share_no_code(wheel: Path) -> None:
    """The linker keeps one copy of a weak symbol: it must not be one for a newer processor."""
    objects = list(wheel.parent.rglob("kernels.cpp.o"))
    levels = {name for path in objects for name in re.findall("fastrnn_cpu_(\\w+).dir", str(path))}
    assert "baseline" in levels
    for path in objects:
        (level,) = re.findall("fastrnn_cpu_(\\w+).dir", str(path))
        weak = [
            name for kind, name in _symbols("--demangle", "--defined-only", path) if kind in "WVu"
        ]
        assert [name for name in weak if f"fastrnn::{level}::" not in name] == []


@linux_only
def test_library_uses_torchs_thread_pool() -> None:
    script = (
        "import torch\n"
        "from fastrnn.kernels import cpu\n"
        "assert cpu.load_error() is None, cpu.load_error()\n"
        "lines = [line.split() for line in open('/proc/self/maps') if 'libgomp' in line]\n"
        "print(len({words[-1] for words in lines}))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE)
    assert int(run.stdout) == 1


def test_install_without_a_compiler_succeeds_and_says_so_in_a_line_each(tmp_path: Path) -> None:
    done = _configure_without_compiler(tmp_path)
    assert done.returncode == 0
    lines = [line for line in done.stderr.splitlines() if "fastrnn:" in line]
    assert len(lines) == 3
    for line in lines:
        assert "no working C++ compiler found; install g++ or set CXX" in line
    subprocess.run(
        ["cmake", "--install", tmp_path, "--prefix", tmp_path / "site"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    native = tmp_path / "site" / "kernels" / "_native"
    facts = json.loads((native / "build.json").read_text())
    libraries = ("fastrnn_cpu", "fastrnn_torch", "fastrnn_cuda")
    for line, library in zip(lines, libraries, strict=True):
        assert not facts[library]["built"]
        assert line.endswith(f"{library} is not built: {facts[library]['reason']}")
    assert [file.name for file in native.iterdir()] == ["build.json"]


def test_required_library_without_a_compiler_is_an_error(tmp_path: Path) -> None:
    done = _configure_without_compiler(tmp_path, FASTRNN_REQUIRE_NATIVE="1")
    assert done.returncode != 0
    assert "FASTRNN_REQUIRE_NATIVE is set" in done.stderr


def test_import_loads_nothing_heavy() -> None:
    """Each of these would take longer to import than fastrnn may add to ``import torch``."""
    heavy = ("matplotlib", "sklearn", "torch._dynamo", "torchvision", "triton")
    script = f"import sys, fastrnn; print(*(name for name in {heavy} if name in sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert run.stdout.split() == []


def test_folder_of_kernels_is_no_package_of_its_own() -> None:
    command = [sys.executable, "-c", "import kernels"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "ImportError: this folder is fastrnn.kernels" in done.stderr


def _configure_without_compiler(
    folder: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Configures the build where no C++ compiler works."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FASTRNN_")}
    return subprocess.run(
        ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja"],
        env={**clean, "CXX": str(folder / "no-compiler"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def _symbols(*arguments: str | Path) -> list[tuple[str, str]]:
    """Kind and name of each symbol that nm lists."""
    listing = subprocess.run(["nm", *arguments], check=True, capture_output=True, text=True).stdout
    pattern = re.compile(r"^[0-9a-f]* +(\w) (.*)$", re.MULTILINE)
    return [(kind, name) for kind, name in pattern.findall(listing)]
