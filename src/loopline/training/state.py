"""The training state: everything a killed run needs to go on as if nothing had happened, in one atomic file.

Weights, optimizers, counters, the random generators of torch, the source's own state and the guards' history. Not
covered: the finished checkpoint (see `model.checkpoint`).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from loopline.base.files import write_bytes


class Stateful(Protocol):
    """Anything with a state of its own."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class Progress:
    """The counters of a run."""

    step: int = 0
    """Optimizer steps done; falls when the run is rewound."""
    data_step: int = 0
    """Steps of data consumed; never falls, so a rewound run sees new data."""
    rewinds: int = 0
    """How often the run was rewound."""
    last: dict[str, float] = field(default_factory=dict)
    """Metrics of the last step."""


@dataclass
class TrainingState:
    """What is saved and restored together."""

    model: nn.Module
    optimizers: Sequence[Optimizer]
    source: Stateful
    guards: Sequence[Stateful]
    """Guards, and the evaluations during training."""
    progress: Progress

    def save(self, path: Path) -> None:
        """Write the state to `path`, whole or not at all."""
        buffer = io.BytesIO()
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "source": self.source.state_dict(),
                "guards": [guard.state_dict() for guard in self.guards],
                "progress": vars(self.progress),
                "random": torch.get_rng_state(),
                "cuda_random": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            },
            buffer,
        )
        write_bytes(path, buffer.getvalue())

    def restore(self, path: Path) -> None:
        """Put everything back as it was when `path` was written."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.source.load_state_dict(state["source"])
        for guard, saved in zip(self.guards, state["guards"], strict=True):
            guard.load_state_dict(saved)
        self.progress.__dict__.update(state["progress"])
        torch.set_rng_state(state["random"])
        if state["cuda_random"]:
            torch.cuda.set_rng_state_all(state["cuda_random"])
