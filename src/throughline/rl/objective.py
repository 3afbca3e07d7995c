"""The clipped policy-gradient objective of GRPO on packed samples.

Token loss: -min(r A, clip(r, 1 - low, 1 + high) A) with r the ratio to the policy that sampled the token
(arXiv:2402.03300, eq. 3, without the KL term). Batches carry extras "advantages" and "old_logprobs", and weights that
are zero on every token the policy did not sample. Not covered: KL penalties, value networks, sequence-level ratios.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from throughline.model.decoder import Decoder
from throughline.training.batch import Batch
from throughline.training.objectives import Loss, score_tokens


@dataclass(frozen=True)
class TokenLoss:
    """Per-token losses (M,) and what to watch about them."""

    losses_M: Tensor
    ratio_M: Tensor
    clipped_low: Tensor
    clipped_high: Tensor


def clipped_surrogate(
    logprobs_M: Tensor, old_logprobs_M: Tensor, advantages_M: Tensor, clip_low: float, clip_high: float
) -> TokenLoss:
    """PPO's clipped surrogate per token (Schulman et al. 2017, arXiv:1707.06347, eq. 7), as a loss."""
    ratio = (logprobs_M - old_logprobs_M).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    losses = -torch.minimum(ratio * advantages_M, clipped * advantages_M)
    low = (ratio < 1 - clip_low) & (advantages_M < 0)
    high = (ratio > 1 + clip_high) & (advantages_M > 0)
    return TokenLoss(losses, ratio.detach(), low, high)


class GRPO:
    """Group-relative policy optimization.

    The batch's weights decide the normalizer: the source sets them to 1 per token, 1/length, or a constant, so that
    dividing the summed loss by the summed normalizers gives the mean asked for, however the step is split.
    """

    def __init__(self, clip_low: float, clip_high: float, temperature: float) -> None:
        self.clip_low, self.clip_high, self.temperature = clip_low, clip_high, temperature

    def loss(self, model: Decoder, batch: Batch) -> Loss:
        scores = score_tokens(model, batch, self.temperature, with_entropy=True)
        advantages = batch.extras["advantages"].reshape(-1)[scores.index_M]
        old = batch.extras["old_logprobs"].reshape(-1)[scores.index_M]
        token = clipped_surrogate(scores.logprobs_M, old, advantages, self.clip_low, self.clip_high)
        total = (token.losses_M * scores.weights_M).sum()
        normalizer = float(batch.scalars["normalizer"].sum())
        difference = scores.logprobs_M.detach() - old
        metrics = {
            "loss": float(total.detach()) / max(normalizer, 1e-9),
            "entropy": float(scores.entropy_M.mean()),
            "clip_low": float(token.clipped_low.float().mean()),
            "clip_high": float(token.clipped_high.float().mean()),
            "mismatch_kl": float((difference.exp() - 1 - difference).mean()),
        }
        return total, normalizer, metrics
