"""Settings of the search over harness programs. Imports no torch.

Not covered: training a policy in the environment (see `posttrain` and `rl`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from loopline.attempts.config import HarnessConfig
from loopline.base.config import Config, Runtime
from loopline.base.stage import Takes, stage


class SearchRuntime(Runtime):
    """What changes speed and not the result."""

    batch_size: int = Field(default=256, ge=1)
    """Rows the engine runs at once."""
    proposer_timeout_s: float = Field(default=2400, gt=0)
    """Seconds an outside proposer may take for one proposal."""


@stage(
    "harness",
    run="loopline.agents.stage:harness",
    takes={"policy": Takes("checkpoint"), "tasks": Takes("tasks"), "graders": Takes("graders")},
    gives="harness",
    area=7,
    version=2,
)
class HarnessSearchConfig(Config):
    """A search over harness programs with the policy's weights fixed (Meta-Harness, arXiv:2603.28052)."""

    tasks: tuple[str, ...] = ("tag:tools",)
    """Task sets, by name or as `tag:<tag>`, to search on."""
    environment: str = "search"
    """Where the tools come from: a registered environment or "module:Class" (see `environments.registry`)."""
    first: HarnessConfig = HarnessConfig()
    """The harness to start from and to beat; under its limits the recorded solutions must score 1."""
    oracle: Literal["required", "allow_below_one", "none"] = "required"
    """The recorded solutions, played back under the first harness's limits, are the ceiling of every score. `required`
    refuses when they score below 1, `allow_below_one` records it, `none` is for tasks without recorded solutions; their
    environment is not audited."""
    search_tasks: int = Field(default=120, ge=1)
    """Development tasks each candidate is evaluated on, the same for all."""
    heldout_tasks: int = Field(default=450, ge=1)
    """Held-out tasks that only the first harness and the winner ever see, once."""
    audit_tasks: int = Field(default=60, ge=1)
    """Tasks of each part on which the environment is audited before anything runs."""
    evaluations: int = Field(default=10, ge=1)
    """Harnesses evaluated on the search tasks, the first included."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Tokens of one assistant turn."""
    temperature: float = Field(default=0.0, ge=0, le=2)
    """Sampling temperature of every evaluation; 0 is greedy."""
    rollout_tasks: int = Field(default=40, ge=0)
    """Training tasks for which sampled multi-turn rollouts under the winner are written; 0 writes none."""
    rollout_samples: int = Field(default=4, ge=1)
    """Rollouts of each of those tasks, at temperature 1."""
    proposer: list[str] = []
    """Command that proposes the next harness after reading the candidates' files; empty uses the built-in proposer. It
    runs in the folder that holds `candidates/` and `frontier.json` and must write `proposal.json`:
    {"name", "harness": {fields that differ from the first}, "hypothesis"}. No file ends the search."""
    runtime: SearchRuntime = SearchRuntime()
    """Speed settings."""
