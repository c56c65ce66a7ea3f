"""``python -m benchmarks.patching``: torch.nn's layers before and under fastrnn.patch_torch().

Random calls of torch.nn.LSTM and GRU, each run in turn without and with the patch in one process;
the least times count. Numbers are checked first, against the same layer in float64. A call that the
patch slows down is measured again, each time for longer. The exit status is 1 if numbers differ or
if a call remains below the bar. ``--smallest`` measures the cost of the shortest call instead.
"""

import argparse
import copy
import gc
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn
from fastrnn.examples import TOLERANCES

from .measure import BAR, least_in_turn

RANGES = {"steps": (1, 200), "batch": (1, 128), "input_size": (1, 256), "hidden_size": (4, 256)}


@dataclass(frozen=True)
class LayerCall:
    """A layer of torch.nn, its input's sizes, and how it is called."""

    cell: str
    steps: int
    batch: int
    input_size: int
    hidden_size: int
    layers: int
    bidirectional: bool
    packed: bool
    proj_size: int
    training: bool
    threads: int

    def __str__(self) -> str:
        words = [self.cell, f"T{self.steps} B{self.batch} I{self.input_size} H{self.hidden_size}"]
        words += [f"{self.layers} layers"] * (self.layers > 1)
        words += ["two directions"] * self.bidirectional + ["packed"] * self.packed
        words += [f"projected to {self.proj_size}"] * bool(self.proj_size)
        words += ["training" if self.training else "inference", f"{self.threads} threads"]
        return ", ".join(words)


def draw(seed: int, count: int) -> Iterator[LayerCall]:
    """Random calls: sizes log-uniform in RANGES, the rest uniform, of at most 2 GFLOP."""
    generator = random.Random(seed)
    while count:
        sizes = {
            name: round(math.exp(generator.uniform(*map(math.log, ends))))
            for name, ends in RANGES.items()
        }
        cell = generator.choice(("LSTM", "GRU"))
        projected = cell == "LSTM" and generator.random() < 0.1
        call = LayerCall(
            cell,
            **sizes,
            layers=generator.choice((1, 1, 1, 2, 3)),
            bidirectional=generator.random() < 0.3,
            packed=generator.random() < 0.3,
            proj_size=max(1, sizes["hidden_size"] // 2) if projected else 0,
            training=generator.random() < 0.5,
            threads=generator.choice((1, 2)),
        )
        rows, hidden = call.steps * call.batch, call.hidden_size
        flops = 8 * rows * hidden * (call.input_size + hidden) * call.layers
        if flops * (1 + call.bidirectional) * (3 if call.training else 1) < 2e9:
            count -= 1
            yield call


class Subject:
    """A call's layer and input."""

    def __init__(self, call: LayerCall) -> None:
        torch.manual_seed(0)
        self.training = call.training
        self.layer: nn.Module = getattr(nn, call.cell)(
            call.input_size,
            call.hidden_size,
            call.layers,
            bidirectional=call.bidirectional,
            **({"proj_size": call.proj_size} if call.proj_size else {}),
        ).train(call.training)
        self.x: Tensor | PackedSequence = torch.randn(call.steps, call.batch, call.input_size)
        if call.packed:
            lengths = torch.linspace(call.steps, 1, call.batch).round().long()
            self.x = pack_padded_sequence(self.x, lengths)

    def run(self) -> Tensor:
        """One call, with its backward pass in training; the output's rows."""
        if not self.training:
            with torch.no_grad():
                y = self.layer(self.x)[0]
            return y.data if isinstance(y, PackedSequence) else y
        self.layer.zero_grad()
        y = self.layer(self.x)[0]
        y = y.data if isinstance(y, PackedSequence) else y
        y.sum().backward()
        return y.detach()

    def results(self) -> list[Tensor]:
        """The output's rows, and in training the gradients."""
        y = self.run()
        return [y, *(p.grad.clone() for p in self.layer.parameters() if p.grad is not None)]

    def double(self) -> "Subject":
        """The same in float64."""
        twin = copy.copy(self)
        twin.layer, twin.x = copy.deepcopy(self.layer).double(), self.x.double()
        return twin


def wrong(subject: Subject) -> list[str]:
    """What differs from torch in float64 under the patch."""
    exact = subject.double().results()
    with fastrnn.patch_torch():
        found = subject.results()
    problems = []
    for number, (a, b) in enumerate(zip(found, exact, strict=True)):
        tolerance = TOLERANCES["float32"][min(number, 1)]
        error = float((a.double() - b).norm() / b.norm().clamp_min(1e-3 * b.numel() ** 0.5))
        if not error <= tolerance:
            problems.append(f"{'output' if not number else f'gradient {number}'}: {error:.1e}")
    return problems


def in_turn(run: Callable[[], Any], budget: float, tries: int = 1) -> tuple[float, float]:
    """Least seconds of a call before and under the patch; longer while the patch slows it down."""

    def least() -> float:
        run()  # finds the caches as the calls after it do
        times = []
        for _ in range(5):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return min(times)

    def under_the_patch() -> float:
        with fastrnn.patch_torch():
            return least()

    return least_in_turn(least, under_the_patch, budget=budget, tries=tries, rounds=3)[:2]


def smallest(budget: float) -> None:
    """Prints the time of a call of B 1, T 1, H 32 before and under the patch."""
    torch.set_num_threads(1)
    for cell in ("LSTM", "GRU"):
        for training in (False, True):
            call = LayerCall(cell, 1, 1, 32, 32, 1, False, False, 0, training, 1)
            before, under = in_turn(Subject(call).run, budget)
            print(f"{call}: {before * 1e6:.1f} us before, {under * 1e6:.1f} us under the patch")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the sweep; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.patching",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--budget", type=float, default=0.2, help="seconds per call and try")
    parser.add_argument("--tries", type=int, default=5, help="for a call below the bar")
    parser.add_argument("--smallest", action="store_true", help="the shortest call only")
    options = parser.parse_args(arguments)
    gc.disable()
    if options.smallest:
        smallest(options.budget)
        return 0
    ratios: dict[LayerCall, float] = {}
    failed = []
    for number, call in enumerate(draw(options.seed, options.calls), 1):
        torch.set_num_threads(call.threads)
        subject = Subject(call)
        if problems := wrong(subject):
            failed.append(call)
            print(f"[{number}/{options.calls}] {call}: wrong: {'; '.join(problems)}", flush=True)
            continue
        before, under = in_turn(subject.run, options.budget, options.tries)
        ratios[call] = before / under
        print(
            f"[{number}/{options.calls}] {call}: {before * 1e3:.3f} -> {under * 1e3:.3f} ms, "
            f"{ratios[call]:.2f}",
            flush=True,
        )
        gc.collect()
    below = sorted((ratio, str(call)) for call, ratio in ratios.items() if ratio < BAR)
    print(f"wrong: {len(failed)}; below {BAR}: {len(below)} of {len(ratios)}")
    for ratio, name in below:
        print(f"  {ratio:.2f} {name}")
    if ratios:
        print(f"geometric mean {geometric_mean(ratios.values()):.2f}")
    print(f"torch {torch.__version__}, fastrnn {fastrnn.__version__}")
    return int(bool(failed or below))


if __name__ == "__main__":
    sys.exit(main())
