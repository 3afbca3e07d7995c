"""Settings of reinforcement learning. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from loopline.base.stage import Takes, stage
from loopline.grading.reward import RewardConfig
from loopline.rl.config import PolicyGradientConfig
from loopline.rl.guards import RolloutGuardConfig
from loopline.rl.ppo_config import PPOConfig
from loopline.rl.rollout_config import RolloutConfig
from loopline.training.config import (
    Divide,
    OptimizerConfig,
    ScheduleConfig,
    TrainingConfig,
    TrainRuntime,
)


@stage(
    "grpo",
    run="loopline.posttrain.grpo:grpo",
    takes={"policy": Takes("checkpoint"), "tasks": Takes("tasks"), "graders": Takes("graders")},
    gives="checkpoint",
    area=5,
)
class GRPOConfig(PolicyGradientConfig, TrainingConfig):
    """Reasoning RL on verifiable rewards: GRPO and its relatives, or PPO."""

    algorithm: Literal["grpo", "ppo"] = "grpo"
    """What an answer is compared with: the others of its group, or what a value network of the policy's size expected
    (PPO)."""
    ppo: PPOConfig = PPOConfig()
    """Settings of the value network; unused with `grpo`."""
    tasks: dict[str, float] | tuple[str, ...] = ()
    """Task sets by name or as `tag:<tag>`, with or without shares of the prompts. Empty takes those tagged `reasoning`,
    or all where none is."""
    steps: int = Field(default=80, ge=1)
    """Optimizer steps. Each collects `prompts_per_step` groups, or takes its share of a rollout collected before."""
    sequence_length: int = Field(default=256, ge=16)
    """Tokens of a packed row; a longer prompt with its answer gets a longer row."""
    reward: RewardConfig = RewardConfig()
    """What rewards an answer: graders with weights, and penalties."""
    rollout: RolloutConfig = RolloutConfig()
    """How answers are sampled: thinking, overlap with training, whose log-probs."""
    rollout_guards: RolloutGuardConfig = RolloutGuardConfig()
    """What is done about collapse, repetition, drift and mismatch."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-4, weight_decay=0.0)
    """The optimizer."""
    schedule: ScheduleConfig = ScheduleConfig(warmup=0.05, decay=0.3, final=0.1)
    """How the learning rate moves."""
    runtime: TrainRuntime = TrainRuntime(save_every=10)
    """Checkpointing."""
    divide: Divide = "operations"
    """What a CPU's threads share: operations, or micro-batches, a thread each."""

    @model_validator(mode="after")
    def _counts_prompts(self) -> GRPOConfig:
        if self.overlong == "truncate":
            raise ValueError("a prompt cannot be cut: set overlong to drop or refuse")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) != TrainingConfig.model_fields[name].default:
                raise ValueError(f"{name} counts rows, of which there are none here: set steps and prompts_per_step")
        return self

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
