"""Settings of supervised fine-tuning. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from loopline.base.config import Config, InputFile
from loopline.base.stage import Takes, stage
from loopline.tasks.config import DataConfig
from loopline.training.config import TrainingConfig


class DemonstrationsConfig(Config):
    """Written answers of task sets as conversations to imitate."""

    tasks: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Share of each task set (a name, or `tag:<tag>`) among the demonstrations; empty takes none."""
    limits: dict[str, PositiveInt] = {}
    """Most distinct tasks of a set, for demonstrations that are to be scarce."""
    styles: dict[str, Annotated[float, Field(ge=0)]] = {}
    """How often a task with several written answers is shown with each style; a style not named weighs 1."""


@stage(
    "sft",
    run="loopline.posttrain.sft:sft",
    takes={
        "policy": Takes("checkpoint|release"),
        "tasks": Takes("tasks", required=False),
        "graders": Takes("graders", required=False, by_default=False),
        "rows": Takes("rows|checkpoint", required=False, many=True, by_default=False),
    },
    gives="checkpoint",
    area=5,
    version=2,
)
class SFTConfig(TrainingConfig, DemonstrationsConfig):
    """Supervised fine-tuning on a file of conversations, rows of an earlier stage and demonstrations of task sets."""

    data: Annotated[str | None, InputFile()] = None
    """A file of conversations (.jsonl, .json, .csv, .parquet)."""
    read: DataConfig = DataConfig()
    """How that file is read."""
    shares: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Part of every step from `data`, `rows` and `tasks`; empty gives each source a part by its size."""
    learn: Literal["assistant", "last", "all"] = "assistant"
    """Loss on every turn of the assistant, on its last one, or on every token. A message of `weight: 0` has none."""
    allow: tuple[Literal["content", "reasoning", "tool_calls"], ...] = ()
    """Parts of the answers that the chat template may drop, such as the reasoning of earlier turns; others are refused
    where it drops them."""
    dynamic: bool = False
    """Weigh each token's loss by its probability, so that unlikely tokens do not dominate (arXiv:2508.05629)."""

    @model_validator(mode="after")
    def _known_shares(self) -> SFTConfig:
        unknown = sorted(set(self.shares) - {"data", "rows", "tasks"})
        if unknown:
            raise ValueError(f"shares are of data, rows and tasks, not of {unknown[0]!r}")
        return self
