"""Settings of reinforcement learning from verifiable rewards. Imports no torch.

Not covered: which graders pay (see `grading.reward`) and the optimizer (see `training.config`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from throughline.base.config import Config


class PolicyGradientConfig(Config):
    """GRPO and its switches."""

    prompts_per_step: int = Field(default=32, ge=1)
    """Prompts sampled for each optimizer step."""
    group_size: int = Field(default=8, ge=2)
    """Samples of each prompt; their mean reward is the baseline (Shao et al. 2024, arXiv:2402.03300)."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature; training scores tokens at the same one."""
    max_new_tokens: int = Field(default=48, ge=1)
    """Longest sample, in tokens."""
    scale_rewards: Literal["group", "none"] = "group"
    """Divide centred rewards by the group's deviation, or not (Dr. GRPO, arXiv:2503.20783)."""
    normalizer: Literal["token", "sequence", "constant"] = "token"
    """Mean over the step's tokens (DAPO, arXiv:2503.14476), over sequences of their token means (GRPO), or the sum
    divided by samples times `max_new_tokens` (Dr. GRPO)."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """The ratio to the sampling policy is clipped below at 1 minus this."""
    clip_high: float = Field(default=0.2, gt=0)
    """The ratio is clipped above at 1 plus this; DAPO raises it to 0.28."""
    drop_zero_signal: bool = True
    """Leave out groups whose rewards are all equal: their advantage is zero."""
    mask_truncated: bool = False
    """Leave samples cut at `max_new_tokens` out of the loss; their reward still counts in the group's mean."""
