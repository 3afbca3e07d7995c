"""Settings of training, the same for every method. Imports no torch.

    class SFTConfig(TrainingConfig): ...        # a method adds its own settings and may change defaults
    train(model, objective, source, config.steps_for(rows), config, ctx)

Defaults suit checkpoints of 0.1 to 8 billion parameters that have been trained before; a model trained from scratch, or
a very small one, wants larger learning rates. Not covered: what is trained on (each method's config) and the model's
shape (`model.config`).
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from loopline.base.config import Config, Runtime
from loopline.model.adapter_config import LoRAConfig


class ScheduleConfig(Config):
    """Warmup-stable-decay (Hu et al. 2024, MiniCPM, arXiv:2404.06395): up, flat, then linearly down."""

    warmup: float = Field(default=0.03, ge=0, le=1)
    """Share of the steps spent rising linearly from zero."""
    decay: float = Field(default=0.9, ge=0, le=1)
    """Share of the steps spent falling linearly to `final`."""
    final: float = Field(default=0.1, ge=0, le=1)
    """Share of the peak learning rate left at the last step."""


class OptimizerConfig(Config):
    """AdamW everywhere, or Muon on the blocks' matrices and AdamW on the rest."""

    kind: Literal["adamw", "muon"] = "adamw"
    """`muon` orthogonalizes the momentum of every matrix in the blocks (Jordan et al. 2024)."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate of AdamW."""
    matrix_learning_rate: float = Field(default=0.02, gt=0)
    """Peak learning rate of Muon; unused with `adamw`."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of AdamW's first moment."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of AdamW's second moment."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay, on matrices only."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the whole gradient; larger ones are scaled down to it."""


class TrainRuntime(Runtime):
    """What changes speed and safety but not the result."""

    save_every: int = Field(default=50, ge=1)
    """Steps between checkpoints of the training state."""


class GuardConfig(Config):
    """When an update is dropped, and when a run goes back to its last checkpoint."""

    spike_sigmas: float = Field(default=6.0, gt=0)
    """A loss or gradient norm this many standard deviations over its recent mean, and twice that mean, is a spike."""
    spike_window: int = Field(default=128, ge=8)
    """Accepted steps that make up recent history."""
    spike_minimum: int = Field(default=32, ge=2)
    """Steps of history before anything counts as a spike."""
    patience: int = Field(default=3, ge=1)
    """Steps in a row that are dropped; with the last of them the run is rewound and their data left out."""
    rewinds: int = Field(default=2, ge=0)
    """Rewinds of one run; what would need another stops it."""


class DevelopmentConfig(Config):
    """Evaluations during training, on the development part of task sets; the stage ends with the best weights."""

    every: int = Field(default=0, ge=0)
    """Optimizer steps between two evaluations, and one after the last; 0 leaves them out."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after so many evaluations without a better one; empty trains to the end."""
    tasks: tuple[str, ...] = ()
    """Task sets, by name or as `tag:<tag>`; empty takes all."""
    n: int = Field(default=100, ge=1)
    """Development tasks per set at most."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature; 0 takes the likeliest answer."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Tokens an answer may take; empty takes the stage's own limit where it has one, else 256."""


Divide = Literal["operations", "batches"]
"""What a CPU's threads share in training: every operation, or a step's micro-batches, a thread each. The latter is
faster for small models (a third at a million parameters, a sixth at 20 million), holds as many micro-batches at once as
there are threads, and rounds otherwise; nothing changes for a step of one micro-batch."""


class TrainingConfig(Config):
    """How a model is trained."""

    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; set, it replaces `epochs`."""
    epochs: float = Field(default=1.0, gt=0)
    """Times that every row is seen."""
    batch_size: int = Field(default=32, ge=1)
    """Sequences per optimizer step; of preferences, pairs."""
    rows_per_batch: int = Field(default=8, ge=1)
    """Packed rows per forward pass; of preferences, pairs. Memory grows with it, results only round otherwise."""
    sequence_length: int = Field(default=2048, ge=16)
    """Tokens of a packed row, and of the longest sequence; the model's own limit counts when it is lower."""
    overlong: Literal["refuse", "drop", "truncate"] = "refuse"
    """What becomes of sequences longer than that."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer."""
    schedule: ScheduleConfig = ScheduleConfig()
    """How the learning rate moves."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of matrix products: bfloat16 runs them under autocast and keeps weights and optimizer in float32."""
    divide: Divide = "batches"
    """What a CPU's threads share: micro-batches, a thread each, or operations."""
    adapter: LoRAConfig | None = None
    """Train a low-rank adapter in place of the whole model, as in `adapter: {rank: 8}`."""
    guards: GuardConfig = GuardConfig()
    """What is done about spikes and numbers that are not finite."""
    evaluate: DevelopmentConfig = DevelopmentConfig()
    """Evaluations during training, best weights kept, early stopping."""
    runtime: TrainRuntime = TrainRuntime()
    """Checkpointing."""

    def steps_for(self, rows: int) -> int:
        """Optimizer steps over `rows` sequences: as set, or so many epochs of them."""
        return self.steps or max(1, math.ceil(self.epochs * rows / self.batch_size))

    def longest(self, position_limit: int | None) -> int:
        """Tokens that one sequence may have, for a model that takes `position_limit` of them (None: any number)."""
        return min(self.sequence_length, position_limit or self.sequence_length)
