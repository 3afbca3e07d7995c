"""Settings of the system recipe and of the mixture update. Imports no torch.

Every field that changes the plan is here; what the machine is enters only through a budget in minutes. Not covered:
parallel layouts over several devices.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator

from loopline.base.config import Config
from loopline.base.stage import Takes, stage
from loopline.training.config import ScheduleConfig


class BudgetConfig(Config):
    """What pretraining may cost: exactly one of the two."""

    whole: ClassVar[bool] = True

    flops: float | None = Field(default=None, gt=0)
    """Floating-point operations of training, forward and backward."""
    minutes: float | None = Field(default=None, gt=0)
    """Wall time on this machine. Its speed is measured once and the budget rounded to FLOPs, which the plan records, so
    a plan made from minutes depends on the machine it was made on."""

    @model_validator(mode="after")
    def validate_one(self) -> BudgetConfig:
        if (self.flops is None) == (self.minutes is None):
            raise ValueError("set exactly one of budget.flops and budget.minutes")
        return self


class ServingConfig(Config):
    """What the released model must fit: decided here, before a token is trained on."""

    max_parameters: int | None = Field(default=None, ge=1)
    """Largest model that may be served."""
    memory_gb: float | None = Field(default=None, gt=0)
    """Device memory for weights and key/value caches in service."""
    weight_bits: int = Field(default=16, ge=2, le=32)
    """Bits per weight in service."""
    concurrency: int = Field(default=1, ge=1)
    """Conversations held in memory at once, each of the longest length."""


@stage("plan", run="loopline.plan.stage:plan", takes={"data": Takes("corpus")}, gives="plan", area=3)
class PlanConfig(Config):
    """How to spend a training budget."""

    budget: BudgetConfig = BudgetConfig(flops=1.6e13)
    """The budget."""
    tokens_per_parameter: float = Field(default=20.0, gt=0)
    """Training tokens per parameter at the compute optimum (Hoffmann et al. 2022, arXiv:2203.15556)."""
    over_training: float = Field(default=1.0, gt=0)
    """Multiple of `tokens_per_parameter`: above 1 a smaller model on more tokens, cheaper to serve (Llama 3 8B, on 15T
    tokens: 93); below 1 a larger model on fewer. What a plan reaches is within 10%, unless a bound on memory or size
    keeps it from that, which the plan then says."""
    sequence_length: int = Field(default=256, ge=16)
    """Tokens of one training sequence."""
    max_position_embeddings: int = Field(default=512, ge=16)
    """Longest sequence the model must take in service."""
    qk_norm: bool = True
    """RMSNorm over queries and keys (Qwen3); without it the shape is Llama's."""
    batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens per step; empty takes the batch law."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of AdamW; empty takes the learning-rate law."""
    matrix_learning_rate: float = Field(default=0.02, gt=0)
    """Peak learning rate where Muon trains the matrices; its update has a size of its own, so no law in N is needed
    (Jordan et al. 2024)."""
    max_learning_rate: float = Field(default=3e-3, gt=0)
    """The law is fitted on models above ten million parameters; below, its value is cut to this."""
    min_steps: int = Field(default=400, ge=1)
    """The batch is halved until at least this many steps are left, when the batch law sets it."""
    schedule: ScheduleConfig = ScheduleConfig(warmup=0.02, decay=0.4, final=0.0)
    """Warmup, plateau and decay as shares of the steps."""
    max_epochs: float = Field(default=4.0, gt=0)
    """How often the data may be repeated; up to four times is nearly as good as fresh data
    (Muennighoff et al. 2023, arXiv:2305.16264)."""
    device_memory_gb: float | None = Field(default=None, gt=0)
    """Memory of one training device; shapes that cannot train in it are not chosen. Empty sets no bound."""
    serving: ServingConfig = ServingConfig()
    """What the model must fit in service."""
    student_share: float = Field(default=0.4, gt=0, lt=1)
    """Parameters of the student shape, as a share of the model's."""

    @model_validator(mode="after")
    def validate_lengths(self) -> PlanConfig:
        if self.sequence_length > self.max_position_embeddings:
            raise ValueError(
                f"sequence_length ({self.sequence_length}) exceeds max_position_embeddings "
                f"({self.max_position_embeddings}): raise max_position_embeddings"
            )
        if self.batch_tokens is not None and self.batch_tokens % self.sequence_length:
            raise ValueError(
                f"batch_tokens ({self.batch_tokens}) must be a multiple of sequence_length ({self.sequence_length}): "
                f"use {max(1, round(self.batch_tokens / self.sequence_length)) * self.sequence_length}"
            )
        return self


@stage(
    "remix",
    run="loopline.plan.stage:remix",
    takes={"data": Takes("corpus"), "evaluations": Takes("evaluation")},
    gives="mixture",
    area=3,
)
class RemixConfig(Config):
    """How an evaluation of the base moves the mixture of its next pretraining."""

    covers: dict[str, list[str]] = {}
    """Task sets, by name or as `tag:<tag>`, that each source teaches; a source also covers the task set of its own
    name."""
    targets: dict[str, float] = {}
    """Bits per byte to reach, by source; a source without one is measured against the mean of all."""
    strength: float = Field(default=1.0, ge=0)
    """How strongly an excess moves a weight: a factor of exp(strength * excess)."""
    max_factor: float = Field(default=2.0, ge=1)
    """A weight changes by at most this factor, up or down."""
    min_weight: float = Field(default=0.01, ge=0, lt=1)
    """No source that had a weight falls below this."""
    max_epochs: float = Field(default=4.0, gt=0)
    """No source is repeated more often than this."""
    checkpoint: str | None = None
    """Whose evaluations to read, where the artifact holds several checkpoints'."""
    tokens: int | None = Field(default=None, ge=1)
    """Tokens of the next pretraining; empty takes all training tokens of the data."""
