"""The state of a run as one safetensors file that holds its own checksum."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from fastrnn.training import checksums, distributed, files, reading
from fastrnn.training.errors import DamagedError, RunError

CPU, CUDA = "cpu", "cuda"  # types of device; names of the random states in the file
_SLACK = 1 << 26  # bytes that a checkpoint may have beside the tensors of a model


@dataclass
class Progress:
    """How far a run is; stored in the checkpoint as JSON, beside the tensors."""

    epoch: int = 0  # finished epochs, validation included
    step: int = 0  # steps done in the current epoch
    seconds: float = 0.0  # training time of these steps
    best_epoch: int = 0  # counted from 1
    best_score: float = -math.inf
    history: list[dict[str, float]] = field(default_factory=list)  # the rows of metrics.csv


@dataclass
class Record:
    """What a checkpoint says beside its tensors.

    Attributes:
        progress: as JSON; None in best.safetensors.
        identity: the settings that it belongs to, see :attr:`Run.identity`; None in format 1.
        machine: threads, processes and device that made it.
    """

    progress: Any = None
    identity: dict[str, Any] | None = None
    machine: dict[str, Any] = field(default_factory=dict)


class State:
    """Everything that a training step changes.

    Attributes:
        model: whose weights are trained.
        optimizer: Adam over the model's parameters.
        best: state_dict of the epoch that was best on validation; empty before the first one.
        totals: sums of the metrics over this process's examples of the current epoch, float64.
        progress: how far the run is.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.optimizer = torch.optim.Adam(model.parameters())
        self.best: dict[str, Tensor] = {}
        self.totals: dict[str, Tensor] = {}
        self.progress = Progress()

    def save(self, path: Path, record: Record) -> None:
        """Writes the checkpoint, atomically, in the first process; all processes must call this.

        Raises:
            RunError: it cannot be written.
        """
        groups: dict[str, Mapping[str, Tensor]] = {
            "model": self.model.state_dict(),
            "best": self.best,
            "totals": distributed.sums(self.totals),
            "random": _random_states(),
        }
        for index, values in self.optimizer.state_dict()["state"].items():
            groups[f"optimizer/{index}"] = values
        tensors = {f"{g}/{name}": t for g, group in groups.items() for name, t in group.items()}
        if distributed.first():
            progress = dataclasses.asdict(self.progress)
            write(path, tensors, dataclasses.replace(record, progress=progress))

    def load(
        self, path: Path, check: Callable[[Path, Record], None] = lambda path, record: None
    ) -> Record:
        """Restores what :meth:`save` wrote, and torch's random state, in all processes.

        Args:
            path: of the checkpoint.
            check: raises an error if the record does not fit; called before anything is restored.

        Raises:
            RunError: the file is missing or damaged, or belongs to another model.
        """
        found = None
        if distributed.first():
            found = read(path, largest(self.model))
            check(path, found[1])
        loaded = distributed.broadcast(found)
        assert loaded is not None
        tensors, record = loaded
        groups: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            group, _, name = key.rpartition("/")
            groups.setdefault(group, {})[name] = tensor
        try:
            self.model.load_state_dict(groups["model"])
            self.optimizer.load_state_dict(
                {
                    "state": {
                        int(group.removeprefix("optimizer/")): values
                        for group, values in groups.items()
                        if group.startswith("optimizer/")
                    },
                    "param_groups": self.optimizer.state_dict()["param_groups"],
                }
            )
            device = next(self.model.parameters()).device
            self.best = groups.get("best", {})
            if distributed.first():
                self.totals = {name: t.to(device) for name, t in groups.get("totals", {}).items()}
            self.progress = Progress(**record.progress)
            torch.set_rng_state(groups["random"][CPU])
            if CUDA in groups["random"] and torch.cuda.is_available():
                torch.cuda.set_rng_state(groups["random"][CUDA])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise RunError(f"{path} does not fit config.json: {reading.reason(error)}") from None
        return record


def _random_states() -> dict[str, Tensor]:
    """The states of torch's global generators, by type of device."""
    states = {CPU: torch.get_rng_state()}
    if torch.cuda.is_available():
        states[CUDA] = torch.cuda.get_rng_state()
    return states


def largest(model: nn.Module) -> int:
    """How many bytes a checkpoint of this model can have."""
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    return 4 * weights + _SLACK  # the weights, the best ones, two moments of Adam


def write(path: Path, tensors: Mapping[str, Tensor], record: Record) -> None:
    """Writes tensors and a record as one safetensors file, atomically.

    Raises:
        RunError: it cannot be written.
    """
    # Copies, because parameters may be views of one buffer, which safetensors refuses.
    copies = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
    facts = {**files.version(), checksums.FIELD: checksums.BLANK, **dataclasses.asdict(record)}
    metadata = {k: v if k == checksums.FIELD else json.dumps(v) for k, v in facts.items()}
    files.write(path, checksums.sealed(safetensors.torch.save(copies, metadata)))


def read(path: Path, most: int = 1 << 40) -> tuple[dict[str, Tensor], Record]:
    """The tensors of a checkpoint, on the CPU, and its record.

    Args:
        path: of the file.
        most: bytes that it can have.

    Raises:
        RunError: the file is missing or damaged, or no checkpoint, or of a newer format.
    """
    try:
        content = reading.read(path, most)
        tensors = safetensors.torch.load(content)
        size = int.from_bytes(content[:8], "little")  # of the header, which safetensors has checked
        metadata = json.loads(content[8 : 8 + size]).get("__metadata__", {})
        if metadata.keys() == {"progress"}:  # format 1, which had no checksum
            return tensors, Record(json.loads(metadata["progress"]))
        if not checksums.is_whole(content, metadata.pop(checksums.FIELD, None)):
            raise ValueError("its SHA-256 differs")
        facts = {name: json.loads(text) for name, text in metadata.items()}
    except FileNotFoundError:
        raise RunError(f"there is no {path}") from None
    except (OSError, safetensors.SafetensorError, ValueError, AttributeError) as error:
        raise DamagedError(f"{path} is damaged ({reading.reason(error)})") from None
    check_format(path, facts)
    return tensors, Record(facts["progress"], facts["identity"], facts["machine"])


def check_format(path: Path, facts: Mapping[str, Any]) -> None:
    """Refuses what a newer version has written.

    Args:
        path: of the file.
        facts: what it holds, with or without a format.

    Raises:
        RunError: its format is newer than FORMAT, or none.
    """
    written = facts.get("format", 1)
    if not isinstance(written, int) or written < 1:
        raise RunError(f"{path} is damaged (its format is {written!r})")
    if written > files.FORMAT:
        own = files.version()
        raise RunError(
            f"{path} has format {written}, of fastrnn {facts.get('fastrnn')}; this is fastrnn "
            f"{own['fastrnn']}, which reads formats up to {own['format']}: update fastrnn"
        )
