"""The code blocks of README.md and docs/*.md, and how to run them."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARK = "# not run by the tests: "


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: where it is.
        section: the heading above it.
        language: what its fence says.
        line: of the page, from 1, on which its code begins.
        code: its lines, the mark included.
    """

    page: Path
    section: str
    language: str
    line: int
    code: str

    @property
    def reason(self) -> str | None:
        """Why the block is marked as not run; None for those that run."""
        first = self.code.partition("\n")[0]
        return first.removeprefix(MARK) if first.startswith(MARK) else None


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    found = []
    section = ""
    tokens = MarkdownIt().parse(page.read_text())
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == "heading_open" and following is not None:
            section = following.content
        if token.type == "fence" and token.map is not None:
            found.append(Block(page, section, token.info, token.map[0] + 2, token.content))
    return found


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command in a block of bash; its comments are left out."""
    assert block.language == "bash"
    for line in block.code.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def run_python(block: Block, names: dict[str, Any]) -> None:
    """Runs a block of Python in this process; ``names`` are the page's variables."""
    lines = "\n" * (block.line - 1) + block.code  # so that a traceback shows the page's line
    exec(compile(lines, str(block.page), "exec"), names)


def run_bash(block: Block, folder: Path) -> None:
    """Runs a block of bash in a folder, with this Python's commands."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),  # for python -m benchmarks, which runs in the repository's root
    }
    command = ["bash", "-euxo", "pipefail", "-c", block.code]
    subprocess.run(command, check=True, cwd=folder, env=environment)


@contextlib.contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """Works in a folder that looks like the repository's root to the pages: it has docs/."""
    (folder / "docs").symlink_to(ROOT / "docs")
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
