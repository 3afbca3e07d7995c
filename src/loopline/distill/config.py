"""Settings of distillation and quantization. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from loopline.base.config import Config
from loopline.base.stage import Takes, stage


@stage(
    "traces",
    run="loopline.distill.stage:traces",
    takes={"teacher": Takes("checkpoint"), "tasks": Takes("tasks"), "graders": Takes("graders")},
    gives="rows",
    area=8,
)
class TracesConfig(Config):
    """Verified traces of the teacher."""

    prompts: int = Field(default=3000, ge=1)
    """Training tasks answered by the teacher."""
    samples: int = Field(default=2, ge=1)
    """Answers of each."""
    temperature: float = Field(default=0.7, ge=0)
    """Sampling temperature."""
    max_new_tokens: int = Field(default=48, ge=1)
    """Longest answer, in tokens."""
    shares: dict[str, float] = {"arithmetic": 0.5, "word_problem": 0.3, "ordering": 0.2}
    """Share of each task set among the prompts."""
    minimum: int = Field(default=200, ge=1)
    """Fewest verified traces; with fewer the teacher is too weak to teach."""


@stage(
    "quantize",
    run="loopline.distill.stage:quantize",
    takes={"checkpoint": Takes("checkpoint")},
    gives="checkpoint",
    area=8,
)
class QuantizeConfig(Config):
    """int8 weights; nothing to set yet."""
