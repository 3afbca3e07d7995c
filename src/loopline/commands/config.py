"""Settings of the commands that take prompts and a grader. Imports no torch.

Every key can be set with `--set key=value`; those of the data with `--set read.key=value`, those of the grader's audit
and probe with `--set grader.key=value`. Not covered: settings of the stages themselves (see `posttrain`).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from loopline.base.config import Config
from loopline.posttrain.config import GRPOConfig
from loopline.training.config import Divide

PROMPTS = "prompts"
"""The one task set of a user's prompts."""
GRADER = "grader"
"""Name of the one grader of a user's prompts."""


class ReinforceConfig(GRPOConfig):
    """`loopline grpo`."""

    steps: int = Field(default=100, ge=1)
    """Optimizer steps; each samples, grades and learns once."""
    shares: dict[str, float] = {PROMPTS: 1.0}
    """All prompts are of one task set."""
    prompts_per_step: int = Field(default=16, ge=1)
    """Prompts sampled for each optimizer step."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Longest sample, in tokens."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate of AdamW."""
    divide: Divide = "batches"
    """What a CPU's threads share: micro-batches, a thread each, or operations."""


class ProbeConfig(Config):
    """How a grader is looked at before anything is trained against it."""

    definition: dict[str, Any] = {"type": "final_answer"}
    """The grader's definition; `--grader` gives it."""
    force: bool = False
    """Go on with a grader that its audit or probe speaks against; `--force-grader`."""
    audit_tasks: int = Field(default=24, ge=1)
    """Prompts that the audit tries its probes on."""
    probe_prompts: int = Field(default=8, ge=1)
    """Prompts that the policy answers before training, to see that the grader works on what it writes."""
    probe_samples: int = Field(default=4, ge=1)
    """Answers to each of them."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Longest answer of the probe; the command's own setting."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of the probe; the command's own setting."""
    overlong: Literal["refuse", "drop"] = "refuse"
    """What becomes of prompts that leave no room for such an answer."""
