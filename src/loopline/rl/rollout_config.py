"""Settings of rollouts beside the algorithm's: whose log-probs, thinking, overlap with training. Imports no torch.

Not covered: the algorithm (see `rl.config`), rewards (see `grading.reward`), guards (see `rl.guards`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from loopline.base.config import Config, Runtime


class RolloutRuntime(Runtime):
    """Where rollouts run. With the same `staleness` the samples are the same."""

    background: Literal["off", "thread", "process"] = "off"
    """Where rollouts of later steps are sampled while this one is trained; needs `staleness` of 1 or more. A process
    suits CPUs, where sampling and training would contend for one interpreter; a thread suits a GPU."""
    threads: int = Field(default=1, ge=1)
    """Threads of the rollout process."""


class RolloutConfig(Config):
    """How answers are sampled and what is recorded about the policy that wrote them."""

    old_logprobs: Literal["sampler", "trainer"] = "sampler"
    """What ratios are taken against: the log-probs the sampler reported, or those the trainer computes for the same
    tokens before the first update on them (one more forward pass). The latter needs `importance_correction` when the
    two may differ by more than rounding."""
    mismatch_samples: int = Field(default=4, ge=0)
    """Answers of each rollout scored again by the trainer's forward pass at the weights that sampled them; what is
    left of a difference is the engine's. With `old_logprobs: trainer` and fresh weights all are."""
    no_think_share: float = Field(default=0.0, ge=0, le=1)
    """Share of a step's prompts asked with thinking switched off in the template."""
    thinking_budget: int | None = Field(default=None, ge=0)
    """Tokens of thinking after which the engine closes it; its own tokens never enter the loss."""
    staleness: int = Field(default=0, ge=0)
    """Updates' worth of age: a rollout is sampled with the weights of this many rollouts earlier, so that it can run
    while those are trained on. 0 samples from the newest weights, one after the other."""
    runtime: RolloutRuntime = RolloutRuntime()
    """Where rollouts run."""
