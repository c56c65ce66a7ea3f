"""Fixtures that several test modules share."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastrnn import measured, tuning
from tests import command, oracle, patched, peers


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of our own."""
    parser.addoption("--examples", type=int, help="random calls to try, in tests that try many")


# Files of few tests that take minutes. They run first, so that no process waits for them alone.
SLOW = ("test_packaging.py", "test_native_sanitizers.py", "test_processes.py", "test_compile.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs slow files first."""
    items.sort(key=lambda item: item.path.name not in SLOW)


def pytest_configure(config: pytest.Config) -> None:
    """Shares the processors among test processes that run side by side (pytest -n).

    And takes the signals that a shell's background jobs and nohup ignore, with all that they start.
    """
    # No measured times of this machine change a choice, here and in processes that tests start.
    os.environ["FASTRNN_CACHE_DIR"] = os.devnull  # where nothing can be read or written
    config.option.loadscopereorder = False  # pytest-xdist's own order puts files of few tests last
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if (workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
        threads = max(1, (os.cpu_count() or 1) // workers)
        torch.set_num_threads(threads)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # for the processes that tests start


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, see :func:`tests.pages.chromium`."""
    from tests import pages  # needs selenium, which not all environments have

    with pages.chromium() as driver:
        yield driver


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens a page, see :func:`tests.pages.opener`."""
    from tests import pages

    with pages.opener(browser, tmp_path) as opened:
        yield opened


@pytest.fixture
def poison() -> Iterator[None]:
    """New memory holds NaN, so that an element which a kernel does not write shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For many small operations: threads that wait for each other cost more than they save."""
    with oracle.threads(1):
        yield


@pytest.fixture
def projections_are_torchs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if torch.nn were faster at every layer with a projection."""
    entry = tuning.Entry("projected LSTM", "torch is faster", projected=True)
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "entry_for", lambda call: entry if entry.holds(call) else None)
        measured.forget()
        yield
    measured.forget()


@pytest.fixture(params=oracle.backends())
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Forces each CPU backend in turn, the native one at each instruction set."""
    with oracle.forced(request.param):
        yield request.param


@pytest.fixture(params=[peers.library, patched], ids=["fastrnn", "patch_torch"])
def both_libraries(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests fastrnn's modules, and then torch.nn's under fastrnn.patch_torch()."""
    monkeypatch.setattr(peers, "library", request.param)


@pytest.fixture
def fastrnn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in an empty folder; (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("FASTRNN_DATA", raising=False)

    def run(*arguments: object) -> tuple[int, str, str]:
        status = command.run(*arguments)
        return status, *capsys.readouterr()

    return run
