"""``python -m benchmarks.other_models``: models of other packages before and under patch_torch().

Each model comes from a package on PyPI whose code is not changed. It gets small random weights, or
those that the package ships, and random input. An inference call and a training step run in turn
without and with the patch in one process; results and gradients are compared first, and the least
times count. A package that is not installed is named and left out:

    pip install bi-lstm-crf easyocr gluonts openunmix sb3-contrib silero-vad speechbrain

The exit status is 1 if numbers differ.
"""

import argparse
import functools
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fastrnn

from .measure import no_garbage_collection
from .patching import in_turn


@dataclass(frozen=True)
class Subject:
    """A model, a call of it, and its loss; without a loss it is not trained."""

    model: nn.Module
    call: Callable[[], Any]
    loss: Callable[[], Tensor] | None = None


def tagging() -> Subject:
    """A BiLSTM-CRF that tags words: packed sequences of 5 to 40 words."""
    package = importlib.import_module("bi_lstm_crf.model.model")
    model = package.BiRnnCrf(1000, 10, embedding_dim=100, hidden_dim=128)
    words, tags = torch.randint(1, 1000, (16, 40)), torch.randint(0, 10, (16, 40))
    for row, length in enumerate(torch.linspace(40, 5, 16).long()):
        words[row, length:] = 0
    return Subject(model, lambda: model(words)[0], lambda: model.loss(words, tags))


def reading() -> Subject:
    """EasyOCR's recogniser: convolutions and two bidirectional LSTMs over a line of text."""
    package = importlib.import_module("easyocr.model.vgg_model")
    model = package.Model(1, 256, 256, 97)
    images = torch.randn(4, 1, 64, 320)
    return Subject(model, lambda: model(images, None), lambda: model(images, None).square().mean())


def forecasting() -> Subject:
    """DeepAR: two layers of LSTM over a history, then one step at a time for 100 samples."""
    package = importlib.import_module("gluonts.torch.model.deepar.module")
    distribution = importlib.import_module("gluonts.torch.distributions").StudentTOutput()
    model = package.DeepARModel(
        freq="D", context_length=60, prediction_length=14, num_feat_dynamic_real=2,
        distr_output=distribution, hidden_size=40, dropout_rate=0.0, num_parallel_samples=1,
        lags_seq=[1, 2, 7],
    )  # fmt: skip
    past = model._past_length
    given = {
        "feat_static_cat": torch.zeros(32, 1, dtype=torch.long),
        "feat_static_real": torch.zeros(32, 1),
        "past_time_feat": torch.randn(32, past, 2),
        "past_target": torch.rand(32, past) + 1,
        "past_observed_values": torch.ones(32, past),
        "future_time_feat": torch.randn(32, 14, 2),
    }
    future = {"future_target": torch.rand(32, 14) + 1, "future_observed_values": torch.ones(32, 14)}

    def forecast() -> Tensor:
        # Not its samples: those of two runs differ as soon as one bit of their scale does.
        parameters, *_ = model.unroll_lagged_rnn(**given, future_target=future["future_target"])
        return torch.stack([p.flatten() for p in parameters])

    return Subject(model, forecast, lambda: model.loss(**given, **future).mean())


def separating() -> Subject:
    """Open-Unmix: three bidirectional LSTM layers over the frames of a spectrogram."""
    package = importlib.import_module("openunmix.model")
    model = package.OpenUnmix(nb_bins=1025, nb_channels=2, hidden_size=256, max_bin=740)
    frames = torch.rand(2, 2, 1025, 100)
    return Subject(model, lambda: model(frames), lambda: model(frames).square().mean())


def playing() -> Subject:
    """The recurrent policy of PPO: one step when it plays, packed episodes when it learns."""
    spaces = importlib.import_module("gymnasium.spaces")
    package = importlib.import_module("sb3_contrib.common.recurrent.policies")
    states_of = importlib.import_module("sb3_contrib.common.recurrent.type_aliases").RNNStates
    policy = package.RecurrentActorCriticPolicy(
        spaces.Box(-1, 1, (16,)), spaces.Discrete(4), lambda _: 1e-3, lstm_hidden_size=256
    )
    state = torch.zeros(1, 8, 256)
    states = states_of((state, state), (state, state))
    seen, starts = torch.randn(8, 16), torch.zeros(8)
    history, actions = torch.randn(8 * 64, 16), torch.randint(0, 4, (8 * 64,))
    begins = torch.zeros(8 * 64)

    def learn() -> Tensor:
        values, log_prob, _ = policy.evaluate_actions(history, actions, states, begins)
        return values.square().mean() - log_prob.mean()

    return Subject(policy, lambda: policy(seen, states, starts, deterministic=True)[1:3], learn)


