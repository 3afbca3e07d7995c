"""Settings of proximal policy optimization with a value network. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from loopline.base.config import Config


class PPOConfig(Config):
    """What PPO has beside the policy's own settings (Schulman et al. 2017, arXiv:1707.06347)."""

    discount: float = Field(default=1.0, gt=0, le=1)
    """What a reward one token later is worth."""
    trace: float = Field(default=0.95, ge=0, le=1)
    """Lambda of generalized advantage estimation (arXiv:1506.02438): 0 trusts the value network, 1 the outcome."""
    whiten: bool = True
    """Bring the advantages of a rollout's tokens to mean 0 and deviation 1."""
    value_clip: float = Field(default=0.2, gt=0)
    """A value moves by at most this from the one it had when the answers were sampled."""
    value_coefficient: float = Field(default=0.5, gt=0)
    """Weight of the value network's squared error beside the policy's loss."""
