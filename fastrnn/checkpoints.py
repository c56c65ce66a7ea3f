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

from fastrnn import runs
from fastrnn.runs import RunError


@dataclass
class Progress:
    """Where a run is, besides its tensors; goes into the checkpoint as JSON."""

    epoch: int = 0  # epochs that are finished, with their validation
    step: int = 0  # steps done in the epoch under way
    seconds: float = 0.0  # spent on them
    best_epoch: int = 0  # counted from 1
    best_score: float = -math.inf
    history: list[dict[str, float]] = field(default_factory=list)  # the rows of metrics.csv


class State:
    """All that a step changes."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.optimizer = torch.optim.Adam(model.parameters())
        self.best: dict[str, Tensor] = {}
        self.totals: dict[str, Tensor] = {}  # sums over the images of the epoch under way
        self.progress = Progress()

    def save(self, path: Path) -> None:
        """Writes the checkpoint, atomically."""
        groups: dict[str, Mapping[str, Tensor]] = {
            "model": self.model.state_dict(),
            "best": self.best,
            "totals": self.totals,
            "random": {"cpu": torch.get_rng_state()},
        }
        if torch.cuda.is_available():
            groups["random"] = {**groups["random"], "cuda": torch.cuda.get_rng_state()}
        for index, values in self.optimizer.state_dict()["state"].items():
            groups[f"optimizer/{index}"] = values
        tensors = {f"{g}/{name}": t for g, group in groups.items() for name, t in group.items()}
        write(path, tensors, dataclasses.asdict(self.progress))

    def load(self, path: Path) -> None:
        """Takes over what :meth:`save` wrote.

        Raises:
            RunError: the file is damaged or is another model's.
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
            torch.set_rng_state(groups["random"]["cpu"])
            if "cuda" in groups["random"] and torch.cuda.is_available():
                torch.cuda.set_rng_state(groups["random"]["cuda"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise RunError(f"{path} does not fit config.json: {one_line(error)}") from None


def write(path: Path, tensors: Mapping[str, Tensor], progress: Any = None) -> None:
    """Writes tensors, and a JSON value beside them, as one safetensors file."""
    # Copies: parameters may be views of one buffer, which safetensors refuses.
    copies = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
    runs.write(path, safetensors.torch.save(copies, {"progress": json.dumps(progress)}))


def read(path: Path) -> tuple[dict[str, Tensor], Any]:
    """The tensors of a checkpoint, on the CPU, and the JSON value beside them.

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
