"""What it takes to lose a run: kills, flips, cuts, full disks, two writers, wrong inputs, soaking.

Each experiment prints how many times it was tried, and how many times something was lost: a run
that does not go on, other weights than an undisturbed run's, damage that goes unnoticed, a
traceback, a hang, or memory that grows.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import wrong_inputs
from fastrnn.training import checkpoints
from fastrnn.training.errors import RunError

MAIN = "import sys; from fastrnn.cli import main; main()"
TRAIN = ["--dataset", "digits", "--hidden-size", "16", "--batch-size", "50", "--epochs", "25"]
LIMIT_S = 300  # of a command; nothing here takes half as long
WORKER_S = 60  # in which a job ends after one of its workers was killed


class Outcome(NamedTuple):
    """How often an experiment was tried, and what was lost, a line each."""

    tried: int
    lost: list[str]


def start(*arguments: object, processes: int = 1, **options: object) -> subprocess.Popen[str]:
    """Starts ``fastrnn``, or torchrun with several of it."""
    command = [sys.executable, "-c", MAIN, *map(str, arguments)]
    if processes > 1:
        job = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*job, f"--nproc-per-node={processes}", "--no-python", *command]
    return subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **options,  # type: ignore[call-overload]
    )


def run(*arguments: object, processes: int = 1) -> tuple[int, str]:
    """Runs ``fastrnn``; its exit status and output."""
    with start(*arguments, processes=processes) as process:
        output = process.communicate(timeout=LIMIT_S)[0]
    return process.returncode, output


def weights(folder: Path) -> dict[str, bytes]:
    """Every bit of a run's state and of its best weights."""
    found = {}
    for name in ("last", "best"):
        tensors, _ = checkpoints.read(folder / "checkpoints" / f"{name}.safetensors")
        found.update({f"{name} {key}": t.numpy().tobytes() for key, t in tensors.items()})
    return found


