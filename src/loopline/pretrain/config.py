"""Settings of pretraining. Imports no torch.

The model's shape, the number of tokens, the learning rates and their schedule come from the plan, not from here.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from loopline.base.config import Config
from loopline.base.stage import Takes, stage
from loopline.training.config import ScheduleConfig, TrainRuntime


@stage(
    "pretrain",
    run="loopline.pretrain.stage:pretrain",
    takes={"data": Takes("corpus"), "plan": Takes("plan")},
    gives="checkpoint",
    area=4,
)
class PretrainConfig(Config):
    """Pretraining from scratch on the data artifact's shards."""

    shape: Literal["model", "student"] = "model"
    """Which of the plan's shapes: the model, or the smaller one for distillation."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps of the plan's batch size; empty takes the plan's number."""
    optimizer: Literal["adamw", "muon"] = "muon"
    """Muon orthogonalizes the momentum of the blocks' matrices; AdamW takes everything else."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of matrix products."""
    runtime: TrainRuntime = TrainRuntime()
    """Checkpointing."""


@stage(
    "continue_pretraining",
    run="loopline.pretrain.stage:continue_pretraining",
    takes={"base": Takes("checkpoint"), "data": Takes("corpus"), "plan": Takes("plan"), "mixture": Takes("mixture")},
    gives="checkpoint",
    area=4,
)
class ContinueConfig(Config):
    """Continued pretraining of a base under a new mixture, beside a control under the old one."""

    tokens: int = Field(default=400_000, ge=1)
    """Tokens of the run."""
    mixture: Literal["before", "after"] = "after"
    """Which side of mixture.json it trains on: the one the base was trained on, or the proposed one."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate of AdamW."""
    matrix_learning_rate: float = Field(default=0.006, gt=0)
    """Peak learning rate of Muon."""
    schedule: ScheduleConfig = ScheduleConfig(warmup=0.05, decay=0.6, final=0.0)
    """How the learning rate moves."""
    runtime: TrainRuntime = TrainRuntime()
    """Checkpointing."""
