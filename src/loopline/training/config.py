"""Settings of the training loop. Imports no torch.

Not covered: what is trained on (each stage's config) and the model's shape (`model.config`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from loopline.base.config import Config, Runtime


class ScheduleConfig(Config):
    """Warmup-stable-decay (Hu et al. 2024, MiniCPM, arXiv:2404.06395): up, flat, then linearly down."""

    warmup: float = Field(default=0.02, ge=0, le=1)
    """Share of the steps spent rising linearly from zero."""
    decay: float = Field(default=0.4, ge=0, le=1)
    """Share of the steps spent falling linearly to `final`."""
    final: float = Field(default=0.0, ge=0, le=1)
    """Share of the peak learning rate left at the last step."""


class OptimizerConfig(Config):
    """AdamW everywhere, or Muon on the blocks' matrices and AdamW on the rest."""

    kind: Literal["adamw", "muon"] = "adamw"
    """`muon` orthogonalizes the momentum of every matrix in the blocks (Jordan et al. 2024)."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """Peak learning rate of AdamW."""
    matrix_learning_rate: float = Field(default=0.02, gt=0)
    """Peak learning rate of Muon; unused with `adamw`."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of AdamW's first moment."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of AdamW's second moment."""
    weight_decay: float = Field(default=0.01, ge=0)
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


class TrainConfig(Config):
    """One run of the loop."""

    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer."""
    schedule: ScheduleConfig = ScheduleConfig()
    """How the learning rate moves."""
    runtime: TrainRuntime = TrainRuntime()
    """Checkpointing."""
    guards: GuardConfig = GuardConfig()
    """What is done about spikes and numbers that are not finite."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of matrix products: bfloat16 runs them under autocast and keeps weights and optimizer in float32."""
    divide: Divide = "operations"
    """What a CPU's threads share."""
