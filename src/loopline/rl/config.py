"""Settings of reinforcement learning from verifiable rewards. Imports no torch.

    PolicyGradientConfig(preset="dapo", clip_high=0.3)

    loopline grpo ... --set preset=dapo --set clip_high=0.3

Every switch names the paper it comes from; `PRESETS` sets them as those papers do. Not covered: which graders make up
the reward (see `grading.reward`) and the optimizer (see `training.config`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from loopline.base.config import Config


class PolicyGradientConfig(Config):
    """GRPO and its switches."""

    preset: Literal["grpo", "dapo", "dr_grpo", "gspo", "cispo", "sapo", "rloo", "reinforce"] | None = None
    """Set the switches as a published algorithm does (`PRESETS`), except those that are set explicitly."""
    prompts_per_step: int = Field(default=32, ge=1)
    """Prompts sampled for each rollout."""
    group_size: int = Field(default=8, ge=2)
    """Samples of each prompt; their mean reward is the baseline (Shao et al. 2024, arXiv:2402.03300)."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature; training scores tokens at the same one."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the smallest set of tokens whose probability reaches this. Training scores every token among those
    that it was chosen from, so both see one policy (the sampling mask of arXiv:2512.02556, section 3.1)."""
    top_k: int = Field(default=0, ge=0)
    """Sample from so many likeliest tokens; 0 keeps all. Training scores among the same ones."""
    max_new_tokens: int = Field(default=48, ge=1)
    """Longest sample, in tokens."""
    updates_per_rollout: int = Field(default=1, ge=1)
    """Optimizer steps on each rollout; each takes its own share of the groups, every group is trained on once."""
    baseline: Literal["mean", "leave_one_out", "none"] = "mean"
    """What a reward is compared with: the group's mean, the mean of its other samples (RLOO, arXiv:2402.14740), or
    nothing (REINFORCE)."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Divide centred rewards by the group's deviation, by that of all the rollout's rewards (arXiv:2508.08221), or not
    (Dr. GRPO, arXiv:2503.20783)."""
    normalizer: Literal["token", "sequence", "constant"] = "token"
    """Mean over the step's tokens (DAPO, arXiv:2503.14476), over sequences of their token means (GRPO), or the sum
    divided by samples times `max_new_tokens` (Dr. GRPO)."""
    ratio_level: Literal["token", "sequence", "sequence_product"] = "token"
    """The ratio to the sampling policy per token, as the geometric mean over a sample's tokens (GSPO, arXiv:2507.18071,
    eq. 7), or as their product, the ratio of the whole sample (RLOO)."""
    surrogate: Literal["clip", "cispo_cap", "cispo_clip", "cispo_from_one", "soft_gate", "reinforce"] = "clip"
    """What is done with the ratio. "clip": PPO's clipped surrogate. The CISPO forms (arXiv:2506.13585) weight A log p
    by a clipped ratio without gradient, so that no token is ever dropped. That name means three things elsewhere:
    "cispo_cap" clips above at `clip_high` itself (for example 5.0), "cispo_clip" to [1 - clip_low, 1 + clip_high],
    "cispo_from_one" above at 1 + clip_high only. "soft_gate" is SAPO's sigmoid gate (arXiv:2511.20347). "reinforce" has
    no ratio."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """The ratio to the sampling policy is clipped below at 1 minus this."""
    clip_high: float = Field(default=0.2, gt=0)
    """The ratio is clipped above at 1 plus this; DAPO raises it to 0.28."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Bound on the ratio of tokens with a negative advantage, which the clip leaves unbounded (arXiv:1912.09729; 3.0 is
    usual); empty sets none."""
    gate_positive: float = Field(default=1.0, gt=0)
    """Temperature of "soft_gate" for positive advantages."""
    gate_negative: float = Field(default=1.05, gt=0)
    """Temperature of "soft_gate" for the others."""
    kl_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the KL to the reference policy; 0 needs no reference."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the KL counts: as a term of the loss (GRPO), or taken from each sample's reward before the baseline (RLOO,
    arXiv:2402.14740, eq. 3; with algorithm `ppo` token by token), summed as k1 at the policy that sampled. The two
    settings below are the loss's."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Per token, with d the log-ratio of policy to reference: d, d^2/2, or exp(-d) - 1 + d. k1 and k3 have the right
    mean; only k2 has, as it stands, the right gradient."""
    kl_gradient: Literal["ratio", "straight_through", "estimator"] = "ratio"
    """How the KL's gradient is taken. "ratio": the estimate times the differentiable ratio, right also off policy
    (arXiv:2512.02556). "straight_through": the estimate's value with k2's gradient, right on policy. "estimator": that
    of the estimate as it stands, as first published: zero in expectation for k1, that of the reversed KL for k3."""
    importance_correction: Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = (
        "none"
    )
    """Weight by the ratio of trainer to sampler where the two differ, per token or per sample. Above `importance_cap`
    it is cut there ("truncate"), or the token or sample leaves the loss ("mask") while the normalizer still counts it.
    The KL is not weighted."""
    importance_cap: float = Field(default=2.0, ge=1)
    """Largest importance weight."""
    importance_floor: float = Field(default=0.0, ge=0, le=1)
    """Smallest importance weight, treated like `importance_cap`; 0 sets none."""
    drop_zero_signal: bool = True
    """Leave out groups whose rewards are all equal: their advantage is zero."""
    dynamic_sampling: int = Field(default=0, ge=0)
    """Most further rounds of prompts until `prompts_per_step` groups have a signal (DAPO, section 3.2)."""
    mask_truncated: bool = False
    """Leave samples cut at `max_new_tokens` out of the loss; their reward still counts in the group's mean."""

    @model_validator(mode="before")
    @classmethod
    def _take_preset(cls, given: Any) -> Any:
        # An unknown name is refused with its field.
        return {**PRESETS.get(str(given.get("preset")), {}), **given} if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.dual_clip is not None and self.surrogate != "clip":
            raise ValueError(f"dual_clip has no effect on the surrogate {self.surrogate!r}: leave it empty")
        if self.dual_clip is not None and self.dual_clip <= 1 + self.clip_high:
            raise ValueError(
                f"dual_clip ({self.dual_clip}) must lie above 1 + clip_high ({1 + self.clip_high}), or it is the clip"
            )
        if self.surrogate == "cispo_cap" and self.clip_high < 1:
            raise ValueError(
                f"with the surrogate cispo_cap, clip_high ({self.clip_high}) is the largest ratio itself, at least 1: "
                "use for example 5.0, or the surrogate cispo_from_one to count from 1"
            )
        if self.surrogate == "reinforce" and self.ratio_level != "token":
            raise ValueError("the surrogate reinforce has no ratio: set ratio_level to token, or another surrogate")
        if self.ratio_level != "token" and self.normalizer != "sequence":
            raise ValueError(
                f"a ratio of whole samples weighs each sample once; normalizer {self.normalizer!r} weighs it by its "
                "length: set normalizer to sequence"
            )
        if self.baseline == "none" and self.scale_rewards != "none":
            raise ValueError(
                f"without a baseline rewards are not centred, so scale_rewards {self.scale_rewards!r} has nothing to "
                "divide: set scale_rewards to none"
            )
        if self.updates_per_rollout > self.prompts_per_step:
            raise ValueError(
                f"updates_per_rollout ({self.updates_per_rollout}) is more than the groups there are to share out: "
                "lower it, or raise prompts_per_step"
            )
        return self


PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Shao et al. 2024, arXiv:2402.03300, eq. 3 and 4, section 4.2: KL 0.04, k3 as it stands.
    "grpo": {
        "normalizer": "sequence",
        "kl_coefficient": 0.04,
        "kl_gradient": "estimator",
        "drop_zero_signal": False,
    },
    # Yu et al. 2025, arXiv:2503.14476, eq. 8 and section 3: clip-higher, token mean, dynamic sampling, no KL.
    "dapo": {"clip_high": 0.28, "dynamic_sampling": 8},
    # Liu et al. 2025, arXiv:2503.20783, section 3: no deviation, constant normalizer.
    "dr_grpo": {"scale_rewards": "none", "normalizer": "constant", "drop_zero_signal": False},
    # Zheng et al. 2025, arXiv:2507.18071, eq. 5 and 7, section 5.1.
    "gspo": {"ratio_level": "sequence", "normalizer": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},
    # Chen et al. 2025, arXiv:2506.13585, eq. 4 and 5, without a lower bound; the cap of arXiv:2510.13786.
    "cispo": {"surrogate": "cispo_cap", "clip_high": 5.0},
    # Gao et al. 2025, arXiv:2511.20347.
    "sapo": {"surrogate": "soft_gate", "normalizer": "sequence"},
    # Ahmadian et al. 2024, arXiv:2402.14740; the clip acts only after a first update on the same samples.
    "rloo": {
        "baseline": "leave_one_out",
        "scale_rewards": "none",
        "ratio_level": "sequence_product",
        "normalizer": "sequence",
        "kl_in": "reward",
        "drop_zero_signal": False,
    },
    # Williams 1992, with the group's mean as its baseline.
    "reinforce": {"scale_rewards": "none", "surrogate": "reinforce", "normalizer": "constant"},
}
"""Published algorithms as settings; sizes, lengths and the temperature stay the caller's."""
