"""Supervised objectives: the next token, with weights.

    NextToken().loss(model, batch)

Serves pretraining, fine-tuning on answers only (weight 0 on everything else) and distillation. Not covered: label
smoothing.
"""

from __future__ import annotations

from loopline.model.language_model import LanguageModel
from loopline.training.batch import Batch
from loopline.training.objectives.objective import Loss
from loopline.training.objectives.scores import total_logprob


class NextToken:
    """Weighted next-token cross-entropy: -sum_t w_t log p(x_t | x_<t) over sum_t w_t.

    With `dynamic` each token's loss is also weighted by its own probability, without gradient, so that unlikely tokens
    do not dominate (dynamic fine-tuning, arXiv:2508.05629, eq. 9).
    """

    def __init__(self, dynamic: bool = False) -> None:
        self.dynamic = dynamic

    def loss(self, model: LanguageModel, batch: Batch) -> Loss:
        total, weight = total_logprob(model, batch, self.dynamic)
        total = -total
        return total, weight, {"loss": float(total.detach()) / max(weight, 1e-9)}
