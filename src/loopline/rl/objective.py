"""The policy-gradient objectives on packed samples.

    GRPO.from_config(config).loss(model, batch)

Batches carry extras "advantages" and "old_logprobs", where asked for "sampler_logprobs" and "reference_logprobs", and
weights that are zero on every token the policy did not sample. Which form of the loss, with its papers: `rl.config`;
the forms themselves: `rl.losses`. Not covered: value networks.
"""

from __future__ import annotations

from typing import Any, Self

from loopline.model.language_model import LanguageModel
from loopline.rl.config import PolicyGradientConfig
from loopline.rl.losses import PolicyInput, clipped_surrogate, kl_value, policy_loss
from loopline.training.batch import Batch
from loopline.training.objectives import Loss, TokenScores, score_tokens

__all__ = ["GRPO", "clipped_surrogate", "policy_input"]


def policy_input(scores: TokenScores, batch: Batch) -> PolicyInput:
    """What the policy losses see of a batch. Raises `KeyError` when it lacks advantages or old log-probs."""

    def extra(name: str) -> Any:
        return batch.extras[name].reshape(-1)[scores.index_M] if name in batch.extras else None

    assert batch.sequences_BT is not None
    return PolicyInput(
        logprobs_M=scores.logprobs_M,
        old_logprobs_M=batch.extras["old_logprobs"].reshape(-1)[scores.index_M],
        advantages_M=batch.extras["advantages"].reshape(-1)[scores.index_M],
        weights_M=scores.weights_M,
        owners_M=batch.sequences_BT.reshape(-1)[scores.index_M],
        sampler_logprobs_M=extra("sampler_logprobs"),
        reference_logprobs_M=extra("reference_logprobs"),
        entropy_M=scores.entropy_M,
    )


class GRPO:
    """Group-relative policy optimization, and everything that differs from it by a switch of `PolicyGradientConfig`.

    The batch's weights decide the normalizer: the source sets them to 1 per token, 1/length, or a constant, so that
    dividing the summed loss by the summed normalizers gives the mean asked for, however the step is split.
    """

    def __init__(
        self, clip_low: float = 0.2, clip_high: float = 0.2, temperature: float = 1.0, **switches: Any
    ) -> None:
        self.config = PolicyGradientConfig(clip_low=clip_low, clip_high=clip_high, temperature=temperature, **switches)

    @classmethod
    def from_config(cls, config: PolicyGradientConfig) -> Self:
        """The objective with all of a config's switches."""
        made = cls.__new__(cls)
        made.config = config
        return made

    def loss(self, model: LanguageModel, batch: Batch) -> Loss:
        scores = score_tokens(model, batch, self.config.temperature, with_entropy=True)
        inputs = policy_input(scores, batch)
        result = policy_loss(inputs, self.config)
        total = (result.losses_M * scores.weights_M).sum()
        normalizer = float(batch.scalars["normalizer"].sum())
        moved = float(kl_value(inputs.old_logprobs_M - scores.logprobs_M.detach(), "k3").mean())
        metrics = {
            "loss": float(total.detach()) / max(normalizer, 1e-9),
            "entropy": float(scores.entropy_M.mean()),
            "clip_low": float(result.clipped_low.float().mean()),
            "clip_high": float(result.clipped_high.float().mean()),
            "mismatch_kl": moved,
            "policy_kl": moved,
            **result.metrics,
        }
        return total, normalizer, metrics
