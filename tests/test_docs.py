"""README.md and docs/: their code runs, and their links lead somewhere."""

import re

import pytest

import fastrnn
from fastrnn import measured
from tests import command, documents

# The blocks that are marked as not run, by page: the first words and the reason on the page.
NOT_RUN = {
    "README.md": {
        "pip install -e .[tasks]": "CI runs it in a new environment",
        "pip install -e .[test]": "CI runs it in a new environment",
        "fastrnn download mnist --data-dir": "downloads MNIST, and takes eight minutes",
    },
    "benchmarking.md": {"python -m benchmarks.compare": "up to 25 minutes"},
    "patching.md": {"fastrnn run script.py --its": "the programs are yours"},
    "tasks.md": {
        "fastrnn download mnist --data-dir": "downloads MNIST, and takes up to an hour",
        "torchrun --nproc-per-node 2 -m": (
            "needs several processes, which tests/test_processes.py starts"
        ),
    },
}


def _run(block, names, folder):
    """Runs a block; commands of ours in this process, which saves seconds each."""
    if block.language == "python":
        documents.run_python(block, names)
    elif block.language == "bash":
        every = list(documents.commands(block))
        if all(words[0] == "fastrnn" and words[1] != "run" for words in every):
            for words in every:
                assert command.run(*words[1:]) == 0, words
        else:
            documents.run_bash(block, folder)
    else:
        assert block.language == "text", f"{block.page.name}:{block.line} has no known language"


@pytest.mark.parametrize("page", documents.PAGES, ids=lambda page: page.name)
def test_the_code_of_a_page_runs(page, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("FASTRNN_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path / "cache"))
    names = {"__name__": "__main__"}
    with documents.in_folder(tmp_path):
        for block in documents.blocks(page):
            if block.reason is None:
                _run(block, names, tmp_path)
    measured.reset()  # forgets what fastrnn tune has measured
    assert not fastrnn.backend_info()["patched"]
    if page.name == "README.md":
        out = capsys.readouterr().out
        accuracies = re.findall(r"test accuracy ([\d.]+)%", out)
        assert float(accuracies[0]) > 90
        assert "docs/four.png: 4 (" in out  # the picture shows a four


def test_only_these_blocks_do_not_run():
    found: dict[str, dict[str, str]] = {}
    for page in documents.PAGES:
        for block in documents.blocks(page):
            if block.reason is not None:
                words = next(documents.commands(block))
                found.setdefault(page.name, {})[" ".join(words[:4])] = block.reason
    assert found == NOT_RUN


@pytest.mark.parametrize("page", documents.PAGES, ids=lambda page: page.name)
def test_links_lead_to_what_is_there(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        path, _, heading = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles]
