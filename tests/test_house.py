"""The house: what lies where, which way imports run, and what importing the package costs."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastrnn import backends

ROOT = Path(__file__).parents[1]
SOURCES = sorted(p for folder in ("fastrnn", "kernels") for p in (ROOT / folder).rglob("*.py"))
NATIVE = sorted(p for p in (ROOT / "kernels/csrc").rglob("*") if p.is_file())
MOST_LINES = 400

LAYER_LIBRARY = {
    "__init__", "_compat", "backends", "checks", "choice", "conversion", "eager", "examples",
    "flops", "freezing", "functional", "gradients", "inference", "info", "layer_ops", "measured",
    "measuring", "nn", "ops", "patching", "projections", "tables", "tuning",
}  # fmt: skip
COMMAND = {"__main__", "_signals"}  # python -m fastrnn, and its first lines
FOLDERS = {"cli", "tasks", "training"}

# What each part may import of the others; first match decides. The order is that of the layers.
PARTS = {
    "fastrnn.cli": r"fastrnn(\.__main__|\.cli(\..+)?)",
    "fastrnn.tasks": r"fastrnn\.tasks(\..+)?",
    "fastrnn.training": r"fastrnn\.training(\..+)?",
    "fastrnn.kernels": r"fastrnn\.kernels(\..+)?",
    "fastrnn": r"fastrnn",
    "fastrnn.conversion": r"fastrnn\.conversion",
    "fastrnn.freezing": r"fastrnn\.freezing",
    "fastrnn.nn": r"fastrnn\.nn",
    "fastrnn.info": r"fastrnn\.info",
    "fastrnn.patching": r"fastrnn\.patching",
    "fastrnn.functional": r"fastrnn\.functional",
    "fastrnn.projections": r"fastrnn\.projections",
    "fastrnn.choice": r"fastrnn\.choice",
    "fastrnn.eager": r"fastrnn\.eager",
    "fastrnn.inference": r"fastrnn\.inference",
    "fastrnn.layer_ops": r"fastrnn\.layer_ops",
    "fastrnn.ops": r"fastrnn\.ops",
    "fastrnn.checks": r"fastrnn\.checks",
    "fastrnn.flops": r"fastrnn\.flops",
    "fastrnn.gradients": r"fastrnn\.gradients",
    "fastrnn.backends": r"fastrnn\.backends",
    "fastrnn.measuring": r"fastrnn\.measuring",
    "fastrnn.examples": r"fastrnn\.examples",
    "fastrnn.measured": r"fastrnn\.measured",
    "fastrnn.tables": r"fastrnn\.tables",
    "fastrnn.tuning": r"fastrnn\.tuning",
    "fastrnn._compat": r"fastrnn\._compat",
    "fastrnn._signals": r"fastrnn\._signals",
}
LAYERS = [  # an import goes from a part to itself or to one further down
    {"fastrnn.cli"},
    {"fastrnn.tasks"},
    {"fastrnn.training"},
    {"fastrnn"},
    {"fastrnn.conversion", "fastrnn.freezing", "fastrnn.info"},
    {"fastrnn.nn", "fastrnn.patching", "fastrnn.measuring"},
    {"fastrnn.examples"},
    {"fastrnn.functional"},
    {"fastrnn.projections"},
    {"fastrnn.eager"},
    {"fastrnn.ops"},
    {"fastrnn.layer_ops"},
    {"fastrnn.inference"},
    {"fastrnn.choice"},
    {"fastrnn.checks", "fastrnn.flops", "fastrnn.gradients"},
    {"fastrnn.backends"},
    {"fastrnn.measured"},
    {"fastrnn.tables"},
    {"fastrnn.tuning"},
    {"fastrnn._compat", "fastrnn._signals", "fastrnn.kernels"},
]
BELOW_THE_TASKS = {"fastrnn.kernels"}  # which the tasks and their commands reach by the backends


def module_name(path: Path) -> str:
    """The name under which a source file is imported."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "kernels":
        parts.insert(0, "fastrnn")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES}


def part_of(module: str) -> str:
    """The part of the house that a module belongs to."""
    return next(part for part, pattern in PARTS.items() if re.fullmatch(pattern, module))


