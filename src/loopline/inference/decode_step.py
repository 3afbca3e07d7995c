"""One decoding step: the next logits of all running rows; and prompts, computed before their first step.

`decode_step(model, rows, team)` picks the form: `CompiledStep` (see `inference.compiled_step`) for a plain decoder in
single precision on the CPU, `RecordedStep` (see `inference.recorded_step`) on CUDA, `ModelStep` (see
`inference.model_step`) for everything else.
At a million parameters an operation of torch takes some tens of microseconds, and waking a second thread for it takes
as long, so `step_threads` asks for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from loopline.compute.team import Team
from loopline.inference.model_step import ModelStep
from loopline.inference.slots import Slots
from loopline.model.cache import KeyValueCache
from loopline.model.decoder import Decoder
from loopline.model.language_model import LanguageModel

SMALL = 8_000_000
"""Parameters below which torch's operations are too short to be divided among threads."""
CHANNELS = 8
"""Channels of a head that `CompiledStep` computes at once."""


class DecodeStep(Protocol):
    """A model as the scheduler uses it."""

    def __call__(self, slots: Slots) -> None:
        """A step over the running rows: tokens in, scores out into `slots.logits`, keys and values written."""
        ...

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[KeyValueCache, Tensor]:
        """Keys and values of `prompts`, a row each, and the scores (B, V) of what follows each."""
        ...


def is_plain(model: LanguageModel) -> bool:
    """Whether `CompiledStep` computes `model`."""
    if not (type(model) is Decoder and model.device.type == "cpu"):
        return False
    single = all(parameter.dtype == torch.float32 for parameter in model.parameters())
    return single and model.config.head_dim % CHANNELS == 0


def step_threads(model: LanguageModel) -> int | None:
    """Threads that torch's operations in a step of `model` should use; None leaves them."""
    small = sum(parameter.numel() for parameter in model.parameters()) < SMALL
    return 1 if small and model.device.type == "cpu" else None


def decode_step(model: LanguageModel, rows: int, team: Team) -> DecodeStep:
    """The fastest step for `model` and up to `rows` rows that computes the same."""
    if model.device.type == "cuda":
        from loopline.inference.recorded_step import RecordedStep

        return RecordedStep(model)
    if is_plain(model):
        from loopline.inference.compiled_step import CompiledStep

        assert isinstance(model, Decoder)
        return CompiledStep(model, rows, team)
    return ModelStep(model)
