"""The training loop: Adam, metrics, checkpoints, and resuming to the same bits.

A :class:`~fastrnn.training.task.Task` defines what is trained; the loop defines how. The learning
rate depends on the step alone, the shuffle on seed and epoch alone, and a checkpoint holds
everything else. A run that was killed at any moment therefore resumes to the same weights, bit for
bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastrnn.training import checkpoints, evaluation, figures, report
from fastrnn.training.checkpoints import State
from fastrnn.training.config import Config
from fastrnn.training.files import RunError
from fastrnn.training.interrupts import Interrupted, Signals
from fastrnn.training.runs import Run
from fastrnn.training.task import Dataset, Split, Task

if TYPE_CHECKING:
    from rich.console import Console

SHOW_SECONDS = 0.2  # between updates of the progress bar, each of which waits for the GPU


def check(task: Task, config: Config, dataset: Dataset) -> None:
    """Makes a model and discards it, so that invalid settings fail before anything is written.

    Raises:
        ConfigError: the task has no model for these settings, or the forced backend cannot run it.
    """
    with config.use_backend():
        task.choose_backend(task.model(config, dataset), config, dataset)


def train(
    task: Task, config: Config, dataset: Dataset, run: Run, console: Console, command: str
) -> dict[str, Any]:
    """Trains a new run, or one that was stopped, to its end.

    Args:
        task: what to train.
        config: the task's settings, :meth:`~Config.pinned`.
        dataset: the task's data.
        run: the folder to write to; if it has a checkpoint, the run resumes from there.
        console: prints a line per epoch and, on a terminal, a progress bar.
        command: what the user typed, for the summary.

    Returns:
        The summary, which is also in summary.json.

    Raises:
        ConfigError: the forced backend cannot run the model.
        Interrupted: a signal arrived; the run can be resumed from this step.
        RunError: the checkpoint is damaged, the loss is not finite, or another process is training
            this run.
    """
    with run.locked(), config.use_backend():
        training = Training(task, config, dataset, run, console)
        backend = task.choose_backend(training.model, config, dataset).backend
        test = training.run_to_end()
        pictures = task.figures(training.model, dataset, config)
    progress = training.state.progress
    for name, figure in {"curves": figures.curves(progress.history), **pictures}.items():
        figures.save(figure, run.folder / f"{name}.png")
    summary = report.summary(
        config,
        progress,
        test,
        training.model,
        examples=len(dataset.train),
        backend=backend,
        command=command,
    )
    run.write_summary(summary)
    return summary


def shuffled(count: int, seed: int, epoch: int) -> Tensor:
    """A permutation of ``range(count)``, [count] int64; it depends on seed and epoch alone."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % (1 << 63))
    return torch.randperm(count, generator=generator)


class Training:
    """A run in progress: its state, and the loop that trains it to the end."""

    def __init__(
        self, task: Task, config: Config, dataset: Dataset, run: Run, console: Console
    ) -> None:
        """Starts from the run's last checkpoint, or from the seed if there is none.

        Raises:
            RunError: the checkpoint is damaged or belongs to another model.
        """
        self.task, self.config, self.dataset, self.run = task, config, dataset, run
        self.console = console
        self.signals = Signals()
        torch.manual_seed(config.seed)
        self.model = task.model(config, dataset).to(config.device)
        self.state = State(self.model)
        if run.last.exists():
            self.state.load(run.last)
            self._write_derived()
        self.steps_per_epoch = math.ceil(len(dataset.train) / config.batch_size)

    def run_to_end(self) -> dict[str, float]:
        """Trains the remaining epochs; returns the best epoch's metrics on the test set.

        Raises:
            Interrupted: a signal arrived; the run can be resumed from this step.
            RunError: the loss is not finite.
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
        """Trains an epoch, or the rest of one that was stopped."""
        progress = self.state.progress
        order = shuffled(len(self.dataset.train), self.config.seed, progress.epoch)
        start = time.perf_counter() - progress.seconds
        saved = shown = progress.seconds
        text = f"epoch {progress.epoch + 1}/{self.config.epochs}"
        with report.progress_bar(self.console, text, self.steps_per_epoch, progress.step) as show:
            for rows in order.split(self.config.batch_size)[progress.step :]:
                self.signals.check()
                self._step(rows, self._rate(progress.step))
                progress.step += 1
                progress.seconds = time.perf_counter() - start
                if progress.seconds - shown > SHOW_SECONDS:
                    shown = progress.seconds
                    self._check_finite(self.state.totals["loss"].item())
                    show(progress.step)
                if progress.seconds - saved > self.config.checkpoint_seconds:
                    saved = progress.seconds
                    self._save()
        validation = self._evaluate(self.dataset.validation)
        self._check_finite(validation["loss"])
        self._finish_epoch(validation)

    def _rate(self, step: int) -> float:
        """The learning rate of a step of the current epoch."""
        step += self.state.progress.epoch * self.steps_per_epoch
        return self.config.rate(step, self.config.epochs * self.steps_per_epoch)

    def _step(self, rows: Tensor, rate: float) -> None:
        # Data parallelism belongs here: each process takes its share of the rows, and gradients
        # are summed.
        for group in self.state.optimizer.param_groups:
            group["lr"] = rate
        x, labels = self.task.batch(self.dataset.train, rows, self.config)
        metrics = self.task.measure(self.model, x, labels, self.config)
        self.state.optimizer.zero_grad()
        metrics["loss"].mean().backward()
        if self.config.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.state.optimizer.step()
        evaluation.add(self.state.totals, metrics)

    def _evaluate(self, split: Split) -> dict[str, float]:
        return evaluation.evaluate(self.task, self.model, split, self.config, self.signals)

    def _finish_epoch(self, validation: Mapping[str, float]) -> None:
        state, progress = self.state, self.state.progress
        examples = len(self.dataset.train)
        train = evaluation.means(state.totals, examples)
        progress.history.append(
            {
                "epoch": progress.epoch + 1,
                **{f"train_{name}": value for name, value in train.items()},
                **{f"validation_{name}": value for name, value in validation.items()},
                "images_per_second": examples / progress.seconds,
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
        self._write_derived()
        line = report.epoch_line(progress.history[-1], self.config.epochs)
        self.console.print(line, soft_wrap=True)

    def _save(self) -> None:
        if self.state.totals:
            self._check_finite(self.state.totals["loss"].item())
        self.state.save(self.run.last)

    def _write_derived(self) -> None:
        """Writes the files that follow from the state; after a kill they may be older than it."""
        if self.state.progress.history:
            checkpoints.write(self.run.best, self.state.best)
            self.run.write_metrics(self.state.progress.history)

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise RunError(
                f"the loss became {loss} in epoch {self.state.progress.epoch + 1}, by step "
                f"{self.state.progress.step}: start again with a smaller --lr, or with --clip 1"
            )
