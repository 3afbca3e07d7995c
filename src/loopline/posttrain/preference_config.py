"""Settings of learning from preferences: the policy itself, or a reward model. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from loopline.base.config import InputFile
from loopline.base.stage import Takes, stage
from loopline.tasks.config import DataConfig
from loopline.training.config import OptimizerConfig, TrainingConfig

PairLoss = Literal[
    "dpo",
    "dpo_apo_down",
    "dpo_apo_zero",
    "dpo_bco_pair",
    "dpo_discopop",
    "dpo_exo_pair",
    "dpo_hinge",
    "dpo_nca_pair",
    "dpo_robust",
    "dpo_sigmoid_norm",
    "dpo_sppo_hard",
    "ipo",
]
"""Losses of DPO's margins (see `training/objectives/preference.py`)."""
Loss = PairLoss | Literal["kto", "apo_zero_unpaired", "orpo", "simpo", "cpo"]
READ_BY: dict[str, tuple[str, ...]] = {
    "label_smoothing": ("dpo", "dpo_robust", "dpo_exo_pair"),
    "sft_weight": (*get_args(PairLoss), "cpo"),
    "gamma": ("simpo",),
    "desirable_weight": ("kto", "apo_zero_unpaired"),
    "undesirable_weight": ("kto", "apo_zero_unpaired"),
}
"""Settings that only some losses have."""
SOURCES = {
    "policy": Takes("checkpoint|release"),
    "tasks": Takes("tasks", required=False),
    "graders": Takes("graders", required=False, by_default=False),
    "rows": Takes("rows|checkpoint", required=False, many=True, by_default=False),
}


class LossConfig(TrainingConfig):
    """Training on preferences, whatever they come from."""

    loss: Loss = "dpo"
    """DPO (arXiv:2305.18290), IPO (2310.12036), another loss of DPO's margins, KTO (2402.01306) or APO-zero
    (2408.06266) on single answers, ORPO (2403.07691), SimPO (2405.14734) or CPO (2401.08417)."""
    beta: float | None = Field(default=None, gt=0)
    """Strength of the pull towards the reference policy, 0.1 by default; SimPO's scale, 2 by default; ORPO's weight
    of the odds ratio, 0.1 by default."""
    sft_weight: float | None = Field(default=None, ge=0)
    """Weight of the chosen answer's own likelihood beside the preference: 0 by default, with CPO 1."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of labels taken to be flipped."""
    gamma: float = Field(default=1.0, ge=0)
    """SimPO's margin."""
    desirable_weight: float = Field(default=1.0, ge=0)
    """KTO's weight of good answers."""
    undesirable_weight: float = Field(default=1.0, ge=0)
    """KTO's weight of bad answers."""
    batch_size: int = Field(default=16, ge=1)
    """Pairs, or labelled answers, per optimizer step."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-6)
    """The optimizer."""

    @model_validator(mode="after")
    def _settings_are_read(self) -> LossConfig:
        for name, losses in READ_BY.items():
            default = type(self).model_fields[name].default
            if getattr(self, name) != default and self.loss not in losses:
                raise ValueError(f"the loss {self.loss} has no {name}; it belongs to {', '.join(losses)}")
        if self.loss == "dpo_exo_pair" and not self.label_smoothing:
            raise ValueError("the loss dpo_exo_pair needs label_smoothing above 0, for example 0.1")
        return self


@stage("preference", run="loopline.posttrain.preference:preference", takes=SOURCES, gives="checkpoint", area=5)
class PreferenceConfig(LossConfig):
    """Training a policy on preferences, pairs or labelled answers, by DPO or one of its relatives."""

    data: Annotated[str | None, InputFile()] = None
    """A file of pairs or of labelled answers (.jsonl, .json, .csv, .parquet)."""
    read: DataConfig = DataConfig()
    """How that file is read."""


@stage("reward", run="loopline.posttrain.reward:reward", takes=SOURCES, gives="reward_model", area=5)
class RewardModelConfig(TrainingConfig):
    """Training a reward model: a scoring layer and the model below it."""

    data: Annotated[str | None, InputFile()] = None
    """A file of pairs, of labelled answers or of labelled steps (.jsonl, .json, .csv, .parquet)."""
    read: DataConfig = DataConfig()
    """How that file is read."""
    loss: Literal["bradley_terry", "pointwise", "process"] = "bradley_terry"
    """Pairs by the Bradley-Terry model (1952), single answers with a label, or solutions with a label per step
    (arXiv:2305.20050)."""
    separator: str = "\n"
    """What closes a step (`process`); the score of a step is read at its last token."""
    centering: float = Field(default=0.0, ge=0)
    """Weight of the squared sum of a pair's scores, which keeps them around zero (arXiv:2312.09244)."""

    @model_validator(mode="after")
    def _scores_only(self) -> RewardModelConfig:
        if self.adapter is not None or self.evaluate.every:
            raise ValueError(
                "a reward model is trained whole and answers no tasks: leave adapter and evaluate.every out"
            )
        return self


@stage(
    "align",
    run="loopline.posttrain.align:align",
    takes={"policy": Takes("checkpoint"), "tasks": Takes("tasks"), "graders": Takes("graders")},
    gives="checkpoint",
    area=5,
    version=2,
)
class AlignConfig(LossConfig):
    """Preference training on the policy's own answers, ranked by the tasks' graders."""

    tasks: tuple[str, ...] = ("tag:must_refuse", "tag:must_answer")
    """Task sets (names, or `tag:<tag>`) whose graders say what conduct is wanted."""
    prompts: int = Field(default=900, ge=1)
    """Tasks of them that are sampled for pairs."""
    written: bool = True
    """Where no sample passes, prefer the task's written answer, if it has one, to a sample that fails."""
    retain: tuple[str, ...] = ("tag:reasoning",)
    """Task sets sampled for pairs of a right and a wrong answer of like length, which keep what they test in place."""
    retain_prompts: int = Field(default=300, ge=0)
    """Tasks of them that are sampled, in equal parts per set."""
    samples: int = Field(default=4, ge=2)
    """Answers sampled of each prompt."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Longest answer, in tokens."""
    sft_weight: float | None = Field(default=0.2, ge=0)
    """Weight of the chosen answer's own likelihood beside the preference."""
    batch_size: int = Field(default=32, ge=1)
    """Preference pairs per optimizer step."""

    @model_validator(mode="after")
    def _pairs(self) -> AlignConfig:
        if self.loss in ("kto", "apo_zero_unpaired"):
            raise ValueError(f"align makes pairs, which the loss {self.loss} does not take: use dpo or one like it")
        return self
