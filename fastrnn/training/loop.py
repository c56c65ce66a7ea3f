"""The training loop: Adam, metrics, checkpoints, and resuming to the same bits.

A :class:`~fastrnn.training.task.Task` defines what is trained; the loop defines how. The learning
rate depends on the step alone, the shuffle on seed and epoch alone, and a checkpoint holds
everything else. A run that was killed at any moment therefore resumes to the same weights, bit for
bit.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastrnn.training import checkpoints, distributed, evaluation, figures, report
from fastrnn.training.checkpoints import Record, State
from fastrnn.training.config import Config
from fastrnn.training.errors import DamagedError, RunError
from fastrnn.training.interrupts import Interrupted, Signals
from fastrnn.training.report import Output
from fastrnn.training.runs import Run
from fastrnn.training.task import Dataset, Split, Task
from fastrnn.training.tensorboard import Watch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOW_SECONDS = 0.2  # between updates of the live line, each of which waits for the GPU


def check(task: Task, config: Config, dataset: Dataset) -> None:
    """Makes a model and discards it, so that invalid settings fail before anything is written.

    Raises:
        ConfigError: the task has no model for these settings, or the forced backend cannot run it.
    """
    with config.use_backend():
        task.choose_backend(task.model(config, dataset), config, dataset)


def train(
    task: Task,
    config: Config,
    dataset: Dataset,
    run: Run,
    output: Output,
    command: str,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Trains a new run, or one that was stopped, to its end.

    Several processes call this together; the first of them writes and prints.

    Args:
        task: what to train.
        config: the task's settings, :meth:`~Config.pinned`.
        dataset: the task's data.
        run: the folder to write to; if it has a checkpoint, the run resumes from there.
        output: keeps a live line on a terminal, and prints a line per epoch elsewhere.
        command: what the user typed, for the summary.
        watch: called with the rows of metrics.csv whenever these are written.

    Returns:
        The summary, which is also in summary.json.

    Raises:
        ConfigError: the forced backend cannot run the model.
        Interrupted: a signal arrived; the run can be resumed from this step.
        RunError: the checkpoint is damaged, the loss is not finite, or another process is training
            this run.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(config.use_backend())
        lock = stack.enter_context(run.locked()) if distributed.first() else -1
        training = Training(task, config, dataset, run, lock, output, watch)
        backend = task.choose_backend(training.model, config, dataset).backend
        test = training.run_to_end()
        progress = training.state.progress
        summary = report.summary(
            config,
            progress,
            test,
            training.model,
            examples=len(dataset.train),
            backend=backend,
            command=command,
        )
        if distributed.first():
            run.check_place(lock)
            run.write_summary(summary)
            pictures = {
                "curves": lambda: figures.curves(progress.history, task.units, progress.best_epoch)
            }
            _draw(run, pictures, output)
            _draw(run, task.figures(training.model, dataset, config), output)
    return summary


def _draw(run: Run, pictures: Mapping[str, Callable[[], Figure]], output: Output) -> None:
    """Draws pictures; one that fails is a warning, for the run's results are on disk."""
    for name, draw in pictures.items():
        figures.draw(draw, run.folder / f"{name}.png", output.warn)


