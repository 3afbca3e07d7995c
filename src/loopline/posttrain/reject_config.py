"""Settings of rejection sampling and of distillation, which is the same with another start. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from loopline.base.config import InputFile
from loopline.base.stage import Takes, stage
from loopline.posttrain.sft_config import DemonstrationsConfig
from loopline.training.config import TrainingConfig

GIVEN = {"tasks": Takes("tasks"), "graders": Takes("graders")}
START = Takes("checkpoint|release", required=False, by_default=False)
REWARD_MODEL = Takes("reward_model", required=False, by_default=False)


@stage(
    "reject",
    run="loopline.posttrain.reject:reject",
    takes={"policy": Takes("checkpoint"), **GIVEN, "start": START, "reward_model": REWARD_MODEL},
    gives="checkpoint",
    area=5,
    version=2,
)
class RejectConfig(TrainingConfig):
    """Rejection sampling: answers of the policy to training prompts, filtered by a grader, become supervised data.

    Several rounds are a `repeat` of it; `inputs: {start: NODE}` trains each from the same checkpoint (expert iteration,
    as in STaR, arXiv:2203.14465).
    """

    tasks: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Share of each task set (a name, or `tag:<tag>`) among the prompts; empty takes all tasks alike."""
    prompts: int | None = Field(default=None, ge=1)
    """Prompts to sample; empty takes all, of `tasks` in equal parts as many as there are of the smallest share."""
    from_rollouts: bool = False
    """Select from the rollouts that the policy's reinforcement learning left, instead of sampling anew."""
    from_step: float = Field(default=0.5, ge=0, lt=1)
    """With `from_rollouts`: only those after this share of the steps, since earlier ones are a weaker policy's."""
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
    reward_model: Annotated[str | None, InputFile()] = None
    """A reward model's directory, to rank answers; empty takes the input `reward_model`."""
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
    share: float = Field(default=1.0, gt=0, le=1)
    """Part of every step from accepted answers; the rest is `replay`."""
    replay: DemonstrationsConfig = DemonstrationsConfig()
    """Written answers beside them, so that abilities which were not sampled stay."""
    epochs: float = Field(default=2.0, gt=0)
    """Times that every kept row is seen."""

    @model_validator(mode="after")
    def _agree(self) -> RejectConfig:
        if self.min_pass_rate > self.max_pass_rate:
            raise ValueError("min_pass_rate is above max_pass_rate: no prompt can lie between them")
        if (self.share < 1) != bool(self.replay.tasks):
            raise ValueError("share leaves a part of every step to replay: give both share below 1 and replay.tasks")
        return self


@stage(
    "distill",
    run="loopline.posttrain.reject:distill",
    takes={"teacher": Takes("checkpoint"), **GIVEN, "student": START, "reward_model": REWARD_MODEL},
    gives="checkpoint",
    area=8,
)
class DistillConfig(RejectConfig):
    """Distillation: a teacher's verified answers to training prompts train another checkpoint, the student.

    The answers are kept in rows.jsonl, so that `inputs: {rows: NODE}` gives them to a control. Learning from the
    teacher's probabilities is not covered.
    """

    student: Annotated[str | None, InputFile()] = None
    """The student: a checkpoint directory; empty takes the input `student`."""
    temperature: float = Field(default=0.7, gt=0)
    """Sampling temperature."""
    samples: int = Field(default=2, ge=1)
    """Answers sampled of each prompt."""
