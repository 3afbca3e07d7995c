"""Settings of evaluations. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from loopline.base.config import Config
from loopline.base.stage import Takes, stage
from loopline.grading.config import FAMILIES, REASONING


@stage(
    "evaluate",
    run="loopline.evaluation.stage:evaluate",
    takes={
        "checkpoint": Takes("checkpoint"),
        "tasks": Takes("tasks"),
        "graders": Takes("graders"),
        "data": Takes("corpus", required=False),
    },
    gives="evaluation",
    area=6,
)
class EvaluateConfig(Config):
    """What a checkpoint is asked, and how."""

    task_sets: tuple[str, ...] = FAMILIES
    """Task sets; lookup is asked with its facts in a system turn."""
    n: int = Field(default=450, ge=1)
    """Held-out tasks per task set at most."""
    n_by_set: dict[str, PositiveInt] = {}
    """Task sets with another limit than `n`."""
    modes: tuple[Literal["sampled", "greedy"], ...] = ("sampled", "greedy")
    """One sample per task at `temperature`, the likeliest continuation, or both."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of the sampled mode: that of training, so that it measures what training rewards."""
    max_new_tokens: int = Field(default=48, ge=1)
    """Tokens an answer may take; a longer one is cut off and scores 0."""
    heldout_documents: int = Field(default=100, ge=0)
    """Windows of 256 held-out tokens per source for bits per byte, where the data artifact is given; 0 skips it."""
    thinking_budgets: tuple[int, ...] = ()
    """Tokens of thinking to try, for the curve of accuracy against tokens in `curve.json`; one without end is added.
    Empty leaves the curve out."""
    curve_sets: tuple[str, ...] = REASONING
    """Task sets the curve is measured on, as far as they are among `task_sets`."""


class EvaluateNextConfig(EvaluateConfig):
    """What the next pretraining is asked: few tasks, since a base answers hardly any, and all the held-out text."""

    n: int = Field(default=60, ge=1)
    """Held-out tasks per task set at most."""
