"""The state of a run as one safetensors file."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from fastrnn.training import files
from fastrnn.training.files import RunError

CPU, CUDA = "cpu", "cuda"  # types of device; names of the random states in the file


@dataclass
class Progress:
    """How far a run is; stored in the checkpoint as JSON, beside the tensors."""

    epoch: int = 0  # finished epochs, validation included
    step: int = 0  # steps done in the current epoch
    seconds: float = 0.0  # training time of these steps
    best_epoch: int = 0  # counted from 1
    best_score: float = -math.inf
    history: list[dict[str, float]] = field(default_factory=list)  # the rows of metrics.csv


class State:
    """Everything that a training step changes.

    Attributes:
        model: whose weights are trained.
        optimizer: Adam over the model's parameters.
        best: state_dict of the epoch that was best on validation; empty before the first one.
        totals: sums of the metrics over the current epoch's examples, float64.
        progress: how far the run is.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.optimizer = torch.optim.Adam(model.parameters())
        self.best: dict[str, Tensor] = {}
        self.totals: dict[str, Tensor] = {}
        self.progress = Progress()

    def save(self, path: Path) -> None:
        """Writes the checkpoint, atomically.

        Raises:
            RunError: it cannot be written.
        """
        groups: dict[str, Mapping[str, Tensor]] = {
            "model": self.model.state_dict(),
            "best": self.best,
            "totals": self.totals,
            "random": _random_states(),
        }
        for index, values in self.optimizer.state_dict()["state"].items():
            groups[f"optimizer/{index}"] = values
        tensors = {f"{g}/{name}": t for g, group in groups.items() for name, t in group.items()}
        write(path, tensors, dataclasses.asdict(self.progress))

    def load(self, path: Path) -> None:
        """Restores what :meth:`save` wrote, and torch's random state.

        Raises:
            RunError: the file is missing or damaged, or belongs to another model.
        """
        tensors, progress = read(path)
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
            self.totals = {name: t.to(device) for name, t in groups.get("totals", {}).items()}
            self.progress = Progress(**progress)
            torch.set_rng_state(groups["random"][CPU])
            if CUDA in groups["random"] and torch.cuda.is_available():
                torch.cuda.set_rng_state(groups["random"][CUDA])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise RunError(f"{path} does not fit config.json: {one_line(error)}") from None


def _random_states() -> dict[str, Tensor]:
    """The states of torch's global generators, by type of device."""
    states = {CPU: torch.get_rng_state()}
    if torch.cuda.is_available():
        states[CUDA] = torch.cuda.get_rng_state()
    return states


def write(path: Path, tensors: Mapping[str, Tensor], progress: Any = None) -> None:
    """Writes tensors and a JSON value as one safetensors file, atomically.

    Raises:
        RunError: it cannot be written.
    """
    # Copies, because parameters may be views of one buffer, which safetensors refuses.
    copies = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
    files.write(path, safetensors.torch.save(copies, {"progress": json.dumps(progress)}))


def read(path: Path) -> tuple[dict[str, Tensor], Any]:
    """The tensors of a checkpoint, on the CPU, and its JSON value.

    Raises:
        RunError: the file is missing, cut short or not a checkpoint.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, json.loads(file.metadata()["progress"])
    except FileNotFoundError:
        raise RunError(
            f"there is no {path}: the run has not reached its first checkpoint"
        ) from None
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} is damaged ({error}): start a new run") from None


def one_line(error: Exception) -> str:
    """An error's message without its line breaks."""
    return " ".join(str(error).split())
