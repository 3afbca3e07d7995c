"""The one signature that every objective has."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from loopline.model.language_model import LanguageModel
from loopline.training.batch import Batch

Loss = tuple[Tensor, float, dict[str, float]]
"""(sum to differentiate, normalizer, metrics to average over the step weighted by the normalizer)."""


class Objective(Protocol):
    """What the loop minimizes."""

    def loss(self, model: LanguageModel, batch: Batch) -> Loss:
        """The summed loss of `batch`, its normalizer, and metrics."""
        ...
