"""Settings of the post-training stages and of retraining on traffic. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from loopline.base.config import Config
from loopline.base.stage import Takes, stage
from loopline.grading.reward import RewardConfig
from loopline.model.adapter_config import LoRAConfig
from loopline.rl.config import PolicyGradientConfig
from loopline.rl.guards import RolloutGuardConfig
from loopline.rl.ppo_config import PPOConfig
from loopline.rl.rollout_config import RolloutConfig
from loopline.training.config import Divide, OptimizerConfig, ScheduleConfig, TrainingConfig, TrainRuntime

REASONING = {"arithmetic": 0.5, "word_problem": 0.3, "ordering": 0.2}


@stage(
    "grpo",
    run="loopline.posttrain.stage:grpo",
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


@stage(
    "rft",
    run="loopline.posttrain.stage:rft",
    takes={"policy": Takes("checkpoint"), "tasks": Takes("tasks")},
    gives="checkpoint",
    area=5,
)
class RFTConfig(TrainingConfig):
    """Rejection-sampling fine-tuning: supervised training on the RL rollouts that passed."""

    from_step: float = Field(default=0.5, ge=0, lt=1)
    """Only rollouts after this share of the RL steps: earlier ones come from a weaker policy."""
    per_prompt: int = Field(default=1, ge=1)
    """Correct, distinct answers kept of each prompt, shortest first."""
    solved_share: float = Field(default=0.5, ge=0, le=1)
    """At most this share of the kept rows comes from prompts every sample solved: they teach little."""
    minimum: int = Field(default=200, ge=1)
    """Fewest kept rows; with fewer the stage refuses, since the policy before it is too weak."""
    rollout_share: float = Field(default=0.6, ge=0, le=1)
    """Share of training rows from rollouts; the rest are general tasks, so other abilities stay."""
    general: dict[str, float] = {"code": 0.25, "format": 0.25, "safety": 0.06, "lookup": 0.44}
    """Share of each task set among the general rows."""
    limits: dict[str, int] = {"safety": 120}
    """Most distinct tasks of a task set; the same as the cold start's, so that alignment remains the teacher."""


class RejectConfig(TrainingConfig):
    """Rejection sampling: answers of the policy to training prompts, filtered by a grader, become supervised data."""

    prompts: int | None = Field(default=None, ge=1)
    """Prompts to sample, drawn without repetition; empty takes all."""
    samples: int = Field(default=8, ge=1)
    """Answers sampled of each prompt."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus of the sampling distribution."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Longest answer, in tokens; one cut off there is never kept."""
    threshold: float = Field(default=1.0, ge=0, le=1)
    """Least score of a kept answer."""
    select: Literal["shortest", "best"] = "shortest"
    """Which of a prompt's passing answers come first: the shortest, or those the reward model (without one, the
    grader) scores highest: best of n."""
    per_prompt: int = Field(default=1, ge=1)
    """Answers kept of each prompt."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Longest kept answer, in tokens; empty leaves that to `max_new_tokens`."""
    similarity: float = Field(default=0.8, gt=0, le=1)
    """Answers to one prompt whose sets of word triples overlap this much (Jaccard) count as one; 1 keeps all but
    equal ones."""
    min_pass_rate: float = Field(default=0.0, ge=0, le=1)
    """Prompts that fewer of their samples solve are left out: what passes there is often luck."""
    max_pass_rate: float = Field(default=1.0, gt=0, le=1)
    """Prompts that more of their samples solve are left out: they teach little."""
    bucket_share: float = Field(default=0.6, gt=0, le=1)
    """Most that one quarter of pass rates may hold of the kept rows, where several quarters have any."""
    minimum: int = Field(default=16, ge=1)
    """Fewest kept rows; with fewer the stage refuses, since the policy is too weak for these prompts."""
    restart: bool = False
    """Train every round from the first model instead of the round before it (expert iteration from the base, as in
    STaR, arXiv:2203.14465)."""
    epochs: float = Field(default=2.0, gt=0)
    """Times that every kept row is seen."""

    @model_validator(mode="after")
    def _some_pass_rate(self) -> RejectConfig:
        if self.min_pass_rate > self.max_pass_rate:
            raise ValueError("min_pass_rate is above max_pass_rate: no prompt can lie between them")
        return self


@stage(
    "align",
    run="loopline.posttrain.stage:align",
    takes={"policy": Takes("checkpoint"), "tasks": Takes("tasks"), "graders": Takes("graders")},
    gives="checkpoint",
    area=5,
)
class AlignConfig(Config):
    """Alignment: preference pairs judged by a written constitution, then DPO."""

    prompts: int = Field(default=900, ge=1)
    """Safety requests sampled for pairs."""
    retain_prompts: int = Field(default=300, ge=0)
    """Reasoning tasks sampled for pairs of a right and a wrong answer, which keep reasoning in place."""
    samples: int = Field(default=4, ge=2)
    """Answers sampled of each prompt."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature."""
    max_new_tokens: int = Field(default=48, ge=1)
    """Longest answer, in tokens."""
    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull towards the reference policy (arXiv:2305.18290)."""
    sft_weight: float = Field(default=0.2, ge=0)
    """Weight of the chosen answer's own likelihood beside the preference."""
    steps: int = Field(default=60, ge=1)
    """Optimizer steps."""
    pairs_per_step: int = Field(default=32, ge=1)
    """Preference pairs per step."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-4)
    """The optimizer."""
    schedule: ScheduleConfig = ScheduleConfig(warmup=0.1, decay=0.5)
    """How the learning rate moves."""
    runtime: TrainRuntime = TrainRuntime(save_every=20)
    """Checkpointing."""
