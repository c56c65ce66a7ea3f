"""Hostile arguments and files for the command line, and random use of it, all in one process."""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

import fastrnn
from fastrnn import cli
from fastrnn.training.runs import Run

SMALL = ["--dataset", "digits", "--hidden-size", "4", "--batch-size", "500", "--epochs", "2"]
LIMIT_S = 10
NUMBERS = (
    *("-1", "1e2", "1e309", "nan", "inf", "-inf", "0x10", "٣", "", " ", "1,000", "9" * 400, "0"),
    *("2147483648", "1.5", "None", "[1]", "\x1b[31m", "%s", "--", "-", "'", "1 2", "²", "1_0_"),
)
NAMES = (
    "",
    " ",
    "None",
    "..",
    "a\nb",
    "[/x]",
    "é",
    "\udce9",
    "x" * 5000,
    "GRU;",
    "cpu:5",
    "cuda:x",
)
NUMERIC = {
    "train": "epochs batch-size hidden-size num-layers lr warmup clip input-dropout seed "
    "shift slant checkpoint-seconds accumulate",
    "complete": "images samples pixels seed",
    "inpaint": "images threshold width seed",
}
NAMED = {
    "train": "preset dataset pixels cell initialisation schedule device backend",
    "evaluate": "split device backend",
    "complete": "device backend",
    "inpaint": "holes device backend",
}


class TookTooLongError(BaseException):
    """A command is not over within LIMIT_S."""


