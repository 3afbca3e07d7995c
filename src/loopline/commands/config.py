"""Settings of the commands that take prompts and a grader. Imports no torch.

Every key can be set with `--set key=value`; those of the data with `--set read.key=value`, those of the grader's audit
and probe with `--set grader.key=value`. Not covered: settings of the stages themselves (see `posttrain`).
"""

from __future__ import annotations

from pydantic import Field

from loopline.posttrain.config import GRPOConfig
from loopline.training.config import Divide, OptimizerConfig

PROMPTS = "prompts"
"""The one task set of a user's prompts."""
GRADER = "grader"
"""Name of the one grader of a user's prompts."""


class ReinforceConfig(GRPOConfig):
    """`loopline grpo`."""

    steps: int = Field(default=100, ge=1)
    """Optimizer steps; each samples, grades and learns once."""
    prompts_per_step: int = Field(default=16, ge=1)
    """Prompts sampled for each optimizer step."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Longest sample, in tokens."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-6, weight_decay=0.0)
    """The optimizer."""
    divide: Divide = "batches"
    """What a CPU's threads share: micro-batches, a thread each, or operations."""
