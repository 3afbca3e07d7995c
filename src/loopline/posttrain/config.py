"""Settings of reinforcement learning. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from loopline.base.stage import Takes, stage
from loopline.grading.reward import RewardConfig
from loopline.model.adapter_config import LoRAConfig
from loopline.rl.config import PolicyGradientConfig
from loopline.rl.guards import RolloutGuardConfig
from loopline.rl.ppo_config import PPOConfig
from loopline.rl.rollout_config import RolloutConfig
from loopline.training.config import Divide, ScheduleConfig, TrainRuntime

REASONING = {"arithmetic": 0.5, "word_problem": 0.3, "ordering": 0.2}


@stage(
    "grpo",
    run="loopline.posttrain.grpo:grpo",
    takes={"policy": Takes("checkpoint"), "tasks": Takes("tasks"), "graders": Takes("graders")},
    gives="checkpoint",
    area=5,
)
class GRPOConfig(PolicyGradientConfig):
    """Reasoning RL on verifiable rewards."""

    algorithm: Literal["grpo", "ppo"] = "grpo"
    """What an answer is compared with: its siblings, or what a value network of the policy's size expected (PPO)."""
    ppo: PPOConfig = PPOConfig()
    """Settings of the value network; unused with `grpo`."""
    adapter: LoRAConfig | None = None
    """Train a low-rank adapter in place of the whole model; rollouts are sampled from the merged weights."""
    steps: int = Field(default=80, ge=1)
    """Optimizer steps; each samples, grades and learns once."""
    shares: dict[str, float] = REASONING
    """Share of each task set among the prompts."""
    reward: RewardConfig = RewardConfig()
    """What pays."""
    rollout: RolloutConfig = RolloutConfig()
    """How answers are drawn: thinking, overlap with training, whose log-probs."""
    guards: RolloutGuardConfig = RolloutGuardConfig()
    """What is done about collapse, repetition, drift and mismatch."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate of AdamW."""
    schedule: ScheduleConfig = ScheduleConfig(warmup=0.05, decay=0.3, final=0.1)
    """How the learning rate moves."""
    runtime: TrainRuntime = TrainRuntime(save_every=10)
    """Checkpointing."""
    divide: Divide = "operations"
    """What a CPU's threads share: operations, or micro-batches, a thread each."""

    @model_validator(mode="after")
    def _one_baseline(self) -> GRPOConfig:
        if self.algorithm == "ppo" and (self.dynamic_sampling or self.baseline != "mean"):
            raise ValueError(
                "with algorithm ppo the value network is the baseline, and groups without a difference teach, too: "
                "leave dynamic_sampling and baseline as they are"
            )
        if self.algorithm == "ppo" and self.adapter is not None:
            raise ValueError("algorithm ppo trains all weights: leave adapter out, or use algorithm grpo")
        return self