def shuffled(count: int, seed: int, epoch: int) -> Tensor:
    """A permutation of ``range(count)``, [count] int64; it depends on seed and epoch alone."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % (1 << 63))
    return torch.randperm(count, generator=generator)


class Step(nn.Module):
    """The metrics of a batch as a module's forward, which DistributedDataParallel can wrap."""

    def __init__(self, task: Task, model: nn.Module, config: Config) -> None:
        super().__init__()
        self.task, self.model, self.config = task, model, config

    def forward(self, x: Tensor, labels: Tensor, noise: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """As :meth:`Task.measure`."""
        return self.task.measure(self.model, x, labels, self.config, noise)


class Training:
    """A run in progress: its state, and the loop that trains it to the end."""

    def __init__(
        self,
        task: Task,
        config: Config,
        dataset: Dataset,
        run: Run,
        lock: int,
        output: Output,
        watch: Watch | None,
    ) -> None:
        """Starts from the run's last checkpoint, or from the seed if there is none.

        Raises:
            RunError: the checkpoint is damaged or missing, or belongs to another model.
        """
        self.task, self.config, self.dataset, self.run = task, config, dataset, run
        self.lock, self.output, self.watch = lock, output, watch
        self.signals = Signals()
        torch.manual_seed(config.seed)
        self.model = task.model(config, dataset).to(config.device)
        self.state = State(self.model)
        self.machine = {
            "threads": torch.get_num_threads(),
            "processes": distributed.size(),
            "device": torch.device(config.device).type,
        }
        self.steps_per_epoch = math.ceil(len(dataset.train) / config.batch_size)
        self._resume()
        self.step: Step | DistributedDataParallel = Step(task, self.model, config)
        if distributed.size() > 1:
            self.step = DistributedDataParallel(self.step)

    def _resume(self) -> None:
        """Restores the last checkpoint, if the run has come that far."""
        exists = distributed.broadcast(self.run.last.exists())
        if not exists:
            if distributed.first():
                self.run.check_unstarted()
            return
        try:
            record = self.state.load(self.run.last, self.run.check)
        except DamagedError as error:
            raise RunError(f"{error}: {self.run.still_usable()}") from None
        if distributed.first():
            self._write_derived()
        for name, value in self.machine.items():
            if (before := record.machine.get(name, value)) != value:
                self.output.print(
                    f"{name}: {value} now, {before} before; the weights will differ from those of "
                    "an undisturbed run in their last bits"
                )

    def run_to_end(self) -> dict[str, float]:
        """Trains the remaining epochs; returns the best epoch's metrics on the test set.

        Raises:
            Interrupted: a signal arrived; the run can be resumed from this step.
            RunError: the loss is not finite.
        """
        total = self.config.epochs * len(self.dataset.train)
        text = f"epoch {self.state.progress.epoch + 1}/{self.config.epochs}"
        shown = self.output.progress(text, total, self._seen(), lines=False)
        with self.signals, shown as self.show:
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
        save = broken = False
        for rows in order.split(self.config.batch_size)[progress.step :]:
            self._agree(save=save, broken=broken)
            self._step(rows, self._rate(progress.step))
            progress.step += 1
            progress.seconds = time.perf_counter() - start
            if progress.seconds - shown > SHOW_SECONDS:
                shown = progress.seconds
                loss = self.state.totals["loss"].item()
                broken = not math.isfinite(loss)
                self._show(loss)
            if save := progress.seconds - saved > self.config.checkpoint_seconds:
                saved = progress.seconds
        self._agree(save=save, broken=broken)
        validation = self._evaluate(self.dataset.validation)
        self._check_finite(validation["loss"])
        self._finish_epoch(validation)

    def _seen(self) -> int:
        """How many examples the run has been trained on, each epoch's counted again."""
        progress, examples = self.state.progress, len(self.dataset.train)
        return progress.epoch * examples + min(progress.step * self.config.batch_size, examples)

    def _show(self, loss: float) -> None:
        """Shows the progress of an epoch.

        Args:
            loss: the sum over this process's examples of the epoch so far.
        """
        progress = self.state.progress
        seen = self._seen() - progress.epoch * len(self.dataset.train)
        notes = [f"loss {loss * distributed.size() / seen:.4g}"]
        if progress.best_epoch:
            name = self.task.best_by
            best = progress.history[progress.best_epoch - 1][f"validation_{name}"]
            notes.append(f"best {report.figure(name, best)}")
        self.show(
            self._seen(), f"epoch {progress.epoch + 1}/{self.config.epochs}", "  ".join(notes)
        )

    def _agree(self, *, save: bool, broken: bool) -> None:
        """Between two steps: saves, stops or fails if any process has a reason to."""
        received, save_now, broken_now = distributed.most(
            self.signals.received, int(save and distributed.first()), int(broken)
        )
        if broken_now:
            self._check_finite(math.nan)
        if received:
            raise Interrupted(received)
        if save_now:
            self._save()

    def _rate(self, step: int) -> float:
        """The learning rate of a step of the current epoch."""
        step += self.state.progress.epoch * self.steps_per_epoch
        return self.config.rate(step, self.config.epochs * self.steps_per_epoch)

    def _step(self, rows: Tensor, rate: float) -> None:
        """One step of Adam on a batch; each process works on its share, part after part."""
        for group in self.state.optimizer.param_groups:
            group["lr"] = rate
        self.state.optimizer.zero_grad()
        noise = self.task.noise(self.model, self.dataset.train, len(rows), self.config)
        places, weights = distributed.share(len(rows))
        # DistributedDataParallel averages the gradients of all processes.
        scale = distributed.size() / len(rows)
        parts = list(
            zip(
                places.chunk(self.config.accumulate),
                weights.chunk(self.config.accumulate),
                strict=True,
            )
        )
        for number, (chosen, weight) in enumerate(parts, 1):
            x, labels = self.task.batch(self.dataset.train, rows[chosen], self.config)
            weight = weight.to(x.device)
            with self._synchronised(number == len(parts)):
                metrics = self.step(x, labels, evaluation.part(noise, chosen))
                (metrics["loss"] * (weight * scale)).sum().backward()
            evaluation.add(self.state.totals, metrics, weight)
        if self.config.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.state.optimizer.step()

    def _synchronised(self, wanted: bool) -> contextlib.AbstractContextManager[None]:
        """Whether the processes exchange their gradients in the block."""
        if wanted or not isinstance(self.step, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.step.no_sync()

    def _evaluate(self, split: Split) -> dict[str, float]:
        return evaluation.evaluate(self.task, self.model, split, self.config, self.signals)

    def _finish_epoch(self, validation: Mapping[str, float]) -> None:
        state, progress = self.state, self.state.progress
        examples = len(self.dataset.train)
        train = evaluation.means(state.totals, examples)
        self._check_finite(train["loss"])
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
        if distributed.first():
            self._write_derived()
        line = report.epoch_line(progress.history[-1], self.config.epochs, self.task.best_by)
        if self.output.live:
            self.output.detail(line)
        else:
            self.output.note(line)
        self.output.detail(report.epoch_details(progress.history[-1]))

    def _save(self) -> None:
        if distributed.first():
            self.run.check_place(self.lock)
            self.run.keep_previous()
        self.state.save(self.run.last, self._record())

    def _record(self) -> Record:
        return Record(identity=self.run.identity, machine=self.machine)

    def _write_derived(self) -> None:
        """Writes the files that follow from the state; after a kill they may be older than it."""
        if self.state.progress.history:
            checkpoints.write(self.run.best, self.state.best, self._record())
            self.run.write_metrics(self.state.progress.history)
            if self.watch:
                self.watch(self.state.progress.history)

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise RunError(
                f"the loss became {loss} in epoch {self.state.progress.epoch + 1}, by step "
                f"{self.state.progress.step}: start again with a smaller --lr, or with --clip 1"
            )