def detecting() -> Subject:
    """Silero's detector of voices, with its own weights: a scripted LSTM cell, 32 ms at a time."""
    model = importlib.import_module("silero_vad").load_silero_vad()
    sound = torch.randn(1, 512)

    def detect() -> Tensor:
        model.reset_states()
        return torch.cat([model(sound, 16000) for _ in range(10)])

    return Subject(model, detect)


def transcribing() -> Subject:
    """SpeechBrain's CRDNN: convolutions, then two bidirectional LSTM layers over a second."""
    package = importlib.import_module("speechbrain.lobes.models.CRDNN")
    model = package.CRDNN(
        input_shape=[None, None, 40], rnn_layers=2, rnn_neurons=256, rnn_bidirectional=True,
        cnn_blocks=1, dnn_blocks=1, dropout=0.0,
    )  # fmt: skip
    sound = torch.randn(4, 100, 40)
    return Subject(model, lambda: model(sound), lambda: model(sound).square().mean())


MODELS: dict[str, Callable[[], Subject]] = {
    "bi-lstm-crf": tagging,
    "easyocr": reading,
    "gluonts": forecasting,
    "openunmix": separating,
    "sb3-contrib": playing,
    "silero-vad": detecting,
    "speechbrain": transcribing,
}


def inference(subject: Subject) -> list[Tensor]:
    """What a call returns."""
    with torch.no_grad():
        return [t for t in pytree.tree_leaves(subject.call()) if isinstance(t, Tensor)]


def training(subject: Subject) -> list[Tensor]:
    """The loss and the gradients of a training step."""
    assert subject.loss is not None
    subject.model.zero_grad()
    loss = subject.loss()
    loss.backward()
    return [loss.detach(), *(p.grad for p in subject.model.parameters() if p.grad is not None)]


# What is run, and how far results may differ from torch.nn's in float32, relative to their norm.
RUNS = {"inference": (inference, 1e-4), "training": (training, 1e-3)}


def difference(subject: Subject, run: Callable[[Subject], list[Tensor]]) -> float:
    """The largest relative difference of a result under the patch from the same without it."""
    torch.manual_seed(1)  # for dropout
    before = [t.double().clone() for t in run(subject)]
    torch.manual_seed(1)
    with fastrnn.patch_torch():
        under = [t.double() for t in run(subject)]
    scale = max(float(t.norm()) for t in before)  # a gradient may be nothing but rounding
    return max(
        float((a - b).norm() / max(float(a.norm()), 1e-3 * scale, 1e-30))
        for a, b in zip(before, under, strict=True)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all models; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.other_models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--packages", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--budget", type=float, default=3.0, help="seconds per row")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    wrong = 0
    for package in options.packages:
        torch.manual_seed(0)
        try:
            subject = MODELS[package]()
        except ModuleNotFoundError as error:
            print(f"{package}: not run: {error}")
            continue
        torch.set_num_threads(options.threads)  # silero_vad sets it when it is imported
        subject.model.eval()
        for name, (run, tolerance) in RUNS.items():
            if run is training and subject.loss is None:
                continue
            subject.model.train(run is training and package != "easyocr")
            share = difference(subject, run) / tolerance
            wrong += not share <= 1
            with no_garbage_collection():
                before, under = in_turn(functools.partial(run, subject), options.budget)
            print(
                f"{package} {version(package)}, {name}: {before * 1e3:.2f} -> {under * 1e3:.2f} ms,"
                f" {before / under:.2f}; differs by {share:.1e} of the tolerance",
                flush=True,
            )
    print(f"wrong: {wrong}; torch {torch.__version__}, fastrnn {fastrnn.__version__}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
