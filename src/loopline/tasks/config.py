"""Settings of how data files are read. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from loopline.base.config import Config


class DataConfig(Config):
    """How a data file is read."""

    purpose: Literal["conversations", "pairs", "labels", "steps", "prompts"] = "conversations"
    """What the rows are for; the command decides it."""
    columns: dict[str, str] = {}
    """Wanted column -> the file's column; what `--columns` gives."""
    limit: int | None = Field(default=None, ge=1)
    """Only the first so many rows."""
    template: str = "{prompt}"
    """What a prompt given as text is put into."""
    system: str = ""
    """A system turn before prompts that have none."""
    empty: Literal["refuse", "drop"] = "refuse"
    """What becomes of rows with an empty completion."""

    @model_validator(mode="after")
    def _prompt_is_shown(self) -> DataConfig:
        if "{prompt}" not in self.template:
            raise ValueError("template must hold {prompt}: write for example 'Question: {prompt}'")
        return self
