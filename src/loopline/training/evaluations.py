"""Evaluations during training: measure every so many steps, keep the best weights, stop when it gets no better.

    evaluations = Evaluations(config.evaluate, measure, ctx.state / "best")
    train(model, objective, source, steps, config, ctx, evaluations=evaluations)     # ends with the best weights

The loop calls `after` once an update is made, saves its own state after every measurement, and gives the model the best
weights at the end. Not covered: what is measured (see `evaluation.during`).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from loopline.base.files import write_bytes
from loopline.training.config import DevelopmentConfig

Measured = dict[str, float]
"""{"score", ...} of a model; more is better."""


class Evaluations:
    """The measurements of one run."""

    def __init__(self, config: DevelopmentConfig, measure: Callable[[], Measured], folder: Path) -> None:
        """`measure` looks at the model as it is; `folder` holds the best weights."""
        self.config, self.measure, self.folder = config, measure, folder
        self.history: list[Measured] = []
        """One row per measurement, with its `step`."""
        self.best: int | None = None
        """Which row is the best one, the first of equals."""

    @property
    def stopped(self) -> bool:
        """Whether as many measurements as `patience` says brought nothing better than the one before them."""
        patience, best = self.config.patience, self.best
        return patience is not None and best is not None and len(self.history) - 1 - best >= patience

    def after(self, step: int, steps: int, model: nn.Module) -> Measured | None:
        """Measure after `step` of `steps` updates, if it is time to; the row."""
        if step % self.config.every and step < steps:
            return None
        model.eval()
        row = {"step": step, **self.measure()}
        self.history.append(row)
        if self.best is None or row["score"] > self.history[self.best]["score"]:
            self.best = len(self.history) - 1
            buffer = io.BytesIO()
            torch.save({name: p.detach() for name, p in model.named_parameters() if p.requires_grad}, buffer)
            write_bytes(self._file(self.best), buffer.getvalue())
        return row

    def saved(self) -> None:
        """Forget weights that no saved state of the run refers to."""
        for file in self.folder.glob("*.pt"):
            if self.best is None or file != self._file(self.best):
                file.unlink()

    def finish(self, model: nn.Module) -> Measured | None:
        """Give `model` the best weights, and return their row."""
        if self.best is None:
            return None
        if self.best < len(self.history) - 1:
            saved = torch.load(self._file(self.best), weights_only=True)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if name in saved:
                        parameter.copy_(saved[name])
        return self.history[self.best]

    def note(self) -> str:
        """The last measurement in a few words."""
        last, best = self.history[-1], self.history[self.best or 0]
        return f"development {last['score']:.1%} (best {best['score']:.1%} at step {best['step']:.0f})"

    def state_dict(self) -> dict[str, Any]:
        return {"history": [dict(row) for row in self.history], "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history, self.best = [dict(row) for row in state["history"]], state["best"]

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.pt"