def imported(name: str, path: Path) -> Iterator[str]:
    """Modules of ours that a file imports, anywhere in it: functions and type checks included."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            inside = [f"{base}.{alias.name}" for alias in node.names]
            targets = [target if target in MODULES else base for target in inside]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # importlib.import_module(f"fastrnn.kernels.{name}") and its like
            targets = re.findall(r"^fastrnn(?:\.\w+)+(?=\.?$)", node.value)
        else:
            continue
        for target in targets:
            if target in MODULES and target != name:
                yield target


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_one_way(name: str) -> None:
    source = part_of(name)
    above = next(i for i, parts in enumerate(LAYERS) if source in parts)
    for target in set(imported(name, MODULES[name])):
        part = part_of(target)
        below = next(i for i, parts in enumerate(LAYERS) if part in parts)
        assert part == source or above < below, f"{name} imports {target}, which is above it"
        if source in ("fastrnn.cli", "fastrnn.tasks", "fastrnn.training"):
            assert part not in BELOW_THE_TASKS, f"{name} imports {target}: go by fastrnn.backends"


def test_no_imports_form_a_circle() -> None:
    graph = {name: set(imported(name, path)) for name, path in MODULES.items()}
    while leaves := [name for name, targets in graph.items() if not targets]:
        for name in leaves:
            del graph[name]
        for targets in graph.values():
            targets.difference_update(leaves)
    assert not graph


def test_the_top_of_the_package_holds_the_layer_library() -> None:
    entries = {p.stem for p in (ROOT / "fastrnn").iterdir() if p.suffix == ".py"}
    assert entries == LAYER_LIBRARY | COMMAND
    folders = {p.parent.name for p in (ROOT / "fastrnn").glob("*/__init__.py")}
    assert folders == FOLDERS


@pytest.mark.parametrize(
    "path", [*SOURCES, *NATIVE], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_no_file_is_too_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES


def test_import_loads_nothing_that_only_the_tasks_need() -> None:
    """Each of these would take longer to import than fastrnn may add to ``import torch``."""
    heavy = {
        "matplotlib", "rich", "safetensors", "sklearn", "torch._dynamo", "torchvision", "triton",
        "typer",
    }  # fmt: skip
    script = (
        "import sys, torch; before = set(sys.modules); import fastrnn;"
        f"print(*sorted({heavy} & (set(sys.modules) - before)))"
    )
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert run.stdout.split() == []


# ---- each backend's name stands in its record, and nowhere else

DEVICE = re.compile(r"device|\.type\b")  # torch's device types have some of the same names
SAME_WORD = {  # strings that equal a backend's name and mean something else
    "fastrnn/cli/info.py": {"torch", "cuda"},  # versions
    "fastrnn/info.py": {"torch", "cuda"},  # versions
    "fastrnn/training/checkpoints.py": {"cpu", "cuda"},  # random states of devices
    "fastrnn/training/distributed.py": {"cpu", "cuda"},  # settings of the device
    "fastrnn/tasks/initialisation.py": {"torch"},  # torch's own initial weights
    "fastrnn/training/report.py": {"torch"},  # whose version is written
    "kernels/triton/__init__.py": {"triton"},  # the package that is looked for
}


def literals(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line number, value and line of each plain string in a file."""
    text = path.read_text()
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.STRING and token.string[0] in "\"'":
            yield token.start[0], ast.literal_eval(token.string), lines[token.start[0] - 1]


@pytest.mark.parametrize(
    "path",
    [p for p in SOURCES if p.name != "backends.py"],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_a_backend_is_named_in_its_record_alone(path: Path) -> None:
    others = SAME_WORD.get(path.relative_to(ROOT).as_posix(), set())
    found = [
        (number, value)
        for number, value, line in literals(path)
        if value in backends.BACKENDS and value not in others and not DEVICE.search(line)
    ]
    assert not found


# ---- the map in CONTRIBUTING.md


def test_the_map_shows_every_source_file() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.partition("## How the parts fit")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    shown = {path for row in rows for path in re.findall(r"`([\w./]+)`", row)}
    assert shown
    for path in shown:
        assert (ROOT / path).exists(), f"CONTRIBUTING.md shows {path}, which is not there"
        assert (ROOT / path).is_dir() == path.endswith("/")
    files = [p.relative_to(ROOT).as_posix() for p in [*SOURCES, *NATIVE]]
    files += [p.relative_to(ROOT).as_posix() for p in (ROOT / "benchmarks").glob("*.py")]
    missing = [
        file
        for file in files
        if file not in shown and not any(s.endswith("/") and file.startswith(s) for s in shown)
    ]
    assert not missing
