"""One training loop for every task: progress, metrics, checkpoints, resume.

A task (:class:`Task`) says what is trained: presets, model, figures of a batch, pictures. The loop
says how: Adam with a learning rate that depends on the step alone, a shuffle that depends on seed
and epoch alone, and a checkpoint that holds all else, so that a run which was killed goes on to the
same weights, bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

import fastrnn
from fastrnn import backends, checkpoints, data, reset_before
from fastrnn.checkpoints import State
from fastrnn.config import Config, ConfigError
from fastrnn.interrupts import Interrupted, Signals
from fastrnn.runs import Run, RunError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

EVALUATION_BATCH = 1000


class Task(Protocol):
    """What a task says about itself; a module in fastrnn.tasks holds one."""

    name: str
    presets: Mapping[str, Config]

    def default_preset(self, dataset: str) -> str:
        """The preset to take where none is asked for."""

    def model(self, config: Config, dataset: data.Dataset) -> nn.Module:
        """A new model."""

    def measure(
        self, model: nn.Module, x: Tensor, labels: Tensor, config: Config
    ) -> dict[str, Tensor]:
        """Figures of a batch, each [B]; ``loss`` is what training lowers.

        x [P, B, 1] float32, labels [B] int64; ``model.training`` tells whether gradients are asked
        for. Draws, if any, come from torch's global generator, which is part of the checkpoint.
        """

    def score(self, validation: Mapping[str, float]) -> float:
        """What the best weights have most of, from the means of :meth:`measure`."""

    def pictures(
        self, model: nn.Module, dataset: data.Dataset, config: Config
    ) -> dict[str, Figure]:
        """Pictures of the result on the test set, by file name."""


def _add(totals: dict[str, Tensor], figures: Mapping[str, Tensor]) -> None:
    """Adds up figures [B] of a batch; float64, so that long sums keep their digits."""
    for name, values in figures.items():
        total = values.detach().double().sum()
        totals[name] = totals[name] + total if name in totals else total


def _means(totals: Mapping[str, Tensor], images: int) -> dict[str, float]:
    return {name: total.item() / images for name, total in totals.items()}


def load(config: Config, *, download: bool = False) -> data.Dataset:
    """The data that the settings ask for.

    Raises:
        data.DataError: it is missing or damaged.
    """
    folder = Path(config.data_dir) if config.data_dir else None
    return data.load(config.dataset, folder, grey=config.pixels == "grey", download=download)


def pinned(config: Config, dataset: data.Dataset) -> Config:
    """The settings with ``auto`` replaced by what was found, for a resumed run to find the same."""
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return dataclasses.replace(config, dataset=dataset.name, device=device)


def restored(
    task: Task, config: Config, dataset: data.Dataset, weights: Mapping[str, Tensor]
) -> nn.Module:
    """A run's model with the given weights, in evaluation mode.

    Raises:
        RunError: the weights are another model's.
    """
    model = task.model(config, dataset)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(
            f"the weights do not fit config.json: {checkpoints.one_line(error)}"
        ) from None
    return model.to(config.device).eval()


def forced(config: Config) -> contextlib.AbstractContextManager[None]:
    """The backend that the settings ask for, as a context."""
    if config.backend == "auto":
        return contextlib.nullcontext()
    return backends.backend(config.backend)


def chosen_backend(model: nn.Module, config: Config, dataset: data.Dataset) -> backends.Choice:
    """The backend that the model's recurrent layer takes in training.

    Raises:
        ConfigError: the backend that is forced cannot run it.
    """
    layer = next(m for m in model.modules() if isinstance(m, nn.RNNBase))
    try:
        if layer.mode == reset_before.MODE:
            return reset_before.choose()
        return backends.explain(
            layer.mode,
            batch=config.batch_size,
            hidden_size=layer.hidden_size,
            input_size=layer.input_size,
            steps=dataset.height * dataset.width,
            device=config.device,
            training=True,
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(str(error)) from None


def check(task: Task, config: Config, dataset: data.Dataset) -> None:
    """Makes a model that is thrown away, so that wrong settings show before anything is written.

    Raises:
        ConfigError: the settings are none for this task, or the backend that is forced cannot run
            the model.
    """
    with forced(config):
        chosen_backend(task.model(config, dataset), config, dataset)


@torch.no_grad()
def evaluate(
    task: Task, model: nn.Module, split: data.Split, config: Config, signals: Signals | None = None
) -> dict[str, float]:
    """Means of the task's figures over a split.

    Tasks that draw get the same draws each time, and the run's own random state is left as it was.
    """
    totals: dict[str, Tensor] = {}
    device = torch.device(config.device)
    model.eval()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        for x, labels in batches(split, config):
            if signals:
                signals.check()
            _add(totals, task.measure(model, x, labels, config))
    model.train()
    return _means(totals, len(split.labels))


def batch(split: data.Split, rows: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Rows of a split as a model takes them, on the run's device: x [P, B, 1], labels [B]."""
    rows = rows.to(split.images.device)
    x = data.sequences(split.images[rows], config.pixels == "grey")
    return x.to(config.device), split.labels[rows].to(config.device)


