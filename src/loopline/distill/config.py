"""Settings of distillation and quantization. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from loopline.base.config import Config
from loopline.base.stage import Takes, stage
from loopline.training.config import OptimizerConfig, ScheduleConfig, TrainRuntime


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
    "student_base",
    run="loopline.distill.stage:student_base",
    takes={"data": Takes("corpus"), "plan": Takes("plan")},
    gives="checkpoint",
    area=8,
)
class StudentBaseConfig(Config):
    """Short pretraining of the small decoder both students start from."""

    steps: int = Field(default=150, ge=1)
    """Optimizer steps of the plan's batch size."""
    optimizer: OptimizerConfig = OptimizerConfig(kind="muon")
    """The optimizer."""
    schedule: ScheduleConfig = ScheduleConfig(warmup=0.02, decay=0.2, final=0.1)
    """How the learning rate moves."""
    runtime: TrainRuntime = TrainRuntime()
    """Checkpointing."""


@stage(
    "student",
    run="loopline.distill.stage:student",
    takes={
        "base": Takes("checkpoint"),
        "tasks": Takes("tasks"),
        "traces": Takes("rows", required=False, by_default=False),
    },
    gives="checkpoint",
    area=8,
)
class StudentConfig(Config):
    """Fine-tuning of a student, with or without the teacher's traces; everything else is equal."""

    steps: int = Field(default=150, ge=1)
    """Optimizer steps."""
    examples_per_step: int = Field(default=128, ge=1)
    """Conversations per step."""
    sequence_length: int = Field(default=160, ge=16)
    """Tokens of a packed row."""
    rows_per_batch: int = Field(default=64, ge=1)
    """Packed rows per forward pass."""
    reasoning_share: float = Field(default=0.75, gt=0, le=1)
    """Share of reasoning rows: the teacher's traces for the one, the written answers for the other."""
    reasoning: dict[str, float] = {"arithmetic": 0.5, "word_problem": 0.3, "ordering": 0.2}
    """Share of each task set among the written reasoning answers."""
    general: dict[str, float] = {"code": 0.2, "format": 0.2, "safety": 0.3, "lookup": 0.3}
    """Share of each task set among the other rows, the same for both students."""
    styles: dict[str, float] = {"think": 0.5, "direct": 0.5, "tool": 0.5, "context": 0.5}
    """How often a task with several written answers is shown with each style."""
    optimizer: OptimizerConfig = OptimizerConfig(kind="muon")
    """The optimizer."""
    schedule: ScheduleConfig = ScheduleConfig()
    """How the learning rate moves."""
    runtime: TrainRuntime = TrainRuntime()
    """Checkpointing."""


@stage(
    "quantize",
    run="loopline.distill.stage:quantize",
    takes={"checkpoint": Takes("checkpoint")},
    gives="checkpoint",
    area=8,
)
class QuantizeConfig(Config):
    """int8 weights; nothing to set yet."""
