"""Measures one case: torch.nn and fastrnn, in turn in one process, and only if they agree."""

import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from statistics import fmean, median
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn
from fastrnn.choice import explain
from fastrnn.examples import TOLERANCES  # of each peer against exact results

from .cases import DTYPES, Case
from .clocks import Clock, clock_for

MOST_ROUNDS = 200
BAR = 0.95  # of torch.nn's speed counts as equal
PEERS: dict[str, ModuleType] = {"torch": nn, "fastrnn": fastrnn}


@dataclass(frozen=True)
class Effort:
    """How long to measure a case: about ``budget`` seconds, and at least ``rounds`` rounds."""

    budget: float = 2.0
    rounds: int = 3


@dataclass(frozen=True)
class Times:
    """Seconds of one call. Clearing the gradients counts as forward; backward is 0 in inference."""

    forward: float
    backward: float
    total: float


@dataclass(frozen=True)
class Measurement:
    """Each peer's medians over all rounds; or, if their results disagree, what is wrong."""

    wrong: tuple[str, ...] = ()
    torch: Times | None = None
    fastrnn: Times | None = None
    rounds: int = 0


class Subject:
    """A module and the input of a case, called in the case's mode."""

    def __init__(self, case: Case, module: nn.Module) -> None:
        self.module = module.train(case.training)
        self.parameters = list(module.parameters()) if case.training else []
        self.training = case.training
        steps = () if case.single_step else (case.steps,)
        generator = torch.Generator().manual_seed(1)

        def draw(features: int) -> Tensor:
            values = torch.randn(*steps, case.batch, features, generator=generator)
            return values.to(case.device, DTYPES[case.dtype])

        self.x: Tensor | PackedSequence = draw(case.input)
        self.dy = draw(case.hidden)
        if case.packed:
            self.x = pack_padded_sequence(self.x, case.lengths)
            self.dy = pack_padded_sequence(self.dy, case.lengths).data

    def call(self, clock: Clock) -> tuple[Times, list[Tensor]]:
        """Runs one inference or training step; returns the times of its parts and its outputs."""
        with torch.set_grad_enabled(self.training):
            start = clock.mark()
            for parameter in self.parameters:
                parameter.grad = None
            result = self.module(self.x)
            middle = clock.mark()
            outputs = _flatten(result)
            if self.training:
                outputs[0].backward(self.dy)
            end = clock.mark()
        times = Times(
            forward=clock.seconds(start, middle),
            backward=clock.seconds(middle, end) if self.training else 0.0,
            total=clock.seconds(start, end),
        )
        return times, outputs

    def sample(self, clock: Clock, calls: int) -> Times:
        """The mean times over ``calls`` calls in a row."""
        clock.prepare()
        times = [self.call(clock)[0] for _ in range(calls)]
        return _reduce(fmean, times)


def build(case: Case, peer: str) -> Subject:
    """The module of ``peer``, one of PEERS, with its input; weights and input are alike for all."""
    torch.manual_seed(0)
    layers = () if case.single_step else (case.layers,)
    module: nn.Module = getattr(PEERS[peer], case.cell)(case.input, case.hidden, *layers)
    return Subject(case, module.to(case.device, DTYPES[case.dtype]))


def measure(case: Case, effort: Effort) -> Measurement:
    """Checks that both peers agree, then times them in turn.

    The calls for the check also warm up. If they are so long that they spend the budget, they count
    as the first round: warming up is negligible then.
    """
    theirs, ours = build(case, "torch"), build(case, "fastrnn")
    clock = clock_for(torch.device(case.device))
    with no_garbage_collection():
        first, wrong = check(case, theirs, ours, clock)
        if wrong:
            return Measurement(wrong=wrong)
        cost = sum(times.total for times in first)
        if cost * effort.rounds > effort.budget and not clock.cold_start:
            rounds, calls = [first], 1
        else:
            warm = theirs.sample(clock, 2), ours.sample(clock, 2)
            fastest = min(times.total for times in warm)
            calls = max(1, math.ceil(clock.shortest_sample / fastest))
            cost = calls * sum(times.total for times in warm)
            rounds = []
        enough = min(MOST_ROUNDS, max(effort.rounds, int(effort.budget / cost)))
        while len(rounds) < enough:
            rounds.append((theirs.sample(clock, calls), ours.sample(clock, calls)))
    their_times, our_times = (_reduce(median, times) for times in zip(*rounds, strict=True))
    return Measurement(torch=their_times, fastrnn=our_times, rounds=len(rounds))