def batches(split: data.Split, config: Config) -> Iterator[tuple[Tensor, Tensor]]:
    """A whole split in order, in batches for evaluation."""
    for rows in torch.arange(len(split.labels)).split(EVALUATION_BATCH):
        yield batch(split, rows, config)


class Training:
    """A run under way: its state, and the loop that carries it to the end."""

    def __init__(
        self, task: Task, config: Config, dataset: data.Dataset, run: Run, console: Console
    ) -> None:
        """Starts from the run's last checkpoint, or where there is none from the seed."""
        self.task, self.config, self.dataset, self.run = task, config, dataset, run
        self.console = console
        self.signals = Signals()
        torch.manual_seed(config.seed)
        self.model = task.model(config, dataset).to(config.device)
        self.state = State(self.model)
        if run.last.exists():
            self.state.load(run.last)
            self._derive()
        self.steps_per_epoch = math.ceil(len(dataset.train.labels) / config.batch_size)

    def run_to_end(self) -> dict[str, float]:
        """Trains up to the last epoch; the test figures of the weights best on validation.

        Raises:
            Interrupted: a signal came; the run goes on from this very step when it is resumed.
            RunError: the loss is no longer finite.
        """
        with self.signals:
            try:
                while self.state.progress.epoch < self.config.epochs:
                    self._epoch()
            except Interrupted:
                self._save()
                raise
            self.model.load_state_dict(self.state.best)
            test = self._evaluate(self.dataset.test)
            self.signals.check()
            return test

    def _epoch(self) -> None:
        """One epoch, or what is left of it."""
        progress = self.state.progress
        order = data.shuffled(len(self.dataset.train.labels), self.config.seed, progress.epoch)
        start = time.perf_counter() - progress.seconds
        saved = shown = progress.seconds
        with self._bar() as show:
            for rows in order.split(self.config.batch_size)[progress.step :]:
                self.signals.check()
                self._step(rows, self._rate(progress.step))
                progress.step += 1
                progress.seconds = time.perf_counter() - start
                if progress.seconds - shown > 0.2:  # not at each step, for it waits for the GPU
                    shown = progress.seconds
                    self._check(self.state.totals["loss"].item())
                    show(progress.step)
                if progress.seconds - saved > self.config.checkpoint_seconds:
                    saved = progress.seconds
                    self._save()
        validation = self._evaluate(self.dataset.validation)
        self._check(validation["loss"])
        self._finish_epoch(validation)

    def _rate(self, step: int) -> float:
        """The learning rate of a step of the epoch under way."""
        step += self.state.progress.epoch * self.steps_per_epoch
        return self.config.rate(step, self.config.epochs * self.steps_per_epoch)

    def _step(self, rows: Tensor, rate: float) -> None:
        # Data parallel belongs here: a process takes its share of the rows, gradients are summed.
        for group in self.state.optimizer.param_groups:
            group["lr"] = rate
        x, labels = batch(self.dataset.train, rows, self.config)
        figures = self.task.measure(self.model, x, labels, self.config)
        self.state.optimizer.zero_grad()
        figures["loss"].mean().backward()
        if self.config.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.state.optimizer.step()
        _add(self.state.totals, figures)

    def _evaluate(self, split: data.Split) -> dict[str, float]:
        return evaluate(self.task, self.model, split, self.config, self.signals)

    def _finish_epoch(self, validation: Mapping[str, float]) -> None:
        state, progress = self.state, self.state.progress
        images = len(self.dataset.train.labels)
        progress.history.append(
            {
                "epoch": progress.epoch + 1,
                **{f"train_{k}": v for k, v in _means(state.totals, images).items()},
                **{f"validation_{k}": v for k, v in validation.items()},
                "images_per_second": images / progress.seconds,
                "seconds": progress.seconds,
                "learning_rate": self._rate(self.steps_per_epoch - 1),
            }
        )
        progress.epoch += 1
        progress.step, progress.seconds, state.totals = 0, 0.0, {}
        if (score := self.task.score(validation)) > progress.best_score:
            progress.best_score, progress.best_epoch = score, progress.epoch
            state.best = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self._save()
        self._derive()
        self.console.print(_line(progress.history[-1], self.config.epochs), soft_wrap=True)

    def _save(self) -> None:
        if self.state.totals:
            self._check(self.state.totals["loss"].item())
        self.state.save(self.run.last)

    def _derive(self) -> None:
        """Writes what follows from the state, which may be older than these files after a kill."""
        if self.state.progress.history:
            checkpoints.write(self.run.best, self.state.best)
            self.run.write_metrics(self.state.progress.history)

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise RunError(
                f"the loss became {loss} in epoch {self.state.progress.epoch + 1}, by step "
                f"{self.state.progress.step}: start again with a smaller --lr, or with --clip 1"
            )

    @contextlib.contextmanager
    def _bar(self) -> Iterator[Callable[[int], None]]:
        """A progress bar of the epoch, on a terminal; yields what moves it to a step."""
        from rich.progress import Progress as Bar

        progress = self.state.progress
        epoch = f"epoch {progress.epoch + 1}/{self.config.epochs}"
        with Bar(console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            row = bar.add_task(epoch, total=self.steps_per_epoch, completed=progress.step)
            yield lambda step: bar.update(row, completed=step)


def _line(row: Mapping[str, float], epochs: int) -> str:
    figures = "  ".join(
        f"{name.replace('_', ' ')} {value:.4f}"
        for name, value in row.items()
        if name.startswith(("train_", "validation_"))
    )
    speed = f"{row['images_per_second']:,.0f} images/s"
    return f"epoch {row['epoch']:.0f}/{epochs}  {figures}  {speed}"


def train(
    task: Task, config: Config, dataset: data.Dataset, run: Run, console: Console, command: str
) -> dict[str, Any]:
    """Carries a new or a stopped run to its end; its summary, as written to summary.json.

    Args:
        task: what to train.
        config: its settings, :func:`pinned`.
        dataset: what :func:`load` returned.
        run: the folder to write to; with a checkpoint in it, the run goes on from there.
        console: where a line an epoch and, on a terminal, a progress bar are printed.
        command: goes into the summary.

    Raises:
        ConfigError: the backend that is forced cannot run the model.
        Interrupted: a signal came; the run goes on from this very step when it is resumed.
        RunError: the checkpoint is damaged, the loss is no longer finite, or another process trains
            this run.
    """
    from fastrnn import plots

    with run.locked(), forced(config):
        training = Training(task, config, dataset, run, console)
        backend = chosen_backend(training.model, config, dataset)
        test = training.run_to_end()
        pictures = task.pictures(training.model, dataset, config)
    progress = training.state.progress
    for name, figure in {"curves": plots.curves(progress.history), **pictures}.items():
        plots.save(figure, run.folder / f"{name}.png")
    images = len(dataset.train.labels) * config.epochs
    seconds = sum(row["seconds"] for row in progress.history)
    summary = {
        **{f"test_{name}": value for name, value in test.items()},
        "best_epoch": progress.best_epoch,
        "epochs": config.epochs,
        "parameters": sum(p.numel() for p in training.model.parameters()),
        "training_seconds": seconds,
        "images_per_second": images / seconds,
        "backend": backend.backend,
        "device": config.device,
        "threads": torch.get_num_threads(),
        "versions": {
            "fastrnn": fastrnn.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "command": command,
    }
    run.write_summary(summary)
    return summary
