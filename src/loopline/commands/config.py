"""Settings of the user's commands. Imports no torch.

Every key can be set with `--set key=value`; those of the data with `--set data.key=value`, those of the grader's audit
and probe with `--set grader.key=value`. Defaults suit checkpoints of 0.1 to 8 billion parameters that have been trained
before. Not covered: settings of the line's own stages (see each room's config).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from loopline.base.config import Config
from loopline.model.adapter_config import LoRAConfig
from loopline.posttrain.config import GRPOConfig
from loopline.training.config import Divide, OptimizerConfig, ScheduleConfig, TrainRuntime

PROMPTS = "prompts"
"""The one task set of a user's prompts."""
GRADER = "grader"
"""Name of the one grader of a user's prompts."""


class TuneConfig(Config):
    """What every command that trains on a fixed file has in common."""

    epochs: float = Field(default=1.0, gt=0)
    """Times that every row is seen."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; set, it replaces `epochs`."""
    sequence_length: int = Field(default=2048, ge=16)
    """Tokens of a packed row; the model's own limit counts when it is lower."""
    overlong: Literal["refuse", "drop", "truncate"] = "refuse"
    """What becomes of rows longer than that."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5, weight_decay=0.0)
    """The optimizer."""
    schedule: ScheduleConfig = ScheduleConfig(warmup=0.03, decay=0.9, final=0.1)
    """How the learning rate moves."""
    runtime: TrainRuntime = TrainRuntime()
    """Checkpointing."""
    divide: Divide = "batches"
    """What a CPU's threads share: micro-batches, a thread each, or operations."""


class FineTuneConfig(TuneConfig):
    """`loopline sft`."""

    adapter: LoRAConfig | None = None
    """Train a low-rank adapter in place of the whole model, as in `--set adapter.rank=8`."""

    examples_per_step: int = Field(default=32, ge=1)
    """Conversations per optimizer step."""
    rows_per_batch: int = Field(default=8, ge=1)
    """Packed rows per forward pass."""
    learn: Literal["assistant", "last", "all"] = "assistant"
    """Loss on every turn of the assistant, on its last one, or on every token."""


class RewardModelConfig(TuneConfig):
    """`loopline reward`."""

    loss: Literal["bradley_terry", "pointwise", "process"] = "bradley_terry"
    """Pairs by the Bradley-Terry model (1952), single answers with a label, or solutions with a label per step
    (arXiv:2305.20050)."""
    separator: str = "\n"
    """What closes a step (`process`); the score of a step is read at its last token."""
    pairs_per_step: int = Field(default=32, ge=1)
    """Pairs, or labelled answers, per optimizer step."""
    pairs_per_batch: int = Field(default=8, ge=1)
    """Pairs, or packed rows of labelled answers, per forward pass."""
    centering: float = Field(default=0.0, ge=0)
    """Weight of the squared sum of a pair's scores, which keeps them around zero (arXiv:2312.09244)."""


class PreferenceConfig(TuneConfig):
    """`loopline dpo`."""

    adapter: LoRAConfig | None = None
    """Train a low-rank adapter in place of the whole model, as in `--set adapter.rank=8`."""

    loss: Literal[
        "dpo",
        "ipo",
        "kto",
        "orpo",
        "simpo",
        "cpo",
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
    ] = "dpo"
    """DPO (arXiv:2305.18290), IPO (2310.12036), KTO (2402.01306), ORPO (2403.07691), SimPO (2405.14734), CPO
    (2401.08417), or another loss of DPO's margins (see `training/objectives/preference.py`)."""
    beta: float | None = Field(default=None, gt=0)
    """Strength of the pull towards the reference policy, 0.1 unless given; SimPO's scale, 2 unless given; ORPO's weight
    of the odds ratio, 0.1 unless given."""
    sft_weight: float = Field(default=0.0, ge=0)
    """Weight of the chosen answer's own likelihood beside the preference (`dpo` and its variants)."""
    settings: dict[str, float] = {}
    """Further settings of the objective by its own names, such as `gamma` (SimPO) or `label_smoothing` (DPO)."""
    pairs_per_step: int = Field(default=16, ge=1)
    """Pairs, or labelled answers, per optimizer step."""
    pairs_per_batch: int = Field(default=8, ge=1)
    """Pairs per forward pass."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-6, weight_decay=0.0)
    """The optimizer."""


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
