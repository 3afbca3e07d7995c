"""Objectives: pure functions from a model and a batch to a sum, a normalizer and metrics.

The loop adds the sums of an optimizer step's micro-batches and divides once by the sum of their normalizers, so the
gradient does not depend on how the step was split. `next_token` serves pretraining, fine-tuning and distillation;
`dpo` preference pairs. The reinforcement objectives live in `rl.objective`, on the same signature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from throughline.model.decoder import Decoder
from throughline.training.batch import Batch

Loss = tuple[Tensor, float, dict[str, float]]
"""(sum to differentiate, normalizer, metrics to average over the step weighted by the normalizer)."""


class Objective(Protocol):
    """What the loop minimizes."""

    def loss(self, model: Decoder, batch: Batch) -> Loss:
        """The summed loss of `batch`, its normalizer, and metrics."""
        ...


@dataclass(frozen=True)
class TokenScores:
    """Log-probs of the predicted ids of a batch, as flat vectors over the M ids whose weight is not zero."""

    logprobs_M: Tensor
    weights_M: Tensor
    index_M: Tensor
    """Where each id stands in the flattened (B, T)."""
    entropy_M: Tensor
    """Entropy of the distribution it was predicted from, in nats, without gradient."""


def score_tokens(model: Decoder, batch: Batch, temperature: float = 1.0, with_entropy: bool = False) -> TokenScores:
    """Log-probs of the ids with a weight, at `temperature`. Ids without one never reach the output layer."""
    hidden_BTD = model(batch.tokens_BT, positions_BT=batch.positions_BT, mask=batch.mask())
    rows, length, width = hidden_BTD.shape
    if batch.weights_BT is None:
        logits = model.logits(hidden_BTD[:, :-1].reshape(-1, width))
        target = batch.tokens_BT[:, 1:].reshape(-1)
        index = torch.arange(rows * length, device=target.device).view(rows, length)[:, 1:].reshape(-1)
        weights = torch.ones_like(target, dtype=logits.dtype)
    else:
        index = torch.nonzero(batch.weights_BT[:, 1:].reshape(-1))[:, 0]
        row, column = index // (length - 1), index % (length - 1)
        logits = model.logits(hidden_BTD[row, column])
        target = batch.tokens_BT[row, column + 1]
        weights = batch.weights_BT[row, column + 1]
        index = row * length + column + 1
    if temperature != 1.0:
        logits = logits / temperature
    logprobs = -F.cross_entropy(logits, target, reduction="none")
    entropy = torch.zeros_like(logprobs.detach())
    if with_entropy:
        with torch.no_grad():
            full = logits.log_softmax(-1)
            entropy = -(full.exp() * full).sum(-1)
    return TokenScores(logprobs, weights, index, entropy)


def sum_by_sequence(values_M: Tensor, scores: TokenScores, batch: Batch) -> Tensor:
    """Sum of `values_M` over each sequence, (N,)."""
    assert batch.sequences_BT is not None
    owners = batch.sequences_BT.reshape(-1)[scores.index_M]
    count = int(batch.sequences_BT.max()) + 1
    return torch.zeros(count, device=values_M.device, dtype=values_M.dtype).index_add(0, owners, values_M)


class NextToken:
    """Weighted next-token cross-entropy: -sum_t w_t log p(x_t | x_<t) over sum_t w_t."""

    def loss(self, model: Decoder, batch: Batch) -> Loss:
        scores = score_tokens(model, batch)
        total = -(scores.logprobs_M * scores.weights_M).sum()
        weight = float(scores.weights_M.sum())
        return total, weight, {"loss": float(total.detach()) / max(weight, 1e-9)}


class DPO:
    """Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290, eq. 7).

    Sequences come in pairs, chosen then rejected, 2i and 2i+1; `scalars["reference"]` holds the reference policy's
    summed log-prob of each. `sft_weight` adds the chosen answer's own log-likelihood, per token, which keeps it from
    falling together with the rejected one.
    """

    def __init__(self, beta: float, sft_weight: float = 0.0) -> None:
        self.beta, self.sft_weight = beta, sft_weight

    def loss(self, model: Decoder, batch: Batch) -> Loss:
        scores = score_tokens(model, batch)
        summed = sum_by_sequence(scores.logprobs_M * scores.weights_M, scores, batch)
        lengths = sum_by_sequence(scores.weights_M, scores, batch)
        margin = summed - batch.scalars["reference"].to(summed)
        chosen, rejected = margin[0::2], margin[1::2]
        logits = self.beta * (chosen - rejected)
        losses = -F.logsigmoid(logits)
        if self.sft_weight:
            losses = losses - self.sft_weight * summed[0::2] / lengths[0::2].clamp(min=1)
        pairs = len(losses)
        metrics = {
            "loss": float(losses.detach().mean()),
            "accuracy": float((logits.detach() > 0).float().mean()),
            "chosen_reward": float(self.beta * chosen.detach().mean()),
            "rejected_reward": float(self.beta * rejected.detach().mean()),
        }
        return losses.sum(), float(pairs), metrics