def call(*arguments: object) -> tuple[int, str]:
    """Runs ``fastrnn`` in this process; its exit status and all that it prints."""
    output, before, status = io.StringIO(), sys.argv, 0
    sys.argv = ["fastrnn", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            cli.main()
    except SystemExit as end:
        status = int(end.code or 0)
    except Exception:
        output.write(traceback.format_exc())
        status = 1
    finally:
        sys.argv = before
    return status, output.getvalue()


def identity(folder: Path) -> dict[str, Any]:
    """The settings of a run that matter."""
    return Run.open(folder).identity


def lost(folder: Path, run: Path, count: int, draw: random.Random) -> Iterator[str]:
    """Tries hostile inputs; yields a line for each that is not refused well.

    Args:
        folder: to work in.
        run: a finished run of pixel-prediction.
        count: of inputs.
        draw: what chooses them.
    """
    place = folder / "inputs"
    place.mkdir()
    watched = _listing(folder)
    previous = signal.signal(signal.SIGALRM, _ring)
    try:
        for number in range(count):
            out = place / f"{number}"
            arguments = [*_arguments(place, run, draw), "--out", str(out)]
            if arguments[0] in ("evaluate", "verify"):
                arguments = arguments[:-2]
            problem = None
            signal.alarm(LIMIT_S)
            try:
                status, output = call(*arguments)
            except TookTooLongError:
                problem = f"no end within {LIMIT_S} s"
            else:
                signal.alarm(0)
                if "Traceback" in output:
                    problem = output[-300:]
                elif status not in (0, 1, 2):
                    problem = f"status {status}"
            signal.alarm(0)
            if changed := _listing(folder) ^ watched:
                problem = problem or f"touched {sorted(changed)[:3]}"
                watched = _listing(folder)
            if problem:
                yield f"{arguments}: {problem}"
            shutil.rmtree(place)
            place.mkdir()
    finally:
        signal.signal(signal.SIGALRM, previous)


def _ring(number: int, frame: FrameType | None) -> None:
    raise TookTooLongError


def _listing(folder: Path) -> set[tuple[str, int]]:
    """The files in a folder but those in ``inputs``, with their times."""
    return {
        (str(p.relative_to(folder)), p.lstat().st_mtime_ns)
        for p in folder.rglob("*")
        if "inputs" not in p.relative_to(folder).parts and not p.is_dir()
    }


def _arguments(place: Path, run: Path, draw: random.Random) -> list[str]:
    """A command with one to three hostile values."""
    command = draw.choice(["train", "evaluate", "complete", "inpaint", "inpaint", "verify"])
    if draw.random() < 0.35:
        bad = _odd_folder(place, run, draw)
        if command == "train":
            return ["train", "pixel-prediction", "--resume", bad]
        few = {"complete": ["--images", "2", "--pixels", "4"], "inpaint": ["--images", "2"]}
        return [command, bad, *few.get(command, [])]
    if command == "verify":
        return ["verify", draw.choice(NAMES)]
    base = ["train", "pixel-prediction", *SMALL] if command == "train" else [command, str(run)]
    if command == "inpaint" and draw.random() < 0.5:
        return [*base, "--holes", _odd_file(place, draw)]
    for _ in range(draw.randint(1, 3)):
        numeric = NUMERIC.get(command, "").split()
        options, values = draw.choice([(numeric, NUMBERS), (NAMED[command].split(), NAMES)])
        if options:
            base += [f"--{draw.choice(options)}", draw.choice(values)]
    if draw.random() < 0.1:
        base.append(draw.choice(NAMES))
    return base


def _odd_folder(place: Path, run: Path, draw: random.Random) -> str:
    """What is no run, or a damaged one."""
    bad = place / "bad"
    kind = draw.randrange(6)
    if kind == 0:
        bad.write_bytes(b"{}")
    elif kind == 1:
        bad.symlink_to(bad)
    elif kind == 2:
        os.mkfifo(bad)
    elif kind > 2:
        shutil.copytree(run, bad)
        names = sorted(p for p in bad.rglob("*") if p.is_file() and p.stat().st_size)
        path = draw.choice(names)
        content = path.read_bytes()
        path.unlink()
        start = draw.randrange(len(content))
        garbage = draw.randbytes(draw.randrange(1, 60))
        change = draw.randrange(6)
        if change == 0:
            path.mkdir()
        elif change == 1:
            os.mkfifo(path)
        elif change == 2:
            path.symlink_to("/dev/zero")
        elif change == 3:
            path.write_bytes(content[:start])
        elif change == 4:
            path.write_bytes(content[:start] + garbage + content[start + len(garbage) :])
    return str(bad)


def _odd_file(place: Path, draw: random.Random) -> str:
    """A file that is no array of holes."""
    path = place / draw.choice(["holes.npy", "holes.npz"])
    kind = draw.randrange(5)
    truth = np.ones((2, 3, 64), np.int8)
    if kind == 0:
        path.write_bytes(draw.randbytes(draw.randrange(200)))
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        path.symlink_to("/dev/zero")
    else:
        changed = draw.choice(
            [truth, truth[:, :0], truth[0], truth.astype(object), truth.astype("U3"), truth * 3]
        )
        stream = io.BytesIO()
        (np.save if path.suffix == ".npy" else np.savez)(stream, changed)
        content = bytearray(stream.getvalue())
        for _ in range(draw.randrange(4)):
            content[draw.randrange(min(130, len(content)))] = draw.randrange(256)
        path.write_bytes(content)
    return str(path)


def random_call(draw: random.Random) -> None:
    """A training step of a layer of random kind and sizes."""
    kind = draw.choice([fastrnn.LSTM, fastrnn.GRU])
    steps, batch, inputs, hidden = (draw.randint(1, most) for most in (60, 40, 40, 80))
    layer = kind(inputs, hidden, draw.randint(1, 2), bidirectional=draw.random() < 0.3)
    output, _ = layer(torch.randn(steps, batch, inputs))
    output.sum().backward()


def random_command(out: Path, run: Path, draw: random.Random) -> None:
    """A command that works, in this process; what it writes is removed."""
    command = draw.choice(
        [
            ["train", draw.choice(["classification", "inpainting"]), *SMALL, "--out", out],
            ["complete", run, "--images", 5, "--samples", 3, "--out", out],
            ["inpaint", run, "--images", 5, "--out", out],
            ["evaluate", run],
        ]
    )
    status, output = call(*command)
    assert status == 0, output
    shutil.rmtree(out, ignore_errors=True)
