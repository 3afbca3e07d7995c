"""Settings of the stage that audits graders. Imports no torch.

A definition is JSON of the OpenAI grader format (string_check, text_similarity, python, multi) or {"type": ...} of a
ready one (`tasks.config.READY`). Beside the format's fields a definition may name the `tags` of the tasks it is for.
Not covered: rewards (see `grading.reward`).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from loopline.base.config import Config
from loopline.base.stage import Takes, stage


class ProbeConfig(Config):
    """How graders are tried on what the policy writes, where there is one."""

    prompts: int = Field(default=8, ge=0)
    """Prompts that the policy answers, at least one per grader; 0 leaves the probe out."""
    samples: int = Field(default=4, ge=1)
    """Answers to each of them."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Longest answer; set it to that of the training it is for."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of the answers."""


@stage(
    "graders",
    run="loopline.evaluation.graders:graders",
    takes={"tasks": Takes("tasks"), "policy": Takes("checkpoint", required=False)},
    gives="graders",
    area=6,
    version=2,
)
class GradersConfig(Config):
    """Which graders there are: those that the tasks name and further ones, all of them audited."""

    definitions: dict[str, dict[str, Any]] = {}
    """Further graders by name: for tasks that name them, for rewards, or to see what the audit says of them."""
    required: tuple[str, ...] = ()
    """Graders that must pass beside those that the tasks name; another that fails is only reported."""
    force: bool = False
    """Go on with graders that fail the audit or the probe, and say so in the artifact."""
    audit_tasks: int = Field(default=24, ge=1)
    """Tasks each probe of the audit is tried on, at most."""
    overlong: Literal["refuse", "drop"] = "refuse"
    """What becomes of prompts after which an answer of `probe.max_new_tokens` would not fit the context length."""
    probe: ProbeConfig = ProbeConfig()
    """The trial on the policy's own answers."""
