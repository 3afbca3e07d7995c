"""Reward models: outcome, from pairs or from labels, and process, from a label per step.

    BradleyTerry(centering=0.01).loss(ScoreModel(load_model(path)), batch)

The model is a `model.heads.ScoreModel` with one output. A sequence's score is that of its last token, as in
`transformers`' sequence classification; a step's is that of the token marked by a weight. Not covered: generative
judges, several outputs.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from loopline.model.heads import ScoreModel
from loopline.model.language_model import LanguageModel
from loopline.training.batch import Batch
from loopline.training.objectives.objective import Loss


def bradley_terry(
    chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor | None = None, centering: float = 0.0
) -> Tensor:
    """-log sigmoid(chosen - rejected - margin) per pair (arXiv:2203.02155, eq. 1; margin: arXiv:2307.09288, eq. 2).

    `centering` weighs (chosen + rejected)^2, which pulls the scores' mean to zero (arXiv:2312.09244, section 3.1).
    """
    difference = chosen_P - rejected_P
    if margin_P is not None:
        difference = difference - margin_P
    losses = -F.logsigmoid(difference)
    return losses + centering * (chosen_P + rejected_P) ** 2 if centering else losses


def pointwise(scores: Tensor, labels: Tensor, kind: Literal["logistic", "squared"] = "logistic") -> Tensor:
    """Loss of each score against a label: binary cross-entropy for labels in [0, 1], or half the squared distance."""
    if kind == "logistic":
        return F.binary_cross_entropy_with_logits(scores, labels.to(scores), reduction="none")
    return 0.5 * (scores - labels.to(scores)) ** 2


def process_reward(scores_S: Tensor, labels_S: Tensor) -> Tensor:
    """Binary cross-entropy of each step's score against whether the step is right (arXiv:2305.20050, appendix)."""
    return pointwise(scores_S, labels_S, "logistic")


def last_places(batch: Batch) -> Tensor:
    """Where each sequence's last token is in the flattened (B, T), (N,)."""
    rows, length = batch.tokens_BT.shape
    if batch.sequences_BT is None:
        return torch.arange(1, rows + 1, device=batch.tokens_BT.device) * length - 1
    owners = batch.sequences_BT.reshape(-1)
    place = torch.arange(rows * length, device=owners.device)
    count = int(owners.max()) + 1
    kept = owners >= 0
    start = torch.zeros(count, dtype=torch.long, device=owners.device)
    return start.scatter_reduce(0, owners[kept], place[kept], "amax")


def score_places(model: LanguageModel, batch: Batch, places: Tensor) -> Tensor:
    """The model's score at each of the given places, one number each, in float32 at least."""
    hidden_BTD = batch.hidden(model)
    found: Tensor = cast(ScoreModel, model).score(hidden_BTD.reshape(-1, hidden_BTD.shape[-1])[places])
    return found[:, 0].to(torch.promote_types(found.dtype, torch.float32))


class BradleyTerry:
    """An outcome reward model from pairs, chosen then rejected, 2i and 2i+1.

    `scalars["margin"]`, where a batch has it, is by how much the chosen answer should win, equal for both of a pair.
    """

    def __init__(self, centering: float = 0.0) -> None:
        self.centering = centering

    def loss(self, model: LanguageModel, batch: Batch) -> Loss:
        scores = score_places(model, batch, last_places(batch))
        chosen, rejected = scores[0::2], scores[1::2]
        margin = batch.scalars["margin"].to(scores)[0::2] if "margin" in batch.scalars else None
        losses = bradley_terry(chosen, rejected, margin, self.centering)
        metrics = {
            "loss": float(losses.detach().mean()),
            "accuracy": float((chosen > rejected).float().mean()),
            "chosen_reward": float(chosen.detach().mean()),
            "rejected_reward": float(rejected.detach().mean()),
        }
        return losses.sum(), float(len(losses)), metrics


class Pointwise:
    """An outcome reward model from single answers with `scalars["label"]`: right or wrong, or a number to predict."""

    def __init__(self, kind: Literal["logistic", "squared"] = "logistic") -> None:
        self.kind = kind

    def loss(self, model: LanguageModel, batch: Batch) -> Loss:
        scores = score_places(model, batch, last_places(batch))
        labels = batch.scalars["label"].to(scores)
        losses = pointwise(scores, labels, self.kind)
        metrics = {"loss": float(losses.detach().mean()), "score": float(scores.detach().mean())}
        if self.kind == "logistic":
            metrics["accuracy"] = float(((scores > 0) == (labels > 0.5)).float().mean())
        return losses.sum(), float(len(losses)), metrics


class ProcessReward:
    """A process reward model: scores of steps against whether they are right.

    A weight above 0 marks the last token of each step, where `extras["label"]` is 1 or 0. The mean is over steps, so
    a long solution counts more than a short one.
    """

    def loss(self, model: LanguageModel, batch: Batch) -> Loss:
        if batch.weights_BT is None:
            raise ValueError("a process reward model needs weights: above 0 on the last token of each step")
        places = torch.nonzero(batch.weights_BT.reshape(-1))[:, 0]
        scores = score_places(model, batch, places)
        labels = batch.extras["label"].reshape(-1)[places].to(scores)
        weights = batch.weights_BT.reshape(-1)[places].to(scores)
        losses = process_reward(scores, labels) * weights
        total, count = losses.sum(), float(weights.sum())
        right = ((scores > 0) == (labels > 0.5)).float() * weights
        metrics = {"loss": float(total.detach()) / max(count, 1e-9), "accuracy": float(right.sum()) / max(count, 1e-9)}
        return total, count, metrics