def check(
    case: Case, theirs: Subject, ours: Subject, clock: Clock
) -> tuple[tuple[Times, Times], tuple[str, ...]]:
    """Calls each peer once; returns their times, and in words where their results differ."""
    their_times, their_outputs = theirs.call(clock)
    our_times, our_outputs = ours.call(clock)
    forward, gradients = TOLERANCES[_arithmetic(case)]
    wrong = [
        f"output {i}: relative error {error:.1e}"
        for i, (a, b) in enumerate(zip(our_outputs, their_outputs, strict=True))
        if not (error := relative_error(a, b)) <= 2 * forward  # both may err; NaN is wrong
    ]
    if case.training:
        named = ours.module.named_parameters()
        for (name, a), b in zip(named, theirs.parameters, strict=True):
            if a.grad is None or b.grad is None:
                wrong.append(f"gradient of {name}: missing")
            elif not (error := relative_error(a.grad, b.grad)) <= 2 * gradients:
                wrong.append(f"gradient of {name}: relative error {error:.1e}")
    return (their_times, our_times), tuple(wrong)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖ in float64; ‖actual‖ if ``expected`` is all zeros."""

    def norm(values: Tensor) -> float:
        return torch.linalg.vector_norm(values.detach(), dtype=torch.float64).item()

    return norm(actual.detach() - expected.detach()) / (norm(expected) or 1.0)


def backend_of(case: Case) -> str:
    """The name of the backend that fastrnn chooses for the case."""
    choice = explain(
        case.cell.removesuffix("Cell"),
        batch=case.batch,
        steps=case.steps,
        input_size=case.input,
        hidden_size=case.hidden,
        dtype=DTYPES[case.dtype],
        device=case.device,
        training=case.training,
    )
    return choice.backend


def sgemm_rate(case: Case) -> float:
    """Operations per second of a large matrix product in the case's dtype, measured now."""
    size, device = 2048, torch.device(case.device)
    clock = clock_for(device)
    a = torch.rand(size, size, device=device).to(DTYPES[case.dtype])
    out = torch.mm(a, a)
    times = []
    for _ in range(5):
        clock.prepare()
        start = clock.mark()
        torch.mm(a, a, out=out)
        times.append(clock.seconds(start, clock.mark()))
    return 2 * size**3 / median(times)


def _arithmetic(case: Case) -> str:
    """The key of TOLERANCES: the dtype, or tf32 where torch would use that."""
    tf32 = case.device.startswith("cuda") and torch.backends.cudnn.allow_tf32
    return "tf32" if case.dtype == "float32" and tf32 else case.dtype


def _flatten(outputs: Tensor | tuple[Any, ...]) -> list[Tensor]:
    """The tensors that a layer or a cell returns, in order."""
    if isinstance(outputs, PackedSequence):
        return [outputs.data]
    if isinstance(outputs, Tensor):
        return [outputs]
    return [tensor for part in outputs for tensor in _flatten(part)]


def _reduce(function: Callable[[list[float]], float], times: Iterable[Times]) -> Times:
    """Applies ``function`` to the forward times, to the backward times and to the totals."""
    parts = zip(*(astuple(each) for each in times), strict=True)
    return Times(*(function(list(part)) for part in parts))


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collects garbage before a measurement, and none during it."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def least_in_turn(
    first: Callable[[], float],
    second: Callable[[], float],
    *,
    budget: float,
    tries: int,
    rounds: int,
) -> tuple[float, float, int]:
    """Times two peers in turn for as long as the second one is slower than BAR.

    Each try adds its times to those of the tries before and lasts longer than them by ``budget``
    seconds.

    Args:
        first, second: run a peer and return the least seconds of a call.
        budget: seconds of the first try.
        tries: at most.
        rounds: of a try at least.

    Returns:
        The least seconds of each, and the number of tries.
    """
    least = [math.inf, math.inf]
    number = 0
    while number < tries and not least[0] / least[1] >= BAR:
        number += 1
        stop, done = time.perf_counter() + number * budget, 0
        while done < rounds or time.perf_counter() < stop:
            done += 1
            for index, peer in enumerate((first, second)):
                least[index] = min(least[index], peer())
    return least[0], least[1], number
