"""``python -m tests.newcomer``: README's first steps, word for word, as a newcomer takes them.

Needs what README has installed until then and nothing else. Works in a temporary folder.
"""

import tempfile
from pathlib import Path

from tests.documents import ROOT, blocks, in_folder, run_bash, run_python

SECTION = "First steps"


def main() -> None:
    """Runs the section's blocks in order; raises an error if one fails."""
    steps = [b for b in blocks(ROOT / "README.md") if b.section == SECTION and not b.reason]
    assert {block.language for block in steps} == {"bash", "python"}
    with tempfile.TemporaryDirectory() as folder, in_folder(Path(folder)):
        for block in steps:
            if block.language == "bash":
                run_bash(block, Path(folder))
            else:
                run_python(block, {})


if __name__ == "__main__":
    main()
