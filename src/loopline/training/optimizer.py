"""Optimizers and the learning-rate schedule.

`build_optimizers` gives AdamW over everything, or Muon over the blocks' matrices and AdamW over the rest.
`schedule_factor` is warmup-stable-decay as a pure function of the step.
"""

from __future__ import annotations

import torch
from torch.optim import Optimizer

from loopline.model.language_model import LanguageModel
from loopline.training.config import OptimizerConfig, ScheduleConfig
from loopline.training.muon import Muon


def schedule_factor(step: int, steps: int, schedule: ScheduleConfig) -> float:
    """Share of the peak learning rate at `step` (0-based) of `steps`."""
    warmup = round(schedule.warmup * steps)
    decay = round(schedule.decay * steps)
    if step < warmup:
        return (step + 1) / warmup
    left = steps - step
    if decay and left <= decay:
        return 1 - (1 - schedule.final) * (decay - left) / decay
    return 1.0


def build_optimizers(model: LanguageModel, config: OptimizerConfig) -> list[Optimizer]:
    """The optimizers of `model`, each parameter that is not frozen in exactly one.

    Group key "peak" holds its peak learning rate. Experts, several matrices in one tensor, count among the tables.
    """
    named = [(f".{name}", p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if p.dim() == 2 and ".blocks." in name]
    tables = [p for name, p in named if p.dim() > 2 or (p.dim() == 2 and ".blocks." not in name)]
    vectors = [p for _, p in named if p.dim() < 2]
    adamw_matrices = tables if config.kind == "muon" else [*matrices, *tables]
    adamw = torch.optim.AdamW(
        [
            {"params": adamw_matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        fused=True,
    )
    optimizers: list[Optimizer] = [adamw]
    if config.kind == "muon":
        optimizers.append(Muon(matrices, lr=config.matrix_learning_rate, weight_decay=config.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def set_learning_rate(optimizers: list[Optimizer], factor: float) -> None:
    """Set every group's learning rate to `factor` times its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
