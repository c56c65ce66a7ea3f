"""Completing and scoring images with the pixel loop, compared with torch.nn.

``python -m benchmarks.pixel_loops`` prints medians of a few rounds, all peers in turn. Peers that
would take minutes run a share of the work, and their time is scaled up; the table says what was
run.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastrnn.tasks import filling, holes, pixels
from fastrnn.tasks.models import PixelModel

from .measure import relative_error

SIDE = 28
PIXELS = SIDE * SIDE
TOLERANCE = 1e-5  # relative, of logits and log-likelihoods against torch.nn's


@dataclass(frozen=True)
class Peer:
    """A way to do the work.

    Attributes:
        name: for the table.
        run: does a share of the work.
        share: of the work, in (0, 1].
    """

    name: str
    run: Callable[[], object]
    share: float = 1.0


class Vendor:
    """A pixel model on torch.nn's layer, with the same weights."""

    def __init__(self, model: PixelModel) -> None:
        recurrent = model.recurrent
        self.layer = getattr(nn, recurrent.mode)(1, recurrent.hidden_size, recurrent.num_layers)
        self.layer.load_state_dict(recurrent.state_dict())
        self.head = model.head

    def read(self, images: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Logits [B, n] of the pixel after each of images [B, n] uint8, and the final state."""
        output, state = self.layer(images.t().unsqueeze(2).float(), state)
        return self.head(output).squeeze(2).t(), state

    def score(self, images: Tensor) -> Tensor:
        """Log-likelihoods [N] float64 of images [N, P] uint8, given their first pixels; in nats."""
        logits, _ = self.read(images[:, :-1])
        wanted = images[:, 1:].float()
        losses = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        return -losses.sum(1, dtype=torch.float64)

    def draw(self, uniforms: Tensor, logit: Tensor, state: Any) -> None:
        """Draws pixels [B, n] one by one with uniforms [B, n], from a logit [B] and a state."""
        for u in uniforms.unbind(1):
            logits, state = self.read((u < logit.sigmoid()).unsqueeze(1), state)
            logit = logits[:, 0]

    def complete_by_steps(self, prefix: Tensor, uniforms: Tensor) -> None:
        """Steps every sample through the known pixels, then draws the others."""
        prefix = prefix.repeat_interleave(uniforms.shape[1], 0)
        state = None
        for known in prefix.split(1, 1):
            logits, state = self.read(known, state)
        self.draw(uniforms.flatten(0, 1), logits[:, 0], state)

    def complete_with_prefix_shared(self, prefix: Tensor, uniforms: Tensor) -> None:
        """Reads the known pixels once for all samples of an image, as one sequence."""
        samples = uniforms.shape[1]
        logits, state = self.read(prefix)
        state = (
            tuple(s.repeat_interleave(samples, 1) for s in state)
            if isinstance(state, tuple)
            else state.repeat_interleave(samples, 1)
        )
        self.draw(uniforms.flatten(0, 1), logits[:, -1].repeat_interleave(samples, 0), state)


def filled(images: Tensor, hidden: Tensor) -> Tensor:
    """Images [N * 2^k, P] with every filling of the k hidden pixels of each."""
    places = hidden.nonzero()[:, 1].view(len(images), -1)
    k = places.shape[1]
    each = torch.arange(2**k)[:, None] >> torch.arange(k - 1, -1, -1) & 1
    rows = images.repeat_interleave(2**k, 0)
    values = each.to(images.dtype).repeat(len(images), 1)
    return rows.scatter_(1, places.repeat_interleave(2**k, 0), values)


def require_agreement(what: str, ours: Tensor, theirs: Tensor) -> None:
    """Exits if our numbers differ from torch.nn's: wrong results are not timed."""
    if not (error := relative_error(ours, theirs)) <= TOLERANCE:
        raise SystemExit(f"{what}: relative error {error:.1e} against torch.nn; nothing is timed")


def completing(model: PixelModel, images: int, samples: int, steps: int) -> list[Peer]:
    """Peers that draw the last ``steps`` pixels of images."""
    vendor = Vendor(model)
    generator = torch.Generator().manual_seed(1)
    known = (torch.rand(images, PIXELS - steps, generator=generator) < 0.2).to(torch.uint8)
    uniforms = torch.rand(images, samples, steps, generator=generator)
    drawn, logits = pixels.sample(model, known, steps, uniforms)
    whole = torch.cat([known.repeat_interleave(samples, 0), drawn.flatten(0, 1)], 1)
    wanted = vendor.read(whole[:, :-1])[0][:, -steps:]
    require_agreement("completing", logits.flatten(0, 1), wanted)
    middle = whole[:, : PIXELS - steps + steps // 2]
    return [
        Peer("fastrnn", lambda: pixels.sample(model, known, steps, uniforms)),
        Peer("torch.nn, the sequence again for each pixel", lambda: vendor.read(middle), 1 / steps),
        Peer("torch.nn, step by step", lambda: vendor.complete_by_steps(known, uniforms)),
        Peer(
            "torch.nn, step by step from the end of the prefix",
            lambda: vendor.complete_with_prefix_shared(known, uniforms),
        ),
    ]


def scoring(model: PixelModel, count: int) -> list[Peer]:
    """Peers that score the 16 fillings of a 2 × 2 hole in each image."""
    vendor = Vendor(model)
    generator = torch.Generator().manual_seed(2)
    images = (torch.rand(count, PIXELS, generator=generator) < 0.2).to(torch.uint8)
    hidden = holes.generate(images, SIDE, SIDE, "square", seed=2).hidden
    few = min(count, 64)
    candidates = filled(images[:few], hidden[:few])
    _, likeliest = filling.by_likelihood(model, images[:few], hidden[:few])
    each = vendor.score(candidates)
    require_agreement("scoring", likeliest, each.view(few, -1).amax(1))
    require_agreement("scoring from the start", pixels.score(model, candidates), each)
    return [
        Peer(
            "fastrnn, forked at each hole",
            lambda: filling.by_likelihood(model, images, hidden),
        ),
        Peer("fastrnn, from the start", lambda: pixels.score(model, candidates), few / count),
        Peer("torch.nn, from the start", lambda: vendor.score(candidates), few / count),
    ]


def report(title: str, peers: list[Peer], rounds: int) -> None:
    """Times the peers in turn and prints a table."""
    times: list[list[float]] = [[] for _ in peers]
    for _ in range(rounds):
        for peer, own in zip(peers, times, strict=True):
            start = time.perf_counter()
            peer.run()
            own.append((time.perf_counter() - start) / peer.share)
    first = median(times[0])
    print(f"\n{title}\n\n| | run | seconds | relative to fastrnn |\n|---|---|---|---|")
    for peer, own in zip(peers, times, strict=True):
        share = "all" if peer.share == 1 else f"1/{1 / peer.share:.4g}"
        print(f"| {peer.name} | {share} | {median(own):.3g} | {median(own) / first:.3g} |")


@torch.no_grad()
def main() -> None:
    """Runs both measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cell", choices=("LSTM", "GRU"), default="GRU")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--holes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = PixelModel(args.cell, args.hidden, args.layers, initialisation="orthogonal")
    print(f"{args.cell}, {args.layers} × {args.hidden}, {torch.get_num_threads()} threads, medians")
    size = f"{args.images} images × {args.samples} samples × {args.steps} pixels"
    peers = completing(model, args.images, args.samples, args.steps)
    report(f"Completing {size}", peers, args.rounds)
    peers = scoring(model, args.holes)
    report(f"Scoring 16 fillings of {args.holes} 2 × 2 holes", peers, args.rounds)


if __name__ == "__main__":
    main()