def kills(folder: Path, count: int, draw: random.Random) -> Outcome:
    """SIGKILL at random moments of training by one and two processes, completing, in-painting."""
    lost: list[str] = []
    for processes in (1, 2):
        lost += _killed_trainings(folder, count // 3, draw, processes)
    source = folder / "whole-1"
    killed, number = 0, 0
    while killed < 2 * (count // 6):
        number += 1
        name, options = (
            ("complete", ["--images", 40, "--samples", 20]),
            ("inpaint", ["--images", 300, "--width", 4096]),
        )[number % 2]
        options = [*options, "--out"]
        whole = folder / f"{name}-whole"
        if not whole.exists():
            before = time.monotonic()
            run(name, source, *options, whole)
            took = time.monotonic() - before
        out = folder / f"{name}-{number}"
        with start(name, source, *options, out) as process:
            killed += _kill_within(process, draw.uniform(0, took))
        status, output = (0, "") if out.exists() else run(name, source, *options, out)
        if status or not _same_arrays(whole, out):
            lost.append(f"{name}: {output[-200:]}")
    if left := [p for p in folder.rglob("*.tmp") if p.parent == folder]:
        lost.append(f"left behind: {left}")
    return Outcome(2 * (count // 3) + killed, lost)


def _killed_trainings(
    folder: Path, count: int, draw: random.Random, processes: int
) -> Iterator[str]:
    """Kills a run again and again, until it is finished; then begins another one."""
    options = ["train", "pixel-prediction", *TRAIN, "--checkpoint-seconds", "0.05"]
    whole = folder / f"whole-{processes}"
    before = time.monotonic()
    run(*options, "--out", whole, processes=processes)
    took = time.monotonic() - before
    expected = weights(whole)
    place = folder / f"killed-{processes}"
    killed = 0
    while killed < count:
        arguments = ["train", "pixel-prediction", "--resume", place]
        if not place.exists():
            arguments = [*options, "--out", place]
        with start(*arguments, processes=processes) as process:
            killed += _kill_within(process, draw.uniform(0, took))
        if (place / "summary.json").exists():
            if weights(place) != expected:
                yield f"{processes} processes: other weights"
            shutil.rmtree(place)
    if place.exists():
        status, output = run("train", "pixel-prediction", "--resume", place, processes=processes)
        if status or weights(place) != expected:
            yield f"{processes} processes: {output[-200:]}"


def _kill_within(process: subprocess.Popen[str], seconds: float) -> bool:
    """Kills a command, and torchrun's workers with it; False if it has ended before."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        for pid in [process.pid, *_children(process)]:  # torchrun's have sessions of their own
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return True
    return False


def _children(process: subprocess.Popen[str]) -> list[int]:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(number) for number in path.read_text().split()] if path.exists() else []


def _same_arrays(first: Path, second: Path) -> bool:
    for path in first.glob("*.npz"):
        with np.load(path) as a, np.load(second / path.name) as b:
            if any(not np.array_equal(a[name], b[name]) for name in a.files):
                return False
    return True


def flips(folder: Path, count: int, draw: random.Random) -> Outcome:
    """One bit of a copy of a run is flipped, in any file but pictures; verify must notice.

    A changed config.json may pass where no setting that matters has changed.
    """
    return _damaged(folder, count, draw, lambda content: _flipped(content, draw))


def cuts(folder: Path, count: int, draw: random.Random) -> Outcome:
    """A file of a copy of a run is cut short."""
    return _damaged(
        folder, count, draw, lambda content: content[: draw.randrange(len(content) - 2)]
    )


def _flipped(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]


def _damaged(
    folder: Path, count: int, draw: random.Random, damage: Callable[[bytes], bytes]
) -> Outcome:
    lost = []
    source = _small_run(folder)
    identity = wrong_inputs.identity(source)
    names = [
        p.relative_to(source)
        for p in sorted(source.rglob("*"))
        if p.is_file() and p.suffix != ".png" and p.stat().st_size
    ]
    for number in range(count):
        copy = folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(source, copy)
        path = copy / names[number % len(names)]
        path.write_bytes(damage(path.read_bytes()))
        status, output = wrong_inputs.call("verify", copy)
        harmless = path.name == "config.json" and not status
        harmless = harmless and wrong_inputs.identity(copy) == identity
        if "Traceback" in output or not (harmless or (status and path.name in output)):
            lost.append(f"{path.name}: status {status}, {output[-200:]}")
    return Outcome(count, lost)


def full_disk(folder: Path, count: int, draw: random.Random) -> Outcome:
    """Files cannot grow past a random size in training; later they can, and the run goes on."""
    lost = []
    whole = _small_run(folder)
    largest = (whole / "checkpoints" / "last.safetensors").stat().st_size
    for number in range(count):
        most = draw.randrange(100, largest)

        def limit(most: int = most) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))

        place = folder / f"full-{number}"
        options = ["train", "pixel-prediction", *wrong_inputs.SMALL]
        with start(*options, "--out", place, preexec_fn=limit) as process:
            output = process.communicate(timeout=LIMIT_S)[0]
        again = ["--resume", place] if place.exists() else [*wrong_inputs.SMALL, "--out", place]
        status, later = run("train", "pixel-prediction", *again)
        if "Traceback" in output + later or status or weights(place) != weights(whole):
            lost.append(f"past {most} bytes: {(output + later)[-300:]}")
    return Outcome(count, lost)


def two_writers(folder: Path, count: int, draw: random.Random) -> Outcome:
    """Two processes start on one run, or on one place for results: one is refused or is later."""
    lost = []
    source = _small_run(folder)
    for number in range(count):
        place = folder / f"shared-{number}"
        if number % 2:
            arguments = ["complete", source, "--images", 9, "--samples", 9, "--out", place]
        else:
            shutil.copytree(source, place)
            (place / "summary.json").unlink()
            arguments = ["train", "pixel-prediction", "--resume", place]
        both = [start(*arguments) for _ in range(2)]
        outputs = [process.communicate(timeout=LIMIT_S)[0] for process in both]
        statuses = sorted(process.returncode for process in both)
        status, said = wrong_inputs.call("verify", place)
        if statuses not in ([0, 2], [0, 0]) or status or "Traceback" in "".join(outputs):
            lost.append(f"{arguments[0]}: {statuses}, {said}, {outputs}")
    return Outcome(count, lost)


def workers(folder: Path, count: int, draw: random.Random) -> Outcome:
    """One of two workers is killed; the job ends soon, and the run goes on in one process."""
    lost = []
    for number in range(count):
        place = folder / f"worker-{number}"
        with start("train", "pixel-prediction", *TRAIN, "--out", place, processes=2) as job:
            while not (place / "metrics.csv").exists() and job.poll() is None:
                time.sleep(0.05)
            os.kill(draw.choice(_children(job)), signal.SIGKILL)
            killed = time.monotonic()
            output = job.communicate(timeout=LIMIT_S)[0]
            took = time.monotonic() - killed
        status, later = run("train", "pixel-prediction", "--resume", place)
        if took > WORKER_S or not job.returncode or status:
            lost.append(f"{took:.0f} s, {output[-200:]} {later[-200:]}")
    return Outcome(count, lost)


def inputs(folder: Path, count: int, draw: random.Random) -> Outcome:
    """Hostile arguments and files: one line, status 2, within 10 s, and nothing else is touched."""
    return Outcome(count, list(wrong_inputs.lost(folder, _small_run(folder), count, draw)))


def soak(folder: Path, seconds: int, draw: random.Random) -> Outcome:
    """Random calls and runs in one process; its memory after the first part, and at the end."""
    source = _small_run(folder)
    sizes, calls = [], 0
    end = time.monotonic() + seconds
    warm = time.monotonic() + min(60, seconds / 3)
    while time.monotonic() < end:
        wrong_inputs.random_call(draw)
        if calls % 20 == 0:
            wrong_inputs.random_command(folder / "soak", source, draw)
        calls += 1
        if time.monotonic() > warm:
            sizes.append(int(Path("/proc/self/statm").read_text().split()[1]))
    part = max(1, len(sizes) // 5)
    first, last = np.median(sizes[:part]), np.median(sizes[-part:])
    growth = last / first - 1
    return Outcome(calls, [f"memory grew by {growth:.1%}"] if growth > 0.01 else [])


def _small_run(folder: Path) -> Path:
    """A finished run that experiments copy."""
    place = folder / "source"
    if not place.exists():
        status, output = wrong_inputs.call(
            "train", "pixel-prediction", *wrong_inputs.SMALL, "--out", place
        )
        if status:
            raise RunError(output)
    return place


EXPERIMENTS: dict[str, tuple[Callable[[Path, int, random.Random], Outcome], int, int]] = {
    # by name: what to do, how often, and how often with --small
    "kills": (kills, 54, 6),
    "flips": (flips, 100, 30),
    "cuts": (cuts, 100, 30),
    "full-disk": (full_disk, 10, 1),
    "two-writers": (two_writers, 10, 2),
    "workers": (workers, 5, 1),
    "inputs": (inputs, 2000, 200),
    "soak": (soak, 3600, 180),
}


def main(arguments: list[str] | None = None) -> int:
    """Runs experiments and prints a table; the number of losses."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(EXPERIMENTS)}; all if none")
    parser.add_argument("--small", action="store_true", help="fewer tries, as in CI")
    parser.add_argument("--count", type=int, help="tries of each; seconds of soak")
    parser.add_argument("--seed", type=int, default=0, help="of all random choices")
    options = parser.parse_args(arguments)
    total = 0
    print("| experiment | tried | lost | seconds |\n|---|---|---|---|")
    for name in options.names or EXPERIMENTS:
        experiment, many, few = EXPERIMENTS[name]
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="reliability-") as folder:
            count = options.count or (few if options.small else many)
            tried, lost = experiment(Path(folder), count, random.Random(options.seed))
        print(f"| {name} | {tried} | {len(lost)} | {time.monotonic() - started:.0f} |", flush=True)
        for line in lost:
            print(f"  {name}: {line!r}", file=sys.stderr)
        total += len(lost)
    return total


if __name__ == "__main__":
    sys.exit(min(main(), 1))
